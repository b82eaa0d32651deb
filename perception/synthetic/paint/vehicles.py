"""Vehicles and their shadows."""

from __future__ import annotations

import math

import cv2
import numpy as np

from perception.synthetic.paint.bodywork import body
from perception.synthetic.paint.canvas import dim, fill_polygon
from perception.synthetic.paint.lamps import Lamp
from perception.synthetic.paint.light import light_of
from perception.synthetic.shapes import SHAPES
from perception.synthetic.sightings import Sighting
from perception.synthetic.types import Array, Image
from perception.synthetic.view import View


def paint_vehicle(view: View, image: Image, sighting: Sighting) -> list[Lamp]:
    """Paint a vehicle with its shadow.

    Returns:
        Its lit lamps.
    """
    camera, light, vehicle = view.camera, light_of(view.scene), sighting.vehicle
    rows = min(camera.intrinsics.height, math.floor(sighting.limit) + 1)
    outlines = np.concatenate(sighting.outlines)
    low, high = outlines.min(axis=0), outlines.max(axis=0)
    if rows <= 0 or high[0] < -1 or low[0] > camera.intrinsics.width or low[1] > rows:
        return []

    def pixels(points: Array) -> Array:
        return camera.project(view.base_from_road(sighting.pose.on_road(points)))

    _darken(image[: min(camera.intrinsics.height, rows + 8)], pixels(_shadow(vehicle.kind)), 0.5 if light.lamps else 0.75)
    pieces = body(vehicle.kind, vehicle.colour)
    ends = np.cumsum([len(piece.points) for piece in pieces])
    outlines_of_pieces = np.split(pixels(np.concatenate([piece.points for piece in pieces])), ends[:-1])
    fade = light.faded(sighting.ahead)
    lamps: list[Lamp] = []
    for piece, outline in zip(pieces, outlines_of_pieces, strict=True):
        (au, av), (bu, bv), (cu, cv) = outline[:3]
        if (bu - au) * (cv - av) - (cu - au) * (bv - av) >= 0:  # v points down: seen from behind
            continue
        blue, green, red = np.asarray(piece.colour) * light.tint * (1 - fade) + np.asarray(light.haze) * fade
        fill_polygon(image[:rows], outline, (blue, green, red))
        if piece.light and light.lamps:
            radius = 0.5 * float(np.sqrt(np.prod(np.ptp(outline, axis=0))))
            lamps.append(Lamp(outline.mean(axis=0), radius, piece.light, rows, sighting.ahead))
    return lamps


def _shadow(kind: str) -> Array:
    """``(4, 3)`` metres in the vehicle's frame, on the ground: somewhat larger than the vehicle."""
    rear, front, half, _ = SHAPES[kind].lower.bottom
    back, fore, side = rear - 0.3, front + 0.3, half + 0.3
    return np.array([[back, -side, 0.0], [fore, -side, 0.0], [fore, side, 0.0], [back, side, 0.0]])


def _darken(image: Image, outline: Array, share: float) -> None:
    """Darken what lies within an outline, pixels, by ``share``, softly."""
    spread = min(max(0.04 * float(np.ptp(outline[:, 0])), 0.6), 0.02 * image.shape[1])
    pad = 3 * spread
    height, width = image.shape[:2]
    (u0, v0), (u1, v1) = np.floor(outline.min(axis=0) - pad), np.ceil(outline.max(axis=0) + pad) + 1
    u0, v0, u1, v1 = max(int(u0), 0), max(int(v0), 0), min(int(u1), width), min(int(v1), height)
    if u0 >= u1 or v0 >= v1:
        return
    shade = np.zeros((v1 - v0, u1 - u0), np.uint8)
    fill_polygon(shade, outline - [u0, v0], round(255 * share))
    blurred = cv2.GaussianBlur(shade, (0, 0), spread, sigmaY=max(spread / 3, 0.5))
    dim(image[v0:v1, u0:u1], np.asarray(255 - blurred, np.uint8))
