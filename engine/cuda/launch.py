"""Launches of the kernels: grids, blocks and arguments. Addresses are of device memory, sizes are (width, height) in pixels.

Nothing here waits: what a kernel reads must be there by the stream's order, and what it writes is ready by the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from engine.cuda.resampling import Tables
from engine.preprocess import PADDING_GREY

Dim3 = tuple[int, int, int]
BLOCK: Dim3 = (32, 8, 1)


class KernelModule(Protocol):
    """The loaded kernels."""

    def launch(self, kernel: str, grid: Dim3, block: Dim3, args: Sequence[np.generic], stream: Any, /) -> None:
        """Queue ``kernel``; ``args`` are uint64 addresses, int32 and float32 scalars in the order of its parameters."""


@dataclass(frozen=True)
class DeviceTables:
    """Uploaded `Tables`; sizes as there, the tables by address.

    Attributes:
        first_x, first_y: addresses of the first taps, int32.
        weights_x, weights_y: addresses of the weights, float32.
        taps_x, taps_y: weights per output column and row.
    """

    frame_size: tuple[int, int]
    size: tuple[int, int]
    content: tuple[int, int, int, int]
    first_x: int
    weights_x: int
    taps_x: int
    first_y: int
    weights_y: int
    taps_y: int
    lift: float

    @classmethod
    def at(cls, address: int, tables: Tables) -> DeviceTables:
        """The tables whose `Tables.block` was copied to ``address``, a multiple of 4."""
        columns, rows = tables.columns, tables.rows
        weights_x = address + columns.first.nbytes
        first_y = weights_x + columns.weights.nbytes
        weights_y = first_y + rows.first.nbytes
        return cls(
            tables.frame_size,
            tables.size,
            tables.content,
            first_x=address,
            weights_x=weights_x,
            taps_x=columns.taps,
            first_y=first_y,
            weights_y=weights_y,
            taps_y=rows.taps,
            lift=tables.lift,
        )


@dataclass(frozen=True)
class YuvCoefficients:
    """How colours are made of luma y and chroma u, v, all in integers of 2^-20 but ``black``.

    ``b = luma * (y - black) + u_to_b * (u - 128)``, ``g`` and ``r`` likewise; y below black counts as black.
    """

    black: int
    luma: int
    u_to_b: int
    u_to_g: int
    v_to_g: int
    v_to_r: int

    @classmethod
    def of(cls, black: int, luma: float, u_to_b: float, u_to_g: float, v_to_g: float, v_to_r: float) -> YuvCoefficients:
        """The same from real coefficients."""
        return cls(black, *(round(value * (1 << 20)) for value in (luma, u_to_b, u_to_g, v_to_g, v_to_r)))


BT601 = YuvCoefficients.of(16, 1.164, 2.018, -0.391, -0.813, 1.596)  # what cv2.cvtColor takes, to the bit
BT709 = YuvCoefficients.of(16, 1.16438, 2.11240, -0.21325, -0.53291, 1.79274)
BT601_FULL = YuvCoefficients.of(0, 1.0, 1.772, -0.344136, -0.714136, 1.402)
BT709_FULL = YuvCoefficients.of(0, 1.0, 1.8556, -0.187324, -0.468124, 1.5748)


def resample_bgr(module: KernelModule, frame: int, pitch: int, tables: DeviceTables, out: int, stream: Any = None) -> None:
    """uint8 ``(H, W, 3)`` at ``frame``, rows ``pitch`` bytes apart -> uint8 ``(h, w, 3)`` at ``out``, dense.

    Raises:
        ValueError: the pitch is shorter than a row.
    """
    _check_pitch("frame", pitch, 3 * tables.frame_size[0])
    args = [np.uint64(frame), np.int32(pitch), *_table_args(tables, out)]
    _launch(module, "resample_bgr", tables.size, args, stream)


def resample_nv12(
    module: KernelModule,
    luma: int,
    luma_pitch: int,
    chroma: int,
    chroma_pitch: int,
    coefficients: YuvCoefficients,
    tables: DeviceTables,
    out: int,
    stream: Any = None,
) -> None:
    """uint8 luma ``(H, W)`` and chroma ``((H + 1) // 2, (W + 1) // 2, 2)`` -> uint8 ``(h, w, 3)`` at ``out``, dense.

    Raises:
        ValueError: a pitch is shorter than a row.
    """
    _check_pitch("luma", luma_pitch, tables.frame_size[0])
    _check_pitch("chroma", chroma_pitch, _even(tables.frame_size[0]))
    planes = [np.uint64(luma), np.int32(luma_pitch), np.uint64(chroma), np.int32(chroma_pitch)]
    args = [*planes, *_colour_args(coefficients), *_table_args(tables, out)]
    _launch(module, "resample_nv12", tables.size, args, stream)


def resample_yuyv(
    module: KernelModule,
    frame: int,
    pitch: int,
    coefficients: YuvCoefficients,
    tables: DeviceTables,
    out: int,
    stream: Any = None,
) -> None:
    """uint8 ``(H, W, 2)``, rows of (y0, u, y1, v) for two pixels each -> uint8 ``(h, w, 3)`` at ``out``, dense.

    Raises:
        ValueError: the pitch is shorter than a row.
    """
    _check_pitch("frame", pitch, 2 * _even(tables.frame_size[0]))
    args = [np.uint64(frame), np.int32(pitch), *_colour_args(coefficients), *_table_args(tables, out)]
    _launch(module, "resample_yuyv", tables.size, args, stream)


def remap_bgr(
    module: KernelModule,
    frame: int,
    pitch: int,
    frame_size: tuple[int, int],
    coordinates: int,
    out: int,
    size: tuple[int, int],
    *,
    halvings: DeviceTables | None = None,
    halved: int = 0,
    map_size: tuple[int, int] | None = None,
    stream: Any = None,
) -> None:
    """uint8 ``(H, W, 3)`` at ``frame`` -> uint8 ``(h, w, 3)`` at ``out``, dense, along a map; outside is `PADDING_GREY`.

    Args:
        coordinates: address of float32 ``(h, w, 2)``, (x, y) in the frame's pixels, as ``cv2.remap`` takes them.
        size: (w, h).
        halvings: for frames much larger than the output: uploaded `engine.cuda.resampling.halving_tables`. The frame is
            halved with them first, because the map reads 2 x 2 pixels and would skip the others.
        halved: address of the halved frame, ``3 * w * h`` bytes for ``halvings.size``; needed with ``halvings`` only.
        map_size: size of the frame that the coordinates refer to, where it is not this one (halved already).

    Raises:
        ValueError: the pitch is shorter than a row, or ``halvings`` are of another frame size or without ``halved``.
    """
    _check_pitch("frame", pitch, 3 * frame_size[0])
    map_size = map_size or frame_size
    if halvings is not None:
        if halvings.frame_size != frame_size or not halved:
            raise ValueError(f"halvings of {halvings.frame_size} frames into {halved:#x} for a {frame_size} frame")
        resample_bgr(module, frame, pitch, halvings, halved, stream)
        frame, pitch, frame_size = halved, 3 * halvings.size[0], halvings.size
    args = [
        np.uint64(frame),
        np.int32(pitch),
        np.int32(frame_size[0]),
        np.int32(frame_size[1]),
        np.uint64(coordinates),
        np.float32(frame_size[0] / map_size[0]),
        np.float32(frame_size[1] / map_size[1]),
        np.uint64(out),
        np.int32(size[0]),
        np.int32(size[1]),
        np.int32(PADDING_GREY),
    ]
    _launch(module, "remap_bgr", size, args, stream)


def blend_scores(
    module: KernelModule,
    state: int,
    scores: int,
    out: int,
    shape: tuple[int, int, int],
    alpha: float,
    *,
    reset: bool = False,
    stream: Any = None,
) -> None:
    """Exponential blend of scores over time: ``state += alpha * (scores - state)``, or ``state = scores`` with ``reset``.

    Args:
        state: address of float32 ``(K, h, w)``, updated.
        scores: address of uint8 ``(K, h, w)``.
        out: address of uint8 ``(K, h, w)``, the rounded state; may be ``scores``.
        shape: (K, h, w).
        alpha: weight of the new scores, above 0 and up to 1.

    Raises:
        ValueError: ``alpha`` is out of its range.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be above 0 and at most 1, got {alpha}")
    planes, height, width = shape
    size = (width, planes * height)
    args = [np.uint64(state), np.uint64(scores), np.uint64(out), *map(np.int32, size), np.float32(alpha), np.int32(reset)]
    _launch(module, "blend_scores", size, args, stream)


def pack_mask(
    module: KernelModule,
    scores: int,
    previous: int | None,
    out: int,
    shape: tuple[int, int, int],
    low: int,
    high: int,
    stream: Any = None,
) -> None:
    """Threshold with hysteresis: set where ``score >= high``, and where it was set in ``previous`` and ``score >= low``.

    Args:
        scores: address of uint8 ``(K, h, w)``.
        previous: address of the packed masks before, None where there are none; may be ``out``.
        out: address of uint8 ``(K, h, (w + 7) // 8)``, as ``np.packbits(mask, axis=-1, bitorder="little")``.
        shape: (K, h, w).
        low, high: thresholds, ``low <= high``.

    Raises:
        ValueError: ``low`` is above ``high``.
    """
    if low > high:
        raise ValueError(f"the lower threshold, {low}, is above the upper one, {high}")
    planes, height, width = shape
    rows = planes * height
    args = [
        np.uint64(scores),
        np.uint64(previous or 0),
        np.uint64(out),
        np.int32(width),
        np.int32(rows),
        np.int32(low),
        np.int32(high),
    ]
    _launch(module, "pack_mask", ((width + 7) // 8, rows), args, stream)


def _launch(module: KernelModule, kernel: str, size: tuple[int, int], args: list[np.generic], stream: Any) -> None:
    """One thread for each of ``size`` = (columns, rows)."""
    grid = (-(-size[0] // BLOCK[0]), -(-size[1] // BLOCK[1]), 1)
    module.launch(kernel, grid, BLOCK, args, stream)


def _table_args(tables: DeviceTables, out: int) -> list[np.generic]:
    return [
        np.uint64(tables.first_x),
        np.uint64(tables.weights_x),
        np.int32(tables.taps_x),
        np.uint64(tables.first_y),
        np.uint64(tables.weights_y),
        np.int32(tables.taps_y),
        np.float32(tables.lift),
        *map(np.int32, tables.content),
        np.uint64(out),
        *map(np.int32, tables.size),
        np.int32(PADDING_GREY),
    ]


def _colour_args(coefficients: YuvCoefficients) -> list[np.generic]:
    c = coefficients
    return [np.int32(value) for value in (c.black, c.luma, c.u_to_b, c.u_to_g, c.v_to_g, c.v_to_r)]


def _check_pitch(what: str, pitch: int, row: int) -> None:
    if pitch < row:
        raise ValueError(f"{what}: rows of {row} bytes cannot lie {pitch} bytes apart")


def _even(length: int) -> int:
    return length + length % 2
