"""What the camera adds to a picture: a little blur and noise."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.synthetic.chance import Purpose, seed_rng
from perception.synthetic.paint.light import light_of
from perception.synthetic.types import Image
from perception.synthetic.view import View

SHIFT = 32  # pixels by which the noise of frames differs, at most


def through_sensor(view: View, image: Image) -> Image:
    """uint8 ``(H, W, 3)``: the image as it leaves the camera."""
    scene, (height, width) = view.scene, image.shape[:2]
    noise = _noise(scene.seed, height, width, light_of(scene).grain)
    u, v = seed_rng(scene.seed, Purpose.FRAME_NOISE, round(view.t * 1e6)).integers(0, SHIFT, 2)
    blurred = cv2.GaussianBlur(image, (3, 3), 0.6)
    return np.asarray(cv2.add(blurred, noise[v : v + height, u : u + width], dtype=cv2.CV_8U), np.uint8)


@lru_cache(maxsize=2)
def _noise(seed: int, height: int, width: int, deviation: float) -> NDArray[np.int8]:
    """int8 ``(height + SHIFT, width + SHIFT, 3)``: noise from which each frame cuts its own piece."""
    rng = seed_rng(seed, Purpose.SENSOR_NOISE)
    noise = rng.standard_normal((512, 512, 1), np.float32) + 0.5 * rng.standard_normal((512, 512, 3), np.float32)
    tile = np.clip(np.round(noise * deviation), -127, 127).astype(np.int8)
    repeated = np.tile(tile, (height // 512 + 2, width // 512 + 2, 1))
    return np.array(repeated[: height + SHIFT, : width + SHIFT], np.int8)
