"""The overlay as an H.264 MP4 that browsers play."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.preprocess import fit
from perception.errors import BadInput, FreespaceError
from perception.overlay import draw
from perception.sinks.base import Output, Sink, part_of

TIME_BASE = Fraction(1, 90_000)
SUFFIXES = (".mp4", ".m4v", ".mov")
# While it is being written the file consists of self-contained fragments, so that a power cut costs seconds, not a drive.
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
PLAIN = {"movflags": "faststart"}


class VideoSink(Sink):
    """Draws every result and encodes it at its own time, counted from the first frame (variable rates stay variable).

    The first frame sets the size; others are fitted into it. H.264 wants even sides: an odd one is extended by a pixel.
    On `close` the fragments are rewritten as one plain MP4 with its index in front, which players can seek at once.
    """

    def __init__(self, path: Path, fps: float | None) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise BadInput(f"{path}: the overlay is written as MP4; end its name with {', '.join(SUFFIXES)}")
        self.target, self._part = path, part_of(path)
        self._fps = Fraction(fps or 25).limit_denominator(1001)
        self._file: Any = None
        self._container: Any = None
        self._stream: Any = None
        self._size = (0, 0)
        self._first_ns = 0
        self._last_pts = -1
        self._frames = 0

    def write(self, output: Output) -> None:
        picture = draw(output.frame.image, output.result, output.metres)
        if self._container is None:
            self._open(picture, output.frame.stamp_ns)
        with self._file.explained():
            self._encode(picture, output.frame.stamp_ns)

    def _open(self, picture: NDArray[np.uint8], stamp_ns: int) -> None:
        import av

        height, width = picture.shape[:2]
        self._size = (width + width % 2, height + height % 2)
        self._first_ns = stamp_ns
        # Through a file of ours: FFmpeg's own output says nothing of a write that fails late.
        self._file = OutputFile(self._part, "w")
        self._container = av.open(self._file, "w", format="mp4", options=FRAGMENTED)
        self._stream = self._container.add_stream("libx264", rate=self._fps)
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = TIME_BASE
        # No B-frames: with them a fragmented file's times begin later than the pictures'. A key frame about every second.
        self._stream.options = {"preset": "veryfast", "crf": "23", "bf": "0", "g": str(max(1, round(self._fps)))}
        # What cv2.cvtColor computes below, said in the stream: BT.601, limited range.
        self._stream.codec_context.colorspace = 6
        self._stream.codec_context.color_range = 1

    def _encode(self, picture: NDArray[np.uint8], stamp_ns: int) -> None:
        import av

        planes = np.asarray(cv2.cvtColor(fitted(picture, self._size), cv2.COLOR_BGR2YUV_I420), np.uint8)
        frame = av.VideoFrame.from_ndarray(planes, "yuv420p")
        pts = max(round((stamp_ns - self._first_ns) * 1e-9 / TIME_BASE), self._last_pts + 1)
        frame.pts, frame.time_base, self._last_pts = pts, TIME_BASE, pts
        self._container.mux(self._stream.encode(frame))
        self._frames += 1

    def close(self) -> None:
        if self._container is None:
            return
        self.made = f"what could be written of the overlay: {self._part}"
        try:
            with self._file.explained():
                self._container.mux(self._stream.encode(None))
                self._container.close()
        finally:
            self._file.close()
        if count_frames(self._part) < self._frames:
            raise OSError(None, "not all of it could be written; is the disk full?")
        rewrite_plain(self._part)
        os.replace(self._part, self.target)
        self.made = f"overlay {self.target}"


class OutputFile(io.FileIO):
    """A file that remembers why a write failed: FFmpeg says only that one did."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = self.error or error
            raise
        return len(data)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise the file's own error in place of whatever FFmpeg makes of it.

        Raises:
            OSError: the file could not be written.
            FreespaceError: the encoder or the muxer refused.
        """
        import av

        try:
            yield
        except av.error.FFmpegError as error:
            raise self.error or FreespaceError(f"{self.name}: cannot be encoded: {error}") from None
        if self.error:
            raise self.error


def count_frames(path: Path) -> int:
    """Whole frames in a video file, 0 where it cannot be opened."""
    import av

    try:
        with av.open(str(path)) as container:
            return sum(packet.size > 0 and not packet.is_corrupt for packet in container.demux(container.streams.video[0]))
    except (av.error.FFmpegError, OSError):
        return 0


def fitted(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """``picture`` in ``size`` (width, height): scaled to fit where it is of another size, borders repeated or black."""
    height, width = picture.shape[:2]
    right, bottom = size[0] - width, size[1] - height
    if (right, bottom) == (0, 0):
        return picture
    if 0 <= right <= 1 and 0 <= bottom <= 1:
        return np.asarray(cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_REPLICATE), np.uint8)
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    left, top, *inner = fit((width, height), size, "letterbox").content
    canvas[top : top + inner[1], left : left + inner[0]] = cv2.resize(picture, inner, interpolation=cv2.INTER_AREA)
    return canvas


def rewrite_plain(path: Path) -> None:
    """Copy a fragmented MP4 into a plain one in its place; where there is no room for that, the fragments stay: they play."""
    import av

    plain = path.with_suffix(f".plain{path.suffix}")
    frames = 0
    try:
        with av.open(str(path)) as source, av.open(str(plain), "w", format="mp4", options=PLAIN) as target:
            stream = source.streams.video[0]
            copy = target.add_stream_from_template(stream)
            for packet in source.demux(stream):
                if packet.dts is not None:
                    packet.stream = copy
                    target.mux(packet)
                    frames += 1
        if count_frames(plain) == frames:
            os.replace(plain, path)
    except (av.error.FFmpegError, OSError):
        pass
    finally:
        plain.unlink(missing_ok=True)
