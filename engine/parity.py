"""Do all backends say the same?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
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


def compare(images: Iterable[NDArray[np.uint8]], open_backend: Callable[[str], Engine]) -> list[Parity]:
    """Scores of every installed backend against the reference (torch, else the first installed one) on ``images``.

    Raises:
        ModelError: a backend cannot load the model.
    """
    names = sorted((n for n in BACKENDS if installed(n)), key=lambda n: n != "torch")
    with ExitStack() as stack:
        reference, *others = [stack.enter_context(open_backend(name)) for name in names]
        frames, pixels = 0, 0
        largest, total, otherwise = ([0] * len(others) for _ in range(3))
        for image in images:
            wanted = reference.segment([image]).values
            frames, pixels = frames + 1, pixels + wanted.size
            for i, engine in enumerate(others):
                scores = engine.segment([image]).values
                difference = np.abs(scores.astype(np.int16) - wanted)
                largest[i] = max(largest[i], int(difference.max()))
                total[i] += int(difference.sum())
                otherwise[i] += int(np.count_nonzero((scores > 127) != (wanted > 127)))
    size = max(pixels, 1)
    return [
        Parity(engine.name, names[0], frames, largest[i], total[i] / size, otherwise[i] / size)
        for i, engine in enumerate(others)
    ]
