"""A network of torch, run once on tensors without content while every operation is watched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from engine.graph import first_line
from training.summary.aten import torch_field
from training.summary.base import Layer, Summary, layer_of, peak_of, with_whole_fields
from training.summary.fields import UNSEEN, Field, field_of_image


@dataclass
class Step:
    """One operation: ``reads`` and ``writes`` are the memory it uses, the latter with bytes; ``call`` is the leaf module's."""

    kind: str
    scope: str
    call: int | None
    out: Tensor
    field: Field | None
    macs: int
    reads: set[int]
    writes: dict[int, int]


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches all operations while a network runs on ``image``, and follows what their results depend on.

    Attributes:
        steps: the operations that compute something, in order.
        calls: name and module of every call of a leaf module.
        image, output: the network's; the first output where it has several.
    """

    def __init__(self, network: nn.Module, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.calls: list[tuple[str, nn.Module]] = []
        self._scopes: list[tuple[str, int | None]] = []
        self._fields = {id(image): field_of_image(image.shape[2], image.shape[3], (2, 3))}
        self._sharing = {memory(image): [image]}  # tensors by memory; all stay alive, so that no identity comes twice
        with called(network, self._enter, self._leave), torch.no_grad(), torch.device("meta"), self:
            output = network(image)
        self.image, self.output = image, tensors_in(output)[0]

    def field_of(self, tensor: Tensor) -> Field | None:
        """None where the tensor does not depend on the image."""
        return self._fields.get(id(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(result)
        if not outputs:
            return result
        name = func._schema.name.removeprefix("aten::")
        seen = [(self._fields[id(t)], tuple(t.shape)) for t in inputs if id(t) in self._fields]
        for out in outputs:
            self._sharing.setdefault(memory(out), []).append(out)
            if seen and not name.startswith("new_") and not name.endswith("_like"):  # those take its shape alone
                self._fields[id(out)] = torch_field(func, args, tuple(out.shape), seen)
        in_place = any(outputs[0] is t for t in inputs)
        if in_place and len(inputs) > 1:
            self._changed(outputs[0], name)
        reads = {memory(t) for t in inputs}
        if in_place or memory(outputs[0]) not in reads:
            count = flop_registry.get(func.overloadpacket)
            macs = int(count(*args, **(kwargs or {}), out_val=result)) // 2 if count else 0
            writes = {memory(t): t.untyped_storage().nbytes() for t in outputs if memory(t) not in reads}
            scope, call = self._scopes[-1]
            self.steps.append(Step(name, scope, call, outputs[0], self.field_of(outputs[0]), macs, reads, writes))
        return result

    def _changed(self, target: Tensor, name: str) -> None:
        """Nobody follows what becomes of a tensor when a part of it is written to."""
        for other in self._sharing[memory(target)]:
            if other.shape != target.shape:
                self._fields[id(other)] = Field(UNSEEN, UNSEEN).unknown(f"{name} into a part of a tensor")

    def _enter(self, name: str, module: nn.Module) -> None:
        leaf = next(module.children(), None) is None
        if leaf:
            self.calls.append((name, module))
        self._scopes.append((name, len(self.calls) - 1 if leaf else None))

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        _, call = self._scopes.pop()
        if call is None or not self.steps or self.steps[-1].call != call or not isinstance(output, Tensor):
            return
        # A linear layer looks at one position at a time; that is lost where torch makes all of them the rows of a matrix.
        if isinstance(module, nn.Linear) and id(inputs[0]) in self._fields:
            self._fields[id(output)] = self._fields[id(inputs[0])]
        self.steps[-1].out, self.steps[-1].field = output, self.field_of(output)


def memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def tensors_in(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


@contextmanager
def called(network: nn.Module, enter: Callable[[str, nn.Module], None], leave: Callable[..., None]) -> Iterator[None]:
    """Tell of the beginning and the end of every module's call."""
    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, _, name=name: enter(name, m)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def trace(network: nn.Module, size: tuple[int, int]) -> Tracer:
    """Run a copy of a network on an image of ``size`` (width, height), both on the ``meta`` device, which costs nothing.

    Raises:
        ValueError: it does not take that size, or looks at values, of which there are none.
    """
    width, height = size
    try:
        return Tracer(copy.deepcopy(network).eval().to("meta"), torch.zeros(1, 3, height, width, device="meta"))
    except RuntimeError as error:
        raise ValueError(
            f"the network does not take an image of {width}x{height} ({first_line(error)}); give multiples of its stride, "
            f"{getattr(network, 'stride', 32)}"
        ) from error


def layers_of(tracer: Tracer) -> list[Layer]:
    """One for each call of a leaf module and for each operation between them that computes something of the image."""
    layers: list[Layer] = []
    counted: set[int] = set()
    size = tracer.image.shape[3], tracer.image.shape[2]
    for (call, _), group in groupby(tracer.steps, key=lambda step: (step.call, step.call is None and id(step))):
        steps = list(group)
        last = steps[-1]
        if last.field is None:
            continue
        name, kind, own = last.scope, last.kind.strip("_"), 0
        if call is not None:
            name, module = tracer.calls[call]
            kind = type(module).__name__
            own = sum(p.numel() for p in module.parameters() if id(p) not in counted)
            counted.update(id(p) for p in module.parameters())
        macs = sum(step.macs for step in steps)
        made = sum(step.writes.get(memory(last.out), 0) for step in steps)
        layers.append(layer_of(name, kind, tuple(last.out.shape), own, macs, made, last.field, size))
    return layers


def summarise_network(network: nn.Module, size: tuple[int, int], model: str = "") -> Summary:
    """Go through ``network``, float ``(N, 3, h, w)`` -> ``(N, K, h, w)``, at ``size`` (width, height). It is left as it is.

    Raises:
        ValueError: it does not take that size.
    """
    tracer = trace(network, size)
    layers, clipped = with_whole_fields(layers_of(tracer), lambda side: layers_of(trace(network, (side, side))))
    image = {memory(tracer.image): tracer.image.untyped_storage().nbytes()}
    return Summary(
        model,
        size,
        tuple(layers),
        sum(p.numel() for p in network.parameters()),
        sum(b.numel() for b in network.buffers()),
        peak_of([(step.reads, step.writes) for step in tracer.steps], image, {memory(tracer.output)}),
        clipped,
    )


def field_at(network: nn.Module, size: tuple[int, int], pixel: tuple[int, int]) -> tuple[tuple[int, int, int, int], bool]:
    """Theoretical receptive field of the output's ``pixel`` (x, y) at ``size`` (width, height).

    Returns:
        the input pixels (left, top, right, bottom), the last two included, and whether it depends on the whole image beside
        them. Where nothing local is seen, all four describe an empty rectangle: right < left.

    Raises:
        ValueError: the network does not take that size, or the pixel is not in its output.
    """
    tracer = trace(network, size)
    field = tracer.field_of(tracer.output)
    height, width = tracer.output.shape[-2:]
    if not (0 <= pixel[0] < width and 0 <= pixel[1] < height):
        raise ValueError(f"pixel {pixel[0]},{pixel[1]} is outside the output of {width}x{height}")
    if field is None:
        return (0, 0, -1, -1), False
    (left, right), (top, bottom) = field.columns.at(pixel[0]), field.rows.at(pixel[1])
    return ((left, top, right, bottom) if left <= right and top <= bottom else (0, 0, -1, -1)), field.whole_image
