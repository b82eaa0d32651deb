"""The threads around the loop: one that reads the source, one for each sink, one that notices when nothing comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress

from perception import service
from perception.capture.base import Source
from perception.causes import Cause, Code
from perception.errors import FreespaceError, tell
from perception.freespace import Freespace
from perception.heap import reserve_frames
from perception.lookout import Lookout, Sighted
from perception.monitor import Monitor, Verdict
from perception.sinks.base import Output, Sink
from perception.slot import Closed, Slot
from perception.timing import Stages

OUTPUTS_WAITING = 4  # for a sink, of a recording
LIVE_OUTPUTS_WAITING = 16  # for a file: half a second of a slow disk at 30 frames per second
SERVICE_S = 1.0  # how often the service manager hears of us


class CaptureThread(threading.Thread):
    """Reads the source ahead of inference, and looks at each picture once it is on its way. ``error``: what ended it early."""

    def __init__(self, source: Source, slot: Slot[Sighted], lookout: Lookout) -> None:
        super().__init__(name="capture", daemon=True)
        self.error: BaseException | None = None
        self._source, self._slot, self._lookout = source, slot, lookout

    def run(self) -> None:
        try:
            for number, frame in enumerate(self._source.frames()):
                if self._source.live and number == 0:
                    reserve_frames(frame.image.nbytes)
                sighted = Sighted(frame, Future())
                self._slot.put(sighted)
                self._lookout.fulfil(sighted)
        except Closed:
            pass
        except OSError as error:
            self.error = FreespaceError(f"{self._source.uri}: cannot be read: {error.strerror or error}")
        except BaseException as error:
            self.error = error
        finally:
            self._slot.finish()


class SinkThread(threading.Thread):
    """Feeds one sink, and closes it whatever happens. Where nothing may wait for the sink, it gets the newest outputs."""

    def __init__(self, name: str, sink: Sink, stages: Stages, monitor: Monitor) -> None:
        super().__init__(name=name, daemon=True)
        self.error: BaseException | None = None
        self._sink, self._stages, self._monitor = sink, stages, monitor
        waited_for = sink.lossless and not monitor.live
        waiting = 1 if not sink.lossless else LIVE_OUTPUTS_WAITING if monitor.live else OUTPUTS_WAITING
        self._slot: Slot[Output | Freespace] = Slot(waiting, newest_wins=not waited_for)
        self._said = 0
        if not waited_for:
            monitor.watch_sink(self.name, lambda: self._slot.dropped)

    @property
    def failed(self) -> bool:
        return self.error is not None

    @property
    def dropped(self) -> int:
        """Outputs it had no time for; a viewer is shown only what it has time for, so these do not count."""
        return self._slot.dropped if self._sink.lossless else 0

    @property
    def stopped(self) -> bool:
        """Whether the user closed it (a window)."""
        return bool(getattr(self._sink, "stopped", False))

    def give(self, output: Output | Freespace) -> None:
        """Hand over an output, or a result without a frame."""
        with suppress(Closed):  # it failed; the loop will see
            self._slot.put(output)
        if self._sink.lossless and self._slot.dropped > self._said:
            self._said = self._slot.dropped
            text = f"{self._sink.target} is too slow: {self._said} outputs were dropped."
            self._monitor.sink_trouble(self.name, Cause(Code.SINK_DROPPING, text))

    def finish(self) -> None:
        """Let it write what waits and close the sink."""
        self._slot.finish()

    def wait(self, timeout_s: float | None) -> None:
        """Wait until it has; what takes longer than ``timeout_s`` has failed."""
        self.join(timeout_s)
        if self.is_alive() and self._sink.lossless:  # of a viewer nothing is lost
            self.error = FreespaceError(f"{self._sink.target}: could not be finished in time; it is not whole")

    @property
    def listened(self) -> bool:
        """Whether somebody listens to it."""
        return self._sink.listened

    def run(self) -> None:
        try:
            while True:
                output = self._slot.get()
                started = time.perf_counter_ns()
                if isinstance(output, Freespace):
                    self._sink.write_without_frame(output)
                    continue
                self._sink.write(output)
                self._stages.add(self.name, (time.perf_counter_ns() - started) / 1e6)
        except Closed:
            pass
        except BaseException as error:
            self.error = explained(error, self._sink)
            self._monitor.sink_trouble(self.name, Cause(Code.SINK_FAILED, f"An output has failed: {self.error}"))
            if self._monitor.live:
                tell(f"an output has failed, the others go on: {self.error}")
            self._slot.abort()
        try:
            self._sink.close()
        except BaseException as error:
            self.error = self.error or explained(error, self._sink)


class WatchdogThread(threading.Thread):
    """Where no result is new enough says so in its place, at a steady rate, and tells the service manager that we live.

    ``error`` holds what ended it early.

    Args:
        report: publishes a verdict without a frame, unless a result came in the meantime.
    """

    def __init__(self, monitor: Monitor, report: Callable[[], Verdict | None]) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.error: BaseException | None = None
        self._monitor, self._report = monitor, report
        self._done = threading.Event()

    def run(self) -> None:
        try:
            self._watch()
        except BaseException as error:
            self.error = error

    def _watch(self) -> None:
        period_ns = round(1e9 / self._monitor.config.invalid_hz)
        reported = served = 0
        while True:
            now = time.perf_counter_ns()
            due = max(self._monitor.silent_from() + 1, reported + period_ns) if self._monitor.live else now + period_ns
            if self._done.wait(min(max(due - now, 1_000_000), round(SERVICE_S * 1e9)) / 1e9):
                return
            now = time.perf_counter_ns()
            if now >= due and self._report():
                reported = now
            if now - served >= SERVICE_S * 1e9:
                served = now
                service.heartbeat(self._monitor)

    def leave(self) -> None:
        """Say nothing more."""
        self._done.set()

    def finish(self) -> None:
        self._done.set()
        self.join()


def explained(error: BaseException, sink: Sink) -> BaseException:
    """An error of the operating system as one sentence that names the output."""
    if isinstance(error, OSError):
        return FreespaceError(f"{sink.target}: cannot be written: {error.strerror or error}")
    return error


def names_of(sinks: Sequence[Sink]) -> list[str]:
    """A name for each, from its kind; numbered where there are more of a kind."""
    kinds = [type(sink).__name__.removesuffix("Sink").lower() for sink in sinks]
    return [f"{kind}{kinds[:i].count(kind) + 1}" if kinds.count(kind) > 1 else kind for i, kind in enumerate(kinds)]
