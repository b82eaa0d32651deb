"""The same on a Ray cluster. Recordings and results lie on storage that all machines see under the same paths."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from perception.batch import Failure, News, Outcome, Recording
from perception.batch_worker import Worker
from perception.config import Config
from perception.errors import BadInput, FreespaceError
from perception.freespace import Freespace

LOCAL = "local"  # the address of a cluster of this machine alone, begun for the batch and ended with it
# Where it is "0" ray's processes listen on 127.0.0.1 alone; a cluster whose address is 127.0.0.1 they would else open to all.
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
POLL_S = 1.0
CONNECT_S = 5.0
STARTS_TRIED = 3
WORKERS_PER_GPU = 2  # one decodes while the other one infers


class RayWorker:
    """An actor; `frames_done` answers beside `do`."""

    def __init__(self, config: Config, out: str, wanted: Sequence[str]) -> None:
        self._arguments = config, out, wanted
        self._frames = 0

    def open(self) -> str:
        """Load the network, and say where. Raises ModelError, EngineError."""
        self._worker = Worker(*self._arguments)
        return self._worker.where

    def do(self, recording: Recording) -> tuple[int, Outcome | Failure]:
        self._frames = 0
        end = self._worker.do(recording, self._count)
        return self._frames, end

    def frames_done(self) -> int:
        return self._frames

    def _count(self, result: Freespace) -> None:
        self._frames += 1


class RayWorkers:
    """Actors on the cluster; one that dies, or whose machine does, takes nothing but its recording with it, and is replaced.

    Args:
        address: ``HOST:PORT`` of the cluster, ``ray://HOST:PORT`` through its client's port, ``auto``, or ``local``.
        count: how many actors at most; 0 for as many as there is room for.
        files: how many recordings there are: no more actors than that.
        threads: processor cores that each one takes.
        gpu: whether the network may run on a GPU; where the cluster has some, its actors share those.

    Raises:
        BadInput: ray is not installed, there is no cluster, or none of its machines has room for an actor.
    """

    def __init__(
        self,
        address: str,
        config: Config,
        out: Path,
        wanted: Sequence[str],
        count: int,
        files: int,
        threads: int,
        gpu: bool,
    ) -> None:
        self._ray = connect(address)
        self._arguments = config, str(out.absolute()), tuple(wanted)
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpus = gpu and any(machine.get("GPU", 0) >= 1 for machine in machines)
        room = sum(room_on(machine, threads, gpus) for machine in machines)
        if not room:
            self._ray.shutdown()
            raise BadInput(f"--ray {address}: {too_small(machines, threads, gpus)}; give a smaller --threads")
        self._kind = self._ray.remote(RayWorker).options(
            num_cpus=threads, num_gpus=1 / WORKERS_PER_GPU if gpus else 0, max_concurrency=2, max_restarts=0
        )
        self._failed_starts = 0
        self._polled = time.monotonic()
        self._actors = [self._begin() for _ in range(min(count or room, room, files))]

    def _begin(self) -> Actor:
        actor = self._kind.remote(*self._arguments)
        return Actor(actor, actor.open.remote())

    @property
    def free(self) -> int:
        return sum(actor.call is None for actor in self._actors)

    def give(self, recording: Recording) -> None:
        actor = next(a for a in self._actors if a.call is None)
        actor.recording, actor.frames = recording, 0
        actor.call = actor.handle.do.remote(recording)

    def wait(self, timeout_s: float) -> list[News]:
        calls = {actor.call: actor for actor in self._actors if actor.call is not None}
        if not calls:
            time.sleep(timeout_s)
            return []
        ready, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=timeout_s)
        return [news for call in ready for news in self._hear(calls[call])] + self._progress()

    def _hear(self, actor: Actor) -> list[News]:
        try:
            reply = self._ray.get(actor.call)
        except self._ray.exceptions.RayTaskError as error:  # only loading the network raises
            raise (error.cause or FreespaceError(str(error))) from None
        except self._ray.exceptions.RayError as error:
            return self._died(actor, error)
        actor.call = None
        if actor.recording is None:
            actor.where, self._failed_starts = reply, 0
            return []
        frames, end = reply
        recording, actor.recording = actor.recording, None
        return [News(recording, actor.where, frames, end)]

    def _died(self, actor: Actor, error: Exception) -> list[News]:
        how = " ".join(str(error).split())[:200]
        if actor.recording is None:
            self._failed_starts += 1
            if self._failed_starts >= STARTS_TRIED:
                raise FreespaceError(f"a worker died while it loaded the network: {how}") from None
        self._replace(actor)
        if actor.recording is None:
            return []
        return [News(actor.recording, actor.where, actor.frames, Failure(f"its worker {actor.where} died: {how}"))]

    def _progress(self) -> list[News]:
        """How far they are, asked of all at once now and then; one that does not answer is not waited for."""
        if time.monotonic() - self._polled < POLL_S:
            return []
        self._polled = time.monotonic()
        asked = {actor.handle.frames_done.remote(): actor for actor in self._actors if actor.recording is not None}
        if not asked:
            return []
        news: list[News] = []
        for call in self._ray.wait(list(asked), num_returns=len(asked), timeout=POLL_S)[0]:
            actor = asked[call]
            try:
                actor.frames = self._ray.get(call)
            except self._ray.exceptions.RayError:  # the call of the recording itself says so, too
                continue
            if actor.recording is not None:
                news.append(News(actor.recording, actor.where, actor.frames))
        return news

    def abandon(self, recording: Recording) -> None:
        actor = next(a for a in self._actors if a.recording == recording)
        self._ray.kill(actor.handle)
        self._replace(actor)

    def _replace(self, actor: Actor) -> None:
        self._actors[self._actors.index(actor)] = self._begin()

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor.handle)
        self._ray.shutdown()


class Actor:
    """One of them, seen from outside. ``call``: what it is doing, None where it waits for work."""

    def __init__(self, handle: Any, call: Any) -> None:
        self.handle, self.call = handle, call
        self.where = ""
        self.recording: Recording | None = None
        self.frames = 0


def room_on(machine: Mapping[str, float], threads: int, gpus: bool) -> int:
    """How many actors fit on a machine with these resources; each takes ``threads`` cores, and with ``gpus`` half of one."""
    cores = int(machine.get("CPU", 0)) // threads
    return min(cores, int(machine.get("GPU", 0)) * WORKERS_PER_GPU) if gpus else cores


def too_small(machines: Sequence[Mapping[str, float]], threads: int, gpus: bool) -> str:
    """Why no actor fits on any of them."""
    largest = max((int(machine.get("CPU", 0)) for machine in machines if not gpus or machine.get("GPU", 0) >= 1), default=0)
    which = "no machine with a GPU" if gpus else "no machine"
    return f"{which} of the cluster has the {threads} processor cores that a worker takes, at most {largest}"


def connect(address: str) -> Any:
    """The ``ray`` module, connected. Raises BadInput: it is not installed, or nothing answers there."""
    if find_spec("ray") is None:
        raise BadInput("--ray needs ray, which is not installed; pip install '.[ray]' in the project's folder")
    check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told what is done here
    local: dict[str, Any] = {}
    if address == LOCAL:
        if "ray" in sys.modules and os.environ.get(LOOPBACK) != "0":
            raise BadInput(f"--ray {LOCAL}: ray is in use here already; begin a cluster yourself and give its address")
        os.environ[LOOPBACK] = "0"  # read when ray is imported
        local = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    import ray

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, **local)
    except (OSError, RuntimeError, ValueError) as error:
        raise BadInput(f"--ray {address}: no cluster answers there: {' '.join(str(error).split())[:200]}") from error
    finally:
        for number, handler in handlers.items():  # ray has its own; a batch ends in its own way
            signal.signal(number, handler)
    return ray


def check_reachable(address: str) -> None:
    """Raises BadInput: nothing listens at a ``HOST:PORT``; ray itself would ask for minutes."""
    if address in (LOCAL, "auto"):
        return
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        if not parts.hostname or not parts.port:
            raise BadInput(f"--ray {address}: give HOST:PORT, ray://HOST:PORT, auto, or {LOCAL}")
        socket.create_connection((parts.hostname, parts.port), CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise BadInput(f"--ray {address}: no cluster answers there: {getattr(error, 'strerror', None) or error}") from error
