"""Pitch and yaw of the camera from where the vehicle is going: the point that everything at rest seems to come from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.camera import Intrinsics, Mount
from calibration.extrinsics import Placement, jacobian_of, least_squares
from calibration.vanishing import STEEPEST, Heading, combine, forwards, looks_back

Array = NDArray[np.float64]
Image = NDArray[np.uint8]

CORNERS = 400  # tracked from an image to the next
FEWEST_TRACKS = 40
THERE_AND_BACK = 0.3  # pixels by which a corner that was tracked forth and back may miss itself
TRACK_SIGMA = 0.3  # of a tracked corner, pixels; it also says what is an outlier
FEWEST_PAIRS = 8  # of images; the scatter of fewer says nothing
STILL = 0.35  # pixels: where three quarters of the corners move less, the vehicle stands
STRAIGHT = math.radians(1.2)  # a second: turning faster than that is no straight road
TURNING = math.radians(20.0)  # a second: of the vehicle, about each axis, standard deviation
LONGEST = 0.35  # seconds between two images of a pair
SUREST = math.radians(1.5)
BIAS = math.radians(0.05)  # that tracks of one scene share: on rendered drives the error beyond the standard error


@dataclass(frozen=True)
class Pair:
    """Corners tracked from an image to the next: float64 ``(N, 2)`` pixels in both, and the time between them, seconds."""

    before: Array
    after: Array
    seconds: float


def from_motion(intrinsics: Intrinsics, frames: Iterable[tuple[Image, int]], known: Mount) -> Placement:
    """Pitch and yaw, from a recording made while driving straight on.

    Args:
        frames: images uint8 ``(H, W, 3)`` BGR or ``(H, W)``, of the camera's size, with their stamps, nanoseconds; consecutive
            ones at most a third of a second apart are looked at together.
        known: height, roll and position; of its yaw only whether the camera looks ahead or back.

    Raises:
        ValueError: the vehicle stands still, turns all the time, or too little is seen.
    """
    headings, reasons, count = [], {"standing still": 0, "turning": 0, "too little to see": 0}, 0
    last: tuple[Image, int] | None = None
    for image, stamp_ns in frames:
        grey = to_grey(image)
        if last is not None and 0 < stamp_ns - last[1] <= LONGEST * 1e9:
            count += 1
            pair = track(last[0], grey, (stamp_ns - last[1]) / 1e9)
            found = "too little to see" if pair is None else travel(intrinsics, pair, known)
            if isinstance(found, Heading):
                headings.append(found)
            else:
                reasons[found] += 1
        last = grey, stamp_ns
    why = ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number)
    if not count:
        raise ValueError(f"no two images within {LONGEST:g} s of each other: motion needs a video with nearly all its frames")
    if 2 * reasons["standing still"] > count and len(headings) < 20:
        raise ValueError(f"the vehicle stands still ({why} of {count} pairs of images): take a stretch of driving straight on")
    if len(headings) < FEWEST_PAIRS:
        raise ValueError(
            f"{len(headings)} of {count} pairs of images show the vehicle going straight on{f' ({why})' if why else ''}, "
            f"and at least {FEWEST_PAIRS} must: take a longer straight stretch, by daylight"
        )
    placed = combine(intrinsics, headings, known, BIAS)
    remarks = [f"{len(headings)} of {count} pairs of images used" + (f", not {why}" if why else ""), *placed.remarks]
    assumed = (
        f"the camera looks {'back' if looks_back(known) else 'ahead'}, and the vehicle goes straight on along its own forward "
        "axis, parallel to the ground; "
        f"height {known.height_m:g} m and roll {known.roll:g} rad were given, not measured: motion in a picture has no scale"
    )
    return replace(placed, assumed=assumed, remarks=remarks)


def to_grey(image: Image) -> Image:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8) if image.ndim == 3 else image


def track(before: Image, after: Image, seconds: float) -> Pair | None:
    """Corners of one grey image in the next (Lucas & Kanade 1981, in pyramids), forth and back; None where they are few.

    Half of them are looked for in the lower part: the road nearby says most about the direction, and its corners are weak.
    """
    height, width = before.shape
    found = []
    for top, bottom in ((0, int(0.55 * height)), (int(0.55 * height), height)):
        corners = cv2.goodFeaturesToTrack(np.ascontiguousarray(before[top:bottom]), CORNERS // 2, 0.01, 0.012 * width)
        if corners is not None:
            found.append(np.asarray(corners).reshape(-1, 2) + np.array([0, top], np.float32))
    if not found:
        return None
    start = np.concatenate(found).astype(np.float32)[:, None]
    there, seen = lucas_kanade(before, after, start)
    back, seen_back = lucas_kanade(after, before, there)
    good = seen & seen_back & (np.linalg.norm(start - back, axis=2)[:, 0] < THERE_AND_BACK)
    ends = there[:, 0]
    good &= (ends > 0).all(axis=1) & (ends < (width - 1, height - 1)).all(axis=1)
    if good.sum() < FEWEST_TRACKS:
        return None
    return Pair(start[good, 0].astype(np.float64), ends[good].astype(np.float64), seconds)


def lucas_kanade(before: Image, after: Image, points: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Where points ``(N, 1, 2)`` of one image lie in the other, and whether ``(N,)`` they were found."""
    there, seen, _ = cv2.calcOpticalFlowPyrLK(before, after, points, np.empty_like(points), winSize=(21, 21), maxLevel=4)
    return np.asarray(there, np.float32), np.ravel(np.asarray(seen)).astype(bool)


def travel(intrinsics: Intrinsics, pair: Pair, known: Mount) -> Heading | str:
    """Pitch and yaw from one pair of images, or why there are none: ``standing still``, ``turning``, ``too little to see``.

    A corner's rays in both images and the direction of travel lie in one plane, once the camera's own turning is undone
    (Longuet-Higgins, "A computer algorithm for reconstructing a scene from two projections", 1981). Direction and turning are
    found together, by least squares of the angles off these planes with Cauchy's weights, from rough to fine: other vehicles
    are outliers.
    """
    if np.quantile(np.hypot(*(pair.after - pair.before).T), 0.75) < STILL:
        return "standing still"
    a, b = intrinsics.rays(pair.before), intrinsics.rays(pair.after)
    good = ~np.isnan(a + b).any(axis=1)
    a, b, roll = a[good], b[good], known.roll
    if len(a) < FEWEST_TRACKS:
        return "too little to see"
    sigma = TRACK_SIGMA / intrinsics.fx

    def angles(at: Array) -> Array:
        # Small turns, half of them undone in each image: the direction is that in the middle between both.
        half = crossing(at[2:] / 2)
        early, late = a + a @ half.T, b - b @ half.T
        planes = early @ crossing(forwards(at[0], at[1], roll)[0])
        off = np.einsum("ij,ij->i", late, planes)
        return np.asarray(off / (np.sqrt(np.einsum("ij,ij->i", planes, planes)) + sigma))

    fit = np.zeros(5)
    for scale in (16 * sigma, 4 * sigma, sigma, sigma):

        def softened(at: Array, scale: float = scale) -> Array:
            # Cauchy's: its square is the cost. The last rows keep what cannot be told from the images within reason.
            soft = np.sqrt(np.log1p((angles(at) / scale) ** 2))
            return np.concatenate([soft, at[:2] / STEEPEST, at[2:] / (TURNING * pair.seconds)])

        fit, _ = least_squares(softened, fit, rounds=12)
    left = angles(fit)
    kept = np.abs(left) < 3 * sigma
    if kept.sum() < max(FEWEST_TRACKS, 0.4 * len(left)):
        return "too little to see"
    jacobian = jacobian_of(lambda at: angles(at)[kept] / sigma, fit)
    covariance = np.linalg.pinv(jacobian.T @ jacobian + np.diag([STEEPEST**-2] * 2 + [(TURNING * pair.seconds) ** -2] * 3))
    sigmas = np.sqrt(np.diag(covariance))
    if max(sigmas[:2]) > SUREST or max(abs(fit[:2])) > STEEPEST:
        return "too little to see"
    up = -(math.cos(roll) * fit[3] + math.sin(roll) * fit[2])  # about the vehicle's z axis, the pitch left aside
    if abs(up) > STRAIGHT * pair.seconds:
        return "turning"
    residual = float(np.sqrt((left[kept] ** 2).mean())) * intrinsics.fx
    return Heading(float(fit[0]), float(fit[1]), float(sigmas[0]), float(sigmas[1]), residual)


def crossing(v: Array) -> Array:
    """float64 ``(3, 3)``: the matrix whose product with a vector is the cross product of ``v`` with it."""
    x, y, z = v
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
