"""From series of numbers to figures: distributions, the rule of the warm-up, the stability of windows, intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from perception.bench.schema import Distribution, Histogram, Point, Stability

SETTLED_WITHIN = 0.02  # of each other are the medians of the last windows of a warm-up
SETTLED_WINDOWS = 3
DRIFT_LIMIT = 0.05
SLOW_LIMIT = 0.05
LEVEL = 0.95
RESAMPLES = 4000
LEAST_INDEPENDENT = 3.5
BINS = 60
POINTS = 300
SHOWN_QUANTILE = 0.995  # where a histogram ends

F64 = NDArray[np.float64]


def distribution(windows: Sequence[F64]) -> Distribution:
    """Of milliseconds, an array of consecutive frames for each window; percentiles are linear between order statistics."""
    values = np.concatenate(windows)
    p50, p90, p95, p99 = np.percentile(values, (50, 90, 95, 99)).tolist()
    return Distribution(
        frames=len(values),
        mean=float(values.mean()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        max=float(values.max()),
        jitter=jitter(windows),
    )


def jitter(windows: Sequence[F64]) -> float:
    """Mean absolute difference of consecutive values, not across windows; 0 where none has two."""
    steps = np.concatenate([np.abs(np.diff(w)) for w in windows])
    return float(steps.mean()) if steps.size else 0.0


def histogram(values: F64) -> Histogram:
    low, high = float(values.min()), float(np.quantile(values, SHOWN_QUANTILE))
    high = high if high > low else low + max(abs(low) * 1e-3, 1e-6)
    counts, _ = np.histogram(values, BINS, (low, high))
    return Histogram(low_ms=low, high_ms=high, counts=counts.tolist(), beyond=int(np.count_nonzero(values > high)))


def timeline(at_s: F64, values: F64) -> list[Point]:
    """At most `POINTS` stretches of as many frames each."""
    parts = np.array_split(np.arange(len(values)), min(POINTS, len(values)))
    return [
        Point(at_s=float(at_s[p].mean()), median_ms=float(np.median(values[p])), max_ms=float(values[p].max())) for p in parts
    ]


def settled(medians: Sequence[float]) -> bool:
    """Whether the last `SETTLED_WINDOWS` medians lie within `SETTLED_WITHIN` of the least of them."""
    last = medians[-SETTLED_WINDOWS:]
    return len(last) == SETTLED_WINDOWS and max(last) <= min(last) * (1 + SETTLED_WITHIN)


def stability(medians: Sequence[float]) -> Stability:
    """Of the windows' medians (greater is slower)."""
    values = np.asarray(medians, np.float64)
    third = max(1, len(values) // 3)
    drift = float(np.median(values[-third:]) / np.median(values[:third]) - 1)
    slow = np.flatnonzero(values > np.median(values) * (1 + SLOW_LIMIT)).tolist()
    return Stability(drift_percent=100 * drift, slow=slow, steady=abs(drift) <= DRIFT_LIMIT and not slow)


# -- Intervals -------------------------------------------------------------------------------------------------------


def geometric_mean(values: F64) -> F64:
    """Along the last axis; of positive numbers."""
    return np.asarray(np.exp(np.log(values).mean(axis=-1)))


def interval(
    values: Sequence[float], statistic: Callable[[F64], F64] = geometric_mean, level: float = LEVEL, seed: int = 0
) -> tuple[float, float, float]:
    """(value, low, high) of a statistic of positive numbers, by bootstrap over them (Efron 1979), widened for few and for
    those that resemble their neighbours (`widening`).

    Ratios of windows measured in turn are such numbers, too. With fewer than two nothing is known: low is 0, high infinite.
    """
    data = np.asarray(values, np.float64)
    value = float(statistic(data))
    if len(data) < 2:
        return value, 0.0, float("inf")
    rng = np.random.default_rng(seed)
    drawn = statistic(data[rng.integers(len(data), size=(RESAMPLES, len(data)))])
    return (value, *limits(value, drawn, level, widening(len(data), level, repetition(data))))


def ratio_interval(
    over: Sequence[float], under: Sequence[float], level: float = LEVEL, seed: int = 0
) -> tuple[float, float, float]:
    """(value, low, high) of the ratio of the geometric means of two series that were not measured in turn."""
    a, b = np.asarray(over, np.float64), np.asarray(under, np.float64)
    value = float(geometric_mean(a) / geometric_mean(b))
    if min(len(a), len(b)) < 2:
        return value, 0.0, float("inf")
    rng = np.random.default_rng(seed)
    drawn = [geometric_mean(x[rng.integers(len(x), size=(RESAMPLES, len(x)))]) for x in (a, b)]
    wide = widening(min(len(a), len(b)), level, repetition(a, b))
    return (value, *limits(value, drawn[0] / drawn[1], level, wide))


def limits(value: float, drawn: F64, level: float, wide: float) -> tuple[float, float]:
    """Percentile limits, their distance from ``value`` stretched ``wide`` times on a logarithmic scale."""
    low, high = np.quantile(np.log(drawn), [(1 - level) / 2, (1 + level) / 2]) - np.log(value)
    return float(value * np.exp(wide * min(low, 0.0))), float(value * np.exp(wide * max(high, 0.0)))


def repetition(*series: F64) -> float:
    """How many consecutive values tell as much as one that is independent; 1 where none resembles the one before it.

    ``(1 + r) / (1 - r)`` of a first-order process, r the correlation of neighbours in all series together, corrected by
    ``1 / n`` for its bias; negative ones count as 0. At least `LEAST_INDEPENDENT` values are taken to be left.
    """
    logs = [np.log(values) - np.log(values).mean() for values in series]
    spread, count = sum(float(own @ own) for own in logs), min(map(len, logs))
    if spread == 0:
        return 1.0
    r = sum(float(own[1:] @ own[:-1]) for own in logs) / spread + 1 / count
    r = min(max(r, 0.0), 0.99)
    return max(1.0, min((1 + r) / (1 - r), count / LEAST_INDEPENDENT))


def widening(count: int, level: float, repeated: float = 1.0) -> float:
    """How much wider an interval from ``count`` values must be than the percentile bootstrap's to hold what it promises.

    ``sqrt(f n / (n - f)) * t / z``: for f = 1 Hesterberg 2015, "What teachers should know about the bootstrap", 5.4; f is
    `repetition`, by which the variance of a mean is larger (Bayley and Hammersley 1946). Student's t by the first terms of its
    expansion in 1 / (n - 1) (Abramowitz and Stegun 26.7.5).
    """
    z, freedom = NormalDist().inv_cdf((1 + level) / 2), count - 1
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    t = z + sum(term / freedom**power for power, term in enumerate(terms, 1))
    return float(np.sqrt(repeated * count / (count - repeated)) * t / z)
