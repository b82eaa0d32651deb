"""How sure several numbers are together: a covariance whose parameters have names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

STEP = 1e-3  # of a standard deviation: a difference over so much stands for a derivative
NEGLIGIBLE = 1e-10  # of the greatest variance: directions that vary less are rounding


@dataclass(frozen=True)
class Covariance:
    """Covariances of the errors of named parameters, in their units.

    Attributes:
        names: of the parameters.
        rows: the matrix, row by row.

    Raises:
        ValueError: a name comes twice, the matrix is not that of so many names, not symmetric, or has a negative variance in
            some direction.
    """

    names: tuple[str, ...] = ()
    rows: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        count = len(self.names)
        if len(set(self.names)) != count:
            raise ValueError(f"a name comes twice among {', '.join(self.names)}")
        if [len(row) for row in self.rows] != [count] * count:
            raise ValueError(f"{count} names need {count} rows of {count} numbers")
        if not count:
            return
        matrix = self.matrix
        if not np.isfinite(matrix).all() or (np.diag(matrix) < 0).any():
            raise ValueError("variances must be finite and at least 0")
        scaled = self._correlations
        if np.abs(scaled - scaled.T).max() > 1e-6 or np.linalg.eigvalsh(scaled)[0] < -1e-6 * count:
            raise ValueError("no covariance: not symmetric, or some combination of the parameters has a negative variance")

    @classmethod
    def of(cls, names: Iterable[str], matrix: ArrayLike) -> Covariance:
        """From an array ``(n, n)``."""
        values = np.asarray(matrix, np.float64)
        return cls(tuple(names), tuple(map(tuple, ((values + values.T) / 2).tolist())))

    @classmethod
    def independent(cls, sigma: Mapping[str, float]) -> Covariance:
        """Of parameters that do not go together, from their standard deviations."""
        return cls.of(sigma, np.diag([value**2 for value in sigma.values()]))

    @cached_property
    def matrix(self) -> Array:
        """float64 ``(n, n)``."""
        return np.array(self.rows, np.float64).reshape(len(self.names), len(self.names))

    @property
    def sigma(self) -> dict[str, float]:
        """Standard deviation of each parameter."""
        return dict(zip(self.names, np.sqrt(np.diag(self.matrix)).tolist(), strict=True))

    @property
    def _correlations(self) -> Array:
        spread = np.sqrt(np.diag(self.matrix))
        scale = np.where(spread > 0, spread, 1.0)
        return np.asarray(self.matrix / np.outer(scale, scale))

    @property
    def factor(self) -> Array:
        """float64 ``(n, k)``: what, times its own transpose, is the matrix; k independent sources of error."""
        if not self.names:
            return np.empty((0, 0))
        variances, axes = np.linalg.eigh(self._correlations)
        kept = variances > NEGLIGIBLE * max(float(variances[-1]), 0.0)
        return np.asarray(np.sqrt(np.diag(self.matrix))[:, None] * axes[:, kept] * np.sqrt(variances[kept]))

    def scaled(self, scale: Mapping[str, float]) -> Covariance:
        """The same where each parameter is so many times itself, those that are not named once."""
        by = np.array([scale.get(name, 1.0) for name in self.names])
        return Covariance.of(self.names, self.matrix * np.outer(by, by))

    def only(self, names: Iterable[str]) -> Covariance:
        """Of these parameters, as far as they are there."""
        kept = [name for name in names if name in self.names]
        at = [self.names.index(name) for name in kept]
        return Covariance.of(kept, self.matrix[np.ix_(at, at)])

    def plus(self, sigma: Mapping[str, float]) -> Covariance:
        """With independent errors, standard deviations, added; also of parameters that were not among them."""
        new = [name for name in sigma if name not in self.names]
        names = (*self.names, *new)
        matrix = np.zeros((len(names), len(names)))
        matrix[: len(self.names), : len(self.names)] = self.matrix
        return Covariance.of(names, matrix + np.diag([sigma.get(name, 0.0) ** 2 for name in names]))

    def beside(self, other: Covariance) -> Covariance:
        """Together with those of the other's parameters that are not among these, as independent of these."""
        new = other.only([name for name in other.names if name not in self.names])
        apart = np.zeros((len(self.names), len(new.names)))
        return Covariance.of([*self.names, *new.names], np.block([[self.matrix, apart], [apart.T, new.matrix]]))

    def measured(self, names: Sequence[str], of: Sequence[str], slopes: ArrayLike, noise: ArrayLike) -> Covariance:
        """With parameters measured anew, by means of others.

        Args:
            names: of what was measured; what was known of it before no longer counts.
            of: names of the others, each among ``self.names``.
            slopes: ``(len(names), len(of))``: by how much the measured ones are wrong for each unit that the others are.
            noise: ``(len(names), len(names))``: covariance of what the measuring itself gets wrong.
        """
        others = [name for name in self.names if name not in names]
        before = self.only(others).matrix
        made = np.zeros((len(names), len(others)))
        made[:, [others.index(name) for name in of]] = slopes
        across = made @ before
        return Covariance.of([*names, *others], np.block([[across @ made.T + noise, across], [across.T, before]]))


def slopes(function: Callable[[dict[str, float]], Array], covariance: Covariance) -> Array:
    """float64 ``(m, n)``: how a function's ``(m,)`` numbers change with the covariance's parameters, by central differences.

    Args:
        function: of what is added to the parameters by their names.
    """
    columns = []
    for name, sigma in covariance.sigma.items():
        step = STEP * (sigma or 1.0)
        columns.append((function({name: step}) - function({name: -step})) / (2 * step))
    return np.stack(columns, axis=1) if columns else np.empty((len(function({})), 0))
