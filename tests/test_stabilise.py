"""Steady scores: what is promised for every pixel, by hand and by brute force, and on a drive with a car cutting in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine import open_engine
from engine.base import Engine
from engine.preprocess import fit
from perception.config import PolygonConfig, StabiliseConfig, load_config
from perception.errors import BadInput
from perception.polygons import level_of, trace
from perception.stabilise import Stabiliser
from perception.stability import FLICKER_S, PATCH, Stability, pixels_within
from perception.synthetic import Scene, render
from perception.synthetic.sightings import sightings_in
from perception.synthetic.truth import edges_of, mask_beside_vehicles
from perception.synthetic.view import View

U8 = NDArray[np.uint8]
MS = 1_000_000
DEFAULT = StabiliseConfig()
FALL, RISE = 0.4 * 127.5, 0.9 * 127.5  # the play in grey levels at a threshold of 0.5


def plane(score: float, shape: tuple[int, int] = (4, 6)) -> U8:
    return np.full(shape, score, np.uint8)


def results(
    scores: list[float], stamps_ms: list[float], config: StabiliseConfig = DEFAULT, threshold: float = 0.5
) -> list[int]:
    """The steady scores of one pixel."""
    stabiliser = Stabiliser(config, threshold)
    return [int(stabiliser.steady(plane(s), round(t * MS))[2, 3]) for s, t in zip(scores, stamps_ms, strict=True)]


def test_numbers_worked_out_by_hand() -> None:
    """One time constant, 250 ms, from frame to frame: what is held shrinks to 1 / e.

    200, then 150: (200 - 150) / e = 18.4 held, gives 168.4. Then 0: 168.4 / e = 62 would be held, the play allows 51.
    Then 20: 31 / e = 11.4, gives 31.4. Then 255: (31.4 - 255) / e = -82.3, gives 172.7.
    """
    assert results([200, 150, 0, 20, 255], [0, 250, 500, 750, 1000]) == [200, 168, 51, 31, 173]
    assert results([0, 255], [0, 10]) == [0, round(255 - RISE)]  # -255 exp(-0.04) = -245 is more than the play


@pytest.mark.parametrize(("low", "high", "drivable"), [(118, 142, True), (113, 137, False)])
def test_a_wobble_across_the_threshold_is_held(low: int, high: int, drivable: bool) -> None:
    """The raw score changes sides at every frame. The steady one keeps its side at first, and ends on that of the mean; in
    between it passes the threshold, with a ripple of a seventh of the wobble."""
    stamps = [40.0 * i for i in range(61)]
    for before in (90, 165):
        sides = [score > 127 for score in results([before, *[low, high] * 30], stamps)]
        assert sum(a != b for a, b in pairwise(sides)) <= (0 if (before > 127) == drivable else 5)
        assert sides[:5] == [before > 127] * 5
        assert sides[-10:] == [drivable] * 10


def reference(
    scores: NDArray[np.uint8], seconds: list[float], config: StabiliseConfig, threshold: float
) -> Iterator[NDArray[np.float64]]:
    """The definition, pixel by pixel, in double precision and without any library."""
    level = level_of(threshold)
    fall, rise = config.hold_drivable * level, config.hold_blocked * (255 - level)
    steady = [float(s) for s in scores[0].ravel()]
    yield np.array(steady).reshape(scores[0].shape)
    for k in range(1, len(scores)):
        left = math.exp(-(seconds[k] - seconds[k - 1]) / config.settle_s)
        for i, score in enumerate(scores[k].ravel().tolist()):
            steady[i] = score + min(fall, max(-rise, left * (steady[i] - score)))
        yield np.array(steady).reshape(scores[0].shape)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    threshold=st.floats(0.02, 0.98),
    drivable=st.floats(0, 0.95),
    blocked=st.floats(0, 1),
    settle_s=st.floats(0.01, 3),
)
def test_promises_hold_for_any_scores(seed: int, threshold: float, drivable: float, blocked: float, settle_s: float) -> None:
    """Against brute force; and a score well beyond the threshold decides in its very frame, whatever came before."""
    rng = np.random.default_rng(seed)
    config = StabiliseConfig(hold_drivable=drivable, hold_blocked=blocked, settle_s=settle_s)
    level = level_of(threshold)
    near = rng.normal(level, 40, (20, 5, 7))  # where it matters
    scores = np.clip(np.where(rng.random(near.shape) < 0.3, rng.integers(0, 256, near.shape), near), 0, 255).astype(np.uint8)
    seconds = np.cumsum(rng.uniform(0.001, 0.4, 20)).tolist()
    stabiliser = Stabiliser(config, threshold)
    for raw, stamp, wanted in zip(scores, seconds, reference(scores, seconds, config, threshold), strict=True):
        before = raw.copy()
        steady = stabiliser.steady(raw, round(stamp * 1e9))
        assert steady.dtype == np.uint8
        assert np.abs(steady - wanted).max() <= 0.51
        assert not (steady > level)[raw < (1 - drivable) * level - 0.01].any()
        assert (steady > level)[raw > level + blocked * (255 - level) + 0.01].all()
        assert (raw == before).all()


@pytest.mark.parametrize("fps", [10, 25, 60])
@pytest.mark.parametrize("below", [0.5, 3.5, 12.5, 30.5])
def test_false_drivable_ends_within_its_bound(fps: int, below: float) -> None:
    """Surely drivable, then for ever a little below the threshold: the side changes when the formula says, give or take a
    frame; the formula is worked out anew here."""
    bound_s = 0.25 * math.log(FALL / below)
    assert Stabiliser(DEFAULT).longest_false_s(below) == pytest.approx(bound_s)
    count = 2 * fps
    steady = results([255] * 3 + [127.5 - below] * count, [1000 * i / fps for i in range(3 + count)])
    changed_s = sum(s > 127 for s in steady[3:]) / fps
    assert bound_s - 1 / fps <= changed_s <= bound_s + 1 / fps + 1e-9
    assert not any(s > 127 for s in steady[3 + round(bound_s * fps) + 1 :])


def test_an_obstacle_wins_at_once_and_new_ground_must_convince() -> None:
    assert results([255, 60], [0, 33])[1] <= 127
    assert results([0, 200], [0, 33])[1] <= 127
    assert results([0, 250], [0, 33])[1] > 127
    assert Stabiliser(StabiliseConfig(hold_drivable=0)).longest_false_s() == 0
    steady = results([0] + [200] * 30, [33 * i for i in range(31)])
    first = next(i for i, s in enumerate(steady) if s > 127)
    assert 2 <= first <= 10  # 250 ms * ln(114.75 / 72.5) = 115 ms


def test_frame_rates_behave_alike() -> None:
    """A step within the play, looked at after the same time: what is held depends on the time alone."""
    for jump in (150, 235):
        slow = results([180] + [jump] * 10, [100 * i for i in range(11)])
        fast = results([180] + [jump] * 60, [1000 / 60 * i for i in range(61)])
        assert max(abs(a - b) for a, b in zip(slow, fast[::6], strict=True)) <= 1
        assert slow[1] != jump


def test_begins_anew_after_a_gap_with_another_shape_and_when_told() -> None:
    def prepared() -> Stabiliser:
        stabiliser = Stabiliser(DEFAULT)
        stabiliser.steady(plane(200), 0)
        assert stabiliser.steady(plane(120), 40 * MS)[0, 0] > 127
        return stabiliser

    assert (prepared().steady(plane(120), 80 * MS) > 127).all()
    assert (prepared().steady(plane(120), 40 * MS) > 127).all()  # the same stamp twice is no step back
    assert (prepared().steady(plane(120), 541 * MS) == 120).all()
    assert (prepared().steady(plane(120), 39 * MS) == 120).all()
    assert (prepared().steady(plane(120, (8, 8)), 80 * MS) == 120).all()
    stabiliser = prepared()
    stabiliser.reset()
    assert (stabiliser.steady(plane(120), 80 * MS) == 120).all()
    patient = Stabiliser(StabiliseConfig(gap_s=5))
    patient.steady(plane(200), 0)
    assert (patient.steady(plane(120), 600 * MS) > 120).all()


def test_results_are_arrays_of_their_own() -> None:
    stabiliser, scores = Stabiliser(DEFAULT), plane(200)
    first = stabiliser.steady(scores, 0)
    scores[:] = 0
    assert (first == 200).all()
    second = stabiliser.steady(scores, 40 * MS)
    kept = second.copy()
    stabiliser.steady(plane(255), 80 * MS)
    assert (first == 200).all()
    assert (second == kept).all()
    two = np.zeros((4, 6, 2), np.uint8)  # a view that is not contiguous
    two[..., 0] = 90
    assert (stabiliser.steady(two[..., 0], 1000 * MS) == 90).all()


# Outlines

SLOPE = 40.0  # grey levels a pixel


def slanted(offset_px: float, noise: NDArray[np.float64] | float = 0.0) -> U8:
    """Scores that fall across a slanted line, ``offset_px`` further up than y = 40 + 0.3 x."""
    y, x = np.mgrid[0:80, 0:120]
    distance = (y + offset_px - (40 + 0.3 * x)) / math.hypot(1, 0.3)
    return np.clip(np.rint(127.5 + SLOPE * distance + noise), 0, 255).astype(np.uint8)


def outline(scores: U8, threshold: float = 0.5) -> NDArray[np.float64]:
    """Signed distances, pixels, of the outline's points from y = 40 + 0.3 x, up positive, those near the border left out."""
    config = PolygonConfig(threshold=threshold, min_region=0.0)
    ((ring, *_),) = trace(scores, fit((120, 80), (120, 80), "stretch"), config)
    inner = ring[(ring[:, 0] > 5) & (ring[:, 0] < 114) & (ring[:, 1] < 78)]
    return np.asarray((40 + 0.3 * inner[:, 0] - inner[:, 1]) / math.hypot(1, 0.3))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_outlines_of_moving_edges_stay_straight_and_lag_no_more_than_the_play(threshold: float) -> None:
    """An edge that moves by fractions of a pixel: a straight line before, a straight line after, no stairs."""
    stabiliser = Stabiliser(DEFAULT, threshold)
    level = level_of(threshold)
    towards_obstacle, towards_ground = 0.4 * level / SLOPE, 0.9 * (255 - level) / SLOPE
    offsets = [*np.arange(0, 12, 0.37), *np.arange(12, -12, -0.37)]
    for i, offset in enumerate(offsets):
        scores = slanted(offset)
        raw, steady = outline(scores, threshold), outline(stabiliser.steady(scores, i * 40 * MS), threshold)
        assert np.ptp(steady) < np.ptp(raw) + 0.1
        assert np.ptp(steady) < 0.25
        ahead = steady.mean() - raw.mean()  # positive: more drivable than it should
        assert -towards_ground - 0.1 < ahead < towards_obstacle + 0.1
        if i > 35:
            assert ahead < 0.37 / math.hypot(1, 0.3) / (math.exp(0.04 / 0.25) - 1) + 0.1  # a steady retreat: v / (e^(dt/T) - 1)


def test_trembling_outlines_calm_down() -> None:
    rng = np.random.default_rng(5)
    stabiliser, raw, steady = Stabiliser(DEFAULT), [], []
    for i in range(50):
        noise = cv2.GaussianBlur(rng.normal(0, 60, (80, 120)), (0, 0), 2)
        scores = slanted(0.4 * rng.normal(), noise)
        raw.append(scores > 127)
        steady.append(stabiliser.steady(scores, i * 40 * MS) > 127)
    changes = [np.mean([np.count_nonzero(a ^ b) for a, b in pairwise(s[10:])]) for s in (raw, steady)]
    assert changes[1] < 0.4 * changes[0]
    still = slanted(0.0) > 127
    errors = [np.mean([np.count_nonzero(a ^ still) for a in s[10:]]) for s in (raw, steady)]
    assert errors[1] < errors[0]


# A drive with a car cutting in

FPS = 25.0
CUT_IN = Scene("cut-in", 448, 256, FPS, 8.0, seed=7)
SIZE = (448, 256)


def truth_of(scene: Scene, index: int) -> tuple[U8, U8]:
    """The road with vehicles left out, and the road without any."""
    view = View(scene, index)
    road = view.road_mask(*edges_of(scene.road)["freespace"])
    return road & mask_beside_vehicles(view.camera, sightings_in(view)), road


@pytest.fixture(scope="module")
def drive_truth() -> list[U8]:
    return [truth_of(CUT_IN, i)[0] for i in range(50, 150)]


def iou(planes: list[U8], truth: list[U8]) -> float:
    pairs = [(p > 127, t > 127) for p, t in zip(planes, truth, strict=True)]
    return sum(np.count_nonzero(p & t) for p, t in pairs) / sum(np.count_nonzero(p | t) for p, t in pairs)


def flickers(planes: list[U8], fps: float = FPS) -> float:
    stability = Stability()
    for i, p in enumerate(planes):
        stability.add(p, round(i * 1e9 / fps))
    found = stability.figures().flickers_per_minute
    assert found is not None
    return found


def steadied(planes: list[U8], fps: float = FPS) -> list[U8]:
    stabiliser = Stabiliser(DEFAULT)
    return [stabiliser.steady(p, round(i * 1e9 / fps)) for i, p in enumerate(planes)]


def test_perfect_scores_show_the_cut_in_at_once_and_lose_nothing(drive_truth: list[U8]) -> None:
    steady = steadied(drive_truth)
    gone = 0
    for i in range(1, len(drive_truth)):
        covered = (drive_truth[i - 1] > 127) & (drive_truth[i] <= 127)
        gone += np.count_nonzero(covered)
        assert not (steady[i][covered] > 127).any()
        assert ((steady[i] > 127) == (drive_truth[i] > 127)).all()  # and what is certain reappears at once
    assert gone > 5000


def test_noisy_scores_flicker_less_agree_better_and_show_the_car_within_two_frames(drive_truth: list[U8]) -> None:
    rng = np.random.default_rng(3)
    noisy = []
    for mask in drive_truth:
        soft = cv2.GaussianBlur(mask, (0, 0), 2.0).astype(np.float32)
        blotches = cv2.GaussianBlur(rng.standard_normal((64, 112), np.float32), (0, 0), 1.5)
        blotches = cv2.resize(blotches * (70 / blotches.std()), SIZE, interpolation=cv2.INTER_CUBIC)
        noisy.append(np.clip(soft * 0.72 + 50 * (soft > 60) + blotches, 0, 255).astype(np.uint8))
    steady = steadied(noisy)
    assert flickers(noisy) > 100
    assert flickers(steady) <= 0.5 * flickers(noisy)
    assert iou(steady, drive_truth) > iou(noisy, drive_truth)
    late = [0, 0, 0]
    covered_in_all = 0
    for i in range(1, len(drive_truth) - 2):
        covered = (drive_truth[i - 1] > 127) & (drive_truth[i] <= 127)
        covered &= (drive_truth[i + 1] <= 127) & (drive_truth[i + 2] <= 127)
        covered_in_all += np.count_nonzero(covered)
        for later in range(3):
            late[later] += np.count_nonzero(covered & (steady[i + later] > 127) & (noisy[i + later] <= 127))
    assert late[2] <= 0.1 * covered_in_all


@pytest.fixture(scope="module")
def shipped() -> Iterator[Engine]:
    with open_engine(None, "onnxruntime", threads=1) as engine:
        yield engine


def scored(engine: Engine, image: U8) -> U8:
    return np.array(engine.segment([image]).values[0, engine.contract.plane_index("freespace")])


def spoilt(image: U8, rng: np.random.Generator) -> U8:
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("name", "seed", "index"), [("cut-in", 7, 125), ("drive", 8, 100)])
def test_a_vehicle_out_of_nowhere_shows_within_two_frames(shipped: Engine, name: str, seed: int, index: int) -> None:
    """The road without vehicles for a while, then with them, through the shipped network."""
    scene, empty = Scene(name, *SIZE, FPS, seed=seed), Scene(name, *SIZE, FPS, seed=seed, cars=0)
    rng, stabiliser = np.random.default_rng(1), Stabiliser(DEFAULT)
    for i in range(index - 12, index + 3):
        raw = scored(shipped, spoilt(render(scene if i >= index else empty, i).image, rng))
        steady = stabiliser.steady(raw, round(i * 1e9 / FPS))
        if i >= index:
            on_road, road = truth_of(scene, i)
            vehicles = (road > 127) & (on_road <= 127)
            seen = vehicles & (raw <= 127)
            assert np.count_nonzero(seen) > 0.7 * np.count_nonzero(vehicles) > 100
            assert np.count_nonzero(seen & (steady <= 127)) > 0.9 * np.count_nonzero(seen)


def test_the_shipped_network_flickers_half_as_much_at_no_loss(shipped: Engine) -> None:
    scene, rng = Scene("hills", *SIZE, FPS, seed=4), np.random.default_rng(2)
    rendered = [render(scene, i) for i in range(40)]
    raw = [scored(shipped, spoilt(r.image, rng)) for r in rendered]
    truth = [r.masks["freespace"] for r in rendered]
    steady = steadied(raw)
    assert flickers(raw) > 60
    assert flickers(steady) <= 0.5 * flickers(raw)
    assert iou(steady, truth) >= iou(raw, truth)


# The figures


def blank(width: int = 100, height: int = 80) -> U8:
    image = np.zeros((height, width), np.uint8)
    image[40:] = 255
    return image


def figures(planes: list[U8], stamps_ms: list[float], threshold: float = 0.5):  # type: ignore[no-untyped-def]
    stability = Stability(threshold)
    for p, t in zip(planes, stamps_ms, strict=True):
        stability.add(p, round(t * MS))
    return stability.figures()


def with_patch(left: int, top: int, width: int, height: int) -> U8:
    image = blank()
    image[top : top + height, left : left + width] ^= 255
    return image


def test_figures_worked_out_by_hand() -> None:
    """4000 drivable pixels of 8000; a hole of 10 x 8 for one frame of 40 ms: 1 of 3 pairs is whole, two have 3920 / 4000."""
    found = figures([blank(), with_patch(20, 50, 10, 8), blank(), blank()], [0, 40, 80, 120])
    assert found.seconds == pytest.approx(0.12)
    assert found.iou_mean == pytest.approx((0.98 + 0.98 + 1) / 3)
    assert found.iou_p5 == pytest.approx(0.98)
    assert found.flickers_per_minute == pytest.approx(1 / 0.12 * 60)
    assert found.flip_flop == pytest.approx(80 / (3 * 8000))


def test_what_is_a_flicker() -> None:
    def count(change: U8, stamps_ms: list[float]) -> float:
        states = [blank(), change, *[change] * (len(stamps_ms) - 3), blank()]
        found = figures(states, stamps_ms)
        return found.flickers_per_minute * found.seconds / 60

    patch = with_patch(20, 50, 6, 5)
    assert count(patch, [0, 40, 80]) == pytest.approx(1)
    assert count(with_patch(20, 5, 6, 5), [0, 40, 80]) == pytest.approx(1)  # drivable for a moment, likewise
    assert count(with_patch(0, 50, 6, 5), [0, 40, 80]) == pytest.approx(1)  # at the border, too
    assert count(patch, [0, 40, 300, 530]) == pytest.approx(1)
    assert count(patch, [0, 40, 300, 550]) == 0  # half a second is the limit
    assert count(with_patch(20, 50, 40, 2), [0, 40, 80]) == 0  # thin
    assert count(with_patch(0, 78, 100, 2), [0, 40, 80]) == 0  # thin, along the border
    assert with_patch(0, 0, 2, 1).size * PATCH == 4
    assert count(with_patch(20, 50, 1, 3), [0, 40, 80]) == 0  # small
    both = with_patch(20, 50, 6, 5) ^ with_patch(60, 50, 6, 5) ^ blank()
    assert count(both, [0, 40, 80]) == pytest.approx(2)
    assert figures([blank(), patch] * 10, [40 * i for i in range(20)]).flickers_per_minute == pytest.approx(18 / 0.76 * 60)


def test_a_boundary_that_moves_on_is_no_flicker() -> None:
    planes = [with_patch(4 * i, 45, 12, 12) for i in range(1, 4)]  # an obstacle that grows away leaves and enters pixels once
    moved = figures([blank(), *planes], [0, 400, 800, 1200])
    assert moved.flip_flop > 0  # its tail frees what its front took 400 ms ago
    growing = [with_patch(10, 45, 3 * i, 12) for i in range(1, 10)]
    assert figures(growing, [40 * i for i in range(9)]).flip_flop == 0


def test_flip_flop_against_brute_force() -> None:
    rng = np.random.default_rng(9)
    planes = [(rng.random((30, 40)) < 0.5).astype(np.uint8) * 255 for _ in range(6)]
    planes = [planes[i] for i in rng.integers(0, 6, 80)]
    stamps = np.cumsum(rng.choice([20, 30, 50, 70, 130], 80)) + 0.0
    changed_at = np.full((30, 40), -1e9)
    returned = overlaps = 0
    for i in range(1, 80):
        changed = planes[i] != planes[i - 1]
        returned += np.count_nonzero(changed & (stamps[i] - changed_at < 497))
        overlaps += np.count_nonzero(changed & (abs(stamps[i] - changed_at - 500) <= 3))  # within the clock's resolution
        changed_at[changed] = stamps[i]
    found = figures(planes, stamps.tolist())
    assert 0 <= found.flip_flop * 79 * 1200 - returned <= overlaps + 1e-6
    assert returned > 10 * overlaps


def test_the_5th_percentile_is_that_of_the_pairs() -> None:
    rng = np.random.default_rng(4)
    planes = [np.where(np.arange(1000)[None] < w, 255, 0).astype(np.uint8) for w in rng.integers(400, 900, 201)]
    widths = [np.count_nonzero(p) for p in planes]
    ious = sorted(min(a, b) / max(a, b) for a, b in pairwise(widths))
    found = figures(planes, [40 * i for i in range(201)])
    assert found.iou_p5 == pytest.approx(ious[9], abs=6e-4)  # the 10th of 200
    assert found.iou_mean == pytest.approx(np.mean(ious))


def test_stretches_are_not_compared_with_each_other() -> None:
    nothing = np.zeros_like(blank())
    for second in (541 * MS, 40 * MS, 39 * MS):  # after a gap, the same stamp, a step back
        stability = Stability()
        stability.add(blank(), 0)
        stability.add(blank(), 40 * MS)
        stability.add(nothing, second)
        stability.add(nothing, second + 40 * MS)
        found = stability.figures()
        assert found.iou_mean == 1.0
        assert found.seconds == pytest.approx(0.08)
        assert found.flip_flop == 0
    stability = Stability()
    stability.add(blank(), 0)
    stability.reset()
    stability.add(nothing, 40 * MS)
    assert stability.figures().iou_mean is None
    stability.add(np.zeros((8, 8), np.uint8), 80 * MS)
    assert stability.figures().seconds == 0
    assert FLICKER_S == 0.5


def test_threshold_of_the_figures() -> None:
    dim = [np.where(p > 0, 180, 100).astype(np.uint8) for p in (blank(), with_patch(20, 50, 10, 8))]
    assert figures(dim, [0, 40]).iou_mean == pytest.approx(0.98)
    assert figures(dim, [0, 40], threshold=0.3).iou_mean == 1.0  # all of it is drivable
    assert figures(dim, [0, 40], threshold=0.9).iou_mean is None  # none of it is


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_pixels_within_a_border_are_counted(seed: int) -> None:
    """Holes filled, against a flood from outside; thick patches, as they come from an opening."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(40, 50)), (0, 0), 2.5)
    mask = np.zeros((42, 52), np.uint8)
    mask[1:-1, 1:-1] = noise > 0.02
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    borders, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    # A patch encloses what cannot be reached from the corner through 4-neighbours outside.
    _, outside = cv2.connectedComponents((mask == 0).astype(np.uint8), connectivity=4)
    assert sum(map(pixels_within, borders)) >= np.count_nonzero(mask)
    assert sum(map(pixels_within, borders)) == pytest.approx(np.count_nonzero(outside != outside[0, 0]))


def test_settings_out_of_range_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "freespace.yaml"
    file.write_text("stabilise:\n  hold_drivable: 1.0\n  settle_s: 0\n")
    with pytest.raises(BadInput, match=r"(?s)stabilise.hold_drivable.*stabilise.settle_s"):
        load_config(file, {})
