"""One JSON object per result and line, in one file or in a series of numbered ones."""

from __future__ import annotations

import mmap
import os
import re
import time
from dataclasses import replace
from pathlib import Path

from perception.errors import BadInput
from perception.freespace import Freespace
from perception.sinks.base import Output, Sink, check_output, make_folder, part_of

MEGABYTE = 1_000_000
SYNC_S = 1.0  # a power cut costs no more than this


class JsonlSink(Sink):
    """Writes ``freespace/1`` lines, those of results without a frame included; the file gets its name when it is closed.

    Every line is handed to the system as soon as it is written, and to the disk every second: a crash loses at most the last
    line, a power cut the last second.

    With ``rotate_mb`` there is a series, ``drive.0001.jsonl`` and so on: each of whole lines, none larger than that many
    megabytes (10^6 bytes) unless a single line is, each named as soon as the next one begins.

    With ``append`` it goes on where an earlier run ended, or was killed: in the newest file, less a line that was cut off. No
    frame occurs twice: the frames of a live source, which begins at 0 again, are numbered on from the last one (and
    ``dropped`` counted on); those of a recording that are there already are left out.

    Attributes:
        last: the newest result of the run before; None without one, or without ``append``.

    Raises:
        BadInput: what is to be continued does not end with a ``freespace/1`` line.
    """

    def __init__(self, path: Path, rotate_mb: float | None = None, append: bool = False, overwrite: bool = False) -> None:
        self.target, self._limit = path, None if rotate_mb is None else round(rotate_mb * MEGABYTE)
        self._append, self._failed = append, False
        self.last: Freespace | None = None
        self._shift: int | None = None
        self._files: list[Path] = []  # finished
        self._synced = time.monotonic()
        self._number = 1
        if self._limit is not None:
            if overwrite:
                remove_series(path)
            self._number = max(series(path), default=1)
        if append:
            self.last = last_result(path, self._limit is not None)
        self._begin()

    def write(self, output: Output) -> None:
        self.write_without_frame(output.result)

    def write_without_frame(self, result: Freespace) -> None:
        continued = self._continued(result)
        if continued is None:
            return
        line = continued.to_json().encode() + b"\n"
        if self._limit is not None and self._whole and self._whole + len(line) > self._limit:
            self._finish()
            self._number, self._append = self._number + 1, False
            self._begin()
        self._failed = True
        self._file.write(line)
        self._file.flush()  # a crash loses nothing that was reported
        if time.monotonic() - self._synced > SYNC_S:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()
        self._whole += len(line)
        self._failed = False

    def close(self) -> None:
        try:
            if not self._failed:
                os.fsync(self._file.fileno())
            self._file.close()
        finally:
            if not self._whole:
                self._part.unlink()
            elif self._failed:
                os.truncate(self._part, self._whole)
                self.made = f"what could be written of the polygons: {self._part}"
            else:
                self._finish()
            if not self._failed and self._files:
                more = f" to {self._files[-1]}" if len(self._files) > 1 else ""
                self.made = f"polygons {self._files[0]}{more}"

    def _begin(self) -> None:
        final = self.target if self._limit is None else numbered(self.target, self._number)
        self._part = part_of(final)
        self._whole = 0  # bytes of whole lines
        if self._append:
            if final.exists():  # while it is written to, it has the other name
                os.replace(final, self._part)
            if self._part.exists():
                _, self._whole = last_line(self._part)
                os.truncate(self._part, self._whole)
        self._file = open(self._part, "ab" if self._append else "wb")  # noqa: SIM115 - lives as long as the sink

    def _finish(self) -> None:
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()
        final = self.target if self._limit is None else numbered(self.target, self._number)
        os.replace(self._part, final)
        self._files.append(final)

    def _continued(self, result: Freespace) -> Freespace | None:
        """``result`` as the frame that it is of the whole file; None where the file has it already."""
        if self.last is None:
            return result
        if result.clock == "media":  # of a recording: its own numbers say which frame it is
            return (
                result
                if (result.source, self.last.clock) != (self.last.source, "media") or result.seq > self.last.seq
                else None
            )
        if result.seq < 0:  # before the first frame of this run, so after the last one of the run before
            return replace(result, seq=self.last.seq, dropped=result.dropped + self.last.dropped)
        if self._shift is None:  # 0 where the run itself numbers on
            self._shift = self.last.seq + 1 if result.seq <= self.last.seq else 0
        if not self._shift:
            return result
        return replace(result, seq=result.seq + self._shift, dropped=result.dropped + self.last.dropped)


def numbered(path: Path, number: int) -> Path:
    """The file of that number in a series: ``drive.jsonl``, 1: ``drive.0001.jsonl``."""
    return path.with_name(f"{path.stem}.{number:04d}{path.suffix}")


def series(path: Path) -> list[int]:
    """Numbers of the files of the series ``path``, finished or not, ascending."""
    name = re.compile(rf"\.?{re.escape(path.stem)}\.(\d{{4,}})(\.part)?{re.escape(path.suffix)}")
    found = (name.fullmatch(file.name) for file in path.parent.iterdir()) if path.parent.is_dir() else ()
    return sorted({int(match[1]) for match in found if match and match[0].startswith(".") == bool(match[2])})


def remove_series(path: Path) -> None:
    for number in series(path):
        for file in (numbered(path, number), part_of(numbered(path, number))):
            file.unlink(missing_ok=True)


def check_series(path: Path, overwrite: bool, append: bool, rotated: bool) -> None:
    """As `perception.sinks.base.check_output`, for an output that may be continued or be a series of numbered files.

    Raises:
        BadInput: there are files already and neither ``overwrite`` nor ``append`` is on, or both are, or it cannot be written.
    """
    if append and overwrite:
        raise BadInput(f"{path}: to append and to overwrite exclude each other; choose one")
    if not append and not rotated:
        check_output(path, overwrite)
        return
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; give a file name")
    if rotated and not overwrite and not append and (found := series(path)):
        first = numbered(path, found[0])
        existing = first if first.exists() else part_of(first)
        raise BadInput(f"{existing}: exists already; give --overwrite to replace the whole series, or --append to go on")
    if append and not rotated and path.exists() and part_of(path).exists():
        raise BadInput(f"{part_of(path)}: exists beside {path}, so which one to go on with? remove one of them")
    make_folder(path.parent)


def last_line(path: Path) -> tuple[bytes, int]:
    """The last whole line of a file, and the number of bytes up to its end: what lies behind was cut off."""
    if not path.stat().st_size:
        return b"", 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = data.rfind(b"\n") + 1
        begin = data.rfind(b"\n", 0, max(0, end - 1)) + 1
        return data[begin:end], end


def last_result(path: Path, rotated: bool) -> Freespace | None:
    """The newest result in the file or series ``path``, finished or not; None where there is none.

    Raises:
        BadInput: the last line is no ``freespace/1``: it is another kind of file.
    """
    files = [numbered(path, number) for number in reversed(series(path))] if rotated else [path]
    for file in (name for final in files for name in (part_of(final), final) if name.exists()):
        line, end = last_line(file)
        if not end:
            if not rotated and file == path and file.stat().st_size:
                raise BadInput(f"{file}: is no file of results, nothing can be appended; choose another name")
            continue
        try:
            return Freespace.from_json(line.decode())
        except ValueError as error:
            raise BadInput(f"{file}: does not end with a result, nothing can be appended: {error}; move it away") from error
    return None
