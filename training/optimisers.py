"""Optimisers by name, rates by stage, and schedules that resume exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

OPTIMISERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "step", "cosine", "poly", "one_cycle", "plateau")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

WARMUP, WARMUP_ONE_CYCLE = 0.05, 0.3  # share of the run, where the user does not say
FINAL = {"cosine": 0.01, "poly": 0.0, "one_cycle": 4e-6, "plateau": 0.01}  # share of the peak rate at the end, likewise
ONE_CYCLE_START = 0.04  # share of the peak rate at the start
WARMUP_START = 1e-3  # a first step at rate 0 would be lost
IMPROVED = 1e-4  # a metric that grows by less has not grown


def build_optimiser(
    model: nn.Module,
    *,
    name: str = "adamw",
    rate: float = 2e-3,
    stages: Sequence[tuple[str, nn.Module]] = (),
    stage_rates: Mapping[str, float] | None = None,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.01,
) -> torch.optim.Optimizer:
    """The optimiser ``name`` over all parameters that learn, grouped by rate and decay.

    Args:
        name: ``sgd``, ``adam`` or ``adamw``.
        rate: at the peak of the schedule.
        stages: names and modules of the network's stages, each parameter in at most one of them.
        stage_rates: factor on ``rate`` by name of stage, 1 where none is given: discriminative rates (Howard & Ruder
            2018, "ULMFiT"); `discriminative_rates` makes a geometric row of them.
        momentum: decay of the running mean of gradients: SGD's momentum, Adam's beta1.
        nesterov: look ahead, SGD only.
        weight_decay: L2 penalty; in ``adamw`` decoupled from the gradient (Loshchilov & Hutter 2019). Norms and biases
            have none.

    Raises:
        ValueError: an unknown optimiser or stage, a stage within another, a number out of range, or nothing to learn.
    """
    if name not in OPTIMISERS:
        raise ValueError(f"unknown optimiser {name!r}; known: {', '.join(OPTIMISERS)}")
    for what, value in (("rate", rate), ("weight_decay", weight_decay)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{what} is {value}; give 0 or more")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}; give 0 or more and less than 1")
    if nesterov and (name != "sgd" or not momentum):
        raise ValueError("nesterov works with optimiser 'sgd' and a momentum above 0 only; leave it out")
    factors = factor_by_parameter(stages, stage_rates or {})
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate * factors.get(parameter, 1.0), decay), []).append(parameter)
    if not groups:
        raise ValueError("nothing to learn: every stage of the network is frozen; free one")
    listed = [{"params": p, "lr": r, "weight_decay": d} for (r, d), p in groups.items()]
    if name == "sgd":
        return torch.optim.SGD(listed, lr=rate, momentum=momentum, nesterov=nesterov)
    adam = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return adam(listed, lr=rate, betas=(momentum, 0.999))


def factor_by_parameter(stages: Sequence[tuple[str, nn.Module]], stage_rates: Mapping[str, float]) -> dict[nn.Parameter, float]:
    known = [name for name, _ in stages]
    for name, factor in stage_rates.items():
        if name not in known:
            raise ValueError(f"stage_rates: unknown stage {name!r}; this network has: {', '.join(known) or 'none'}")
        if not (math.isfinite(factor) and factor >= 0):
            raise ValueError(f"stage_rates: the factor of {name!r} is {factor}; give 0 or more")
    factors: dict[nn.Parameter, float] = {}
    for name, module in stages:
        for parameter in module.parameters():
            if parameter in factors:
                raise ValueError(f"stages: a parameter of {name!r} belongs to an earlier stage, too; stages must not overlap")
            factors[parameter] = stage_rates.get(name, 1.0)
    return factors


def discriminative_rates(stages: Sequence[tuple[str, nn.Module]], ratio: float = 2.6) -> dict[str, float]:
    """Factors that fall by ``ratio`` per stage from the last one, which has 1, to the first (Howard & Ruder 2018)."""
    if not ratio > 0:
        raise ValueError(f"ratio is {ratio}; give more than 0")
    return {name: ratio ** (index + 1 - len(stages)) for index, (name, _) in enumerate(stages)}


def l1_penalty(model: nn.Module, weight: float) -> Tensor:
    """``weight`` x the sum of the absolute convolution weights that learn: a scalar to add to the loss."""
    layers = [m.weight for m in model.modules() if isinstance(m, CONVOLUTIONS) and m.weight.requires_grad]
    if not layers:
        raise ValueError("an L1 penalty needs convolutions that learn, and this network has none; set it to 0")
    return weight * torch.stack([layer.abs().sum() for layer in layers]).sum()


def build_schedule(
    optimiser: torch.optim.Optimizer,
    *,
    name: str = "cosine",
    steps: int,
    warmup: float | None = None,
    final: float | None = None,
    every: int | None = None,
    factor: float = 0.1,
    power: float = 0.9,
    patience: int = 5,
) -> Schedule:
    """Share of each group's peak rate over the run, step by step. Let ``t`` be the share of the run that is done.

    ============  ====================================================================================================
    ``constant``  1
    ``step``      times ``factor`` after ``every`` steps, again and again
    ``cosine``    half a cosine from 1 to ``final`` (Loshchilov & Hutter 2017)
    ``poly``      ``(1 - t) ** power``, from 1 to ``final`` (Chen et al. 2018, "DeepLab")
    ``one_cycle`` half a cosine up from 0.04 within ``warmup``, another down to ``final`` (Smith & Topin 2019; without
                  their cycle of momentum)
    ``plateau``   times ``factor`` where the metric given to `Schedule.epoch` has not grown for more than ``patience``
                  epochs; not below ``final``
    ============  ====================================================================================================

    Args:
        steps: of the whole run.
        warmup: share of the run in which the rate rises; what ``cosine`` and ``poly`` describe is the rest. 0.05 where
            not given, 0.3 for ``one_cycle``.
        final: share of the peak rate at the end. Where not given 0.01 for ``cosine`` and ``plateau``, 0 for ``poly``,
            4e-6 for ``one_cycle``.
        every: steps between two cuts of ``step``; a third of the run where not given.

    Raises:
        ValueError: an unknown schedule, or a number out of range.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(SCHEDULES)}")
    rise = (WARMUP_ONE_CYCLE if name == "one_cycle" else WARMUP) if warmup is None else warmup
    end = FINAL.get(name, 0.0) if final is None else final
    interval = max(1, math.ceil(steps / 3)) if every is None else every
    checks = (
        ("steps", steps, steps >= 1, "1 or more"),
        ("warmup", rise, 0 <= rise < 1, "0 or more and less than 1, a share of the run"),
        ("final", end, 0 <= end <= 1, "0 to 1, a share of the peak rate"),
        ("every", interval, interval >= 1, "1 or more steps"),
        ("factor", factor, 0 < factor <= 1, "more than 0 and at most 1"),
        ("power", power, power > 0, "more than 0"),
        ("patience", patience, patience >= 0, "0 or more epochs"),
    )
    for what, value, holds, wanted in checks:
        if not holds:
            raise ValueError(f"schedule: {what} is {value}; give {wanted}")

    def share(step: int) -> float:
        t = min(step / steps, 1.0)
        if t < rise:
            return between(ONE_CYCLE_START, 1.0, t / rise) if name == "one_cycle" else max(t / rise, WARMUP_START)
        done = (t - rise) / (1 - rise)
        if name == "step":
            return float(factor ** (step // interval))
        if name == "poly":
            return float(end + (1 - end) * (1 - done) ** power)
        return between(1.0, end, done) if name in ("cosine", "one_cycle") else 1.0

    return Schedule(optimiser, share, factor if name == "plateau" else 1.0, patience, end)


def between(first: float, last: float, done: float) -> float:
    """From ``first`` to ``last`` along half a cosine."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * done))


class Schedule:
    """Sets the rates of an optimiser's groups after every step; `build_schedule` makes it.

    Its state is the number of steps and what the plateau remembers: rates follow from it by formula alone, so a resumed
    run has the same ones to the bit.

    Attributes:
        steps_done: steps of the optimiser so far.
    """

    def __init__(
        self,
        optimiser: torch.optim.Optimizer,
        share: Callable[[int], float],
        factor: float,
        patience: int,
        least: float,
    ) -> None:
        self.optimiser = optimiser
        self.share = share
        self.factor, self.patience, self.least = factor, patience, least
        # an optimiser that was loaded before has the rate of its last step and remembers its peak
        self.peaks = [float(group.setdefault("initial_lr", group["lr"])) for group in optimiser.param_groups]
        self.steps_done = 0
        self.best, self.waited, self.reductions = -math.inf, 0, 0
        self._apply()

    @property
    def rates(self) -> list[float]:
        """The rate of each group in the step to come."""
        return [float(group["lr"]) for group in self.optimiser.param_groups]

    def step(self) -> None:
        """To be called after every step of the optimiser."""
        self.steps_done += 1
        self._apply()

    def epoch(self, metric: float) -> None:
        """To be called after every epoch with the metric on the development split, higher being better.

        Only ``plateau`` listens. NaN says nothing: there is no development split.
        """
        if math.isnan(metric):
            return
        if metric > self.best + IMPROVED:
            self.best, self.waited = metric, 0
        else:
            self.waited += 1
        if self.waited > self.patience:
            self.reductions, self.waited = self.reductions + 1, 0
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        return {"steps_done": self.steps_done, "best": self.best, "waited": self.waited, "reductions": self.reductions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``, setting the rates. Raises ValueError: it is of another kind of schedule."""
        if state.keys() != self.state_dict().keys():
            raise ValueError(f"not the state of a schedule of this version (it holds {', '.join(map(str, state))})")
        self.steps_done, self.best = int(state["steps_done"]), float(state["best"])
        self.waited, self.reductions = int(state["waited"]), int(state["reductions"])
        self._apply()

    def _apply(self) -> None:
        share = self.share(self.steps_done)
        if self.factor < 1:
            share *= max(self.factor**self.reductions, self.least)
        for group, peak in zip(self.optimiser.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share
