"""What changes in a live run, said on stderr."""

from __future__ import annotations

import time
from pathlib import Path

from perception.causes import Code
from perception.errors import tell
from perception.freespace import Freespace
from perception.sinks.base import Output, Sink

EVERY_S = 1.0


class RemarksSink(Sink):
    """Says a new state, or new causes, with the time of day: a line a second at most, however much changes.

    A sink of its own, so that a terminal that stands still holds up nothing else.
    """

    lossless = False
    listened = False

    def __init__(self) -> None:
        self.target = Path("stderr")
        self._said: tuple[str, tuple[Code, ...]] = ("starting", (Code.STARTING,))
        self._next = 0.0

    def write(self, output: Output) -> None:
        self.write_without_frame(output.result)

    def write_without_frame(self, result: Freespace) -> None:
        now = result.state, tuple(cause.code for cause in result.causes)
        if now != self._said and time.monotonic() >= self._next:
            self._said, self._next = now, time.monotonic() + EVERY_S
            why = " ".join(cause.text for cause in result.causes)
            tell(f"{time.strftime('%H:%M:%S')} {result.state}{': ' if why else ''}{why}")

    def close(self) -> None:
        pass
