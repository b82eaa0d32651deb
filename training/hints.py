"""Hints: a teacher's hidden feature maps as a further thing to predict (Romero et al. 2015, "FitNets").

A mask is one bit a pixel; the features that a teacher made it from say far more about the scene, and are there for images
without labels. `training.distil` writes them beside the views; a small head that is thrown away after training predicts them
from one of the network's own maps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from training.datasets import Sample

HINT_SUFFIX = ".npy"
CELL = 8  # pixels of the network's input for one cell of a hint, as it is compared


class HintHead(nn.Module):
    """The network with a head that predicts hints from what comes into one of its layers.

    ``forward``: as the network's -> its logits, and hints ``(N, C, h, w)`` at that layer's resolution.

    Args:
        layer: name of the layer, such as ``mix8``.
        channels: of the hints.

    Raises:
        ValueError: the network has no layer of that name.
    """

    def __init__(self, network: nn.Module, layer: str, channels: int) -> None:
        super().__init__()
        self.network = network
        try:
            tapped = network.get_submodule(layer)
        except AttributeError as error:
            known = ", ".join(name for name, _ in network.named_children())
            raise ValueError(f"hints.layer: the network has no layer {layer!r}; it has {known}, and what these hold") from error
        self.felt: list[Tensor] = []
        tapped.register_forward_pre_hook(lambda _, inputs: self.felt.append(inputs[0]))
        training = network.training
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, 64, 64))
        network.train(training)
        if not self.felt or self.felt[-1].ndim != 4:
            raise ValueError(f"hints.layer: {layer!r} takes no feature map by itself; name a layer within it")
        width = self.felt.pop().shape[1]
        self.head = nn.Sequential(nn.Conv2d(width, 2 * channels, 1), nn.ReLU(), nn.Conv2d(2 * channels, channels, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        self.felt.clear()
        logits = self.network(image)
        return logits, self.head(self.felt.pop())


def hint_loss(predicted: Tensor, hints: Tensor, known: Tensor) -> Tensor:
    """Smooth L1 distance over what is known; 0 where nothing is.

    Args:
        predicted: float ``(N, C, h, w)`` of any resolution.
        hints: float ``(N, C, h', w')``, standardised.
        known: float ``(N, 1, h', w')``, 0 or 1.
    """
    if predicted.shape[2:] != hints.shape[2:]:
        predicted = F.interpolate(predicted, hints.shape[2:], mode="bilinear", align_corners=False)
    distance = F.smooth_l1_loss(predicted, hints, reduction="none").mean(1, keepdim=True)
    return (distance * known).sum() / known.sum().clamp(min=1)


def read_hint(
    sample: Sample, origin: dict[str, Any], matrix: NDArray[np.float64], source: tuple[int, int], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The hint of a view, moved as its image was: float ``(C, h / CELL, w / CELL)``, and where it is known.

    A labelled image has none: zeros, nothing known.

    Args:
        origin: what ``views.json`` says of hints: ``mean`` and ``std`` by channel.
        matrix: affine map of the image's pixels, (2, 3).
        source, size: (width, height) of the image before and after.
    """
    cells = (size[1] // CELL, size[0] // CELL)
    path = sample.image.with_suffix(HINT_SUFFIX)
    if not sample.view or not path.exists():
        return torch.zeros(len(origin["mean"]), *cells), torch.zeros(1, *cells)
    mean, std = (np.array(origin[k], np.float32)[:, None, None] for k in ("mean", "std"))
    hint = torch.from_numpy((np.load(path, allow_pickle=False).astype(np.float32) - mean) / std)
    grid = F.affine_grid(relative(matrix, source, size)[None], [1, 1, *cells], align_corners=False)
    moved = F.grid_sample(hint[None], grid, padding_mode="border", align_corners=False)[0]
    return moved, (grid.abs() <= 1).all(-1).float()


def relative(matrix: NDArray[np.float64], source: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """An affine map of pixels, source -> target, as `torch.nn.functional.affine_grid` wants it: target -> source, each
    from -1 to 1 between the outer edges of the image."""
    (sw, sh), (tw, th) = source, size
    target_pixels = np.array([[tw / 2, 0, (tw - 1) / 2], [0, th / 2, (th - 1) / 2], [0, 0, 1]])
    source_share = np.array([[2 / sw, 0, 1 / sw - 1], [0, 2 / sh, 1 / sh - 1], [0, 0, 1]])
    back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    return torch.from_numpy((source_share @ back @ target_pixels)[:2]).float()


class Moments:
    """Mean and standard deviation of each channel over any number of maps."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, np.zeros(0), np.zeros(0)

    def add(self, hint: NDArray[np.float32]) -> None:
        values = hint.reshape(len(hint), -1).astype(np.float64)
        if not self.count:
            self.total, self.squares = np.zeros(len(hint)), np.zeros(len(hint))
        self.count += values.shape[1]
        self.total += values.sum(1)
        self.squares += np.square(values).sum(1)

    def origin(self, layer: str) -> dict[str, Any]:
        """For ``views.json``. A channel that never changes keeps its scale."""
        mean = self.total / self.count
        std = np.sqrt(np.maximum(self.squares / self.count - mean**2, 0))
        steady = np.where(std > 1e-4 * max(1e-9, float(std.max())), std, 1.0)
        return {"layer": layer, "mean": [float(v) for v in mean], "std": [float(v) for v in steady]}
