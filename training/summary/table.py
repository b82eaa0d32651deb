"""A summary for people and for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from training.summary.base import Layer, Summary


def as_json(summary: Summary) -> dict[str, Any]:
    """Everything in a summary as JSON takes it. Sizes are [width, height], memory is in bytes."""
    last = summary.layers[-1]
    return {
        **asdict(summary),
        "layers": [{**asdict(a), "flops": a.flops} for a in summary.layers],
        "macs": summary.macs,
        "flops": summary.flops,
        "weight_bytes": summary.weight_bytes,
        "field": last.field,
        "whole_image": last.whole_image,
    }


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """A table of the layers and the totals below it."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a file has no edge
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("layer", "type"):
        table.add_column(heading, overflow="fold")
    for heading in ("output", "parameters", "MMAC", "MFLOP", "stride", "field", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    for a in summary.layers:
        table.add_row(
            Text(a.name or "-"),
            Text(a.kind),
            "x".join(str(n) for n in a.shape[1:]),
            f"{a.parameters:,}" if a.parameters else "",
            f"{a.macs / 1e6:.2f}" if a.macs else "",
            f"{a.flops / 1e6:.2f}" if a.flops else "",
            "" if a.stride is None else of_axes(*a.stride),
            describe_field(a),
            readable_bytes(a.activation_bytes) if a.activation_bytes else "",
        )
    console.print(table)
    width, height = summary.input_size
    weights = ", ".join(f"{readable_bytes(count)} in {precision}" for precision, count in summary.weight_bytes.items())
    buffers = f", {summary.buffers:,} elements of buffers" if summary.buffers else ""
    lines = [
        f"{summary.model} at {width}x{height}",
        f"{summary.parameters:,} parameters ({weights}){buffers}",
        f"{summary.macs / 1e9:.3f} GMAC, {summary.flops / 1e9:.3f} GFLOP (2 a multiply-add; convolutions and matrix products)",
        f"{readable_bytes(summary.peak_bytes)} of activations at the peak (every tensor until it was read last)",
        f"receptive field of the output: {describe_field(summary.layers[-1])} (pixels of the input)",
    ]
    if summary.field_clipped:
        lines.append("receptive fields are cut off at the borders: the network takes no larger image")
    assumed = summary.layers[-1].assumed
    if assumed:
        lines.append(f"reach taken to be the whole image, since it is not known here: {', '.join(assumed)}")
    console.print(*(Text(line) for line in lines), sep="\n", soft_wrap=True)


def describe_field(layer: Layer) -> str:
    local = of_axes(*layer.field) if min(layer.field) else ""
    return " + ".join([local] * bool(local) + ["whole image"] * layer.whole_image) or "none"


def of_axes(x: float, y: float) -> str:
    """One number where both axes have the same."""
    return f"{x:g}" if x == y else f"{x:g}x{y:g}"


def readable_bytes(count: int) -> str:
    return f"{count / 2**20:.2f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
