"""The ROS 2 node over real DDS: it is a process of its own, and this one publishes images and listens.

The model decides by colour (``conftest.write_model``), so what must come out is known from the pixels.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Image, cli_environment, road_image

if importlib.util.find_spec("rclpy") is None:
    pytest.skip(
        "rclpy is not installed: on Linux x86-64 the extra ros has it, on a robot ROS 2 itself", allow_module_level=True
    )

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PolygonInstanceStamped
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import OccupancyGrid
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, LaserScan
from sensor_msgs.msg import Image as ImageMessage
from std_msgs.msg import Float64, String
from std_srvs.srv import Trigger

from calibration.camera import Intrinsics, Mount
from calibration.camera_file import write_camera
from engine import open_engine
from perception.capture import Selection, Source, open_source
from perception.config import load_config
from perception.frame import Frame
from perception.freespace import Freespace
from perception.messages import Messages, image_from_message
from perception.node import process
from perception.ros.node import message_class
from perception.ros.outputs import result_topics

ROOT = Path(__file__).parents[1]
LONG_S = 30.0  # nothing takes so long; a machine may be busy
SIZE = (128, 64)
CAMERA = "front_left_optical_frame"
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)


def road(number: int, size: tuple[int, int] = SIZE) -> Image:
    """`road_image` with something on it that changes from frame to frame, but no class."""
    return road_image(*size) + np.random.default_rng(number).integers(0, 3, (size[1], size[0], 1), np.uint8)


class NodeProcess:
    """``freespace node`` in a process of its own, with the tiny model."""

    def __init__(self, model: Path, folder: Path) -> None:
        self._model, self._folder = model, folder
        self.process: subprocess.Popen[str] | None = None

    def start(self, **parameters: object) -> None:
        """In place of one that still runs."""
        self.kill()
        values = {
            "engine.model": self._model,
            "engine.backend": "onnxruntime",
            "engine.threads": 1,
            "snapshot_folder": self._folder / "snapshots",
            **{name.replace("__", "."): value for name, value in parameters.items()},
        }
        given = [part for name, value in values.items() for part in ("-p", f"{name}:={value}")]
        command = [sys.executable, "-m", "perception.cli", "node", "--ros-args", *given]
        self.process = subprocess.Popen(command, env=cli_environment(self._folder), stderr=subprocess.PIPE, text=True)

    def send(self, number: signal.Signals) -> tuple[int, str]:
        """(exit code, what it said) after a signal."""
        assert self.process
        self.process.send_signal(number)
        try:
            _, said = self.process.communicate(timeout=LONG_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, said

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        if self.process and self.running:
            self.process.kill()
            self.process.communicate()


class Peer:
    """Everything else that is on the robot: a camera, and whoever listens. Keeps what came, by topic."""

    def __init__(self) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("peer", context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self.make = Messages(message_class)
        self.came: dict[str, list[tuple[int, Any]]] = {}
        self.published: dict[int, int] = {}  # number by stamp
        self.images = self.node.create_publisher(ImageMessage, "image_raw", RELIABLE)
        self.number = 0
        self.began_ns = 1_700_000_000_000_000_007  # stamps are the camera's business

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def listen(self, kind: type, topic: str, quality: QoSProfile = RELIABLE) -> list[tuple[int, Any]]:
        """What comes on a topic from now on, with the moment at which it came (Unix, ns)."""
        if topic not in self.came:
            came = self.came[topic] = []
            self.node.create_subscription(kind, topic, lambda message: came.append((time.time_ns(), message)), quality)
        self.came[topic].clear()
        return self.came[topic]

    def results(self) -> list[Freespace]:
        return [Freespace.from_json(message.data) for _, message in list(self.came["/freespace/polygons_json"])]

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._executor.spin_once(left)

    def wait(self, condition: Callable[[], Any], what: str, timeout_s: float = LONG_S) -> Any:
        end = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < end, f"{what}: not within {timeout_s:g} s"
            self._executor.spin_once(0.02)
        return value

    def publish(self, image: Image, stamp_ns: int | None = None, publisher: Any = None) -> int:
        """Publish a picture; the stamp it has."""
        stamp_ns = self.began_ns + self.number * 50_000_000 if stamp_ns is None else stamp_ns
        self.published[stamp_ns] = self.number
        self.number += 1
        message = self.make.make(
            "sensor_msgs/Image",
            header=self.make.header(CAMERA, stamp_ns),
            height=image.shape[0],
            width=image.shape[1],
            encoding="bgr8",
            is_bigendian=0,
            step=image.shape[1] * 3,
            data=self.make.numbers(image),
        )
        (publisher or self.images).publish(message)
        return stamp_ns

    def drive_until(self, condition: Callable[[], Any], what: str, timeout_s: float = LONG_S, publisher: Any = None) -> Any:
        """Publish the road at 20 Hz until ``condition``."""
        end = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < end, f"{what}: not within {timeout_s:g} s; results: {self.results()[-1:]}"
            self.publish(road(self.number), publisher=publisher)
            self.spin(0.05)
        return value

    def valid(self, count: int = 3) -> Callable[[], bool]:
        return lambda: len(self.results()) >= count and all(r.valid for r in self.results()[-count:])

    def call(self, kind: Any, service: str, request: Any, timeout_s: float = LONG_S) -> Any:
        client = self.node.create_client(kind, service)
        try:
            self.wait(client.service_is_ready, service, timeout_s)
            self.spin(0.1)  # the service has to find this client, too, or its answer goes nowhere
            future = client.call_async(request)
            self.wait(future.done, service, timeout_s)
            return future.result()
        finally:
            self.node.destroy_client(client)

    def state(self) -> str:
        return str(self.call(GetState, "/freespace/get_state", GetState.Request()).current_state.label)

    def change(self, transition: str) -> bool:
        request = ChangeState.Request()
        request.transition.label = transition
        return bool(self.call(ChangeState, "/freespace/change_state", request).success)

    def set(self, **values: object) -> str:
        """Set parameters; why not, or ""."""
        given = [Parameter(name.replace("__", "."), value=value).to_parameter_msg() for name, value in values.items()]
        service = "/freespace/set_parameters_atomically"
        result = self.call(SetParametersAtomically, service, SetParametersAtomically.Request(parameters=given)).result
        return "" if result.successful else result.reason

    def trigger(self, service: str) -> Any:
        return self.call(Trigger, f"/freespace/{service}", Trigger.Request())


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[None]:
    """Only processes on this machine, and of these only the test's own, hear each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        patch.setenv("ROS_DOMAIN_ID", str(os.getpid() % 100 + 1))  # above 101, ports are those of outgoing connections
        yield


@pytest.fixture(scope="module")
def peer(network: None) -> Iterator[Peer]:
    peer = Peer()
    peer.listen(String, "/freespace/polygons_json")
    yield peer
    peer.close()


@pytest.fixture(scope="module")
def node(peer: Peer, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    node = NodeProcess(tiny_model, tmp_path_factory.mktemp("node"))
    node.start()
    yield node
    node.kill()


@pytest.fixture
def driving(peer: Peer, node: NodeProcess) -> Peer:
    """The peer, with a node that has given valid results."""
    peer.came["/freespace/polygons_json"].clear()
    peer.drive_until(peer.valid(), "valid results")
    peer.came["/freespace/polygons_json"].clear()
    return peer


def stamp_of(message: Any) -> int:
    return int(message.header.stamp.sec) * 1_000_000_000 + int(message.header.stamp.nanosec)


def area(result: Freespace) -> float:
    return sum(polygon.area_px for polygon in result.polygons)


def test_stamps_polygons_and_pictures(driving: Peer) -> None:
    polygons = driving.listen(PolygonInstanceStamped, "/freespace/polygons")
    masks = driving.listen(ImageMessage, "/freespace/mask")
    overlays = driving.listen(CompressedImage, "/freespace/overlay/compressed")
    driving.drive_until(lambda: len(polygons) > 5 and len(masks) > 2 and len(overlays) > 2, "polygons, masks and overlays")
    width, height = SIZE
    for result in driving.results():
        assert result.stamp_ns in driving.published
        assert (result.frame_id, result.clock, result.state, result.size) == (CAMERA, "ros", "running", SIZE)
        assert area(result) == pytest.approx(width * height / 2, rel=0.01)
    for _, message in polygons:
        assert stamp_of(message) in driving.published
        assert message.header.frame_id == CAMERA
        assert message.polygon.id == 0
        corners = np.array([(p.x, p.y) for p in message.polygon.polygon.points])
        np.testing.assert_allclose(corners.min(axis=0), [-0.5, height / 2 - 0.5], atol=0.6)
        np.testing.assert_allclose(corners.max(axis=0), [width - 0.5, height - 0.5], atol=0.6)
    _, mask = masks[-1]
    assert stamp_of(mask) in driving.published
    expected = np.zeros((height, width), np.uint8)
    expected[height // 2 :] = 255
    np.testing.assert_array_equal(image_from_message(mask)[..., 0], expected)
    _, overlay = overlays[-1]
    assert stamp_of(overlay) in driving.published
    assert image_from_message(overlay).shape == (height, width, 3)


def test_a_camera_that_stops_is_said_and_comes_back(driving: Peer) -> None:
    diagnostics = driving.listen(DiagnosticArray, "/diagnostics")
    driving.drive_until(lambda: [s for _, d in diagnostics for s in d.status if s.level == DiagnosticStatus.OK], "all is well")
    masks = driving.listen(ImageMessage, "/freespace/mask")
    driving.came["/freespace/polygons_json"].clear()
    driving.spin(0.3)
    driving.came["/freespace/polygons_json"].clear()
    driving.wait(lambda: len(driving.results()) > 4, "results without a frame")
    newest = max(driving.published)
    for result in driving.results():
        assert (result.valid, result.state, result.polygons, result.stamp_ns) == (False, "stale", [], newest)
    assert not image_from_message(driving.wait(lambda: masks, "a mask")[-1][1]).any()  # takes back what was free
    diagnostics.clear()
    stale = driving.wait(lambda: [d.status[0] for _, d in diagnostics if d.status[0].level == DiagnosticStatus.STALE], "STALE")[
        -1
    ]
    assert stale.name == "freespace"
    values = {pair.key: pair.value for pair in stale.values}
    assert values["valid"] == "false"
    driving.wait(lambda: diagnostics and "no image on /image_raw for" in diagnostics[-1][1].status[0].message, "why")
    driving.came["/freespace/polygons_json"].clear()
    driving.drive_until(driving.valid(), "valid results again")


def test_parameters(driving: Peer) -> None:
    width, height = SIZE
    assert driving.set(polygons__plane="ego") == ""
    driving.came["/freespace/polygons_json"].clear()
    driving.drive_until(
        lambda: any(
            abs(sum(p.area_px for p in r.polygons) - width * height / 4) < 0.01 * width * height for r in driving.results()
        ),
        "the other plane",
    )
    assert driving.set(polygons__plane="freespace") == ""
    assert "polygons.threshold" in driving.set(polygons__threshold=1.0)
    assert "polygons.plane" in driving.set(polygons__plane="sky")
    assert "engine.model: takes effect when the node is configured" in driving.set(engine__model="other.onnx")
    assert "read-only" in driving.set(autostart=False)


def test_snapshot_and_reset(driving: Peer) -> None:
    answer = driving.trigger("snapshot")
    assert answer.success, answer.message
    folder = Path(answer.message)
    result = Freespace.from_json((folder / "result.json").read_text())
    assert folder.name == str(result.stamp_ns)
    assert result.stamp_ns in driving.published
    mask = cv2.imread(str(folder / "mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (SIZE[1], SIZE[0])
    assert np.count_nonzero(mask) == SIZE[0] * SIZE[1] // 2
    frame = cv2.imread(str(folder / "frame.png"))
    np.testing.assert_array_equal(frame, road(driving.published[result.stamp_ns]))
    assert (folder / "overlay.png").is_file()
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    assert driving.trigger("reset").success


def test_latency_is_of_the_clock_that_is_used(driving: Peer) -> None:
    """A bag that is played with its own clock: latencies are of that clock."""
    clock = driving.node.create_publisher(Clock, "/clock", RELIABLE)
    assert driving.set(use_sim_time=True) == ""
    latencies = driving.listen(Float64, "/freespace/debug/pipeline_latency_ms", BEST_EFFORT)
    try:

        def near() -> bool:
            now_ns = driving.began_ns + driving.number * 50_000_000 + 30_000_000
            clock.publish(Clock(clock=driving.make.time(now_ns)))
            return bool(latencies) and abs(latencies[-1][1].data - 80) < 75

        driving.drive_until(near, "a latency of about 30 ms and a frame")
    finally:
        assert driving.set(use_sim_time=False) == ""
        driving.node.destroy_publisher(clock)


def test_images_without_stamps_are_said(driving: Peer) -> None:
    diagnostics = driving.listen(DiagnosticArray, "/diagnostics")
    latencies = driving.listen(Float64, "/freespace/debug/pipeline_latency_ms", BEST_EFFORT)
    driving.came["/freespace/polygons_json"].clear()

    def said() -> bool:
        driving.publish(road(driving.number), 0)
        driving.spin(0.05)
        return any("have no stamps" in array.status[0].message for _, array in diagnostics)

    driving.wait(said, "the reason")
    results = [result for result in driving.results() if result.stamp_ns == 0 and result.latency_ms]
    assert all(result.valid for result in results)
    assert [cause.code.value for cause in results[-1].causes] == ["source_unstamped"]
    assert all(latency.data < 1e6 for _, latency in latencies)
    driving.drive_until(driving.valid(), "valid results")
    driving.drive_until(lambda: driving.results()[-1].state == "running", "all is well again")


def test_lifecycle(driving: Peer) -> None:
    assert driving.state() == "active"
    began = time.monotonic()
    assert driving.change("deactivate")
    assert time.monotonic() - began < 2.0  # within one second where the machine has time
    driving.wait(lambda: driving.results() and not driving.results()[-1].valid, "the end is said")
    assert [cause.code.value for cause in driving.results()[-1].causes] == ["source_ended"]
    assert driving.state() == "inactive"
    driving.came["/freespace/polygons_json"].clear()
    driving.publish(road(0))
    driving.spin(0.5)
    assert not driving.results()
    assert not driving.change("configure")  # not from here
    assert driving.trigger("reset").message == "the node is not active"

    assert driving.change("cleanup")
    assert driving.state() == "unconfigured"
    assert driving.set(engine__threads=2) == ""  # now it may be
    assert driving.change("configure")
    began = time.monotonic()
    assert driving.change("activate")
    assert time.monotonic() - began < 1.0
    driving.drive_until(driving.valid(), "valid results again")


@pytest.fixture
def humble(network: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`perception.ros.node` as it is where rclpy is Humble's: other names, and without what came later."""
    monkeypatch.setitem(sys.modules, "rclpy.qos_event", sys.modules["rclpy.event_handler"])
    monkeypatch.setitem(sys.modules, "rclpy.event_handler", None)
    monkeypatch.delattr("rclpy.node.Node.add_pre_set_parameters_callback")
    monkeypatch.delattr("rclpy.node.Node.add_post_set_parameters_callback")
    monkeypatch.delattr("geometry_msgs.msg.PolygonInstanceStamped")
    monkeypatch.delitem(sys.modules, "perception.ros.node")
    return importlib.import_module("perception.ros.node")


def test_on_humble_it_starts_without_the_messages_that_are_not_known_there(humble: Any, tiny_model: Path) -> None:
    rclpy.init()
    node = humble.FreespaceNode()
    try:
        given = {"engine.model": str(tiny_model), "engine.backend": "onnxruntime", "polygons.threshold": 0.4}
        assert all(r.successful for r in node.set_parameters([Parameter(name, value=value) for name, value in given.items()]))
        node.start()
        assert node.config.polygons.threshold == 0.4
        assert {topic.name for topic in result_topics(node._make)} - set(node._outputs) == {"~/polygons"}
        (changed,) = node.set_parameters([Parameter("polygons.threshold", value=0.6)])
        assert changed.successful
        (refused,) = node.set_parameters([Parameter("polygons.threshold", value=1.0)])
        assert "polygons.threshold" in refused.reason
        assert node.config.polygons.threshold == 0.6
    finally:
        node.end()
        node.destroy_node()
        rclpy.shutdown()


def test_started_with_what_cannot_be_it_ends_with_a_sentence(tmp_path: Path) -> None:
    for parameters, sentence in (
        ({}, "missing.onnx: no such model file"),
        ({"polygons__threshold": 1}, "polygons.threshold must be of type double; a number needs its point"),
        ({"polygons__threshold": 2.0}, "polygons.threshold must be above 0 to below 1, and is 2.0"),
        ({"polygons__treshold": 0.9}, "there is no parameter polygons.treshold; is polygons.threshold meant?"),
        ({"foo": 1}, "there is no parameter foo"),  # another node's, perhaps: it ends for the model, which is missing, too
        ({"polygons__zzz": 1}, "there is no parameter polygons.zzz"),
        ({"health__blind_after": 0}, "health.blind_after must be from 1 to 100000, and is 0"),
    ):
        node = NodeProcess(tmp_path / "missing.onnx", tmp_path)
        node.start(**parameters)
        assert node.process
        _, said = node.process.communicate(timeout=LONG_S)
        assert (node.process.returncode, sentence in said, "Traceback" in said) == (2, True, False), said


def test_managed_it_says_what_is_wrong_and_can_be_mended(peer: Peer, node: NodeProcess, tiny_model: Path) -> None:
    """A model that is missing, a publisher that is less reliable than asked for, another transport."""
    node.send(signal.SIGTERM)  # so that its services are gone
    node.start(autostart="false", reliability="reliable", engine__model="missing.onnx")
    diagnostics = peer.listen(DiagnosticArray, "/diagnostics")
    peer.wait(lambda: peer.node.count_publishers("/diagnostics"), "the node")
    peer.spin(0.5)
    assert not peer.change("configure")
    peer.wait(lambda: [d for _, d in diagnostics if "missing.onnx: no such model file" in d.status[0].message], "the reason")
    assert peer.state() == "unconfigured"  # through ErrorProcessing
    assert peer.set(engine__model=str(tiny_model)) == ""
    assert peer.change("configure")
    began = time.monotonic()
    assert peer.change("activate")
    assert time.monotonic() - began < 2.0
    peer.node.destroy_publisher(peer.images)
    unreliable = peer.node.create_publisher(ImageMessage, "image_raw", BEST_EFFORT)
    peer.came["/freespace/polygons_json"].clear()
    peer.drive_until(
        lambda: [d for _, d in diagnostics if "is published best effort" in d.status[0].message],
        "the mismatch",
        publisher=unreliable,
    )
    assert not any(result.valid for result in peer.results())

    assert peer.change("deactivate")
    assert peer.change("cleanup")
    assert peer.set(reliability="best_effort") == ""
    assert peer.change("configure")
    assert peer.change("activate")
    peer.came["/freespace/polygons_json"].clear()
    peer.drive_until(peer.valid(), "valid results", publisher=unreliable)
    peer.node.destroy_publisher(unreliable)

    assert peer.change("deactivate")
    assert peer.change("cleanup")
    assert peer.set(image_transport="compressed") == ""
    assert peer.change("configure")
    assert peer.change("activate")
    pictures = peer.node.create_publisher(CompressedImage, "image_raw/compressed", RELIABLE)

    def good() -> bool:
        stamp_ns = peer.began_ns + peer.number * 50_000_000
        peer.number += 1
        header, data = peer.make.header(CAMERA, stamp_ns), peer.make.numbers(cv2.imencode(".png", road(peer.number))[1])
        pictures.publish(CompressedImage(header=header, format="png", data=data))
        peer.spin(0.05)
        return peer.valid()()

    peer.came["/freespace/polygons_json"].clear()
    peer.wait(good, "valid results of compressed images")
    peer.node.destroy_publisher(pictures)
    peer.images = peer.node.create_publisher(ImageMessage, "image_raw", RELIABLE)
    assert peer.change("shutdown")
    assert node.process
    _, said = node.process.communicate(timeout=LONG_S)
    assert node.process.returncode == 0, said


def test_killed_and_restarted_it_goes_on(peer: Peer, node: NodeProcess) -> None:
    node.start(reliability="reliable", loop__budget_ms=1000.0)
    peer.came["/freespace/polygons_json"].clear()
    peer.drive_until(peer.valid(), "valid results")
    code, _ = node.send(signal.SIGKILL)
    assert code == -signal.SIGKILL
    node.start(reliability="reliable", loop__budget_ms=1000.0)
    peer.came["/freespace/polygons_json"].clear()
    peer.drive_until(peer.valid(), "valid results again")


@pytest.mark.parametrize("reliability", ["best_effort", "reliable"])
def test_hd_at_30_hz_comes_and_leaves_no_backlog(
    peer: Peer, node: NodeProcess, monkeypatch: pytest.MonkeyPatch, reliability: str
) -> None:
    """Nearly every image that a camera of its own process publishes is taken, and results are as old at the end as at the
    beginning. With the profile of the documentation: images do not fit into Fast DDS's shared memory without it."""
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", str(ROOT / "launch" / "fastdds.xml"))
    count = 120
    node.send(signal.SIGTERM)
    node.start(reliability=reliability, loop__budget_ms=1000.0)
    results = peer.listen(String, "/freespace/polygons_json")
    peer.wait(lambda: results, "the node")
    command = [sys.executable, str(ROOT / "tests" / "ros_camera.py"), str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as camera:
        peer.wait(lambda: camera.poll() is not None, "the camera's end")
        assert camera.stdout
        published = {int(line) for line in camera.stdout}
    assert (camera.returncode, len(published)) == (0, count)
    ages, dropped = dict[int, float](), 0
    for came_ns, message in results:
        result = Freespace.from_json(message.data)
        dropped = result.dropped
        if result.latency_ms:
            ages[result.stamp_ns] = (came_ns - result.stamp_ns) / 1e6
    assert set(ages) <= published
    assert len(ages) >= count / 2, f"{len(ages)} results and {dropped} images dropped of {count}"
    assert len(ages) + dropped >= 0.8 * count, f"{len(ages)} results and {dropped} images dropped of {count}"
    third = len(ages) // 3
    in_order = [ages[stamp] for stamp in sorted(ages)]
    first, last = np.median(in_order[:third]), np.median(in_order[-third:])
    assert last < max(2 * first, 300.0), in_order
    assert np.percentile(in_order, 90) < 600.0, in_order


def test_results_are_those_of_the_command_line(peer: Peer, node: NodeProcess) -> None:
    """A rendered drive through the shipped small model: every outline is the one that the loop without ROS finds."""
    node.send(signal.SIGTERM)
    with open_source("synthetic://drive?size=640x360&seconds=1", Selection(every=6)) as source:
        frames = list(source.frames())
    config = load_config(None, {"stabilise.enabled": False, "health.enabled": False, "loop.budget_ms": 5000.0})
    expected: dict[int, list[Any]] = {}
    with open_engine("nano", "onnxruntime", threads=1) as engine:
        shown = [replace(frame, stamp_ns=(number + 1) * 10**9) for number, frame in enumerate(frames)]
        for output in process(Listed(shown), engine, config):
            expected[output.result.stamp_ns] = outlines(output.result)
    assert all(expected.values())
    node.start(
        engine__model="nano",
        stabilise__enabled="false",
        health__enabled="false",
        loop__budget_ms=5000.0,
        reliability="reliable",
    )
    peer.came["/freespace/polygons_json"].clear()
    found: dict[int, list[Any]] = {}

    def all_found() -> bool:
        frame = shown[peer.number % len(shown)]
        peer.publish(frame.image, frame.stamp_ns)
        peer.spin(0.15)
        found.update(
            {r.stamp_ns: [ring.tolist() for p in r.polygons for ring in p.rings] for r in peer.results() if r.latency_ms}
        )
        return set(found) >= set(expected)

    peer.wait(all_found, "a result for every picture")
    assert {stamp: rings for stamp, rings in found.items() if stamp in expected} == expected
    node.send(signal.SIGTERM)


def outlines(result: Freespace) -> list[Any]:
    return [ring.tolist() for polygon in result.polygons for ring in polygon.rings]


class Listed(Source):
    """These frames."""

    def __init__(self, frames: list[Frame]) -> None:
        super().__init__("list")
        self._frames = frames

    def frames(self) -> Iterator[Frame]:
        yield from self._frames


def test_metres_and_what_fails_while_it_is_active(peer: Peer, node: NodeProcess, tmp_path: Path) -> None:
    """A level camera 1.5 m up, its horizon in row 16, sees the edge between rows 31 and 32 at 1.5 * 100 / 15.5 m."""
    if node.running:
        node.send(signal.SIGTERM)
    file = tmp_path / "camera.yaml"
    write_camera(file, Intrinsics(100.0, 100.0, 63.5, 16.0, *SIZE), Mount(1.5))
    node.start(ground__calibration=file, occupancy_resolution_m=0.5)
    scans = peer.listen(LaserScan, "/freespace/scan")
    grids = peer.listen(OccupancyGrid, "/freespace/occupancy")
    infos = peer.node.create_publisher(CameraInfo, "camera_info", RELIABLE)
    info = CameraInfo(height=SIZE[1], width=SIZE[0], k=[150.0, 0.0, 63.5, 0.0, 150.0, 16.0, 0.0, 0.0, 1.0])
    peer.came["/freespace/polygons_json"].clear()

    def good() -> bool:
        infos.publish(info)
        return len(scans) > 3 and len(grids) > 3 and peer.valid()()

    peer.drive_until(good, "scans and grids")
    _, scan = scans[-1]
    _, grid = grids[-1]
    assert stamp_of(scan) in peer.published
    assert stamp_of(grid) in peer.published
    assert scan.header.frame_id == grid.header.frame_id == "base_link"
    ahead = scan.ranges[round(-scan.angle_min / scan.angle_increment)]
    assert ahead == pytest.approx(1.5 * 100 / 15.5, rel=0.03)
    cells = np.array(grid.data, np.int8).reshape(grid.info.height, grid.info.width)
    origin = grid.info.origin.position

    def cell(x: float, y: float) -> int:
        return int(cells[int((y - origin.y) / grid.info.resolution), int((x - origin.x) / grid.info.resolution)])

    assert (cell(8.0, 0.0), cell(20.0, 0.0), cell(30.0, 15.0)) == (0, -1, -1)

    diagnostics = peer.listen(DiagnosticArray, "/diagnostics")
    wrong = "another shape needs another calibration"

    def blind() -> bool:
        peer.publish(road_image(64, 64))
        peer.spin(0.05)
        return bool(peer.results()) and peer.results()[-1].state == "blind"

    peer.wait(blind, "blind while the images have another shape")
    assert wrong in peer.results()[-1].causes[0].text
    _, said = node.send(signal.SIGTERM)
    assert "metres are by the file; is it of this camera?" in said

    # Images that never had the calibration's shape are a mistake.
    peer.spin(0.5)  # what that node said last has come
    diagnostics.clear()
    node.start(ground__calibration=file)
    peer.wait(lambda: peer.node.count_publishers("/diagnostics"), "the node")
    peer.spin(0.5)

    def ended() -> bool:
        peer.publish(road_image(64, 64))
        peer.spin(0.05)
        return not node.running

    peer.wait(ended, "its end")
    assert node.process
    _, said = node.process.communicate(timeout=LONG_S)
    assert node.process.returncode == 2
    assert wrong in said
    (status,) = (array.status[0] for _, array in diagnostics if wrong in array.status[0].message)
    assert status.level == DiagnosticStatus.ERROR
    assert peer.results()[-1].state == "error"
    peer.node.destroy_publisher(infos)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_cleanly(peer: Peer, node: NodeProcess, number: signal.Signals) -> None:
    if not node.running:
        # What rclpy itself asks for is taken, too.
        node.start(use_sim_time="false", qos_overrides__x__subscription__depth=2, start_type_description_service="false")
    peer.came["/freespace/polygons_json"].clear()
    peer.drive_until(peer.valid(), "valid results")
    began = time.monotonic()
    code, said = node.send(number)
    assert code == 0, said
    assert time.monotonic() - began < 5.0
    assert "active: takes images of /image_raw" in said  # what the launch file waits for before it plays a bag
    peer.wait(lambda: not peer.results()[-1].valid, "the end is said")
    assert "Traceback" not in said
