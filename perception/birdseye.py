"""The ground seen from above, as a picture: what a result means in metres."""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray

from calibration.camera import Camera
from calibration.ground import pixels_from_ground
from perception.config import GroundConfig
from perception.freespace import Freespace, Ground, Scan
from perception.metres import Metres
from perception.painting import EGO_COLOUR, OTHER_COLOUR, lines, paint
from perception.polygons import fill

Array = NDArray[np.float64]
U8 = NDArray[np.uint8]

BAND = 0.25  # of the range: so much is shown on either side of the direction in which the camera looks
VEHICLE_M = 3.0  # so much of the vehicle is shown
DIMMED = 0.55  # brightness of the camera's picture
NOTHING = (28, 24, 22)  # BGR, where the camera sees no ground
RULER_COLOUR = (150, 150, 150)
SCAN_COLOUR = (255, 255, 255)
AHEAD_COLOUR = (255, 80, 255)
VEHICLE_COLOUR = (235, 235, 235)
WARNING_COLOUR = (60, 60, 255)
LEVELS = 6  # of the pyramid at most
LIMIT_M = 0.1  # what ends so close to the greatest range ends there


class BirdsEye:
    """The ground that a camera sees, from above, in ``base_link``: x up, y to the left. Draws from any thread.

    Args:
        metres: of the camera.
        picture: ``(width, height)`` of the pictures that are to be shown: the camera's frames, resized or not.
        room: ``(width, height)`` that the view is to fit into, pixels.

    Attributes:
        size: ``(width, height)`` of what is drawn, pixels.
        px_per_m: its scale.
    """

    def __init__(self, metres: Metres, picture: tuple[int, int], room: tuple[int, int]) -> None:
        self.config, self._yaw = metres.config, metres.camera.mount.yaw
        least_x, least_y, self._far, self._left = shown_area(metres)
        depth, breadth = self._far - least_x, self._left - least_y
        self.px_per_m = min(room[0] / breadth, room[1] / depth)
        width, height = (max(1, round(side * self.px_per_m)) for side in (breadth, depth))
        self.size = width, height
        camera = Camera(metres.camera.intrinsics.scaled(picture), metres.camera.mount)
        u, v = np.meshgrid(np.arange(width), np.arange(height))
        ground = self.ground(np.stack([u, v], axis=-1).reshape(-1, 2))
        pixels = pixels_from_ground(camera, ground)
        pixels[np.hypot(*ground.T) > self.config.max_range_m] = np.nan
        self._pyramid = Pyramid(pixels.reshape(height, width, 2), picture)
        self._arcs = self._range_lines(metres)

    def pixels(self, ground: ArrayLike) -> Array:
        """Where points of the ground, ``(N, 2)`` metres in ``base_link``, are drawn: float64 ``(N, 2)`` pixels (u, v)."""
        x, y = np.asarray(ground, np.float64).reshape(-1, 2).T
        return np.stack([(self._left - y) * self.px_per_m, (self._far - x) * self.px_per_m], axis=1) - 0.5

    def ground(self, pixels: ArrayLike) -> Array:
        """The inverse of `pixels`."""
        u, v = np.asarray(pixels, np.float64).reshape(-1, 2).T + 0.5
        return np.stack([self._far - v / self.px_per_m, self._left - u / self.px_per_m], axis=1)

    def draw(self, image: U8, result: Freespace) -> U8:
        """The view of one frame, uint8 ``(h, w, 3)`` BGR.

        The frame from above, dimmed; the free ground on it as in `perception.overlay`, the scan's ends white, circles around
        ``base_link``'s origin every 10 m, the vehicle at the bottom, and the end of the way ahead with its 95 % interval. A
        result that is not valid leaves the ground out and says so.

        Args:
            image: uint8 ``(H, W, 3)`` BGR, of the size that was announced.
        """
        canvas: U8 = cv2.convertScaleAbs(self._pyramid.sample(image), alpha=DIMMED if result.valid else DIMMED / 2)  # type: ignore[assignment]
        canvas[self._pyramid.outside] = NOTHING
        thin = max(1, round(self.size[1] / 500))
        regions = [
            ([self.pixels(ring) for ring in part.rings], EGO_COLOUR if polygon.ego else OTHER_COLOUR)
            for polygon in result.polygons
            for part in polygon.ground or []
        ]
        paint(canvas, regions, thin)
        self._draw_rulers(canvas, thin)
        if result.ground:
            self._draw_scan(canvas, result.ground.scan)
            strokes = [self.pixels(stroke) for stroke in way_ahead(result.ground, self.config)]
            lines(canvas, strokes, AHEAD_COLOUR, 2 * thin, closed=False)
        fill(canvas, [self.pixels(vehicle(self.config))], VEHICLE_COLOUR)
        if not result.valid:
            self._write(canvas, "NOT VALID", (self.size[0] / 2, self.size[1] / 2), WARNING_COLOUR, 1.6)
        return canvas

    def _range_lines(self, metres: Metres) -> list[tuple[str, Array]]:
        """Text and points, pixels, of each circle within the view, as far as the camera looks that way."""
        step = 10 if self.config.max_range_m <= 100 else 50
        bearings = self._yaw + np.linspace(-math.pi / 2, math.pi / 2, 181)
        arcs = []
        for radius in range(step, math.floor(self.config.max_range_m) + 1, step):
            points = self.pixels(radius * np.stack([np.cos(bearings), np.sin(bearings)], axis=1))
            inside = ((points > -0.5) & (points < np.array(self.size) - 0.5)).all(axis=1)
            if inside.any():
                arcs.append((str(radius), points[inside]))
        return arcs

    def _draw_rulers(self, canvas: U8, thickness: int) -> None:
        for text, points in self._arcs:  # the text at the right end, beside what matters
            beside = np.hypot(*(points - points[0]).T) > 0.035 * self.size[1]
            lines(canvas, [points[beside]], RULER_COLOUR, thickness, closed=False)
            self._write(canvas, text, (float(points[0, 0]), float(points[0, 1])), RULER_COLOUR, 1.0)

    def _draw_scan(self, canvas: U8, scan: Scan) -> None:
        u, v = np.round(self.pixels(scan_ends(scan))).astype(int).T
        for du, dv in ((0, 0), (1, 0), (0, 1), (1, 1)):
            inside = (u + du >= 0) & (u + du < self.size[0]) & (v + dv >= 0) & (v + dv < self.size[1])
            canvas[v[inside] + dv, u[inside] + du] = SCAN_COLOUR

    def _write(self, canvas: U8, text: str, centre: tuple[float, float], colour: tuple[int, int, int], scale: float) -> None:
        """Text with its middle at ``centre``, moved until all of it is on the canvas; none where it would not be legible."""
        scale *= self.size[1] / 400 * 0.42
        if scale < 0.25:
            return
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        left = round(min(max(centre[0] - width / 2, 1), self.size[0] - width - 2))
        bottom = round(min(max(centre[1] + height / 2, height + 1), self.size[1] - 2))
        for shade, thickness in (((0, 0, 0), 3), (colour, 1)):
            cv2.putText(canvas, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, scale, shade, thickness, cv2.LINE_AA)


def scan_ends(scan: Scan) -> Array:
    """The points where free ground ends, float64 ``(m, 2)`` metres in ``base_link``."""
    bearings = scan.angle_min + scan.angle_increment * np.flatnonzero(scan.ends)
    return np.asarray(scan.ranges_m[scan.ends, None] * np.stack([np.cos(bearings), np.sin(bearings)], axis=1))


def laser_ranges(scan: Scan) -> Array:
    """As a laser would say it (REP 117), float64 ``(n,)``: infinity where nothing ends free ground within the range, NaN where
    nobody knows, since the view ends before, or no ground is seen."""
    whole = scan.ranges_m >= scan.range_max_m - LIMIT_M
    return np.asarray(np.where(scan.ends, scan.ranges_m, np.where(whole, np.inf, np.nan)))


def way_ahead(ground: Ground, config: GroundConfig) -> list[Array]:
    """Where the way ahead of the bumper ends: a line across the vehicle's width, and a bar along the 95 % interval with its two
    caps, float64 ``(2, 2)`` metres in ``base_link`` each; none where that is not seen."""
    if ground.ahead is None:
        return []
    half, ahead = config.vehicle_width_m / 2, ground.ahead
    end, near, far = (min(config.bumper_m + m, config.max_range_m) for m in (ahead.m, ahead.near_m, ahead.far_m))
    across = [((x, width), (x, -width)) for x, width in ((end, half), (near, half / 2), (far, half / 2))]
    return [np.array(stroke) for stroke in (across[0], ((near, 0.0), (far, 0.0)), *across[1:])]


def vehicle(config: GroundConfig) -> Array:
    """The vehicle's outline as far as it is known, float64 ``(4, 2)`` metres in ``base_link``: its width, and from the
    bumper back to the origin, `VEHICLE_M` at least."""
    half, front = config.vehicle_width_m / 2, config.bumper_m
    back = min(0.0, front - VEHICLE_M)
    return np.array([(back, -half), (front, -half), (front, half), (back, half)])


class Pyramid:
    """Samples a picture at given pixels without aliasing: where the picture is much finer than the samples, halved copies of
    it are sampled instead. They lie side by side in one image, so that one pass takes them all.

    Args:
        pixels: where to sample pictures, ``(h, w, 2)`` pixels (u, v); NaN for nowhere.
        picture: ``(width, height)`` of the pictures.

    Attributes:
        outside: bool ``(h, w)``: where nothing of the picture is.
    """

    def __init__(self, pixels: Array, picture: tuple[int, int]) -> None:
        width, height = picture
        with np.errstate(all="ignore"):
            self.outside = ~((pixels >= -0.5) & (pixels <= np.array(picture) - 0.5)).all(axis=-1)
            (dv_u, dv_v), (du_u, du_v) = (np.moveaxis(g, -1, 0) for g in gradients(pixels))
            area = np.abs(du_u * dv_v - du_v * dv_u)  # of the picture, for each sample
        spacing = np.sqrt(np.where(self.outside | ~np.isfinite(area), np.nan, area))
        halvings = np.log2(np.maximum(np.nan_to_num(spacing, nan=1.0), 1.0)).round().astype(int)
        wanted = halvings[~self.outside]
        first = int(wanted.min()) if wanted.size else 0
        last = min(first + LEVELS - 1, int(wanted.max()) if wanted.size else 0, int(math.log2(min(picture))))
        self._sizes = [(max(1, width >> n), max(1, height >> n)) for n in range(min(first, last), last + 1)]
        tops = np.cumsum([0, 0, *(h for _, h in self._sizes[1:])])
        self._places = [(0 if n == 0 else self._sizes[0][0], int(tops[n])) for n in range(len(self._sizes))]
        right = self._sizes[0][0] + (self._sizes[1][0] if len(self._sizes) > 1 else 0)
        self._shape = max(self._sizes[0][1], int(tops[-1])), right, 3
        level = np.clip(halvings - min(first, last), 0, len(self._sizes) - 1)
        size, place = np.array(self._sizes)[level], np.array(self._places)[level]
        at = (np.nan_to_num(pixels) + 0.5) * size / np.array(picture) - 0.5
        at = np.clip(at, 0, size - 1) + place  # no sample takes from the copy beside its own
        self._at, self._between = cv2.convertMaps(at[..., 0].astype(np.float32), at[..., 1].astype(np.float32), cv2.CV_16SC2)

    def sample(self, image: U8) -> U8:
        """``image`` uint8 ``(H, W, 3)`` at the pixels: uint8 ``(h, w, 3)``; anything where they are `outside`."""
        atlas = np.empty(self._shape, np.uint8)
        for size, (left, top) in zip(self._sizes, self._places, strict=True):
            copy = atlas[top : top + size[1], left : left + size[0]]
            copy[...] = image if size == image.shape[1::-1] else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            image = copy
        return np.asarray(cv2.remap(atlas, self._at, self._between, cv2.INTER_LINEAR), np.uint8)


def gradients(pixels: Array) -> list[Array]:
    """How ``(h, w, 2)`` changes from row to row and from column to column; a single one does not change."""
    return [np.gradient(pixels, axis=axis) if pixels.shape[axis] > 1 else np.zeros_like(pixels) for axis in (0, 1)]


def shown_area(metres: Metres) -> tuple[float, float, float, float]:
    """Least x and y, greatest x and y, metres, of what is shown: the ground that is seen in a band along the direction in which
    the camera looks, and the front of the vehicle."""
    config, mount = metres.config, metres.camera.mount
    reach, beside = config.max_range_m, config.vehicle_width_m / 2 + 0.5
    ahead = np.array([math.cos(mount.yaw), math.sin(mount.yaw)])
    band = shapely.LineString([(mount.x_m, mount.y_m), (mount.x_m, mount.y_m) + reach * ahead])
    seen = shapely.intersection(metres.view.seen, band.buffer(BAND * reach, cap_style="flat"))
    front = shapely.box(config.bumper_m - VEHICLE_M, -beside, config.bumper_m, beside)
    least_x, least_y, greatest_x, greatest_y = shapely.GeometryCollection([seen, front]).bounds
    return least_x, least_y, greatest_x, greatest_y


@lru_cache(maxsize=8)
def birdseye(metres: Metres, picture: tuple[int, int], room: tuple[int, int]) -> BirdsEye:
    """`BirdsEye`, made once for several outputs and all frames of a size."""
    return BirdsEye(metres, picture, room)
