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
from test_birdseye import calibrated, grounded, projected, region

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
GROUND_TOPICS = {  # of a calibrated camera
    "/tf": ("foxglove.FrameTransform", "protobuf"),
    "/camera/calibration": ("foxglove.CameraCalibration", "protobuf"),
    "/freespace/ground": ("foxglove.SceneUpdate", "protobuf"),
    "/freespace/scan": ("foxglove.LaserScan", "protobuf"),
    "/freespace/occupancy": ("foxglove.Grid", "protobuf"),
    "/freespace/distances": ("freespace/distances", "jsonschema"),
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
    sink.write(grounded(calibrated()))
    sink.write_without_frame(invalid(output(0).result))
    sink.close()
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}

    def conforms(value: Any, schema: dict[str, Any]) -> bool:
        if not isinstance(value, kinds[schema["type"]]) or value not in schema.get("enum", [value]):
            return False
        if schema["type"] == "object":
            known, more = schema["properties"], schema.get("additionalProperties")
            assert set(schema.get("required", [])) <= set(value)
            left_out.update(() if more else set(value) - set(known))
            return all(conforms(v, known.get(key, more)) for key, v in value.items() if key in known or more)
        return schema["type"] != "array" or all(conforms(v, schema["items"]) for v in value)

    def viewers_take(schema: dict[str, Any]) -> bool:
        """Foxglove refuses a whole topic for a list of lists in its schema, and for a choice of types."""
        items = schema.get("items", {})
        inner = [*schema.get("properties", {}).values(), *([items] if items else [])]
        return isinstance(schema["type"], str) and items.get("type") != "array" and all(map(viewers_take, inner))

    checked, left_out = 0, set[str]()
    for _, decoded, _, schema in messages(tmp_path / "drive.mcap"):
        if schema.encoding == "jsonschema":
            assert conforms(decoded, json.loads(schema.data)), decoded
            assert viewers_take(json.loads(schema.data))
            checked += 1
    assert checked == 8
    assert left_out == {"exterior", "interiors", "ground"}


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

    from perception.sinks.ground_channels import DISTANCES
    from perception.sinks.recording import LATENCY, STATE

    fields = {
        "/freespace/latency": LATENCY["properties"],
        "/freespace/state": STATE["properties"],
        "/freespace/distances": DISTANCES["properties"],
    }
    paths = {text for text in strings(layout["configById"]) if text.startswith("/")}
    assert {path.split(".")[0] for path in paths} == {*TOPICS, *GROUND_TOPICS} - {"/freespace/result", "/tf"}
    for path in paths:
        topic, _, field = path.partition(".")
        assert not field or field in fields[topic]
    panels = [text for text in strings(layout["layout"]) if "!" in text]
    assert sorted(panels) == sorted(layout["configById"])


@needs_mcap
@pytest.mark.parametrize("width", [None, 320])
def test_the_ground_in_the_mcap(tmp_path: Path, width: int | None) -> None:
    metres = calibrated(yaw=0.2, roll=0.03, distortion=(-0.1, 0.02), bumper_m=2.0)
    made = grounded(metres, [region(metres, (2, 20), (-2, 4), ((9.0, 12.0), (0.5, 1.5)))])
    ground = made.result.ground
    assert ground is not None
    sink = McapSink(tmp_path / "drive.mcap", width=width)
    sink.write(made)
    sink.close()
    found = list(messages(tmp_path / "drive.mcap"))
    expected = {**TOPICS, **GROUND_TOPICS}
    assert {topic: (schema.name, schema.encoding) for topic, _, _, schema in found} == expected
    decoded = {topic: message for topic, message, _, _ in found}

    # The camera's place, and its calibration for the picture: together they project as OpenCV does.
    turn, shift = decoded["/tf"].rotation, decoded["/tf"].translation
    assert (decoded["/tf"].parent_frame_id, decoded["/tf"].child_frame_id) == ("base_link", "camera")
    assert decoded["/camera/calibration"].frame_id == decoded["/camera/image"].frame_id == "camera"
    k = decoded["/camera/calibration"]
    picture = cv2.imdecode(np.frombuffer(decoded["/camera/image"].data, np.uint8), cv2.IMREAD_COLOR)
    assert (k.width, k.height) == (picture.shape[1], picture.shape[0])
    q = np.array([turn.w, turn.x, turn.y, turn.z])
    assert np.linalg.norm(q) == pytest.approx(1)
    point = np.array([14.0, 3.0, 0.0]) - (shift.x, shift.y, shift.z)
    w, v = q[0], -q[1:]  # the inverse: from base_link to the camera
    point = point + 2 * np.cross(v, np.cross(v, point) + w * point)
    assert k.distortion_model == "plumb_bob"
    pixel, _ = cv2.projectPoints(point[None], np.zeros(3), np.zeros(3), np.array(k.K).reshape(3, 3), np.array(k.D))
    share = k.width / 640
    np.testing.assert_allclose((pixel.ravel() + 0.5) / share - 0.5, projected(metres, [(14.0, 3.0)])[0], atol=1e-6)
    np.testing.assert_allclose(np.array(k.P).reshape(3, 4)[:, :3].ravel(), k.K)

    (entity,) = decoded["/freespace/ground"].entities
    assert (entity.frame_id, list(entity.texts)) == ("base_link", [])
    exterior, hole, vehicle, end, interval, *caps = ([(p.x, p.y) for p in line.points] for line in entity.lines)
    for x, y in ((20, -2), (20, 4)):  # bent by the lens, its edges have more points; close by it is cut by the view
        assert np.hypot(*(np.array(exterior) - (x, y)).T).min() < 0.05
    for x, y in ((9, 0.5), (12, 0.5), (12, 1.5), (9, 1.5)):
        assert np.hypot(*(np.array(hole) - (x, y)).T).min() < 0.05
    assert [line.type for line in entity.lines] == [1, 1, 1, 0, 0, 0, 0]  # LINE_LOOP, LINE_STRIP
    assert sorted(vehicle) == [(-1, -1), (-1, 1), (2, -1), (2, 1)]
    np.testing.assert_allclose(end, [(9, 1), (9, -1)], atol=0.05, err_msg="where the hole begins in front of the vehicle")
    assert interval == [(2 + ground.ahead.near_m, 0), (2 + ground.ahead.far_m, 0)]
    assert len(caps) == 2

    scan = decoded["/freespace/scan"]
    assert (scan.frame_id, scan.pose.orientation.w, len(scan.ranges)) == ("base_link", 1, len(ground.scan.ranges_m))
    np.testing.assert_array_equal(scan.ranges, ground.scan.ranges_m)
    assert (scan.end_angle - scan.start_angle) / (len(scan.ranges) - 1) == pytest.approx(ground.scan.angle_increment)
    assert decoded["/freespace/distances"] == {
        "area_m2": pytest.approx(ground.area_m2, abs=1e-3),
        "ahead_m": pytest.approx(7, abs=0.05),
        "ahead_near_m": ground.ahead.near_m,
        "ahead_far_m": ground.ahead.far_m,
    }


def cells(message: Any) -> Any:
    """Occupancy (rows, columns) of a foxglove.Grid, by the fields and strides it says; the colours, too."""
    data = np.frombuffer(message.data, np.uint8)
    shape = (len(data) // message.row_stride, message.column_count, message.cell_stride)
    assert message.row_stride == message.column_count * message.cell_stride
    (place,) = [f.offset for f in message.fields if f.name == "occupancy"]
    table = data.reshape(shape)
    assert [(f.name, f.type) for f in message.fields if f.offset < 4] == [(n, 1) for n in ("red", "green", "blue", "alpha")]
    return table[..., place].view(np.int8), table[..., :4]


@needs_mcap
def test_the_grid_in_the_mcap(tmp_path: Path) -> None:
    metres = calibrated(max_range_m=40.0)
    sink = McapSink(tmp_path / "drive.mcap")
    made = grounded(metres, [region(metres, (5, 20), (-3, 3))])
    for number in range(16):  # a second and a half
        sink.write(replace(made, frame=replace(made.frame, stamp_ns=number * 100_000_000)))
    later = invalid(replace(made.result, ground=None))
    sink.write_without_frame(later)
    sink.write_without_frame(later)
    sink.close()
    found = by_topic(tmp_path / "drive.mcap")
    *grids, last = found["/freespace/occupancy"]
    assert [grid.timestamp.ToNanoseconds() // 1_000_000 for grid in grids] == [0, 500, 1000, 1500], "twice a second"
    grid = grids[0]
    occupancy, colours = cells(grid)
    corner, cell = grid.pose.position, grid.cell_size
    least_x, least_y, *_ = metres.view.seen.bounds
    assert (grid.frame_id, cell.x, cell.y) == ("base_link", 0.25, 0.25)
    assert (corner.x, corner.y) == (np.floor(4 * least_x) / 4, np.floor(4 * least_y) / 4)

    def at(x: float, y: float) -> tuple[int, int]:
        return int((y - corner.y) / cell.y), int((x - corner.x) / cell.x)

    for x, y, value in (
        (6.1, 0.1, 0),
        (19.9, 2.9, 0),
        (19.9, -2.9, 0),
        (20.1, 0.1, 100),
        (12.1, 3.1, 100),
        (22, 0, -1),
        (corner.x + 0.1, 0, -1),
    ):
        assert occupancy[at(x, y)] == value, (x, y)
    assert (occupancy == 0).sum() / 16 == pytest.approx(15 * 6, rel=0.03)
    assert (colours[occupancy == -1] == 0).all()
    assert (colours[occupancy == 0][:, 1] > colours[occupancy == 0][:, 0]).all()
    assert (cells(last)[0] == -1).all(), "at once, and once"
    # What is not valid any more is taken away.
    (entity,) = found["/freespace/ground"][-1].entities
    assert entity.id == found["/freespace/ground"][0].entities[0].id
    assert [text.text for text in entity.texts] == [f"NOT VALID (stale). {LATE.text}"]
    assert len(entity.lines) == 1, "the vehicle"
    assert list(found["/freespace/scan"][-1].ranges) == []
    assert found["/freespace/distances"][-1] == {}


@needs_mcap
def test_each_file_of_a_series_has_the_ground(tmp_path: Path) -> None:
    path, metres = tmp_path / "drive.mcap", calibrated()
    sink = McapSink(path, rotate_mb=0.2)
    for number in range(40):
        sink.write(grounded(metres, image=noise(640, 360, number), number=number, stamp_ms=number))
    sink.close()
    files = [numbered(path, n) for n in series(path)]
    assert len(files) >= 3
    assert all(set(by_topic(file)) == {*TOPICS, *GROUND_TOPICS} for file in files)


@needs_mcap
def test_free_ground_that_may_go_on_has_no_end_in_the_laser_scan(tmp_path: Path) -> None:
    """As in ROS's REP 117: infinity where nothing was met within the range, NaN where nothing is known."""
    metres = calibrated(max_range_m=30.0)
    made = grounded(metres, [region(metres, (2, 70), (-1, 1))])
    assert made.result.ground is not None
    nan = made.result.ground.scan.ranges_m.copy()
    nan[0] = np.nan
    made = replace(
        made,
        result=replace(made.result, ground=replace(made.result.ground, scan=replace(made.result.ground.scan, ranges_m=nan))),
    )
    sink = McapSink(tmp_path / "drive.mcap")
    sink.write(made)
    sink.close()
    ranges = np.array(by_topic(tmp_path / "drive.mcap")["/freespace/scan"][0].ranges)
    assert np.isnan(ranges[0])
    assert np.isinf(ranges[len(ranges) // 2])
    assert np.isfinite(ranges[1]), "the edge of the way"


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
def test_the_ground_in_the_rerun_recording(tmp_path: Path) -> None:
    metres = calibrated(yaw=0.2, roll=0.03, bumper_m=2.0)
    path, made = tmp_path / "drive.rrd", grounded(metres, [region(metres, (2, 20), (-2, 4), ((9.0, 12.0), (0.5, 1.5)))])
    sink = RerunSink(path, width=320)
    sink.write(made)
    sink.write_without_frame(invalid(replace(made.result, ground=None)))
    sink.close()
    found = rows(path)
    camera = {name.rpartition(":")[2]: value for row in found["/camera"] for name, value in row.items() if value is not None}
    rotation, shift = np.array(camera["mat3x3"][0]).reshape(3, 3).T, np.array(camera["translation"][0])  # columns first
    k = np.array(camera["image_from_camera"][0]).reshape(3, 3).T
    assert camera["resolution"] == [[320, 180]]
    u, v, w = k @ rotation.T @ (np.array([14.0, 3.0, 0.0]) - shift)
    expected = in_picture(projected(metres, [(14.0, 3.0)]), (640, 360), (320, 180))[0]  # as the outlines are drawn
    assert (u / w, v / w) == pytest.approx(tuple(expected), abs=1e-3)
    exterior, hole = (np.array(strip) for strip in column(found["/ground/polygons"][0], "strips"))
    assert sorted(map(tuple, hole[:-1, :2].round(1))) == [(9, 0.5), (9, 1.5), (12, 0.5), (12, 1.5)]
    assert {(20, -2), (20, 4)} < set(map(tuple, exterior[:, :2].round(1)))
    for strip in (exterior, hole):
        assert (strip[0] == strip[-1]).all()
        assert (strip[:, 2] == 0).all()
    ends = np.array(column(found["/ground/scan"][0], "positions"))
    scan = made.result.ground.scan
    inside = scan.ranges_m < 59
    assert len(ends) == inside.sum()
    np.testing.assert_allclose(np.hypot(ends[:, 0], ends[:, 1]), scan.ranges_m[inside], rtol=1e-5)
    end, *_ = column(found["/ground/ahead"][0], "strips")
    assert [point[0] for point in end] == pytest.approx([9, 9], abs=0.05)
    for name in ("polygons", "ahead"):
        assert not column(found[f"/ground/{name}"][1], "strips"), "what is not valid any more is taken away"
    assert not column(found["/ground/scan"][1], "positions")
    assert len(column(found["/ground/vehicle"][1], "strips")) == 1


@needs_rerun
def test_without_a_calibration_there_is_no_ground_in_rerun(tmp_path: Path) -> None:
    sink = RerunSink(tmp_path / "drive.rrd")
    sink.write(output(0))
    sink.close()
    assert not [entity for entity in rows(tmp_path / "drive.rrd") if entity.startswith("/ground")]


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
