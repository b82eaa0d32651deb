"""Recordings for Foxglove and Rerun, read back with the readers of those formats and decoded by the schemas they carry."""

from __future__ import annotations

import importlib.util
import json
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Image, make_output, parts_in, road_image

from perception.causes import Cause, Code
from perception.errors import BadInput
from perception.freespace import Freespace, Polygon
from perception.sinks import rerun_view
from perception.sinks.base import Output, Sink, part_of
from perception.sinks.jsonl import numbered, series
from perception.sinks.recording import McapSink, compress, in_picture
from perception.sinks.rerun_view import RerunSink

MCAP = all(importlib.util.find_spec(name) for name in ("foxglove", "mcap", "mcap_protobuf"))
RERUN = importlib.util.find_spec("rerun") is not None
needs_mcap = pytest.mark.skipif(not MCAP, reason="needs foxglove-sdk, mcap and mcap-protobuf-support")
needs_rerun = pytest.mark.skipif(not RERUN, reason="needs rerun-sdk")

TOPICS = {
    "/camera/image": ("foxglove.CompressedImage", "protobuf"),
    "/freespace/polygons": ("foxglove.ImageAnnotations", "protobuf"),
    "/freespace/result": ("freespace/1", "jsonschema"),
    "/freespace/latency": ("freespace/latency", "jsonschema"),
    "/freespace/state": ("freespace/state", "jsonschema"),
}
# Of a frame of 128 x 64 pixels: the square of the pixels (16, 32) to (47, 63), and the pixel (24, 40) to (31, 47) as its hole.
SQUARE = np.array([[15.5, 63.5], [47.5, 63.5], [47.5, 31.5], [15.5, 31.5]])
HOLE = np.array([[23.5, 39.5], [31.5, 39.5], [31.5, 47.5], [23.5, 47.5]])
LATE = Cause(Code.STALLED, "No frame has come for 0.8 s.")


def output(seq: int, image: Image | None = None, clock: str = "media", stamp_ns: int | None = None) -> Output:
    made = make_output(road_image() if image is None else image, seq, seq * 100)
    polygon = Polygon("freespace", True, 0.94, 960.0, SQUARE, [HOLE])
    stamp_ns = made.result.stamp_ns if stamp_ns is None else stamp_ns
    latency = {"decode": 2.0, "infer": 5.5 + seq, "total": 8.25 + seq}
    result = replace(made.result, polygons=[polygon], clock=clock, stamp_ns=stamp_ns, latency_ms=latency, dropped=seq)
    return replace(made, frame=replace(made.frame, clock=clock, stamp_ns=stamp_ns), result=result)


def invalid(result: Freespace) -> Freespace:
    return replace(result, valid=False, state="stale", polygons=[], causes=[LATE], latency_ms={"age": 800.0})


def noise(width: int, height: int, seed: int = 0) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# -- MCAP --------------------------------------------------------------------------------------------------------------


def messages(path: Path, whole: bool = True) -> Iterator[tuple[str, Any, Any, Any]]:
    """(topic, decoded message, raw message, schema) in the file's order; of a file that is cut off what can be read."""
    from mcap.exceptions import McapError
    from mcap.reader import NonSeekingReader, make_reader
    from mcap_protobuf.decoder import DecoderFactory

    protobuf = DecoderFactory()
    with open(path, "rb") as file:
        reader = make_reader(file) if whole else NonSeekingReader(file)
        found = reader.iter_messages(log_time_order=False)
        while True:
            try:
                schema, channel, message = next(found)
            except StopIteration:
                return
            except (McapError, EOFError, struct.error):
                assert not whole
                return
            decode = protobuf.decoder_for(channel.message_encoding, schema) or json.loads
            yield channel.topic, decode(message.data), message, schema


def by_topic(path: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for topic, decoded, _, _ in messages(path):
        found.setdefault(topic, []).append(decoded)
    return found


@needs_mcap
def test_mcap_has_the_schemas_that_foxglove_knows(tmp_path: Path) -> None:
    sink = McapSink(tmp_path / "drive.mcap")
    for seq in range(3):
        sink.write(output(seq))
    sink.write_without_frame(invalid(output(2).result))
    assert [p.name for p in tmp_path.iterdir()] == [".drive.part.mcap"]
    sink.close()
    assert sink.made == f"recording {tmp_path / 'drive.mcap'}"
    assert parts_in(tmp_path) == []
    found = list(messages(tmp_path / "drive.mcap"))
    assert {topic: (schema.name, schema.encoding) for topic, _, _, schema in found} == TOPICS
    assert Counter(topic for topic, *_ in found) == {topic: 3 if topic == "/camera/image" else 4 for topic in TOPICS}


@needs_mcap
@pytest.mark.parametrize(("clock", "first_ns"), [("media", 0), ("system", 1_790_000_000_123_456_789)])
def test_mcap_is_stamped_as_its_frames(tmp_path: Path, clock: str, first_ns: int) -> None:
    stamps = [first_ns + step for step in (0, 33_333_333, 1_000_000_001)]
    sink = McapSink(tmp_path / "drive.mcap")
    for seq, stamp_ns in enumerate(stamps):
        sink.write(output(seq, clock=clock, stamp_ns=stamp_ns))
    sink.close()
    for topic in TOPICS:
        found = [(decoded, message) for name, decoded, message, _ in messages(tmp_path / "drive.mcap") if name == topic]
        assert [message.log_time for _, message in found] == stamps
        assert [message.publish_time for _, message in found] == stamps
        if TOPICS[topic][1] == "protobuf":
            assert [m.timestamp.seconds * 10**9 + m.timestamp.nanos for m, _ in found] == stamps


@needs_mcap
@pytest.mark.parametrize(("clock", "first_ns"), [("media", 10**9), ("system", 1_790_000_000_123_456_789)])
def test_result_without_a_frame_is_stamped_when_it_was_said(tmp_path: Path, clock: str, first_ns: int) -> None:
    """Its own stamp is that of the newest frame: a plot over time would show the outage before it began."""
    sink = McapSink(tmp_path / "drive.mcap")
    made = output(0, clock=clock, stamp_ns=first_ns)
    made = replace(made, frame=replace(made.frame, grabbed_ns=time.perf_counter_ns() - 700_000_000))
    starting = replace(invalid(made.result), stamp_ns=0, state="starting")
    before_ns = time.time_ns()
    sink.write_without_frame(starting)
    after_ns = time.time_ns()
    sink.write(made)
    sink.write_without_frame(invalid(made.result))
    sink.close()
    for topic in ("/freespace/polygons", "/freespace/result", "/freespace/latency", "/freespace/state"):
        at = [message.log_time for name, _, message, _ in messages(tmp_path / "drive.mcap") if name == topic]
        assert before_ns <= at[0] <= after_ns if clock == "system" else at[0] == 0
        assert at[1] == first_ns
        assert 0.7e9 <= at[2] - first_ns < 5e9


@needs_mcap
@pytest.mark.parametrize("width", [None, 128, 32, 500])
def test_polygons_lie_on_the_picture_as_foxglove_counts_pixels(tmp_path: Path, width: int | None) -> None:
    """Foxglove has (0, 0) in the corner of the top-left pixel: the square covers pixels 16 to 48 there, and 4 to 12 of 32."""
    sink = McapSink(tmp_path / "drive.mcap", width=width, quality=95)
    sink.write(output(0))
    sink.close()
    found = by_topic(tmp_path / "drive.mcap")
    (image,), (drawn,) = found["/camera/image"], found["/freespace/polygons"]
    assert (image.format, image.frame_id) == ("jpeg", "camera")
    picture = cv2.imdecode(np.frombuffer(image.data, np.uint8), cv2.IMREAD_COLOR)
    share = 0.25 if width == 32 else 1
    assert picture.shape == (64 * share, 128 * share, 3)
    assert np.abs(picture.astype(int) - cv2.resize(road_image(), None, fx=share, fy=share)).mean() < 8
    exterior, hole = ([[p.x, p.y] for p in line.points] for line in drawn.points)
    assert exterior == [[x * share, y * share] for x, y in [(16, 64), (48, 64), (48, 32), (16, 32)]]
    assert hole == [[x * share, y * share] for x, y in [(24, 40), (32, 40), (32, 48), (24, 48)]]
    assert {line.type for line in drawn.points} == {2}  # LINE_LOOP
    assert drawn.points[0].outline_color.g > 0.5 > drawn.points[0].outline_color.r
    assert drawn.points[1].outline_color.r > 0.5 > drawn.points[1].outline_color.g
    assert all(line.fill_color.a == 0 for line in drawn.points), "a filled outline would hide the car in its hole"
    assert list(drawn.texts) == []


def test_a_pixel_stays_in_place_when_the_picture_is_scaled() -> None:
    """A bright block of a large frame is found where `in_picture` says, also where the sides are scaled unequally."""
    image = np.zeros((123, 1001, 3), np.uint8)
    image[41:82, 390:650] = 255
    jpeg, size = compress(image, 77, 95)
    assert size == (77, 9)
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE) / 255.0
    ((left, top), (right, bottom)) = in_picture(np.array([[389.5, 40.5], [649.5, 81.5]]), (1001, 123), size)
    assert (left, right) == pytest.approx((390 * 77 / 1001, 650 * 77 / 1001))
    assert (top, bottom) == pytest.approx((3, 6))
    assert picture.max(axis=0).sum() == pytest.approx(right - left, abs=0.3)
    rows, columns = np.mgrid[: size[1], : size[0]]
    assert (rows * picture).sum() / picture.sum() + 0.5 == pytest.approx((top + bottom) / 2, abs=0.1)
    assert (columns * picture).sum() / picture.sum() + 0.5 == pytest.approx((left + right) / 2, abs=0.1)


@needs_mcap
def test_results_in_the_mcap_are_those_of_the_jsonl(tmp_path: Path) -> None:
    sink = McapSink(tmp_path / "drive.mcap")
    outputs = [output(seq) for seq in range(3)]
    for made in outputs:
        sink.write(made)
    missing = invalid(outputs[2].result)
    sink.write_without_frame(missing)
    sink.close()
    written = [*(o.result for o in outputs), missing]
    found = by_topic(tmp_path / "drive.mcap")
    assert found["/freespace/result"] == [json.loads(r.to_json()) for r in written]
    assert found["/freespace/latency"] == [r.latency_ms for r in written]
    assert found["/freespace/state"][:3] == [
        {"seq": i, "state": "running", "valid": True, "dropped": i, "codes": [], "text": ""} for i in range(3)
    ]
    assert found["/freespace/state"][3] == {
        "seq": 2,
        "state": "stale",
        "valid": False,
        "dropped": 2,
        "codes": ["source_stalled"],
        "text": LATE.text,
    }


@needs_mcap
def test_schema_of_results_describes_them(tmp_path: Path) -> None:
    """Foxglove offers for plots what the schema names."""
    sink = McapSink(tmp_path / "drive.mcap")
    sink.write(output(0))
    sink.write_without_frame(invalid(output(0).result))
    sink.close()
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}

    def conforms(value: Any, schema: dict[str, Any]) -> bool:
        if not isinstance(value, kinds[schema["type"]]) or value not in schema.get("enum", [value]):
            return False
        if schema["type"] == "object":
            known, more = schema["properties"], schema.get("additionalProperties")
            assert set(schema.get("required", [])) <= set(value)
            assert more or set(value) <= set(known)
            return all(conforms(v, known.get(key, more)) for key, v in value.items())
        return schema["type"] != "array" or all(conforms(v, schema["items"]) for v in value)

    checked = 0
    for _, decoded, _, schema in messages(tmp_path / "drive.mcap"):
        if schema.encoding == "jsonschema":
            assert conforms(decoded, json.loads(schema.data)), decoded
            checked += 1
    assert checked == 6


@needs_mcap
def test_picture_without_a_result_says_why(tmp_path: Path) -> None:
    """No outline may stay on the picture once its result is not valid any more."""
    sink = McapSink(tmp_path / "drive.mcap")
    sink.write_without_frame(invalid(output(0).result))  # before the first picture
    sink.write(output(0))
    sink.write_without_frame(invalid(output(0).result))
    sink.close()
    before, valid, after = by_topic(tmp_path / "drive.mcap")["/freespace/polygons"]
    assert len(valid.points) == 2
    for drawn in (before, after):
        assert len(drawn.points) == 0
        (text,) = drawn.texts
        assert text.text == f"NOT VALID (stale). {LATE.text}"


@needs_mcap
def test_mcap_series(tmp_path: Path) -> None:
    path = tmp_path / "drive.mcap"
    sink = McapSink(path, width=None, rotate_mb=2.0)
    for seq in range(120):
        sink.write(output(seq, noise(320, 180, seq)))
    sink.close()
    files = [numbered(path, n) for n in series(path)]
    assert sorted(tmp_path.iterdir()) == files
    assert len(files) >= 2
    assert all(file.stat().st_size < 3.5e6 for file in files)
    found = [seq for file in files for seq in (r["seq"] for r in by_topic(file)["/freespace/result"])]
    assert found == list(range(120))
    assert all(set(by_topic(file)) == set(TOPICS) for file in files), "each can be opened by itself"


@needs_mcap
def test_each_run_begins_a_new_mcap_file_when_it_is_to_append(tmp_path: Path) -> None:
    path = tmp_path / "drive.mcap"
    part_of(numbered(path, 1)).write_bytes(b"of a run that was killed")
    for seq in (5, 6):
        sink = McapSink(path, append=True)
        sink.write(output(seq))
        sink.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".drive.0001.part.mcap", "drive.0002.mcap", "drive.0003.mcap"]
    assert [r["seq"] for r in by_topic(tmp_path / "drive.0003.mcap")["/freespace/result"]] == [6]


@needs_mcap
def test_nothing_recorded_leaves_no_file(tmp_path: Path) -> None:
    sink = McapSink(tmp_path / "drive.mcap")
    sink.close()
    assert sink.made == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("sink", "name"), [(McapSink, "drive.bag"), (RerunSink, "drive.mp4")])
def test_recordings_have_their_own_suffix(tmp_path: Path, sink: Any, name: str) -> None:
    with pytest.raises(BadInput, match="end its name with"):
        sink(tmp_path / name)


@pytest.mark.parametrize(("sink", "library", "extra"), [(McapSink, "foxglove", "foxglove"), (RerunSink, "rerun", "rerun")])
def test_missing_library_is_named(tmp_path: Path, monkeypatch: Any, sink: Any, library: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(BadInput, match=rf"pip install '\.\[{extra}\]'"):
        sink(tmp_path / ("drive.mcap" if library == "foxglove" else "drive.rrd"))
    assert list(tmp_path.iterdir()) == []


def test_libraries_are_loaded_only_where_they_are_used() -> None:
    code = (
        "import perception.sinks.recording, perception.sinks.rerun_view, sys;"
        "print([m for m in ('foxglove', 'mcap', 'rerun', 'pyarrow', 'av') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout == "[]\n"


@needs_mcap
def test_layout_shows_topics_that_exist() -> None:
    layout = json.loads((Path(__file__).parents[1] / "launch/foxglove-layout.json").read_text())

    def strings(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, (dict, list)):
            for inner in [*value, *value.values()] if isinstance(value, dict) else value:
                yield from strings(inner)

    from perception.sinks.recording import LATENCY, STATE

    fields = {"/freespace/latency": LATENCY["properties"], "/freespace/state": STATE["properties"]}
    paths = {text for text in strings(layout["configById"]) if text.startswith("/")}
    assert {path.split(".")[0] for path in paths} == set(TOPICS) - {"/freespace/result"}
    for path in paths:
        topic, _, field = path.partition(".")
        assert not field or field in fields[topic]
    panels = [text for text in strings(layout["layout"]) if "!" in text]
    assert sorted(panels) == sorted(layout["configById"])


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Files of this process cannot grow beyond ``size`` bytes."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(
    ("sink", "name"),
    [pytest.param(McapSink, "drive.mcap", marks=needs_mcap), pytest.param(RerunSink, "drive.rrd", marks=needs_rerun)],
)
def test_full_disk_is_said_and_nothing_gets_the_final_name(tmp_path: Path, sink: Any, name: str) -> None:
    path, image = tmp_path / name, noise(640, 360)
    made = sink(path, width=None)
    with small_disk(600_000):
        with pytest.raises(OSError, match="too large"):
            write_slowly(made, [output(seq, image) for seq in range(400)])
        with pytest.raises(OSError, match="too large"):
            made.close()
    assert not path.exists()
    assert part_of(path).stat().st_size <= 600_000
    assert "what could be written" in made.made
    if sink is RerunSink:
        assert not any(thread.name == "rerun-file" and thread.is_alive() for thread in threading.enumerate())


def write_slowly(sink: Sink, outputs: list[Output]) -> None:
    for made in outputs:
        sink.write(made)
        time.sleep(0.01)


WRITER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_recordings import McapSink, RerunSink, noise, output
sink = {".mcap": McapSink, ".rrd": RerunSink}[Path(sys.argv[1]).suffix](Path(sys.argv[1]))
image, begun, seq = noise(320, 180), time.monotonic(), 0
while True:
    sink.write(output(seq, image))
    print(seq, time.monotonic() - begun, flush=True)
    seq += 1
    time.sleep(0.02)
"""


def killed(path: Path, after_s: float) -> list[float]:
    """A recording that is killed in the middle: for each frame that was written, when, in seconds from the first."""
    times: list[float] = []
    command = [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(40, process.kill)
        watchdog.start()
        assert process.stdout is not None
        for line in process.stdout:
            times.append(float(line.split()[1]))
            if times[-1] > after_s:
                break
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        watchdog.cancel()
    assert times[-1] > after_s
    return times


@needs_mcap
def test_killed_recording_can_be_read_up_to_the_last_second(tmp_path: Path) -> None:
    path = tmp_path / "drive.mcap"
    times = killed(path, 2.6)
    assert not path.exists()
    found = [decoded["seq"] for topic, decoded, _, _ in messages(part_of(path), whole=False) if topic == "/freespace/result"]
    assert found == list(range(len(found)))
    assert times[-1] - times[len(found) - 1] < 1.5
    # And cut at any place, also within a chunk, what is before the last whole chunk stays.
    data = part_of(path).read_bytes()
    (tmp_path / "cut.mcap").write_bytes(data[: len(data) * 2 // 3])
    less = [
        decoded["seq"] for topic, decoded, _, _ in messages(tmp_path / "cut.mcap", whole=False) if topic == "/freespace/result"
    ]
    assert 0 < len(less) < len(found)
    assert less == found[: len(less)]


# -- Rerun -------------------------------------------------------------------------------------------------------------


def rows(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of a recording by entity, in the order of frames: values by column."""
    import pyarrow
    from rerun.chunk import RrdReader

    found: dict[str, list[dict[str, Any]]] = {}
    for chunk in RrdReader(str(path)).stream().to_chunks():
        batch = chunk.to_record_batch()
        for i, field in enumerate(batch.schema):
            if pyarrow.types.is_temporal(field.type):  # nanoseconds, more than Python's own types hold
                batch = batch.set_column(i, field.name, batch.column(i).cast(pyarrow.int64()))
        found.setdefault(chunk.entity_path, []).extend(batch.to_pylist())
    return {
        entity: sorted(values, key=lambda row: (row.get("frame") or 0, row.get("log_time"))) for entity, values in found.items()
    }


def column(row: dict[str, Any], name: str) -> Any:
    (value,) = [value for key, value in row.items() if key.endswith(f":{name}")]
    return value


@needs_rerun
@pytest.mark.parametrize(("clock", "first_ns"), [("media", 0), ("system", 1_790_000_000_123_456_789)])
def test_rerun_recording_is_read_back(tmp_path: Path, clock: str, first_ns: int) -> None:
    path = tmp_path / "drive.rrd"
    sink = RerunSink(path, width=32, quality=95)
    assert sink.lossless
    for seq in range(3):
        sink.write(output(seq, clock=clock, stamp_ns=first_ns + seq))
    sink.write_without_frame(invalid(output(2, clock=clock, stamp_ns=first_ns + 2).result))
    assert [p.name for p in tmp_path.iterdir()] == [".drive.part.rrd"]
    sink.close()
    assert sink.made == f"Rerun recording {path}"
    assert [p.name for p in tmp_path.iterdir()] == ["drive.rrd"]
    found = rows(path)
    assert [row["frame"] for row in found["/camera"]] == [0, 1, 2]
    assert [row[clock] for row in found["/camera"]] == [first_ns, first_ns + 1, first_ns + 2]
    (jpeg,) = column(found["/camera"][0], "blob")
    picture = cv2.imdecode(np.frombuffer(bytes(jpeg), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (16, 32, 3)
    exterior, hole = column(found["/camera/freespace"][0], "strips")
    assert exterior == [[4, 16], [12, 16], [12, 8], [4, 8], [4, 16]]
    assert hole == [[6, 10], [8, 10], [8, 12], [6, 12], [6, 10]]
    last = found["/camera/freespace"][3]
    assert column(last, "strips") == [[[0, 0], [32, 0], [32, 16], [0, 16], [0, 0]]]
    assert column(last, "labels") == [f"NOT VALID (stale). {LATE.text}"]
    assert [column(row, "scalars") for row in found["/latency/total"]] == [[8.25], [9.25], [10.25]]
    assert [column(row, "scalars") for row in found["/latency/age"]] == [[800.0]]
    assert first_ns + 2 < last[clock] < first_ns + 5e9, "when it was said"
    assert [column(row, "text") for row in found["/state"]] == [["running"], [f"stale {LATE.text}"]], "only what has changed"


@needs_rerun
@pytest.mark.filterwarnings("ignore:RRD file has no footer")
def test_killed_rerun_recording_can_be_read_up_to_the_last_second(tmp_path: Path) -> None:
    times = killed(tmp_path / "drive.rrd", 2.6)
    found = rows(part_of(tmp_path / "drive.rrd"))
    frames = [row["frame"] for row in found["/camera"]]
    assert frames == list(range(len(frames)))
    assert times[-1] - times[len(frames) - 1] < 1.5


@needs_rerun
def test_viewer_without_a_screen_is_refused(monkeypatch: Any) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("elsewhere there is always a screen")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(BadInput, match="needs a screen"):
        RerunSink(None, port=port)


@needs_rerun
def test_viewer_that_hangs_and_dies_stops_nothing(monkeypatch: Any) -> None:
    """A viewer on this machine is used; then it is stopped, then killed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve = (
        "import rerun, sys, time; r = rerun.RecordingStream('viewer');"
        f"r.serve_grpc(grpc_port={port}, server_memory_limit='64MB'); print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", serve], stdout=subprocess.PIPE, text=True) as viewer:
        try:
            assert viewer.stdout is not None
            assert viewer.stdout.readline() == "up\n"
            for _ in range(100):
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            monkeypatch.setattr(rerun_view, "SYNC_S", 0.1)
            monkeypatch.setattr(rerun_view, "PATIENCE_S", 0.5)
            sink, image = RerunSink(None, width=None, port=port), noise(640, 360)
            assert not sink.lossless
            took: dict[str, list[float]] = {}
            for state, number in (
                ("shows", None),
                ("hangs", signal.SIGSTOP),
                ("shows again", signal.SIGCONT),
                ("is gone", signal.SIGKILL),
            ):
                if number is not None:
                    viewer.send_signal(number)
                took[state], begun = [], time.monotonic()
                while time.monotonic() - begun < 1.2:
                    started = time.perf_counter()
                    sink.write(output(0, image))
                    took[state].append(time.perf_counter() - started)
                    time.sleep(0.005)
            assert max(max(times) for times in took.values()) < 2
            usual = {state: float(np.median(times[-20:])) for state, times in took.items()}
            assert usual["hangs"] < usual["shows"] / 3, "what it cannot take is not even encoded"
            assert usual["shows again"] > usual["shows"] / 3
            started = time.perf_counter()
            sink.close()
            assert time.perf_counter() - started < 6
        finally:
            viewer.kill()
