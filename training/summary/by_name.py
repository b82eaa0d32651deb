"""A network as a person asks for it: by name, as a checkpoint or as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from training.checkpoints import size_of
from training.datasets import PLANES
from training.export import load_network
from training.models import MODELS, build_model
from training.summary.base import Summary
from training.summary.network import summarise_network
from training.summary.onnx_file import summarise_onnx

SUFFIXES = (".pt", ".pth", ".onnx")  # of files; everything else that is none is a name


def open_network(model: str) -> tuple[nn.Module, dict[str, Any]]:
    """A network of ours, in evaluation mode: by name, its weights drawn at random, or from a checkpoint.

    Returns:
        the network, and what the checkpoint says of it; ``{}`` for a name.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: an unknown name, or a file that is no checkpoint of ours.
    """
    path = Path(model)
    if path.is_file() or (path.is_dir() and model not in MODELS):
        return load_network(path)
    if path.suffix in SUFFIXES:
        raise FileNotFoundError(f"{path}: no such file")
    return build_model(model, len(PLANES)).eval(), {}


def summarise(model: str, size: tuple[int, int] | None = None) -> Summary:
    """Go through a network by name, a checkpoint of ours or an ONNX file.

    Args:
        model: name or path.
        size: (width, height) of the input; by default the file's own, what `training.checkpoints.size_of` says.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown name, a file that is none of these, or a size that the network does not take.
    """
    if size is not None and min(size) < 1:
        raise ValueError(f"size {size[0]}x{size[1]}: wanted positive numbers of pixels")
    if Path(model).suffix == ".onnx":
        return summarise_onnx(Path(model), size)
    network, state = open_network(model)
    return summarise_network(network, size or size_of(state), model)
