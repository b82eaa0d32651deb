"""Times by stage, kept within fixed memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (50, 95, 99)


class Stages:
    """Milliseconds of the last ``window`` frames by stage: an hour at 30 frames per second by default."""

    def __init__(self, window: int = 108_000) -> None:
        self._window = window
        self._rings: dict[str, NDArray[np.float32]] = {}
        self._counts: dict[str, int] = {}

    def add(self, stage: str, milliseconds: float) -> None:
        count = self._counts.get(stage, 0)
        if not count:
            self._rings[stage] = np.full(self._window, np.nan, np.float32)  # not empty: all its memory is taken now, none later
        self._rings[stage][count % self._window] = milliseconds
        self._counts[stage] = count + 1

    def add_all(self, milliseconds: Mapping[str, float]) -> None:
        for stage, value in milliseconds.items():
            self.add(stage, value)

    def means(self) -> dict[str, float]:
        """Stage -> milliseconds, in the order in which the stages first came."""
        return {
            stage: float(self._rings[stage][: min(count, self._window)].mean(dtype=np.float64))
            for stage, count in list(self._counts.items())
        }

    def percentiles(self) -> dict[str, dict[int, float]]:
        """Stage -> percentile -> milliseconds, in the order in which the stages first came."""
        return {
            stage: dict(
                zip(
                    PERCENTILES,
                    np.percentile(self._rings[stage][: min(count, self._window)], PERCENTILES).tolist(),
                    strict=True,
                )
            )
            for stage, count in list(self._counts.items())
        }
