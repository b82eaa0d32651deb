"""Optimisers and schedules, against formulas written here and against torch's own schedulers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from torch import nn  # noqa: E402

from training.optimisers import SCHEDULES, Schedule, build_optimiser, build_schedule, discriminative_rates, l1_penalty  # noqa: E402


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.middle = nn.Conv2d(4, 4, 1)
        self.decoder = nn.ConvTranspose2d(4, 2, 2, bias=False)

    @property
    def stages(self) -> list[tuple[str, nn.Module]]:
        return [("encoder", self.encoder), ("middle", self.middle), ("decoder", self.decoder)]


def one_weight(name: str = "sgd", rate: float = 0.5) -> torch.optim.Optimizer:
    return build_optimiser(nn.Conv2d(1, 1, 1, bias=False), name=name, rate=rate)


def rates_of(schedule: Schedule, steps: int) -> list[float]:
    """The rate of every step of a run."""
    rates = []
    for _ in range(steps):
        rates.append(schedule.rates[0])
        schedule.step()
    return rates


def torch_rates(make: Any, steps: int, rate: float = 0.5) -> list[float]:
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    schedule = make(optimiser)
    rates = []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return rates


def test_groups_by_stage_and_kind() -> None:
    network = Network()
    network.middle.weight.requires_grad_(False)
    optimiser = build_optimiser(network, rate=2e-3, stages=network.stages, stage_rates={"encoder": 0.25}, weight_decay=0.01)
    assert isinstance(optimiser, torch.optim.AdamW)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimiser.param_groups for p in g["params"]}
    assert found == {
        id(network.encoder[0].weight): (5e-4, 0.01),
        id(network.encoder[1].weight): (5e-4, 0.0),
        id(network.encoder[1].bias): (5e-4, 0.0),
        id(network.middle.bias): (2e-3, 0.0),
        id(network.decoder.weight): (2e-3, 0.01),
    }


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"name": "sgd", "momentum": 0.0}, 1.0 - 0.1 * (0.4 + 0.5)),
        ({"name": "sgd", "momentum": 0.9, "nesterov": True}, 1.0 - 0.1 * 1.9 * (0.4 + 0.5)),  # g + 0.9 * (first mean g)
        ({"name": "adam"}, 1.0 - 0.1),  # the first step of Adam is the rate, whatever the gradient
        ({"name": "adamw"}, 1.0 * (1 - 0.1 * 0.5) - 0.1),  # and decay comes on top
    ],
)
def test_first_step_by_hand(settings: dict[str, Any], wanted: float) -> None:
    """Weight 1, gradient 0.4, rate 0.1, decay 0.5."""
    layer = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(layer.weight)
    optimiser = build_optimiser(layer, rate=0.1, weight_decay=0.5, **settings)
    layer.weight.grad = torch.full_like(layer.weight, 0.4)
    optimiser.step()
    assert layer.weight.item() == pytest.approx(wanted, abs=1e-6)


def test_momentum_is_the_decay_of_the_mean_in_every_optimiser() -> None:
    assert build_optimiser(Network(), name="sgd", momentum=0.8).param_groups[0]["momentum"] == 0.8
    assert build_optimiser(Network(), name="adamw", momentum=0.8).param_groups[0]["betas"] == (0.8, 0.999)


def test_discriminative_rates_fall_towards_the_input() -> None:
    rates = discriminative_rates(Network().stages, 2.0)
    assert rates == {"encoder": 0.25, "middle": 0.5, "decoder": 1.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "lion"}, "unknown optimiser 'lion'; known: sgd, adam, adamw"),
        ({"rate": -1.0}, "rate is -1"),
        ({"rate": math.nan}, "rate is nan"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"name": "sgd", "momentum": 1.0}, "momentum is 1.0"),
        ({"name": "adam", "nesterov": True}, "'sgd'"),
        ({"stage_rates": {"head": 0.1}}, "unknown stage 'head'; this network has: encoder, middle, decoder"),
        ({"stage_rates": {"encoder": -1.0}}, "factor of 'encoder' is -1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    network = Network()
    with pytest.raises(ValueError, match=message):
        build_optimiser(network, stages=network.stages, **settings)


def test_stages_that_overlap_and_frozen_networks_are_refused() -> None:
    network = Network()
    with pytest.raises(ValueError, match="must not overlap"):
        build_optimiser(network, stages=[("all", network), ("decoder", network.decoder)])
    network.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to learn"):
        build_optimiser(network)


def test_l1_is_of_convolutions_that_learn() -> None:
    network = Network()
    network.middle.weight.requires_grad_(False)
    layers = (network.encoder[0].weight, network.decoder.weight)
    wanted = 0.3 * sum(np.abs(layer.detach().numpy()).sum() for layer in layers)
    penalty = l1_penalty(network, 0.3)
    assert penalty.item() == pytest.approx(wanted, rel=1e-5)
    penalty.backward()
    assert torch.allclose(network.decoder.weight.grad, 0.3 * network.decoder.weight.sign())
    assert network.encoder[1].weight.grad is None
    with pytest.raises(ValueError, match="needs convolutions"):
        l1_penalty(nn.Linear(2, 2), 0.1)


def test_cosine_is_what_the_shipped_networks_were_trained_with() -> None:
    """To the bit: warm-up from a thousandth, half a cosine down to a hundredth."""

    def wanted(progress: float, warmup: float) -> float:
        if progress < warmup:
            return max(progress / warmup, 1e-3)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))

    rates = rates_of(build_schedule(one_weight(rate=2e-3), name="cosine", steps=97, warmup=0.05), 100)
    assert rates == [2e-3 * wanted(step / 97, 0.05) for step in range(100)]
    assert rates[-1] == pytest.approx(2e-5)


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        (
            {"name": "step", "every": 7, "factor": 0.3},
            lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=7, gamma=0.3),
        ),
        (
            {"name": "cosine", "final": 0.2},
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=40, eta_min=0.1),
        ),
        (
            {"name": "poly", "power": 0.9},
            lambda o: torch.optim.lr_scheduler.PolynomialLR(o, total_iters=40, power=0.9),
        ),
        ({"name": "constant"}, lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0)),
    ],
)
def test_same_rates_as_torch(settings: dict[str, Any], make: Any) -> None:
    ours = rates_of(build_schedule(one_weight(), steps=40, warmup=0.0, **settings), 40)
    assert ours == pytest.approx(torch_rates(make, 40), rel=1e-9)


def test_one_cycle_is_torchs() -> None:
    """torch ends each phase a step early: its run of 41 steps with a rise of 12 + 1 is ours of 40 with one of 12."""

    def make(optimiser: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.OneCycleLR(
            optimiser, 0.5, total_steps=41, pct_start=13 / 41, div_factor=25, final_div_factor=1e4, cycle_momentum=False
        )

    ours = rates_of(build_schedule(one_weight(), name="one_cycle", steps=40), 40)
    assert ours == pytest.approx(torch_rates(make, 40), rel=1e-9)
    assert max(ours) == ours[12] == 0.5


def test_plateau_is_torchs() -> None:
    metrics = [0.1, 0.5, 0.5, 0.49, 0.6, 0.6, 0.59, 0.6, 0.2, 0.2, 0.2, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7]
    schedule = build_schedule(one_weight(), name="plateau", steps=400, warmup=0.0, factor=0.2, patience=2, final=0.05)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, "max", factor=0.2, patience=2, threshold=1e-4, threshold_mode="abs", min_lr=0.025
    )
    for metric in metrics:
        schedule.step()
        schedule.epoch(metric)
        theirs.step(metric)
        assert schedule.rates[0] == pytest.approx(optimiser.param_groups[0]["lr"])
    assert schedule.rates[0] == pytest.approx(0.025), "the least is reached"


def test_only_plateau_listens_to_the_metric() -> None:
    schedule = build_schedule(one_weight(), name="constant", steps=10, warmup=0.0, patience=0)
    schedule.epoch(0.5)
    schedule.epoch(0.1)
    assert schedule.rates == [0.5]


def test_groups_keep_their_ratio() -> None:
    network = Network()
    optimiser = build_optimiser(network, rate=2e-3, stages=network.stages, stage_rates={"encoder": 0.25})
    schedule = build_schedule(optimiser, name="poly", steps=30)
    for _ in range(17):
        schedule.step()
    slow, fast = schedule.rates[0], schedule.rates[-1]
    assert slow == pytest.approx(0.25 * fast)
    assert 0 < fast < 2e-3


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("schedule_first", [True, False])
def test_resumed_run_has_the_same_rates_to_the_bit(name: str, schedule_first: bool) -> None:
    def run(schedule: Schedule, first: int, last: int) -> list[list[float]]:
        rates = []
        for step in range(first, last):
            rates.append(schedule.rates)
            schedule.step()
            if step % 4 == 3:
                schedule.epoch([0.2, 0.5, 0.4, 0.3, 0.45, 0.2, 0.1, 0.3, 0.2, 0.1][step // 4])
        return rates

    def start() -> torch.optim.Optimizer:
        torch.manual_seed(0)
        network = Network()
        return build_optimiser(network, rate=0.3, stages=network.stages, stage_rates={"encoder": 0.1})

    settings: dict[str, Any] = {"name": name, "steps": 40, "patience": 1, "factor": 0.5}
    whole = run(build_schedule(start(), **settings), 0, 40)
    optimiser = start()
    schedule = build_schedule(optimiser, **settings)
    run(schedule, 0, 18)
    saved, saved_schedule = optimiser.state_dict(), schedule.state_dict()
    resumed = start()
    if schedule_first:
        schedule = build_schedule(resumed, **settings)
        resumed.load_state_dict(saved)
    else:
        resumed.load_state_dict(saved)
        schedule = build_schedule(resumed, **settings)
    schedule.load_state_dict(saved_schedule)
    assert run(schedule, 18, 40) == whole[18:]
    if name == "plateau":
        assert schedule.reductions == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "zigzag"}, "unknown schedule 'zigzag'; known: constant, step"),
        ({"steps": 0}, "steps is 0"),
        ({"warmup": 1.0}, "warmup is 1.0"),
        ({"final": 2.0}, "final is 2.0"),
        ({"name": "step", "every": 0}, "every is 0"),
        ({"factor": 0.0}, "factor is 0.0"),
        ({"power": 0.0}, "power is 0.0"),
        ({"patience": -1}, "patience is -1"),
    ],
)
def test_wrong_schedules_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_schedule(one_weight(), **{"steps": 10, **settings})


def test_state_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="not the state of a schedule"):
        build_schedule(one_weight(), steps=10).load_state_dict({"last_epoch": 3})


def test_plateau_without_a_metric_waits() -> None:
    """NaN: there is no development split to measure on."""
    schedule = build_schedule(one_weight(), name="plateau", steps=100, warmup=0.0, factor=0.2, patience=1)
    before = schedule.rates
    for _ in range(20):
        schedule.epoch(math.nan)
    assert schedule.rates == before
