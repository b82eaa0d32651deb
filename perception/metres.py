"""Results on the ground, in metres: what a planner asks of the polygons.

Everything here is about ground that is known to be free: that ends at an obstacle, at an edge of the road, and where the
view ends. Frame: ``base_link`` (x forward, y left, the origin on the ground).
"""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from calibration.camera import Camera
from calibration.camera_file import read_mounted
from calibration.ground import CERTAIN, GroundView, RangeUncertainty
from calibration.refinement import PitchRefiner
from perception.boundary import Edges, free_across, free_along_lines, free_along_rays, spans
from perception.config import GroundConfig
from perception.errors import BadInput
from perception.frame import Frame
from perception.freespace import Distance, Ground, Polygon, Scan, Width
from perception.polygons import inside_rings

Array = NDArray[np.float64]

GAP_M = 0.3  # free ground that begins so close to the beginning of the view begins with it
LANE_M = 0.1  # at most between the lines along which the way ahead of the vehicle is looked at
UNEVEN_M = 1.0  # a camera that sees one side of the way from so much farther on than the other does not see the way
LIMIT_M = 0.1  # what ends so close to the view's end ends there
PITCH_STEP = math.radians(0.02)  # the view is built anew when the pitch has moved so far: that takes some milliseconds
GUESSED = {"pitch": 0.02, "roll": 0.02, "height_m": 0.05}  # standard deviations of what nobody measured, radians and metres
UNKNOWN, FREE, OCCUPIED = -1, 0, 100  # of nav_msgs/OccupancyGrid


class Metres:
    """Brings results to the ground that one camera sees.

    Attributes:
        camera: the camera, for frames of one size.
        view: what it sees.

    Raises:
        BadInput: the camera sees no ground within the range.
    """

    def __init__(self, camera: Camera, config: GroundConfig) -> None:
        self.camera, self.config = camera, config
        try:
            self.view = GroundView(camera, config.max_range_m, config.min_range_m)
        except ValueError as error:
            raise BadInput(f"{config.calibration}: {error}") from error
        mount = camera.mount
        nodding = {"pitch": config.pitch_sigma, "roll": config.pitch_sigma}
        pixel_px = config.pixel_sigma * camera.intrinsics.height
        guessed = {name: sigma for name, sigma in GUESSED.items() if name not in camera.uncertain.names}
        self._uncertainty = RangeUncertainty(camera, camera.uncertain.plus(guessed).plus(nodding), pixel_px)
        self._seen = Edges([ring for part in shapely.get_parts(self.view.seen) for ring in rings_of(part)])
        low, high = spans(self._seen, mount.yaw)
        behind = (high - low >= math.pi).any()  # all around, then
        right, left = (-math.pi, math.pi) if behind else (low.min(), high.max())
        step, half = config.scan_step, config.vehicle_width_m / 2
        first = math.ceil(right / step)
        self._rays = (first * step, step, math.floor(left / step) - first + 1)
        lanes = math.ceil(2 * half / LANE_M)
        self._lanes = (-half, 2 * half / lanes, lanes + 1)
        self._seen_along_rays = free_along_rays(self._seen, *self._rays, mount.yaw)[0]
        self._seen_along_lanes = free_along_lines(self._seen, *self._lanes)[0]
        # What reaches as far as a pixel from the image's border may go on beyond it.
        width, height = self.view.size
        within = self.view.place([shapely.box(0.5, 0.5, width - 1.5, height - 1.5)])[0]
        inner = Edges([ring for part in within for ring in part.rings])
        self._seen_across = [free_across(self._seen, x) is not None for x in config.widths_at_m]
        self._known_across = [free_across(inner, x) or (0.0, 0.0) for x in config.widths_at_m]
        self._known_along_rays = free_along_rays(inner, *self._rays, mount.yaw)[1] - LIMIT_M
        self._known_along_lanes = free_along_lines(inner, *self._lanes)[1] - LIMIT_M

    def place(self, polygons: list[Polygon]) -> tuple[list[Polygon], Ground]:
        """The same polygons with their parts on the ground, and what is to be said of all of them together."""
        placed = self.view.place([shapely.Polygon(p.exterior, p.interiors) for p in polygons])
        parts = [part for those in placed for part in those]
        edges = Edges([ring for part in parts for ring in part.rings])
        ranges, lane = self.free_ranges(edges), self.shortest_lane(edges)
        first, step, count = self._rays
        bearings = self.camera.mount.yaw + first + step * np.arange(count)
        points = ranges[:, None] * np.stack([np.cos(bearings), np.sin(bearings)], axis=1)
        across = [free_across(edges, x) or (0.0, 0.0) for x in self.config.widths_at_m]
        sides = [(x, y) for x, ends in zip(self.config.widths_at_m, across, strict=True) for y in ends]
        asked = [points, np.array(sides).reshape(-1, 2), np.empty((0, 2)) if lane is None else np.array([lane[1]])]
        intervals, sideways = self._uncertainty.of(np.concatenate(asked))
        near, far = bounds(intervals[:count], ranges, self._seen_along_rays, self._known_along_rays)
        ground = Ground(
            frame_id=self.camera.mount.frame_id,
            area_m2=sum(part.area_m2 for part in parts),
            ahead=self.way_ahead(*lane, intervals[-1:]) if lane else None,
            scan=Scan(
                self.camera.mount.yaw + first,
                step,
                self.config.max_range_m,
                ranges,
                near,
                far,
                ranges < np.nan_to_num(self._known_along_rays),
            ),
            widths=self.free_widths(across, sideways[count : count + len(sides)].reshape(-1, 2)),
        )
        return [replace(p, ground=those) for p, those in zip(polygons, placed, strict=True)], ground

    def blocked(self, ground: Ground) -> bool:
        """Whether there is free ground, and yet none ahead that begins where the view does."""
        begin = float(np.max(self._seen_along_lanes))
        return ground.area_m2 > 0 and ground.ahead is not None and ground.ahead.m + self.config.bumper_m <= begin + GAP_M

    def free_ranges(self, edges: Edges) -> Array:
        """How far free ground reaches from base_link's origin along the scan's rays, without a break from where the view
        begins; NaN where no ground is seen."""
        return without_break(self._seen_along_rays, *free_along_rays(edges, *self._rays, self.camera.mount.yaw))

    def free_widths(self, across: list[tuple[float, float]], sigma: Array) -> list[Width]:
        """Free widths at the forward distances of the settings, given where free ground ends there to the right and left, y in
        metres, and the standard deviations ``(n, 2)`` of these."""
        widths = []
        for i, (x, (right, left)) in enumerate(zip(self.config.widths_at_m, across, strict=True)):
            if not self._seen_across[i]:
                unseen = math.nan
                widths.append(Width(x, unseen, unseen, unseen, unseen, unseen, unseen, right_ends=False, left_ends=False))
                continue
            begins, ends = self._known_across[i]
            seen = left > right and right > begins + LIMIT_M, left > right and left < ends - LIMIT_M
            spreads = (CERTAIN * sigma[i]).tolist() if left > right else [math.inf, math.inf]
            bounds = [
                (max(0.0, end - spread), end + spread if there else math.inf)
                for end, spread, there in zip((-right, left), spreads, seen, strict=True)
            ]
            (right_near, right_far), (left_near, left_far) = bounds
            widths.append(Width(x, right, left, 0.0 - right_near, -right_far, left_near, left_far, *seen))
        return widths

    def shortest_lane(self, edges: Edges) -> tuple[int, tuple[float, float]] | None:
        """Of the lines across the vehicle's width the one along which free ground first ends, and that place, metres; None
        where not all of them are seen."""
        ends = without_break(self._seen_along_lanes, *free_along_lines(edges, *self._lanes))
        if np.isnan(ends).any() or np.ptp(self._seen_along_lanes) > UNEVEN_M:
            return None
        first, step, _ = self._lanes
        lane = int(np.argmin(ends))
        return lane, (float(ends[lane]), first + step * lane)

    def way_ahead(self, lane: int, place: tuple[float, float], interval: Array) -> Distance:
        """From the bumper to where free ground first ends: the `shortest_lane`, and the interval ``(1, 2)`` of its range."""
        x, y = place
        this = slice(lane, lane + 1)
        along = interval - math.hypot(x, y) + x
        near, far = bounds(along, np.array([x]), self._seen_along_lanes[this], self._known_along_lanes[this])
        return Distance(*(max(0.0, end - self.config.bumper_m) for end in (x, float(near[0]), float(far[0]))))

    def occupancy_origin(self, resolution_m: float) -> tuple[float, float]:
        """The least x and y of the grid's cells, metres in ``base_link``: whole numbers of cells from the origin."""
        x, y = (resolution_m * math.floor(least / resolution_m) for least in self.view.seen.bounds[:2])
        return x, y

    def occupancy(self, polygons: list[Polygon], resolution_m: float) -> NDArray[np.int8]:
        """The ground as cells, as in nav_msgs/OccupancyGrid.

        Free is a cell whose centre lies in a polygon; occupied one that is seen, not free, and beside a free one: the
        boundary of free ground, whatever makes it; of all others nothing is known.

        Returns:
            int8 ``(rows, columns)`` of `UNKNOWN`, `FREE`, `OCCUPIED`: columns in the direction of x, rows in that of y, the
            first cell's corner at `occupancy_origin`; as many as hold all ground that is seen.
        """
        origin = np.array(self.occupancy_origin(resolution_m))
        columns, rows = np.ceil((np.array(self.view.seen.bounds[2:]) - origin) / resolution_m).astype(int).tolist()

        def cells(rings: list[Array]) -> NDArray[np.uint8]:
            return inside_rings([(ring - origin) / resolution_m - 0.5 for ring in rings], (columns, rows))

        free = cells([ring for polygon in polygons for part in polygon.ground or [] for ring in part.rings])
        seen = cells([ring for part in shapely.get_parts(self.view.seen) for ring in rings_of(part)])
        inner = cv2.erode(seen, np.ones((3, 3), np.uint8), borderValue=0)
        near_free = cv2.dilate(free, np.ones((3, 3), np.uint8))
        grid = np.full(free.shape, UNKNOWN, np.int8)
        grid[(near_free > 0) & (inner > 0)] = OCCUPIED
        grid[free > 0] = FREE
        return grid


def without_break(seen: Array, begins: Array, ends: Array) -> Array:
    """Where free ground ends that begins where the view does; where it does not begin there, it ends there."""
    return np.where(begins <= seen + GAP_M, ends, seen)


def bounds(intervals: Array, ends: Array, seen: Array, known: Array) -> tuple[Array, Array]:
    """Between which distances free ground truly ends, float64 ``(n,)`` each.

    Where the interval reaches back to where the view begins, what stands there may stand before it, as near as can be; where
    free ground reaches the view's end, nobody knows how far it goes on.

    Args:
        intervals: ``(n, 2)`` of the places where it ends to be seen.
        ends: ``(n,)`` these places.
        seen, known: ``(n,)``: where the view begins, and up to where it shows whether free ground ends.
    """
    near, far = intervals.T
    return np.where(near <= seen, 0.0, near), np.where(ends >= np.nan_to_num(known), np.inf, far)


def rings_of(shape: shapely.Polygon) -> list[Array]:
    return [shapely.get_coordinates(line)[:-1] for line in (shape.exterior, *shape.interiors)]


class Rulers:
    """`Metres` for frames of any size that the calibrated camera gives, its pitch corrected while driving where that is wanted.

    Args:
        live: frames that come while the pitch is looked at are not looked at; else they are waited for, and a recording
            always gives the same.

    Raises:
        BadInput: the calibration cannot be read, or has no mount.
    """

    def __init__(self, config: GroundConfig, file: Path, live: bool = False) -> None:
        self.config, self.file, self._live = config, file, live
        self._metres: Metres | None = None
        self._refiner: PitchRefiner | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._looking: Future[None] | None = None
        self._stretch = 0
        try:
            self.camera = read_mounted(file)
        except ValueError as error:
            raise BadInput(str(error)) from error

    def at(self, frame: Frame) -> Metres:
        """For this frame. Raises `BadInput`: it is of another shape than the calibrated ones."""
        if self._metres is None or self._metres.view.size != frame.size:
            k, size = self.camera.intrinsics, frame.size
            if not k.fits(size):
                raise BadInput(
                    f"{self.file}: made for frames of {k.width}x{k.height}, and these are {size[0]}x{size[1]}: another shape "
                    "needs another calibration"
                )
            camera = self.camera.scaled(size)
            self._metres = Metres(camera, self.config)
            self._refiner = PitchRefiner(camera) if self.config.refine_pitch else None
        if self._refiner is not None:
            self._metres = self._follow(self._refiner, frame, self._metres)
        return self._metres

    def _follow(self, refiner: PitchRefiner, frame: Frame, metres: Metres) -> Metres:
        """With the pitch as the frames before show it. The refiner looks at this one in a thread of its own, since it takes
        longer than a frame may; nothing else touches it meanwhile."""
        if self._looking is not None:
            if self._live and not self._looking.done():
                return metres
            self._looking.result()
        if frame.stretch != self._stretch:
            self._stretch = frame.stretch
            refiner.reset()
        if abs(refiner.pitch - metres.camera.mount.pitch) > PITCH_STEP:
            metres = Metres(replace(metres.camera, mount=refiner.mount), self.config)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "pitch")
        self._looking = self._thread.submit(refiner.add, frame.image, frame.stamp_ns)
        return metres
