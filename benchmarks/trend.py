"""The measured results of each release as a table in docs/benchmarks.md.

python -m benchmarks.trend --add bench.json        # keep a report of 'freespace bench' with the results, then the table
python -m benchmarks.trend                         # the table anew
python -m benchmarks.trend --check                 # exit code 1 where it is not what the results say
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import numpy as np

from engine.files import write_whole
from perception.bench.schema import Load, Mode, Report, Side, case_of, read_report
from perception.bench.text import describe_machine, markdown_table
from perception.errors import BadInput

RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- trend: made by benchmarks/trend.py -->", "<!-- end of trend -->"
PATTERN = "*.bench.json"  # of results; others of another form lie beside them
NONE_YET = "No release has been measured with it yet."
HEAD = ["release", "engine", "network alone, FPS", "loop, FPS", "file to polygons, FPS", "loop, p50 ms", "cold start, s", "IoU"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=Path, help="bench.json to keep")
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    options = parser.parse_args(arguments)
    try:
        if options.add:
            print(f"kept {add(options.add, options.results)}")
        text = options.document.read_text(encoding="utf-8")
        wanted = with_trend(text, trend([read_report(path) for path in sorted(options.results.glob(PATTERN))]))
    except (BadInput, OSError, ValueError) as error:
        parser.error(str(error))
    if options.check:
        return int(text != wanted)
    if text != wanted:
        write_whole(options.document, wanted.encode())
    return 0


def add(path: Path, results: Path) -> Path:
    """Keep a report under the name of its release, machine and engine. Raises BadInput: it is none, or one is kept already."""
    report = read_report(path)
    side = report.sides[0]
    place = results / f"{side.version}-{slug(report)}-{side.engine.backend}-{side.engine.precision}.bench.json"
    if place.exists():
        raise BadInput(f"{place}: exists already; remove it where this one is to take its place")
    write_whole(place, report.to_json().encode())
    return place


def slug(report: Report) -> str:
    name = report.machine.board or (report.machine.gpus[0].name if report.machine.gpus else report.machine.cpu)
    return re.sub(r"[^a-z0-9]+", "-", f"{name} {report.machine.cores} cores".lower()).strip("-")


def trend(reports: list[Report]) -> str:
    """A table for each machine and clip, releases in order, so that what stands in one compares."""
    groups: dict[str, list[Report]] = {}
    for report in sorted(reports, key=lambda r: (numbers(r.sides[0].version), r.created)):
        clip = report.clip
        groups.setdefault(
            f"{describe_machine(report.machine)}; {clip.name}, {clip.size[0]}x{clip.size[1]}, {(clip.sha256 or 'live')[:8]}", []
        ).append(report)
    if not groups:
        return NONE_YET
    return "\n\n".join(f"{name}:\n\n{markdown_table(HEAD, [row(r) for r in own])}" for name, own in groups.items())


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def row(report: Report) -> list[str]:
    side = report.sides[0]
    return [
        side.version,
        f"{side.engine.backend} {side.engine.precision}, {side.engine.model}",
        *(rate(side, mode) for mode in ("engine", "pipeline", "end-to-end")),
        latency(side, "pipeline", "one-at-a-time"),
        f"{np.median(side.cold.total):.2f}" if side.cold else "–",
        f"{side.accuracy.iou:.4f}" if side.accuracy else "–",
    ]


def rate(side: Side, mode: str) -> str:
    case = case_of(side, mode, "flat-out")
    return f"{case.fps.value:.1f} ({case.fps.low:.1f} to {case.fps.high:.1f})" if case else "–"


def latency(side: Side, mode: Mode, load: Load) -> str:
    case = case_of(side, mode, load)
    return f"{case.stages[case.headline].p50:.2f}" if case else "–"


def with_trend(document: str, table: str) -> str:
    """The document with the table between its marks. Raises ValueError: it has no marks."""
    before, begun, rest = document.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (begun and ended):
        raise ValueError(f"the document lacks {BEGIN!r} and {END!r}, between which the table stands")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main())
