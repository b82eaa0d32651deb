"""``freespace calibrate camera`` as a person sees it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from calibration.boards import Board, View, detect
from calibration.bundle import vector
from calibration.camera import PARAMETERS
from calibration.camera_file import read_camera, write_camera
from calibration.drawings import coverage_picture, guide_picture, undistortion_preview
from calibration.guide import missing, offer, steady, thin_out
from calibration.intrinsics import MODELS, Calibration, Fit, calibrate
from perception.capture import Source, open_source
from perception.errors import BadInput, tell
from perception.frame import Frame
from perception.sinks.base import check_output, write_whole

Image = NDArray[np.uint8]

LOOK_EVERY_S = 0.25  # of a video: frames in between show the same
TITLE = "Calibrate the camera (q or Esc: enough)"
COVERAGE, PREVIEW = "coverage.png", "undistortion.png"


@dataclass
class Collected:
    """What was seen so far: views, used or not, and the pictures of usable ones by the view's name, compressed."""

    views: list[View] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)

    def add(self, view: View, image: Image) -> None:
        """Take a view with its picture."""
        self.views.append(view)
        self.keep_picture(view, image)

    def keep_picture(self, view: View, image: Image) -> None:
        if not view.trouble:
            self.pictures[view.name] = cv2.imencode(".jpg", image)[1].tobytes()

    def picture_of(self, view: View) -> Image:
        """uint8 ``(H, W, 3)`` BGR."""
        return np.asarray(cv2.imdecode(np.frombuffer(self.pictures[view.name], np.uint8), cv2.IMREAD_COLOR), np.uint8)


def calibrate_camera(
    sources: list[str],
    board: Board,
    model: str,
    out: Path,
    name: str,
    pictures: Path | None,
    live: bool,
    overwrite: bool,
    stop: threading.Event,
) -> bool:
    """Look for the board in all sources, calibrate, write the camera's file, and print what it rests on.

    Args:
        pictures: folder for `COVERAGE` and `PREVIEW`; None for none.
        live: guide the user until enough was seen; ``stop`` then ends the guiding, not the command.
        stop: set by Ctrl-C.

    Returns:
        Whether it was interrupted; nothing is written then.

    Raises:
        BadInput: with one sentence for the user.
    """
    if model not in MODELS:
        raise BadInput(f"--model {model!r}: wanted one of {', '.join(MODELS)}")
    outputs = [out, *([pictures / COVERAGE, pictures / PREVIEW] if pictures else [])]
    for path in outputs:
        check_output(path, overwrite)
    collected = Collected()
    for uri in sources:
        with open_source(uri) as source:
            if source.live != live:
                raise BadInput(
                    f"{source.uri}: is live; give --live to be guided"
                    if source.live
                    else f"--live: {source.uri} is a recording"
                )
            if live:
                watch(source, board, collected, stop)
            else:
                look(source, board, collected, stop, len(sources) > 1)
            for problem in source.problems:
                tell(problem)
        if stop.is_set() and not live:
            return True
    if not collected.views:
        raise BadInput(f"no {board.pattern} of {board.columns}x{board.rows} was seen; are pattern and size right?")
    try:
        result = calibrate(board, collected.views, model, name)
    except ValueError as error:
        raise BadInput(str(error)) from error
    if out.exists() and mounted(out):
        tell(f"{out}: its mount was measured with other intrinsics and is dropped; run 'calibrate ground' again")
    write_camera(out, result.intrinsics)
    if pictures:
        write_whole(pictures / COVERAGE, png(coverage_picture(result)))
        view = outermost(result.fits).view
        write_whole(pictures / PREVIEW, png(undistortion_preview(board, view, collected.picture_of(view), result.intrinsics)))
    print(report(result, board, collected.views))
    if any(fit.view.old_layout for fit in result.fits):
        tell("the board is laid out as OpenCV before 4.6 drew it, its top left square white, and was read so")
    for warning in result.warnings:
        tell(warning)
    print(f"written: {', '.join(str(path) for path in outputs)}")
    return False


def look(source: Source, board: Board, collected: Collected, stop: threading.Event, several: bool) -> None:
    """Look at all photographs, or at frames of a video every `LOOK_EVERY_S`, of which different and sharp ones are kept."""
    kept: list[View] = []
    due_ns = 0
    with progress_bar(source) as done:
        for frame in source.frames():
            if stop.is_set():
                return
            done(frame.seq + 1)
            view_name = label(source, frame, several)
            if not source.continuous:
                collected.add(detect(board, frame.image, view_name), frame.image)
                continue
            if frame.stamp_ns < due_ns:
                continue
            due_ns = frame.stamp_ns + round(LOOK_EVERY_S * 1e9)
            view = detect(board, frame.image, view_name, thorough=False)
            kept = offer(board, kept, view)
            if any(other is view for other in kept):
                collected.keep_picture(view, frame.image)
    collected.views += thin_out(board, kept)


def label(source: Source, frame: Frame, several: bool) -> str:
    """How a view is called: a picture by its name, a frame of a video by its time."""
    path = Path(source.uri)
    if source.continuous:
        return f"{path.name} {frame.stamp_ns / 1e9:.2f} s" if several else f"{frame.stamp_ns / 1e9:.2f} s"
    if path.is_file():
        return source.uri if several else path.name
    return str(path / frame.name) if several else frame.name


def watch(source: Source, board: Board, collected: Collected, stop: threading.Event) -> None:
    """Take views of a live camera when they are new, sharp and at rest, and say what is missing, until nothing is."""
    said: list[str] = []
    before: View | None = None
    with window() as show, stopped_by(stop, source):
        for frame in source.frames():
            if stop.is_set():
                return
            view = detect(board, frame.image, f"frame {frame.seq}", thorough=False)
            count = len(collected.views)
            if not view.trouble and steady(before, view):
                collected.views = offer(board, collected.views, view)
                if any(other is view for other in collected.views):
                    collected.keep_picture(view, frame.image)
            before = None if view.trouble else view
            wanted = missing(board, collected.views)
            if wanted != said or len(collected.views) > count:
                tell(f"{len(collected.views)} views; {wanted[0] if wanted else 'enough'}")
                said = wanted
            if not wanted or show(guide_picture(frame.image, collected.views, view, wanted)):
                return


@contextmanager
def stopped_by(stop: threading.Event, source: Source) -> Iterator[None]:
    """Closes the source when ``stop`` is set: a camera that hangs gives no frame after which one could ask."""
    over = threading.Event()

    def wait() -> None:
        while not over.is_set():
            if stop.wait(0.1):
                source.close()
                return

    thread = threading.Thread(target=wait, name="stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def window() -> Iterator[Callable[[Image], bool]]:
    """Yields what shows a picture and returns whether the user has had enough; where there is no screen it does neither."""
    screen = not sys.platform.startswith("linux") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if screen:
        try:
            cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL)
        except cv2.error:  # an OpenCV without windows
            screen = None
    if not screen:
        tell("no screen to show the camera on; what to do is said here, Ctrl-C when it is enough")
        yield lambda image: False
        return

    def show(image: Image) -> bool:
        cv2.imshow(TITLE, image)
        key = cv2.waitKey(1) & 0xFF
        return key in (ord("q"), 27) or cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1

    try:
        yield show
    finally:
        with suppress(cv2.error):  # closed by the user
            cv2.destroyWindow(TITLE)


@contextmanager
def progress_bar(source: Source) -> Iterator[Callable[[int], None]]:
    """Yields what is told how many pictures are done; a bar on stderr, where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("looking for the board", total=source.total)
        yield lambda done: bars.update(task, completed=done)


def mounted(path: Path) -> bool:
    """Whether a camera file, of whatever age and quality, holds a mount."""
    try:
        return read_camera(path)[1] is not None
    except ValueError:
        return False


def outermost(fits: list[Fit]) -> Fit:
    """The view with a corner farthest from the middle of the image, where distortion shows most."""
    return max(fits, key=lambda fit: float(np.hypot(*(fit.view.pixels - np.array(fit.view.size) / 2).T).max()))


def png(image: Image) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def report(result: Calibration, board: Board, views: list[View]) -> str:
    """A table of all views, then the camera's numbers with one standard deviation each."""
    errors = {fit.view.name: fit for fit in result.fits}
    reasons = {view.name: view.trouble for view in result.left_out}
    wide = max(len("view"), *(len(view.name) for view in views))
    lines = [f"{'view':<{wide}}  corners  error px"]
    for view in views:
        fit = errors.get(view.name)
        said = f"{fit.rms_px:8.2f}" if fit else f"{'':8}  not used: {reasons[view.name]}"
        if fit and view.size != (result.intrinsics.width, result.intrinsics.height):
            said += f"  is {view.size[0]}x{view.size[1]}; pixels counted from the top left"
        lines.append(f"{view.name:<{wide}}  {len(view.ids):3} /{board.count:3}  {said}")
    k = result.intrinsics
    lines += [
        "",
        f"{k.name}: {k.width}x{k.height}, {k.distortion_model}, {len(result.fits)} of {len(views)} views used, "
        f"RMS error {result.rms_px:.3f} px, boards cover {result.coverage:.0%} of the image",
    ]
    for parameter, value in zip(PARAMETERS[k.distortion_model], vector(k), strict=True):
        digits = 2 if parameter in ("fx", "fy", "cx", "cy") else 5
        sure = f"+- {k.sigma[parameter]:.{digits}f}" if parameter in k.sigma else "not determined"
        lines.append(f"  {parameter:<3} {value:12.{digits}f} {sure}")
    return "\n".join(lines)
