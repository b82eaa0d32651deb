"""Checks of the picture: what is said of good and of bad ones, when, and for how long."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Image
from hypothesis import given
from hypothesis import strategies as st

from perception.causes import Cause, Code
from perception.config import HealthConfig
from perception.frame import Frame
from perception.pictures import Measures, PictureCheck, measure
from perception.synthetic import render, scene_from_uri

SHARED = Path(__file__).parents[2] / "shared"
PERIOD_S = 0.04


@cache
def drive(scene: str = "drive", count: int = 4, fps: float = 25.0, size: str = "1280x720") -> tuple[Image, ...]:
    """Consecutive frames of a rendered drive."""
    rendered = scene_from_uri(f"synthetic://{scene}?size={size}&fps={fps:g}&seconds=8")
    return tuple(render(rendered, i).image for i in range(count))


def at(image: Image, seconds: float, grabbed_s: float | None = None) -> Frame:
    grabbed_s = seconds if grabbed_s is None else grabbed_s
    return Frame(image, 0, round(seconds * 1e9), "system", "camera", grabbed_ns=round(grabbed_s * 1e9))


def said(check: PictureCheck, images: Iterable[Image], start_s: float = 0.0, period_s: float = PERIOD_S) -> list[list[Code]]:
    """The codes for each of ``images``, shown one after the other."""
    return [[c.code for c in check.look(at(image, start_s + i * period_s))] for i, image in enumerate(images)]


def first(image: Image) -> list[Cause]:
    """What is said of it as the first picture of a camera."""
    return PictureCheck(HealthConfig(), live=True).look(at(image, 0.0))


def noisy(image: Image, deviation: float) -> Image:
    noise = np.random.default_rng(0).normal(0, deviation, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def blurred(image: Image, sigma: float = 8.0) -> Image:
    """Out of focus by ``sigma`` pixels of a picture 1280 wide."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma * image.shape[1] / 1280), np.uint8)


def plain(level: int) -> Image:
    return np.full((720, 1280, 3), level, np.uint8)


def hand(image: Image, part: float = 0.82) -> Image:
    """A shaded, blurred surface in front of the left ``part`` of the picture."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width, 1), np.float32)
    mask[:, : round(part * width)] = 1
    mask = cv2.GaussianBlur(mask, (0, 0), width / 64)[..., None]
    shade = np.linspace(70, 130, width, dtype=np.float32)[None, :, None] + np.linspace(-30, 30, height)[:, None, None]
    return np.clip(image * (1 - mask) + shade * mask, 0, 255).astype(np.uint8)


def mud(image: Image, spots: int) -> Image:
    """Round, soft, brown spots at random places."""
    height, width = image.shape[:2]
    chance, mask = np.random.default_rng(0), np.zeros((height, width), np.float32)
    for _ in range(spots):
        centre = (int(chance.integers(width)), int(chance.integers(height)))
        cv2.circle(mask, centre, round(chance.uniform(0.04, 0.14) * width), 1.0, -1)
    mask = cv2.GaussianBlur(mask, (0, 0), width / 100)[..., None]
    return np.clip(image * (1 - mask) + np.array([40, 60, 70]) * mask, 0, 255).astype(np.uint8)


def sun(image: Image) -> Image:
    """A low sun with a wide halo: its middle saturates."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    halo = 500 * np.exp(-(((x - 0.5 * width) ** 2 + (y - 0.3 * height) ** 2) / (0.2 * width) ** 2))
    return np.clip(image + halo[..., None], 0, 255).astype(np.uint8)


FAULTS: dict[str, tuple[Code, Callable[[Image], Image]]] = {
    "black": (Code.DARK, np.zeros_like),
    "black with noise": (Code.DARK, lambda image: noisy(np.zeros_like(image), 3)),
    "no light": (Code.DARK, lambda image: (image * 0.02).astype(np.uint8)),
    "cap at high gain": (Code.COVERED, lambda image: noisy(np.full_like(image, 14), 5)),
    "fog": (Code.COVERED, lambda image: noisy(np.full_like(image, 150), 2)),
    "hand": (Code.COVERED, hand),
    "hand with noise": (Code.COVERED, lambda image: noisy(hand(image, 0.86), 2)),
    "mud": (Code.COVERED, lambda image: mud(image, 90)),
    "white": (Code.OVEREXPOSED, lambda image: np.full_like(image, 255)),
    "washed out": (Code.OVEREXPOSED, lambda image: np.clip(image * 5.0 + 80, 0, 255).astype(np.uint8)),
    "defocused": (Code.DEFOCUSED, blurred),
    "far out of focus, noise": (Code.DEFOCUSED, lambda image: noisy(blurred(image, 12), 1)),
}
HARMLESS: dict[str, Callable[[Image], Image]] = {
    "as it is": np.copy,
    "noise": lambda image: noisy(image, 4),
    "low sun": sun,
    "half the light": lambda image: (image * 0.5).astype(np.uint8),
    "smeared along the rows": lambda image: np.asarray(cv2.blur(image, (16 * image.shape[1] // 1280, 1)), np.uint8),
    "compressed": lambda image: np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, [1, 40])[1], 1), np.uint8),
    "some dirt": lambda image: mud(image, 10),
}


@pytest.mark.parametrize("name", FAULTS)
def test_one_bad_picture_is_enough(name: str) -> None:
    code, spoil = FAULTS[name]
    assert [cause.code for cause in first(spoil(drive()[0]))] == [code]


@pytest.mark.parametrize("name", HARMLESS)
def test_good_pictures_pass(name: str) -> None:
    assert first(HARMLESS[name](drive()[0])) == []


@pytest.mark.parametrize("scene", ["dusk", "night", "cut-in"])
@pytest.mark.parametrize("size", ["1280x720", "640x360"])
def test_drives_in_other_light_pass(scene: str, size: str) -> None:
    check = PictureCheck(HealthConfig(), live=True)
    assert said(check, drive(scene, size=size)) == [[]] * 4


def test_sentences_carry_the_measured_value() -> None:
    dark = plain(0)
    dark[:40] = 5  # a twentieth, so the brightest hundredth is of it
    assert "brightest hundredth is at level 5 of 255" in first(dark)[0].text
    light = drive()[0].copy()
    light[:540] = 255  # three quarters, to within a row of the sample
    assert re.search("7[456]% of it is saturated", first(light)[0].text)
    assert first(plain(120))[0].text.startswith("100% of the picture shows nothing")


def test_measures_of_pictures_made_by_numbers() -> None:
    chance = np.random.default_rng(1)
    squares = np.kron(chance.integers(0, 256, (90, 160)), np.ones((8, 8))).astype(np.uint8)
    image = np.repeat(squares[..., None], 3, axis=2)
    image[:, 640:] = 100
    measured = measure(image)
    assert measured.flat == pytest.approx(0.5, abs=0.06)  # the right half; along its border a column of blocks may count
    assert measured.saturated == pytest.approx(np.count_nonzero(image[..., 1] >= 250) / (720 * 1280), abs=0.006)
    assert measured.sharpness is not None
    assert 1.0 < measured.sharpness < 2.0  # a second difference of a step is as high as the step, of a line twice as high

    assert measure(plain(100)).sharpness is None
    assert measure(noisy(plain(100), 6)).sharpness is None
    assert measure(noisy(plain(100), 6)).flat > 0.9


@pytest.mark.parametrize("size", [(640, 360), (1280, 720), (1920, 1080), (720, 1280)])
def test_sharpness_falls_with_blur_at_any_resolution(size: tuple[int, int]) -> None:
    image = cv2.resize(drive()[0], size, interpolation=cv2.INTER_AREA)

    def sharpness(sigma: float) -> float:
        value = measure(blurred(image, sigma)).sharpness
        assert value is not None
        return value

    values = [sharpness(sigma) for sigma in (1, 2, 4, 8)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.1 * values[0]
    assert values[-1] < 0.06


def test_a_single_black_picture_is_not_trusted_and_does_not_flicker() -> None:
    road = drive(count=20, size="640x360")
    check = PictureCheck(HealthConfig(clear_s=0.3), live=True)
    codes = said(check, [*road[:3], np.zeros_like(road[0]), *road[3:]])
    assert codes[:3] == [[]] * 3
    assert codes[3] == [Code.DARK]
    assert codes[4:11] == [[Code.DARK]] * 7  # to 0.28 s after it
    assert codes[11:] == [[]] * 10, "and coming back is no scene cut"


def test_what_is_held_says_so() -> None:
    check = PictureCheck(HealthConfig(clear_s=0.3), live=True)
    check.look(at(plain(0), 0.0))
    (cause,) = check.look(at(drive()[0], 0.2))
    assert "good again for 0.20 s, used after 0.3 s" in cause.text
    check.look(at(plain(0), 0.4))
    assert check.look(at(drive()[1], 1.4)) == [], "one picture a second: the first good one is late enough"


def test_nothing_new_is_frozen_by_the_stamps_and_live_only() -> None:
    road = drive()
    still = [road[0]] * 20
    expected = [[]] * 13 + [[Code.FROZEN]] * 7  # 0.52 s after the first
    assert said(PictureCheck(HealthConfig(frozen_s=0.5), live=True), still) == expected
    assert said(PictureCheck(HealthConfig(), live=False), still) == [[]] * 20
    assert said(PictureCheck(HealthConfig(frozen_s=None), live=True), still) == [[]] * 20
    slow = PictureCheck(HealthConfig(), live=True)
    assert said(slow, [road[0], road[1], road[1]], period_s=1.0) == [[], [], [Code.FROZEN]]


def test_a_frozen_camera_is_frozen_after_it_was_opened_again() -> None:
    road = drive()
    check = PictureCheck(HealthConfig(frozen_s=0.5), live=True)
    said(check, [road[0]] * 20)
    check.reset()
    assert [c.code for c in check.look(at(road[0], 1.0))] == [Code.FROZEN]


def test_going_round_old_buffers_is_frozen_too() -> None:
    codes = said(PictureCheck(HealthConfig(frozen_s=0.5), live=True), drive() * 10)
    assert codes[:15] == [[]] * 15
    assert [Code.FROZEN] in codes[15:18]
    assert all(Code.FROZEN in c for c in codes[18:])


def test_a_camera_that_repeats_its_stamp_is_frozen() -> None:
    check = PictureCheck(HealthConfig(frozen_s=0.5), live=True)
    codes = [[c.code for c in check.look(at(drive()[0], 5.0, grabbed_s=5.0 + 0.2 * i))] for i in range(4)]
    assert codes == [[], [], [], [Code.FROZEN]]


@pytest.mark.parametrize("size", [(1280, 720), (1920, 1080), (640, 360), (96, 64)])
def test_any_row_that_changes_makes_a_picture_new(size: tuple[int, int]) -> None:
    image = np.asarray(cv2.resize(drive()[0], size), np.uint8)
    check = PictureCheck(HealthConfig(), live=True)
    check.look(at(image, 0.0))
    for number, row in enumerate(range(0, size[1], 41)):
        other = image.copy()
        other[row] ^= 1
        codes = [cause.code for cause in check.look(at(other, 1.0 + number))]
        assert Code.FROZEN not in codes
    assert [cause.code for cause in check.look(at(other, 1000.0))] == [Code.FROZEN]


def test_much_less_sharp_than_usual_is_said_of_several_in_a_row() -> None:
    """The limits are such that only the camera's own past can tell."""
    config = HealthConfig(least_sharpness=0.0, defocus_fraction=0.5, blind_after=3)
    sharp, soft = drive()[0], blurred(drive()[0], 2.5)
    before, after = (measure(image).sharpness for image in (sharp, soft))
    assert before
    assert after
    assert after < 0.5 * before

    young = PictureCheck(config, live=False)
    assert said(young, [sharp] * 20 + [soft] * 10, period_s=1.0) == [[]] * 30, "not known long enough"
    check = PictureCheck(config, live=False)
    assert said(check, [sharp] * 90, period_s=1.0) == [[]] * 90
    assert said(check, [soft, soft, sharp, soft, soft, sharp], start_s=90) == [[]] * 6, "a shake"
    assert said(check, [soft] * 5, start_s=91) == [[], [], [Code.DEFOCUSED], [Code.DEFOCUSED], [Code.DEFOCUSED]]
    assert said(check, [soft] * 600, start_s=92, period_s=1.0) == [[Code.DEFOCUSED]] * 600, "and it does not get used to it"
    check.reset()
    assert said(check, [soft] * 3, start_s=800) == [[], [], [Code.DEFOCUSED]], "the camera is still the same"


def test_a_tunnel_does_not_spoil_the_baseline() -> None:
    check = PictureCheck(HealthConfig(), live=False)
    said(check, [drive()[0]] * 90, period_s=1.0)
    assert said(check, [drive("night")[0]] * 120, start_s=90, period_s=1.0) == [[]] * 120
    assert said(check, [blurred(drive()[0])], start_s=211) == [[Code.DEFOCUSED]]


@pytest.mark.parametrize("fps", [10.0, 25.0, 60.0])
def test_a_drive_has_no_cuts_and_another_drive_begins_with_one(fps: float) -> None:
    one, two = drive("traffic", 8, fps, "640x360"), drive("hills", 8, fps, "640x360")
    codes = said(PictureCheck(HealthConfig(), live=True), [*one, *two], period_s=1 / fps)
    assert codes == [[]] * 8 + [[Code.SCENE_CUT]] + [[]] * 7


def test_no_cuts_are_seen_in_slow_pictures_nor_after_a_gap() -> None:
    one, two = drive("traffic", 8, size="640x360"), drive("hills", 8, size="640x360")
    pictures = [one[0], two[0], one[4], two[4]]
    assert said(PictureCheck(HealthConfig(), live=True), pictures, period_s=1.0) == [[]] * 4
    check = PictureCheck(HealthConfig(), live=True)
    assert said(check, one) == [[]] * 8
    check.reset()
    assert said(check, two, start_s=8 * PERIOD_S) == [[]] * 8


def test_light_that_changes_is_no_cut() -> None:
    road = drive(count=20, size="640x360")
    chance = np.random.default_rng(2)
    flicker = [np.clip(image * chance.uniform(0.5, 1.3), 0, 255).astype(np.uint8) for image in road]
    assert said(PictureCheck(HealthConfig(), live=True), flicker) == [[]] * 20
    flashes = [sun(image) if i % 4 == 0 else image for i, image in enumerate(road)]
    assert said(PictureCheck(HealthConfig(), live=True), flashes) == [[]] * 20


def test_can_be_turned_off() -> None:
    check = PictureCheck(HealthConfig(enabled=False), live=True)
    assert said(check, [plain(0)] * 20) == [[]] * 20


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_any_size_and_content(width: int, height: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    image = chance.integers(chance.integers(256), 256, (height, width, 3)).astype(np.uint8)
    check = PictureCheck(HealthConfig(), live=True)
    for i in range(3):
        for cause in check.look(at(image, i * PERIOD_S)):
            assert "nan" not in cause.text
            assert "inf" not in cause.text
    measured = measure(image)
    assert 0 <= measured.flat <= 1
    assert 0 <= measured.saturated <= 1
    assert image[..., 1].min() <= measured.level <= image[..., 1].max()


def labelled(pattern: str, every: int) -> list[Image]:
    files = sorted((SHARED / "data").glob(pattern))[::every]
    if not files:
        pytest.skip("the labelled data sets are not here")
    return [np.asarray(cv2.imread(str(file)), np.uint8) for file in files]


@pytest.mark.parametrize(
    ("pattern", "every"), [("camvid/*/images/*", 20), ("idd_lite/train/images/*", 40), ("bdd100k/train/images/*", 12)]
)
def test_real_pictures(pattern: str, every: int) -> None:
    images = labelled(pattern, every)
    assert [cause.text for image in images for cause in first(image)] == []
    for code, spoil in [FAULTS["black"], FAULTS["fog"], FAULTS["hand"], FAULTS["defocused"]]:
        codes = [[cause.code for cause in first(spoil(image))] for image in images[::3]]
        if code is Code.DEFOCUSED:  # of a few pictures at night only the camera's own past could tell
            assert np.mean([c == [code] for c in codes]) > 0.9
        else:
            assert codes == [[code]] * len(codes)


def test_real_drive_and_cut_to_another() -> None:
    def frames(name: str) -> list[Image]:
        capture = cv2.VideoCapture(str(SHARED / "clips" / name))
        images = []
        while len(images) < 38 and (image := capture.read()[1]) is not None:
            images.append(np.asarray(image, np.uint8))
        if not images:
            pytest.skip(f"{name} is not here")
        return images

    one, two = frames("highway_720p.mp4"), frames("highway_540p.mp4")
    codes = said(PictureCheck(HealthConfig(), live=True), [*one, *two])
    assert codes == [[]] * len(one) + [[Code.SCENE_CUT]] + [[]] * (len(two) - 1)


def test_measures_hold_copies() -> None:
    """A source may use its buffer again."""
    image = drive()[0].copy()
    before: Measures = measure(image)
    structure = before.structure.copy()
    image[:] = 0
    assert np.array_equal(before.structure, structure)
