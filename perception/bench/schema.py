"""What a measurement says: the JSON of ``freespace bench``, schema ``freespace-bench/1``. Names carry units."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perception.errors import BadInput

SCHEMA: Literal["freespace-bench/1"] = "freespace-bench/1"

Mode = Literal["engine", "pipeline", "end-to-end"]
Load = Literal["one-at-a-time", "source-rate", "flat-out"]

MODES: tuple[Mode, ...] = ("engine", "pipeline", "end-to-end")


def loads_of(mode: Mode, live: bool = False) -> tuple[Load, ...]:
    """How a mode is loaded: first so that latency means something, then so that throughput does."""
    if mode != "end-to-end":
        return ("one-at-a-time", "flat-out")
    return ("source-rate",) if live else ("source-rate", "flat-out")


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)


class Settings(Record):
    """How it was measured.

    Attributes:
        modes: what was measured.
        rounds: windows of each case; in every round each case has one, in an order that rotates.
        window_s: length of a window.
        cold_starts: fresh processes started; 0 measures none.
        batch: frames at a time, of mode ``engine``.
    """

    modes: list[Mode] = list(MODES)
    rounds: int = Field(8, ge=2)
    window_s: float = Field(3.0, gt=0)
    cold_starts: int = Field(5, ge=0)
    batch: int = Field(1, ge=1)


class Spread(Record):
    """A value and what it lies between, 95 % (bootstrap over windows)."""

    value: float
    low: float
    high: float


class Distribution(Record):
    """Milliseconds of one stage over all frames of all windows.

    Attributes:
        jitter: mean absolute difference of consecutive frames of a window.
    """

    frames: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    jitter: float


class Histogram(Record):
    """Counts of ``len(counts)`` equal bins from ``low_ms`` to ``high_ms``, and of what lies ``beyond``."""

    low_ms: float
    high_ms: float
    counts: list[int]
    beyond: int


class Point(Record):
    """A stretch of the timeline: its middle in seconds since the first window began, median and largest milliseconds."""

    at_s: float
    median_ms: float
    max_ms: float


class Sensed(Record):
    """One reading of a sensor over all windows of a case."""

    mean: float
    low: float
    high: float


class Window(Record):
    """One window.

    Attributes:
        round: which.
        at_s: when it began, since the first one.
        seconds: from the result before its first one to its last.
        frames: results within.
        fps: frames / seconds: throughput, measured on its own.
        p50_ms, p95_ms: of the case's headline stage.
        cpu_ms: processor time of the process per frame, all threads.
        cores_used: of the process, on average.
        others_cores: of those the process may use, what other programs used meanwhile; None where it cannot be told.
        rss_mb: resident memory at the end, without the frames that the benchmark itself keeps.
        threads: of the process.
        dropped: frames lost, in the source and for want of time.
        invalid: results that could not be used.
        power_w: mean; None where it is not known.
    """

    round: int
    at_s: float
    seconds: float
    frames: int
    fps: float
    p50_ms: float
    p95_ms: float
    cpu_ms: float
    cores_used: float
    others_cores: float | None = None
    rss_mb: float
    threads: int
    dropped: int = 0
    invalid: int = 0
    power_w: float | None = None


class WarmUp(Record):
    """Windows before the first one that counts: until the medians of the last few agree.

    Attributes:
        medians_ms: of the headline stage, window by window.
        settled: whether they came to agree within the limit.
    """

    medians_ms: list[float]
    settled: bool


class Stability(Record):
    """Whether the windows are of one kind. Slow ones are named, never left out.

    Attributes:
        drift_percent: median of the last third of the windows against the first third.
        slow: numbers of the windows that were slower than the median one by more than the limit.
        steady: no drift beyond the limit and no slow window.
    """

    drift_percent: float
    slow: list[int]
    steady: bool


class Case(Record):
    """One mode under one load.

    Attributes:
        headline: the stage that latency is quoted of.
        stages: milliseconds by stage.
        energy_j: per frame, of what ``power_source`` names, idle power included; None where power is not known.
        bound_by: what limits it, in words.
    """

    mode: Mode
    load: Load
    headline: str
    warm_up: WarmUp
    windows: list[Window]
    stages: dict[str, Distribution]
    histogram: Histogram
    timeline: list[Point]
    fps: Spread
    cpu_ms: Spread
    dropped: int
    invalid: int
    rss_mb: float
    threads: int
    stability: Stability
    sensors: dict[str, Sensed] = {}
    energy_j: float | None = None
    power_source: str | None = None
    bound_by: str


class Cold(Record):
    """Starts in fresh processes, seconds each; files are in the system's cache.

    Attributes:
        imports: from the start of the process until all of it is imported, the command line included.
        open_engine: reading the model, loading or building it.
        first_result: opening the source and an output, and its first frame to its line there.
        total: all of these.
    """

    imports: list[float]
    open_engine: list[float]
    first_result: list[float]
    total: list[float]


class AccuracyRow(Record):
    dataset: str
    plane: str
    images: int
    iou: float
    low: float | None
    high: float | None


class Accuracy(Record):
    """IoU of this engine on labelled images, as ``freespace evaluate`` measures it.

    Attributes:
        data: hash of names, sizes and split of the images: whether two were measured on the same ones.
        iou: mean over ``rows``.
    """

    split: str
    data: str
    iou: float
    rows: list[AccuracyRow]


class EngineFacts(Record):
    """Attributes: network: the architecture, as the model file names it; empty where it does not."""

    backend: str
    precision: str
    device: str
    reason: str
    threads: int
    depth: int
    input_size: tuple[int, int]
    model: str
    model_sha256: str
    network: str = ""
    planes: list[str]


class Side(Record):
    """One configuration that was measured.

    Attributes:
        label: ``A``, or ``B`` for what it was measured against.
        what: in words, as asked for.
        version, revision: of the code that ran; revision of its git checkout, ``+`` where that was changed.
        config_sha256: of all settings but those of the engine.
    """

    label: str
    what: str
    version: str
    revision: str | None
    engine: EngineFacts
    config: dict[str, Any]
    config_sha256: str
    cases: list[Case]
    cold: Cold | None = None
    accuracy: Accuracy | None = None


class Clip(Record):
    """Attributes: sha256: of the file, or of the name of what is rendered; None of a live source."""

    name: str
    sha256: str | None
    size: tuple[int, int]
    fps: float | None
    frames: int | None
    live: bool


class Gpu(Record):
    name: str
    driver: str
    memory_mib: int
    power_limit_w: float | None = None


class Machine(Record):
    """Attributes: flags: those of the processor that its speed depends on; quota: cores that the container may use."""

    cpu: str
    cores: int
    quota: float | None
    flags: list[str]
    memory_gib: float
    governor: str | None
    mhz: float | None
    system: str
    board: str | None
    gpus: list[Gpu]
    python: str
    packages: dict[str, str]


class Report(Record):
    """A measurement.

    Attributes:
        workload_ms: of the fixed calibration workload (`perception.bench.workload`), by side and round.
        notes: what speaks against the numbers.
    """

    schema_: Literal["freespace-bench/1"] = Field(alias="schema")
    created: str
    command: str
    machine: Machine
    clip: Clip
    settings: Settings
    sides: list[Side]
    workload: str
    workload_ms: dict[str, list[float]]
    notes: list[str]

    def side(self, label: str) -> Side:
        return next(side for side in self.sides if side.label == label)

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def case_of(side: Side, mode: str, load: str) -> Case | None:
    return next((case for case in side.cases if (case.mode, case.load) == (mode, load)), None)


def read_report(path: Path) -> Report:
    """Raises BadInput: there is no such file, or it is no report of this schema."""
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BadInput(f"{path}: is no report of schema {SCHEMA}: {where}: {first['msg']}; measure again") from error
