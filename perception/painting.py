"""How regions look in every picture: filled, holes spared, and outlined."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.freespace import Ring
from perception.polygons import FILL_SHIFT, fill

Colour = tuple[int, int, int]

EGO_COLOUR = (80, 200, 60)  # BGR
OTHER_COLOUR = (40, 180, 230)
OPACITY = 0.4


def paint(canvas: NDArray[np.uint8], regions: Sequence[tuple[list[Ring], Colour]], thickness: int) -> None:
    """Fill and outline regions on ``canvas``, uint8 ``(H, W, 3)``.

    Args:
        regions: the rings of each, exterior first, pixels, float ``(n, 2)``; they may lie beyond the canvas.
        thickness: of the outlines, pixels.
    """
    if not regions:
        return
    corners = np.concatenate([rings[0] for rings, _ in regions])
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
    right, bottom = np.maximum(np.ceil(corners.max(axis=0)).astype(int) + 1, 0)
    window = canvas[top:bottom, left:right]
    if window.size:
        painted = window.copy()
        for rings, colour in regions:
            fill(painted, [ring - (left, top) for ring in rings], colour)
        cv2.addWeighted(painted, OPACITY, window, 1 - OPACITY, 0, dst=painted)
        window[...] = painted
    for rings, colour in regions:
        lines(canvas, rings, colour, thickness)


def lines(canvas: NDArray[np.uint8], rings: Sequence[Ring], colour: Colour, thickness: int, closed: bool = True) -> None:
    """Smooth lines through the points of ``rings``, pixels."""
    fixed = [np.round(ring * (1 << FILL_SHIFT)).astype(np.int32) for ring in rings]
    cv2.polylines(canvas, fixed, closed, colour, thickness, cv2.LINE_AA, FILL_SHIFT)
