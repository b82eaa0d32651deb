"""Free ground in metres: by hand on simple scenes, by brute force on many, and through the loop."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
import shapely.affinity
from conftest import Cli, Image, road_image, write_image
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.camera import Camera, Intrinsics, Mount
from calibration.camera_file import write_camera
from calibration.covariance import Covariance
from calibration.ground import ground_from_pixels, pixels_from_ground
from engine.base import Engine
from perception import metres
from perception.boundary import Edges, free_across, free_along_lines, free_along_rays
from perception.capture import Source
from perception.causes import Code
from perception.config import Config, GroundConfig, HealthConfig
from perception.errors import BadInput
from perception.frame import Frame
from perception.freespace import Distance, Freespace, Ground, Polygon, Width
from perception.metres import FREE, OCCUPIED, UNKNOWN, Metres, Rulers
from perception.node import process

PINHOLE = Intrinsics(1000, 1000, 639.5, 359.5, 1280, 720)
LEVEL = Camera(PINHOLE, Mount(height_m=1.5))
BEGIN_M = 1500 / 360  # where the ground enters the picture of a level camera 1.5 m high
SETTINGS = GroundConfig(max_range_m=40, vehicle_width_m=2.0, widths_at_m=[8.0, 20.0, 39.0])


def seen(camera: Camera, *rings: list[tuple[float, float]]) -> Polygon:
    """A polygon in pixels whose corners lie at these places on the ground; hole after the exterior."""
    exterior, *interiors = (pixels_from_ground(camera, ring) for ring in rings)
    return Polygon("freespace", True, 0.9, shapely.Polygon(exterior, interiors).area, exterior, interiors)


def road(camera: Camera, until: float = 30.0, *holes: list[tuple[float, float]]) -> Polygon:
    """A road 3 m wide to either side, from below the picture."""
    begin = camera.mount.x_m + 1
    return seen(camera, [(begin, -3), (until, -3), (until, 3), (begin, 3)], *holes)


def place(polygons: list[Polygon], camera: Camera = LEVEL, config: GroundConfig = SETTINGS) -> Ground:
    return Metres(camera, config).place(polygons)[1]


def range_at(ground: Ground, angle: float) -> float:
    return float(ground.scan.ranges_m[round((angle - ground.scan.angle_min) / ground.scan.angle_increment)])


BOX = [(14.0, -0.5), (14.0, 1.5), (16.0, 1.5), (16.0, -0.5)]


class TestScene:
    """A road 6 m wide that ends at 30 m, with a box of 2 m by 2 m on it."""

    def test_an_empty_road(self) -> None:
        ground = place([road(LEVEL)])
        assert ground.ahead is not None
        assert ground.ahead.m == pytest.approx(30, abs=0.01)
        assert ground.ahead.near_m < 30 < ground.ahead.far_m
        assert range_at(ground, 0.0) == pytest.approx(30, abs=0.01)
        # At 0.3 rad to the left its side is met at 3 / sin.
        step = round(0.3 / 0.0175) * 0.0175
        assert range_at(ground, step) == pytest.approx(3 / math.sin(step), abs=0.01)
        assert [(w.right_m, w.left_m) for w in ground.widths] == [pytest.approx((-3, 3), abs=0.01)] * 2 + [(0.0, 0.0)]
        assert [(w.right_ends, w.left_ends) for w in ground.widths] == [(True, True)] * 2 + [(False, False)]

    def test_what_the_box_hides(self) -> None:
        ground = place([road(LEVEL, 30.0, BOX)])
        assert ground.ahead is not None
        assert ground.ahead.m == pytest.approx(14, abs=0.01)
        assert range_at(ground, 0.0) == pytest.approx(14, abs=0.01)
        assert ground.area_m2 == pytest.approx(place([road(LEVEL)]).area_m2 - 4, abs=0.02)

    def test_distances_count_from_the_bumper_and_ranges_from_base_link(self) -> None:
        camera = Camera(PINHOLE, Mount(1.5, x_m=1.8))
        ground = place([road(camera, 30.0, BOX)], camera, SETTINGS.model_copy(update={"bumper_m": 3.5}))
        assert ground.ahead is not None
        assert ground.ahead.m == pytest.approx(10.5, abs=0.01)
        assert range_at(ground, 0.0) == pytest.approx(14, abs=0.01)

    def test_something_beside_the_vehicles_path_is_not_ahead(self) -> None:
        beside = [(14.0, 1.1), (14.0, 2.0), (16.0, 2.0), (16.0, 1.1)]
        ground = place([road(LEVEL, 30.0, beside)])
        assert ground.ahead is not None
        assert ground.ahead.m == pytest.approx(30, abs=0.01)
        within = [(14.0, 0.93), (14.0, 2.0), (16.0, 2.0), (16.0, 0.93)]
        ground = place([road(LEVEL, 30.0, within)])
        assert ground.ahead is not None
        assert ground.ahead.m == pytest.approx(14, abs=0.01)

    def test_free_as_far_as_one_looks(self) -> None:
        ground = place([road(LEVEL, 200.0)])
        assert ground.ahead is not None
        assert ground.ahead.m == pytest.approx(40, abs=0.05)
        assert ground.ahead.far_m == math.inf
        assert range_at(ground, 0.0) == pytest.approx(40, abs=0.02)
        assert ground.scan.range_max_m == 40

    def test_ground_behind_a_bonnet(self) -> None:
        beyond = seen(LEVEL, [(5.5, -3), (30, -3), (30, 3), (5.5, 3)])
        ground = place([beyond])
        assert ground.ahead is not None
        assert ground.ahead.m == pytest.approx(BEGIN_M, abs=0.01)
        assert Metres(LEVEL, SETTINGS).blocked(ground)
        config = SETTINGS.model_copy(update={"min_range_m": 6.0})
        ground = place([beyond], LEVEL, config)
        assert ground.ahead is not None
        assert ground.ahead.m == pytest.approx(30, abs=0.01)
        assert range_at(ground, 0.0) == pytest.approx(30, abs=0.01)
        assert np.nanmin(ground.scan.ranges_m) >= 6.0 - 0.01
        assert not Metres(LEVEL, config).blocked(ground)

    def test_no_free_ground_is_blocked_where_the_view_begins(self) -> None:
        ground = place([])
        assert ground.area_m2 == 0
        assert ground.ahead is not None
        assert ground.ahead.m == pytest.approx(BEGIN_M, abs=0.01)
        assert range_at(ground, 0.0) == pytest.approx(BEGIN_M, abs=0.01)
        assert all((w.right_m, w.left_m) == (0, 0) for w in ground.widths)

    def test_a_width_says_what_is_not_seen_and_where_only_the_view_ends(self) -> None:
        """At 3 m nothing is seen, at 5 m the picture's sides are 3.2 m away, at 45 m the range has ended."""
        config = SETTINGS.model_copy(update={"widths_at_m": [3.0, 5.0, 20.0, 45.0]})
        whole = seen(LEVEL, [(1.0, -60), (60, -60), (60, 4), (1, 4)])
        below, near, far, beyond = place([whole], LEVEL, config).widths
        for width in (below, beyond):
            assert np.isnan([width.right_m, width.left_m, width.right_near_m, width.left_far_m]).all()
            assert (width.right_ends, width.left_ends) == (False, False)
        assert (near.right_m, near.left_m) == pytest.approx((-3.2, 3.2), abs=0.01)
        assert (near.right_far_m, near.left_far_m) == (-math.inf, math.inf)
        assert (near.right_ends, near.left_ends) == (False, False)
        assert (far.right_m, far.left_m) == pytest.approx((-12.8, 4), abs=0.01)
        assert (far.right_ends, far.left_ends) == (False, True)
        assert 0 < far.left_near_m < 4 < far.left_far_m < math.inf

    def test_nothing_free_on_ground_that_is_seen(self) -> None:
        width = place([]).widths[0]
        assert (width.right_m, width.left_m, width.left_near_m, width.left_far_m) == (0, 0, 0, math.inf)
        assert str(width.right_near_m) == "0.0"

    @pytest.mark.parametrize("x", [6.0, 15.0])
    def test_widths_lie_in_their_intervals(self, x: float) -> None:
        """A road as a camera sees it whose pitch and yaw are not quite those it is taken to have, and with noise."""
        rng, sigma = np.random.default_rng(1), {"pitch": 0.006, "roll": 0.0, "yaw": 0.008, "height_m": 0.02}
        config = SETTINGS.model_copy(update={"widths_at_m": [x], "pitch_sigma": 0.0, "pixel_sigma": 2 / 720})
        taken = Metres(Camera(PINHOLE, Mount(1.5, pitch=0.1, sigma=sigma)), config)
        held = []
        for _ in range(80):
            off = {name: rng.normal(0, s) for name, s in sigma.items()}
            truly = Camera(PINHOLE, Mount(1.5 + off["height_m"], 0.1 + off["pitch"], yaw=off["yaw"]))
            polygon = seen(truly, [(3.0, -3), (30, -3), (30, 2), (3, 2)])
            moved = polygon.exterior + rng.normal(0, 2, 2)
            (width,) = taken.place([replace(polygon, exterior=moved)])[1].widths
            held += [width.left_near_m <= 2 <= width.left_far_m, width.right_far_m <= -3 <= width.right_near_m]
        assert np.mean(held) == pytest.approx(0.95, abs=0.045)

    def test_free_ground_behind_an_obstacle_does_not_count(self) -> None:
        ground = place([seen(LEVEL, [(10, -3), (20, -3), (20, 3), (10, 3)])])
        assert ground.ahead is not None
        assert ground.ahead.m == pytest.approx(BEGIN_M, abs=0.01)
        assert ground.widths[1].right_m == 0  # at 20 m it has just ended
        assert place([seen(LEVEL, [(7, -3), (9, -3), (9, 3), (7, 3)])]).widths[0].left_m == pytest.approx(3, abs=0.01)

    def test_nobody_knows_how_near_something_stands_that_hides_where_the_view_begins(self) -> None:
        for polygons in ([], [seen(LEVEL, [(10, -3), (20, -3), (20, 3), (10, 3)])]):
            ground = place(polygons)
            assert ground.ahead is not None
            assert ground.ahead.near_m == 0
            assert BEGIN_M < ground.ahead.far_m < 6
            assert (ground.scan.near_m == 0).all()
        ground = place([road(LEVEL)])
        assert ground.ahead is not None
        assert ground.ahead.near_m > 10
        assert ground.scan.near_m[len(ground.scan.near_m) // 2] > 10

    @pytest.mark.parametrize("yaw", [0.0, 0.6])
    def test_nobody_knows_how_far_free_ground_goes_on_beside_the_picture(self, yaw: float) -> None:
        # As the pitch is, the picture shows more of the ground nearby to either side than of that far away.
        camera = Camera(PINHOLE, Mount(1.5, pitch=0.6, yaw=yaw))
        whole = np.array([(-0.5, -0.5), (-0.5, 719.5), (1279.5, 719.5), (1279.5, -0.5)])
        ground = place([Polygon("freespace", True, 0.9, 1.0, whole, [])], camera)
        assert (ground.scan.ranges_m < 35).sum() > 10
        assert np.isinf(ground.scan.far_m).all()
        assert yaw or (ground.ahead is not None and ground.ahead.far_m == math.inf)
        inner = np.array([(5.0, -0.5), (5.0, 719.5), (1274.0, 719.5), (1274.0, -0.5)])
        ground = place([Polygon("freespace", True, 0.9, 1.0, inner, [])], camera)
        assert np.isfinite(ground.scan.far_m[ground.scan.ranges_m < 30]).any(), "an end within the picture is one"

    def test_a_view_around_the_vehicle(self) -> None:
        """Straight down from a mast: ground on all sides, the ray behind the camera's yaw no other than the rest."""
        camera = Camera(Intrinsics(300, 300, 639.5, 359.5, 1280, 720), Mount(4.0, pitch=math.pi / 2 - 1e-9))
        box = [(-3.0, -1.0), (-3.0, 1.0), (-2.0, 1.0), (-2.0, -1.0)]
        ground = place([seen(camera, [(-4.5, -8), (4.5, -8), (4.5, 8), (-4.5, 8)], box)], camera)
        for angle in (-3.1, -math.pi / 2, 0.0, math.pi / 2, 3.1):
            expected = 2 / abs(math.cos(angle)) if abs(angle) > 3 else 4.5 if angle == 0 else 8
            assert range_at(ground, angle) == pytest.approx(expected, abs=0.02)

    def test_a_camera_above_the_origin_with_nothing_free(self) -> None:
        camera = Camera(PINHOLE, Mount(1.5, pitch=math.pi / 2 - 1e-9))
        ground = place([], camera, SETTINGS.model_copy(update={"vehicle_width_m": 1.0}))
        assert ground.ahead is not None
        assert ground.ahead.m == ground.ahead.near_m == 0
        assert np.nanmax(ground.scan.ranges_m) < 1

    def test_a_view_between_two_rays_of_the_scan(self) -> None:
        tele = Camera(Intrinsics(9000, 9000, 639.5, 359.5, 1280, 720), Mount(1.5, pitch=0.1, y_m=3.0))
        config = SETTINGS.model_copy(update={"scan_step": 0.5})
        assert len(place([], tele, config).scan.ranges_m) == 0

    def test_a_camera_that_looks_to_the_left(self) -> None:
        camera = Camera(PINHOLE, Mount(1.5, yaw=math.pi / 2))
        to_the_left = seen(camera, [(-3.0, 1.0), (3, 1), (3, 30), (-3, 30)])
        ground = place([to_the_left], camera)
        assert ground.ahead is None  # nobody looks there
        assert range_at(ground, round(math.pi / 2 / 0.0175) * 0.0175) == pytest.approx(30, abs=0.02)

    def test_where_only_the_view_ends(self) -> None:
        """A wide road, and a camera 3 m behind base_link's origin: rays to the sides leave the picture."""
        camera = Camera(PINHOLE, Mount(1.5, x_m=-3.0))
        scan = place([seen(camera, [(-2.0, -60), (30, -60), (30, 60), (-2, 60)])], camera).scan
        middle = len(scan.ranges_m) // 2
        assert scan.ends[middle]
        assert np.isfinite(scan.far_m[middle])
        side = scan.ranges_m < 15.0
        assert side.any()
        assert not scan.ends[side].any()
        assert np.isinf(scan.far_m[side]).all()

    def test_a_way_of_which_one_side_is_hidden_is_not_seen(self) -> None:
        camera = Camera(PINHOLE, Mount(1.5, yaw=0.5))
        assert place([seen(camera, [(2.0, 1.5), (40, -3), (40, 30), (2, 10)])], camera).ahead is None

    def test_a_rear_camera(self) -> None:
        camera = Camera(PINHOLE, Mount(1.5, yaw=math.pi, x_m=-1.0))
        behind = seen(camera, [(-3.0, 3.0), (-3.0, -3.0), (-20.0, -3.0), (-20.0, 3.0)])
        ground = place([behind], camera)
        middle = ground.scan.ranges_m[len(ground.scan.ranges_m) // 2]
        assert middle == pytest.approx(20, abs=0.05)


class TestHowSure:
    """The way ahead's interval, by what is known of the mount."""

    def spread(self, **sigma: float) -> float:
        ahead = place([road(LEVEL, 15.0)], replace(LEVEL, mount=replace(LEVEL.mount, sigma=sigma))).ahead
        assert ahead is not None
        return ahead.far_m - ahead.near_m

    def test_what_nobody_measured_is_not_certain(self) -> None:
        certain = self.spread(pitch=0.0, roll=0.0, height_m=0.0)
        assert self.spread() > self.spread(pitch=0.0, roll=0.0) > certain
        assert self.spread() == pytest.approx(self.spread(pitch=0.02, roll=0.02, height_m=0.05))
        assert self.spread(roll=0.0, height_m=0.0) > 2 * certain

    def test_what_makes_up_for_each_other(self) -> None:
        known = Covariance.of(("cy", "pitch"), [[400.0, 0.4], [0.4, 4e-4]]).plus({"roll": 0.0, "height_m": 0.0})
        camera = replace(LEVEL, mount=replace(LEVEL.mount, covariance=known))
        ahead = place([road(LEVEL, 15.0)], camera).ahead
        assert ahead is not None
        assert ahead.far_m - ahead.near_m < 1.05 * self.spread(pitch=0.0, roll=0.0, height_m=0.0)


@st.composite
def regions(draw: st.DrawFn) -> shapely.Geometry:
    """Some polygons with holes ahead of the origin."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    discs = [shapely.Point(rng.uniform(2, 30), rng.uniform(-8, 8)).buffer(rng.uniform(0.5, 6), quad_segs=4) for _ in range(5)]
    away = [shapely.Point(rng.uniform(2, 30), rng.uniform(-8, 8)).buffer(rng.uniform(0.3, 3), quad_segs=4) for _ in range(4)]
    return shapely.intersection(
        shapely.difference(shapely.union_all(discs), shapely.union_all(away)), shapely.box(0.5, -20, 40, 20)
    )


def edges(region: shapely.Geometry) -> Edges:
    parts = [part for part in shapely.get_parts(region) if isinstance(part, shapely.Polygon)]
    return Edges([shapely.get_coordinates(r)[:-1] for p in parts for r in (p.exterior, *p.interiors)])


class TestBoundary:
    """Against Shapely's own intersection of each line."""

    @settings(max_examples=50)
    @given(regions())
    def test_rays(self, region: shapely.Geometry) -> None:
        begins, ends = free_along_rays(edges(region), -1.2, 0.0731, 33)
        for i, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            angle = -1.2 + 0.0731 * i
            ray = shapely.LineString([(0, 0), (80 * math.cos(angle), 80 * math.sin(angle))])
            self.check(ray, region, begin, end)

    @settings(max_examples=50)
    @given(regions())
    def test_lines(self, region: shapely.Geometry) -> None:
        begins, ends = free_along_lines(edges(region), -1.03, 0.0997, 21)
        for i, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            y = -1.03 + 0.0997 * i
            self.check(shapely.LineString([(0, y), (80, y)]), region, begin, end)

    def check(self, line: shapely.LineString, region: shapely.Geometry, begin: float, end: float) -> None:
        pieces = [p for p in shapely.get_parts(shapely.line_merge(shapely.intersection(line, region))) if p.length > 0]
        if not pieces:
            assert math.isnan(begin)
            return
        start = shapely.Point(line.coords[0])
        first = min(pieces, key=start.distance)
        assert begin == pytest.approx(start.distance(first), abs=1e-6)
        assert end == pytest.approx(begin + first.length, abs=1e-6)

    @settings(max_examples=50)
    @given(regions(), st.floats(3, 35))
    def test_across(self, region: shapely.Geometry, x: float) -> None:
        found = free_across(edges(region), x)
        inside = shapely.contains_xy(region, x, 0.0)
        if shapely.distance(region.boundary, shapely.Point(x, 0)) > 1e-9:
            assert (found is not None) == inside
        if found:
            middle = shapely.LineString([(x, found[0]), (x, found[1])])
            assert shapely.covers(shapely.buffer(region, 1e-6), middle)

    @settings(max_examples=50, deadline=None)
    @given(regions(), st.floats(-math.pi, math.pi))
    def test_rays_all_around(self, region: shapely.Geometry, facing: float) -> None:
        region = shapely.affinity.translate(region, -12)
        begins, ends = free_along_rays(edges(region), -3.1, 0.0731, 85, facing)
        for i, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            angle = facing - 3.1 + 0.0731 * i
            ray = shapely.LineString([(0, 0), (80 * math.cos(angle), 80 * math.sin(angle))])
            self.check(ray, region, begin, end)

    def test_a_region_around_the_origin_begins_there(self) -> None:
        square = Edges([np.array([(5.0, -5), (5, 5), (-5, 5), (-5, -5)])])
        begins, ends = free_along_rays(square, -0.5, 0.25, 5)
        np.testing.assert_allclose(begins, 0)
        np.testing.assert_allclose(ends, 5 / np.cos([-0.5, -0.25, 0, 0.25, 0.5]))

    def test_nothing_gives_nothing(self) -> None:
        for found in (free_along_rays(Edges([]), -1, 0.1, 4), free_along_lines(Edges([]), -1, 0.1, 4)):
            assert np.isnan(found).all()
        assert free_across(Edges([]), 5.0) is None


class TestOccupancy:
    """Cells as in nav_msgs/OccupancyGrid."""

    def test_cells(self) -> None:
        metres = Metres(LEVEL, SETTINGS)
        polygons, _ = metres.place([road(LEVEL, 30.0, BOX)])
        grid = metres.occupancy(polygons, 0.5)
        left, bottom = metres.occupancy_origin(0.5)
        assert left == 4.0  # the view begins at 4.17 m
        assert (left % 0.5, bottom % 0.5) == (0, 0)

        def cell(x: float, y: float) -> int:
            return int(grid[int((y - bottom) / 0.5), int((x - left) / 0.5)])

        assert cell(10, 0) == cell(10, -2.6) == cell(20, 2) == FREE
        assert cell(14.2, 0.5) == OCCUPIED  # the near side of the box
        assert cell(15, 0.6) == UNKNOWN  # its inside
        assert cell(10, 3.2) == OCCUPIED  # the side of the road
        assert cell(10, 5) == cell(35, 0) == UNKNOWN  # seen, and nobody knows what it is
        assert np.count_nonzero(grid == FREE) * 0.25 == pytest.approx(
            sum(p.area_m2 for q in polygons for p in q.ground or []), rel=0.03
        )

    @pytest.mark.parametrize("yaw", [math.pi, math.pi / 2, -2.0])
    def test_wherever_the_camera_looks(self, yaw: float) -> None:
        """All ground that is seen has its cells: as much is free as by the polygons, and it is bounded on all sides."""
        camera = Camera(PINHOLE, Mount(1.5, yaw=yaw, x_m=-1.0))
        turn = np.array([[math.cos(yaw), math.sin(yaw)], [-math.sin(yaw), math.cos(yaw)]])
        metres = Metres(camera, SETTINGS)
        square = np.array([(8.0, -2.0), (12, -2), (12, 2), (8, 2)]) @ turn
        polygons, ground = metres.place([seen(camera, [(x, y) for x, y in square])])
        grid = metres.occupancy(polygons, 0.25)
        assert np.count_nonzero(grid == FREE) / 16 == pytest.approx(ground.area_m2, rel=0.03)
        assert ground.area_m2 == pytest.approx(16, rel=0.01)
        assert np.count_nonzero(grid == OCCUPIED) > 4 * 16
        row, column = np.argwhere(grid == FREE).mean(axis=0)
        middle = np.array(metres.occupancy_origin(0.25)) + 0.25 * (np.array([column, row]) + 0.5)
        np.testing.assert_allclose(middle, square.mean(axis=0), atol=0.1)

    def test_the_view_s_edge_is_no_obstacle(self) -> None:
        metres = Metres(LEVEL, SETTINGS)
        everything = seen(LEVEL, [(1.0, -60), (60, -60), (60, 60), (1, 60)])
        polygons, _ = metres.place([everything])
        assert not (metres.occupancy(polygons, 0.5) == OCCUPIED).any()


class TestResult:
    """The JSON form."""

    def result(self) -> Freespace:
        polygons, ground = Metres(LEVEL, SETTINGS).place([road(LEVEL, 30.0, BOX), road(LEVEL, 200.0)])
        return Freespace(
            1, "a", "camera", 2, "media", (1280, 720), True, "running", "m", "torch", 0, polygons, {"total": 1.0}, ground=ground
        )

    def test_there_and_back(self) -> None:
        result = self.result()
        line = result.to_json()
        assert Freespace.from_json(line).to_json() == line
        again = Freespace.from_json(line)
        assert again.ground is not None
        assert result.ground is not None
        np.testing.assert_allclose(again.ground.scan.ranges_m, result.ground.scan.ranges_m, atol=6e-4)
        np.testing.assert_array_equal(np.isinf(again.ground.scan.far_m), np.isinf(result.ground.scan.far_m))
        assert again.polygons[0].ground is not None
        assert again.polygons[0].ground[0].area_m2 == pytest.approx(result.polygons[0].ground[0].area_m2, abs=1e-3)  # type: ignore[index]

    def test_it_is_json_for_everybody(self) -> None:
        tree = json.loads(self.result().to_json(), parse_constant=pytest.fail)  # neither NaN nor Infinity
        assert tree["ground"]["frame_id"] == "base_link"
        assert tree["polygons"][0]["ground"][0]["exterior"][0][0] > 0

    def test_an_invalid_result_has_no_ground(self) -> None:
        ground = self.result().ground
        with pytest.raises(ValueError, match="invalid"):
            Freespace(1, "a", "c", 2, "media", (8, 8), False, "stale", "m", "torch", 0, [], {}, ground=ground)

    def test_what_nobody_knows_stays_unknown(self) -> None:
        ground = self.result().ground
        assert ground is not None
        unseen = np.full_like(ground.scan.ranges_m, np.nan)
        scan = replace(ground.scan, ranges_m=unseen, near_m=unseen, far_m=unseen)
        unknown, open_ended = Width(3.0, *[math.nan] * 6, False, False), Width(5.0, -3, 3, -2, -math.inf, 2, 4, False, True)  # type: ignore[arg-type]
        ground = replace(ground, scan=scan, ahead=Distance(9.0, 8.0, math.inf), widths=[unknown, open_ended])
        again = Freespace.from_json(replace(self.result(), ground=ground).to_json()).ground
        assert again is not None
        assert again.ahead == ground.ahead
        assert again.widths[1] == open_ended
        assert str(again.widths[0]) == str(unknown)
        assert np.isnan([again.scan.ranges_m, again.scan.near_m, again.scan.far_m]).all()

    @pytest.mark.parametrize(
        ("part", "key", "value"),
        [("ahead", "m", "far"), ("ahead", "near_m", [1]), ("widths", "left_m", "wide"), ("widths", "left_ends", 1)],
    )
    def test_a_line_with_something_else_for_a_number_is_refused(self, part: str, key: str, value: object) -> None:
        tree = json.loads(self.result().to_json())
        holder = tree["ground"][part]
        (holder[0] if isinstance(holder, list) else holder)[key] = value
        with pytest.raises(ValueError, match=key):
            Freespace.from_json(json.dumps(tree))

    def test_a_corner_on_the_ground_without_a_number_is_refused(self) -> None:
        tree = json.loads(self.result().to_json())
        tree["polygons"][0]["ground"][0]["exterior"][0][0] = None
        with pytest.raises(ValueError, match="corner"):
            Freespace.from_json(json.dumps(tree))

    @pytest.mark.parametrize("key", ["scan", "frame_id", "widths", "area_m2", "ahead"])
    def test_a_line_without_one_of_its_keys_is_refused(self, key: str) -> None:
        tree = json.loads(self.result().to_json())
        del tree["ground"][key]
        with pytest.raises(ValueError, match=key):
            Freespace.from_json(json.dumps(tree))


def frame(width: int, height: int) -> Frame:
    return Frame(np.zeros((height, width, 3), np.uint8), 0, 0, "media", "made")


class TestRulers:
    """From the calibration's file to the frames at hand."""

    def test_frames_of_another_size_and_shape(self, tmp_path: Path) -> None:
        write_camera(tmp_path / "car.yaml", LEVEL.intrinsics, LEVEL.mount)
        rulers = Rulers(SETTINGS, tmp_path / "car.yaml")
        half = rulers.at(frame(640, 360))
        assert half.camera.intrinsics.fx == pytest.approx(500)
        assert rulers.at(frame(640, 360)) is half
        with pytest.raises(BadInput, match="made for frames of 1280x720, and these are 640x480"):
            rulers.at(frame(640, 480))

    def test_without_a_mount_nothing_has_a_place(self, tmp_path: Path) -> None:
        write_camera(tmp_path / "lens.yaml", LEVEL.intrinsics)
        with pytest.raises(BadInput, match=r"lens.yaml: mount: missing.*calibrate ground"):
            Rulers(SETTINGS, tmp_path / "lens.yaml")

    def test_a_camera_that_sees_no_ground(self, tmp_path: Path) -> None:
        write_camera(tmp_path / "up.yaml", LEVEL.intrinsics, Mount(1.5, pitch=-1.0))
        with pytest.raises(BadInput, match="no ground"):
            Rulers(SETTINGS, tmp_path / "up.yaml").at(frame(1280, 720))


class Pitching:
    """Stands for the refiner: the pitch it says, and what it was given."""

    def __init__(self, camera: Camera) -> None:
        self.camera, self.pitch, self.given, self.resets = camera, camera.mount.pitch, list[int](), 0
        self.go = threading.Event()
        self.go.set()

    @property
    def mount(self) -> Mount:
        return replace(self.camera.mount, pitch=self.pitch, sigma={"pitch": 0.002, "height_m": 0.02})

    def add(self, image: Image, stamp_ns: int) -> None:
        self.go.wait(10)
        self.given.append(stamp_ns)

    def reset(self) -> None:
        self.resets += 1


class AtOnce:
    """An executor in the caller's thread."""

    def __init__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., None], *arguments: object) -> Future[None]:
        done: Future[None] = Future()
        done.set_result(work(*arguments))
        return done


class TestRefinedPitch:
    """The pitch follows the refiner; how that finds it is another test's business."""

    def rulers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: bool = False) -> Rulers:
        monkeypatch.setattr(metres, "PitchRefiner", Pitching)
        write_camera(tmp_path / "car.yaml", LEVEL.intrinsics, replace(LEVEL.mount, sigma={"pitch": 0.01, "height_m": 0.02}))
        return Rulers(SETTINGS.model_copy(update={"refine_pitch": True}), tmp_path / "car.yaml", live)

    def test_off_by_default(self, tmp_path: Path) -> None:
        write_camera(tmp_path / "car.yaml", LEVEL.intrinsics, LEVEL.mount)
        rulers = Rulers(SETTINGS, tmp_path / "car.yaml")
        rulers.at(frame(1280, 720))
        assert rulers._refiner is None

    def test_a_corrected_pitch_is_used_with_its_sigma(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rulers = self.rulers(tmp_path, monkeypatch)
        before = rulers.at(frame(1280, 720))
        rulers._refiner.pitch = 0.01  # type: ignore[union-attr]
        after = rulers.at(frame(1280, 720))
        assert after.camera.mount.pitch == 0.01
        assert after.camera.mount.sigma == {"pitch": 0.002, "height_m": 0.02}
        assert after.view.seen.area != before.view.seen.area
        rulers._refiner.pitch = 0.0101  # type: ignore[union-attr]
        assert rulers.at(frame(1280, 720)) is after, "less than a fiftieth of a degree moves nothing"

    def test_a_frame_of_a_recording_never_waits_for_itself(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What it says comes into force with the next one, however fast it is looked at."""
        rulers = self.rulers(tmp_path, monkeypatch)

        class Eager(Pitching):
            def add(self, image: Image, stamp_ns: int) -> None:
                self.pitch = stamp_ns / 1000

        monkeypatch.setattr(metres, "PitchRefiner", Eager)
        monkeypatch.setattr(metres, "ThreadPoolExecutor", AtOnce)
        pitches = [rulers.at(replace(frame(1280, 720), stamp_ns=i)).camera.mount.pitch for i in (1, 2, 3)]
        assert pitches == [0, 0.001, 0.002]

    def test_every_frame_of_a_recording_is_given(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rulers = self.rulers(tmp_path, monkeypatch)
        for i in range(20):
            rulers.at(replace(frame(1280, 720), stamp_ns=i))
        rulers._looking.result(10)  # type: ignore[union-attr]
        assert rulers._refiner.given == list(range(20))  # type: ignore[union-attr]

    def test_a_live_loop_does_not_wait(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rulers = self.rulers(tmp_path, monkeypatch, live=True)
        rulers.at(replace(frame(1280, 720), stamp_ns=1))
        rulers._looking.result(10)  # type: ignore[union-attr]
        rulers._refiner.go.clear()  # type: ignore[union-attr]
        for i in range(2, 6):
            rulers.at(replace(frame(1280, 720), stamp_ns=i))
        rulers._refiner.go.set()  # type: ignore[union-attr]
        rulers._looking.result(10)  # type: ignore[union-attr]
        assert rulers._refiner.given == [1, 2]  # type: ignore[union-attr]

    def test_another_stretch_begins_anew(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rulers = self.rulers(tmp_path, monkeypatch)
        rulers.at(frame(1280, 720))
        rulers.at(replace(frame(1280, 720), stretch=1))
        assert rulers._refiner.resets == 1  # type: ignore[union-attr]


class TestRun:
    """Through the loop and the command line."""

    def test_results_in_metres(self, tmp_path: Path, tiny_model: Path, cli: Cli) -> None:
        camera = Camera(Intrinsics(100, 100, 63.5, 31.5, 128, 64), Mount(1.5, pitch=0.1))
        write_camera(tmp_path / "car.yaml", camera.intrinsics, camera.mount)
        write_image(tmp_path / "road.png", road_image())
        (tmp_path / "c.yaml").write_text("polygons: {min_region: 0.001}\nground: {max_range_m: 50, bumper_m: 1.0}\n")
        done = cli(
            "run", "road.png", "--model", tiny_model, "--calibration", "car.yaml", "--polygons", "o.jsonl", "--config", "c.yaml"
        )
        assert done.returncode == 0, done.stderr
        (result,) = [Freespace.from_json(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
        assert result.ground is not None
        assert result.polygons
        # The corners in metres are the corners in pixels, each on its own, as long as they lie within range.
        for polygon in result.polygons:
            metres = ground_from_pixels(camera, polygon.exterior)
            near = metres[np.hypot(*metres.T) < 49]
            corners = np.concatenate([part.exterior for part in polygon.ground or []])
            for point in near:
                assert np.hypot(*(corners - point).T).min() < 0.002
        assert result.ground.ahead is not None

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("camera: 1\n", "image_width"),
            ("{", "not valid YAML"),
            (None, "cannot be read"),
        ],
    )
    def test_a_calibration_that_cannot_be_used(self, tmp_path: Path, cli: Cli, text: str | None, sentence: str) -> None:
        write_image(tmp_path / "road.png", road_image())
        if text:
            (tmp_path / "car.yaml").write_text(text)
        done = cli("run", "road.png", "--calibration", "car.yaml", "--polygons", "o.jsonl")
        assert done.returncode == 2
        assert sentence in done.stderr
        assert "car.yaml" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "o.jsonl").exists()

    def test_frames_of_another_shape_end_the_run(self, tmp_path: Path, tiny_model: Path, cli: Cli) -> None:
        write_camera(tmp_path / "car.yaml", LEVEL.intrinsics, LEVEL.mount)
        write_image(tmp_path / "road.png", road_image())
        done = cli("run", "road.png", "--model", tiny_model, "--calibration", "car.yaml", "--polygons", "o.jsonl")
        assert done.returncode == 2
        assert "made for frames of 1280x720, and these are 128x64" in done.stderr

    def test_a_live_camera_that_comes_back_in_another_shape_is_blind_meanwhile(
        self, tmp_path: Path, tiny_engine: Engine
    ) -> None:
        camera = Camera(Intrinsics(100, 100, 63.5, 31.5, 128, 64), Mount(1.5, pitch=0.1))
        write_camera(tmp_path / "car.yaml", camera.intrinsics, camera.mount)
        shapes = [(128, 64)] * 3 + [(128, 96)] * 3 + [(128, 64)] * 3

        class Changing(Source):
            def frames(self) -> Iterator[Frame]:
                for seq, (width, height) in enumerate(shapes):
                    yield Frame(road_image(width, height), seq, seq * 40_000_000, "system", "made")

        config = Config(ground=GroundConfig(calibration=str(tmp_path / "car.yaml")), health=HealthConfig(enabled=False))
        outputs = list(process(Changing("made", live=True), tiny_engine, config))
        assert [o.result.state for o in outputs] == ["running"] * 3 + ["blind"] * 3 + ["running"] * 3
        assert {c.code for o in outputs[3:6] for c in o.result.causes} == {Code.UNCALIBRATED}
        assert [o.result.ground is None for o in outputs] == [False] * 3 + [True] * 3 + [False] * 3

        shapes[:3] = [(128, 96)] * 3  # never those of the calibration: that is the user's mistake
        with pytest.raises(BadInput, match="another shape"):
            list(process(Changing("made", live=True), tiny_engine, config))
