"""An ONNX file, gone through node by node with its inferred shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from engine.contract import QUANTISING
from training.summary.base import Layer, Summary, layer_of, peak_of, with_whole_fields
from training.summary.fields import Field, Shape, field_of_image, gathered, moved, reshaped, sliced, union
from training.summary.onnx_graph import Graph, read_graph
from training.summary.taps import (
    Taps,
    block_taps,
    padding_taps,
    resize_taps,
    shuffle_taps,
    transposed_taps,
    window_taps,
    windowed,
)

ELEMENTWISE = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Neg", "Abs", "Sqrt", "Exp", "Log", "Erf", "Round"),
    *("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Gelu", "Clip"),
    *("Cast", "Identity", "Dropout", "Where", "Floor", "Ceil", "Greater", "Less", "Equal", "Expand", "QuantizeLinear"),
    *("DequantizeLinear", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization"),
}
WEIGHTS = {"Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3}  # which input is the weights
SETTINGS = ("Clip", "Pad", "Reshape", "Resize", "Slice")  # their constants are no weights


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

    if kind in ELEMENTWISE:
        return union([(f, len(graph.shapes.get(name, ()))) for name, f in seen], len(out))
    if kind == "Concat":
        dim = attributes["axis"] % ndim
        return union([(f.unknown("Concat along the image") if dim in f.dims else f, ndim) for _, f in seen], ndim)
    if len(seen) > 1:
        return field.unknown(kind)
    match kind:
        case "Conv" | "ConvInteger" | "QLinearConv" | "ConvTranspose" | "MaxPool" | "AveragePool" if ndim == 4:
            weights = graph.shapes[node.input[WEIGHTS[kind]]] if kind in WEIGHTS else ()
            kernel = tuple(attributes.get("kernel_shape", weights[2:]))
            stride, dilation = tuple(attributes.get("strides", (1, 1))), tuple(attributes.get("dilations", (1, 1)))
            padding = tuple(attributes.get("pads", (0, 0)))[:2]
            if text("auto_pad", "NOTSET").startswith("SAME"):  # to a pixel, which does not change the size of a field
                padding = tuple(max(0, (k - 1) * d - s + 1) // 2 for k, d, s in zip(kernel, dilation, stride, strict=True))
            return window((transposed_taps if kind == "ConvTranspose" else window_taps)(kernel, stride, padding, dilation))
        case "GlobalAveragePool" | "GlobalMaxPool":
            return gathered(field, {2, 3})
        case "Resize":
            coordinates = text("coordinate_transformation_mode", "half_pixel")
            return window(resize_taps(text("mode", "nearest"), coordinates.removeprefix("pytorch_")))
        case "DepthToSpace":
            return window(shuffle_taps(attributes["blocksize"]))
        case "SpaceToDepth":
            return window(block_taps(attributes["blocksize"]))
        case "Pad":
            pads = constant(1)
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
    if node.op_type in WEIGHTS:
        weights = math.prod(shapes[node.input[WEIGHTS[node.op_type]]][1:])
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
        holders = () if node.op_type in SETTINGS else node.input[:1] if node.op_type in QUANTISING else node.input
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
        layers.append(layer_of(node.name or node.output[0], node.op_type, shape, own, macs, size, field, graph.size))
        steps.append(({name for name, _ in seen}, {name: taken(name) for name in node.output if name}))
    outputs = {output.name for output in graph.model.graph.output}
    return layers, peak_of(steps, {graph.image: taken(graph.image)}, outputs)


def summarise_onnx(path: Path, size: tuple[int, int] | None = None) -> Summary:
    """Go through an ONNX file at ``size`` (width, height), by default its own.

    Raises:
        FileNotFoundError, ValueError: as `read_graph`.
    """
    graph = read_graph(path, size)
    layers, peak = onnx_layers(graph)
    layers, clipped = with_whole_fields(layers, lambda side: onnx_layers(read_graph(path, (side, side)))[0])
    return Summary(str(path), graph.size, tuple(layers), sum(a.parameters for a in layers), 0, peak, clipped)
