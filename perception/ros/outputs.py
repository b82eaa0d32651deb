"""What goes out: topics as sinks, and the newest output as files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from perception.errors import FreespaceError
from perception.freespace import Freespace
from perception.messages import Messages
from perception.overlay import draw
from perception.polygons import exact_mask
from perception.sinks.base import Output, Sink, part_of, write_whole

POLYGONS_WAITING = 200  # one message for each ring


@dataclass(frozen=True)
class Topic:
    """A topic of the node.

    Attributes:
        name: ``~/mask``, the node's own name for ``~``.
        kind: of its messages.
        messages: builds those of one output.
        waiting: how many a subscriber may be behind before the oldest is lost.
        always: whether ``messages`` also takes a result before the first frame, whose header there is no image for.
    """

    name: str
    kind: str
    messages: Callable[[Any], Iterable[Any]]
    waiting: int = 1
    always: bool = False


def result_topics(make: Messages) -> list[Topic]:
    """What takes next to no time to build: every result is published."""
    return [
        Topic("~/polygons_json", "std_msgs/msg/String", lambda o: [make.polygons_json(o)], 10, always=True),
        Topic("~/polygons", "geometry_msgs/msg/PolygonInstanceStamped", make.polygons, POLYGONS_WAITING),
        Topic("~/scan", "sensor_msgs/msg/LaserScan", lambda o: present(make.scan(o))),
        Topic("~/markers", "visualization_msgs/msg/MarkerArray", lambda o: [make.markers(o)]),
    ]


def picture_topics(make: Messages, resolution_m: float) -> list[Topic]:
    """What takes a while to build: newer ones take the place of those that there is no time for."""
    return [
        Topic("~/mask", "sensor_msgs/msg/Image", lambda o: [make.mask(o)]),
        Topic("~/scores", "sensor_msgs/msg/Image", lambda o: [make.scores(o)]),
        Topic("~/occupancy", "nav_msgs/msg/OccupancyGrid", lambda o: present(make.occupancy(o, resolution_m))),
        Topic("~/overlay/compressed", "sensor_msgs/msg/CompressedImage", lambda o: [make.overlay_compressed(o)]),
        Topic("~/overlay", "sensor_msgs/msg/Image", lambda o: [make.overlay(o)]),
    ]


DEBUG = {name: f"~/debug/{name}" for name in ("cyclic_time_ms", "processing_time_ms", "pipeline_latency_ms")}
DEBUG_KIND = "std_msgs/msg/Float64"


def present(message: Any) -> list[Any]:
    return [] if message is None else [message]


class TopicSink(Sink):
    """Publishes each topic while somebody subscribes to it, and builds nothing else.

    A result without a frame is about the newest frame that had one: nothing in that is free any more.

    Args:
        publishers: by the names of ``topics``: what rclpy makes.
    """

    def __init__(self, topics: Sequence[Topic], publishers: Mapping[str, Any]) -> None:
        self.target = Path(topics[0].name)
        self._topics = [(publishers[topic.name], topic) for topic in topics]
        self._newest: Output | None = None

    def write(self, output: Output) -> None:
        self._newest = output
        self._publish(output)

    def write_without_frame(self, result: Freespace) -> None:
        newest = self._newest
        self._publish(replace(newest, result=result, scores=np.zeros_like(newest.scores)) if newest else result)

    def _publish(self, output: Output | Freespace) -> None:
        for publisher, topic in self._topics:
            if publisher.get_subscription_count() and (topic.always or isinstance(output, Output)):
                for message in topic.messages(output):
                    publisher.publish(message)

    def close(self) -> None:
        self._newest = None


class ResultSink(TopicSink):
    """The topics of `result_topics`."""


class PictureSink(TopicSink):
    """The topics of `picture_topics`."""

    lossless = False


class DebugSink(Sink):
    """Publishes how long things take, in milliseconds: what `DEBUG` names. Of an image without a stamp no latency is known.

    Args:
        publishers: by topic.
        now_ns: of the clock that images are stamped by.
    """

    listened = False
    target = Path("~/debug")

    def __init__(self, make: Messages, publishers: Mapping[str, Any], now_ns: Callable[[], int]) -> None:
        self._make, self._publishers, self._now_ns = make, publishers, now_ns
        self._before_ns: int | None = None

    def write(self, output: Output) -> None:
        result = output.result
        before, self._before_ns = self._before_ns, result.published_ns
        values = {"processing_time_ms": result.latency_ms["total"]}
        if result.stamp_ns:
            values["pipeline_latency_ms"] = (self._now_ns() - result.stamp_ns) / 1e6
        if before is not None:
            values["cyclic_time_ms"] = (result.published_ns - before) / 1e6
        for name, value in values.items():
            publisher = self._publishers[DEBUG[name]]
            if publisher.get_subscription_count():
                publisher.publish(self._make.float(value))

    def close(self) -> None:
        pass


class Snapshot(Sink):
    """Remembers the newest output, for whoever wants to have it as files."""

    lossless = False
    listened = False
    target = Path("snapshot")

    def __init__(self) -> None:
        self._newest: Output | None = None

    def write(self, output: Output) -> None:
        self._newest = output

    def close(self) -> None:
        self._newest = None

    def save(self, folder: Path) -> Path:
        """Write ``overlay.png``, ``mask.png`` (0 and 255), ``frame.png`` and ``result.json`` of the newest frame.

        Returns:
            the folder they are in, ``folder``/STAMP in nanoseconds; there already where that result was written before.
            Another result with that stamp goes to STAMP-PUBLISHED.

        Raises:
            FreespaceError: there is no result yet, or the files cannot be written.
        """
        output = self._newest
        if output is None:
            raise FreespaceError("there is no result to write yet")
        result, said = output.result, output.result.to_json().encode()
        final = (folder / str(result.stamp_ns)).absolute()
        known = final / "result.json"
        if known.is_file() and known.read_bytes() != said:  # stamps come again: a bag in a loop, a driver that sets none
            final = final.with_name(f"{final.name}-{result.published_ns}")
        part = part_of(final)
        pictures = {
            "overlay.png": draw(output.frame.image, output.result, output.metres),
            "mask.png": exact_mask(output.scores, output.resampling, output.polygons),
            "frame.png": output.frame.image,
        }
        try:
            if not final.exists():
                part.mkdir(parents=True, exist_ok=True)
                for name, picture in pictures.items():
                    write_whole(part / name, cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())
                write_whole(part / "result.json", said)
                part.rename(final)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise FreespaceError(f"{final}: cannot be written: {error.strerror or error}") from error
        return final
