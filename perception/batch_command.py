"""``freespace batch`` as a person sees it: what is left to do, how far it is, what came of each file."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from engine import AUTO, BACKENDS, DEFAULT_MODEL, installed, read_contract, usable
from perception import __version__
from perception.batch import (
    LOCK,
    Entry,
    Failure,
    Journal,
    News,
    Recording,
    Workers,
    clear_unfinished,
    do_all,
    find_recordings,
    left_to_do,
    name_all,
)
from perception.batch_worker import OUTPUTS, LocalWorkers
from perception.causes import encodable
from perception.config import CaptureConfig, Config, OutputConfig
from perception.errors import BadInput, FreespaceError
from perception.metres import Rulers
from perception.sinks.base import make_folder

ROWS_SHOWN = 50
NAMES_SHOWN = 10
ERRORS_SHOWN = 100  # characters
WIDTH_IN_FILE = 240  # of the table where there is no terminal
THREADS = 2  # of a worker: as fast as two workers with one each or faster, with half of the memory (docs/batch.md)
GPU_WORKERS = 2  # one decodes while the other one infers
RECORDED_PARTS = (
    "frame_id",
    "start_s",
    "duration_s",
    "every",
    "topic",
    "hardware",
)  # what a batch takes of the settings of capturing


@dataclass(frozen=True)
class Batch:
    """What is asked for.

    Attributes:
        given: files, folders, and lists as ``@list.txt``.
        out: folder of all results.
        overlay, masks, contact_sheet: what to write beside the polygons.
        workers: how many files at a time; 0 for one on every two cores, or two on a GPU.
        retries: further attempts at a file that failed.
        stall_s: a file without a further frame for so long, seconds, has failed.
        redo: replace results of other settings.
        ray: address of a cluster; None for this machine.
    """

    given: Sequence[str]
    out: Path
    overlay: bool = False
    masks: bool = False
    contact_sheet: bool = False
    workers: int = 0
    retries: int = 2
    stall_s: float = 300.0
    redo: bool = False
    ray: str | None = None

    @property
    def wanted(self) -> tuple[str, ...]:
        """Keys of `OUTPUTS`."""
        more = {"video": self.overlay, "contact_sheet": self.contact_sheet, "masks": self.masks}
        return ("polygons", *(key for key, wanted in more.items() if wanted))


def run_batch(batch: Batch, config: Config, stop: threading.Event) -> bool:
    """Do what is not done yet, with progress on stderr, and say on stdout what came of it.

    Returns:
        whether it was interrupted through ``stop``; what was finished until then is kept.

    Raises:
        BadInput, ModelError: it cannot be done as asked.
        FreespaceError, EngineError: some files failed (they are named, all others are done), or nothing can work.
    """
    config = checked(batch, config)
    found = find_recordings(batch.given, batch.out)
    make_folder(batch.out)
    with locked(batch.out):
        journal = Journal(batch.out)
        settings = settings_of(batch, config)
        recordings = name_all(found, journal)
        todo = left_to_do(recordings, journal, batch.out, settings, batch.redo)
        done_before = len(recordings) - len(todo)
        if not todo:
            print(f"nothing is left to do, {len(recordings)} done before; {journal.path}")
            return False
        try:
            current = journal.begin(settings)
        except OSError as error:
            raise BadInput(f"{journal.path}: cannot be written: {error.strerror}") from error
        clear_unfinished(batch.out)
        workers = open_workers(batch, config, len(todo))
        try:
            with progress_bar(len(recordings), done_before) as tell:
                noted = do_all(todo, workers, journal, current, stop.is_set, tell, retries=batch.retries, stall_s=batch.stall_s)
        finally:
            workers.close()
            clear_unfinished(batch.out)
        print_summary(noted, done_before, len(todo) - len(noted), journal.path)
        if len(noted) < len(todo):
            return True
        if failed := [entry for entry in noted if entry.state == "failed"]:
            names = [f"{entry.path} ({brief(entry)})" for entry in failed[:NAMES_SHOWN]]
            more = f", and {len(failed) - NAMES_SHOWN} more" if len(failed) > NAMES_SHOWN else ""
            raise FreespaceError(f"{len(failed)} of {len(recordings)} files failed: {', '.join(names)}{more}")
        return False


def checked(batch: Batch, config: Config) -> Config:
    """``config`` with absolute paths and no threads left open. Raises BadInput, ModelError: it does not fit a batch."""
    if odd := [name for name, value in config.output if value != getattr(OutputConfig(), name)]:
        raise BadInput(f"output.{odd[0]}: a batch names its outputs itself, below --out; leave it out of the settings")
    plain = CaptureConfig()
    if odd := [name for name, value in config.capture if value != getattr(plain, name) and name not in RECORDED_PARTS]:
        raise BadInput(f"capture.{odd[0]}: is about other sources than a batch's recordings; leave it out of the settings")
    if config.loop.state or config.loop.policy == "latest":
        raise BadInput("loop.state and loop.policy: latest are for live sources; leave them out of the settings")
    contract = read_contract(Path(config.engine.model) if config.engine.model else DEFAULT_MODEL)
    contract.plane_index(config.polygons.plane)
    engine, ground = config.engine, config.ground
    if engine.model:
        engine = engine.model_copy(update={"model": os.path.abspath(engine.model)})
    if ground.calibration:
        calibration = os.path.abspath(ground.calibration)
        ground = ground.model_copy(update={"calibration": calibration})
        Rulers(ground, Path(calibration))  # now, not for every file
    if not engine.threads:
        engine = engine.model_copy(update={"threads": threads_each(batch)})
    return config.model_copy(update={"engine": engine, "ground": ground})


def threads_each(batch: Batch) -> int:
    """Threads of each worker's network, where they are not given."""
    return max(1, cores() // batch.workers) if batch.workers and not batch.ray else min(THREADS, cores())


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_gpu(config: Config) -> bool:
    """Whether the network will run on a GPU of this machine."""
    names = AUTO if config.engine.backend == "auto" else (config.engine.backend,)
    return any(name in BACKENDS and BACKENDS[name].gpu and installed(name) and not usable(name) for name in names)


def open_workers(batch: Batch, config: Config, files: int) -> Workers:
    """Those who will do it, no more than there are files. Raises BadInput: there is no such cluster."""
    if batch.ray:
        from perception.batch_ray import RayWorkers

        backend = config.engine.backend
        gpu = backend == "auto" or (backend in BACKENDS and BACKENDS[backend].gpu)
        return RayWorkers(batch.ray, config, batch.out, batch.wanted, batch.workers, files, config.engine.threads, gpu)
    count = batch.workers or (GPU_WORKERS if on_gpu(config) else max(1, cores() // config.engine.threads))
    return LocalWorkers(config, batch.out, batch.wanted, min(count, files))


def settings_of(batch: Batch, config: Config) -> dict[str, Any]:
    """All that results depend on, flat, by the keys of the configuration; files by their SHA-256."""
    sections = config.model_dump(mode="json", include={"polygons", "health", "stabilise", "ground", "engine"})
    sections["capture"] = config.capture.model_dump(mode="json", include=set(RECORDED_PARTS) - {"hardware"})
    flat = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    del flat["engine.threads"]
    flat["engine.model"] = read_contract(Path(config.engine.model) if config.engine.model else DEFAULT_MODEL).sha256
    if config.ground.calibration:
        flat["ground.calibration"] = hashlib.sha256(Path(config.ground.calibration).read_bytes()).hexdigest()
    return flat | {"outputs": [OUTPUTS[key] for key in batch.wanted], "version": __version__}


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Nobody else works in this folder meanwhile. Raises BadInput: somebody does."""
    lock = FileLock(out / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BadInput(f"{out}: another batch is at work in this folder; wait for it, or choose another --out") from None
    except OSError as error:
        raise BadInput(f"{out}: cannot be locked: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def progress_bar(files: int, done: int) -> Iterator[Any]:
    """Yields what hears all news: a bar on a terminal's stderr, and a line for each file that has come to its end."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} files, {task.fields[frames]} frames"),
        TimeElapsedColumn(),
    )
    frames: Counter[Recording] = Counter()
    with Progress(*columns, console=console, disable=not console.is_terminal, refresh_per_second=5) as bar:
        task: TaskID = bar.add_task("batch", total=files, completed=done, frames=0)

        def tell(news: News) -> None:
            frames[news.recording] = news.frames
            bar.update(task, advance=1 if news.end else 0, frames=frames.total())
            if news.end:
                how = news.end.sentence if isinstance(news.end, Failure) else f"{news.frames} frames"
                console.print(Text(f"freespace: {news.recording.name}: {how.removeprefix(f'{news.recording.path}: ')}"))

        yield tell


def print_summary(noted: Sequence[Entry], done_before: int, left: int, journal: Path) -> None:
    """A table of this run's files (those that failed first, where they are many), and the sums, on stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_IN_FILE
    table = Table("file", "state", box=None, pad_edge=False)
    for column in ("frames", "FPS", "invalid", "dropped"):
        table.add_column(column, justify="right")
    table.add_column("errors")
    rows = sorted(noted, key=lambda entry: (entry.state == "done", entry.name))
    for e in rows[:ROWS_SHOWN]:
        numbers = (str(e.frames), f"{e.fps:.1f}", str(sum(e.invalid.values())), str(e.dropped))
        table.add_row(Text(encodable(e.name)), e.state, *numbers, Text(encodable(brief(e))))
    if noted:
        console.print(table)
    if len(rows) > ROWS_SHOWN:
        print(f"and {len(rows) - ROWS_SHOWN} more")
    failed = sum(entry.state == "failed" for entry in noted)
    frames = sum(entry.frames for entry in noted if entry.state == "done")
    parts = [f"{len(noted) - failed} files done, {frames} frames", f"{failed} failed"]
    parts += [f"{done_before} done before"] * bool(done_before) + [f"{left} left"] * bool(left)
    print(f"{'; '.join(parts)}; {journal}")


def brief(entry: Entry) -> str:
    """The last of its errors, shortened; after how many attempts, where these were several."""
    if not entry.errors:
        return ""
    text = entry.errors[-1].removeprefix(f"{entry.path}: ")
    text = text if len(text) <= ERRORS_SHOWN else text[: ERRORS_SHOWN - 1] + "…"
    return f"{text}, {entry.attempts} attempts" if entry.attempts > 1 else text
