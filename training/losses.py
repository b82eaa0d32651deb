"""Losses over planes, with unknown pixels left out.

Shapes: logits float ``(N, K, h, w)``; targets uint8 ``(N, K, h, w)``, 0 to `CERTAIN` for
probabilities 0 to 1, or `IGNORE`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.datasets import CERTAIN, IGNORE


def bce_and_dice(logits: Tensor, targets: Tensor, dice_weight: float = 0.5) -> Tensor:
    """Binary cross-entropy plus ``dice_weight`` x soft Dice loss, mean over what is known."""
    known = targets != IGNORE
    truth = torch.where(known, targets, 0).to(logits.dtype) / CERTAIN
    weight = known.to(logits.dtype)
    bce = F.binary_cross_entropy_with_logits(logits, truth, weight, reduction="sum") / weight.sum().clamp(min=1)
    return bce + dice_weight * dice_loss(torch.sigmoid(logits) * weight, truth * weight, known)


def dice_loss(scores: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """1 - 2|AB| / (|A| + |B|) per image and plane, mean over those with anything to find (Milletari et al. 2016)."""
    axes = (2, 3)
    overlap, total = (scores * truth).sum(axes), (scores + truth).sum(axes)
    dice = 1 - (2 * overlap + 1) / (total + 1)
    counted = ((truth > 0.5) & known).any(3).any(2)
    return (dice * counted).sum() / counted.sum().clamp(min=1)
