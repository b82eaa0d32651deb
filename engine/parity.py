"""Do all backends say the same?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine import BACKENDS, installed
from engine.base import Engine


@dataclass(frozen=True)
class Parity:
    """Difference of a backend's scores from the reference's, in grey levels of 255, over all frames, planes and pixels."""

    backend: str
    reference: str
    frames: int
    largest: int
    mean: float
    decided_otherwise: float  # fraction of pixels on the other side of one half

    def __str__(self) -> str:
        return (
            f"{self.backend} against {self.reference}, {self.frames} frames: largest difference {self.largest}, "
            f"mean {self.mean:.4f} grey levels, decided otherwise {self.decided_otherwise:.6%} of pixels"
        )


def compare(images: Sequence[NDArray[np.uint8]], open_backend: Callable[[str], Engine]) -> Iterator[Parity]:
    """Scores of every installed backend against the reference (torch, else the first installed one) on ``images``."""
    names = sorted((n for n in BACKENDS if installed(n)), key=lambda n: n != "torch")
    with open_backend(names[0]) as engine:
        wanted = [engine.segment([image]).values for image in images]
    for name in names[1:]:
        with open_backend(name) as engine:
            largest, total, otherwise, pixels = 0, 0, 0, 0
            for image, reference in zip(images, wanted, strict=True):
                scores = engine.segment([image]).values
                difference = np.abs(scores.astype(np.int16) - reference)
                largest = max(largest, int(difference.max()))
                total += int(difference.sum())
                otherwise += int(np.count_nonzero((scores > 127) != (reference > 127)))
                pixels += difference.size
        yield Parity(name, names[0], len(images), largest, total / max(pixels, 1), otherwise / max(pixels, 1))
