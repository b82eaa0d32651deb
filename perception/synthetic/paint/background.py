"""What lies beyond the ground: sky, clouds, hills, woods and a village."""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

from perception.synthetic.chance import Purpose, seed_rng
from perception.synthetic.paint.light import Light, light_of
from perception.synthetic.types import Image, Single
from perception.synthetic.view import View

# The background is a panorama about the vehicle, drawn once. Heading 0 is in the middle, the horizon at row ABOVE.
SCALE = 1000.0  # pixels per radian
WIDTH, ABOVE, BELOW = 3000, 640, 160  # pixels


def paint_background(view: View, image: Image) -> None:
    """Fill the rows above the ground."""
    camera, height = view.camera, min(view.first_row + 1, view.camera.intrinsics.height)
    horizon = camera.intrinsics.cy - camera.intrinsics.fy * math.tan(camera.mount.pitch - math.atan(view.slope))
    zoom = SCALE / camera.intrinsics.fx
    left = WIDTH / 2 - SCALE * view.heading - zoom * camera.intrinsics.cx
    image[:height] = cv2.warpAffine(
        _panorama(view.scene.seed, light_of(view.scene)),
        np.array([[zoom, 0.0, left], [0.0, zoom, ABOVE - zoom * horizon]]),
        (camera.intrinsics.width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


@lru_cache(maxsize=4)
def _panorama(seed: int, light: Light) -> Image:
    """uint8 ``(ABOVE + BELOW, WIDTH, 3)``."""
    rng = seed_rng(seed, Purpose.PANORAMA)
    image = _sky(rng, light)
    _paint_hills(image, rng, light)
    _paint_village(image, rng, light)
    haze = np.asarray(light.haze)
    fields = 0.5 * np.array([58.0, 120.0, 104.0]) * light.tint + 0.5 * haze
    image[ABOVE:] = haze * 0.6 if light.headlights else fields
    return cv2.GaussianBlur(np.clip(image, 0, 255).astype(np.uint8), (0, 0), 0.8).astype(np.uint8)


def _sky(rng: np.random.Generator, light: Light) -> Single:
    height = ABOVE + BELOW
    up = np.clip((ABOVE - np.arange(height)) / ABOVE, 0, 1)[:, None, None] ** 0.7
    sky = np.asarray(light.zenith) * up + np.asarray(light.horizon) * (1 - up)
    image = sky.repeat(WIDTH, axis=1).astype(np.float32)
    # Clouds flatten and thin out towards the horizon.
    clouds = _cloudy(rng, ABOVE, 120, 4)
    cover = np.clip((clouds - 0.35) / 1.3, 0, 1) * np.clip(up[:ABOVE, :, 0] * 2.2, 0, 1) * 0.85
    image[:ABOVE] += cover[..., None] * (np.asarray(light.cloud, np.float32) - image[:ABOVE])
    return image


def _paint_hills(image: Single, rng: np.random.Generator, light: Light) -> None:
    """Four ranges, the farthest and tallest first: two of hills, two of woods."""
    rows, haze = np.arange(len(image))[:, None], np.asarray(light.haze)
    green = np.array([62.0, 98.0, 84.0]) * light.tint
    for rank, (tall, cell, fade) in enumerate([(46, 420, 0.78), (30, 260, 0.6), (16, 24, 0.42), (9, 10, 0.3)]):
        ridge = _cloudy(rng, 8, cell, 4 if rank < 2 else 3)[4]
        top = ABOVE - np.maximum(tall * (1.0 + 0.45 * ridge), 2)
        colour = (1 - fade) * green * (1.0 - 0.1 * rank) + fade * haze
        image[rows >= top[None, :]] = haze * 0.45 if light.headlights else colour


def _paint_village(image: Single, rng: np.random.Generator, light: Light) -> None:
    haze = np.asarray(light.haze)
    for _ in range(26):
        # Houses stand in groups around a few azimuths.
        u = int(rng.choice([500, 1320, 1900, 2500]) + rng.normal(0, 70))
        wide, tall = int(rng.integers(9, 26)), int(rng.integers(5, 12))
        top = ABOVE - tall
        wall = 0.5 * np.asarray(rng.choice([[190, 200, 208], [150, 170, 190], [170, 176, 178]])) * light.tint + 0.5 * haze
        roof = 0.6 * np.asarray(rng.choice([[60, 70, 140], [80, 80, 95], [70, 75, 110]])) * light.tint + 0.4 * haze
        if light.headlights:
            wall, roof = haze * 0.7, haze * 0.5
        gable = np.array([[u - 1, top], [u + wide, top], [u + wide // 2, top - wide // 3]])
        cv2.rectangle(image, (u, top), (u + wide, ABOVE), wall.tolist(), -1)
        cv2.fillPoly(image, [gable], roof.tolist(), cv2.LINE_AA)
        if light.lamps:
            window = u + wide // 3
            cv2.rectangle(image, (window, top + 2), (window + 2, top + 4), (120, 200, 235), -1)


def _cloudy(rng: np.random.Generator, height: int, cell: int, octaves: int) -> Single:
    """float32 ``(height, WIDTH)``: smooth noise of unit deviation, its cells up to ``cell`` pixels wide."""
    total = np.zeros((height, WIDTH), np.float32)
    for octave in range(octaves):
        step = max(cell >> octave, 2)
        coarse = rng.standard_normal((height // step + 3, WIDTH // (2 * step) + 3)).astype(np.float32)
        total += np.float32(1.8**-octave) * cv2.resize(coarse, (WIDTH, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(total / total.std(), np.float32)
