"""INT8: scales for a model's weights and activations, measured on frames and written into the file as Q/DQ nodes.

Post-training quantisation as in Jacob et al. 2018 ("Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference"): weights per channel and symmetric, activations per tensor. The arithmetic of finding
the scales is ONNX Runtime's.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from engine.contract import INPUT_NAME, ModelContract, ModelError
from engine.graph import is_quantised, load
from engine.preprocess import fit, resample

METHODS = ("minmax", "percentile", "entropy")
ACTIVATIONS = ("uint8", "int8")
QUANTISED = ("Conv", "Add", "Resize", "Clip", "Relu", "GlobalAveragePool")
FEWEST_FRAMES = 8
SENSITIVE = ("head", "stages.0")  # of Freespace's networks: the last layer, and the first depthwise one (measured)


@dataclass(frozen=True)
class QuantisationOptions:
    """How to quantise.

    Attributes:
        method: how the range of an activation is found: ``minmax``; ``percentile`` leaves out the outermost 0.01 %;
            ``entropy`` loses the least information.
        activations: ``uint8`` with a zero point, the fastest on x86 processors; ``int8``, symmetric, which TensorRT wants.
        keep: parts of the names of nodes that stay in float.
    """

    method: str = "minmax"
    activations: str = "uint8"
    keep: tuple[str, ...] = SENSITIVE


def quantise(
    contract: ModelContract, frames: Iterable[NDArray[np.uint8]], options: QuantisationOptions | None = None
) -> onnx.ModelProto:
    """The model in INT8, with scales measured on ``frames``, uint8 ``(H, W, 3)`` BGR of any size.

    The frames should be what the camera will see; some hundred do. They must not be those that accuracy is reported on.

    Raises:
        ModelError: the model is quantised already, the options are unknown, or there are too few frames.
    """
    from onnxruntime import quantization

    options = options or QuantisationOptions()
    if options.method not in METHODS or options.activations not in ACTIVATIONS:
        raise ModelError(f"wanted a method of {', '.join(METHODS)} and activations of {', '.join(ACTIVATIONS)}")
    model = load(contract)
    if is_quantised(model):
        raise ModelError(f"{contract.path}: quantised already")
    metadata = {p.key: p.value for p in model.metadata_props}
    inputs = [network_input(contract, frame) for frame in frames]
    if len(inputs) < FEWEST_FRAMES:
        raise ModelError(f"{len(inputs)} frames are too few to measure ranges on, give {FEWEST_FRAMES} or more")
    if options.method != "minmax":  # the others hold all activations of a part of the frames in memory
        inputs = inputs[: len(inputs) // FEWEST_FRAMES * FEWEST_FRAMES]
    for node in model.graph.node:
        node.name = node.name or node.output[0]
    kept = [node.name for node in model.graph.node if any(part in node.name for part in options.keep)]
    symmetric = options.activations == "int8"
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, str(source))
        quantization.quantize_static(
            str(source),
            str(target),
            Frames(inputs),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            per_channel=True,
            activation_type=quantization.QuantType.QInt8 if symmetric else quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=kept,
            calibrate_method=getattr(
                quantization.CalibrationMethod,
                {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}[options.method],
            ),
            extra_options={
                "ActivationSymmetric": symmetric,
                "WeightSymmetric": True,
                "QuantizeBias": False,  # TensorRT takes no quantised biases
                "CalibPercentile": 99.99,
                "CalibStridedMinMax": None if options.method == "minmax" else FEWEST_FRAMES,  # frames in a part
            },
        )
        quantised = onnx.load(str(target))
    metadata.pop("freespace.metrics", None)  # measured on the float model
    metadata |= {
        "freespace.precision": "int8",
        "freespace.quantisation": json.dumps(
            {
                "of": contract.sha256,
                "method": options.method,
                "activations": options.activations,
                "kept": kept,
                "frames": len(inputs),
            }
        ),
    }
    if contract.batch is None:
        free_batch(quantised)
    onnx.helper.set_model_props(quantised, metadata)
    onnx.checker.check_model(quantised)
    return quantised


def network_input(contract: ModelContract, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 ``(1, h, w, 3)``: the frame as the network sees it."""
    width, height = contract.input_size
    small = np.zeros((1, height, width, 3), np.uint8)
    resample(frame, fit((frame.shape[1], frame.shape[0]), contract.input_size, contract.resize), small[0])
    return small


def free_batch(model: onnx.ModelProto) -> None:
    """Any number of images at a time again."""
    model.graph.ClearField("value_info")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"


class Frames:
    """A ``CalibrationDataReader``: gives each input once, or each of a part of them, then None."""

    def __init__(self, inputs: list[NDArray[np.uint8]]) -> None:
        self.inputs = inputs
        self.rest: Iterator[NDArray[np.uint8]] = iter(inputs)

    def __len__(self) -> int:
        return len(self.inputs)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.rest = iter(self.inputs[start_index:end_index])

    def get_next(self) -> dict[str, Any] | None:
        image = next(self.rest, None)
        return None if image is None else {INPUT_NAME: image}


class quiet:
    """ONNX Runtime's advice to preprocess the model goes to the root logger; this model needs none."""

    def __enter__(self) -> None:
        self.level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().setLevel(self.level)
