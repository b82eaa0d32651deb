"""Augmentation: each effect by itself, image and label together, and the pages that show it."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.augment import (
    DEFAULT,
    EFFECTS,
    GEOMETRY,
    GREY,
    LIMITS,
    NONE,
    PHOTOMETRIC,
    Augmentation,
    apply_effects,
    aspect,
    augment,
    choose,
    flip,
    line_kernel,
    parse_augmentation,
    random_view,
    recolour,
    rotation,
    shift,
    take_view,
    view_matrix,
    zoom,
)
from training.datasets import CERTAIN, IGNORE, Sample
from training.preview import all_states, ranks_of, spread, write_preview

U8 = NDArray[np.uint8]
SIZE = (96, 64)  # width, height


def scene(width: int = 120, height: int = 80) -> U8:
    """Bright, with all tones and edges everywhere."""
    v, u = np.mgrid[0:height, 0:width]
    checks = 60 * ((u // 8 + v // 8) % 2)
    return np.stack([90 + checks, 110 + checks + u % 30, 130 + checks + v % 30], axis=2).astype(np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def alone(name: str) -> Augmentation:
    return replace(NONE, **{name: 1.0})


# -- Geometry ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([(96, 64), (64, 64), (150, 40)]))
def test_a_label_drawn_from_the_images_own_colours_stays_aligned(seed: int, gentle: bool, size: tuple[int, int]) -> None:
    blocks = rng(seed).integers(0, 2, (5, 8), np.uint8)
    label = cv2.resize(blocks, (120, 80), interpolation=cv2.INTER_NEAREST)
    image = cv2.merge([label * np.uint8(200)] * 3)
    view, [target] = augment(image, label[None], size, rng(seed), gentle, replace(NONE, **dict.fromkeys(GEOMETRY, 1.0)))
    assert view.shape == (size[1], size[0], 3)
    assert (view.dtype, target.dtype) == (np.uint8, np.uint8)
    edges = cv2.morphologyEx(target, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0  # there a pixel shows both
    inside = ~edges & (target != IGNORE)
    assert np.array_equal(view[inside][:, 0] > 100, target[inside] == 1)
    outside = ~edges & (target == IGNORE)
    assert np.all(view[outside] == GREY)


def test_nothing_happens_without_effects() -> None:
    image, planes = scene(*SIZE), rng().integers(0, 2, (2, 64, 96), np.uint8)
    view, targets = augment(image, planes, SIZE, rng(), augmentation=NONE)
    assert np.array_equal(view, image)
    assert np.array_equal(targets, planes)
    assert np.array_equal(random_view(SIZE, SIZE, rng(), augmentation=NONE), np.eye(2, 3))


def test_a_flip_is_a_flip() -> None:
    image, planes = scene(*SIZE), rng().integers(0, 2, (2, 64, 96), np.uint8)
    view, targets = augment(image, planes, SIZE, rng(), augmentation=alone("flip"))
    assert np.array_equal(view, image[:, ::-1])
    assert np.array_equal(targets, planes[:, :, ::-1])
    assert np.array_equal(flip() @ [3, 4], [-3, 4])


def test_a_view_maps_areas_as_a_resize_does() -> None:
    """x_target + 0.5 = (x + 0.5) * w / W, as in docs/architecture.md."""
    matrix = view_matrix((200, 100), (50, 40), [], DEFAULT, rng())
    for x, y in ((0, 0), (199, 99), (17, 80)):
        assert np.allclose(matrix @ [x, y, 1], [(x + 0.5) * 50 / 200 - 0.5, (y + 0.5) * 40 / 100 - 0.5])


def test_geometry_keeps_within_its_limits() -> None:
    zooms = [zoom(rng(i), 0.8, 1.8) for i in range(500)]
    assert 0.8 <= min(zooms) < 0.82
    assert 1.75 < max(zooms) <= 1.8
    assert np.mean(np.log(zooms)) == pytest.approx((np.log(0.8) + np.log(1.8)) / 2, abs=0.04), "log-uniform"
    ratios = np.array([aspect(rng(i), 0.2) for i in range(500)])
    assert np.allclose(ratios.prod(axis=1), 1)
    assert np.abs(np.log(ratios[:, 0] / ratios[:, 1])).max() == pytest.approx(0.2, abs=0.01)
    turns = np.array([rotation(rng(i), 2.0) for i in range(500)])
    assert np.allclose(np.linalg.det(turns), 1)
    assert np.rad2deg(np.arcsin(turns[:, 1, 0])).std() == pytest.approx(2.0, rel=0.1)
    offsets = np.array([shift(rng(i), np.array([1.5, 0.8]), (100, 60)) for i in range(500)])
    assert np.allclose(np.abs(offsets).max(axis=0), [25, 6], rtol=0.02), "half of what is too much or missing"
    assert not shift(rng(), np.ones(2), (100, 60)).any()


def test_gentle_views_hardly_zoom_or_turn() -> None:
    def worst(gentle: bool) -> tuple[float, float]:
        matrices = [random_view((100, 60), (100, 60), rng(i), gentle)[:, :2] for i in range(200)]
        return max(abs(np.log(abs(np.linalg.det(m))) / 2) for m in matrices), max(abs(m[1, 0] / m[1, 1]) for m in matrices)

    assert worst(True)[0] <= np.log(1.15) + 1e-9
    assert worst(False)[0] > 0.5
    assert worst(True)[1] < worst(False)[1]


def test_a_view_outside_the_image_is_unknown() -> None:
    shifted = np.array([[1.0, 0, 10], [0, 1, 0]])
    view, targets = take_view(scene(*SIZE), np.ones((2, 64, 96), np.uint8), shifted, SIZE)
    assert np.all(view[:, :10] == GREY)
    assert np.all(targets[:, :, :10] == IGNORE)
    assert np.array_equal(view[:, 10:], scene(*SIZE)[:, :-10])


# -- Light, weather and cameras ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_an_effect_changes_the_image_and_nothing_else(name: str) -> None:
    image = scene()
    before = image.copy()
    x = image.astype(np.float32) / 255
    y = PHOTOMETRIC[name](x, rng(3))
    assert (y.dtype, y.shape) == (np.float32, x.shape)
    assert np.isfinite(y).all()
    assert np.array_equal(x, before.astype(np.float32) / 255), "what came in stays"

    view, applied = apply_effects(image, [name], rng(3))
    assert applied == [name]
    assert (view.dtype, view.shape) == (np.uint8, image.shape)
    assert np.any(view != image)
    assert np.array_equal(image, before)
    assert np.array_equal(view, apply_effects(image, [name], rng(3))[0]), "the same numbers give the same view"
    assert np.any(view != apply_effects(image, [name], rng(4))[0]), "others another one"

    planes = rng().integers(0, 2, (2, 80, 120), np.uint8)
    _, targets = augment(image, planes, (120, 80), rng(), augmentation=alone(name))
    assert np.array_equal(targets, planes)


def results(name: str, image: U8, count: int = 30) -> NDArray[np.float32]:
    return np.stack([apply_effects(image, [name], rng(i))[0] for i in range(count)]).astype(np.float32)


def test_exposure_keeps_black_white_and_the_order_of_tones() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (4, 1, 3))
    views = results("exposure", ramp)
    assert np.all(views[:, :, 0] == 0)
    assert np.all(views[:, :, 255] == 255)
    assert np.all(np.diff(views, axis=2) >= 0)
    for view in views:
        gamma = np.log(view[0, 128, 0] / 255) / np.log(128 / 255)
        assert np.exp(-0.5) - 0.02 <= gamma <= np.exp(0.5) + 0.02


def test_contrast_is_a_line() -> None:
    tones = np.tile(np.arange(100, 130, dtype=np.uint8)[None, :, None], (4, 1, 3))  # never clipped
    for view in results("contrast", tones):
        slope = (view[0, -1, 0] - view[0, 0, 0]) / 29
        assert 0.6 < slope < 1.4
        assert np.allclose(np.diff(view[0, :, 0]), slope, atol=1.01)


def test_colour_goes_from_grey_to_gaudy() -> None:
    image = np.full((4, 4, 3), (80, 120, 160), np.uint8)
    views = results("colour", image, 200)[:, 0, 0]
    spread_of = (views.max(axis=1) - views.min(axis=1)) / 80
    assert spread_of.min() < 0.4
    assert spread_of.max() > 1.4
    assert np.abs(views.mean(axis=1) / 120 - 1).max() < 0.25, "about as bright as before"


def test_night_is_dark_but_for_the_headlamps() -> None:
    image = np.full((80, 120, 3), 180, np.uint8)
    views = results("night", image).mean(axis=3)
    assert np.all(views.mean(axis=(1, 2)) < 110)
    assert np.all(views[:, 50:75, 48:72].mean(axis=(1, 2)) > 1.3 * views[:, :15].mean(axis=(1, 2)))
    dark = np.full((80, 120, 3), 60, np.uint8)
    view, applied = apply_effects(dark, ["night"], rng())
    assert applied == []
    assert np.array_equal(view, dark)


def test_shadow_darkens_and_glare_and_haze_do_what_they_are_called() -> None:
    image = scene().astype(np.float32)
    assert np.all(results("shadow", scene()) <= image + 1)
    assert np.all(results("glare", scene()) >= image - 1)
    for view in results("haze", scene()):
        assert view[:10].std() < view[-10:].std() + 3, "more of it far away"
        assert view.std() < image.std()


def test_blurs_smooth_along_what_they_should() -> None:
    stripes = np.tile((np.arange(120) // 2 % 2 * 200).astype(np.uint8)[None, :, None], (80, 1, 3))  # upright
    assert np.all(results("blur", stripes)[:, 10:-10, 10:-10].std(axis=(1, 2, 3)) < 100)
    along = [
        results("motion_blur", s, 60)[:, 10:-10, 10:-10].std(axis=(1, 2, 3)) for s in (stripes, stripes.transpose(1, 0, 2))
    ]
    assert np.median(along[0]) < 0.5 * np.median(along[1]), "mostly sideways"
    for length, angle in ((3, 0), (9, 30), (11, 90), (15, 100)):
        kernel = line_kernel(length, angle)
        assert kernel.sum() == pytest.approx(1, abs=1e-5)
        v, u = np.nonzero(kernel > 0.2 * kernel.max())
        far = np.argmax(u - v) if angle < 90 else np.argmin(v)
        centre = len(kernel) // 2
        assert np.rad2deg(np.arctan2(centre - v[far], u[far] - centre)) == pytest.approx(angle, abs=12)


def test_noise_has_the_mean_of_the_image() -> None:
    image = np.full((80, 120, 3), 120, np.uint8)
    views = results("noise", image)
    assert np.abs(views.mean(axis=(1, 2, 3)) - 120).max() < 1
    deviations = views.std(axis=(1, 2, 3))
    assert deviations.min() > 1
    assert deviations.max() < 0.06 * 255 + 1


def test_rain_falls_in_bright_streaks() -> None:
    image = np.full((120, 160, 3), 60, np.uint8)
    for view in results("rain", image):
        brighter = view[..., 0] - np.median(view)
        streaks = brighter > 10
        assert 0.002 < streaks.mean() < 0.6
        vertical, horizontal = (np.abs(np.diff(brighter, axis=a)).mean() for a in (0, 1))
        assert vertical < horizontal, "they stand rather than lie"


def test_cutout_covers_one_rectangle() -> None:
    image = np.full((80, 120, 3), 200, np.uint8)
    for view in results("cutout", image):
        covered = (view == GREY).all(axis=2)
        rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
        assert covered.sum() == len(rows) * len(columns)
        assert 0.008 < covered.mean() < 0.13
        assert np.all(view[~covered] == 200)


def test_jpeg_is_the_codecs_doing() -> None:
    generator = rng(5)
    quality = int(rng(5).integers(25, 80))
    _, packed = cv2.imencode(".jpg", scene(), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert np.array_equal(apply_effects(scene(), ["jpeg"], generator)[0], cv2.imdecode(packed, cv2.IMREAD_COLOR))


# -- How often ---------------------------------------------------------------------------------------------------------


def test_effects_happen_as_often_as_they_should() -> None:
    generator, views = rng(), 4000
    chosen = [set(choose(DEFAULT, generator)) for _ in range(views)]
    for name in EFFECTS:
        probability = getattr(DEFAULT, name)
        deviation = (probability * (1 - probability) / views) ** 0.5
        assert np.mean([name in names for names in chosen]) == pytest.approx(probability, abs=4 * deviation), name
    assert all(("exposure" in names) == ("contrast" in names) for names in chosen), "one tone curve"
    rare = [set(choose(replace(DEFAULT, contrast=0.3), generator)) for _ in range(500)]
    assert all("exposure" in names for names in rare if "contrast" in names)
    assert choose(NONE, generator) == []
    assert choose(replace(NONE, **dict.fromkeys(EFFECTS, 1.0)), generator) == list(EFFECTS)


def test_what_was_tuned_stays() -> None:
    """The probabilities that the shipped weights were trained with; new effects come seldom."""
    tuned = {
        "flip": 0.5,
        "exposure": 0.8,
        "contrast": 0.8,
        "colour": 0.6,
        "night": 0.12,
        "shadow": 0.2,
        "glare": 0.1,
        "haze": 0.15,
        "blur": 0.25,
        "noise": 0.3,
        "jpeg": 0.25,
    }
    assert {name: getattr(DEFAULT, name) for name in tuned} == tuned
    assert [getattr(DEFAULT, name) for name in (*GEOMETRY[1:], *LIMITS)] == [1, 1, 1, 1, 0.8, 1.8, 0.2, 2.0]
    assert DEFAULT.rain + DEFAULT.motion_blur <= 0.1
    assert DEFAULT.cutout == 0


def test_augmentation_is_a_function_of_its_seed() -> None:
    planes = rng().integers(0, 2, (2, 80, 120), np.uint8)
    one, same, other = (augment(scene(), planes, SIZE, rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0])
    assert np.array_equal(recolour(scene(), rng(1)), recolour(scene(), rng(1)))


def test_recipes_set_probabilities() -> None:
    given_yaml = yaml.safe_load("{rain: 0.5, flip: 0, most_zoom: 2.5}")
    assert parse_augmentation(given_yaml) == replace(DEFAULT, rain=0.5, flip=0, most_zoom=2.5)
    assert parse_augmentation({}) == parse_augmentation("default") == DEFAULT
    assert parse_augmentation("none") == NONE
    assert parse_augmentation({"preset": "none", "flip": 1}) == alone("flip")
    assert {f.name for f in fields(Augmentation)} == {*EFFECTS, *LIMITS}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"snow": 0.1, "rain": 0.1}, "no effect 'snow'; there are flip, zoom"),
        ({"rain": 1.5}, "rain is 1.5, wanted a probability"),
        ({"rain": float("nan")}, "wanted a probability"),
        ({"rain": "often"}, "rain is 'often', wanted a number"),
        ({"rain": True}, "wanted a number"),
        ({"least_zoom": 2.0}, "least_zoom is 2.0 and most_zoom 1.8"),
        ({"turn_deg": -1}, "turn_deg is -1, wanted 0 or more"),
        ({"preset": "wild"}, "no preset 'wild'; there are default, none"),
        ("wild", "no preset 'wild'"),
        (["rain"], "wanted default or none, or names with probabilities"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_augmentation(given)


# -- Preview -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    found = []
    for dataset, count in (("mine", 5), ("other", 2)):
        for i in range(count):
            image, label = tmp_path / f"{dataset}{i}.png", tmp_path / f"{dataset}{i}-label.png"
            cv2.imwrite(str(image), scene())
            cv2.imwrite(str(label), np.repeat([[0], [1]], 40, 0).repeat(120, 1).astype(np.uint8))
            found.append(Sample(dataset, "s", image, label, planes=(label, None)))
    return found


def test_preview_has_a_row_for_each_image_and_a_tile_for_each_effect(samples: list[Sample], tmp_path: Path) -> None:
    out = tmp_path / "pages/look.png"
    written = write_preview(samples, out, size=SIZE, count=3, views=2, augmentation=NONE)
    assert written == [out, tmp_path / "pages/look-effects.png"]
    assert sorted(p.name for p in out.parent.iterdir()) == ["look-effects.png", "look.png"]
    pages = [cv2.imread(str(path)) for path in written]
    assert pages[0].shape == (3 * (360 + 28) + 28, 3 * 640, 3), "rows, and a line that says what colours mean"
    assert pages[1].shape == (-(-(len(EFFECTS) + 1) // 4) * (360 + 28), 4 * 640, 3)
    image = pages[0][28:388, 50:590].astype(int)  # 120 x 80 in a tile of 640 x 360
    view = pages[0][28:388, 690:1230].astype(int)
    assert np.abs(image - view)[20:-20, 20:-20].mean() < 12, "without effects a view is the image"
    shown = cv2.resize(scene(), (540, 360), interpolation=cv2.INTER_AREA)
    assert np.abs(image[20:160] - shown[20:160]).mean() < 1, "nothing is drawn where nothing is"
    painted = 2 * image[200:340] - shown[200:340]
    assert np.ptp(painted.reshape(-1, 3).mean(axis=0)) > 100, "the road has a colour, half of what is seen"
    assert painted.reshape(-1, 3).std(axis=0).max() < 2, "and everywhere the same"
    tiles = pages[1].reshape(-1, 388, 4, 640, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 388, 640, 3)
    changed = [np.abs(t[28:].astype(int) - tiles[0][28:]).mean() > 0.05 for t in tiles[1 : len(EFFECTS) + 1]]
    assert dict(zip(EFFECTS, changed, strict=True)) == dict.fromkeys(EFFECTS, True), "each tile shows its effect"


def test_preview_takes_images_in_turn_from_all_data_sets(samples: list[Sample]) -> None:
    assert [s.image.stem for s in spread(samples, 4)] == ["mine0", "other0", "mine4", "other1"]
    assert [s.image.stem for s in spread(samples, 1)] == ["mine0"]
    assert len(spread(samples, 100)) == 7


def test_each_state_of_the_planes_has_a_colour_of_its_own() -> None:
    targets = np.array([[[0, CERTAIN, IGNORE, 200, 0]], [[0, IGNORE, IGNORE, 30, IGNORE]]], np.uint8)
    classes = all_states()
    states = [(0, 0), *classes.values.values()]
    assert [states[rank] for rank in ranks_of(targets)[0]] == [
        (0, 0),
        (1, IGNORE),
        (IGNORE, IGNORE),
        (1, 0),
        (0, 0),
    ]
    assert len(states) == 9


def test_preview_refuses_what_it_cannot_write(samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"wanted a picture"):
        write_preview(samples, tmp_path / "look.mp4")
    with pytest.raises(ValueError, match="no samples"):
        write_preview([], tmp_path / "look.png")
    assert not list(tmp_path.glob("look*"))
