"""The overlay as an H.264 MP4 that browsers play."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.errors import BadInput
from perception.overlay import draw
from perception.sinks.base import Output, Sink, part_of

TIME_BASE = Fraction(1, 90_000)
SUFFIXES = (".mp4", ".m4v", ".mov")
# While it is being written the file consists of self-contained fragments, so that a power cut costs a second, not a drive.
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


class VideoSink(Sink):
    """Draws every result and encodes it with the frame's own time stamp (variable rates stay variable).

    The first frame sets the size; others are fitted into it. H.264 wants even sides: an odd one is extended by a pixel.
    On `close` the fragments are rewritten as one plain MP4 with its index in front, which players can seek at once.
    """

    def __init__(self, path: Path, fps: float | None) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise BadInput(f"{path}: the overlay is written as MP4; end its name with {', '.join(SUFFIXES)}")
        self.target, self._part = path, part_of(path)
        self._fps = Fraction(fps or 25).limit_denominator(1001)
        self._container: Any = None
        self._stream: Any = None
        self._size = (0, 0)
        self._last_pts = -1
        self._failed = False

    def write(self, output: Output) -> None:
        picture = draw(output.frame.image, output.result)
        try:
            if self._container is None:
                self._open(picture)
            self._encode(picture, output.frame.stamp_ns)
        except OSError:  # PyAV's errors of the operating system are OSErrors, too
            self._failed = True
            raise

    def _open(self, picture: NDArray[np.uint8]) -> None:
        import av

        height, width = picture.shape[:2]
        self._size = (width + width % 2, height + height % 2)
        self._container = av.open(str(self._part), "w", format="mp4", options=FRAGMENTED)
        self._stream = self._container.add_stream("libx264", rate=self._fps)
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = TIME_BASE
        self._stream.options = {"preset": "veryfast", "crf": "23"}
        # What cv2.cvtColor computes below, said in the stream: BT.601, limited range.
        self._stream.codec_context.colorspace = 6
        self._stream.codec_context.color_range = 1

    def _encode(self, picture: NDArray[np.uint8], stamp_ns: int) -> None:
        import av

        planes = np.asarray(cv2.cvtColor(fitted(picture, self._size), cv2.COLOR_BGR2YUV_I420), np.uint8)
        frame = av.VideoFrame.from_ndarray(planes, "yuv420p")
        pts = max(round(stamp_ns * 1e-9 / TIME_BASE), self._last_pts + 1)
        frame.pts, frame.time_base, self._last_pts = pts, TIME_BASE, pts
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        if self._container is None:
            return
        if self._failed:
            self.made = f"what could be written of the overlay {self._part}"
            self._container.close()
            return
        self._container.mux(self._stream.encode(None))
        self._container.close()
        rewrite_plain(self._part)
        os.replace(self._part, self.target)
        self.made = f"overlay {self.target}"


def fitted(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """``picture`` in ``size`` (width, height): scaled to fit where it is of another size, borders repeated or black."""
    height, width = picture.shape[:2]
    right, bottom = size[0] - width, size[1] - height
    if (right, bottom) == (0, 0):
        return picture
    if 0 <= right <= 1 and 0 <= bottom <= 1:
        return np.asarray(cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_REPLICATE), np.uint8)
    scale = min(size[0] / width, size[1] / height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    canvas[top : top + inner[1], left : left + inner[0]] = cv2.resize(picture, inner, interpolation=cv2.INTER_AREA)
    return canvas


def rewrite_plain(path: Path) -> None:
    """Copy the streams of a fragmented MP4 into a plain one in its place; where that fails, the fragments stay: they play."""
    import av

    plain = path.with_name(f"{path.stem}.plain{path.suffix}")
    try:
        with (
            av.open(str(path)) as source,
            av.open(str(plain), "w", format="mp4", options={"movflags": "faststart"}) as target,
        ):
            stream = source.streams.video[0]
            copy = target.add_stream_from_template(stream)
            for packet in source.demux(stream):
                if packet.dts is not None:
                    packet.stream = copy
                    target.mux(packet)
        os.replace(plain, path)
    except OSError:
        plain.unlink(missing_ok=True)
