"""The camera's pitch while driving: a slow, bounded correction of the calibrated one, from where the vehicle is going."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.camera import Camera, Mount
from calibration.motion import BIAS, LONGEST, to_grey, track, travel
from calibration.vanishing import Heading, by_intrinsics, forwards, median_and_sigma

Image = NDArray[np.uint8]

WIDTH = 640  # pixels that frames are looked at with, at most
WINDOW_S = 120.0  # how long what was found counts
FEWEST = 40  # pairs of frames, before anything is corrected
SURE = math.radians(0.15)  # the standard deviation with which a correction is used
SLEW = math.radians(0.05)  # a second: the correction never moves faster
GAP_S = 3.0  # without frames: what comes then may be something else
SAME_SCENE = 0.2  # correlation of tiny pictures of one pair and the next; below it, the scene was cut
TINY = (64, 36)


class PitchRefiner:
    """Watches where the vehicle goes (`calibration.motion`), and corrects the pitch by the median of two minutes.

    Give it every frame. It looks at two that follow each other every ``period_s`` seconds, which takes some 35 ms of one core
    for a pair, and passes over the others at once. While the vehicle stands or turns, or little is seen, nothing changes.
    Frames of another recording, a gap or a cut make it begin anew. Not thread-safe.

    Args:
        camera: as calibrated.
        limit: the most that the pitch is corrected by, radians.
        period_s: from a pair of frames to the next, seconds.

    Attributes:
        camera: as given.
        correction: of the calibrated pitch, radians; 0 until it is sure.
        pairs: how many pairs of frames the present correction rests on.
    """

    def __init__(self, camera: Camera, limit: float = math.radians(1.5), period_s: float = 1.0) -> None:
        if not (limit > 0 and period_s > 0):
            raise ValueError(f"the limit and the period of the pitch's refinement must be positive, not {limit} and {period_s}")
        k = camera.intrinsics
        scale = min(1.0, WIDTH / k.width)
        self._size = (round(k.width * scale), round(k.height * scale))
        self.camera, self._intrinsics = camera, k.scaled(self._size)
        self._limit, self._period_s = limit, period_s
        self.reset()

    def reset(self) -> None:
        """Forget everything: the pitch is the calibrated one again."""
        self._found: deque[tuple[int, Heading]] = deque()
        self._first: tuple[Image, int] | None = None
        self._tiny: Image | None = None
        self._seen_ns: int | None = None
        self._moved_ns: int | None = None
        self._looked_ns: int | None = None
        self._found_sigma = math.inf
        self._direction = (0.0, 0.0)
        self._target = self.correction = 0.0

    @property
    def pairs(self) -> int:
        return len(self._found)

    @property
    def sure(self) -> bool:
        """Whether the correction is known well enough to be used."""
        return self.pairs >= FEWEST and self._found_sigma < SURE

    @property
    def pitch(self) -> float:
        """Radians: calibrated and corrected."""
        return self.camera.mount.pitch + self.correction

    @property
    def mount(self) -> Mount:
        """The mount with its pitch corrected; once that is sure, with how sure it is now, and how that goes together with the
        intrinsics: the direction of travel is seen through the same lens."""
        mount = replace(self.camera.mount, pitch=self.pitch)
        if not self.sure:
            return mount
        pixel = self.camera.intrinsics.project(forwards(*self._direction, mount.roll))
        noise = self._found_sigma**2 + (self._target - self.correction) ** 2
        slope = by_intrinsics(self.camera.intrinsics, pixel, mount.roll)[:1]
        return Camera(self.camera.intrinsics, mount).measured(("pitch",), slope, [[noise]])

    def add(self, frame: Image, stamp_ns: int) -> None:
        """Take note of a frame, uint8 ``(H, W, 3)`` BGR, with its stamp, nanoseconds; frames come in their order."""
        if self._seen_ns is not None and not 0 < stamp_ns - self._seen_ns <= GAP_S * 1e9:
            self.reset()
        self._seen_ns = stamp_ns
        if self._first is None:
            if self._looked_ns is None or stamp_ns - self._looked_ns >= self._period_s * 1e9:
                self._first = self._small(frame), stamp_ns
            return
        (before, before_ns), self._first = self._first, None
        self._looked_ns = before_ns
        if stamp_ns - before_ns > LONGEST * 1e9:
            return
        tiny = np.asarray(cv2.resize(before, TINY, interpolation=cv2.INTER_AREA), np.uint8)
        if self._tiny is not None and correlation(self._tiny, tiny) < SAME_SCENE:
            self.reset()
            self._seen_ns, self._looked_ns = stamp_ns, before_ns
        self._tiny = tiny
        pair = track(before, self._small(frame), (stamp_ns - before_ns) / 1e9)
        heading = travel(self._intrinsics, pair, self.camera.mount) if pair else None
        if isinstance(heading, Heading):
            self.add_heading(heading, stamp_ns)

    def add_heading(self, heading: Heading, stamp_ns: int) -> None:
        """Take note of what a pair of frames says (`calibration.motion.travel`)."""
        self._found.append((stamp_ns, heading))
        while stamp_ns - self._found[0][0] > WINDOW_S * 1e9:
            self._found.popleft()
        values = np.array([(h.pitch, h.yaw) for _, h in self._found])
        middle, sigma = median_and_sigma(values, np.array([(h.pitch_sigma, h.yaw_sigma) for _, h in self._found]))
        self._direction = (float(middle[0]), float(middle[1]))
        self._found_sigma = math.hypot(float(sigma[0]), BIAS)
        elapsed = (stamp_ns - (self._moved_ns if self._moved_ns is not None else stamp_ns)) / 1e9
        self._moved_ns = stamp_ns
        if not self.sure:
            return
        self._target = float(middle[0]) - self.camera.mount.pitch
        wanted = min(self._limit, max(-self._limit, self._target))
        step = SLEW * elapsed
        self.correction += min(step, max(-step, wanted - self.correction))

    def _small(self, frame: Image) -> Image:
        grey = to_grey(frame)
        if grey.shape[::-1] == self._size:
            return grey
        return np.asarray(cv2.resize(grey, self._size, interpolation=cv2.INTER_AREA), np.uint8)


def correlation(a: Image, b: Image) -> float:
    """Of two grey pictures of one size, -1 to 1; 1 where one of them is plain."""
    x, y = (picture.astype(np.float64) - picture.mean() for picture in (a, b))
    norm = math.sqrt(float((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / norm if norm > 0 else 1.0
