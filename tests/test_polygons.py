"""Scores to polygons: golden shapes, and properties over random fields and sizes."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
import shapely
import shapely.affinity
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.preprocess import fit
from perception.config import PolygonConfig
from perception.polygons import crossings, exact_mask, extract, inside_rings, rasterise, signed_area

EXACT = PolygonConfig(tolerance_px=0.0, min_region=0.0, min_hole=0.0)


def field(seed: int, width: int, height: int, smoothness: float) -> np.ndarray:
    """A smooth random score plane with regions and holes of many sizes."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.normal(size=(height, width)).astype(np.float32), (0, 0), smoothness)
    return np.clip(noise / (noise.std() + 1e-9) * 120 + 127, 0, 255).astype(np.uint8)


def as_shapes(polygons: list) -> list[shapely.Polygon]:
    return [shapely.Polygon(p.exterior, p.interiors) for p in polygons]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero((a > 0) & (b > 0)) / max(1, np.count_nonzero((a > 0) | (b > 0)))


def test_rectangle_with_hole_has_the_area_worked_out_by_hand() -> None:
    """Steps of 0 to 255 cross the threshold half-way between two pixels, so the outline runs along pixel edges but for
    the corners, each cut by a triangle of 1/2 x 1/2 network pixels (added at the corners of a hole)."""
    scores = np.zeros((40, 60), np.uint8)
    scores[10:30, 10:50] = 255
    scores[15:20, 20:30] = 0
    (polygon,) = extract(scores, fit((120, 80), (60, 40), "stretch"), "freespace", EXACT)
    assert len(polygon.interiors) == 1
    expected = (20 * 40 - 4 / 8) - (5 * 10 - 4 / 8)  # inside the hole, the road's corner joins: its corners are cut, too
    assert polygon.area_px == pytest.approx(4 * expected, rel=2e-3)
    assert polygon.exterior.min(axis=0) == pytest.approx([2 * 10 - 0.5, 2 * 10 - 0.5], abs=0.02)
    assert polygon.exterior.max(axis=0) == pytest.approx([2 * 50 - 0.5, 2 * 30 - 0.5], abs=0.02)
    assert polygon.confidence == pytest.approx(1.0)


def test_outline_lies_where_the_interpolated_score_crosses() -> None:
    """A vertical edge between scores 200 (x = 9) and 100 (x = 10) crosses 127.5 at x = 9 + 72.5 / 100."""
    scores = np.zeros((20, 20), np.uint8)
    scores[:, :10], scores[:, 10] = 200, 100
    (polygon,) = extract(scores, fit((20, 20), (20, 20), "stretch"), "freespace", EXACT)
    assert polygon.exterior[:, 0].max() == pytest.approx(9.72, abs=0.006)
    assert polygon.exterior.min() == pytest.approx(-0.5)
    assert polygon.exterior[:, 1].max() == pytest.approx(19.5)


def test_full_image_is_the_image_rectangle() -> None:
    (polygon,) = extract(np.full((9, 16), 255, np.uint8), fit((1280, 720), (16, 9), "stretch"), "ego", PolygonConfig())
    assert shapely.Polygon(polygon.exterior).equals(shapely.box(-0.5, -0.5, 1279.5, 719.5))
    assert polygon.area_px == pytest.approx(1280 * 720)
    assert polygon.ego
    assert polygon.plane == "ego"


def test_nothing_gives_nothing() -> None:
    resampling = fit((640, 360), (64, 32), "stretch")
    assert extract(np.zeros((32, 64), np.uint8), resampling, "freespace", PolygonConfig()) == []
    assert extract(np.full((32, 64), 127, np.uint8), resampling, "freespace", PolygonConfig()) == []


@pytest.mark.parametrize(("threshold", "score", "found"), [(0.5, 128, 1), (0.5, 127, 0), (0.9, 230, 1), (0.9, 229, 0)])
def test_threshold_is_on_the_scale_of_the_scores(threshold: float, score: int, found: int) -> None:
    config = PolygonConfig(threshold=threshold)
    polygons = extract(np.full((32, 64), score, np.uint8), fit((64, 32), (64, 32), "stretch"), "freespace", config)
    assert len(polygons) == found


def test_ego_is_the_region_in_front_of_the_vehicle() -> None:
    scores = np.zeros((90, 160), np.uint8)
    scores[30:90, :40] = 255  # larger, but at the side
    scores[60:85, 70:95] = 255  # in front, above a bonnet
    big, small = extract(scores, fit((1280, 720), (160, 90), "stretch"), "freespace", PolygonConfig())
    assert not big.ego
    assert small.ego
    scores[40:90, 41:120] = 0
    assert not any(p.ego for p in extract(scores, fit((1280, 720), (160, 90), "stretch"), "freespace", PolygonConfig()))


def test_small_regions_go_and_small_holes_are_filled() -> None:
    scores = np.zeros((90, 160), np.uint8)
    scores[40:90, 20:140] = 255
    scores[5:7, 5:7] = 255
    scores[50:52, 50:52] = 0
    scores[60:75, 60:80] = 0
    resampling = fit((1600, 900), (160, 90), "stretch")
    (polygon,) = extract(scores, resampling, "freespace", PolygonConfig(min_region=0.001, min_hole=0.001))
    assert len(polygon.interiors) == 1
    all_polygons = extract(scores, resampling, "freespace", PolygonConfig(min_region=0.0, min_hole=0.0))
    assert sorted(len(p.interiors) for p in all_polygons) == [0, 2]


def test_regions_that_meet_at_a_corner_are_joined_and_stay_simple() -> None:
    scores = np.zeros((12, 12), np.uint8)
    scores[2:6, 2:6] = 255
    scores[6:10, 6:10] = 255
    (shape,) = as_shapes(extract(scores, fit((12, 12), (12, 12), "stretch"), "freespace", EXACT))
    assert shape.is_valid


def test_letterbox_borders_never_become_road() -> None:
    resampling = fit((100, 200), (64, 64), "letterbox")
    (polygon,) = extract(np.full((64, 64), 255, np.uint8), resampling, "freespace", PolygonConfig())
    assert shapely.Polygon(polygon.exterior).equals(shapely.box(-0.5, -0.5, 99.5, 199.5))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(8, 120),
    height=st.integers(8, 90),
    smoothness=st.floats(0.4, 8),
)
def test_every_crossing_is_found_once(seed: int, width: int, height: int, smoothness: float) -> None:
    """Border following visits exactly the pairs of neighbours of which one is inside: as brute force finds them."""
    inside = np.zeros((height + 2, width + 2), np.uint8)
    inside[1:-1, 1:-1] = field(seed, width, height, smoothness) > 127
    borders, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    borders = [b for b in borders if len(b) > 1]
    alone = sum(len(b) == 1 for b in cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0])
    horizontal = np.argwhere(inside[:, 1:] != inside[:, :-1])[:, ::-1] + [0.5, 0]
    vertical = np.argwhere(inside[1:] != inside[:-1])[:, ::-1] + [0, 0.5]
    expected = len(horizontal) + len(vertical)
    if not borders:
        assert expected == 4 * alone
        return
    points, lengths = crossings(borders, inside * 255, 127.5)
    assert lengths.sum() == len(points)
    assert len(np.unique(points, axis=0)) == len(points) == expected - 4 * alone
    brute_force = {tuple(p) for p in np.vstack([horizontal, vertical])}
    assert {tuple(p) for p in points} <= brute_force


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    net=st.tuples(st.integers(4, 130), st.integers(4, 90)),
    frame=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    smoothness=st.floats(0.5, 12),
    tolerance=st.sampled_from([0.0, 0.5, 1.0, 3.0, 20.0]),
    mode=st.sampled_from(["stretch", "letterbox"]),
)
def test_polygons_keep_the_contract(seed, net, frame, smoothness, tolerance, mode) -> None:
    """Simple, valid, inside the image, exteriors counter-clockwise on the screen, holes inside, nothing overlaps."""
    config = PolygonConfig(tolerance_px=tolerance, min_region=0.001, min_hole=0.0005)
    polygons = extract(field(seed, *net, smoothness), fit(frame, net, mode), "freespace", config)
    shapes = as_shapes(polygons)
    image = shapely.box(-0.51, -0.51, frame[0] - 0.49, frame[1] - 0.49)
    for polygon, shape in zip(polygons, shapes, strict=True):
        assert shape.is_valid, shapely.is_valid_reason(shape)
        assert image.covers(shape)
        assert signed_area(polygon.exterior) < 0
        assert all(signed_area(hole) > 0 for hole in polygon.interiors)
        assert all(len(ring) >= 3 and not np.array_equal(ring[0], ring[-1]) for ring in polygon.rings)
        assert polygon.area_px == pytest.approx(shape.area)
        assert 0 <= polygon.confidence <= 1
    for i, shape in enumerate(shapes):
        assert all(shape.intersection(other).area == 0 for other in shapes[:i])
    assert [p.area_px for p in polygons] == sorted((p.area_px for p in polygons), reverse=True)
    assert sum(p.ego for p in polygons) <= 1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), frame=st.sampled_from([(1280, 720), (640, 480), (3840, 2160), (720, 1280), (322, 227)]))
def test_rasterising_gives_the_mask_again(seed: int, frame: tuple[int, int]) -> None:
    """At the default tolerance, on fields as smooth as a network's scores."""
    resampling = fit(frame, (448, 256), "stretch")
    scores = field(seed, 448, 256, 22)
    mask = exact_mask(scores, resampling, PolygonConfig())
    polygons = extract(scores, resampling, "freespace", PolygonConfig())
    # In a small image half a pixel of outline is a larger share of the area.
    assert iou(mask, rasterise(polygons, frame)) > (0.99 if frame[0] >= 640 else 0.985)
    upscaled = cv2.resize(scores, frame, interpolation=cv2.INTER_LINEAR) > 127
    assert iou(mask, upscaled) > 0.99


def test_simplification_moves_no_vertex_further_than_the_tolerance() -> None:
    scores, resampling = field(3, 160, 90, 5), fit((1280, 720), (160, 90), "stretch")
    exact = shapely.union_all(
        as_shapes(extract(scores, resampling, "freespace", EXACT.model_copy(update={"min_region": 1e-3})))
    )
    for tolerance, limit in pairwise([1.0, 2.0, 4.0, 8.0]):
        config = PolygonConfig(tolerance_px=tolerance, min_region=1e-3, min_hole=0)
        simple = shapely.union_all(as_shapes(extract(scores, resampling, "freespace", config)))
        assert shapely.hausdorff_distance(exact.boundary, simple.boundary) <= min(tolerance + 0.02, limit)


@settings(max_examples=50, deadline=None)
@given(
    corners=st.lists(st.tuples(st.floats(-5, 45), st.floats(-5, 35)), min_size=3, max_size=9, unique=True),
    hole=st.booleans(),
)
def test_a_pixel_is_set_where_its_centre_lies_inside(corners, hole) -> None:
    """Against shapely's own point-in-polygon test, for convex outlines with and without a hole."""
    shape = shapely.MultiPoint(corners).convex_hull
    if shape.geom_type != "Polygon" or shape.area < 1:
        return
    rings = [shapely.get_coordinates(shape)[:-1]]
    if hole:
        inner = shapely.affinity.scale(shape, 0.5, 0.5)
        rings.append(shapely.get_coordinates(inner)[:-1])
        shape = shape.difference(inner)
    x, y = np.meshgrid(np.arange(40), np.arange(30))
    clear = shapely.distance(shape.boundary, shapely.points(x, y)) > 1e-6
    assert np.array_equal((inside_rings(rings, (40, 30)) > 0)[clear], shapely.contains_xy(shape, x, y)[clear])
