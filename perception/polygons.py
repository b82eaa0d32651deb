"""From a plane of scores to valid polygons with holes, and back to a mask.

The scores are samples at pixel centres of a continuous field, and a region is where that field exceeds the threshold. Its
outline runs *between* pixels, where the interpolated score crosses the threshold, so upscaling to the source size loses
nothing. Integer scores never equal a half-integer threshold, so no outline touches itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from calibration.confidence import shifted
from engine.preprocess import Resampling
from perception.config import PolygonConfig
from perception.freespace import Polygon, Ring

U8 = NDArray[np.uint8]
FILL_SHIFT = 6  # cv2.fillPoly takes 1/64 pixels

# The part of the image the vehicle stands in front of, as fractions (left, top, right, bottom).
EGO_SEED = (0.38, 0.72, 0.62, 1.0)


def extract(scores: U8, resampling: Resampling, plane: str, config: PolygonConfig, shift: float = 0.0) -> list[Polygon]:
    """Polygons of one plane in source pixels, largest first.

    Args:
        scores: uint8 ``(h, w)``, ``round(255 * p)``.
        resampling: how the frame was brought to ``(h, w)``.
        plane: name written into the polygons.
        config: threshold, tolerance and the smallest region and hole.
        shift: of the confidences' log-odds, as the model's metadata hold it (`calibration.confidence.polygon_shift`).

    Every polygon is valid and simple, and no two overlap.
    """
    regions = trace(scores, resampling, config)
    if not regions:
        return []
    shapes = simplify(regions, config.tolerance_px)
    areas = [shape.area for shape in shapes]
    ego = ego_index(shapes, resampling.frame_size)
    polygons = []
    for i in np.argsort(areas, kind="stable")[::-1]:
        shape = shapes[i]
        exterior = oriented(shape.exterior, clockwise=False)
        interiors = [oriented(hole, clockwise=True) for hole in shape.interiors]
        sure = shifted(confidence(scores, resampling, [exterior, *interiors], level_of(config.threshold)), shift)
        polygons.append(Polygon(plane, bool(i == ego), sure, areas[i], exterior, interiors))
    return polygons


def trace(scores: U8, resampling: Resampling, config: PolygonConfig) -> list[list[Ring]]:
    """The exact regions in source pixels, without those too small: for each its exterior and then its holes.

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
    image_area = resampling.frame_size[0] * resampling.frame_size[1]
    scale = image_area / (width * height)
    parents = tree[0][:, 3].tolist() if borders else []
    smallest = [image_area * (config.min_region if parent < 0 else config.min_hole) for parent in parents]
    # A ring encloses at most the area within its border, a pixel along it, and a corner: most specks end here.
    kept = [
        i
        for i, border in enumerate(borders)
        if len(border) > 1 and (cv2.contourArea(border) + len(border) + 4) * scale >= smallest[i]
    ]
    if not kept:
        return []
    points, lengths = crossings([borders[i] for i in kept], np.asarray(padded, np.uint8), level)
    points = np.clip(points - 2, (-0.5, -0.5), (width - 0.5, height - 0.5)) + np.array([left, top])
    rings = dict(zip(kept, np.split(resampling.frame_from_input(points), np.cumsum(lengths)[:-1]), strict=True))
    areas = {i: abs(signed_area(ring)) for i, ring in rings.items()}
    regions = {i: [ring] for i, ring in rings.items() if parents[i] < 0}
    for i, ring in rings.items():
        if parents[i] in regions and areas[i] >= smallest[i]:
            regions[parents[i]].append(ring)
            areas[parents[i]] -= areas[i]
    return [region for i, region in regions.items() if areas[i] >= smallest[i]]


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


SWEEP = sweep_table().reshape(64, 4)
SIDES = np.count_nonzero(SWEEP >= 0, axis=1)
DIRECTION = np.zeros(9, np.intp)  # [3 * (dy + 1) + dx + 1] -> index into STEPS
DIRECTION[3 * (STEPS[:, 1] + 1) + STEPS[:, 0] + 1] = np.arange(8)


def crossings(borders: Sequence[NDArray[Any]], field: U8, level: float) -> tuple[Ring, NDArray[np.intp]]:
    """Where ``field`` crosses ``level`` along closed borders of inside pixels.

    Args:
        borders: as OpenCV gives them, int ``(n, 1, 2)`` each: x and y of 8-connected pixels, the region on the left.
        field: uint8 ``(h, w)``; no border pixel lies on its edge.

    Returns:
        float ``(m, 2)`` points of all rings, one after the other, and how many each ring has.
    """
    border = np.concatenate(borders)[:, 0, :]
    ends = np.cumsum([len(b) for b in borders])
    starts = ends - [len(b) for b in borders]
    following, preceding = np.arange(1, len(border) + 1), np.arange(-1, len(border) - 1)
    following[ends - 1], preceding[starts] = starts, ends - 1
    step = border.take(following, axis=0) - border
    ahead = DIRECTION.take(3 * step[:, 1] + step[:, 0] + 4)
    back = (ahead.take(preceding) + 4) & 7
    sides = SWEEP.take(8 * back + ahead, axis=0)
    counts = SIDES.take(8 * back + ahead)
    inside, towards = border.repeat(counts, axis=0), STEPS.take(sides[sides >= 0], axis=0)
    width = field.shape[1]
    place = inside[:, 1] * width + inside[:, 0]
    high = field.take(place).astype(np.float64)
    low = field.take(place + towards[:, 1] * width + towards[:, 0])
    return inside + towards * ((high - level) / (high - low))[:, None], np.add.reduceat(counts, starts)


def simplify(regions: Sequence[Sequence[Ring]], tolerance_px: float) -> list[shapely.Polygon]:
    """Fewer vertices, none moved further than ``tolerance_px`` from the outline (Douglas & Peucker 1973).

    The quick way, ring by ring, is checked; where it makes rings cross or polygons overlap, the topology-preserving way is
    taken, and where even that fails the exact outlines stay. Coordinates are rounded to 0.01 pixels before the check.
    """
    if tolerance_px > 0:
        thinned = [[thin(ring, tolerance_px) for ring in region] for region in regions]
        if shapes := as_shapes(thinned):
            return shapes
    exact = [shapely.Polygon(region[0], region[1:]) for region in regions]
    together = shapely.simplify(shapely.MultiPolygon(exact), max(tolerance_px, 0), preserve_topology=True)
    parts = [[ring_points(r) for r in (part.exterior, *part.interiors)] for part in shapely.get_parts(together)]
    return as_shapes(parts) or as_shapes(regions) or exact


def thin(ring: Ring, tolerance_px: float) -> Ring:
    return np.asarray(cv2.approxPolyDP(ring.astype(np.float32), tolerance_px, True)[:, 0, :], np.float64)


def as_shapes(regions: Sequence[Sequence[Ring]]) -> list[shapely.Polygon]:
    """The regions as polygons with coordinates rounded to 0.01 pixels; none where one is invalid or two overlap."""
    if any(len(ring) < 3 for region in regions for ring in region):
        return []
    rounded = [[np.round(ring, 2) for ring in region] for region in regions]
    shapes = [shapely.Polygon(region[0], region[1:]) for region in rounded]
    together = shapes[0] if len(shapes) == 1 else shapely.MultiPolygon(shapes)
    return shapes if together.is_valid else []


def ego_index(shapes: Sequence[shapely.Polygon], frame_size: tuple[int, int]) -> int:
    """Index of the region with the largest share of the seed window in front of the vehicle; -1 where none reaches it."""
    width, height = frame_size
    left, top, right, bottom = EGO_SEED
    seed = (left * width, top * height, right * width, bottom * height)
    overlaps = [shapely.clip_by_rect(shape, *seed).area for shape in shapes]
    best = int(np.argmax(overlaps))
    return best if overlaps[best] > 0 else -1


def confidence(scores: U8, resampling: Resampling, rings: Sequence[Ring], level: float) -> float:
    """Mean of the scores above ``level`` inside a polygon (source pixels), 0 to 1."""
    pixels = [np.rint(resampling.input_from_frame(ring)).astype(np.int32) for ring in rings]
    left, top, width, height = cv2.boundingRect(pixels[0])
    left, top = max(left, 0), max(top, 0)
    window = scores[top : top + height, left : left + width]
    mask = np.zeros(window.shape, np.uint8)
    cv2.fillPoly(mask, pixels, (1,), offset=(-left, -top))
    mask &= window > level  # fillPoly adds the pixels on the outline
    return float(cv2.mean(window, mask)[0]) / 255.0


def level_of(threshold: float) -> float:
    """The threshold on the scores' scale, between two integers."""
    return math.floor(255 * threshold) + 0.5


def ring_points(line: shapely.LinearRing) -> Ring:
    return np.asarray(shapely.get_coordinates(line)[:-1])


def oriented(line: shapely.LinearRing, clockwise: bool) -> Ring:
    points = ring_points(line)
    return np.ascontiguousarray(points if (signed_area(points) > 0) == clockwise else points[::-1])


def signed_area(points: Ring) -> float:
    """Shoelace formula; positive where the ring runs clockwise as seen on the screen (y down)."""
    x, y = points[:, 0], points[:, 1]
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1] + x[-1] * y[0] - x[0] * y[-1]) / 2.0


def fill(canvas: U8, rings: Sequence[Ring], value: int | tuple[int, int, int]) -> None:
    """Fill the inside of a polygon's rings on ``canvas``, holes spared, vertices in 1/64 pixels."""
    scaled = [np.round(r * (1 << FILL_SHIFT)).astype(np.int32) for r in rings]
    cv2.fillPoly(canvas, scaled, value if isinstance(value, tuple) else (value,), lineType=cv2.LINE_8, shift=FILL_SHIFT)


def rasterise(polygons: Sequence[Polygon], size: tuple[int, int]) -> U8:
    """Mask uint8 ``(height, width)``: 255 at the pixels whose centre lies in a polygon, else 0."""
    return inside_rings([ring for polygon in polygons for ring in polygon.rings], size)


def exact_mask(scores: U8, resampling: Resampling, config: PolygonConfig) -> U8:
    """Mask uint8 ``(height, width)`` of the regions that `extract` reports, from their outlines before simplification."""
    return inside_rings([ring for region in trace(scores, resampling, config) for ring in region], resampling.frame_size)


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
