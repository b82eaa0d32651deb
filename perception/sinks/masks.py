"""One PNG per frame."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from perception.errors import BadInput
from perception.polygons import exact_mask
from perception.sinks.base import Output, Sink, write_whole


class MaskSink(Sink):
    """8-bit PNGs of 0 and 255 in the frame's size, named by the image's stem or the frame's number.

    They hold the same regions as the polygons, before simplification.
    """

    def __init__(self, folder: Path, overwrite: bool) -> None:
        self.target, self._overwrite = folder, overwrite
        self._count = 0

    def write(self, output: Output) -> None:
        path = self.target / f"{output.frame.name}.png"
        if path.exists() and not self._overwrite:
            raise BadInput(f"{path}: exists already; give --overwrite to replace it")
        mask = exact_mask(output.scores, output.resampling, output.polygons)
        _, png = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        write_whole(path, np.asarray(png).tobytes())
        self._count += 1

    def close(self) -> None:
        if self._count:
            self.made = f"{self._count} masks in {self.target}"
