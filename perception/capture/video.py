"""Video files, through PyAV (FFmpeg): every frame with its own presentation time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, cast

import cv2
import numpy as np

from perception.capture.base import Selection, Source
from perception.errors import BadInput, FreespaceError
from perception.frame import Frame

NANOSECONDS = 1_000_000_000
QUARTER_TURNS = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}


class VideoSource(Source):
    """Frames of a video file in presentation order, upright, stamped with their media time from the file's beginning.

    A packet that cannot be decoded is counted as a dropped frame; a file that ends before its header says so is reported.
    """

    def __init__(self, uri: str, selection: Selection) -> None:
        import av

        try:
            self._container: Any = av.open(uri)
        except (av.error.FFmpegError, OSError) as error:
            raise BadInput(f"{uri}: cannot be opened as a video: {reason(error)}; is it complete?") from error
        if not self._container.streams.video:
            self._container.close()
            raise BadInput(f"{uri}: has no video stream")
        self._stream = cast("Any", self._container.streams.video[0])
        self._stream.thread_type = "AUTO"
        self._selection = selection
        rate: Fraction = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.rate = float(rate) if 0 < rate < 1000 else 25.0
        self._begin: Fraction = (self._stream.start_time or 0) * self._stream.time_base
        self._promised = self._stream.frames or None
        length_s = self._length_s()
        if length_s is not None and selection.start_s >= length_s > 0:
            self._container.close()
            raise BadInput(f"{uri}: starts after its end: it is {length_s:.2f} s long, asked for {selection.start_s:g} s")
        total = None
        if length_s is not None:
            taken = length_s - selection.start_s
            if selection.duration_s is not None:
                taken = min(taken, selection.duration_s)
            total = max(1, -(-round(taken * self.rate) // selection.every))
        super().__init__(uri, self.rate / selection.every, total)

    def _length_s(self) -> float | None:
        if self._promised:
            return float(self._promised / self.rate)
        if self._stream.duration is not None:
            return float(self._stream.duration * self._stream.time_base)
        return self._container.duration / 1e6 if self._container.duration else None

    def frames(self) -> Iterator[Frame]:
        start_ns = round(self._selection.start_s * NANOSECONDS)
        end_ns = start_ns + round(self._selection.duration_s * NANOSECONDS) if self._selection.duration_s else None
        seq, first_taken = 0, None
        if start_ns:
            target = (self._begin + Fraction(start_ns, NANOSECONDS)) / self._stream.time_base
            self._container.seek(int(target), stream=self._stream, backward=True)
            seq = -1
        previous_ns, started = -1, time.perf_counter_ns()
        for picture in self._decode():
            if picture.pts is None:
                stamp_ns = previous_ns + round(NANOSECONDS / self.rate) if previous_ns >= 0 else 0
            else:
                stamp_ns = round((picture.pts * self._stream.time_base - self._begin) * NANOSECONDS)
            previous_ns = stamp_ns
            if seq < 0:  # after a seek the frame's number follows from its time
                seq = round(stamp_ns / NANOSECONDS * self.rate)
            number, seq = seq, seq + 1
            if stamp_ns < start_ns:
                continue
            if end_ns is not None and stamp_ns >= end_ns:
                return
            first_taken = number if first_taken is None else first_taken
            if (number - first_taken) % self._selection.every:
                continue
            image = upright(picture)
            yield Frame(
                image,
                number,
                stamp_ns,
                "media",
                self.uri,
                name=f"{number:06d}",
                decode_ms=(time.perf_counter_ns() - started) / 1e6,
            )
            started = time.perf_counter_ns()
        if first_taken is None:
            raise FreespaceError(f"{self.uri}: no frame could be decoded")
        missing = (self._promised or 0) - seq - self.dropped
        if missing > 0:
            self.dropped += missing
            self.problems.append(f"{self.uri}: ends early: {seq} of {self._promised} frames; is the file truncated?")

    def _decode(self) -> Iterator[Any]:
        """Pictures in presentation order; what cannot be decoded is counted, not fatal."""
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError as error:
                self.problems.append(f"{self.uri}: reading broke off: {reason(error)}")
                return
            try:
                yield from packet.decode()
            except av.error.EOFError:
                return
            except av.error.FFmpegError as error:
                self.lost(f"{self.uri}: a frame could not be decoded: {reason(error)}")

    def close(self) -> None:
        self._container.close()


def upright(picture: Any) -> np.ndarray:
    """BGR pixels, turned as the file's display matrix says (a phone held upright)."""
    image = picture.to_ndarray(format="bgr24")
    turn = QUARTER_TURNS.get(round(getattr(picture, "rotation", 0)) % 360)
    return image if turn is None else np.asarray(cv2.rotate(image, turn))


def reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
