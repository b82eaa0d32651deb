"""What the ROS node adds to a frame's way, beyond DDS itself.

    python -m benchmarks.ros_overhead --seconds 8

Two ways within this process, in rounds that take turns, with the same engine and the same pictures at 30 Hz:

- ``loop``: the loop of the command line; from where the source gives a picture to where a sink has its JSON;
- ``wrapped``: from where rclpy would hand the image's message to the node's callback to where the publisher of the JSON, which
  has a subscriber, has taken it: the conversion of the message, one more hand-over between threads, the message that goes out.

The overhead is the median of ``wrapped`` minus that of ``loop``, by round. And, for what DDS takes beside that, two ways from
this process to another one and back, reliable, depth 1:

- ``dds``: the other process answers every image with a text at once;
- ``node``: the other process is the node.

Times are medians of a round; the spread of the rounds, and how many frames came back, are printed with them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.capture.base import Source
from perception.config import Config, HealthConfig
from perception.frame import Frame
from perception.freespace import Freespace
from perception.messages import Messages
from perception.ros.outputs import ResultSink, Topic, result_topics
from perception.ros.source import TopicSource
from perception.sinks.base import Output, Sink

RATE_HZ = 30.0
TOPIC = "image_raw"
QUIET = Config(health=HealthConfig(enabled=False))  # pictures that come round are no camera's
ECHO = "echo"  # the argument that makes this module the other process


def pictures(clip: str, count: int) -> list[NDArray[np.uint8]]:
    """The first frames of a recording, uint8 BGR ``(H, W, 3)``."""
    from perception.capture import open_source

    taken: list[NDArray[np.uint8]] = []
    with open_source(clip) as source:
        for frame in source.frames():
            taken.append(frame.image.copy())
            if len(taken) == count:
                break
    return taken


class PacedPictures(Source):
    """The pictures in turn, at `RATE_HZ`, for so many seconds."""

    def __init__(self, images: list[NDArray[np.uint8]], seconds: float) -> None:
        super().__init__("pictures", live=True, clock="ros")
        self._images, self._count = images, round(seconds * RATE_HZ)
        self._over = threading.Event()

    def frames(self) -> Iterator[Frame]:
        began = time.monotonic()
        for number in range(self._count):
            if self._over.wait(max(0.0, began + number / RATE_HZ - time.monotonic())):
                return
            yield Frame(self._images[number % len(self._images)], number, time.time_ns(), "ros", self.uri)

    def close(self) -> None:
        self._over.set()


class Ways(Sink):
    """How long each frame's way was, in milliseconds, up to its JSON."""

    target = Path("ways")

    def __init__(self) -> None:
        self.ms: list[float] = []

    def write(self, output: Output) -> None:
        output.result.to_json()
        self.ms.append((time.time_ns() - output.result.stamp_ns) / 1e6)

    def close(self) -> None:
        pass


def loop_ways(images: list[NDArray[np.uint8]], seconds: float, engine: Any) -> list[float]:
    from perception.node import run

    ways = Ways()
    run(PacedPictures(images, seconds), engine, [ways], QUIET)
    return ways.ms


class PublishedWays(ResultSink):
    """How long each frame's way was, in milliseconds, up to where its messages were published."""

    def __init__(self, topics: list[Topic], publishers: dict[str, Any]) -> None:
        super().__init__(topics, publishers)
        self.ms: list[float] = []

    def write(self, output: Output) -> None:
        super().write(output)
        self.ms.append((time.time_ns() - output.result.stamp_ns) / 1e6)


def wrapped_ways(images: list[NDArray[np.uint8]], seconds: float, engine: Any) -> list[float]:
    rclpy = importlib.import_module("rclpy")
    from perception.node import run
    from perception.ros.node import message_class

    rclpy.init()
    node = rclpy.create_node("wrapped")
    make = Messages(message_class)
    topics = [topic for topic in result_topics(make) if topic.name == "~/polygons_json"]
    kind = message_class(topics[0].kind)
    node.create_subscription(kind, topics[0].name, lambda message: None, 10)
    sink = PublishedWays(topics, {topics[0].name: node.create_publisher(kind, topics[0].name, 10)})
    source = TopicSource(TOPIC)
    messages = [make.image(image, "bgr8", nobody(image)) for image in images]
    stop = threading.Event()

    def drive() -> None:
        began = time.monotonic()
        for number in range(round(seconds * RATE_HZ)):
            time.sleep(max(0.0, began + number / RATE_HZ - time.monotonic()))
            message = messages[number % len(messages)]
            message.header.stamp = make.time(time.time_ns())
            source.give(message)
        stop.set()

    camera = threading.Thread(target=drive, daemon=True)
    camera.start()
    run(source, engine, [sink], QUIET, stop)
    camera.join()
    node.destroy_node()
    rclpy.shutdown()
    return sink.ms


class Camera:
    """Publishes the pictures and hears what comes back."""

    def __init__(self, images: list[NDArray[np.uint8]]) -> None:
        rclpy, executors, qos = (importlib.import_module(name) for name in ("rclpy", "rclpy.executors", "rclpy.qos"))
        from perception.ros.node import message_class

        rclpy.init()
        self._rclpy, self._node = rclpy, rclpy.create_node("camera")
        self._executor = executors.SingleThreadedExecutor()
        self._executor.add_node(self._node)
        reliable = qos.QoSProfile(depth=1, reliability=qos.ReliabilityPolicy.RELIABLE)
        self._publisher = self._node.create_publisher(message_class("sensor_msgs/msg/Image"), TOPIC, reliable)
        text = message_class("std_msgs/msg/String")
        self._back = self._node.create_subscription(text, "/freespace/polygons_json", self._hear, reliable)
        self._make = Messages(message_class)
        self._images = images
        self._messages = [self._make.image(image, "bgr8", nobody(image)) for image in images]
        self._ms: list[float] = []

    def _hear(self, message: Any) -> None:
        now_ns = time.time_ns()
        data = json.loads(message.data)
        if data["latency_ms"]:
            self._ms.append((now_ns - data["stamp_ns"]) / 1e6)

    def ways(self, seconds: float) -> list[float]:
        """The way of every picture that something came back for."""
        end = time.monotonic() + 60.0
        while not self._publisher.get_subscription_count() or not self._node.count_publishers("/freespace/polygons_json"):
            if time.monotonic() > end:
                raise TimeoutError("the other process does not come up")
            self._executor.spin_once(0.05)
        self._drive(1.5)
        self._ms.clear()
        self._drive(seconds)
        return list(self._ms)

    def _drive(self, seconds: float) -> None:
        began = time.monotonic()
        for number in range(round(seconds * RATE_HZ)):
            message = self._messages[number % len(self._messages)]
            message.header.stamp = self._make.time(time.time_ns())
            self._publisher.publish(message)
            while (left := began + (number + 1) / RATE_HZ - time.monotonic()) > 0:
                self._executor.spin_once(left)

    def close(self) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        self._rclpy.try_shutdown()


def nobody(image: NDArray[np.uint8]) -> Freespace:
    """A result to make a message of a picture with."""
    return Freespace(0, "", "camera", 0, "ros", (image.shape[1], image.shape[0]), False, "starting", "", "", 0, [], {})


def echo() -> None:
    """The other process of ``dds``: answers every picture with a text as long as a result's."""
    rclpy, qos, executors = (importlib.import_module(name) for name in ("rclpy", "rclpy.qos", "rclpy.executors"))
    from perception.ros.node import message_class

    rclpy.init()
    node = rclpy.create_node("freespace")
    quality = qos.QoSProfile(depth=1, reliability=qos.ReliabilityPolicy.RELIABLE)
    text = message_class("std_msgs/msg/String")
    back = node.create_publisher(text, "/freespace/polygons_json", quality)
    filling = "x" * 3000

    def answer(message: Any) -> None:
        stamp_ns = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        back.publish(text(data=json.dumps({"stamp_ns": stamp_ns, "latency_ms": {"total": 0}, "filling": filling})))

    node.create_subscription(message_class("sensor_msgs/msg/Image"), TOPIC, answer, quality)
    with suppress(executors.ExternalShutdownException):
        rclpy.spin(node)


def other_process(way: str, arguments: argparse.Namespace) -> subprocess.Popen[bytes]:
    if way == "dds":
        return subprocess.Popen([sys.executable, "-m", "benchmarks.ros_overhead", ECHO])
    given = {
        "reliability": "reliable",
        "engine.backend": arguments.backend,
        "engine.threads": arguments.threads,
        "health.enabled": "false",
        **({"engine.model": arguments.model} if arguments.model else {}),
    }
    parameters = [part for name, value in given.items() for part in ("-p", f"{name}:={value}")]
    return subprocess.Popen([sys.executable, "-m", "perception.cli", "node", "--ros-args", *parameters])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", default="synthetic://drive?size=1280x720&seconds=1", help="pictures, as for 'freespace run'")
    parser.add_argument("--model", default="", help="model file; the shipped one by default")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dds-rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each way in each round")
    arguments = parser.parse_args()
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("ROS_DOMAIN_ID", str(os.getpid() % 100 + 1))

    from engine import open_engine

    images = pictures(arguments.clip, 15)
    ways: dict[str, list[list[float]]] = {"loop": [], "wrapped": [], "dds": [], "node": []}
    with open_engine(arguments.model or None, arguments.backend, threads=arguments.threads) as engine:
        loop_ways(images, 1.0, engine)  # until it is warm
        for _ in range(arguments.rounds):
            ways["loop"].append(loop_ways(images, arguments.seconds, engine))
            ways["wrapped"].append(wrapped_ways(images, arguments.seconds, engine))
    for _ in range(arguments.dds_rounds):
        for way in ("dds", "node"):
            process = other_process(way, arguments)
            camera = Camera(images)
            try:
                ways[way].append(camera.ways(arguments.seconds))
            finally:
                camera.close()
                process.terminate()
                process.wait(20)
    width, height = images[0].shape[1], images[0].shape[0]
    print(f"{width}x{height} at {RATE_HZ:g} Hz, {arguments.backend}, {arguments.threads} threads; p50 in ms, median of rounds")
    medians = {way: [median(ms) for ms in rounds if ms] for way, rounds in ways.items()}
    for way, values in medians.items():
        if values:
            came, asked = sum(map(len, ways[way])), round(len(ways[way]) * arguments.seconds * RATE_HZ)
            print(f"{way:<8}{median(values):8.2f}   rounds {min(values):.2f} to {max(values):.2f}, {came} of {asked} frames")
    over = [wrapped - loop for wrapped, loop in zip(medians["wrapped"], medians["loop"], strict=True)]
    print(f"wrapper beyond DDS: {median(over):.2f} (rounds {min(over):.2f} to {max(over):.2f})")


if __name__ == "__main__":
    if sys.argv[1:2] == [ECHO]:
        echo()
    else:
        main()
