"""Labels on their images, for a look: half label, half image."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from training.annotations.classes import IGNORE, Classes

U8 = NDArray[np.uint8]

COLUMNS, ROWS = 3, 4
TILE = (640, 360)  # width, height
UNKNOWN_COLOUR = (128, 128, 128)  # BGR


def palette(classes: Classes) -> U8:
    """BGR uint8 ``(2 + classes, 3)``, the rows of `Classes.table`: one value, one colour; grey is unknown, black nothing."""
    values = [tuple(row) for row in classes.table.tolist()]
    others = [v for v in dict.fromkeys(values) if v != classes.background and set(v) != {IGNORE}]
    hues = np.array([[[129 + 111 * i, 220, 210] for i in range(len(others) or 1)]]) % (180, 256, 256)
    colours = dict(zip(others, cv2.cvtColor(hues.astype(np.uint8), cv2.COLOR_HSV2BGR)[0].tolist(), strict=False))
    return np.array([(0, 0, 0) if v == classes.background else colours.get(v, UNKNOWN_COLOUR) for v in values], np.uint8)


def overlay(image: U8, ranks: NDArray[np.int32], classes: Classes) -> U8:
    """A copy of ``image`` uint8 ``(H, W, 3)`` BGR, labelled pixels mixed half and half with the colour of their class."""
    painted = palette(classes)[ranks]
    mixed = cv2.addWeighted(image, 0.5, painted, 0.5, 0)
    return np.where(painted.any(axis=2, keepdims=True), mixed, image)


class ContactSheet:
    """A dozen pictures spread over all that were added, within fixed memory: when there are too many, every other one goes."""

    def __init__(self) -> None:
        self._tiles: list[U8] = []
        self._spacing, self._seen = 1, 0

    def add(self, picture: U8) -> None:
        if self._seen % self._spacing == 0:
            if len(self._tiles) == 2 * COLUMNS * ROWS:
                self._tiles = self._tiles[::2]
                self._spacing *= 2
            if self._seen % self._spacing == 0:
                self._tiles.append(tile(picture))
        self._seen += 1

    def page(self) -> U8 | None:
        """uint8 ``(rows * 360, 1920, 3)``; None where nothing was added."""
        if not self._tiles:
            return None
        chosen = np.unique(np.linspace(0, len(self._tiles) - 1, COLUMNS * ROWS).round().astype(int))
        tiles = [self._tiles[i] for i in chosen]
        tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % COLUMNS)
        return np.vstack([np.hstack(tiles[i : i + COLUMNS]) for i in range(0, len(tiles), COLUMNS)])


def tile(picture: U8) -> U8:
    """``picture`` as large as fits into `TILE`, black around it."""
    height, width = picture.shape[:2]
    scale = min(TILE[0] / width, TILE[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (TILE[0] - size[0]) // 2, (TILE[1] - size[1]) // 2
    page = np.zeros((TILE[1], TILE[0], 3), np.uint8)
    page[top : top + size[1], left : left + size[0]] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return page
