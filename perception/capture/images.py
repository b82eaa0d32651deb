"""An image, or a folder of images played at a chosen rate."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from perception.capture.base import Selection, Source
from perception.errors import BadInput
from perception.frame import Frame

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})


class ImageSource(Source):
    """Images in natural order of their names (``2.png`` before ``10.png``); sizes may differ from one to the next.

    Grey and transparent images become BGR, transparency is dropped, EXIF orientation is applied. A file that cannot be
    decoded is reported and counted as dropped; its number stays free. An image's stamp is its place in the folder
    divided by ``image_fps``: files on disk do not say when they were taken.
    """

    def __init__(self, uri: str, selection: Selection, image_fps: float) -> None:
        path = Path(uri)
        self.single = path.is_file()
        files = (
            [path]
            if self.single
            else sorted(
                (
                    p
                    for p in path.iterdir()
                    if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file() and not p.name.startswith(".")
                ),
                key=natural,
            )
        )
        if not files:
            raise BadInput(f"{uri}: no images in this folder ({', '.join(sorted(IMAGE_SUFFIXES))})")
        first = place(selection.start_s, image_fps, len(files))
        last = len(files)
        if selection.duration_s is not None:
            last = max(first + 1, place(selection.start_s + selection.duration_s, image_fps, len(files)))
        self.numbered = list(enumerate(files))[first : last : selection.every]
        if not self.numbered:
            raise BadInput(
                f"{uri}: starts after its end: {len(files)} images at {image_fps:g} per second, not {selection.start_s:g} s"
            )
        self.name_of = unique_names(files)
        self.image_fps = image_fps
        super().__init__(uri, image_fps / selection.every, len(self.numbered), continuous=False)

    def frames(self) -> Iterator[Frame]:
        for seq, path in self.numbered:
            started = time.perf_counter_ns()
            image, reason = read_image(path)
            if image is None:
                if self.single:
                    raise BadInput(f"{path}: {reason}")
                self.lost(f"{path}: {reason}; skipped")
                continue
            yield Frame(
                image,
                seq,
                round(seq / self.image_fps * 1e9),
                "media",
                self.uri,
                name=self.name_of[path],
                decode_ms=(time.perf_counter_ns() - started) / 1e6,
                dropped=self.dropped,
            )


def place(time_s: float, image_fps: float, count: int) -> int:
    """Index of the first of ``count`` images that is not before ``time_s``."""
    return math.ceil(min(time_s * image_fps, count) - 1e-9)


def unique_names(files: list[Path]) -> dict[Path, str]:
    """Each file's stem; its whole name where two share one."""
    stems = Counter(p.stem for p in files)
    names = {p: p.stem if stems[p.stem] == 1 else p.name for p in files}
    return names if len(set(names.values())) == len(files) else {p: p.name for p in files}


def read_image(path: Path) -> tuple[np.ndarray | None, str]:
    """The image as uint8 BGR ``(H, W, 3)``, or None and the reason."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        return None, f"cannot be read: {error.strerror}"
    if not data.size:
        return None, "is empty (0 bytes)"
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:  # e.g. larger than OpenCV allows
        return None, f"cannot be decoded: {error.err}"
    return (image, "") if image is not None else (None, "cannot be decoded as an image (broken or truncated?)")


def natural(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key: runs of digits compare as numbers."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts], path.name
