"""The view from above, by pixels whose places are computed by hand and by OpenCV's own projection."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Image, make_output
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from calibration.camera import Camera, Intrinsics, Mount
from perception.birdseye import AHEAD_COLOUR, NOTHING, SCAN_COLOUR, VEHICLE_COLOUR, WARNING_COLOUR, BirdsEye, scan_ends
from perception.config import GroundConfig
from perception.freespace import Distance, Freespace, Ground, Polygon, Scan
from perception.metres import Metres
from perception.overlay import caption, draw
from perception.painting import EGO_COLOUR, OTHER_COLOUR
from perception.sinks.base import Output

SIZE = (640, 360)
ROOM = (300, 630)  # for 30 m x 63 m: 15 m to the left and right, 60 ahead and the vehicle's front 3 m: 10 pixels a metre
GREY = np.full((SIZE[1], SIZE[0], 3), 100, np.uint8)
FOCAL, CENTRE = 500.0, ((SIZE[0] - 1) / 2, (SIZE[1] - 1) / 2)


def calibrated(
    pitch: float = 0.1,
    yaw: float = 0.0,
    roll: float = 0.0,
    distortion: tuple[float, ...] = (),
    **settings: Any,
) -> Metres:
    intrinsics = Intrinsics(FOCAL, FOCAL, *CENTRE, *SIZE, distortion=distortion)
    mount = Mount(1.5, pitch, roll, yaw, x_m=0.2, y_m=-0.1)
    return Metres(Camera(intrinsics, mount), GroundConfig(**settings))


def projected(metres: Metres, points: list[tuple[float, float]]) -> NDArray[np.float64]:
    """Pixels of points on the ground by OpenCV, with rotations of its own."""
    mount, k = metres.camera.mount, metres.camera.intrinsics
    turns = [cv2.Rodrigues(np.array(axis))[0] for axis in ((0, 0, mount.yaw), (0, mount.pitch, 0), (mount.roll, 0.0, 0))]
    optical = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])  # rows: right, down, forward
    rotation = optical @ (turns[0] @ turns[1] @ turns[2]).T
    shift = -rotation @ (mount.x_m, mount.y_m, mount.height_m)
    ground = np.array([(x, y, 0.0) for x, y in points])
    pixels, _ = cv2.projectPoints(ground, cv2.Rodrigues(rotation)[0], shift, k.matrix, np.array(k.distortion))
    return np.asarray(pixels[:, 0])


def corners(x: tuple[float, float], y: tuple[float, float]) -> list[tuple[float, float]]:
    """Counter-clockwise from above."""
    return [(x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1])]


def region(
    metres: Metres, x: tuple[float, float], y: tuple[float, float], hole: tuple[Any, Any] | None = None, ego: bool = True
) -> Polygon:
    """A rectangle of the ground as a polygon of the image, with a rectangular hole."""
    holes = [projected(metres, corners(*hole)[::-1])] if hole else []
    return Polygon("freespace", ego, 0.9, 1000.0, projected(metres, corners(x, y)), holes)


def grounded(
    metres: Metres, regions: list[Polygon] | None = None, image: Image = GREY, number: int = 0, stamp_ms: int = 0
) -> Output:
    """What a sink is given of a calibrated camera, by default with free ground up to 20 m and 3 m to either side."""
    made = make_output(image, number, stamp_ms)
    polygons, ground = metres.place([region(metres, (2, 20), (-3, 3))] if regions is None else regions)
    return replace(made, result=replace(made.result, polygons=polygons, ground=ground), metres=metres)


def invalid(result: Freespace) -> Freespace:
    return replace(result, valid=False, state="stale", polygons=[], ground=None)


def seen(view: Image, bgr: ArrayLike, tolerance: int = 12) -> tuple[float, float, float, float]:
    """Borders (left, top, right, bottom) of what has a colour; NaN where nothing has."""
    v, u = np.nonzero((np.abs(view.astype(int) - bgr) <= tolerance).all(axis=2))
    if not len(u):
        return (math.nan,) * 4
    return u.min() - 0.5, v.min() - 0.5, u.max() + 0.5, v.max() + 0.5


def test_what_is_shown_of_a_camera_that_looks_ahead() -> None:
    view = BirdsEye(calibrated(), SIZE, ROOM)
    assert view.px_per_m == pytest.approx(10, rel=2e-3)
    assert view.size == pytest.approx((300, 630), abs=1)
    np.testing.assert_allclose(view.pixels([(60, 15), (0, 0)]), [(-0.5, -0.5), (149.5, 599.5)], atol=1.2)


@given(st.tuples(st.floats(-80, 80), st.floats(-80, 80)))
def test_pixels_and_back(point: tuple[float, float]) -> None:
    assert EYE.ground(EYE.pixels([point])) == pytest.approx(np.array([point]), abs=1e-9)


EYE = BirdsEye(calibrated(), SIZE, ROOM)


@pytest.mark.parametrize(
    "pose",
    [
        {},
        {"yaw": 0.3},
        {"yaw": -0.25, "roll": 0.05, "pitch": 0.15},
        {"yaw": math.pi / 2},
        {"yaw": math.pi},
        {"distortion": (-0.2, 0.05, 0.001, -0.001)},
    ],
    ids=str,
)
def test_a_square_on_the_ground_is_drawn_in_its_place(pose: dict[str, Any]) -> None:
    """As seen from the vehicle's front, which is drawn, too: x up and y to the left, whichever way the camera looks."""
    metres = calibrated(**pose, bumper_m=1.5)
    yaw = metres.camera.mount.yaw
    x, y = 15 * math.cos(yaw) - 2 * math.sin(yaw), 15 * math.sin(yaw) + 2 * math.cos(yaw)  # 15 m ahead of it, 2 m left
    square = (projected(metres, corners((x - 1.5, x + 1.5), (y - 1.5, y + 1.5))) + 0.5) * 8 - 0.5
    large = np.zeros((8 * SIZE[1], 8 * SIZE[0], 3), np.uint8)
    cv2.fillPoly(large, [np.round(square * 64).astype(np.int32)], (0, 255, 255), shift=6)
    frame = np.asarray(cv2.resize(large, SIZE, interpolation=cv2.INTER_AREA), np.uint8)
    before = frame.copy()
    eye = BirdsEye(metres, SIZE, (600, 630))
    view = eye.draw(frame, grounded(metres, [], frame).result)
    assert (frame == before).all()
    assert view.shape == (eye.size[1], eye.size[0], 3)
    left, top, right, _ = seen(view, VEHICLE_COLOUR)
    assert right - left == pytest.approx(2 * eye.px_per_m, abs=2)
    bright = (view[..., 2].astype(float) - view[..., 0]).clip(0)
    rows, columns = np.mgrid[: eye.size[1], : eye.size[0]]
    u, v = ((axis * bright).sum() / bright.sum() for axis in (columns, rows))
    assert u == pytest.approx((left + right) / 2 - y * eye.px_per_m, abs=1.2)
    assert v == pytest.approx(top - (x - 1.5) * eye.px_per_m, abs=2.0)
    assert bright.sum() / bright.max() == pytest.approx((3 * eye.px_per_m) ** 2, rel=0.05)


def test_free_ground_is_filled_and_holes_are_not() -> None:
    metres = calibrated()
    free = region(metres, (6, 30), (-3, 3), ((14.0, 18.0), (-1.0, 1.0)))
    aside = region(metres, (25, 35), (5, 9), ego=False)
    view = EYE.draw(GREY, replace(grounded(metres, [free, aside]).result, ground=None))
    ground = 0.55 * 100

    def at(x: float, y: float) -> NDArray[np.uint8]:
        u, v = (15 - y) * 10, (60 - x) * 10
        return view[round(v) - 2 : round(v) + 3, round(u) - 2 : round(u) + 3].reshape(-1, 3)

    for x, y in ((7, 0), (13, 2.5), (16, 2), (16, -2), (25, 1), (29, -2.5)):
        np.testing.assert_allclose(at(x, y), np.tile(0.4 * np.array(EGO_COLOUR) + 0.6 * ground, (25, 1)), atol=2)
    for x, y in ((26, 6), (33, 8)):
        np.testing.assert_allclose(at(x, y), np.tile(0.4 * np.array(OTHER_COLOUR) + 0.6 * ground, (25, 1)), atol=2)
    for x, y in ((16, 0), (15, 0.5), (34, 0), (16, 4)):
        np.testing.assert_allclose(at(x, y), ground, atol=2)
    filled = 0.4 * np.array(EGO_COLOUR) + 0.6 * ground
    assert seen(view, filled, 4) == pytest.approx((120, 300, 180, 540), abs=3)
    assert np.abs(view[400, 118:122].astype(int) - EGO_COLOUR).max(axis=1).min() < 60, "the outline"
    assert (view[570:588, 5:40] == NOTHING).all(), "where the camera sees nothing"


def measured(ahead: Distance | None = None, **rays: float) -> Ground:
    """``rays``: the ranges at -0.1, 0 and 0.1 radians, by name."""
    ranges = np.array([rays.get(name, math.nan) for name in ("right", "middle", "left")])
    return Ground("base_link", 1.0, ahead, Scan(-0.1, 0.1, 60.0, ranges, ranges, ranges, ranges < 59.9), [])


def test_the_ends_of_the_scan_are_marked_where_they_are_known() -> None:
    result = replace(grounded(calibrated(), []).result, ground=measured(left=25.0, middle=59.95))
    assert scan_ends(result.ground.scan) == pytest.approx(np.array([[25 * math.cos(0.1), 25 * math.sin(0.1)]]))
    view, without = EYE.draw(GREY, result), EYE.draw(GREY, replace(result, ground=None))
    v, u = np.nonzero((view != without).any(axis=2))
    assert (u.mean(), v.mean()) == pytest.approx(((15 - 2.496) * 10, (60 - 24.875) * 10), abs=1.5)
    assert (view[v, u] == SCAN_COLOUR).all()
    assert len(u) <= 4


@pytest.mark.parametrize(
    ("far_m", "top"), [(26.0, (60 - 28) * 10), (90.0, 0), (math.inf, 0)], ids=["known", "far", "nobody knows"]
)
def test_the_way_ahead_is_a_bar_from_the_bumper(far_m: float, top: float) -> None:
    metres = calibrated(bumper_m=2.0, vehicle_width_m=2.4)
    eye = BirdsEye(metres, SIZE, ROOM)
    shown = replace(grounded(metres, []).result, ground=measured(Distance(20.0, 16.0, far_m)))
    s, far = eye.px_per_m, eye.ground([(0, -0.5)])[0, 0]
    view = eye.draw(GREY, shown)
    left, upper, right, lower = seen(view, AHEAD_COLOUR, 60)
    assert upper == pytest.approx(max(-0.5, (far - (60 - top / 10)) * s), abs=2.5)
    assert lower == pytest.approx((far - 18) * s, abs=2.5)
    assert right - left == pytest.approx(2.4 * s, abs=3)
    widest = np.argmax((np.abs(view.astype(int) - AHEAD_COLOUR) < 60).all(axis=2)[5:].sum(axis=1)) + 5
    assert widest == pytest.approx((far - 22) * s, abs=2.5)
    assert math.isnan(seen(eye.draw(GREY, replace(shown, ground=measured())), AHEAD_COLOUR, 60)[0])


def test_a_result_that_is_not_valid_has_no_ground_and_says_so() -> None:
    made = grounded(calibrated())
    good, bad = EYE.draw(GREY, made.result), EYE.draw(GREY, invalid(made.result))
    assert math.isnan(seen(good, WARNING_COLOUR)[0])
    left, top, right, bottom = seen(bad, WARNING_COLOUR, 40)
    assert (left + right) / 2 == pytest.approx(150, abs=8)
    assert (top + bottom) / 2 == pytest.approx(315, abs=8)
    assert not ((bad[..., 1].astype(int) - bad[..., 0]) > 40).any(), "something is green still"
    assert bad[100, 100].max() < good[100, 100].min()


def test_fine_patterns_are_averaged() -> None:
    """Close by there are dozens of the picture's columns between two samples: one of them would be black or white."""
    picture = np.zeros((SIZE[1] * 4, SIZE[0] * 4, 3), np.uint8)
    picture[:, ::2] = 254
    metres = calibrated()
    view = BirdsEye(metres, (SIZE[0] * 4, SIZE[1] * 4), ROOM).draw(picture, grounded(metres, []).result)
    near = view[510:560, 140:160].astype(float)
    assert near.mean() == pytest.approx(0.55 * 127, abs=2)
    assert near.std() < 3


def test_pictures_of_another_size_show_the_same_ground() -> None:
    """As the web page has them: smaller than the frames for which the camera is calibrated."""
    metres = calibrated()
    scenery = cv2.resize(np.random.default_rng(3).integers(0, 255, (12, 20, 3), np.uint8), SIZE, interpolation=cv2.INTER_CUBIC)
    large = cv2.resize(scenery, (1280, 720), interpolation=cv2.INTER_LINEAR)
    result = grounded(metres, [], scenery).result
    a, b = EYE.draw(scenery, result), BirdsEye(metres, (1280, 720), ROOM).draw(large, result)
    assert a[:540].std() > 10
    assert np.abs(a[:540].astype(int) - b[:540]).mean() < 1.5


# -- In the overlay ------------------------------------------------------------------------------------------------


def test_the_overlay_has_it_in_its_corner() -> None:
    metres = calibrated()
    made = grounded(metres)
    plain, full = draw(GREY, made.result), draw(GREY, made.result, metres)
    eye = BirdsEye(metres, SIZE, (192, 198))
    width, height = eye.size
    right, top = SIZE[0] - 6, 6
    np.testing.assert_array_equal(full[top : top + height, right - width : right], eye.draw(GREY, made.result))
    framed = np.zeros(GREY.shape[:2], bool)
    framed[top - 1 : top + height + 1, right - width - 1 : right + 1] = True
    assert (full[~framed] == plain[~framed]).all()
    assert height == 198


def test_small_pictures_have_none() -> None:
    small = np.full((180, 320, 3), 100, np.uint8)
    made = grounded(calibrated())
    np.testing.assert_array_equal(draw(small, made.result, made.metres), draw(small, made.result))


@pytest.mark.parametrize(
    ("ahead", "words"),
    [
        (Distance(19.27, 16.94, 22.5), "  ahead 19.3 m (16.9 to 22.5)"),
        (Distance(59.0, 40.0, math.inf), "  ahead 59.0 m (40.0 or more)"),
        (None, "  ahead not seen"),
    ],
)
def test_the_caption_tells_the_way_ahead(ahead: Distance | None, words: str) -> None:
    result = grounded(calibrated(), []).result
    assert caption(replace(result, ground=measured(ahead))) == caption(replace(result, ground=None)) + words
    assert "ahead" not in caption(invalid(result))
