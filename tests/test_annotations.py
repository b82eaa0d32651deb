"""Annotations to labels and back: every pixel where it belongs, every broken input named, everything else done."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import shapely
import shapely.ops
from conftest import make_output, write_image
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from perception import cli as command_line
from perception.freespace import Freespace, Polygon
from training.annotations import bdd100k, coco, labelme, supervisely
from training.annotations.base import MALFORMED, Annotation, Patch, Region, read_ring
from training.annotations.classes import DEFAULT_CLASSES, LANE_CLASSES, draw, read_classes, regions_of
from training.annotations.convert import (
    Report,
    annotations_from_masks,
    annotations_from_polygons,
    masks_from_annotations,
    size_of,
)
from training.annotations.files import Images
from training.annotations.formats import READERS, format_of, open_annotations
from training.annotations.overlay import ContactSheet, overlay, palette
from training.annotations.raster import fill, outlines, rasterise
from training.datasets import find_samples

SIZE = (24, 16)  # width, height
INDICES = "background: 0\nclasses: {road: 3, car: 8, void: 11}\n"
SQUARE = [[4, 2], [4, 10], [12, 10], [12, 2]]  # corners of pixels: rows 2 to 9, columns 4 to 11
HOLE = [[6, 4], [6, 6], [8, 6], [8, 4]]

Mask = NDArray[np.bool_]


# -- Helpers -----------------------------------------------------------------------------------------------------------


def canvas(*boxes: tuple[int, int, int, int], size: tuple[int, int] = SIZE) -> Mask:
    """True in each (left, top, right, bottom), the last ones excluded."""
    mask = np.zeros((size[1], size[0]), bool)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    return mask


def placed(patch: Patch, size: tuple[int, int] = SIZE) -> Mask:
    mask = np.zeros((size[1], size[0]), bool)
    mask[patch.top : patch.top + patch.mask.shape[0], patch.left : patch.left + patch.mask.shape[1]] = patch.mask
    return mask


def filled(rings: list[Any], size: tuple[int, int] = SIZE) -> Mask:
    return placed(rasterise(Region("road", [np.array(r, float) for r in rings]), size)[0], size)


def shape(label: str, points: Any, **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": "polygon", "flags": {}, "group_id": None, **more}


def labelme_file(*shapes: dict[str, Any], image: str = "a.jpg", size: tuple[int, int] = SIZE) -> dict[str, Any]:
    return {"shapes": list(shapes), "imagePath": image, "imageWidth": size[0], "imageHeight": size[1]}


def put(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def image_file(path: Path, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_image(path, np.full((size[1], size[0], 3), 100, np.uint8))


def one(data: Any, path: str = "a.json") -> Annotation:
    """The only image of a file."""
    [entry] = READERS[format_of(data)].read(data, Path(path))
    return entry.read()


def label_of(data: Any, path: str = "a.json", size: tuple[int, int] = SIZE) -> dict[str, NDArray[np.uint8]]:
    drawn = draw(one(data, path), size, DEFAULT_CLASSES)
    assert not drawn.unmapped
    planes = DEFAULT_CLASSES.table[drawn.ranks]
    return {name: planes[..., i] for i, name in enumerate(DEFAULT_CLASSES.planes)}


def road_of(data: Any, path: str = "a.json", size: tuple[int, int] = SIZE) -> Mask:
    return label_of(data, path, size)["freespace"] == 1


def read_png(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None, path
    return np.asarray(image, np.uint8)


def reasons(report: Report) -> list[str]:
    return [f"{Path(p.file.split(': ')[0]).name}: {p.reason}" for p in report.problems]


coordinates = st.floats(-8, 32, allow_nan=False).map(lambda v: round(v, 2))
rings = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=9, unique=True)
masks = st.integers(0, 2**31).map(lambda seed: np.random.default_rng(seed).random((16, 24)) < 0.5)
blobs = st.integers(0, 2**31).map(
    lambda seed: cv2.GaussianBlur(np.random.default_rng(seed).random((16, 24)), (0, 0), 2.0) > 0.5  # large, with holes
)


# -- Pixels ------------------------------------------------------------------------------------------------------------


@given(rings)
@settings(deadline=None, max_examples=200)
def test_pixel_belongs_when_its_centre_lies_inside(points: list[tuple[float, float]]) -> None:
    polygon = shapely.Polygon(points)
    whole = polygon if polygon.is_valid else shapely.make_valid(polygon, method="structure", keep_collapsed=False)
    if whole.is_empty:
        with pytest.raises(ValueError, match="no area"):
            filled([points])
        return
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    inside = shapely.contains_xy(whole, x.astype(float), y.astype(float))
    border = shapely.distance(shapely.points(x, y), shapely.boundary(whole)) < 1e-9
    found = filled([points])
    assert np.array_equal(found[~border], inside[~border])


def test_vertices_on_pixel_centres_cut_rows_once() -> None:
    diamond = [[8, 2], [2, 8], [8, 14], [14, 8]]
    mask = filled([diamond])
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    distance = abs(x - 8) + abs(y - 8)
    assert mask[distance < 6].all()
    assert not mask[distance > 6].any()


@given(st.tuples(coordinates, coordinates), st.tuples(coordinates, coordinates))
@settings(deadline=None, max_examples=100)
def test_neighbours_share_no_pixel_and_leave_none_out(first: tuple[float, float], second: tuple[float, float]) -> None:
    """A rectangle cut along any line through it, also through pixel centres."""
    frame = shapely.box(-9, -9, 33, 33)
    line = shapely.LineString([first, second])
    if line.length < 1:
        return
    far = 200 / line.length
    (x0, y0), (x1, y1) = first, second
    longer = shapely.LineString([(x0 - far * (x1 - x0), y0 - far * (y1 - y0)), (x0 + far * (x1 - x0), y0 + far * (y1 - y0))])
    parts = [np.array(p.exterior.coords)[:-1] for p in shapely.get_parts(shapely.ops.split(frame, longer))]
    assert np.array_equal(sum(placed(fill([p], SIZE)).astype(int) for p in parts), np.ones((16, 24), int))


def test_whole_image_in_corner_coordinates_covers_every_pixel_and_no_more() -> None:
    assert road_of(labelme_file(shape("road", [[0, 0], [0, 16], [24, 16], [24, 0]]))).all()
    assert np.array_equal(road_of(labelme_file(shape("road", SQUARE))), canvas((4, 2, 12, 10)))


@pytest.mark.parametrize(("edge", "columns"), [(4.49, 4), (4.5, 4), (4.51, 5)])
def test_half_a_pixel_decides(edge: float, columns: int) -> None:
    """Corner coordinates: the centre of the pixel in column 4 lies at 4.5, and one on the edge belongs to its right side."""
    mask = road_of(labelme_file(shape("road", [[edge, 0], [edge, 16], [24, 16], [24, 0]])))
    assert np.array_equal(mask, canvas((columns, 0, 24, 16)))


def test_far_outside_is_clipped() -> None:
    assert filled([[[-9e5, -9e5], [-9e5, 9e5], [9e5, 9e5], [9e5, -9e5]]]).all()
    assert not filled([[[30, 0], [40, 0], [40, 9]]]).any()
    assert not filled([[[0, -30], [9, -30], [9, -20]]]).any()


@given(masks)
@settings(deadline=None, max_examples=60)
def test_outlines_give_back_the_same_pixels(mask: Mask) -> None:
    regions = outlines(mask)
    together = sum((filled(region).astype(int) for region in regions), np.zeros(mask.shape, int))
    assert np.array_equal(together, mask.astype(int))
    for region in regions:
        assert shapely.Polygon(region[0], region[1:]).is_valid


def test_outline_of_a_ring_has_a_hole_and_no_spare_points() -> None:
    [region] = outlines(canvas((4, 2, 12, 10)) & ~canvas((6, 4, 8, 6)))
    assert [len(ring) for ring in region] == [4, 4]
    assert outlines(np.zeros((4, 4), bool)) == []


def test_self_intersection_is_repaired_and_said() -> None:
    bow = read_ring([[2, 2], [10, 10], [10, 2], [2, 10]])
    patch, remarks = rasterise(Region("road", [bow]), SIZE)
    y, x = np.mgrid[:16, :24] + 0.5
    dx, dy = abs(x - 6), abs(y - 6)
    inside = (dy < dx) & (dx < 4)
    clear = abs(dx - dy) > 1e-6
    assert np.array_equal(placed(patch)[clear], inside[clear])
    assert remarks == ["'road': repaired an outline (self-intersection)"]


def test_what_an_outline_winds_around_twice_is_inside() -> None:
    loop = [[2, 2], [2, 12], [12, 12], [12, 6], [6, 6], [6, 14], [16, 14], [16, 2]]  # crosses itself
    assert filled([np.array(loop) - 0.5])[8:11, 7:11].all()


def test_keyhole_is_a_hole() -> None:
    keyhole = [[4, 2], [4, 4], [6, 4], [8, 4], [8, 6], [6, 6], [6, 4], [4, 4], [4, 10], [12, 10], [12, 2]]
    assert np.array_equal(filled([np.array(keyhole) - 0.5]), canvas((4, 2, 12, 10)) & ~canvas((6, 4, 8, 6)))


@pytest.mark.parametrize(
    ("points", "what"),
    [
        ([], "of 0 points"),
        ([[1, 1]], "of 1 point"),
        ([[1, 1], [5, 5]], "of 2 points"),
        ([[1, 1], [5, 5], [3, 3]], "an outline"),
    ],
)
def test_outline_without_area_is_refused(points: list[list[int]], what: str) -> None:
    """Also as a hole."""
    for rings in ([read_ring(points)], [read_ring(SQUARE), read_ring(points)]):
        with pytest.raises(ValueError, match=f"'road': .*{what} has no area; finish or delete it"):
            rasterise(Region("road", rings), SIZE)


@pytest.mark.parametrize("points", [[[1, 2, 3]], [1, 2], [["a", "b"]], [[1, None]], [[1, math.inf]], [[1e9, 0]], [[1], [2, 3]]])
def test_broken_outline_is_refused(points: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        read_ring(points)


# -- Run lengths -------------------------------------------------------------------------------------------------------


def runs_by_hand(mask: Mask) -> list[int]:
    """Pixel by pixel down the columns."""
    counts, last, length = [], False, 0
    for value in mask.T.ravel().tolist():
        if value != last:
            counts.append(length)
            last, length = value, 0
        length += 1
    return [*counts, length]


def compress_by_hand(counts: list[int]) -> str:
    """COCO's string: differences to the last but one, in five bits a character, sign included, as long as need be."""
    text = ""
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            low, value = value & 31, value >> 5
            done = value == (-1 if low & 16 else 0)
            text += chr(48 + low + (0 if done else 32))
            if done:
                break
    return text


@given(masks)
@settings(deadline=None, max_examples=40)
def test_run_lengths_plain_and_compressed(mask: Mask) -> None:
    counts = runs_by_hand(mask)
    assert np.array_equal(coco.expand(counts, 24, 16), mask)
    assert coco.decompress(compress_by_hand(counts)) == counts


@given(st.lists(st.integers(0, 10**7), max_size=12))
def test_long_runs_survive_compression(counts: list[int]) -> None:
    assert coco.decompress(compress_by_hand(counts)) == counts


def test_known_compressed_string() -> None:
    """Worked out by hand: 6, 1, 40 take 6, 1, (8 + 32, 1); then 4 - 1 and 2 - 40 = -38, that is (26 + 32, 30)."""
    expected = [6, 1, 40, 4, 2]
    assert coco.decompress("61" + chr(48 + 40) + "1" + "3" + chr(48 + 26 + 32) + chr(48 + 30)) == expected


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ({"counts": [10, 5], "size": [16, 24]}, "cover 15 pixels"),
        ({"counts": [-1, 385], "size": [16, 24]}, "whole numbers"),
        ({"counts": "~~~", "size": [16, 24]}, "no part of"),
        ({"counts": "oo", "size": [16, 24]}, "within a number"),
        ({"counts": [100], "size": [10, 10]}, "10x10 pixels, the image has 24x16"),
        ({"size": [16, 24]}, "counts"),
    ],
)
def test_broken_run_lengths(segmentation: Any, reason: str) -> None:
    data = coco_file([{"image_id": 1, "category_id": 1, "segmentation": segmentation}])
    with pytest.raises((ValueError, KeyError), match=reason):
        one(data)


# -- Formats -----------------------------------------------------------------------------------------------------------


def coco_file(objects: list[Any], images: int = 1) -> dict[str, Any]:
    return {
        "images": [{"id": i + 1, "file_name": f"train/{i}.jpg", "width": 24, "height": 16} for i in range(images)],
        "annotations": objects,
        "categories": [{"id": 1, "name": "road"}, {"id": 2, "name": "car"}],
    }


def supervisely_file(*objects: dict[str, Any]) -> dict[str, Any]:
    return {"size": {"width": 24, "height": 16}, "tags": [], "objects": list(objects)}


def sly_polygon(label: str, exterior: Any, *interior: Any) -> dict[str, Any]:
    return {"classTitle": label, "geometryType": "polygon", "points": {"exterior": exterior, "interior": list(interior)}}


def bdd_label(category: str, vertices: Any, types: str | None = None, **more: Any) -> dict[str, Any]:
    outline = {"vertices": vertices, "types": types or "L" * len(vertices), "closed": True}
    return {"category": category, "poly2d": [outline], **more}


def png_by_hand(mask: Mask) -> bytes:
    """A PNG of one bit a pixel with a palette whose first colour is transparent, as Supervisely writes it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in mask)
    header = struct.pack(">IIBBBBB", mask.shape[1], mask.shape[0], 1, 3, 0, 0, 0)
    palette_and_alpha = chunk(b"PLTE", bytes([0, 0, 0, 255, 255, 255])) + chunk(b"tRNS", b"\0")
    body = chunk(b"IHDR", header) + palette_and_alpha + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def encoded(png: bytes) -> str:
    return base64.b64encode(zlib.compress(png)).decode()


RING = canvas((4, 2, 12, 10)) & ~canvas((6, 4, 8, 6))
FILES: dict[str, tuple[Any, str]] = {
    "labelme": (
        labelme_file(shape("road", SQUARE, group_id=1), shape("road", HOLE, group_id=1, flags={"hole": True})),
        "a.json",
    ),
    "supervisely": (supervisely_file(sly_polygon("Freespace", SQUARE, HOLE)), "a.jpg.json"),
    "coco": (
        coco_file([{"image_id": 1, "category_id": 1, "segmentation": {"counts": runs_by_hand(RING), "size": [16, 24]}}]),
        "a.json",
    ),
    "bdd100k": ([{"name": "a.jpg", "labels": [bdd_label("direct", [*SQUARE, SQUARE[0], HOLE[0], *HOLE[::-1]])]}], "a.json"),
    "cityscapes": (
        {
            "imgWidth": 24,
            "imgHeight": 16,
            "objects": [{"label": "road", "polygon": SQUARE}, {"label": "cargroup", "polygon": HOLE}],
        },
        "a_gtFine_polygons.json",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_pixels_and_is_recognised(name: str) -> None:
    data, path = FILES[name]
    assert format_of(data) == name
    assert np.array_equal(road_of(data, path), RING)


def test_names_of_the_images() -> None:
    stems = {name: one(data, path).stem for name, (data, path) in FILES.items()}
    assert stems == {"labelme": "a", "supervisely": "a", "coco": "0", "bdd100k": "a", "cityscapes": "a_leftImg8bit"}
    assert Annotation("C:\\drive\\b.v2.png", None, []).stem == "b.v2"
    assert Annotation("b.v2", None, []).stem == "b.v2"


@pytest.mark.parametrize("data", [{}, [], [1], 3, None, {"objects": 1}, {"images": []}, {"schema": "freespace/1"}])
def test_unknown_format(data: Any) -> None:
    with pytest.raises(ValueError, match="no known format"):
        format_of(data)


def test_labelme_rectangle_mask_and_what_has_no_area() -> None:
    rectangle = shape("road", [[12, 10], [4, 2]], shape_type="rectangle")
    assert np.array_equal(road_of(labelme_file(rectangle)), canvas((4, 2, 12, 10)))
    blob = RING[2:10, 4:12]
    mask = shape("road", [[4, 2], [11, 9]], shape_type="mask", mask=base64.b64encode(png_by_hand(blob)).decode())
    assert np.array_equal(road_of(labelme_file(mask)), RING)
    line = one(labelme_file(shape("road", SQUARE, shape_type="line")))
    assert (line.regions, line.left_out) == ([], ["'road': a line has no area"])
    with pytest.raises(ValueError, match="'circle' are not read"):
        one(labelme_file(shape("road", SQUARE[:2], shape_type="circle")))


def test_labelme_hole_belongs_to_its_label_and_group() -> None:
    other = shape("road", [[5, 3], [5, 7], [9, 7], [9, 3]], group_id=2)
    around = shape("road", SQUARE, group_id=1)
    hole = shape("road", HOLE, group_id=1, flags={"hole": True})
    assert np.array_equal(road_of(labelme_file(hole, around)), RING)
    assert np.array_equal(road_of(labelme_file(around, hole, other)), canvas((4, 2, 12, 10)))  # the other one covers it
    with pytest.raises(ValueError, match="no polygon around it"):
        one(labelme_file(other, hole))


@pytest.mark.parametrize("form", ["palette", "grey", "alpha"])
@given(mask=masks, left=st.integers(-5, 30), top=st.integers(-5, 20))
@settings(deadline=None, max_examples=20)
def test_supervisely_bitmap(form: str, mask: Mask, left: int, top: int) -> None:
    values = mask.astype(np.uint8) * 255
    alpha = cv2.merge([255 - values, values, values, values])
    png = {
        "palette": lambda: png_by_hand(mask),
        "grey": lambda: cv2.imencode(".png", values)[1].tobytes(),
        "alpha": lambda: cv2.imencode(".png", alpha)[1].tobytes(),
    }[form]()
    data = supervisely_file({"classTitle": "road", "bitmap": {"origin": [left, top], "data": encoded(png)}})
    expected = np.zeros((60, 80), bool)
    expected[20 + top : 36 + top, 20 + left : 44 + left] = mask
    assert np.array_equal(road_of(data), expected[20:36, 20:44])


def test_supervisely_rectangle_old_polygon_and_project_file() -> None:
    rectangle = {"classTitle": "road", "geometryType": "rectangle", "points": {"exterior": [[4, 2], [12, 10]], "interior": []}}
    old = {"classTitle": "road", "bitmap": None, "points": {"exterior": SQUARE, "interior": []}}
    for thing in (rectangle, old):
        assert np.array_equal(road_of(supervisely_file(thing)), canvas((4, 2, 12, 10)))
    assert supervisely.read(json.loads(supervisely.write_meta(["road"])), Path("meta.json")) == []


def test_coco_polygons_crowds_and_boxes() -> None:
    flat = [v for point in SQUARE for v in point]
    second = [14, 2, 14, 6, 18, 6, 18, 2]
    crowd = {"counts": compress_by_hand(runs_by_hand(canvas((20, 0, 24, 4)))), "size": [16, 24]}
    data = coco_file(
        [
            {"image_id": 1, "category_id": 1, "segmentation": [flat, second]},
            {"image_id": 1, "category_id": 1, "segmentation": crowd, "iscrowd": 1},
            {"image_id": 2, "category_id": 1, "segmentation": [], "bbox": [1, 2, 3, 4]},
        ],
        images=2,
    )
    first, other = (entry.read() for entry in coco.read(data, Path("a.json")))
    drawn = draw(first, SIZE, DEFAULT_CLASSES)
    assert np.array_equal(drawn.ranks > 0, canvas((4, 2, 12, 10), (14, 2, 18, 6), (20, 0, 24, 4)))
    assert other.left_out == ["'road': has no segmentation"]


def test_bdd_forms_and_what_is_no_area() -> None:
    by_type = bdd_label("drivable area", SQUARE, attributes={"areaType": "alternative"})
    lane = bdd_label("lane/crosswalk", SQUARE)
    line = {"category": "direct", "poly2d": [{"vertices": SQUARE, "types": "LLLL", "closed": False}]}
    box = {"category": "car", "box2d": {"x1": 0, "y1": 0, "x2": 9, "y2": 9}}
    found = one({"name": "a.jpg", "labels": [by_type, lane, line, box]})
    assert [r.label for r in found.regions] == ["alternative"]
    old = {"name": "a", "frames": [{"objects": [{"category": "area/drivable", "poly2d": [[*p, "L"] for p in SQUARE]}]}]}
    assert np.array_equal(label_of(old)["ego"] == 1, canvas((4, 2, 12, 10)))
    scalabel = {"frames": [{"name": "a.jpg", "labels": None}], "config": {}}
    assert one(scalabel).regions == []


def test_bezier_curves_are_followed() -> None:
    """A circle of four arcs, whose closest cubic curves are 0.03 % off."""
    radius, k = 100.0, 4 / 3 * (math.sqrt(2) - 1) * 100
    arcs = [(radius, 0), (radius, k), (k, radius), (0, radius), (-k, radius), (-radius, k), (-radius, 0)]
    arcs += [(-radius, -k), (-k, -radius), (0, -radius), (k, -radius), (radius, -k)]
    for types in ("LCCLCCLCCLCC", "LCCCCCCCCCCC"):  # with and without the ends of curves marked
        line = np.array(bdd100k.flatten(arcs, types))
        assert np.allclose(np.hypot(*line.T), radius, atol=0.05)
        assert shapely.Polygon(line).area == pytest.approx(math.pi * radius**2, rel=1e-3)
    assert len(bdd100k.flatten(SQUARE, "LLLL")) == 4


@given(st.lists(st.tuples(coordinates, coordinates), min_size=4, max_size=4))
@settings(deadline=None, max_examples=50)
def test_flattened_curve_stays_close(points: list[tuple[float, float]]) -> None:
    p0, p1, p2, p3 = (np.array(p) for p in points)
    line = shapely.LineString([p0, *bdd100k.bezier(p0, p1, p2, p3)])
    for t in np.linspace(0, 1, 101):
        a, b, c = p0 + t * (p1 - p0), p1 + t * (p2 - p1), p2 + t * (p3 - p2)  # de Casteljau
        d, e = a + t * (b - a), b + t * (c - b)
        assert line.distance(shapely.Point(d + t * (e - d))) <= bdd100k.FLATNESS_PX + 1e-9


@pytest.mark.parametrize("types", ["LLC", "LLCL", "LLX", "LL", "LCLL"])
def test_broken_curves(types: str) -> None:
    with pytest.raises(ValueError, match="types"):
        bdd100k.flatten(SQUARE[: 4 if len(types) == 4 else 3], types)


def test_cityscapes_later_objects_lie_on_top_and_deleted_ones_are_gone() -> None:
    data = {"imgWidth": 24, "imgHeight": 16, "objects": []}
    car, road = {"label": "car", "polygon": HOLE}, {"label": "road", "polygon": SQUARE}
    gone = {"label": "sky", "polygon": SQUARE, "deleted": 1}
    assert np.array_equal(road_of({**data, "objects": [road, car, gone]}), RING)
    assert np.array_equal(road_of({**data, "objects": [car, road]}), canvas((4, 2, 12, 10)))


# -- Classes -----------------------------------------------------------------------------------------------------------


def test_priority_is_the_order_of_the_mapping_and_not_of_the_file(tmp_path: Path) -> None:
    classes = read_classes(put(tmp_path / "m.yaml", INDICES))
    shapes = [shape("car", HOLE), shape("road", SQUARE), shape("Road", [[14, 2], [14, 6], [18, 6], [18, 2]])]
    for order in (shapes, shapes[::-1]):
        ranks = draw(one(labelme_file(*order)), SIZE, classes).ranks
        label = classes.table[ranks][..., 0]
        assert np.array_equal(label == 8, canvas((6, 4, 8, 6)))
        assert np.array_equal(label == 3, RING | canvas((14, 2, 18, 6)))  # both of the class, merged
        assert set(np.unique(label)) == {0, 3, 8}


def test_default_mapping_says_what_is_unknown() -> None:
    label = label_of(
        labelme_file(shape("ROAD", SQUARE), shape("ego_lane", HOLE), shape("void", [[0, 0], [0, 1], [1, 1], [1, 0]]))
    )
    assert np.array_equal(label["freespace"], np.where(canvas((0, 0, 1, 1)), 255, canvas((4, 2, 12, 10))))
    unknown = RING | canvas((0, 0, 1, 1))
    assert np.array_equal(label["ego"], np.where(unknown, 255, canvas((6, 4, 8, 6))))


def test_planes_that_are_not_named_are_unknown_and_a_star_takes_the_rest(tmp_path: Path) -> None:
    text = 'background: {freespace: 0}\nclasses:\n  "*": {ego: 0}\n  own lane: {freespace: 1, ego: 1}\n'
    classes = read_classes(put(tmp_path / "m.yaml", text))
    assert (classes.planes, classes.background) == (("freespace", "ego"), (0, 255))
    assert classes.values == {"*": (255, 0), "own lane": (1, 1)}
    assert [classes.rank(n) for n in ("Own-Lane", "sheep")] == [2, 1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("background: [", "broken YAML"),
        ("classes: {road: 1}", "two keys"),
        ("background: 0\nclasses: {}", "no class"),
        ("background: 0\nclasses: {road: 256, car: true}", r"classes.road: wanted .* 256; classes.car: wanted .* True"),
        ("background: 0\nclasses: {road: {ego: 1}}", "classes.road: wanted an index"),
        ("background: {}\nclasses: {road: 1}", "classes.road: wanted values for freespace and ego"),
        ("background: {ego: 2}\nclasses: {road: {}}", "background: a plane is 0, 1 or 255, not 2"),
        ("background: {sky: 1}\nclasses: {road: {}}", "background: wanted values"),
        ("background: 0\nclasses: {road: 1, Road: 2}", "classes.road: stands there 2 times"),
        ("background: 0\nclasses: {no: 1}", "put it in quotes"),
    ],
)
def test_mistakes_in_a_mapping(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_classes(put(tmp_path / "m.yaml", text))


# -- Round trips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", [labelme, supervisely])
@given(road=blobs, car=masks)
@settings(deadline=None, max_examples=25)
def test_label_to_json_to_label(writer: Any, road: Mask, car: Mask) -> None:
    ranks = np.zeros((16, 24), np.int32)
    ranks[road] = DEFAULT_CLASSES.rank("road")
    ranks[car & road] = DEFAULT_CLASSES.rank("ego")
    planes = DEFAULT_CLASSES.table[ranks].transpose(2, 0, 1)
    text = writer.write(Annotation("a.jpg", SIZE, regions_of(planes, DEFAULT_CLASSES)))
    again = one(json.loads(text), "a.jpg.json")
    assert (again.stem, again.size) == ("a", SIZE)
    drawn = draw(again, SIZE, DEFAULT_CLASSES)
    assert not drawn.remarks
    assert np.array_equal(DEFAULT_CLASSES.table[drawn.ranks].transpose(2, 0, 1), planes)


@pytest.mark.parametrize("writer", [labelme, supervisely])
@given(points=rings)
@settings(deadline=None, max_examples=25)
def test_json_to_json_keeps_the_outline(writer: Any, points: list[tuple[float, float]]) -> None:
    region = Region("road", [read_ring(points), read_ring(HOLE)])
    [again] = one(json.loads(writer.write(Annotation("a.jpg", SIZE, [region]))), "a.jpg.json").regions
    assert again.label == "road"
    for ring, other in zip(region.rings, again.rings, strict=True):
        assert np.allclose(ring, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("format_name", ["labelme", "supervisely"])
@pytest.mark.parametrize("mapping", ["planes", "indices"])
def test_files_there_and_back(tmp_path: Path, format_name: str, mapping: str) -> None:
    classes = read_classes(put(tmp_path / "m.yaml", INDICES)) if mapping == "indices" else None
    car = shape("car", [[7, 0], [7, 5], [20, 5], [20, 0]])
    put(tmp_path / "in/a.json", labelme_file(*FILES["labelme"][0]["shapes"], car))
    first = masks_from_annotations([tmp_path / "in"], tmp_path / "first", classes=classes)
    back = annotations_from_masks(tmp_path / "first", tmp_path / "json", classes=classes, format_name=format_name)
    second = masks_from_annotations([tmp_path / "json"], tmp_path / "second", classes=classes)
    assert [r.written for r in (first, back, second)] == [1, 1, 1]
    assert first.complete
    assert second.problems == []
    labels = sorted(p.relative_to(tmp_path / "first") for p in (tmp_path / "first").rglob("*.png"))
    assert len(labels) == (1 if classes else 2)
    for label in labels:
        before = read_png(tmp_path / "first" / label)
        assert before.any()
        assert np.array_equal(before, read_png(tmp_path / "second" / label))


def test_labels_of_lanes_have_a_way_back(tmp_path: Path) -> None:
    data, _ = FILES["bdd100k"]
    put(tmp_path / "in/a.json", data)
    image_file(tmp_path / "in/a.jpg")
    masks_from_annotations([tmp_path / "in"], tmp_path / "first")
    planes = {name: read_png(tmp_path / "first" / name / "a.png") for name in ("freespace", "ego")}
    assert np.array_equal(planes["ego"], RING)
    assert np.array_equal(planes["freespace"], np.where(RING, 1, 255))
    assert LANE_CLASSES.background == (255, 0)
    annotations_from_masks(tmp_path / "first", tmp_path / "json")
    masks_from_annotations([tmp_path / "json"], tmp_path / "second")
    for name, plane in planes.items():
        assert np.array_equal(plane, read_png(tmp_path / "second" / name / "a.png"))


def test_values_of_no_class_are_named(tmp_path: Path) -> None:
    classes = read_classes(put(tmp_path / "m.yaml", INDICES))
    label = np.zeros((4, 4), np.uint8)
    label[1, 2] = 77
    (tmp_path / "labels").mkdir()
    write_image(tmp_path / "labels/a.png", label)
    write_image(tmp_path / "labels/b.png", np.full((4, 4), 3, np.uint8))
    write_image(tmp_path / "labels/c.png", np.zeros((4, 4, 3), np.uint8))
    report = annotations_from_masks(tmp_path / "labels", tmp_path / "json", classes=classes)
    assert report.written == 1
    assert "(77,) at pixel (2, 1)" in report.problems[0].reason
    assert "is no label" in report.problems[1].reason


# -- Results as pre-labels ---------------------------------------------------------------------------------------------


def result_line(seq: int, source: str = "clip.mp4", valid: bool = True) -> str:
    base = make_output(np.zeros((16, 24, 3), np.uint8), seq).result
    exterior, hole = np.array(SQUARE) - 0.5, np.array(HOLE)[::-1] - 0.5
    polygons = [Polygon("freespace", True, 0.9, 60.0, exterior, [hole])] if valid else []
    fields = {**base.__dict__, "source": source, "polygons": polygons, "valid": valid}
    return Freespace(**fields).to_json()


@pytest.mark.parametrize("format_name", ["labelme", "supervisely"])
def test_results_become_annotations_and_labels_again(tmp_path: Path, format_name: str) -> None:
    lines = [
        result_line(0),
        result_line(7),
        result_line(8, valid=False),
        result_line(7),
        result_line(9)[:90],
        '{"schema": "x"}',
    ]
    results = put(tmp_path / "r.jsonl", "\n".join(lines) + "\n")
    report = annotations_from_polygons(results, tmp_path / "json", format_name=format_name)
    assert report.written == 2
    assert [p.file.rpartition(":")[2] for p in report.problems] == ["3", "4", "5", "6"]
    for problem, reason in zip(report.problems, ("no valid", "another file", "broken JSON", "schema"), strict=True):
        assert reason in problem.reason
    suffix = ".json" if format_name == "labelme" else ".jpg.json"
    files = sorted(p.name for p in (tmp_path / "json").iterdir())
    assert files[:2] == [f"000000{suffix}", f"000007{suffix}"]
    again = masks_from_annotations([tmp_path / "json"], tmp_path / "labels")
    assert (again.written, again.problems) == (2, [])
    assert np.array_equal(read_png(tmp_path / "labels/freespace/000007.png"), RING)
    assert np.array_equal(read_png(tmp_path / "labels/ego/000007.png"), np.where(RING, 255, 0))


def test_results_of_images_are_called_as_the_images(tmp_path: Path) -> None:
    for name in ("2.jpg", "10.jpg"):
        image_file(tmp_path / "drive" / name)
    source = str(tmp_path / "drive")
    results = put(tmp_path / "r.jsonl", result_line(0, source) + "\n" + result_line(1, source) + "\n")
    annotations_from_polygons(results, tmp_path / "json")
    data = json.loads((tmp_path / "json/10.json").read_text())
    assert (tmp_path / "json" / data["imagePath"]).resolve() == tmp_path / "drive/10.jpg"
    assert sorted(p.name for p in (tmp_path / "json").iterdir()) == ["10.json", "2.json"]
    first = put(tmp_path / "first.jsonl", result_line(0, source))
    annotations_from_polygons(first, tmp_path / "first")
    assert [p.name for p in (tmp_path / "first").iterdir()] == ["2.json"]
    single = put(tmp_path / "s.jsonl", result_line(0, str(tmp_path / "drive/2.jpg")))
    annotations_from_polygons(single, tmp_path / "single", format_name="supervisely")
    assert sorted(p.name for p in (tmp_path / "single").iterdir()) == ["2.jpg.json", "meta.json"]


def test_frames_of_a_folder_that_has_moved_and_of_a_video(tmp_path: Path) -> None:
    """A folder's images are numbered by their place, whatever numbers they bear; a video's by their names."""
    for number in (1, 2, 3):
        image_file(tmp_path / f"now/drive/{number:06d}.png")
    image_file(tmp_path / "now/drive/deeper/000000.png")

    def images_of(source: str, folder: Path | None, count: int = 1) -> list[str]:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        results = put(tmp_path / "r.jsonl", "".join(result_line(seq, source) + "\n" for seq in range(count)))
        assert annotations_from_polygons(results, out, images=folder).written == count
        return sorted(json.loads(p.read_text())["imagePath"] for p in out.iterdir())

    drive = tmp_path / "now/drive"
    assert images_of("old/drive", drive, 2) == ["../now/drive/000001.png", "../now/drive/000002.png"]
    assert images_of("clip.mp4", drive, 2) == ["../now/drive/000001.png", "000000.jpg"]
    assert images_of("clip.mp4", None) == ["000000.jpg"]
    assert images_of(str(drive / "000003.png"), None) == ["../now/drive/000003.png"]


def test_results_for_images_of_another_size_are_refused(tmp_path: Path) -> None:
    image = image_file(tmp_path / "drive/a.png", (30, 16))
    results = put(tmp_path / "r.jsonl", result_line(0, str(image.parent)))
    report = annotations_from_polygons(results, tmp_path / "json")
    assert reasons(report) == ["r.jsonl:1: is for 24x16 pixels, the image has 30x16"]


# -- What may go wrong -------------------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[Any, str]] = {
    "truncated": ('{"shapes": [', "broken JSON"),
    "empty": ("", "broken JSON"),
    "other": ({"hello": 1}, "no known format"),
    "no-points": (labelme_file({"label": "road"}), "the key 'points' is missing"),
    "text-points": (labelme_file(shape("road", "abc")), "could not convert"),
    "bad-number": (labelme_file(shape("road", [[1, 2], [3, None], [4, 4]])), ""),
    "bad-shapes": (labelme_file(), ""),
    "bad-size": (labelme_file(shape("road", SQUARE), size=(0, 16)), "size is given as 0x16"),
    "huge-size": (labelme_file(shape("road", SQUARE), size=(10**6, 10**6)), "size is given"),
    "wrong-size": (
        labelme_file(shape("road", SQUARE), image="w.jpg", size=(99, 16)),
        "is for 99x16 pixels, the image has 24x16",
    ),
    "no-image": ({"name": "nowhere.jpg", "labels": []}, "its image was not found; give --images"),
    "no-area": (labelme_file(shape("road", SQUARE), shape("road", SQUARE[:2])), "2 points has no area"),
    "bad-image": (labelme_file(shape("road", SQUARE), image="cut.jpg"), "cannot be decoded"),
    "bad-bitmap": (supervisely_file({"classTitle": "road", "bitmap": {"origin": [0, 0], "data": "AAAA"}}), "decompressing"),
    "bad-png": (
        supervisely_file({"classTitle": "road", "bitmap": {"origin": [0, 0], "data": encoded(b"x")}}),
        "cannot be decoded",
    ),
    "no-category": (coco_file([{"image_id": 1, "category_id": 9, "segmentation": [[1, 2]]}]), "category 9"),
    "no-coco-image": (coco_file([{"image_id": 5, "category_id": 1}]), "image 5"),
}
BROKEN["bad-shapes"][0]["shapes"] = [3]


@pytest.mark.parametrize("name", BROKEN)
def test_broken_input_is_named_and_the_rest_is_done(tmp_path: Path, name: str) -> None:
    data, reason = BROKEN[name]
    image_file(tmp_path / "in/w.jpg")
    (tmp_path / "in/cut.jpg").write_bytes(b"\xff\xd8\xff")
    put(tmp_path / f"in/{name}.json", data)
    put(tmp_path / "in/good.json", labelme_file(shape("road", SQUARE), image="good.jpg"))
    report = masks_from_annotations([tmp_path / "in"], tmp_path / "labels")
    assert (report.written, report.complete) == (1, False)
    [problem] = report.problems
    assert problem.file.startswith(str(tmp_path / f"in/{name}.json"))
    assert reason in problem.reason
    assert "\n" not in problem.reason
    assert [p.name for p in (tmp_path / "labels/freespace").iterdir()] == ["good.png"]


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value within ``data``."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path] * bool(path) + [p for key, value in inner for p in places(value, (*path, key))]


JUNK = (None, -1, 1e300, "", "x/../", [], {}, [[1]], [None], {"size": 1}, True, "\0", "n" * 300, "n" * 5000)


@pytest.mark.parametrize("name", FILES)
def test_broken_values_raise_nothing_unexpected(name: str) -> None:
    """Each value of a good file in turn replaced by each piece of junk."""
    data, path = FILES[name]
    for way in places(data):
        for junk in JUNK:
            broken = json.loads(json.dumps(data))
            target = broken
            for parent in way[:-1]:
                target = target[parent]
            target[way[-1]] = junk
            with contextlib.suppress(*MALFORMED):
                for entry in READERS[name].read(broken, Path(path)):
                    annotation = entry.read()
                    draw(annotation, size_of(annotation, np.zeros((16, 24, 3), np.uint8)), DEFAULT_CLASSES)


@pytest.mark.parametrize("key", ["imagePath", "seq", "source", "size", "polygons"])
def test_broken_values_do_not_end_the_run(tmp_path: Path, key: str) -> None:
    for number, junk in enumerate(JUNK):
        folder = tmp_path / str(number)
        if key == "imagePath":
            put(folder / "in/bad.json", {**FILES["labelme"][0], key: junk})
            put(folder / "in/good.json", {**FILES["labelme"][0], key: "good.jpg"})
            report = masks_from_annotations([folder / "in"], folder / "out")
            assert (folder / "out/freespace/good.png").exists()
        else:
            bad = json.dumps({**json.loads(result_line(0)), key: junk})
            results = put(folder / "r.jsonl", f"{bad}\n{result_line(1)}\n")
            report = annotations_from_polygons(results, folder / "out")
            assert (folder / "out/000001.json").exists(), (junk, report.problems)
        assert report.written + sum(problem.skipped for problem in report.problems) == 2
        assert not [p for p in tmp_path.iterdir() if not p.is_dir() or not p.name.isdecimal()]  # nothing went elsewhere


def test_one_broken_image_of_many_in_a_file(tmp_path: Path) -> None:
    flat = [v for p in SQUARE for v in p]
    objects = [
        {"image_id": 1, "category_id": 1, "segmentation": [flat]},
        {"image_id": 2, "category_id": 1, "segmentation": [[1, 2, 3]]},
    ]
    put(tmp_path / "all.json", coco_file(objects, images=3))
    report = masks_from_annotations([tmp_path / "all.json"], tmp_path / "labels")
    assert report.written == 2
    assert [(p.file.endswith("train/1.jpg"), p.skipped) for p in report.problems] == [(True, True), (False, False)]
    assert "no objects" in report.problems[1].reason
    assert not read_png(tmp_path / "labels/freespace/2.png").any()


def test_remarks_do_not_make_it_incomplete_but_skipped_objects_do(tmp_path: Path) -> None:
    bow = shape("road", [[2, 2], [10, 10], [10, 2], [2, 10]])
    put(tmp_path / "a/a.json", labelme_file(bow))
    put(tmp_path / "a/b.json", labelme_file(image="b.jpg"))
    repaired = masks_from_annotations([tmp_path / "a"], tmp_path / "first")
    assert repaired.complete
    assert [r.split(":")[0] for r in reasons(repaired)] == ["a.json", "b.json"]
    put(tmp_path / "b/a.json", labelme_file(shape("road", SQUARE[:2]), shape("road", SQUARE)))
    broken = masks_from_annotations([tmp_path / "b"], tmp_path / "second")
    assert (broken.written, broken.complete, [p.skipped for p in broken.problems]) == (0, False, [True])
    assert not (tmp_path / "second").exists()


def test_what_is_no_area_by_nature_is_a_note(tmp_path: Path) -> None:
    line = shape("Solid Line", SQUARE, shape_type="linestrip")
    put(tmp_path / "in/a.json", labelme_file(line, shape("road", SQUARE)))
    report = masks_from_annotations([tmp_path / "in"], tmp_path / "labels")
    assert (report.written, report.complete, reasons(report)) == (1, True, ["a.json: 'Solid Line': a linestrip has no area"])


def planes_of(folder: Path, place: str) -> NDArray[np.uint8]:
    return np.stack([read_png(folder / plane / f"{place}.png") for plane in DEFAULT_CLASSES.planes])


@pytest.mark.parametrize("order", [1, -1])
def test_objects_of_unknown_classes_are_unknown_pixels(tmp_path: Path, order: int) -> None:
    """Whatever lies below them, and off the road, too."""
    shapes = [shape("road", SQUARE), shape("sheep", HOLE), shape("sheep", [[0, 0], [0, 1], [1, 1], [1, 0]])]
    put(tmp_path / "a/a.json", labelme_file(*shapes[::order]))
    report = masks_from_annotations([tmp_path / "a"], tmp_path / "labels")
    assert (report.written, report.complete, report.unmapped) == (1, True, Counter(sheep=2))
    sheep = canvas((6, 4, 8, 6), (0, 0, 1, 1))
    freespace, ego = planes_of(tmp_path / "labels", "a")
    assert np.array_equal(freespace, np.where(sheep, 255, RING))
    assert np.array_equal(ego, np.where(sheep | RING, 255, 0))


def test_layered_objects_hide_unknown_ones(tmp_path: Path) -> None:
    objects = [{"label": "sheep", "polygon": SQUARE}, {"label": "road", "polygon": HOLE}]
    data = {"imgWidth": 24, "imgHeight": 16, "objects": objects}
    drawn = draw(one(data), SIZE, DEFAULT_CLASSES)
    expected = np.where(RING, 255, canvas((6, 4, 8, 6)))
    assert np.array_equal(DEFAULT_CLASSES.table[drawn.ranks][..., 0], expected)


def test_unknown_classes_as_indices_and_the_way_back(tmp_path: Path) -> None:
    classes = read_classes(put(tmp_path / "m.yaml", INDICES))
    data = labelme_file(shape("road", SQUARE), shape("sheep", HOLE))
    put(tmp_path / "in/a.json", data)
    assert masks_from_annotations([tmp_path / "in"], tmp_path / "first", classes=classes).complete
    label = read_png(tmp_path / "first/a.png")
    assert np.array_equal(label, np.select([RING, canvas((6, 4, 8, 6))], [3, 255], 0))
    annotations_from_masks(tmp_path / "first", tmp_path / "json", classes=classes)
    again = masks_from_annotations([tmp_path / "json"], tmp_path / "second", classes=classes)
    assert again.unmapped == Counter(unknown=1)
    assert np.array_equal(read_png(tmp_path / "second/a.png"), label)

    star = read_classes(put(tmp_path / "s.yaml", INDICES.replace("{", '{"*": 7, ')))
    drawn = draw(one(data), SIZE, star)
    assert not drawn.unmapped
    assert np.array_equal(star.table[drawn.ranks][..., 0] == 3, canvas((4, 2, 12, 10)))  # all others come first here

    full = read_classes(put(tmp_path / "f.yaml", "background: 0\nclasses: {road: 255}\n"))
    with pytest.raises(ValueError, match="uses 255, which would say so, for 'road'"):
        draw(one(data), SIZE, full)
    assert np.array_equal(draw(one(labelme_file(shape("road", SQUARE))), SIZE, full).ranks, canvas((4, 2, 12, 10)))


def test_line_for_an_unknown_class_is_yaml(tmp_path: Path) -> None:
    assert DEFAULT_CLASSES.line_for("sheep") == "sheep: {freespace: 0, ego: 0}"
    for name in ("no", "a: b", "*x", "n" * 300, "Straße", "1e3", "two\nlines", "solid line"):
        text = f"background: {{freespace: 0}}\nclasses:\n  {DEFAULT_CLASSES.line_for(name)}\n"
        assert read_classes(put(tmp_path / "m.yaml", text)).rank(name) == 1
    assert read_classes(put(tmp_path / "m.yaml", "background: 0\nclasses: {road: 1, car: 3}")).line_for("x") == "x: 2"


def test_an_object_with_no_more_than_a_box_is_unknown_within() -> None:
    flat = [v for point in HOLE for v in point]
    road, car = ({"image_id": 1, "category_id": i, "segmentation": [], "bbox": [4, 2, 8, 8]} for i in (1, 2))
    known = {"image_id": 1, "category_id": 2, "segmentation": [flat]}
    assert np.array_equal(label_of(coco_file([known, road]))["freespace"], np.where(RING, 255, 0))
    assert not label_of(coco_file([car]))["freespace"].any()  # no road, wherever it is
    box, hole = Region("ego", [read_ring(SQUARE)], unsure=True), Region("road", [read_ring(HOLE)])
    ranks = draw(Annotation("a", SIZE, [hole, box]), SIZE, DEFAULT_CLASSES).ranks
    assert np.array_equal(DEFAULT_CLASSES.table[ranks][..., 0], np.select([RING, canvas((6, 4, 8, 6))], [255, 1], 0))
    with pytest.raises(ValueError, match="neither segmentation nor bbox"):
        one(coco_file([{"image_id": 1, "category_id": 1}]))


def test_label_without_its_image_is_noted_where_images_are_given(tmp_path: Path) -> None:
    put(tmp_path / "in/a.json", labelme_file(shape("road", SQUARE)))
    image_file(tmp_path / "img/b.jpg")
    report = masks_from_annotations([tmp_path / "in"], tmp_path / "labels", images=tmp_path / "img")
    assert (report.written, report.complete, reasons(report)) == (1, True, [f"a.json: its image is not in {tmp_path / 'img'}"])


def test_two_files_about_one_image(tmp_path: Path) -> None:
    put(tmp_path / "in/a.json", labelme_file(shape("road", SQUARE)))
    put(tmp_path / "in/b.json", labelme_file(shape("road", HOLE)))
    report = masks_from_annotations([tmp_path / "in"], tmp_path / "labels")
    assert report.written == 1
    assert "another file" in report.problems[0].reason
    assert np.array_equal(read_png(tmp_path / "labels/freespace/a.png") == 1, canvas((4, 2, 12, 10)))


# -- Sub-folders -------------------------------------------------------------------------------------------------------


def two_drives(folder: Path, image: str = "0000.png") -> None:
    """The same name in two drives, and other contents."""
    for drive, points in (("a", SQUARE), ("b", HOLE)):
        put(folder / drive / "0000.json", labelme_file(shape("road", points), image=image.format(drive)))


def places_of(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("given", ["images", "json", "beside", "files"])
def test_labels_lie_as_their_images_and_training_finds_them(tmp_path: Path, given: str) -> None:
    """Whether the JSON files lie among the images, elsewhere in the same folders, or are given one by one."""
    mine = tmp_path / "data/mine"
    for drive in "ab":
        image_file(mine / f"images/{drive}/0000.png")
    json_folder = mine / "images" if given == "images" else tmp_path / "json"
    two_drives(json_folder)
    inputs = {
        "images": [mine],  # above the images
        "json": [tmp_path],
        "beside": [json_folder],
        "files": sorted(json_folder.rglob("*.json")),
    }[given]
    report = masks_from_annotations(
        inputs, mine / "labels", images=mine / "images" if given == "json" else None, overlays=tmp_path / "view"
    )
    assert (report.written, report.complete, report.problems) == (2, True, [])
    assert places_of(mine / "labels") == [f"{plane}/{drive}/0000.png" for plane in ("ego", "freespace") for drive in "ab"]
    assert np.array_equal(planes_of(mine / "labels", "a/0000")[0], canvas((4, 2, 12, 10)))
    assert np.array_equal(planes_of(mine / "labels", "b/0000")[0], canvas((6, 4, 8, 6)))
    assert places_of(tmp_path / "view") == ["a/0000.jpg", "b/0000.jpg", "contact-sheet.png"]
    found = [(s.sequence, s.label) for s in find_samples(tmp_path / "data")]
    assert found == [(drive, mine / f"labels/freespace/{drive}/0000.png") for drive in "ab"]


def test_without_images_labels_lie_as_the_json_files_and_back(tmp_path: Path) -> None:
    two_drives(tmp_path / "in")
    masks_from_annotations([tmp_path / "in"], tmp_path / "labels")
    back = annotations_from_masks(tmp_path / "labels", tmp_path / "json")
    assert (back.written, back.problems) == (2, [])
    assert places_of(tmp_path / "json") == ["a/0000.json", "b/0000.json"]
    masks_from_annotations([tmp_path / "json"], tmp_path / "again")
    for drive in "ab":
        assert np.array_equal(planes_of(tmp_path / "labels", f"{drive}/0000"), planes_of(tmp_path / "again", f"{drive}/0000"))
    with pytest.raises(ValueError, match="--overwrite"):
        masks_from_annotations([tmp_path / "in"], tmp_path / "labels")
    masks_from_annotations(sorted((tmp_path / "in").rglob("*.json")), tmp_path / "single")
    assert places_of(tmp_path / "single") == places_of(tmp_path / "labels")


@pytest.mark.parametrize("name", ["img", "images"])
def test_annotations_in_sub_folders_lead_to_their_images(tmp_path: Path, name: str) -> None:
    """Given, or called ``images`` beside the labels."""
    folder = tmp_path / name
    two_drives(tmp_path / "in")
    for drive in "ab":
        image_file(folder / f"{drive}/0000.png")
    masks_from_annotations([tmp_path / "in"], tmp_path / "labels")
    annotations_from_masks(tmp_path / "labels", tmp_path / "json", images=folder if folder.name == "img" else None)
    for drive in "ab":
        path = tmp_path / f"json/{drive}/0000.json"
        assert (path.parent / json.loads(path.read_text())["imagePath"]).resolve() == folder / f"{drive}/0000.png"


def test_the_path_to_the_image_is_followed(tmp_path: Path) -> None:
    """Out of the folders that are searched, past an image of the same name."""
    image_file(tmp_path / "data/mine/images/x/a.png")
    image_file(tmp_path / "in/a.png", (7, 7))
    for path in ("../data/mine/images/x/a.png", "..\\data\\mine\\images\\x\\a.png"):
        put(tmp_path / "in/a.json", labelme_file(shape("road", SQUARE), image=path))
        report = masks_from_annotations(
            [tmp_path / "in"], tmp_path / "data/mine/labels", overlays=tmp_path / "view", overwrite=True
        )
        assert (report.complete, report.problems) == (True, [])
        assert (tmp_path / "data/mine/labels/freespace/x/a.png").exists()
    image_file(tmp_path / "far/b.png")
    put(tmp_path / "other/b.json", labelme_file(shape("road", SQUARE), image="../far/b.png"))
    far = masks_from_annotations([tmp_path / "other"], tmp_path / "labels", overlays=tmp_path / "far-view")
    assert (far.complete, places_of(tmp_path / "labels/freespace")) == (True, ["b.png"])


def test_coco_names_with_folders_find_their_images(tmp_path: Path) -> None:
    data = coco_file([{"image_id": 2, "category_id": 1, "segmentation": [[v for p in SQUARE for v in p]]}], images=2)
    data["images"][0]["file_name"], data["images"][1]["file_name"] = "a/0000.png", "b/0000.png"
    put(tmp_path / "in/all.json", data)
    for drive in "ab":
        image_file(tmp_path / f"img/{drive}/0000.png")
    masks_from_annotations([tmp_path / "in"], tmp_path / "labels", images=tmp_path / "img")
    assert not planes_of(tmp_path / "labels", "a/0000").any()
    assert np.array_equal(planes_of(tmp_path / "labels", "b/0000")[0], canvas((4, 2, 12, 10)))


def test_supervisely_folder_of_annotations_is_no_part_of_the_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        put(tmp_path / f"in/{name}/ann/a.jpg.json", supervisely_file(sly_polygon("road", SQUARE)))
    masks_from_annotations([tmp_path / "in"], tmp_path / "labels")
    assert places_of(tmp_path / "labels/ego") == ["one/a.png", "two/a.png"]


def test_an_image_that_may_be_another_ones_is_refused_or_noted(tmp_path: Path) -> None:
    put(tmp_path / "in/c/0000.json", labelme_file(shape("road", SQUARE), image="0000.png"))
    image_file(tmp_path / "img/a/0000.png")
    guessed = masks_from_annotations([tmp_path / "in"], tmp_path / "first", images=tmp_path / "img")
    assert (guessed.written, guessed.complete) == (1, True)
    assert reasons(guessed) == [f"0000.json: is taken to be about the image of its name in {tmp_path / 'img/a'}"]
    image_file(tmp_path / "img/b/0000.png")
    open_question = masks_from_annotations([tmp_path / "in"], tmp_path / "second", images=tmp_path / "img")
    assert (open_question.written, open_question.complete) == (0, False)
    assert "may be about" in open_question.problems[0].reason


def test_a_label_never_replaces_an_image(tmp_path: Path) -> None:
    classes = read_classes(put(tmp_path / "m.yaml", INDICES))
    image = image_file(tmp_path / "in/x/a.png")
    put(tmp_path / "json/in/x/a.json", labelme_file(shape("road", SQUARE), image="a.png"))
    before = image.read_bytes()
    report = masks_from_annotations([tmp_path / "json", tmp_path / "in/x"], tmp_path, classes=classes, overwrite=True)
    assert (report.written, image.read_bytes()) == (0, before)
    assert "is an image" in report.problems[0].reason


def test_the_image_closest_by_is_taken(tmp_path: Path) -> None:
    near, far = image_file(tmp_path / "x/img/a.jpg"), image_file(tmp_path / "y/img/a.jpg")
    images = Images([tmp_path])
    assert images.find("a.jpg", tmp_path / "x/ann/a.jpg.json") == near
    assert images.find("elsewhere/a.png", tmp_path / "y/ann/a.jpg.json") == far
    assert images.find("b.jpg", near) is None


def test_outputs_are_refused_without_overwrite(tmp_path: Path) -> None:
    put(tmp_path / "in/a.json", labelme_file(shape("road", SQUARE)))
    old = image_file(tmp_path / "labels/ego/a.png")
    before = old.read_bytes()
    with pytest.raises(ValueError, match="--overwrite"):
        masks_from_annotations([tmp_path / "in"], tmp_path / "labels")
    assert old.read_bytes() == before
    assert not (tmp_path / "labels/freespace").exists()
    assert masks_from_annotations([tmp_path / "in"], tmp_path / "labels", overwrite=True).complete
    assert read_png(old).ndim == 2


def test_inputs_are_never_the_output(tmp_path: Path) -> None:
    classes = read_classes(put(tmp_path / "m.yaml", INDICES))
    put(tmp_path / "in/a.json", labelme_file(shape("road", SQUARE), image="a.png"))
    image = image_file(tmp_path / "in/a.png")
    before = image.read_bytes()
    for options in ({"out": tmp_path / "in"}, {"out": tmp_path / "o", "overlays": tmp_path / "in"}):
        with pytest.raises(ValueError, match="choose another folder"):
            masks_from_annotations([tmp_path / "in"], classes=classes, overwrite=True, **options)
    with pytest.raises(ValueError, match="choose another folder"):
        masks_from_annotations([tmp_path / "in"], tmp_path / "o", classes=classes, overlays=tmp_path / "o")
    assert image.read_bytes() == before


def test_labels_of_an_earlier_run_are_no_images(tmp_path: Path) -> None:
    put(tmp_path / "in/a.json", {"name": "a", "labels": [bdd_label("direct", SQUARE)]})
    put(tmp_path / "in/b.json", labelme_file(shape("road", SQUARE), image="b.jpg"))
    image_file(tmp_path / "in/a.jpg")
    for _ in range(2):
        report = masks_from_annotations(
            [tmp_path / "in"], tmp_path / "in/labels", overwrite=True, overlays=tmp_path / "in/view"
        )
        assert (report.written, reasons(report)) == (2, [])
        assert report.without_overlay == 1


# -- Overlays ----------------------------------------------------------------------------------------------------------


def test_overlay_is_half_label_half_image() -> None:
    image = np.random.default_rng(1).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    drawn = draw(one(labelme_file(shape("road", SQUARE), shape("car", HOLE))), SIZE, DEFAULT_CLASSES)
    picture = overlay(image, drawn.ranks, DEFAULT_CLASSES)
    assert np.array_equal(picture[~RING], image[~RING])
    colour = palette(DEFAULT_CLASSES)[DEFAULT_CLASSES.rank("road")]
    assert np.abs(picture[RING] - (image[RING] / 2 + colour / 2)).max() <= 0.5


def test_classes_differ_in_colour_where_they_differ_in_value() -> None:
    colours = palette(DEFAULT_CLASSES)
    by_name = {name: tuple(colours[DEFAULT_CLASSES.rank(name)]) for name in ("road", "street", "ego", "car", "void")}
    assert by_name["road"] == by_name["street"]
    assert by_name["car"] == (0, 0, 0)
    assert len(set(by_name.values())) == 4


def test_overlays_and_contact_sheet_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / f"in/{name}.json", labelme_file(shape("road", SQUARE), image=f"{name}.jpg"))
    image_file(tmp_path / "in/a.jpg")
    report = masks_from_annotations([tmp_path / "in"], tmp_path / "labels", overlays=tmp_path / "view")
    assert (report.written, report.without_overlay, report.complete, report.problems) == (2, 1, False, [])
    assert sorted(p.name for p in (tmp_path / "view").iterdir()) == ["a.jpg", "contact-sheet.png"]
    assert read_png(tmp_path / "view/contact-sheet.png").shape == (360, 1920, 3)


def test_contact_sheet_spreads_over_all() -> None:
    sheet = ContactSheet()
    assert sheet.page() is None
    for i in range(200):
        sheet.add(np.full((36, 64, 3), i, np.uint8))
    page = sheet.page()
    assert page is not None
    shown = page[180::360, 320::640, 0].ravel().tolist()
    assert len(shown) == 12
    assert shown == sorted(set(shown))
    assert shown[0] == 0
    assert shown[-1] >= 180


# -- The command -------------------------------------------------------------------------------------------------------

Here = Callable[..., "tuple[int, str, str]"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Here:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["freespace", "masks", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            command_line.main()
        out, err = capfd.readouterr()
        return int(caught.value.code or 0), out, err

    return run


def test_command_there_and_back(tmp_path: Path, here: Here) -> None:
    put(tmp_path / "r.jsonl", result_line(3))
    assert here("--from-polygons", "r.jsonl", "--out", "json") == (0, "wrote 1 annotation in json\n", "")
    assert here("json", "--out", "labels") == (0, "wrote 1 label in labels\n", "")
    assert here("--from-masks", "labels", "--out", "again", "--format", "supervisely")[0] == 0
    assert here("again", "--out", "labels2", "--format", "supervisely")[0] == 0
    assert np.array_equal(read_png(tmp_path / "labels2/freespace/000003.png"), RING)


def test_command_lists_what_it_skipped(tmp_path: Path, here: Here) -> None:
    put(tmp_path / "in/a.json", labelme_file(shape("sheep", SQUARE), shape("road", SQUARE)))
    put(tmp_path / "in/b.json", "{")
    code, out, err = here("in", "--out", "labels")
    assert (code, out) == (1, "wrote 1 label in labels\n")
    assert err.splitlines()[0].startswith("skipped: in/b.json: broken JSON")
    assert err.splitlines()[1] == (
        "note: class 'sheep' is not in the mapping: 1 object, such as in in/a.json, left as unknown (255); "
        "say what it is in a --mapping file, beside all other classes:  sheep: {freespace: 0, ego: 0}"
    )
    (tmp_path / "in/b.json").unlink()
    assert here("in", "--out", "labels", "--overwrite")[0] == 0


def test_command_says_once_that_there_are_no_overlays(tmp_path: Path, here: Here) -> None:
    for name in "abc":
        put(tmp_path / f"in/{name}.json", labelme_file(shape("road", SQUARE), image=f"../far/{name}.png"))
    for out, overlays in (("x", ()), ("y", ("--overlay", "view"))):
        code, said, err = here("in", "--out", out, *overlays)
        assert (code, said) == (1 if overlays else 0, f"wrote 3 labels in {out}\n")
    assert err == "note: no overlays for 3 labels: their images were not found; give --images FOLDER\n"


def test_command_names_five_files_of_one_problem(tmp_path: Path, here: Here) -> None:
    for number in range(19):
        put(tmp_path / f"in/{number}.json", labelme_file(shape("road", SQUARE), image=f"{number}.png"))
    code, said, err = here("in", "--out", "x", "--format", "coco")
    assert (code, said) == (1, "wrote 0 labels in x\n")
    assert err == (
        "skipped: in/0.json, in/1.json, in/2.json, in/3.json, in/4.json and 14 more: "
        "looks like labelme, not like coco; give --format labelme, or none\n"
    )


@pytest.mark.parametrize("text", ['{\n "a": 1\n}\n' * 50, '{"schema": "other"}\n', "[1, 2]\n", "7\n", "\n", "\xff\n"])
def test_command_stops_where_there_are_no_results(tmp_path: Path, here: Here, text: str) -> None:
    put(tmp_path / "before.json", text)
    code, said, err = here("--from-polygons", "before.json", "--out", "json")
    assert (code, said, len(err.splitlines())) == (2, "", 1)
    assert "before.json:1 is no result of 'freespace run'" in err
    assert not (tmp_path / "json").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "give annotations"),
        (["in", "--from-masks", "in"], "give annotations"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["empty"], "no .json in empty"),
        (["in", "--format", "xml"], "no format 'xml'"),
        (["--from-polygons", "in/a.json", "--format", "coco"], "no format 'coco'"),
        (["--from-polygons", "in/a.json", "--overlay", "v"], "--overlay goes with"),
        (["--from-polygons", "in/a.json", "--mapping", "m.yaml"], "--mapping does not go"),
        (["--from-masks", "empty"], "no .png in"),
        (["in", "--mapping", "in/a.json"], "two keys"),
        (["in", "--out", "in/a.json"], "is a file"),
        (["in", "--overwrite", "--images", "nowhere"], "nowhere: no such"),
    ],
)
def test_bad_usage(tmp_path: Path, here: Here, arguments: list[str], reason: str) -> None:
    put(tmp_path / "in/a.json", labelme_file(shape("road", SQUARE)))
    (tmp_path / "empty").mkdir()
    code, _, err = here(*arguments, *([] if "--out" in arguments else ["--out", "o"]))
    assert code == 2
    assert reason in err
    assert "Traceback" not in err
    assert not (tmp_path / "o").exists()


def test_nothing_heavy_is_loaded(tmp_path: Path, here: Here) -> None:
    import subprocess

    put(tmp_path / "a.json", labelme_file(shape("road", SQUARE)))
    code = (
        "import sys; sys.argv = ['freespace', 'masks', 'a.json', '--out', 'o']\n"
        "from perception.cli import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'openvino', 'av'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_open_annotations_takes_the_format_that_is_asked_for(tmp_path: Path) -> None:
    path = put(tmp_path / "a.json", FILES["supervisely"][0])
    assert open_annotations(path)[0] == "supervisely"
    with pytest.raises(ValueError, match="looks like supervisely, not like labelme"):
        open_annotations(path, "labelme")
    with pytest.raises(KeyError, match="shapes"):
        open_annotations(put(tmp_path / "b.json", {}), "labelme")[1][0].read()
