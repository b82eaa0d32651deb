"""What limits a case, in words, from its numbers."""

from __future__ import annotations

from collections.abc import Mapping

BUSY = 0.85  # of its time at work, a thread sets the pace
SATURATED = 0.9  # of all cores
KEPT_UP = 0.98  # of the source's rate

ON_THE_LOOP = ("preprocess", "postprocess", "h2d", "d2h")


def bound_by(
    load: str,
    mode: str,
    fps: float,
    source_fps: float | None,
    mean_ms: Mapping[str, float],
    cores: float,
    cores_used: float,
    others_cores: float,
    on_gpu: bool,
    depth: int,
    dropped: int = 0,
    gpu_percent: float | None = None,
) -> str:
    """One phrase.

    A part of the loop is busy for its mean time times the frames per second; that of the network over the ``depth`` frames
    that are with it at a time.

    Args:
        mean_ms: by stage.
        cores: that may be used.
        cores_used, others_cores: by the process that is measured, and by the rest of the machine.
    """
    busy = {
        "decoding": mean_ms.get("decode", 0.0) * fps / 1e3,
        "the network": mean_ms.get("infer", 0.0) * fps / 1e3 / max(1, depth),
        "preprocessing and polygons": sum(mean_ms.get(stage, 0.0) for stage in ON_THE_LOOP) * fps / 1e3,
        "writing results": mean_ms.get("publish", 0.0) * fps / 1e3,
    }
    most, share = max(busy.items(), key=lambda item: item[1])
    work = f"{most}, at work {min(share, 1.0):.0%} of the time"
    elsewhere = f"; other programs take {others_cores:.1f} cores" if others_cores > 0.1 * cores else ""
    if load == "source-rate" and source_fps:
        if fps >= KEPT_UP * source_fps and not dropped:
            return f"the source's rate, {source_fps:g} FPS: nothing is dropped; busiest is {work}{elsewhere}"
        return f"what is too slow for the source's {source_fps:g} FPS: {work}{elsewhere}"
    if mode == "engine":
        where = "the network" if load == "flat-out" else "the network's latency"
        if on_gpu:
            said = f", GPU {gpu_percent:.0f} % busy" if gpu_percent is not None else ""
            return f"{where}{said}{elsewhere}"
        return f"{where}, {cores_used:.1f} of {cores:g} cores at work{elsewhere}"
    if load == "one-at-a-time":
        return f"latency, one frame at a time: most of it is {longest(mean_ms)}{elsewhere}"
    if not on_gpu and cores_used + others_cores >= SATURATED * cores:
        return f"the processor: {cores_used:.1f} of {cores:g} cores at work{elsewhere}; most of the time is {longest(mean_ms)}"
    if share >= BUSY:
        return f"{work}{elsewhere}"
    return f"no single part: busiest is {work}, {cores_used:.1f} of {cores:g} cores at work{elsewhere}"


def longest(mean_ms: Mapping[str, float]) -> str:
    """The stage that takes the most time of a frame, with its share of the stages."""
    names = {"decode": "decoding", "infer": "the network", "preprocess": "preprocessing", "postprocess": "polygons"}
    parts = {names.get(s, s): ms for s, ms in mean_ms.items() if s not in ("total", "age")}
    if not parts or not sum(parts.values()):
        return "unknown"
    name, ms = max(parts.items(), key=lambda item: item[1])
    return f"{name} ({ms / sum(parts.values()):.0%})"
