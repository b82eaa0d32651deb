"""Pitch and yaw of the camera from where the lines of a straight road vanish."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.camera import Camera, Intrinsics, Mount
from calibration.covariance import slopes
from calibration.extrinsics import Placement, jacobian_of, least_squares
from calibration.ground import ground_from_pixels

Array = NDArray[np.float64]
Image = NDArray[np.uint8]

STEEPEST = 0.45  # pitch and yaw beyond it are not looked for, radians
SHORTEST = 0.07  # of a line, as a share of the image's height
LEVEL = math.radians(6.0)  # lines flatter than that in the image cross the road, or are its shadows
MOST_LINES = 150  # of an image, the longest
SEEDS = 70  # of these, the longest, that pairs are tried of
END_SIGMA = 0.5  # of a line's ends, across it, pixels
BENDING = 1 / 300  # curvature of roads to the left or right, 1/m, standard deviation
HILLS = 1 / 2000  # and up or down
STRAIGHT = 1 / 800  # a greater curvature is no straight road, 1/m
EVEN = 1 / 2500
FEWEST_LINES = 4
FARTHEST = 55.0  # what lies farther away, in heights of the camera, is too small
PARALLEL = 0.05  # the sine of the angle of planes that meet in any direction
SUREST = math.radians(1.0)  # an image that gives pitch or yaw less surely than that gives nothing
FEWEST_STRAIGHT = 0.1  # share of the images; among fewer, some curves pass for straight
BATCHES = 8


@dataclass(frozen=True)
class Heading:
    """Which way the vehicle, or its road, goes, as one image or pair of images shows it.

    Attributes:
        pitch, yaw: of a camera that sees it so, radians.
        pitch_sigma, yaw_sigma: standard deviations, as far as this image tells.
        residual_px: RMS of what does not fit, pixels.
    """

    pitch: float
    yaw: float
    pitch_sigma: float
    yaw_sigma: float
    residual_px: float


def from_lines(intrinsics: Intrinsics, images: Iterable[Image], known: Mount) -> Placement:
    """Pitch and yaw, from lane lines and road edges in pictures of a straight and level road.

    Args:
        images: uint8 ``(H, W, 3)`` BGR or ``(H, W)``, of the camera's size, some dozens from different places.
        known: height, roll and position; of its yaw only whether the camera looks ahead or back.

    Raises:
        ValueError: too few images show a straight road, or they contradict each other.
    """
    count, headings, reasons = 0, [], {"too few lines": 0, "a curve": 0, "a crest or dip": 0}
    for image in images:
        count += 1
        found = line_heading(intrinsics, road_lines(image), known)
        if isinstance(found, Heading):
            headings.append(found)
        else:
            reasons[found] += 1
    why = ", ".join(f"{number} with {reason}" for reason, number in reasons.items() if number)
    if len(headings) < max(1.0, FEWEST_STRAIGHT * count):
        raise ValueError(
            f"a straight road is seen in {len(headings)} of {count} images{f' ({why})' if why else ''}: "
            "lane lines or road edges on both sides are needed, on a straight and level stretch"
        )
    placed = combine(intrinsics, headings, known)
    remarks = [f"{len(headings)} of {count} images used" + (f", not {why}" if why else ""), *placed.remarks]
    assumed = (
        f"the camera looks {'back' if looks_back(known) else 'ahead'}, the road is straight and level and the vehicle runs "
        f"along it; height {known.height_m:g} m and roll {known.roll:g} rad were given, not measured: a picture of a road has "
        "no scale"
    )
    return replace(placed, assumed=assumed, remarks=remarks)


def line_heading(intrinsics: Intrinsics, ends: Array, known: Mount) -> Heading | str:
    """Pitch and yaw from one image's `road_lines`, or why there are none: ``too few lines``, ``a curve``, ``a crest or dip``.

    Each line and the camera's centre span a plane, and the road's direction lies in all of them, whatever the lens (Barnard,
    "Interpreting perspective images", 1983). The direction that most of the lines' length agrees with, of all pairs of long
    lines, is made better by least squares, together with the road's curvature, sideways and upwards: where a road is bent,
    the tangents of its lines turn with the distance.
    """
    lines = Lines(intrinsics, ends)
    start = likeliest(lines, known.roll)
    if start is None:
        return "too few lines"
    fit = np.array([*start, 0.0, 0.0])  # pitch, yaw, curvature to the left and upwards, 1/m
    for _ in range(4):
        mount = replace(known, pitch=float(fit[0]), yaw=float(fit[1]), x_m=0.0, y_m=0.0)
        ahead = np.nan_to_num(ground_from_pixels(Camera(intrinsics, mount), lines.ends.mean(axis=1))[:, 0], nan=0.0)
        exactness = lines.exactness(forwards(fit[0], fit[1], known.roll))[0]
        off = lines.off(fit, ahead, known.roll) / exactness
        kept = (ahead > 0) & (ahead < FARTHEST * known.height_m) & (np.abs(off) < 3)
        if kept.sum() < FEWEST_LINES:
            return "too few lines"
        residuals = partial(lines.softened, kept, ahead, exactness, known.roll)
        fit, _ = least_squares(residuals, fit)
    if abs(fit[2]) > STRAIGHT:
        return "a curve"
    if abs(fit[3]) > EVEN:
        return "a crest or dip"
    jacobian = jacobian_of(residuals, fit)
    sigmas = np.sqrt(np.diag(np.linalg.pinv(jacobian.T @ jacobian)))
    if max(sigmas[:2]) > SUREST or max(abs(fit[:2])) > STEEPEST:
        return "too few lines"
    left = (lines.off(fit, ahead, known.roll) / exactness)[kept]
    pitch, yaw, pitch_sigma, yaw_sigma = map(float, (*fit[:2], *sigmas[:2]))
    return Heading(pitch, yaw, pitch_sigma, yaw_sigma, END_SIGMA * float(np.sqrt((left**2).mean())))


class Lines:
    """Lines of an image and the planes that they span with the camera's centre, in its optical frame.

    Attributes:
        ends: float64 ``(N, 2, 2)`` pixels, as given but for those that the lens gives no direction.
        planes: ``(N, 3)``, normals of length 1.
        middles: ``(N, 3)``, the rays between the ends'.
        lengths: ``(N,)`` radians.
    """

    def __init__(self, intrinsics: Intrinsics, ends: Array) -> None:
        rays = intrinsics.rays(ends.reshape(-1, 2)).reshape(-1, 2, 3)
        good = ~np.isnan(rays).any(axis=(1, 2))
        self.ends, rays = ends[good], rays[good]
        self.planes, self.middles = unit(np.cross(rays[:, 0], rays[:, 1])), unit(rays.sum(axis=1))
        self.lengths = np.arccos(np.clip((rays[:, 0] * rays[:, 1]).sum(axis=1), -1, 1))
        self._sigma = END_SIGMA / intrinsics.fx

    def exactness(self, directions: Array) -> Array:
        """``(D, N)``: standard deviations of the angles between directions ``(D, 3)`` and the planes, radians: the farther from
        a line, in terms of its length, the less exact."""
        away = np.arccos(np.clip(np.abs(directions @ self.middles.T), 0, 1))
        return np.asarray(self._sigma * np.sqrt(0.5 + 2 * (away / self.lengths) ** 2))

    def off(self, at: Array, ahead: Array, roll: float) -> Array:
        """``(N,)``: the angles between the road's direction, as it is ``ahead`` metres away, and the planes, radians."""
        return np.asarray((forwards(at[0] + at[3] * ahead, at[1] - at[2] * ahead, roll) * self.planes).sum(axis=1))

    def softened(self, kept: NDArray[np.bool_], ahead: Array, exactness: Array, roll: float, at: Array) -> Array:
        """Residuals with Cauchy's cost as their square; the last two keep curvature within what roads have."""
        left = (self.off(at, ahead, roll) / exactness)[kept]
        return np.append(np.sqrt(np.log1p(left**2)), at[2:] / (BENDING, HILLS))


def likeliest(lines: Lines, roll: float) -> tuple[float, float] | None:
    """Pitch and yaw with the direction, of all in which two of the longest lines meet, that agrees with most of the lines'
    length; None where there is none."""
    first, second = np.triu_indices(min(len(lines.planes), SEEDS), 1)
    crossings = np.cross(lines.planes[first], lines.planes[second])
    crossings = unit(crossings[np.linalg.norm(crossings, axis=1) > PARALLEL])
    crossings *= np.where(crossings[:, 2:] < 0, -1, 1)
    pitches, yaws = angles_of(crossings, roll)
    possible = (np.abs(pitches) < STEEPEST) & (np.abs(yaws) < STEEPEST)
    if len(lines.planes) < FEWEST_LINES or not possible.any():
        return None
    crossings = crossings[possible]
    scaled = np.abs(crossings @ lines.planes.T) / (3 * lines.exactness(crossings))
    best = np.argmax((np.maximum(0.0, 1 - scaled**2) * lines.lengths).sum(axis=1))
    return float(pitches[possible][best]), float(yaws[possible][best])


def unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def road_lines(image: Image) -> Array:
    """Straight lines in the lower half that may run along the road: float64 ``(N, 2, 2)`` pixels of their ends, longest first.

    By Grompone von Gioi et al., "LSD: a line segment detector", 2012.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image
    top = grey.shape[0] // 2
    lines = cv2.createLineSegmentDetector().detect(np.ascontiguousarray(grey[top:]))[0]
    if lines is None:
        return np.empty((0, 2, 2))
    ends = np.asarray(lines, np.float64).reshape(-1, 2, 2) + np.array([0, top])
    across, down = np.abs(ends[:, 1] - ends[:, 0]).T
    lengths = np.hypot(across, down)
    kept = (lengths > SHORTEST * grey.shape[0]) & (down > math.tan(LEVEL) * across)
    return np.asarray(ends[kept][np.argsort(-lengths[kept], kind="stable")][:MOST_LINES])


def angles_of(directions: Array, roll: float) -> tuple[Array, Array]:
    """Pitch and yaw of a camera that sees the vehicle's forward axis in these directions of its optical frame, ``(N, 3)``."""
    right, down, ahead = directions.T
    left, up = -right, -down
    cos, sin = math.cos(roll), math.sin(roll)
    left, up = cos * left - sin * up, sin * left + cos * up
    return np.arctan2(up, ahead), -np.arcsin(np.clip(left, -1, 1))


def forwards(pitch: float | Array, yaw: float | Array, roll: float) -> Array:
    """The inverse of `angles_of`: where, in the optical frame, a camera sees the vehicle's forward axis, float64 ``(N, 3)``."""
    pitch, yaw = np.broadcast_arrays(np.atleast_1d(pitch), np.atleast_1d(yaw))
    ahead, left, up = np.cos(pitch) * np.cos(yaw), -np.sin(yaw), np.sin(pitch) * np.cos(yaw)
    cos, sin = math.cos(roll), math.sin(roll)
    left, up = cos * left + sin * up, -sin * left + cos * up
    return np.stack([-left, -up, ahead], axis=1)


def combine(intrinsics: Intrinsics, headings: Sequence[Heading], known: Mount, bias: float = 0.0) -> Placement:
    """One mount from what many images say: the medians.

    Their standard errors come from the medians of eight batches of consecutive images, for what is wrong in one image is
    wrong in the next, too; of fewer than sixteen images, from their scatter or from what each says of itself, whichever is
    more.

    Args:
        bias: standard deviation of what is wrong in all images alike, radians.

    Raises:
        ValueError: the images contradict each other.
    """
    values = np.array([(h.pitch, h.yaw) for h in headings])
    own = np.array([(h.pitch_sigma, h.yaw_sigma) for h in headings])
    middle, sigma = median_and_sigma(values, own)
    off = 1.4826 * np.median(np.abs(values - middle), axis=0)
    if off.max() > math.radians(3.0):
        pitch, yaw = (f"{math.degrees(value):.1f}" for value in off)
        raise ValueError(
            f"the images contradict each other, by {pitch} degrees in pitch and {yaw} in yaw: take a straight and level stretch"
        )
    pixel = intrinsics.project(forwards(middle[0], middle[1], known.roll))
    camera = Camera(intrinsics, known.only(("height_m", "roll", "x_m", "y_m")))
    noise = np.diag(sigma**2 + bias**2)
    unsure = camera.measured(("pitch", "yaw"), by_intrinsics(intrinsics, pixel, known.roll), noise)
    # A road, and motion, look the same ahead and behind.
    heading = float(middle[1]) - (math.copysign(math.pi, middle[1]) if looks_back(known) else 0.0)
    mount = replace(unsure, pitch=float(middle[0]), yaw=heading)
    scatter = f"single images scatter by {math.degrees(off[0]):.2f} degrees in pitch, {math.degrees(off[1]):.2f} in yaw"
    residual = float(np.sqrt(np.mean([h.residual_px**2 for h in headings])))
    return Placement(mount, residual, "", [scatter] if len(headings) > 3 else [], pixel, pixel)


def by_intrinsics(intrinsics: Intrinsics, pixel: Array, roll: float) -> Array:
    """float64 ``(2, n)``: how pitch and yaw of a camera that sees the vehicle's forward axis in a pixel, ``(1, 2)``, change
    with the n parameters of ``intrinsics.uncertain``; 0 where the lens gives that direction no pixel."""
    return np.nan_to_num(slopes(lambda by: np.ravel(angles_of(intrinsics.moved(by).rays(pixel), roll)), intrinsics.uncertain))


def looks_back(mount: Mount) -> bool:
    return math.cos(mount.yaw) < 0


def median_and_sigma(values: Array, own: Array) -> tuple[Array, Array]:
    """Medians of rows ``(N, P)`` and their standard errors, given what each row says of its own; see `combine`."""
    middle, count = np.median(values, axis=0), len(values)
    single = np.sqrt(np.median(own**2, axis=0) / count) * (1.2533 if count > 2 else 1.0)  # a median's against a mean's
    if count >= 2 * BATCHES:
        medians = np.stack([np.median(batch, axis=0) for batch in np.array_split(values, BATCHES)])
        return middle, np.maximum(medians.std(axis=0, ddof=1) / math.sqrt(BATCHES), single)
    if count >= 4:
        single = np.maximum(single, 1.2533 * values.std(axis=0, ddof=1) / math.sqrt(count))
    return middle, single
