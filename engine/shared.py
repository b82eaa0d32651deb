"""One engine for several cameras: each gets an `Engine` to use from its own thread, and they take turns."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from engine.base import Engine, EngineTimings, Scores
from engine.contract import EngineError
from engine.preprocess import PixelFormat, Resampling, resample, to_bgr

CLOSE_S = 5.0  # a device that hangs is not waited for any longer


@dataclass(eq=False)
class Request:
    """Images of one camera.

    Attributes:
        resamplings: how each came, or comes, to the network's size.
        preprocess_ms: what the camera's own thread spent on that.
        asked_ns: when, on `time.perf_counter_ns`.
        taken: that the engine has them, and they may be reused.
        scores: of them, or why there are none.
    """

    images: Sequence[NDArray[np.uint8]]
    pixel_format: PixelFormat
    resamplings: tuple[Resampling, ...]
    preprocess_ms: float = 0.0
    asked_ns: int = field(default_factory=time.perf_counter_ns)
    taken: threading.Event = field(default_factory=threading.Event)
    scores: Future[Scores] = field(default_factory=Future)


class SharedEngine:
    """Owns ``engine`` and works for all shares of it, in a thread of its own. A context manager.

    At most one request of a share waits. Those that wait longest are served first, as many as fit into a batch at once: while
    a request waits, no other share is served more than once before it. An engine that fails has failed for all shares.

    Args:
        most: images in one batch; 0 for what suits the engine (`batch_of`). One that runs images one after the other gives
            the first camera its scores sooner when they come to it one by one.
    """

    def __init__(self, engine: Engine, most: int = 0) -> None:
        self.engine, self.most = engine, most or batch_of(engine)
        self._waiting: deque[Request] = deque()
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._worker.start()

    def share(self) -> Engine:
        """An engine for one camera's loop; to close it ends nothing but that share."""
        return Share(self)

    def ask(self, request: Request) -> None:
        """Queue ``request``. Raises whatever the engine has failed of."""
        with self._changed:
            if self._error:
                raise self._error
            self._waiting.append(request)
            self._changed.notify_all()

    def withdraw(self, requests: Sequence[Request]) -> None:
        """Forget those of ``requests`` that still wait."""
        with self._changed:
            for request in requests:
                if request in self._waiting:
                    self._waiting.remove(request)
                    request.scores.set_exception(EngineError("the engine is closed"))
                    request.taken.set()

    def close(self) -> None:
        """Let go of the engine; shares that still want something of it fail. Safe to call twice."""
        self._fail(EngineError("the engine is closed"))
        self._worker.join(CLOSE_S)
        if not self._worker.is_alive():  # else it is in use, for ever
            self.engine.close()

    def _serve(self) -> None:
        running: deque[list[Request]] = deque()
        try:
            while True:
                if batch := self._next(len(running)):
                    running.append(batch)
                    self.engine.submit([image for request in batch for image in request.images], batch[0].pixel_format)
                    for request in batch:
                        request.taken.set()
                elif running:  # nobody waits, or it has its hands full
                    deliver(running[0], self.engine.collect())
                    running.popleft()
                else:
                    return
        except BaseException as error:
            self._fail(error, [request for batch in running for request in batch])

    def _next(self, running: int) -> list[Request]:
        """The requests to serve next; nothing, at once, while some are ``running`` and none can join; else when it is over."""
        with self._changed:
            if not running:
                self._changed.wait_for(lambda: self._waiting or self._error)
            batch: list[Request] = []
            if running >= self.engine.depth:
                return batch
            room = self.most
            while self._waiting and (not batch or fits(self._waiting[0], batch, room)):
                batch.append(self._waiting.popleft())
                room -= len(batch[-1].images)
            return batch

    def _fail(self, error: BaseException, taken: Sequence[Request] = ()) -> None:
        """From now on there is only ``error``, or the one before it; those of ``taken`` without scores get none."""
        with self._changed:
            self._error = self._error or error
            lost = [*taken, *self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
        for request in lost:
            if not request.scores.done():
                request.scores.set_exception(self._error)
            request.taken.set()

    def __enter__(self) -> SharedEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Share(Engine):
    """One camera's share of an engine: its answers to what this camera asks, its errors for all.

    What an image waited while others had the engine is in its ``infer_ms``; the other times are its part of the batch's.
    """

    def __init__(self, shared: SharedEngine) -> None:
        engine = shared.engine
        super().__init__(engine.contract)
        self.name, self.device, self.precision = engine.name, engine.device, engine.precision
        self.reason, self.depth = engine.reason, engine.depth
        self._shared = shared
        self._resamples = type(engine).submit is Engine.submit  # else the device does
        self._asked: deque[Request] = deque()
        self._closed = False

    def submit(self, images: Sequence[NDArray[np.uint8]], pixel_format: PixelFormat = "bgr") -> None:
        """As `Engine.submit`, and returns when it is this share's turn; at most as many images as one batch holds.

        Where the processor resamples, it does so here, in the camera's thread: the network does not wait for it.
        """
        if self._closed:
            raise EngineError("the engine is closed")
        if len(self._asked) >= self.depth:
            raise RuntimeError(f"{self.depth} batches are on their way already; collect one first")
        started = time.perf_counter_ns()
        resamplings = self.resamplings(images, pixel_format)  # what is wrong with these images is no matter of the others
        if len(images) > self._shared.most:
            raise ValueError(f"{len(images)} images, but {self._shared.most} are taken at a time")
        if self._resamples:
            images, pixel_format = self._resampled(images, resamplings, pixel_format), "bgr"
        request = Request(images, pixel_format, resamplings, (time.perf_counter_ns() - started) / 1e6)
        self._shared.ask(request)
        self._asked.append(request)
        request.taken.wait()

    def _resampled(
        self, images: Sequence[NDArray[np.uint8]], resamplings: Sequence[Resampling], pixel_format: PixelFormat
    ) -> Sequence[NDArray[np.uint8]]:
        """At the network's size, each in memory of this share's that holds until the engine has taken them."""
        batch = self._next_input(len(images))
        for image, resampling, slot in zip(images, resamplings, batch, strict=True):
            resample(to_bgr(image, pixel_format), resampling, slot)
        return list(batch)

    def collect(self) -> Scores:
        if not self._asked:
            raise RuntimeError("nothing has been submitted")
        return self._asked.popleft().scores.result()

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.concatenate([self.segment([image]).values for image in batch])

    def close(self) -> None:
        self._closed = True
        self._shared.withdraw(self._asked)


def batch_of(engine: Engine) -> int:
    """How many images ``engine`` computes at once: as its plan says, else 1.

    On a processor a batch takes as long as its images one after the other, or longer: see ``benchmarks/cameras.py``.
    """
    return int(getattr(engine, "batch", 1))


def fits(request: Request, batch: list[Request], room: int) -> bool:
    return len(request.images) <= room and request.pixel_format == batch[0].pixel_format


def deliver(batch: list[Request], scores: Scores) -> None:
    """Give each request its part of the batch's scores."""
    now, first, whole = time.perf_counter_ns(), 0, scores.timings
    for request in batch:
        last = first + len(request.images)
        part = (last - first) / len(scores.resamplings)
        preprocess_ms, h2d_ms, d2h_ms = (ms * part for ms in (whole.preprocess_ms, whole.h2d_ms, whole.d2h_ms))
        infer_ms = max(0.0, (now - request.asked_ns) / 1e6 - preprocess_ms - h2d_ms - d2h_ms)
        timings = EngineTimings(request.preprocess_ms + preprocess_ms, infer_ms, h2d_ms, d2h_ms)
        request.scores.set_result(Scores(scores.values[first:last], scores.planes, request.resamplings, timings))
        first = last
