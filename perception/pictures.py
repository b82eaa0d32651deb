"""Can this picture be trusted? Checks of every frame before its result is believed.

All of them look at samples: `measure` reads about one pixel in 20, and `PictureCheck` compares the figures with limits
and with what this camera used to show.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.causes import Cause, Code
from perception.config import HealthConfig
from perception.frame import Frame

GRID = (160, 96)  # pixels that stand for the picture, columns and rows
CELLS = (40, 24)  # of 4 x 4 of them, so that noise averages out
BLOCKS = (20, 12)  # of 2 x 2 cells: is anything to be seen there?
NEIGHBOURS = (9, 9)  # cells around a cell, in comparison with which it is bright or dark
SATURATED = 250  # grey level
# Deviation in a block that shows nothing: relative to the brightest part, of at most so many levels, but at least so many.
FLAT, FLAT_BRIGHT, FLAT_LEAST = 1.6 / 150, 150.0, 0.7

# Quantiles of |x| for x of a normal distribution with deviation 1.
HALF_OF_NOISE, MOST_OF_NOISE = 0.6745, 2.968
MOST = 0.997
LINES = 12  # places from which rows are taken to measure sharpness
LINE_PIXELS = 640  # sharpness is of details of 1/640 of the picture's width, whatever the resolution
COARSE = 16  # such details wide is what they are compared with
LEAST_CONTRAST = 5.0  # grey levels; with less, there is nothing to be sharp
MOST_NOISE = 0.2  # tail of the noise relative to the contrast; with more, nobody can say how sharp it is

BASELINE_FROM_S, BASELINE_OVER_S = 60.0, 180.0
CUT_WITHIN_S = 0.15  # farther apart, two pictures of one drive may differ as much as those of two
CUT_DISTANCE, CUT_DISTANCE_PER_S, CUT_RATIO = 0.5, 2.0, 2.5
USUAL_DISTANCE, USUAL_WEIGHT = 0.1, 0.1
FROZEN_SAMPLES = 6_000
REMEMBERED = 8  # pictures; a driver that goes round a few old buffers repeats itself, too

Grey = NDArray[np.uint8]
Structure = NDArray[np.float32]


@dataclass(frozen=True)
class Measures:
    """What one picture shows, from its green channel.

    Attributes:
        level: grey level that the brightest hundredth of the picture reaches, 0 to 255; noise and single pixels left out.
        saturated: fraction of it at level 250 or more.
        flat: fraction of its blocks that show nothing but noise and slow shades.
        sharpness: how strong the finest details are, relative to the strongest coarse contrast: 0.4 to 1.5 by day, about
            0.1 or less where a point is smeared over 3 % of the picture's width. None where contrast is lacking, or hidden
            in noise.
        structure: float32 ``(24 * 40,)``, the picture's local contrast, normalised: what stays as the light changes.
    """

    level: float
    saturated: float
    flat: float
    sharpness: float | None
    structure: Structure


def measure(image: NDArray[np.uint8]) -> Measures:
    """Measure ``image``, uint8 ``(H, W, 3)``, BGR, of any size."""
    grid = np.asarray(cv2.extractChannel(cv2.resize(image, GRID, interpolation=cv2.INTER_NEAREST), 1), np.uint8)
    cells = np.asarray(cv2.resize(grid, CELLS, interpolation=cv2.INTER_AREA), np.uint8)
    brightest = cells.size - cells.size // 100 - 1
    sharpness, noise = _sharpness(image)
    level = float(np.partition(cells.ravel(), brightest)[brightest])
    return Measures(
        level=level,
        saturated=float(np.count_nonzero(grid >= SATURATED)) / grid.size,
        flat=_flat(cells, level, noise),
        sharpness=sharpness,
        structure=_structure(cells),
    )


def _flat(cells: Grey, level: float, noise: float) -> float:
    """Fraction of `BLOCKS` without detail, given the picture's `Measures.level` and the standard deviation of its noise.

    Slow shades are taken off first: a hand in front of the lens has them. Of a dark picture less contrast is expected.
    """
    least = max(FLAT_LEAST, FLAT * min(level, FLAT_BRIGHT))
    real = cells.astype(np.float32)
    detail = real - cv2.blur(real, (3, 3))
    variance = cv2.resize(detail * detail, BLOCKS, interpolation=cv2.INTER_AREA)
    # A cell is the mean of 16 pixels, and the variance of four cells' noise seldom comes out at twice its true value.
    return float(np.count_nonzero(variance < least**2 + 2.0 * noise**2 / 16.0)) / variance.size


def _structure(cells: Grey) -> Structure:
    """`CELLS` with the local mean taken off and the local contrast divided out."""
    real = cells.astype(np.float32)
    detail = real - cv2.blur(real, NEIGHBOURS)
    contrast = np.sqrt(cv2.blur(detail * detail, NEIGHBOURS) + 4.0)  # less than two levels is noise
    structure: Structure = (detail / contrast).ravel()
    return structure


def _sharpness(image: NDArray[np.uint8]) -> tuple[float | None, float]:
    """`Measures.sharpness` and the standard deviation of the noise in grey levels.

    Details are second differences over triples of pixels, along and across rows; the better direction counts, since a
    turning or shaking camera smears one only. Noise has second differences, too, but of a normal distribution: half of
    them are small in proportion to its tail. What the tail has beyond that are edges.
    """
    height, width = image.shape[:2]
    step = max(1, round(width / LINE_PIXELS))
    spacing = max(3 * step, height // LINES)
    count = height // spacing
    if count == 0 or width <= COARSE * step:
        return None, 0.0
    lines = image[: count * spacing].reshape(count, spacing, width, 3)[:, : 3 * step : step, : width // step * step]
    # Rows copied whole, then one channel of them by OpenCV: half the time of numpy's single bytes here and there.
    green = np.asarray(cv2.extractChannel(np.ascontiguousarray(lines).reshape(count * 3, -1, 3), 1), np.uint8)
    green = green.reshape(count, 3, -1)
    rows = green[:, :, ::step].astype(np.int16)
    if step > 1:  # two pixels have less noise than one
        rows += green[:, :, 1::step]
        rows >>= 1
    middle = rows[:, 1]
    along = np.abs(2 * middle[:, 1:-1] - middle[:, :-2] - middle[:, 2:])
    across = np.abs(2 * middle - rows[:, 0] - rows[:, 2])
    half_along, most_along = _quantiles(along, (0.5, MOST))
    half_across, most_across = _quantiles(across, (0.5, MOST))
    noise = min(half_along, half_across) / HALF_OF_NOISE / 6**0.5  # of 2 b - a - c: 4 + 1 + 1 variances
    noise *= min(step, 2) ** 0.5
    (contrast,) = _quantiles(np.abs(middle[:, COARSE:] - middle[:, :-COARSE]), (0.99,))
    tail = MOST_OF_NOISE / HALF_OF_NOISE
    if contrast < LEAST_CONTRAST or tail * min(half_along, half_across) > MOST_NOISE * contrast:
        return None, noise
    edges = max(most_along**2 - (tail * half_along) ** 2, most_across**2 - (tail * half_across) ** 2, 0.0) ** 0.5
    return edges / contrast, noise


def _quantiles(values: NDArray[np.int16], fractions: tuple[float, ...]) -> list[float]:
    """Quantiles of whole numbers below 512, taken as rounded: interpolated within half a unit to either side."""
    counts = cv2.calcHist([values.view(np.uint16)], [0], None, [512], [0, 512]).ravel()
    below = np.concatenate(([0.0], np.cumsum(counts)))
    found = []
    for fraction in fractions:
        wanted = fraction * below[-1]
        value = int(np.searchsorted(below[1:], wanted))
        found.append(max(0.0, value - 0.5 + float((wanted - below[value]) / counts[value])))
    return found


class PictureCheck:
    """Looks at the frames of one source, in order.

    What one picture shows beyond doubt (dark, covered, overexposed, without any sharp edge) is said at once; that it is
    much less sharp than this camera's pictures used to be, only of several in a row. It is taken back once the pictures
    have been good for ``config.clear_s``, so that the state does not flicker. Times are those of the stamps.

    Frozen means not one new picture among the last, to the last bit of a sample from every row. The noise of a camera
    makes any two pictures differ, but a source without noise that shows something at rest (a screen, a rendered scene, a
    camera that smooths strongly) looks frozen, too: ``frozen_s: null`` turns the check off.

    Args:
        live: whether pictures that repeat themselves mean that the camera hangs; a recording may.
    """

    def __init__(self, config: HealthConfig, live: bool) -> None:
        self._config, self._live = config, live
        self._baseline = self._baseline_s = 0.0
        self._known: deque[int] = deque(maxlen=REMEMBERED)
        self._new_at = (0, 0)  # stamp and moment of grabbing of the last picture that was new, ns
        self.reset()

    def configure(self, config: HealthConfig) -> None:
        """Go on with other limits, and with what is known: a camera that is frozen or blind stays so."""
        self._config = config

    def reset(self) -> None:
        """Forget the pictures so far, after a gap. How sharp the camera can be stays known, and its last pictures, too: one
        that hangs sends them again."""
        self._less_sharp = 0  # pictures in a row
        self._blind: tuple[Cause, int] | None = None  # and the stamp of the last picture that gave it
        self._good: tuple[Structure, int] | None = None  # of the last picture without a fault, and its stamp
        self._usual = USUAL_DISTANCE  # between consecutive pictures

    def look(self, frame: Frame) -> list[Cause]:
        """What is wrong with ``frame``: all but `Code.SCENE_CUT` mean that it must not be used."""
        if not self._config.enabled:
            return []
        picture = measure(frame.image)
        faults = [cause for cause in (self._unusable(picture), self._frozen(frame)) if cause]
        if faults:
            self._blind = (faults[0], frame.stamp_ns)
            return faults
        causes = [cause for cause in (self._still_blind(frame.stamp_ns), self._cut(picture, frame.stamp_ns)) if cause]
        self._remember(picture, frame.stamp_ns)
        return causes

    def _unusable(self, picture: Measures) -> Cause | None:
        limits = self._config
        if picture.level < limits.dark_level:
            return Cause(
                Code.DARK,
                f"the picture is dark: its brightest hundredth is at level {picture.level:.0f} of 255, below "
                f"{limits.dark_level:g}; is the lens covered, or the exposure too short?",
            )
        if picture.saturated > limits.bright_fraction:
            return Cause(
                Code.OVEREXPOSED,
                f"the picture is overexposed: {picture.saturated:.0%} of it is saturated, more than "
                f"{limits.bright_fraction:.0%}; does a light shine into the lens, or is the exposure too long?",
            )
        if picture.flat > limits.covered_fraction:
            return Cause(
                Code.COVERED,
                f"{picture.flat:.0%} of the picture shows nothing, more than {limits.covered_fraction:.0%}; is something in "
                "front of the lens, or dirt on it?",
            )
        return self._defocused(picture.sharpness)

    def _defocused(self, sharpness: float | None) -> Cause | None:
        if sharpness is None:
            return None
        usual = self._baseline if self._baseline_s >= BASELINE_FROM_S else 0.0
        self._less_sharp = self._less_sharp + 1 if sharpness < self._config.defocus_fraction * usual else 0
        if sharpness >= self._config.least_sharpness and self._less_sharp < self._config.blind_after:
            return None
        compared = f"usually {usual:.2f} from this camera" if usual else f"less than {self._config.least_sharpness:g}"
        return Cause(
            Code.DEFOCUSED,
            f"the picture is out of focus: its sharpness is {sharpness:.2f}, {compared}; is the lens wet or dirty, or has its "
            "focus moved?",
        )

    def _frozen(self, frame: Frame) -> Cause | None:
        if not self._live or self._config.frozen_s is None:
            return None
        data = frame.image.reshape(-1)
        # An odd step wanders through the columns and channels, and is shorter than a row.
        sample = hash(data[:: min(data.size // FROZEN_SAMPLES, frame.image.shape[1]) | 1].tobytes())
        if sample not in self._known:
            self._known.append(sample)
            self._new_at = (frame.stamp_ns, frame.grabbed_ns)
            return None
        # A camera that hangs may repeat its stamp, too.
        seconds = max(frame.stamp_ns - self._new_at[0], frame.grabbed_ns - self._new_at[1]) / 1e9
        if seconds < self._config.frozen_s:
            return None
        return Cause(
            Code.FROZEN,
            f"the picture is frozen: the camera has sent nothing new for {seconds:.1f} s; start it again, or, if it really "
            "shows something at rest and without noise, set health.frozen_s to null",
        )

    def _still_blind(self, stamp_ns: int) -> Cause | None:
        if self._blind is None:
            return None
        cause, last_ns = self._blind
        if 0 <= stamp_ns - last_ns < self._config.clear_s * 1e9:
            good_s = (stamp_ns - last_ns) / 1e9
            return Cause(cause.code, f"{cause.text} (good again for {good_s:.2f} s, used after {self._config.clear_s:g} s)")
        self._blind = None
        return None

    def _cut(self, picture: Measures, stamp_ns: int) -> Cause | None:
        if self._good is None:
            return None
        seconds = (stamp_ns - self._good[1]) / 1e9
        if not 0 < seconds <= CUT_WITHIN_S:
            return None
        before, now = self._good[0], picture.structure
        energy = float(before @ before) * float(now @ now)
        distance = 1.0 - float(before @ now) / energy**0.5 if energy > 0 else 0.0
        usual = self._usual
        self._usual += USUAL_WEIGHT * (distance - usual)
        if distance <= max(CUT_DISTANCE + CUT_DISTANCE_PER_S * seconds, CUT_RATIO * usual):
            return None
        return Cause(
            Code.SCENE_CUT,
            f"the picture has changed all at once: it differs from the one before by {distance:.0%}, where {usual:.0%} is "
            "usual; what was known from earlier pictures is forgotten",
        )

    def _remember(self, picture: Measures, stamp_ns: int) -> None:
        """Keep what a good picture says about the ones to come."""
        if picture.sharpness is not None and not self._less_sharp:
            # The plain mean at first, a moving one later; a pause counts for little.
            seconds = min(max(stamp_ns - self._good[1], 0) / 1e9, 1.0) if self._good else 0.0
            self._baseline_s += seconds
            weight = seconds / min(max(self._baseline_s, 1e-3), BASELINE_OVER_S)
            self._baseline += weight * (picture.sharpness - self._baseline)
        self._good = (picture.structure, stamp_ns)
