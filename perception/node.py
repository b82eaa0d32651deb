"""The loop: frames from a source, through the engine, to the sinks.

Capture has a thread, every sink has a thread, inference has the caller's. Between them stand short slots in which nothing
is lost: a recording is processed whole, at the pace of the slowest.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import cv2

from engine.base import Engine
from perception.capture.base import Source
from perception.config import PolygonConfig
from perception.errors import FreespaceError
from perception.frame import Frame
from perception.freespace import Freespace
from perception.polygons import extract
from perception.sinks.base import Output, Sink
from perception.slot import Closed, Slot
from perception.timing import Stages

FRAMES_AHEAD = 3
OUTPUTS_WAITING = 4
WAKE_S = 0.1  # how often a waiting loop looks whether it has been stopped


@dataclass
class Summary:
    """What a run did.

    Attributes:
        frames: results produced.
        dropped: frames the source lost.
        wall_s: from the first frame asked for to the last output written, seconds.
        stages: milliseconds by stage, those of the sinks included.
        interrupted: whether it was stopped before the source ended.
        problems: one sentence for each thing that was wrong.
    """

    frames: int = 0
    dropped: int = 0
    wall_s: float = 0.0
    stages: Stages = field(default_factory=Stages)
    interrupted: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def fps(self) -> float:
        """Frames per second of wall time, from the source to the outputs."""
        return self.frames / self.wall_s if self.wall_s > 0 else 0.0


def process(frame: Frame, engine: Engine, polygons: PolygonConfig) -> Output:
    """Segment one frame and find its polygons."""
    started = time.perf_counter_ns()
    engine.submit([frame.image])
    return finish(frame, started, engine, polygons)


def finish(frame: Frame, started: int, engine: Engine, polygons: PolygonConfig) -> Output:
    """Take the scores of the frame handed in at ``started`` (ns, ``perf_counter``) and find its polygons."""
    scores = engine.collect()
    plane = scores.values[0, engine.contract.plane_index(polygons.plane)]
    segmented = time.perf_counter_ns()
    found = extract(plane, scores.resamplings[0], polygons.plane, polygons)
    done = time.perf_counter_ns()
    copies = {"h2d": scores.timings.h2d_ms, "d2h": scores.timings.d2h_ms} if scores.timings.d2h_ms else {}
    result = Freespace(
        seq=frame.seq,
        source=frame.source,
        frame_id=frame.frame_id,
        stamp_ns=frame.stamp_ns,
        clock=frame.clock,
        size=frame.size,
        valid=True,
        state="running",
        model=engine.contract.sha256,
        backend=engine.name,
        dropped=frame.dropped,
        polygons=found,
        latency_ms={
            "decode": frame.decode_ms,
            "preprocess": scores.timings.preprocess_ms,
            "infer": scores.timings.infer_ms,
            **copies,
            "postprocess": (done - segmented) / 1e6,
            "total": frame.decode_ms + (done - started) / 1e6,
        },
    )
    return Output(frame, result, plane, scores.resamplings[0])


def run(
    source: Source,
    engine: Engine,
    sinks: Sequence[Sink],
    polygons: PolygonConfig,
    stop: threading.Event | None = None,
    on_result: Callable[[Freespace], None] | None = None,
) -> Summary:
    """Process ``source`` to its end, or until ``stop`` is set, and close every sink.

    Args:
        on_result: called after each frame, in the caller's thread.

    Raises:
        FreespaceError: the source or a sink failed; what was written until then is kept, every sink is closed.
    """
    stop = stop or threading.Event()
    summary = Summary()
    waiting: Slot[Frame] = Slot(FRAMES_AHEAD)
    capture = CaptureThread(source, waiting)
    writers = [SinkThread(sink, summary.stages) for sink in sinks]
    started = time.perf_counter()
    for thread in (capture, *writers):
        thread.start()
    submitted: deque[tuple[Frame, int]] = deque()
    failure: BaseException | None = None
    cv2_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # for tasks of less than a millisecond its threads only fight with the network's
    try:
        while not stop.is_set() and not any(w.failed or w.stopped for w in writers):
            if len(submitted) < engine.depth:
                try:  # a frame that is on its way already must not wait for one that is not there yet
                    frame = waiting.get(0 if submitted else WAKE_S)
                    submitted.append((frame, time.perf_counter_ns()))
                    engine.submit([frame.image])
                    continue
                except TimeoutError:
                    pass
                except Closed:
                    if not submitted:
                        break
            if submitted:
                output = finish(*submitted.popleft(), engine, polygons)
                summary.stages.add_all(output.result.latency_ms)
                summary.frames += 1
                for writer in writers:
                    writer.give(output)
                if on_result:
                    on_result(output.result)
        summary.interrupted = stop.is_set()
    except Closed:
        pass
    except KeyboardInterrupt:  # the user will not wait, not even for the outputs
        raise
    except BaseException as error:
        failure = error
    finally:
        cv2.setNumThreads(cv2_threads)
    waiting.abort()
    for writer in writers:
        writer.finish()
    # A decoder can hang in a read that never returns; it must not keep the outputs from being closed.
    capture.join(timeout=5.0)
    summary.wall_s = time.perf_counter() - started
    summary.dropped, summary.problems = source.dropped, list(source.problems)
    failure = failure or capture.error or next((w.error for w in writers if w.error), None)
    if failure is not None:
        raise failure
    return summary


class CaptureThread(threading.Thread):
    """Reads the source ahead of inference. ``error`` holds what ended it early."""

    def __init__(self, source: Source, slot: Slot[Frame]) -> None:
        super().__init__(name="capture", daemon=True)
        self.error: BaseException | None = None
        self._source, self._slot = source, slot

    def run(self) -> None:
        try:
            for frame in self._source.frames():
                self._slot.put(frame)
        except Closed:
            pass
        except OSError as error:
            self.error = FreespaceError(f"{self._source.uri}: cannot be read: {error.strerror or error}")
        except BaseException as error:
            self.error = error
        finally:
            self._slot.finish()


class SinkThread(threading.Thread):
    """Feeds one sink, and closes it whatever happens."""

    def __init__(self, sink: Sink, stages: Stages) -> None:
        super().__init__(name=type(sink).__name__.removesuffix("Sink").lower(), daemon=True)
        self.error: BaseException | None = None
        self._sink, self._stages = sink, stages
        self._slot: Slot[Output] = Slot(OUTPUTS_WAITING)

    @property
    def failed(self) -> bool:
        return self.error is not None

    @property
    def stopped(self) -> bool:
        """Whether the user closed it (a window)."""
        return bool(getattr(self._sink, "stopped", False))

    def give(self, output: Output) -> None:
        with suppress(Closed):  # it failed; the loop will see
            self._slot.put(output)

    def finish(self) -> None:
        """Let it write what waits, close the sink, and wait for both."""
        self._slot.finish()
        self.join()

    def run(self) -> None:
        try:
            while True:
                output = self._slot.get()
                started = time.perf_counter_ns()
                self._sink.write(output)
                self._stages.add(self.name, (time.perf_counter_ns() - started) / 1e6)
        except Closed:
            pass
        except BaseException as error:
            self.error = explained(error, self._sink)
            self._slot.abort()
        try:
            self._sink.close()
        except BaseException as error:
            self.error = self.error or explained(error, self._sink)


def explained(error: BaseException, sink: Sink) -> BaseException:
    """An error of the operating system as one sentence that names the output."""
    if isinstance(error, OSError):
        return FreespaceError(f"{sink.target}: cannot be written: {error.strerror or error}")
    return error
