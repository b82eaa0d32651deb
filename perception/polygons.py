"""From a plane of scores to valid polygons with holes, and back to a mask.

The scores are samples at pixel centres of a continuous field, and a region is where that field exceeds the threshold. Its
outline runs *between* pixels, where the interpolated score crosses the threshold, so upscaling to the source size loses
nothing. Integer scores never equal a half-integer threshold, so no outline touches itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from engine.preprocess import Resampling
from perception.config import PolygonConfig
from perception.freespace import Polygon, Ring

U8 = NDArray[np.uint8]
FILL_SHIFT = 6  # cv2.fillPoly takes 1/64 pixels

# The part of the image the vehicle stands in front of, as fractions (left, top, right, bottom).
EGO_SEED = (0.38, 0.72, 0.62, 1.0)


def extract(scores: U8, resampling: Resampling, plane: str, config: PolygonConfig) -> list[Polygon]:
    """Polygons of one plane in source pixels, largest first.

    Args:
        scores: uint8 ``(h, w)``, ``round(255 * p)``.
        resampling: how the frame was brought to ``(h, w)``.
        plane: name written into the polygons.
        config: threshold, tolerance and the smallest region and hole.

    Every polygon is valid and simple, and no two overlap.
    """
    shapes = trace(scores, resampling, config)
    if not len(shapes):
        return []
    shapes = simplify(shapes, config.tolerance_px)
    areas = shapely.area(shapes)
    order = np.argsort(-areas, kind="stable")
    ego = ego_index(shapes, resampling.frame_size)
    return [
        Polygon(
            plane,
            bool(i == ego),
            confidence(scores, resampling, shapes[i]),
            float(areas[i]),
            ring(shapes[i].exterior, clockwise=False),
            [ring(r, clockwise=True) for r in shapes[i].interiors],
        )
        for i in order
    ]


def trace(scores: U8, resampling: Resampling, config: PolygonConfig) -> NDArray[np.object_]:
    """The exact regions as shapely polygons in source pixels, without those too small; not simplified.

    Borders are followed pixel by pixel (Suzuki & Abe 1985; OpenCV's implementation), then every step between a pixel inside
    and its neighbour outside becomes the point where the score crosses the threshold. That is marching squares (Lorensen &
    Cline 1987) visiting only the cells on the outline; where two regions meet at a corner they are joined.
    """
    level = np.floor(255 * config.threshold) + 0.5
    left, top, width, height = resampling.content
    content = scores[top : top + height, left : left + width]
    # Repeating the border pixels lets the outline run on to the image's edge, half a pixel outside the last centre; the
    # zeros around that close it there.
    padded = cv2.copyMakeBorder(content, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    padded = cv2.copyMakeBorder(padded, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    borders, tree = cv2.findContours((padded > level).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    field = padded.astype(np.float32)
    lower, upper = np.array([-0.5, -0.5]), np.array([width - 0.5, height - 0.5])
    corner = np.array([left, top], np.float64)
    frame_area = resampling.frame_size[0] * resampling.frame_size[1]
    scale = frame_area / (width * height)

    def outline(index: int, smallest: float) -> Ring | None:
        """Ring ``index`` in source pixels; None where its area is below ``smallest`` square source pixels."""
        border = np.asarray(borders[index][:, 0, :], np.int32)
        most = cv2.contourArea(borders[index]) + len(border) + 4  # the ring lies less than a pixel off its border
        if most * scale < smallest or len(border) < 2:
            return None
        points = np.clip(crossings(border, field, level) - 2, lower, upper)
        ring = resampling.frame_from_input(points + corner)
        return ring if abs(signed_area(ring)) >= smallest else None

    polygons = []
    for index in range(len(borders)):
        _, _, first_hole, parent = tree[0][index]
        if parent >= 0:
            continue
        exterior = outline(index, config.min_region * frame_area)
        if exterior is None:
            continue
        holes, hole = [], first_hole
        while hole >= 0:
            interior = outline(hole, config.min_hole * frame_area)
            if interior is not None:
                holes.append(interior)
            hole = tree[0][hole][0]
        if abs(signed_area(exterior)) - sum(abs(signed_area(h)) for h in holes) >= config.min_region * frame_area:
            polygons.append(shapely.Polygon(exterior, holes))
    return np.array(polygons, object)


# Steps to the 8 neighbours, counter-clockwise on the screen from east, (dx, dy) with y down.
STEPS = np.array([(1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1)])


def sweep_table() -> NDArray[np.int64]:
    """``[from, to] -> up to 4 of the directions 0, 2, 4, 6`` that lie strictly between, counter-clockwise; -1 is none.

    A border runs with its region on the left. At a pixel reached from the neighbour in direction ``from`` and left towards
    ``to``, all neighbours between the two, counter-clockwise, are outside.
    """
    table = np.full((8, 8, 4), -1)
    for back in range(8):
        for ahead in range(8):
            count = (ahead - back - 1) % 8 + 1
            between = [(back + j) % 8 for j in range(1, count)]
            sides = [k for k in between if k % 2 == 0]
            table[back, ahead, : len(sides)] = sides
    return table


SWEEP = sweep_table()
DIRECTION = np.zeros((3, 3), np.int64)  # [dy + 1, dx + 1] -> index into STEPS
DIRECTION[STEPS[:, 1] + 1, STEPS[:, 0] + 1] = np.arange(8)


def crossings(border: NDArray[np.int32], field: NDArray[np.float32], level: float) -> Ring:
    """Where ``field`` crosses ``level`` along a border of inside pixels: float ``(m, 2)``, x and y in ``field``'s pixels."""
    step = np.roll(border, -1, axis=0) - border
    ahead = DIRECTION[step[:, 1] + 1, step[:, 0] + 1]
    back = (np.roll(ahead, 1) + 4) % 8
    sides = SWEEP[back, ahead]
    pixel, slot = np.nonzero(sides >= 0)
    inside, towards = border[pixel], STEPS[sides[pixel, slot]]
    outside = inside + towards
    high, low = field[inside[:, 1], inside[:, 0]], field[outside[:, 1], outside[:, 0]]
    return np.asarray(inside + towards * ((high - level) / (high - low))[:, None], np.float64)


def simplify(shapes: NDArray[np.object_], tolerance_px: float) -> NDArray[np.object_]:
    """Fewer vertices, none moved further than ``tolerance_px`` from the outline (Douglas & Peucker 1973).

    The quick way, ring by ring, is checked; where it makes rings cross or polygons overlap, the topology-preserving way is
    taken, and where even that fails the exact outline stays. Coordinates are rounded to 0.01 pixels before the check.
    """
    for attempt in (
        lambda s: shapely.simplify(s, tolerance_px, preserve_topology=False),
        lambda s: keep_topology(s, tolerance_px),
    ):
        if tolerance_px <= 0:
            break
        rounded = shapely.transform(attempt(shapes), round_to_cents)
        if sound(rounded):
            return np.asarray(rounded, object)
    rounded = shapely.transform(shapes, round_to_cents)
    return np.asarray(rounded, object) if sound(rounded) else shapes


def keep_topology(shapes: NDArray[np.object_], tolerance_px: float) -> NDArray[np.object_]:
    together = shapely.simplify(shapely.MultiPolygon(list(shapes)), tolerance_px, preserve_topology=True)
    return np.asarray(shapely.get_parts(together), object)


def round_to_cents(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.round(points, 2)


def sound(shapes: NDArray[np.object_]) -> bool:
    """Whether all are valid, non-empty single polygons that do not overlap."""
    if not (np.all(shapely.get_type_id(shapes) == shapely.GeometryType.POLYGON) and np.all(shapely.is_valid(shapes))):
        return False
    if np.any(shapely.is_empty(shapes)):
        return False
    return len(shapes) < 2 or bool(shapely.is_valid(shapely.MultiPolygon(list(shapes))))


def ego_index(shapes: NDArray[np.object_], frame_size: tuple[int, int]) -> int:
    """Index of the region with the largest share of the seed window in front of the vehicle; -1 where none reaches it."""
    width, height = frame_size
    left, top, right, bottom = EGO_SEED
    seed = (left * width, top * height, right * width, bottom * height)
    near = [i for i, shape in enumerate(shapes) if shape.bounds[3] > top * height]
    if not near:
        return -1
    overlaps = [shapely.clip_by_rect(shapes[i], *seed).area for i in near]
    best = int(np.argmax(overlaps))
    return near[best] if overlaps[best] > 0 else -1


def confidence(scores: U8, resampling: Resampling, shape: shapely.Polygon) -> float:
    """Mean score inside a polygon (source pixels), 0 to 1; a polygon that covers no pixel centre takes the nearest one."""
    rings = [resampling.input_from_frame(shapely.get_coordinates(r)) for r in (shape.exterior, *shape.interiors)]
    lower = np.floor(rings[0].min(axis=0)).astype(int).clip(0)
    upper = np.ceil(rings[0].max(axis=0)).astype(int) + 1
    window = scores[lower[1] : upper[1], lower[0] : upper[0]]
    mask = np.zeros(window.shape, np.uint8)
    fill(mask, [r - lower for r in rings], 1)
    return float(cv2.mean(window, mask)[0]) / 255.0


def ring(line: shapely.LinearRing, clockwise: bool) -> Ring:
    points = shapely.get_coordinates(line)[:-1]
    return np.ascontiguousarray(points if (signed_area(points) > 0) == clockwise else points[::-1])


def signed_area(points: Ring) -> float:
    """Shoelace formula; positive where the ring runs clockwise as seen on the screen (y down)."""
    x, y = points[:, 0], points[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2.0


def fill(canvas: U8, rings: Sequence[Ring], value: int | tuple[int, int, int]) -> None:
    """Fill the inside of a polygon's rings on ``canvas``, holes spared, vertices in 1/64 pixels."""
    scaled = [np.round(r * (1 << FILL_SHIFT)).astype(np.int32) for r in rings]
    cv2.fillPoly(canvas, scaled, value if isinstance(value, tuple) else (value,), lineType=cv2.LINE_8, shift=FILL_SHIFT)


def rasterise(polygons: Sequence[Polygon], size: tuple[int, int]) -> U8:
    """Mask uint8 ``(height, width)``: 255 in the polygons, pixels on their outlines included, else 0."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    for polygon in polygons:
        fill(mask, polygon.rings, 255)
    return mask


def exact_mask(scores: U8, resampling: Resampling, config: PolygonConfig) -> U8:
    """Mask uint8 ``(height, width)``: 255 where the score at the pixel's centre says so, in the regions `extract` reports.

    This is what the polygons stand for before simplification, with no outline pixels added.
    """
    mask = np.zeros((resampling.frame_size[1], resampling.frame_size[0]), np.uint8)
    for shape in trace(scores, resampling, config):
        fill(mask, [shapely.get_coordinates(r) for r in (shape.exterior, *shape.interiors)], 255)
    left, top, width, height = resampling.content
    content = scores[top : top + height, left : left + width]
    upscaled = cv2.resize(content, resampling.frame_size, interpolation=cv2.INTER_LINEAR)
    return mask * (np.asarray(upscaled) > int(255 * config.threshold))
