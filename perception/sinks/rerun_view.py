"""The Rerun viewer, live, or an ``.rrd`` file that it opens: picture, outlines, latencies, states.

Of a calibrated camera there is the ground, too: the root of all entities is ``base_link`` then, ``camera`` has its place in it,
and below ``ground`` lie the outlines, the ends of the scan, the vehicle and the way ahead.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.birdseye import AHEAD_COLOUR, SCAN_COLOUR, VEHICLE_COLOUR, scan_ends, vehicle, way_ahead
from perception.errors import BadInput
from perception.freespace import Freespace
from perception.metres import Metres
from perception.painting import EGO_COLOUR, OTHER_COLOUR
from perception.sinks.base import Output, Sink, part_of
from perception.sinks.ground_channels import HOLE_COLOUR, WARNING_COLOUR, ground_rings, warning
from perception.sinks.jsonl import SYNC_S, numbered, series
from perception.sinks.recording import QUALITY, WIDTH, compress, in_picture, said_ns
from perception.sinks.video import OutputFile

PORT = 9876  # where a viewer listens
PATIENCE_S = 1.0  # with a viewer that takes nothing more
LEVELS = {"running": "INFO", "starting": "INFO", "degraded": "WARN"}  # of the text log; ERROR for the others


class RerunSink(Sink):
    """Shows results in a viewer on this machine, or writes them to a file, which gets its name when it is closed.

    Timelines are ``frame``, the frame's number, and one named after the clock of the stamps: ``media`` (time since the start)
    or ``system`` (date and time). A viewer that listens already is used, else one is opened; it may hang or be closed at any
    time. With ``append`` there is a series of files, ``drive.0001.rrd`` and so on, one for each run. A file that was cut off
    can be opened; it lacks the last second.

    Args:
        path: the .rrd file; None for a viewer.
        width, quality: of the picture, as those of `perception.sinks.recording.McapSink`.
        port: where the viewer listens or is to listen.

    Raises:
        BadInput: Rerun is not installed, there is no screen for a viewer, or the name does not end with .rrd.
    """

    def __init__(
        self,
        path: Path | None,
        width: int | None = WIDTH,
        quality: int = QUALITY,
        append: bool = False,
        port: int = PORT,
    ) -> None:
        if path is not None and path.suffix.lower() != ".rrd":
            raise BadInput(f"{path}: is to be a Rerun file; end its name with .rrd")
        try:
            import rerun
        except ImportError as error:
            raise BadInput(f"{path or '--view rerun'}: needs Rerun; pip install '.[rerun]' in the project's folder") from error
        self.lossless = path is not None
        self._width, self._quality = width, quality
        self._sizes = ((0, 0), (0, 0))  # of the newest frame and of its picture
        self._newest: tuple[int, int] | None = None  # its stamp and when it was grabbed
        self._said: tuple[object, ...] = ()
        self._synced = time.monotonic()
        self._empty = True
        self._hangs = False  # the viewer
        self._metres: Metres | None = None  # of the newest frame
        self._file: Spool | None = None
        self._recording: Any = rerun.RecordingStream("freespace")
        if path is None:
            self.target = Path("Rerun viewer")
            self._connect(port)
        else:
            self.target = path if not append else numbered(path, max(series(path), default=0) + 1)
            self._file = Spool(part_of(self.target))
            self._recording.save(self._file.entrance)
            self._file.start()
        self._recording.send_blueprint(layout())

    def write(self, output: Output) -> None:
        import rerun

        if self._hangs:  # what it is sent would only pile up, and then block
            self._sync()
            return
        frame = output.frame
        jpeg, size = compress(frame.image, self._width, self._quality)
        self._sizes, self._newest = (frame.size, size), (frame.stamp_ns, frame.grabbed_ns)
        self._mark(output.result, frame.stamp_ns)
        self._recording.log("camera", rerun.EncodedImage(contents=jpeg, media_type="image/jpeg"))
        if output.metres:
            self._place(output.metres, size)
        self._report(output.result)

    def write_without_frame(self, result: Freespace) -> None:
        if self._hangs:
            self._sync()
            return
        self._mark(result, said_ns(result, self._newest))
        self._report(result)

    def _report(self, result: Freespace) -> None:
        import rerun

        self._empty = False
        self._recording.log("camera/freespace", outlines(result, *self._sizes))
        if self._metres:
            for name, shape in ground_shapes(result, self._metres).items():
                self._recording.log(f"ground/{name}", shape)
        for stage, ms in result.latency_ms.items():
            self._recording.log(f"latency/{stage}", rerun.Scalars(ms))
        self._recording.log("dropped", rerun.Scalars(result.dropped))
        said = (result.state, result.valid, *(cause.code for cause in result.causes))
        if said != self._said:
            text = " ".join([result.state, *(cause.text for cause in result.causes)])
            self._recording.log("state", rerun.TextLog(text, level=LEVELS.get(result.state, "ERROR")))
            self._said = said
        self._sync()

    def _place(self, metres: Metres, picture: tuple[int, int]) -> None:
        """Say where the camera is, with each frame: a viewer may have forgotten the first."""
        import rerun

        if self._metres is None:
            self._recording.send_blueprint(layout(ground=True))
            self._recording.log("/", rerun.ViewCoordinates.FLU, static=True)
        self._metres = metres
        base_from_camera, k = metres.camera.mount.base_from_camera, metres.camera.intrinsics.scaled(picture)
        corner = np.array([[0.0, 0.0, 0.5], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])  # Rerun's (0, 0), as in `in_picture`
        self._recording.log(
            "camera",
            rerun.Transform3D(mat3x3=base_from_camera[:3, :3], translation=base_from_camera[:3, 3]),
            rerun.Pinhole(image_from_camera=k.matrix + corner, resolution=picture, image_plane_distance=1.0),
        )

    def _sync(self) -> None:
        """Once a second: to the disk, or see whether the viewer takes what it is sent."""
        if time.monotonic() - self._synced < SYNC_S:
            return
        try:
            self._recording.flush(timeout_sec=PATIENCE_S)
            self._hangs = False
        except RuntimeError:  # not all of it got through; of a file the spool knows why
            self._hangs = self._file is None
        if self._file is not None:
            self._file.sync()
        self._synced = time.monotonic()

    def close(self) -> None:
        with suppress(RuntimeError):  # a viewer that is gone
            self._recording.flush(timeout_sec=PATIENCE_S)
        # In a thread of its own: with a viewer that hangs it may not come back.
        parting = threading.Thread(target=self._recording.disconnect, name="rerun-close", daemon=True)
        parting.start()
        parting.join(None if self._file is not None else PATIENCE_S)
        if self._file is None:
            return
        if self._empty:
            self._file.finish()
            self._file.path.unlink()
            return
        self.made = f"what could be written of the Rerun recording: {self._file.path}"
        self._file.finish()
        os.replace(self._file.path, self.target)
        self.made = f"Rerun recording {self.target}"

    def _connect(self, port: int) -> None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            self._recording.connect_grpc(f"rerun+http://127.0.0.1:{port}/proxy")
            return
        if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise BadInput(
                "--view rerun needs a screen, and there is none here (DISPLAY is not set), nor a viewer that listens on "
                f"127.0.0.1:{port}; write an .rrd file instead"
            )
        try:
            self._recording.spawn(port=port, memory_limit="25%", hide_welcome_screen=True)
        except RuntimeError as error:
            raise BadInput(f"--view rerun: the viewer cannot be opened: {error}; is `rerun` on the PATH?") from error

    def _mark(self, result: Freespace, at_ns: int) -> None:
        """Set the time of what is logged next."""
        self._recording.set_time("frame", sequence=result.seq)
        if result.clock == "media":
            self._recording.set_time("media", duration=np.timedelta64(at_ns, "ns"))
        else:
            self._recording.set_time(result.clock, timestamp=np.datetime64(at_ns, "ns"))


class Spool(threading.Thread):
    """Copies what Rerun writes to ``entrance``, a pipe, into the file ``path``.

    Rerun's own files will not do: once the disk is full it says nothing to its caller, and the process never ends.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(name="rerun-file", daemon=True)
        self.path, self._file = path, OutputFile(path, "w")
        self._exit, self._entrance = os.pipe()
        self.entrance = f"/dev/fd/{self._entrance}"

    def start(self) -> None:
        """Begin to copy; Rerun has opened ``entrance`` by now."""
        os.close(self._entrance)
        super().start()

    def run(self) -> None:
        while data := os.read(self._exit, 1 << 20):
            if self._file.error is None:
                with suppress(OSError):  # it keeps the error, and the pipe must not fill
                    self._file.write(data)
        os.close(self._exit)

    def sync(self) -> None:
        """Bring to the disk what came so far. Raises OSError: not all could be written."""
        if self._file.error is not None:
            raise self._file.error
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Wait for the end, once Rerun has closed the pipe. Raises OSError: not all could be written."""
        self.join()
        try:
            self.sync()
        finally:
            self._file.close()


def outlines(result: Freespace, size: tuple[int, int], picture: tuple[int, int]) -> Any:
    """The outlines of ``result`` over the ``picture`` of a frame of ``size``; a red frame that says why there are none."""
    import rerun

    strips, colours = [], []
    for polygon in result.polygons:
        outline = EGO_COLOUR if polygon.ego else OTHER_COLOUR
        for ring, bgr in ((polygon.exterior, outline), *((hole, HOLE_COLOUR) for hole in polygon.interiors)):
            strips.append(in_picture(np.vstack([ring, ring[:1]]), size, picture))
            colours.append(bgr[::-1])
    if result.valid:
        return rerun.LineStrips2D(strips, colors=colours, radii=1.0)
    width, height = picture
    border = [[0, 0], [width, 0], [width, height], [0, height], [0, 0]]
    return rerun.LineStrips2D([border], colors=[WARNING_COLOUR[::-1]], radii=2.0, labels=[warning(result)], show_labels=True)


def ground_shapes(result: Freespace, metres: Metres) -> dict[str, Any]:
    """The ground of ``result`` in ``base_link``, by entity; all of them each time, so that nothing stays that holds no more."""
    import rerun

    def level(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([points, np.zeros(len(points))])

    rings = ground_rings(result)
    ground, config = result.ground, metres.config
    ends = scan_ends(ground.scan) if ground else np.empty((0, 2))
    strokes = way_ahead(ground, config) if ground else []
    outline = vehicle(config)
    return {
        "polygons": rerun.LineStrips3D(
            [level(np.vstack([ring, ring[:1]])) for ring, _ in rings], colors=[bgr[::-1] for _, bgr in rings]
        ),
        "scan": rerun.Points3D(level(ends), colors=SCAN_COLOUR[::-1], radii=0.08),
        "ahead": rerun.LineStrips3D([level(stroke) for stroke in strokes], colors=AHEAD_COLOUR[::-1], radii=0.05),
        "vehicle": rerun.LineStrips3D([level(np.vstack([outline, outline[:1]]))], colors=VEHICLE_COLOUR[::-1]),
    }


def layout(ground: bool = False) -> Any:
    """Picture on the left, and the ground below it where there is one; latencies, drops and states on the right."""
    from rerun import blueprint

    picture = blueprint.Spatial2DView(origin="/camera", name="Freespace")
    world = blueprint.Spatial3DView(origin="/", name="Ground, base_link", contents=["/ground/**", "/camera"])
    return blueprint.Blueprint(
        blueprint.Horizontal(
            blueprint.Vertical(picture, world) if ground else picture,
            blueprint.Vertical(
                blueprint.TimeSeriesView(origin="/latency", name="Latency, ms"),
                blueprint.TimeSeriesView(origin="/dropped", name="Dropped frames"),
                blueprint.TextLogView(origin="/state", name="State"),
            ),
            column_shares=[2, 1],
        ),
        collapse_panels=True,
    )
