"""The engine: images in, score planes out, whatever runs the network."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

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
        depth: how many batches may be submitted before the first is collected; with 2 the copy of one frame goes on
            beside the inference of the one before.
    """

    name: str
    device: str = "CPU"
    precision: str = "fp32"
    contract: ModelContract
    reason: str = ""
    depth: int = 1

    def __init__(self, contract: ModelContract) -> None:
        self.contract = contract
        self._input = np.zeros((1, contract.input_size[1], contract.input_size[0], 3), np.uint8)
        self._finished: deque[Scores] = deque()

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
        if len(self._finished) >= self.depth:
            raise RuntimeError(f"{self.depth} batches are on their way already; collect one first")
        self._finished.append(self._compute(images, pixel_format))

    def collect(self) -> Scores:
        """The scores of the oldest batch handed in. Raises `EngineError`, and RuntimeError: there is none."""
        if not self._finished:
            raise RuntimeError("nothing has been submitted")
        return self._finished.popleft()

    def resamplings(self, images: Sequence[NDArray[np.uint8]], pixel_format: PixelFormat) -> tuple[Resampling, ...]:
        """How each image comes to the network's size. Raises ValueError: no image, or one of another type or shape."""
        if not images:
            raise ValueError("no images to segment")
        return tuple(fit(frame_size(image, pixel_format), self.input_size, self.contract.resize) for image in images)

    def _compute(self, images: Sequence[NDArray[np.uint8]], pixel_format: PixelFormat) -> Scores:
        started = time.perf_counter_ns()
        resamplings = self.resamplings(images, pixel_format)
        if len(self._input) != len(images):
            self._input = np.zeros((len(images), *self._input.shape[1:]), np.uint8)
        for image, resampling, slot in zip(images, resamplings, self._input, strict=True):
            resample(to_bgr(image, pixel_format), resampling, slot)
        prepared = time.perf_counter_ns()
        if self.contract.batch == 1:
            values = np.concatenate([self.infer(one[None]) for one in self._input])
        else:
            values = self.infer(self._input)
        done = time.perf_counter_ns()
        timings = EngineTimings((prepared - started) / 1e6, (done - prepared) / 1e6)
        return Scores(values, self.contract.planes, resamplings, timings)

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
