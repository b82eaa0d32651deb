"""Where the camera sits on the vehicle, from points or a chessboard whose places on the ground are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from calibration.boards import Board, refine
from calibration.camera import POSE, Camera, Intrinsics, Mount
from calibration.covariance import slopes
from calibration.ground import pixels_from_ground
from engine.settings import Section, read_settings

Array = NDArray[np.float64]
Image = NDArray[np.uint8]

PIXEL_SIGMA = 0.7  # of a point that a person clicked, pixels along each axis
TAPE_SIGMA_M = 0.01  # of a point that was measured with a tape
FREE = 12  # numbers more than unknowns, from which on the residuals alone say how good the points are
OUTLYING = 4.0  # standard deviations
SUSPICIOUS = 9.0  # a fall of the sum of squares without a point that makes it worth a closer look: one good point in a hundred
SUSPECTS = 3
MISFIT = 3.0  # times the standard deviation that was said: then something is wrong
NARROW = 1 / 50  # of their length: points in a narrower strip lie on one line
GROSS_MISFIT = 10.0  # and then it is not worth writing down
ROLLED = math.radians(20.0)  # cameras are hardly ever mounted so aslant,
STEEP = math.radians(75.0)  # or look so straight down
AMBIGUOUS = 9.0  # another pose whose sum of squares is greater by no more than this cannot be told apart


@dataclass(frozen=True)
class Placement:
    """Where a camera was found to sit.

    Attributes:
        mount: with the standard deviations of what was measured; those of what was assumed are left out.
        residual_px: RMS distance between what was seen and what the mount says, pixels.
        assumed: what was taken for granted, as a sentence.
        remarks: what a person should know of this one, as sentences.
        seen, expected: float64 ``(N, 2)`` pixels: the points used, in the image and where the mount puts them.
    """

    mount: Mount
    residual_px: float
    assumed: str
    remarks: list[str] = field(default_factory=list)
    seen: Array = field(default_factory=lambda: np.empty((0, 2)))
    expected: Array = field(default_factory=lambda: np.empty((0, 2)))


class PointSection(Section):
    """One point of the ground."""

    pixel: Annotated[list[float], Field(min_length=2, max_length=2)]
    ground: Annotated[list[float], Field(min_length=2, max_length=2)]


class PointsFile(Section):
    """``points: [{pixel: [u, v], ground: [x, y]}, ...]``: pixels, and metres in ``base_link``."""

    points: Annotated[list[PointSection], Field(min_length=4)]
    pixel_sigma: Annotated[float, Field(gt=0)] = PIXEL_SIGMA
    tape_sigma_m: Annotated[float, Field(ge=0)] = TAPE_SIGMA_M


def read_points(path: Path) -> tuple[Array, Array, float, float]:
    """Points of the ground in a YAML file (`PointsFile`).

    Returns:
        float64 ``(N, 2)`` pixels, ``(N, 2)`` metres in ``base_link``, and how exact they are: pixels and metres.

    Raises:
        ValueError: the file cannot be read, or holds something else; the sentence names the key by its path.
    """
    tree = read_settings(PointsFile, path, {})
    pixels, ground = (np.array([getattr(point, name) for point in tree.points]) for name in ("pixel", "ground"))
    return pixels, ground, tree.pixel_sigma, tree.tape_sigma_m


def from_points(
    intrinsics: Intrinsics,
    pixels: ArrayLike,
    ground: ArrayLike,
    *,
    pixel_sigma: float = PIXEL_SIGMA,
    tape_sigma_m: float = TAPE_SIGMA_M,
    drop: bool = True,
) -> Placement:
    """The whole pose from at least four points of flat ground, by least squares of what the image shows.

    It starts from both poses that a plane allows (Collins & Bartoli, "Infinitesimal Plane-Based Pose Estimation", 2014) and
    keeps the one that fits; where both do, the one with less roll, and says so. Each point weighs as it is exact: the tape's
    error counts as many pixels as it is long in the image. The standard deviations come from the Jacobian, scaled by the
    residuals; with fewer than nine points, by the stated exactness at least. Points that the others contradict by more than
    four standard deviations are left out, one after the other while five remain, and named by their number, from 1.

    Args:
        pixels: ``(N, 2)``, (u, v) in the image as it is, distorted.
        ground: ``(N, 2)`` metres in ``base_link``.
        pixel_sigma, tape_sigma_m: how exact these are along each axis, pixels and metres.
        drop: whether to look for outlying points.

    Raises:
        ValueError: fewer than four points, points on one line, a point that the lens does not see, no pose from above, or
            points more than ten times as far off as they should be.
    """
    uv, xy = (np.asarray(values, np.float64).reshape(-1, 2) for values in (pixels, ground))
    check_points(intrinsics, uv, xy)

    def fitted(kept: NDArray[np.intp]) -> Fit:
        return fit_pose(intrinsics, uv[kept], xy[kept], pixel_sigma, tape_sigma_m)

    kept, remarks = np.arange(len(uv)), []
    best = fitted(kept)
    while drop and len(kept) > 5:
        relief = best.relief()
        suspects = [i for i in np.argsort(-relief)[:SUSPECTS] if relief[i] > SUSPICIOUS]
        if not suspects:
            break
        worst, without = min(((i, fitted(np.delete(kept, i))) for i in suspects), key=lambda one: one[1].cost)
        number = kept[worst : worst + 1]
        off = uv[number] - pixels_from_ground(without.camera, xy[number])
        scaled = weigh(without.camera, xy[number], pixel_sigma, tape_sigma_m) @ off[:, :, None]
        if np.linalg.norm(scaled) < OUTLYING * max(1.0, math.sqrt(without.scatter)):
            break
        remarks.append(f"point {number[0] + 1} was left out: it lies {np.hypot(*off[0]):.1f} px from where the others put it")
        kept, best = np.delete(kept, worst), without
    if best.ambiguous:
        remarks.append("another pose fits almost as well: spread the points, nearer and farther")
    if (times := math.sqrt(best.scatter)) > MISFIT:
        said = (
            f"the points lie {times:.0f} times as far from where the mount puts them as their exactness allows: "
            "are pixels, places and the camera's file right?"
        )
        if times > GROSS_MISFIT:
            raise ValueError(said)
        remarks.append(said)
    pitch, roll = best.camera.mount.pitch, best.camera.mount.roll
    if abs(roll) > ROLLED or abs(pitch) > STEEP:
        remarks.append(
            f"the camera looks down by {math.degrees(pitch):.0f} degrees and is rolled by {math.degrees(roll):.0f}: is that "
            "so, and does all of this lie on the ground?"
        )
    mount = best.camera.measured(POSE, by_intrinsics(best, uv[kept], xy[kept]), best.covariance)
    expected = pixels_from_ground(best.camera, xy[kept])
    return Placement(
        mount, rms(uv[kept] - expected), "the ground under the points and the vehicle is one plane", remarks, uv[kept], expected
    )


def check_points(intrinsics: Intrinsics, uv: Array, xy: Array) -> None:
    """Raises ValueError: points that no pose can be found from."""
    if len(uv) != len(xy) or len(uv) < 4:
        raise ValueError(f"a pose needs at least four points with a pixel and a place each, got {len(uv)} and {len(xy)}")
    size = (intrinsics.width, intrinsics.height)
    for number, point in enumerate(uv, 1):
        if not ((point >= -0.5) & (point <= np.array(size) - 0.5)).all():
            raise ValueError(f"point {number}: pixel {point.tolist()} lies outside the camera's {size[0]}x{size[1]} image")
    if len(lost := np.flatnonzero(np.isnan(intrinsics.rays(uv)[:, 0]))):
        raise ValueError(
            f"point {lost[0] + 1}: the camera's distortion gives this pixel no direction; take one nearer the centre"
        )
    wide, narrow = np.linalg.svd(xy - xy.mean(axis=0), compute_uv=False)
    if narrow < NARROW * wide:
        raise ValueError(
            "the points lie on one line; put some of them beside it: a fiftieth of its length is the least, a fifth good"
        )


@dataclass(frozen=True)
class Fit:
    """A pose that fits points.

    Attributes:
        camera: with the pose.
        residuals, jacobian: ``(2 N,)``, ``(2 N, 6)``: what remains, in standard deviations, and how it changes with `POSE`.
        weights: ``(N, 2, 2)``: what made them of pixels (`weigh`).
        ambiguous: whether another pose does almost as well.
    """

    camera: Camera
    residuals: Array
    jacobian: Array
    weights: Array
    ambiguous: bool

    @property
    def cost(self) -> float:
        return float(self.residuals @ self.residuals)

    @property
    def scatter(self) -> float:
        """The variance of what remains; 1 where the points are as exact as was said."""
        return self.cost / (len(self.residuals) - len(POSE))

    @property
    def covariance(self) -> Array:
        scale = self.scatter if len(self.residuals) - len(POSE) >= FREE else max(1.0, self.scatter)
        return np.asarray(np.linalg.inv(self.jacobian.T @ self.jacobian) * scale)

    def relief(self) -> Array:
        """``(N,)``: by how much, to first order, the sum of squares falls without each point (Cook 1977)."""
        blocks, left = self.jacobian.reshape(-1, 2, len(POSE)), self.residuals.reshape(-1, 2, 1)
        hat = blocks @ np.linalg.inv(self.jacobian.T @ self.jacobian) @ blocks.transpose(0, 2, 1)
        return np.ravel(left.transpose(0, 2, 1) @ np.linalg.solve(np.eye(2) * (1 + 1e-9) - hat, left))


def fit_pose(intrinsics: Intrinsics, uv: Array, xy: Array, pixel_sigma: float, tape_sigma_m: float) -> Fit:
    """The pose that fits best. Raises ValueError: there is none above the ground."""
    found: list[tuple[float, Array, Array]] = []
    for start in start_poses(intrinsics, uv, xy):
        weights = weigh(Camera(intrinsics, start), xy, pixel_sigma, tape_sigma_m)
        if np.isfinite(weights).all():
            residuals = partial_residuals(intrinsics, uv, xy, weights)
            pose, cost = least_squares(residuals, pose_of(start))
            if math.isfinite(cost):
                found.append((cost, pose, weights))
    if not found:
        raise ValueError(
            "no camera above the ground sees the points like this: are left and right exchanged (y grows to the left), "
            "or u and v, or is their order another one?"
        )
    least = min(cost for cost, _, _ in found)
    scatter = least / (2 * len(uv) - len(POSE))
    rivals = [one for one in found if one[0] - least <= AMBIGUOUS * max(1.0, scatter)]
    _, pose, weights = min(rivals, key=lambda one: abs(one[1][POSE.index("roll")]))
    ambiguous = any(np.abs(other[1] - pose).max() > 1e-3 for other in rivals)
    residuals = partial_residuals(intrinsics, uv, xy, weights)
    jacobian = jacobian_of(residuals, pose)
    if np.linalg.cond(jacobian) > 1e7:
        raise ValueError("the points do not determine a pose: spread them, no three of four on one line")
    return Fit(Camera(intrinsics, mount_of(pose)), residuals(pose), jacobian, weights, ambiguous)


def start_poses(intrinsics: Intrinsics, uv: Array, xy: Array) -> list[Mount]:
    """Both poses that the plane allows, as far as they lie above the ground."""
    rays = intrinsics.rays(uv)
    if (rays[:, 2] < 0.02).any():
        raise ValueError("a point lies beside or behind the camera; take points in front of it")
    flat, points = rays[:, :2] / rays[:, 2:], np.column_stack([xy, np.zeros(len(xy))])
    mounts = []
    _, turns, shifts, _ = cv2.solvePnPGeneric(points, flat, np.eye(3), np.zeros(4), flags=cv2.SOLVEPNP_IPPE)
    for turn, shift in zip(turns, shifts, strict=True):
        camera_from_base = np.eye(4)
        camera_from_base[:3, :3], camera_from_base[:3, 3] = cv2.Rodrigues(turn)[0], np.ravel(shift)
        if np.isfinite(camera_from_base).all() and (base := np.linalg.inv(camera_from_base))[2, 3] > 1e-3:
            mounts.append(Mount.from_transform(base))
    return mounts


def pose_of(mount: Mount) -> Array:
    return np.array([getattr(mount, name) for name in POSE])


def mount_of(pose: Array) -> Mount:
    """Raises ValueError: it is no pose of a camera above the ground."""
    return Mount(**dict(zip(POSE, pose.tolist(), strict=True)))


def weigh(camera: Camera, xy: Array, pixel_sigma: float, tape_sigma_m: float) -> Array:
    """float64 ``(N, 2, 2)``: what turns each point's difference in pixels into standard deviations."""
    step = 1e-4
    along = [pixels_from_ground(camera, xy + d) - pixels_from_ground(camera, xy - d) for d in step * np.eye(2)]
    pixels_per_metre = np.stack(along, axis=2) / (2 * step)
    covariance = pixel_sigma**2 * np.eye(2) + tape_sigma_m**2 * pixels_per_metre @ pixels_per_metre.transpose(0, 2, 1)
    if not np.isfinite(covariance).all():
        return np.full_like(covariance, np.nan)
    return np.asarray(np.linalg.inv(np.linalg.cholesky(covariance)))


def partial_residuals(intrinsics: Intrinsics, uv: Array, xy: Array, weights: Array) -> Callable[[Array], Array]:
    def residuals(pose: Array) -> Array:
        try:
            off = uv - pixels_from_ground(Camera(intrinsics, mount_of(pose)), xy)
        except ValueError:  # a step too far: below the ground
            return np.full(2 * len(uv), np.nan)
        return np.ravel(weights @ off[:, :, None])

    return residuals


def by_intrinsics(fit: Fit, uv: Array, xy: Array) -> Array:
    """float64 ``(6, n)``: how the pose that fits best changes with the n parameters of ``intrinsics.uncertain``.

    The implicit function of a least-squares fit, to first order: the step that makes up for what a change does.
    """
    k, pose = fit.camera.intrinsics, pose_of(fit.camera.mount)
    changes = slopes(lambda by: partial_residuals(k.moved(by), uv, xy, fit.weights)(pose), k.uncertain)
    return np.asarray(-np.linalg.lstsq(fit.jacobian, changes, rcond=None)[0])


def least_squares(residuals: Callable[[Array], Array], start: Array, rounds: int = 100) -> tuple[Array, float]:
    """Levenberg's and Marquardt's method with a Jacobian by central differences.

    Returns:
        The parameters ``(P,)`` and the sum of squares there; NaN where the start has no residuals.
    """
    at, damping = start.astype(np.float64), 1e-3
    left = residuals(at)
    cost = float(left @ left)
    for _ in range(rounds):
        jacobian = jacobian_of(residuals, at)
        normal, slope = jacobian.T @ jacobian, jacobian.T @ left
        if not (np.isfinite(normal).all() and math.isfinite(cost)):
            break
        while damping < 1e12:
            step = np.linalg.lstsq(normal + damping * np.diag(np.diag(normal) + 1e-12), -slope, rcond=None)[0]
            tried = residuals(at + step)
            if (better := float(tried @ tried)) <= cost:  # never so where it is NaN
                break
            damping *= 10
        else:
            break
        gain, at, left, cost, damping = cost - better, at + step, tried, better, max(damping / 10, 1e-12)
        if gain <= 1e-10 * cost or np.abs(step).max() < 1e-13:
            break
    return at, cost


def jacobian_of(residuals: Callable[[Array], Array], at: Array, step: float = 1e-6) -> Array:
    moves = step * np.eye(len(at))
    return np.stack([(residuals(at + move) - residuals(at - move)) / (2 * step) for move in moves], axis=1)


def rms(off: Array) -> float:
    """Of distances, from differences ``(N, 2)``."""
    return float(np.sqrt((off**2).sum(axis=1).mean()))


# A chessboard that lies on the ground


def find_corners(image: Image, board: Board) -> Array:
    """The inner corners of a chessboard, in the order in which OpenCV numbers them.

    Args:
        image: uint8 ``(H, W, 3)`` BGR or ``(H, W)``.

    Returns:
        float64 ``(N, 2)`` pixels.

    Raises:
        ValueError: not all of the board is seen.
    """
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8) if image.ndim == 3 else image
    flags = cv2.CALIB_CB_EXHAUSTIVE | cv2.CALIB_CB_ACCURACY | cv2.CALIB_CB_NORMALIZE_IMAGE
    found, corners = cv2.findChessboardCornersSB(grey, board.grid, flags=flags)
    if not found:
        found, corners = cv2.findChessboardCorners(grey, board.grid)
    if not found:
        raise ValueError(
            f"no chessboard with {board.columns} x {board.rows} inner corners is seen; all of it must be, sharp, with a white "
            "rim, and its nearest squares no more than some four times as tall as its farthest"
        )
    return refine(board, grey, np.asarray(corners, np.float64).reshape(-1, 2), np.arange(board.count), 0.25)


def from_board(
    intrinsics: Intrinsics,
    corners: ArrayLike,
    board: Board,
    place: tuple[float, float, float] | None = None,
    position: tuple[float, float] | None = None,
) -> Placement:
    """The pose over a chessboard that lies on the ground.

    Height, pitch and roll need the picture alone. Where the board lies says the rest; without that the camera is taken to
    look straight ahead (yaw 0), at ``position``.

    Args:
        corners: ``(N, 2)`` pixels, as `find_corners` gives them.
        place: x and y of the board's middle, metres in ``base_link``, and the heading, radians, in which its columns count;
            a heading and its opposite mean the same.
        position: x and y of the camera, metres, where ``place`` is not given.

    Raises:
        ValueError: there are more or fewer corners than the board has, or as `from_points`.
    """
    uv, size = np.asarray(corners, np.float64).reshape(-1, 2), board.grid
    if len(uv) != board.count:
        raise ValueError(f"a board of {size[0]} x {size[1]} inner corners has {board.count} of them, and these are {len(uv)}")
    if place and size[0] == size[1]:
        raise ValueError("a board with as many corners along as across has no heading; take one of 9 x 6, or give no place")
    across, along = np.divmod(np.arange(len(uv)), size[0])
    local = board.square_m * (np.stack([along, across], axis=1) - (np.array(size) - 1) / 2)
    grid = uv.reshape(size[1], size[0], 2)
    (ax, ay), (bx, by) = grid[0, -1] - grid[0, 0], grid[-1, 0] - grid[0, 0]
    if ax * by - ay * bx > 0:  # clockwise as seen from above, and y is to the left
        local[:, 1] *= -1
    if place is None:
        placed = from_points(intrinsics, uv, local, tape_sigma_m=0.0, drop=False)
        x, y = position or (0.0, 0.0)
        measured = placed.mount.only(("height_m", "pitch", "roll"))
        mount = replace(measured, yaw=0.0, x_m=x, y_m=y)
        assumed = (
            f"the board lies flat on the vehicle's ground; the camera looks straight ahead (yaw 0), at x {x:g} m, y {y:g} m"
        )
        return replace(placed, mount=mount, assumed=assumed)
    x, y, heading = place
    cos, sin = math.cos(heading), math.sin(heading)
    turned = local @ np.array([[cos, sin], [-sin, cos]])
    both = [from_points(intrinsics, uv, (x, y) + side * turned, tape_sigma_m=0.0, drop=False) for side in (1, -1)]
    nearest = min(both, key=lambda one: math.hypot(one.mount.x_m, one.mount.y_m))
    assumed = (
        f"the board lies flat on the vehicle's ground, its middle at x {x:g} m, y {y:g} m, heading {heading:g} rad, exactly; "
        "of both ways round, the camera is nearer the vehicle"
    )
    return replace(nearest, assumed=assumed)
