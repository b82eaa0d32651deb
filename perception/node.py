"""The loop: frames from a source, through the engine, to the sinks.

Capture has a thread, every sink has a thread, inference has the caller's. Of a recording nothing is lost: it is processed
whole, at the pace of the slowest. Of a live source the newest frame counts: what there is no time for is dropped and
counted, no sink is waited for, and where no result is new enough that is said in its place.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from calibration.confidence import polygon_shift
from engine.base import Engine
from perception import service
from perception.capture.base import Source
from perception.causes import Cause, Code
from perception.config import Config
from perception.errors import BadInput
from perception.frame import Frame
from perception.freespace import Freespace, Polygon
from perception.lookout import Lookout, Sight, Sighted
from perception.monitor import Monitor, Verdict, blinds
from perception.polygons import extract
from perception.sinks.base import Output, Sink
from perception.slot import Closed, Slot
from perception.stabilise import Stabiliser
from perception.stability import Stability, StabilityFigures
from perception.timing import Stages
from perception.workers import CaptureThread, SinkThread, WatchdogThread, names_of

if TYPE_CHECKING:
    from perception.metres import Metres, Rulers

DEFAULTS = Config()
UNNAMED = DEFAULTS.capture.frame_id  # of a frame whose source knows no better
OVER = Verdict("stale", False, (Cause(Code.ENDED, "The run is over."),))
FRAMES_AHEAD = 3  # of a recording
WAKE_S = 0.1  # how often a waiting loop looks whether it has been stopped
SINK_CLOSING_S = 30.0  # a live run does not wait longer for an output to be finished


@dataclass
class Summary:
    """What a run did.

    Attributes:
        frames: results produced.
        invalid: results that could not be used, those without a frame included, by their first cause's code.
        dropped: frames lost: those that the source lost, and those that there was no time for.
        dropped_by: the same by place, ``source`` and ``slot``, and the outputs dropped by the sink's name.
        reconnections: how often the source was opened again.
        wall_s: from the first frame asked for to the last output written, seconds.
        stages: milliseconds by stage, those of the sinks included.
        stability: how steady the results were; None of separate images.
        interrupted: whether it was stopped before the source ended.
        blocked: results in metres with free ground, but none ahead where the view begins.
        problems: one sentence for each thing that was wrong.
    """

    frames: int = 0
    invalid: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    dropped_by: dict[str, int] = field(default_factory=dict)
    reconnections: int = 0
    wall_s: float = 0.0
    stages: Stages = field(default_factory=Stages)
    stability: StabilityFigures | None = None
    blocked: int = 0
    interrupted: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def fps(self) -> float:
        """Frames per second of wall time, from the source to the outputs."""
        return self.frames / self.wall_s if self.wall_s > 0 else 0.0


class OneThread:
    """OpenCV with one thread while any loop is at work: in tasks of a millisecond more of them only fight with the network's.

    That is of the whole process: of several loops the first one sets it, and the last one puts back what was there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loops = self._before = 0

    def enter(self) -> None:
        with self._lock:
            if not self._loops:
                self._before = cv2.getNumThreads()
                cv2.setNumThreads(1)
            self._loops += 1

    def leave(self) -> None:
        with self._lock:
            self._loops -= 1
            if not self._loops:
                cv2.setNumThreads(self._before)


ONE_THREAD = OneThread()


class Interpreter:
    """From scores to results, one frame after the other: what was there before steadies what comes."""

    def __init__(self, config: Config, engine: Engine, continuous: bool, monitor: Monitor) -> None:
        self._engine, self._monitor, self._continuous = engine, monitor, continuous
        self._scene: int | None = None
        self._calibrated = False  # whether a frame has come that the calibration is for
        self.blocked = 0  # results with no free ground where the view begins
        self._steadied: tuple[object, ...] = ()
        self._rulers: Rulers | None = None
        if config.ground.calibration:
            from perception.metres import Rulers

            self._rulers = Rulers(config.ground, Path(config.ground.calibration), monitor.live)
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Go on with other settings, but for those of the ground. Raises `ModelError`: the model has no such plane."""
        contract = self._engine.contract
        self.config, self.plane = config, contract.plane_index(config.polygons.plane)
        self._shift = polygon_shift(contract.metadata, config.polygons.plane)
        wanted = (config.stabilise, config.polygons.threshold, config.polygons.plane)
        if wanted != self._steadied:  # else it goes on
            self._steadied = wanted
            self.stability = Stability(config.polygons.threshold) if self._continuous else None
            steady = config.stabilise.enabled
            self.stabiliser = (
                Stabiliser(config.stabilise, config.polygons.threshold)
                if (self._continuous if steady is None else steady)
                else None
            )

    def read(self, frame: Frame, sight: Future[Sight], started: int, dropped: int) -> Output:
        """Take the scores of the frame handed in at ``started`` (ns, ``perf_counter``) and find its polygons.

        Args:
            sight: what is to be said of the picture.
            dropped: frames lost before this one for want of time.
        """
        scores = self._engine.collect()
        plane = scores.values[0, self.plane]
        segmented = time.perf_counter_ns()
        looked, polygons, ground = sight.result(), list[Polygon](), None
        seen = list(looked.causes)
        metres = self.ruler(frame, seen)
        if blinds(seen) or looked.scene != self._scene:  # nobody knows what has changed meanwhile
            self._scene = looked.scene
            self.forget()
        if not blinds(seen):
            if self.stabiliser:
                plane = self.stabiliser.steady(plane, frame.stamp_ns)
            wanted = self.config.polygons
            polygons = extract(plane, scores.resamplings[0], wanted.plane, wanted, self._shift)
            if metres:
                polygons, ground = metres.place(polygons)
                self.blocked += metres.blocked(ground)
        done = time.perf_counter_ns()
        verdict = self._monitor.judge(frame, seen)
        if not verdict.valid:
            plane = np.zeros_like(plane)
        copies = {"h2d": scores.timings.h2d_ms, "d2h": scores.timings.d2h_ms} if scores.timings.d2h_ms else {}
        latency_ms = {
            "decode": frame.decode_ms,
            "preprocess": scores.timings.preprocess_ms,
            "infer": scores.timings.infer_ms,
            **copies,
            "postprocess": (done - segmented) / 1e6,
            "total": frame.decode_ms + (done - started) / 1e6,
        }
        if self._monitor.live:
            latency_ms["age"] = (time.perf_counter_ns() - frame.grabbed_ns) / 1e6
        result = Freespace(
            seq=frame.seq,
            source=frame.source,
            frame_id=frame.frame_id,
            stamp_ns=frame.stamp_ns,
            clock=frame.clock,
            size=frame.size,
            valid=verdict.valid,
            state=verdict.state,
            model=self._engine.contract.sha256,
            backend=self._engine.name,
            dropped=frame.dropped + dropped,
            polygons=polygons if verdict.valid else [],
            latency_ms=latency_ms,
            causes=list(verdict.causes),
            published_ns=time.time_ns(),
            ground=ground if verdict.valid else None,
        )
        return Output(frame, result, plane, scores.resamplings[0], self.config.polygons, metres)

    def ruler(self, frame: Frame, seen: list[Cause]) -> Metres | None:
        """What brings this frame's result to the ground; None without a calibration.

        A camera that comes back with frames of another shape is blind until it has those of the calibration again, which is
        added to ``seen``. Where it never had them the user must know: raises `BadInput`.
        """
        if self._rulers is None:
            return None
        try:
            metres = self._rulers.at(frame)
        except BadInput as error:
            if not (self._monitor.live and self._calibrated):
                raise
            seen.append(Cause(Code.UNCALIBRATED, str(error)))
            return None
        self._calibrated = True
        return metres

    def measure(self, output: Output) -> None:
        """Take a result into the figures of steadiness; once it is published, for that has time."""
        if self.stability and output.result.valid:
            self.stability.add(output.scores, output.frame.stamp_ns)

    def forget(self) -> None:
        for memory in (self.stabiliser, self.stability):
            if memory:
                memory.reset()


def process(source: Source, engine: Engine, config: Config = DEFAULTS) -> Iterator[Output]:
    """Each frame of ``source`` with its result, one after the other in the caller's thread: as `run`, without threads."""
    monitor = Monitor(source, config.loop, is_live(source, config))
    lookout = Lookout(config.health, monitor.live, source.continuous)
    interpreter = Interpreter(config, engine, source.continuous, monitor)
    for frame in source.frames():
        frame = named(frame, config)
        started = time.perf_counter_ns()
        engine.submit([frame.image])
        sight: Future[Sight] = Future()
        sight.set_result(lookout.look(frame))
        output = interpreter.read(frame, sight, started, 0)
        monitor.published(output.result, frame)
        interpreter.measure(output)
        yield output


def run(
    source: Source,
    engine: Engine,
    sinks: Sequence[Sink],
    config: Config,
    stop: threading.Event | None = None,
    on_result: Callable[[Freespace], None] | None = None,
    monitor: Monitor | None = None,
    changed: Callable[[], Config | None] | None = None,
    notify: Callable[[str], object] = service.notify,
) -> Summary:
    """Process ``source`` to its end, or until ``stop`` is set, and close every sink.

    Args:
        on_result: called after each frame, in the caller's thread.
        monitor: told of everything; one of its own by default.
        changed: asked before each frame for settings to go on with: those of the polygons, the pictures' health and the
            stabiliser take effect.
        notify: tells the service manager that we are ready, and stopping; where this loop is not all that runs, others do.

    Raises:
        FreespaceError: the source or a sink failed; what was written until then is kept, every sink is closed. While
            frames come live, they go on to the other sinks first.
    """
    stop = stop or threading.Event()
    monitor = monitor or Monitor(source, config.loop, is_live(source, config), engine.contract.sha256, engine.name)
    live, summary = monitor.live, Summary()
    newest_counts = is_newest_only(source, config)
    waiting: Slot[Sighted] = Slot(1, newest_wins=True) if newest_counts else Slot(FRAMES_AHEAD)
    lookout = Lookout(config.health, live, source.continuous)
    capture = CaptureThread(source, waiting, lookout)
    writers = [SinkThread(name, s, summary.stages, monitor) for name, s in zip(names_of(sinks), sinks, strict=True)]
    memory = next((sink for sink in sinks if isinstance(sink, service.Memory)), None)
    first_seq = memory.first_seq if memory and live else 0  # the frames of a recording have numbers of their own
    publishing = threading.Lock()

    def publish(output: Output | Freespace) -> Freespace:
        # It may have been held up since it was judged.
        if isinstance(output, Output) and output.result.valid and (late := monitor.late(output.frame)):
            result = replace(output.result, valid=False, polygons=[], ground=None, state=late.state, causes=list(late.causes))
            output = replace(output, result=result, scores=np.zeros_like(output.scores))
        result, frame = (output, None) if isinstance(output, Freespace) else (output.result, output.frame)
        monitor.published(result, frame)
        if not result.valid:
            summary.invalid[result.causes[0].code.value] += 1
        for writer in writers:
            writer.give(output)
        return result

    def report() -> Verdict | None:
        with publishing:
            monitor.lost(waiting.dropped)
            if verdict := monitor.silence():
                publish(without_frame(verdict, monitor, source, engine, config))
            return verdict

    watchdog = WatchdogThread(monitor, report)
    started = time.perf_counter()
    for thread in (capture, *writers, watchdog):
        thread.start()
    submitted: deque[tuple[Frame, Future[Sight], int, int]] = deque()
    failure: BaseException | None = None
    ONE_THREAD.enter()
    try:
        interpreter = Interpreter(config, engine, source.continuous, monitor)
        notify("READY=1")
        while not stop.is_set() and not ended(writers, live) and not watchdog.error:
            monitor.turn()
            if changed and (settings := changed()):
                interpreter.configure(settings)
                lookout.configure(settings.health)
            if len(submitted) < engine.depth:
                try:  # a frame that is on its way already must not wait for one that is not there yet
                    frame, sight = waiting.get(0 if submitted else WAKE_S)
                    monitor.lost(waiting.dropped)
                    if newest_counts and (time.perf_counter_ns() - frame.grabbed_ns) / 1e6 > config.loop.budget_ms:
                        waiting.drop()  # its result could not be valid
                        monitor.too_late(frame)
                        continue
                    frame = named(frame, config)
                    if first_seq:
                        seq = frame.seq + first_seq
                        name = f"{seq:06d}" if frame.name == f"{frame.seq:06d}" else frame.name
                        frame = replace(frame, seq=seq, name=name)
                    monitor.begin()
                    submitted.append((frame, sight, time.perf_counter_ns(), waiting.dropped_before))
                    engine.submit([frame.image])
                    continue
                except TimeoutError:
                    pass
                except Closed:
                    if not submitted:
                        break
            if submitted:
                output = interpreter.read(*submitted.popleft())
                if not submitted:
                    monitor.idle()
                summary.stages.add_all(output.result.latency_ms)
                summary.frames += 1
                with publishing:
                    result = publish(output)
                interpreter.measure(output)
                if on_result:
                    on_result(result)
        for _ in submitted:  # whoever uses the engine next finds it empty
            engine.collect()
        summary.interrupted = stop.is_set()
        summary.stability = interpreter.stability.figures() if interpreter.stability else None
        summary.blocked = interpreter.blocked
    except Closed:
        pass
    except KeyboardInterrupt:  # the user will not wait, not even for the outputs
        waiting.abort()
        watchdog.leave()
        raise
    except BaseException as error:
        failure = error
    finally:
        ONE_THREAD.leave()
    notify("STOPPING=1")
    monitor.lost(waiting.dropped)
    waiting.abort()
    watchdog.finish()
    failure = failure or watchdog.error or capture.error
    if failure and live:
        monitor.failed(failure, failure is capture.error)
        report()
    elif live:  # who listens must not take the last result for one that still holds
        publish(without_frame(OVER, monitor, source, engine, config))
    if live:
        source.close()
    for writer in writers:  # all at once: one that hangs must not cost the others their time
        writer.finish()
    closing = time.monotonic() + SINK_CLOSING_S
    for writer in writers:
        writer.wait(max(0.0, closing - time.monotonic()) if live else None)
    # A decoder can hang in a read that never returns; it must not keep the outputs from being closed.
    capture.join(timeout=5.0)
    summary.wall_s = time.perf_counter() - started
    summary.dropped_by = {**monitor.dropped, **{w.name: w.dropped for w in writers if w.dropped}}
    summary.dropped = sum(monitor.dropped.values())
    summary.reconnections = source.reconnections
    summary.problems = list(source.problems)
    failure = failure or next((w.error for w in writers if w.error), None)
    if failure is not None:
        raise failure
    return summary


def named(frame: Frame, config: Config) -> Frame:
    """``frame`` with the camera's name of the settings, where the source knows none."""
    name = config.capture.frame_id
    known = frame.clock == "ros"  # a header always says it, and drivers call it so, too
    return frame if known or frame.frame_id != UNNAMED else replace(frame, frame_id=name)


def is_live(source: Source, config: Config) -> bool:
    """Whether results grow old: where frames come when they come, and where the newest one counts."""
    return source.live or config.loop.policy == "latest"


def is_newest_only(source: Source, config: Config) -> bool:
    """Whether the newest frame counts, or every one."""
    return source.live if config.loop.policy == "auto" else config.loop.policy == "latest"


def ended(writers: Sequence[SinkThread], live: bool) -> bool:
    """Whether the outputs end the run: a recording wants all of them; a live run goes on while one works."""
    failed = [writer.failed for writer in writers if writer.listened or not live] or [w.failed for w in writers]
    return any(writer.stopped for writer in writers) or (bool(failed) and (all(failed) if live else any(failed)))


def without_frame(verdict: Verdict, monitor: Monitor, source: Source, engine: Engine, config: Config) -> Freespace:
    """What goes out in place of a result: number and stamp are those of the newest frame that had one."""
    newest = monitor.newest
    return Freespace(
        seq=newest.seq if newest else -1,
        source=source.uri,
        frame_id=newest.frame_id if newest else config.capture.frame_id,
        stamp_ns=newest.stamp_ns if newest else 0,
        clock=newest.clock if newest else source.clock,
        size=newest.size if newest else (0, 0),
        valid=False,
        state=verdict.state,
        model=engine.contract.sha256,
        backend=engine.name,
        dropped=sum(monitor.dropped.values()),
        polygons=[],
        latency_ms={},
        causes=list(verdict.causes),
        published_ns=time.time_ns(),
    )
