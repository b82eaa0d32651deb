"""The road as the camera sees it at one moment."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import shapely
from shapely.geometry import Polygon

from perception.synthetic.course import course_of
from perception.synthetic.scene import Scene
from perception.synthetic.types import Array, Image

NEAR_M = 1.5  # nothing nearer than this is drawn: it lies below every image and would cross the camera's plane
FAR_M = 1500.0


class View:
    """Where everything is at one moment, by the forward distance (``ahead_*``) and by the image row (``row_*``).

    Attributes:
        scene, road, camera: of which scene this is a view, its road and its camera.
        t: seconds since the drive began.
        ahead_x, ahead_y, ahead_z: the centre line in ``base_link``, metres, at samples of the distance, near to far.
        ahead_s: arc length of the samples, metres from the ego vehicle.
        ahead_psi: heading of the road at the samples relative to the ego vehicle, radians.
        ahead_depth, ahead_row: the samples' depth along the optical axis, metres, and image row, pixels.
        skyline: the topmost row reached up to a sample; what lies below it, farther away, is hidden.
        heading, slope: of the road at the ego vehicle, radians and rise per run.
        station: arc length of the ego vehicle in the world, metres.
    """

    def __init__(self, scene: Scene, index: int) -> None:
        self.scene, self.road, self.camera = scene, scene.road, scene.camera
        self.t = index / scene.fps
        camera, course = self.camera, course_of(scene)
        self.station = course.start + self.road.speed * self.t
        here = np.array([self.station])
        self.heading, self.slope = float(course.heading.value(here)[0]), float(course.slope.value(here)[0])
        # The ego vehicle wanders a little within its lane.
        offset = self.road.lane(0) + 0.12 * math.sin(0.35 * self.t + scene.seed)
        s = np.concatenate([[0.0], np.geomspace(0.5, FAR_M, 1800)])
        psi = course.heading.value(self.station + s) - self.heading
        x = _cumulative(np.cos(psi), s)
        y = _cumulative(np.sin(psi), s) - offset
        z = course.slope.integral(self.station + s) - course.slope.integral(here) - self.slope * x
        # Sample 0 lies below the camera itself and has no pixel.
        self.ahead_s, self.ahead_psi, self.ahead_x, self.ahead_y, self.ahead_z = (a[1:] for a in (s, psi, x, y, z))
        cos, sin = math.cos(camera.mount.pitch), math.sin(camera.mount.pitch)
        below = camera.mount.height_m - self.ahead_z
        self.ahead_depth = self.ahead_x * cos + below * sin
        self.ahead_row = camera.intrinsics.cy + camera.intrinsics.fy * (below * cos - self.ahead_x * sin) / self.ahead_depth
        self.skyline = np.minimum.accumulate(self.ahead_row)

    # By image row

    def depth_of_rows(self, rows: Array) -> Array:
        """Depth along the optical axis, metres, where the rays of ``rows`` meet the ground; NaN above the skyline."""
        beyond = np.searchsorted(-self.skyline, -rows)  # the first sample that projects onto the row or above it
        i = np.clip(beyond, 1, len(self.skyline) - 1)
        share = (self.ahead_row[i - 1] - rows) / (self.ahead_row[i - 1] - self.ahead_row[i])
        # On a plane the row is linear in the inverse depth, so that this is exact on flat ground.
        inverse = (1 - share) / self.ahead_depth[i - 1] + share / self.ahead_depth[i]
        return np.where(beyond < len(self.skyline), 1 / inverse, np.nan)

    @cached_property
    def first_row(self) -> int:
        """The topmost pixel row that sees the ground; the image height where none does."""
        return min(max(math.ceil(float(self.skyline[-1])), 0), self.camera.intrinsics.height)

    @cached_property
    def rows(self) -> Array:
        """The pixel rows that see the ground, from `first_row` down."""
        return np.arange(self.first_row, self.camera.intrinsics.height, dtype=np.float64)

    @cached_property
    def row_depth(self) -> Array:
        """Depth of the ground along the optical axis in each of `rows`, metres."""
        return self.depth_of_rows(self.rows)

    @cached_property
    def row_x(self) -> Array:
        """Forward distance of the ground in each of `rows`, metres in ``base_link``."""
        k, pitch = self.camera.intrinsics, self.camera.mount.pitch
        return self.row_depth * (math.cos(pitch) - (self.rows - k.cy) / k.fy * math.sin(pitch))

    def columns(self, offset: float, x: Array, depth: Array) -> Array:
        """Image columns, pixels, of the line ``offset`` metres beside the centre line at the distances ``x``."""
        y = np.interp(x, self.ahead_x, self.ahead_y) + offset / np.cos(np.interp(x, self.ahead_x, self.ahead_psi))
        return np.asarray(self.camera.intrinsics.cx - self.camera.intrinsics.fx * y / depth)

    def road_mask(self, right: float, left: float) -> Image:
        """uint8 ``(H, W)``: 255 where a pixel's ray first meets the ground between two offsets, vehicles ignored."""
        mask = np.zeros((self.camera.intrinsics.height, self.camera.intrinsics.width), np.uint8)
        us = np.arange(self.camera.intrinsics.width, dtype=np.float32)
        starts, ends = (self.columns(d, self.row_x, self.row_depth)[:, None].astype(np.float32) for d in (left, right))
        np.multiply((us >= starts) & (us <= ends), np.uint8(255), out=mask[self.first_row :], casting="unsafe")
        return mask

    # By distance

    def base_from_road(self, points: Array) -> Array:
        """``(N, 3)`` metres in ``base_link`` from (distance along the road, offset, height above it)."""
        s = np.maximum(points[:, 0], NEAR_M)
        x, y, z, psi = (np.interp(s, self.ahead_s, a) for a in (self.ahead_x, self.ahead_y, self.ahead_z, self.ahead_psi))
        return np.stack([x, y + points[:, 1] / np.cos(psi), z + points[:, 2]], axis=1)

    def row_limit(self, s: float) -> float:
        """The image row, pixels, below which the ground in front hides what stands ``s`` metres along the road."""
        return float(np.interp(max(s, NEAR_M), self.ahead_s, self.skyline))

    def strips(self, right: float, left: float) -> list[Polygon]:
        """The visible road between two offsets: a polygon in pixels for each stretch between crests, not clipped."""
        seen = self.ahead_row <= self.skyline
        starts = np.flatnonzero(seen & ~np.concatenate([[False], seen[:-1]]))
        ends = np.flatnonzero(seen & ~np.concatenate([seen[1:], [False]]))
        sides = [self.columns(d, self.ahead_x, self.ahead_depth) for d in (left, right)]
        found = []
        for start, end in zip(starts, ends, strict=True):
            lines = []
            for side in sides:
                line = np.stack([side[start : end + 1], self.ahead_row[start : end + 1]], axis=1)
                if start > 0:  # the road comes out from behind a crest between two samples
                    crest, before, after = self.skyline[start - 1], self.ahead_row[start - 1], self.ahead_row[start]
                    share = (before - crest) / (before - after)
                    line = np.vstack([[(1 - share) * side[start - 1] + share * side[start], crest], line])
                if len(line) > 1:
                    lines.append(shapely.get_coordinates(shapely.LineString(line).simplify(0.01)))
            if len(lines) == 2:
                found.append(Polygon(np.vstack([lines[0], lines[1][::-1]])))
        return found


def _cumulative(rate: Array, along: Array) -> Array:
    """Integral of ``rate`` over ``along`` from its first sample, by trapezoids."""
    return np.concatenate([[0.0], np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(along))])
