"""The resampling of `engine.preprocess` as two tables of weights, which a kernel can apply in one pass.

Halving and bilinear interpolation are separable and linear, so all of them together are one weighted sum per axis. OpenCV
rounds to whole grey levels after each halving and this does not: a halving can move a result by up to half a level, and its
2 x 2 averages, rounded half up, move it upwards by an eighth on average. That is made up for, the rest is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.preprocess import Resampling

NEGLIGIBLE = 1e-9  # a weight that only rounding errors made
HALVING_LIFT = 1 / 8  # grey levels: the mean of 0, -1/4, +1/2, +1/4, for sums of four pixels that leave 0, 1, 2, 3
MOST_LIFT = 3 / 8  # less than half a level, so that an even surface keeps its grey


@dataclass(frozen=True)
class Axis:
    """Weighted sums along one axis: ``out[i] = sum(weights[i, j] * source[first[i] + j] for j in range(taps))``.

    Attributes:
        first: int32 ``(n,)``, index of the first source pixel of each output pixel.
        weights: float32 ``(n, taps)``, adding up to 1; 0 where an output pixel needs fewer.
    """

    first: NDArray[np.int32]
    weights: NDArray[np.float32]

    @property
    def taps(self) -> int:
        return int(self.weights.shape[1])


@dataclass(frozen=True)
class Tables:
    """What the resampling kernels need to know besides the frame, for frames of one size.

    Attributes:
        frame_size: (width, height) of the frame.
        size: (width, height) of the kernel's output.
        content: (left, top, width, height) of the frame inside the output.
        columns, rows: of the content, one entry per content column and row; every tap lies inside the frame.
        lift: grey levels to add before rounding, see above.
    """

    frame_size: tuple[int, int]
    size: tuple[int, int]
    content: tuple[int, int, int, int]
    columns: Axis
    rows: Axis
    lift: float

    def block(self) -> NDArray[np.uint8]:
        """The tables in one piece, uint8 ``(n,)``: ``columns.first``, ``columns.weights``, ``rows.first``, ``rows.weights``."""
        arrays = (self.columns.first, self.columns.weights, self.rows.first, self.rows.weights)
        return np.concatenate([array.reshape(-1).view(np.uint8) for array in arrays])


def resampling_tables(resampling: Resampling) -> Tables:
    """Tables that do what `engine.preprocess.resample` does: halvings, then bilinear, into the content of the input."""
    frame, content = resampling.frame_size, resampling.content
    halved = halvings(frame, content[2:])
    columns, rows = _axis(frame[0], len(halved), content[2]), _axis(frame[1], len(halved), content[3])
    return Tables(frame, resampling.input_size, content, columns, rows, _lift(frame, halved))


def halving_tables(frame_size: tuple[int, int], input_size: tuple[int, int]) -> Tables:
    """Tables that only halve the frame, as often as `engine.preprocess.resample` would; they copy it where that is never."""
    halved = halvings(frame_size, input_size)
    size = halved[-1] if halved else frame_size
    columns, rows = _axis(frame_size[0], len(halved)), _axis(frame_size[1], len(halved))
    return Tables(frame_size, size, (0, 0, *size), columns, rows, _lift(frame_size, halved))


def halvings(frame_size: tuple[int, int], content_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Sizes after each halving before the bilinear resize: as long as both sides shrink by more than two."""
    (width, height), sizes = frame_size, []
    while width > 2 * content_size[0] and height > 2 * content_size[1]:
        width, height = (width + 1) // 2, (height + 1) // 2
        sizes.append((width, height))
    return sizes


def _lift(frame_size: tuple[int, int], halved: list[tuple[int, int]]) -> float:
    """Only where both sides are even the averages are of 2 x 2 pixels; others are rounded without a bias."""
    halved_from = [frame_size, *halved][: len(halved)]
    even = sum(width % 2 == 0 and height % 2 == 0 for width, height in halved_from)
    return min(even * HALVING_LIFT, MOST_LIFT)


# Axes under construction: the first index int64 (n,), the weights float64 (n, taps), and the length of the source.
Sums = tuple[NDArray[np.int64], NDArray[np.float64], int]


def _axis(length: int, halved: int, target: int | None = None) -> Axis:
    """An axis of ``length`` pixels, halved ``halved`` times and then, unless None, brought to ``target`` pixels."""
    sums: Sums = (np.arange(length), np.ones((length, 1)), length)
    for _ in range(halved):
        sums = _after(_area_half(len(sums[0])), sums)
    if target is not None:
        sums = _after(_bilinear(len(sums[0]), target), sums)
    return _tight(sums)


def _area_half(length: int) -> Sums:
    """Each of ``(length + 1) // 2`` pixels is the mean of what it covers; with an odd length that cuts through pixels."""
    half = (length + 1) // 2
    edges = np.arange(half + 1) * length / half
    first = np.floor(edges[:-1]).astype(np.int64)
    taps = first[:, None] + np.arange(3)
    overlap = np.minimum(taps + 1, edges[1:, None]) - np.maximum(taps, edges[:-1, None])
    return first, np.clip(overlap, 0, None) * half / length, length


def _bilinear(length: int, target: int) -> Sums:
    """Half-pixel centres, coordinates clamped to the pixels at the edges."""
    place = np.clip((np.arange(target) + 0.5) * length / target - 0.5, 0, length - 1)
    first = np.floor(place).astype(np.int64)
    share = place - first
    return first, np.stack([1 - share, share], axis=1), length


def _after(outer: Sums, inner: Sums) -> Sums:
    """The sums of ``outer`` over what the sums of ``inner`` give."""
    (outer_first, outer_weights, _), (inner_first, inner_weights, length) = outer, inner
    middle = np.minimum(outer_first[:, None] + np.arange(outer_weights.shape[1]), len(inner_first) - 1)
    first = inner_first[outer_first]
    shift = inner_first[middle] - first[:, None]
    taps = inner_weights.shape[1]
    weights = np.zeros((len(first), int(shift.max()) + taps))
    output = np.arange(len(first))[:, None]
    for j in range(outer_weights.shape[1]):
        weights[output, shift[:, j, None] + np.arange(taps)] += outer_weights[:, j, None] * inner_weights[middle[:, j]]
    return first, weights, length


def _tight(sums: Sums) -> Axis:
    """As few taps as possible, and none outside the source, so that the kernel need not check."""
    first, weights, length = sums
    used = weights > NEGLIGIBLE
    lead = used.argmax(axis=1)
    end = weights.shape[1] - used[:, ::-1].argmax(axis=1)
    taps = int((end - lead).max())
    start = np.minimum(first + lead, length - taps)
    index = (start - first)[:, None] + np.arange(taps)
    inside = (index >= 0) & (index < weights.shape[1])
    picked = np.take_along_axis(weights, np.clip(index, 0, weights.shape[1] - 1), axis=1)
    return Axis(start.astype(np.int32), np.where(inside, picked, 0).astype(np.float32))
