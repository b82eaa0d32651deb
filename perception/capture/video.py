"""Video files, through PyAV (FFmpeg): every frame with its own presentation time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from perception.capture.base import Selection, Source
from perception.errors import BadInput, FreespaceError
from perception.frame import Frame

NANOSECONDS = 1_000_000_000
QUARTER_TURNS = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}
NO_VIDEO = ("tty",)  # FFmpeg paints any text file as a terminal
SEEK_MARGIN_S = 1  # a key frame is found by its decoding time, which may precede that of pictures shown before it
SHORTFALL_S = 0.25  # a header's length is rounded, and may be that of a sound track


class VideoSource(Source):
    """Frames of a video file in presentation order, upright, stamped with their media time from the file's beginning.

    ``seq`` is the frame's number in the whole recording, wherever one starts: a frame that cannot be decoded is counted as
    dropped and leaves a gap. A file that ends before its header says so is reported.
    """

    def __init__(self, uri: str, selection: Selection) -> None:
        import av

        self.uri = uri
        self._address = f"file:{Path(uri).absolute()}"  # a name with a colon is no protocol
        try:
            self._open()
        except (av.error.FFmpegError, OSError) as error:
            raise BadInput(f"{uri}: cannot be opened as a video: {reason(error)}; is it complete?") from error
        if self._container.format.name in NO_VIDEO:
            raise BadInput(f"{uri}: cannot be opened as a video: it is text")
        if self._stream is None:
            raise BadInput(f"{uri}: has no video stream")
        self._selection, self._reformatter = selection, reformatter()
        rate: Fraction = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.rate = float(rate) if 0 < rate < 1000 else 25.0
        self._begin: Fraction = (self._stream.start_time or 0) * self._stream.time_base
        self._promised = self._stream.frames or None
        self._length_s = self._header_length_s()
        if self._length_s is not None and selection.start_s >= self._length_s > 0:
            raise self._starts_too_late()
        total = None
        if self._length_s is not None:
            taken = self._length_s - selection.start_s
            if selection.duration_s is not None:
                taken = min(taken, selection.duration_s)
            total = max(1, -(-round(taken * self.rate) // selection.every))
        super().__init__(uri, self.rate / selection.every, total)

    def _open(self) -> None:
        import av

        self._container: Any = av.open(self._address)
        self._stream: Any = next(iter(self._container.streams.video), None)
        if self._stream is not None:
            self._stream.thread_type = "AUTO"

    def _header_length_s(self) -> float | None:
        if self._stream.duration is not None:
            return float(self._stream.duration * self._stream.time_base)
        if self._container.duration:
            return float(self._container.duration / 1e6)
        return float(self._promised / self.rate) if self._promised else None

    def _starts_too_late(self) -> BadInput:
        length_s, start_s = self._length_s or 0.0, self._selection.start_s
        return BadInput(f"{self.uri}: starts after its end: it is {length_s:.2f} s long, asked for {start_s:g} s")

    def frames(self) -> Iterator[Frame]:
        selection = self._selection
        start_ns = round(selection.start_s * NANOSECONDS)
        end_ns = start_ns + round(selection.duration_s * NANOSECONDS) if selection.duration_s else None
        sought = start_ns > 0 and self._seek(start_ns)
        first_taken, last_ns = None, 0
        started = time.perf_counter_ns()
        for number, picture, stamp_ns in self._numbered_pictures(sought):
            last_ns = stamp_ns
            if stamp_ns < start_ns:
                started = time.perf_counter_ns()  # reading up to the start is no frame's decoding time
                continue
            if end_ns is not None and stamp_ns >= end_ns and first_taken is not None:
                return
            first_taken = number if first_taken is None else first_taken
            if (number - first_taken) % selection.every:
                continue
            image = upright(picture, self._reformatter)
            decode_ms = (time.perf_counter_ns() - started) / 1e6
            yield Frame(
                image, number, stamp_ns, "media", self.uri, name=f"{number:06d}", decode_ms=decode_ms, dropped=self.dropped
            )
            started = time.perf_counter_ns()
        self._report_early_end(last_ns)
        if first_taken is None:
            raise self._starts_too_late() if last_ns else FreespaceError(f"{self.uri}: no frame could be decoded")

    def _seek(self, start_ns: int) -> bool:
        """Go to the key frame before a media time; False where the format cannot (a raw stream): then one reads up to it."""
        import av

        target = (self._begin + Fraction(start_ns, NANOSECONDS) - SEEK_MARGIN_S) / self._stream.time_base
        try:
            self._container.seek(int(target), stream=self._stream, backward=True)
        except (av.error.FFmpegError, OSError):
            self.close()
            self._open()  # the attempt may have left it anywhere
            return False
        return True

    def _numbered_pictures(self, sought: bool) -> Iterator[tuple[int, Any, int]]:
        """(number, picture, stamp) in presentation order.

        A picture's number is the rank of its time stamp among those of all packets: those of them that precede it and gave no
        picture are lost.
        """
        self._waiting: list[int] = []  # time stamps of packets read, whose pictures have not come yet
        self._error = ""
        number, previous_ns = -1 if sought else 0, -round(NANOSECONDS / self.rate)
        for picture in self._pictures():
            if picture.pts is None:
                stamp_ns = previous_ns + round(NANOSECONDS / self.rate)
            else:
                stamp_ns = round((picture.pts * self._stream.time_base - self._begin) * NANOSECONDS)
            if number < 0:
                number = self._count_before(picture.pts) if picture.pts is not None else round(stamp_ns / 1e9 * self.rate)
                self._waiting = [pts for pts in self._waiting if picture.pts is None or pts >= picture.pts]
                heapify(self._waiting)
            while picture.pts is not None and self._waiting and self._waiting[0] <= picture.pts:
                if heappop(self._waiting) < picture.pts:
                    self.lost(f"{self.uri}: frame {number} could not be decoded{self._error}")
                    number += 1
            yield number, picture, stamp_ns
            number, previous_ns = number + 1, stamp_ns
        self._read = max(number, 0)
        if not self._cut:
            for i in range(len(self._waiting)):
                self.lost(f"{self.uri}: frame {number + i} could not be decoded{self._error}")
            self._read += len(self._waiting)

    def _pictures(self) -> Iterator[Any]:
        """Decoded pictures. A packet that is broken is held back until another follows: the last one is a cut, no loss."""
        import av

        packets, held = self._container.demux(self._stream), []
        self._cut, self._discarded = False, 0
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except av.error.FFmpegError as error:
                self._cut, self._error = True, f": {reason(error)}"
                packet = None
            if packet is not None and packet.is_corrupt:
                held.append(packet)
                continue
            if packet is None or packet.size == 0:  # the end: what the decoder still holds
                self._cut = self._cut or bool(held)
                packets = iter(())
                held = []
            for part in (*held, packet):
                if part is not None and part.is_discard:
                    self._discarded += 1
                elif part is not None and part.pts is not None and part.size:
                    heappush(self._waiting, part.pts)
                try:
                    yield from self._stream.codec_context.decode(part)
                except av.error.EOFError:
                    break
                except av.error.FFmpegError as error:
                    self._error = f": {reason(error)}"
            held = []

    def _count_before(self, pts: int) -> int:
        """How many frames of the whole file come before time stamp ``pts``: reads packets, decodes nothing."""
        import av

        count = 0
        with av.open(self._address) as container:
            for packet in container.demux(container.streams.video[0]):
                if packet.dts is not None and packet.dts > pts:
                    break
                count += packet.pts is not None and packet.pts < pts and not packet.is_discard
        return count

    def _report_early_end(self, last_ns: int) -> None:
        missing = self._promised - self._read - self._discarded if self._promised else 0
        short = self._length_s is not None and last_ns / 1e9 + 1 / self.rate < self._length_s - max(SHORTFALL_S, 2 / self.rate)
        if missing > 0:
            self.dropped += missing
            self.problems.append(f"{self.uri}: ends early: {self._read} of {self._promised} frames; is the file truncated?")
        elif self._cut or short or not mp4_is_whole(Path(self.uri), self._container.format.name):
            self.problems.append(f"{self.uri}: ends early, after {self._read} frames; is the file truncated?")

    def close(self) -> None:
        self._container.close()


def reformatter() -> Any:
    """What turns pictures into BGR, one after the other; set up anew for each of them it takes four times as long."""
    from av.video.reformatter import VideoReformatter

    return VideoReformatter()


def upright(picture: Any, reformatter: Any) -> np.ndarray:
    """BGR pixels, turned as the file's display matrix says (a phone held upright)."""
    image: np.ndarray = reformatter.reformat(picture, format="bgr24", threads=1).to_ndarray()
    turn = QUARTER_TURNS.get(round(getattr(picture, "rotation", 0)) % 360)
    return image if turn is None else np.asarray(cv2.rotate(image, turn))


def mp4_is_whole(path: Path, format_name: str) -> bool:
    """Whether the last of an MP4's boxes ends with the file: FFmpeg passes over a fragment that was cut off."""
    if "mp4" not in format_name:
        return True
    size, position = path.stat().st_size, 0
    with open(path, "rb") as file:
        while position < size:
            file.seek(position)
            header = file.read(16)
            length = int.from_bytes(header[:4], "big")
            if length == 1:  # 64-bit length behind the type
                length = int.from_bytes(header[8:16], "big")
            if length == 0:  # to the end of the file
                return True
            if length < 8:
                return False
            position += length
    return position == size


def reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
