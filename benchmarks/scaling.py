"""What a frame costs as frames grow, polygons get complicated, planes are added and hours go by: slopes, not points.

    python -m benchmarks.scaling --out benchmarks/results/NAME.json --page scaling.html
    python -m benchmarks.scaling --only polygons --only planes

- **frames**: the product's loop, no two frames side by side, over one stretch of the clip resized and encoded in six sizes.
- **polygons**: made-up score planes with a growing number of regions, of holes, of vertices, and of specks that are left out.
- **planes**: the network cut down to one plane and whole; polygons of one plane and of both.
- **hours**: the clip over and over for minutes of video, flat out: time per frame and memory.

Points of a series are measured in turn, in rounds, and each series is fitted with a straight line by least squares through the
points of all rounds. Standard errors are the line's own: they hold the noise between rounds and what is not straight about it.
A slope is the cost of one more; what does not depend on it is in the constant.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import command, demo_clip, machine
from benchmarks.peers import PainterSink
from engine import DEFAULT_MODEL, open_engine, read_contract
from engine.base import Engine, Scores
from engine.contract import ModelError
from engine.files import write_whole
from engine.preprocess import Resampling, fit
from perception.bench import charts, usage
from perception.bench.machine import clip_sha256, revision
from perception.bench.page import listed, page, table
from perception.bench.text import markdown_table
from perception.capture import Selection, open_source
from perception.config import CaptureConfig, Config, PolygonConfig
from perception.errors import BadInput
from perception.freespace import Freespace
from perception.node import run
from perception.polygons import extract
from perception.sinks import Output, Sink
from perception.sinks.jsonl import JsonlSink

U8 = NDArray[np.uint8]
Size = tuple[int, int]  # (width, height), pixels

SIZES: dict[str, Size] = {
    "360p": (640, 360),
    "540p": (960, 540),
    "720p": (1280, 720),
    "1080p": (1920, 1080),
    "1440p": (2560, 1440),
    "4K": (3840, 2160),
}
STAGES = {"jsonl": "publish", "painter": "draw"}  # sinks by the name of what they do
COUNTS = {
    "regions": (1, 4, 16, 36, 64, 100),
    "holes": (0, 4, 16, 36, 64, 100),
    "vertices": (1, 4, 8, 16, 32, 64),  # teeth; there are about two vertices to each
    "specks": (0, 64, 256, 576, 1024, 1600),
}
PLANE_NAMES = ("freespace", "ego")
LOW, HIGH = 20, 235  # scores outside and inside of made-up regions
POLYGON_REPEATS = 20
LOOK_S = 2.0  # of wall time between two looks at memory
WARM_SHARE = 0.125  # of the hours, to which no line is fitted: caches fill


@dataclass(frozen=True)
class Line:
    """A least-squares line with the standard errors of both of its numbers; these are NaN where two points make it exact."""

    slope: float
    slope_error: float
    constant: float
    constant_error: float


@dataclass
class Series:
    """Points of one figure.

    Attributes:
        name: what was measured.
        x_name, y_name: of the axes, with units.
        unit, factor: in which a slope is told, and by what it is multiplied for that.
        x, y: points, those of all rounds.
    """

    name: str
    x_name: str
    y_name: str
    unit: str
    factor: float = 1.0
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)

    def add(self, x: float, y: float) -> None:
        self.x.append(x)
        self.y.append(y)

    @property
    def line(self) -> Line:
        return fit_line(self.x, self.y)


Figures = dict[str, list[Series]]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", help="video; the demo's clip by default")
    parser.add_argument("--model", help="model file; the shipped one by default")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="repeatable; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=25, help="of the clip, for each size and round")
    parser.add_argument("--minutes", type=float, default=8.0, help="of video, for the part 'hours'")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--page", type=Path, help="HTML file with the plots")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.frames) < 2 or options.minutes <= 0:
        parser.error("--rounds and --frames must be at least 2, and --minutes more than 0")
    source, found = options.clip or str(demo_clip(parser)), Figures()
    try:
        with open_engine(options.model, options.backend, options.precision) as engine:
            bench = Bench(source, engine, options)
            for part in PARTS:
                if part in (options.only or PARTS):
                    print(f"measuring {part} …", file=sys.stderr, flush=True)
                    found[part] = PARTS[part](bench)
            report = describe(found, bench, command("benchmarks.scaling", arguments))
    except (BadInput, ModelError) as error:
        parser.error(str(error))
    print(markdown(report))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.out, (json.dumps(report, indent=1) + "\n").encode())
    if options.page:
        write_whole(options.page, plots(found, report).encode())
    return 0


@dataclass(frozen=True)
class Bench:
    """What a part measures with."""

    source: str
    engine: Engine
    options: argparse.Namespace


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Ordinary least squares. Raises ValueError: fewer than two different ``x``."""
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    spread = float(((xs - xs.mean()) ** 2).sum()) if len(xs) else 0.0
    if spread == 0:
        raise ValueError("a line needs points at two places at least")
    slope = float(((xs - xs.mean()) * (ys - ys.mean())).sum()) / spread
    constant = float(ys.mean() - slope * xs.mean())
    freedom = len(xs) - 2
    variance = float(((ys - constant - slope * xs) ** 2).sum()) / freedom if freedom else math.nan
    return Line(
        slope,
        math.sqrt(variance / spread),
        constant,
        math.sqrt(variance * (1 / len(xs) + float(xs.mean()) ** 2 / spread)),
    )


# -- Frames ------------------------------------------------------------------------------------------------------------


def measure_frames(bench: Bench) -> list[Series]:
    """Mean milliseconds of each stage against megapixels, a point for each size and round: decoding is waiting for FFmpeg's
    threads, which give several frames at once, and has no median that says anything."""
    found: dict[str, Series] = {}
    with tempfile.TemporaryDirectory() as folder:
        clips = resized_clips(bench.source, bench.options.frames, Path(folder))
        for number in range(bench.options.rounds + 1):
            for name in rotated(list(clips), number):
                means = stages_over(bench.engine, clips[name], Path(folder) / "polygons.jsonl")
                if number:  # the first round warms up
                    for stage, milliseconds in means.items():
                        series = found.setdefault(stage, Series(stage, "megapixels", "ms per frame", "ms per megapixel"))
                        series.add(SIZES[name][0] * SIZES[name][1] / 1e6, milliseconds)
    return list(found.values())


def resized_clips(source: str, frames: int, folder: Path) -> dict[str, Path]:
    """The first frames of the clip in each of `SIZES`, H.264. Raises BadInput: it has none."""
    with open_source(source) as opened:
        images = [frame.image.copy() for frame, _ in zip(opened.frames(), range(frames), strict=False)]
    if len(images) < 2:
        raise BadInput(f"{source}: too few frames could be read; give another video with --clip")
    return {name: write_clip(folder / f"{name}.mp4", images, size) for name, size in SIZES.items()}


def write_clip(path: Path, images: Sequence[U8], size: Size) -> Path:
    import av

    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libx264", rate=25)
        stream.width, stream.height = size
        stream.pix_fmt, stream.options = "yuv420p", {"preset": "veryfast", "crf": "23"}
        for number, image in enumerate(images):
            shrinks = size[0] < image.shape[1]
            resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
            frame = av.VideoFrame.from_ndarray(np.asarray(resized, np.uint8), "bgr24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def stages_over(engine: Engine, path: Path, polygons: Path) -> dict[str, float]:
    """Mean milliseconds by stage of the loop from file to polygons in a file, with every frame painted, too."""
    with open_source(str(path)) as source:
        summary = run(source, engine, [JsonlSink(polygons, overwrite=True), PainterSink()], Config())
    return {STAGES.get(stage, stage): mean for stage, mean in summary.stages.means().items()}


def rotated(items: list[str], by: int) -> list[str]:
    by %= len(items)
    return items[by:] + items[:by]


# -- Polygons ----------------------------------------------------------------------------------------------------------


def measure_polygons(bench: Bench) -> list[Series]:
    """Processor time of `extract`, and of a result's JSON, against the number of things in the scores."""
    resampling = fit(SIZES["720p"], bench.engine.input_size, bench.engine.contract.resize)
    config = PolygonConfig()
    makers: dict[str, Callable[[int, Resampling], U8]] = {
        "regions": many_regions,
        "holes": many_holes,
        "vertices": wavy_region,
        "specks": many_specks,
    }
    planes = {what: [make(number, resampling) for number in COUNTS[what]] for what, make in makers.items()}
    found = {what: Series(what, what, "ms per frame", f"µs per {singular(what)}", 1e3) for what in makers}
    written = Series("JSON of a result", "vertices", "ms per frame", "µs per vertex", 1e3)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # as the loop has it
    try:
        for number in range(bench.options.rounds + 1):
            for what in rotated(list(makers), number):
                for index, scores in enumerate(planes[what]):
                    milliseconds, polygons = median_ms(lambda s=scores: extract(s, resampling, "freespace", config))  # type: ignore[misc]
                    vertices = sum(len(ring) for polygon in polygons for ring in polygon.rings)
                    if not number:
                        continue
                    found[what].add(vertices if what == "vertices" else COUNTS[what][index], milliseconds)
                    if what == "vertices":
                        result = result_of(polygons, resampling)
                        written.add(vertices, median_ms(result.to_json)[0])
    finally:
        cv2.setNumThreads(threads)
    return [*found.values(), written]


def singular(what: str) -> str:
    return "vertex" if what == "vertices" else what.removesuffix("s")


def median_ms(work: Callable[[], Any], repeats: int = POLYGON_REPEATS) -> tuple[float, Any]:
    """Median milliseconds of ``work``, and what it gave: processor time, since it is one thread that waits for nothing."""
    spent = []
    for _ in range(repeats):
        started = time.thread_time_ns()
        result = work()
        spent.append((time.thread_time_ns() - started) / 1e6)
    return float(np.median(spent)), result


def result_of(polygons: Sequence[Any], resampling: Resampling) -> Freespace:
    return Freespace(
        seq=0,
        source="made up",
        frame_id="camera",
        stamp_ns=0,
        clock="media",
        size=resampling.frame_size,
        valid=True,
        state="running",
        model="0" * 64,
        backend="none",
        dropped=0,
        polygons=list(polygons),
        latency_ms={"total": 1.0},
    )


def grid(count: int, resampling: Resampling) -> list[tuple[float, float]]:
    """Centres of ``count`` equal cells that fill the content, and `cell` is their size."""
    left, top, width, height = resampling.content
    side = max(1, math.ceil(math.sqrt(count)))
    cells = [(left + (i % side + 0.5) * width / side, top + (i // side + 0.5) * height / side) for i in range(side * side)]
    return cells[:count]


def cell(count: int, resampling: Resampling) -> float:
    """Length of the shorter side of a cell of `grid`, pixels of the scores."""
    side = max(1, math.ceil(math.sqrt(count)))
    return min(resampling.content[2:]) / side


def many_regions(count: int, resampling: Resampling) -> U8:
    """As many squares, each of the same size whatever their number, far larger than the smallest that is reported."""
    return squares(count, resampling, LOW, HIGH, 0.7 * cell(max(COUNTS["regions"]), resampling))


def many_holes(count: int, resampling: Resampling) -> U8:
    """One region over the whole picture with as many square holes, each of the same size."""
    return squares(count, resampling, HIGH, LOW, 0.5 * cell(max(COUNTS["holes"]), resampling))


def many_specks(count: int, resampling: Resampling) -> U8:
    """One region in the upper half, and below as many single pixels, which are too few to be reported."""
    scores = np.full(resampling.input_size[::-1], LOW, np.uint8)
    middle = resampling.input_size[1] // 2
    scores[:middle] = HIGH
    side = math.ceil(math.sqrt(max(COUNTS["specks"])))
    rows = np.linspace(middle + 4, resampling.input_size[1] - 3, side).astype(int)
    columns = np.linspace(2, resampling.input_size[0] - 3, side).astype(int)
    places = [(row, column) for row in rows for column in columns]
    for index in np.random.default_rng(0).permutation(len(places))[:count]:
        scores[places[index]] = HIGH
    return scores


def squares(count: int, resampling: Resampling, around: int, within: int, side: float) -> U8:
    scores = np.full(resampling.input_size[::-1], around, np.uint8)
    for x, y in grid(count, resampling):
        first, last = (round(x - side / 2), round(y - side / 2)), (round(x + side / 2), round(y + side / 2))
        cv2.rectangle(scores, first, last, (within,), cv2.FILLED)
    return scores


def wavy_region(teeth: int, resampling: Resampling) -> U8:
    """One region with a saw-tooth upper edge, about two vertices a tooth; scores rise across the edge, so that it is smooth."""
    left, top, width, height = resampling.content
    phase = (np.arange(width) + 0.5) / width * teeth % 1
    edge = top + height * (0.3 + 0.2 * np.abs(2 * phase - 1))
    scores = np.full(resampling.input_size[::-1], LOW, np.uint8)
    steepness = 8.0  # grey levels per pixel: a tooth's flank is some pixels wide
    below = np.arange(top, top + height)[:, None] - edge
    scores[top : top + height, left : left + width] = np.clip(np.rint(127.5 + steepness * below), LOW, HIGH)
    return scores


# -- Planes ------------------------------------------------------------------------------------------------------------


def measure_planes(bench: Bench) -> list[Series]:
    """Milliseconds against the number of planes: the float network cut down and whole; polygons of one plane and of both."""
    contract = read_contract(Path(bench.options.model) if bench.options.model else DEFAULT_MODEL)
    with open_source(bench.source, Selection(every=10)) as opened:
        images = [frame.image.copy() for frame, _ in zip(opened.frames(), range(bench.options.frames), strict=False)]
    config, network = PolygonConfig(), Series("network", "planes", "ms per frame", "ms per plane")
    outlines = Series("polygons", "planes", "ms per frame", "ms per plane")
    scored = [bench.engine.segment([image]) for image in images]
    with tempfile.TemporaryDirectory() as folder:
        backend = bench.engine.name
        whole = open_engine(str(contract.path), backend, "auto")
        with whole, open_engine(str(one_plane(contract.path, Path(folder) / "one.onnx")), backend, "auto") as one:
            for number in range(bench.options.rounds + 1):
                for planes in rotated(["1", "2"], number):
                    engine, count = (one if planes == "1" else whole), int(planes)
                    infer = float(np.median([engine.segment([image]).timings.infer_ms for image in images]))
                    spent = [median_ms(lambda s=s, n=count: outline(s, n, config), 3)[0] for s in scored]  # type: ignore[misc]
                    if number:
                        network.add(count, infer)
                        outlines.add(count, float(np.median(spent)))
    return [network, outlines]


def outline(scores: Scores, planes: int, config: PolygonConfig) -> None:
    for name in PLANE_NAMES[:planes]:
        extract(scores.values[0, scores.planes.index(name)], scores.resamplings[0], name, config)


def one_plane(model: Path, target: Path) -> Path:
    """The network with only its first plane: the last convolution without the channels of the others.

    Raises:
        ModelError: the graph does not end in a convolution, a depth-to-space and what has no weights.
    """
    import onnx
    from onnx import numpy_helper

    from engine.contract import KEY_PLANES

    graph = (loaded := onnx.load(str(model))).graph
    planes = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    makers = {output: node for node in graph.node for output in node.output}
    shuffle = next((node for node in reversed(graph.node) if node.op_type == "DepthToSpace"), None)
    head = makers.get(shuffle.input[0]) if shuffle else None
    if shuffle is None or head is None or head.op_type != "Conv":
        raise ModelError(f"{model}: its head is none that can be cut down to one plane; leave the part 'planes' out (--only)")
    deep = next((a.s for a in shuffle.attribute if a.name == "mode"), b"DCR") == b"DCR"
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for name in head.input[1:]:
        values = numpy_helper.to_array(weights[name])
        kept = values[::planes] if deep else values[: len(values) // planes]  # where DepthToSpace takes a plane's channels from
        weights[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(kept), name))
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    graph.ClearField("value_info")
    for entry in loaded.metadata_props:
        if entry.key == KEY_PLANES:
            entry.value = entry.value.split(",")[0]
    onnx.save(loaded, str(target))
    return target


# -- Hours -------------------------------------------------------------------------------------------------------------


class LooksSink(Sink):
    """Looks at time and memory while results come.

    Attributes:
        looks: (minutes of video, ms per frame since the look before, resident MB) every `LOOK_S`.
    """

    target = Path("looks")

    def __init__(self) -> None:
        self.looks: list[tuple[float, float, float]] = []
        self._since: tuple[float, int] | None = None
        self._frames = 0

    def write(self, output: Output) -> None:
        now, self._frames = time.perf_counter(), self._frames + 1
        if self._since is None:
            self._since = now, self._frames
            return
        began, frames = self._since
        if now - began >= LOOK_S:
            each = 1e3 * (now - began) / (self._frames - frames)
            self.looks.append((output.frame.stamp_ns / 60e9, each, usage.resident_mb()))
            self._since = now, self._frames

    def close(self) -> None:
        pass


def measure_hours(bench: Bench) -> list[Series]:
    """Milliseconds per frame and memory against hours of video, from one run over the clip again and again."""
    looks = LooksSink()
    with tempfile.TemporaryDirectory() as folder, open_source(bench.source, CaptureConfig(loop=True)) as source:
        stop = Stopper(bench.options.minutes)
        run(source, bench.engine, [JsonlSink(Path(folder) / "polygons.jsonl"), looks], Config(), stop.event, stop.look)
    warm = [look for look in looks.looks if look[0] >= WARM_SHARE * bench.options.minutes] or looks.looks
    if len(warm) < 3:
        raise BadInput("too little video to fit anything to; give more --minutes")
    spent = Series("time", "hours of video", "ms per frame", "ms per hour")
    memory = Series("memory", "hours of video", "resident MB", "MB per hour")
    for minutes, milliseconds, megabytes in warm:
        spent.add(minutes / 60, milliseconds)
        memory.add(minutes / 60, megabytes)
    return [spent, memory]


class Stopper:
    """Ends a run after so many minutes of video."""

    def __init__(self, minutes: float) -> None:
        self.event, self._end_ns = threading.Event(), minutes * 60e9

    def look(self, result: Freespace) -> None:
        if result.stamp_ns >= self._end_ns:
            self.event.set()


PARTS: Mapping[str, Callable[[Bench], list[Series]]] = {
    "hours": measure_hours,  # first: memory that others have used and given back would hide a growth
    "frames": measure_frames,
    "polygons": measure_polygons,
    "planes": measure_planes,
}


# -- Report ------------------------------------------------------------------------------------------------------------


def describe(found: Figures, bench: Bench, typed: str) -> dict[str, Any]:
    engine = bench.engine
    return {
        "schema": "freespace-scaling/1",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": typed,
        "machine": machine(),
        "revision": revision(Path(__file__).parents[1]),
        "clip": {"name": Path(bench.source).name, "sha256": clip_sha256(bench.source, False)},
        "engine": {
            "backend": engine.name,
            "precision": engine.precision,
            "model": engine.contract.path.name,
            "sha256": engine.contract.sha256,
            "input_size": list(engine.input_size),
        },
        "rounds": bench.options.rounds,
        "parts": {part: {s.name: describe_series(s) for s in series} for part, series in found.items()},
    }


def describe_series(series: Series) -> dict[str, Any]:
    line = series.line
    places = sorted(set(series.x))
    if len(places) > 12:  # as they came over hours: by quarters
        edges = np.linspace(min(places), max(places), 5)
        medians = {
            f"{low:.4g} to {high:.4g}": float(
                np.median([y for x, y in zip(series.x, series.y, strict=True) if low <= x <= high])
            )
            for low, high in pairwise(edges)
        }
    else:
        medians = {
            f"{place:.4g}": float(np.median([y for x, y in zip(series.x, series.y, strict=True) if x == place]))
            for place in places
        }
    return {
        "x": series.x_name,
        "y": series.y_name,
        "medians": {place: round(value, 4) for place, value in medians.items()},
        "slope": rounded(line.slope * series.factor),
        "standard_error": rounded(line.slope_error * series.factor),
        "slope_unit": series.unit,
        "constant": rounded(line.constant),
        "constant_standard_error": rounded(line.constant_error),
        "points": [[round(x, 5), round(y, 4)] for x, y in zip(series.x, series.y, strict=True)],
    }


def rounded(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.4g}")


def slope_rows(report: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            part,
            name,
            "; ".join(f"{place}: {value:.3g}" for place, value in row["medians"].items()),
            f"{row['slope']:.3g} ± {row['standard_error']:.2g} {row['slope_unit']}",
            f"{row['constant']:.3g} {row['y'].partition(' per')[0]}",
        ]
        for part, series in report["parts"].items()
        for name, row in series.items()
    ]


HEAD = ["part", "figure", "medians", "slope ± standard error", "constant"]


def markdown(report: Mapping[str, Any]) -> str:
    return "\n".join([*said(report), "", markdown_table(HEAD, slope_rows(report))])


def said(report: Mapping[str, Any]) -> list[str]:
    engine, cpu, cores = report["engine"], report["machine"]["cpu"], report["machine"]["cores"]
    return [
        f"{cpu}, {cores} cores; {report['clip']['name']}; {engine['backend']} {engine['precision']}, "
        f"{engine['model']} {engine['sha256'][:12]}; {report['rounds']} rounds in turn"
    ]


def plots(found: Figures, report: Mapping[str, Any]) -> str:
    """One HTML page that needs nothing beside it."""
    sections = [("Slopes", listed(said(report)) + table(HEAD, slope_rows(report)))]
    for part, series in found.items():
        sections.append((part.capitalize(), f'<div class="charts">{"".join(draw_series(part, s) for s in series)}</div>'))
    return page("Freespace scaling", sections)


def draw_series(part: str, series: Series, point: str = "a round") -> str:
    """The points and the line through them, from zero so that a slope looks as steep as it is."""
    line, most = series.line, max(series.x)
    axes = charts.Axes(0, most * 1.05, 0, max(*series.y, line.constant + line.slope * most) * 1.1)
    dots = "".join(
        f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3" fill="var(--c0)"/>'
        for x, y in zip(series.x, series.y, strict=True)
    )
    ends = [(x, max(line.constant + line.slope * x, 0.0)) for x in (min(series.x), most)]
    points = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in ends)
    fitted = f'<polyline points="{points}" fill="none" stroke="var(--c1)" stroke-width="1.5"/>'
    key = (
        f'<span class="key c0">{point}</span><span class="key c1">{line.slope * series.factor:.3g} ± '
        f"{line.slope_error * series.factor:.2g} {series.unit}</span>"
    )
    return charts.figure(f"{part}: {series.name}", charts.frame(axes, series.x_name, series.y_name) + dots + fitted, key)


if __name__ == "__main__":
    sys.exit(main())
