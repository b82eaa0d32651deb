"""Pictures of what stands beside the road: trees, bushes, houses and marker posts."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from perception.synthetic.chance import Purpose, seed_rng
from perception.synthetic.paint.light import Light
from perception.synthetic.types import Array, Image

SIZE = 256  # pixels
PLANTS, HOUSES, POST = range(8), range(8, 10), 10  # indices of the sprites


class Sprite(NamedTuple):
    """A flat picture that stands beside the road.

    Attributes:
        levels: uint8 ``(h, w, 4)`` BGRA, premultiplied, each half the size of the one before.
        width, height: metres.
    """

    levels: tuple[Image, ...]
    width: float
    height: float


@lru_cache(maxsize=4)
def sprites_in(seed: int, light: Light) -> tuple[Sprite, ...]:
    """Six trees, two bushes, two houses and a post."""
    rng = seed_rng(seed, Purpose.SPRITES)
    pictures: list[tuple[Image, float, float]] = []
    for lean in (0.0, 0.1, 0.35, 0.9, 0.0, 1.0):
        crown = np.array([48.0, 118.0, 92.0]) * (0.72 if lean > 0.5 else rng.uniform(0.85, 1.1)) + rng.uniform(-6, 6, 3)
        tall = rng.uniform(7, 12)
        pictures.append((_tree(rng, crown, lean), tall * (0.85 - 0.3 * lean), tall))
    for _ in range(2):  # a bush is the crown of a tree
        bush = _tree(rng, np.array([50.0, 116.0, 98.0]), 0.05)[:190]
        pictures.append((bush, rng.uniform(2, 3.4), rng.uniform(1.3, 2.2)))
    pictures += [(_house(rng, light.lamps), rng.uniform(10, 14), rng.uniform(6.5, 8)) for _ in HOUSES]
    pictures.append((_post(), 0.16, 1.0))
    return tuple(Sprite(_levels(picture, light), width, height) for picture, width, height in pictures)


def _levels(picture: Image, light: Light) -> tuple[Image, ...]:
    level = cv2.resize(cv2.GaussianBlur(picture, (0, 0), 0.7), (SIZE, SIZE)).astype(np.float32)
    level[..., :3] *= np.asarray(light.tint, np.float32)  # the blur of a black, clear ground has premultiplied it
    levels = [level]
    while len(levels[-1]) > 8:
        levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA).astype(np.float32))
    return tuple(np.clip(level + 0.5, 0, 255).astype(np.uint8) for level in levels)


def _blank() -> Image:
    return np.zeros((SIZE, SIZE, 4), np.uint8)


def _tree(rng: np.random.Generator, crown: Array, lean: float) -> Image:
    """A broad-leaved tree (``lean`` 0), a conifer (1) or something between, lit from above."""
    picture = _blank()
    trunk = (*(np.array([42.0, 56.0, 70.0]) * rng.uniform(0.7, 1.1)).tolist(), 255)
    cv2.rectangle(picture, (SIZE // 2 - 5, 150), (SIZE // 2 + 5, SIZE), trunk, -1)
    for i in range(900):
        share = i / 900  # from the dark inside and below to the lit outside and above
        v = rng.uniform(0, 1)
        half = (1 - lean) * math.sqrt(max(1 - (2 * v - 1) ** 2, 0)) + lean * (0.08 + 0.8 * v)
        u = rng.uniform(-1, 1) * half * (0.95 if rng.uniform() < 0.8 else 1.08)
        bright = 0.5 + 0.35 * share + 0.45 * (0.6 - v) * share - 0.1 * abs(u) + rng.normal(0, 0.11)
        centre = (int(SIZE / 2 + 104 * u), int(14 + (188 + 40 * lean) * v))
        cv2.circle(picture, centre, int(rng.integers(3, 10)), (*(crown * max(bright, 0.2)).tolist(), 255), -1)
    leaves = np.where(picture[..., 3:] > 0, rng.normal(0, 9, (SIZE, SIZE, 1)), 0)
    picture[..., :3] = np.clip(picture[..., :3] + leaves, 0, 255)
    return picture


def _house(rng: np.random.Generator, lamps: bool) -> Image:
    picture = _blank()
    wall = (*np.asarray(rng.choice([[196, 206, 212], [160, 190, 210], [120, 140, 176]])).tolist(), 255)
    roof = (*np.asarray(rng.choice([[58, 66, 132], [74, 78, 92], [60, 62, 84]])).tolist(), 255)
    cv2.rectangle(picture, (14, 104), (SIZE - 14, SIZE), wall, -1)
    cv2.fillPoly(picture, [np.array([[2, 110], [44, 22], [SIZE - 44, 22], [SIZE - 2, 110]])], roof, cv2.LINE_AA)
    for u in (38, 98, 158, 206):
        for v in (126, 194):
            lit = lamps and rng.uniform() < 0.5
            cv2.rectangle(picture, (u - 3, v - 3), (u + 25, v + 37), (214, 218, 220, 255), -1)
            cv2.rectangle(picture, (u, v), (u + 22, v + 34), (120, 200, 240, 255) if lit else (84, 70, 58, 255), -1)
    return picture


def _post() -> Image:
    """A marker post: white with a dark band and a reflector."""
    picture = _blank()
    cv2.rectangle(picture, (40, 0), (SIZE - 40, SIZE), (218, 220, 222, 255), -1)
    cv2.rectangle(picture, (40, 40), (SIZE - 40, 100), (40, 40, 40, 255), -1)
    cv2.rectangle(picture, (96, 50), (SIZE - 96, 90), (60, 140, 235, 255), -1)
    return picture
