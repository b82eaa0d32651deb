"""What Ctrl-C, SIGTERM and SIGHUP do to a command."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perception.session import Request

INTERRUPTED = 130  # exit code


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that outputs are closed; a second Ctrl-C ends at once."""
    stop = threading.Event()

    def handle(number: int, _: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def reload_on_signal(stop: threading.Event, reloadable: bool) -> Iterator[Request]:
    """What SIGHUP asks for, where there is a file to read again; else SIGHUP stops as its terminal is gone."""
    from perception.session import Request

    asked = Request()
    if not hasattr(signal, "SIGHUP"):
        yield asked
        return
    previous = signal.signal(signal.SIGHUP, lambda *_: asked.make() if reloadable else stop.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGHUP, previous)
