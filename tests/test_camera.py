"""Pixels, rays and metres: by hand for a few, by round trip for many."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.camera import Camera
from calibration.ground import ground_from_pixels, horizon_row, pixels_from_ground

LEVEL = Camera(fx=1000, fy=1000, cx=639.5, cy=359.5, width=1280, height=720, height_m=1.5)

cameras = st.builds(
    Camera,
    fx=st.floats(200, 3000),
    fy=st.floats(200, 3000),
    cx=st.floats(0, 2000),
    cy=st.floats(0, 1200),
    width=st.just(1920),
    height=st.just(1080),
    height_m=st.floats(0.3, 4),
    pitch=st.floats(-0.6, 0.9),
)


class TestCamera:
    """Construction and pose."""

    @pytest.mark.parametrize("bad", [{"fx": 0}, {"fy": -1}, {"height_m": 0}, {"pitch": 2}, {"width": 0}, {"fx": math.nan}])
    def test_impossible_values_are_refused(self, bad: dict[str, float]) -> None:
        values = {"fx": 500, "fy": 500, "cx": 1, "cy": 1, "width": 2, "height": 2, "height_m": 1, "pitch": 0, **bad}
        with pytest.raises(ValueError, match=next(iter(bad))):
            Camera(**values)  # type: ignore[arg-type]

    def test_pose_turns_optical_axes_into_vehicle_axes(self) -> None:
        down = Camera(500, 500, 0, 0, 10, 10, height_m=1.2, pitch=0.3).base_from_camera
        np.testing.assert_allclose(down @ [0, 0, 0, 1], [0, 0, 1.2, 1])
        np.testing.assert_allclose(down @ [1, 0, 0, 0], [0, -1, 0, 0])  # right is minus y
        np.testing.assert_allclose(down @ [0, 0, 1, 0], [math.cos(0.3), 0, -math.sin(0.3), 0])  # and forward looks down

    @given(cameras)
    def test_pose_is_a_rigid_motion(self, camera: Camera) -> None:
        rotation = camera.base_from_camera[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
        np.testing.assert_allclose(camera.camera_from_base @ camera.base_from_camera, np.eye(4), atol=1e-12)


class TestByHand:
    """Cases that can be reckoned on paper."""

    def test_level_camera(self) -> None:
        # 10 m ahead, 2 m to the left, 1.5 m below the camera: 200 px left of and 150 px below the principal point.
        np.testing.assert_allclose(LEVEL.project([[10, 2, 0]]), [[439.5, 509.5]])
        np.testing.assert_allclose(ground_from_pixels(LEVEL, [[439.5, 509.5]]), [[10, 2]])
        np.testing.assert_allclose(pixels_from_ground(LEVEL, [[10, 2]]), [[439.5, 509.5]])
        assert horizon_row(LEVEL) == 359.5

    def test_pitched_camera(self) -> None:
        # Looking down 45 degrees from 2 m, the optical axis meets the ground 2 m ahead; the horizon is f above the centre.
        camera = Camera(500, 400, 320, 240, 641, 481, height_m=2.0, pitch=math.pi / 4)
        np.testing.assert_allclose(ground_from_pixels(camera, [[320, 240]]), [[2, 0]], atol=1e-12)
        assert horizon_row(camera) == pytest.approx(240 - 400)
        # One pixel column to the right is a step of depth / fx metres to the right, at a depth of 2 * sqrt(2) m.
        np.testing.assert_allclose(ground_from_pixels(camera, [[321, 240]]), [[2, -2 * math.sqrt(2) / 500]])


class TestRoundTrips:
    """There and back is where it began."""

    @given(cameras, st.floats(-500, 2500), st.floats(-500, 1600), st.floats(0.1, 500))
    def test_pixel_to_point_to_pixel(self, camera: Camera, u: float, v: float, depth: float) -> None:
        point = camera.base_from_camera[:3, 3] + depth * camera.pixel_rays([[u, v]])
        np.testing.assert_allclose(camera.project(point), [[u, v]], atol=1e-6)

    @given(cameras, st.floats(-300, 2200), st.floats(1, 2000))
    def test_pixel_to_ground_to_pixel(self, camera: Camera, u: float, below: float) -> None:
        pixel = [[u, horizon_row(camera) + below]]
        ground = ground_from_pixels(camera, pixel)
        assert np.isfinite(ground).all()
        np.testing.assert_allclose(pixels_from_ground(camera, ground), pixel, atol=1e-5)


class TestWithoutAnswer:
    """What has no place or no pixel is NaN, and nothing in gives nothing out."""

    @given(cameras, st.floats(0, 2000), st.floats(0, 2000))
    def test_nothing_lies_at_or_above_the_horizon(self, camera: Camera, u: float, above: float) -> None:
        assert np.isnan(ground_from_pixels(camera, [[u, horizon_row(camera) - above - 1e-9]])).all()

    def test_the_horizon_itself_is_no_ground(self) -> None:
        assert np.isnan(ground_from_pixels(LEVEL, [[100, horizon_row(LEVEL)]])).all()

    def test_points_behind_have_no_pixel(self) -> None:
        assert np.isnan(LEVEL.project([[-3, 0, 0], [0, 1, 0]])).all()

    def test_no_points_give_no_pixels(self) -> None:
        assert LEVEL.project(np.empty((0, 3))).shape == (0, 2)
        assert ground_from_pixels(LEVEL, np.empty((0, 2))).shape == (0, 2)
