"""Which module reads a file, and which ones write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from training.annotations import bdd100k, cityscapes, coco, labelme, supervisely
from training.annotations.base import Entry

READERS = {"labelme": labelme, "supervisely": supervisely, "coco": coco, "bdd100k": bdd100k, "cityscapes": cityscapes}
WRITERS = {"labelme": labelme.write, "supervisely": supervisely.write}


def open_annotations(path: Path, name: str | None = None) -> tuple[str, list[Entry]]:
    """The format of the file ``path`` (``name`` where it is given, else as the content says), and its images.

    Raises:
        OSError: it cannot be read.
        base.MALFORMED: no JSON, of no known format, or not of the format ``name``.
    """
    data = parse(path.read_bytes())
    found = formats_of(data)
    if name and found and name not in found:
        raise ValueError(f"looks like {found[0]}, not like {name}; give --format {found[0]}, or none")
    name = name or format_of(data)
    return name, READERS[name].read(data, path)


def parse(text: bytes) -> Any:
    """JSON as data. Raises ValueError: it is broken."""
    try:
        return orjson.loads(text.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise ValueError(f"broken JSON: {error}") from error


def format_of(data: Any) -> str:
    """The name of the format of ``data``. Raises ValueError: none that is known."""
    found = formats_of(data)
    if not found:
        raise ValueError(f"no known format ({', '.join(READERS)})")
    return found[0]


def formats_of(data: Any) -> list[str]:
    """The names of all formats that ``data`` looks like."""
    return [name for name, module in READERS.items() if module.recognise(data)]
