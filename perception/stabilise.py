"""Steady scores over time: outlines that do not tremble, and obstacles that show at once.

The filter is a play operator, the backlash of a gear train (M. A. Krasnosel'skii and A. V. Pokrovskii, Systems with
Hysteresis, 1989), with a leak, pixel by pixel::

    held <- exp(-dt / settle_s) * (steady - score)          what the steady score still holds back
    steady <- score + clip(held, -rise, fall)

A score that wobbles by less than the play moves nothing; one that moves further pushes the steady score along at once, in
the frame in which it comes; what is held back meanwhile leaks away. So there is hysteresis, yet the steady score is a
continuous function of the scores and follows their slopes in space: an outline stays smooth and runs between pixels. A
moving edge is carried along with at most the play between it and its picture, where a moving average would smear it.

The two sides differ on purpose. ``fall`` is small: a falling score may be an obstacle. ``rise`` is large: ground that seems
drivable for the first time has to be convincing, or stay so for a while.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.config import StabiliseConfig
from perception.polygons import level_of

U8 = NDArray[np.uint8]


class Stabiliser:
    """Steadies the score planes of one stream, each with what came before it: no frame is held back.

    What holds for every pixel and every frame, whatever came before:

    - A score below ``(1 - hold_drivable) * threshold`` is not drivable in the result, in that very frame.
    - A score above ``threshold + hold_blocked * (1 - threshold)`` is drivable in the result, in that very frame.
    - A score that stays on one side of the threshold, by ``e`` grey levels or more, is on that side in the result after
      ``settle_s * ln(play / e)`` at the latest, with the play of that side in grey levels (`longest_false_s`).

    Args:
        config: how much is held, and for how long.
        threshold: from which score on, 0 to 1, a pixel is drivable (`perception.config.PolygonConfig`).
    """

    def __init__(self, config: StabiliseConfig, threshold: float = 0.5) -> None:
        level = level_of(threshold)
        self._fall, self._rise = config.hold_drivable * level, config.hold_blocked * (255 - level)
        self._settle_s, self._gap_s = config.settle_s, config.gap_s
        self._steady: NDArray[np.float32] | None = None
        self._stamp_ns = 0

    def reset(self) -> None:
        """Forget what came before: a scene cut, another source."""
        self._steady = None

    def steady(self, scores: U8, stamp_ns: int) -> U8:
        """The steady scores of the next frame, a new array uint8 ``(h, w)``. ``scores`` is neither changed nor kept.

        After a gap of more than ``gap_s``, where stamps run backwards and where the shape changes, they are ``scores`` as
        they came, and all begins anew.
        """
        elapsed_s, self._stamp_ns = (stamp_ns - self._stamp_ns) / 1e9, stamp_ns
        if self._steady is None or scores.shape != self._steady.shape or not 0 <= elapsed_s <= self._gap_s:
            self._steady = scores.astype(np.float32)
            self._now, self._held = np.empty_like(self._steady), np.empty_like(self._steady)
            return np.array(scores)
        left = math.exp(-elapsed_s / self._settle_s)
        np.copyto(self._now, scores)
        cv2.addWeighted(self._steady, left, self._now, -left, 0, dst=self._held)
        cv2.min(self._held, self._fall, dst=self._held)  # type: ignore[call-overload]
        cv2.max(self._held, -self._rise, dst=self._held)  # type: ignore[call-overload]
        cv2.add(self._now, self._held, dst=self._steady)
        return np.asarray(cv2.convertScaleAbs(self._steady), np.uint8)

    def longest_false_s(self, below: float = 0.5) -> float:
        """How long at most a pixel stays drivable in the results whose score has fallen ``below`` grey levels under the
        threshold, or further, and stays there, in seconds. Scores are whole and the threshold lies between two: 0.5 is the
        worst case."""
        return max(0.0, self._settle_s * math.log(self._fall / below)) if self._fall > 0 else 0.0
