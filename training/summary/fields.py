"""Theoretical receptive fields: what every row and column of a tensor depends on, followed position by position."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

NOWHERE = 1 << 40  # the first row that nothing sees; the last one is its negative

I64 = NDArray[np.int64]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Extent:
    """The input rows (or columns) that a tensor depends on: ``low[i]`` to ``high[i]`` at position i along ``dim``.

    ``dim`` is None where it is the same everywhere; then both have one element. Nothing is seen where low > high.
    """

    dim: int | None
    low: I64
    high: I64

    def through(self, taps: I64) -> Extent:
        """After an operation whose output i reads the positions ``taps[i]``, int ``(outputs, taps)``; none where outside."""
        inside = (taps >= 0) & (taps < self.low.size)
        index = np.clip(taps, 0, self.low.size - 1)
        low = np.where(inside, self.low[index], NOWHERE).min(axis=1)
        high = np.where(inside, self.high[index], -NOWHERE).max(axis=1)
        return Extent(self.dim if low.size > 1 else None, low, high)

    def at(self, position: int) -> tuple[int, int]:
        """First and last of what is seen from there."""
        i = 0 if self.dim is None else position
        return int(self.low[i]), int(self.high[i])

    @property
    def longest(self) -> int:
        return max(0, int((self.high - self.low).max()) + 1)


UNSEEN = Extent(None, np.array([NOWHERE]), np.array([-NOWHERE]))


@dataclass(frozen=True)
class Field:
    """What a tensor depends on: input rows, input columns, the whole image beside those, and on whose assumption."""

    rows: Extent
    columns: Extent
    whole_image: bool = False
    assumed: frozenset[str] = frozenset()

    def each(self, change: Callable[[int, Extent], Extent]) -> Field:
        """With those extents changed that lie along a dimension, which ``change`` is given; the others stay."""
        rows, columns = (e if e.dim is None else change(e.dim, e) for e in (self.rows, self.columns))
        return replace(self, rows=rows, columns=columns)

    def unknown(self, operation: str) -> Field:
        return Field(UNSEEN, UNSEEN, True, self.assumed | {operation})

    @property
    def dims(self) -> set[int]:
        return {e.dim for e in (self.rows, self.columns) if e.dim is not None}

    @property
    def size(self) -> tuple[int, int]:
        return self.columns.longest, self.rows.longest


def field_of_image(height: int, width: int, dims: tuple[int, int]) -> Field:
    """Of the input itself, rows along the first of ``dims`` and columns along the second."""
    rows, columns = np.arange(height), np.arange(width)
    return Field(Extent(dims[0], rows, rows), Extent(dims[1], columns, columns))


def union(fields: Sequence[tuple[Field, int]], ndim: int) -> Field:
    """Of an element-wise operation on tensors of the given fields and numbers of dimensions, broadcast to ``ndim``."""

    def merge(extents: list[Extent]) -> Extent:
        shifted = [e if e.dim is None else replace(e, dim=e.dim + ndim - n) for e, (_, n) in zip(extents, fields, strict=True)]
        dims = {e.dim for e in shifted} - {None}
        if len(dims) > 1:  # rows of one against columns of the other, as in an outer product
            shifted = [Extent(None, e.low.min(keepdims=True), e.high.max(keepdims=True)) for e in shifted]
            dims = set()
        low, high = shifted[0].low, shifted[0].high
        for e in shifted[1:]:
            low, high = np.minimum(low, e.low), np.maximum(high, e.high)
        return Extent(dims.pop() if dims else None, low, high)

    return Field(
        merge([f.rows for f, _ in fields]),
        merge([f.columns for f, _ in fields]),
        any(f.whole_image for f, _ in fields),
        frozenset().union(*(f.assumed for f, _ in fields)),
    )


def gathered(field: Field, dims: set[int], kept: bool = True) -> Field:
    """After a reduction over ``dims``: over rows or columns it is one over the whole image."""

    def reduce(dim: int, extent: Extent) -> Extent:
        gone = 0 if kept else sum(d < dim for d in dims)
        return UNSEEN if dim in dims else replace(extent, dim=dim - gone)

    return replace(field.each(reduce), whole_image=field.whole_image or bool(dims & field.dims))


def moved(field: Field, places: Mapping[int, int]) -> Field:
    """With every dimension at another place. All that are rows or columns must be among ``places``."""
    return field.each(lambda dim, e: replace(e, dim=places[dim]))


def reshaped(field: Field, before: Shape, after: Shape, operation: str) -> Field:
    """After a view, in which rows and columns may be divided into blocks, or blocks be put in a row again, but not merged."""
    starts = {math.prod(after[:d]): d for d in reversed(range(len(after))) if after[d] > 1}
    places = {d: starts.get(math.prod(before[:d]), -1) for d in field.dims}

    def change(dim: int, extent: Extent) -> Extent:
        place = places[dim]
        old, new = before[dim], after[place]
        taps = np.arange(new)[:, None] * old // new + np.arange(max(1, old // new))
        return replace(extent.through(taps), dim=place)

    if any(place < 0 or (before[d] % after[place] and after[place] % before[d]) for d, place in places.items()):
        return field.unknown(f"{operation} that merges rows and columns")
    return field.each(change)


def sliced(field: Field, dim: int, start: int, step: int, length: int) -> Field:
    """After taking every ``step``-th of ``length`` positions along ``dim``."""
    taps = start + np.arange(length)[:, None] * step
    return field.each(lambda d, e: e.through(taps) if d == dim else e)
