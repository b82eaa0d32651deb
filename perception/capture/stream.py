"""RTSP and HTTP through PyAV (FFmpeg): IP cameras, MJPEG, HLS, and recordings on a web server."""

from __future__ import annotations

import functools
import re
import sys
import threading
import time
from collections import deque
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

from perception.capture.base import Selection
from perception.capture.live import Connection, Ended, Grab, Lost, differences
from perception.capture.pace import Pace
from perception.capture.uri import Address
from perception.capture.video import VideoSource, reason, reformatter, upright
from perception.config import CaptureConfig
from perception.errors import BadInput, FreespaceError

# What FFmpeg puts together from pieces: a packet comes out when the first piece of the next one has come in.
ASSEMBLED = ("h264", "hevc")
DRIFT = 1e-3  # of two clocks, seconds a second
MOST_WAITING = 32  # packets whose pictures have not come out yet
MOST_AT_ONCE = 100  # pictures that may have waited for a stream to be opened
FARTHEST_BEHIND_S = 2.0  # a stream so late does not catch up; begun anew it is up to date
LONGEST_GAP_S = 1.0  # between pictures of a paced stream
PAUSE, BURST = 3.0, 0.5  # usual periods: a longer gap is one in which something may have piled up, shorter ones are its end
USUAL_FROM, USUAL_OVER = 5, 15  # pictures
END_S = 1.0  # so near to its promised end a recording is over, not broken off


class StreamConnection(Connection):
    """Reads one stream.

    Only whole pictures are shown: the decoder is told to fail rather than to paint over what is missing, and after a loss
    nothing is shown before the next key frame. Slices, not frames, are decoded side by side: those take no time to fill.

    The stamp is the moment at which the picture had arrived, less what it is later than the least delayed one before it: by the
    sender's time stamps (RTSP), or, where there are none, by the pauses and bursts in which pictures come. So what has piled up
    on the way is not taken for new.
    """

    def __init__(self, address: Address, capture: CaptureConfig) -> None:
        """Raises FreespaceError: cannot be opened at the moment."""
        import av

        self._container = self._open(address, capture)
        try:
            self._stream: Any = next(iter(self._container.streams.video), None)
            if self._stream is None:
                raise FreespaceError("has no video in it")
            self._codec = self._stream.codec_context
            self._codec.thread_type = "SLICE"
            self._codec.options = {"err_detect": "explode"}
            self._packets = self._container.demux(self._stream)
            rate = self._stream.average_rate
            self.fps = float(rate) if rate and 0 < rate < 1000 else None
            width, height = self._codec.width, self._codec.height
            self.remarks = differences(address.shown, capture, width=width, height=height, fps=self.fps)
            format_name = self._container.format.name
            self._length_s = (self._container.duration or 0) / av.time_base if address.kind == "stream" else 0.0
            # These come faster than they are to be seen, and in lumps.
            self._pace = Pace(LONGEST_GAP_S) if self._length_s > 0 or "hls" in format_name else None
            self._lag = Lag() if address.kind == "rtsp" else None
            self._backlog = Backlog() if self._lag is None and self._pace is None else None
            self._assembled = address.kind == "rtsp" and self._codec.name in ASSEMBLED
            by = accelerator()[0] if self._codec.is_hwaccel else "software"
            paced = ", at its own pace" if self._pace else ""
            self.detail = f"{format_name}, {self._codec.name} {width}x{height}, decoded by {by}{paced}"
        except BaseException:
            self._container.close()
            raise
        self._read_timeout_s = capture.read_timeout_s
        self._over = threading.Event()
        self._ready: deque[Grab] = deque()
        self._reformatter = reformatter()
        self._key_awaited, self._begun, self._key_before = True, False, False
        self._packet_before: tuple[int, int] | None = None
        self._arrivals: dict[int | None, tuple[int, int]] = {}  # by time stamp: pictures may come out in another order
        self._media_ns = 0

    @staticmethod
    def _open(address: Address, capture: CaptureConfig) -> Any:
        import av

        # Nothing is read ahead to guess a frame rate. Not "nobuffer": it throws away what was read to open the stream, and
        # with it the key frame for which one would wait again.
        options = {"analyzeduration": "1", "fpsprobesize": "0"} if address.kind == "rtsp" else {}
        if address.kind == "rtsp":
            options["rtsp_transport"] = capture.transport
            if capture.transport == "udp":
                options["max_delay"] = "100000"  # microseconds that a lost packet is waited for
        timeout = capture.open_timeout_s, capture.read_timeout_s
        hardware = accelerator()[1] if capture.hardware else None
        begun = time.perf_counter()
        try:
            return av.open(address.target, timeout=timeout, options=options, hwaccel=hardware)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            # What FFmpeg says when PyAV's clock ends it is another thing for each protocol.
            late = time.perf_counter() - begun >= capture.open_timeout_s
            text = f"no answer in {capture.open_timeout_s:g} s" if late else reason(error)
            raise FreespaceError(text) from None  # the error itself holds the address

    def read(self) -> Grab | Lost | None:
        if self._ready:
            return self._ready.popleft()
        import av

        begun = time.perf_counter()
        try:
            packet = next(self._packets)
        except (StopIteration, av.error.EOFError):
            raise self._end() from None
        except av.error.FFmpegError as error:
            if time.perf_counter() - begun >= self._read_timeout_s:
                raise TimeoutError from None
            raise FreespaceError(reason(error)) from None
        arrived = now = (time.time_ns(), time.perf_counter_ns())
        if packet.size == 0:
            raise self._end()
        if self._assembled and self._packet_before is not None:
            arrived = self._packet_before
        self._packet_before = now
        return self._decode(packet, arrived)

    def _decode(self, packet: Any, arrived: tuple[int, int]) -> Grab | Lost | None:
        import av

        if packet.is_corrupt:
            return self._lost("the packet is not whole")
        key_before, self._key_before = self._key_before, packet.is_keyframe
        if self._assembled and not begins_picture(bytes(packet), self._codec.name):  # the decoder would not mind
            if packet.is_keyframe and key_before:
                raise FreespaceError(
                    "repeats parameter sets within a key frame, so that its parts are taken for pictures; let the sender "
                    "repeat them between pictures alone (GStreamer's payloader: config-interval=1), or send a slice a picture"
                )
            return self._lost("its beginning is missing")
        if self._key_awaited and not packet.is_keyframe:
            return Lost("a key frame must come first") if self._begun else None
        self._key_awaited = False
        begun = time.perf_counter_ns()
        try:
            pictures = self._codec.decode(packet)
        except av.error.FFmpegError as error:
            return self._lost(reason(error))
        if any(picture.is_corrupt for picture in pictures):
            return self._lost("parts of it are missing")
        decode_ms = (time.perf_counter_ns() - begun) / 1e6
        self._arrivals[packet.pts] = arrived
        if len(self._arrivals) > MOST_WAITING:
            self._arrivals.pop(next(iter(self._arrivals)))
        grabs = [self._grab(picture, self._arrivals.pop(picture.pts, arrived), decode_ms) for picture in pictures]
        if self._lag is None or self._lag.caught_up:
            self._begun = self._begun or bool(grabs)
            self._ready.extend(grabs)
        return self._ready.popleft() if self._ready else None

    def _grab(self, picture: Any, arrived: tuple[int, int], decode_ms: float) -> Grab:
        stamp_ns, grabbed_ns = arrived
        if picture.pts is not None and picture.time_base:
            self._media_ns = round(picture.pts * Fraction(picture.time_base) * 1_000_000_000)
        if self._pace is not None:
            self._pace.wait(self._media_ns, self._over)
            stamp_ns, grabbed_ns = time.time_ns(), time.perf_counter_ns()
        elif self._lag is not None and picture.pts is not None:
            late_ns = self._lag.late_ns(grabbed_ns, self._media_ns)
            if late_ns > FARTHEST_BEHIND_S * 1e9:
                raise FreespaceError(f"fell {late_ns / 1e9:.1f} s behind; the line is too slow for it")
            stamp_ns, grabbed_ns = stamp_ns - late_ns, grabbed_ns - late_ns
        elif self._backlog is not None:
            late_ns = self._backlog.late_ns(grabbed_ns)
            stamp_ns, grabbed_ns = stamp_ns - late_ns, grabbed_ns - late_ns
        return Grab(lambda: upright(picture, self._reformatter), stamp_ns, grabbed_ns, decode_ms)

    def _lost(self, why: str) -> Lost:
        self._key_awaited = True
        self._codec.flush_buffers()
        return Lost(why)

    def _end(self) -> Exception:
        if self._length_s and self._media_ns / 1e9 >= self._length_s - END_S:
            return Ended()
        return FreespaceError("the other side ended it")

    def close(self) -> None:
        self._over.set()
        self._ready.clear()
        self._container.close()


class Lag:
    """How much later than the least delayed one before it a picture arrives, by the sender's clock.

    Attributes:
        caught_up: whether pictures come at the pace at which they were taken. The first ones have waited for the stream to be
            opened, nobody knows how long.
    """

    def __init__(self) -> None:
        self.caught_up = False
        self._least_ns: float | None = None
        self._seen = self._last_ns = self._arrived_ns = 0

    def late_ns(self, arrived_ns: int, media_ns: int) -> int:
        """Nanoseconds, 0 or more. ``media_ns``: the sender's time stamp; where it goes back, one begins anew."""
        delay_ns = float(arrived_ns - media_ns)
        if self._least_ns is None or media_ns < self._last_ns:
            self._least_ns = delay_ns
        else:
            passed_ns = media_ns - self._last_ns
            self._least_ns = min(delay_ns, self._least_ns + DRIFT * passed_ns)
            if arrived_ns - self._arrived_ns >= passed_ns / 2 or self._seen > MOST_AT_ONCE:
                self.caught_up = True
        self._last_ns, self._arrived_ns, self._seen = media_ns, arrived_ns, self._seen + 1
        return round(delay_ns - self._least_ns)


class Backlog:
    """How much later than the others a picture arrives, at most, where the sender does not say when it was taken.

    After a pause what comes first may have waited for as long as the pause lasted. If more comes in a burst it has, and each
    picture of the burst is a period nearer to now; if the next one comes at the usual pace there was none. Of a line that is
    always too slow nothing can be known.
    """

    def __init__(self) -> None:
        self._gaps: deque[int] = deque(maxlen=USUAL_OVER)
        self._arrived_ns: int | None = None
        self._late_ns = 0.0
        self._burst = False

    def late_ns(self, arrived_ns: int) -> int:
        """Nanoseconds, 0 or more."""
        before, self._arrived_ns = self._arrived_ns, arrived_ns
        if before is None:
            return 0
        gap = arrived_ns - before
        usual = median(self._gaps) if len(self._gaps) >= USUAL_FROM else gap
        if gap > PAUSE * usual:  # after a burst it has not made up for, the wait goes on; else it begins
            self._late_ns = gap - usual + (self._late_ns if self._burst else 0.0)
        else:
            self._late_ns = max(0.0, self._late_ns + gap - usual) if gap < BURST * usual else 0.0
        self._burst = gap < BURST * usual
        if not (self._burst and self._late_ns):  # what has piled up says nothing about the usual pace
            self._gaps.append(gap)
        return round(self._late_ns)


class WebVideo(VideoSource):
    """A recording on a web server: as one on disk, every frame with its media time, at whatever pace it can be read."""

    def __init__(self, address: Address, capture: CaptureConfig, selection: Selection) -> None:
        self._remote, self._capture = address, capture
        try:
            super().__init__(address.shown, selection)
        except BadInput as error:
            raise BadInput(address.cleaned(str(error))) from None

    def _open(self) -> None:
        import av

        self._address = self._remote.target
        timeout = (self._capture.open_timeout_s, max(self._capture.open_timeout_s, self._capture.read_timeout_s))
        self._container = av.open(self._address, timeout=timeout)
        self._stream = next(iter(self._container.streams.video), None)
        if self._stream is not None:
            self._stream.thread_type = "AUTO"

    def _report_early_end(self, last_ns: int) -> None:
        if self._cut or (self._length_s is not None and last_ns / 1e9 < self._length_s - END_S):
            self.problems.append(f"{self.uri}: broke off after {self._read} frames")


def begins_picture(data: bytes, codec: str) -> bool:
    """Whether the first slice of this H.264 or H.265 packet (Annex B) is the first one of a picture."""
    header = 1 if codec == "h264" else 2
    for start in re.finditer(b"\0\0\1", data):
        unit = data[start.end() : start.end() + header + 1]
        kind = unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63
        if len(unit) > header and (kind in (1, 2, 5) if codec == "h264" else kind < 32):
            return unit[header] >= 128  # the first bit: first_mb_in_slice is 0, or first_slice_segment_in_pic_flag
    return True  # there is none


@functools.cache
def accelerator() -> tuple[str, Any]:
    """Name and PyAV's description of this machine's hardware for decoding; ``("", None)`` where there is none that starts."""
    import av
    from av.codec import hwaccel

    for name in hwaccel.hwdevices_available():
        if name in likely():
            try:
                hwaccel.HWAccel(name).create(av.Codec("h264", "r"))
                return name, hwaccel.HWAccel(name, allow_software_fallback=True)
            except (av.error.FFmpegError, OSError, NotImplementedError, ValueError, RuntimeError):
                continue
    return "", None


def likely() -> set[str]:
    """Kinds of devices whose hardware shows. Asked for without it, some libraries complain on their own."""
    found = {"videotoolbox"} if sys.platform == "darwin" else set()
    if Path("/dev/nvidiactl").exists():
        found.add("cuda")
    if any(Path("/dev/dri").glob("renderD*")):
        found |= {"vaapi", "qsv"}
    return found
