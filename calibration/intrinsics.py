"""A camera's intrinsics from views of a board, as in Zhang 2000, "A Flexible New Technique for Camera Calibration".

Plain pinhole cameras are OpenCV's work. Rational ones go on from there by `calibration.bundle`, which keeps to distortions that
do not fold back where corners are seen, and fisheye ones are its work alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.boards import Board, View
from calibration.bundle import Seen, derivatives, fit_fisheye, fit_together
from calibration.camera import PARAMETERS, DistortionModel, Intrinsics
from calibration.covariance import Covariance

Array = NDArray[np.float64]

MODELS: dict[str, DistortionModel] = {"pinhole": "plumb_bob", "rational": "rational_polynomial", "fisheye": "equidistant"}
FEWEST_VIEWS = 3
SIZE_SLACK_PX = 2  # a picture that is larger or smaller by so little was cut otherwise, not taken otherwise
OUTLIER = 3.0  # times the median view's error, above which a view does not belong to the others
OUTLIER_PX = 0.3  # and no view is dropped for an error below this
ENOUGH_VIEWS = 10
LEAST_TILT = 0.35  # radians between the two boards that differ most
ENOUGH_COVERAGE = 0.6  # of the image
CORNER_PART = 0.2  # of the image's width and height: what counts as its corner
WORST_RMS_PX = 1.0
WORST_FOCAL = 0.01  # relative standard deviation


@dataclass(frozen=True, eq=False)
class Fit:
    """A used view and how well the camera explains it.

    Attributes:
        view: it.
        seen: its corners and the board's pose.
        residuals: float64 ``(n, 2)``: seen minus projected, pixels.
    """

    view: View
    seen: Seen
    residuals: Array

    @property
    def rms_px(self) -> float:
        """Root of the mean squared distance between seen and projected corners, pixels."""
        return rms(self.residuals)


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was found out about a camera.

    Attributes:
        intrinsics: with ``sigma``, one standard deviation of each parameter, and ``sigma["reprojection_px"]``.
        fits: the views it rests on.
        left_out: the others, each with its ``trouble``.
        coverage: the part of the image in which a board was seen, 0 to 1.
        warnings: sentences about what makes the numbers less good than they could be.
    """

    intrinsics: Intrinsics
    fits: list[Fit]
    left_out: list[View]
    coverage: float
    warnings: list[str]

    @property
    def rms_px(self) -> float:
        """Root of the mean squared distance between seen and projected corners of all used views, pixels."""
        return rms(np.concatenate([fit.residuals for fit in self.fits]))


def calibrate(board: Board, views: Sequence[View], model: str = "pinhole", name: str = "camera") -> Calibration:
    """Find the camera that explains the views best.

    One view after the other is dropped, the worst first, as long as its error exceeds `OUTLIER` times the median of all
    views' errors (and `OUTLIER_PX`), and `FEWEST_VIEWS` are left.

    Args:
        model: ``pinhole`` (plumb_bob), ``rational`` (rational_polynomial) or ``fisheye`` (equidistant).

    Raises:
        ValueError: the model is unknown, fewer than `FEWEST_VIEWS` views can be used, or no camera explains them.
    """
    if model not in MODELS:
        raise ValueError(f"model {model!r}: wanted one of {', '.join(MODELS)}")
    size = common_size(views)
    views = [check_size(view, size) for view in views]
    used, left_out = [v for v in views if not v.trouble], [v for v in views if v.trouble]
    while True:
        if len(used) < FEWEST_VIEWS:
            reasons = list(dict.fromkeys(f"{v.name}: {v.trouble}" for v in left_out))
            told = "; ".join(reasons[:3]) + ("; …" if len(reasons) > 3 else "")
            raise ValueError(
                f"{len(used)} of {len(views)} pictures can be used, {FEWEST_VIEWS} are the least and 15 are good"
                + (f" ({told}); are pattern and size right?" if told else "")
            )
        intrinsics, fits = solve(board, used, size, MODELS[model])
        errors = [fit.rms_px for fit in fits]
        worst, usual = int(np.argmax(errors)), float(np.median(errors))
        if errors[worst] <= max(OUTLIER * usual, OUTLIER_PX) or len(used) == FEWEST_VIEWS:
            break
        dropped = used.pop(worst)
        left_out.append(
            replace(dropped, trouble=f"does not fit: error {errors[worst]:.2f} px, the usual one is {usual:.2f} px")
        )
    known = uncertainty(intrinsics, fits)
    residual = rms(np.concatenate([fit.residuals for fit in fits]))
    intrinsics = replace(intrinsics, name=name, sigma={**known.sigma, "reprojection_px": residual}, covariance=known)
    seen = covered(intrinsics, fits)
    return Calibration(intrinsics, fits, left_out, float(seen.mean()), doubts(intrinsics, fits, seen))


def common_size(views: Sequence[View]) -> tuple[int, int]:
    """The picture size that most views share, the first of equals. Raises ValueError: there are no views."""
    if not views:
        raise ValueError("no pictures to calibrate with")
    sizes = [view.size for view in views]
    return max(dict.fromkeys(sizes), key=sizes.count)


def check_size(view: View, size: tuple[int, int]) -> View:
    """The view, or the view with its trouble where its picture has another size than the camera's.

    A difference of a pixel or two comes from how a picture was cut, commonly at its right and bottom: pixels stay where they
    are, counted from the top left. Whether a picture of quite another size was cut or scaled nobody can know.
    """
    if view.trouble or max(abs(a - b) for a, b in zip(view.size, size, strict=True)) <= SIZE_SLACK_PX:
        return view
    return replace(view, trouble=f"is {view.size[0]}x{view.size[1]}, most are {size[0]}x{size[1]}")


def solve(board: Board, views: Sequence[View], size: tuple[int, int], model: DistortionModel) -> tuple[Intrinsics, list[Fit]]:
    """Intrinsics and poses of least squared residuals. Raises ValueError: there are none."""
    points, pixels = [board.points[view.ids] for view in views], [view.pixels for view in views]
    try:
        if model == "equidistant":
            camera, seen = fit_fisheye(points, pixels, size)
        else:
            camera, seen = fit_pinhole(points, pixels, size)
            if model == "rational_polynomial":
                camera, seen = fit_together(replace(camera, distortion_model=model), seen)
    except (cv2.error, ValueError) as error:
        why = error.err if isinstance(error, cv2.error) else error
        raise ValueError(
            f"no camera of model {model} explains these {len(views)} views ({why}): take more, tilted, or try another model"
        ) from error
    fits = [Fit(view, s, s.residuals(camera)) for view, s in zip(views, seen, strict=True)]
    for fit in fits:
        if not np.isfinite(fit.residuals).all():
            raise ValueError(f"{fit.view.name}: {model} cannot explain what is seen there; leave it out, or try another model")
    return camera, fits


def fit_pinhole(points: Sequence[Array], pixels: Sequence[Array], size: tuple[int, int]) -> tuple[Intrinsics, list[Seen]]:
    """A plumb_bob camera and the boards' poses; arguments as `calibration.bundle.fit_fisheye`. Raises ValueError, cv2.error."""
    _, matrix, bends, rvecs, tvecs = cv2.calibrateCamera(
        [p.astype(np.float32) for p in points],
        [p.astype(np.float32) for p in pixels],
        size,
        np.eye(3),
        np.zeros(5),
        criteria=(cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 200, 1e-12),
    )
    fx, fy, cx, cy = (float(matrix[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    camera = Intrinsics(fx, fy, cx, cy, *size, "plumb_bob", tuple(float(value) for value in np.ravel(bends)[:5]))
    seen = []
    for p, q, rvec, tvec in zip(points, pixels, rvecs, tvecs, strict=True):
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(rvec)[0], np.ravel(tvec)
        seen.append(Seen(p, q, pose))
    return camera, seen


def uncertainty(camera: Intrinsics, fits: Sequence[Fit]) -> Covariance:
    """Of the parameters' errors; those that the views do not determine are missing.

    Two estimates of each standard deviation, the larger of which counts. The textbook's, ``s^2 (J^T J)^-1`` with the poses
    eliminated, which also says how the errors go together, takes every corner's error for independent of all others. It is
    far too small where whole views err together, as with a board that is not flat or a shutter that rolls. So what the
    numbers would have been without each of the views is asked, too: the jackknife over views in its linear form (Bell &
    McCaffrey 2002, "Bias Reduction in Standard Errors for Linear Regression with Multi-Stage Samples"; also called CR3).
    """
    names = PARAMETERS[camera.distortion_model]
    informations, gradients, squares, count = [], [], 0.0, 0
    for fit, (by_camera, by_pose) in zip(fits, derivatives(camera, [fit.seen for fit in fits]), strict=True):
        reduced = by_camera - by_pose @ np.linalg.lstsq(by_pose, by_camera, rcond=None)[0]
        residuals = fit.residuals.ravel()
        informations.append(reduced.T @ reduced)
        gradients.append(reduced.T @ residuals)
        squares += float(residuals @ residuals)
        count += residuals.size
    information = np.sum(informations, axis=0)
    scale = np.sqrt(np.diag(information))  # pixels and powers of tangents differ by many orders of magnitude
    if not (scale > 0).all():
        return Covariance()
    information = information / np.outer(scale, scale)
    freedom = max(1, count - len(names) - 6 * len(fits))
    try:
        textbook = np.linalg.inv(information) * squares / freedom
        moves = [
            np.linalg.solve(information - part / np.outer(scale, scale), gradient / scale)
            for part, gradient in zip(informations, gradients, strict=True)
        ]
    except np.linalg.LinAlgError:
        return Covariance()
    corners = np.diag(textbook)
    views = (len(fits) - 1) / len(fits) * np.square(moves).sum(axis=0)
    known = np.flatnonzero(np.isfinite(views) & np.isfinite(corners) & (corners > 0))
    more = np.sqrt(np.maximum(1.0, views[known] / corners[known])) / scale[known]
    return Covariance.of([names[i] for i in known], textbook[np.ix_(known, known)] * np.outer(more, more))


def covered(intrinsics: Intrinsics, fits: Sequence[Fit]) -> NDArray[np.bool_]:
    """``(90, 160)``: the image in coarse cells; True where the hull of a view's corners lies."""
    cells = np.array([160, 90])
    scale = cells / (intrinsics.width, intrinsics.height)
    mask = np.zeros((cells[1], cells[0]), np.uint8)
    for fit in fits:
        hull = cv2.convexHull(((fit.view.pixels + 0.5) * scale - 0.5).astype(np.float32))
        cv2.fillConvexPoly(mask, np.round(hull).astype(np.int32), 1)
    return mask.astype(bool)


def doubts(k: Intrinsics, fits: Sequence[Fit], seen: NDArray[np.bool_]) -> list[str]:
    """Sentences about what makes the numbers less good than they could be, and what to do about it."""
    said = []
    if len(fits) < ENOUGH_VIEWS:
        said.append(f"only {len(fits)} views: take 15 or more")
    if (tilt := spread_of_tilt(fits)) < LEAST_TILT:
        said.append(
            f"the boards differ in tilt by {np.degrees(tilt):.0f} degrees at most, so that a long lens far away looks like a "
            "short one nearby: tilt the board by 30 degrees and more, to all sides"
        )
    focal = max(k.sigma.get("fx", np.inf) / k.fx, k.sigma.get("fy", np.inf) / k.fy)
    if not np.isfinite(focal):
        said.append("the views do not determine all parameters: take more, at other tilts and distances")
    elif focal > WORST_FOCAL:
        said.append(
            f"the focal length is known to {focal:.1%} only: take more views, nearer and tilted, of a flat and stiff board"
        )
    if seen.mean() < ENOUGH_COVERAGE:
        said.append(f"boards cover {seen.mean():.0%} of the image: take views in the rest of it")
    if empty := empty_corners(seen):
        said.append(f"no board was seen in the {', '.join(empty)} of the image: the distortion there is guessed")
    if k.sigma["reprojection_px"] > WORST_RMS_PX:
        said.append(
            f"the corners are {k.sigma['reprojection_px']:.2f} px off where they should be: is the board flat, and were board "
            "and camera at rest?"
        )
    lost = np.isnan(k.rays(border(k))).any(axis=1).mean()
    if lost > 0:
        said.append(
            f"the distortion folds back inside the image: {lost:.0%} of its border has no direction (beyond "
            f"{np.degrees(k.widest):.0f} degrees off the axis); take views there, or use --model fisheye"
        )
    return said


def spread_of_tilt(fits: Sequence[Fit]) -> float:
    """The largest angle between two boards' planes, radians."""
    normals = np.array([fit.seen.camera_from_board[:3, 2] for fit in fits])
    return float(np.arccos(np.clip((normals @ normals.T).min(), -1, 1)))


def empty_corners(seen: NDArray[np.bool_]) -> list[str]:
    """Which corners of the image show no board."""
    h, w = (round(CORNER_PART * n) for n in seen.shape)
    parts = {"top left": seen[:h, :w], "top right": seen[:h, -w:], "bottom left": seen[-h:, :w], "bottom right": seen[-h:, -w:]}
    return [name for name, part in parts.items() if not part.any()]


def border(k: Intrinsics) -> Array:
    """``(n, 2)``: pixels around the image's border."""
    u, v = np.linspace(0, k.width - 1, 33), np.linspace(0, k.height - 1, 33)
    sides = [(u, 0 * u), (u, 0 * u + k.height - 1), (0 * v, v), (0 * v + k.width - 1, v)]
    return np.concatenate([np.stack(side, axis=1) for side in sides])


def rms(residuals: Array) -> float:
    return float(np.sqrt(np.square(residuals).sum(axis=1).mean()))
