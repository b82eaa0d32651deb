"""A ROS 2 bag of what the node publishes, without ROS: to be opened in Foxglove or RViz beside the drive.

The topics are those of `perception.ros.outputs` under ``/freespace``, ``/diagnostics`` once a second, and ``/tf_static`` where
it is asked for. Stamps and frames of the headers are those of the images; a message is logged when the message of its image
was, so that it lies where the image lies in the bag of the drive, and where there is no such bag at the stamp of its image.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from perception.config import SMALL_TOPICS, BagTopic
from perception.errors import BadInput
from perception.frame import SECOND_NS, Frame
from perception.freespace import Freespace
from perception.messages import Messages
from perception.ros.outputs import picture_topics, result_topics
from perception.sinks.base import Output, Sink, make_folder, part_of
from perception.sinks.ground_channels import CELL_M
from perception.sinks.jsonl import SYNC_S
from perception.sinks.recording import said_ns
from perception.status import Status

NAMESPACE = "/freespace"
METADATA = "metadata.yaml"


class BagSink(Sink):
    """Writes a folder of rosbag2 (MCAP, compressed); it gets its name when it is closed.

    Every second what was written is handed to the disk: of a run that was killed the file ``NAME/NAME.mcap`` in the hidden
    folder ``.NAME.part`` can be read up to there.

    Args:
        topics: what is written; the pictures are large.
        overwrite: replace the bag that is there.
        status: how the run is doing, for ``/diagnostics``.
        resolution_m: of ``occupancy``.

    Raises:
        BadInput: a topic is unknown, ``rosbags`` is not installed, or as `check_bag`.
    """

    def __init__(
        self,
        folder: Path,
        topics: Sequence[BagTopic] = SMALL_TOPICS,
        overwrite: bool = False,
        status: Callable[[], Status] = Status,
        resolution_m: float = CELL_M,
    ) -> None:
        if unknown := sorted(set(topics) - set(get_args(BagTopic))):
            raise BadInput(f"{folder}: no such topics: {', '.join(unknown)}; there are {', '.join(get_args(BagTopic))}")
        try:
            from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
            from rosbags.typesys import Stores, get_typestore
        except ImportError as error:
            raise BadInput(f"{folder}: a bag needs rosbags; pip install '.[bags]' in the project's folder") from error
        check_bag(folder, overwrite)
        self.target, self._status, self._wanted = folder, status, frozenset(topics)
        self._store: Any = get_typestore(Stores.ROS2_JAZZY)
        self._make = make = Messages(self._store.types.__getitem__)
        self._topics = [
            topic
            for topic in (*result_topics(make), *picture_topics(make, resolution_m))
            if topic.name.removeprefix("~/") in self._wanted
        ]
        self._part = part_of(folder.absolute())
        shutil.rmtree(self._part, ignore_errors=True)
        # Within a folder of its own: the name of the bag becomes that of the files in it.
        self._writer: Any = Writer(self._part / folder.name, version=8, storage_plugin=StoragePlugin.MCAP)
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.open()
        self._connections: dict[str, Any] = {}
        self._newest: Output | None = None
        self._diagnosed_ns: int | None = None
        self._synced = time.monotonic()
        self._failed = False

    def write(self, output: Output) -> None:
        first = self._newest is None
        self._newest = output
        at, stamp_ns = max(0, logged_ns(output.frame)), max(0, output.frame.stamp_ns)  # the format has none before 0
        if first and output.metres and "tf_static" in self._wanted:
            transform = self._make.transform(output.metres.camera, output.frame.frame_id, stamp_ns)
            self._log("/tf_static", "tf2_msgs/msg/TFMessage", transform, at, latched=True)
        self._report(output, at, stamp_ns)

    def write_without_frame(self, result: Freespace) -> None:
        newest = self._newest
        stamp_ns = max(0, said_ns(result, (newest.frame.stamp_ns, newest.frame.grabbed_ns) if newest else None))
        at = stamp_ns + max(0, logged_ns(newest.frame)) - max(0, newest.frame.stamp_ns) if newest else stamp_ns
        self._report(replace(newest, result=result, scores=np.zeros_like(newest.scores)) if newest else result, at, stamp_ns)

    def _report(self, output: Output | Freespace, at: int, stamp_ns: int) -> None:
        """Log its messages ``at`` that time; ``stamp_ns`` is that of what is about no image."""
        for topic in self._topics:
            if topic.always or isinstance(output, Output):
                for message in topic.messages(output):
                    self._log(NAMESPACE + topic.name.removeprefix("~"), topic.kind, message, at)
        if "diagnostics" in self._wanted and (self._diagnosed_ns is None or abs(at - self._diagnosed_ns) >= SECOND_NS):
            self._diagnosed_ns = at
            message = self._make.diagnostics(self._status(), stamp_ns)
            self._log("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", message, at)
        if time.monotonic() - self._synced > SYNC_S:
            self._sync()

    def _log(self, topic: str, kind: str, message: Any, at: int, latched: bool = False) -> None:
        self._failed = True
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self._store, offered_qos_profiles=[quality_of_service(latched)]
            )
        self._writer.write(self._connections[topic], at, self._store.serialize_cdr(message, kind))
        self._failed = False

    def _sync(self) -> None:
        storage, self._failed = self._writer.storage, True
        if storage.chunk.msgs:
            storage.close_chunk()
        storage.bio.flush()
        os.fsync(storage.bio.fileno())
        self._synced, self._failed = time.monotonic(), False

    def close(self) -> None:
        self.made = f"what could be written of the bag: {self._part}"
        if self._failed:
            with suppress(OSError):  # that has been said
                self._writer.abort()
            return
        if not self._connections:
            self._writer.abort()
            shutil.rmtree(self._part)
            self.made = ""
            return
        self._writer.close()
        with open(self._writer.metapath, "rb") as metadata:
            os.fsync(metadata.fileno())
        put_in_place(self._part, self.target)
        self.made = f"bag {self.target}"


def logged_ns(frame: Frame) -> int:
    """Where a frame lies on the time line of a bag, nanoseconds."""
    return frame.stamp_ns if frame.logged_ns is None else frame.logged_ns


def put_in_place(part: Path, final: Path) -> None:
    """Give the finished bag in the folder ``part`` its name; a bag that has it already goes only then. Raises OSError."""
    old = part / f"{final.name}.old"
    if final.exists():
        final.rename(old)
    (part / final.name).rename(final)
    shutil.rmtree(part)


def check_bag(folder: Path, overwrite: bool) -> None:
    """Make sure before any work that the bag ``folder`` can be written, making the folder it lies in.

    Raises:
        BadInput: it exists and ``overwrite`` is off, or is no bag, or it cannot be written.
    """
    if not folder.name or folder.suffix.lower() in (".mcap", ".db3", ".bag"):
        raise BadInput(f"{folder}: a bag of ROS 2 is a folder; give the name of one that is to be made")
    if folder.exists():
        if not (folder / METADATA).is_file():
            raise BadInput(f"{folder}: exists already, and is no bag; choose another name")
        if not overwrite:
            raise BadInput(f"{folder}: exists already; give --overwrite to replace it")
    part = part_of(folder)
    if part.exists() and not overwrite:
        raise BadInput(f"{part}: left by a run that did not finish; look at it, or give --overwrite to replace it")
    make_folder(folder.parent)


def quality_of_service(latched: bool) -> Any:
    """What a player offers a topic with: reliable; ``latched``: also to those who come late."""
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    never = QosTime(2147483647, 4294967295)
    return Qos(
        QosHistory.KEEP_LAST,
        1 if latched else 10,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        never,
        never,
        QosLiveliness.AUTOMATIC,
        never,
        False,
    )
