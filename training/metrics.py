"""Counts first, ratios second.

Dataset-level IoU, the number this project reports: true positives, false positives and false negatives are summed over
*all known pixels of all images*, then ``IoU = TP / (TP + FP + FN)`` once. An image with much road weighs more than one
with little; the mean of per-image IoUs is another number.

A table of counts is an int64 array ``(..., 4)`` of TP, FP, FN and TN; ``iou`` takes one of any shape.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.datasets import IGNORE

TOLERANCE = 0.0075  # of the image's diagonal
LEVEL = 0.95  # of an interval
RESAMPLES = 2000

Table = NDArray[np.int64]
Reals = NDArray[np.float64]


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

    @property
    def specificity(self) -> float:
        """TN / (TN + FP): the recall of what is not the plane."""
        return ratio(self.tn, self.tn + self.fp)

    @property
    def accuracy(self) -> float:
        """Share of the known pixels that are right."""
        return ratio(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)


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


def table(counts: Iterable[Counts]) -> Table:
    """Counts of n images as int64 ``(n, 4)``: TP, FP, FN, TN."""
    return np.array([(c.tp, c.fp, c.fn, c.tn) for c in counts], np.int64).reshape(-1, 4)


def iou(counts: NDArray[Any]) -> Reals:
    """TP / (TP + FP + FN) of each row of a table ``(..., 4)`` -> float64 ``(...)``, NaN where there is nothing."""
    return divide(counts[..., 0], counts[..., :3].sum(-1))


def divide(part: NDArray[Any], whole: NDArray[Any]) -> Reals:
    """NaN where the whole is 0."""
    return np.asarray(np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) != 0))


def mean_over_images(scores: Reals) -> float:
    """Mean of the scores ``(n,)`` of images that have one; NaN where none has."""
    return float(np.mean(scores[~np.isnan(scores)])) if not np.isnan(scores).all() else float("nan")


def worst(scores: Reals, number: int) -> list[int]:
    """Indices of the ``number`` lowest scores ``(n,)``, lowest first; images without a score are left out."""
    scored = int(np.count_nonzero(~np.isnan(scores)))  # argsort puts NaN last
    return [int(i) for i in np.argsort(scores, kind="stable")[: min(number, scored)]]


# Several exclusive classes.


def confusion(prediction: NDArray[Any], target: NDArray[Any], classes: int) -> Table:
    """Pixels by true class (row) and predicted class (column), int64 ``(classes, classes)``; matrices of images can be added.

    Args:
        prediction: integers of any shape, 0 to ``classes`` - 1.
        target: the same shape; pixels that are `IGNORE` do not count.

    Raises:
        ValueError: the shapes differ, or a known pixel has a class that there is not.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {prediction.shape} and target {target.shape}: wanted the same shape")
    known = target != IGNORE
    said, true = prediction[known].astype(np.int64), target[known].astype(np.int64)
    for name, index in (("prediction", said), ("target", true)):
        if index.size and not (index.min() >= 0 and index.max() < classes):
            raise ValueError(f"{name} has classes from {index.min()} to {index.max()}; wanted 0 to {classes - 1}")
    return np.bincount(true * classes + said, minlength=classes * classes).reshape(classes, classes)


def class_iou(matrix: Table) -> Reals:
    """IoU of each class of a confusion matrix, float64 ``(classes,)``; NaN where neither truth nor prediction has a pixel."""
    right = np.diagonal(matrix)
    return divide(right, matrix.sum(0) + matrix.sum(1) - right)


def mean_iou(matrix: Table) -> float:
    """Mean IoU over the classes that occur."""
    return mean_over_images(class_iou(matrix))


def frequency_weighted_iou(matrix: Table) -> float:
    """IoU of the classes, each weighed by its share of the true pixels (Long et al. 2015)."""
    return float(divide(np.nansum(matrix.sum(1) * class_iou(matrix)), matrix.sum()))


# Outlines.


@dataclass
class BoundaryCounts:
    """Outline pixels of one plane over any number of images, and how many of them lie near the other outline."""

    predicted: int = 0
    predicted_matched: int = 0
    actual: int = 0
    actual_matched: int = 0

    def __add__(self, other: BoundaryCounts) -> BoundaryCounts:
        return BoundaryCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def precision(self) -> float:
        return ratio(self.predicted_matched, self.predicted)

    @property
    def recall(self) -> float:
        return ratio(self.actual_matched, self.actual)

    @property
    def f_score(self) -> float:
        """2 PR / (P + R); 0 where only one of both has an outline, NaN where none has."""
        if not self.predicted_matched or not self.actual_matched:
            return 0.0 if self.predicted or self.actual else float("nan")
        return 2 * self.precision * self.recall / (self.precision + self.recall)


def count_boundary(prediction: NDArray[np.bool_], target: NDArray[np.uint8], tolerance: float = TOLERANCE) -> BoundaryCounts:
    """Outline pixels that lie within ``tolerance`` x the image's diagonal of the other outline (Csurka et al. 2013).

    An outline is the plane's pixels that touch, by a side, one that is not the plane; both have to be known, so neither the
    border of the image nor that of an unknown region is an outline. Distances are Euclidean, between centres of pixels, as
    the tolerance.

    Args:
        prediction: bool ``(h, w)``.
        target: uint8 ``(h, w)`` of 0, 1, IGNORE.
    """
    known, limit = target != IGNORE, tolerance * float(np.hypot(*target.shape))
    predicted, actual = outline(prediction, known), outline(target == 1, known)
    return BoundaryCounts(*near(predicted, actual, limit), *near(actual, predicted, limit))


def outline(mask: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of ``mask`` that have a neighbour which is not, both known; all bool ``(h, w)``."""
    touches = np.zeros_like(mask)
    for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        across = (mask[here] != mask[there]) & known[here] & known[there]
        touches[here] |= across
        touches[there] |= across
    return touches & mask


def near(pixels: NDArray[np.bool_], others: NDArray[np.bool_], limit: float) -> tuple[int, int]:
    """How many ``pixels`` there are, and how many of them have one of the ``others`` within ``limit`` pixels."""
    total = int(np.count_nonzero(pixels))
    if not total or not others.any():
        return total, 0
    distance = cv2.distanceTransform((~others).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return total, int(np.count_nonzero(distance[pixels] <= limit))


# How far a number can be trusted.


def bootstrap(
    counts: Table,
    groups: Sequence[Hashable] | None = None,
    statistic: Callable[[NDArray[Any]], Reals] = iou,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic of summed counts (Efron 1979): images, or whole groups, drawn with replacement.

    Args:
        counts: table ``(n, 4)``, an image a row.
        groups: of each image, where images of a group (a drive) resemble each other and are drawn together.
        statistic: table ``(..., 4)`` -> ``(...)``.

    Returns:
        (low, high); NaN where there are fewer than two units to draw from, or no draw has the statistic.

    Raises:
        ValueError: there are not as many groups as images.
    """
    return bounds(statistic(resampled(counts, groups, seed)), level)


def bootstrap_difference(
    counts: Table,
    others: Table,
    groups: Sequence[Hashable] | None = None,
    statistic: Callable[[NDArray[Any]], Reals] = iou,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of ``statistic(others) - statistic(counts)`` of two models on the same images, each draw the same for both.

    What is hard for both drops out, so it is narrower than two intervals side by side. Arguments and what is raised as in
    `bootstrap`; the rows of both tables are the same images in the same order.
    """
    if counts.shape != others.shape:
        raise ValueError(f"tables of {len(counts)} and {len(others)} images: wanted the same images in the same order")
    both = resampled(np.concatenate([counts, others], axis=1), groups, seed)
    return bounds(statistic(both[:, 4:]) - statistic(both[:, :4]), level)


def resampled(rows: Table, groups: Sequence[Hashable] | None, seed: int) -> Reals:
    """Sums of as many rows, or groups of them, as there are, drawn with replacement.

    Rows ``(n, k)`` -> float64 ``(RESAMPLES, k)``, or ``(0, k)`` where there is but one to draw.

    Raises:
        ValueError: there are not as many groups as rows.
    """
    if groups is not None:
        if len(groups) != len(rows):
            raise ValueError(f"{len(groups)} groups for {len(rows)} images: wanted one for each")
        number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
        summed = np.zeros((len(number), rows.shape[1]), np.int64)
        np.add.at(summed, [number[group] for group in groups], rows)
        rows = summed
    units = len(rows)
    if units < 2:
        return np.empty((0, rows.shape[1]))
    # How often each draw has each unit: the same as rng.multinomial, several times as fast.
    drawn = np.random.default_rng(seed).integers(units, size=(RESAMPLES, units)) + np.arange(RESAMPLES)[:, None] * units
    times = np.bincount(drawn.ravel(), minlength=RESAMPLES * units).reshape(RESAMPLES, units)
    return times.astype(np.float64) @ rows.astype(np.float64)  # floats for BLAS; exact up to 2^53


def bounds(values: Reals, level: float) -> tuple[float, float]:
    """What the middle ``level`` of ``values`` lies between, those that are NaN left out."""
    values = values[~np.isnan(values)]
    if not values.size:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
