"""Bags that the tests write with rosbags, read as sources; and bags that a run writes, read back with rosbags."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import cut, make_output, number_of, numbered_image, parts_in, road_image
from test_messages import (
    ENCODINGS,
    HEIGHT,
    SCENE,
    STORE,
    WIDTH,
    camera_info,
    encoded,
    grounded,
    image_message,
    invalid,
    of_rclpy,
)

from engine.base import Engine
from perception.capture.bag import BagSource, is_bag
from perception.capture.base import Selection
from perception.capture.pace import LoopedSource, PacedSource
from perception.causes import Cause, Code
from perception.config import SMALL_TOPICS, CaptureConfig, Config
from perception.errors import BadInput, FreespaceError
from perception.freespace import Freespace
from perception.messages import Messages
from perception.node import run
from perception.sinks.bag import BagSink, check_bag

rosbag2 = pytest.importorskip("rosbags.rosbag2", reason="needs rosbags")
pytest.importorskip("mcap", reason="needs mcap")

MAKE = Messages(STORE.types.__getitem__)
BEGIN_NS = 1_700_000_000_000_000_000
STEP_NS = 100_000_000
LATE_NS = 7_000_000  # how long after its stamp a message is recorded
RAW, JPEG, INFO = (f"sensor_msgs/msg/{kind}" for kind in ("Image", "CompressedImage", "CameraInfo"))
Written = tuple[str, str, int, Any]  # topic, type, time of recording, message


def picture(number: int, stamp_ns: int | None = None, image: np.ndarray | None = None) -> Any:
    image = numbered_image(number) if image is None else image
    height, width = image.shape[:2]
    message = image_message("bgr8", image, height=height, width=width)
    message.header = MAKE.header("front_camera", BEGIN_NS + number * STEP_NS if stamp_ns is None else stamp_ns)
    return message


def drive(count: int = 10, topic: str = "/camera/image_raw", image: np.ndarray | None = None) -> list[Written]:
    return [(topic, RAW, BEGIN_NS + n * STEP_NS + LATE_NS, picture(n, image=image)) for n in range(count)]


def write_bag(path: Path, messages: list[Written], storage: str = "mcap", compressed: bool = False) -> Path:
    """A folder of rosbag2."""
    plugin = {"mcap": rosbag2.StoragePlugin.MCAP, "sqlite3": rosbag2.StoragePlugin.SQLITE3}[storage]
    writer = rosbag2.Writer(path, version=8, storage_plugin=plugin)
    if compressed:
        mode = rosbag2.CompressionMode.STORAGE if storage == "mcap" else rosbag2.CompressionMode.FILE
        writer.set_compression(mode, rosbag2.CompressionFormat.ZSTD)
    connections: dict[str, Any] = {}
    with writer:
        for topic, kind, log_ns, message in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connections[topic], log_ns, STORE.serialize_cdr(message, kind))
    return path


def data_file(bag: Path) -> Path:
    (file,) = (f for f in bag.iterdir() if f.suffix in (".mcap", ".db3"))
    return file


def read(path: Path, selection: Selection | None = None, topic: str | None = None) -> tuple[list[Any], BagSource]:
    with BagSource(str(path), selection or Selection(), topic) as source:
        return list(source.frames()), source


# -- In ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_folder_gives_its_pictures_with_their_own_stamps(tmp_path: Path, storage: str, compressed: bool) -> None:
    frames, source = read(write_bag(tmp_path / "drive", drive(), storage, compressed))
    assert [number_of(f.image) for f in frames] == list(range(10))
    assert [f.stamp_ns for f in frames] == [BEGIN_NS + n * STEP_NS for n in range(10)]
    assert [f.seq for f in frames] == list(range(10))
    assert {(f.clock, f.frame_id, f.dropped, f.stretch) for f in frames} == {("ros", "front_camera", 0, 0)}
    assert (source.topic, source.clock, source.total, source.problems) == ("/camera/image_raw", "ros", 10, [])
    assert source.fps == pytest.approx(10.0)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_single_file_is_a_bag(tmp_path: Path, storage: str) -> None:
    file = data_file(write_bag(tmp_path / "drive", drive(), storage))
    frames, source = read(file)
    assert [number_of(f.image) for f in frames] == list(range(10))
    assert source.problems == []


@pytest.mark.parametrize("encoding", list(ENCODINGS))
def test_every_encoding_comes_through_a_bag(tmp_path: Path, encoding: str) -> None:
    rows, expected = encoded(encoding, SCENE)
    message = image_message(encoding, rows, padding=4)
    message.header = MAKE.header("front_camera", BEGIN_NS)
    (frame,), _ = read(write_bag(tmp_path / "drive", [("/image", RAW, BEGIN_NS, message)]))
    assert frame.size == (WIDTH, HEIGHT)
    assert (frame.image == expected).all()


def compressed_picture(number: int) -> Any:
    data = cv2.imencode(".png", numbered_image(number))[1].ravel()
    header = MAKE.header("front_camera", BEGIN_NS + number * STEP_NS)
    return STORE.types[JPEG](header=header, format="bgr8; png compressed bgr8", data=data)


def test_compressed_pictures_are_decoded(tmp_path: Path) -> None:
    topic = "/camera/image_raw/compressed"
    bag = write_bag(tmp_path / "drive", [(topic, JPEG, BEGIN_NS + n, compressed_picture(n)) for n in range(3)])
    frames, source = read(bag)
    assert [number_of(f.image) for f in frames] == [0, 1, 2]
    assert source.topic == topic


def test_of_several_topics_one_is_to_be_chosen(tmp_path: Path) -> None:
    messages = [*drive(3, "/left/image"), *drive(2, "/right/image")]
    text = ("/log", "std_msgs/msg/String", BEGIN_NS, STORE.types["std_msgs/msg/String"](data="x"))
    bag = write_bag(tmp_path / "drive", [*messages, text])
    with pytest.raises(BadInput, match=r"several topics with pictures.*--topic: /left/image \(Image\), /right/image \(Image\)"):
        read(bag)
    assert len(read(bag, topic="/right/image")[0]) == 2
    assert len(read(bag, topic="right/image")[0]) == 2
    with pytest.raises(BadInput, match="/rear/image is not in this bag; topics with pictures: /left/image"):
        read(bag, topic="/rear/image")
    with pytest.raises(BadInput, match="/log is of std_msgs/msg/String"):
        read(bag, topic="/log")
    with pytest.raises(BadInput, match="has no topic with pictures; its topics are /log"):
        read(write_bag(tmp_path / "silent", [text]))


def test_messages_of_unknown_types_do_not_disturb(tmp_path: Path) -> None:
    path = tmp_path / "drive"
    with rosbag2.Writer(path, version=9, storage_plugin=rosbag2.StoragePlugin.MCAP) as writer:
        strange = writer.add_connection("/radar", "acme_msgs/msg/Radar", msgdef="what is this", rihs01="RIHS01_0")
        pictures = writer.add_connection("/image", RAW, typestore=STORE)
        for _, kind, log_ns, message in drive(3):
            writer.write(strange, log_ns, b"\x00\x01\x00\x00junk")
            writer.write(pictures, log_ns, STORE.serialize_cdr(message, kind))
    assert len(read(path)[0]) == 3


def test_start_duration_and_every_choose_as_of_a_video(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "drive", drive(20))
    frames, source = read(bag, Selection(0.5, 1.0, 3))
    assert [number_of(f.image) for f in frames] == [5, 8, 11, 14]
    assert (source.total, source.fps) == (4, pytest.approx(10 / 3))
    assert [number_of(f.image) for f in read(bag, Selection(0.0, 0.01))[0]] == [0]
    with pytest.raises(BadInput, match="starts after its end"):
        read(bag, Selection(start_s=2.0))


def test_a_picture_that_comes_too_late_is_left_out_and_a_clock_that_begins_again_is_not(tmp_path: Path) -> None:
    stamps = [0, 100, 200, 150, 300, 300, 400]  # ms; then again from the beginning, as a bag that was recorded from a loop
    again = [*stamps, -5000, -4900]
    messages = [
        ("/image", RAW, BEGIN_NS + n * STEP_NS, picture(n, BEGIN_NS + stamp * 1_000_000)) for n, stamp in enumerate(again)
    ]
    frames, source = read(write_bag(tmp_path / "drive", messages))
    assert [number_of(f.image) for f in frames] == [0, 1, 2, 4, 6, 7, 8]
    assert [f.seq for f in frames] == [0, 1, 2, 4, 6, 7, 8]
    assert [f.stretch for f in frames] == [0, 0, 0, 0, 0, 1, 1]
    assert source.dropped == frames[-1].dropped == 2
    assert "frame 3 was left out: it is 50.0 ms older" in source.problems[0]
    assert "go back by 5.4 s at 7" in source.problems[2]


def test_where_a_driver_sets_no_stamps_the_times_of_recording_stand_for_them(tmp_path: Path) -> None:
    messages = [("/image", RAW, BEGIN_NS + n * STEP_NS, picture(n, 0)) for n in range(3)]
    frames, source = read(write_bag(tmp_path / "drive", messages))
    assert [f.stamp_ns for f in frames] == [BEGIN_NS + n * STEP_NS for n in range(3)]
    assert [p for p in source.problems if "has no stamps" in p] == source.problems
    assert len(source.problems) == 1


def test_a_broken_picture_is_lost_and_an_unknown_encoding_is_said_at_once(tmp_path: Path) -> None:
    messages = drive(4)
    messages[1][3].step = 3
    frames, source = read(write_bag(tmp_path / "drive", messages))
    assert [f.seq for f in frames] == [0, 2, 3]
    assert (source.dropped, frames[-1].dropped) == (1, 1)
    assert "frame 1 was left out: a bgr8 image of 64 x 32 pixels has at least 192 bytes a row" in source.problems[0]
    messages[0][3].encoding = "32FC1"
    with pytest.raises(BadInput, match="32FC1"):
        read(write_bag(tmp_path / "depth", messages))


def test_pictures_that_all_are_broken_are_an_error(tmp_path: Path) -> None:
    messages = drive(3)
    for message in messages:
        message[3].step = 3
    with pytest.raises(FreespaceError, match=r"no frame of /camera/image_raw could be read: .*at least 192 bytes"):
        read(write_bag(tmp_path / "drive", messages))


@pytest.mark.parametrize("raw", ["/camera/image_raw", "/camera/image_raw/compressed"])
def test_the_camera_info_beside_the_topic_is_the_camera(tmp_path: Path, raw: str) -> None:
    pictures = [(raw, JPEG, BEGIN_NS, compressed_picture(0))] if raw.endswith("compressed") else drive(1, raw)
    other = camera_info(k=np.array([1.0, 0, 0, 0, 1, 0, 0, 0, 1]))
    bag = write_bag(
        tmp_path / "drive",
        [*pictures, ("/rear/camera_info", INFO, BEGIN_NS, other), ("/camera/camera_info", INFO, BEGIN_NS, camera_info())],
    )
    with BagSource(str(bag), Selection(), raw) as source:
        camera = source.intrinsics()
    assert camera is not None
    assert (camera.fx, camera.cy, camera.width) == (500.0, 239.5, 640)
    with BagSource(str(write_bag(tmp_path / "bare", drive(1))), Selection()) as source:
        assert source.intrinsics() is None


def test_a_bag_is_played_again_and_at_its_own_pace(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "drive", drive(3))

    def again() -> BagSource:
        return BagSource(str(bag), Selection())

    with LoopedSource(again(), again) as looped:
        frames = [frame for frame, _ in zip(looped.frames(), range(7), strict=False)]
    assert [number_of(f.image) for f in frames] == [0, 1, 2, 0, 1, 2, 0]
    assert [f.stamp_ns for f in frames] == [BEGIN_NS + n * STEP_NS for n in range(7)]
    with PacedSource(again()) as paced:
        grabbed = [frame.grabbed_ns for frame in paced.frames()]
    assert (grabbed[-1] - grabbed[0]) / 1e9 == pytest.approx(0.1 * (len(grabbed) - 1), abs=0.09)


# -- What is broken ------------------------------------------------------------------------------------------------------


def noisy_drive(count: int = 30) -> list[Written]:
    """Pictures that cannot be compressed, 49 kB each: chunks of MCAP are a megabyte."""
    noise = np.random.default_rng(1)
    return drive_of([noise.integers(0, 256, (128, 128, 3), np.uint8) for _ in range(count)])


def drive_of(images: list[np.ndarray]) -> list[Written]:
    return [("/image", RAW, BEGIN_NS + n * STEP_NS, picture(n, image=image)) for n, image in enumerate(images)]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("single", [False, True])
def test_of_a_bag_that_was_cut_off_is_read_what_is_there(tmp_path: Path, storage: str, single: bool) -> None:
    messages = noisy_drive(60)
    bag = write_bag(tmp_path / "drive", messages, storage)
    cut(data_file(bag), 0.7)
    frames, source = read(data_file(bag) if single else bag)
    assert 20 <= len(frames) < 60
    assert [f.stamp_ns for f in frames] == [BEGIN_NS + n * STEP_NS for n in range(len(frames))]
    expected = messages[len(frames) - 1][3].data.reshape(128, 128, 3)
    assert (frames[-1].image == expected).all()
    assert any("is not whole" in problem or "is broken" in problem for problem in source.problems)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_recorder_that_was_killed_leaves_a_folder_without_metadata(tmp_path: Path, storage: str) -> None:
    bag = write_bag(tmp_path / "drive", drive(), storage)
    (bag / "metadata.yaml").unlink()
    assert is_bag(bag)
    frames, source = read(bag)
    assert len(frames) == 10
    assert "is not whole" in source.problems[0]


def test_the_parts_of_a_bag_are_read_in_the_order_of_their_numbers_and_a_missing_one_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "split"
    folder.mkdir()
    messages = drive(12)
    for n in range(12):
        part = write_bag(tmp_path / f"part{n}", [messages[n]])
        shutil.move(data_file(part), folder / f"split_{n}.mcap")
    (folder / "metadata.yaml").write_text("rosbag2_bagfile_information:\n  version: 5\n")
    frames, source = read(folder)
    assert [number_of(f.image) for f in frames] == list(range(12))
    (folder / "split_3.mcap").write_bytes(b"no bag at all")
    frames, source = read(folder)
    assert [number_of(f.image) for f in frames] == [0, 1, 2, *range(4, 12)]
    assert any("split_3.mcap: no message can be read" in problem for problem in source.problems)


def test_a_broken_chunk_costs_its_own_pictures_only(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "drive", noisy_drive(70), compressed=True)
    file = data_file(bag)
    data = bytearray(file.read_bytes())
    begin = data.index(b"\x28\xb5\x2f\xfd", len(data) // 2)  # Zstandard's magic number
    data[begin : begin + 4] = bytes(4)
    file.write_bytes(data)
    frames, source = read(bag)
    stamps = [(f.stamp_ns - BEGIN_NS) // STEP_NS for f in frames]
    assert stamps == sorted(set(stamps))
    assert stamps[0] == 0
    assert stamps[-1] == 69
    assert 30 < len(stamps) < 69
    assert any("is broken" in problem for problem in source.problems)


def test_what_is_still_in_the_journal_of_a_database_is_read(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "drive", drive(10), "sqlite3")
    file = data_file(bag)
    # A recorder that never came to its end: in a process of its own that is gone without closing anything.
    script = (
        "import os, sqlite3, sys; d = sqlite3.connect(sys.argv[1]); d.execute('PRAGMA journal_mode=WAL');"
        "d.execute('PRAGMA wal_autocheckpoint=0');"
        "d.execute('UPDATE messages SET timestamp = timestamp + 1 WHERE id = 1'); d.execute("
        "'INSERT INTO messages SELECT NULL, topic_id, timestamp + 1000000000, data FROM messages WHERE id = 10');"
        "d.commit(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script, str(file)], check=True, timeout=30)
    assert Path(f"{file}-wal").stat().st_size
    with BagSource(str(bag), Selection()) as source:
        frames = list(source.frames())
    assert len(frames) == 10  # the eleventh is the tenth again, and not newer
    assert "journal" in source.problems[0]
    assert "frame 10 was left out" in source.problems[1]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.mcap", b"", "cannot be read as a bag"),
        ("text.mcap", b"hello, this is no bag at all, only a few words", "cannot be read as a bag"),
        ("text.db3", b"hello, this is no bag at all, only a few words", "cannot be read as a bag"),
        ("old.bag", b"#ROSBAG V2.0\n", "of ROS 1; 'rosbags-convert"),
    ],
)
def test_what_is_no_bag_is_said_to_be_none(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert is_bag(path)
    with pytest.raises(BadInput, match=words):
        BagSource(str(path), Selection())


def test_another_database_is_no_bag(tmp_path: Path) -> None:
    path = tmp_path / "other.db3"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE birds (name TEXT)")
    database.close()
    with pytest.raises(BadInput, match="cannot be read as a bag"):
        BagSource(str(path), Selection())


def test_a_recording_for_foxglove_is_no_bag(tmp_path: Path) -> None:
    pytest.importorskip("foxglove", reason="needs the Foxglove SDK")
    from perception.sinks.recording import McapSink

    sink = McapSink(tmp_path / "drive.mcap")
    sink.write(make_output(road_image()))
    sink.close()
    with pytest.raises(BadInput, match=r"no bag of ROS 2: its messages are json, protobuf, not cdr"):
        BagSource(str(tmp_path / "drive.mcap"), Selection())


def test_folders_of_images_are_no_bags(tmp_path: Path) -> None:
    assert not is_bag(tmp_path)
    assert not is_bag(tmp_path / "drive.mp4")
    assert not is_bag(tmp_path / "missing")


# -- Out ---------------------------------------------------------------------------------------------------------------


def written(bag: Path) -> dict[str, list[tuple[int, Any]]]:
    """(time of recording, message) by topic, with rosbags."""
    found: dict[str, list[tuple[int, Any]]] = {}
    with rosbag2.Reader(bag) as reader:
        for connection, log_ns, raw in reader.messages(reader.connections):
            found.setdefault(connection.topic, []).append((log_ns, STORE.deserialize_cdr(raw, connection.msgtype)))
    return found


def stamp_of(message: Any) -> int:
    return int(message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec)


def test_the_frame_of_a_header_is_kept_whatever_it_is_called(tmp_path: Path, tiny_engine: Engine) -> None:
    message = picture(0, image=road_image())
    message.header.frame_id = "camera"  # as many drivers call it, and we where nobody knows
    bag = write_bag(tmp_path / "drive", [("/camera/image_raw", RAW, BEGIN_NS, message)])
    results: list[Freespace] = []
    with BagSource(str(bag), Selection()) as source:
        run(source, tiny_engine, [], Config(capture=CaptureConfig(frame_id="front")), on_result=results.append)
    assert [result.frame_id for result in results] == ["camera"]


def test_a_bag_goes_in_and_a_bag_with_the_same_stamps_comes_out(tmp_path: Path, tiny_engine: Engine) -> None:
    bag = write_bag(tmp_path / "drive", drive(6, image=road_image()))
    out = tmp_path / "result"
    with BagSource(str(bag), Selection()) as source:
        sink = BagSink(out, (*SMALL_TOPICS, "mask", "overlay/compressed"))
        summary = run(source, tiny_engine, [sink], Config())
    assert (summary.frames, sink.made, parts_in(tmp_path)) == (6, f"bag {out}", [])
    topics, stamps = written(out), [BEGIN_NS + n * STEP_NS for n in range(6)]
    assert sorted(topics) == [
        "/diagnostics",
        "/freespace/markers",
        "/freespace/mask",
        "/freespace/overlay/compressed",
        "/freespace/polygons",
        "/freespace/polygons_json",
    ]
    for name in ("/freespace/polygons", "/freespace/mask", "/freespace/overlay/compressed"):
        assert [log_ns for log_ns, _ in topics[name]] == [stamp + LATE_NS for stamp in stamps]
        assert [stamp_of(message) for _, message in topics[name]] == stamps
        assert {message.header.frame_id for _, message in topics[name]} == {"front_camera"}
    results = [Freespace.from_json(message.data) for _, message in topics["/freespace/polygons_json"]]
    assert [result.stamp_ns for result in results] == stamps
    assert {result.clock for result in results} == {"ros"}
    # The lower half of 128 by 64 pixels is road: its outline runs between pixels.
    points = [(p.x, p.y) for p in topics["/freespace/polygons"][0][1].polygon.polygon.points]
    assert sorted(points) == [(-0.5, 31.5), (-0.5, 63.5), (127.5, 31.5), (127.5, 63.5)]
    mask = topics["/freespace/mask"][0][1]
    assert (mask.data.reshape(64, 128) == np.repeat([0, 255], 32)[:, None]).all()
    # The result is a bag whose pictures can be run again.
    with BagSource(str(out), Selection(), "/freespace/mask") as source:
        assert [frame.stamp_ns for frame in source.frames()] == stamps


@pytest.mark.parametrize("late_ns", [600 * 1_000_000_000, -600 * 1_000_000_000])
def test_results_lie_where_their_images_lie_whatever_clock_the_driver_stamps_by(
    tmp_path: Path, tiny_engine: Engine, late_ns: int
) -> None:
    recorded = [BEGIN_NS + n * STEP_NS for n in range(4)]
    stamps = [log_ns - late_ns for log_ns in recorded]
    images = [picture(n, stamp_ns, road_image()) for n, stamp_ns in enumerate(stamps)]
    bag = write_bag(tmp_path / "drive", [("/image", RAW, at, image) for at, image in zip(recorded, images, strict=True)])
    with BagSource(str(bag), Selection()) as source:
        run(source, tiny_engine, [BagSink(tmp_path / "result")], Config())
    topics = written(tmp_path / "result")
    assert [log_ns for log_ns, _ in topics["/freespace/polygons"]] == recorded
    assert [stamp_of(message) for _, message in topics["/freespace/polygons"]] == stamps
    ((logged, diagnostics),) = topics["/diagnostics"]
    assert (logged, stamp_of(diagnostics)) == (recorded[0], stamps[0])


def test_what_is_said_without_an_image_lies_after_the_newest_one(tmp_path: Path) -> None:
    sink, given = BagSink(tmp_path / "out"), make_output(road_image(), stamp_ms=100_000)
    sink.write(replace(given, frame=replace(given.frame, logged_ns=700_000_000_000)))
    sink.write_without_frame(invalid(given).result)
    sink.close()
    first, second = (log_ns for log_ns, _ in written(tmp_path / "out")["/freespace/polygons_json"])
    assert first == 700_000_000_000
    assert first < second < first + 60_000_000_000


def test_a_bag_that_is_looped_goes_on_on_its_time_line(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "drive", drive(3))
    with LoopedSource(BagSource(str(bag), Selection()), lambda: BagSource(str(bag), Selection())) as source:
        frames = list(itertools.islice(source.frames(), 5))
    assert [f.logged_ns for f in frames] == [BEGIN_NS + n * STEP_NS + LATE_NS for n in range(5)]


def test_what_is_on_the_ground_is_in_the_bag_and_is_taken_back(tmp_path: Path) -> None:
    sink = BagSink(tmp_path / "out", (*SMALL_TOPICS, "tf_static"))
    good = grounded()
    sink.write(good)
    lost = Cause(Code.STALLED, "No frame comes.")
    silent = replace(good.result, valid=False, state="stale", polygons=[], ground=None, causes=[lost])
    sink.write_without_frame(silent)
    sink.close()
    topics = written(tmp_path / "out")
    assert [len(m.ranges) for _, m in topics["/freespace/scan"]] == [4, 0]
    assert [int((m.data == 0).sum()) for _, m in topics["/freespace/occupancy"]] == [4 * 2 * 16, 0]
    assert [m.polygon.id for _, m in topics["/freespace/polygons"]] == [0, -1]
    ((_, transform),) = topics["/tf_static"]
    assert (transform.transforms[0].header.frame_id, transform.transforms[0].child_frame_id) == ("base", "front_camera")
    first, second = (log_ns for log_ns, _ in topics["/freespace/polygons_json"])
    assert first == good.frame.stamp_ns
    assert second > first  # it was said later
    with rosbag2.Reader(tmp_path / "out") as reader:
        latched = {c.topic: c.ext.offered_qos_profiles[0].durability.name for c in reader.connections}
    assert latched["/tf_static"] == "TRANSIENT_LOCAL"
    assert latched["/freespace/scan"] == "VOLATILE"


def test_results_before_the_first_frame_and_not_valid_ones_are_written(tmp_path: Path) -> None:
    sink, given = BagSink(tmp_path / "out"), invalid(grounded())
    sink.write_without_frame(replace(given.result, seq=-1, stamp_ns=0, clock="media"))
    sink.write(given)
    sink.close()
    topics = written(tmp_path / "out")
    assert [log_ns for log_ns, _ in topics["/freespace/polygons_json"]] == [0, given.frame.stamp_ns]
    assert [(log_ns, m.polygon.id) for log_ns, m in topics["/freespace/polygons"]] == [(given.frame.stamp_ns, -1)]
    assert [stamp_of(m) for _, m in topics["/freespace/markers"] for m in m.markers[:1]] == [given.frame.stamp_ns]
    assert len(topics["/freespace/occupancy"]) == 1


def test_the_metadata_is_what_ros_reads(tmp_path: Path) -> None:
    import yaml

    sink = BagSink(tmp_path / "out", ("polygons_json",))
    sink.write(make_output(road_image(), stamp_ms=1500))
    sink.write(make_output(road_image(), 1, stamp_ms=2500))
    sink.close()
    told = yaml.safe_load((tmp_path / "out" / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert (told["storage_identifier"], told["relative_file_paths"]) == ("mcap", ["out.mcap"])
    assert told["starting_time"]["nanoseconds_since_epoch"] == 1_500_000_000
    assert told["duration"]["nanoseconds"] == 1_000_000_000
    assert told["message_count"] == 2
    (topic,) = told["topics_with_message_count"]
    assert topic["topic_metadata"]["name"] == "/freespace/polygons_json"
    assert topic["topic_metadata"]["type"] == "std_msgs/msg/String"
    # The hash that ROS 2 itself gives std_msgs/msg/String.
    hashed = "RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18"
    assert topic["topic_metadata"]["type_description_hash"] == hashed
    assert yaml.safe_load(topic["topic_metadata"]["offered_qos_profiles"])[0]["depth"] == 10


def test_a_real_ros_2_reads_every_message(tmp_path: Path) -> None:
    serialization = pytest.importorskip("rclpy.serialization", reason="needs rclpy")
    out = tmp_path / "out"
    sink, given = BagSink(out, (*SMALL_TOPICS, "mask", "scores", "overlay", "overlay/compressed")), grounded()
    sink.write(given)
    sink.close()
    read_back: dict[str, Any] = {}
    with rosbag2.Reader(out) as reader:
        for connection, _, raw in reader.messages(reader.connections):
            message = serialization.deserialize_message(bytes(raw), of_rclpy(connection.msgtype))
            read_back[connection.topic] = message
    assert len(read_back) == 10
    stamped = [m for m in read_back.values() if hasattr(m, "header")]
    assert {stamp_of(m) for m in stamped} == {given.frame.stamp_ns}
    line = read_back["/freespace/markers"].markers[1]
    assert [(p.x, p.y) for p in line.points][:2] == [(6.0, -1.0), (10.0, -1.0)]
    assert read_back["/freespace/scan"].ranges[1] == 9.5
    assert read_back["/diagnostics"].status[0].level == b"\x01"
    assert read_back["/freespace/polygons"].polygon.polygon.points[1].x == 10.0
    assert Freespace.from_json(read_back["/freespace/polygons_json"].data).to_json() == given.result.to_json()


def test_a_bag_has_no_name_before_it_is_whole(tmp_path: Path) -> None:
    sink = BagSink(tmp_path / "out")
    sink.write(make_output(road_image()))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.part"]
    sink.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["metadata.yaml", "out.mcap"]


def test_without_a_result_there_is_no_bag(tmp_path: Path) -> None:
    sink = BagSink(tmp_path / "out")
    sink.close()
    assert sink.made == ""
    assert list(tmp_path.iterdir()) == []


def test_of_a_run_that_was_killed_what_was_written_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perception.sinks.bag.SYNC_S", 0.0)
    sink = BagSink(tmp_path / "out", ("mask",))
    for n in range(3):
        sink.write(make_output(road_image(), n, stamp_ms=100 * (n + 1)))
    shutil.copytree(tmp_path / ".out.part" / "out", tmp_path / "copy")  # what the disk has at this moment
    sink.close()
    frames, source = read(tmp_path / "copy")
    assert [frame.stamp_ns for frame in frames] == [100_000_000, 200_000_000, 300_000_000]
    assert "is not whole" in source.problems[0]


def test_a_full_disk_leaves_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = BagSink(tmp_path / "out")
    sink.write(make_output(road_image()))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sink._writer, "write", full)
    with pytest.raises(OSError, match="No space"):
        sink.write(make_output(road_image(), 1))
    sink.close()
    assert not (tmp_path / "out").exists()
    assert sink.made == f"what could be written of the bag: {tmp_path / '.out.part'}"


def test_a_bag_is_replaced_only_when_asked_and_nothing_else_is(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def make(overwrite: bool = False) -> None:
        sink = BagSink(out, ("polygons_json",), overwrite)
        sink.write(make_output(road_image()))
        sink.close()

    make()
    with pytest.raises(BadInput, match="exists already; give --overwrite"):
        make()
    before = (out / "out.mcap").stat().st_ino
    make(overwrite=True)
    assert (out / "out.mcap").stat().st_ino != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    holiday = tmp_path / "holiday"
    holiday.mkdir()
    (holiday / "beach.jpg").write_bytes(b"x")
    with pytest.raises(BadInput, match="is no bag; choose another name"):
        check_bag(holiday, overwrite=True)
    with pytest.raises(BadInput, match="is a folder"):
        check_bag(tmp_path / "out.mcap", overwrite=False)
    (tmp_path / ".left.part").mkdir()
    with pytest.raises(BadInput, match="did not finish"):
        check_bag(tmp_path / "left", overwrite=False)
    check_bag(tmp_path / "left", overwrite=True)


def test_an_unknown_topic_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no such topics: lidar; there are polygons, .*overlay/compressed"):
        BagSink(tmp_path / "out", ("polygons", "lidar"))  # type: ignore[arg-type]


def test_a_source_can_be_closed_by_another_thread_while_it_is_read(tmp_path: Path) -> None:
    for storage in ("mcap", "sqlite3"):
        source = BagSource(str(write_bag(tmp_path / storage, drive(), storage)), Selection())
        frames: list[Any] = []
        reader: Callable[[], None] = lambda source=source, frames=frames: frames.extend(source.frames())  # noqa: E731
        thread = threading.Thread(target=reader)
        thread.start()
        thread.join(10)
        assert len(frames) == 10
        source.close()
        source.close()
        suspended = BagSource(str(tmp_path / storage), Selection())
        next(suspended.frames())
        suspended.close()


def test_nothing_is_imported_before_a_bag_is_opened() -> None:
    script = (
        "import sys, perception.capture.bag, perception.sinks.bag;"
        "print([name for name in ('rosbags', 'mcap', 'rclpy', 'foxglove') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
