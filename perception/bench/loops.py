"""One window of each mode: the product's own engine and loop, given frames in another way and listened to."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import chain, count, cycle
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.base import Engine
from engine.preprocess import fit, resample
from perception.bench import usage
from perception.bench.schema import Load, Mode
from perception.capture import Source, open_source
from perception.config import Config
from perception.errors import FreespaceError
from perception.frame import Frame
from perception.freespace import Freespace
from perception.node import run
from perception.sinks.base import Output, Sink
from perception.sinks.jsonl import JsonlSink

KEPT_FRAMES, KEPT_BYTES = 64, 256_000_000
FEWEST = 2  # results in a window, however long they take
RAMP = 0.1  # of a window: queues fill, threads wake
RESIDENT_RUNS = 20  # of a plan at a time: waiting for the device costs microseconds
PATIENCE_S = 30.0  # for the first frame of a source that may have to be opened


@dataclass
class Samples:
    """What was seen in a window.

    Attributes:
        began_ns: on `time.perf_counter_ns`, a clock that all processes of a machine share.
        at_s: when each result was there, since ``began_ns``.
        stages: milliseconds by stage, one for each result.
        frames: results; with a batch there are more frames than entries.
        mean_of: runs of the network that each entry is the mean of.
    """

    began_ns: int = 0
    seconds: float = 0.0
    frames: int = 0
    mean_of: int = 1
    at_s: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    cpu_s: float = 0.0
    machine_s: float | None = None
    rss_mb: float = 0.0
    threads: int = 0
    dropped: int = 0
    invalid: int = 0

    def spent(self, before: usage.Usage, after: usage.Usage) -> None:
        self.cpu_s = after.cpu_s - before.cpu_s
        if after.machine_s is not None and before.machine_s is not None:
            self.machine_s = after.machine_s - before.machine_s
        self.rss_mb, self.threads = usage.resident_mb(), usage.thread_count()


@dataclass(frozen=True)
class Material:
    """What a process measures with.

    Attributes:
        source: URI.
        config: as `perception.session.run_session` takes it.
        frames: the first ones of the source, in memory.
        batches: uint8 ``(batch, h, w, 3)`` at the network's size, made from them.
    """

    source: str
    config: Config
    engine: Engine
    frames: Sequence[Frame]
    fps: float | None
    batches: Sequence[NDArray[np.uint8]]

    @property
    def own_mb(self) -> float:
        """Memory that only the benchmark needs."""
        return (sum(f.image.nbytes for f in self.frames) + sum(b.nbytes for b in self.batches)) / usage.MB


def window(material: Material, mode: Mode, load: Load, seconds: float) -> Samples:
    """Measure for ``seconds``, or longer until there are `FEWEST` results.

    Raises what the loop raises, and FreespaceError: they do not come.
    """
    cv2.setNumThreads(1)  # as the loop has it
    if mode == "engine":
        samples = engine_window(material, load, seconds)
    elif mode == "pipeline":
        samples = pipeline_window(material, load, seconds)
    else:
        samples = end_to_end_window(material, load, seconds)
    if len(samples.at_s) < FEWEST:
        raise FreespaceError(f"{mode}, {load}: fewer than {FEWEST} results before the source ended or fell silent")
    samples.rss_mb -= material.own_mb
    return samples


# -- The network alone -------------------------------------------------------------------------------------------------


def engine_window(material: Material, load: Load, seconds: float) -> Samples:
    """The compiled network on batches of its own size: nothing is resized, on a GPU nothing is copied."""
    if hasattr(material.engine, "infer_resident"):
        return resident_window(material, load, seconds)
    engine, batches = material.engine, cycle(material.batches)
    depth = engine.depth if load == "flat-out" else 1
    running: deque[tuple[int, Any]] = deque()
    ramp_ns, samples = round(RAMP * seconds * 1e9), Samples()
    started, before = time.perf_counter_ns(), None
    while True:
        while len(running) < depth:
            batch = next(batches)
            running.append((time.perf_counter_ns(), engine.start(batch)))
        handed_ns, work = running.popleft()
        _, infer_ms = engine.finish(work)
        done = time.perf_counter_ns()
        if before is None:
            if done - started >= ramp_ns:
                before = usage.now()
                samples.began_ns = before.at_ns
            continue
        samples.at_s.append((done - samples.began_ns) / 1e9)
        samples.stages.setdefault("infer", []).append(infer_ms)
        samples.stages.setdefault("total", []).append((done - handed_ns) / 1e6)
        samples.frames += len(batch)
        if done - samples.began_ns >= seconds * 1e9 and len(samples.at_s) >= FEWEST:
            break
    samples.seconds = samples.at_s[-1]
    samples.spent(before, usage.now())
    for _, work in running:
        engine.finish(work)
    return samples


def resident_window(material: Material, load: Load, seconds: float) -> Samples:
    """As `engine_window`, of what lies on the device; flat out each entry is the mean of `RESIDENT_RUNS` runs."""
    engine: Any = material.engine
    runs = RESIDENT_RUNS if load == "flat-out" else 1
    engine.segment(list(material.batches[0]))  # something to work on
    engine.infer_resident(runs)
    samples, before = Samples(mean_of=runs), usage.now()
    samples.began_ns = before.at_ns
    while len(samples.at_s) < FEWEST or samples.at_s[-1] < seconds:
        started = time.perf_counter_ns()
        engine.infer_resident(runs)
        done = time.perf_counter_ns()
        samples.at_s.append((done - samples.began_ns) / 1e9)
        for stage in ("infer", "total"):
            samples.stages.setdefault(stage, []).append((done - started) / 1e6 / runs)
        samples.frames += runs * len(material.batches[0])
    samples.seconds = samples.at_s[-1]
    samples.spent(before, usage.now())
    return samples


# -- The loop ----------------------------------------------------------------------------------------------------------


def pipeline_window(material: Material, load: Load, seconds: float) -> Samples:
    """The loop on frames in memory: from a decoded frame's bytes to polygons."""
    stop, wanted = threading.Event(), threading.Event()
    one_at_a_time = load == "one-at-a-time"
    source = MemorySource(material.frames, material.fps, stop, wanted if one_at_a_time else None)
    sink = Receipts(seconds, stop, wanted if one_at_a_time else None)
    samples = listen(source, material, sink, stop, seconds)
    samples.stages.pop("decode", None)  # there is none
    return samples


def end_to_end_window(material: Material, load: Load, seconds: float) -> Samples:
    """The loop from the source to a line of polygons in a file, from the beginning of the recording, over and over."""
    capture = material.config.capture
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        first = open_source(material.source, capture)
        if not first.live:
            first.close()
            first = open_source(material.source, capture.model_copy(update={"loop": True, "realtime": load == "source-rate"}))
        with first as source:
            sink = Receipts(seconds, stop, None, JsonlSink(Path(folder) / "polygons.jsonl"))
            return listen(source, material, sink, stop, seconds)


def listen(source: Source, material: Material, sink: Receipts, stop: threading.Event, seconds: float) -> Samples:
    with Alarm(PATIENCE_S + 3 * seconds, stop):
        run(source, material.engine, [sink], material.config, stop)
    return sink.samples


class Alarm(AbstractContextManager["Alarm"]):
    """Sets ``stop`` after ``seconds`` unless it is left before: of a camera that is silent no window would end."""

    def __init__(self, seconds: float, stop: threading.Event) -> None:
        self._timer = threading.Timer(seconds, stop.set)
        self._timer.daemon = True
        self._timer.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._timer.cancel()


class MemorySource(Source):
    """Frames that are in memory already, forwards and backwards in turn so that none is far from the one before it, for ever.

    Args:
        stop: ends it.
        wanted: set when the next frame is; None gives them as fast as they are taken.
    """

    def __init__(
        self, frames: Sequence[Frame], fps: float | None, stop: threading.Event, wanted: threading.Event | None = None
    ) -> None:
        super().__init__("memory", fps)
        self._frames, self._stop, self._wanted = frames, stop, wanted
        if wanted:
            wanted.set()

    def frames(self) -> Iterator[Frame]:
        period_ns = 1e9 / (self.fps or 25.0)
        order = cycle(chain(range(len(self._frames)), range(len(self._frames) - 2, 0, -1)))
        for seq, index in zip(count(), order):
            if self._wanted:
                while not self._wanted.wait(0.1):
                    if self._stop.is_set():
                        return
                self._wanted.clear()
            yield replace(
                self._frames[index],
                seq=seq,
                stamp_ns=round(seq * period_ns),
                decode_ms=0.0,
                dropped=0,
                stretch=0,
                grabbed_ns=time.perf_counter_ns(),
            )


class Receipts(Sink):
    """Takes results as an output does, hands them on to one, and notes what they cost.

    Stage ``age``: from the moment the frame was there to the moment its result was written, all waiting included.

    Args:
        seconds: of the window, which begins after a ramp; then ``stop`` is set.
        wanted: set after each result.
        inner: the output; its time is stage ``publish``.
    """

    target = Path("receipts")

    def __init__(
        self, seconds: float, stop: threading.Event, wanted: threading.Event | None = None, inner: Sink | None = None
    ) -> None:
        self.samples = Samples()
        self._seconds, self._stop, self._wanted, self._inner = seconds, stop, wanted, inner
        self._first_ns: int | None = None
        self._before: usage.Usage | None = None
        self._dropped = 0

    def write(self, output: Output) -> None:
        if self._inner:
            began = time.perf_counter_ns()
            self._inner.write(output)
            publish_ms = (time.perf_counter_ns() - began) / 1e6
        if not self._stop.is_set():
            now = time.perf_counter_ns()
            self._note(output, now, {"publish": publish_ms} if self._inner else {})
        if self._wanted:
            self._wanted.set()

    def _note(self, output: Output, now: int, more: dict[str, float]) -> None:
        result, samples = output.result, self.samples
        if self._first_ns is None:
            self._first_ns = now
        if self._before is None:
            if now - self._first_ns >= RAMP * self._seconds * 1e9:
                self._before, self._dropped = usage.now(), result.dropped
                samples.began_ns = self._before.at_ns
            return
        age_ms = (now - output.frame.grabbed_ns) / 1e6
        samples.at_s.append((now - samples.began_ns) / 1e9)
        for stage, value in {**result.latency_ms, **more, "age": age_ms}.items():
            samples.stages.setdefault(stage, []).append(value)
        samples.frames += 1
        samples.invalid += not result.valid
        samples.dropped = result.dropped - self._dropped
        if now - samples.began_ns >= self._seconds * 1e9 and len(samples.at_s) >= FEWEST:
            samples.seconds = samples.at_s[-1]
            samples.spent(self._before, usage.now())
            self._stop.set()

    def write_without_frame(self, result: Freespace) -> None:
        if self._before and not self._stop.is_set():
            self.samples.invalid += 1
        if self._inner:
            self._inner.write_without_frame(result)

    def close(self) -> None:
        if self._inner:
            self._inner.close()
        if self._before and not self.samples.seconds and self.samples.at_s:  # it was stopped from outside
            self.samples.seconds = self.samples.at_s[-1]
            self.samples.spent(self._before, usage.now())


# -- Material ----------------------------------------------------------------------------------------------------------


def prepare(uri: str, config: Config, engine: Engine, batch: int) -> tuple[Material, bool, int | None]:
    """Read the first frames. (material, whether the source is live, how many frames it has).

    Raises:
        BadInput: there is no such source.
        FreespaceError: no frame could be read.
    """
    frames: list[Frame] = []
    with open_source(uri, config.capture.model_copy(update={"loop": False, "realtime": False})) as source:
        live, total, fps = source.live, source.total, source.fps
        for frame in source.frames():
            frames.append(replace(frame, image=frame.image.copy()))
            if len(frames) == KEPT_FRAMES or len(frames) * frame.image.nbytes >= KEPT_BYTES:
                break
    if not frames:
        raise FreespaceError(f"{source.uri}: no frame could be read")
    return Material(uri, config, engine, frames, fps, batches(engine, frames, batch)), live, total


def batches(engine: Engine, frames: Sequence[Frame], batch: int) -> list[NDArray[np.uint8]]:
    width, height = engine.input_size
    small = np.empty((len(frames), height, width, 3), np.uint8)
    for frame, slot in zip(frames, small, strict=True):
        resample(frame.image, fit(frame.size, engine.input_size, engine.contract.resize), slot)
    order = np.arange(-(-len(frames) // batch) * batch) % len(frames)
    return [small[part] for part in order.reshape(-1, batch)]
