"""Charts as SVG, drawn by hand: they need nothing, and take their colours from the page they stand in."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from perception.bench.schema import Case

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 36


@dataclass(frozen=True)
class Axes:
    """From values to the picture; y grows upwards."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def frame(axes: Axes, x_name: str, y_name: str) -> str:
    """Grid, numbers and names."""
    parts = []
    for value in ticks(axes.x_low, axes.x_high):
        x = axes.x(value)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" stroke="var(--line)"/>')
        parts.append(text(x, HEIGHT - BOTTOM + 14, f"{value:g}", "middle"))
    for value in ticks(axes.y_low, axes.y_high):
        y = axes.y(value)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="var(--line)"/>')
        parts.append(text(LEFT - 6, y + 3.5, f"{value:g}", "end"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_name, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<g transform="rotate(-90 12 {middle:.0f})">{text(12, middle, y_name, "middle")}</g>')
    return "".join(parts)


def text(x: float, y: float, content: str, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="11" fill="var(--ink)">{html.escape(content)}</text>'
    )


def svg(title: str, body: str) -> str:
    return f'<svg role="img" aria-label="{html.escape(title, quote=True)}" viewBox="0 0 {WIDTH} {HEIGHT}">{body}</svg>'


def figure(title: str, body: str, key: str = "") -> str:
    return f"<figure><figcaption><b>{html.escape(title)}</b> {key}</figcaption>{svg(title, body)}</figure>"


def draw_histogram(title: str, case: Case) -> str:
    """Frames by their latency, with p50, p95 and p99."""
    h, d = case.histogram, case.stages[case.headline]
    axes = Axes(h.low_ms, h.high_ms, 0, max([*h.counts, 1]) * 1.05)
    step = (h.high_ms - h.low_ms) / len(h.counts)
    bars = []
    for i, count in enumerate(h.counts):
        left, right, top = axes.x(h.low_ms + i * step), axes.x(h.low_ms + (i + 1) * step), axes.y(count)
        bars.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(right - left - 0.6, 0.4):.1f}" '
            f'height="{axes.y(0) - top:.1f}" fill="var(--c0)"/>'
        )
    marks = []
    for row, (name, value) in enumerate((("p50", d.p50), ("p95", d.p95), ("p99", d.p99))):
        if h.low_ms <= value <= h.high_ms:
            x = axes.x(value)
            marks.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" stroke="var(--c1)"/>')
            near_end = x > WIDTH - 60
            marks.append(text(x - 4 if near_end else x + 4, TOP + 12 + 13 * row, name, "end" if near_end else "start"))
    key = f'<span class="marks">{h.beyond} beyond {h.high_ms:.2f} ms, largest {d.max:.2f} ms</span>'
    return figure(title, frame(axes, f"{case.headline}, ms", "frames") + "".join(bars) + "".join(marks), key)


def draw_timeline(title: str, case: Case) -> str:
    """Latency over the measurement: median and largest of each stretch; windows as bands, slow ones marked."""
    points = case.timeline
    ends = [w.at_s + w.seconds for w in case.windows]
    axes = Axes(0, max([*ends, points[-1].at_s]), 0, max(p.max_ms for p in points) * 1.05)
    bands = []
    for window, end in zip(case.windows, ends, strict=True):
        colour, strength = ("var(--c1)", 0.25) if window.round in case.stability.slow else ("var(--c0)", 0.10)
        left = axes.x(window.at_s)
        bands.append(
            f'<rect x="{left:.1f}" y="{TOP}" width="{max(axes.x(end) - left, 1):.1f}" height="{HEIGHT - TOP - BOTTOM}" '
            f'fill="{colour}" fill-opacity="{strength}"/>'
        )
    dots = [
        f'<circle cx="{axes.x(p.at_s):.1f}" cy="{axes.y(value):.1f}" r="1.5" fill="{colour}"/>'
        for p in points
        for value, colour in ((p.max_ms, "var(--c1)"), (p.median_ms, "var(--c0)"))
    ]
    key = '<span class="key c0">median</span><span class="key c1">largest</span>'
    return figure(title, "".join(bands) + frame(axes, "s", f"{case.headline}, ms") + "".join(dots), key)


def draw_pareto(title: str, x_name: str, y_name: str, points: Sequence[tuple[str, float, float, bool]]) -> str:
    """Points (name, x, y, whether on the front), more of either being better; the front is joined."""
    xs, ys = [p[1] for p in points], [p[2] for p in points]
    margin_y = 0.08 * (max(ys) - min(ys) or abs(max(ys)) or 1.0)
    axes = Axes(0, max(xs) * 1.1, min(ys) - margin_y, max(ys) + margin_y)
    front = sorted((p[1], p[2]) for p in points if p[3])
    steps = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in front)
    parts = [f'<polyline points="{steps}" fill="none" stroke="var(--c0)" stroke-width="1.5"/>']
    for name, x, y, best in points:
        colour, left = ("var(--c0)" if best else "var(--c1)"), axes.x(x) > WIDTH - 190
        parts.append(f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="4" fill="{colour}"/>')
        parts.append(text(axes.x(x) + (-7 if left else 7), axes.y(y) - 6, name, "end" if left else "start"))
    key = '<span class="key c0">nothing is both faster and better</span><span class="key c1">something is</span>'
    return figure(title, frame(axes, x_name, y_name) + "".join(parts), key)
