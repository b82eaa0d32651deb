"""ROS 2 bags, without ROS: folders of rosbag2, and single ``.mcap`` and ``.db3`` files, through ``rosbags``.

A recorder that was killed leaves a folder without ``metadata.yaml``, an MCAP file without its index, a database that ends in
the middle or still has its journal beside it. Of those is read what is there, in the order in which it was written.
"""

from __future__ import annotations

import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perception.capture.base import Selection, Source
from perception.capture.images import natural
from perception.errors import BadInput, FreespaceError
from perception.frame import SECOND_NS, Frame

if TYPE_CHECKING:
    from calibration.camera import Intrinsics

IMAGE, COMPRESSED, CAMERA_INFO = (f"sensor_msgs/msg/{kind}" for kind in ("Image", "CompressedImage", "CameraInfo"))
FILES = (".mcap", ".db3")
METADATA = "metadata.yaml"
JUMP_NS = SECOND_NS  # stamps that go back further than this: the clock began again


def is_bag(path: Path) -> bool:
    """Whether ``path``, by its name or by what is in the folder, is meant to be a bag. ROS 1's ``.bag`` is, and is refused."""
    if path.is_dir():
        return (path / METADATA).is_file() or any(storage_files(path))
    return path.suffix.lower() in (*FILES, ".bag")


class BagSource(Source):
    """The pictures of one topic of a bag, in the order in which they were recorded.

    ``stamp_ns`` and ``frame_id`` are those of the message's header; where a driver left the stamp 0, the time of recording,
    which is ``logged_ns`` in any case. ``seq`` counts the topic's messages from where one starts. A picture that is not newer
    than the one before it came too late and counts as dropped, as does one that cannot be decoded; where stamps go back by
    more than a second the clock began again, and the pictures go on. ``start_s`` and ``duration_s`` are counted from the
    topic's first picture, by the times of recording.

    Args:
        topic: of ``sensor_msgs/Image`` or ``CompressedImage``; None takes the only one.

    Attributes:
        topic: the one that is read.

    Raises:
        BadInput: it is no ROS 2 bag, there are several such topics and none is given, no such topic, or a package is missing.
    """

    def __init__(self, uri: str, selection: Selection, topic: str | None = None) -> None:
        self._selection = selection
        self._bag = Bag(Path(uri))
        try:
            self.topic = choose(uri, self._bag.topics, topic)
        except BadInput:
            self._bag.close()
            raise
        kind, count = self._bag.topics[self.topic]
        length_s = self._bag.length_s
        rate = (count - 1) / length_s if count and count > 1 and length_s else None
        total = count
        if count and rate:
            taken = max(0.0, count / rate - selection.start_s)
            if selection.duration_s is not None:
                taken = min(taken, selection.duration_s)
            total = max(1, round(taken * rate))
        super().__init__(
            uri,
            rate / selection.every if rate else None,
            -(-total // selection.every) if total else None,
            problems=self._bag.problems,
            detail=f"{self.topic}, {kind}",
            clock="ros",
        )

    def frames(self) -> Iterator[Frame]:
        from perception.messages import image_from_message

        selection, kind = self._selection, self._bag.topics[self.topic][0]
        newest_ns, stretch, unstamped, seq = None, 0, False, -1
        started = time.perf_counter_ns()
        for seq, (log_ns, data) in enumerate(self._selected()):
            if seq % selection.every:
                started = time.perf_counter_ns()
                continue
            try:
                message = self._bag.decode(data, kind)
                stamp_ns = message.header.stamp.sec * SECOND_NS + message.header.stamp.nanosec
                if not stamp_ns:
                    stamp_ns = log_ns
                    if not unstamped:
                        unstamped = True
                        self.problems.append(f"{self.uri}: {self.topic} has no stamps; the times of recording stand for them")
                if newest_ns is not None and stamp_ns <= newest_ns:
                    back_ns = newest_ns - stamp_ns
                    if back_ns <= JUMP_NS:
                        raise FreespaceError(f"it is {back_ns / 1e6:.1f} ms older than the one before it")
                    stretch += 1
                    self.problems.append(f"{self.uri}: the stamps of {self.topic} go back by {back_ns / 1e9:.1f} s at {seq}")
                image = image_from_message(message)
            except BadInput:
                raise
            except FreespaceError as error:
                self.lost(f"{self.uri}: frame {seq} was left out: {error}")
                continue
            newest_ns = stamp_ns
            yield Frame(
                image,
                seq,
                stamp_ns,
                "ros",
                self.uri,
                frame_id=message.header.frame_id,
                name=f"{seq:06d}",
                decode_ms=(time.perf_counter_ns() - started) / 1e6,
                dropped=self.dropped,
                stretch=stretch,
                logged_ns=log_ns,
            )
            started = time.perf_counter_ns()
        if seq < 0 and selection.start_s:
            raise BadInput(
                f"{self.uri}: starts after its end: {self.topic} has no picture {selection.start_s:g} s after its first"
            )
        if newest_ns is None:
            why = f": {self.problems[-1]}" if self.problems else ""
            raise FreespaceError(f"{self.uri}: no frame of {self.topic} could be read{why}")

    def _selected(self) -> Iterator[tuple[int, bytes]]:
        """Time of recording and content of the messages of the part of the recording that is taken; at least one."""
        selection = self._selection
        first_ns = next((log_ns for log_ns, _ in self._bag.messages(self.topic)), None)
        if first_ns is None:
            return
        start_ns, end_ns = first_ns + round(selection.start_s * SECOND_NS), None
        if selection.duration_s is not None:
            end_ns = start_ns + round(selection.duration_s * SECOND_NS)
        taken = False
        for log_ns, data in self._bag.messages(self.topic, start_ns):
            if end_ns is not None and log_ns >= end_ns and taken:
                return
            taken = True
            yield log_ns, data

    def intrinsics(self) -> Intrinsics | None:
        """The camera by the first ``camera_info`` beside the topic; None where there is none, or an uncalibrated one."""
        from perception.messages import intrinsics_from_message

        base = self.topic.removesuffix("/compressed")
        topic = f"{base.rpartition('/')[0]}/camera_info"
        if self._bag.topics.get(topic, ("", 0))[0] != CAMERA_INFO:
            return None
        for _, data in self._bag.messages(topic):
            try:
                return intrinsics_from_message(self._bag.decode(data, CAMERA_INFO))
            except FreespaceError:
                return None
        return None

    def close(self) -> None:
        self._bag.close()


def choose(uri: str, topics: dict[str, tuple[str, int | None]], wanted: str | None) -> str:
    """The topic to read. Raises `BadInput`: as `BagSource`, with the topics that there are."""
    images = {name: kind for name, (kind, count) in topics.items() if kind in (IMAGE, COMPRESSED) and count != 0}
    listed = ", ".join(f"{name} ({kind.rpartition('/')[2]})" for name, kind in sorted(images.items())) or "none"
    if wanted is not None:
        name = wanted if wanted.startswith("/") else f"/{wanted}"
        if name in images:
            return name
        what = f"is of {topics[name][0]}, or empty" if name in topics else "is not in this bag"
        raise BadInput(f"{uri}: the topic {name} {what}; topics with pictures: {listed}")
    pictures = [name for name in images if not name.endswith("/compressedDepth")]
    if not pictures:
        raise BadInput(f"{uri}: has no topic with pictures; its topics are {', '.join(sorted(topics)) or 'none'}")
    if len(pictures) > 1:
        raise BadInput(f"{uri}: has several topics with pictures, choose one with --topic: {listed}")
    return pictures[0]


# -- What is in a bag ----------------------------------------------------------------------------------------------------


class Part(ABC):
    """A file of a bag, or all of them.

    Attributes:
        topics: type and number of messages by name; None where nobody has counted.
        length_s: from the first message to the last; None where unknown.
        files: what it reads.
    """

    topics: dict[str, tuple[str, int | None]]
    length_s: float | None = None
    files: list[Path]

    @abstractmethod
    def messages(self, topic: str, start_ns: int) -> Iterator[tuple[int, bytes]]:
        """(time of recording, CDR) of the messages not before ``start_ns``, nanoseconds. Raises whatever the library does."""

    @abstractmethod
    def close(self) -> None:
        """Release the files."""


class Whole(Part):
    """What ``rosbags`` reads: a folder with its metadata, or a file with its index. Raises whatever the library does."""

    def __init__(self, path: Path) -> None:
        from rosbags.rosbag2 import Reader

        self.files = list(storage_files(path)) if path.is_dir() else [path]
        if any(Path(f"{file}-wal").exists() and Path(f"{file}-wal").stat().st_size for file in self.files):
            raise FreespaceError("its journal was not written back: the recorder was killed")
        self._reader: Any = Reader(path)
        self._reader.open()
        self._connections = list(self._reader.connections)
        self.topics = {}
        for connection in self._connections:
            count = self.topics.get(connection.topic, ("", 0))[1] or 0
            self.topics[connection.topic] = (connection.msgtype, count + connection.msgcount)
        self.length_s = self._reader.duration / 1e9

    def messages(self, topic: str, start_ns: int) -> Iterator[tuple[int, bytes]]:
        chosen = [connection for connection in self._connections if connection.topic == topic]
        for _, log_ns, data in self._reader.messages(chosen, start=start_ns):
            yield log_ns, data

    def close(self) -> None:
        self._reader.close()


class McapRemains(Part):
    """An MCAP file from its beginning as far as it goes; chunks that are broken are passed over.

    Attributes:
        encodings: of the messages in it: ``cdr`` is ROS 2's.
    """

    def __init__(self, path: Path) -> None:
        self.files, self.topics, self.encodings = [path], {}, set[str]()
        self._lost = 0
        for schema, channel, _ in self._records():
            self.encodings.add(channel.message_encoding)
            if channel.message_encoding == "cdr":
                count = self.topics.get(channel.topic, ("", 0))[1] or 0
                self.topics[channel.topic] = (schema.name if schema else "", count + 1)

    def messages(self, topic: str, start_ns: int) -> Iterator[tuple[int, bytes]]:
        self._lost = 0
        for _, channel, message in self._records():
            if channel.topic == topic and message.log_time >= start_ns:
                yield message.log_time, message.data
        if self._lost:
            raise FreespaceError(f"{self._lost} broken chunks were passed over")

    def _records(self) -> Iterator[tuple[Any, Any, Any]]:
        """(schema, channel, message) up to where the file breaks off."""
        from mcap.exceptions import McapError
        from mcap.records import Channel, Chunk, Message, Schema
        from mcap.stream_reader import StreamReader, breakup_chunk

        schemas: dict[int, Any] = {}
        channels: dict[int, Any] = {}
        with open(self.files[0], "rb") as file:
            records = StreamReader(file, emit_chunks=True).records
            while True:
                try:
                    record = next(records)
                except (StopIteration, McapError, ValueError, MemoryError):
                    return
                within: list[Any] = [record]
                if isinstance(record, Chunk):
                    try:
                        within = list(breakup_chunk(record, validate_crc=True))
                    except Exception:  # each way of compression has errors of its own
                        self._lost += 1
                        continue
                for item in within:
                    if isinstance(item, Schema):
                        schemas[item.id] = item
                    elif isinstance(item, Channel):
                        channels[item.id] = item
                    elif isinstance(item, Message) and item.channel_id in channels:
                        channel = channels[item.channel_id]
                        yield schemas.get(channel.schema_id), channel, item

    def close(self) -> None:
        pass


class SqliteRemains(Part):
    """A database in the order of its rows, up to where it breaks off. Raises sqlite3.Error: not even its topics can be read."""

    def __init__(self, path: Path) -> None:
        self.files = [path]
        with closing(self._connect()) as database:
            rows = database.execute("SELECT name, type FROM topics").fetchall()
        self.topics = {name: (kind, None) for name, kind in rows}

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(f"{self.files[0].absolute().as_uri()}?mode=ro", uri=True)
        database.execute("PRAGMA writable_schema = ON")  # else a file shorter than its header says is refused as a whole
        return database

    def messages(self, topic: str, start_ns: int) -> Iterator[tuple[int, bytes]]:
        with closing(self._connect()) as database:
            # By its rows, not by the index of times, which may be in the part that is missing.
            yield from database.execute(
                "SELECT timestamp, data FROM messages WHERE topic_id IN (SELECT id FROM topics WHERE name = ?)"
                " AND +timestamp >= ? ORDER BY messages.rowid",
                (topic, start_ns),
            )

    def close(self) -> None:
        pass


class Bag:
    """A bag, whole or not.

    Attributes:
        topics: type and number of messages (None: unknown) by name.
        length_s: from the first message to the last; None where unknown.
        problems: one sentence for each thing that is wrong with it, so far.

    Raises:
        BadInput: it is no ROS 2 bag, nothing can be read of it, or ``rosbags`` is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            from rosbags.typesys import Stores, get_typestore
        except ImportError as error:
            raise BadInput(f"{path}: a bag needs rosbags; pip install '.[bags]' in the project's folder") from error
        if path.suffix.lower() == ".bag" and path.is_file():
            raise BadInput(f"{path}: is a bag of ROS 1; 'rosbags-convert --src {path} --dst DIR' makes one of ROS 2 of it")
        self.path, self.problems = path, list[str]()
        # Pictures are the same in all of ROS 2; what else is in the bag needs no definition.
        self._store = get_typestore(Stores.ROS2_JAZZY)
        self._parts: list[Part] = []
        self._open()
        self.topics: dict[str, tuple[str, int | None]] = {}
        for part in self._parts:
            for name, (kind, count) in part.topics.items():
                before = self.topics.get(name, (kind, 0))[1]
                self.topics[name] = (kind, None if count is None or before is None else before + count)
        self.length_s = self._parts[0].length_s if len(self._parts) == 1 else None

    def _open(self) -> None:
        try:
            self._parts = [Whole(self.path)]
            return
        except Exception as error:  # broken files make libraries raise anything
            why = reason(error)
        files = list(storage_files(self.path)) if self.path.is_dir() else [self.path]
        encodings: set[str] = set()
        for file in files:
            try:
                part = Whole(file) if self.path.is_dir() else remains(file)
            except Exception:
                try:
                    part = remains(file)
                except Exception as error:
                    self.problems.append(f"{file}: cannot be read: {reason(error)}")
                    continue
            if isinstance(part, McapRemains):
                encodings |= part.encodings
            if part.topics:
                self._parts.append(part)
            else:
                self.problems.append(f"{file}: no message can be read")
        if not self._parts:
            if encodings:
                kinds = ", ".join(sorted(encodings))
                raise BadInput(
                    f"{self.path}: is an MCAP file, but no bag of ROS 2: its messages are {kinds}, not cdr; run the recording "
                    "that it was made from"
                )
            raise BadInput(f"{self.path}: cannot be read as a bag: {why}")
        self.problems.append(f"{self.path}: is not whole ({why}); what can be read of it is read")

    def messages(self, topic: str, start_ns: int = 0) -> Iterator[tuple[int, bytes]]:
        """(time of recording in nanoseconds, CDR) of the messages of ``topic`` not before ``start_ns``."""
        for part in self._parts:
            newest_ns = start_ns - 1
            try:
                for log_ns, data in part.messages(topic, start_ns):
                    newest_ns = max(newest_ns, log_ns)
                    yield log_ns, data
            except Exception as error:
                self._broken(error)
                if isinstance(part, Whole):
                    yield from self._rest(part, topic, newest_ns + 1)

    def _rest(self, part: Part, topic: str, start_ns: int) -> Iterator[tuple[int, bytes]]:
        """What can be read of a part that turned out to be broken."""
        for file in part.files:
            try:
                yield from remains(file).messages(topic, start_ns)
            except Exception as error:
                self._broken(error)

    def _broken(self, error: Exception) -> None:
        problem = f"{self.path}: is broken: {reason(error)}"
        if problem not in self.problems:
            self.problems.append(problem)

    def decode(self, data: bytes, kind: str) -> Any:
        """The message in CDR. Raises `FreespaceError`: it is none of that type."""
        try:
            return self._store.deserialize_cdr(memoryview(data), kind)
        except Exception as error:
            raise FreespaceError(f"is no message of {kind}: {reason(error)}") from error

    def close(self) -> None:
        parts, self._parts = self._parts, []
        for part in parts:
            part.close()


def remains(file: Path) -> Part:
    """A file that is not whole. Raises whatever the libraries do."""
    return SqliteRemains(file) if file.suffix.lower() == ".db3" else McapRemains(file)


def storage_files(folder: Path) -> Iterator[Path]:
    """The files of a bag's folder in their order: ``drive_2.mcap`` before ``drive_10.mcap``."""
    yield from sorted((file for file in folder.iterdir() if file.suffix.lower() in FILES and file.is_file()), key=natural)


def reason(error: Exception) -> str:
    """An error in few words."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
