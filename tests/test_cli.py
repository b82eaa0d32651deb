"""The command line as a person uses it: what it writes, what it says, how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import (
    Cli,
    cli_environment,
    numbered_video,
    parts_in,
    road_image,
    road_video,
    stamps_of,
    write_image,
    write_model,
)

import engine
from perception import cli as command_line
from perception import demo
from perception.freespace import Freespace

Here = Callable[..., "tuple[int, str, str]"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Here:
    """Runs the command line in this process, in ``tmp_path``: (exit code, stdout, stderr), that of native code included."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["freespace", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            command_line.main()
        out, err = capfd.readouterr()
        return int(caught.value.code or 0), out, err

    return run


def results(path: Path) -> list[Freespace]:
    return [Freespace.from_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["./", ".", "a/.."])
@pytest.mark.parametrize("option", ["--polygons", "--out", "--mcap", "--state"])
def test_output_that_is_a_folder(tmp_path: Path, here: Here, name: str, option: str) -> None:
    (tmp_path / "a").mkdir()
    write_image(tmp_path / "road.png", road_image())
    code, _, err = here("run", "road.png", option, name)
    assert code == 2, err
    assert "is a folder; give a file name" in err


def test_outputs_that_cannot_be_continued_are_refused(tmp_path: Path, here: Here) -> None:
    write_image(tmp_path / "road.png", road_image())
    code, _, err = here("run", "road.png", "--out", "overlay.mp4", "--polygons", "p.jsonl", "--append")
    assert (code, "--append cannot go on with it" in err) == (2, True)
    code, _, err = here("run", "road.png", "--out", "overlay.mp4", "--rotate-mb", "5")
    assert (code, "there is none of these" in err) == (2, True)


def test_source_from_the_settings(tmp_path: Path, here: Here, tiny_model: Path) -> None:
    write_image(tmp_path / "road.png", road_image())
    (tmp_path / "settings.yaml").write_text(
        f"capture: {{source: road.png}}\nengine: {{model: {tiny_model}, backend: onnxruntime}}\n"
    )
    assert here("run", "--config", "settings.yaml", "--polygons", "p.jsonl")[0] == 0
    assert len(results(tmp_path / "p.jsonl")) == 1
    code, _, err = here("run", "--polygons", "q.jsonl")
    assert (code, "Give a SOURCE" in err) == (2, True)


# -- What it does ------------------------------------------------------------------------------------------------------


def test_run_writes_everything_and_says_what_it_did(tmp_path: Path, cli: Cli, tiny_model: Path) -> None:
    road_video(tmp_path / "clip.mp4", 10)
    outputs = ["--out", "o/overlay.mp4", "--polygons", "o/p.jsonl", "--masks", "o/masks", "--contact-sheet", "o/sheet.png"]
    done = cli("run", "clip.mp4", *outputs, "--model", tiny_model, "--backend", "onnxruntime", "--threads", 1)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("done: 10 frames in ")
    assert lines[0].endswith(" FPS, 0 dropped")
    stages = [line.split()[0] for line in lines[2:] if not line.startswith(("wrote", "steadiness:"))]
    assert stages[:5] == ["decode", "preprocess", "infer", "postprocess", "total"]
    assert set(stages[5:]) == {"video", "mask", "contactsheet", "jsonl"}
    assert {line for line in lines if line.startswith("wrote ")} == {
        "wrote overlay o/overlay.mp4",
        "wrote polygons o/p.jsonl",
        "wrote 10 masks in o/masks",
        "wrote contact sheet o/sheet.png",
    }
    assert "tiny.onnx" in done.stderr
    assert "64x32, onnxruntime fp32 on CPU (as asked)" in done.stderr
    assert parts_in(tmp_path) == []

    found = results(tmp_path / "o/p.jsonl")
    assert [r.seq for r in found] == list(range(10))
    assert [r.stamp_ns for r in found] == [i * 100_000_000 for i in range(10)]
    assert {(r.source, r.size, r.valid, r.dropped) for r in found} == {("clip.mp4", (128, 64), True, 0)}
    for result in found:
        assert sum(p.area_px for p in result.polygons) == pytest.approx(128 * 32, rel=0.05)
    masks = sorted((tmp_path / "o/masks").iterdir())
    assert [m.name for m in masks] == [f"{i:06d}.png" for i in range(10)]
    mask = cv2.imread(str(masks[0]), cv2.IMREAD_UNCHANGED)
    assert mask[40:].all()
    assert not mask[:24].any()
    assert len(stamps_of(tmp_path / "o/overlay.mp4")) == 10
    assert cv2.imread(str(tmp_path / "o/sheet.png")) is not None


def test_selection_reaches_the_results(tmp_path: Path, here: Here, tiny_model: Path) -> None:
    numbered_video(tmp_path / "clip.mp4", 20)
    selection = ["--start", 0.5, "--duration", 1, "--every", 3]
    code, out, _ = here("run", "clip.mp4", "--polygons", "p.jsonl", "--model", tiny_model, *selection)
    assert code == 0
    assert out.startswith("done: 4 frames")
    assert [r.seq for r in results(tmp_path / "p.jsonl")] == [5, 8, 11, 14]


def test_plane_reaches_the_results(tmp_path: Path, here: Here, tiny_model: Path) -> None:
    write_image(tmp_path / "road.png", road_image())
    assert here("run", "road.png", "--polygons", "p.jsonl", "--model", tiny_model, "--plane", "ego")[0] == 0
    (result,) = results(tmp_path / "p.jsonl")
    assert [p.plane for p in result.polygons] == ["ego"]
    assert result.polygons[0].area_px == pytest.approx(128 * 64 / 4, rel=0.02)


def test_masks_of_a_folder_carry_the_stems_of_its_images(tmp_path: Path, here: Here, tiny_model: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("crossing.png", "Straße 7.jpg", "b.png", "b.bmp"):
        write_image(tmp_path / "in" / name, road_image())
    (tmp_path / "in/broken.png").write_bytes(b"no picture")
    code, out, err = here("run", "in", "--masks", "masks", "--model", tiny_model)
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == ["Straße 7.png", "b.bmp.png", "b.png.png", "crossing.png"]
    assert ", 1 dropped" in out
    assert [line for line in err.splitlines() if line.startswith("freespace: ")] == [
        "freespace: in/broken.png: cannot be decoded as an image (broken or truncated?); skipped"
    ]


def test_run_without_outputs_says_how_to_get_some(tmp_path: Path, here: Here, tiny_model: Path) -> None:
    write_image(tmp_path / "road.png", road_image())
    code, out, _ = here("run", "road.png", "--model", tiny_model)
    assert code == 0
    assert "nothing was written: give --out" in out


def test_overwrite_replaces(tmp_path: Path, here: Here, tiny_model: Path) -> None:
    write_image(tmp_path / "road.png", road_image())
    (tmp_path / "p.jsonl").write_text("old")
    assert here("run", "road.png", "--polygons", "p.jsonl", "--model", tiny_model, "--overwrite")[0] == 0
    assert len(results(tmp_path / "p.jsonl")) == 1


def test_config_is_used_and_options_win_over_it(tmp_path: Path, here: Here, tiny_model: Path) -> None:
    road_video(tmp_path / "clip.mp4", 10)
    (tmp_path / "run.yaml").write_text(
        f"engine: {{model: {tiny_model}, backend: onnxruntime}}\n"
        "capture: {every: 2, start_s: 0.2}\npolygons: {plane: ego}\noutput: {polygons: from-file.jsonl}\n"
    )
    assert here("run", "clip.mp4", "--config", "run.yaml")[0] == 0
    found = results(tmp_path / "from-file.jsonl")
    assert [r.seq for r in found] == [2, 4, 6, 8]
    assert {p.plane for r in found for p in r.polygons} == {"ego"}
    code, _, _ = here(
        "run", "clip.mp4", "--config", "run.yaml", "--every", 5, "--plane", "freespace", "--polygons", "from-option.jsonl"
    )
    assert code == 0
    found = results(tmp_path / "from-option.jsonl")
    assert [r.seq for r in found] == [2, 7]
    assert {p.plane for r in found for p in r.polygons} == {"freespace"}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_every_backend_finds_the_same_road(tmp_path: Path, here: Here, tiny_model: Path, backend: str) -> None:
    pytest.importorskip(backend)
    write_image(tmp_path / "road.png", road_image())
    code, _, err = here("run", "road.png", "--polygons", "p.jsonl", "--model", tiny_model, "--backend", backend)
    assert code == 0, err
    (result,) = results(tmp_path / "p.jsonl")
    assert result.backend == backend
    assert sum(p.area_px for p in result.polygons) == pytest.approx(128 * 32, rel=0.01)


def test_parity_of_the_backends(tmp_path: Path, here: Here, tiny_model: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("openvino")
    (tmp_path / "in").mkdir()
    for number in range(3):
        write_image(tmp_path / f"in/{number}.png", np.random.default_rng(number).integers(0, 256, (48, 80, 3), np.uint8))
    code, out, err = here("parity", tiny_model, "--source", "in")
    assert code == 0, err
    head, columns, *rows = out.splitlines()
    assert head.startswith("against torch fp32")
    assert columns.split() == ["backend", "precision", "frames", "largest", "mean", "IoU", "freespace", "IoU", "ego"]
    assert [row.split()[:3] for row in rows[:2]] == [["openvino", "fp32", "3"], ["onnxruntime", "fp32", "3"]]
    assert all(int(row.split()[3]) <= 2 and float(row.split()[5]) > 0.99 for row in rows[:2])


def test_parity_fails_beyond_the_tolerance(
    tmp_path: Path, here: Here, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.onnxruntime_engine import OnnxRuntimeEngine

    infer = OnnxRuntimeEngine.infer
    monkeypatch.setattr(OnnxRuntimeEngine, "infer", lambda self, batch: infer(self, batch) ^ 8)
    code, out, err = here("parity", tiny_model, "--source", "synthetic://drive?size=64x36&seconds=0.2")
    assert code == 1
    assert "onnxruntime" in out, "the table is printed all the same"
    assert "8 grey levels, allowed are 2" in err


def test_parity_on_nothing_is_no_agreement(tmp_path: Path, here: Here, tiny_model: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/broken.png").write_bytes(b"no picture")
    code, _, err = here("parity", tiny_model, "--source", "in")
    assert code != 0
    assert "freespace: " in err


def test_offline_demo(tmp_path: Path, here: Here, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "DEFAULT_MODEL", tiny_model)
    monkeypatch.setattr(demo, "SYNTHETIC", "synthetic://drive?size=320x180&fps=10&seconds=1&seed=1")
    monkeypatch.setattr(demo, "fetch_clip", lambda: pytest.fail("offline means that nothing is fetched"))
    for _ in range(2):  # the results of an earlier demo are replaced
        code, out, err = here("demo", "--offline", "--out", "results")
        assert code == 0, err
        assert out.startswith("done: 10 frames")
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == ["contact-sheet.png", "overlay.mp4", "polygons.jsonl"]
    assert len(results(tmp_path / "results/polygons.jsonl")) == 10


def test_demo_without_a_network_uses_the_synthetic_drive(here: Here, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> Path:
        raise demo.ClipUnavailable("pip: no route to host")

    monkeypatch.setattr(engine, "DEFAULT_MODEL", tiny_model)
    monkeypatch.setattr(demo, "SYNTHETIC", "synthetic://drive?size=160x96&fps=10&seconds=0.3&seed=1")
    monkeypatch.setattr(demo, "fetch_clip", unavailable)
    code, out, err = here("demo")
    assert code == 0, err
    assert "the dashcam clip cannot be had (pip: no route to host)" in err
    assert out.startswith("done: 3 frames")


# -- What it refuses ---------------------------------------------------------------------------------------------------


def assert_one_sentence(stderr: str, *parts: str) -> None:
    sentences = [line for line in stderr.splitlines() if line.startswith("freespace: ")]
    assert len(sentences) == 1, stderr
    assert "Traceback" not in stderr
    for part in parts:
        assert part in sentences[0]


@pytest.fixture
def inputs(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder with good and bad inputs for the tests below."""
    numbered_video(tmp_path / "clip.mp4", 5)
    write_image(tmp_path / "road.png", road_image())
    for name, text in {
        "broken.png": "no picture",
        "text.mp4": "no video",
        "text.onnx": "no model",
        "old.jsonl": "precious",
        "unknown.yaml": "capture: {evry: 2}",
        "toplevel.yaml": "captrue: {every: 2}",
        "type.yaml": "polygons: {threshold: high}",
        "range.yaml": "polygons: {threshold: 2}",
        "list.yaml": "- 1\n- 2",
        "broken.yaml": "capture: {every: [",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "tiny.onnx").write_bytes(tiny_model.read_bytes())
    write_model(tmp_path / "one-plane.onnx", ("freespace",))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("run gone.mp4", ["gone.mp4: no such file"]),
        ("run text.mp4", ["text.mp4: cannot be opened as a video"]),
        ("run empty.mp4", ["empty.mp4: "]),
        ("run broken.png", ["broken.png: cannot be decoded"]),
        ("run folder", ["folder: no images"]),
        ("run rtps://camera/1", ["unknown kind of source 'rtps'"]),
        ("run synthetic://drive?sise=1", ["unknown key 'sise'"]),
        ("run synthetic://moon", ["moon"]),
        ("run clip.mp4 --backend tensorflow", ["unknown backend 'tensorflow'", "onnxruntime"]),
        ("run clip.mp4 --precision fp8", ["engine.precision", "'fp8'"]),
        ("run clip.mp4 --backend onnxruntime --precision bf16", ["onnxruntime", "bf16"]),
        ("run clip.mp4 --model gone.onnx", ["gone.onnx: no such model file"]),
        ("run clip.mp4 --model text.onnx", ["text.onnx: not an ONNX file"]),
        ("run clip.mp4 --model one-plane.onnx --plane ego", ["has no plane 'ego'", "it has freespace"]),
        ("run clip.mp4 --plane kerb", ["polygons.plane", "'kerb'"]),
        ("run clip.mp4 --start 0.5", ["starts after its end: it is 0.50 s long"]),
        ("run clip.mp4 --start -1", ["capture.start_s"]),
        ("run clip.mp4 --start nan", ["capture.start_s"]),
        ("run road.png --start 1e308", ["capture.start_s", "less than or equal"]),
        ("run clip.mp4 --duration 0", ["capture.duration_s"]),
        ("run clip.mp4 --every 0", ["capture.every"]),
        ("run clip.mp4 --threads -1", ["engine.threads"]),
        ("run road.png --image-fps 0", ["capture.image_fps"]),
        ("run clip.mp4 --polygons old.jsonl", ["old.jsonl: exists already", "--overwrite"]),
        ("run clip.mp4 --polygons folder", ["folder: is a folder"]),
        ("run clip.mp4 --masks old.jsonl", ["old.jsonl: is a file"]),
        ("run clip.mp4 --out clip.mp4 --overwrite", ["clip.mp4: is the source itself"]),
        ("run clip.mp4 --out overlay.avi", ["overlay.avi", ".mp4"]),
        ("run clip.mp4 --show", ["--show needs a screen"]),
        ("run clip.mp4 --config gone.yaml", ["gone.yaml: cannot be read"]),
        ("run clip.mp4 --config folder", ["folder: cannot be read"]),
        ("run clip.mp4 --config unknown.yaml", ["unknown.yaml: capture.evry: unknown key", "every"]),
        ("run clip.mp4 --config toplevel.yaml", ["toplevel.yaml: captrue: unknown key", "capture"]),
        ("run clip.mp4 --config type.yaml", ["type.yaml: polygons.threshold: ", "'high'"]),
        ("run clip.mp4 --config range.yaml", ["range.yaml: polygons.threshold: ", "2"]),
        ("run clip.mp4 --config list.yaml", ["list.yaml: wanted keys"]),
        ("run clip.mp4 --config broken.yaml", ["broken.yaml: not valid YAML"]),
        ("parity --source gone.mp4", ["gone.mp4: no such file"]),
    ],
)
def test_mistake_is_told_in_one_sentence(inputs: Path, here: Here, arguments: str, parts: list[str]) -> None:
    """Whatever else was asked for, nothing is left behind: no unfinished file, and existing ones as they were."""
    given = arguments.split()
    if given[0] == "run":
        given += ["--model", "tiny.onnx"] if "--model" not in given and "--config" not in given else []
        given += ["--polygons", "new.jsonl"] if "--polygons" not in given else []
    before = {p.name: p.read_bytes() for p in inputs.iterdir() if p.is_file()}
    code, out, err = here(*given)
    assert code == 2, err
    assert out == ""
    assert_one_sentence(err, *parts)
    assert {p.name: p.read_bytes() for p in inputs.iterdir() if p.is_file()} == before


@pytest.mark.parametrize("arguments", ["run", "run x.mp4 --evry 2", "run x.mp4 --every two", "fly", "parity --tolerance -1"])
def test_bad_usage_is_told_without_a_traceback(here: Here, arguments: str) -> None:
    code, _, err = here(*arguments.split())
    assert code == 2
    assert err.strip()
    assert "Traceback" not in err


def test_folder_of_broken_images_fails_and_names_them(tmp_path: Path, here: Here, tiny_model: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(25):
        (tmp_path / f"in/{number}.png").write_bytes(b"no picture")
    code, _, err = here("run", "in", "--polygons", "p.jsonl", "--model", tiny_model)
    lines = [line for line in err.splitlines() if line.startswith("freespace: ")]
    assert code == 1
    assert lines[0].startswith("freespace: in/0.png: cannot be decoded")
    assert lines[20] == "freespace: and 5 more like these"
    assert lines[21:] == ["freespace: in: no frame could be processed"]
    assert not (tmp_path / "p.jsonl").exists()


# -- How it starts and ends --------------------------------------------------------------------------------------------


def test_real_process_ends_with_the_right_code(tmp_path: Path, cli: Cli) -> None:
    done = cli("run", "gone.mp4")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "freespace: gone.mp4: no such file or folder\n"


def test_ctrl_c_closes_the_outputs(tmp_path: Path, tiny_model: Path) -> None:
    """One picture linked thousands of times is a recording that takes longer than anybody waits."""
    (tmp_path / "in").mkdir()
    first = write_image(tmp_path / "in/0.png", np.random.default_rng(1).integers(0, 256, (360, 640, 3), np.uint8))
    for number in range(1, 6000):
        (tmp_path / f"in/{number}.png").hardlink_to(first)
    outputs = ["--out", "overlay.mp4", "--polygons", "polygons.jsonl"]
    command = [sys.executable, "-m", "perception.cli", "run", "in", *outputs, "--model", str(tiny_model)]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=cli_environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 30
        while not any(p.stat().st_size > 2000 for p in tmp_path.glob("*polygons*")):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert out.startswith("interrupted after ")
    assert parts_in(tmp_path) == []
    found = results(tmp_path / "polygons.jsonl")
    assert [r.seq for r in found] == list(range(len(found)))
    assert 0 < len(found) < 6000
    assert len(stamps_of(tmp_path / "overlay.mp4")) == len(found)
    assert f"interrupted after {len(found)} frames" in out


def test_second_ctrl_c_ends_at_once(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("perception.session.run_session", interrupted)
    code, _, err = here("run", "clip.mp4")
    assert code == 130
    assert "Traceback" not in err


LOADED = """
import sys
{statement}
heavy = {{"torch", "openvino", "onnxruntime", "onnx", "av", "rclpy", "tensorrt", "pycuda"{also}}}
print(sorted(heavy & set(sys.modules)))
"""
HELP = """
from perception.cli import main
sys.argv = ["freespace", "--help"]
try:
    main()
except SystemExit as ended:
    assert not ended.code
"""


@pytest.mark.parametrize(("statement", "also"), [("import perception", ', "cv2", "numpy"'), (HELP, "")], ids=["import", "help"])
def test_starting_costs_nothing(tmp_path: Path, statement: str, also: str) -> None:
    code = LOADED.format(statement=statement, also=also)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_names_every_command(here: Here) -> None:
    code, out, _ = here("--help")
    assert code == 0
    used = ("run", "demo", "parity", "build", "doctor", "calibrate")
    made = ("train", "distil", "evaluate", "export", "masks", "summary", "explain")
    for command in used + made:
        assert f"\n  {command} " in out


def test_version(here: Here) -> None:
    from perception import __version__

    assert here("--version")[:2] == (0, f"freespace {__version__}\n")


def test_missing_training_extra_says_what_to_install(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [n for n in sys.modules if n.startswith("training")]:
        monkeypatch.delitem(sys.modules, name)
    code, _, err = here("train", "--data", "d", "--out", "o")
    assert code == 2
    assert_one_sentence(err, "pip install '.[train]'")
