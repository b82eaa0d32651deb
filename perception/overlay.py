"""Draws a result on its frame."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.freespace import Distance, Freespace
from perception.painting import EGO_COLOUR, OTHER_COLOUR, paint

if TYPE_CHECKING:
    from perception.metres import Metres

INSET_ROOM = (0.3, 0.55)  # of the picture's width and height
LEAST_INSET = 120  # pixels high: in a lower one nothing could be made out


def draw(image: NDArray[np.uint8], result: Freespace, metres: Metres | None = None) -> NDArray[np.uint8]:
    """A copy of ``image`` uint8 ``(H, W, 3)`` BGR with the polygons filled and outlined and a line of text.

    The region the vehicle stands on is green, others are amber; an invalid result draws no region and says so.

    Args:
        image: the frame, or the frame resized: then the polygons are to be those of that size.
        metres: of the camera, for a view from above in the top-right corner.
    """
    canvas: NDArray[np.uint8] = image.copy()
    regions = [(p.rings, EGO_COLOUR if p.ego else OTHER_COLOUR) for p in result.polygons]
    paint(canvas, regions, max(1, round(image.shape[0] / 360)))
    if metres is not None:
        inset(canvas, image, result, metres)
    label(canvas, caption(result))
    return canvas


def inset(canvas: NDArray[np.uint8], image: NDArray[np.uint8], result: Freespace, metres: Metres) -> None:
    """Put the view of ``image`` from above into the top-right corner of ``canvas``, unless that is too small for it."""
    height, width = image.shape[:2]
    room = round(INSET_ROOM[0] * width), round(INSET_ROOM[1] * height)
    if room[1] < LEAST_INSET:
        return
    from perception.birdseye import birdseye

    view = birdseye(metres, (width, height), room).draw(image, result)
    rows, columns = view.shape[:2]
    margin = round(height / 60)
    top, left = margin, width - columns - margin
    canvas[top : top + rows, left : left + columns] = view
    cv2.rectangle(canvas, (left - 1, top - 1), (left + columns, top + rows), (200, 200, 200), 1)


def caption(result: Freespace) -> str:
    time_s = result.stamp_ns / 1e9
    if not result.valid:
        why = ", ".join(cause.code.value for cause in result.causes)
        return f"{time_s:8.2f} s  NOT VALID ({result.state}{': ' if why else ''}{why})"
    ground = f"  ahead {distance(result.ground.ahead)}" if result.ground else ""
    return f"{time_s:8.2f} s  {result.latency_ms.get('total', 0.0):5.1f} ms  {result.backend}{ground}"


def distance(ahead: Distance | None) -> str:
    """A distance in words, such as ``19.3 m (16.9 to 22.5)``."""
    if ahead is None:
        return "not seen"
    if math.isinf(ahead.far_m):
        return f"{ahead.m:.1f} m ({ahead.near_m:.1f} or more)"
    return f"{ahead.m:.1f} m ({ahead.near_m:.1f} to {ahead.far_m:.1f})"


def label(canvas: NDArray[np.uint8], text: str) -> None:
    """White text on a dark strip in the top-left corner; images too small to read it stay as they are."""
    scale = canvas.shape[0] / 720 * 0.8
    if scale < 0.2:
        return
    font, thickness, margin = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(1.6 * scale)), round(10 * scale)
    (width, height), baseline = cv2.getTextSize(text, font, scale, thickness)
    strip = canvas[: height + baseline + 2 * margin, : width + 2 * margin]
    strip //= 3
    cv2.putText(canvas, text, (margin, height + margin), font, scale, (255, 255, 255), thickness, cv2.LINE_AA)
