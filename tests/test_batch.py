"""Archives: what is found and how it is called, what is done again and what is not, and what kills and interruptions cost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
import pytest
from conftest import cli_environment, road_image, road_video, write_video
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from perception import batch as archive
from perception import batch_command, batch_ray
from perception.batch import (
    JOURNAL,
    LOCK,
    UNFINISHED,
    Entry,
    Failure,
    Fingerprint,
    Journal,
    Names,
    News,
    Outcome,
    Recording,
    do_all,
    find_recordings,
    folded,
    left_to_do,
    name_all,
)
from perception.batch_command import Batch, run_batch
from perception.batch_worker import LocalWorkers
from perception.config import Config, load_config
from perception.errors import BadInput, FreespaceError
from perception.freespace import Freespace

NEVER = threading.Event()
LONG = 700  # frames of a film that takes seconds
WAIT_S = 60.0


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recordings: ``day1/front.mp4``, 10 frames, ``day2/front.mp4``, 5."""
    folder = tmp_path_factory.mktemp("films")
    for day, count in (("day1", 10), ("day2", 5)):
        (folder / day).mkdir()
        road_video(folder / day / "front.mp4", count)
    return folder


@pytest.fixture(scope="module")
def long_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("long") / "long.mp4", [road_image(64, 32)] * LONG)


def settings(model: Path, **overrides: Any) -> Config:
    fixed = {"engine.model": str(model), "engine.backend": "onnxruntime", "engine.threads": 1}
    return load_config(None, {**fixed, **{key.replace("__", "."): value for key, value in overrides.items()}})


def run(given: Sequence[object], out: Path, config: Config, **options: Any) -> bool:
    return run_batch(Batch([str(g) for g in given], out, workers=options.pop("workers", 1), **options), config, NEVER)


def lines(out: Path) -> list[dict[str, Any]]:
    """Of the journal, without those about settings."""
    return [line for line in map(json.loads, (out / JOURNAL).read_text().splitlines()) if "name" in line]


def results(out: Path, name: str) -> list[Freespace]:
    return [Freespace.from_json(line) for line in (out / name / "polygons.jsonl").read_text().splitlines()]


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {WAIT_S} s for {what}")


# -- What is found ----------------------------------------------------------------------------------------------------


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_a_folder_gives_its_videos_by_their_place_in_it(tmp_path: Path) -> None:
    a = tmp_path / "a"
    out = a / "results"
    touch(a / "x.mp4", a / "d/Y.MKV", a / "d/notes.txt", a / ".hidden.mp4", a / ".trash/z.mp4", out / "x.mp4/overlay.mp4")
    assert find_recordings([str(a)], out) == [(str(a / "x.mp4"), "x.mp4"), (str(a / "d/Y.MKV"), "d/Y.MKV")]


def test_bags_are_found_and_a_folder_that_cannot_be_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path / "a/a_0.db3", tmp_path / "b/b_0.mcap", tmp_path / "locked/c.mp4")
    scandir = os.scandir

    def guarded(path: str) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    found = find_recordings([str(tmp_path)], tmp_path / "out")
    assert [name for _, name in found] == ["a/a_0.db3", "b/b_0.mcap"]
    assert f"{tmp_path / 'locked'}: is left out, it cannot be read: Permission denied" in capfd.readouterr().err


def test_files_and_lists_give_names_below_the_folder_they_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "d/1/f.mp4", tmp_path / "d/2/f.mp4", tmp_path / "d/odd.raw")
    (tmp_path / "list.txt").write_text("# drives\n\nd/2/f.mp4\n  d/1/f.mp4\n")
    found = find_recordings(["d/odd.raw", "@list.txt", "d/1/f.mp4"], tmp_path / "out")
    assert found == [
        (str(tmp_path / "d/odd.raw"), "odd.raw"),
        (str(tmp_path / "d/2/f.mp4"), "2/f.mp4"),
        (str(tmp_path / "d/1/f.mp4"), "1/f.mp4"),
    ]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("none.mp4", "no such file"),
        ("empty", "no videos"),
        ("@none.txt", "list cannot be read"),
        ("out/in.mp4", "lies in"),
        ("pipe", "is no file"),
    ],
)
def test_what_cannot_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "out/in.mp4")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match=message):
        find_recordings([entry], tmp_path / "out")


@given(st.lists(st.lists(st.sampled_from(["a", "A", "b", "a~2", "é", "e\u0301", ".part", JOURNAL]), min_size=1, max_size=3)))
def test_no_name_is_another_ones_or_lies_in_it(wanted: list[list[str]]) -> None:
    names = Names()
    taken = [folded(names.take("/".join(parts))) for parts in wanted]
    assert len(set(taken)) == len(taken)
    for a in taken:
        assert not any(b.startswith(f"{a}/") for b in taken)
        assert a.split("/")[0] not in (UNFINISHED, JOURNAL)


def entry(path: Path, name: str, **values: Any) -> Entry:
    mark = archive.fingerprint(str(path)) if path.exists() else Fingerprint(1, 2, "3")
    known = {"settings": "s", "state": "done", "attempts": 1, "finished": 0.0, **values}
    return Entry(name, str(path), mark.size, mark.mtime_ns, mark.head, **known)


def test_two_folders_with_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    touch(tmp_path / "a/f.mp4", tmp_path / "b/f.mp4")
    journal = Journal(tmp_path / "out")
    found = find_recordings([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "out")
    assert [r.name for r in name_all(found, journal)] == ["f.mp4", "f.mp4~2"]
    journal.add(entry(tmp_path / "b/f.mp4", "f.mp4~2"))  # names stay, whatever comes beside them, and in which order
    assert [r.name for r in name_all(found[::-1], journal)] == ["f.mp4~2", "f.mp4"]


def test_an_archive_that_has_moved_keeps_its_names(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    touch(tmp_path / "old/f.mp4")
    journal = Journal(tmp_path / "out")
    journal.add(entry(tmp_path / "old/f.mp4", "f.mp4"))
    (tmp_path / "old").rename(tmp_path / "new")
    found = find_recordings([str(tmp_path / "new")], tmp_path / "out")
    assert [r.name for r in name_all(found, journal)] == ["f.mp4"]
    os.utime(tmp_path / "new/f.mp4", ns=(1, 1))  # another file, as far as anybody knows
    assert [r.name for r in name_all(found, journal)] == ["f.mp4~2"]


# -- The journal ------------------------------------------------------------------------------------------------------


def test_a_line_that_was_cut_off_is_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    now = journal.begin({"polygons.threshold": 0.5})
    journal.add(entry(tmp_path / "a", "a", invalid={"image_dark": 3}, errors=["x"]))
    journal.add(entry(tmp_path / "b", "b"))
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-7])
    again = Journal(tmp_path)
    assert again.entries == {"a": journal.entries["a"]}
    assert again.settings == {now: {"polygons.threshold": 0.5}}
    again.add(journal.entries["b"])
    assert journal.path.read_bytes() == whole


@pytest.mark.parametrize("text", ["[]\n", "hello\n", '{"name": "a"}\n', "3\n"])
def test_a_journal_that_is_none_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    (tmp_path / JOURNAL).write_text(text)
    with pytest.raises(BadInput, match="line 1: is no journal"):
        Journal(tmp_path)
    assert (tmp_path / JOURNAL).read_text() == text


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda film, out: None, False),
        (lambda film, out: film.write_bytes(b"longer"), True),
        (lambda film, out: os.utime(film, ns=(5, 5)), True),
        (lambda film, out: (film.write_bytes(b"y"), os.utime(film, ns=(7, 7))), True),  # only its content tells
        (lambda film, out: (out / "f.mp4/polygons.jsonl").unlink(), True),
    ],
)
def test_what_has_changed_is_done_again(tmp_path: Path, change: Callable[[Path, Path], object], again: bool) -> None:
    film, out = tmp_path / "f.mp4", tmp_path / "out"
    touch(film, out / "f.mp4/polygons.jsonl")
    os.utime(film, ns=(7, 7))
    journal = Journal(out)
    same = {"polygons.threshold": 0.5}
    journal.add(entry(film, "f.mp4", outputs=["polygons.jsonl"], settings=journal.begin(same)))
    change(film, out)
    recording = Recording(str(film), "f.mp4")
    assert left_to_do([recording], journal, out, same, redo=False) == ([recording] if again else [])


# -- The loop, with workers whose time and mishaps are known -----------------------------------------------------------


class Scripted:
    """One worker; what happens to a recording's attempts is written down: outcomes, failures, None for one that hangs."""

    def __init__(self, script: dict[str, list[Outcome | Failure | None]]) -> None:
        self.script, self.given, self.abandoned = script, list[tuple[str, float]](), list[str]()
        self.recording: Recording | None = None

    @property
    def free(self) -> int:
        return int(self.recording is None)

    def give(self, recording: Recording) -> None:
        self.recording = recording
        self.given.append((recording.name, time.monotonic()))

    def wait(self, timeout_s: float) -> list[News]:
        end = self.script[self.recording.name].pop(0) if self.recording else None
        if not self.recording or end is None:
            time.sleep(min(timeout_s, 0.01))
            if self.recording:
                self.script[self.recording.name].insert(0, None)
            return []
        news, self.recording = News(self.recording, "me", 3, end), None
        return [news]

    def abandon(self, recording: Recording) -> None:
        assert recording == self.recording
        self.script[recording.name].pop(0)
        self.abandoned.append(recording.name)
        self.recording = None

    def close(self) -> None: ...


OUTCOME = Outcome(Fingerprint(1, 2, "3"), 30, 1, {"image_dark": 2}, 1.5, ["frame 4"], ["polygons.jsonl"])


def do(tmp_path: Path, script: dict[str, list[Outcome | Failure | None]], **options: Any) -> tuple[Scripted, list[Entry]]:
    workers = Scripted(script)
    todo = [Recording(str(tmp_path / name), name) for name in script]
    noted = do_all(todo, workers, Journal(tmp_path), "s", lambda: False, lambda news: None, **options)
    assert list(Journal(tmp_path).entries.values()) == noted
    return workers, noted


def test_retries_come_after_pauses_that_double_and_hold_up_nobody(tmp_path: Path) -> None:
    script = {"a": [Failure("no"), Failure("still no"), OUTCOME], "b": [OUTCOME]}
    workers, noted = do(tmp_path, script, pause_s=0.2)
    assert [name for name, _ in workers.given] == ["a", "b", "a", "a"]
    times = [at for name, at in workers.given if name == "a"]
    assert times[1] - times[0] >= 0.2
    assert times[2] - times[1] >= 0.4
    last = noted[-1]
    assert (last.name, last.state, last.attempts, last.errors) == ("a", "done", 3, ["no", "still no", "frame 4"])
    assert (last.frames, last.fps, last.dropped, last.invalid) == (30, 20.0, 1, {"image_dark": 2})


def test_no_more_retries_than_asked_for_and_none_where_it_is_of_no_use(tmp_path: Path) -> None:
    script = {"a": [Failure("1"), Failure("2")], "b": [Failure("no video", final=True)], "c": [OUTCOME]}
    workers, noted = do(tmp_path, script, retries=1, pause_s=0.01)
    assert {e.name: (e.state, e.attempts) for e in noted} == {"a": ("failed", 2), "b": ("failed", 1), "c": ("done", 1)}
    assert sorted(name for name, _ in workers.given) == ["a", "a", "b", "c"]


def test_one_that_hangs_is_given_up(tmp_path: Path) -> None:
    workers, noted = do(tmp_path, {"a": [None, None], "b": [OUTCOME]}, retries=0, stall_s=0.1)
    assert workers.abandoned == ["a"]
    assert [(e.name, e.state) for e in noted] == [("a", "failed"), ("b", "done")]
    assert "no frame for 0.1 s" in noted[0].errors[0]


class NeverReady(Scripted):
    """Its worker loads the network for ever."""

    @property
    def free(self) -> int:
        return 0


def test_a_worker_that_is_never_ready_is_said_and_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    todo = [Recording(str(tmp_path / "a"), "a")]
    with pytest.raises(FreespaceError, match=r"no worker was ready within 0\.2 s"):
        do_all(
            todo,
            NeverReady({"a": [OUTCOME]}),
            Journal(tmp_path),
            "s",
            lambda: False,
            lambda news: None,
            quiet_s=0.05,
            start_s=0.2,
        )
    assert capsys.readouterr().err.count("waiting for a worker that is ready") == 1


# -- The whole, with real processes ------------------------------------------------------------------------------------


def test_a_batch_then_nothing_to_do_then_other_settings(
    films: Path, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, config = tmp_path / "out", settings(tiny_model)
    broken = tmp_path / "films/broken.mp4"
    shutil.copytree(films, tmp_path / "films")
    broken.write_bytes(b"no video at all" * 100)
    with pytest.raises(FreespaceError, match=r"1 of 3 files failed: .*broken\.mp4 \(cannot be opened as a video"):
        run([tmp_path / "films"], out, config, masks=True, overlay=True)
    assert {line["name"]: (line["state"], line["frames"]) for line in lines(out)} == {
        "broken.mp4": ("failed", 0),
        "day1/front.mp4": ("done", 10),
        "day2/front.mp4": ("done", 5),
    }
    first = results(out, "day1/front.mp4")
    assert [r.seq for r in first] == list(range(10))
    assert first[0].source == str(tmp_path / "films/day1/front.mp4")
    assert sum(p.area_px for p in first[0].polygons) == pytest.approx(128 * 64 / 2, rel=0.02)  # the road is the lower half
    masks = sorted((out / "day2/front.mp4/masks").iterdir())
    assert [np.count_nonzero(cv2.imread(str(m), cv2.IMREAD_GRAYSCALE)) for m in masks] == [
        pytest.approx(128 * 64 / 2, rel=0.02)
    ] * 5
    assert (out / "day1/front.mp4/overlay.mp4").stat().st_size > 1000
    assert not (out / UNFINISHED).exists()
    assert not (out / "broken.mp4").exists()
    printed = capfd.readouterr().out
    assert "2 files done, 15 frames; 1 failed" in printed

    broken.unlink()
    before = [path.stat().st_mtime_ns for path in sorted(out.rglob("*.jsonl"))]
    assert not run([tmp_path / "films"], out, config, masks=True, overlay=True)
    assert [path.stat().st_mtime_ns for path in sorted(out.rglob("*.jsonl"))] == before
    assert "nothing is left to do, 2 done before" in capfd.readouterr().out

    (out / "day1/front.mp4/note.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"outputs .*; polygons\.plane \"freespace\", now \"ego\"\); give --redo"):
        run([tmp_path / "films"], out, settings(tiny_model, polygons__plane="ego"))
    assert [path.stat().st_mtime_ns for path in sorted(out.rglob("*.jsonl"))] == before
    assert not run([tmp_path / "films"], out, settings(tiny_model, polygons__plane="ego"), redo=True)
    assert {p.plane for p in results(out, "day1/front.mp4")[0].polygons} == {"ego"}
    assert sorted(p.name for p in (out / "day1/front.mp4").iterdir()) == ["note.txt", "polygons.jsonl"]


@pytest.mark.parametrize(
    ("cores", "given", "workers", "threads"),
    [
        (1, {}, 1, 1),
        (2, {}, 1, 2),
        (8, {}, 4, 2),
        (8, {"workers": 2}, 2, 4),
        (2, {"workers": 5}, 5, 1),
        (9, {"threads": 3}, 3, 3),
    ],
)
def test_cores_are_divided(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, cores: int, given: dict[str, int], workers: int, threads: int
) -> None:
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(batch_command, "cores", lambda: cores)
    monkeypatch.setattr(batch_command, "LocalWorkers", lambda c, out, wanted, count: begun.append((count, c.engine.threads)))
    batch = Batch([], Path("out"), workers=given.get("workers", 0))
    config = batch_command.checked(batch, settings(tiny_model, engine__threads=given.get("threads", 0)))
    batch_command.open_workers(batch, config, 1000)
    batch_command.open_workers(batch, config, 1)
    assert begun == [(workers, threads), (1, threads)]


def test_a_batch_takes_only_what_fits(films: Path, tiny_model: Path, tmp_path: Path) -> None:
    for key in ("output__polygons", "capture__source", "loop__state"):
        with pytest.raises(BadInput, match="leave"):
            run([films], tmp_path / "out", settings(tiny_model, **{key: "x"}))
    assert not (tmp_path / "out").exists()


def children(pid: int) -> list[int]:
    """Of a process, those that are workers of a batch."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(c) for c in found if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    except OSError:
        return []


SCRIPT = """
import sys, threading
from pathlib import Path
from perception.batch_command import Batch, run_batch
from perception.cli import stop_on_signal
from perception.config import load_config
if __name__ == "__main__":
    model, out, *given = sys.argv[1:]
    config = load_config(None, {"engine.model": model, "engine.backend": "onnxruntime", "engine.threads": 1})
    with stop_on_signal() as stop:
        sys.exit(130 if run_batch(Batch(given, Path(out), workers=2), config, stop) else 0)
"""


@pytest.fixture
def begin(tmp_path: Path, tiny_model: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a batch with two workers in a process of its own."""
    (tmp_path / "script.py").write_text(SCRIPT)
    begun: list[subprocess.Popen[str]] = []

    def start(*given: Path) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "script.py"), str(tiny_model), str(tmp_path / "out"), *map(str, given)]
        pipe = subprocess.PIPE
        begun.append(subprocess.Popen(command, env=cli_environment(tmp_path), stdout=pipe, stderr=pipe, text=True))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def works_on(out: Path, name: str) -> bool:
    part = out / UNFINISHED / name / ".polygons.part.jsonl"
    return part.exists() and part.stat().st_size > 10_000


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the workers in /proc")


@linux
def test_a_worker_that_is_killed_loses_its_recording_alone(
    films: Path, long_film: Path, begin: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    batch = begin(long_film, *sorted(films.rglob("*.mp4")))
    names = {Path(r).name: n for r, n in find_recordings([str(long_film), *map(str, sorted(films.rglob("*.mp4")))], out)}
    name = names["long.mp4"]
    until(lambda: (out / JOURNAL).exists() and len(lines(out)) == 2 and works_on(out, name), "the short ones and the long one")
    done = lines(out)
    workers = children(batch.pid)
    assert len(workers) == 2
    for worker in workers:  # one of them has it
        os.kill(worker, signal.SIGKILL)
    stdout, stderr = batch.communicate(timeout=WAIT_S)
    assert batch.returncode == 0, stderr
    assert lines(out)[:2] == done, "what was finished is not touched"
    (last,) = lines(out)[2:]
    assert (last["name"], last["state"], last["attempts"], last["frames"]) == (name, "done", 2, LONG)
    assert last["errors"] == ["its worker was ended by SIGKILL"]
    assert [r.seq for r in results(out, name)] == list(range(LONG))
    assert int(last["worker"].rpartition(":")[2]) not in workers
    assert "3 files done" in stdout


@linux
def test_ctrl_c_then_a_killed_batch_then_the_rest(
    films: Path, long_film: Path, begin: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = [*sorted(films.rglob("*.mp4")), long_film]
    name = next(n for p, n in find_recordings([str(g) for g in given], out) if p == str(long_film))

    batch = begin(*given)
    until(lambda: (out / JOURNAL).exists() and len(lines(out)) == 2 and works_on(out, name), "the long one alone")
    workers = children(batch.pid)
    batch.send_signal(signal.SIGINT)
    stdout, stderr = batch.communicate(timeout=WAIT_S)
    assert batch.returncode == 130, stderr
    assert "2 files done, 15 frames; 0 failed; 1 left" in stdout
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert not (out / UNFINISHED).exists()
    assert not (out / name).exists(), "never a result that is not whole"
    done = lines(out)

    batch = begin(*given)
    until(lambda: works_on(out, name), "the long one")
    workers = children(batch.pid)
    batch.kill()
    batch.communicate(timeout=WAIT_S)
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), "its workers to follow")
    assert lines(out) == done

    batch = begin(*given)
    assert batch.wait(WAIT_S) == 0
    assert [line["name"] for line in lines(out)] == [*(line["name"] for line in done), name]
    assert len(results(out, name)) == LONG


def test_two_batches_never_work_in_one_folder(films: Path, tiny_model: Path, tmp_path: Path) -> None:
    with FileLock(tmp_path / LOCK), pytest.raises(BadInput, match="another batch is at work"):
        run([films], tmp_path, settings(tiny_model))
    assert not (tmp_path / JOURNAL).exists()


def test_workers_that_cannot_begin_say_why(tiny_model: Path, tmp_path: Path) -> None:
    from engine.contract import ModelError

    workers = LocalWorkers(settings(tiny_model, engine__precision="fp16"), tmp_path, ["polygons"], 1)
    try:
        with pytest.raises(ModelError, match="fp16"):
            until(lambda: workers.wait(0.2), "news")
    finally:
        workers.close()


def test_a_file_that_changes_while_it_is_read(
    films: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perception import batch_worker

    film = tmp_path / "growing.mp4"
    shutil.copy(films / "day1/front.mp4", film)
    worker = batch_worker.Worker(settings(tiny_model), str(tmp_path / "out"), ["polygons"])
    end = worker.do(Recording(str(film), "growing.mp4"), lambda result: os.utime(film, ns=(1, result.seq)))
    assert isinstance(end, Failure)
    assert "was changed while it was read" in end.sentence
    assert not (tmp_path / "out/growing.mp4").exists()
    end = worker.do(Recording(str(film), "growing.mp4"), lambda result: None)
    assert isinstance(end, Outcome)
    assert (end.frames, end.outputs) == (10, ["polygons.jsonl"])


# -- On a cluster -----------------------------------------------------------------------------------------------------


def listening() -> set[str]:
    """Addresses other than this machine's own on which processes of this one's descendants listen, as in /proc/net."""
    mine = {os.getpid()}
    stats = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stats[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    while more := {pid for pid, parent in stats.items() if parent in mine} - mine:
        mine |= more
    sockets = set()
    for pid in mine:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(os.readlink(descriptor).removeprefix("socket:[").rstrip("]"))
            except OSError:
                continue
    found = set()
    for table, own in (("tcp", "0100007F"), ("tcp6", "0000000000000000FFFF00000100007F")):
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = row.split()
            address = fields[1].partition(":")[0]
            if fields[3] == "0A" and fields[9] in sockets and address not in (own, "0" * 24 + "01000000"):
                found.add(fields[1])
    return found


with_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")


@linux
@with_ray
def test_on_a_ray_cluster_of_this_machine(
    films: Path, long_film: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(batch_ray.LOOPBACK, "")  # taken back afterwards

    out, killed = tmp_path / "out", list[int]()
    outside = set[str]()
    begun = batch_ray.RayWorkers.wait

    def kill_once(self: batch_ray.RayWorkers, timeout_s: float) -> list[News]:
        busy = [a for a in self._actors if a.recording and a.recording.path == str(long_film)]
        if busy and not killed and works_on(out, busy[0].recording.name):
            outside.update(listening())
            killed.append(int(busy[0].where.rpartition(":")[2]))
            os.kill(killed[0], signal.SIGKILL)
        return begun(self, timeout_s)

    monkeypatch.setattr(batch_ray.RayWorkers, "wait", kill_once)
    handler = signal.getsignal(signal.SIGTERM)
    files = [long_film, *sorted(films.rglob("*.mp4"))]
    assert not run(files, out, settings(tiny_model), ray="local", workers=2)
    found = {line["name"].rpartition("/")[2]: line for line in lines(out)}
    assert {(line["state"], line["frames"]) for line in lines(out)} == {("done", LONG), ("done", 10), ("done", 5)}
    assert found["long.mp4"]["attempts"] == 2
    assert "died" in found["long.mp4"]["errors"][0]
    assert [line["attempts"] for line in lines(out) if "long" not in line["name"]] == [1, 1]
    assert not sys.modules["ray"].is_initialized()
    assert signal.getsignal(signal.SIGTERM) is handler
    assert outside == set()
    assert not (out / UNFINISHED).exists()


def test_actors_are_as_many_as_the_machines_have_room_for() -> None:
    small, big, gpus = {"CPU": 1.0}, {"CPU": 9.0, "memory": 1e9}, {"CPU": 4.0, "GPU": 2.0}
    assert [batch_ray.room_on(machine, 2, gpus=False) for machine in (small, big, gpus, {})] == [0, 4, 2, 0]
    assert [batch_ray.room_on(machine, 1, gpus=True) for machine in (small, big, gpus)] == [0, 0, 4]
    assert batch_ray.room_on(gpus, 2, gpus=True) == 2


@linux
@with_ray
def test_a_cluster_whose_machines_are_too_small(
    films: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(batch_ray.LOOPBACK, "0")  # another test may have imported ray; taken back afterwards
    with pytest.raises(BadInput, match=r"no machine of the cluster has the 1000 processor cores .*smaller --threads"):
        run([films], tmp_path / "out", settings(tiny_model, engine__threads=1000), ray="local")
    assert not sys.modules["ray"].is_initialized()


@with_ray
def test_no_cluster_there(films: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no cluster answers"):
        run([films], tmp_path / "out", settings(tiny_model), ray="127.0.0.1:1")
    with pytest.raises(BadInput, match="give HOST:PORT"):
        run([films], tmp_path / "out", settings(tiny_model), ray="somewhere")


def test_a_name_that_is_no_text_is_one_like_any_other(
    films: Path, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, archive, out = os.fsdecode(b"caf\xe9.mp4"), tmp_path / "films", tmp_path / "out"
    archive.mkdir()
    try:
        shutil.copy(films / "day2/front.mp4", archive / name)
    except OSError:
        pytest.skip("this file system has names in UTF-8 alone")
    assert not run([archive], out, settings(tiny_model))
    assert [(line["name"], line["state"], line["frames"]) for line in lines(out)] == [(name, "done", 5)]
    assert "1 files done, 5 frames; 0 failed" in capfd.readouterr().out
    assert not run([archive], out, settings(tiny_model))
    assert "nothing is left to do, 1 done before" in capfd.readouterr().out


def test_the_journal_is_plain_json(films: Path, tiny_model: Path, tmp_path: Path) -> None:
    run([films / "day2/front.mp4"], tmp_path, settings(tiny_model), workers=0)
    first, second = map(orjson.loads, (tmp_path / JOURNAL).read_bytes().splitlines())
    assert first["schema"] == "freespace-batch/1"
    assert first["settings"]["polygons.threshold"] == 0.5
    assert second["settings"] == first["digest"]
    assert second["fps"] == pytest.approx(second["frames"] / second["wall_s"], rel=0.02)
