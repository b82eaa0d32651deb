"""Several cameras in one run: what each is called, what it is set to, what it writes, and that none is another's trouble."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
from conftest import Cli, cli_environment, parts_in, road_image, road_video, write_video
from typer.testing import CliRunner

import perception.cameras
from perception.cameras import CameraMonitor, run_cameras
from perception.capture import Source, open_source
from perception.cli import app
from perception.config import Config, EngineConfig, LoopConfig, OutputConfig, RigConfig, load_rig
from perception.errors import BadInput, FreespaceError
from perception.frame import Frame
from perception.node import ONE_THREAD
from perception.rig import camera_configs, name_of, name_sources
from perception.session import Reload, Request

SOON_S = 10.0  # longer than anything here takes; only a failing test waits for it


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def rig_of(tmp_path: Path, text: str, **overrides: Any) -> dict[str, Config]:
    """The cameras of a settings file, with options as ``output__polygons="drive.jsonl"``."""
    given = {key.replace("__", "."): value for key, value in overrides.items()}
    return camera_configs(load_rig(write(tmp_path / "rig.yaml", text), given), {}, given)


# -- Names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("clips/drive 7.mp4", "drive-7"),
        ("images/", "images"),
        ("0", "video0"),
        ("v4l2:///dev/video12", "video12"),
        ("csi://1", "csi1"),
        ("rtsp://user:hunter2@10.0.0.11:8554/live/front?token=hunter2", "front"),
        ("rtsp://user:hunter2@10.0.0.11", "10.0.0.11"),
        ("https://example.org/a/drive.mp4", "drive"),
        ("gstreamer://videotestsrc ! videoconvert", "gstreamer"),
        ("synthetic://drive?seconds=1", "drive"),
        ("Straße.mp4", "Stra-e"),
        ("…", "camera"),
    ],
)
def test_a_name_comes_from_the_source(source: str, name: str) -> None:
    assert name_of(source) == name


def test_names_are_each_given_once() -> None:
    assert name_sources(["front=a.mp4", "b.mp4", "x/b.mp4", "rtsp://h/b?x=1", "b-2=c.mp4"]) == {
        "front": "a.mp4",
        "b": "b.mp4",
        "b-3": "x/b.mp4",
        "b-4": "rtsp://h/b?x=1",
        "b-2": "c.mp4",
    }
    with pytest.raises(BadInput, match="two cameras are called front; give each a name of its own"):
        name_sources(["front=a.mp4", "front=b.mp4"])


def test_what_is_no_name_belongs_to_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.mp4").touch()
    assert name_sources(["a=b.mp4", "synthetic://drive?seconds=1", "c/d=e.mp4"]) == {
        "a-b": "a=b.mp4",
        "drive": "synthetic://drive?seconds=1",
        "d-e": "c/d=e.mp4",
    }


# -- Settings ----------------------------------------------------------------------------------------------------------

RIG = """
capture: {every: 2, frame_id: mast}
polygons: {threshold: 0.4, min_hole: 0.01}
ground: {max_range_m: 40}
loop: {state: run/state.json}
cameras:
  front:
    capture: {source: a.mp4, frame_id: front_optical}
    ground: {calibration: front.yaml}
  left: {capture: {source: b.mp4, every: 3}, polygons: {threshold: 0.6}}
"""


def test_a_camera_has_what_is_for_all_and_what_is_its_own(tmp_path: Path) -> None:
    cameras = rig_of(tmp_path, RIG)
    front, left = cameras["front"], cameras["left"]
    assert list(cameras) == ["front", "left"]
    assert (front.capture.source, front.capture.every, front.capture.frame_id) == ("a.mp4", 2, "front_optical")
    assert (left.capture.source, left.capture.every, left.capture.frame_id) == ("b.mp4", 3, "left")
    assert (front.polygons.threshold, left.polygons.threshold, left.polygons.min_hole) == (0.4, 0.6, 0.01)
    assert (front.ground.calibration, front.ground.max_range_m) == ("front.yaml", 40)
    assert (left.ground.calibration, left.ground.max_range_m) == (None, 40)
    assert (front.loop.state, left.loop.state) == ("run/state-front.json", "run/state-left.json")


def test_options_win_over_what_a_camera_has_of_its_own(tmp_path: Path) -> None:
    cameras = rig_of(tmp_path, RIG, capture__every=5)
    assert [c.capture.every for c in cameras.values()] == [5, 5]
    assert [c.polygons.threshold for c in cameras.values()] == [0.4, 0.6]


def test_sources_given_as_arguments_choose_the_cameras(tmp_path: Path) -> None:
    rig = load_rig(write(tmp_path / "rig.yaml", RIG), {})
    cameras = camera_configs(rig, {"left": "c.mp4", "rear": "d.mp4"}, {})
    assert {name: c.capture.source for name, c in cameras.items()} == {"left": "c.mp4", "rear": "d.mp4"}
    assert {name: c.capture.every for name, c in cameras.items()} == {"left": 3, "rear": 2}


def test_outputs_get_the_cameras_name(tmp_path: Path) -> None:
    output = OutputConfig(
        video="out/o.mp4",
        polygons="drive.jsonl",
        masks="masks",
        contact_sheet="sheet.png",
        mcap="d.mcap",
        bag="bags/drive",
        rerun="d.rrd",
        serve="127.0.0.1:8080",
        metrics="[::1]:9100",
    )
    cameras = camera_configs(RigConfig(output=output), {"front": "a.mp4", "left": "b.mp4"}, {})
    left = cameras["left"].output
    assert (left.video, left.polygons, left.masks) == ("out/o-left.mp4", "drive-left.jsonl", "masks/left")
    assert (left.contact_sheet, left.mcap, left.bag, left.rerun) == (
        "sheet-left.png",
        "d-left.mcap",
        "bags/drive-left",
        "d-left.rrd",
    )
    assert (left.serve, left.metrics) == ("127.0.0.1:8081", "[::1]:9101")
    assert cameras["front"].output.serve == "127.0.0.1:8080"
    untouched = camera_configs(RigConfig(output=OutputConfig(serve="127.0.0.1:0")), {"a": "a", "b": "b"}, {})
    assert untouched["b"].output == OutputConfig(serve="127.0.0.1:0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cameras: {front: {capture: {every: 0}}}", r"rig\.yaml: cameras\.front\.capture\.every: .*got 0"),
        ("cameras: {front: {captur: {}}}", r"cameras\.front\.captur: unknown key"),
        ("cameras: {front: {engine: {threads: 1}}}", r"cameras\.front\.engine: unknown key"),
        ("cameras: {front: {output: {token: hunter2hunter2hunter2}}}", r"cameras\.front\.output: unknown key"),
        ("cameras: {front: {capture: 'rtsp://u:hunter2@h/'}}", r"cameras\.front\.capture: "),
        ("cameras: {front: {capture: {source: ['rtsp://u:hunter2@h/']}}}", r"cameras\.front\.capture\.source: "),
        ("cameras: [a.mp4]", r"cameras: .*dictionary"),
        ("cameras: {3: {}}", r"cameras\.3"),
        ("cameras: {front: }", r"cameras\.front: "),
        ("cameras: {front: {}}", r"cameras\.front\.capture\.source: is missing"),
        ("cameras: {a/b: {capture: {source: a.mp4}}}", r"cameras\.a/b: a camera's name is made of letters"),
        ("cameras: {../x: {capture: {source: a.mp4}}}", r"a camera's name is made of"),
        (
            "ground: {calibration: c.yaml}\ncameras: {a: {capture: {source: a}}, b: {capture: {source: b}}}",
            r"c\.yaml: one calibration",
        ),
        ("output: {show: true}\ncameras: {a: {capture: {source: a}}, b: {capture: {source: b}}}", r"--show is for one camera"),
    ],
)
def test_mistakes_are_named_by_their_path(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        rig_of(tmp_path, text)
    assert "hunter2@" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_launch_file_shows_how(tmp_path: Path) -> None:
    """What stands there as a comment can be taken in."""
    text = (Path(__file__).parents[1] / "launch" / "freespace.yaml").read_text()
    example = text[text.index("# cameras:") :].replace("\n# ", "\n").removeprefix("# ")
    cameras = rig_of(tmp_path, text + "\n" + example)
    assert [c.ground.calibration for c in cameras.values()] == ["front.yaml", None]


# -- A run -------------------------------------------------------------------------------------------------------------


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in ("latency_ms", "published_ns", "frame_id")}


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two recordings of different sizes and lengths, in the working folder."""
    monkeypatch.chdir(tmp_path)
    road_video(tmp_path / "a.mp4", 12)
    write_video(tmp_path / "b.mp4", [road_image(192, 96)] * 5)
    return tmp_path


def here(*arguments: object) -> tuple[int, str, str]:
    """The command line in this process: exit code, or -1 for an exception, stdout, and stderr or the exception's sentence."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    expected = done.exception is None or isinstance(done.exception, SystemExit)
    return (done.exit_code, done.stdout, done.stderr) if expected else (-1, done.stdout, str(done.exception))


def test_two_recordings_give_what_each_gives_alone(cli: Cli, clips: Path, tiny_model: Path) -> None:
    network = ("--model", tiny_model, "--backend", "onnxruntime", "--threads", 1)
    done = cli("run", "front=a.mp4", "b.mp4", "--polygons", "p.jsonl", "--masks", "masks", *network)
    assert done.returncode == 0, done.stderr
    assert "2 cameras share model tiny.onnx" in done.stderr
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert [rows["camera"][0], rows["front"][0], rows["b"][0]] == ["frames", "12", "5"]
    assert (rows["front"][2], rows["front"][3], rows["front"][6]) == ("0", "0", "total")
    assert "front: wrote polygons p-front.jsonl" in done.stdout
    assert sorted(p.name for p in (clips / "masks").iterdir()) == ["b", "front"]
    for name, clip in (("front", "a.mp4"), ("b", "b.mp4")):
        assert here("run", clip, "--polygons", f"alone-{name}.jsonl", "--masks", f"alone-{name}", *network)[0] == 0
        together, alone = lines_of(clips / f"p-{name}.jsonl"), lines_of(clips / f"alone-{name}.jsonl")
        assert [without_times(line) for line in together] == [without_times(line) for line in alone]
        assert len(together[0]["polygons"]) == 1
        assert {line["frame_id"] for line in together} == {name}
        assert {line["frame_id"] for line in alone} == {"camera"}
        masks = sorted(p.name for p in (clips / f"alone-{name}").iterdir())
        assert all((clips / "masks" / name / m).read_bytes() == (clips / f"alone-{name}" / m).read_bytes() for m in masks)
    assert parts_in(clips) == []


def test_settings_of_each_camera_from_a_file(clips: Path, tiny_model: Path) -> None:
    write(
        clips / "rig.yaml",
        f"engine: {{model: {tiny_model}, backend: onnxruntime, threads: 1}}\noutput: {{polygons: p.jsonl}}\n"
        "cameras:\n  one: {capture: {source: a.mp4, every: 4}, polygons: {plane: ego}}\n  two: {capture: {source: b.mp4}}\n",
    )
    code, _, err = here("run", "--config", "rig.yaml")
    assert code == 0, err
    one, two = lines_of(clips / "p-one.jsonl"), lines_of(clips / "p-two.jsonl")
    assert ([line["seq"] for line in one], len(two)) == ([0, 4, 8], 5)
    assert {p["plane"] for line in one for p in line["polygons"]} == {"ego"}
    assert {p["plane"] for line in two for p in line["polygons"]} == {"freespace"}
    code, _, err = here("run", "rear=b.mp4", "--config", "rig.yaml", "--overwrite")
    assert (code, len(lines_of(clips / "p-rear.jsonl"))) == (0, 5), err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.mp4", "none.mp4", "--polygons", "p.jsonl"], "none.mp4: no such file"),
        (["a.mp4", "b.mp4", "--polygons", "x.jsonl"], "camera b: x-b.jsonl: exists already"),
        (["a.mp4", "b=b.mp4", "--out", "../{here}/clip.mp4", "--overwrite"], "clip-b.mp4: is the source itself"),
        (["a.mp4", "b.mp4", "--serve", "127.0.0.1:8080", "--metrics", "127.0.0.1:8081"], "127.0.0.1:8081: is wanted twice"),
        (["a.mp4", "b.mp4", "--serve", "127.0.0.1:65535"], "127.0.0.1:65536: there is no such port"),
        (["a.mp4", "b.mp4", "--metrics", "127.0.0.1:65535"], "127.0.0.1:65536: there is no such port"),
        (["a.mp4", "b.mp4", "--plane", "sky"], "polygons.plane"),
        (["a.mp4", "b.mp4", "--polygons", "p.jsonl", "--loop", "--append"], "camera a: --append and --loop exclude"),
    ],
)
def test_a_mistake_ends_it_before_anything_is_written(
    clips: Path, tiny_model: Path, arguments: list[str], message: str
) -> None:
    write(clips / "x-b.jsonl", "")
    if "--out" in arguments:  # the output of one camera would replace the source of the other
        (clips / "a.mp4").rename(clips / "clip-b.mp4")
        arguments = ["a=clip-b.mp4", *arguments[1:]]
    arguments = [argument.replace("{here}", clips.name) for argument in arguments]
    before = {p: p.read_bytes() for p in clips.rglob("*") if p.is_file()}
    code, _, err = here("run", *arguments, "--model", tiny_model, "--backend", "onnxruntime")
    assert (code, message in err) == (-1, True), err
    assert {p: p.read_bytes() for p in clips.rglob("*") if p.is_file()} == before


class Played(Source):
    """Frames of the road; ``act`` is asked before each one, and after the last."""

    def __init__(self, uri: str, count: int, act: Callable[[int], None], size: tuple[int, int] = (128, 64)) -> None:
        super().__init__(uri, 10.0, count)
        self.count, self.act, self.size = count, act, size

    def frames(self) -> Iterator[Frame]:
        for number in range(self.count):
            self.act(number)
            yield Frame(road_image(*self.size), number, number * 100_000_000, "media", self.uri, name=str(number))
        self.act(self.count)


def play(monkeypatch: pytest.MonkeyPatch, tiny_model: Path, folder: Path, **acts: Callable[[int], None]) -> dict[str, Config]:
    """Settings of cameras whose sources do as they are told; each of 20 frames."""
    monkeypatch.setattr(perception.cameras, "open_source", lambda uri, capture: Played(uri, 20, acts[uri]))
    engine = EngineConfig(model=str(tiny_model), backend="onnxruntime", threads=1)
    output = OutputConfig(polygons=str(folder / "p.jsonl"))
    return camera_configs(RigConfig(engine=engine, output=output), {name: name for name in acts}, {})


def nothing(number: int) -> None:
    pass


def numbers(path: Path) -> list[int]:
    return [line["seq"] for line in lines_of(path)]


def test_a_camera_that_fails_does_not_stop_the_others(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def pulled(number: int) -> None:
        if number == 3:
            raise FreespaceError("left: cable pulled")

    configs = play(monkeypatch, tiny_model, tmp_path, front=nothing, left=pulled, right=nothing)
    with pytest.raises(FreespaceError, match=r"^1 of 3 cameras failed: left: left: cable pulled$"):
        run_cameras(configs, threading.Event())
    out, err = capfd.readouterr()
    assert "camera left has failed: left: cable pulled" in err
    assert "left: kept polygons" in out
    assert "right: wrote polygons" in out
    assert numbers(tmp_path / "p-front.jsonl") == numbers(tmp_path / "p-right.jsonl") == list(range(20))
    assert numbers(tmp_path / "p-left.jsonl") == [0, 1, 2]


def test_a_camera_without_a_frame_has_failed(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = play(monkeypatch, tiny_model, tmp_path, front=nothing, left=nothing)
    opened = perception.cameras.open_source
    monkeypatch.setattr(
        perception.cameras, "open_source", lambda uri, c: Played(uri, 0, nothing) if uri == "left" else opened(uri, c)
    )
    with pytest.raises(FreespaceError, match="1 of 2 cameras failed: left: left: no frame could be processed"):
        run_cameras(configs, threading.Event())
    assert numbers(tmp_path / "p-front.jsonl") == list(range(20))


def test_a_mistake_in_the_program_keeps_its_traceback(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(number: int) -> None:
        raise ZeroDivisionError("that was one of ours")

    configs = play(monkeypatch, tiny_model, tmp_path, front=nothing, left=wrong)
    with pytest.raises(ZeroDivisionError) as caught:
        run_cameras(configs, threading.Event())
    assert caught.traceback[-1].name == "wrong"
    assert numbers(tmp_path / "p-front.jsonl") == list(range(20))


def test_a_camera_that_hangs_and_one_that_ends_early_hold_up_nobody(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, front_done, stop = threading.Event(), threading.Event(), threading.Event()

    def hang(number: int) -> None:
        if number == 4:
            released.wait(SOON_S)

    configs = play(
        monkeypatch,
        tiny_model,
        tmp_path,
        front=lambda number: front_done.set() if number == 20 else time.sleep(0.01),
        hung=hang,
    )
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(run_cameras(configs, stop)), daemon=True)
    thread.start()
    assert front_done.wait(SOON_S)
    front = tmp_path / "p-front.jsonl"
    end = time.monotonic() + SOON_S
    while not front.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert numbers(front) == list(range(20)), "it is written, although the other hangs"
    assert thread.is_alive()
    stop.set()
    threading.Timer(0.2, released.set).start()
    thread.join(SOON_S)
    assert answers == [True], "interrupted"
    assert numbers(tmp_path / "p-hung.jsonl") == [0, 1, 2, 3]


def test_opencv_has_its_threads_back_when_the_last_loop_ends() -> None:
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(3)
        ONE_THREAD.enter()
        ONE_THREAD.enter()
        ONE_THREAD.leave()
        assert cv2.getNumThreads() == 1, "a loop is still at work"
        ONE_THREAD.leave()
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


def test_the_service_manager_hears_of_all_cameras_together(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(SOON_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        said: list[bytes] = []

        def listen(number: int) -> None:
            if number == 20:  # the other one ended long ago
                heard.settimeout(1.2)
                while True:
                    try:
                        said.append(heard.recv(1000))
                    except TimeoutError:
                        break
                    if said[-1].startswith(b"WATCHDOG=1"):
                        break

        configs = play(monkeypatch, tiny_model, tmp_path, front=nothing, left=listen)
        assert run_cameras(configs, threading.Event()) is False
        assert said[0] == b"READY=1"
        assert said[-1].startswith(b"WATCHDOG=1\nSTATUS="), "the loop that has ended does not count"
        assert b"STOPPING=1" not in said
        last = b""
        while not last.startswith(b"STOPPING=1"):
            last = heard.recv(1000)


def test_one_loop_that_hangs_is_enough_for_a_restart() -> None:
    now = 0
    with open_source("synthetic://drive?seconds=1") as source:
        monitors = [CameraMonitor(source, LoopConfig(), False, clock=lambda: now) for _ in range(2)]
    for monitor in monitors:
        monitor.fellows = monitors
    now = 9_000_000_000
    monitors[0].turn()
    assert (monitors[0].alive, monitors[1].alive) == (True, True)
    now = 11_000_000_000
    assert (monitors[0].turning, monitors[1].turning) == (True, False)
    assert (monitors[0].alive, monitors[1].alive) == (False, False)
    monitors[1].over = True
    assert monitors[0].alive


def test_a_request_to_read_settings_again_reaches_every_camera(tmp_path: Path, tiny_engine: Any) -> None:
    asked = Request()
    path = write(tmp_path / "rig.yaml", RIG)

    def load() -> dict[str, Config]:
        return camera_configs(load_rig(path, {}), {}, {})

    reloads = [
        Reload(asked, lambda name=name: perception.cameras.load_camera(load, name), config, name)
        for name, config in load().items()
    ]
    assert [r.changed(tiny_engine.contract) for r in reloads] == [None, None]
    path.write_text(RIG.replace("threshold: 0.4", "threshold: 0.3"))
    asked.make()
    front, left = [r.changed(tiny_engine.contract) for r in reloads]
    assert front is not None
    assert front.polygons.threshold == 0.3
    assert left is None, "it has a threshold of its own"
    assert [r.changed(tiny_engine.contract) for r in reloads] == [None, None]
    path.write_text("cameras: {other: {capture: {source: a.mp4}}}")
    asked.make()
    assert [r.changed(tiny_engine.contract) for r in reloads] == [None, None], "the settings stay"


# -- Live --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_cameras_with_their_outputs_whole(tmp_path: Path, tiny_model: Path, number: signal.Signals) -> None:
    """Cameras of different rates, live; what is said on the way has the camera's name."""
    road_video(tmp_path / "a.mp4", 10)
    write_video(tmp_path / "b.mp4", [road_image(192, 96)] * 10, [i * 40 for i in range(10)])
    command = ["run", "slow=a.mp4", "fast=b.mp4", "--realtime", "--loop", "--polygons", "p.jsonl", "--model", str(tiny_model)]
    command += ["--backend", "onnxruntime", "--threads", "1", "--budget-ms", "2000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "perception.cli", *command],
        cwd=tmp_path,
        env=cli_environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        parts = [tmp_path / f".p-{name}.part.jsonl" for name in ("slow", "fast")]
        end = time.monotonic() + 60
        while not all(p.exists() and p.read_bytes().count(b"\n") > 8 for p in parts):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert parts_in(tmp_path) == []
    slow, fast = lines_of(tmp_path / "p-slow.jsonl"), lines_of(tmp_path / "p-fast.jsonl")
    assert {line["frame_id"] for line in slow} == {"slow"}
    assert {line["frame_id"] for line in fast} == {"fast"}
    for lines in (slow, fast):
        assert (lines[-1]["valid"], lines[-1]["causes"][0]["code"]) == (False, "source_ended")
    assert "fast is " in err
    assert sum(line.rstrip().endswith("age") for line in out.splitlines()) == 2


def test_one_source_alone_is_as_ever(clips: Path, tiny_model: Path) -> None:
    code, out, err = here("run", "a.mp4", "--polygons", "p.jsonl", "--model", tiny_model, "--backend", "onnxruntime")
    assert (code, (clips / "p.jsonl").exists()) == (0, True), err
    assert "done: 12 frames" in out
    assert {line["frame_id"] for line in lines_of(clips / "p.jsonl")} == {"camera"}
