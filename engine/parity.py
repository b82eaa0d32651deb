"""Do all backends say the same?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine import BACKENDS, installed, usable
from engine.base import Engine
from engine.contract import EngineError, ModelError

HALF = 127  # scores above it are drivable


@dataclass
class Parity:
    """Difference of a backend's scores from the reference's, over all frames, planes and pixels.

    Attributes:
        backend, precision: what was compared.
        frames: how many.
        largest: largest difference, grey levels of 255.
        mean: mean difference, grey levels.
        iou: per plane, of what is drivable here and what is drivable there; 1 where nothing is, in either.
    """

    backend: str
    precision: str
    frames: int = 0
    largest: int = 0
    total: int = 0
    pixels: int = 0
    overlap: dict[str, list[int]] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        return self.total / max(self.pixels, 1)

    @property
    def iou(self) -> dict[str, float]:
        return {plane: both / either if either else 1.0 for plane, (both, either) in self.overlap.items()}

    def add(self, scores: NDArray[np.uint8], wanted: NDArray[np.uint8], planes: tuple[str, ...]) -> None:
        """Count one frame, uint8 ``(K, h, w)`` twice."""
        difference = np.abs(scores.astype(np.int16) - wanted)
        self.frames += 1
        self.largest = max(self.largest, int(difference.max()))
        self.total += int(difference.sum())
        self.pixels += wanted.size
        for plane, here, there in zip(planes, scores > HALF, wanted > HALF, strict=True):
            counts = self.overlap.setdefault(plane, [0, 0])
            counts[0] += int(np.count_nonzero(here & there))
            counts[1] += int(np.count_nonzero(here | there))


@dataclass
class Comparison:
    """What `compare` found: the reference's name, a row per other backend, and why backends were left out."""

    reference: str
    rows: list[Parity]
    left_out: dict[str, str]

    def __str__(self) -> str:
        planes = list(self.rows[0].overlap) if self.rows else []
        head = ["backend", "precision", "frames", "largest", "mean", *(f"IoU {plane}" for plane in planes)]
        lines = [
            [r.backend, r.precision, str(r.frames), str(r.largest), f"{r.mean:.4f}", *(f"{v:.5f}" for v in r.iou.values())]
            for r in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in [head, *lines]
        ]
        notes = [f"left out: {name}, {reason}" for name, reason in self.left_out.items()]
        return "\n".join([f"against {self.reference}, differences in grey levels of 255", *table, *notes])


def compare(images: Iterable[NDArray[np.uint8]], open_backend: Callable[[str], Engine]) -> Comparison:
    """Scores of every backend that works here against the reference (torch, else the first one) on ``images``.

    Raises:
        ModelError: no backend can load the model.
    """
    left_out: dict[str, str] = {}
    engines: list[Engine] = []
    with ExitStack() as stack:
        for name in sorted(filter(installed, BACKENDS), key=lambda name: name != "torch"):
            try:
                if problem := usable(name):
                    raise ModelError(problem)
                engines.append(stack.enter_context(open_backend(name)))
            except (ModelError, EngineError) as error:
                left_out[name] = str(error)
        if not engines:
            raise ModelError("; ".join(f"{name}: {reason}" for name, reason in left_out.items()))
        reference, *others = engines
        rows = [Parity(engine.name, engine.precision) for engine in others]
        for image in images:
            wanted = reference.segment([image]).values[0]
            for row, engine in zip(rows, others, strict=True):
                row.add(engine.segment([image]).values[0], wanted, engine.contract.planes)
        return Comparison(f"{reference.name} {reference.precision}", rows, left_out)
