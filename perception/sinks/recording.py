"""An MCAP file that Foxglove opens as it is: picture, polygons over it, results, latencies and states.

Written with Foxglove's own SDK: it has their schemas, aarch64 wheels, and does its work outside of Python.

==========================  ===========================  ==============================================================
topic                       schema                       content
==========================  ===========================  ==============================================================
``/camera/image``           foxglove.CompressedImage     JPEG of the frame, scaled down
``/freespace/polygons``     foxglove.ImageAnnotations    outlines over that image, or a line that says why there are none
``/freespace/result``       freespace/1 (JSON)           the result as in the ``.jsonl``
``/freespace/latency``      freespace/latency (JSON)     milliseconds by stage, to be plotted
``/freespace/state``        freespace/state (JSON)       state, validity, causes, dropped frames
==========================  ===========================  ==============================================================

Of a calibrated camera there is the ground, too: `perception.sinks.ground_channels`.

Every message is logged, and by the SDK said to be published, at the stamp of its frame: on a live source the time of capture,
in a recording the time since its start. How much later it was published is ``/freespace/latency.age``. Results without a frame
are in all topics but those about the camera, logged when they were said, on the same clock.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import orjson
from numpy.typing import NDArray

from engine.preprocess import fit, resample
from perception.errors import BadInput, FreespaceError
from perception.frame import Clock
from perception.freespace import SCHEMA, Freespace, Ring, State
from perception.painting import EGO_COLOUR, OTHER_COLOUR
from perception.sinks.base import Output, Sink, part_of
from perception.sinks.ground_channels import HOLE_COLOUR, NUMBER, WARNING_COLOUR, GroundChannels, colour, stamp, warning
from perception.sinks.jsonl import MEGABYTE, SYNC_S, numbered, remove_series, series
from perception.sinks.video import OutputFile

WIDTH, QUALITY = 640, 75


class McapSink(Sink):
    """Writes an MCAP file; it gets its name when it is closed.

    What was logged is compressed and handed to the disk every second: a file that was cut off can be read up to there, by
    ``mcap recover``, too. With ``rotate_mb`` there is a series, ``drive.0001.mcap`` and so on, each about that large (10^6
    bytes), complete, and named as soon as the next one begins. With ``append`` likewise, each run beginning a new one.

    Args:
        width: of the picture, pixels; larger ones are scaled down to it. None keeps the frame's size.
        quality: of the JPEG, 1 to 100.

    Raises:
        BadInput: the name does not end with .mcap, or the SDK is not installed.
    """

    def __init__(
        self,
        path: Path,
        width: int | None = WIDTH,
        quality: int = QUALITY,
        rotate_mb: float | None = None,
        append: bool = False,
        overwrite: bool = False,
    ) -> None:
        if path.suffix.lower() != ".mcap":
            raise BadInput(f"{path}: is to be an MCAP file; end its name with .mcap")
        try:
            import foxglove
            from foxglove.channels import CompressedImageChannel, ImageAnnotationsChannel
        except ImportError as error:
            raise BadInput(
                f"{path}: an MCAP file needs the Foxglove SDK; pip install '.[foxglove]' in the project's folder"
            ) from error
        # What goes wrong in writing is known from the file itself.
        logging.getLogger("foxglove").addHandler(logging.NullHandler())
        self.target, self._width, self._quality = path, width, quality
        self._limit = None if rotate_mb is None else rotate_mb * MEGABYTE
        self._sizes = ((0, 0), (0, 0))  # of the newest frame and of its picture
        self._newest: tuple[int, int] | None = None  # its stamp and when it was grabbed
        self._number: int | None = None
        if rotate_mb is not None or append:
            if overwrite:
                remove_series(path)
            self._number = max(series(path), default=0) + 1
        self._context = context = foxglove.Context()
        self._image = CompressedImageChannel("/camera/image", context=context)
        self._polygons = ImageAnnotationsChannel("/freespace/polygons", context=context)
        self._result = foxglove.Channel("/freespace/result", schema=RESULT, context=context)
        self._latency = foxglove.Channel("/freespace/latency", schema=LATENCY, context=context)
        self._state = foxglove.Channel("/freespace/state", schema=STATE, context=context)
        self._ground = GroundChannels(context)
        self._files: list[Path] = []  # finished
        self._synced = time.monotonic()
        self._begin()

    def write(self, output: Output) -> None:
        from foxglove.messages import CompressedImage

        frame, at = output.frame, max(0, output.frame.stamp_ns)  # the format has none before 0
        jpeg, size = compress(frame.image, self._width, self._quality)
        self._sizes, self._newest = (frame.size, size), (at, frame.grabbed_ns)
        self._image.log(CompressedImage(timestamp=stamp(at), frame_id=frame.frame_id, data=jpeg, format="jpeg"), log_time=at)
        if output.metres:
            self._ground.place(output.metres, frame.frame_id, size, at)
        self._report(output.result, at)

    def write_without_frame(self, result: Freespace) -> None:
        self._report(result, said_ns(result, self._newest))

    def _report(self, result: Freespace, at: int) -> None:
        state = {
            "seq": result.seq,
            "state": result.state,
            "valid": result.valid,
            "dropped": result.dropped,
            "codes": [cause.code.value for cause in result.causes],
            "text": " ".join(cause.text for cause in result.causes),
        }
        self._polygons.log(outlines(result, at, *self._sizes), log_time=at)
        self._result.log(result.to_json(), log_time=at)
        self._latency.log(orjson.dumps(result.latency_ms), log_time=at)
        self._state.log(orjson.dumps(state), log_time=at)
        self._ground.report(result, at)
        self._empty = False
        if time.monotonic() - self._synced > SYNC_S:
            with writing(self._file):
                self._writer.flush()
                os.fsync(self._file.fileno())
            self._synced = time.monotonic()
        if self._file.error:
            raise self._file.error
        if self._limit and self._file.tell() > self._limit:
            self._finish()
            self._number = (self._number or 0) + 1
            self._begin()

    def close(self) -> None:
        if self._empty:
            self._writer.close()
            self._file.close()
            self._part.unlink()
        else:
            self.made = f"what could be written of the recording: {self._part}"
            self._finish()
        if self._files:
            more = f" to {self._files[-1]}" if len(self._files) > 1 else ""
            self.made = f"recording {self._files[0]}{more}"

    def _begin(self) -> None:
        import foxglove
        from foxglove.mcap import MCAPWriteOptions

        final = self.target if self._number is None else numbered(self.target, self._number)
        self._final, self._part = final, part_of(final)
        # Through a file of ours: the SDK passes over a write that failed. Without seeking a chunk is written once it is whole.
        self._file = OutputFile(self._part, "w")
        options = MCAPWriteOptions(disable_seeking=True, compression_threads=0)
        self._writer: Any = foxglove.open_mcap(self._file, context=self._context, writer_options=options)
        self._empty = True
        self._ground.restart()

    def _finish(self) -> None:
        try:
            with writing(self._file):
                self._writer.close()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
        os.replace(self._part, self._final)
        self._files.append(self._final)


@contextmanager
def writing(file: OutputFile) -> Iterator[None]:
    """Raise the file's own error in place of whatever the SDK makes of it.

    Raises:
        OSError: the file could not be written.
        FreespaceError: the SDK refused.
    """
    try:
        yield
    except RuntimeError as error:
        raise file.error or FreespaceError(f"{file.name}: cannot be written: {error}") from None


def compress(image: NDArray[np.uint8], width: int | None, quality: int) -> tuple[bytes, tuple[int, int]]:
    """``image`` uint8 ``(H, W, 3)`` BGR as a JPEG no wider than ``width`` pixels, and its size (width, height)."""
    height_px, width_px = image.shape[:2]
    if width is not None and width_px > width:
        size = (width, max(1, round(height_px * width / width_px)))
        full, image = image, np.empty((size[1], size[0], 3), np.uint8)
        resample(full, fit((width_px, height_px), size, "stretch"), image)
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise FreespaceError(f"a picture of {width_px} x {height_px} pixels cannot be written as a JPEG")
    return np.asarray(data).tobytes(), (image.shape[1], image.shape[0])


def in_picture(ring: Ring, size: tuple[int, int], picture: tuple[int, int]) -> Ring:
    """A ring of a frame of ``size`` in the pixels of its scaled ``picture``, (0, 0) the *corner* of the top-left one.

    So have it Foxglove and Rerun; ours is that pixel's centre.
    """
    return np.asarray((ring + 0.5) * (np.array(picture) / np.array(size)))


def said_ns(result: Freespace, newest: tuple[int, int] | None) -> int:
    """When a result without a frame was said, nanoseconds on the clock of the frames.

    Args:
        newest: of the newest frame the ``stamp_ns`` and the ``grabbed_ns``; None before the first.
    """
    if newest is not None:
        stamp_ns, grabbed_ns = newest
        return stamp_ns + time.perf_counter_ns() - grabbed_ns
    return result.stamp_ns if result.clock == "media" else time.time_ns()


def outlines(result: Freespace, at_ns: int, size: tuple[int, int], picture: tuple[int, int]) -> Any:
    """The outlines of ``result`` over the ``picture`` (width, height) of a frame of ``size``, as foxglove.ImageAnnotations.

    A filled outline would hide the holes, so none is filled.
    """
    from foxglove.messages import ImageAnnotations, Point2, PointsAnnotation, PointsAnnotationType, TextAnnotation

    at, lines, texts = stamp(at_ns), [], []
    for polygon in result.polygons:
        outline = EGO_COLOUR if polygon.ego else OTHER_COLOUR
        for ring, bgr in ((polygon.exterior, outline), *((hole, HOLE_COLOUR) for hole in polygon.interiors)):
            points = [Point2(x=x, y=y) for x, y in in_picture(ring, size, picture).tolist()]
            kind = PointsAnnotationType.LineLoop
            lines.append(PointsAnnotation(timestamp=at, type=kind, points=points, outline_color=colour(bgr), thickness=2))
    if not result.valid:
        font = max(10.0, picture[1] / 24)
        where = Point2(x=font / 2, y=font * 1.5)
        texts.append(
            TextAnnotation(
                timestamp=at,
                position=where,
                text=warning(result),
                font_size=font,
                text_color=colour(WARNING_COLOUR),
                background_color=colour((0, 0, 0)),
            )
        )
    return ImageAnnotations(timestamp=at, points=lines, texts=texts)


def record(title: str, **properties: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of an object with these keys, all of them needed."""
    return {"title": title, "type": "object", "properties": properties, "required": list(properties)}


def array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


INTEGER, TEXT, TRUTH = ({"type": kind} for kind in ("integer", "string", "boolean"))
STATES = {"type": "string", "enum": list(get_args(State))}
STAGES = ("decode", "preprocess", "infer", "postprocess", "total", "age")
LATENCY = {
    "title": "freespace/latency",
    "type": "object",
    "properties": dict.fromkeys(STAGES, NUMBER),
    "additionalProperties": NUMBER,
}
STATE = record("freespace/state", seq=INTEGER, state=STATES, valid=TRUTH, dropped=INTEGER, codes=array(TEXT), text=TEXT)
RESULT = record(
    SCHEMA,
    schema={"const": SCHEMA, "type": "string"},
    seq=INTEGER,
    source=TEXT,
    frame_id=TEXT,
    stamp_ns=INTEGER,
    clock={"type": "string", "enum": list(get_args(Clock))},
    size=array(INTEGER),
    valid=TRUTH,
    state=STATES,
    model=TEXT,
    backend=TEXT,
    dropped=INTEGER,
    # Rings and what may be null are left out here, not in the messages: viewers refuse a schema with lists of lists.
    polygons=array(record("polygon", plane=TEXT, ego=TRUTH, confidence=NUMBER, area_px=NUMBER)),
    latency_ms=LATENCY,
    causes=array(record("cause", code=TEXT, text=TEXT)),
    published_ns=INTEGER,
)
