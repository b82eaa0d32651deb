"""Which files there are, which may be written, and images in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.files import write_whole
from training.annotations.base import IMAGE_SUFFIXES, stem_of

LONGEST_NAME = 200  # bytes; file systems take 255, and a file has a longer name while it is written

U8 = NDArray[np.uint8]


class Images:
    """The images below some folders, by name; those below one of ``without``, folders of results within them, are none."""

    def __init__(self, folders: Iterable[Path], without: Sequence[Path] = ()) -> None:
        found: dict[str, Path] = {}
        for folder in folders:
            results = {result.absolute() for result in without if below(result, folder)}
            for path in files_below(folder, IMAGE_SUFFIXES):
                if results.isdisjoint(path.absolute().parents):
                    found.setdefault(os.path.abspath(path), path)
        self._by_name: dict[str, list[Path]] = {}
        for path in sorted(found.values(), key=natural):
            for name in {path.name, path.stem}:
                self._by_name.setdefault(name, []).append(path)
        self._known = set(found)

    def __contains__(self, path: Path) -> bool:
        return os.path.abspath(path) in self._known

    def find(self, name: str, beside: Path) -> Path | None:
        """The image that the file ``beside`` calls ``name``; the suffix may differ, and so may folders.

        Of several it is the one whose last folders are those of ``name``, then the one that has most folders in common with
        ``beside``.

        Raises:
            ValueError: that fits images in two folders equally.
        """
        *folders, whole = name.replace("\\", "/").split("/")
        found = self._by_name.get(whole) or self._by_name.get(stem_of(whole), [])
        near = set(beside.absolute().parent.parts)

        def likeness(path: Path) -> tuple[int, int]:
            parents = path.absolute().parent.parts
            pairs = zip(reversed(folders), reversed(parents), strict=False)
            return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs))), len(near & set(parents))

        highest = max(map(likeness, found), default=None)
        best = [path for path in found if likeness(path) == highest]
        if len({path.parent for path in best}) > 1:
            raise ValueError(f"may be about {best[0]} or {best[1]}; put it into a folder called as the image's")
        return best[0] if best else None


def led_to(name: str, beside: Path) -> Path | None:
    """The image that the path ``name`` leads to from the file ``beside``, None where it leads to none."""
    path = beside.parent / name.replace("\\", "/")
    return path if path.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(path) else None


def below(path: Path, folder: Path) -> Path | None:
    """The way from ``folder`` to ``path``, which may go through links; None where ``path`` is not below it."""
    for whole in (os.path.abspath, os.path.realpath):
        if Path(whole(path)).is_relative_to(whole(folder)):
            return Path(whole(path)).relative_to(whole(folder))
    return None


class Outputs:
    """A folder of results: nothing is replaced unasked, and no file is written twice.

    Raises:
        ValueError: ``folder`` is a file, or there are files with this suffix below it and ``overwrite`` is off.
    """

    def __init__(self, folder: Path, suffix: str, overwrite: bool) -> None:
        self.folder, self.suffix = folder, suffix
        self._taken: set[Path] = set()
        there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not there.is_dir():
            raise ValueError(f"{there}: is a file; give a folder")
        if not overwrite and (old := next(iter(files_below(folder, {suffix})), None)):
            raise ValueError(f"{old}: exists already; give --overwrite to replace files in {folder}, or another folder")

    def path(self, place: str) -> Path:
        """Where the file goes whose name, after folders with ``/``, is ``place``.

        Raises:
            ValueError: that was written already, or is no name.
        """
        stem = place.rpartition("/")[2]
        if not stem or "\0" in stem or len(stem.encode()) > LONGEST_NAME:
            raise ValueError(f"the image's name {stem[:20]!r} is none that a file can have")
        path = self.folder / f"{place}{self.suffix}"
        if path in self._taken:
            raise ValueError(f"another file is about an image of this name, too; {path} is that one's")
        return path

    def write(self, place: str, data: bytes) -> Path:
        path = self.path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
        self._taken.add(path)
        return path


def files_below(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Files below ``folder`` with one of ``suffixes``, without hidden ones."""
    return [p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file() and not p.name.startswith(".")]


def find_json(inputs: Sequence[Path]) -> dict[Path, Path]:
    """Files among ``inputs`` and JSON files below folders among them, each with its place: below that folder, or below the
    one that holds all the files given.

    Raises:
        FileNotFoundError: there are none.
    """
    single = [os.path.dirname(os.path.abspath(path)) for path in inputs if not path.is_dir()]
    common = os.path.commonpath(single) if single else ""
    files: dict[Path, Path] = {}
    for path in inputs:
        if path.is_dir():
            for file in sorted(files_below(path, {".json"}), key=natural):
                files.setdefault(file, file.relative_to(path))
        else:
            files.setdefault(path, Path(os.path.relpath(path, common)))
    if not files:
        raise FileNotFoundError(f"no .json in {', '.join(map(str, inputs))}")
    return files


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
