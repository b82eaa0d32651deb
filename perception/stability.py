"""How steady a run's results are: how much of the drivable area stays from frame to frame, and how often patches flicker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.polygons import level_of

U8 = NDArray[np.uint8]

FLICKER_S = 0.5  # a patch that comes back sooner than this has flickered; later, the world may have changed
PATCH = 5e-4  # smaller patches do not count, as a fraction of the image: they are too small for a region, too
IOU_BINS = 1000
TICK_NS = round(FLICKER_S * 1e9 / 255)  # so that a byte a pixel counts down from a change until it is forgotten
CORE = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class StabilityFigures:
    """What `Stability` found; None where there were no two frames to compare.

    Attributes:
        seconds: time looked at, gaps left out.
        iou_mean, iou_p5: intersection over union of the drivable pixels of consecutive frames, the mean and the 5th
            percentile (to a thousandth). Pairs of frames without any are left out.
        flickers_per_minute: patches that came back to the side which they had left less than `FLICKER_S` ago. A patch is
            8-connected, all of it comes back in the same frame, and it covers at least `PATCH` of the image (its holes
            included) after all that is thinner than three pixels is taken away: an outline that trembles by a pixel is no
            flicker. Every return counts: a patch that goes and comes at each frame flickers at each frame.
        flip_flop: pixels that came back within `FLICKER_S`, in patches or not, as a fraction of all pixels of all frames.
    """

    seconds: float = 0.0
    iou_mean: float | None = None
    iou_p5: float | None = None
    flickers_per_minute: float | None = None
    flip_flop: float | None = None


class Stability:
    """Collects the figures of one run in fixed memory.

    Args:
        threshold: from which score on, 0 to 1, a pixel is drivable.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        self._level = int(level_of(threshold))
        self._seconds = 0.0
        self._pairs = self._iou_pairs = self._flickers = self._returned = self._pixels = 0
        self._iou_sum = 0.0
        self._ious = np.zeros(IOU_BINS + 1, np.int64)
        self._stamp_ns = 0
        self.reset()

    def reset(self) -> None:
        """Compare the next frame with none before it: a scene cut. The figures stay."""
        self._before: U8 | None = None

    def add(self, scores: U8, stamp_ns: int) -> None:
        """Look at the next frame: uint8 ``(h, w)``, scores or a mask of 0 and 255; neither changed nor kept.

        A frame of another shape, one that is no later than the one before it, and one that is more than `FLICKER_S` later
        begin a new stretch, as after `reset`.
        """
        now = np.asarray(cv2.threshold(scores, self._level, 255, cv2.THRESH_BINARY)[1], np.uint8)
        before, self._before = self._before, now
        elapsed_ns, ticks = stamp_ns - self._stamp_ns, stamp_ns // TICK_NS - self._stamp_ns // TICK_NS
        self._stamp_ns = stamp_ns
        if before is None or now.shape != before.shape or not 0 < elapsed_ns <= FLICKER_S * 1e9:
            self._changed, self._returning = np.zeros_like(now), np.zeros_like(now)
            self._fresh = np.zeros_like(now)  # ticks until a pixel's last change of sides is forgotten
            return
        self._seconds += elapsed_ns / 1e9
        self._pairs += 1
        self._pixels += now.size
        cv2.bitwise_xor(now, before, dst=self._changed)
        self._count_overlap(cv2.countNonZero(now) + cv2.countNonZero(before), cv2.countNonZero(self._changed))
        self._count_returns(min(ticks, 255))

    def _count_overlap(self, both: int, changed: int) -> None:
        """From the pixels of both frames together, those they share counted twice, and those in which they differ."""
        if both:
            iou = (both - changed) / (both + changed)
            self._iou_pairs += 1
            self._iou_sum += iou
            self._ious[round(iou * IOU_BINS)] += 1

    def _count_returns(self, ticks: int) -> None:
        changed, fresh, returning = self._changed, self._fresh, self._returning
        np.subtract(np.maximum(fresh, ticks, out=fresh), ticks, out=fresh)
        np.minimum(changed, fresh, out=returning)
        np.maximum(fresh, changed, out=fresh)
        count = cv2.countNonZero(returning)
        self._returned += count
        smallest = PATCH * returning.size
        if count >= smallest:
            # Outside the image nothing returns: a patch at its border must be as thick as any other.
            thick = cv2.morphologyEx(returning, cv2.MORPH_OPEN, CORE, borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
            borders, _ = cv2.findContours(thick, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            self._flickers += sum(pixels_within(border) >= smallest for border in borders)

    def figures(self) -> StabilityFigures:
        """The figures of all frames so far."""
        if not self._pairs:
            return StabilityFigures()
        iou_mean = iou_p5 = None
        if self._iou_pairs:
            iou_mean = self._iou_sum / self._iou_pairs
            iou_p5 = int(np.searchsorted(np.cumsum(self._ious), 0.05 * self._iou_pairs)) / IOU_BINS
        return StabilityFigures(
            self._seconds, iou_mean, iou_p5, self._flickers / self._seconds * 60, self._returned / self._pixels
        )


def pixels_within(border: NDArray[Any]) -> float:
    """How many pixels a closed border of pixel centres surrounds, those on it included (Pick's theorem)."""
    return cv2.contourArea(border) + len(border) / 2 + 1
