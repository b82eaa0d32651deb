"""A dozen overlays spread over the whole run, on one page."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.errors import BadInput
from perception.overlay import draw
from perception.sinks.base import Output, Sink, write_whole
from perception.sinks.video import fitted

COLUMNS, ROWS = 3, 4
TILE_WIDTH = 640
SUFFIXES = (".png", ".jpg", ".jpeg")


class ContactSheetSink(Sink):
    """Keeps evenly spaced overlays within fixed memory: when there are twice too many, every other one goes."""

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise BadInput(f"{path}: the contact sheet is an image; end its name with {', '.join(SUFFIXES)}")
        self.target = path
        self._tiles: list[NDArray[np.uint8]] = []
        self._spacing, self._seen = 1, 0

    def write(self, output: Output) -> None:
        if self._seen % self._spacing == 0:
            if len(self._tiles) == 2 * COLUMNS * ROWS:
                self._tiles = self._tiles[::2]
                self._spacing *= 2
            if self._seen % self._spacing == 0:
                self._tiles.append(tile(draw(output.frame.image, output.result, output.metres)))
        self._seen += 1

    def close(self) -> None:
        if not self._tiles:
            return
        chosen = np.unique(np.linspace(0, len(self._tiles) - 1, COLUMNS * ROWS).round().astype(int))
        height, width = self._tiles[0].shape[:2]
        tiles = [fitted(self._tiles[i], (width, height)) for i in chosen]
        tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % COLUMNS)
        rows = [np.hstack(tiles[i : i + COLUMNS]) for i in range(0, len(tiles), COLUMNS)]
        _, data = cv2.imencode(self.target.suffix.lower(), np.vstack(rows))
        write_whole(self.target, np.asarray(data).tobytes())
        self.made = f"contact sheet {self.target}"


def tile(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = TILE_WIDTH / picture.shape[1]
    height = min(TILE_WIDTH * 2, max(1, round(picture.shape[0] * scale)))
    return np.asarray(cv2.resize(picture, (TILE_WIDTH, height), interpolation=cv2.INTER_AREA), np.uint8)
