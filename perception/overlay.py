"""Draws a result on its frame."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.freespace import Freespace
from perception.polygons import FILL_SHIFT, fill

EGO_COLOUR = (80, 200, 60)  # BGR
OTHER_COLOUR = (40, 180, 230)
OPACITY = 0.4


def draw(image: NDArray[np.uint8], result: Freespace) -> NDArray[np.uint8]:
    """A copy of ``image`` uint8 ``(H, W, 3)`` BGR with the polygons filled and outlined and a line of text.

    The region the vehicle stands on is green, others are amber; an invalid result draws no region and says so.
    """
    canvas: NDArray[np.uint8] = image.copy()
    if result.polygons:
        corners = np.concatenate([p.exterior for p in result.polygons])
        left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
        right, bottom = np.ceil(corners.max(axis=0)).astype(int) + 1
        window = canvas[top:bottom, left:right]
        painted = window.copy()
        for polygon in result.polygons:
            fill(painted, [r - (left, top) for r in polygon.rings], EGO_COLOUR if polygon.ego else OTHER_COLOUR)
        cv2.addWeighted(painted, OPACITY, window, 1 - OPACITY, 0, dst=painted)
        window[...] = painted
        thickness = max(1, round(image.shape[0] / 360))
        for polygon in result.polygons:
            rings = [np.round(r * (1 << FILL_SHIFT)).astype(np.int32) for r in polygon.rings]
            colour = EGO_COLOUR if polygon.ego else OTHER_COLOUR
            cv2.polylines(canvas, rings, True, colour, thickness, cv2.LINE_AA, FILL_SHIFT)
    label(canvas, caption(result))
    return canvas


def caption(result: Freespace) -> str:
    time_s = result.stamp_ns / 1e9
    if not result.valid:
        why = ", ".join(cause.code.value for cause in result.causes)
        return f"{time_s:8.2f} s  NOT VALID ({result.state}{': ' if why else ''}{why})"
    return f"{time_s:8.2f} s  {result.latency_ms.get('total', 0.0):5.1f} ms  {result.backend}"


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
