"""An ONNX file with every shape inferred at one input size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import numpy_helper

from engine.graph import first_line, set_shape
from training.checkpoints import DEFAULT_SIZE
from training.export import fold_constants
from training.summary.fields import Shape


@dataclass(frozen=True)
class Graph:
    """An ONNX model with the shapes that it has at one input size, and its initializers as arrays."""

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
    set_shape(image, (1, 3, height, width) if dims == (2, 3) else (1, height, width, 3))
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
