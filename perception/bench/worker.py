"""A process of its own for what is measured: it opens one engine, then measures what it is asked for, line by line.

Requests and replies are JSON, a line each, on stdin and what was stdout; what libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from engine.base import Engine
    from perception.bench.loops import Material
    from perception.capture import Source
    from perception.config import Config

Values = dict[str, Any]


def main() -> None:
    """Serve until stdin ends.

    The first line is the task: ``source``, ``config`` (only what differs from the defaults), ``throughput``, ``batch``, and
    ``spawned_ns``, when the process was started (`time.perf_counter_ns` of the parent, the same clock). It may hold a
    password, and so is no argument, which all users of a machine can read.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    task: Values = json.loads(sys.stdin.readline())
    try:
        started = Start(task)
    except Exception as error:
        return reply(replies, failure(error))
    with started.engine:
        reply(replies, started.facts)
        material: Material | None = None
        for line in sys.stdin:
            try:
                request = json.loads(line)
                if material is None and request["do"] == "window":
                    material = prepared(task, started)
                reply(replies, answer(request, started, material))
            except Exception as error:
                reply(replies, failure(error))


class Start:
    """From nothing to the first line on disk, as ``freespace run CLIP --polygons FILE`` gets there. Raises what opening and
    processing raise."""

    def __init__(self, task: Values) -> None:
        import perception.cli
        import perception.session
        from perception.capture import open_source
        from perception.config import Config
        from perception.errors import FreespaceError

        imported = time.perf_counter_ns()
        self.config: Config = Config.model_validate(task["config"])
        self.engine: Engine = perception.session.open_configured(self.config.engine, task["throughput"])
        opened = time.perf_counter_ns()
        with open_source(task["source"], self.config.capture) as source:
            first = first_line(source, self.engine, self.config)
            if first is None:
                raise FreespaceError(f"{source.uri}: no frame could be processed")
            done, size = first
            clip = {"size": size, "fps": source.fps, "frames": source.total, "live": source.live}
        moments = (task["spawned_ns"], imported, opened, done)
        names = ("imports", "open_engine", "first_result")
        cold = {name: (b - a) / 1e9 for name, a, b in zip(names, moments[:-1], moments[1:], strict=True)}
        cold["total"] = (done - task["spawned_ns"]) / 1e9
        self.facts = {
            "engine": engine_facts(self.engine, self.config),
            "bus": None if self.engine.device == "CPU" else pci_bus_id(),
            "clip": clip,
            "cold_s": cold,
            "code": code_facts(),
        }


def first_line(source: Source, engine: Engine, config: Config) -> tuple[int, tuple[int, int]] | None:
    """(when it was written, size of its frame) of the loop's first result; None where there is none."""
    import tempfile
    import threading
    from pathlib import Path

    from perception.node import run
    from perception.sinks.base import Output
    from perception.sinks.jsonl import JsonlSink

    stop, seen = threading.Event(), list[tuple[int, tuple[int, int]]]()

    class FirstLine(JsonlSink):
        def write(self, output: Output) -> None:
            super().write(output)
            seen.append((time.perf_counter_ns(), output.frame.size))
            stop.set()

    with tempfile.TemporaryDirectory() as folder:
        run(source, engine, [FirstLine(Path(folder) / "polygons.jsonl")], config, stop, notify=lambda message: None)
    return seen[0] if seen else None


def prepared(task: Values, started: Start) -> Material:
    from perception.bench.loops import prepare

    return prepare(task["source"], started.config, started.engine, task["batch"])[0]


def answer(request: Values, started: Start, material: Material | None) -> Values:
    if request["do"] == "window":
        from perception.bench.loops import window

        assert material
        return vars(window(material, request["mode"], request["load"], request["seconds"]))
    if request["do"] == "workload":
        from perception.bench.workload import measure

        return {"ms": measure(request["seconds"])}
    if request["do"] == "samples":
        return {"images": labelled_images(request)}
    if request["do"] == "evaluate":
        return accuracy(started.engine, started.config, request)
    raise ValueError(f"unknown request {request['do']!r}")


def labelled_images(request: Values) -> int:
    """How many there are to evaluate. Raises what `evaluate_model` would raise where there are none."""
    from pathlib import Path

    from training.evaluate import samples_of

    return len(samples_of(Path(request["data"]), request["split"], Path(request["splits"]) if request["splits"] else None))


def accuracy(engine: Engine, config: Config, request: Values) -> Values:
    """IoU by data set of the plane that is measured, or of those there are."""
    import hashlib
    from pathlib import Path

    from training.evaluate import evaluate_model

    splits = Path(request["splits"]) if request["splits"] else None
    rows = evaluate_model(engine, Path(request["data"]), request["split"], config.polygons.threshold, splits)
    overall = {key: row for key, row in rows.items() if key[1] == "all"}
    chosen = {key: row for key, row in overall.items() if key[2] == config.polygons.plane} or overall
    known = sorted(
        f"{dataset} {plane} {i.name} {i.counts.tp + i.counts.fn} {i.counts.fp + i.counts.tn}"
        for (dataset, _, plane), row in chosen.items()
        for i in row.per_image
    )
    if not known:
        raise ValueError(f"{request['data']}: nothing in split {request['split']!r} is labelled with a plane of the model")
    return {
        "split": request["split"],
        "data": hashlib.sha256("\n".join(known).encode()).hexdigest(),
        "iou": sum(row.iou for row in chosen.values()) / len(chosen),
        "rows": [
            {"dataset": d, "plane": plane, "images": row.images, "iou": row.iou, "low": finite(low), "high": finite(high)}
            for (d, _, plane), row in chosen.items()
            for low, high in [row.interval]
        ],
    }


def finite(value: float) -> float | None:
    return value if value == value else None


def engine_facts(engine: Engine, config: Config) -> Values:
    contract = engine.contract
    return {
        "backend": engine.name,
        "precision": engine.precision,
        "device": engine.device,
        "reason": engine.reason,
        "threads": config.engine.threads,
        "depth": engine.depth,
        "input_size": list(engine.input_size),
        "model": contract.path.name,
        "model_sha256": contract.sha256,
        "network": contract.metadata.get("freespace.network", ""),
        "planes": list(contract.planes),
    }


def pci_bus_id() -> str | None:
    """Of the GPU that engines take: CUDA's first of those that are visible to this process."""
    try:
        from engine.cuda.driver import import_driver

        return str(import_driver().Device(0).pci_bus_id())
    except Exception:  # whatever a library of another version throws
        return None


def code_facts() -> Values:
    from pathlib import Path

    import perception
    from perception.bench.machine import revision

    return {"version": perception.__version__, "revision": revision(Path(perception.__file__).parents[1])}


def failure(error: Exception) -> Values:
    """Whether it is the user's to mend, or there can be no such thing, and what it says."""
    from engine.contract import Mismatch, ModelError
    from perception.errors import BadInput

    mine = isinstance(error, (BadInput, ModelError, ValueError, FileNotFoundError))
    return {"error": str(error) or type(error).__name__, "mistake": mine, "mismatch": isinstance(error, Mismatch)}


def reply(out: TextIO, values: Values) -> None:
    out.write(json.dumps(values) + "\n")
    out.flush()
