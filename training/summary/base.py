"""A network as a list of layers, and what is worked out alike for a network of torch and for an ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from training.summary.fields import Extent, Field, Shape

WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
FIELD_SIZES = (4096, 8192, 16384, 32768)  # sides of the input on which fields are followed: larger than the fields


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
        peak_bytes: largest sum of live activations while one image is inferred; see `training.summary`.
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


def layer_of(
    name: str, kind: str, shape: Shape, parameters: int, macs: int, made: int, field: Field, size: tuple[int, int]
) -> Layer:
    """Of an operation whose output sees ``field`` of an image of ``size`` (width, height); ``made`` are the output's bytes."""
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


def peak_of(steps: Sequence[tuple[set[Any], dict[Any, int]]], image: dict[Any, int], outputs: set[Any]) -> int:
    """Largest sum of live memory, over steps of (what is read, what is made and its bytes).

    The ``image`` and its bytes are there before the first step, the ``outputs`` live to the end.
    """
    last = {key: i for i, (reads, _) in enumerate(steps) for key in reads} | dict.fromkeys(outputs, len(steps))
    live = image
    peak = sum(live.values())
    for i, (_, makes) in enumerate(steps):
        live = live | {key: count for key, count in makes.items() if key in last}  # some make more than is wanted
        peak = max(peak, sum(live.values()))
        live = {key: count for key, count in live.items() if last.get(key, i) > i}
    return peak


def with_whole_fields(layers: list[Layer], at: Callable[[int], list[Layer]]) -> tuple[list[Layer], bool]:
    """The same layers with their fields on an image so large that its borders cut nothing off, and whether there is none.

    ``at`` gives the layers at a side of the input, or raises ValueError where the network does not take it.
    """
    for side in FIELD_SIZES:
        try:
            wide = at(side)
        except ValueError:  # made for one size
            break
        if [a.kind for a in wide] != [a.kind for a in layers]:
            break
        if max(max(a.field) for a in wide) < side // 2:
            return [replace(a, field=b.field, stride=b.stride) for a, b in zip(layers, wide, strict=True)], False
    return layers, True
