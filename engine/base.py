"""The engine: images in, score planes out, whatever runs the network."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.contract import ModelContract
from engine.preprocess import PixelFormat, Resampling, fit, frame_size, resample, to_bgr


@dataclass(frozen=True)
class EngineTimings:
    """Milliseconds of one batch; copies are 0 where the device is the CPU."""

    preprocess_ms: float
    infer_ms: float
    h2d_ms: float = 0.0
    d2h_ms: float = 0.0


@dataclass(frozen=True)
class Scores:
    """What the network says of one batch of images.

    Attributes:
        values: uint8 ``(N, K, h, w)``, ``round(255 * p)``; owned by the caller.
        planes: names of the K planes.
        resamplings: how each of the N images was brought to ``(h, w)``.
        timings: of the whole batch.
    """

    values: NDArray[np.uint8]
    planes: tuple[str, ...]
    resamplings: tuple[Resampling, ...]
    timings: EngineTimings


class Engine(ABC):
    """A loaded network. A context manager; use it from one thread at a time.

    Either `segment`, or `submit` and `collect` in turn with up to ``depth`` batches on their way.

    Attributes:
        name: of the backend, as ``--backend`` takes it.
        device: what it computes on.
        precision: of the arithmetic, ``fp32``, ``bf16``, ``fp16`` or ``int8``.
        contract: of the model file.
        reason: one phrase: why this backend (set by `engine.open_engine`).
        depth: how many batches may be submitted before the first is collected. With more than one, what is done before
            and after the network goes on beside it: more frames a second, and each takes longer.
    """

    name: str
    device: str = "CPU"
    precision: str = "fp32"
    contract: ModelContract
    reason: str = ""
    depth: int = 1

    def __init__(self, contract: ModelContract) -> None:
        self.contract = contract
        self._inputs: deque[NDArray[np.uint8]] = deque()
        self._running: deque[Any] = deque()

    @property
    def input_size(self) -> tuple[int, int]:
        """(width, height) of the network's input in pixels."""
        return self.contract.input_size

    def segment(self, images: Sequence[NDArray[np.uint8]], pixel_format: PixelFormat = "bgr") -> Scores:
        """Score every pixel of ``images``, uint8 frames of any size in ``pixel_format`` (see `engine.preprocess`).

        Raises:
            ValueError: no image, or one of another type or shape.
            EngineError: the device failed.
        """
        self.submit(images, pixel_format)
        return self.collect()

    def submit(self, images: Sequence[NDArray[np.uint8]], pixel_format: PixelFormat = "bgr") -> None:
        """Hand in a batch as for `segment`; the images may be reused at once.

        Raises:
            ValueError, EngineError: as `segment`.
            RuntimeError: ``depth`` batches are on their way already.
        """
        if len(self._running) >= self.depth:
            raise RuntimeError(f"{self.depth} batches are on their way already; collect one first")
        started = time.perf_counter_ns()
        resamplings = self.resamplings(images, pixel_format)
        batch = self._next_input(len(images))
        for image, resampling, slot in zip(images, resamplings, batch, strict=True):
            resample(to_bgr(image, pixel_format), resampling, slot)
        preprocess_ms = (time.perf_counter_ns() - started) / 1e6
        self._running.append((self.start(batch), resamplings, preprocess_ms))

    def collect(self) -> Scores:
        """The scores of the oldest batch handed in. Raises `EngineError`, and RuntimeError: there is none."""
        if not self._running:
            raise RuntimeError("nothing has been submitted")
        work, resamplings, preprocess_ms = self._running.popleft()
        values, infer_ms = self.finish(work)
        return Scores(values, self.contract.planes, resamplings, EngineTimings(preprocess_ms, infer_ms))

    def resamplings(self, images: Sequence[NDArray[np.uint8]], pixel_format: PixelFormat) -> tuple[Resampling, ...]:
        """How each image comes to the network's size. Raises ValueError: no image, or one of another type or shape."""
        if not images:
            raise ValueError("no images to segment")
        return tuple(fit(frame_size(image, pixel_format), self.input_size, self.contract.resize) for image in images)

    def start(self, batch: NDArray[np.uint8]) -> Any:
        """Begin with a batch uint8 ``(N, h, w, 3)``, which stays as it is until `finish`; here all the work is done at once."""
        started = time.perf_counter_ns()
        parts = [batch] if self.contract.batch is None else np.split(batch, len(batch))
        values = np.concatenate([self.infer(part) for part in parts])
        return values, (time.perf_counter_ns() - started) / 1e6

    def finish(self, work: Any) -> tuple[NDArray[np.uint8], float]:
        """The scores uint8 ``(N, K, h, w)`` of what `start` gave, and the milliseconds they took."""
        values, infer_ms = work
        return values, infer_ms

    def _next_input(self, count: int) -> NDArray[np.uint8]:
        """One of ``depth`` arrays in turn, so that none is overwritten while it is in use."""
        width, height = self.input_size
        while len(self._inputs) < self.depth:
            self._inputs.append(np.zeros((count, height, width, 3), np.uint8))
        self._inputs.rotate(-1)
        if len(self._inputs[0]) != count:
            self._inputs[0] = np.zeros((count, height, width, 3), np.uint8)
        return self._inputs[0]

    @abstractmethod
    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 ``(N, h, w, 3)`` -> a new uint8 array ``(N, K, h, w)``."""

    @abstractmethod
    def close(self) -> None:
        """Free the network. Safe to call twice."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
