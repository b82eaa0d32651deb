"""Counts first, ratios second.

Dataset-level IoU, the number this project reports: true positives, false positives and false negatives are summed over
*all known pixels of all images*, then ``IoU = TP / (TP + FP + FN)`` once. An image with much road weighs more than one
with little; the mean of per-image IoUs is another number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.datasets import IGNORE


@dataclass
class Counts:
    """Pixel counts of one plane over any number of images."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0
    images: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn, self.images + other.images
        )

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN); NaN where neither truth nor prediction has a pixel."""
        return ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN), the F1 score."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        return ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        return ratio(self.tp, self.tp + self.fn)


def ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def count(prediction: NDArray[np.bool_], target: NDArray[np.uint8]) -> Counts:
    """Counts of one plane of one image: ``prediction`` bool ``(h, w)``, ``target`` uint8 ``(h, w)`` of 0, 1, IGNORE."""
    known = target != IGNORE
    truth = target == 1
    tp = int(np.count_nonzero(prediction & truth))
    positive = int(np.count_nonzero(prediction & known))
    actual = int(np.count_nonzero(truth))
    total = int(np.count_nonzero(known))
    return Counts(tp, positive - tp, actual - tp, total - positive - actual + tp, 1 if total else 0)
