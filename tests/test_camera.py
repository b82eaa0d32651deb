"""Pixels, directions and metres: by hand for a few, by OpenCV for others, by round trip for many."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from calibration.camera import Camera, Intrinsics, Mount
from calibration.covariance import Covariance
from calibration.ground import (
    GroundView,
    RangeUncertainty,
    ground_from_pixels,
    horizon,
    pixels_from_ground,
)

PINHOLE = Intrinsics(1000, 1000, 639.5, 359.5, 1280, 720)
LEVEL = Camera(PINHOLE, Mount(height_m=1.5))
BARREL = Intrinsics(800, 810, 641, 357, 1280, 720, "plumb_bob", (-0.28, 0.09, 0.001, -0.0008, -0.01))
RATIONAL = Intrinsics(700, 700, 640, 360, 1280, 720, "rational_polynomial", (0.9, 0.2, -0.0005, 0.0007, 0.01, 1.3, 0.5, 0.05))
FISHEYE = Intrinsics(420, 421, 638, 362, 1280, 720, "equidistant", (0.03, -0.012, 0.004, -0.001))
LENSES = {"pinhole": PINHOLE, "barrel": BARREL, "rational": RATIONAL, "fisheye": FISHEYE}
lenses = st.sampled_from(list(LENSES.values()))

angles = st.floats(-0.4, 0.4)
mounts = st.builds(
    Mount,
    height_m=st.floats(0.3, 4),
    pitch=st.floats(-0.4, 0.9),
    roll=angles,
    yaw=st.floats(-3, 3),
    x_m=st.floats(-2, 4),
    y_m=st.floats(-2, 2),
)
cameras = st.builds(Camera, lenses, mounts)
in_the_image = st.tuples(st.floats(0, 1279), st.floats(0, 719))


class TestIntrinsics:
    """Directions to pixels and back."""

    @pytest.mark.parametrize("bad", [{"fx": 0}, {"fy": -1}, {"width": 0}, {"fx": math.nan}, {"cx": math.inf}])
    def test_impossible_values_are_refused(self, bad: dict[str, float]) -> None:
        values = {"fx": 500, "fy": 500, "cx": 1, "cy": 1, "width": 2, "height": 2, **bad}
        with pytest.raises(ValueError, match=next(iter(bad))):
            Intrinsics(**values)  # type: ignore[arg-type]

    def test_coefficients_must_fit_the_model(self) -> None:
        with pytest.raises(ValueError, match="equidistant has 4"):
            Intrinsics(500, 500, 1, 1, 2, 2, "equidistant", (0.1,) * 5)
        with pytest.raises(ValueError, match="one of plumb_bob"):
            Intrinsics(500, 500, 1, 1, 2, 2, "thin_prism")  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", LENSES)
    def test_projection_is_opencvs(self, name: str) -> None:
        lens = LENSES[name]
        rng = np.random.default_rng(1)
        points = rng.uniform((-3, -2, 2), (3, 2, 9), (500, 3))
        none, distortion = np.zeros(3), np.array(lens.distortion)
        if lens.distortion_model == "equidistant":
            theirs = cv2.fisheye.projectPoints(points[:, None], none, none, lens.matrix, distortion)[0]
        else:
            theirs = cv2.projectPoints(points, none, none, lens.matrix, distortion)[0]
        np.testing.assert_allclose(lens.project(points), theirs[:, 0], atol=1e-8)

    def test_a_corner_by_hand(self) -> None:
        # x = 0.5, y = 0, r^2 = 0.25: the factor is 1 - 0.2 * 0.25 + 0.1 * 0.0625 = 0.95625, and p2 adds 3 * 0.25 * p2.
        lens = Intrinsics(100, 100, 50, 40, 100, 80, "plumb_bob", (-0.2, 0.1, 0.0, 0.01))
        np.testing.assert_allclose(lens.project([[1.0, 0.0, 2.0]]), [[50 + 100 * (0.5 * 0.95625 + 0.0075), 40.0]])

    @given(lenses, in_the_image)
    def test_pixel_to_ray_to_pixel(self, lens: Intrinsics, pixel: tuple[float, float]) -> None:
        (ray,) = lens.rays([pixel])
        assert np.linalg.norm(ray) == pytest.approx(1)
        np.testing.assert_allclose(lens.project([7.0 * ray]), [pixel], atol=1e-6)

    def test_fisheye_sees_beside_itself(self) -> None:
        wide = Intrinsics(300, 300, 640, 360, 1280, 720, "equidistant")
        (ray,) = wide.rays([[640 + 300 * math.radians(100), 360]])  # 100 degrees off the axis
        np.testing.assert_allclose(ray, [math.sin(math.radians(100)), 0, math.cos(math.radians(100))], atol=1e-12)
        np.testing.assert_allclose(wide.project([ray]), [[640 + 300 * math.radians(100), 360]])

    def test_a_distortion_that_folds_back_gives_no_second_picture(self) -> None:
        # r * (1 - 0.4 r^2) turns at r = sqrt(1 / 1.2) = 0.913: what is farther out must not come back into the image.
        lens = Intrinsics(1000, 1000, 640, 360, 1280, 720, "plumb_bob", (-0.4,))
        assert lens.limit == pytest.approx(math.sqrt(1 / 1.2), rel=0.01)
        assert np.isnan(lens.project([[1.2, 0, 1]])).all()
        assert np.isfinite(lens.project([[0.85, 0, 1]])).all()
        turn = 640 + 1000 * 0.9129 * (1 - 0.4 * 0.9129**2)
        assert np.isnan(lens.rays([[turn + 2, 360]])).all()

    @given(st.tuples(*[st.floats(-3, 3)] * 5), in_the_image)
    def test_extreme_distortion_gives_the_truth_or_nothing(
        self, coefficients: tuple[float, ...], pixel: tuple[float, float]
    ) -> None:
        lens = Intrinsics(900, 900, 640, 360, 1280, 720, "plumb_bob", (*coefficients[:2], 0, 0, coefficients[4]))
        (ray,) = lens.rays([pixel])
        if np.isfinite(ray).all():
            np.testing.assert_allclose(lens.project([ray]), [pixel], atol=1e-4)

    def test_resized_images(self) -> None:
        half = BARREL.scaled((640, 360))
        points = [[0.4, 0.2, 1.0], [-0.3, 0.1, 1.0]]
        np.testing.assert_allclose(half.project(points), (BARREL.project(points) + 0.5) / 2 - 0.5)
        known = replace(BARREL, sigma={"fx": 4.0, "k1": 0.1}).scaled((640, 360))
        assert known.sigma == {"fx": 2.0, "k1": 0.1}


class TestMount:
    """Where the camera sits."""

    @pytest.mark.parametrize("bad", [{"height_m": 0}, {"pitch": 2}, {"yaw": math.nan}, {"x_m": math.inf}])
    def test_impossible_values_are_refused(self, bad: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=next(iter(bad))):
            Mount(**{"height_m": 1.0, **bad})

    def test_pose_turns_optical_axes_into_vehicle_axes(self) -> None:
        down = Mount(height_m=1.2, pitch=0.3, x_m=0.5).base_from_camera
        np.testing.assert_allclose(down @ [0, 0, 0, 1], [0.5, 0, 1.2, 1])
        np.testing.assert_allclose((down @ [1, 0, 0, 0])[:3], [0, -1, 0], atol=1e-12)  # right is minus y
        np.testing.assert_allclose((down @ [0, 0, 1, 0])[:3], [math.cos(0.3), 0, -math.sin(0.3)])  # and forward looks down

    def test_senses_of_the_angles(self) -> None:
        left = Mount(height_m=1, yaw=math.pi / 2).base_from_camera @ [0, 0, 1, 0]
        np.testing.assert_allclose(left[:3], [0, 1, 0], atol=1e-12)  # a positive yaw looks left
        right_side = Mount(height_m=1, roll=0.2).base_from_camera @ [1, 0, 0, 0]
        assert right_side[2] < 0  # a positive roll lowers the right side

    @given(mounts)
    def test_pose_is_a_rigid_motion(self, mount: Mount) -> None:
        rotation = mount.base_from_camera[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
        np.testing.assert_allclose(Camera(PINHOLE, mount).camera_from_base @ mount.base_from_camera, np.eye(4), atol=1e-12)

    @given(mounts)
    def test_transform_and_back(self, mount: Mount) -> None:
        again = Mount.from_transform(mount.base_from_camera)
        for name in ("height_m", "pitch", "roll", "yaw", "x_m", "y_m"):
            assert getattr(again, name) == pytest.approx(getattr(mount, name), abs=1e-9)


class TestByHand:
    """Cases that can be reckoned on paper."""

    def test_level_camera(self) -> None:
        # 10 m ahead, 2 m to the left, 1.5 m below the camera: 200 px left of and 150 px below the principal point.
        np.testing.assert_allclose(LEVEL.project([[10, 2, 0]]), [[439.5, 509.5]])
        np.testing.assert_allclose(ground_from_pixels(LEVEL, [[439.5, 509.5]]), [[10, 2]])
        np.testing.assert_allclose(pixels_from_ground(LEVEL, [[10, 2]]), [[439.5, 509.5]])
        np.testing.assert_allclose(horizon(LEVEL, [0, 1279]), [359.5, 359.5])

    def test_pitched_camera(self) -> None:
        # Looking down 45 degrees from 2 m, the optical axis meets the ground 2 m ahead; the horizon is f above the centre.
        camera = Camera(Intrinsics(500, 400, 320, 240, 641, 481), Mount(height_m=2.0, pitch=math.pi / 4))
        np.testing.assert_allclose(ground_from_pixels(camera, [[320, 240]]), [[2, 0]], atol=1e-12)
        np.testing.assert_allclose(horizon(camera, [320]), [240 - 400])
        # One pixel column to the right is a step of depth / fx metres to the right, at a depth of 2 * sqrt(2) m.
        np.testing.assert_allclose(ground_from_pixels(camera, [[321, 240]]), [[2, -2 * math.sqrt(2) / 500]])

    def test_rolled_camera(self) -> None:
        # Rolled clockwise by a, the world turns the other way in the picture: the horizon rises to the right by tan a.
        camera = Camera(PINHOLE, Mount(height_m=1.5, roll=0.1))
        np.testing.assert_allclose(horizon(camera, [639.5, 739.5]), [359.5, 359.5 - 100 * math.tan(0.1)])

    def test_camera_ahead_of_the_axle_and_turned(self) -> None:
        camera = Camera(PINHOLE, Mount(height_m=1.5, yaw=math.pi / 2, x_m=1.0, y_m=0.5))
        # What was 10 m ahead and 2 m to the left of it is now 10 m to the left and 2 m behind it.
        np.testing.assert_allclose(ground_from_pixels(camera, [[439.5, 509.5]]), [[1.0 - 2, 0.5 + 10]])


class TestRoundTrips:
    """There and back is where it began."""

    @given(cameras, in_the_image, st.floats(0.1, 500))
    def test_pixel_to_point_to_pixel(self, camera: Camera, pixel: tuple[float, float], distance: float) -> None:
        point = camera.mount.base_from_camera[:3, 3] + distance * camera.pixel_rays([pixel])
        np.testing.assert_allclose(camera.project(point), [pixel], atol=1e-6)

    @given(cameras, in_the_image)
    def test_pixel_to_ground_to_pixel(self, camera: Camera, pixel: tuple[float, float]) -> None:
        ground = ground_from_pixels(camera, [pixel])
        if camera.pixel_rays([pixel])[0, 2] < -1e-4:
            np.testing.assert_allclose(pixels_from_ground(camera, ground), [pixel], atol=1e-5)

    @settings(deadline=None)
    @given(lenses, mounts, st.integers(0, 1279))
    def test_the_horizon_parts_ground_from_sky(self, lens: Intrinsics, mount: Mount, u: int) -> None:
        self.check_column(Camera(lens, mount), u)

    @pytest.mark.parametrize(("lens", "pitch"), [("barrel", 0.5), ("fisheye", 0.9), ("rational", 1.2), ("fisheye", 1.4)])
    def test_a_horizon_near_the_rim_of_a_lens(self, lens: str, pitch: float) -> None:
        camera = Camera(replace(LENSES[lens], fx=380.0, fy=380.0), Mount(1.5, pitch))
        crossed = [self.check_column(camera, u) for u in range(0, 1280, 32)]
        assert sum(crossed) > 5

    def check_column(self, camera: Camera, u: int) -> bool:
        """Against the directions of all its pixels: whether the horizon is seen there, which is then found, in the column or,
        where it is crossed twice, once."""
        rows = np.arange(-0.5, 720.0)
        rises = camera.pixel_rays(np.column_stack([np.full(len(rows), u), rows]))[:, 2]
        (v,) = horizon(camera, [u])
        if np.isfinite(v) and -500 < v < 1200:
            ray = camera.pixel_rays([[u, v]])[0]
            assert not np.isfinite(ray).all() or abs(ray[2]) < 1e-9
        crossings = np.flatnonzero(np.sign(rises[1:]) * np.sign(rises[:-1]) < 0)  # False where a direction is unknown
        if len(crossings) == 1:
            assert rows[crossings[0]] - 1e-6 <= v <= rows[crossings[0] + 1] + 1e-6
        return len(crossings) > 0


class TestWithoutAnswer:
    """What has no place or no pixel is NaN, and nothing in gives nothing out."""

    @given(mounts, st.floats(0, 1279), st.floats(0, 300))
    def test_nothing_lies_at_or_above_the_horizon(self, mount: Mount, u: float, above: float) -> None:
        camera = Camera(PINHOLE, mount)
        assert np.isnan(ground_from_pixels(camera, [[u, horizon(camera, [u])[0] - above - 1e-6]])).all()

    def test_the_horizon_itself_is_no_ground(self) -> None:
        assert np.isnan(ground_from_pixels(LEVEL, [[100, 359.5]])).all()

    def test_points_behind_have_no_pixel(self) -> None:
        assert np.isnan(LEVEL.project([[-3, 0, 0], [0, 1, 0]])).all()

    def test_no_points_give_no_pixels(self) -> None:
        assert LEVEL.project(np.empty((0, 3))).shape == (0, 2)
        assert ground_from_pixels(LEVEL, np.empty((0, 2))).shape == (0, 2)
        assert horizon(LEVEL, []).shape == (0,)


class TestGroundView:
    """Polygons of the image on the ground."""

    @pytest.mark.parametrize("lens", LENSES)
    def test_region_is_where_the_ground_is_within_range(self, lens: str) -> None:
        """Against each pixel on its own."""
        camera = Camera(LENSES[lens], Mount(1.4, pitch=0.15, roll=0.05, yaw=0.3, x_m=1.2, y_m=-0.3))
        view = GroundView(camera, 40.0)
        rng = np.random.default_rng(2)
        pixels = rng.uniform((-0.5, -0.5), (1279.5, 719.5), (4000, 2))
        away = np.hypot(*ground_from_pixels(camera, pixels).T)
        off_axis = np.arccos(camera.intrinsics.rays(pixels)[:, 2])
        within = (away < 40.0) & (off_axis < camera.intrinsics.widest)
        # Not within a pixel of the border, which is drawn with chords.
        inside = shapely.contains_xy(view.region, pixels)
        clear = shapely.distance(view.region.boundary, shapely.points(pixels)) > 0.5
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(inside[clear], within[clear])

    @pytest.mark.parametrize("lens", LENSES)
    @pytest.mark.parametrize("yaw", [0.0, 1.0, math.pi])
    def test_square_on_the_ground_comes_back(self, lens: str, yaw: float) -> None:
        camera = Camera(LENSES[lens], Mount(1.4, pitch=0.1, roll=-0.03, yaw=yaw, x_m=1.0))
        turn = np.array([[math.cos(yaw), math.sin(yaw)], [-math.sin(yaw), math.cos(yaw)]])
        outline = (np.array([[6.0, -2], [12, -2], [12, 2], [6, 2]])) @ turn + (1.0, 0.0)
        hole = (np.array([[8.0, -1], [8, 1], [10, 1], [10, -1]])) @ turn + (1.0, 0.0)
        # Its edges are straight on the ground, so that in a distorted image they are curves of many points.
        exterior, interior = (
            pixels_from_ground(camera, shapely.get_coordinates(shapely.segmentize(shapely.LinearRing(ring), 0.05))[:-1])
            for ring in (outline, hole)
        )
        ((part,),) = GroundView(camera, 60.0).place([shapely.Polygon(exterior, [interior])])
        assert part.area_m2 == pytest.approx(24 - 4, rel=2e-3)
        assert shapely.LinearRing(part.exterior).is_ccw
        assert [shapely.LinearRing(ring).is_ccw for ring in part.interiors] == [False]
        expected = shapely.Polygon(outline, [hole])
        assert shapely.hausdorff_distance(part.shape, expected) < 0.02

    def test_the_sky_is_nowhere_and_a_border_at_the_range_is_exact(self) -> None:
        view = GroundView(LEVEL, 30.0)
        whole = shapely.box(-0.5, -0.5, 1279.5, 719.5)
        sky = shapely.box(-0.5, -0.5, 1279.5, 350)
        (of_whole,), of_sky = view.place([whole, sky])
        assert of_sky == []
        assert np.hypot(*of_whole.exterior.T).max() == pytest.approx(30.0, abs=0.02)
        # A sector between the image's sides, from the image's bottom at 1500 / 360 m to 30 m, reckoned by hand.
        half = math.atan2(640, 1000)
        near = 1500 / 360.0
        assert of_whole.area_m2 == pytest.approx(30**2 * half - near**2 * math.tan(half), rel=1e-3)

    def test_a_region_joined_beyond_the_range_falls_apart(self) -> None:
        view = GroundView(LEVEL, 20.0)
        arch = shapely.Polygon([(0, 700), (0, 370), (1279, 370), (1279, 700), (1000, 700), (1000, 380), (300, 380), (300, 700)])
        (parts,) = view.place([arch])
        assert len(parts) == 2
        assert parts[0].area_m2 >= parts[1].area_m2

    def test_rounding_neither_loses_ground_nor_invents_any(self) -> None:
        # From 2 mm above the ground a millimetre's rounding makes edges cross: the outline falls into two parts and a line, and
        # what is cut out comes to reach beyond it.
        low = Camera(PINHOLE, Mount(height_m=0.002, pitch=0.5))
        view = GroundView(low, 1.0)
        whole = np.array([(-0.5, 100.0), (1279.5, 100.0), (1279.5, 700.0), (-0.5, 700.0)])
        for seed in range(40):
            rng = np.random.default_rng(seed)
            cuts = [shapely.Point(p).buffer(60, quad_segs=6) for p in rng.uniform((0, 100), (1279, 700), (12, 2))]
            free = shapely.difference(shapely.Polygon(whole), shapely.union_all(cuts))
            parts = [part for parts in view.place(list(shapely.get_parts(free))) for part in parts]
            exact = shapely.transform(shapely.intersection(free, view.region), lambda uv: ground_from_pixels(low, uv))
            off = exact.length * 0.001
            assert sum(part.area_m2 for part in parts) == pytest.approx(exact.area, abs=off)
            found = shapely.union_all([part.shape for part in parts])
            assert shapely.covers(exact.buffer(0.0015), found)

    def test_a_camera_that_looks_up_sees_no_ground(self) -> None:
        with pytest.raises(ValueError, match="no ground between 0 and 20 m"):
            GroundView(Camera(PINHOLE, Mount(1.5, pitch=-1.0)), 20.0)

    def test_a_camera_that_looks_straight_down(self) -> None:
        view = GroundView(Camera(PINHOLE, Mount(2.0, pitch=math.pi / 2 - 1e-9)), 20.0)
        assert view.seen.area == pytest.approx(1.280 * 2 * 0.720 * 2, rel=1e-3)

    @settings(max_examples=60)
    @given(cameras, st.integers(0, 2**31), st.floats(3, 100))
    def test_whatever_comes_is_valid_and_within_range(self, camera: Camera, seed: int, reach: float) -> None:
        try:
            view = GroundView(camera, reach)
        except ValueError:
            return
        rng = np.random.default_rng(seed)
        star = rng.uniform(10, 700, 24)[:, None] * [[math.cos(a), math.sin(a)] for a in np.linspace(0, 6, 24)] + (640, 400)
        shape = shapely.intersection(shapely.make_valid(shapely.Polygon(star)), shapely.box(-0.5, -0.5, 1279.5, 719.5))
        for part in (p for parts in view.place(list(shapely.get_parts(shape))) for p in parts):
            assert part.shape.is_valid
            assert part.area_m2 > 0
            assert np.hypot(*part.exterior.T).max() <= 1.001 * reach + 0.01


class TestRangeIntervals:
    """How sure the metres are."""

    def intervals(self, camera: Camera, points: ArrayLike, pixel_px: float = 0.0, **sigma: float) -> NDArray[np.float64]:
        return RangeUncertainty(camera, Covariance.independent(sigma), pixel_px).intervals(points)

    def test_pitch_by_hand(self) -> None:
        # At 15 m a camera 1.5 m high looks down atan(0.1); 1.96 * 0.01 rad more or less meet the ground here:
        angle = math.atan2(1.5, 15)
        expected = [1.5 / math.tan(angle + 0.01959964), 1.5 / math.tan(angle - 0.01959964)]
        np.testing.assert_allclose(self.intervals(LEVEL, [[15, 0]], pitch=0.01), [expected], rtol=1e-6)

    def test_height_by_hand(self) -> None:
        # All distances grow with the height: 2 % of 10 m, to first order.
        near, far = self.intervals(LEVEL, [[10, 0]], height_m=0.03)[0]
        assert (far - near) / 2 == pytest.approx(1.959964 * 0.2, rel=0.01)

    def test_beyond_some_range_nobody_knows(self) -> None:
        near, far = self.intervals(LEVEL, [[80, 0]], pitch=0.02)[0]
        assert 20 < near < 80
        assert far == math.inf

    def test_looking_back_over_base_link(self) -> None:
        # The camera is 3 m ahead of the origin and looks back; a point 1 m before the origin comes nearer as it goes away.
        camera = Camera(PINHOLE, Mount(1.5, pitch=0.5, x_m=3.0, yaw=math.pi))
        angle = math.atan2(1.5, 2)
        first, last = (1.5 / math.tan(angle + off) for off in (0.0195996, -0.0195996))
        ((least, greatest), (through, end)) = self.intervals(camera, [[1, 0], [0.05, 0]], pitch=0.01)
        assert (least, greatest) == (pytest.approx(3 - last, abs=1e-4), pytest.approx(3 - first, abs=1e-4))
        assert through == pytest.approx(0, abs=1e-9), "the origin itself lies within"
        assert end > 0.05

    def test_of_what_the_camera_does_not_see_nobody_knows(self) -> None:
        camera = Camera(PINHOLE, Mount(1.5, x_m=1.0))
        ((near, far), nothing) = self.intervals(camera, [[-4, 0], [np.nan, np.nan]], 5.0, pitch=0.01)
        assert (near, far) == (pytest.approx(0, abs=1.0), math.inf)
        assert np.isnan(nothing).all()

    @settings(max_examples=100, deadline=None)
    @given(cameras, st.floats(-30, 30), st.floats(-30, 30))
    def test_what_is_said_lies_within(self, camera: Camera, x: float, y: float) -> None:
        ((near, far),) = self.intervals(camera, [[x, y]], 3.0, pitch=0.01, roll=0.01, height_m=0.02)
        assert near <= math.hypot(x, y) + 1e-6
        assert far >= math.hypot(x, y) - 1e-6

    def test_range_is_from_base_link(self) -> None:
        camera = Camera(PINHOLE, Mount(1.5, x_m=2.0))
        np.testing.assert_allclose(self.intervals(camera, [[17, 0]]), [[17, 17]])

    def test_errors_that_make_up_for_each_other(self) -> None:
        # A principal point 10 px lower and a camera turned up by as much put the horizon, and all that is far, where it was.
        both = Covariance.of(("cy", "pitch"), [[100.0, 0.1], [0.1, 1e-4]])
        alone = Covariance.of(("cy", "pitch"), [[100.0, 0.0], [0.0, 1e-4]])
        (near, far), (nearest, farthest) = (RangeUncertainty(LEVEL, known).intervals([[30, 0]])[0] for known in (both, alone))
        assert far - near < 0.2
        assert (nearest, farthest) == (pytest.approx(19.3, abs=0.1), pytest.approx(67.3, abs=0.5))

    def test_images_of_another_size_are_as_sure(self) -> None:
        known = Covariance.of(("fy", "cy", "pitch"), [[25, 3, 0.002], [3, 100, 0.06], [0.002, 0.06, 1e-4]])
        camera = Camera(BARREL, Mount(1.5, 0.05, covariance=known))
        half = camera.scaled((640, 360))
        whole, halved = (RangeUncertainty(c, c.uncertain).intervals([[20, 3], [8, -2]]) for c in (camera, half))
        np.testing.assert_allclose(whole, halved, rtol=1e-4)

    @pytest.mark.parametrize("lens", LENSES)
    def test_95_of_100_lie_within(self, lens: str) -> None:
        """Points seen with noise by a camera whose pitch, roll and height are not quite what they are taken to be."""
        taken = Camera(LENSES[lens], Mount(1.5, pitch=0.08, yaw=0.1, x_m=1.0))
        sigma = {"pixel_px": 1.5, "pitch": 0.004, "roll": 0.006, "height_m": 0.02}
        rng = np.random.default_rng(3)
        held = []
        for _ in range(60):
            mount = Mount(1.5 + rng.normal(0, 0.02), 0.08 + rng.normal(0, 0.004), rng.normal(0, 0.006), 0.1, taken.mount.x_m)
            truth = np.stack([rng.uniform(5, 35, 80), rng.uniform(-4, 4, 80)], axis=1)
            seen = pixels_from_ground(Camera(LENSES[lens], mount), truth) + rng.normal(0, 1.5, (80, 2))
            placed = ground_from_pixels(taken, seen)
            near, far = self.intervals(taken, placed, **sigma).T
            away = np.hypot(*truth.T)
            held.append((near <= away) & (away <= far))
        assert np.mean(held) == pytest.approx(0.95, abs=0.03)
