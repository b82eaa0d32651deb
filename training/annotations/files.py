"""Which files there are, which may be written, and images in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.files import write_whole
from training.annotations.base import IMAGE_SUFFIXES, stem_of

LONGEST_NAME = 200  # bytes; file systems take 255, and a file has a longer name while it is written

U8 = NDArray[np.uint8]


class Images:
    """The images below some folders, by name; those that lie in one of ``without``, folders of results, are none."""

    def __init__(self, folders: Iterable[Path], without: Sequence[Path] = ()) -> None:
        results = {folder.absolute() for folder in without}
        found = {p for folder in folders for p in files_below(folder, IMAGE_SUFFIXES) if p.absolute().parent not in results}
        self.paths = sorted(found, key=natural)
        self._by_name: dict[str, list[Path]] = {}
        for path in self.paths:
            for name in {path.name, path.stem}:
                self._by_name.setdefault(name, []).append(path)

    def find(self, name: str, beside: Path) -> Path | None:
        """The image called ``name`` (folders and suffix may differ); of several the one that lies closest to ``beside``."""
        whole = name.replace("\\", "/").rpartition("/")[2]
        found = self._by_name.get(whole) or self._by_name.get(stem_of(whole), [])
        return max(found, key=lambda p: len(os.path.commonpath((p.absolute(), beside.absolute()))), default=None)


class Outputs:
    """A folder of results: nothing is replaced unasked, and no file is written twice.

    Raises:
        ValueError: ``folder`` is a file, or holds files with this suffix already and ``overwrite`` is off.
    """

    def __init__(self, folder: Path, suffix: str, overwrite: bool) -> None:
        self.folder, self.suffix = folder, suffix
        self._taken: set[Path] = set()
        there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not there.is_dir():
            raise ValueError(f"{there}: is a file; give a folder")
        if not overwrite and (old := next(folder.glob(f"[!.]*{suffix}"), None)):
            raise ValueError(f"{old}: exists already; give --overwrite to replace files in {folder}, or another folder")

    def path(self, stem: str) -> Path:
        """Where the file called ``stem`` goes. Raises ValueError: that was written already, or is no name."""
        if not stem or "\0" in stem or len(stem.encode()) > LONGEST_NAME:
            raise ValueError(f"the image's name {stem[:20]!r} is none that a file can have")
        path = self.folder / f"{stem}{self.suffix}"
        if path in self._taken:
            raise ValueError(f"another file is about an image of this name, too; {path} is that one's")
        return path

    def write(self, stem: str, data: bytes) -> Path:
        path = self.path(stem)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
        self._taken.add(path)
        return path


def files_below(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Files below ``folder`` with one of ``suffixes``, without hidden ones."""
    return [p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file() and not p.name.startswith(".")]


def find_json(inputs: Sequence[Path]) -> list[Path]:
    """Files among ``inputs`` and JSON files below folders among them. Raises FileNotFoundError: there are none."""
    files: dict[Path, None] = {}
    for path in inputs:
        files.update(dict.fromkeys(sorted(files_below(path, {".json"}), key=natural) if path.is_dir() else [path]))
    if not files:
        raise FileNotFoundError(f"no .json in {', '.join(map(str, inputs))}")
    return list(files)


def must_exist(*paths: Path | None) -> None:
    for path in paths:
        if path and not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")


def read_image(path: Path) -> U8:
    """uint8 ``(H, W, 3)`` BGR. Raises ValueError: it cannot be read or decoded."""
    return decode(path, cv2.IMREAD_COLOR)


def read_label(path: Path) -> U8:
    """uint8 ``(H, W)``. Raises ValueError: it cannot be read or decoded, or has colours."""
    label = decode(path, cv2.IMREAD_UNCHANGED)
    if label.ndim != 2 or label.dtype != np.uint8:
        raise ValueError(f"{path} is no label: wanted one channel of 8 bits")
    return label


def decode(path: Path, flags: int) -> U8:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    image = cv2.imdecode(data, flags) if data.size else None
    if image is None:
        raise ValueError(f"{path} cannot be decoded as an image")
    return image  # type: ignore[return-value]


def encode(image: NDArray[np.uint8], suffix: str) -> bytes:
    _, data = cv2.imencode(suffix, np.ascontiguousarray(image))
    return np.asarray(data).tobytes()


def natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key: runs of digits compare as numbers."""
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", str(path))]
