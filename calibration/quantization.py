"""INT8: scales for a model's weights and activations, measured on frames and written into the file as Q/DQ nodes.

Post-training quantisation as in Jacob et al. 2018 ("Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference"): weights per channel and symmetric, activations per tensor. The arithmetic of finding
the scales is ONNX Runtime's.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
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
PERCENTILE = 99.99  # of an activation's values lie in its range
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


@dataclass(frozen=True)
class Measured:
    """A float model and the ranges of its activations, from which INT8 models are made: `measure`, then `with_scales`.

    Attributes:
        contract: of the float model.
        model: it, for one image at a time, every node with a name.
        inputs: what the ranges were measured on, uint8 ``(1, h, w, 3)`` each.
        ranges: of each activation, as ONNX Runtime keeps them (``TensorsData``).
        options: how they were measured.
    """

    contract: ModelContract
    model: onnx.ModelProto
    inputs: list[NDArray[np.uint8]]
    ranges: Any
    options: QuantisationOptions

    @property
    def symmetric(self) -> bool:
        return self.options.activations == "int8"


def quantise(
    contract: ModelContract, frames: Iterable[NDArray[np.uint8]], options: QuantisationOptions | None = None
) -> onnx.ModelProto:
    """The model in INT8, with scales measured on ``frames``, uint8 ``(H, W, 3)`` BGR of any size.

    The frames should be what the camera will see; some hundred do. They must not be those that accuracy is reported on.
    `calibration.sensitivity` finds out which nodes should stay in float.

    Raises:
        ModelError: the model is quantised already, the options are unknown, or there are too few frames.
    """
    measured = measure(contract, frames, options or QuantisationOptions())
    return with_scales(measured, named(measured.model, measured.options.keep))


def measure(contract: ModelContract, frames: Iterable[NDArray[np.uint8]], options: QuantisationOptions) -> Measured:
    """The ranges of a float model's activations on ``frames``. Arguments and what is raised as in `quantise`."""
    from onnxruntime import quantization

    if options.method not in METHODS or options.activations not in ACTIVATIONS:
        raise ModelError(f"wanted a method of {', '.join(METHODS)} and activations of {', '.join(ACTIVATIONS)}")
    model = load(contract)
    if is_quantised(model):
        raise ModelError(f"{contract.path}: quantised already")
    inputs = [network_input(contract, frame) for frame in frames]
    if len(inputs) < FEWEST_FRAMES:
        raise ModelError(f"{len(inputs)} frames are too few to measure ranges on, give {FEWEST_FRAMES} or more")
    # Minmax keeps two numbers of each activation, the others hold all values of a part of the frames in memory.
    part = len(inputs) if options.method == "minmax" else FEWEST_FRAMES
    for node in model.graph.node:
        node.name = node.name or node.output[0]
    with tempfile.TemporaryDirectory() as folder, quiet(), redirect_stdout(StringIO()):
        source = Path(folder, "float.onnx")
        onnx.save(model, str(source))
        calibrator = quantization.create_calibrator(
            source,
            list(QUANTISED),
            augmented_model_path=str(Path(folder, "augmented.onnx")),
            calibrate_method=getattr(
                quantization.CalibrationMethod,
                {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}[options.method],
            ),
            extra_options={"percentile": PERCENTILE} if options.method == "percentile" else {},
        )
        for start in range(0, len(inputs), part):
            calibrator.collect_data(Frames(inputs[start : start + part]))
        ranges = calibrator.compute_data()
    return Measured(contract, model, inputs, ranges, options)


def named(model: onnx.ModelProto, parts: Iterable[str]) -> list[str]:
    """Names of the nodes that have one of ``parts`` in their name; a node without one is called as its first output."""
    names = [node.name or node.output[0] for node in model.graph.node]
    return [name for name in names if any(part in name for part in parts)]


def with_scales(measured: Measured, kept: Sequence[str] = (), only: Sequence[str] = ()) -> onnx.ModelProto:
    """The INT8 model, with Q/DQ nodes, that follows from measured ranges.

    Args:
        kept: names of nodes that stay in float.
        only: names of the nodes to quantise, where not all others.
    """
    from onnxruntime import quantization

    contract, options = measured.contract, measured.options
    model = onnx.ModelProto()
    model.CopyFrom(measured.model)  # the quantiser works in place
    metadata = {p.key: p.value for p in model.metadata_props}
    with quiet():
        quantiser = quantization.QDQQuantizer(
            model,
            True,  # weights per channel
            False,  # of all 8 bits
            quantization.QuantType.QInt8,
            quantization.QuantType.QInt8 if measured.symmetric else quantization.QuantType.QUInt8,
            measured.ranges,
            list(only),
            list(kept),
            list(QUANTISED),
            {
                "ActivationSymmetric": measured.symmetric,
                "WeightSymmetric": True,
                "QuantizeBias": False,  # TensorRT takes no quantised biases
                # TensorRT and OpenVINO compute a convolution and its clipping in one where no Q/DQ pair stands between them,
                # and what is rounded once less is nearer to the float model. Unsigned ranges begin where the clipping does, so
                # there ONNX Runtime drops the clipping instead, and is faster for it.
                "OpTypesToExcludeOutputQuantization": ["Conv"] if measured.symmetric else [],
            },
        )
        quantiser.quantize_model()
        quantiser.model.topological_sort()
    quantised: onnx.ModelProto = quantiser.model.model
    metadata.pop("freespace.metrics", None)  # measured on the float model
    metadata |= {
        "freespace.precision": "int8",
        "freespace.quantisation": json.dumps(
            {
                "of": contract.sha256,
                "method": options.method,
                "activations": options.activations,
                "kept": list(kept),
                "frames": len(measured.inputs),
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
    """A ``CalibrationDataReader``: gives each input once, then None."""

    def __init__(self, inputs: Iterable[NDArray[np.uint8]]) -> None:
        self.rest = iter(inputs)

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
