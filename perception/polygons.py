"""From a plane of scores to valid polygons with holes, and back to a mask.

The scores are samples at pixel centres of a continuous field, and a region is where that field exceeds the threshold. Its
outline runs *between* pixels, where the interpolated score crosses the threshold, so upscaling to the source size loses
nothing. Integer scores never equal a half-integer threshold, so no outline touches itself.
"""

from __future__ import annotations

import math
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
            confidence(scores, resampling, shapes[i], level_of(config.threshold)),
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
    level = level_of(config.threshold)
    left, top, width, height = resampling.content
    content = scores[top : top + height, left : left + width]
    # Repeating the border pixels lets the outline run on to the image's edge, half a pixel outside the last centre; the
    # zeros around that close it there.
    padded = cv2.copyMakeBorder(content, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    padded = cv2.copyMakeBorder(padded, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inside = cv2.threshold(padded, int(level), 1, cv2.THRESH_BINARY)[1]
    borders, tree = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not borders:
        return np.empty(0, object)
    parent = tree[0][:, 3]
    image_area = resampling.frame_size[0] * resampling.frame_size[1]
    smallest = np.where(parent < 0, config.min_region, config.min_hole) * image_area
    # A ring encloses at most this much; most specks end here.
    most = np.array([cv2.contourArea(border) + len(border) + 4 for border in borders]) * image_area / (width * height)
    kept = [i for i in range(len(borders)) if most[i] >= smallest[i] and len(borders[i]) > 1]
    if not kept:
        return np.empty(0, object)
    points, lengths = crossings([np.asarray(borders[i][:, 0, :], np.int32) for i in kept], np.asarray(padded, np.uint8), level)
    points = np.clip(points - 2, (-0.5, -0.5), (width - 0.5, height - 0.5))
    rings = np.split(resampling.frame_from_input(points + np.array([left, top])), np.cumsum(lengths)[:-1])
    areas = {i: abs(signed_area(ring)) for i, ring in zip(kept, rings, strict=True)}
    holes: dict[int, list[Ring]] = {}
    for i, ring in zip(kept, rings, strict=True):
        if parent[i] >= 0 and areas[i] >= smallest[i]:
            holes.setdefault(parent[i], []).append(ring)
            areas[parent[i]] = areas.get(parent[i], 0.0) - areas[i]
    return np.array(
        [
            shapely.Polygon(ring, holes.get(i))
            for i, ring in zip(kept, rings, strict=True)
            if parent[i] < 0 and areas[i] >= smallest[i]
        ],
        object,
    )


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


def crossings(borders: Sequence[NDArray[np.int32]], field: U8, level: float) -> tuple[Ring, NDArray[np.int64]]:
    """Where ``field`` crosses ``level`` along closed borders of inside pixels.

    Args:
        borders: int ``(n, 2)`` each, x and y of ``field``'s pixels, 8-connected, the region on the left.
        field: uint8 ``(h, w)``; no border pixel lies on its edge.

    Returns:
        float ``(m, 2)`` points of all rings, one after the other, and how many each ring has.
    """
    border = np.concatenate(borders)
    ends = np.cumsum([len(b) for b in borders])
    starts = np.concatenate([[0], ends[:-1]])
    following, preceding = np.arange(1, len(border) + 1), np.arange(-1, len(border) - 1)
    following[ends - 1], preceding[starts] = starts, ends - 1
    step = border[following] - border
    ahead = DIRECTION[step[:, 1] + 1, step[:, 0] + 1]
    back = (ahead[preceding] + 4) % 8
    sides = SWEEP[back, ahead]
    crossed = sides >= 0
    pixel, slot = np.nonzero(crossed)
    inside, towards = border[pixel], STEPS[sides[pixel, slot]]
    outside = inside + towards
    high, low = field[inside[:, 1], inside[:, 0]].astype(float), field[outside[:, 1], outside[:, 0]]
    points = inside + towards * ((high - level) / (high - low))[:, None]
    return points, np.add.reduceat(np.count_nonzero(crossed, axis=1), starts)


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


def confidence(scores: U8, resampling: Resampling, shape: shapely.Polygon, level: float) -> float:
    """Mean of the scores above ``level`` inside a polygon (source pixels), 0 to 1."""
    rings = [resampling.input_from_frame(shapely.get_coordinates(r)) for r in (shape.exterior, *shape.interiors)]
    first = np.floor(rings[0].min(axis=0)).astype(int).clip(0)
    last = np.ceil(rings[0].max(axis=0)).astype(int) + 1
    window = scores[first[1] : last[1], first[0] : last[0]]
    mask = np.zeros(window.shape, np.uint8)
    cv2.fillPoly(mask, [np.rint(r - first).astype(np.int32) for r in rings], (1,))
    mask &= window > level  # fillPoly adds the pixels on the outline
    return float(cv2.mean(window, mask)[0]) / 255.0


def level_of(threshold: float) -> float:
    """The threshold on the scores' scale, between two integers."""
    return math.floor(255 * threshold) + 0.5


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
    """Mask uint8 ``(height, width)``: 255 at the pixels whose centre lies in a polygon, else 0."""
    return inside_rings([ring for polygon in polygons for ring in polygon.rings], size)


def exact_mask(scores: U8, resampling: Resampling, config: PolygonConfig) -> U8:
    """Mask uint8 ``(height, width)`` of the regions that `extract` reports, from their outlines before simplification."""
    shapes = trace(scores, resampling, config)
    rings = [shapely.get_coordinates(ring) for shape in shapes for ring in (shape.exterior, *shape.interiors)]
    return inside_rings(rings, resampling.frame_size)


def inside_rings(rings: Sequence[Ring], size: tuple[int, int]) -> U8:
    """255 at the pixel centres that lie inside an odd number of rings: a scan along each row, no outline pixels added."""
    width, height = size
    if not rings:
        return np.zeros((height, width), np.uint8)
    start = np.concatenate(rings)
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    upper = np.where((start[:, 1] < end[:, 1])[:, None], start, end)
    lower = np.where((start[:, 1] < end[:, 1])[:, None], end, start)
    first = np.clip(np.ceil(upper[:, 1]), 0, height).astype(int)  # an edge crosses the rows in [upper, lower)
    crossed = np.clip(np.ceil(lower[:, 1]), 0, height).astype(int) - first
    edge = np.repeat(np.arange(len(start)), crossed)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(crossed) - crossed, crossed)
    along = (row - upper[edge, 1]) / (lower[edge, 1] - upper[edge, 1])
    crossing = upper[edge, 0] + along * (lower[edge, 0] - upper[edge, 0])
    column = np.clip(np.ceil(crossing), 0, width).astype(int)
    toggles = np.zeros((height, width + 1), np.uint8)
    np.bitwise_xor.at(toggles, (row, column), 255)
    return np.bitwise_xor.accumulate(toggles, axis=1)[:, :width]
