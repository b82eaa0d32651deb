"""What shines: the lamps of other vehicles and the beam of our own headlights."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from perception.synthetic.paint.canvas import dim, placed
from perception.synthetic.scene import Scene
from perception.synthetic.sightings import Sighting
from perception.synthetic.types import Array, Colour, Image, Single


class Lamp(NamedTuple):
    """A lamp that shines.

    Attributes:
        at: its middle, ``(2,)`` pixels.
        radius: pixels.
        colour: of its light.
        rows: the image rows, from the top, in which it shows; a crest hides it below.
        ahead: distance of its vehicle, metres.
    """

    at: Array
    radius: float
    colour: Colour
    rows: int
    ahead: float


def paint_lamps(image: Image, lamps: list[Lamp], sightings: list[Sighting]) -> None:
    """Add the glow of the lamps that no nearer vehicle hides."""
    for lamp in lamps:
        nearer = (outline for sighting in sightings if sighting.ahead < lamp.ahead for outline in sighting.outlines)
        if any(cv2.pointPolygonTest(outline.astype(np.float32), lamp.at.tolist(), False) > 0 for outline in nearer):
            continue
        half = 7 * max(lamp.radius, 0.5)
        place = placed(_glow(), lamp.at, (half, half), (half, half), (image.shape[1], min(image.shape[0], lamp.rows)))
        if place is not None:
            where, glow = place
            image[where] = cv2.add(image[where], cv2.merge([glow * c for c in lamp.colour]), dtype=cv2.CV_8U)


@lru_cache(maxsize=1)
def _glow() -> Single:
    """float32 ``(64, 64)``: a bright middle and a wide, faint halo, 0 to 1."""
    r = np.hypot(*np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64)))
    return np.asarray(np.clip(np.exp(-((r / 0.14) ** 2)) + 0.28 * np.exp(-((r / 0.4) ** 2)) * (1 - r), 0, 1), np.float32)


def dim_to_headlights(image: Image, scene: Scene) -> None:
    """Leave of the picture what the ego vehicle's headlights reach."""
    dim(image, _beam(scene))


@lru_cache(maxsize=4)
def _beam(scene: Scene) -> Image:
    """uint8 ``(H, W)``: 255 in the middle of the beam."""
    camera = scene.camera
    right = (np.arange(camera.intrinsics.width) - camera.intrinsics.cx)[None, :] / camera.intrinsics.fx
    down = (np.arange(camera.intrinsics.height) - camera.intrinsics.cy)[:, None] / camera.intrinsics.fy + camera.mount.pitch
    beam = np.exp(-((np.abs(right - 0.04) / 0.36) ** 2.4)) * 0.8 + 0.2
    # A dipped beam: nothing much above the horizon, and the road at the bumper lies below it.
    dipped = 1 / (1 + np.exp(-(down + 0.035) / 0.02)) * (1 - 0.5 * np.clip((down - 0.14) / 0.3, 0, 1) ** 1.2)
    return np.asarray(np.clip(255 * np.maximum(beam * dipped, 0.2), 0, 255), np.uint8)
