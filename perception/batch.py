"""Archives: which recordings there are, which are done already, and the loop that has the rest done.

The journal is the one thing that is remembered. What is done is a line in it, written after the results have their names:
whatever is killed, and when, no line is lost, and what has none is done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import orjson

from perception.capture.uri import RECORDED
from perception.errors import BadInput, FreespaceError
from perception.errors import tell as remark

SCHEMA = "freespace-batch/1"
SUFFIXES = RECORDED | {".ts", ".mts", ".m2ts", ".3gp", ".mcap", ".db3"}
JOURNAL, LOCK, UNFINISHED = "batch.jsonl", ".batch.lock", ".part"
HEAD_BYTES = 1 << 16
WAKE_S = 0.2
QUIET_S = 30.0  # without a worker that is ready for so long, it is said that one is waited for
START_S = 1800.0  # a network may have to be compiled first
DIFFERENCES_SHOWN = 5

State = Literal["done", "failed"]


# -- What there is ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """One input.

    Attributes:
        path: of the file, absolute.
        name: of the folder of its results, relative to that of all results, with ``/``.
    """

    path: str
    name: str


@dataclass(frozen=True)
class Fingerprint:
    """By which a file is known again: bytes, time of its last change (ns), SHA-256 of its first 64 KiB."""

    size: int
    mtime_ns: int
    head: str


def fingerprint(path: str) -> Fingerprint:
    """Of the file as it is now. Raises OSError."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        return Fingerprint(status.st_size, status.st_mtime_ns, hashlib.sha256(file.read(HEAD_BYTES)).hexdigest())


def find_recordings(given: Iterable[str], out: Path) -> list[tuple[str, str]]:
    """(absolute path, wanted name) of each recording, once, in order.

    Of a folder all videos below it, by their names relative to it; a file whatever its name, relative to the folder that all
    given files share; of ``@list.txt`` each line that is not empty and does not begin with ``#``. Hidden files, and what lies
    in ``out``, are left out.

    Raises:
        BadInput: something is not there, a folder holds no video, a file lies in ``out``.
    """
    files: list[str] = []
    found: dict[str, str] = {}
    results = os.path.abspath(out)
    for entry in lines_of(given):
        path = os.path.abspath(entry)
        if os.path.isdir(path):
            inside = {str(p): PurePosixPath(p.relative_to(path)).as_posix() for p in videos_below(path, results)}
            if not inside:
                raise BadInput(f"{entry}: no videos in this folder ({', '.join(sorted(SUFFIXES))})")
            found |= {p: name for p, name in inside.items() if p not in found}
        elif not os.path.exists(path):
            raise BadInput(f"{entry}: no such file or folder")
        elif not os.path.isfile(path):
            raise BadInput(f"{entry}: is no file; a batch takes recordings")
        elif is_below(path, results):
            raise BadInput(f"{entry}: lies in {out}, the folder of the results; choose another --out")
        else:
            files.append(path)
            found.setdefault(path, "")
    if files:
        shared = os.path.commonpath([os.path.dirname(path) for path in files])
        found |= {path: Path(os.path.relpath(path, shared)).as_posix() for path in files if not found[path]}
    return list(found.items())


def lines_of(given: Iterable[str]) -> Iterator[str]:
    """``given``, with lists replaced by what is in them. Raises BadInput: a list cannot be read."""
    for entry in given:
        if not entry.startswith("@"):
            yield entry
            continue
        try:
            text = Path(entry[1:]).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise BadInput(f"{entry[1:] or entry}: the list cannot be read: {why}") from error
        yield from (line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))


def videos_below(folder: str, results: str) -> Iterator[Path]:
    def left_out(error: OSError) -> None:
        remark(f"{error.filename}: is left out, it cannot be read: {error.strerror}")

    for parent, folders, names in os.walk(folder, onerror=left_out):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and os.path.join(parent, f) != results)
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield Path(parent, name)


def is_below(path: str, folder: str) -> bool:
    return (
        os.path.commonpath([path, folder]) == folder if os.path.splitdrive(path)[0] == os.path.splitdrive(folder)[0] else False
    )


class Names:
    """Gives each recording a folder of its own: none is another one's, or lies in it, on any file system."""

    def __init__(self) -> None:
        self._taken = {folded(name) for name in (JOURNAL, LOCK, UNFINISHED)}
        self._parents: set[str] = set()

    def take(self, wanted: str) -> str:
        """``wanted``, or where it is taken the same with its first part called ``part~2`` and so on."""
        first, *rest = wanted.split("/")
        number, name = 1, wanted
        while not self._free(folded(name)):
            number += 1
            name = "/".join([f"{first}~{number}", *rest])
        self._taken.add(folded(name))
        self._parents.update(parents(folded(name)))
        return name

    def _free(self, key: str) -> bool:
        return key not in self._taken and key not in self._parents and self._taken.isdisjoint(parents(key))


def folded(name: str) -> str:
    """The same for names that some file system takes for one."""
    return unicodedata.normalize("NFC", name).casefold()


def parents(name: str) -> list[str]:
    return [parent.as_posix() for parent in PurePosixPath(name).parents][:-1]


# -- What is done -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One line of the journal: what came of a recording.

    Attributes:
        name, path: of the `Recording`.
        size, mtime_ns, head: its `Fingerprint`; 0 and empty where it could not be read.
        settings: `digest` of those it was done with.
        state: ``done`` or ``failed``.
        attempts: in this run.
        finished: Unix time, seconds.
        worker: host and process.
        frames, dropped: with a result; lost in decoding.
        invalid: results that may not be used, by the code of their first cause.
        wall_s: of the last attempt, seconds, and ``fps``, frames per second of it.
        errors: one sentence for each attempt that failed, and for what was wrong with the recording itself.
        outputs: names of the results within the folder.
    """

    name: str
    path: str
    size: int
    mtime_ns: int
    head: str
    settings: str
    state: State
    attempts: int
    finished: float
    worker: str = ""
    frames: int = 0
    fps: float = 0.0
    dropped: int = 0
    invalid: dict[str, int] = field(default_factory=dict)
    wall_s: float = 0.0
    errors: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self.size, self.mtime_ns, self.head)


class Journal:
    """``batch.jsonl``: a line for each set of settings, and for each recording that was done or given up; the last one counts.

    Attributes:
        entries: by name.
        settings: by their digest.

    Raises:
        BadInput: the file is there and holds something else, or cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self.entries: dict[str, Entry] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise BadInput(f"{self.path}: the journal cannot be read: {error.strerror}") from error
        whole = data[: data.rfind(b"\n") + 1]  # a line that was being written when the power went is none
        for number, line in enumerate(whole.splitlines(), 1):
            self._read(line, number)
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))

    def _read(self, line: bytes, number: int) -> None:
        try:
            values = json.loads(line)
            if values.get("schema") == SCHEMA:
                self.settings[values["digest"]] = values["settings"]
            else:
                entry = Entry(**{f.name: values[f.name] for f in fields(Entry)})
                self.entries[entry.name] = entry
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{self.path}, line {number}: is no journal of a batch; choose another --out") from error

    def begin(self, settings: dict[str, Any]) -> str:
        """Note the settings of what follows, once; returns their `digest`. Raises OSError."""
        current = digest(settings)
        if current not in self.settings:
            self.settings[current] = settings
            self._append({"schema": SCHEMA, "digest": current, "settings": settings})
        return current

    def add(self, entry: Entry) -> None:
        """Note what came of a recording, for good. Raises OSError."""
        self.entries[entry.name] = entry
        self._append(asdict(entry))

    def _append(self, values: dict[str, Any]) -> None:
        with open(self.path, "ab") as file:
            file.write(json.dumps(values).encode() + b"\n")  # a file's name that is no text has an escape, too
            file.flush()
            os.fsync(file.fileno())


def digest(settings: Mapping[str, Any]) -> str:
    """SHA-256 of ``settings``, whatever the order of the keys."""
    return hashlib.sha256(orjson.dumps(dict(settings), option=orjson.OPT_SORT_KEYS)).hexdigest()


def name_all(found: Sequence[tuple[str, str]], journal: Journal) -> list[Recording]:
    """Each recording with its name: the one it had, also where it has moved since; else one that nobody has."""
    known = {entry.path: entry.name for entry in journal.entries.values()}
    here, names, named = {path for path, _ in found}, Names(), dict[str, str]()
    for path, wanted in found:
        owner = journal.entries.get(wanted)
        if path in known:
            named[path] = known[path]
        elif owner and owner.path not in here and not os.path.exists(owner.path) and unchanged(path, owner):
            named[path] = wanted
    for name in dict.fromkeys([*journal.entries, *named.values()]):
        names.take(name)
    return [Recording(path, named.get(path) or names.take(wanted)) for path, wanted in found]


def unchanged(path: str, entry: Entry) -> bool:
    try:
        return fingerprint(path) == entry.fingerprint
    except OSError:
        return False


def left_to_do(
    recordings: Sequence[Recording], journal: Journal, out: Path, settings: Mapping[str, Any], redo: bool
) -> list[Recording]:
    """Those that are not done, have changed since, or miss a result; with ``redo`` also those done with other settings.

    Raises:
        BadInput: there are results of other settings, and ``redo`` is off.
    """
    current = digest(settings)
    other = [entry for entry in journal.entries.values() if entry.state == "done" and entry.settings != current]
    if other and not redo:
        changed = differences(journal.settings.get(other[-1].settings, {}), settings)
        raise BadInput(
            f"{out}: holds {len(other)} results of other settings ({changed}); give --redo to replace them, "
            "or another --out to keep them"
        )

    def done(recording: Recording) -> bool:
        entry = journal.entries.get(recording.name)
        return (
            entry is not None
            and entry.state == "done"
            and entry.settings == current
            and all((out / entry.name / output).exists() for output in entry.outputs)
            and unchanged(recording.path, entry)
        )

    return [recording for recording in recordings if not done(recording)]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What has changed, in a few words."""
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    words = [f"{key} {shown(before.get(key))}, now {shown(now.get(key))}" for key in keys[:DIFFERENCES_SHOWN]]
    return "; ".join(words + ["and more"] * (len(keys) > DIFFERENCES_SHOWN)) or "they are not known any more"


def shown(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 40 else text[:12] + "…" + text[-1]


# -- Having it done ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """A recording that is done, its results under their names; as in `Entry`."""

    fingerprint: Fingerprint
    frames: int
    dropped: int
    invalid: dict[str, int]
    wall_s: float
    problems: list[str]
    outputs: list[str]


@dataclass(frozen=True)
class Failure:
    """An attempt that failed, in one sentence; ``final`` where another one would fail, too."""

    sentence: str
    final: bool = False


@dataclass(frozen=True)
class News:
    """Of a recording: how many frames of it are done, and at the end what came of it."""

    recording: Recording
    worker: str
    frames: int
    end: Outcome | Failure | None = None


class Workers(Protocol):
    """Those who do the work, on this machine or others."""

    @property
    def free(self) -> int:
        """How many wait for work."""

    def give(self, recording: Recording) -> None:
        """Have it done by one that is free; news follow."""

    def wait(self, timeout_s: float) -> list[News]:
        """What has happened, after ``timeout_s`` at the latest. Raises FreespaceError, ModelError: nobody can work at all."""

    def abandon(self, recording: Recording) -> None:
        """End the one that has it, without news of it; another takes its place."""

    def close(self) -> None:
        """End all of them at once, whatever they do."""


@dataclass
class Attempts:
    count: int = 0
    errors: list[str] = field(default_factory=list)


class Patience:
    """How long it is waited for a worker that is ready; limits as in `do_all`."""

    def __init__(self, quiet_s: float, start_s: float) -> None:
        self._quiet_s, self._start_s = quiet_s, start_s
        self._since, self._said = time.monotonic(), False

    def look(self, ready: bool) -> None:
        """``ready``: whether somebody works, or nobody has to. Raises FreespaceError: nobody has for too long."""
        now = time.monotonic()
        if ready:
            self._since, self._said = now, False
        elif now - self._since > self._start_s:
            raise FreespaceError(f"no worker was ready within {self._start_s:g} s: loading the network hangs, or finds no room")
        elif now - self._since > self._quiet_s and not self._said:
            self._said = True
            remark(f"waiting for a worker that is ready, up to {self._start_s:g} s: the network is loaded, or compiled")


def do_all(
    todo: Sequence[Recording],
    workers: Workers,
    journal: Journal,
    settings: str,
    stopped: Callable[[], bool],
    tell: Callable[[News], None],
    *,
    retries: int = 2,
    pause_s: float = 1.0,
    stall_s: float = 300.0,
    quiet_s: float = QUIET_S,
    start_s: float = START_S,
) -> list[Entry]:
    """Have every recording done, each with as many retries, after pauses that double; what fails stops no other.

    Args:
        settings: their `digest`, for the journal.
        stopped: asked all the time; then what is not finished is left as it was.
        tell: hears all news.
        pause_s: before the first retry, seconds.
        stall_s: a recording without a further frame for so long, seconds, has failed.
        quiet_s, start_s: while no worker is ready: after so many seconds that is said on stderr, or the batch has failed.

    Returns:
        what was noted, in the order in which it came.

    Raises:
        FreespaceError, ModelError: nobody can work, or the journal cannot be written.
    """
    patience = Patience(quiet_s, start_s)
    waiting, later = deque(todo), list[tuple[float, Recording]]()
    attempts = {recording: Attempts() for recording in todo}
    heard: dict[Recording, tuple[float, int]] = {}
    noted: list[Entry] = []

    def hear(news: News) -> None:
        now, recording = time.monotonic(), news.recording
        if news.end is None:
            if news.frames > heard[recording][1]:
                heard[recording] = now, news.frames
            tell(news)
            return
        del heard[recording]
        tried = attempts[recording]
        tried.count += 1
        if isinstance(news.end, Failure):
            tried.errors.append(news.end.sentence)
            if not news.end.final and tried.count <= retries:
                later.append((now + pause_s * 2 ** (tried.count - 1), recording))
                return
        entry = entry_of(news, tried, settings)
        try:
            journal.add(entry)
        except OSError as error:
            raise FreespaceError(f"{journal.path}: cannot be written: {error.strerror}") from error
        noted.append(entry)
        tell(news)

    while (waiting or later or heard) and not stopped():
        now = time.monotonic()
        waiting.extend(recording for due, recording in later if due <= now)
        later = [(due, recording) for due, recording in later if due > now]
        while waiting and workers.free:
            recording = waiting.popleft()
            heard[recording] = now, 0
            workers.give(recording)
        patience.look(ready=bool(heard) or not waiting)
        for news in workers.wait(WAKE_S):
            hear(news)
        now = time.monotonic()
        for recording in [r for r, (last, _) in heard.items() if now - last > stall_s]:
            frames = heard[recording][1]
            workers.abandon(recording)
            hear(News(recording, "", frames, Failure(f"no frame for {stall_s:g} s after the first {frames}")))
    return noted


def entry_of(news: News, tried: Attempts, settings: str) -> Entry:
    """The line for what has come to its end."""
    end = news.end if isinstance(news.end, Outcome) else None
    mark = end.fingerprint if end else last_seen(news.recording.path)
    return Entry(
        name=news.recording.name,
        path=news.recording.path,
        size=mark.size,
        mtime_ns=mark.mtime_ns,
        head=mark.head,
        settings=settings,
        state="done" if end else "failed",
        attempts=tried.count,
        finished=round(time.time(), 3),
        worker=news.worker,
        frames=end.frames if end else news.frames,
        fps=round(end.frames / end.wall_s, 2) if end and end.wall_s else 0.0,
        dropped=end.dropped if end else 0,
        invalid=end.invalid if end else {},
        wall_s=round(end.wall_s, 4) if end else 0.0,
        errors=[*tried.errors, *(end.problems if end else [])],
        outputs=end.outputs if end else [],
    )


def last_seen(path: str) -> Fingerprint:
    try:
        return fingerprint(path)
    except OSError:
        return Fingerprint(0, 0, "")


def clear_unfinished(out: Path) -> None:
    """Remove what an earlier run, or this one, did not finish."""
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
