"""The engine: images in, score planes out, whatever runs the network."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from engine.contract import ModelContract
from engine.preprocess import Resampling, fit, resample


@dataclass(frozen=True)
class EngineTimings:
    """Milliseconds of one `Engine.segment` call; copies are 0 where the device is the CPU."""

    preprocess_ms: float
    infer_ms: float
    h2d_ms: float = 0.0
    d2h_ms: float = 0.0


@dataclass(frozen=True)
class Scores:
    """Result of one `Engine.segment` call.

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

    Attributes:
        name: of the backend, as ``--backend`` takes it.
        device: what it computes on.
        precision: of the arithmetic, ``fp32`` or ``bf16``.
        contract: of the model file.
        reason: one phrase: why this backend (set by `engine.open_engine`).
    """

    name: str
    device: str = "CPU"
    precision: str = "fp32"
    contract: ModelContract
    reason: str = ""

    def __init__(self, contract: ModelContract) -> None:
        self.contract = contract
        self._input = np.zeros((1, contract.input_size[1], contract.input_size[0], 3), np.uint8)

    @property
    def input_size(self) -> tuple[int, int]:
        """(width, height) of the network's input in pixels."""
        return self.contract.input_size

    def segment(self, images: Sequence[NDArray[np.uint8]]) -> Scores:
        """Score every pixel of ``images``, each uint8 ``(H, W, 3)`` BGR of any size.

        Raises:
            ValueError: no image, or one of another type or shape.
        """
        if not images:
            raise ValueError("no images to segment")
        started = time.perf_counter_ns()
        if len(self._input) != len(images):
            self._input = np.zeros((len(images), *self._input.shape[1:]), np.uint8)
        resamplings = []
        for image, slot in zip(images, self._input, strict=True):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise ValueError(f"an image must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
            resampling = fit((image.shape[1], image.shape[0]), self.input_size, self.contract.resize)
            resample(image, resampling, slot)
            resamplings.append(resampling)
        prepared = time.perf_counter_ns()
        if self.contract.batch == 1:
            values = np.concatenate([self.infer(one[None]) for one in self._input])
        else:
            values = self.infer(self._input)
        done = time.perf_counter_ns()
        timings = EngineTimings((prepared - started) / 1e6, (done - prepared) / 1e6)
        return Scores(values, self.contract.planes, tuple(resamplings), timings)

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
