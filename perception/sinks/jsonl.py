"""One JSON object per frame and line."""

from __future__ import annotations

import os
from pathlib import Path

from perception.sinks.base import Output, Sink, part_of


class JsonlSink(Sink):
    """Writes ``freespace/1`` lines; the file gets its name when it is closed."""

    def __init__(self, path: Path) -> None:
        self.target, self._part = path, part_of(path)
        self._file = open(self._part, "w", encoding="utf-8", newline="\n")  # noqa: SIM115 - lives as long as the sink
        self._whole = 0  # bytes of whole lines
        self._failed = False

    def write(self, output: Output) -> None:
        self._failed = True
        self._file.write(output.result.to_json() + "\n")
        self._file.flush()  # a crash loses nothing that was reported
        self._whole = self._file.tell()
        self._failed = False

    def close(self) -> None:
        try:
            self._file.close()
        finally:
            if not self._whole:
                self._part.unlink()
            elif self._failed:
                os.truncate(self._part, self._whole)
                self.made = f"what could be written of the polygons: {self._part}"
            else:
                os.replace(self._part, self.target)
                self.made = f"polygons {self.target}"
