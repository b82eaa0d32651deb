"""Where the camera sits: against poses that are known because the pictures and points were made from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_image
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from calibration.boards import Board, refine
from calibration.camera import POSE, Camera, Intrinsics, Mount
from calibration.camera_file import read_mounted, write_camera
from calibration.extrinsics import find_corners, from_board, from_points, least_squares, pose_of, read_points
from calibration.ground import RangeUncertainty, ground_from_pixels, horizon, pixels_from_ground
from calibration.motion import Pair, from_motion, travel
from calibration.refinement import PitchRefiner
from calibration.vanishing import Heading, angles_of, combine, forwards, from_lines, line_heading, median_and_sigma, road_lines
from perception.calibrate_ground import ground_command
from perception.capture import Selection, open_source
from perception.errors import BadInput
from perception.synthetic import render, scene_from_uri

Array = NDArray[np.float64]
Image = NDArray[np.uint8]

SHARED = Path(__file__).resolve().parents[2] / "shared"
HIGHWAY = SHARED / "clips" / "highway_540p.mp4"
HIGHWAY_CAMERA = Intrinsics(1157, 1152, 666, 388, 1280, 720, "plumb_bob", (-0.245, -0.023)).scaled((960, 540))

PLAIN = Intrinsics(1000, 1000, 639.5, 359.5, 1280, 720)
LENSES = [
    PLAIN,
    Intrinsics(700, 690, 650, 350, 1280, 720, "plumb_bob", (-0.2, 0.05, 0.001, -0.001)),
    Intrinsics(700, 690, 650, 350, 1280, 720, "rational_polynomial", (0.1, 0.05, 0, 0, 0.01, 0.3, 0.1, 0.02)),
    Intrinsics(500, 500, 639.5, 359.5, 1280, 720, "equidistant", (-0.02, 0.005)),
]
MOUNT = Mount(1.45, pitch=0.06, roll=0.02, yaw=-0.03, x_m=1.7, y_m=0.1)
FOUR = np.array([[7, 2], [7, -2], [15, 3], [15, -3.0]])
SEVEN = np.vstack([FOUR, [[11, 0], [9, 1], [20, 2]]])

lenses = pytest.mark.parametrize("lens", LENSES, ids=lambda k: k.distortion_model if k.distorted else "pinhole")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


class TestLeastSquares:
    """The solver, on problems with known answers."""

    def test_a_line_is_fitted_as_by_the_normal_equations(self) -> None:
        x, y = np.arange(6.0), np.array([1, 3, 2, 5, 4, 6.5])
        found, cost = least_squares(lambda p: p[0] + p[1] * x - y, np.zeros(2))
        wanted, left, *_ = np.linalg.lstsq(np.column_stack([np.ones(6), x]), y, rcond=None)
        np.testing.assert_allclose(found, wanted, atol=1e-8)
        assert cost == pytest.approx(left[0])

    def test_a_curved_valley_is_followed_to_its_end(self) -> None:
        found, cost = least_squares(lambda p: np.array([10 * (p[1] - p[0] ** 2), 1 - p[0]]), np.array([-1.2, 1.0]))
        np.testing.assert_allclose(found, [1, 1], atol=1e-6)
        assert cost < 1e-12


class TestPoints:
    """Points on the ground whose places are known."""

    @lenses
    def test_four_exact_points_give_the_pose(self, lens: Intrinsics) -> None:
        placed = from_points(lens, pixels_from_ground(Camera(lens, MOUNT), FOUR), FOUR)
        np.testing.assert_allclose(pose_of(placed.mount), pose_of(MOUNT), atol=1e-6)
        assert placed.residual_px < 1e-6
        assert set(placed.mount.sigma) == set(POSE)

    def test_too_few_points_to_tell_which_is_wrong_do_not_fit(self) -> None:
        rng = np.random.default_rng(4)
        uv = pixels_from_ground(Camera(PLAIN, MOUNT), FOUR) + rng.normal(0, 0.7, FOUR.shape)
        assert from_points(PLAIN, uv, FOUR).remarks == []
        written = FOUR.copy()
        written[2, 0] += 1.0  # metres
        (remark,) = from_points(PLAIN, uv, written).remarks
        assert "times as far from where the mount puts them" in remark

    def test_what_fits_nowhere_near_is_refused(self) -> None:
        rng = np.random.default_rng(4)
        uv = pixels_from_ground(Camera(PLAIN, MOUNT), SEVEN)
        with pytest.raises(ValueError, match="times as far from where the mount puts them"):
            from_points(PLAIN, uv, SEVEN + rng.normal(0, 0.5, SEVEN.shape))

    def test_an_unlikely_pose_is_remarked_on(self) -> None:
        for mount, said in ((replace(MOUNT, roll=0.5), "rolled by 29"), (replace(MOUNT, pitch=1.4), "looks down by 80")):
            camera = Camera(PLAIN, mount)
            ground = ground_from_pixels(camera, [[300, 650], [1000, 690], [400, 520], [900, 600], [640, 620], [700, 710]])
            (remark,) = from_points(PLAIN, pixels_from_ground(camera, ground), ground).remarks
            assert said in remark

    def test_points_nearly_on_a_line_are_named_as_what_they_are(self) -> None:
        """What the message asks for is what is asked: a fiftieth of the length aside is enough."""
        along, aside = np.linspace(6, 16, 5), np.array([0.5, -0.5, 0.5, -0.5, 0.0])
        for share, fine in ((0.5, True), (0.3, True), (0.15, False)):
            ground = np.column_stack([along, share * aside])
            uv = pixels_from_ground(Camera(PLAIN, MOUNT), ground)
            if fine:
                from_points(PLAIN, uv, ground)
            else:
                with pytest.raises(ValueError, match=r"on one line.*a fiftieth of its length is the least"):
                    from_points(PLAIN, uv, ground)

    def test_the_pose_is_opencvs(self) -> None:
        # Noisy points, all as exact as each other: OpenCV's own iteration minimises the same sum.
        uv = pixels_from_ground(Camera(PLAIN, MOUNT), SEVEN) + np.random.default_rng(3).normal(0, 1, SEVEN.shape)
        points = np.column_stack([SEVEN, np.zeros(len(SEVEN))])
        _, turn, shift = cv2.solvePnP(points, uv, PLAIN.matrix, None)
        turn, shift = cv2.solvePnPRefineLM(points, uv, PLAIN.matrix, None, turn, shift)
        camera_from_base = np.vstack([np.column_stack([cv2.Rodrigues(turn)[0], shift]), [0, 0, 0, 1]])
        wanted = Mount.from_transform(np.linalg.inv(camera_from_base))
        placed = from_points(PLAIN, uv, SEVEN, tape_sigma_m=0.0, drop=False)
        np.testing.assert_allclose(pose_of(placed.mount), pose_of(wanted), atol=2e-4)

    @settings(max_examples=40, deadline=None)
    @given(
        st.floats(0.5, 3),
        st.floats(-0.05, 0.4),
        st.floats(-0.1, 0.1),
        st.floats(-0.3, 0.3),
        st.floats(-1, 2.5),
        st.floats(-0.5, 0.5),
    )
    def test_any_pose_comes_back(self, height: float, pitch: float, roll: float, yaw: float, x: float, y: float) -> None:
        camera = Camera(LENSES[1], Mount(height, pitch, roll, yaw, x, y))
        seen = ground_from_pixels(camera, [[300, 650], [1000, 680], [400, 520], [900, 560], [640, 600]])
        assume(np.isfinite(seen).all() and np.hypot(*(seen - (x, y)).T).max() < 60)
        placed = from_points(camera.intrinsics, pixels_from_ground(camera, seen), seen)
        np.testing.assert_allclose(pose_of(placed.mount), pose_of(camera.mount), atol=1e-6)

    @pytest.mark.parametrize("count", [5, 12])
    def test_the_standard_deviations_are_honest(self, count: int) -> None:
        rng, scaled = np.random.default_rng(count), []
        for _ in range(60):
            written = np.column_stack(
                [rng.uniform(6.5, 20, count), np.resize([2, -2, 1, -1], count) + rng.uniform(-0.5, 0.5, count)]
            )
            real = written + rng.normal(0, 0.01, written.shape)
            uv = pixels_from_ground(Camera(PLAIN, MOUNT), real) + rng.normal(0, 0.7, real.shape)
            placed = from_points(PLAIN, uv, written)
            scaled.append((pose_of(placed.mount) - pose_of(MOUNT)) / [placed.mount.sigma[name] for name in POSE])
        spread = np.sqrt(np.mean(np.square(scaled), axis=0))
        # 60 draws give a standard deviation to a tenth; estimated sigmas and a point dropped now and then widen it.
        assert ((spread > 0.6) & (spread < 1.5)).all(), spread
        assert (np.abs(scaled) > 3).mean() < 0.03

    @pytest.mark.parametrize("wrong", range(7))
    def test_an_outlying_point_is_named_and_left_out(self, wrong: int) -> None:
        uv = pixels_from_ground(Camera(PLAIN, MOUNT), SEVEN)
        uv[wrong] += (15, -10)
        placed = from_points(PLAIN, uv, SEVEN)
        np.testing.assert_allclose(pose_of(placed.mount), pose_of(MOUNT), atol=1e-6)
        assert [remark.split(":")[0] for remark in placed.remarks] == [f"point {wrong + 1} was left out"]
        assert "18.0 px" in placed.remarks[0]
        assert len(placed.seen) == 6

    def test_two_outlying_points_are_found(self) -> None:
        uv = pixels_from_ground(Camera(PLAIN, MOUNT), SEVEN)
        uv[1] += (150, -100)
        uv[5] += (30, 100)
        placed = from_points(PLAIN, uv, SEVEN)
        np.testing.assert_allclose(pose_of(placed.mount), pose_of(MOUNT), atol=1e-6)
        assert {remark.split()[1] for remark in placed.remarks} == {"2", "6"}

    def test_good_points_are_kept(self) -> None:
        uv = pixels_from_ground(Camera(PLAIN, MOUNT), SEVEN) + np.random.default_rng(1).normal(0, 0.7, SEVEN.shape)
        assert len(from_points(PLAIN, uv, SEVEN).seen) == 7

    def test_the_cameras_own_uncertainty_counts(self) -> None:
        uv = pixels_from_ground(Camera(PLAIN, MOUNT), SEVEN)
        exact = from_points(PLAIN, uv, SEVEN).mount.sigma["pitch"]
        unsure = from_points(replace(PLAIN, sigma={"cy": 5.0}), uv, SEVEN).mount.sigma["pitch"]
        # A principal point 5 px lower turns the camera by 5 px of 1000, as far as height and place do not make up for it.
        assert unsure == pytest.approx(math.hypot(exact, 5 / 1000), rel=0.3)

    def test_ranges_by_a_camera_that_is_not_quite_as_calibrated(self) -> None:
        """Nothing of what the interval assumes goes in: lens and points are off, the mount is found from these again, and the
        true range of what is seen then lies in the interval as often as it says, which is no wider than it must be."""
        rng, true = np.random.default_rng(0), Camera(PLAIN, MOUNT)
        sigma = {"fx": 5.0, "fy": 5.0, "cx": 5.0, "cy": 10.0}
        ranges = np.array([10.0, 20, 30, 40])
        held, off, half = [], [], []
        for _ in range(150):
            lens = replace(PLAIN.moved({name: rng.normal(0, s) for name, s in sigma.items()}), sigma=sigma)
            uv = pixels_from_ground(true, SEVEN + rng.normal(0, 0.01, SEVEN.shape)) + rng.normal(0, 0.7, SEVEN.shape)
            camera = Camera(lens, from_points(lens, uv, SEVEN).mount)
            points = np.column_stack([ranges, 0.1 * ranges])
            found = ground_from_pixels(camera, pixels_from_ground(true, points))
            near, far = RangeUncertainty(camera, camera.uncertain).intervals(found).T
            away = np.hypot(*points.T)
            held.append((near <= away) & (away <= far))
            off.append(np.hypot(*found.T) - away)
            half.append((far - near) / 2)
        assert 0.9 < np.mean(held) < 0.98
        np.testing.assert_allclose(np.median(half, axis=0), 1.96 * np.std(off, axis=0), rtol=0.2)

    @pytest.mark.parametrize(
        ("uv", "ground", "words"),
        [
            (None, FOUR[:3], "at least four"),
            (None, [[7, 0], [10, 0], [15, 0], [20, 0.0]], "on one line"),
            ("mirrored", FOUR, "left and right"),
            ("crossed", FOUR, "order"),
            ([[1300, 5], [2, 2], [3, 9], [4, 4]], FOUR, "point 1.*outside"),
        ],
    )
    def test_points_that_give_no_pose_are_refused(self, uv: object, ground: Array, words: str) -> None:
        camera = Camera(PLAIN, MOUNT)
        if uv == "mirrored":
            uv = pixels_from_ground(camera, np.asarray(ground) * (1, -1))
        elif uv == "crossed":
            uv = pixels_from_ground(camera, ground)[[1, 0, 2, 3]]
        elif uv is None:
            uv = pixels_from_ground(camera, ground)
        with pytest.raises(ValueError, match=words):
            from_points(PLAIN, uv, ground)  # type: ignore[arg-type]

    def test_a_pixel_that_the_lens_does_not_see_is_refused(self) -> None:
        lens = replace(PLAIN, fx=600, fy=600, distortion=(-0.5,) + (0.0,) * 4)
        with pytest.raises(ValueError, match=r"point 2.*no direction"):
            from_points(lens, [[640, 500], [0, 719], [700, 500], [650, 600]], FOUR)

    def test_a_file_is_read(self, tmp_path: Path) -> None:
        file = tmp_path / "points.yaml"
        lines = [f"- {{pixel: [{i}, {i + 1}], ground: [{i}.5, -1]}}" for i in range(4)]
        file.write_text("points:\n" + "\n".join(lines) + "\ntape_sigma_m: 0.03\n")
        pixels, ground, pixel_sigma, tape_sigma_m = read_points(file)
        np.testing.assert_array_equal(pixels, [[0, 1], [1, 2], [2, 3], [3, 4]])
        np.testing.assert_array_equal(ground, [[0.5, -1], [1.5, -1], [2.5, -1], [3.5, -1]])
        assert (pixel_sigma, tape_sigma_m) == (0.7, 0.03)

    @pytest.mark.parametrize(
        ("line", "key"),
        [
            ("- {pixel: [1, 2, 3], ground: [1, 2]}", r"points\.3\.pixel"),
            ("- {pixel: [1, 2], grund: [1, 2]}", r"points\.3\.grund: unknown"),
            ("- {pixel: [1, 2], ground: [1, far]}", r"points\.3\.ground\.1"),
            ("- {pixel: [1, 2], ground: [1, .nan]}", r"points\.3\.ground\.1"),
        ],
    )
    def test_a_mistake_in_a_file_is_named_by_its_key(self, tmp_path: Path, line: str, key: str) -> None:
        file = tmp_path / "points.yaml"
        file.write_text("points:\n" + "- {pixel: [1, 2], ground: [1, 2]}\n" * 3 + line + "\n")
        with pytest.raises(ValueError, match=key):
            read_points(file)


FINER = 4  # times the picture's resolution


def board_picture(camera: Camera, size: tuple[int, int], square_m: float, place: tuple[float, float, float]) -> Image:
    """A chessboard with a white rim, flat on grey ground, as the camera sees it: each pixel asks the ground for its colour."""
    k = camera.intrinsics
    fine = k.scaled((FINER * k.width, FINER * k.height))
    cos, sin = math.cos(place[2]), math.sin(place[2])
    reach = square_m * (max(size) + 4) / 2 * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    around = pixels_from_ground(Camera(fine, camera.mount), np.array(place[:2]) + reach)
    (left, top), (right, bottom) = ((FINER * (end(axis=0) // FINER)).astype(int) for end in (around.min, around.max))
    u, v = np.meshgrid(np.arange(left, right), np.arange(top, bottom))
    ground = ground_from_pixels(Camera(fine, camera.mount), np.stack([u.ravel(), v.ravel()], axis=1)) - place[:2]
    i = np.floor(ground @ (cos, sin) / square_m + (size[0] + 1) / 2)
    j = np.floor(ground @ (-sin, cos) / square_m + (size[1] + 1) / 2)
    board = (i >= 0) & (i <= size[0]) & (j >= 0) & (j <= size[1])
    rim = (i >= -1) & (i <= size[0] + 1) & (j >= -1) & (j <= size[1] + 1)
    grey = np.where(board, np.where((i + j) % 2 == 0, 30, 220), np.where(rim, 220, 110)).astype(np.float32)
    picture = np.full((k.height, k.width), 110, np.float32)
    window = picture[top // FINER : bottom // FINER, left // FINER : right // FINER]
    window[...] = cv2.resize(grey.reshape(u.shape), window.shape[::-1], interpolation=cv2.INTER_AREA)
    noisy = cv2.GaussianBlur(picture, (0, 0), 0.5) + np.random.default_rng(0).normal(0, 2, picture.shape)
    return cv2.cvtColor(np.clip(noisy, 0, 255).astype(np.uint8), cv2.COLOR_GRAY2BGR)


BOARD = Board("chessboard", 9, 6, 0.12)


class TestBoard:
    """A chessboard on the ground."""

    OVER_BOARD = replace(MOUNT, height_m=1.3, pitch=0.15)
    PLACE = (4.6, 0.2, math.pi / 2 + 0.05)

    @pytest.mark.parametrize("lens", LENSES[1:], ids=lambda k: k.distortion_model)
    def test_a_picture_gives_the_pose(self, lens: Intrinsics) -> None:
        camera = Camera(lens, self.OVER_BOARD)
        corners = find_corners(board_picture(camera, (9, 6), 0.12, self.PLACE), BOARD)
        placed = from_board(lens, corners, BOARD, self.PLACE)
        picture = cv2.cvtColor(board_picture(camera, (9, 6), 0.12, self.PLACE), cv2.COLOR_BGR2GRAY)
        again = refine(BOARD, np.asarray(picture, np.uint8), corners, np.arange(54), 0.25)
        np.testing.assert_allclose(again, corners, atol=0.02)  # as for a camera's own calibration: docs/calibration.md
        off = pose_of(placed.mount) - pose_of(camera.mount)
        assert (np.abs(off) < 3 * np.array([placed.mount.sigma[name] for name in POSE])).all(), off
        assert (np.abs(off) < (0.01, 0.003, 0.002, 0.002, 0.01, 0.005)).all(), off
        assert placed.residual_px < 0.4

    @pytest.mark.parametrize("turned", [0, math.pi])
    @pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
    def test_either_way_round_means_the_same(self, turned: float, order: slice) -> None:
        corners = self.exact_corners()[order]
        placed = from_board(PLAIN, corners, BOARD, (*self.PLACE[:2], self.PLACE[2] + turned))
        np.testing.assert_allclose(pose_of(placed.mount), pose_of(self.OVER_BOARD), atol=1e-6)

    def test_without_its_place_yaw_is_taken_as_zero_and_said_so(self) -> None:
        placed = from_board(PLAIN, self.exact_corners(), BOARD, position=(1.5, 0.2))
        mount = placed.mount
        np.testing.assert_allclose((mount.height_m, mount.pitch, mount.roll), (1.3, 0.15, 0.02), atol=1e-6)
        assert (mount.yaw, mount.x_m, mount.y_m) == (0, 1.5, 0.2)
        assert set(mount.sigma) == {"height_m", "pitch", "roll"}
        assert "yaw 0" in placed.assumed

    def test_what_cannot_be_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no heading"):
            from_board(PLAIN, np.zeros((36, 2)), Board("chessboard", 6, 6, 0.12), self.PLACE)
        with pytest.raises(ValueError, match="54"):
            from_board(PLAIN, self.exact_corners(), Board("chessboard", 8, 6, 0.12))
        with pytest.raises(ValueError, match="no chessboard with 9 x 6"):
            find_corners(np.full((200, 300), 128, np.uint8), BOARD)

    def exact_corners(self) -> Array:
        x, y, heading = self.PLACE
        i, j = np.meshgrid(np.arange(9) - 4, np.arange(6) - 2.5)
        along, across = (
            0.12 * np.array([math.cos(heading), math.sin(heading)]),
            0.12 * np.array([-math.sin(heading), math.cos(heading)]),
        )
        return pixels_from_ground(Camera(PLAIN, self.OVER_BOARD), np.array([x, y]) + np.outer(i, along) + np.outer(j, across))


class TestDirections:
    """The direction of travel in the image, and the camera that sees it there."""

    @settings(deadline=None)
    @given(st.floats(-0.6, 0.6), st.floats(-0.6, 0.6), st.floats(-0.4, 0.4))
    def test_they_are_those_of_the_mount(self, pitch: float, yaw: float, roll: float) -> None:
        seen = forwards(pitch, yaw, roll)
        ahead = Camera(PLAIN, Mount(1.0, pitch, roll, yaw)).camera_from_base[:3, :3] @ [1, 0, 0]
        np.testing.assert_allclose(seen[0], ahead, atol=1e-12)
        np.testing.assert_allclose(np.ravel(angles_of(seen, roll)), [pitch, yaw], atol=1e-9)

    def test_by_hand(self) -> None:
        # The road vanishes 100 px above and 50 px right of the centre of a camera with a focal length of 1000 px.
        (pitch,), (yaw,) = angles_of(np.array([[50, -100, 1000]]) / math.hypot(50, 100, 1000), 0.0)
        assert pitch == pytest.approx(math.atan(0.1))  # it looks down
        assert yaw == pytest.approx(math.atan(50 / math.hypot(1000, 100)))  # and to the left

    def test_standard_errors_of_medians_are_honest(self) -> None:
        rng, scaled = np.random.default_rng(0), []
        for _ in range(400):
            middle, sigma = median_and_sigma(rng.normal(0, 1, (80, 1)), np.full((80, 1), 1.0))
            scaled.append(middle[0] / sigma[0])
        assert 0.75 < float(np.std(scaled)) < 1.15

    def test_what_lasts_over_many_images_is_not_averaged_away(self) -> None:
        rng = np.random.default_rng(0)
        slow = np.repeat(rng.normal(0, 1, 8), 50)[:, None]
        _, sigma = median_and_sigma(slow + rng.normal(0, 0.1, slow.shape), np.full(slow.shape, 0.1))
        assert sigma[0] > 0.2  # of eight independent values; 0.01 if all 400 were


def drawn_road(camera: Camera, bend: float = 0.0) -> Image:
    """White lines on grey, 0.15 m wide, along a road of a curvature, 1/m, as the camera sees them."""
    picture = np.full((camera.intrinsics.height, camera.intrinsics.width), 90, np.uint8)
    x = np.geomspace(2.5 + camera.mount.x_m, 80, 200)
    for y in (-5.25, -1.75, 1.75, 5.25):
        left, right = (np.column_stack([x, y + side + bend * x**2 / 2]) for side in (0.075, -0.075))
        outline = pixels_from_ground(camera, np.vstack([left, right[::-1]]))
        cv2.fillPoly(picture, [np.round(outline[np.isfinite(outline).all(axis=1)] * 256).astype(np.int32)], 230, cv2.LINE_AA, 8)
    return picture


@lru_cache(maxsize=8)
def frames_of(uri: str, indices: tuple[int, ...]) -> tuple[Intrinsics, list[tuple[Image, int]]]:
    scene = scene_from_uri(uri)
    return scene.camera.intrinsics, [(render(scene, i).image, round(i / scene.fps * 1e9)) for i in indices]


def straight_pairs(uri: str, count: int) -> tuple[Intrinsics, list[tuple[Image, int]]]:
    """Pairs of consecutive frames, 0.64 s from one to the next."""
    return frames_of(uri, tuple(i for j in range(count) for i in (16 * j, 16 * j + 1)))


class TestLines:
    """Lines of a straight road."""

    @lenses
    def test_a_drawn_road(self, lens: Intrinsics) -> None:
        camera = Camera(lens, replace(MOUNT, roll=0.03, x_m=0, y_m=0))
        found = line_heading(lens, road_lines(drawn_road(camera)), replace(camera.mount, pitch=0, yaw=0))
        assert isinstance(found, Heading)
        assert (found.pitch, found.yaw) == pytest.approx((0.06, -0.03), abs=math.radians(0.2))

    def test_a_curve_gives_nothing(self) -> None:
        camera = Camera(PLAIN, Mount(1.45, pitch=0.06))
        assert line_heading(PLAIN, road_lines(drawn_road(camera, bend=1 / 200)), camera.mount) == "a curve"

    @pytest.mark.parametrize("uri", ["straight", "traffic"])
    def test_a_rendered_drive(self, uri: str) -> None:
        lens, frames = frames_of(f"synthetic://{uri}?seconds=20&size=960x540", tuple(range(0, 192, 16)))
        placed = from_lines(lens, (image for image, _ in frames), Mount(1.45))
        assert placed.mount.pitch == pytest.approx(0.05, abs=math.radians(0.15))
        assert abs(placed.mount.pitch - 0.05) < 3 * placed.mount.sigma["pitch"]
        assert abs(placed.mount.yaw) < math.radians(0.3)
        assert "level" in placed.assumed
        assert "not measured" in placed.assumed

    def test_a_winding_road_is_refused(self) -> None:
        lens, frames = frames_of("synthetic://curve?seconds=20&size=960x540", tuple(range(0, 160, 13)))
        with pytest.raises(ValueError, match="with a curve"):
            from_lines(lens, (image for image, _ in frames), Mount(1.45))

    def test_without_lines_it_says_so(self) -> None:
        with pytest.raises(ValueError, match="2 with too few lines"):
            from_lines(PLAIN, [np.full((720, 1280, 3), 99, np.uint8)] * 2, Mount(1.45))

    def test_a_lens_that_is_not_quite_as_calibrated_hardly_moves_the_road(self) -> None:
        """The road vanishes where it does: a principal point that is wrong is made up for by the pitch found with it."""
        lens, frames = frames_of("synthetic://straight?seconds=20&size=960x540&seed=1", (0, 60, 120))
        sigma, places = 22.5, []
        for moved in (-sigma, 0.0, sigma):
            k = replace(lens.moved({"cy": moved}), sigma={"cy": sigma})
            camera = Camera(k, from_lines(k, [image for image, _ in frames], Mount(1.45, sigma={"height_m": 0.01})).mount)
            assert camera.mount.sigma["pitch"] > 0.9 * sigma / lens.fy
            place = ground_from_pixels(camera, [[480, 310]])
            places.append((np.hypot(*place[0]), *RangeUncertainty(camera, camera.uncertain).intervals(place)[0]))
        lower, (middle, near, far), upper = places
        assert abs(upper[0] - lower[0]) / 2 < 0.03 * middle
        assert (upper[0] - lower[0]) / 2 < (far - near) / 2 < 0.15 * middle

    @pytest.mark.skipif(not HIGHWAY.exists(), reason=f"{HIGHWAY.name} is not there")
    def test_a_real_road_agrees_with_its_motion(self) -> None:
        with open_source(str(HIGHWAY), Selection(duration_s=1.6)) as source:
            frames = [(frame.image, frame.stamp_ns) for frame in source.frames()]
        known = Mount(1.3)
        lines = from_lines(HIGHWAY_CAMERA, [image for image, _ in frames[::4]], known).mount
        motion = from_motion(HIGHWAY_CAMERA, frames[:24], known).mount
        # Two ways that share neither pixels nor assumptions: within four of their standard deviations, and half a degree.
        for name in ("pitch", "yaw"):
            off = abs(getattr(lines, name) - getattr(motion, name))
            assert off < min(4 * math.hypot(lines.sigma[name], motion.sigma[name]), math.radians(0.5))
        row = horizon(Camera(HIGHWAY_CAMERA, motion), [480])[0]
        assert 290 < row < 325  # where the road of this clip ends at the sky's foot
        assert 0 < motion.sigma["pitch"] < math.radians(0.3)


class TestMotion:
    """The direction of travel."""

    @lenses
    @pytest.mark.parametrize("turn", [0.0, 0.004])
    def test_simulated_tracks(self, lens: Intrinsics, turn: float) -> None:
        # Points beside, above and on the road; the vehicle goes 1 m ahead, and the camera nods and turns a little.
        rng, mount = np.random.default_rng(5), replace(MOUNT, roll=0.02)
        points = np.column_stack([rng.uniform(5, 60, 300), rng.uniform(-12, 12, 300), rng.choice([0, 0, 1, 3], 300)])
        before = Camera(lens, mount).project(points)
        nodded = Camera(lens, replace(mount, pitch=mount.pitch + turn, yaw=mount.yaw + turn / 4, x_m=mount.x_m + 1))
        after = nodded.project(points) + rng.normal(0, 0.1, (300, 2))
        after[:60] += rng.normal(0, 15, (60, 2))  # other vehicles, and mistakes
        seen = np.isfinite(before + after).all(axis=1) & (np.abs(before - (640, 360)) < (640, 360)).all(axis=1)
        found = travel(lens, Pair(before[seen], after[seen], 0.1), replace(mount, pitch=0, yaw=0))
        assert isinstance(found, Heading)
        pitch, yaw = mount.pitch + turn / 2, mount.yaw + turn / 8  # in the middle between both images
        assert (found.pitch, found.yaw) == pytest.approx((pitch, yaw), abs=math.radians(0.25))
        assert abs(found.pitch - pitch) < 4 * found.pitch_sigma
        assert abs(found.yaw - yaw) < 4 * found.yaw_sigma

    def test_a_turn_is_told_from_going_straight_on(self) -> None:
        rng = np.random.default_rng(5)
        points = np.column_stack([rng.uniform(5, 60, 300), rng.uniform(-12, 12, 300), rng.choice([0, 0, 1, 3], 300)])
        before = Camera(PLAIN, MOUNT).project(points)
        after = Camera(PLAIN, replace(MOUNT, yaw=MOUNT.yaw + 0.02, x_m=MOUNT.x_m + 1)).project(points)
        seen = np.isfinite(before + after).all(axis=1)
        assert travel(PLAIN, Pair(before[seen], after[seen], 0.1), MOUNT) == "turning"

    @pytest.mark.parametrize("yaw", [0.03, math.pi - 0.03, -math.pi + 0.03])
    def test_a_camera_that_looks_back(self, yaw: float) -> None:
        """Where a vehicle goes and where it comes from look the same; the mount says which of the two is seen."""
        rng, mount = np.random.default_rng(5), Mount(1.4, pitch=0.1, roll=0.02, yaw=yaw, x_m=-1.0)
        side = math.copysign(1, math.cos(yaw))
        points = np.column_stack([side * rng.uniform(5, 60, 300), rng.uniform(-12, 12, 300), rng.choice([0, 0, 1, 3], 300)])
        before = Camera(PLAIN, mount).project(points)
        after = Camera(PLAIN, replace(mount, x_m=mount.x_m + 1)).project(points)
        seen = np.isfinite(before + after).all(axis=1) & (np.abs(before - (640, 360)) < (640, 360)).all(axis=1)
        known = replace(mount, pitch=0.0, yaw=0.0 if side > 0 else math.pi)
        found = travel(PLAIN, Pair(before[seen], after[seen], 0.1), known)
        assert isinstance(found, Heading)
        placed = combine(PLAIN, [found] * 3, known)
        assert (placed.mount.pitch, placed.mount.yaw) == pytest.approx((0.1, yaw), abs=1e-3)

    @pytest.mark.parametrize(("uri", "count"), [("straight", 14), ("drive", 26)])
    def test_a_rendered_drive(self, uri: str, count: int) -> None:
        lens, frames = straight_pairs(f"synthetic://{uri}?seconds=20&size=640x360&seed=1", count)
        placed = from_motion(lens, frames, Mount(1.45, x_m=1.2))
        assert placed.mount.pitch == pytest.approx(0.05, abs=math.radians(0.15))
        assert abs(placed.mount.pitch - 0.05) < 3 * placed.mount.sigma["pitch"]
        assert abs(placed.mount.yaw) < math.radians(0.3)
        assert (placed.mount.height_m, placed.mount.x_m) == (1.45, 1.2)
        assert "no scale" in placed.assumed

    def test_a_parked_car_is_refused(self) -> None:
        lens, frames = frames_of("synthetic://straight?seconds=20&size=960x540&seed=1", (0,))
        rng = np.random.default_rng(0)
        grainy = [np.clip(frames[0][0] + rng.normal(0, 2, frames[0][0].shape), 0, 255).astype(np.uint8) for _ in range(4)]
        with pytest.raises(ValueError, match="stands still"):
            from_motion(lens, [(image, 40_000_000 * i) for i, image in enumerate(grainy)], Mount(1.45))

    def test_mostly_turning_is_refused(self) -> None:
        lens, frames = straight_pairs("synthetic://drive?seconds=20&size=640x360&seed=1", 26)
        with pytest.raises(ValueError, match=r"2 of 14 pairs.*12 turning.*at least 8"):
            from_motion(lens, frames[:28], Mount(1.45))

    def test_pictures_far_apart_are_no_motion(self) -> None:
        lens, frames = frames_of("synthetic://straight?seconds=20&size=960x540&seed=1", (0,))
        with pytest.raises(ValueError, match="needs a video"):
            from_motion(lens, [(frames[0][0], i * 10**9) for i in range(3)], Mount(1.45))


def headings(pitch: float, count: int, scatter: float = math.radians(0.3)) -> list[Heading]:
    rng = np.random.default_rng(count)
    return [Heading(pitch + rng.normal(0, scatter), 0.0, scatter, scatter, 0.2) for _ in range(count)]


class TestRefinement:
    """The pitch while driving."""

    CAMERA = Camera(PLAIN, Mount(1.45, pitch=0.05, sigma={"pitch": 0.004}))

    def feed(self, refiner: PitchRefiner, found: list[Heading], start_s: int = 1) -> list[float]:
        pitches = []
        for i, heading in enumerate(found):
            refiner.add_heading(heading, (start_s + i) * 10**9)
            pitches.append(refiner.pitch)
        return pitches

    def test_an_offset_is_found_slowly(self) -> None:
        refiner = PitchRefiner(self.CAMERA)
        pitches = self.feed(refiner, headings(0.05 + math.radians(0.8), 110))
        assert pitches[30] == 0.05  # not yet
        assert refiner.sure
        assert refiner.pitch == pytest.approx(0.05 + math.radians(0.8), abs=3 * refiner.mount.sigma["pitch"])
        assert refiner.mount.sigma["pitch"] < math.radians(0.15)
        assert np.abs(np.diff(pitches)).max() <= math.radians(0.05) + 1e-12

    def test_it_sees_through_the_same_lens_as_the_calibration(self) -> None:
        """What the principal point does to a pitch it does to a refined one, too; to far ranges next to nothing."""
        lens = replace(PLAIN, sigma={"cy": 20.0})
        refiner = PitchRefiner(Camera(lens, Mount(1.45, pitch=0.05, sigma={"pitch": 0.02, "height_m": 0.01})))
        self.feed(refiner, headings(0.05 + math.radians(0.5), 110))
        mount = refiner.mount
        assert mount.sigma["pitch"] == pytest.approx(0.02, rel=0.1)
        assert mount.sigma["height_m"] == 0.01
        camera = Camera(lens, mount)
        (near, far) = RangeUncertainty(camera, camera.uncertain).intervals([[30, 0]])[0]
        assert 0.5 < far - near < 6

    def test_it_is_bounded(self) -> None:
        refiner = PitchRefiner(self.CAMERA, limit=math.radians(1.0))
        self.feed(refiner, headings(0.05 - math.radians(4), 300))
        assert refiner.correction == pytest.approx(-math.radians(1.0))
        assert refiner.mount.sigma["pitch"] > math.radians(2.9)  # it says that this is not what was seen

    def test_until_it_is_sure_the_calibration_holds(self) -> None:
        refiner = PitchRefiner(self.CAMERA)
        self.feed(refiner, headings(0.08, 200, scatter=math.radians(6)))
        assert not refiner.sure
        assert (refiner.pitch, refiner.mount) == (0.05, self.CAMERA.mount)

    def test_what_is_old_is_forgotten(self) -> None:
        refiner = PitchRefiner(self.CAMERA)
        self.feed(refiner, headings(0.06, 130))
        self.feed(refiner, headings(0.045, 260), start_s=131)
        assert refiner.pitch == pytest.approx(0.045, abs=0.002)

    def test_a_wrong_calibration_is_corrected_from_frames(self) -> None:
        lens, frames = straight_pairs("synthetic://straight?seconds=40&size=480x270&seed=1", 42)
        wrong = Camera(lens, Mount(1.45, pitch=0.05 - math.radians(0.1)))
        refiner = PitchRefiner(wrong, period_s=0.5)
        for image, stamp_ns in frames[:78]:
            refiner.add(image, stamp_ns)
        assert not refiner.sure
        assert refiner.pitch == wrong.mount.pitch
        for image, stamp_ns in frames[78:]:
            refiner.add(image, stamp_ns)
        assert refiner.sure
        assert refiner.correction > math.radians(0.02)  # on its way
        assert abs(refiner.pitch - 0.05) < 3 * refiner.mount.sigma["pitch"]
        assert refiner.mount.sigma["pitch"] < math.radians(0.15)

    def test_nothing_is_invented_on_a_standing_car(self) -> None:
        lens, frames = frames_of("synthetic://straight?seconds=20&size=960x540&seed=1", (0,))
        refiner = PitchRefiner(Camera(lens, Mount(1.45, pitch=0.03)), period_s=0.1)
        for i in range(20):
            refiner.add(frames[0][0], 40_000_000 * i)
        assert (refiner.pairs, refiner.pitch, refiner.mount.sigma) == (0, 0.03, {})

    @pytest.mark.parametrize("jump_s", [-5, 10])
    def test_a_gap_begins_anew(self, jump_s: int) -> None:
        refiner = PitchRefiner(self.CAMERA)
        plain = np.zeros((720, 1280, 3), np.uint8)
        refiner.add(plain, 100 * 10**9)
        self.feed(refiner, headings(0.06, 60))
        assert refiner.pitch > 0.05
        refiner.add(plain, (100 + jump_s) * 10**9)
        assert (refiner.pitch, refiner.pairs) == (0.05, 0)

    def test_a_cut_begins_anew(self) -> None:
        lens, frames = straight_pairs("synthetic://straight?seconds=40&size=480x270&seed=1", 3)
        refiner = PitchRefiner(Camera(lens, Mount(1.45, pitch=0.05)), period_s=0.5)
        for image, stamp_ns in frames[:4]:
            refiner.add(image, stamp_ns)
        assert refiner.pairs == 2
        for image, stamp_ns in frames[4:]:
            refiner.add(np.ascontiguousarray(image[::-1]), stamp_ns)
        assert refiner.pairs <= 1  # none of those before

    def test_limits_that_make_no_sense_are_refused(self) -> None:
        with pytest.raises(ValueError, match="positive"):
            PitchRefiner(self.CAMERA, limit=0)


class TestCommand:
    """``freespace calibrate ground``."""

    @pytest.fixture
    def camera(self, tmp_path: Path) -> Path:
        write_camera(tmp_path / "camera.yaml", LENSES[1])
        return tmp_path / "camera.yaml"

    def test_what_else_the_camera_file_holds_is_kept(self, camera: Path, tmp_path: Path) -> None:
        camera.write_text(camera.read_text() + "binning: 2\n")
        uv = pixels_from_ground(Camera(LENSES[1], MOUNT), SEVEN)
        lines = [f"- {{pixel: [{u}, {v}], ground: [{x}, {y}]}}" for (u, v), (x, y) in zip(uv, SEVEN, strict=True)]
        (tmp_path / "points.yaml").write_text("\n".join(["points:", *lines]))
        ground_command(camera, tmp_path / "car.yaml", points=tmp_path / "points.yaml")
        assert "binning: 2\n" in (tmp_path / "car.yaml").read_text()

    def test_points_give_a_file_a_table_and_a_picture(
        self, camera: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        uv = pixels_from_ground(Camera(LENSES[1], MOUNT), SEVEN)
        lines = [f"- {{pixel: [{u}, {v}], ground: [{x}, {y}]}}" for (u, v), (x, y) in zip(uv, SEVEN, strict=True)]
        (tmp_path / "points.yaml").write_text("\n".join(["points:", *lines]))
        ground_command(camera, tmp_path / "car.yaml", points=tmp_path / "points.yaml", picture=tmp_path / "check.png")
        read = read_mounted(tmp_path / "car.yaml")
        np.testing.assert_allclose(pose_of(read.mount), pose_of(MOUNT), atol=1e-6)
        assert set(read.mount.sigma) == set(POSE)
        table = capsys.readouterr().out
        assert "pitch    0.06000 ± " in table
        assert "= 3.438 ± " in table
        assert "assumed: the ground" in table
        picture = cv2.imread(str(tmp_path / "check.png"))
        assert picture.shape == (720, 1280, 3)
        row = round(float(horizon(read, [100])[0]))
        assert (picture[row - 1 : row + 2, 100].astype(int) @ (-1, 0, 1)).max() > 100  # the horizon, in orange on grey

    def test_a_board_does(self, camera: Path, tmp_path: Path) -> None:
        mount = TestBoard.OVER_BOARD
        picture = board_picture(Camera(LENSES[1], mount), (9, 6), 0.12, TestBoard.PLACE)
        file = write_image(tmp_path / "board.png", picture)
        place = ",".join(map(str, TestBoard.PLACE))
        ground_command(camera, tmp_path / "car.yaml", board=str(file), size="9x6", square=0.12, board_at=place)
        np.testing.assert_allclose(pose_of(read_mounted(tmp_path / "car.yaml").mount), pose_of(mount), atol=0.01)

    def test_pictures_of_another_size(self, camera: Path, tmp_path: Path) -> None:
        """As 'run' takes them: points read from a picture of half the size, and a board seen at three quarters of it."""
        half = LENSES[1].scaled((640, 360))
        uv = pixels_from_ground(Camera(half, MOUNT), SEVEN)
        lines = [f"- {{pixel: [{u}, {v}], ground: [{x}, {y}]}}" for (u, v), (x, y) in zip(uv, SEVEN, strict=True)]
        (tmp_path / "points.yaml").write_text("\n".join(["points:", *lines]))
        image = write_image(tmp_path / "parked.png", np.zeros((360, 640, 3), np.uint8))
        ground_command(camera, tmp_path / "car.yaml", points=tmp_path / "points.yaml", image=str(image))
        np.testing.assert_allclose(pose_of(read_mounted(tmp_path / "car.yaml").mount), pose_of(MOUNT), atol=1e-6)
        mount, unsure = TestBoard.OVER_BOARD, replace(LENSES[1], sigma={"cy": 8.0})
        write_camera(camera, unsure)
        pitches = []
        for size in ((960, 540), (1280, 720)):
            picture = board_picture(Camera(LENSES[1].scaled(size), mount), (9, 6), 0.12, TestBoard.PLACE)
            file, out = write_image(tmp_path / "board.png", picture), tmp_path / f"{size[0]}.yaml"
            ground_command(camera, out, board=str(file), size="9x6", square=0.12)
            read = read_mounted(out)
            assert read.intrinsics == unsure
            assert read.mount.covariance is not None
            assert read.mount.covariance.sigma["cy"] == pytest.approx(8.0)
            pitches.append((read.mount.pitch, read.mount.sigma["pitch"]))
        assert pitches[0][0] == pytest.approx(pitches[1][0], abs=0.003)
        assert pitches[0][1] == pytest.approx(pitches[1][1], rel=0.1)

    def test_motion_keeps_what_it_cannot_measure(self, tmp_path: Path) -> None:
        uri = "synthetic://straight?seconds=2&size=640x360"
        camera = scene_from_uri(uri).camera.intrinsics
        write_camera(tmp_path / "camera.yaml", camera, Mount(1.2, pitch=0.3, roll=0.01, x_m=1.5, sigma={"roll": 0.002}))
        part = Selection(duration_s=0.6)
        ground_command(tmp_path / "camera.yaml", tmp_path / "car.yaml", motion=uri, height=1.45, selection=part)
        mount = read_mounted(tmp_path / "car.yaml").mount
        assert mount.pitch == pytest.approx(0.05, abs=math.radians(0.3))
        assert (mount.height_m, mount.roll, mount.x_m) == (1.45, 0.01, 1.5)
        assert set(mount.sigma) == {"roll", "height_m", "pitch", "yaw"}

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({}, "give one of --points, --board, --lines, --motion"),
            ({"lines": "a", "motion": "b"}, "--lines and --motion"),
            ({"lines": "synthetic://straight"}, "need --height"),
            ({"lines": "synthetic://straight?size=320x200", "height": 1.4}, "320x200.*calibrated at 1280x720"),
            ({"points": Path("x.yaml"), "height": 9.0}, "--height: --points has no use for that, only for --image"),
            ({"points": Path("x.yaml"), "size": "3x3"}, "--size: --points"),
            ({"points": Path("x.yaml"), "selection": Selection(5.0)}, "--start, --duration and --every: --points"),
            ({"board": "x.png", "image": "x.png"}, "--image: --board"),
            ({"motion": "x.mp4", "height": 1.4, "board_at": "1,2,3"}, "--board-at: --motion"),
            ({"board": "x.png", "board_at": "1,2,3", "position": "1,2"}, "--position: .*--board-at"),
            ({"motion": "synthetic://straight", "height": -1.0}, "height_m must be positive"),
            ({"motion": "nowhere.mp4", "height": 1.0}, "nowhere.mp4"),
            ({"board": "board.png"}, "needs --size"),
            ({"board": "board.png", "size": "9x6", "square": 0.1, "board_at": "1,2"}, "--board-at '1,2'"),
            ({"board": "board.png", "size": "2x9", "square": 0.1}, "board size 2x9: wanted 3 to 100"),
            ({"board": "board.png", "size": "9x6", "square": -1.0}, "square -1 m: wanted the side of a square"),
            ({"points": Path("nowhere.yaml")}, "nowhere.yaml"),
            ({"points": Path("x.yaml"), "picture": Path("check.txt")}, "check.txt"),
        ],
    )
    def test_mistakes_are_sentences(
        self, camera: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], words: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(BadInput, match=words):
            ground_command(camera, tmp_path / "car.yaml", **options)  # type: ignore[arg-type]
        assert not (tmp_path / "car.yaml").exists()

    def test_an_existing_file_is_kept(self, camera: Path, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="overwrite"):
            ground_command(camera, camera, points=tmp_path / "points.yaml")
