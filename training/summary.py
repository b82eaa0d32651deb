"""What a network is made of: sizes, parameters, multiply-adds, memory and receptive field, layer by layer.

A network is run once on tensors without content (torch's ``meta`` device), and every operation is watched, those between
the modules as well; an ONNX file is gone through node by node with its inferred shapes.

**Multiply-adds** are those of convolutions and matrix products, as usual; FLOPs are two for each. Norms, activations, sums and
resizes are not counted. **Peak of activations**: every tensor lives from the operation that makes it to the last one that
reads it, one that is written in place is no new one, and no operation needs scratch memory. **Theoretical receptive field**:
all input pixels that some weights would let an output pixel depend on, as the width and height of the rectangle around them.
It is followed exactly, position by position: for every row and column of every tensor the first and last input row or column
it sees (Araujo et al. 2019, "Computing receptive fields of convolutional neural networks", do it in closed form). What
gathers from the whole image whatever its size (global pooling, attention) is said beside it and not in it, and the
statistics of a norm are taken as constants.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from engine.contract import QUANTISING
from engine.graph import first_line, set_shape
from training.datasets import PLANES
from training.export import fold_constants, load_network
from training.models import build_model
from training.recipe import parse_size

DEFAULT_SIZE = (448, 256)
CHECKPOINT_SUFFIXES = (".pt", ".pth")
WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}

FIELD_SIZE, LARGEST_FIELD_SIZE = 4096, 32768  # sides of the input on which fields are followed: larger than the fields
NOWHERE = 1 << 40  # the first row that nothing sees; the last one is its negative

I64 = NDArray[np.int64]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One leaf module's call, one operation between modules, or one node of an ONNX file.

    Attributes:
        name: of the module, of the module that holds the operation, or of the node's output.
        kind: class of the module, or name of the operation.
        shape: of its output, batch first.
        parameters: elements of its weights; 0 where a layer before has counted them.
        macs: multiply-adds for one image.
        activation_bytes: of its output; 0 where that takes the place of an input.
        field: (width, height) of the theoretical receptive field in input pixels, without what sees the whole image.
        whole_image: whether it depends on the whole image, whatever its size.
        stride: (x, y), input pixels from one output pixel to the next; None where the output is no map of the image.
        assumed: operations whose reach is not known here and was taken to be the whole image.
    """

    name: str
    kind: str
    shape: Shape
    parameters: int
    macs: int
    activation_bytes: int
    field: tuple[int, int]
    whole_image: bool
    stride: tuple[float, float] | None
    assumed: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        return 2 * self.macs


@dataclass(frozen=True)
class Summary:
    """A whole network at one input size.

    Attributes:
        model: as it was asked for.
        input_size: (width, height) in pixels.
        layers: in the order in which they run; the last one is the output.
        parameters: elements of all parameters, each once. Of an ONNX file: of all weights, norms folded in.
        buffers: elements of all buffers, such as running means.
        peak_bytes: largest sum of live activations while one image is inferred; see the module's text.
        field_clipped: the network takes no larger image, so that fields are cut off at the borders of this one.
    """

    model: str
    input_size: tuple[int, int]
    layers: tuple[Layer, ...]
    parameters: int
    buffers: int
    peak_bytes: int
    field_clipped: bool = False

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def flops(self) -> int:
        return 2 * self.macs

    @property
    def weight_bytes(self) -> dict[str, int]:
        """Bytes of the parameters by precision; the scales of int8 are not counted."""
        return {precision: count * self.parameters for precision, count in WEIGHT_BYTES.items()}


# --- receptive fields ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Extent:
    """The input rows (or columns) that a tensor depends on: ``low[i]`` to ``high[i]`` at position i along ``dim``.

    ``dim`` is None where it is the same everywhere; then both have one element. Nothing is seen where low > high.
    """

    dim: int | None
    low: I64
    high: I64

    def through(self, taps: I64) -> Extent:
        """After an operation whose output i reads the positions ``taps[i]``, int ``(outputs, taps)``; none where outside."""
        inside = (taps >= 0) & (taps < self.low.size)
        index = np.clip(taps, 0, self.low.size - 1)
        low = np.where(inside, self.low[index], NOWHERE).min(axis=1)
        high = np.where(inside, self.high[index], -NOWHERE).max(axis=1)
        return Extent(self.dim if low.size > 1 else None, low, high)

    @property
    def longest(self) -> int:
        return max(0, int((self.high - self.low).max()) + 1)


UNSEEN = Extent(None, np.array([NOWHERE]), np.array([-NOWHERE]))


@dataclass(frozen=True)
class Field:
    """What a tensor depends on: input rows, input columns, the whole image beside those, and on whose assumption."""

    rows: Extent
    columns: Extent
    whole_image: bool = False
    assumed: frozenset[str] = frozenset()

    def each(self, change: Callable[[Extent], Extent]) -> Field:
        return replace(self, rows=change(self.rows), columns=change(self.columns))

    def unknown(self, operation: str) -> Field:
        return Field(UNSEEN, UNSEEN, True, self.assumed | {operation})

    @property
    def dims(self) -> set[int]:
        return {e.dim for e in (self.rows, self.columns) if e.dim is not None}

    @property
    def size(self) -> tuple[int, int]:
        return self.columns.longest, self.rows.longest


def field_of_image(height: int, width: int, dims: tuple[int, int]) -> Field:
    """Of the input itself, rows along the first of ``dims`` and columns along the second."""
    rows, columns = np.arange(height), np.arange(width)
    return Field(Extent(dims[0], rows, rows), Extent(dims[1], columns, columns))


def union(fields: Sequence[tuple[Field, int]], ndim: int) -> Field:
    """Of an element-wise operation on tensors of the given fields and numbers of dimensions, broadcast to ``ndim``."""

    def merge(extents: list[Extent]) -> Extent:
        shifted = [e if e.dim is None else replace(e, dim=e.dim + ndim - n) for e, (_, n) in zip(extents, fields, strict=True)]
        dims = {e.dim for e in shifted} - {None}
        if len(dims) > 1:  # rows of one against columns of the other, as in an outer product
            shifted = [Extent(None, e.low.min(keepdims=True), e.high.max(keepdims=True)) for e in shifted]
            dims = set()
        low, high = shifted[0].low, shifted[0].high
        for e in shifted[1:]:
            low, high = np.minimum(low, e.low), np.maximum(high, e.high)
        return Extent(dims.pop() if dims else None, low, high)

    return Field(
        merge([f.rows for f, _ in fields]),
        merge([f.columns for f, _ in fields]),
        any(f.whole_image for f, _ in fields),
        frozenset().union(*(f.assumed for f, _ in fields)),
    )


Taps = Callable[[int, int, int], I64]  # (0 for rows and 1 for columns, input length, output length) -> taps


def windowed(field: Field, before: Shape, after: Shape, taps: Taps, operation: str) -> Field:
    """After an operation on the last two dimensions that reads the given taps."""
    first = len(before) - 2

    def through(extent: Extent) -> Extent:
        if extent.dim is None:
            return extent
        return extent.through(taps(extent.dim - first, before[extent.dim], after[extent.dim]))

    if field.dims - {first, first + 1} or len(before) != len(after) or 0 in (*before, *after):
        return field.unknown(operation)
    return field.each(through)


def gathered(field: Field, dims: set[int], kept: bool = True) -> Field:
    """After a reduction over ``dims``: over rows or columns it is one over the whole image."""

    def reduce(extent: Extent) -> Extent:
        if extent.dim is None or extent.dim in dims:
            return extent if extent.dim is None else UNSEEN
        before = 0 if kept else sum(d < extent.dim for d in dims)
        return replace(extent, dim=extent.dim - before)

    return replace(field.each(reduce), whole_image=field.whole_image or bool(dims & field.dims))


def moved(field: Field, places: Mapping[int, int]) -> Field:
    """With every dimension at another place. All that are rows or columns must be among ``places``."""
    return field.each(lambda e: e if e.dim is None else replace(e, dim=places[e.dim]))


def reshaped(field: Field, before: Shape, after: Shape, operation: str) -> Field:
    """After a view, in which rows and columns may be divided into blocks, or blocks be put in a row again, but not merged."""
    starts = {math.prod(after[:d]): d for d in reversed(range(len(after))) if after[d] > 1}
    places = {d: starts.get(math.prod(before[:d])) for d in field.dims}

    def change(extent: Extent) -> Extent:
        if extent.dim is None:
            return extent
        place = places[extent.dim]
        assert place is not None
        old, new = before[extent.dim], after[place]
        taps = np.arange(new)[:, None] * old // new + np.arange(max(1, old // new))
        return replace(extent.through(taps), dim=place)

    if any(place is None or (before[d] % after[place] and after[place] % before[d]) for d, place in places.items()):
        return field.unknown(f"{operation} that merges rows and columns")
    return field.each(change)


def window_taps(kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> Taps:
    """Of a convolution or pooling; each argument holds the one for rows and the one for columns."""
    return lambda axis, _, n: np.asarray(
        np.arange(n)[:, None] * stride[axis] - padding[axis] + np.arange(kernel[axis]) * dilation[axis]
    )


def transposed_taps(kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> Taps:
    """Of a transposed convolution: output o reads input i by tap k where ``o = i * stride + k * dilation - padding``."""

    def taps(axis: int, _: int, n: int) -> I64:
        reached = np.arange(n)[:, None] + padding[axis] - np.arange(kernel[axis]) * dilation[axis]
        return np.where(reached % stride[axis] == 0, reached // stride[axis], -1)

    return taps


def resize_taps(mode: str, coordinates: str = "half_pixel") -> Taps:
    """Of a resize; ``mode`` nearest, linear or cubic, ``coordinates`` in the words of ONNX."""

    def taps(_: int, inputs: int, outputs: int) -> I64:
        place, scale = np.arange(outputs, dtype=np.float64), inputs / outputs
        if coordinates == "align_corners":
            place = place * ((inputs - 1) / max(1, outputs - 1))
        elif coordinates == "asymmetric":
            place = place * scale
        else:
            place = (place + 0.5) * scale - 0.5
        if mode == "nearest":
            nearest = np.floor(place) if coordinates == "asymmetric" else np.ceil(place - 0.5)
            return np.clip(nearest.astype(np.int64), 0, inputs - 1)[:, None]
        base = np.floor(place + 1e-9).astype(np.int64)
        offsets = np.arange(2) if mode == "linear" else np.arange(-1, 3)
        between = (place - base > 1e-9)[:, None] | (offsets == 0)  # on a pixel's centre only that pixel counts
        return np.where(between, np.clip(base[:, None] + offsets, 0, inputs - 1), -1)

    return taps


def padding_taps(before: Shape, mode: str) -> Taps:
    """Of padding by ``before`` rows and columns; ``mode`` constant, reflect, edge or wrap, as in `numpy.pad`."""

    def taps(axis: int, inputs: int, outputs: int) -> I64:
        place = np.arange(outputs) - before[axis]
        if mode == "edge":
            place = np.clip(place, 0, inputs - 1)
        elif mode == "reflect":
            place = inputs - 1 - np.abs(inputs - 1 - np.abs(place))
        elif mode == "wrap":
            place = place % inputs
        return place[:, None]

    return taps


def shuffle_taps(factor: int) -> Taps:
    """Of depth to space."""
    return lambda axis, _, n: np.arange(n)[:, None] // factor


def block_taps(factor: int) -> Taps:
    """Of space to depth."""
    return lambda axis, _, n: np.arange(n)[:, None] * factor + np.arange(factor)


def sliced(field: Field, dim: int, start: int, step: int, length: int) -> Field:
    """After taking every ``step``-th of ``length`` positions along ``dim``."""
    taps = start + np.arange(length)[:, None] * step
    return field.each(lambda e: e.through(taps) if e.dim == dim else e)


# --- a network of torch -------------------------------------------------------------------------------------------------------

# Torch marks most element-wise operations as such; these are element-wise in an image, too.
ELEMENTWISE = {
    *("native_batch_norm", "_native_batch_norm_legit_no_training", "native_group_norm", "native_layer_norm", "native_dropout"),
    *("_prelu_kernel", "hardswish", "hardsigmoid", "_to_copy", "copy", "expand", "lift_fresh"),
}
VIEWS = {"view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "detach", "alias"}
WITHOUT_CONTENT = {"zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty", "new_full"}
REDUCTIONS = {  # where the dimensions stand among the arguments
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "argmax", "argmin", "var", "std", "logsumexp"), 1),
    **dict.fromkeys(("_softmax", "_log_softmax", "cumsum"), 1),
    "linalg_vector_norm": 2,
}


def both(value: Any, default: Any = 0) -> Shape:
    """An argument for rows and columns: torch takes one number, one in a list, two, or none for the default."""
    if isinstance(value, int):
        return value, value
    items = [int(v) for v in value]
    return (items[0], items[-1]) if items else both(default)


def filled(arguments: Sequence[Any], *defaults: Any) -> tuple[Any, ...]:
    """The arguments, missing ones by default."""
    return (*arguments, *defaults[len(arguments) :])[: len(defaults)]


def torch_field(operation: Any, arguments: tuple[Any, ...], out: Shape, seen: Sequence[tuple[Field, Shape]]) -> Field:
    """Of the output of an ATen operation.

    Args:
        operation: an overload of it.
        arguments: as torch gives them, positional ones only.
        out: the output's shape.
        seen: fields and shapes of those tensors among the arguments that depend on the image.
    """
    name = operation._schema.name.removeprefix("aten::").rstrip("_")
    field, shape = seen[0]
    ndim = len(shape)

    def window(taps: Taps) -> Field:
        return windowed(field, shape, out, taps, name)

    if name == "max_unpool2d":  # every value goes back to its own window
        together = union([(f, len(s)) for f, s in seen], ndim)
        return windowed(together, shape, out, resize_taps("nearest"), name)
    if torch.Tag.pointwise in operation.tags or name in ELEMENTWISE:
        return union([(f, len(s)) for f, s in seen], len(out))
    if name == "cat":
        dim = filled(arguments[1:], 0)[0] % ndim
        fields = [(f.unknown("cat along the image") if dim in f.dims else f, ndim) for f, _ in seen]
        return union(fields, ndim)
    if name == "stack":
        new = filled(arguments[1:], 0)[0] % len(out)
        return union([(moved(f, {d: d + (d >= new) for d in f.dims}), len(out)) for f, _ in seen], len(out))
    if len(seen) > 1:  # such as the product of two matrices
        return field.unknown(name)
    match name:
        case "convolution" if len(out) == 4:
            _, weight, _, stride, padding, dilation, transposed = arguments[:7]
            kind = transposed_taps if transposed else window_taps
            return window(kind(tuple(weight.shape[2:]), both(stride), both(padding), both(dilation)))
        case "max_pool2d_with_indices":
            kernel, stride, padding, dilation = filled(arguments[1:5], 1, [], 0, 1)
            return window(window_taps(both(kernel), both(stride, kernel), both(padding), both(dilation)))
        case "avg_pool2d":
            kernel, stride, padding = filled(arguments[1:4], 1, [], 0)
            return window(window_taps(both(kernel), both(stride, kernel), both(padding), (1, 1)))
        case "_adaptive_avg_pool2d" | "adaptive_max_pool2d":
            return field if shape == out else gathered(field, field.dims)
        case "upsample_nearest2d":
            return window(resize_taps("nearest", "asymmetric"))
        case "_upsample_nearest_exact2d":
            return window(resize_taps("nearest"))
        case "upsample_bilinear2d" | "upsample_bicubic2d" | "_upsample_bilinear2d_aa" | "_upsample_bicubic2d_aa":
            mode, coordinates = "linear" if "linear" in name else "cubic", "align_corners" if arguments[2] else "half_pixel"
            return field.unknown(name) if name.endswith("_aa") else window(resize_taps(mode, coordinates))
        case "constant_pad_nd" if len(arguments[1]) == 4:
            return window(padding_taps((arguments[1][2], arguments[1][0]), "constant"))
        case "reflection_pad2d" | "replication_pad2d":
            mode = "reflect" if name == "reflection_pad2d" else "edge"
            return window(padding_taps((arguments[1][2], arguments[1][0]), mode))
        case "pixel_shuffle":
            return window(shuffle_taps(arguments[1]))
        case "pixel_unshuffle":
            return window(block_taps(arguments[1]))
        case "permute":
            order = [d % ndim for d in arguments[1]]
            return moved(field, {d: order.index(d) for d in field.dims})
        case "transpose" | "t":
            first, second = (d % ndim for d in (filled(arguments[1:], 0, 1)))
            return moved(field, {d: {first: second, second: first}.get(d, d) for d in field.dims})
        case "slice":
            dim, start, _, step = filled(arguments[1:], 0, None, None, 1)
            start = 0 if start is None else start + shape[dim] * (start < 0)
            return sliced(field, dim % ndim, max(0, start), step, out[dim])
        case "flip":
            mirrored = {d % ndim for d in arguments[1]}
            return field.each(lambda e: replace(e, low=e.low[::-1], high=e.high[::-1]) if e.dim in mirrored else e)
        case "split" | "split_with_sizes" | "unbind" | "select":
            place = 1 if name in ("unbind", "select") else 2
            dim = (arguments[place] if len(arguments) > place else 0) % ndim
            gone = len(out) < ndim
            return field.unknown(name) if dim in field.dims else moved(field, {d: d - (gone and d > dim) for d in field.dims})
        case _ if name in VIEWS:
            return reshaped(field, shape, out, name)
        case _ if name in REDUCTIONS:
            given = filled(arguments[: REDUCTIONS[name] + 1], *[None] * (REDUCTIONS[name] + 1))[-1]
            given = [given] if isinstance(given, int) else given or range(ndim)
            return gathered(field, {d % ndim for d in given}, kept=len(out) == ndim)
    return field.unknown(name)


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
        with called(network, self._enter, self._leave), torch.no_grad(), torch.device(image.device), self:
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
            if seen and name not in WITHOUT_CONTENT:
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


def trace(network: nn.Module, size: tuple[int, int], hollow: bool = True) -> Tracer:
    """Run a network on an image of ``size`` (width, height) without content.

    Args:
        hollow: run a copy on the ``meta`` device, which costs nothing at any size; else the network itself on a black image.

    Raises:
        ValueError: it does not take that size, or cannot be run hollow since it looks at values.
    """
    width, height = size
    training = network.training
    try:
        if hollow:
            return Tracer(copy.deepcopy(network).eval().to("meta"), torch.zeros(1, 3, height, width, device="meta"))
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        return Tracer(network.eval(), torch.zeros(1, 3, height, width, device=device))
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"the network does not take an image of {width}x{height} ({first_line(error)}); give multiples of its stride, "
            f"{getattr(network, 'stride', 32)}"
        ) from error
    finally:
        network.train(training)


def trace_anyhow(network: nn.Module, size: tuple[int, int]) -> Tracer:
    """`trace`, hollow where that is possible."""
    try:
        return trace(network, size)
    except ValueError:
        return trace(network, size, hollow=False)


def layers_of(tracer: Tracer) -> list[Layer]:
    """One for each call of a leaf module and for each operation between them that computes something of the image."""
    layers: list[Layer] = []
    counted: set[int] = set()
    size = tracer.image.shape[3], tracer.image.shape[2]
    for call, group in groupby(tracer.steps, key=lambda step: id(step) if step.call is None else -1 - step.call):
        steps = list(group)
        last = steps[-1]
        if last.field is None:
            continue
        name, kind, own = last.scope, last.kind.strip("_"), 0
        if call < 0:
            name, module = tracer.calls[-1 - call]
            kind = type(module).__name__
            own = sum(p.numel() for p in module.parameters() if id(p) not in counted)
            counted.update(id(p) for p in module.parameters())
        macs = sum(step.macs for step in steps)
        made = sum(step.writes.get(memory(last.out), 0) for step in steps)
        layers.append(layer(name, kind, tuple(last.out.shape), own, macs, made, last.field, size))
    return layers


def layer(
    name: str, kind: str, shape: Shape, parameters: int, macs: int, made: int, field: Field, size: tuple[int, int]
) -> Layer:
    stride = None
    if field.rows.dim is not None and field.columns.dim is not None:
        stride = stride_of(field.columns, size[0]), stride_of(field.rows, size[1])
    return Layer(name, kind, shape, parameters, macs, made, field.size, field.whole_image, stride, tuple(sorted(field.assumed)))


def stride_of(extent: Extent, inputs: int) -> float:
    """Input pixels from one position to the next, far from the borders, which may have been padded."""
    positions = extent.low.size
    if positions < 8 or extent.longest > inputs // 2:
        return inputs / positions
    begin, steps = positions // 4, 1 << (positions // 2).bit_length() - 1
    return int(extent.low[begin + steps] - extent.low[begin]) / steps


def peak_of(steps: Sequence[tuple[set[Any], dict[Any, int]]], always: dict[Any, int]) -> int:
    """Largest sum of live memory over steps of (what is read, what is made and its bytes).

    ``always`` is there before the first step: the image, and with 0 bytes the output, which lives to the end.
    """
    last = {key: i for i, (reads, _) in enumerate(steps) for key in reads}
    ends: dict[int, list[Any]] = {}
    for key, i in last.items():
        if key not in always or always[key]:
            ends.setdefault(i, []).append(key)
    sizes = {key: count for key, count in always.items() if count}
    live = peak = sum(sizes.values())
    for i, (_, makes) in enumerate(steps):
        for key, count in makes.items():
            if key not in sizes and (key in last or key in always):  # some make more than is wanted
                sizes[key] = count
                live += count
        peak = max(peak, live)
        live -= sum(sizes.get(key, 0) for key in ends.get(i, []))
    return peak


def summarise_network(network: nn.Module, size: tuple[int, int], model: str = "") -> Summary:
    """Go through ``network``, float ``(N, 3, h, w)`` -> ``(N, K, h, w)``, at ``size`` (width, height). It is left as it is.

    Raises:
        ValueError: it does not take that size.
    """
    tracer = trace_anyhow(network, size)
    layers, clipped = with_whole_fields(layers_of(tracer), lambda side: layers_of(trace(network, (side, side))))
    always = {memory(tracer.image): tracer.image.untyped_storage().nbytes(), memory(tracer.output): 0}
    return Summary(
        model,
        size,
        tuple(layers),
        sum(p.numel() for p in network.parameters()),
        sum(b.numel() for b in network.buffers()),
        peak_of([(step.reads, step.writes) for step in tracer.steps], always),
        clipped,
    )


def with_whole_fields(layers: list[Layer], at: Callable[[int], list[Layer]]) -> tuple[list[Layer], bool]:
    """The same layers with their fields on an image so large that its borders cut nothing off, and whether there is none.

    ``at`` gives the layers at a side of the input, or raises ValueError where the network does not take it.
    """
    side = FIELD_SIZE
    while side <= LARGEST_FIELD_SIZE:
        try:
            wide = at(side)
        except ValueError:  # made for one size
            break
        if [a.kind for a in wide] != [a.kind for a in layers]:
            break
        if max(max(a.field) for a in wide) < side // 2:
            return [replace(a, field=b.field, stride=b.stride) for a, b in zip(layers, wide, strict=True)], False
        side *= 2
    return layers, True


def field_at(network: nn.Module, size: tuple[int, int], pixel: tuple[int, int]) -> tuple[tuple[int, int, int, int], bool]:
    """Theoretical receptive field of the output's ``pixel`` (x, y) at ``size`` (width, height).

    Returns:
        the input pixels (left, top, right, bottom), the last two included, and whether it depends on the whole image beside
        them. Where nothing local is seen, all four describe an empty rectangle: right < left.

    Raises:
        ValueError: the network does not take that size, or the pixel is not in its output.
    """
    tracer = trace_anyhow(network, size)
    field = tracer.field_of(tracer.output)
    height, width = tracer.output.shape[-2:]
    if not (0 <= pixel[0] < width and 0 <= pixel[1] < height):
        raise ValueError(f"pixel {pixel[0]},{pixel[1]} is outside the output of {width}x{height}")
    if field is None:
        return (0, 0, -1, -1), False
    spans = []
    for extent, position in ((field.columns, pixel[0]), (field.rows, pixel[1])):
        i = 0 if extent.dim is None else position
        spans.append((int(extent.low[i]), int(extent.high[i])))
    (left, right), (top, bottom) = spans
    return ((left, top, right, bottom) if left <= right and top <= bottom else (0, 0, -1, -1)), field.whole_image


# --- an ONNX file -------------------------------------------------------------------------------------------------------------

ONNX_ELEMENTWISE = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Neg", "Abs", "Sqrt", "Exp", "Log", "Erf", "Round"),
    *("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Gelu", "Clip"),
    *("Cast", "Identity", "Dropout", "Where", "Floor", "Ceil", "Greater", "Less", "Equal", "Expand", "QuantizeLinear"),
    *("DequantizeLinear", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization"),
}
ONNX_WEIGHTS = {"Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3}  # which input is the weights


ONNX_SETTINGS = ("Clip", "Pad", "Reshape", "Resize", "Slice", "Upsample")  # their constants are no weights


@dataclass
class Graph:
    """An ONNX model with the shapes that it has at one input size."""

    model: onnx.ModelProto
    image: str
    size: tuple[int, int]
    image_dims: tuple[int, int]  # of rows and columns
    shapes: dict[str, Shape]
    bytes_per_element: dict[str, int]
    constants: dict[str, NDArray[Any]]


def image_input(path: Path, model: onnx.ModelProto) -> tuple[onnx.ValueInfoProto, tuple[int, int]]:
    """The one input that is an image, and which of its dimensions are rows and columns. Raises ValueError: there is none."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    shape = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim] if inputs else []
    if len(inputs) != 1 or len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise ValueError(f"{path}: wanted one input of shape (N, 3, h, w) or (N, h, w, 3), found {shape or 'none'}")
    return inputs[0], ((2, 3) if shape[1] == 3 else (1, 2))


def read_graph(path: Path, size: tuple[int, int] | None) -> Graph:
    """An ONNX file at ``size`` (width, height), by default its own.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no ONNX file, has no image as its only input, or cannot work at that size.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model file")
    try:
        model = onnx.load(str(path))
    except (DecodeError, ValueError) as error:
        raise ValueError(f"{path}: not an ONNX file") from error
    image, dims = image_input(path, model)
    own = [d.dim_value for d in image.type.tensor_type.shape.dim]
    width, height = size or (own[dims[1]] or DEFAULT_SIZE[0], own[dims[0]] or DEFAULT_SIZE[1])
    wanted = [1, 3, 3, 3]
    wanted[dims[0]], wanted[dims[1]] = height, width
    set_shape(image, tuple(wanted))
    try:
        model = with_shapes(model)
    except onnx.shape_inference.InferenceError as error:
        raise ValueError(f"{path}: does not work on an image of {width}x{height} ({first_line(error)})") from error
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    sizes: dict[str, int] = {}
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        kind = value.type.tensor_type
        shapes[value.name] = tuple(d.dim_value for d in kind.shape.dim)
        sizes[value.name] = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return Graph(model, image.name, (width, height), dims, shapes, sizes, constants)


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """With the shape of every value, as far as they follow from the input's; what is computed of shapes alone is computed.

    Raises:
        onnx.shape_inference.InferenceError: the shapes do not fit together.
    """
    model.graph.ClearField("value_info")
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    while True:
        folded = onnx.ModelProto()
        folded.CopyFrom(model)
        fold_constants(folded)
        inferred = onnx.shape_inference.infer_shapes(folded, strict_mode=True, data_prop=True)
        values = (*inferred.graph.value_info, *inferred.graph.input)
        shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        settled = [n for n in model.graph.node if n.op_type == "Shape" and all(shapes.get(n.input[0], [0]))]
        if not settled:
            return inferred
        for node in settled:
            given = {a.name: a.i for a in node.attribute}
            known = np.array(shapes[node.input[0]][given.get("start") : given.get("end")], np.int64)
            node.CopyFrom(onnx.helper.make_node("Constant", [], node.output, value=numpy_helper.from_array(known)))


def onnx_field(node: onnx.NodeProto, graph: Graph, seen: Sequence[tuple[str, Field]]) -> Field:
    """Of a node's first output, ``seen`` being the inputs that depend on the image, with their fields."""
    kind = node.op_type
    source, field = seen[0]
    shape, out = graph.shapes.get(source, ()), graph.shapes.get(node.output[0], ())
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    ndim = len(shape)

    def window(taps: Taps) -> Field:
        return windowed(field, shape, out, taps, kind)

    def text(key: str, default: str) -> str:
        return bytes(attributes.get(key, default.encode())).decode()

    def constant(place: int) -> list[Any] | None:
        """The values of an input that is none of the image's; None where it is left out or computed."""
        name = node.input[place] if place < len(node.input) else ""
        return list(graph.constants[name].ravel()) if name in graph.constants else None

    if kind in ONNX_ELEMENTWISE:
        return union([(f, len(graph.shapes.get(name, ()))) for name, f in seen], len(out))
    if kind == "Concat":
        dim = attributes["axis"] % ndim
        return union([(f.unknown("Concat along the image") if dim in f.dims else f, ndim) for _, f in seen], ndim)
    if len(seen) > 1:
        return field.unknown(kind)
    match kind:
        case "Conv" | "ConvInteger" | "QLinearConv" | "ConvTranspose" | "MaxPool" | "AveragePool" | "LpPool" if ndim == 4:
            weights = graph.shapes[node.input[ONNX_WEIGHTS[kind]]] if kind in ONNX_WEIGHTS else ()
            kernel = tuple(attributes.get("kernel_shape", weights[2:]))
            stride, dilation = tuple(attributes.get("strides", (1, 1))), tuple(attributes.get("dilations", (1, 1)))
            padding = tuple(attributes.get("pads", (0, 0)))[:2]
            if text("auto_pad", "NOTSET").startswith("SAME"):  # to a pixel, which does not change the size of a field
                padding = tuple(max(0, (k - 1) * d - s + 1) // 2 for k, d, s in zip(kernel, dilation, stride, strict=True))
            return window((transposed_taps if kind == "ConvTranspose" else window_taps)(kernel, stride, padding, dilation))
        case "GlobalAveragePool" | "GlobalMaxPool":
            return gathered(field, {2, 3})
        case "Resize" | "Upsample":
            coordinates = text("coordinate_transformation_mode", "half_pixel" if kind == "Resize" else "asymmetric")
            return window(resize_taps(text("mode", "nearest"), coordinates.removeprefix("pytorch_")))
        case "DepthToSpace":
            return window(shuffle_taps(attributes["blocksize"]))
        case "SpaceToDepth":
            return window(block_taps(attributes["blocksize"]))
        case "Pad":
            pads = attributes.get("pads") or constant(1)
            if pads and len(pads) == 2 * ndim and field.dims <= {ndim - 2, ndim - 1}:
                return window(padding_taps((int(pads[ndim - 2]), int(pads[ndim - 1])), text("mode", "constant")))
        case "Transpose":
            order = list(attributes.get("perm", range(ndim)[::-1]))
            return moved(field, {d: order.index(d) for d in field.dims})
        case "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze":
            return reshaped(field, shape, out, kind)
        case "Split" if attributes.get("axis", 0) % ndim not in field.dims:
            return field
        case "MatMul" if source == node.input[0] and ndim - 1 not in field.dims and len(out) == ndim:
            return field  # a linear layer over channels that come last
        case "Slice":
            starts, steps = constant(1), constant(4)
            axes = constant(3) or list(range(ndim))
            if starts is not None and len(out) == ndim:
                for dim, start, step in zip(axes, starts, steps or [1] * len(starts), strict=False):
                    begin = start + shape[dim] if start < 0 else min(start, shape[dim] - 1)
                    field = sliced(field, dim % ndim, begin, step, out[dim])
                return field
        case "ArgMax" | "ArgMin" | "Softmax" | "LogSoftmax":
            return gathered(field, {attributes.get("axis", 0 if "Arg" in kind else -1) % ndim}, kept=len(out) == ndim)
        case "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceL2":
            reduced = attributes.get("axes") or constant(1) or range(ndim)
            return gathered(field, {int(d) % ndim for d in reduced}, kept=len(out) == ndim)
    return field.unknown(kind)


def onnx_macs(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Multiply-adds of a node for one image; 0 for all but convolutions and matrix products."""
    out = math.prod(shapes.get(node.output[0], (0,)))
    if node.op_type in ONNX_WEIGHTS:
        weights = math.prod(shapes[node.input[ONNX_WEIGHTS[node.op_type]]][1:])
        return weights * (math.prod(shapes[node.input[0]]) if node.op_type == "ConvTranspose" else out)
    if node.op_type in ("MatMul", "Gemm"):
        turned = any(a.name == "transA" and a.i for a in node.attribute)
        return out * shapes[node.input[0]][-2 if turned else -1]
    return 0


def onnx_layers(graph: Graph) -> tuple[list[Layer], int]:
    """A layer for every node that depends on the image, and the peak of activations in bytes."""
    height, width = graph.size[::-1]
    fields = {graph.image: field_of_image(height, width, graph.image_dims)}
    weights = {t.name: (t.name,) for t in graph.model.graph.initializer if t.data_type != TensorProto.INT64}
    counted: set[str] = set()
    layers: list[Layer] = []
    steps: list[tuple[set[Any], dict[Any, int]]] = []

    def taken(name: str) -> int:
        return math.prod(graph.shapes.get(name, (0,))) * graph.bytes_per_element.get(name, 0)

    for node in graph.model.graph.node:
        seen = [(name, fields[name]) for name in node.input if name in fields]
        holders = () if node.op_type in ONNX_SETTINGS else node.input[:1] if node.op_type in QUANTISING else node.input
        used = tuple(w for name in holders for w in weights.get(name, ()))
        if not seen:  # of constants alone, as the weights of a quantised file
            weights.update((name, used) for name in node.output)
            continue
        field = onnx_field(node, graph, seen)
        fields.update((name, field) for name in node.output if name)
        new = set(used) - counted
        counted |= new
        shape = graph.shapes.get(node.output[0], ())
        own = sum(math.prod(graph.shapes[name]) for name in new)
        macs, size = onnx_macs(node, graph.shapes), taken(node.output[0])
        layers.append(layer(node.name or node.output[0], node.op_type, shape, own, macs, size, field, graph.size))
        steps.append(({name for name, _ in seen}, {name: taken(name) for name in node.output if name}))
    ends = {graph.image: taken(graph.image)} | {output.name: 0 for output in graph.model.graph.output}
    return layers, peak_of(steps, ends)


def summarise_onnx(path: Path, size: tuple[int, int] | None = None) -> Summary:
    """Go through an ONNX file at ``size`` (width, height), by default its own.

    Raises:
        FileNotFoundError, ValueError: as `read_graph`.
    """
    graph = read_graph(path, size)
    layers, peak = onnx_layers(graph)
    layers, clipped = with_whole_fields(layers, lambda side: onnx_layers(read_graph(path, (side, side)))[0])
    return Summary(str(path), graph.size, tuple(layers), sum(a.parameters for a in layers), 0, peak, clipped)


# --- as a person asks for it and reads it -------------------------------------------------------------------------------------


def open_network(model: str) -> tuple[nn.Module, dict[str, Any]]:
    """A network of ours, in evaluation mode: by name, its weights drawn at random, or from a checkpoint.

    Returns:
        the network, and what the checkpoint says of it; ``{}`` for a name.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: an unknown name, or a file that is no checkpoint of ours.
    """
    path = Path(model)
    if path.is_file() or path.suffix in (*CHECKPOINT_SUFFIXES, ".onnx"):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        return load_network(path)
    return build_model(model, len(PLANES)).eval(), {}


def size_of_training(state: Mapping[str, Any]) -> tuple[int, int]:
    """(width, height) that a checkpoint's network was trained at last, `DEFAULT_SIZE` where that is not known."""
    sizes = state.get("config", {}).get("sizes")
    if not sizes:
        return DEFAULT_SIZE
    return parse_size(sizes[-1]) if isinstance(sizes[-1], str) else (int(sizes[-1][0]), int(sizes[-1][1]))


def summarise(model: str, size: tuple[int, int] | None = None) -> Summary:
    """Go through a network by name, a checkpoint of ours or an ONNX file.

    Args:
        model: name or path.
        size: (width, height) of the input; by default the file's own, a checkpoint's last one in training, `DEFAULT_SIZE`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown name, a file that is none of these, or a size that the network does not take.
    """
    if size is not None and min(size) < 1:
        raise ValueError(f"size {size[0]}x{size[1]}: wanted positive numbers of pixels")
    if Path(model).suffix == ".onnx":
        return summarise_onnx(Path(model), size)
    network, state = open_network(model)
    return summarise_network(network, size or size_of_training(state), model)


def as_json(summary: Summary) -> dict[str, Any]:
    """Everything in a summary as JSON takes it. Sizes are [width, height], memory is in bytes."""
    last = summary.layers[-1]
    return {
        **asdict(summary),
        "layers": [{**asdict(a), "flops": a.flops} for a in summary.layers],
        "macs": summary.macs,
        "flops": summary.flops,
        "weight_bytes": summary.weight_bytes,
        "field": last.field,
        "whole_image": last.whole_image,
    }


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """A table of the layers and the totals below it."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a file has no edge
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("layer", "type"):
        table.add_column(heading, overflow="fold")
    for heading in ("output", "parameters", "MMAC", "MFLOP", "stride", "field", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    for a in summary.layers:
        table.add_row(
            Text(a.name or "-"),
            Text(a.kind),
            "x".join(str(n) for n in a.shape[1:]),
            f"{a.parameters:,}" if a.parameters else "",
            f"{a.macs / 1e6:.2f}" if a.macs else "",
            f"{a.flops / 1e6:.2f}" if a.flops else "",
            "" if a.stride is None else of_axes(*a.stride),
            describe_field(a),
            readable_bytes(a.activation_bytes) if a.activation_bytes else "",
        )
    console.print(table)
    width, height = summary.input_size
    weights = ", ".join(f"{readable_bytes(count)} in {precision}" for precision, count in summary.weight_bytes.items())
    buffers = f", {summary.buffers:,} elements of buffers" if summary.buffers else ""
    lines = [
        f"{summary.model} at {width}x{height}",
        f"{summary.parameters:,} parameters ({weights}){buffers}",
        f"{summary.macs / 1e9:.3f} GMAC, {summary.flops / 1e9:.3f} GFLOP (2 a multiply-add; convolutions and matrix products)",
        f"{readable_bytes(summary.peak_bytes)} of activations at the peak (every tensor until it was read last)",
        f"receptive field of the output: {describe_field(summary.layers[-1])} (pixels of the input)",
    ]
    if summary.field_clipped:
        lines.append("receptive fields are cut off at the borders: the network takes no larger image")
    assumed = summary.layers[-1].assumed
    if assumed:
        lines.append(f"reach taken to be the whole image, since it is not known here: {', '.join(assumed)}")
    console.print(*(Text(line) for line in lines), sep="\n", soft_wrap=True)


def describe_field(layer: Layer) -> str:
    local = of_axes(*layer.field) if min(layer.field) else ""
    return " + ".join([local] * bool(local) + ["whole image"] * layer.whole_image) or "none"


def of_axes(x: float, y: float) -> str:
    """One number where both axes have the same."""
    return f"{x:g}" if x == y else f"{x:g}x{y:g}"


def readable_bytes(count: int) -> str:
    return f"{count / 2**20:.2f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
