"""What stands beside the road, and where."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.synthetic.chance import Purpose, scene_rng
from perception.synthetic.course import course_of
from perception.synthetic.paint.canvas import placed
from perception.synthetic.paint.light import light_of
from perception.synthetic.paint.sprites import HOUSES, PLANTS, POST, SIZE, Sprite, sprites_in
from perception.synthetic.scene import Scene
from perception.synthetic.types import Array, Image
from perception.synthetic.view import View

SLOT_M, SLOTS = 8.0, 512  # the roadside repeats after 4 km
NEAREST_M, FARTHEST_M = 3.0, 420.0
NOTHING = -1


class Thing(NamedTuple):
    """A sprite in its place.

    Attributes:
        ahead: distance along the road, metres.
        foot: where it stands, ``(3,)`` metres in ``base_link``.
        size: factor on the sprite's own.
    """

    sprite: Sprite
    ahead: float
    foot: Array
    size: float


def things_in(view: View) -> list[Thing]:
    """What stands in sight, far to near."""
    scene = view.scene
    plan, sprites = _plan(scene), sprites_in(scene.seed, light_of(scene))
    first, last = math.ceil((view.station + NEAREST_M) / SLOT_M), math.floor((view.station + FARTHEST_M) / SLOT_M)
    slots = np.arange(last, first - 1, -1)
    ahead, at = slots * SLOT_M - view.station, slots % SLOTS
    feet = [view.base_from_road(np.column_stack([ahead, plan.offsets[at, side], np.zeros(len(at))])) for side in (0, 1)]
    return [
        Thing(sprites[plan.sprites[at[i], side]], ahead[i], feet[side][i], plan.sizes[at[i], side])
        for i in range(len(slots))
        for side in (0, 1)
        if _may_stand(scene, int(slots[i]), side)
    ]


def paint_thing(view: View, image: Image, road: Image, thing: Thing) -> None:
    """Paint what stands beside the road. It never covers the road, a mask ``(H, W)``."""
    camera, light, sprite = view.camera, light_of(view.scene), thing.sprite
    depth = thing.foot[0]
    size = 1.0 if sprite.width < 0.5 else thing.size  # posts are all alike
    wide, tall = (camera.intrinsics.fx / depth * length * size for length in (sprite.width, sprite.height))
    if tall < 1.5:
        return
    level = sprite.levels[min(max(round(math.log2(SIZE / tall)), 0), len(sprite.levels) - 1)]
    rows = min(camera.intrinsics.height, math.floor(view.row_limit(thing.ahead)) + 1)
    foot = camera.project(thing.foot)[0]
    place = placed(level, foot, (wide / 2, tall), (wide / 2, 0.0), (camera.intrinsics.width, rows))
    if place is None:
        return
    where, patch = place
    patch[road[where] > 0] = 0
    # Colours are premultiplied: under = 1 - alpha, and the haze takes its share of what the sprite covers.
    fade = light.faded(depth)
    haze = np.array([[*(np.eye(3)[i] * (1 - fade)), fade * light.haze[i] / 255] for i in range(3)])
    under = cv2.merge([255 - patch[..., 3]] * 3)
    image[where] = cv2.add(cv2.multiply(image[where], under, scale=1 / 255), cv2.transform(patch, haze))


class _Plan(NamedTuple):
    """What each slot holds on the right (0) and on the left (1) of the road, ``(SLOTS, 2)``.

    Attributes:
        offsets: from the centre line, metres.
        sizes: factors on the sprites' own.
        sprites: their indices, or `NOTHING`.
    """

    offsets: Array
    sizes: Array
    sprites: NDArray[np.int64]


@lru_cache(maxsize=8)
def _plan(scene: Scene) -> _Plan:
    rng, road = scene_rng(scene, Purpose.ROADSIDE), scene.road
    chance = rng.uniform(size=(SLOTS, 2))
    woods = 0.5 + 0.5 * np.sin(np.arange(SLOTS)[:, None] * 2 * np.pi * np.array([5, 7]) / SLOTS + rng.uniform(0, 6, 2))
    sprites = rng.integers(0, len(PLANTS), (SLOTS, 2))
    sprites[chance < 0.05] = HOUSES[rng.integers(0, len(HOUSES))]
    sprites[chance > 0.25 + 0.6 * woods] = NOTHING
    away = 4.5 + 16.0 * rng.uniform(size=(SLOTS, 2)) ** 1.4 + np.where(sprites >= HOUSES[0], 10.0, 0.0)
    # On the inside of a bend trees keep clear of the line of sight along the road.
    bend = np.gradient(course_of(scene).heading.value(np.arange(SLOTS, dtype=np.float64) * SLOT_M), SLOT_M)
    away += np.clip(np.stack([-bend, bend], axis=1) / 0.004, 0, 1) * 14.0
    offsets = np.stack([road.right - away[:, 0], road.left + away[:, 1]], axis=1)
    if road.verge != "pavement":  # marker posts stand every 48 m
        sprites[::6] = POST
        offsets[::6] = [road.right - 1.0, road.left + 1.0]
    return _Plan(offsets, rng.uniform(0.75, 1.25, (SLOTS, 2)), sprites)


@lru_cache(maxsize=4096)
def _may_stand(scene: Scene, slot: int, side: int) -> bool:
    """Whether a slot holds something, and that leaves the road behind it in view from wherever the ego vehicle comes.

    It is no part of the ground truth, so it must not stand before the road: on the inside of a bend nothing may but posts.
    """
    plan, at = _plan(scene), slot % SLOTS
    kind = plan.sprites[at, side]
    if kind in (NOTHING, POST):
        return bool(kind == POST)
    sprite = sprites_in(scene.seed, light_of(scene))[kind]
    step, reach = 6.0, 300.0
    s = np.arange(-reach, reach, step)
    heading = course_of(scene).heading.value(slot * SLOT_M + s)
    middle = np.cumsum(np.exp(1j * heading)) * step  # the centre line in the plane, as complex numbers
    left_of = 1j * np.exp(1j * heading)
    here = len(s) // 2
    thing = middle[here] + plan.offsets[at, side] * left_of[here]
    eyes = (middle + scene.road.lane(0) * left_of)[: here - 1]
    towards = thing - eyes
    half = 0.5 * sprite.width * plan.sizes[at, side] / np.abs(towards)
    beyond = slice(here + 2, None)
    # Bearings against the thing, from every eye to both edges of every stretch of road behind it.
    edges = [
        np.angle((middle[beyond] + d * left_of[beyond] - eyes[:, None]) / towards[:, None])
        for d in (scene.road.right, scene.road.left)
    ]
    near = np.abs(middle[beyond] - eyes[:, None]) < reach
    covered = (np.minimum(*edges) < half[:, None]) & (np.maximum(*edges) > -half[:, None]) & near
    return not bool(covered.any())
