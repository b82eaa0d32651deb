"""The overlay in a window on the screen."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import cv2

from perception.errors import BadInput
from perception.freespace import Freespace
from perception.overlay import draw
from perception.sinks.base import Output, Sink

TITLE = "Freespace (q or Esc to stop)"


class WindowSink(Sink):
    """Shows every result; ``stopped`` turns True when the user presses q or Esc, or closes the window."""

    def __init__(self) -> None:
        if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise BadInput("--show needs a screen, and there is none here (DISPLAY is not set); use --out overlay.mp4")
        self.target = Path("window")
        self.stopped = False
        self._opened = False
        self._newest: Output | None = None

    def write(self, output: Output) -> None:
        if not self._opened:  # in the thread that draws: not every window system lets go of its first thread
            try:
                cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL)
            except cv2.error as error:
                raise BadInput("--show needs an OpenCV with windows; opencv-python-headless has none") from error
            self._opened = True
        self._newest = output
        self._show(output)

    def write_without_frame(self, result: Freespace) -> None:
        if self._newest is not None:  # else the last outlines would stay, as if they were still true
            frame = replace(self._newest.frame, image=self._newest.frame.image // 2)
            self._show(replace(self._newest, frame=frame, result=result))

    def _show(self, output: Output) -> None:
        cv2.imshow(TITLE, draw(output.frame.image, output.result, output.metres))
        key = cv2.waitKey(1) & 0xFF
        if key in (ord("q"), 27) or cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1:
            self.stopped = True

    def close(self) -> None:
        if self._opened and cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) >= 1:
            cv2.destroyWindow(TITLE)
