"""Lines of results: whole ones only, none twice, whatever happens to the run or to the file."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from conftest import make_output, parts_in, road_image
from hypothesis import example, given, settings
from hypothesis import strategies as st

from perception.causes import Cause, Code
from perception.errors import BadInput
from perception.freespace import Freespace
from perception.sinks.base import part_of
from perception.sinks.jsonl import JsonlSink, check_series, last_line, numbered, series

BASE = make_output(road_image()).result
LINE = len(BASE.to_json()) + 1


def live(seq: int, dropped: int = 0) -> Freespace:
    return replace(BASE, seq=seq, clock="system", stamp_ns=10**18 + seq, source="rtsp://camera", dropped=dropped)


def recorded(seq: int, source: str = "clip.mp4") -> Freespace:
    return replace(BASE, seq=seq, source=source)


def put(sink: JsonlSink, results: list[Freespace], close: bool = True) -> JsonlSink:
    for result in results:
        sink.write_without_frame(result)
    if close:
        sink.close()
    return sink


def results(*paths: Path) -> list[Freespace]:
    return [Freespace.from_json(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def numbers(*paths: Path) -> list[int]:
    return [result.seq for result in results(*paths)]


# -- Rotation ----------------------------------------------------------------------------------------------------------


def test_series_holds_whole_lines_within_the_limit(tmp_path: Path) -> None:
    limit_mb = 3.5 * LINE / 1e6
    sink = put(JsonlSink(tmp_path / "drive.jsonl", limit_mb), [recorded(i) for i in range(8)])
    files = [tmp_path / f"drive.{n:04d}.jsonl" for n in (1, 2, 3)]
    assert sorted(tmp_path.iterdir()) == files
    assert [numbers(file) for file in files] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert all(file.stat().st_size <= limit_mb * 1e6 for file in files)
    assert sink.made == f"polygons {files[0]} to {files[2]}"


def test_files_of_a_series_are_named_as_soon_as_they_are_whole(tmp_path: Path) -> None:
    put(JsonlSink(tmp_path / "drive.jsonl", 1.5 * LINE / 1e6), [recorded(0), recorded(1)], close=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".drive.0002.part.jsonl", "drive.0001.jsonl"]


def test_line_larger_than_the_limit_has_a_file_of_its_own(tmp_path: Path) -> None:
    put(JsonlSink(tmp_path / "drive.jsonl", 1e-6), [recorded(0), recorded(1)])
    assert [numbers(tmp_path / f"drive.000{n}.jsonl") for n in (1, 2)] == [[0], [1]]


def test_results_without_a_frame_are_written_too(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "p.jsonl")
    sink.write(make_output(road_image(), 4))
    cause = Cause(Code.STALLED, "no frame for 0.8 s")
    sink.write_without_frame(replace(BASE, seq=4, valid=False, state="stale", polygons=[], causes=[cause]))
    sink.close()
    first, second = results(tmp_path / "p.jsonl")
    assert (first.valid, first.seq) == (True, 4)
    assert (second.valid, second.seq, second.state, second.causes) == (False, 4, "stale", [cause])


def test_overwriting_a_series_leaves_none_of_the_old_files(tmp_path: Path) -> None:
    limit = 1.5 * LINE / 1e6
    put(JsonlSink(tmp_path / "drive.jsonl", limit), [recorded(i) for i in range(4)])
    (tmp_path / "drive.2024.txt").write_text("another file")
    put(JsonlSink(tmp_path / "drive.jsonl", limit, overwrite=True), [recorded(9)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["drive.0001.jsonl", "drive.2024.txt"]
    assert numbers(tmp_path / "drive.0001.jsonl") == [9]


def test_series_takes_no_other_files_for_its_own(tmp_path: Path) -> None:
    for name in (
        "drive.jsonl",
        "drive.1.jsonl",
        "xdrive.0002.jsonl",
        "drive.0003.part.jsonl",
        ".drive.0005.jsonl",
        "drive+0006.jsonl",
    ):
        (tmp_path / name).touch()
    assert series(tmp_path / "drive.jsonl") == []
    for name in ("drive.0007.jsonl", ".drive.0008.part.jsonl", "drive.12345.jsonl"):
        (tmp_path / name).touch()
    assert series(tmp_path / "drive.jsonl") == [7, 8, 12345]
    assert series(tmp_path / "nowhere" / "drive.jsonl") == []


# -- Going on after an end, or a crash ---------------------------------------------------------------------------------


@pytest.mark.parametrize("limit_lines", [None, 2.5], ids=["one file", "series"])
def test_live_frames_are_numbered_on(tmp_path: Path, limit_lines: float | None) -> None:
    path, limit = tmp_path / "drive.jsonl", limit_lines and limit_lines * LINE * 1.1 / 1e6
    put(JsonlSink(path, limit, append=True), [live(0), live(1, dropped=2), live(4, dropped=4)])
    put(JsonlSink(path, limit, append=True), [live(0), live(0), live(3, dropped=3)])
    put(JsonlSink(path, limit, append=True), [live(2)])
    files = [path] if limit is None else [numbered(path, n) for n in series(path)]
    assert [(r.seq, r.dropped) for r in results(*files)] == [(0, 0), (1, 2), (4, 4), (5, 4), (5, 4), (8, 7), (11, 7)]
    assert parts_in(tmp_path) == []
    assert len(files) == (1 if limit is None else 4)


def test_live_frames_that_are_numbered_on_already_stay_so(tmp_path: Path) -> None:
    put(JsonlSink(tmp_path / "p.jsonl", append=True), [live(7)])
    put(JsonlSink(tmp_path / "p.jsonl", append=True), [live(8), live(9, dropped=1)])
    assert [(r.seq, r.dropped) for r in results(tmp_path / "p.jsonl")] == [(7, 0), (8, 0), (9, 1)]


@pytest.mark.parametrize("first", [0, 8], ids=["from 0", "numbered on already"])
def test_results_before_the_first_frame_do_not_count_as_frames(tmp_path: Path, first: int) -> None:
    path = tmp_path / "p.jsonl"
    put(JsonlSink(path, append=True), [live(-1), live(0), live(7, dropped=2)])
    put(JsonlSink(path, append=True), [live(-1), live(first), live(first + 1)])
    assert numbers(path) == [-1, 0, 7, 7, 8, 9]


def test_recording_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    put(JsonlSink(path, append=True), [recorded(0), recorded(5)])
    put(JsonlSink(path, append=True), [recorded(0), recorded(5), recorded(10)])
    put(JsonlSink(path, append=True), [recorded(0, "other.mp4")])
    assert [(r.source, r.seq) for r in results(path)] == [("clip.mp4", 0), ("clip.mp4", 5), ("clip.mp4", 10), ("other.mp4", 0)]


def test_line_that_was_cut_off_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    put(JsonlSink(path), [live(0), live(1)], close=False)
    with open(part_of(path), "ab") as file:
        file.write(live(2).to_json().encode()[:50])
    sink = put(JsonlSink(path, append=True), [live(0)])
    assert sink.last is not None
    assert sink.last.seq == 1
    assert numbers(path) == [0, 1, 2]


def test_going_on_without_anything_new_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    put(JsonlSink(path), [live(0)])
    before = path.read_bytes()
    put(JsonlSink(path, append=True), [])
    assert path.read_bytes() == before
    assert parts_in(tmp_path) == []


def test_nothing_to_go_on_from_and_nothing_written_leaves_no_file(tmp_path: Path) -> None:
    put(JsonlSink(tmp_path / "p.jsonl", append=True), [])
    put(JsonlSink(tmp_path / "s.jsonl", 1.0, append=True), [])
    assert list(tmp_path.iterdir()) == []


def test_newest_file_of_a_series_may_be_empty(tmp_path: Path) -> None:
    """Killed between beginning a file and its first line."""
    path = tmp_path / "drive.jsonl"
    put(JsonlSink(path, 10 * LINE / 1e6, append=True), [live(3)])
    part_of(numbered(path, 2)).touch()
    put(JsonlSink(path, 10 * LINE / 1e6, append=True), [live(0)])
    assert [numbers(numbered(path, n)) for n in (1, 2)] == [[3], [4]]


@pytest.mark.parametrize("content", ["a note\n", "a note", '{"schema": "freespace/1"}\n', "[]\n\n"])
def test_other_files_are_not_appended_to(tmp_path: Path, content: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(BadInput, match="appended"):
        JsonlSink(path, append=True)
    assert path.read_text() == content
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_jsonl import JsonlSink, live
sink = JsonlSink(Path(sys.argv[1]), float(sys.argv[3]), append=True)
seq = 0
while True:
    sink.write_without_frame(live(seq))
    seq += 1
    if seq % 20 == 0:
        print(seq, flush=True)
"""


def test_killed_again_and_again_no_line_is_lost_or_repeated(tmp_path: Path) -> None:
    path, reported = tmp_path / "drive.jsonl", 0
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent), str(30 * LINE / 1e6)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) >= 60:
                    reported += int(line)
                    break
            process.send_signal(signal.SIGKILL)
            process.wait(20)
    put(JsonlSink(path, 30 * LINE / 1e6, append=True), [live(0)])
    found = numbers(*(numbered(path, n) for n in series(path)))
    assert found == list(range(len(found)))
    assert len(found) > reported >= 180
    assert parts_in(tmp_path) == []


def test_full_disk_keeps_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    sink = JsonlSink(path)
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(2.5 * LINE), limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            put(sink, [recorded(i) for i in range(5)], close=False)
        with pytest.raises(OSError, match="large"):
            sink.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "what could be written" in sink.made
    assert not path.exists()
    assert numbers(part_of(path)) == [0, 1]
    put(JsonlSink(path, append=True), [recorded(1), recorded(2)])
    assert numbers(path) == [0, 1, 2]


@given(
    st.lists(st.text(st.characters(exclude_characters="\n", codec="utf-8"), max_size=5), max_size=4),
    st.text("ab\0", max_size=4),
)
def test_last_line_is_that_of_splitting(tmp_path_factory: pytest.TempPathFactory, lines: list[str], torn: str) -> None:
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes("".join(line + "\n" for line in lines).encode() + torn.encode())
    whole = "".join(line + "\n" for line in lines).encode()
    assert last_line(path) == ((lines[-1] + "\n").encode() if lines else b"", len(whole))


# -- What is refused before any work -----------------------------------------------------------------------------------


def test_existing_series_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "drive.jsonl"
    numbered(path, 3).write_text("precious")
    with pytest.raises(BadInput, match=r"drive\.0003\.jsonl: exists already; give --overwrite"):
        check_series(path, overwrite=False, append=False, rotated=True)
    check_series(path, overwrite=True, append=False, rotated=True)
    check_series(path, overwrite=False, append=True, rotated=True)
    check_series(path, overwrite=False, append=False, rotated=False)
    assert numbered(path, 3).read_text() == "precious"


def test_appending_is_refused_where_it_is_not_clear_to_what(tmp_path: Path) -> None:
    path = tmp_path / "new" / "p.jsonl"
    check_series(path, overwrite=False, append=True, rotated=False)
    assert path.parent.is_dir()
    for file in (path, part_of(path)):
        check_series(path, overwrite=False, append=True, rotated=False)
        file.touch()
    with pytest.raises(BadInput, match="remove one of them"):
        check_series(path, overwrite=False, append=True, rotated=False)
    with pytest.raises(BadInput, match="exclude each other"):
        check_series(path, overwrite=True, append=True, rotated=False)
    with pytest.raises(BadInput, match="exists already"):
        check_series(path, overwrite=False, append=False, rotated=False)
    with pytest.raises(BadInput, match="is a folder"):
        check_series(tmp_path, overwrite=False, append=True, rotated=True)


# -- Reading any text --------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = json.loads(replace(BASE, valid=True, causes=[Cause(Code.LATE, "late")]).to_json())
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.sampled_from(sorted(GOOD)), inner, max_size=3)
    ),
    max_leaves=8,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a JSON value, each as the keys that lead there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, inner in items for place in places(inner, (*at, key)))]


def replaced(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = replaced(copy[at[0]], at[1:], new)
    return copy


def read(line: str) -> Freespace | None:
    try:
        return Freespace.from_json(line)
    except ValueError:
        return None


def check(result: Freespace | None) -> None:
    """Whatever was read is of the kinds that it says, and can be written and read again."""
    if result is None:
        return
    assert all(type(x) is int for x in (result.seq, result.stamp_ns, result.dropped, *result.size))
    assert type(result.valid) is bool
    assert all(type(x) is str for x in (result.source, result.frame_id, result.model, result.backend))
    assert all(ring.shape[1:] == (2,) and np.isfinite(ring).all() for p in result.polygons for ring in p.rings)
    assert all(isinstance(ms, (int, float)) for ms in result.latency_ms.values())
    assert read(result.to_json()) is not None


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40) | ANY.map(lambda value: json.dumps(value)))
@example("\ud800")
@example("[" * 5000)
@example('{"schema": "freespace/1"}')
def test_any_text_is_a_result_or_a_value_error(line: str) -> None:
    check(read(line))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(places(GOOD)), ANY)
@example(("size",), 5)
@example(("polygons", 0, "exterior"), None)
@example(("polygons", 0, "exterior"), [[None, 1]])
@example(("polygons", 0, "exterior"), [[10**400, 1]])
@example(("causes",), None)
@example(("seq",), "1")
@example(("seq",), 2**70)
@example(("latency_ms",), [])
def test_any_value_anywhere_is_a_result_or_a_value_error(at: tuple[Any, ...], new: Any) -> None:
    check(read(json.dumps(replaced(GOOD, at, new))))


def test_line_cut_anywhere_is_a_value_error() -> None:
    line = json.dumps(GOOD)
    assert read(line) is not None
    assert [end for end in range(len(line)) if read(line[:end]) is not None] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seq", "1"),
        ("seq", True),
        ("size", ["a", "b"]),
        ("state", "fine"),
        ("clock", "wall"),
        ("valid", 1),
        ("latency_ms", {"total": "1"}),
    ],
)
def test_value_of_another_kind_is_named(key: str, value: object) -> None:
    with pytest.raises(ValueError, match="total" if key == "latency_ms" else "cannot hold" if key == "size" else key):
        Freespace.from_json(orjson.dumps({**GOOD, key: value}).decode())


def test_writing_costs_little(tmp_path: Path) -> None:
    """The sink has a thread of its own, but shares a core with the loop on a small machine."""
    sink = JsonlSink(tmp_path / "p.jsonl", append=True)
    started = time.perf_counter()
    for i in range(300):
        sink.write_without_frame(live(i))
    mean_ms = (time.perf_counter() - started) / 300 * 1e3
    sink.close()
    assert mean_ms < 5
    assert os.path.getsize(tmp_path / "p.jsonl") == sum(len(live(i).to_json()) + 1 for i in range(300))
