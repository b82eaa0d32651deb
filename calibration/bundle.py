"""A camera and the poses of boards before it, fitted together to the corners seen, and the derivatives for that.

OpenCV's ``fisheye.calibrate`` diverges where boards are seen far off the axis, and knows nothing beyond 90 degrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.camera import Intrinsics

Array = NDArray[np.float64]

STEP = 1e-6  # of a parameter, for the difference that stands for a derivative
ROUNDS = 60  # of Levenberg's and Marquardt's method at most
DONE = 1e-6  # relative: a round that gains less is the last
FOCAL_GUESSES = np.geomspace(0.15, 3.0, 16)  # of the longer side of the image


@dataclass(frozen=True, eq=False)
class Seen:
    """One view's corners and the board's pose.

    Attributes:
        points: float64 ``(n, 3)`` in the board's frame, metres.
        pixels: float64 ``(n, 2)`` where they were seen.
        camera_from_board: float64 ``(4, 4)``.
    """

    points: Array
    pixels: Array
    camera_from_board: Array

    @property
    def in_camera(self) -> Array:
        """float64 ``(n, 3)``: the points in the camera's optical frame."""
        return np.asarray(self.points @ self.camera_from_board[:3, :3].T + self.camera_from_board[:3, 3])

    def residuals(self, camera: Intrinsics) -> Array:
        """float64 ``(n, 2)``: seen minus projected, pixels; NaN as `Intrinsics.project`."""
        return self.pixels - camera.project(self.in_camera)


def vector(camera: Intrinsics) -> Array:
    """The parameters in the order of `PARAMETERS`."""
    return np.array([camera.fx, camera.fy, camera.cx, camera.cy, *camera.distortion])


def with_vector(camera: Intrinsics, values: Array) -> Intrinsics:
    """The camera with other parameters. Raises ValueError as `Intrinsics`."""
    fx, fy, cx, cy, *distortion = (float(value) for value in values)
    return replace(camera, fx=fx, fy=fy, cx=cx, cy=cy, distortion=tuple(distortion))


def derivatives(camera: Intrinsics, views: Sequence[Seen]) -> list[tuple[Array, Array]]:
    """For each view, how projected pixels change with the camera, ``(2n, p)`` in the order of `PARAMETERS`, and with the pose,
    ``(2n, 6)``: a small rotation in the camera's frame, then a shift. By central differences of `Intrinsics.project`."""
    points = np.concatenate([seen.in_camera for seen in views])
    by_camera, by_point, values = [], [], vector(camera)
    for i, value in enumerate(values):
        size = STEP * max(1.0, abs(value))
        ahead, behind = (with_vector(camera, np.where(np.arange(len(values)) == i, value + s, values)) for s in (size, -size))
        by_camera.append((ahead.project(points) - behind.project(points)) / (2 * size))
    size = STEP * float(np.linalg.norm(points, axis=1).mean())
    for axis in np.eye(3):
        by_point.append((camera.project(points + size * axis) - camera.project(points - size * axis)) / (2 * size))
    turned = np.stack([np.cross(axis, points) for axis in np.eye(3)], axis=2)  # of a small rotation: axis x point
    shifted = np.stack(by_point, axis=2)
    together = np.concatenate([np.stack(by_camera, axis=2), shifted @ turned, shifted], axis=2)  # (n, 2, p + 6)
    parts = np.split(together, np.cumsum([len(seen.points) for seen in views])[:-1])
    flat = [part.reshape(-1, together.shape[2]) for part in parts]
    return [(part[:, : len(values)], part[:, len(values) :]) for part in flat]


def fit_together(camera: Intrinsics, views: Sequence[Seen]) -> tuple[Intrinsics, list[Seen]]:
    """The camera and poses with the least squared residuals, from a start near them (Levenberg-Marquardt, the poses
    eliminated from each step: Triggs et al. 2000, "Bundle Adjustment - A Modern Synthesis").

    Raises:
        ValueError: a corner cannot be seen by the camera given as a start.
    """
    views, damping = list(views), 1e-3
    error = cost(camera, views)
    if not np.isfinite(error):
        raise ValueError("the start explains none of it")
    for _ in range(ROUNDS):
        slopes = derivatives(camera, views)
        parts = [(*slope, seen.residuals(camera).ravel()) for slope, seen in zip(slopes, views, strict=True)]
        while damping < 1e12:
            moved = step(camera, views, parts, damping)
            gained = error - cost(*moved) if moved else -np.inf
            if moved and gained >= 0:
                camera, views = moved
                break
            damping *= 10
        else:
            break
        error, damping = error - gained, damping / 10
        if gained <= DONE * error:
            break
    return camera, views


def step(
    camera: Intrinsics, views: list[Seen], parts: list[tuple[Array, Array, Array]], damping: float
) -> tuple[Intrinsics, list[Seen]] | None:
    """One damped step from derivatives and residuals; None where it leads nowhere."""
    size = len(vector(camera))
    left, right, solved = np.zeros((size, size)), np.zeros(size), []
    for by_camera, by_pose, residuals in parts:
        own = by_pose.T @ by_pose
        own = own + damping * np.diag(np.diag(own))
        cross = by_pose.T @ by_camera
        back = np.linalg.solve(own, np.column_stack([cross, by_pose.T @ residuals]))
        square = by_camera.T @ by_camera
        left += square + damping * np.diag(np.diag(square)) - cross.T @ back[:, :-1]
        right += by_camera.T @ residuals - cross.T @ back[:, -1]
        solved.append(back)
    try:
        change = np.linalg.solve(left, right)
        moved = with_vector(camera, vector(camera) + change)
    except (np.linalg.LinAlgError, ValueError):
        return None
    return moved, [turn(seen, back[:, -1] - back[:, :-1] @ change) for seen, back in zip(views, solved, strict=True)]


def turn(seen: Seen, change: Array) -> Seen:
    """The view with its board turned in the camera's frame by a Rodrigues vector, then shifted."""
    pose = seen.camera_from_board.copy()
    pose[:3] = cv2.Rodrigues(change[:3])[0] @ pose[:3]
    pose[:3, 3] += change[3:]
    return replace(seen, camera_from_board=pose)


def cost(camera: Intrinsics, views: Sequence[Seen]) -> float:
    """Sum of squared residuals; infinite where a corner cannot be seen."""
    total = sum(float(np.square(seen.residuals(camera)).sum()) for seen in views)
    return total if np.isfinite(total) else float("inf")


def fit_fisheye(points: Sequence[Array], pixels: Sequence[Array], size: tuple[int, int]) -> tuple[Intrinsics, list[Seen]]:
    """An equidistant camera and the boards' poses from nothing but the corners.

    The start is the ideal lens, no distortion, of the focal length at which the boards fit best one by one.

    Args:
        points: ``(n, 3)`` of each view in the board's frame, metres.
        pixels: ``(n, 2)`` where they were seen.
        size: of the image, (width, height).

    Raises:
        ValueError: no focal length explains all views.
    """
    width, height = size
    guesses = []
    for focal in FOCAL_GUESSES * max(size):
        camera = Intrinsics(focal, focal, (width - 1) / 2, (height - 1) / 2, width, height, "equidistant")
        try:
            views = [place(camera, p, q) for p, q in zip(points, pixels, strict=True)]
        except ValueError:
            continue
        guesses.append((cost(camera, views), focal, camera, views))
    if not guesses or not np.isfinite(min(guesses)[0]):
        raise ValueError("no focal length fits")
    _, _, camera, views = min(guesses, key=lambda guess: guess[:2])
    camera, views = fit_together(camera, views)
    placed = [place(camera, seen.points, seen.pixels) for seen in views]  # small boards have two poses that look much alike
    views = [min(pair, key=lambda seen: cost(camera, [seen])) for pair in zip(views, placed, strict=True)]
    return fit_together(camera, views)


def place(camera: Intrinsics, points: Array, pixels: Array) -> Seen:
    """The pose of a flat board, however far off the axis it is seen: looked at by a camera that is turned towards it.

    Raises:
        ValueError: a pixel has no direction, or no pose is found.
    """
    rays = camera.rays(pixels)
    middle = rays.mean(axis=0)
    if not np.isfinite(middle).all():
        raise ValueError("a pixel has no direction")
    towards = middle / np.linalg.norm(middle)
    right = np.cross([0.0, 1.0, 0.0] if abs(towards[1]) < 0.9 else [0.0, 0.0, -1.0], towards)
    right /= np.linalg.norm(right)
    camera_from_turned = np.stack([right, np.cross(towards, right), towards], axis=1)
    turned = rays @ camera_from_turned
    if (turned[:, 2] < 0.05).any():
        raise ValueError("a board that fills more than half of all directions")
    centred = points - points.mean(axis=0)
    try:
        found, rvec, tvec = cv2.solvePnP(
            centred, turned[:, :2] / turned[:, 2:], np.eye(3), np.zeros(4), flags=cv2.SOLVEPNP_IPPE
        )
    except cv2.error as error:
        raise ValueError("no pose") from error
    if not found or not np.isfinite([*rvec, *tvec]).all():
        raise ValueError("no pose")
    pose = np.eye(4)
    pose[:3, :3] = camera_from_turned @ cv2.Rodrigues(rvec)[0]
    pose[:3, 3] = camera_from_turned @ tvec.ravel() - pose[:3, :3] @ points.mean(axis=0)
    return Seen(points, pixels, pose)
