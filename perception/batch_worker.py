"""One recording of an archive, from its file to its results; and the processes of this machine that do that side by side."""

from __future__ import annotations

import multiprocessing as mp
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path

from engine.base import Engine
from engine.contract import EngineError, ModelError
from perception.batch import UNFINISHED, Failure, News, Outcome, Recording, fingerprint
from perception.capture import open_source
from perception.config import Config
from perception.errors import BadInput, FreespaceError
from perception.freespace import Freespace
from perception.node import run
from perception.session import open_configured
from perception.sinks import open_sinks

# What may lie in the folder of a recording, by the key of the configuration.
OUTPUTS = {"polygons": "polygons.jsonl", "video": "overlay.mp4", "contact_sheet": "contact-sheet.png", "masks": "masks"}
PROBLEMS_KEPT = 20
TELL_S = 0.5
STARTS_TRIED = 3

OnFrame = Callable[[Freespace], None]


class Worker:
    """Does one recording after the other with one engine.

    Args:
        config: of all recordings; of its outputs those named in ``wanted`` are written.
        out: folder of all results.

    Raises:
        ModelError, EngineError: there can be no engine.
    """

    def __init__(self, config: Config, out: str, wanted: Sequence[str]) -> None:
        self.config, self.out, self.wanted = config, Path(out), wanted
        self.engine: Engine | None = open_configured(config.engine)
        self.where = f"{socket.gethostname()}:{os.getpid()}"

    def do(self, recording: Recording, on_frame: OnFrame) -> Outcome | Failure:
        """Process it into a folder apart, and give its results their names when all of them are whole. Raises nothing."""
        unfinished = self.out / UNFINISHED / recording.name
        try:
            if self.engine is None:
                self.engine = open_configured(self.config.engine)
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            return process(recording, self.config, self.engine, unfinished, self.out / recording.name, self.wanted, on_frame)
        except Exception as error:
            self._forget_engine()  # it may still hold frames of this recording
            return failure_of(error)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _forget_engine(self) -> None:
        engine, self.engine = self.engine, None
        if engine:
            engine.close()


def process(
    recording: Recording,
    config: Config,
    engine: Engine,
    unfinished: Path,
    final: Path,
    wanted: Sequence[str],
    on_frame: OnFrame,
) -> Outcome:
    """Raises BadInput, FreespaceError, EngineError, OSError: it cannot be done, or changed meanwhile."""
    mark = fingerprint(recording.path)
    outputs = {key: str(unfinished / OUTPUTS[key]) for key in wanted}
    config = config.model_copy(update={"output": config.output.model_copy(update=outputs)})
    if "masks" in outputs:
        Path(outputs["masks"]).mkdir()
    with open_source(recording.path, config.capture) as source:
        summary = run(source, engine, open_sinks(config, source.fps), config, on_result=on_frame)
    if not summary.frames:
        raise FreespaceError(f"{recording.path}: no frame could be processed")
    if fingerprint(recording.path) != mark:
        raise FreespaceError(f"{recording.path}: was changed while it was read; is it still being copied?")
    return Outcome(
        mark,
        summary.frames,
        summary.dropped,
        dict(summary.invalid),
        summary.wall_s,
        summary.problems[:PROBLEMS_KEPT],
        put_in_place(unfinished, final),
    )


def put_in_place(unfinished: Path, final: Path) -> list[str]:
    """Give the results their names, in place of those of an earlier run; what else lies there stays. Raises OSError."""
    final.mkdir(parents=True, exist_ok=True)
    for name in OUTPUTS.values():
        remove(final / name)
    names = sorted(path.name for path in unfinished.iterdir())
    for name in names:
        os.replace(unfinished / name, final / name)
    return names


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def failure_of(error: Exception) -> Failure:
    final = isinstance(error, (BadInput, ModelError, FileNotFoundError))
    known = isinstance(error, (FreespaceError, ModelError, EngineError))
    return Failure(str(error) if known else f"{type(error).__name__}: {error}", final)


# -- On this machine --------------------------------------------------------------------------------------------------


class LocalWorkers:
    """A process for each worker; one that dies takes nothing but its recording with it, and is replaced.

    Args:
        count: how many processes.
    """

    def __init__(self, config: Config, out: Path, wanted: Sequence[str], count: int) -> None:
        self._arguments = config, str(out.absolute()), tuple(wanted)
        self._context = mp.get_context("spawn")  # a fork would copy the locks of the runtimes' threads
        self._failed_starts = 0
        self._hands = [self._begin() for _ in range(count)]

    def _begin(self) -> Hand:
        here, there = self._context.Pipe()
        process = self._context.Process(target=serve, args=(there, *self._arguments), daemon=True)
        process.start()
        there.close()  # else its end would not be noticed
        return Hand(process, here)

    @property
    def free(self) -> int:
        return sum(hand.where != "" and hand.recording is None for hand in self._hands)

    def give(self, recording: Recording) -> None:
        hand = next(h for h in self._hands if h.where and h.recording is None)
        hand.recording, hand.frames = recording, 0
        with suppress(OSError):  # it has just died: `wait` will see
            hand.pipe.send(recording)

    def wait(self, timeout_s: float) -> list[News]:
        told = wait([hand.pipe for hand in self._hands], timeout_s)
        return [news for hand in list(self._hands) if hand.pipe in told for news in self._listen(hand)]

    def _listen(self, hand: Hand) -> list[News]:
        heard: list[News] = []
        try:
            while hand.pipe.poll():
                message = hand.pipe.recv()
                if isinstance(message, Exception):
                    raise message
                if isinstance(message, str):
                    hand.where, self._failed_starts = message, 0
                elif hand.recording:
                    hand.frames, end = message
                    heard.append(News(hand.recording, hand.where, hand.frames, end))
                    hand.recording = None if end else hand.recording
        except (EOFError, ConnectionError):
            if hand.recording:
                heard.append(News(hand.recording, hand.where, hand.frames, Failure(f"its worker {hand.how_it_ended()}")))
            elif not hand.where:
                self._failed_starts += 1
                if self._failed_starts >= STARTS_TRIED:
                    raise FreespaceError(f"a worker {hand.how_it_ended()} while it loaded the network") from None
            self._replace(hand)
        return heard

    def abandon(self, recording: Recording) -> None:
        hand = next(h for h in self._hands if h.recording == recording)
        hand.end()
        self._replace(hand)

    def _replace(self, hand: Hand) -> None:
        hand.pipe.close()
        self._hands[self._hands.index(hand)] = self._begin()

    def close(self) -> None:
        for hand in self._hands:
            hand.process.kill()  # what it has not finished is thrown away in any case
        for hand in self._hands:
            hand.end()
            hand.pipe.close()


class Hand:
    """A worker's process, seen from outside. ``where``: host and process, empty while the network is loaded."""

    def __init__(self, process: mp.process.BaseProcess, pipe: Connection) -> None:
        self.process, self.pipe = process, pipe
        self.where = ""
        self.recording: Recording | None = None
        self.frames = 0

    def end(self) -> None:
        self.process.kill()
        self.process.join()

    def how_it_ended(self) -> str:
        self.process.join()
        code = self.process.exitcode or 0
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def serve(pipe: Connection, config: Config, out: str, wanted: Sequence[str]) -> None:
    """Life of a worker's process: say that it is ready (or send why not), then do what comes, until nothing can come."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who gives the work
    threading.Thread(target=leave_with_parent, daemon=True).start()
    try:
        worker = Worker(config, out, wanted)
    except (ModelError, EngineError) as error:
        pipe.send(error)
        return
    pipe.send(worker.where)
    while True:
        try:
            recording = pipe.recv()
        except EOFError:
            return
        progress = Progress(pipe)
        end = worker.do(recording, progress.count)
        pipe.send((progress.frames, end))


def leave_with_parent() -> None:
    """End this process when the one that began it has ended, however that was."""
    parent = mp.parent_process()
    if parent:
        wait([parent.sentinel])
        os._exit(1)


class Progress:
    """Counts frames, and says so now and then."""

    def __init__(self, pipe: Connection) -> None:
        self.frames = 0
        self._pipe, self._told = pipe, time.monotonic()

    def count(self, result: Freespace) -> None:
        self.frames += 1
        if time.monotonic() - self._told > TELL_S:
            self._told = time.monotonic()
            self._pipe.send((self.frames, None))
