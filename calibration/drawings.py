"""Pictures of a calibration: what the views cover, straight lines before and after, and what a live camera still wants."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.boards import Board, View, on_grid
from calibration.camera import Intrinsics
from calibration.intrinsics import Calibration, border

Array = NDArray[np.float64]
Image = NDArray[np.uint8]

PAPER, SEEN, INK, DROPPED = (250, 250, 250), (226, 238, 226), (60, 60, 60), (200, 0, 200)  # BGR
TAKEN, GOOD, BAD = (200, 160, 60), (60, 200, 60), (60, 60, 230)
ARROW = 20.0  # times its length
WIDEST = np.radians(60.0)  # off the axis, in an undistorted picture: beyond it a flat picture is mostly stretched border
SHIFT = 4  # binary places of pixels that are drawn to


def coverage_picture(calibration: Calibration) -> Image:
    """uint8 ``(height, width, 3)`` BGR: the corners of all views over the image's area.

    Covered parts are tinted. Each used corner is a dot, blue to red by its view's error, with an arrow of its residual
    `ARROW` times as long; crosses are the corners of views that were left out.
    """
    k = calibration.intrinsics
    unit = max(1, round(k.width / 640))
    canvas: Image = np.full((k.height, k.width, 3), PAPER, np.uint8)
    for fit in calibration.fits:
        hull = cv2.convexHull(fit.view.pixels.astype(np.float32)).astype(np.float64)
        cv2.fillConvexPoly(canvas, fixed(hull), SEEN, cv2.LINE_AA, SHIFT)
    for view in calibration.left_out:
        for point in view.pixels:
            cv2.drawMarker(canvas, whole(point), DROPPED, cv2.MARKER_TILTED_CROSS, 5 * unit, unit)
    most = max(fit.rms_px for fit in calibration.fits)
    for fit in calibration.fits:
        shade = np.full((1, 1), round(255 * fit.rms_px / max(most, 1e-12)), np.uint8)
        colour = tuple(int(c) for c in cv2.applyColorMap(shade, cv2.COLORMAP_TURBO)[0, 0])
        for point, residual in zip(fit.view.pixels, fit.residuals, strict=True):
            cv2.line(canvas, whole(point), whole(point + ARROW * residual), colour, unit, cv2.LINE_AA)
            cv2.circle(canvas, whole(point), 2 * unit, colour, -1, cv2.LINE_AA)
    write(
        canvas,
        [
            f"{len(calibration.fits)} views, RMS {calibration.rms_px:.2f} px, {calibration.coverage:.0%} of the image covered",
            f"dots: corners, blue to red 0 to {most:.2f} px; arrows: residuals, {ARROW:.0f} times as long; crosses: left out",
        ],
        INK,
    )
    return canvas


def without_distortion(k: Intrinsics) -> Intrinsics:
    """A pinhole camera without distortion that shows what ``k`` shows, up to `WIDEST` off the axis, in a picture as large."""
    edge = border(k)
    rays = k.rays(edge)
    inside = np.isfinite(rays).all(axis=1) & (rays[:, 2] > np.cos(WIDEST))
    reach = np.full(2, np.tan(WIDEST))  # along x and y
    if inside.any():
        flat = np.abs(rays[inside, :2] / rays[inside, 2:])
        reach = np.minimum(reach, flat.max(axis=0)) if inside.all() else reach
    focal = min(max(k.cx, k.width - 1 - k.cx) / reach[0], max(k.cy, k.height - 1 - k.cy) / reach[1])
    return Intrinsics(focal, focal, (k.width - 1) / 2, (k.height - 1) / 2, k.width, k.height, name=k.name)


def undistort(image: Image, k: Intrinsics, flat: Intrinsics) -> Image:
    """The picture that ``flat`` takes where ``k`` took ``image``; black where that sees nothing."""
    u, v = np.meshgrid(np.arange(flat.width), np.arange(flat.height))
    pixels = k.project(flat.rays(np.stack([u.ravel(), v.ravel()], axis=1)))
    where = np.nan_to_num(pixels, nan=-1e4).reshape(flat.height, flat.width, 2).astype(np.float32)
    return np.asarray(
        cv2.remap(image, where[..., 0], where[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT), np.uint8
    )


def undistortion_preview(board: Board, view: View, image: Image, k: Intrinsics) -> Image:
    """uint8 ``(height, 2 * width, 3)`` BGR: a view as it is and without distortion, side by side.

    In both, straight lines join the ends of the board's rows and columns: on the left corners lie beside them, on the right on
    them if the calibration is right.
    """
    flat = without_distortion(k)
    before = image[: k.height, : k.width].copy()
    after = undistort(before, k, flat)
    for canvas, pixels in ((before, view.pixels), (after, flat.project(k.rays(view.pixels)))):
        draw_rows(canvas, board, view, pixels)
    write(before, ["as taken"], (255, 255, 255))
    write(after, ["without distortion"], (255, 255, 255))
    return np.hstack([before, after])


def draw_rows(canvas: Image, board: Board, view: View, pixels: Array) -> None:
    """Straight lines from end to end of each row and column of corners, and the corners."""
    unit = max(1, round(canvas.shape[1] / 1280))
    grid = on_grid(board, pixels, view.ids)
    for line in [*grid, *grid.transpose(1, 0, 2)]:
        ends = line[np.isfinite(line).all(axis=1)]
        if len(ends) > 2:
            cv2.polylines(canvas, [fixed(ends[[0, -1]])], False, GOOD, unit, cv2.LINE_AA, SHIFT)
    for point in pixels[np.isfinite(pixels).all(axis=1)]:
        cv2.circle(canvas, whole(point), 2 * unit, BAD, -1, cv2.LINE_AA)


def guide_picture(image: Image, taken: Sequence[View], view: View, wanted: Sequence[str]) -> Image:
    """A copy of ``image`` with the board seen in it, where boards were taken before, and what to do next."""
    canvas: Image = image.copy()
    for other in taken:
        hull = cv2.convexHull(other.pixels.astype(np.float32)).astype(np.float64)
        cv2.polylines(canvas, [fixed(hull)], True, TAKEN, 1, cv2.LINE_AA, SHIFT)
    for point in view.pixels:
        cv2.circle(canvas, whole(point), max(2, round(canvas.shape[1] / 320)), BAD if view.trouble else GOOD, -1, cv2.LINE_AA)
    now = view.trouble or "board seen"
    write(canvas, [f"{len(taken)} views; {now}", *(wanted or ["enough: q ends"])], (255, 255, 255))
    return canvas


def write(canvas: Image, lines: Sequence[str], colour: tuple[int, int, int]) -> None:
    """Lines of text in the top-left corner, on a strip that lets them be read."""
    scale = max(0.4, canvas.shape[1] / 1280 * 0.7)
    step = round(34 * scale)
    strip = canvas[: step * len(lines) + step // 2]
    strip[...] = strip // 2 + (0 if sum(colour) > 380 else 127)
    for i, line in enumerate(lines):
        place = (round(12 * scale), round((i + 1) * step))
        cv2.putText(canvas, line, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, max(1, round(1.6 * scale)), cv2.LINE_AA)


def fixed(points: Array) -> NDArray[np.int32]:
    """Pixels as OpenCV draws them between whole ones."""
    return np.asarray(np.round(points * (1 << SHIFT)), np.int32)


def whole(point: Array) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))
