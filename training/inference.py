"""A torch network on whole images: what it takes, what it says, how good that is while it is trained, and pictures of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.preprocess import fit, resample
from training.datasets import IGNORE, PLANES, Sample, hard_targets, read_sample
from training.metrics import Counts, count
from training.models.pretrained import INPUT_MEAN, INPUT_SCALE
from training.recipe import Recipe, parse_size
from training.run_data import Data
from training.sheets import prediction_sheet

SHEET_IMAGES = 12


def normalise(images: Tensor) -> Tensor:
    """uint8 ``(N, h, w, 3)`` BGR -> float ``(N, 3, h, w)`` in about [-1, 1]: what the deployed graph does, too."""
    return (images.to(torch.float32).permute(0, 3, 1, 2) - INPUT_MEAN) * INPUT_SCALE


def predict(model: nn.Module, image: NDArray[np.uint8], size: tuple[int, int], device: torch.device) -> NDArray[np.float32]:
    """Logits ``(K, h, w)`` at the network's size for a BGR image ``(H, W, 3)`` that is stretched to it."""
    small = np.zeros((size[1], size[0], 3), np.uint8)
    resample(image, fit((image.shape[1], image.shape[0]), size, "stretch"), small)
    logits: NDArray[np.float32] = model(normalise(torch.from_numpy(small)[None].to(device)))[0].float().cpu().numpy()
    return logits


def positive(logits: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Whether logits ``(h, w)`` say yes, at ``shape`` (height, width), bilinearly."""
    return np.asarray(cv2.resize(logits, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR) > 0)


@torch.no_grad()
def evaluate_network(
    model: nn.Module, samples: Sequence[Sample], size: tuple[int, int], device: torch.device, planes: Sequence[str] = PLANES
) -> dict[str, Counts]:
    """Dataset-level counts per ``dataset/plane``, at label resolution, from the torch network (a check while training)."""
    model.eval()
    totals: dict[str, Counts] = {}
    for sample in samples:
        image, labels = read_sample(sample, strict=True)
        logits = predict(model, image, size, device)
        for plane, name in zip(logits, planes, strict=True):
            key, label = f"{sample.dataset}/{name}", labels[PLANES.index(name)]
            totals[key] = totals.get(key, Counts()) + count(positive(plane, label.shape), label)
    return {k: v for k, v in sorted(totals.items()) if v.tp + v.fn}


@torch.no_grad()
def write_sheets(model: nn.Module, data: Data, phase: Recipe, out: Path, device: torch.device) -> None:
    """Pictures of what the network says of images that it was not trained on or, where there are none, was."""
    model.eval()
    split = "dev" if data.splits["dev"] else "train"
    size, every = parse_size(phase.sizes[-1]), max(1, len(data.splits[split]) // SHEET_IMAGES)
    chosen = data.splits[split][::every][:SHEET_IMAGES]
    images, targets, scores = [], [], []
    for sample in chosen:
        image, planes = read_sample(sample, strict=True)
        images.append(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
        known = hard_targets(planes[data.channels])
        targets.append(np.stack([cv2.resize(plane, size, interpolation=cv2.INTER_NEAREST) for plane in known]))
        scores.append(1 / (1 + np.exp(-predict(model, image, size, device))))
    if any((t != IGNORE).any() for t in targets):
        (out / "sheets").mkdir(exist_ok=True)
        names = [sample.image.stem for sample in chosen]
        path = out / "sheets" / f"{split}.jpg"
        prediction_sheet(np.stack(images), np.stack(targets), np.stack(scores), path, names, data.planes)
