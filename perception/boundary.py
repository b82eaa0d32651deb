"""Where rays and lines leave a region: the geometry behind the scan and the way ahead.

A region is given by the edges of all its rings; inside is what an odd number of them surrounds. Lines come in evenly spaced
families, so that each edge finds the few lines it crosses by arithmetic, and nothing is searched.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Edges:
    """The edges of rings: ``start`` and ``end``, float64 ``(n, 2)`` each."""

    def __init__(self, rings: Sequence[Array]) -> None:
        self.start = np.concatenate(rings) if rings else np.empty((0, 2))
        self.end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings]) if rings else np.empty((0, 2))


def free_along_rays(edges: Edges, first: float, step: float, count: int, facing: float = 0.0) -> tuple[Array, Array]:
    """Where the region begins and first ends along rays from the origin.

    Args:
        first, step, count: the rays' angles against ``facing``, radians, between -pi and pi.
        facing: a direction, radians.

    Returns:
        two float64 ``(count,)`` distances; NaN for rays that miss the region. A region around the origin begins at 0.
    """
    low, high = spans(edges, facing)
    behind = np.flatnonzero(high - low >= np.pi)  # these edges go on from one end of the angles at the other
    whole = np.arange(len(low))
    low, high = np.append(low, np.full(len(behind), -np.inf)), np.append(high, low[behind])
    low[behind], high[behind] = high[behind], np.inf
    edge, ray = lines_crossed(low, high, first, step, count)
    edge = np.append(whole, behind)[edge]
    p, d = edges.start[edge], (edges.end - edges.start)[edge]
    angle = facing + first + step * ray
    cos, sin = np.cos(angle), np.sin(angle)
    distance = (p[:, 0] * d[:, 1] - p[:, 1] * d[:, 0]) / (cos * d[:, 1] - sin * d[:, 0])
    return first_interval(distance, ray, count)


def spans(edges: Edges, facing: float) -> tuple[Array, Array]:
    """The lesser and the greater of the directions in which each edge begins and ends, against ``facing``, -pi to pi radians;
    by half a turn or more apart where it passes behind the origin, which ``facing`` turns its back on."""
    start, end = (wrapped(np.arctan2(p[:, 1], p[:, 0]) - facing) for p in (edges.start, edges.end))
    return np.minimum(start, end), np.maximum(start, end)


def free_along_lines(edges: Edges, first: float, step: float, count: int) -> tuple[Array, Array]:
    """As `free_along_rays`, along the lines ``y = first + i * step`` in the direction of x, from x = 0 on."""
    low, high = np.minimum(edges.start[:, 1], edges.end[:, 1]), np.maximum(edges.start[:, 1], edges.end[:, 1])
    edge, line = lines_crossed(low, high, first, step, count)
    p, d = edges.start[edge], (edges.end - edges.start)[edge]
    x = p[:, 0] + (first + step * line - p[:, 1]) / d[:, 1] * d[:, 0]
    return first_interval(x[x > 0], line[x > 0], count)


def free_across(edges: Edges, x: float) -> tuple[float, float] | None:
    """Between which y, least first, the region is crossed at the distance ``x`` around y = 0; None where y = 0 is outside."""
    crossing = (edges.start[:, 0] <= x) != (edges.end[:, 0] <= x)
    p, q = edges.start[crossing], edges.end[crossing]
    y = np.sort(p[:, 1] + (x - p[:, 0]) / (q[:, 0] - p[:, 0]) * (q[:, 1] - p[:, 1]))
    below = int(np.searchsorted(y, 0.0))
    return (float(y[below - 1]), float(y[below])) if below % 2 else None


def lines_crossed(low: Array, high: Array, first: float, step: float, count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs of an edge, which spans [low, high), and a line ``first + i * step`` within it, as two arrays of indices."""
    begin = np.clip(np.ceil((low - first) / step), 0, count).astype(np.intp)
    crossed = np.clip(np.ceil((high - first) / step), 0, count).astype(np.intp) - begin
    edge = np.repeat(np.arange(len(low)), crossed)
    return edge, begin[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(crossed) - crossed, crossed)


def first_interval(distances: Array, lines: NDArray[np.intp], count: int) -> tuple[Array, Array]:
    """The two least of the distances at which each of ``count`` lines is crossed; 0 and the least where it begins inside."""
    begins, ends = np.full(count, np.nan), np.full(count, np.nan)
    order = np.lexsort((distances, lines))
    distances, lines = distances[order], lines[order]
    crossed, start, crossings = np.unique(lines, return_index=True, return_counts=True)
    outside = crossings % 2 == 0
    begins[crossed] = np.where(outside, distances[start], 0.0)
    ends[crossed] = distances[start + outside]
    return begins, ends


def wrapped(angles: ArrayLike) -> Array:
    """The same angles between -pi and pi."""
    return np.asarray((np.asarray(angles) + np.pi) % (2 * np.pi) - np.pi)
