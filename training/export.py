"""From a checkpoint to one model file that says everything about itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from engine import open_engine
from engine.contract import CONTRACT_VERSION, INPUT_NAME, KEY_PLANES, KEY_RESIZE, KEY_VERSION, OUTPUT_NAME
from engine.graph import as_fp16
from training.checkpoints import images_of, mean_of, planes_of, read_checkpoint, save_checkpoint, size_of
from training.datasets import READERS
from training.evaluate import KEY_SEQUENCES, weights_sha256
from training.inference import normalise
from training.models import build_model

OPSET = 18
PLACES = ("out", "views", "threads", "device")  # in recipes of older checkpoints: of a machine, no settings
DATA_TERMS = {
    "camvid": "CamVid (Cambridge-driving Labeled Video Database, academic use)",
    "idd_lite": "IDD Lite (India Driving Dataset, research use, no redistribution)",
    "bdd100k": "BDD100K (UC Regents: educational, research and not-for-profit use with notice)",
}
IMAGENET = "encoder initialised from ImageNet weights"
PARITY_LIMITS = {"fp32": 2, "fp16": 16}  # grey levels; what each precision can keep
PARITY_IMAGES = 4


class ParityError(RuntimeError):
    """The exported file does not reproduce the network."""


class Deployed(nn.Module):
    """The network with everything around it that the contract wants inside the graph."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """uint8 ``(N, h, w, 3)`` BGR -> uint8 ``(N, K, h, w)``, ``round(255 * p)``."""
        return torch.round(torch.sigmoid(self.network(normalise(image))) * 255.0).to(torch.uint8)


def load_network(*checkpoints: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The averaged network of a checkpoint, ready to infer, and the other entries of the last one.

    Several checkpoints of one network give the mean of their weights ("model soup", Wortsman et al. 2022).

    Raises:
        FileNotFoundError: a checkpoint is not there.
        ValueError: a file is no checkpoint of ours, or they hold different networks.
    """
    states = [read_checkpoint(path) for path in checkpoints]
    state = states[-1]
    network = build_model(state["config"]["model"], len(planes_of(state)))
    network.load_state_dict(mean_of(states))
    return network.eval(), state | {"images": images_of(states, {}), "sequences": sequences_of(states)}


def sequences_of(states: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Sequences of data sets of one's own that a training saw; the splits of public ones are the same for all."""
    found: dict[str, set[str]] = {}
    for state in states:
        for dataset, sequences in state.get("sequences", {}).items():
            if dataset not in READERS:
                found.setdefault(dataset, set()).update(sequences)
    return {dataset: sorted(sequences) for dataset, sequences in found.items()}


def export_model(
    checkpoints: Path | Sequence[Path],
    out: Path,
    size: tuple[int, int] | None = None,
    report: Path | None = None,
    precision: str = "fp32",
) -> int:
    """Write the model file and compare every CPU runtime with the torch network on random images.

    Args:
        checkpoints: of `training.trainer.train`; the weights of several are averaged.
        size: (width, height) of the network's input; None: the last one of its training.
        report: JSON of ``freespace evaluate``, stored in the file as its metrics.
        precision: ``fp32``, or ``fp16`` for a file that computes in float16 between the same uint8 input and output.

    Returns:
        the largest difference found, grey levels of 255.

    Raises:
        FileNotFoundError: a checkpoint or the report is not there.
        ValueError: the checkpoint or report is none of ours, the size does not fit the network, or another precision.
        ParityError: the file does not reproduce the network.
    """
    paths = [checkpoints] if isinstance(checkpoints, Path) else list(checkpoints)
    network, state = load_network(*paths)
    metrics = read_metrics(report) if report else {}
    if out.suffix != ".onnx":
        raise ValueError(f"{out}: a model file is called .onnx, weights to start from .pt")
    if precision not in PARITY_LIMITS:
        raise ValueError(f"precision {precision!r}: wanted {' or '.join(PARITY_LIMITS)}")
    stride = int(getattr(network, "stride", 32))
    size = size or size_of(state)
    width, height = size
    if width <= 0 or height <= 0 or width % stride or height % stride:
        raise ValueError(f"input size {width}x{height}: wanted positive multiples of {stride}")
    deployed = Deployed(network).eval()
    part = out.with_name(f".{out.stem}.part{out.suffix}")
    try:
        write_graph(deployed, part, size, len(planes_of(state)))
        if metrics and metrics.get("weights") != weights_sha256(part):
            raise ValueError(f"{report}: measured with other weights; run 'freespace evaluate' on this checkpoint's export")
        model = onnx.load(str(part))
        onnx.helper.set_model_props(
            model,
            {
                KEY_VERSION: CONTRACT_VERSION,
                KEY_PLANES: ",".join(planes_of(state)),
                KEY_RESIZE: "stretch",
                "freespace.precision": precision,
                "freespace.network": state["config"]["model"],
                "freespace.training_data": training_data(state),
                "freespace.recipe": json.dumps(recipe(state)),
                "freespace.averaged_checkpoints": str(len(paths)),
                KEY_SEQUENCES: json.dumps(state["sequences"]),
                "freespace.distillation": json.dumps(state.get("views", {})),
                "freespace.metrics": json.dumps(metrics),
                "freespace.source_revision": source_revision(),
            },
        )
        if precision == "fp16":
            model = as_fp16(model)
        onnx.checker.check_model(model)
        onnx.save(model, str(part))
        largest = parity_with_torch(deployed, part, size)
        if largest > PARITY_LIMITS[precision]:
            raise ParityError(
                f"the exported file differs from torch by {largest} grey levels, allowed are {PARITY_LIMITS[precision]}"
            )
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return largest


def read_metrics(report: Path) -> dict[str, Any]:
    """What ``freespace evaluate`` found, without its images one by one: they are long, and of no use in a model file.

    Raises:
        FileNotFoundError: there is no report.
        ValueError: the file is none.
    """
    try:
        metrics = json.loads(report.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no report {report}; 'freespace evaluate --report' writes one") from error
    except ValueError as error:
        raise ValueError(f"{report}: not a report of 'freespace evaluate'") from error
    if not isinstance(metrics, dict):
        raise ValueError(f"{report}: not a report of 'freespace evaluate'")
    return {k: v for k, v in metrics.items() if k != "images"}


def export_weights(checkpoints: Sequence[Path], out: Path) -> None:
    """Write the averaged weights alone, with where they come from: a checkpoint to start other trainings from."""
    states = [read_checkpoint(path) for path in checkpoints]
    *earlier, config = recipe(states[-1])
    origin = {k: v for k, v in states[-1].items() if k in ("epoch", "size", "views")}
    learnt = {"images": images_of(states, {}), "sequences": sequences_of(states), "earlier": earlier, "config": config}
    save_checkpoint(out, origin | learnt | {"planes": list(planes_of(states[-1])), "average": mean_of(states)})


def write_graph(deployed: nn.Module, path: Path, size: tuple[int, int], planes: int = 2) -> None:
    """The network as ONNX with full shapes and without denormal weights, its metadata still missing."""
    width, height = size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            deployed,
            (torch.zeros(1, height, width, 3, dtype=torch.uint8),),
            str(path),
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_axes={INPUT_NAME: {0: "N"}, OUTPUT_NAME: {0: "N"}},
            opset_version=OPSET,
            dynamo=False,  # the TorchScript exporter folds the batch norms into the convolutions
        )
    model = onnx.load(str(path))
    fold_constants(model)
    flush_denormals(model)
    fix_shapes(model, height, width, planes)
    onnx.save(model, str(path))


def recipe(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of every phase of training, first to last, without paths."""
    phases = [{k: v for k, v in phase.items() if k not in PLACES} for phase in (*state["earlier"], state["config"])]
    phases = [{k: v for k, v in phase.items() if k != "data" or isinstance(v, dict)} for phase in phases]
    for phase in phases:
        for key in ("pretrained", "init"):
            if isinstance(phase.get(key), str):
                phase[key] = Path(phase[key]).name
    return phases


def training_data(state: dict[str, Any]) -> str:
    """What the weights were trained on, with its terms."""
    sets = [f"{DATA_TERMS.get(name, name)}, {n} images" for name, n in state["images"].items() if n]
    pretrained = (*state["earlier"], state["config"])[0]["pretrained"]
    if pretrained:
        sets.append(IMAGENET if pretrained is True else f"encoder initialised from {Path(pretrained).name}")
    return "; ".join(sets)


def fold_constants(model: onnx.ModelProto) -> None:
    """Compute once what depends on constants alone: the exporter leaves a dozen small nodes for every padding."""
    known: dict[str, np.ndarray] = {}
    kept: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if all(name in known or not name for name in node.input):
            inputs = {name: known[name] for name in node.input if name}
            outputs: Any = ReferenceEvaluator(node, opsets={"": OPSET}).run(None, inputs)
            known.update(zip(node.output, outputs, strict=True))
        else:
            kept.append(node)
    used = {name for node in kept for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in known.items() if k in used)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def flush_denormals(model: onnx.ModelProto) -> None:
    """Set weights too small for a normal float32 to zero: some runtimes take many times as long with them."""
    smallest = np.finfo(np.float32).tiny
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and np.any((np.abs(values) < smallest) & (values != 0)):
            tensor.CopyFrom(
                numpy_helper.from_array(np.where(np.abs(values) < smallest, 0, values).astype(np.float32), tensor.name)
            )


def fix_shapes(model: onnx.ModelProto, height: int, width: int, planes: int) -> None:
    """Write the full shapes of input and output, which the exporter leaves partly symbolic."""
    for value, shape in (
        (model.graph.input[0], (height, width, 3)),
        (model.graph.output[0], (planes, height, width)),
    ):
        for dimension, length in zip(list(value.type.tensor_type.shape.dim)[1:], shape, strict=True):
            dimension.dim_value = length


def parity_with_torch(deployed: nn.Module, path: Path, size: tuple[int, int]) -> int:
    """Largest difference between torch and the CPU runtimes on smooth random images, grey levels of 255."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (PARITY_IMAGES, size[1] // 16, size[0] // 16, 3), np.uint8)
    images = np.ascontiguousarray(coarse.repeat(16, axis=1).repeat(16, axis=2))
    with torch.inference_mode():
        wanted = deployed(torch.from_numpy(images)).numpy().astype(np.int16)
    largest = 0
    for backend in ("onnxruntime", "openvino"):
        with open_engine(path, backend) as engine:
            largest = max(largest, int(np.abs(engine.infer(images) - wanted).max()))
    return largest


def source_revision() -> str:
    """The commit of this checkout, ``-dirty`` where it has changes; ``unknown`` outside a checkout of this project."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return "unknown"
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
