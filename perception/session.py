"""One run as a person sees it: opens everything, shows progress, tells what came of it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from engine import open_engine
from engine.base import Engine
from engine.contract import ModelContract, ModelError
from perception import service
from perception.capture import comes_live, open_source
from perception.capture.base import Source
from perception.config import Config, EngineConfig
from perception.errors import BadInput, FreespaceError, tell
from perception.freespace import Freespace
from perception.heap import keep_frames_memory
from perception.monitor import Monitor
from perception.node import Summary, is_live, run
from perception.sinks import Sink, check_outputs, open_sinks
from perception.sinks.remarks import RemarksSink
from perception.timing import PERCENTILES

PROBLEMS_SHOWN = 20
BLOCKED = 0.8  # of the results: that is no traffic any more
RELOADABLE = ("polygons", "health", "stabilise")  # what `perception.node.run` takes while it runs


def run_session(uri: str, config: Config, stop: threading.Event, reload: Reload | None = None) -> bool:
    """Process ``uri`` as ``config`` says, with a progress bar on stderr and a summary on stdout.

    Args:
        reload: where settings can be read again.

    Returns:
        whether it was interrupted through ``stop``; the outputs are whole all the same.

    Raises:
        BadInput, ModelError, FreespaceError: with one sentence for the user.
    """
    check_run(uri, config)
    keep_frames_memory(one_heap=comes_live(uri, config.capture))
    with (
        open_source(uri, config.capture) as source,
        open_configured(config.engine, throughput=not is_live(source, config)) as engine,
    ):
        engine.contract.plane_index(config.polygons.plane)
        monitor = Monitor(source, config.loop, is_live(source, config), engine.contract.sha256, engine.name)
        sinks = open_sinks(config, source.fps, monitor.status)
        changed = partial(reload.changed, engine.contract) if reload else None
        read = f" ({source.detail})" if source.detail else ""
        print(f"{source.uri}{read}: {describe_engine(engine)}", file=sys.stderr)
        if monitor.live:  # while it lasts, `RemarksSink` says what changes
            print_problems(source.problems)
            if not sinks:
                tell("no output is asked for: results are counted and thrown away; give --serve, --polygons or another")
            sinks.append(RemarksSink())
        try:
            with progress_bar(source) as advance:
                summary = run(source, engine, sinks, config, stop, advance, monitor, changed)
        except Exception:
            for sink in sinks:
                if sink.made:
                    print(f"kept {sink.made}", file=sys.stderr)
            raise
        finally:
            if not monitor.live:
                print_problems(source.problems)
        if not summary.frames and not summary.interrupted:
            raise FreespaceError(f"{source.uri}: no frame could be processed")
        print_summary(summary, sinks)
        return summary.interrupted


def check_run(uri: str, config: Config) -> None:
    """What can be checked before anything is opened. Raises BadInput."""
    check_outputs(config.output, uri, config.loop.state)
    if config.ground.calibration:
        from perception.metres import Rulers

        Rulers(config.ground, Path(config.ground.calibration))  # now, not after the network is opened
    if config.output.append and config.capture.loop:
        raise BadInput("--append and --loop exclude each other: a recording's frames are told apart by their numbers")


class Request:
    """Made by a signal's handler. No `threading.Event`: its lock may be held by the very thread that the handler interrupts."""

    made = 0  # times

    def make(self) -> None:
        self.made += 1


@dataclass
class Reload:
    """Settings that can be read again while a run goes on.

    Attributes:
        asked: made from outside (SIGHUP).
        load: reads them; raises `BadInput`.
        config: those in force.
        camera: whose they are, where there are several.
        done: how many requests have been answered.
    """

    asked: Request
    load: Callable[[], Config]
    config: Config
    camera: str = ""
    done: int = 0

    def changed(self, contract: ModelContract) -> Config | None:
        """The new settings, once each time they were asked for and differ; where they do not fit the old ones stay."""
        if self.asked.made == self.done:
            return None
        self.done = self.asked.made
        camera = self.camera and f"{self.camera}: "
        service.notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            config = self.load()
            contract.plane_index(config.polygons.plane)
        except (BadInput, ModelError) as error:
            tell(f"{camera}the settings stay as they are: {error}")
            return None
        finally:
            service.notify("READY=1")
        before, self.config = self.config, config
        changed = [name for name, section in config if section != getattr(before, name)]
        if fixed := [name for name in changed if name not in RELOADABLE]:
            tell(f"{camera}changes of {', '.join(fixed)} take effect at the next start")
        taken = [name for name in changed if name in RELOADABLE]
        tell(f"{camera}settings read again: {', '.join(taken) or 'nothing'} changed")
        return config if taken else None


def open_configured(config: EngineConfig, throughput: bool = True) -> Engine:
    """The engine that the configuration names; ``throughput`` for a recording: each frame counts, none is waited for."""
    size = None
    if config.input_size:
        width, height = config.input_size.split("x")
        size = int(width), int(height)
    return open_engine(config.model, config.backend, config.precision, config.threads, size, throughput, say=tell)


def print_problems(problems: list[str]) -> None:
    for problem in problems[:PROBLEMS_SHOWN]:
        tell(problem)
    if len(problems) > PROBLEMS_SHOWN:
        tell(f"and {len(problems) - PROBLEMS_SHOWN} more like these")


def describe_engine(engine: Engine) -> str:
    contract = engine.contract
    width, height = contract.input_size
    return (
        f"model {contract.path.name} {contract.sha256[:12]} at {width}x{height}, "
        f"{engine.name} {engine.precision} on {engine.device} ({engine.reason})"
    )


@contextmanager
def progress_bar(source: Source) -> Iterator[Callable[[Freespace], None]]:
    """Yields a function that takes each result and moves a bar on stderr; nothing is drawn where that is no terminal."""
    console = Console(stderr=True)
    rate, drops = FpsColumn(), TextColumn("{task.fields[drops]} dropped")
    columns: tuple[ProgressColumn, ...] = (
        BarColumn(),
        TextColumn("{task.completed}/{task.total} frames"),
        rate,
        TextColumn("ETA"),
        TimeRemainingColumn(),
        drops,
    )
    if source.total is None:
        columns = (TextColumn("{task.fields[state]}, {task.completed} frames"), rate, drops)
    with Progress(*columns, console=console, disable=not console.is_terminal, refresh_per_second=5) as progress:
        task = progress.add_task("frames", total=source.total, drops=0, state="starting")
        yield lambda result: progress.update(task, advance=1, drops=result.dropped, state=result.state)


class FpsColumn(ProgressColumn):
    """Frames per second over the last moments."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:5.1f} FPS")


def print_summary(summary: Summary, sinks: list[Sink]) -> None:
    """Frames, rate, drops, percentiles per stage and what was written, on stdout."""
    state = "interrupted after" if summary.interrupted else "done:"
    print(f"{state} {summary.frames} frames in {summary.wall_s:.1f} s, {summary.fps:.1f} FPS, {summary.dropped} dropped")
    if summary.frames:
        print(f"{'stage, ms':<14}" + "".join(f"{'p' + str(p):>9}" for p in PERCENTILES))
    for stage, values in summary.stages.percentiles().items():
        print(f"{stage:<14}" + "".join(f"{values[p]:9.2f}" for p in PERCENTILES))
    for line in remarks(summary):
        print(line)
    written = [sink.made for sink in sinks if sink.made]
    for line in written:
        print(f"wrote {line}")
    if not written and not any(sink.lossless for sink in sinks):
        print("nothing was written: give --out, --polygons, --masks or --contact-sheet")


def remarks(summary: Summary) -> Iterator[str]:
    """What is worth a line beside the rates."""
    if any(summary.dropped_by.values()):
        yield "dropped by " + ", ".join(f"{place} {count}" for place, count in summary.dropped_by.items() if count)
    if summary.invalid:
        yield f"not valid: {', '.join(f'{code} {count}' for code, count in summary.invalid.items())}"
    if summary.reconnections:
        yield f"the source was opened again {summary.reconnections} times"
    if summary.blocked > BLOCKED * summary.frames:
        yield (
            f"in {summary.blocked} of {summary.frames} results no free ground ahead begins where the view does; "
            "if the bonnet hides it, set ground.min_range_m (see docs/metres.md)"
        )
    if (steady := summary.stability) and steady.iou_mean is not None and steady.flickers_per_minute is not None:
        yield (
            f"steadiness: IoU of consecutive results {steady.iou_mean:.3f} (p5 {steady.iou_p5:.3f}), "
            f"{steady.flickers_per_minute:.1f} flickers a minute (see docs/live.md)"
        )
