"""Edits of a model's graph: another precision, another input size. The precision of a model is written in its file, so that
every runtime computes the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from engine.contract import QUANTISING, Mismatch, ModelContract

STAYS_FLOAT = {"Resize": (1, 2)}  # inputs that ONNX wants in float32 whatever the data are: region and scales
FP16_LIMIT = 65504.0
FP16_SMALLEST = 2.0**-24


def as_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in float16 between the same uint8 input and output.

    Raises:
        Mismatch: a weight is too large for float16, or the model is quantised already.
    """
    if is_quantised(model):
        raise Mismatch("a quantised model keeps the precision it was quantised in; take the float model for fp16")
    half = onnx.ModelProto()
    half.CopyFrom(model)
    kept = {node.input[i] for node in half.graph.node for i in STAYS_FLOAT.get(node.op_type, ()) if i < len(node.input)}
    for tensor in half.graph.initializer:
        if tensor.name not in kept:
            convert_tensor(tensor)
    for node in half.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            if attribute.HasField("t") and not kept.intersection(node.output):
                convert_tensor(attribute.t)
    for value in half.graph.value_info:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name not in kept:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    try:
        onnx.checker.check_model(half, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise Mismatch(f"the model does not become a valid one in float16: {first_line(error)}") from error
    return half


def convert_tensor(tensor: TensorProto) -> None:
    """float32 -> float16 in place; what float16 cannot tell from zero becomes zero, not a denormal."""
    if tensor.data_type != TensorProto.FLOAT:
        return
    values: NDArray[np.float32] = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0.0))
    if largest > FP16_LIMIT:
        raise Mismatch(f"weight {tensor.name!r} holds {largest:g}, float16 ends at {FP16_LIMIT:g}; keep this model in fp32")
    flushed = np.where(np.abs(values) < FP16_SMALLEST, np.float32(0), values)
    tensor.CopyFrom(numpy_helper.from_array(flushed.astype(np.float16), tensor.name))


def is_quantised(model: onnx.ModelProto) -> bool:
    """Whether the graph holds explicit quantisation (Q/DQ nodes)."""
    return any(node.op_type in QUANTISING for node in model.graph.node)


def is_symmetric(model: onnx.ModelProto) -> bool:
    """Whether all zero points of a quantised graph are zero, and signed: TensorRT takes no others."""
    constants = {t.name: t for t in model.graph.initializer}
    constants |= {
        n.output[0]: a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"
    }
    points = [constants.get(n.input[2]) for n in model.graph.node if n.op_type in QUANTISING and len(n.input) > 2]
    return all(t is not None and t.data_type == TensorProto.INT8 and not numpy_helper.to_array(t).any() for t in points)


def with_input(model: onnx.ModelProto, size: tuple[int, int], batch: int) -> onnx.ModelProto:
    """A copy for inputs of ``size`` (width, height), ``batch`` images at a time, all dimensions fixed.

    Raises:
        Mismatch: the graph works at its own size only.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    width, height = size
    planes = fixed.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    set_shape(fixed.graph.input[0], (batch, height, width, 3))
    fixed.graph.ClearField("value_info")
    fixed.graph.output[0].type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise Mismatch(f"the network does not fit an input of {width}x{height}: {first_line(error)}") from error
    found = tuple(d.dim_value for d in inferred.graph.output[0].type.tensor_type.shape.dim)
    if found != (batch, planes, height, width):
        raise Mismatch(
            f"with an input of {width}x{height} and batch {batch} the output would be {found}; "
            "take a size that the network's stride divides, or export the model at this size"
        )
    return inferred


def at_size(contract: ModelContract, size: tuple[int, int]) -> ModelContract:
    """The contract of the same model at another input size (width, height), one image at a time.

    Raises:
        Mismatch: the network does not fit that size.
    """
    if size == contract.input_size:
        return contract
    resized = replace(contract, input_size=size, batch=1, resized=True)
    load(resized)
    return resized


def load(contract: ModelContract, batch: int = 1) -> onnx.ModelProto:
    """The model at the contract's input size, every dimension fixed. Raises `ModelError`: the network does not fit it."""
    return with_input(onnx.load(str(contract.path)), contract.input_size, batch)


def set_shape(value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
    for dimension, length in zip(value.type.tensor_type.shape.dim, shape, strict=True):
        dimension.dim_value = length


def first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
