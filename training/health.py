"""Is the network learning everywhere? Layers whose gradients vanish or explode, dead channels, and where a NaN came from."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

VANISHING, EXPLODING = 1e-3, 1e3  # of the median layer's gradient, root mean square over the weights
FAINT, STEEP = 1e-6, 100.0  # gradient over weights, norms: vanishing below, exploding above, whatever the other layers do
RESTLESS = 0.1  # share of its weights that a layer moves in one step
DEAD = 0.75  # share of channels that never fire
KEPT = 50  # measurements that the medians are over: the latest ones
NAMED = 8  # layers in one sentence
RECTIFIERS = (nn.ReLU, nn.ReLU6)


class NotFinite(RuntimeError):
    """The loss or a gradient became infinite or NaN; the message says when, where and what to do.

    Args:
        step: of the optimiser, counted from the start of the run.
        cause: what `first_non_finite` says.
    """

    def __init__(self, step: int, cause: str) -> None:
        super().__init__(step, cause)
        self.step, self.cause = step, cause

    def __str__(self) -> str:
        return (
            f"loss or gradient is not finite at step {self.step}: {self.cause}; what was saved before is kept; "
            "try a lower rate, a longer warm-up or a smaller clip"
        )


def owners(model: nn.Module) -> dict[str, tuple[nn.Module, list[nn.Parameter]]]:
    """Layers that own parameters, by name, in the order of the network's definition, with the parameters that learn."""
    found = {}
    for name, module in model.named_modules():
        learning = [p for p in module.parameters(recurse=False) if p.requires_grad]
        if learning:
            found[name or "network"] = (module, learning)
    return found


def norms(groups: list[list[Tensor]]) -> list[float]:
    """Euclidean norm of each group of tensors; one transfer from the device for all of them."""
    lengths = [torch.stack([torch.linalg.vector_norm(t.detach().float()) for t in group]) for group in groups]
    return torch.stack([torch.linalg.vector_norm(length) for length in lengths]).tolist() if groups else []


class GradientHealth:
    """Norms of gradients, weights and updates per layer, measured at every ``every``-th step.

    Call `step` after the backward pass, with gradients unscaled (fp16) and not yet clipped. The update is the true one, of
    whatever optimiser: weights are kept from `step` until the optimiser's own step is done. A step whose gradients are not
    finite (mixed precision skips it) is counted and not measured.

    Attributes:
        dead: share of dead channels by layer, as `look` found it last.
    """

    def __init__(self, model: nn.Module, optimiser: torch.optim.Optimizer, every: int = 50) -> None:
        """Raises ValueError: ``every`` is less than 1."""
        if every < 1:
            raise ValueError(f"every is {every}; give 1 or more steps")
        self.layers = owners(model)
        self.every = every
        self.steps = self.measured = self.not_finite = 0
        self.history = {name: {k: deque[float](maxlen=KEPT) for k in ("gradient", "weight", "update")} for name in self.layers}
        self.dead: dict[str, float] = {}
        self._before: dict[str, tuple[float, list[Tensor]]] = {}
        optimiser.register_step_post_hook(lambda *_: self._updated())

    def step(self) -> None:
        """Measure, where it is this step's turn (the first one has it)."""
        self._before = {}  # of a step that the optimiser did not take
        turn = self.steps % self.every == 0
        self.steps += 1
        if not turn:
            return
        names = [n for n, (_, parameters) in self.layers.items() if any(p.grad is not None for p in parameters)]
        gradients = norms([[p.grad for p in self.layers[n][1] if p.grad is not None] for n in names])
        if not all(map(math.isfinite, gradients)):
            self.not_finite += 1
            return
        self.measured += 1
        weights = norms([list(self.layers[n][1]) for n in names])
        for name, gradient, weight in zip(names, gradients, weights, strict=True):
            self.history[name]["gradient"].append(rounded(gradient))
            self.history[name]["weight"].append(rounded(weight))
            self._before[name] = (weight, [p.detach().clone() for p in self.layers[name][1]])

    def _updated(self) -> None:
        moved = norms([[p - q for p, q in zip(self.layers[n][1], old, strict=True)] for n, (_, old) in self._before.items()])
        for (name, (weight, _)), change in zip(self._before.items(), moved, strict=True):
            if weight and math.isfinite(change):
                self.history[name]["update"].append(rounded(change / weight))
        self._before = {}

    def look(self, model: nn.Module, images: Tensor) -> None:
        """Count dead channels over a batch of normalised images; see `dead_channels`."""
        self.dead = dead_channels(model, images)

    @property
    def state(self) -> dict[str, Any]:
        """Everything that was measured, JSON-able; goes into a checkpoint and back by `load_state`."""
        return {
            "steps": self.steps,
            "measured": self.measured,
            "not_finite": self.not_finite,
            "layers": {name: {k: list(v) for k, v in kinds.items()} for name, kinds in self.history.items()},
            "dead": dict(self.dead),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``. Layers that are frozen or gone by now are passed over."""
        self.steps, self.measured, self.not_finite = state["steps"], state["measured"], state["not_finite"]
        for name, kinds in state["layers"].items():
            if name in self.history:
                self.history[name] = {k: deque(v, maxlen=KEPT) for k, v in kinds.items()}
        self.dead = dict(state["dead"])

    def report(self) -> dict[str, Any]:
        """JSON-able: ``layers``, a row each, and ``findings``, sentences that name what is wrong.

        A row has ``name``, ``kind`` (class), ``weights`` (how many), medians over the steps measured of ``gradient`` and
        ``weight`` (norms) and ``update`` (norm of the change in a step over norm of the weights), ``relative`` (the
        gradient's root mean square over that of the median layer) and ``verdict``: ``""``, ``vanishing``, ``exploding`` or
        ``restless``. Norm layers are compared with norm layers, the others with each other.
        """
        rows: list[dict[str, Any]] = []
        for name, (module, parameters) in self.layers.items():
            gradient, weight, update = (middle(self.history[name][k]) for k in ("gradient", "weight", "update"))
            size = sum(p.numel() for p in parameters)
            measures = {"gradient": gradient, "weight": weight, "update": update, "relative": None, "verdict": ""}
            rows.append({"name": name, "kind": type(module).__name__, "weights": size, **measures})
        for matrices in (True, False):
            peers = [r for r in rows if any(p.ndim > 1 for p in self.layers[r["name"]][1]) is matrices]
            peers = [r for r in peers if r["gradient"] is not None]
            sizes = [float(r["gradient"]) / math.sqrt(r["weights"]) for r in peers]
            typical = middle(sizes)
            for row, rms in zip(peers, sizes, strict=True):
                row["relative"] = rounded(rms / typical) if typical else None
                row["verdict"] = verdict(row)
        return {
            "steps": self.steps,
            "measured": self.measured,
            "layers": rows,
            "dead": dict(self.dead),
            "findings": [*findings(rows), *self._other_findings()],
        }

    def _other_findings(self) -> Iterator[str]:
        if self.measured == 0:
            yield "No gradients were measured."
        if self.not_finite:
            yield f"Gradients were not finite at {self.not_finite} of {self.measured + self.not_finite} steps looked at."
        for name, share in self.dead.items():
            if share >= DEAD:
                yield f"{name}: {share:.0%} of its channels are dead, 0 everywhere in a batch. Lower the rate."


def verdict(row: Mapping[str, Any]) -> str:
    """What is wrong with a layer, ``""`` where nothing is."""
    gradient, weight, update, relative = (row[k] for k in ("gradient", "weight", "update", "relative"))
    if gradient <= FAINT * weight or (relative is not None and relative < VANISHING):
        return "vanishing"
    # beside layers that vanish a healthy one seems to explode, so its gradient has to be long by itself, too
    if weight and gradient > weight * (STEEP / 10 if (relative or 0) > EXPLODING else STEEP):
        return "exploding"
    return "restless" if update is not None and update > RESTLESS else ""


def findings(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A sentence for each verdict: which layers, how bad it is and what to do."""
    for kind, what, measure, advice in (
        ("vanishing", "gradient vanishes", "gradient", "They hardly learn: try skips, norm layers or another initialisation."),
        ("exploding", "gradient explodes", "gradient", "Clip gradients, lower the rate or start from smaller weights."),
        ("restless", "weights are restless", "update", "Lower the rate."),
    ):
        bad = [row for row in rows if row["verdict"] == kind]
        if not bad:
            continue
        named = ", ".join(f"{r['name']} ({r['kind']})" for r in bad[:NAMED])
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        shares = [r["update"] if measure == "update" else r["gradient"] / (r["weight"] or 1) for r in bad]
        amount = f"{min(shares):.1e}" if len(bad) == 1 else f"{min(shares):.1e} to {max(shares):.1e}"
        per = "moved per step" if measure == "update" else "gradient"
        yield f"The {what} in {named}{more}: {per} {amount} times the weights, by their norms. {advice}"


def rounded(value: float) -> float:
    return float(f"{value:.6g}")


def middle(values: Iterable[float]) -> float | None:
    """Median; None of nothing."""
    known = list(values)
    return float(median(known)) if known else None


@torch.no_grad()
def dead_channels(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Share of the channels of each `nn.ReLU` and `nn.ReLU6` that are 0 everywhere in a batch.

    Args:
        images: float ``(N, 3, h, w)``, as the network takes them. It runs once, as for inference.
    """
    shares: dict[str, float] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            alive = (output > 0).transpose(0, 1).flatten(1).any(1)
            shares[name] = max(shares.get(name, 0.0), 1 - alive.float().mean().item())

        return hook

    hooks = [m.register_forward_hook(watch(n)) for n, m in model.named_modules() if isinstance(m, RECTIFIERS)]
    try:
        with mode(model, training=False):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return shares


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Every module in training or evaluation mode for a while, then each as it was."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was in before.items():
            module.training = was


def first_non_finite(model: nn.Module, images: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> str:
    """Where infinity or NaN first came up in a bad batch: the second half of a sentence, for `NotFinite`.

    The batch is run again, so call it before the weights change and within the autocast of the step. Buffers (the norms'
    running statistics) and gradients are left as they were.

    Args:
        images: float ``(N, 3, h, w)``, as the network took them.
        targets: as ``loss`` takes them.
        loss: (logits, targets) -> scalar.

    Returns:
        the first module whose output is not finite; if all outputs are finite, the one whose gradient is not, nearest to the
        output, where it began; else a weight that is not.
    """
    if not finite(images):
        return f"the images themselves are not finite ({span(images)})"
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    order: list[nn.Module] = []  # as they ran
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            order.append(module)
            if not found and not all(map(finite, tensors_in(output))):
                given = ", ".join(ranges[module]) or "without input"
                broken = [n for n, p in module.named_parameters() if not finite(p)]
                because = f"; its {' and '.join(broken)} was not finite before, so an earlier step broke it" if broken else ""
                found.append(f"first non-finite output in {title(name, module)}, input range {given}{because}")

        return hook

    ranges: dict[nn.Module, list[str]] = {}  # taken before the module runs, since it may write over its input

    def remember(module: nn.Module, inputs: Any) -> None:
        if not found:
            ranges[module] = [span(t) for t in tensors_in(inputs)]

    hooks = [m.register_forward_pre_hook(remember) for m in model.modules()]
    hooks += [m.register_forward_hook(watch(n)) for n, m in model.named_modules()]
    try:
        with torch.enable_grad():
            logits = model(images)
            if found:
                return found[0]
            value = loss(logits, targets)
        if not finite(value):
            return f"the network's outputs are finite ({span(logits)}), the loss computed from them is not"
        layers = {module: (name, parameters) for name, (module, parameters) in owners(model).items()}
        learning = [p for _, parameters in layers.values() for p in parameters]
        gradients = torch.autograd.grad(value, learning, allow_unused=True) if learning else ()
        broken = {p for p, g in zip(learning, gradients, strict=True) if g is not None and not finite(g)}
        for module in reversed(order):  # gradients run from the output back
            name, parameters = layers.get(module, ("", []))
            if any(p in broken for p in parameters):
                return f"outputs and loss are finite, first non-finite gradient in {title(name, module)}"
    finally:
        for hook in hooks:
            hook.remove()
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not finite(tensor):
            return f"outputs, loss and gradients are finite, the weight {name} is not"
    return "all is finite when the batch is run again, so chance (dropout) or lack of precision decides"


def title(name: str, module: nn.Module) -> str:
    return f"{name or 'network'} ({type(module).__name__})"


def finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def span(tensor: Tensor) -> str:
    """``[least, most]`` of what is finite, and whether all of it is."""
    values = tensor.detach().float()
    known = values[torch.isfinite(values)]
    if not known.numel():
        return "nothing finite"
    text = f"[{known.min().item():.4g}, {known.max().item():.4g}]"
    return text if known.numel() == values.numel() else f"{text} and {values.numel() - known.numel()} not finite"


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Floating tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
