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

    def write(self, output: Output) -> None:
        self._file.write(output.result.to_json() + "\n")
        self._file.flush()  # a crash loses nothing that was reported
        self._whole = self._file.tell()

    def close(self) -> None:
        try:
            self._file.close()
        finally:
            if self._whole:
                os.truncate(self._part, self._whole)
                os.replace(self._part, self.target)
                self.made = f"polygons {self.target}"
            else:
                self._part.unlink()
