"""Which input positions each output position of an operation reads, along rows or columns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from training.summary.fields import I64, Field, Shape

Taps = Callable[[int, int, int], I64]  # (0 for rows and 1 for columns, input length, output length) -> taps


def windowed(field: Field, before: Shape, after: Shape, taps: Taps, operation: str) -> Field:
    """After an operation on the last two dimensions that reads the given taps."""
    first = len(before) - 2
    if field.dims - {first, first + 1} or len(before) != len(after) or 0 in (*before, *after):
        return field.unknown(operation)
    return field.each(lambda dim, e: e.through(taps(dim - first, before[dim], after[dim])))


def window_taps(kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> Taps:
    """Of a convolution or pooling; each argument holds the one for rows and the one for columns."""
    return lambda axis, _, n: np.asarray(
        np.arange(n)[:, None] * stride[axis] - padding[axis] + np.arange(kernel[axis]) * dilation[axis]
    )


def transposed_taps(kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> Taps:
    """Of a transposed convolution: output o reads input i by tap k where ``o = i * stride + k * dilation - padding``."""

    def taps(axis: int, _: int, n: int) -> I64:
        reached = np.arange(n)[:, None] + padding[axis] - np.arange(kernel[axis]) * dilation[axis]
        return np.where(reached % stride[axis] == 0, reached // stride[axis], -1)

    return taps


def resize_taps(mode: str, coordinates: str = "half_pixel") -> Taps:
    """Of a resize; ``mode`` nearest, linear or cubic, ``coordinates`` in the words of ONNX."""

    def taps(_: int, inputs: int, outputs: int) -> I64:
        place, scale = np.arange(outputs, dtype=np.float64), inputs / outputs
        if coordinates == "align_corners":
            place = place * ((inputs - 1) / max(1, outputs - 1))
        elif coordinates == "asymmetric":
            place = place * scale
        else:
            place = (place + 0.5) * scale - 0.5
        if mode == "nearest":
            nearest = np.floor(place) if coordinates == "asymmetric" else np.ceil(place - 0.5)
            return np.clip(nearest.astype(np.int64), 0, inputs - 1)[:, None]
        base = np.floor(place + 1e-9).astype(np.int64)
        offsets = np.arange(2) if mode == "linear" else np.arange(-1, 3)
        between = (place - base > 1e-9)[:, None] | (offsets == 0)  # on a pixel's centre only that pixel counts
        return np.where(between, np.clip(base[:, None] + offsets, 0, inputs - 1), -1)

    return taps


def padding_taps(before: Shape, mode: str) -> Taps:
    """Of padding by ``before`` rows and columns; ``mode`` constant, reflect, edge or wrap, as in `numpy.pad`."""

    def taps(axis: int, inputs: int, outputs: int) -> I64:
        place = np.arange(outputs) - before[axis]
        if mode == "edge":
            place = np.clip(place, 0, inputs - 1)
        elif mode == "reflect":
            place = inputs - 1 - np.abs(inputs - 1 - np.abs(place))
        elif mode == "wrap":
            place = place % inputs
        return place[:, None]

    return taps


def shuffle_taps(factor: int) -> Taps:
    """Of depth to space."""
    return lambda axis, _, n: np.arange(n)[:, None] // factor


def block_taps(factor: int) -> Taps:
    """Of space to depth."""
    return lambda axis, _, n: np.arange(n)[:, None] * factor + np.arange(factor)
