"""Who else is on the road, and where at what time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from perception.synthetic.chance import Purpose, scene_rng
from perception.synthetic.road import Road
from perception.synthetic.scene import Scene
from perception.synthetic.types import Array, Colour

PAINTS: tuple[Colour, ...] = (
    (205, 207, 208),
    (165, 168, 170),
    (48, 46, 44),
    (95, 92, 90),
    (120, 70, 38),
    (40, 36, 150),
    (60, 74, 52),
    (150, 130, 105),
)


class Pose(NamedTuple):
    """Where a vehicle is.

    Attributes:
        ahead: distance of its middle from the ego vehicle, metres along the road.
        offset: of its middle from the centre line, metres.
        turn: of its way against the road's, radians.
        facing: 1 if it drives our way, -1 if it drives towards us.
    """

    ahead: float
    offset: float
    turn: float
    facing: float

    def on_road(self, points: Array) -> Array:
        """(distance along the road, offset, height) of points of the vehicle, ``(N, 3)`` metres, x forward, y left."""
        along, left = self.facing * points[:, 0], self.facing * points[:, 1]
        return np.stack([self.ahead + along, self.offset + left + self.turn * along, points[:, 2]], axis=1)


@dataclass(frozen=True)
class Vehicle:
    """Another road user.

    Attributes:
        kind: one of `SHAPES`.
        colour: of its paint.
        lane: as in `Road.lane`; counts on into the other carriageway.
        gap: distance ahead of the ego vehicle at time 0, metres.
        closing: how fast that distance grows, m/s; 0 for one that is followed and keeps its distance.
        oncoming: drives towards us.
        cuts_in: overtakes in the next lane and moves over into ours.
    """

    kind: str
    colour: Colour
    lane: int
    gap: float
    closing: float
    oncoming: bool = False
    cuts_in: bool = False

    def pose(self, t: float, road: Road) -> Pose:
        """Where it is after ``t`` seconds."""
        offset = self._offset(t, road)
        turn = (self._offset(t + 0.05, road) - offset) / (0.05 * road.speed)
        return Pose(self._ahead(t), offset, turn, -1.0 if self.oncoming else 1.0)

    def _ahead(self, t: float) -> float:
        if self.cuts_in:
            return -9.0 + 35.0 * _smoothstep(t / 6.5)
        if self.closing == 0:
            return self.gap + 2.5 * math.sin(0.5 * t + self.gap)
        # Vehicles come round again, out of the haze, so that the traffic never ends.
        return (self.gap + self.closing * t + 60.0) % 520.0 - 60.0

    def _offset(self, t: float, road: Road) -> float:
        if self.cuts_in:
            return road.lane(1) + (road.lane(0) - road.lane(1)) * _smoothstep((t - 3.0) / 2.6)
        return road.lane(self.lane) + 0.15 * math.sin(0.3 * t + self.gap)


def _smoothstep(u: float) -> float:
    u = min(max(u, 0.0), 1.0)
    return u * u * (3 - 2 * u)


@lru_cache(maxsize=64)
def traffic_of(scene: Scene) -> tuple[Vehicle, ...]:
    """The other vehicles of a scene."""
    road, rng = scene.road, scene_rng(scene, Purpose.TRAFFIC)
    count = road.cars if scene.cars is None else scene.cars
    vehicles: list[Vehicle] = []
    if scene.name == "cut-in" and count:
        vehicles.append(Vehicle("car", PAINTS[int(rng.integers(len(PAINTS)))], 1, 0.0, 0.0, cuts_in=True))
    oncoming = [road.lanes + i for i in range(road.oncoming)]
    lanes = [2] if scene.name == "cut-in" else [0, *oncoming, *range(1, road.lanes)]
    for i in range(len(vehicles), count):
        lane, turn = lanes[i % len(lanes)], i // len(lanes)
        towards = lane >= road.lanes
        kind = str(rng.choice(["car", "car", "car", "van", "truck"]))
        if lane == 0:
            gap, closing = 24.0 + 38.0 * turn, 0.0
        else:
            # One speed per lane, and gaps that leave room: vehicles of one lane never touch.
            per_lane = math.ceil(count / len(lanes))
            gap = 25.0 + 4.0 * lane + 520.0 * turn / per_lane + rng.uniform(0, 6)
            closing = -(2 * road.speed + 1.5 * lane) if towards else 2.0 + 1.5 * lane
        vehicles.append(Vehicle(kind, PAINTS[int(rng.integers(len(PAINTS)))], lane, gap, closing, towards))
    return tuple(vehicles)
