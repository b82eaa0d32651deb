"""Regions to pixels, and pixels to outlines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from training.annotations.base import Patch, Region, Ring, counted


def rasterise(region: Region, size: tuple[int, int]) -> tuple[Patch, list[str]]:
    """The pixels of ``region`` within an image of ``size`` (width, height), and what had to be done to its outlines.

    Holes are cut out, wherever they lie. A ring that crosses or touches itself is repaired: what it winds around is inside.

    Raises:
        ValueError: an outline has no area, so that nobody knows what its annotator meant.
    """
    if region.bitmap is not None:
        return clipped(region.bitmap, size), []
    if not region.rings:
        raise ValueError(f"{region.label!r}: has no outline")
    remarks = []
    patches = []
    for ring in region.rings:
        rings, wrong = repaired(ring)
        if not rings:
            raise ValueError(f"{region.label!r}: {wrong}; finish or delete it")
        patches.append(fill(rings, size))
        if wrong:
            remarks.append(f"{region.label!r}: repaired an outline ({wrong})")
    outer = patches[0]
    for hole in patches[1:]:
        paint(outer.mask, hole._replace(left=hole.left - outer.left, top=hole.top - outer.top), False)
    return outer, remarks


def repaired(ring: Ring) -> tuple[list[Ring], str]:
    """Rings that, filled by the even-odd rule, cover what ``ring`` encloses; and what was wrong with it, '' for nothing."""
    if len(ring) < 3:
        return [], f"an outline of {counted(len(ring), 'point')} has no area"
    polygon = shapely.Polygon(ring)
    if polygon.is_valid:
        return [ring], ""
    reason = shapely.is_valid_reason(polygon).split("[")[0].lower()
    whole = shapely.make_valid(polygon, method="structure", keep_collapsed=False)
    parts = [part for part in shapely.get_parts(whole) if part.geom_type == "Polygon" and not part.is_empty]
    if not parts:
        return [], "an outline has no area"
    rings = [np.asarray(r.coords)[:-1] for part in parts for r in (part.exterior, *part.interiors)]
    return rings, str(reason)


def fill(rings: Sequence[Ring], size: tuple[int, int]) -> Patch:
    """The pixels of an image of ``size`` whose centres lie inside an odd number of ``rings`` (float ``(n, 2)``).

    Every row of pixel centres is cut with every edge: an edge takes its upper end and not its lower one, and a centre on an
    edge lies right of it.
    """
    if not rings:
        return Patch(np.zeros((0, 0), np.bool_), 0, 0)
    corners = np.concatenate(rings)
    left, top = np.ceil(np.clip(corners.min(axis=0), 0, size)).astype(int)
    right, bottom = np.ceil(np.clip(corners.max(axis=0), (left, top), size)).astype(int)

    starts, ends = corners, np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    down = (starts[:, 1] < ends[:, 1])[:, None]  # the same arithmetic for an edge and its reverse, in a neighbour
    upper, lower = np.where(down, starts, ends), np.where(down, ends, starts)
    first = np.ceil(np.clip(upper[:, 1], top, bottom)).astype(int)
    counts = np.ceil(np.clip(lower[:, 1], top, bottom)).astype(int) - first
    edge = np.repeat(np.arange(len(corners)), counts)
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]

    (x0, y0), (x1, y1) = upper[edge].T, lower[edge].T
    crossings = x0 + (rows - y0) * ((x1 - x0) / (y1 - y0))
    columns = np.ceil(np.clip(crossings, left, right)).astype(int)
    crossed = np.zeros((bottom - top, right - left + 1), np.uint8)
    np.add.at(crossed, (rows - top, columns - left), 1)  # only whether it is odd matters, so it may wrap
    inside = np.add.accumulate(crossed[:, :-1], axis=1, dtype=np.uint8) & 1
    return Patch(inside.astype(np.bool_), int(left), int(top))


def clipped(patch: Patch, size: tuple[int, int]) -> Patch:
    """The part of ``patch`` within an image of ``size``."""
    height, width = patch.mask.shape
    left, top = min(max(patch.left, 0), size[0]), min(max(patch.top, 0), size[1])
    right, bottom = min(max(patch.left + width, left), size[0]), min(max(patch.top + height, top), size[1])
    return Patch(patch.mask[top - patch.top : bottom - patch.top, left - patch.left : right - patch.left], left, top)


def paint(canvas: NDArray[Any], patch: Patch, value: int) -> None:
    """Set the pixels of ``patch`` in ``canvas`` ``(H, W)``; what lies outside is left out."""
    mask, left, top = clipped(patch, (canvas.shape[1], canvas.shape[0]))
    canvas[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = value


def outlines(mask: NDArray[np.bool_]) -> list[list[Ring]]:
    """The regions of ``mask`` bool ``(H, W)``, each its exterior and then its holes, along the borders of pixels.

    `fill` gives exactly the same pixels again. Pixels that touch at a corner only belong to different regions.
    """
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    (rows, lefts), (_, rights) = np.nonzero(edges == 1), np.nonzero(edges == -1)
    runs = shapely.box(lefts - 0.5, rows - 0.5, rights - 0.5, rows + 0.5)
    merged = shapely.simplify(shapely.union_all(runs), 0)
    return [
        [np.asarray(r.coords)[:-1] for r in (part.exterior, *part.interiors)]
        for part in shapely.get_parts(merged)
        if not part.is_empty
    ]
