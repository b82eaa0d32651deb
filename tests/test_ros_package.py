"""The ROS 2 package without ROS: its files, its parameters, its launch file, the source and the sinks of the node.

The launch file is really executed, with stand-ins for ``launch`` and ``launch_ros`` that record what is built: that these
packages take the arguments it gives them is not tested here.
"""

from __future__ import annotations

import ast
import json
import re
import runpy
import subprocess
import sys
import threading
import types
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import make_output, road_image

from perception import __version__
from perception import ros as ros_package
from perception.capture.base import Source
from perception.causes import Cause, Code
from perception.config import Config
from perception.errors import BadInput, FreespaceError
from perception.freespace import Freespace
from perception.messages import Messages
from perception.ros.outputs import DEBUG, DebugSink, ResultSink, Snapshot, Topic, picture_topics, result_topics
from perception.ros.parameters import DESCRIPTIONS, NodeConfig, example, parameters, settings, table
from perception.ros.source import TopicSource
from perception.session import RELOADABLE

ROOT = Path(__file__).parents[1]


# -- Files -------------------------------------------------------------------------------------------------------------


def package() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "package.xml").getroot()


def test_package_xml_says_what_setup_py_says() -> None:
    root = package()
    assert root.attrib["format"] == "3"
    assert root.findtext("name") == "freespace"
    assert root.findtext("version") == __version__
    assert root.findtext("license") == "MIT"
    assert root.findtext("export/build_type") == "ament_python"
    assert (ROOT / "resource" / "freespace").read_bytes() == b""  # ament's index of packages
    assert 'name="freespace"' in (ROOT / "setup.py").read_text(encoding="utf-8")


def test_package_xml_names_every_ros_package_that_is_used() -> None:
    named = {element.text for element in package() if element.tag == "depend"}
    used = {"rclpy"}
    for path in (ROOT / "perception" / "ros").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                used |= {node.module.split(".")[0]} & (named | {"tf2_msgs", "rosgraph_msgs"})
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used |= {match[1] for match in [re.match(r"(\w+)/msg/\w+$", node.value)] if match}
    text = (ROOT / "perception" / "messages.py").read_text(encoding="utf-8")
    used |= set(re.findall(r'make\(\s*"(\w+)/\w+"', text)) - {"tf2_msgs"}  # the node sends no transforms
    assert used == named


def test_the_packages_that_are_named_exist() -> None:
    pytest.importorskip("rclpy", reason="rclpy is not installed")
    for element in package():
        if element.tag == "depend":
            __import__(str(element.text))


def test_executables_go_where_ros_looks_for_them() -> None:
    import configparser

    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    assert parser["install"]["install_scripts"] == parser["develop"]["script_dir"] == "$base/lib/freespace"
    assert parser["build_scripts"]["executable"] == "/usr/bin/env python3"  # of the environment that pip installed into
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert "freespace_node = perception.ros:main" in text
    assert "share/ament_index/resource_index/packages" in text


def test_setup_py_works_through_the_link_that_colcon_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "setup.py").symlink_to(ROOT / "setup.py")
    wanted: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", wanted.update)
    runpy.run_path(str(tmp_path / "setup.py"))
    assert wanted["version"] == __version__


def test_the_documentation_installs_where_pip_may() -> None:
    text = (ROOT / "docs" / "ros2.md").read_text(encoding="utf-8")
    lines = text.partition("```sh")[2].partition("```")[0].splitlines()
    (made,) = (number for number, line in enumerate(lines) if "python3 -m venv --system-site-packages" in line)
    (installed,) = (number for number, line in enumerate(lines) if line.startswith("pip install"))
    assert made < installed
    assert "COLCON_IGNORE" in text


# -- Without ROS -------------------------------------------------------------------------------------------------------


def test_without_rclpy_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ros_package.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"source ROS 2's setup file first"):
        ros_package.start([], threading.Event())


def test_nothing_imports_ros_before_the_node_is_started() -> None:
    code = (
        "import sys, perception.cli, perception.ros.parameters, perception.ros.source, perception.ros.outputs;"
        "sys.exit(any(name.split('.')[0] in ('rclpy', 'std_msgs', 'sensor_msgs') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


# -- Parameters --------------------------------------------------------------------------------------------------------


def defaults() -> dict[str, Any]:
    return {p.name: p.default for p in parameters()}


def test_defaults_are_those_of_the_configuration() -> None:
    config, own = settings(defaults())
    plain = Config()
    stabilise = plain.stabilise.model_copy(update={"enabled": True})  # images of a topic are a video
    loop = plain.loop.model_copy(update={"policy": "latest"})
    assert config == plain.model_copy(update={"stabilise": stabilise, "loop": loop})
    assert own == NodeConfig()


def test_every_setting_of_these_sections_is_a_parameter() -> None:
    left_out = {"loop.policy", "loop.state"}  # the newest image counts, and each start is a beginning
    wanted = {
        f"{section}.{key}"
        for section in ("engine", "polygons", "loop", "health", "stabilise", "ground")
        for key in type(getattr(Config(), section)).model_fields
    }
    assert set(DESCRIPTIONS) == wanted - left_out


def test_empty_values_stand_for_null_where_that_is_allowed() -> None:
    config, _ = settings({"engine.model": "", "health.frozen_s": 0.0, "engine.threads": 0, "stabilise.enabled": False})
    assert config.engine.model is None
    assert config.health.frozen_s is None
    assert config.engine.threads == 0
    assert config.stabilise.enabled is False
    assert settings({"ground.calibration": "car.yaml"})[0].ground.calibration == "car.yaml"


@pytest.mark.parametrize(
    ("name", "value"),
    [("polygons.threshold", 1.0), ("loop.budget_ms", 0.0), ("engine.input_size", "big"), ("image_transport", "theora")],
)
def test_what_cannot_be_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(BadInput, match=name):
        settings({**defaults(), name: value})


def test_what_changes_at_once_is_what_the_loop_takes() -> None:
    at_once = {p.name.split(".")[0] for p in parameters() if p.change == "at once"}
    assert at_once == set(RELOADABLE)
    assert [p.name for p in parameters() if p.change == "never"] == ["autostart"]


def test_ranges_come_from_the_settings() -> None:
    known = {p.name: p for p in parameters()}
    threshold, blind_after = known["polygons.threshold"], known["health.blind_after"]
    assert (threshold.kind, threshold.least, threshold.most, threshold.above, threshold.below) == ("double", 0, 1, True, True)
    assert (blind_after.kind, blind_after.least, blind_after.most) == ("integer", 1, 100_000)
    assert known["polygons.plane"].choices == ("freespace", "ego")
    assert known["ground.widths_at_m"].kind == "double_array"


def test_the_table_in_the_documentation_is_true() -> None:
    text = (ROOT / "docs" / "ros2.md").read_text(encoding="utf-8")
    assert table() in text, "python -m perception.ros.parameters prints the table"


def test_the_parameter_file_has_the_defaults() -> None:
    text = (ROOT / "launch" / "params.yaml").read_text(encoding="utf-8")
    assert text == example(), "python -m perception.ros.parameters --yaml prints the file"
    tree = yaml.safe_load(text)["/**"]["ros__parameters"]
    flat = {f"{a}.{b}": v for a, section in tree.items() if isinstance(section, dict) for b, v in section.items()}
    flat |= {name: value for name, value in tree.items() if not isinstance(value, dict)}
    assert flat == defaults()
    assert {name: type(value) for name, value in flat.items()} == {name: type(value) for name, value in defaults().items()}


def test_the_parameter_file_is_one_that_ros_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "OFF")
    context = rclpy.Context()
    rclpy.init(context=context)
    try:
        arguments = ["--ros-args", "--params-file", str(ROOT / "launch" / "params.yaml")]
        node = rclpy.create_node(
            "freespace", context=context, cli_args=arguments, automatically_declare_parameters_from_overrides=True
        )
        values = {name: node.get_parameter(name).value for name in defaults()}
        node.destroy_node()
    finally:
        rclpy.shutdown(context=context)
    assert {name: type(value) for name, value in values.items() if name != "ground.widths_at_m"} == {
        name: type(value) for name, value in defaults().items() if name != "ground.widths_at_m"
    }
    assert {**values, "ground.widths_at_m": list(values["ground.widths_at_m"])} == defaults()


# -- Source and sinks --------------------------------------------------------------------------------------------------


def image_message(stamp_ns: int, encoding: str = "bgr8") -> Any:
    stamp = types.SimpleNamespace(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    image = np.full((4, 6, 3), stamp_ns % 250, np.uint8)
    header = types.SimpleNamespace(stamp=stamp, frame_id="cam")
    return types.SimpleNamespace(
        header=header, height=4, width=6, encoding=encoding, is_bigendian=0, step=18, data=image.tobytes()
    )


def test_only_the_newest_image_waits() -> None:
    source = TopicSource("/image_raw")
    assert isinstance(source, Source)
    frames = source.frames()
    for number in range(3):
        source.give(image_message(number))
    frame = next(frames)
    assert (frame.seq, frame.stamp_ns, frame.dropped, frame.clock, frame.frame_id) == (2, 2, 2, "ros", "cam")
    assert (frame.image == 2).all()
    source.missed(4)
    source.give(image_message(3))
    assert next(frames).seq == 7  # the gap is what never came
    source.close()
    assert list(frames) == []
    source.give(image_message(4))  # nobody is there any more, and nobody minds


def taken(stamps_s: Sequence[float]) -> list[tuple[int, int] | None]:
    """(seq, stretch) of the frame for each image with one of these stamps; None where it was dropped."""
    source = TopicSource("/image_raw")
    frames, found = source.frames(), list[tuple[int, int] | None]()
    for stamp_s in stamps_s:
        dropped = source.dropped
        source.give(image_message(round(stamp_s * 1e9)))
        frame = next(frames) if source.dropped == dropped else None
        found.append((frame.seq, frame.stretch) if frame else None)
    return found


def test_stamps_that_go_back_a_little_are_late_and_far_back_another_stretch() -> None:
    """As in a bag (`perception.capture.bag`)."""
    assert taken([100.0, 100.2, 100.199, 100.3, 99.3, 100.3, 100.4]) == [(0, 0), (1, 0), None, (3, 0), None, None, (6, 0)]
    assert taken([100.0, 100.1, 50.0, 50.1, 48.0]) == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2)]


def test_nothing_is_remembered_between_images_without_stamps() -> None:
    assert taken([0.0, 0.0, 0.0]) == [(0, 1), (1, 2), (2, 3)]


def test_images_that_cannot_be_read_are_said_until_one_can() -> None:
    source = TopicSource("/image_raw")
    came = []

    def take() -> None:
        came.extend(source.frames())

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    source.give(image_message(1, encoding="32FC1"))
    for _ in range(100):
        if source.trouble:
            break
        threading.Event().wait(0.02)
    assert source.trouble
    assert source.trouble.code is Code.CORRUPT
    assert "32FC1" in source.trouble.text
    source.give(image_message(2))
    for _ in range(100):
        if came:
            break
        threading.Event().wait(0.02)
    source.close()
    thread.join(5)
    assert [frame.seq for frame in came] == [1]
    assert source.trouble is None


class Publisher:
    """Takes what rclpy's would be given."""

    def __init__(self, listeners: int) -> None:
        self.listeners = listeners
        self.messages: list[Any] = []

    def get_subscription_count(self) -> int:
        return self.listeners

    def publish(self, message: Any) -> None:
        assert self.listeners
        self.messages.append(message)


def record(name: str) -> Any:
    """A message class that keeps what it is given."""
    constants = {"DELETEALL": 3, "LINE_STRIP": 4, "TEXT_VIEW_FACING": 9} if name.endswith("/Marker") else {}
    return type(name.rpartition("/")[2], (types.SimpleNamespace,), constants)


def test_nothing_is_built_for_nobody() -> None:
    built: list[str] = []

    def build(name: str) -> Any:
        return lambda output: [built.append(name) or name]

    topics = [Topic(name, "kind", build(name)) for name in ("~/a", "~/b")]
    publishers = {"~/a": Publisher(0), "~/b": Publisher(1)}
    sink = ResultSink(topics, publishers)
    sink.write(make_output(road_image()))
    publishers["~/a"].listeners = 1
    sink.write(make_output(road_image()))
    assert built == ["~/b", "~/a", "~/b"]
    assert (publishers["~/a"].messages, publishers["~/b"].messages) == (["~/a"], ["~/b", "~/b"])


def invalid(output: Any) -> Freespace:
    cause = Cause(Code.STALLED, "No image.")
    return replace(output.result, valid=False, state="stale", polygons=[], causes=[cause], latency_ms={}, published_ns=7)


def test_a_result_without_a_frame_takes_back_what_was_said() -> None:
    make = Messages(record)
    topics = [*result_topics(make), *picture_topics(make, 0.5)]
    publishers = {topic.name: Publisher(1) for topic in topics}
    sink = ResultSink(topics, publishers)
    output = make_output(road_image(), stamp_ms=40)
    sink.write_without_frame(invalid(output))  # before the first frame
    assert Freespace.from_json(publishers["~/polygons_json"].messages[0].data).state == "stale"
    assert [name for name, publisher in publishers.items() if publisher.messages] == ["~/polygons_json"]
    sink.write(output)
    sink.write_without_frame(invalid(output))
    before, after = publishers["~/mask"].messages
    assert np.all(np.frombuffer(before.data, np.uint8) == 255)
    assert not np.frombuffer(after.data, np.uint8).any()
    assert after.header.stamp == before.header.stamp
    assert len(publishers["~/polygons"].messages[-1].polygon.polygon.points) == 0
    sink.close()


def test_debug_times() -> None:
    publishers = {topic: Publisher(1) for topic in DEBUG.values()}
    sink = DebugSink(Messages(record), publishers, lambda: 1_040_000_000)
    for number, published_ns in enumerate((5_000_000_000, 5_033_000_000)):
        output = make_output(road_image(), number, stamp_ms=1000)
        sink.write(replace(output, result=replace(output.result, published_ns=published_ns)))
    values = {name: [m.data for m in publishers[topic].messages] for name, topic in DEBUG.items()}
    assert values["processing_time_ms"] == [1.0, 1.0]
    assert values["pipeline_latency_ms"] == pytest.approx([40.0, 40.0])
    assert values["cyclic_time_ms"] == pytest.approx([33.0])


def test_of_an_image_without_a_stamp_no_latency_is_published() -> None:
    publishers = {topic: Publisher(1) for topic in DEBUG.values()}
    sink = DebugSink(Messages(record), publishers, lambda: 1_796_060_629_895_000_000)
    sink.write(make_output(road_image(), stamp_ms=0))
    assert [m.data for m in publishers[DEBUG["processing_time_ms"]].messages] == [1.0]
    assert publishers[DEBUG["pipeline_latency_ms"]].messages == []


def test_images_without_stamps_are_said_while_they_come() -> None:
    source = TopicSource("/image_raw")
    frames = source.frames()
    troubles = []
    for stamp_ns in (0, 0, 5):
        source.give(image_message(stamp_ns))
        next(frames)
        troubles.append(source.trouble.code if source.trouble else None)
    assert troubles == [Code.UNSTAMPED, Code.UNSTAMPED, None]


def test_a_snapshot_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    snapshot = Snapshot()
    with pytest.raises(FreespaceError, match="no result"):
        snapshot.save(tmp_path)
    snapshot.write(make_output(road_image(), stamp_ms=40))
    (tmp_path / "file").write_text("")
    with pytest.raises(FreespaceError, match="cannot be written"):
        snapshot.save(tmp_path / "file")
    written = snapshot.save(tmp_path)
    assert written == tmp_path / "40000000"
    assert {p.name for p in written.iterdir()} == {"overlay.png", "mask.png", "frame.png", "result.json"}
    assert snapshot.save(tmp_path) == written
    assert sorted(p.name for p in tmp_path.iterdir()) == ["40000000", "file"]
    other = make_output(road_image(), 7, stamp_ms=40)  # of a driver that does not set stamps, for example
    snapshot.write(replace(other, result=replace(other.result, published_ns=9)))
    assert snapshot.save(tmp_path) == tmp_path / "40000000-9"
    assert json.loads((tmp_path / "40000000-9/result.json").read_text())["seq"] == 7
    assert json.loads((written / "result.json").read_text())["seq"] == 0


# -- Launch ------------------------------------------------------------------------------------------------------------


class Recorded:
    """Stands for an action of ``launch``: keeps what it was made of."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        self.positional, self.named = positional, named

    def __getattr__(self, name: str) -> Any:
        try:
            return self.named[name]
        except KeyError:
            raise AttributeError(name) from None


@pytest.fixture
def launch_file(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Executes the launch file with arguments; the actions it makes, by the name of their class."""
    modules = {
        "launch": ["LaunchDescription"],
        "launch.actions": [
            "DeclareLaunchArgument",
            "ExecuteProcess",
            "OpaqueFunction",
            "RegisterEventHandler",
            "Shutdown",
            "TimerAction",
        ],
        "launch.event_handlers": ["OnProcessIO"],
        "launch.substitutions": ["LaunchConfiguration"],
        "launch_ros": [],
        "launch_ros.actions": ["ComposableNodeContainer", "Node"],
        "launch_ros.descriptions": ["ComposableNode"],
    }
    for module, names in modules.items():
        made = types.ModuleType(module)
        for name in names:
            setattr(made, name, type(name, (Recorded,), {}))
        monkeypatch.setitem(sys.modules, module, made)
    sys.modules["launch.substitutions"].LaunchConfiguration.perform = lambda self, context: context[self.positional[0]]  # type: ignore[attr-defined]

    def execute(**given: str) -> dict[str, list[Any]]:
        description = runpy.run_path(str(ROOT / "launch" / "freespace.launch.py"))["generate_launch_description"]()
        *declared, opaque = description.positional[0]
        context = {argument.positional[0]: argument.default_value for argument in declared}
        assert set(given) <= set(context)
        for argument in declared:
            assert argument.description
            choices = argument.named.get("choices")
            value = given.get(argument.positional[0], argument.default_value)
            assert choices is None or value in choices
        actions: dict[str, list[Any]] = {}
        for action in opaque.function({**context, **given}):
            actions.setdefault(type(action).__name__, []).append(action)
        return actions

    return execute


def test_launch_beside_what_is_there(launch_file: Any) -> None:
    actions = launch_file()
    (node,) = actions.pop("Node")
    assert actions == {}
    assert (node.package, node.executable, node.name, node.namespace) == ("freespace", "freespace_node", "freespace", "")
    (file,) = node.parameters  # the file says whether it starts by itself, and whether there is a simulation's clock
    assert Path(file) == ROOT / "launch" / "params.yaml"
    for given, meant in (("true", True), ("false", False)):
        assert launch_file(autostart=given)["Node"][0].parameters[1] == {"autostart": meant}
    assert "autostart" in defaults()
    assert dict(node.remappings) == {"image_raw": "camera/image_raw", "camera_info": "camera/camera_info"}


def test_launch_with_a_bag(launch_file: Any) -> None:
    given = {"source": "bag", "bag": "drive", "loop": "true", "image": "/front/image_raw", "model": "nano", "namespace": "car"}
    actions = launch_file(**given, autostart="false")
    assert list(actions) == ["RegisterEventHandler", "Node"]  # the first has to be there when the node starts
    (node,) = actions["Node"]
    (when,) = actions["RegisterEventHandler"][0].positional
    assert when.target_action is node
    says = [types.SimpleNamespace(text=text) for text in (b"[INFO] nano on a CPU\n", b"[INFO] active: takes images of /x\n")]
    assert when.on_stderr(says[0]) is None
    (play,) = when.on_stderr(says[1])
    assert when.on_stdout(says[1]) is None  # another activation does not play it again
    assert play.cmd == ["ros2", "bag", "play", "drive", "--clock", "--delay", "1.0", "--loop"]
    (wait,) = play.on_exit
    assert [type(action).__name__ for action in wait.actions] == ["Shutdown"]
    assert node.parameters[1] == {"autostart": False, "use_sim_time": True, "engine.model": "nano"}
    assert "engine.model" in defaults()
    assert node.namespace == "car"
    assert dict(node.remappings)["image_raw"] == "/front/image_raw"
    with pytest.raises(RuntimeError, match="bag:=FOLDER"):
        launch_file(source="bag")


@pytest.mark.parametrize("camera", ["camera_ros", "v4l2_camera"])
def test_launch_with_a_camera(launch_file: Any, camera: str) -> None:
    actions = launch_file(source="camera", camera=camera, rectify="true", rviz="true", namespace="car")
    (container,) = actions["ComposableNodeContainer"]
    driver, rectify = container.composable_node_descriptions
    assert driver.package == camera
    assert rectify.plugin == "image_proc::RectifyNode"
    assert all(part.extra_arguments == [{"use_intra_process_comms": True}] for part in (driver, rectify))
    assert {part.namespace for part in (driver, rectify, container)} == {"car"}
    # camera_ros publishes below its own name, v4l2_camera is told to: what one publishes the next one takes.
    published = dict(driver.named.get("remappings", [])).get("image_raw", f"{driver.name}/image_raw")
    node, viewer = actions["Node"]
    assert dict(rectify.remappings)["image"] == published
    assert dict(node.remappings)["image_raw"] == dict(rectify.remappings)["image_rect"]
    assert viewer.package == "rviz2"
    assert Path(viewer.arguments[1]).is_file()
    (plain,) = launch_file(source="camera", camera=camera)["ComposableNodeContainer"]
    (alone,) = plain.composable_node_descriptions
    assert alone.parameters == []
    assert alone.extra_arguments == []  # a driver that shares its images publishes no compressed ones


@pytest.mark.parametrize("camera", ["camera_ros", "v4l2_camera"])
def test_the_driver_has_parameters_of_its_own(launch_file: Any, camera: str) -> None:
    given = {"source": "camera", "camera": camera, "camera_params": "camera.yaml", "rectify": "true"}
    driver, rectify = launch_file(**given)["ComposableNodeContainer"][0].composable_node_descriptions
    assert driver.parameters == ["camera.yaml"]
    assert "parameters" not in rectify.named


def test_compressed_images_come_by_the_name_that_the_node_asks_for(launch_file: Any) -> None:
    """The remapping of a topic is not one of its compressed form, which is published by a name of its own."""
    actions = launch_file(source="camera", camera="v4l2_camera", rectify="true")
    driver, rectify = (dict(part.remappings) for part in actions["ComposableNodeContainer"][0].composable_node_descriptions)
    assert driver["image_raw/compressed"] == f"{driver['image_raw']}/compressed"
    assert rectify["image_rect/compressed"] == f"{rectify['image_rect']}/compressed"


@pytest.mark.parametrize(
    ("given", "node"),
    [
        ({}, "/freespace"),
        ({"namespace": "car"}, "/car/freespace"),
        ({"namespace": "/"}, "/freespace"),
        ({"namespace": "/fleet/car", "name": "left"}, "/fleet/car/left"),
    ],
)
def test_rviz_shows_the_node_whatever_it_is_called(launch_file: Any, given: dict[str, str], node: str) -> None:
    _, viewer = launch_file(rviz="true", **given)["Node"]
    layout = yaml.safe_load((ROOT / "launch" / "freespace.rviz").read_text(encoding="utf-8"))
    displays = layout["Visualization Manager"]["Displays"]
    shown = {display[key]["Value"] for display in displays for key in ("Topic", "Update Topic") if key in display}
    assert dict(viewer.remappings) == {topic: topic.replace("/freespace", node) for topic in shown}
    assert viewer.parameters == [{"use_sim_time": False}]
    _, viewer = launch_file(rviz="true", source="bag", bag="drive", **given)["Node"]
    assert viewer.parameters == [{"use_sim_time": True}]


def node_topics() -> set[str]:
    make = Messages(record)
    names = [topic.name for topic in (*result_topics(make), *picture_topics(make, 1.0))]
    return {name.replace("~", "/freespace") for name in (*names, *DEBUG.values())} | {"/diagnostics"}


def test_layouts_show_topics_that_the_node_has() -> None:
    rviz = yaml.safe_load((ROOT / "launch" / "freespace.rviz").read_text(encoding="utf-8"))
    displays = rviz["Visualization Manager"]["Displays"]
    shown = {display["Topic"]["Value"] for display in displays if "Topic" in display}
    assert shown
    assert shown <= node_topics()
    text = (ROOT / "launch" / "foxglove-ros-layout.json").read_text(encoding="utf-8")
    layout = json.loads(text)
    topics = {name.split(".")[0] for name in re.findall(r'"(/freespace/[\w./]+|/diagnostics)"', text)}
    assert topics
    assert topics <= node_topics()

    def panels(part: Any) -> set[str]:
        return {part} if isinstance(part, str) else panels(part["first"]) | panels(part["second"])

    assert panels(layout["layout"]) == set(layout["configById"])


def test_the_documentation_names_every_topic_and_service() -> None:
    text = (ROOT / "docs" / "ros2.md").read_text(encoding="utf-8")
    for name in node_topics() | {"/freespace/snapshot", "/freespace/reset"}:
        assert f"`{name.replace('/freespace', '~')}`" in text, name
