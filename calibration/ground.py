"""Pixels to metres and back on the flat ground, the plane z = 0 of ``base_link``, and how sure the metres are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray

from calibration.camera import POSE, Camera, Intrinsics, inverse_of, pose_matrix
from calibration.covariance import STEP, Covariance

Array = NDArray[np.float64]

SEGMENT_PX = 12.0  # edges of polygons are bent by the distortion: piece by piece they stay within 0.05 pixels of it
REGION_SEGMENT_PX = 3.0
LEVEL_DIRECTIONS = 1441  # looked along for the horizon, a quarter of a degree apart all around
SMALL = 1e-5  # radians: a difference over so much stands for a derivative
CERTAIN = 1.959964  # standard deviations on either side that hold 95 % of a normal distribution


def ground_from_pixels(camera: Camera, pixels: ArrayLike) -> Array:
    """Where the rays of pixels meet the flat ground.

    Args:
        pixels: ``(N, 2)`` pixels (u, v).

    Returns:
        float64 ``(N, 2)`` metres in ``base_link`` (x forward, y left); NaN at and above the horizon.
    """
    rays, mount = camera.pixel_rays(pixels), camera.mount
    # A ray on the horizon falls by rounding error alone: it is level to 1e-12 of its length.
    falls = np.where(rays[:, 2] < -1e-12, -rays[:, 2], np.nan)
    return np.asarray(rays[:, :2] * (mount.height_m / falls)[:, None] + (mount.x_m, mount.y_m))


def pixels_from_ground(camera: Camera, points: ArrayLike) -> Array:
    """Pixels of points on the flat ground.

    Args:
        points: ``(N, 2)`` metres in ``base_link`` (x forward, y left).

    Returns:
        float64 ``(N, 2)`` pixels (u, v), also outside the image; NaN for points not in front of the camera.
    """
    return project_ground(camera.intrinsics, camera.camera_from_base, np.asarray(points, np.float64).reshape(-1, 2))


def project_ground(intrinsics: Intrinsics, camera_from_base: Array, xy: Array) -> Array:
    """`pixels_from_ground` of a camera with this inverse pose."""
    return intrinsics.project(xy @ camera_from_base[:3, :2].T + camera_from_base[:3, 3])


def horizon(camera: Camera, columns: ArrayLike) -> Array:
    """The rows, float64 ``(N,)`` pixels, where the flat ground vanishes in the image columns ``(N,)``.

    They may lie outside the image; NaN where the horizon has no pixel in the column, of two the one that lies more nearly
    ahead of the camera. Level directions have pixels whatever the distortion; between those left and right of a column the
    one that falls on it is found by halving.
    """
    u, k, mount = np.asarray(columns, np.float64).reshape(-1), camera.intrinsics, camera.mount
    limit = k.limit if k.distortion_model == "equidistant" else math.atan(k.limit)
    nearest = math.cos(limit) / max(math.cos(mount.pitch), 1e-12)  # cosine of the farthest heading still seen
    if nearest >= 1:
        return np.full(len(u), np.nan)
    farthest = (1 - 1e-9) * math.acos(max(nearest, -1.0))

    def pixels(headings: Array) -> Array:
        bearings = mount.yaw + headings
        level = np.stack([np.cos(bearings), np.sin(bearings), np.zeros(len(bearings))], axis=1)
        return k.project(level @ mount.base_from_camera[:3, :3])

    headings = np.linspace(-farthest, farthest, LEVEL_DIRECTIONS)
    right = pixels(headings)[None, :, 0] >= u[:, None]
    crossed = right[:, 1:] != right[:, :-1]
    middles = np.abs(headings[1:] + headings[:-1])
    at = np.argmin(np.where(crossed, middles, np.inf), axis=1)
    low, high = headings[at], headings[at + 1]
    right_of_low = right[np.arange(len(u)), at]
    for _ in range(60):
        middle = (low + high) / 2
        same = (pixels(middle)[:, 0] >= u) == right_of_low
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return np.where(crossed.any(axis=1), pixels((low + high) / 2)[:, 1], np.nan)


class RangeUncertainty:
    """How sure ranges on the ground are that one camera measures.

    Args:
        camera: as it is taken to be.
        covariance: of the errors of its mount and intrinsics, by their names; those not named are taken for exact.
        pixel_px: standard deviation of a point in the image along each axis, pixels.
    """

    def __init__(self, camera: Camera, covariance: Covariance, pixel_px: float = 0.0) -> None:
        self.camera, self.pixel_px = camera, pixel_px
        k, pose = camera.intrinsics, {name: getattr(camera.mount, name) for name in POSE}

        def moved(by: Array) -> tuple[Intrinsics, Array]:
            off = dict(zip(covariance.names, by.tolist(), strict=True))
            lens = k.moved(off) if any(name not in POSE for name in off) else k
            return lens, inverse_of(pose_matrix(**{name: value + off.get(name, 0.0) for name, value in pose.items()}))

        self._moved = [moved(STEP * source) for source in covariance.factor.T]

    def intervals(self, points: ArrayLike) -> Array:
        """Between which ranges points on the ground lie with a probability of 95 %: the first of `of`."""
        return self.of(points)[0]

    def of(self, points: ArrayLike) -> tuple[Array, Array]:
        """How sure the places of points on the ground are.

        What is normally distributed is the angle under which the camera looks down at a point; the range is not, far away it
        is lopsided. So the angle's interval is found, to first order, and then brought to the ground exactly. What the image
        says of a point stays where it is: how the point would move there for each independent source of error, and how for a
        growing angle and bearing, say together by how much these are wrong.

        Args:
            points: ``(N, 2)`` metres in ``base_link`` on the ground.

        Returns:
            float64 ``(N, 2)``: least and greatest range from ``base_link``'s origin, metres, with a probability of 95 %, on
            the ray from the camera through the point; the greatest is infinite where the ray may miss the ground, or the
            camera does not see the point. float64 ``(N,)``: the standard deviation of the point's y to first order, metres;
            infinite where the camera does not see it. NaN for points that are none.
        """
        xy = np.asarray(points, np.float64).reshape(-1, 2)
        mount, height = self.camera.mount, self.camera.mount.height_m
        foot = np.array([mount.x_m, mount.y_m])
        offset = xy - foot
        distance = np.maximum(np.hypot(*offset.T), 1e-9)
        direction = offset / distance[:, None]
        angle = np.arctan2(height, distance)
        angles, bearings = self._errors(foot, direction, angle)
        spread = spread_of(angles)
        with np.errstate(invalid="ignore"):
            away = -height / np.sin(angle) ** 2 * angles
            sideways = spread_of(direction[:, 1] * away + direction[:, 0] * distance * bearings)
        steep = np.minimum(angle + CERTAIN * spread, math.pi / 2)
        flat = np.maximum(angle - CERTAIN * spread, 0.0)
        with np.errstate(divide="ignore"):
            first, last = height / np.tan(steep), height / np.tan(flat)  # from the camera's foot
        # It passes the origin `passes` metres on, `beside` metres away; a camera may look back over it.
        passes = -direction @ foot
        beside = np.sqrt(np.maximum(foot @ foot - passes**2, 0.0))
        least = np.hypot(np.clip(passes, first, last) - passes, beside)
        greatest = np.maximum(np.hypot(first - passes, beside), np.hypot(last - passes, beside))
        return np.stack([least, greatest], axis=1), sideways

    def _errors(self, foot: Array, direction: Array, angle: Array) -> tuple[Array, Array]:
        """``(k, N)`` each: by how much angles and bearings, radians, are wrong for one standard deviation of each independent
        source of error; NaN where the camera does not see the point."""
        height = self.camera.mount.height_m

        def on_ground(angle: Array, direction: Array) -> Array:
            return foot + direction * (height / np.tan(angle))[:, None]

        aside = SMALL * np.stack([-direction[:, 1], direction[:, 0]], axis=1)
        xy = on_ground(angle, direction)
        around = [
            xy,
            on_ground(angle + SMALL, direction),
            on_ground(angle - SMALL, direction),
            on_ground(angle, direction + aside),
            on_ground(angle, direction - aside),
        ]
        with np.errstate(all="ignore"):
            at, *pixels = pixels_from_ground(self.camera, np.concatenate(around)).reshape(5, -1, 2)
            (down_u, down_v), (side_u, side_v) = (((pixels[i] - pixels[i + 1]) / (2 * SMALL)).T for i in (0, 2))
            moves = [np.full_like(at, unit) for unit in self.pixel_px * np.eye(2)]
            moves += [(at - project_ground(lens, pose, xy)) / STEP for lens, pose in self._moved]
            off_u, off_v = np.stack(moves, axis=2).transpose(1, 2, 0)
            area = down_u * side_v - down_v * side_u
            return (side_v * off_u - side_u * off_v) / area, (down_u * off_v - down_v * off_u) / area


def spread_of(errors: Array) -> Array:
    """``(N,)``: the standard deviation that independent errors ``(k, N)`` have together; infinite where one is unknown."""
    with np.errstate(all="ignore"):
        variance = (errors**2).sum(axis=0)
    return np.where(np.isfinite(variance), np.sqrt(variance), np.inf)


@dataclass(frozen=True)
class GroundPolygon:
    """A region of the ground.

    Attributes:
        exterior: float64 ``(n, 2)`` metres in ``base_link``, counter-clockwise as seen from above.
        interiors: holes, likewise, clockwise.
        area_m2: without the holes, square metres.
    """

    exterior: Array
    interiors: list[Array] = field(default_factory=list)
    area_m2: float = 0.0

    @property
    def rings(self) -> list[Array]:
        """The exterior, then the interiors."""
        return [self.exterior, *self.interiors]

    @property
    def shape(self) -> shapely.Polygon:
        """The same for Shapely."""
        return shapely.Polygon(self.exterior, self.interiors)


class GroundView:
    """The part of the ground that a camera sees, between two ranges.

    Attributes:
        camera, max_range_m, min_range_m: as given.
        size: of its images, ``(width, height)`` pixels.
        region: in pixels, a polygon or several: where the image shows ground within these ranges.
        seen: the same in metres.

    Raises:
        ValueError: the camera sees no ground within these ranges.
    """

    def __init__(self, camera: Camera, max_range_m: float, min_range_m: float = 0.0) -> None:
        self.camera, self.max_range_m, self.min_range_m = camera, max_range_m, min_range_m
        self.size = camera.intrinsics.width, camera.intrinsics.height
        self.region = visible_region(camera, max_range_m, min_range_m)
        if self.region.is_empty:
            raise ValueError(f"the camera sees no ground between {min_range_m:g} and {max_range_m:g} m: is its mount right?")
        shapely.prepare(self.region)
        self.seen = shapely.MultiPolygon([part.shape for part in self.place([self.region])[0]])

    def place(self, shapes: Sequence[shapely.Geometry]) -> list[list[GroundPolygon]]:
        """Valid polygons in pixels, straight edges and all, on the ground.

        For each its parts within the range, largest first; none where all of it lies beyond.
        """
        if self.camera.intrinsics.distorted:
            shapes = shapely.segmentize(list(shapes), SEGMENT_PX)
        parts, owners = shapely.get_parts(shapely.intersection(list(shapes), self.region), return_index=True)
        placed = shapely.transform(parts, lambda pixels: np.round(ground_from_pixels(self.camera, pixels), 3))
        if not shapely.is_valid(placed).all():  # a millimetre's rounding made an edge touch another
            # Holes stay holes, also where they now reach beyond the exterior, and nothing but polygons comes back.
            mended = shapely.make_valid(placed, method="structure", keep_collapsed=False)
            placed, which = shapely.get_parts(mended, return_index=True)
            owners = owners[which]
        found: list[list[GroundPolygon]] = [[] for _ in shapes]
        for owner, shape in zip(owners, placed, strict=True):
            if isinstance(shape, shapely.Polygon) and shape.area > 0:
                holes = [ring(hole, False) for hole in shape.interiors]
                found[owner].append(GroundPolygon(ring(shape.exterior, True), holes, float(shape.area)))
        return [sorted(those, key=lambda polygon: -polygon.area_m2) for those in found]


def visible_region(camera: Camera, max_range_m: float, min_range_m: float = 0.0) -> shapely.Geometry:
    """Where, in pixels, the image shows ground between two ranges from ``base_link``'s origin; empty where it does nowhere.

    The disc on the ground is cut where it leaves the front of the camera, brought to the plane at depth 1, where straight
    lines are straight, cut at the widest angle that the lens is known for, and bent by the distortion from there.
    """
    k, mount = camera.intrinsics, camera.mount
    disc = shapely.Point(0, 0).buffer(max_range_m, quad_segs=360)
    if min_range_m > 0:
        disc = shapely.difference(disc, shapely.Point(0, 0).buffer(min_range_m, quad_segs=360))
    to_x, to_y, _, at_origin = camera.camera_from_base[2]  # depth along the optical axis, of a point on the ground
    least_depth = 0.99 * mount.height_m * math.cos(k.widest)
    steep = math.hypot(to_x, to_y)
    if steep > 1e-9:
        ahead = np.array([to_x, to_y]) / steep
        aside, start = np.array([-ahead[1], ahead[0]]), ahead * (least_depth - at_origin) / steep
        far = 4 * (max_range_m + float(np.abs(start).max()))
        front = [start - far * aside, start + far * aside, start + far * (aside + ahead), start + far * (ahead - aside)]
        disc = shapely.intersection(disc, shapely.Polygon(front))
    if disc.is_empty:
        return disc

    def flatten(ground: Array) -> Array:
        points = np.column_stack([ground, np.zeros(len(ground))]) @ camera.camera_from_base[:3, :3].T
        points += camera.camera_from_base[:3, 3]
        return np.asarray(points[:, :2] / points[:, 2:])

    def bend(flat: Array) -> Array:
        return k.project(np.column_stack([flat, np.ones(len(flat))]))

    lens = shapely.Point(0, 0).buffer(0.9999 * math.tan(k.widest), quad_segs=90)  # not on the limit itself, for rounding
    flat = shapely.intersection(shapely.transform(disc, flatten), lens)
    bent = shapely.transform(shapely.segmentize(flat, REGION_SEGMENT_PX / max(k.fx, k.fy)), bend)
    image = shapely.box(-0.5, -0.5, k.width - 0.5, k.height - 0.5)
    return shapely.simplify(shapely.intersection(shapely.make_valid(bent), image), 0.001)


def ring(line: shapely.LinearRing, counter_clockwise: bool) -> Array:
    points = shapely.get_coordinates(line)[:-1]
    return np.ascontiguousarray(points if line.is_ccw == counter_clockwise else points[::-1])
