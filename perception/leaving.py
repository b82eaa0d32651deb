"""The end of the process, also where a thread hangs in a driver and does not come back."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress


class Leaving:
    """Ends the process before the interpreter is taken down, where threads would outlive it.

    A read that hangs in FFmpeg asks its caller every 0.1 s whether it shall go on. Asked when the interpreter is gone, while
    libraries still take their leave, it takes the whole process down with a segmentation fault, and with it the exit code.

    Attributes:
        code: the exit code; set it when it is known.
    """

    def __init__(self) -> None:
        """To be made first of all: what is registered for the exit is called last first."""
        self.code = 0
        atexit.register(self._leave)

    def _leave(self) -> None:
        """Called when other threads were waited for and outputs are closed, with the interpreter still whole."""
        hung = [thread for thread in threading.enumerate() if thread.daemon and thread is not threading.current_thread()]
        if hung:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(self.code)
