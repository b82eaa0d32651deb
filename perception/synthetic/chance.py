"""Random numbers: each use has a stream of its own, so that a change to one leaves the others as they are."""

from __future__ import annotations

import zlib
from enum import IntEnum

import numpy as np

from perception.synthetic.scene import Scene


class Purpose(IntEnum):
    """What random numbers are for."""

    COURSE = 0
    TRAFFIC = 1
    GROUND_NOISE = 2
    PANORAMA = 3
    CROSS_SECTION = 4
    SPRITES = 5
    ROADSIDE = 6
    SENSOR_NOISE = 7
    FRAME_NOISE = 8


def scene_rng(scene: Scene, purpose: Purpose) -> np.random.Generator:
    """Chance that differs between the scenes of one seed."""
    return np.random.default_rng((scene.seed, zlib.crc32(scene.name.encode()), purpose))


def seed_rng(seed: int, purpose: Purpose, *more: int) -> np.random.Generator:
    """Chance that the scenes of one seed share; ``more`` tells streams of one purpose apart."""
    return np.random.default_rng((seed, purpose, *more))
