"""Several cameras in one process: each has its own loop, settings and outputs; the network they share."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

from rich.console import Console
from rich.progress import Progress, TextColumn

from engine.base import Engine
from engine.contract import EngineError, ModelError
from engine.shared import SharedEngine
from perception import service
from perception.capture import comes_live, open_source
from perception.capture.base import Source
from perception.config import Config
from perception.errors import BadInput, FreespaceError, tell
from perception.freespace import Freespace, State
from perception.heap import keep_frames_memory
from perception.monitor import Monitor
from perception.node import Summary, is_live, run
from perception.session import (
    FpsColumn,
    Reload,
    Request,
    check_run,
    describe_engine,
    open_configured,
    print_problems,
    remarks,
)
from perception.sinks import Sink, check_outputs, open_sinks
from perception.sinks.remarks import RemarksSink

LAST_PORT = 65535
KNOWN = (FreespaceError, EngineError, ModelError)  # errors that are a sentence for the user


class CameraMonitor(Monitor):
    """Of one camera among ``fellows``. It is `alive` while the loops of all are: the service manager restarts all or none.

    Attributes:
        over: whether its own loop has ended.
    """

    over = False
    fellows: Sequence[CameraMonitor] = ()

    @property
    def alive(self) -> bool:
        return all(fellow.turning for fellow in self.fellows if not fellow.over)

    @property
    def turning(self) -> bool:
        """Whether its own loop still comes round."""
        return super().alive


class CameraRemarks(RemarksSink):
    """Says whose state has changed."""

    def __init__(self, camera: str) -> None:
        super().__init__()
        self._camera = camera
        state, codes = self._said
        self._said = f"{camera} is {state}", codes

    def write_without_frame(self, result: Freespace) -> None:
        super().write_without_frame(replace(result, state=cast(State, f"{self._camera} is {result.state}")))


@dataclass
class Camera:
    """One camera of a run.

    Attributes:
        summary: what its loop did; None where ``error`` ended it.
    """

    name: str
    config: Config
    source: Source
    monitor: CameraMonitor
    sinks: list[Sink]
    summary: Summary | None = None
    error: BaseException | None = None

    def run(
        self,
        engine: Engine,
        stop: threading.Event,
        on_result: Callable[[Freespace], None],
        changed: Callable[[], Config | None] | None,
    ) -> None:
        """As `perception.node.run`; what goes wrong is kept in ``error``, and said."""
        try:
            with engine:
                self.summary = run(
                    self.source,
                    engine,
                    self.sinks,
                    self.config,
                    stop,
                    on_result,
                    self.monitor,
                    changed,
                    notify=lambda message: None,  # the service is all cameras together
                )
            if not self.summary.frames and not self.summary.interrupted:
                raise FreespaceError(f"{self.source.uri}: no frame could be processed")
        except BaseException as error:
            self.error = error
            tell(f"camera {self.name} has failed: {error}")
        finally:
            self.monitor.over = True


def run_cameras(
    configs: Mapping[str, Config],
    stop: threading.Event,
    asked: Request | None = None,
    load: Callable[[], Mapping[str, Config]] | None = None,
) -> bool:
    """Process the sources of all cameras at once, each to its end; a camera that fails does not stop the others.

    Args:
        configs: by the cameras' names, as `camera_configs` gives them.
        asked, load: where settings can be read again: that it was asked for, and what does it.

    Returns:
        whether it was interrupted through ``stop``; the outputs are whole all the same.

    Raises:
        BadInput, ModelError, FreespaceError: with one sentence for the user: before anything is processed; or in the end,
            where cameras have failed.
    """
    check_cameras(configs)
    keep_frames_memory(one_heap=any(comes_live(source_of(config), config.capture) for config in configs.values()))
    with ExitStack() as opened:
        sources = {name: opened.enter_context(open_source(source_of(c), c.capture)) for name, c in configs.items()}
        throughput = not any(is_live(source, configs[name]) for name, source in sources.items())
        engine = open_configured(next(iter(configs.values())).engine, throughput)
        shared = opened.enter_context(SharedEngine(engine))
        print(f"{len(configs)} cameras share {describe_engine(engine)}", file=sys.stderr)
        cameras = open_cameras(configs, sources, engine)
        threads = []
        with progress_rows(configs) as advance:
            service.notify("READY=1")
            for camera in cameras:
                reload = (
                    Reload(asked, partial(load_camera, load, camera.name), camera.config, camera.name)
                    if asked and load
                    else None
                )
                changed = partial(reload.changed, engine.contract) if reload else None
                arguments = (shared.share(), stop, partial(advance, camera.name), changed)
                threads.append(threading.Thread(target=camera.run, args=arguments, name=camera.name, daemon=True))
                threads[-1].start()
            for thread in threads:
                thread.join()
            service.notify("STOPPING=1")
        for camera in cameras:
            if not camera.monitor.live:
                print_problems([f"{camera.name}: {problem}" for problem in camera.source.problems])
    print_table(cameras)
    if failed := [camera for camera in cameras if camera.error]:
        for error in (camera.error for camera in failed):
            if error and not isinstance(error, KNOWN):
                raise error  # one of ours: its traceback is wanted
        reasons = "; ".join(f"{camera.name}: {camera.error}" for camera in failed)
        raise FreespaceError(f"{len(failed)} of {len(cameras)} cameras failed: {reasons}")
    return any(camera.summary.interrupted for camera in cameras if camera.summary)


def source_of(config: Config) -> str:
    assert config.capture.source  # `camera_configs` sees to it
    return config.capture.source


def load_camera(load: Callable[[], Mapping[str, Config]], name: str) -> Config:
    configs = load()
    if name not in configs:
        raise BadInput(f"camera {name} is not in them any more")
    return configs[name]


def check_cameras(configs: Mapping[str, Config]) -> None:
    """What can be checked before anything is opened. Raises BadInput."""
    for name, config in configs.items():
        try:
            check_run(source_of(config), config)
            for other in configs.values():  # nothing may replace another camera's source either
                check_outputs(config.output, source_of(other), config.loop.state)
        except BadInput as error:
            raise BadInput(f"camera {name}: {error}") from error
    pages = [c.output.serve for c in configs.values()]
    metrics = [c.output.metrics for c in configs.values() if c.output.metrics != c.output.serve]
    for address in (*pages, *metrics):
        if address and (port := address.rpartition(":")[2]).isdigit() and int(port) > LAST_PORT:
            raise BadInput(f"{address}: there is no such port: each camera takes one, from the given one on; give a lower one")
    taken = Counter(address for address in (*pages, *metrics) if address and not address.endswith(":0"))
    if twice := [address for address, count in taken.items() if count > 1]:
        raise BadInput(f"{twice[0]}: is wanted twice: --serve and --metrics take a port for each camera, from the given one on")


def open_cameras(configs: Mapping[str, Config], sources: Mapping[str, Source], engine: Engine) -> list[Camera]:
    """Every camera with its sinks open, or none. Raises as `open_sinks`, and ModelError: the model has no such plane."""
    cameras: list[Camera] = []
    with ExitStack() as unstarted:
        for name, config in configs.items():
            source = sources[name]
            engine.contract.plane_index(config.polygons.plane)
            monitor = CameraMonitor(source, config.loop, is_live(source, config), engine.contract.sha256, engine.name)
            sinks = open_sinks(config, source.fps, monitor.status)
            for sink in sinks:
                unstarted.callback(sink.close)
            read = f" ({source.detail})" if source.detail else ""
            print(f"{name}: {source.uri}{read}", file=sys.stderr)
            if monitor.live:
                print_problems([f"{name}: {problem}" for problem in source.problems])
                sinks.append(CameraRemarks(name))
            cameras.append(Camera(name, config, source, monitor, sinks))
        unstarted.pop_all()  # from now on they are closed by the loops
    for camera in cameras:
        camera.monitor.fellows = [fellow.monitor for fellow in cameras]
    if not any(sink.listened for camera in cameras for sink in camera.sinks):
        tell("no output is asked for: results are counted and thrown away; give --serve, --polygons or another")
    return cameras


@contextmanager
def progress_rows(names: Collection[str]) -> Iterator[Callable[[str, Freespace], None]]:
    """Yields a function that takes a camera's name and result and moves its row on stderr, where that is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        TextColumn("{task.fields[state]}, {task.completed} frames"),
        FpsColumn(),
        TextColumn("{task.fields[drops]} dropped"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, refresh_per_second=5) as progress:
        rows = {name: progress.add_task(name, total=None, drops=0, state="starting") for name in names}
        yield lambda name, result: progress.update(rows[name], advance=1, drops=result.dropped, state=result.state)


def print_table(cameras: Sequence[Camera]) -> None:
    """A row for each camera on stdout, and what is worth a line beside it."""
    width = max(len("camera"), *(len(camera.name) for camera in cameras))
    print(f"{'camera':<{width}}{'frames':>9}{'FPS':>8}{'dropped':>9}{'invalid':>9}{'p50, ms':>10}{'p99, ms':>10}  of")
    for camera in cameras:
        status = camera.monitor.status()
        frames, fps = status.frames, status.frames / status.uptime_s if status.uptime_s else 0.0
        dropped, invalid, percentiles = sum(status.dropped.values()), status.invalid, status.latency_ms
        if camera.summary:  # which knows the whole run
            fps, percentiles = camera.summary.fps, camera.summary.stages.percentiles()
            invalid = camera.summary.invalid.total()
        of = "age" if "age" in percentiles else "total"
        times = "".join(f"{percentiles[of][p]:10.1f}" if of in percentiles else f"{'–':>10}" for p in (50, 99))
        print(f"{camera.name:<{width}}{frames:9}{fps:8.1f}{dropped:9}{invalid:9}{times}  {of if frames else ''}".rstrip())
    for camera in cameras:
        for line in remarks(camera.summary) if camera.summary else ():
            print(f"{camera.name}: {line}")
        for sink in camera.sinks:
            if sink.made:
                print(f"{camera.name}: {'kept' if camera.error else 'wrote'} {sink.made}")
