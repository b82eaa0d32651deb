"""Hours at real time: what grows, what drifts, what is lost.

    python -m benchmarks.soak --hours 1 --clip drive.mp4 --out benchmarks/results/NAME.json

Runs ``freespace run CLIP --realtime --loop`` with its outputs in a process of its own and looks at it from outside: memory,
threads and open files every few seconds; age and validity of each result from the polygon files. Slopes are fitted by least
squares after ``--warm-up``, in which caches fill; drift is the last tenth against the second one. Linux only.

Resident memory goes in steps of a frame's size, by how many frames have ever been alive at once: that is bounded by the
queues, and takes a while to come to its height. What is fitted must be long enough for a slope to show beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import demo_clip, machine

LOOK_S = 5.0
PAGE = "127.0.0.1:8089"


@dataclass(frozen=True)
class Look:
    """The process from outside: seconds since its first result, resident memory, threads, open files, CPU time."""

    second: float
    rss_mb: float
    threads: int
    files: int
    cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--warm-up", type=float, default=0.1, help="share of the time that no slope is fitted to")
    parser.add_argument("--clip", help="video or other source; the demo's clip by default")
    parser.add_argument("--watch", action="store_true", help="also serve the web page and watch its stream all the time")
    parser.add_argument(
        "--argument", action="append", default=[], help="one more argument of 'freespace run', e.g. --backend=torch"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    clip = arguments.clip or str(demo_clip(parser))
    with tempfile.TemporaryDirectory() as folder:
        polygons = Path(folder) / "soak.jsonl"
        command = ["run", clip, "--realtime", "--loop", "--polygons", str(polygons), "--rotate-mb", "64"]
        command += ["--serve", PAGE] if arguments.watch else []
        looks = watch([sys.executable, "-m", "perception.cli", *command, *arguments.argument], polygons, arguments)
        report = results(
            arguments.warm_up, looks, [line for file in sorted(Path(folder).glob("*.jsonl")) for line in read(file)]
        )
    report["settings"] = {
        "hours": arguments.hours,
        "warm_up": arguments.warm_up,
        "clip": Path(clip).name,
        "watch": arguments.watch,
        "more": arguments.argument,
    }
    report["machine"] = machine()
    print(json.dumps({key: value for key, value in report.items() if key != "looks"}, indent=1))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def watch(command: list[str], polygons: Path, arguments: argparse.Namespace) -> list[Look]:
    """Run ``command`` for the time asked for, end it as a service manager would, and return what was seen."""
    process = subprocess.Popen(command)
    try:
        while not any(p.stat().st_size for p in polygons.parent.iterdir()):
            if process.poll() is not None:
                raise SystemExit(f"it ended by itself, exit code {process.returncode}")
            time.sleep(0.1)
        if arguments.watch:
            threading.Thread(target=read_stream, daemon=True).start()
        began, looks = time.monotonic(), []
        while time.monotonic() - began < arguments.hours * 3600:
            time.sleep(LOOK_S)
            if process.poll() is not None:
                raise SystemExit(f"it ended by itself after {time.monotonic() - began:.0f} s, exit code {process.returncode}")
            looks.append(look(process.pid, time.monotonic() - began))
            if len(looks) % 60 == 0:
                print(looks[-1], file=sys.stderr, flush=True)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        return looks
    finally:
        process.kill()


def read_stream() -> None:
    """Look at the web page's pictures as fast as they come, until there are none."""
    with suppress(OSError), urllib.request.urlopen(f"http://{PAGE}/stream.mjpg") as stream:
        while stream.read1(1 << 16):
            pass


def look(pid: int, second: float) -> Look:
    folder = Path("/proc") / str(pid)
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    return Look(
        second=second,
        rss_mb=int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 1e6,
        threads=int(fields[17]),
        files=len(list((folder / "fd").iterdir())),
        cpu_s=(int(fields[11]) + int(fields[12])) / ticks,
    )


def read(path: Path) -> list[dict[str, Any]]:
    """What matters of each result."""
    kept = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            data = json.loads(line)
            keys = ("seq", "valid", "state", "dropped", "latency_ms")
            kept.append({**{k: data[k] for k in keys}, "codes": [c["code"] for c in data.get("causes", [])]})
    return kept


def results(warm_up: float, looks: list[Look], lines: list[dict[str, Any]]) -> dict[str, Any]:
    warm = [x for x in looks if x.second > looks[-1].second * warm_up]
    hours = np.array([x.second for x in warm]) / 3600
    (slope, _), covariance = np.polyfit(hours, [x.rss_mb for x in warm], 1, cov=True)
    framed = [line for line in lines if line["latency_ms"]]
    ages = np.array([line["latency_ms"]["age"] for line in framed])
    totals = np.array([line["latency_ms"]["total"] for line in framed])
    tenth = max(1, len(ages) // 10)
    return {
        "seconds": round(looks[-1].second, 1),
        "results": len(framed),
        "fps": round(len(framed) / looks[-1].second, 2),
        "dropped": framed[-1]["dropped"],
        "not_valid": sum(not line["valid"] for line in lines),
        "states": dict(Counter(line["state"] for line in lines)),
        "causes": dict(Counter(code for line in lines for code in line["codes"])),
        "age_ms": percentiles(ages),
        "total_ms": percentiles(totals),
        "age_p50_drift_ms": round(float(np.median(ages[-tenth:]) - np.median(ages[tenth : 2 * tenth])), 2),
        "rss_mb": {"first": round(warm[0].rss_mb, 1), "last": round(warm[-1].rss_mb, 1), "max": max(x.rss_mb for x in warm)},
        "rss_slope_mb_per_hour": round(float(slope), 2),
        "rss_slope_standard_error": round(float(covariance[0, 0]) ** 0.5, 2),
        "threads": sorted({x.threads for x in warm}),
        "files": sorted({x.files for x in warm}),
        "cpu_ms_per_frame": round((looks[-1].cpu_s - looks[0].cpu_s) / max(1, len(framed)) * 1e3, 1),
        "looks": [asdict(x) for x in looks[:: max(1, len(looks) // 200)]],
    }


def percentiles(values: np.ndarray) -> dict[str, float]:
    points = (50, 90, 95, 99, 99.9, 100)
    return {f"p{p:g}": round(float(v), 2) for p, v in zip(points, np.percentile(values, points), strict=True)}


if __name__ == "__main__":
    main()
