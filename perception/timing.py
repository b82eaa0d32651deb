"""Times by stage, kept within fixed memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

PERCENTILES = (50, 95, 99)


class Stages:
    """Milliseconds of the last ``window`` frames by stage: an hour at 30 frames per second by default."""

    def __init__(self, window: int = 108_000) -> None:
        self._window = window
        self._values: dict[str, deque[float]] = {}

    def add(self, stage: str, milliseconds: float) -> None:
        self._values.setdefault(stage, deque(maxlen=self._window)).append(milliseconds)

    def add_all(self, milliseconds: Mapping[str, float]) -> None:
        for stage, value in milliseconds.items():
            self.add(stage, value)

    def percentiles(self) -> dict[str, dict[int, float]]:
        """Stage -> percentile -> milliseconds, in the order in which the stages first came."""
        return {
            stage: dict(zip(PERCENTILES, np.percentile(np.array(tuple(values)), PERCENTILES).tolist(), strict=True))
            for stage, values in list(self._values.items())
        }
