"""The road and its sides as a table of colours, which the ground is painted from.

Columns are the offset from the centre line. Rows are the distance, which blurs and fades the colours, two to each
doubling; blocks of such rows are the share of a broken line's dashes in what an image row sees.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

from perception.synthetic.chance import Purpose, scene_rng
from perception.synthetic.paint.light import light_of
from perception.synthetic.road import LANE_M, Road
from perception.synthetic.scene import Scene
from perception.synthetic.types import Array, Colour, Image

HALF_M, COLUMN_M = 24.0, 0.02  # the table's offsets end 24 m to either side; the width of a column
NEAREST_M, LEVELS, FILLS = 2.0, 20, 9  # the distance of the first row; rows to a block; blocks

WHITE: Colour = (226.0, 229.0, 230.0)
LINE_M, BROKEN_LINE_M = 0.14, 0.13  # widths


def table_row(x: Array, fill: Array) -> Array:
    """The row of the table for distances ``x``, metres, and shares ``fill`` of dashes, 0 to 1."""
    level = np.clip(2 * np.log2(np.maximum(x, 1e-3) / NEAREST_M), 0, LEVELS - 1)
    return np.asarray(level + np.round(fill * (FILLS - 1)) * LEVELS)


@lru_cache(maxsize=4)
def cross_section(scene: Scene) -> Image:
    """uint8 ``(FILLS * LEVELS, columns, 4)``: BGR and how strongly the noise of the ground shows, in grey levels."""
    road, light = scene.road, light_of(scene)
    d = np.arange(-HALF_M, HALF_M, COLUMN_M)
    surface = _surface(road, d, scene_rng(scene, Purpose.CROSS_SECTION))
    blocks = np.stack([_with_lines(surface, road, d, float(fill)) for fill in np.linspace(0, 1, FILLS)]).astype(np.float32)
    blocks[..., :3] *= np.asarray(light.tint, np.float32)
    blocks[..., 3] *= float(np.mean(light.tint))
    levels = []
    for level in range(LEVELS):
        x = NEAREST_M * 2 ** (level / 2)
        spread = 0.5 * x / scene.camera.intrinsics.fx / COLUMN_M
        size = 2 * math.ceil(3 * spread) + 1
        blurred = cv2.GaussianBlur(blocks, (size, 1), spread) if spread > 0.2 else blocks.copy()
        fade = light.faded(x)
        blurred[..., :3] += fade * (np.asarray(light.haze, np.float32) - blurred[..., :3])
        blurred[..., 3] *= 1 - fade
        levels.append(blurred)
    return np.clip(np.stack(levels, axis=1).reshape(-1, len(d), 4) + 0.5, 0, 255).astype(np.uint8)


def _surface(road: Road, d: Array, rng: np.random.Generator) -> Array:
    """``(columns, 4)``: fields, verges and asphalt, without lines."""
    table = np.empty((len(d), 4))
    table[:] = [*(np.array([52.0, 112.0, 96.0]) + rng.uniform(-10, 10, 3)), 17.0]  # grass
    fields = np.array([[58.0, 132.0, 112.0], [96.0, 158.0, 170.0], [52.0, 104.0, 80.0]])
    for side in (d < 0, d >= 0):
        table[side & (np.abs(d) > 13.0 + 3.0 * rng.uniform()), :3] = rng.choice(fields)
    outside = np.maximum(d - road.left, road.right - d)
    if road.verge == "gravel":
        table[outside < 1.5] = [78, 118, 116, 17.0]
        table[outside < 0.9] = [118, 132, 140, 14.0]
    elif road.verge == "pavement":
        table[outside < 2.6] = [146, 150, 154, 6.0]
        table[(outside < 2.6) & (np.abs(outside % 0.5) < 0.02)] = [112, 116, 120, 6.0]  # joints of the slabs
        table[outside < 0.18] = [176, 179, 181, 5.0]  # the kerb
    else:
        table[outside < 0.3] = [84, 112, 112, 15.0]
    grey = 116.0 + rng.uniform(-14, 14)
    asphalt = outside <= 0
    table[asphalt] = [grey + 2, grey, grey - 1, 9.0]
    wear = np.zeros(len(d))
    for lane in range(road.lanes + road.oncoming):
        middle = road.lane(lane)
        for track in (-0.8, 0.8):
            wear -= 8 * np.exp(-(((d - middle - track) / 0.28) ** 2))
        wear -= 5 * np.exp(-(((d - middle) / 0.25) ** 2))
    table[asphalt, :3] += wear[asphalt, None]
    return table


def _with_lines(surface: Array, road: Road, d: Array, fill: float) -> Array:
    """The surface with its lines painted on; broken ones have ``fill`` of their colour."""
    table = np.array(surface)

    def line(offset: float, width: float = LINE_M, share: float = 1.0) -> None:
        painted = np.abs(d - offset) <= width / 2
        table[painted, :3] += share * 0.94 * (np.asarray(WHITE) - table[painted, :3])

    line(road.right + road.margin)
    line(road.left - road.margin)
    if road.lanes == road.oncoming == 2:
        line(-0.13)
        line(0.13)
    boundaries = [*range(1, road.lanes), *range(road.lanes + 1, road.lanes + road.oncoming)]
    if road.oncoming == 1:
        boundaries.append(road.lanes)
    for boundary in boundaries:
        line((boundary - road.lanes) * LANE_M, BROKEN_LINE_M, fill)
    return table
