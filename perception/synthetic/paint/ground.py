"""The ground: the colours of the road's cross-section, row by row, and noise that moves with the road."""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

from perception.synthetic.chance import Purpose, seed_rng
from perception.synthetic.paint.cross_section import COLUMN_M, HALF_M, cross_section, table_row
from perception.synthetic.types import Array, Image, Single
from perception.synthetic.view import FAR_M, View

DASH_M, DASH_PERIOD_M = 3.5, 9.0

# Noise of the ground: texels across and along the road, metres, and strength. Perspective shortens what lies along the
# road, so the coarser ones, which are seen from farther away, are longer.
GRAINS = ((0.014, 0.022, 0.8), (0.09, 0.35, 0.55), (0.5, 3.5, 0.4), (3.0, 30.0, 0.3))
TILE = 512  # texels after which the noise repeats


def paint_ground(view: View, image: Image) -> None:
    """Fill the rows that see the ground."""
    camera, top = view.camera, view.first_row
    if top >= camera.intrinsics.height:
        return
    us = np.arange(camera.intrinsics.width) - camera.intrinsics.cx
    y, psi, s = (np.interp(view.row_x, view.ahead_x, a) for a in (view.ahead_y, view.ahead_psi, view.ahead_s))
    # The offset from the centre line is linear along a row: d = across * (u - cx) + middle, metres.
    across, middle = -view.row_depth / camera.intrinsics.fx * np.cos(psi), -y * np.cos(psi)
    near, far = (np.nan_to_num(view.depth_of_rows(view.rows + half), nan=FAR_M) for half in (0.5, -0.5))
    length = np.maximum(far - near, 1e-3)
    station = view.station + s

    def offsets(texel: float, shift: float, first: int = 0) -> Single:
        scaled = np.multiply.outer((across[first:] / texel).astype(np.float32), us.astype(np.float32))
        scaled += ((middle[first:] / texel) + shift).astype(np.float32)[:, None]
        return scaled

    def broadcast(values: Array) -> Single:
        return np.repeat(values.astype(np.float32)[:, None], camera.intrinsics.width, axis=1)

    columns = offsets(COLUMN_M, HALF_M / COLUMN_M)
    rows = broadcast(table_row(view.row_x, _dash_fill(station - length / 2, station + length / 2)))
    table = cross_section(view.scene)
    colours = cv2.remap(table, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    noise = np.zeros(colours.shape[:2], np.float32)
    tile = _noise_tile(view.scene.seed)
    for wide, long, strength in GRAINS:
        width_px = wide * camera.intrinsics.fx / view.row_depth
        weight = np.clip(1.5 * long / length - 0.25, 0, 1) * np.clip(width_px, 0, 1) * strength
        visible = np.flatnonzero(weight > 0.02)
        if not len(visible):
            continue
        first = int(visible[0])
        along = broadcast((station[first:] / long) % TILE)
        sampled = cv2.remap(tile, offsets(wide, TILE / 2, first), along, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        sampled *= weight[first:, None].astype(np.float32)
        noise[first:] += sampled
    noise *= cv2.extractChannel(colours, 3)
    cv2.add(cv2.cvtColor(colours, cv2.COLOR_BGRA2BGR), cv2.merge([noise] * 3), dst=image[top:], dtype=cv2.CV_8U)


def _dash_fill(start: Array, end: Array) -> Array:
    """Share of the stretch of road from ``start`` to ``end``, metres, that the dashes of a broken line cover."""

    def painted(s: Array) -> Array:
        return np.floor(s / DASH_PERIOD_M) * DASH_M + np.minimum(s % DASH_PERIOD_M, DASH_M)

    return (painted(end) - painted(start)) / np.maximum(end - start, 1e-6)


@lru_cache(maxsize=4)
def _noise_tile(seed: int) -> Single:
    """float32 ``(TILE + 1, TILE + 1)``: periodic noise of unit deviation, its first row and column repeated."""
    field = seed_rng(seed, Purpose.GROUND_NOISE).standard_normal((TILE, TILE)).astype(np.float32)
    blur = 0.8
    pad = math.ceil(4 * blur)
    field = cv2.GaussianBlur(np.pad(field, pad, mode="wrap"), (0, 0), blur)[pad:-pad, pad:-pad].astype(np.float32)
    field = (field - field.mean()) / field.std()
    return np.pad(field, (0, 1), mode="wrap").astype(np.float32)
