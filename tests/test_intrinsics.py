"""The camera's calibration against rendered boards, whose camera is known, and against photographs, whose is not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import parts_in, write_image, write_video
from numpy.typing import NDArray

from calibration.boards import Board, View, detect
from calibration.bundle import Seen, cost, derivatives, fit_fisheye, vector, with_vector
from calibration.camera import PARAMETERS, Intrinsics
from calibration.camera_file import read_camera, write_camera
from calibration.drawings import coverage_picture, guide_picture, undistort, undistortion_preview, without_distortion
from calibration.guide import measure, missing, offer, steady, thin_out
from calibration.intrinsics import Calibration, calibrate, covered, doubts, solve, uncertainty
from perception.calibrate_camera import Collected, calibrate_camera, watch
from perception.capture.base import Source
from perception.errors import BadInput
from perception.frame import Frame
from perception.options import board_of

PHOTOS = Path(__file__).parents[2] / "shared/clips/chessboard"

Array = NDArray[np.float64]
Image = NDArray[np.uint8]

BOARD = Board("chessboard", 8, 5, 0.03)
CHARUCO = Board("charuco", 8, 6, 0.03, 0.022)
CAMERAS = {
    "pinhole": Intrinsics(520, 524, 322.4, 236.1, 640, 480, "plumb_bob", (-0.25, 0.08, 0.001, -0.0008, -0.01)),
    "rational": Intrinsics(
        420, 421, 317, 243, 640, 480, "rational_polynomial", (0.6, 0.05, 0.0005, 0.0007, 0.004, 0.95, 0.2, 0.02)
    ),
    "fisheye": Intrinsics(230, 231, 321, 238, 640, 480, "equidistant", (0.03, -0.008, 0.002, -0.0004)),
}


def pose(turn: float, nod: float, roll: float, towards: Array, distance_m: float, board: Board) -> Array:
    """float64 ``(4, 4)``: camera_from_board of a board whose middle lies in a direction, facing the camera but for its tilt."""
    towards = towards / np.linalg.norm(towards)
    right = np.cross([0.0, 1.0, 0.0], towards)
    right /= np.linalg.norm(right)
    facing = np.stack([right, np.cross(towards, right), towards], axis=1)
    tilt = cv2.Rodrigues(np.array([0.0, turn, 0.0]))[0] @ cv2.Rodrigues(np.array([nod, 0.0, 0.0]))[0]
    transform = np.eye(4)
    transform[:3, :3] = facing @ tilt @ cv2.Rodrigues(np.array([0.0, 0.0, roll]))[0]
    transform[:3, 3] = towards * distance_m - transform[:3, :3] @ board.points.mean(axis=0)
    return transform


def poses(k: Intrinsics, board: Board, count: int = 14, tilt: float = 0.5, seed: int = 3) -> list[Array]:
    """Poses at which all corners are in the image, from border to border."""
    rng = np.random.default_rng(seed)
    found: list[Array] = []
    while len(found) < count:
        ray = k.rays([rng.uniform((0.1 * k.width, 0.1 * k.height), (0.9 * k.width, 0.9 * k.height))])[0]
        distance = rng.uniform(0.5, 1.3) * k.fx / 520 * 0.6
        turn, nod, roll = rng.uniform(-tilt, tilt, 3)
        candidate = pose(turn, nod, roll, ray, distance, board)
        pixels = k.project(board.points @ candidate[:3, :3].T + candidate[:3, 3])
        if np.isfinite(pixels).all() and (pixels > 14).all() and (pixels < np.array([k.width, k.height]) - 15).all():
            found.append(candidate)
    return found


def ideal(k: Intrinsics, board: Board, transforms: list[Array], noise_px: float = 0.0, seed: int = 0) -> list[View]:
    """Views as a detector with Gaussian errors would give them, nothing drawn."""
    rng = np.random.default_rng(seed)
    views = []
    for i, transform in enumerate(transforms):
        pixels = k.project(board.points @ transform[:3, :3].T + transform[:3, 3])
        views.append(
            View(f"view {i}", (k.width, k.height), pixels + rng.normal(0, noise_px, pixels.shape), np.arange(board.count), 1.0)
        )
    return views


@cache
def fine_rays(model: str) -> Array:
    """Directions of four points in each pixel of a camera."""
    k = CAMERAS[model]
    fine = k.scaled((2 * k.width, 2 * k.height))
    u, v = np.meshgrid(np.arange(fine.width), np.arange(fine.height))
    return fine.rays(np.stack([u.ravel(), v.ravel()], axis=1))


def texture(board: Board, square_px: int = 40) -> tuple[Image, float]:
    """The board as printed, with a white border, and where its first inner corner lies on it, pixels along both axes."""
    if board.pattern == "charuco":
        size = (board.columns * square_px, board.rows * square_px)
        printed = board.charuco.getBoard().generateImage(size, marginSize=0)
    else:
        rows, columns = np.indices((board.rows + 1, board.columns + 1))
        printed = np.kron(255 * ((rows + columns) % 2), np.ones((square_px, square_px))).astype(np.uint8)
    return cv2.copyMakeBorder(printed, *[square_px] * 4, cv2.BORDER_CONSTANT, value=255), 2 * square_px - 0.5


def render(model: str, board: Board, camera_from_board: Array, blur_px: float = 0.6) -> Image:
    """uint8 ``(H, W)``: the board before a grey wall as the camera sees it: each pixel's rays met with the board's plane."""
    k, rays = CAMERAS[model], fine_rays(model)
    rotation, position = camera_from_board[:3, :3], camera_from_board[:3, 3]
    with np.errstate(all="ignore"):
        depth = (rotation[:, 2] @ position) / (rays @ rotation[:, 2])
        plane = (rays * depth[:, None] - position) @ rotation[:, :2]
    plane[~(depth > 0)] = np.nan
    printed, corner = texture(board)
    where = np.nan_to_num(plane / board.square_m * 40 + corner, nan=-1e4).reshape(2 * k.height, 2 * k.width, 2)
    where = where.astype(np.float32)
    fine = cv2.remap(printed, where[..., 0], where[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=128)
    picture = cv2.resize(cv2.GaussianBlur(fine, (0, 0), 2 * blur_px), (k.width, k.height), interpolation=cv2.INTER_AREA)
    grain = np.random.default_rng(1).normal(0, 2, picture.shape)
    return np.clip(picture * 0.8 + 20 + grain, 0, 255).astype(np.uint8)


def everywhere(k: Intrinsics, margin: float = 0.08) -> Array:
    """Pixels all over the image but for its outermost part."""
    u = np.linspace(margin * k.width, (1 - margin) * k.width, 9)
    v = np.linspace(margin * k.height, (1 - margin) * k.height, 7)
    return np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)


def differences(found: Intrinsics, truth: Intrinsics) -> Array:
    """How far apart two cameras put what the true one sees, pixels, all over the image; but for a turn of the camera.

    The calibration cannot know the camera's direction: a shift of the principal point is a turn to first order.
    """
    pixels = everywhere(truth)
    pixels = pixels[np.isfinite(truth.rays(pixels)).all(axis=1)]
    assert len(pixels) > 40
    rays, others = truth.rays(pixels), found.rays(pixels)
    u, _, vt = np.linalg.svd(others.T @ rays)
    turn = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    return np.hypot(*(found.project(rays @ turn.T) - pixels).T)


@pytest.fixture(scope="module", params=CAMERAS)
def calibrated(request: pytest.FixtureRequest) -> tuple[str, Calibration]:
    """A calibration from rendered pictures with each model."""
    model: str = request.param
    views = [detect(BOARD, render(model, BOARD, p), f"{i}", False) for i, p in enumerate(poses(CAMERAS[model], BOARD))]
    return model, calibrate(BOARD, views, model)


class TestRendered:
    """From pictures to the camera that took them."""

    def test_all_views_are_used(self, calibrated: tuple[str, Calibration]) -> None:
        assert [v.trouble for v in calibrated[1].left_out] == []
        assert calibrated[1].rms_px < 0.15

    def test_numbers_lie_within_three_deviations(self, calibrated: tuple[str, Calibration]) -> None:
        model, result = calibrated
        names = PARAMETERS[result.intrinsics.distortion_model]
        for name, found, true in zip(names, vector(result.intrinsics), vector(CAMERAS[model]), strict=True):
            assert abs(found - true) < 3 * result.intrinsics.sigma[name], name

    def test_pixels_are_right_all_over_the_image(self, calibrated: tuple[str, Calibration]) -> None:
        model, result = calibrated
        assert differences(result.intrinsics, CAMERAS[model]).max() < 0.3

    def test_the_file_reads_back_the_same(self, calibrated: tuple[str, Calibration], tmp_path: Path) -> None:
        write_camera(tmp_path / "camera.yaml", calibrated[1].intrinsics)
        assert read_camera(tmp_path / "camera.yaml") == (calibrated[1].intrinsics, None)

    def test_lines_become_straight(self, calibrated: tuple[str, Calibration]) -> None:
        model, result = calibrated
        k = result.intrinsics
        flat = without_distortion(k)
        place = pose(0.1, 0.1, 0.0, np.array([-0.35, -0.2, 1.0]), 0.5 * k.fx / 520, BOARD)
        straightened = detect(BOARD, undistort(render(model, BOARD, place), k, flat), thorough=False)
        bent = detect(BOARD, render(model, BOARD, place), thorough=False)
        assert crookedness(straightened) < 0.25 < crookedness(bent)


def crookedness(view: View) -> float:
    """Largest distance of a corner from the line through its row, pixels."""
    assert not view.trouble
    worst = 0.0
    for row in view.pixels.reshape(BOARD.rows, BOARD.columns, 2):
        off = row - row.mean(axis=0)
        worst = max(worst, float(np.abs(off @ np.linalg.svd(off)[2][1]).max()))
    return worst


class TestDetection:
    """Corners, and sentences where there are none."""

    @pytest.mark.parametrize("board", [BOARD, CHARUCO], ids=["chessboard", "charuco"])
    def test_corners_are_where_they_were_drawn(self, board: Board) -> None:
        k = CAMERAS["pinhole"]
        place = pose(0.3, -0.2, 0.1, np.array([0.05, 0.02, 1.0]), 0.45, board)
        view = detect(board, render("pinhole", board, place))
        assert (view.trouble, len(view.ids)) == ("", board.count)
        truth = k.project(board.points @ place[:3, :3].T + place[:3, 3])
        distances = np.hypot(*(view.pixels[:, None] - truth[None]).transpose(2, 0, 1))
        assert distances.min(axis=1).max() < 0.25
        if board.pattern == "charuco":  # whose corners have names
            assert np.hypot(*(view.pixels - truth[view.ids]).T).max() < 0.25

    @pytest.mark.parametrize(("columns", "rows"), [(8, 6), (7, 6), (8, 5)])
    @pytest.mark.parametrize("old", [False, True])
    def test_boards_that_an_older_opencv_drew(self, columns: int, rows: int, old: bool) -> None:
        board = Board("charuco", columns, rows, 0.03, 0.022)
        drawn = cv2.aruco.CharucoBoard((columns, rows), 0.03, 0.022, board.markers)
        drawn.setLegacyPattern(old)
        picture = np.pad(drawn.generateImage((100 * columns, 100 * rows)), 80, constant_values=255)
        view = detect(board, cv2.GaussianBlur(picture, (0, 0), 1.0))
        assert len(view.ids) == board.count
        assert view.old_layout == (old and rows % 2 == 0)
        wanted = 100 * board.points[:, :2] / 0.03 + 180 - 0.5
        np.testing.assert_allclose(view.pixels, wanted, atol=0.3)

    def test_part_of_a_charuco_board_is_enough(self) -> None:
        place = pose(0.2, 0.1, 0.0, np.array([0.5, 0.1, 1.0]), 0.35, CHARUCO)
        view = detect(CHARUCO, render("pinhole", CHARUCO, place))
        assert view.trouble == ""
        assert 8 <= len(view.ids) < CHARUCO.count
        truth = CAMERAS["pinhole"].project(CHARUCO.points @ place[:3, :3].T + place[:3, 3])[view.ids]
        assert np.hypot(*(view.pixels - truth).T).max() < 0.3

    def test_part_of_a_chessboard_is_counted_and_not_used(self) -> None:
        # The first column of corners lies left of the image.
        place = pose(0.0, 0.0, 0.0, np.array([-0.46, 0.0, 1.0]), 0.34, BOARD)
        view = detect(BOARD, render("pinhole", BOARD, place))
        assert view.trouble.endswith(" of 40 corners")
        assert 20 <= int(view.trouble.split()[0]) < 40

    def test_corners_at_the_border_do_not_count(self) -> None:
        k = CAMERAS["pinhole"]
        place = pose(0.0, 0.0, 0.0, np.array([0.0, 0.0, 1.0]), 0.4, BOARD)
        low = k.project(BOARD.points @ place[:3, :3].T + place[:3, 3])[:, 0].min()
        picture = render("pinhole", BOARD, place)[:, round(low) - 6 :]
        view = detect(BOARD, picture)
        assert "of 40 corners" in view.trouble

    def test_no_board(self) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
        assert detect(BOARD, noise).trouble == "no board"
        assert detect(CHARUCO, noise).trouble == "no board"

    @pytest.mark.parametrize("blur_px", [0.7, 1.2])
    def test_blur_is_measured(self, blur_px: float) -> None:
        place = pose(0.1, 0.1, 0.0, np.array([0.0, 0.0, 1.0]), 0.4, BOARD)
        # The pixel itself smears by sqrt(1/12), and each interpolation on the way by about as much: 0.5 together.
        assert detect(BOARD, render("pinhole", BOARD, place, blur_px)).blur_px == pytest.approx(
            np.hypot(blur_px, 0.5), rel=0.15
        )

    def test_motion_smears_and_is_refused(self) -> None:
        picture = render("pinhole", BOARD, pose(0.1, 0.1, 0.0, np.array([0.0, 0.0, 1.0]), 0.4, BOARD))
        assert detect(BOARD, cv2.blur(picture, (1, 7))).trouble.startswith("too blurred: edges are smeared over")

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            (("circles", 9, 6, 0.025), "circles"),
            (("chessboard", 2, 6, 0.025), "2x6"),
            (("chessboard", 9, 6, 0.0), "square"),
            (("chessboard", 9, 6, float("nan")), "square"),
            (("charuco", 9, 6, 0.025), "marker"),
            (("charuco", 9, 6, 0.025, 0.03), "smaller"),
            (("charuco", 9, 6, 0.025, 0.02, "DICT_9X9"), "DICT_9X9"),
            (("charuco", 30, 30, 0.025, 0.02, "DICT_4X4_50"), "30x30"),
        ],
    )
    def test_impossible_boards_are_refused(self, values: tuple[object, ...], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            Board(*values)  # type: ignore[arg-type]


class TestUncertainty:
    """One deviation is one deviation."""

    @pytest.mark.parametrize(("model", "runs"), [("pinhole", 25), ("fisheye", 6)])
    def test_independent_errors(self, model: str, runs: int) -> None:
        k = CAMERAS[model]
        places = poses(k, BOARD, 12)
        scores, together = [], []
        for seed in range(runs):
            found, fits = solve(BOARD, ideal(k, BOARD, places, 0.3, seed), (640, 480), k.distortion_model)
            known, off = uncertainty(found, fits), vector(found) - vector(k)
            assert known.names == PARAMETERS[k.distortion_model]
            scores.append(off / list(known.sigma.values()))
            together.append(off @ np.linalg.solve(known.matrix, off) / off.size)
        spread = np.sqrt(np.mean(np.square(scores), axis=0))  # ideally 1
        assert 0.6 < spread.mean() < 1.15
        assert spread.max() < 1.7
        assert 0.3 < np.mean(together) < 1.5  # the squared distance in terms of the covariance, ideally 1

    def test_boards_that_are_not_flat(self) -> None:
        # Each board is bent in its own way: the textbook's deviations, OpenCV's, are far too small then.
        k = CAMERAS["pinhole"]
        places = poses(k, BOARD, 14)
        ours, textbook = [], []
        middle = BOARD.points.mean(axis=0)
        for seed in range(20):
            rng = np.random.default_rng(seed)
            views = ideal(k, BOARD, places, 0.05, seed)
            for i, place in enumerate(places):
                points = BOARD.points.copy()
                across = points - middle
                points[:, 2] += rng.normal(0, 0.15) * across[:, 0] ** 2 + rng.normal(0, 0.15) * across[:, 1] ** 2
                pixels = k.project(points @ place[:3, :3].T + place[:3, 3])
                views[i] = replace(views[i], pixels=pixels + rng.normal(0, 0.05, pixels.shape))
            found, fits = solve(BOARD, views, (640, 480), "plumb_bob")
            sigma = uncertainty(found, fits).sigma
            points32 = [BOARD.points.astype(np.float32)] * len(views)
            pixels32 = [v.pixels.astype(np.float32) for v in views]
            opencv = cv2.calibrateCameraExtended(points32, pixels32, (640, 480), np.eye(3), np.zeros(5))[5].ravel()
            ours.append([(getattr(found, n) - getattr(k, n)) / sigma[n] for n in ("fx", "fy", "cx", "cy")])
            textbook.append([(getattr(found, n) - getattr(k, n)) / opencv[i] for i, n in enumerate(("fx", "fy", "cx", "cy"))])
        assert 0.6 < np.sqrt(np.mean(np.square(ours))) < 1.4
        assert np.sqrt(np.mean(np.square(textbook))) > 2

    def test_never_less_than_opencv_says(self) -> None:
        k = CAMERAS["pinhole"]
        views = ideal(k, BOARD, poses(k, BOARD, 20), 0.3)
        points = [BOARD.points.astype(np.float32)] * len(views)
        opencv = cv2.calibrateCameraExtended(
            points, [v.pixels.astype(np.float32) for v in views], (640, 480), np.eye(3), np.zeros(5)
        )[5].ravel()[:9]
        sigma = calibrate(BOARD, views).intrinsics.sigma
        ratio = np.array([sigma[name] for name in PARAMETERS["plumb_bob"]]) / opencv
        assert ratio.min() > 0.95
        assert ratio.max() < 2.5

    @pytest.mark.parametrize("model", CAMERAS)
    def test_derivatives_are_opencvs(self, model: str) -> None:
        k = CAMERAS[model]
        place = poses(k, BOARD, 1)[0]
        ((by_camera, by_pose),) = derivatives(k, [Seen(BOARD.points, np.zeros((BOARD.count, 2)), place)])
        rvec, tvec, bends = cv2.Rodrigues(place[:3, :3])[0], place[:3, 3], np.array(k.distortion)
        if model == "fisheye":
            jacobian = cv2.fisheye.projectPoints(BOARD.points[:, None], rvec, tvec, k.matrix, bends)[1]
            camera, shift = jacobian[:, :8], jacobian[:, 11:14]
        else:
            jacobian = cv2.projectPoints(BOARD.points, rvec, tvec, k.matrix, bends)[1]
            camera, shift = jacobian[:, 6 : 10 + len(bends)], jacobian[:, 3:6]
        np.testing.assert_allclose(by_camera, camera, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(by_pose[:, 3:], shift, rtol=1e-4, atol=1e-3)


class TestFisheye:
    """Where OpenCV's own solver gives up."""

    def test_a_lens_of_more_than_half_the_sphere(self) -> None:
        k = Intrinsics(165, 166, 322, 237, 640, 480, "equidistant", (0.05, -0.02, 0.004, -0.001))  # 225 degrees across
        places = poses(k, BOARD, 14, seed=5)
        assert min(p[2, 3] for p in places) < 0.03  # beside the camera, if not behind it
        views = ideal(k, BOARD, places, 0.1)
        found, seen = fit_fisheye([BOARD.points] * len(views), [v.pixels for v in views], (640, 480))
        assert np.sqrt(cost(found, seen) / (len(views) * BOARD.count)) == pytest.approx(0.1 * np.sqrt(2), rel=0.1)
        assert differences(found, k).max() < 0.3


class TestOutliers:
    """Views that do not belong to the others."""

    def test_they_are_dropped_and_named(self) -> None:
        k = CAMERAS["pinhole"]
        views = ideal(k, BOARD, poses(k, BOARD, 14), 0.2)
        rng = np.random.default_rng(0)
        for i in (3, 8):
            views[i] = replace(views[i], pixels=views[i].pixels + rng.normal(0, 4, (BOARD.count, 2)))
        result = calibrate(BOARD, views)
        assert {v.name for v in result.left_out} == {"view 3", "view 8"}
        assert all(v.trouble.startswith("does not fit: error") for v in result.left_out)
        others = [v for i, v in enumerate(views) if i not in (3, 8)]
        np.testing.assert_allclose(vector(result.intrinsics), vector(calibrate(BOARD, others).intrinsics), rtol=1e-4)

    def test_none_are_dropped_from_good_ones(self) -> None:
        k = CAMERAS["pinhole"]
        for seed in range(4):
            assert calibrate(BOARD, ideal(k, BOARD, poses(k, BOARD, 10), 0.3, seed)).left_out == []


class TestWarnings:
    """What makes numbers doubtful is said."""

    def test_boards_that_all_face_the_same_way(self) -> None:
        k = Intrinsics(520, 520, 319.5, 239.5, 640, 480)
        places = []
        for x, y, z in [(-0.2, -0.1, 0.6), (0.0, -0.1, 0.6), (-0.2, 0.0, 0.7), (0.05, 0.02, 0.5), (-0.1, -0.05, 0.8)]:
            place = np.eye(4)
            place[:3, :3] = cv2.Rodrigues(np.array([0.02 * x, 0.03 * y, 0.01]))[0]
            place[:3, 3] = x, y, z
            places.append(place)
        said = " ".join(calibrate(BOARD, ideal(k, BOARD, places, 0.2)).warnings)
        assert "only 5 views" in said
        assert "differ in tilt by" in said
        assert "the focal length is known to" in said

    def test_an_image_that_is_not_covered(self) -> None:
        k = CAMERAS["pinhole"]
        places = [p for p in poses(k, BOARD, 60) if p[0, 3] / p[2, 3] < -0.25][:12]
        result = calibrate(BOARD, ideal(k, BOARD, places, 0.1))
        assert any("top right, bottom right" in said for said in result.warnings)
        assert result.coverage < 0.6

    def test_a_distortion_that_folds_back(self) -> None:
        k = replace(CAMERAS["pinhole"], distortion=(-0.9, 0, 0, 0, 0), sigma={"fx": 1, "fy": 1, "reprojection_px": 0.2})
        places = [pose(t, 0.4, 0.0, np.array([0.0, 0.0, 1.0]), 0.6, BOARD) for t in (-0.5, 0.0, 0.5)]
        _, fits = solve(BOARD, ideal(CAMERAS["pinhole"], BOARD, places), (640, 480), "plumb_bob")
        assert any("folds back" in said for said in doubts(k, fits, covered(k, fits)))
        assert not any("folds back" in said for said in doubts(replace(k, distortion=()), fits, covered(k, fits)))


class TestBadInput:
    """Each in a sentence."""

    def test_too_few_views(self) -> None:
        k = CAMERAS["pinhole"]
        views = [*ideal(k, BOARD, poses(k, BOARD, 2)), View("c.png", (640, 480), trouble="no board")]
        with pytest.raises(ValueError, match=r"2 of 3 pictures can be used.*c\.png: no board"):
            calibrate(BOARD, views)
        with pytest.raises(ValueError, match="no pictures"):
            calibrate(BOARD, [])

    def test_another_model_than_there_are(self) -> None:
        with pytest.raises(ValueError, match="brown"):
            calibrate(BOARD, [View("a", (640, 480))], "brown")

    def test_pictures_of_another_size(self) -> None:
        k = CAMERAS["pinhole"]
        views = ideal(k, BOARD, poses(k, BOARD, 8), 0.1)
        views[2] = replace(views[2], size=(641, 481))
        views[5] = replace(views[5], size=(320, 240))
        result = calibrate(BOARD, views)
        assert [(v.name, v.trouble) for v in result.left_out] == [("view 5", "is 320x240, most are 640x480")]
        assert len(result.fits) == 7


class TestGuide:
    """What is missing, from views alone."""

    K = CAMERAS["pinhole"]

    def one(self, turn: float = 0.0, nod: float = 0.0, towards: tuple[float, float] = (0, 0), distance: float = 0.6) -> View:
        return ideal(self.K, BOARD, [pose(turn, nod, 0.0, np.array([*towards, 1.0]), distance, BOARD)])[0]

    def test_measures(self) -> None:
        x, y, size, turn, nod = measure(BOARD, self.one())
        assert (x, y) == (pytest.approx(0.5, abs=0.05), pytest.approx(0.5, abs=0.05))
        # 7 by 4 squares of 30 mm at 0.6 m with a focal length of 520 px, barely bent in the middle.
        assert size == pytest.approx(np.sqrt(0.21 * 0.12 * (520 / 0.6) ** 2 / (640 * 480)), rel=0.05)
        assert abs(turn) < 0.2
        assert abs(nod) < 0.2
        assert measure(BOARD, self.one(towards=(-0.3, 0)))[0] < 0.2
        assert measure(BOARD, self.one(towards=(0, 0.2)))[1] > 0.7

    def test_tilt_has_a_sign(self) -> None:
        for angle in (-0.5, 0.5):
            # About the y axis, which points down, a positive turn takes the right edge away from the viewer's side: z = -x sin.
            place = pose(angle, 0.0, 0.0, np.array([0.0, 0.0, 1.0]), 0.6, BOARD)
            left, right = (BOARD.points @ place[:3, :3].T + place[:3, 3])[[0, BOARD.columns - 1], 2]
            turn = measure(BOARD, self.one(turn=angle))[3]
            assert abs(turn) == pytest.approx(0.5, abs=0.1)
            assert (turn > 0) == (left < right)
            place = pose(0.0, angle, 0.0, np.array([0.0, 0.0, 1.0]), 0.6, BOARD)
            top, bottom = (BOARD.points @ place[:3, :3].T + place[:3, 3])[[0, -1], 2]
            nod = measure(BOARD, self.one(nod=angle))[4]
            assert abs(nod) == pytest.approx(0.5, abs=0.1)
            assert (nod > 0) == (top < bottom)

    def test_what_is_missing_goes_away_when_it_is_shown(self) -> None:
        assert missing(BOARD, [])[0].startswith("hold the board")
        views = [self.one()]
        steps = {
            "left border": self.one(towards=(-0.36, 0)),
            "right border": self.one(towards=(0.36, 0)),
            "upper border": self.one(towards=(0, -0.25)),
            "lower border": self.one(towards=(0, 0.25)),
            "nearer": self.one(distance=0.3),
            "left edge": self.one(turn=-0.6),
            "right edge": self.one(turn=0.6),
            "upper edge": self.one(nod=0.6),
            "lower edge": self.one(nod=-0.6),
        }
        for words, view in steps.items():
            assert any(words in said for said in missing(BOARD, views)), words
            views.append(view)
            assert not any(words in said for said in missing(BOARD, views)), words
        assert missing(BOARD, views) == ["show the board in 5 more places and tilts"]
        assert missing(BOARD, views * 2) == []

    def test_views_are_taken_when_they_are_new_or_sharper(self) -> None:
        first, moved = self.one(), self.one(towards=(0.3, 0))
        assert offer(BOARD, [first], replace(first, name="again")) == [first]
        assert offer(BOARD, [first], moved) == [first, moved]
        sharper = replace(first, name="sharper", blur_px=0.5)
        assert [v.name for v in offer(BOARD, [first, moved], sharper)] == ["sharper", moved.name]
        assert offer(BOARD, [], replace(first, trouble="no board")) == []

    def test_thinning_keeps_what_differs(self) -> None:
        views = [replace(self.one(towards=(0.001 * i, 0)), name=str(i)) for i in range(20)] + [self.one(turn=0.6)]
        kept = thin_out(BOARD, views, 3)
        assert kept[0] is views[0]
        assert kept[-1] is views[-1]
        assert len(kept) == 3

    def test_at_rest(self) -> None:
        still, moved = self.one(), self.one(towards=(0.01, 0))
        assert steady(still, still)
        assert not steady(still, moved)
        assert not steady(None, still)


def write_folder(folder: Path, count: int = 8) -> Path:
    folder.mkdir()
    for i, place in enumerate(poses(CAMERAS["pinhole"], BOARD, count)):
        write_image(folder / f"photo{i}.png", render("pinhole", BOARD, place))
    return folder


class Camera(Source):
    """A live camera that shows each picture three times."""

    def __init__(self, pictures: list[Image]) -> None:
        super().__init__("camera", live=True)
        self.pictures = pictures
        self.closed = False

    def frames(self) -> Iterator[Frame]:
        for i, picture in enumerate(p for p in self.pictures for _ in range(3)):
            if self.closed:
                return
            yield Frame(np.repeat(picture[..., None], 3, 2), i, i * 33_000_000, "system", "camera", name=str(i))

    def close(self) -> None:
        self.closed = True


class TestCommand:
    """`freespace calibrate camera` without its command line."""

    def run(self, source: object, folder: Path, stop: threading.Event | None = None, **changes: object) -> bool:
        settings = {"model": "pinhole", "name": "front", "pictures": None, "live": False, "overwrite": False, **changes}
        out = folder / "camera.yaml"
        return calibrate_camera([str(source)], board=BOARD, out=out, stop=stop or threading.Event(), **settings)  # type: ignore[arg-type]

    def test_a_folder_of_photographs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = write_folder(tmp_path / "photos")
        write_image(folder / "wall.png", np.full((480, 640), 128, np.uint8))
        (folder / "broken.png").write_bytes(b"\x89PNG")
        assert not self.run(folder, tmp_path, pictures=tmp_path / "pictures")
        found, mount = read_camera(tmp_path / "camera.yaml")
        assert (found.name, mount) == ("front", None)
        assert differences(found, CAMERAS["pinhole"])[: len(everywhere(found)) // 2].max() < 1
        printed = capsys.readouterr()
        assert "photo0   40 / 40" in printed.out
        assert "not used: no board" in printed.out
        assert f"fx  {found.fx:12.2f} +- {found.sigma['fx']:.2f}" in printed.out
        assert "broken.png" in printed.err
        assert cv2.imread(str(tmp_path / "pictures/coverage.png")).shape == (480, 640, 3)
        assert cv2.imread(str(tmp_path / "pictures/undistortion.png")).shape == (480, 1280, 3)
        assert parts_in(tmp_path) == []
        with pytest.raises(BadInput, match="exists already"):
            self.run(folder, tmp_path)

    def test_a_video(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shown = [render("pinhole", BOARD, place) for place in poses(CAMERAS["pinhole"], BOARD, 6)]
        pictures = [cv2.cvtColor(p, cv2.COLOR_GRAY2BGR) for p in shown for _ in range(10)]  # each for a second
        write_video(tmp_path / "board.mp4", pictures)
        assert not self.run(tmp_path / "board.mp4", tmp_path)
        printed = capsys.readouterr().out
        used = [line for line in printed.splitlines() if "40 / 40" in line]
        assert 4 <= len(used) <= 6  # of 24 looked at; like ones count once
        assert len({line.split(".")[0] for line in used}) == len(used)  # none in the same second

    def test_interrupted(self, tmp_path: Path) -> None:
        stop = threading.Event()
        stop.set()
        assert self.run(write_folder(tmp_path / "photos", 3), tmp_path, stop)
        assert not (tmp_path / "camera.yaml").exists()

    def test_mistakes(self, tmp_path: Path) -> None:
        folder = tmp_path / "walls"
        folder.mkdir()
        write_image(folder / "a.png", np.full((60, 80), 128, np.uint8))
        with pytest.raises(BadInput, match="a: no board"):
            self.run(folder, tmp_path)
        with pytest.raises(BadInput, match="no such file"):
            self.run(tmp_path / "nothing", tmp_path)
        with pytest.raises(BadInput, match="--live"):
            self.run(folder, tmp_path, live=True)
        with pytest.raises(BadInput, match="brown"):
            self.run(folder, tmp_path, model="brown")
        assert not (tmp_path / "camera.yaml").exists()

    def test_boards_by_options(self) -> None:
        assert board_of("chessboard", "8x5", 0.03, None, "DICT_5X5_100") == BOARD
        with pytest.raises(BadInput, match="--size"):
            board_of("chessboard", "8", 0.03, None, "DICT_5X5_100")
        with pytest.raises(BadInput, match="markers are smaller"):
            board_of("charuco", "8x6", 0.03, None, "DICT_5X5_100")

    def test_live(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.delenv("DISPLAY", raising=False)
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        pictures = [render("pinhole", BOARD, place) for place in poses(CAMERAS["pinhole"], BOARD, 4)]
        collected = Collected()
        watch(Camera([*pictures, pictures[0]]), BOARD, collected, threading.Event())
        assert [v.name for v in collected.views] == ["frame 1", "frame 4", "frame 7", "frame 10"]  # once it was at rest
        assert set(collected.pictures) == {v.name for v in collected.views}
        said = capsys.readouterr().err
        assert "no screen" in said
        assert "1 views; " in said

    def test_live_stops_when_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DISPLAY", raising=False)
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        stop, collected = threading.Event(), Collected()
        camera = Camera([np.full((120, 160), 90, np.uint8)])
        stop.set()
        watch(camera, BOARD, collected, stop)
        assert collected.views == []


class TestPictures:
    """Drawn where they should be."""

    def test_coverage_shows_used_and_dropped_corners(self, calibrated: tuple[str, Calibration]) -> None:
        result = calibrated[1]
        dropped = replace(result.fits[0].view, pixels=np.array([[600.0, 460.0]]), trouble="does not fit")
        picture = coverage_picture(replace(result, left_out=[dropped]))
        assert picture.shape == (480, 640, 3)
        assert tuple(picture[460, 600]) == (200, 0, 200)
        u, v = np.round(result.fits[0].view.pixels[0]).astype(int)
        assert np.ptp(picture[v, u].astype(int)) > 60  # a colour, neither paper nor ink

    def test_preview_and_guide(self, calibrated: tuple[str, Calibration]) -> None:
        model, result = calibrated
        view = result.fits[0].view
        image = cv2.cvtColor(render(model, BOARD, poses(CAMERAS[model], BOARD)[0]), cv2.COLOR_GRAY2BGR)
        preview = undistortion_preview(BOARD, view, image, result.intrinsics)
        assert preview.shape == (480, 1280, 3)
        before = image.copy()
        guide = guide_picture(image, [view], view, ["tilt the board"])
        assert (image == before).all()
        u, v = np.round(view.pixels[0]).astype(int)
        assert tuple(guide[v, u]) == (60, 200, 60)


class TestPhotographs:
    """Of a real camera: 17 of 20 show all of the board."""

    @pytest.fixture(scope="class")
    @classmethod
    def views(cls) -> list[View]:
        if not PHOTOS.is_dir():
            pytest.skip("no photographs of a chessboard here")
        board = Board("chessboard", 9, 6, 0.025)
        return [detect(board, cv2.imread(str(path)), path.stem) for path in sorted(PHOTOS.glob("*.jpg"))]

    def test_every_usable_view_is_used_and_the_others_are_named(self, views: list[View]) -> None:
        result = calibrate(Board("chessboard", 9, 6, 0.025), views)
        assert len(result.fits) == 17
        assert result.rms_px < 1
        reasons = {v.name: v.trouble for v in result.left_out}
        assert set(reasons) == {"calibration1", "calibration4", "calibration5"}
        assert all("of 54 corners" in reason for reason in reasons.values())

    def test_deviations_cover_what_one_view_more_or_less_does(self, views: list[View]) -> None:
        # The jackknife done in full, each view left out in turn and all fitted again.
        board = Board("chessboard", 9, 6, 0.025)
        usable = [v for v in views if not v.trouble]
        whole, fits = solve(board, usable, (1280, 720), "plumb_bob")
        without = [vector(solve(board, [v for v in usable if v is not left], (1280, 720), "plumb_bob")[0]) for left in usable]
        full = np.sqrt((len(usable) - 1) / len(usable) * np.square(without - vector(whole)).sum(axis=0))
        sigma = uncertainty(whole, fits).sigma
        for name, expected in zip(("fx", "fy", "cx", "cy"), full, strict=False):
            assert sigma[name] == pytest.approx(expected, rel=0.5)


def test_a_step_of_parameters_is_a_camera() -> None:
    k = CAMERAS["rational"]
    assert with_vector(k, vector(k)) == k
