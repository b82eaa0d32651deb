"""As a service: what systemd is told (sd_notify), and what outlives a restart."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from engine.files import write_whole
from perception.errors import BadInput, tell
from perception.freespace import Freespace
from perception.sinks.base import Output, Sink

if TYPE_CHECKING:
    from perception.monitor import Monitor

SAVE_S = 5.0
RESERVED = 10_000  # numbers set aside by a save, so that none is given twice after a crash


def notify(message: str) -> bool:
    """Send ``message`` to the service manager that started us, where there is one; see ``man sd_notify``.

    Returns:
        whether it was sent.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):  # Linux' abstract names
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out:
        out.connect(address)
        out.send(message.encode("utf-8", "backslashreplace"))
        return True
    return False


def heartbeat(monitor: Monitor) -> None:
    """That we live, and how: nothing where the loop hangs, so that the service manager restarts us."""
    if "NOTIFY_SOCKET" not in os.environ or not monitor.alive:
        return
    status = monitor.status()
    why = f": {status.causes[0].text}" if status.causes else ""
    dropped = sum(status.dropped.values())
    notify(f"WATCHDOG=1\nSTATUS={status.state}, {status.fps:.1f} FPS, {status.frames} results, {dropped} dropped{why}")


class Memory(Sink):
    """What the next start goes on from, in a JSON file: frames are numbered on, and restarts are counted.

    Written at most every `SAVE_S`, whole or not at all. After a clean end the numbers go on without a gap; after a crash
    some are left out, and none is given twice.

    Attributes:
        first_seq: the number that this run's first frame gets.
        restarts: how often a run went on from this file.

    Raises:
        BadInput: the file is there and cannot be read. One that holds something else is set aside, and said: a vehicle
            starts all the same.
    """

    lossless = False
    listened = False

    def __init__(self, path: Path) -> None:
        self.target = path
        state = read_state(path)
        self.first_seq: int = state["next_seq"]
        self.restarts: int = state["starts"]
        self._saved = 0.0
        self._next = self.first_seq
        self._save(RESERVED)

    def write(self, output: Output) -> None:
        self.write_without_frame(output.result)

    def write_without_frame(self, result: Freespace) -> None:
        self._next = max(self._next, result.seq + 1)
        if time.monotonic() - self._saved > SAVE_S:
            self._save(RESERVED)

    def close(self) -> None:
        self._save(0)

    def _save(self, reserved: int) -> None:
        self._saved = time.monotonic()
        write_whole(self.target, orjson.dumps({"next_seq": self._next + reserved, "starts": self.restarts + 1}))


def read_state(path: Path) -> dict[str, Any]:
    """What `Memory` wrote; a beginning where there is nothing of that kind. Raises BadInput: it cannot be read."""
    beginning = {"next_seq": 0, "starts": 0}
    try:
        state = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return beginning
    except OSError as error:
        raise BadInput(f"{path}: the state cannot be read: {error.strerror}") from error
    except ValueError:
        state = None
    if isinstance(state, dict) and all(type(state.get(key)) is int and state[key] >= 0 for key in beginning):
        return state
    aside = path.with_name(f"{path.name}.bad")
    path.replace(aside)
    tell(f"{path}: is no state of an earlier run, frames are numbered from 0; what was there is in {aside}")
    return beginning
