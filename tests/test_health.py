"""Networks made to vanish, to explode, to die and to say NaN, and whether that is seen and where."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from torch import Tensor, nn  # noqa: E402

from training.health import GradientHealth, NotFinite, dead_channels, first_non_finite  # noqa: E402


def stack(activation: Callable[[], nn.Module], depth: int, gain: float | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in [3] + [8] * depth:
        layers += [nn.Conv2d(channels, 8, 3, padding=1), activation()]
    network = nn.Sequential(*layers, nn.Conv2d(8, 1, 1))
    for layer in network:
        if gain is not None and isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=gain)
    return network


def measured(network: nn.Module, rate: float = 1e-4, steps: int = 3, every: int = 1) -> GradientHealth:
    optimiser = torch.optim.SGD(network.parameters(), lr=rate)
    health = GradientHealth(network, optimiser, every)
    torch.manual_seed(1)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(network(torch.randn(2, 3, 8, 8)), torch.zeros(())).backward()
        health.step()
        optimiser.step()
    return health


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits - targets - 1).square().mean()


def verdicts(health: GradientHealth) -> dict[str, str]:
    return {row["name"]: row["verdict"] for row in health.report()["layers"]}


def test_norms_by_hand() -> None:
    """y = w x with w (3, 4), x (1, 2), loss y: the gradient is x, and a step of rate 0.1 moves w by 0.1 |x|."""
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[3.0, 4.0]])
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    health = GradientHealth(layer, optimiser, every=2)
    for turn in range(3):
        optimiser.zero_grad()
        layer.weight.data = torch.tensor([[3.0, 4.0]])
        layer((1.0 + 9 * (turn == 1)) * torch.tensor([1.0, 2.0])).sum().backward()  # the second is not looked at
        health.step()
        optimiser.step()
    (row,) = health.report()["layers"]
    assert row["gradient"] == pytest.approx(math.sqrt(5), rel=1e-5)
    assert row["weight"] == pytest.approx(5)
    assert row["update"] == pytest.approx(0.1 * math.sqrt(5) / 5, rel=1e-5)
    assert row["relative"] == 1
    assert (health.steps, health.measured) == (3, 2)


def test_update_is_the_optimisers_own() -> None:
    """Adam's first step moves every weight by the rate, however small its gradient: 4 weights of 1, rate 0.01."""
    layer = nn.Linear(4, 1, bias=False)
    nn.init.ones_(layer.weight)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.01)
    health = GradientHealth(layer, optimiser)
    layer(torch.full((1, 4), 1e-3)).sum().backward()
    health.step()
    optimiser.step()
    assert health.report()["layers"][0]["update"] == pytest.approx(0.01, rel=1e-3)


def test_deep_sigmoids_vanish_towards_the_input() -> None:
    found = verdicts(health := measured(stack(nn.Sigmoid, 10)))
    assert found["0"] == found["2"] == found["4"] == "vanishing"
    assert found["20"] == found["22"] == "", "the last layers learn, and do not explode for being longer than a tiny median"
    (finding,) = health.report()["findings"]
    assert "vanishes in 0 (Conv2d), 2 (Conv2d)" in finding


def test_large_weights_explode_everywhere() -> None:
    health = measured(stack(nn.ReLU, 8, gain=1.5))
    assert set(verdicts(health).values()) == {"exploding"}
    assert "explodes in 0 (Conv2d)" in health.report()["findings"][0]


def test_one_layer_explodes_beside_the_others() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steep, self.a, self.b = (nn.Conv2d(3, 1, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            steep = self.steep(x)
            return self.a(x) + self.b(x) + 30_000 * (steep - steep.detach())  # a gradient without a value

    torch.manual_seed(0)
    assert verdicts(measured(Two(), rate=0.0, steps=1)) == {"steep": "exploding", "a": "", "b": ""}


def test_healthy_network_has_no_findings() -> None:
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Conv2d(c, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for c in (3, 8, 8, 8)]
    health = measured(nn.Sequential(*parts, nn.Conv2d(8, 1, 1)), rate=0.01)
    assert health.report()["findings"] == []
    assert {row["kind"] for row in health.report()["layers"]} == {"Conv2d", "BatchNorm2d"}


def test_rate_that_tears_the_weights_about() -> None:
    torch.manual_seed(0)
    health = measured(nn.Conv2d(3, 1, 1), rate=0.4, steps=1)
    assert verdicts(health) == {"network": "restless"}
    assert "Lower the rate" in health.report()["findings"][0]


def test_frozen_layers_are_not_watched() -> None:
    network = stack(nn.ReLU, 2)
    network[0].requires_grad_(False)
    assert list(verdicts(measured(network))) == ["2", "4", "6"]


def test_steps_that_are_not_finite_are_counted_and_not_measured() -> None:
    network = nn.Conv2d(3, 1, 1)
    health = measured(network, steps=1)
    before = health.report()["layers"]
    assert network.weight.grad is not None
    network.weight.grad.fill_(math.inf)
    health.step()
    assert health.report()["layers"] == before
    assert "not finite at 1 of 2 steps" in health.report()["findings"][-1]


def test_state_goes_through_json_and_on() -> None:
    health = measured(stack(nn.Sigmoid, 4), steps=5, every=2)
    network = stack(nn.Sigmoid, 4)
    resumed = GradientHealth(network, torch.optim.SGD(network.parameters(), lr=0.1), every=2)
    resumed.load_state(json.loads(json.dumps(health.state)))
    assert resumed.report() == health.report()
    assert resumed.state == health.state
    assert json.loads(json.dumps(health.report())) == health.report()


def test_every_has_to_be_a_number_of_steps() -> None:
    network = nn.Conv2d(3, 1, 1)
    with pytest.raises(ValueError, match="every is 0"):
        GradientHealth(network, torch.optim.SGD(network.parameters(), lr=0.1), every=0)


def test_dead_channels_are_counted() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU6(inplace=True))
    with torch.no_grad():
        network[1].bias.copy_(torch.tensor([-9.0, -9, -9, 5]))
        network[3].weight.zero_()
        network[3].bias.copy_(torch.tensor([-1.0, 1, 1, 1]))
    network.train()
    running = network[1].running_mean.clone()
    images = torch.randn(4, 3, 8, 8)
    assert dead_channels(network, images) == {"2": 0.75, "4": 0.25}
    assert network[1].training
    assert torch.equal(network[1].running_mean, running), "looking changes nothing"
    assert not any(m._forward_hooks for m in network.modules())
    health = GradientHealth(network, torch.optim.SGD(network.parameters(), lr=0.1))
    health.look(network, images)
    assert "2: 75% of its channels are dead" in health.report()["findings"][-1]


class Logarithm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


class Root(nn.Module):
    """Finite at 0, where its slope is not."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 0).sqrt()


def cause(network: nn.Module, images: Tensor | None = None) -> str:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 8, 8) if images is None else images
    return first_non_finite(network, images, torch.zeros(()), loss)


def test_first_output_that_is_not_finite_is_named() -> None:
    inner = nn.Sequential(nn.ReLU(inplace=True), Logarithm())
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), inner, nn.Conv2d(4, 1, 1))
    running = network[1].running_mean.clone()
    assert cause(network).startswith("first non-finite output in 2.1 (Logarithm), input range [0, ")
    assert torch.equal(network[1].running_mean, running)
    assert network[0].weight.grad is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_huge_weight_overflows_where_it_is() -> None:
    network = stack(nn.ReLU, 3)
    nn.init.constant_(network[2].weight, 1e30)
    nn.init.constant_(network[4].weight, 1e30)
    assert cause(network, torch.rand(1, 3, 8, 8) + 1).startswith("first non-finite output in 4 (Conv2d), input range [")


def test_weight_that_an_earlier_step_broke_is_named() -> None:
    network = stack(nn.ReLU, 3)
    network[4].bias.data[0] = math.nan
    assert "4 (Conv2d)" in cause(network)
    assert "its bias was not finite before" in cause(network)


def test_function_outside_any_layer_is_the_containers_own() -> None:
    class Container(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) / 0

    assert "network (Container)" in cause(Container())


def test_gradient_that_is_not_finite_is_traced_to_where_it_began() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), Root(), nn.Conv2d(4, 1, 1))
    assert cause(network) == "outputs and loss are finite, first non-finite gradient in 1 (Conv2d)"


def test_images_loss_and_idle_weights_are_told_apart() -> None:
    images = torch.rand(1, 3, 8, 8)
    images[0, 0, 0, 0] = math.inf
    assert cause(nn.Conv2d(3, 1, 1), images).startswith("the images themselves are not finite ([")
    assert "1 not finite" in cause(nn.Conv2d(3, 1, 1), images)
    found = first_non_finite(nn.Conv2d(3, 1, 1), torch.rand(1, 3, 8, 8), torch.tensor(math.nan), loss)
    assert "outputs are finite" in found
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    network[1].running_var[0] = math.inf
    assert cause(network.train()) == "outputs, loss and gradients are finite, the weight 1.running_var is not"
    assert "all is finite" in cause(nn.Conv2d(3, 1, 1))


def test_the_error_says_when_where_and_what_to_do() -> None:
    error = NotFinite(812, "first non-finite output in decoder.mix8.1 (BatchNorm2d), input range [-1, 1]")
    text = str(pickle.loads(pickle.dumps(error)))
    assert "at step 812: first non-finite output in decoder.mix8.1 (BatchNorm2d)" in text
    assert "lower rate" in text
