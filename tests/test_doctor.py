"""`freespace doctor`: what it says about a whole machine, and about every way in which one can be broken."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Cli, cli_environment

from perception import __version__, doctor
from perception.doctor import Finding, Machine, Report

ENGINES = ["openvino", "onnxruntime", "torch"]
CUDA = ["driver", "tensorrt", "tensorrt_rtx", "pycuda", "nvcc"]
NAMES = ["python", "platform", "freespace", "model", *ENGINES, *CUDA, "opencv", "pyav", "ros2", "cameras", "cache", "disk"]
LIMIT_S = 40.0  # for probes that are to succeed, on a busy machine
PC = Machine(gpu=True, distribution="ubuntu")
JETSON = Machine(architecture="aarch64", distribution="ubuntu", jetson="NVIDIA Jetson Orin Nano", l4t=(36, 4), gpu=True)

SEGFAULT = "import ctypes; ctypes.string_at(0)"
HANG = "import time; time.sleep(600)"

Fake = Callable[[str, str], Path]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Puts a module with this name and code before the installed one of that name."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def write(name: str, code: str) -> Path:
        path = folder / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
        return path

    return write


def compiled(folder: Path, name: str, code: str) -> Path:
    """A shared library ``folder/name`` made of C ``code``."""
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler")
    folder.mkdir(exist_ok=True)
    source = folder / "source.c"
    source.write_text(code)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / name, source], check=True)
    return folder / name


def file(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def program(path: Path, text: str) -> Path:
    file(path, f"#!/bin/sh\n{text}\n").chmod(0o755)
    return path


# -- This machine ------------------------------------------------------------------------------------------------------


def test_a_whole_machine(cli: Cli, tmp_path: Path) -> None:
    file(tmp_path / "cache/freespace/plans/a.plan", "x" * 300_000)
    done = cli("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    table = {line.split()[1]: line.split() for line in done.stdout.split("\n\n")[0].splitlines()}
    assert list(table) == NAMES
    for name in ("freespace", "model", "openvino", "onnxruntime", "opencv", "pyav", "cache"):
        assert table[name][0] == "ok", table[name]
    assert table["freespace"][2] == __version__
    assert table["cache"][-5:] == ["writable,", "1", "files,", "0.3", "MB"]
    assert done.stdout.splitlines()[-2].startswith("--backend auto takes openvino in ")
    assert done.stdout.splitlines()[-1] == "freespace run works here."
    assert done.stderr == ""
    assert os.listdir(tmp_path) == ["cache"]


def test_json_of_a_broken_machine(tmp_path: Path, fake: Fake) -> None:
    file(tmp_path / "torch.py", SEGFAULT)  # the current folder is none of the program's business
    fake("openvino", SEGFAULT)
    fake("onnxruntime", "raise ImportError('libonnx.so.1: cannot open shared object file')")
    fake("torch", "import sys; sys.exit(3)")
    fake("rclpy", "print('hello', end='')")
    folder = fake("tensorrt", SEGFAULT).parent
    environment = {**cli_environment(tmp_path), "PYTHONPATH": str(folder), "XDG_CACHE_HOME": str(fake("x", ""))}
    command = [shutil.which("freespace", path=Path(sys.executable).parent) or "freespace", "doctor", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert list(report) == ["schema", "ready", "auto", "findings"]
    assert report["schema"] == "freespace-doctor/1"
    assert report["ready"] is False
    assert report["auto"].startswith("--backend auto does not work here: ")
    assert all(list(f) == ["name", "status", "detail", "fix"] for f in report["findings"])
    findings = {f["name"]: f for f in report["findings"]}
    assert list(findings) == NAMES
    assert findings["openvino"]["detail"] == findings["tensorrt"]["detail"] == "loading it ended by SIGSEGV"
    assert findings["openvino"]["fix"] == "pip install --force-reinstall openvino"
    assert findings["onnxruntime"]["detail"] == "ImportError: libonnx.so.1: cannot open shared object file"
    assert findings["torch"]["detail"] == "SystemExit: 3"
    assert findings["ros2"]["status"] == "ok"
    assert findings["cache"]["fix"] == 'export XDG_CACHE_HOME="$HOME/.cache"'
    broken = {"openvino", "onnxruntime", "torch", "tensorrt", "cache"}
    assert {n for n, f in findings.items() if f["status"] == "broken"} == broken


def test_hanging_libraries_are_given_up_in_time(fake: Fake) -> None:
    for name in ("openvino", "onnxruntime", "torch", "tensorrt", "cv2", "av", "rclpy"):
        fake(name, HANG)
    started = time.monotonic()
    report = doctor.examine(limit_s=3)
    assert time.monotonic() - started < 3 + 4
    assert [f.name for f in report.findings] == NAMES
    assert not report.ready
    status = {f.name: f.status for f in report.findings}
    assert {status[n] for n in ("openvino", "onnxruntime", "torch", "tensorrt", "opencv", "pyav", "ros2")} == {"broken"}
    assert "no answer within" in report.auto


def test_a_probe_that_raises_or_never_returns_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "REAP_S", 0.1)
    probes = {"a": lambda: 1 / 0, "b": lambda: time.sleep(5), "c": lambda: Finding("c", "ok", "fine")}
    found = doctor.concurrently(probes, 0.3)  # type: ignore[arg-type]
    assert list(found) == ["a", "b", "c"]
    assert found["a"] == Finding("a", "broken", "ZeroDivisionError: division by zero")
    assert found["b"] == Finding("b", "broken", "no answer within 0.3 s")
    assert found["c"].status == "ok"


# -- What follows from it ----------------------------------------------------------------------------------------------


def findings(**status: str) -> dict[str, Finding]:
    return {name: Finding(name, status.get(name, "ok"), "") for name in NAMES}  # type: ignore[arg-type]


OPENVINO, TENSORRT = Finding("openvino", "ok", "openvino"), Finding("tensorrt", "ok", "tensorrt")
NO_CPU = {"openvino": "missing", "onnxruntime": "missing"}


@pytest.mark.parametrize(
    ("status", "auto", "ready", "sentence"),
    [
        ({}, Finding("openvino", "ok", "openvino: fast"), True, "--backend auto takes openvino: fast."),
        (
            {"openvino": "broken", "driver": "absent"},
            Finding("auto", "broken", "RuntimeError: no CPU."),
            True,
            "--backend auto does not work here: RuntimeError: no CPU; --backend onnxruntime works.",
        ),
        ({"model": "broken"}, OPENVINO, False, "--backend auto takes openvino."),
        ({"freespace": "broken"}, OPENVINO, False, "--backend auto takes openvino."),
        (
            NO_CPU,
            Finding("auto", "broken", "nothing"),
            True,
            "--backend auto does not work here: nothing; --backend tensorrt works.",
        ),
        (NO_CPU, TENSORRT, True, "--backend auto takes tensorrt."),
        (
            {**NO_CPU, "driver": "broken", "nvcc": "missing"},
            TENSORRT,
            False,
            "--backend auto tries tensorrt, but driver is broken, nvcc is missing.",
        ),
        (
            {"tensorrt": "broken", "tensorrt_rtx": "absent"},
            TENSORRT,
            True,
            "--backend auto tries tensorrt, but tensorrt is broken; --backend openvino works.",
        ),
        (
            {"openvino": "broken", "tensorrt": "absent", "tensorrt_rtx": "absent"},
            OPENVINO,
            True,
            "--backend auto tries openvino, but openvino is broken; --backend onnxruntime works.",
        ),
    ],
)
def test_ready_needs_the_model_and_an_engine(status: dict[str, str], auto: Finding, ready: bool, sentence: str) -> None:
    assert doctor.judge(findings(**status), auto) == (ready, sentence)


def test_report_prints_on_any_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report(
        (Finding("cameras", "broken", "/dev/video0 (摄像头 …)", "fix it"), Finding("nvcc", "absent", "")), "auto …", False
    )
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", errors="strict", newline="\n"))
    doctor.print_report(report)
    sys.stdout.flush()
    lines = written.getvalue().decode().splitlines()
    assert lines[0] == "broken   cameras       /dev/video0 (??? ?)"
    assert lines[3:5] == ["to fix:", "  cameras       fix it"]
    assert lines[-2:] == ["auto ?", "freespace run does not work here."]


def test_a_terminal_gets_a_table_even_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report((Finding("nvcc", "ok", "13.0"),), "auto", True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    doctor.print_report(report)
    assert capsys.readouterr().out.startswith("\x1b[32mok\x1b[0m")
    monkeypatch.setitem(sys.modules, "rich.table", None)
    doctor.print_report(report)
    assert capsys.readouterr().out.splitlines()[0] == "ok       nvcc          13.0"


# -- Libraries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "status", "detail"),
    [
        ("8.6.1", "broken", "8.6.1 is too old, 10.0 or newer is needed"),
        ("develop", "broken", "develop is too old, 10.0 or newer is needed"),
        ("10.3.0", "ok", "10.3.0, strongly typed by flag"),
        ("11.4.1.16", "ok", "11.4.1.16, strongly typed only"),
    ],
)
def test_generations_of_tensorrt(fake: Fake, version: str, status: str, detail: str) -> None:
    fake("tensorrt", f"__version__ = {version!r}")
    found = doctor.probe_tensorrt(PC, LIMIT_S)
    assert (found.status, found.detail) == (status, detail)
    assert bool(found.fix) == (status == "broken")


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("raise ImportError('libnvinfer.so.11: cannot\\n open')", "ImportError: libnvinfer.so.11: cannot open"),
        ("raise FileNotFoundError('Could not find: nvinfer')", "FileNotFoundError: Could not find: nvinfer"),
        (SEGFAULT, "loading it ended by SIGSEGV"),
        ("import os; os.abort()", "loading it ended by SIGABRT"),
        ("import os, sys; print('sorry', file=sys.stderr, flush=True); os._exit(7)", "loading it ended with code 7: sorry"),
        ("import sys; sys.exit('no')", "SystemExit: no"),
        ("import missing_part", "ModuleNotFoundError: No module named 'missing_part'"),
        ("", "ImportError: tensorrt says no version; it is not whole"),
        ("raise ImportError('x' * 1000)", f"ImportError: {'x' * 286}…"),
    ],
)
def test_broken_tensorrt(fake: Fake, code: str, detail: str) -> None:
    fake("tensorrt", code)
    found = doctor.probe_tensorrt(PC, LIMIT_S)
    assert (found.status, found.detail) == ("broken", detail)
    assert found.fix == "pip install --force-reinstall --no-cache-dir tensorrt"


def test_an_empty_folder_is_no_library(fake: Fake) -> None:
    fake("tensorrt.nothing", "").unlink()
    assert doctor.probe_tensorrt(PC, LIMIT_S).detail.startswith("ImportError: tensorrt is an empty folder")


def test_a_hanging_library(fake: Fake) -> None:
    fake("tensorrt", HANG)
    started = time.monotonic()
    found = doctor.probe_tensorrt(PC, 0.5)
    assert time.monotonic() - started < 3
    assert found.status == "broken"
    assert found.detail.startswith("no answer within 0.5 s")


@pytest.mark.parametrize(("number", "status"), [(110401, "ok"), (110301, "broken")])
def test_bindings_and_library_of_tensorrt_must_be_one_version(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch, number: int, status: str
) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    library = compiled(tmp_path / "lib", "libnvinfer.so.11", f"int getInferLibVersion(void) {{ return {number}; }}")
    fake("tensorrt", f"import ctypes; ctypes.CDLL({str(library)!r}); __version__ = '11.4.1.16'")
    found = doctor.probe_tensorrt(PC, LIMIT_S)
    assert found.status == status
    if status == "broken":
        assert found.detail == "bindings 11.4.1.16, but the library that loads is 11.3.1"
        assert found.fix == "pip install tensorrt"
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
        assert doctor.probe_tensorrt(PC, LIMIT_S).fix == "unset LD_LIBRARY_PATH"


def test_tensorrt_rtx_under_either_name(fake: Fake) -> None:
    fake("tensorrt_rtx_bindings", "__version__ = '1.7.1.116'")
    assert doctor.probe_tensorrt_rtx(PC, LIMIT_S).detail.startswith("1.7.1.116, ")
    fake("tensorrt_rtx", "__version__ = '1.8.0.1'")
    assert doctor.probe_tensorrt_rtx(PC, LIMIT_S).detail.startswith("1.8.0.1, ")
    fake("tensorrt_rtx", SEGFAULT)
    assert doctor.probe_tensorrt_rtx(PC, LIMIT_S).status == "broken"


def test_pycuda(fake: Fake) -> None:
    fake("pycuda.__init__", "VERSION_TEXT = '2026.1'")
    fake("pycuda.driver", "def get_version(): return (12, 6, 0)")
    assert doctor.probe_pycuda(PC, LIMIT_S) == Finding("pycuda", "ok", "2026.1, built for CUDA 12.6")
    fake("pycuda.driver", "raise ImportError('libcurand.so.10: cannot open shared object file')")
    found = doctor.probe_pycuda(PC, LIMIT_S)
    assert found.status == "broken"
    assert found.fix.startswith("CUDA_ROOT=")
    assert found.fix.endswith(" pip install --force-reinstall --no-cache-dir --no-binary pycuda pycuda")
    fake("pycuda.driver", "raise ImportError('libcuda.so.1: cannot open shared object file')")
    assert doctor.probe_pycuda(PC, LIMIT_S).fix == "sudo ubuntu-drivers install"
    assert doctor.probe_pycuda(Machine(), LIMIT_S).status == "absent"


def test_an_engine_that_loads_and_does_not_compute(fake: Fake) -> None:
    fake("onnxruntime", "__version__ = '1.2'")
    found = doctor.probe_engine("onnxruntime", LIMIT_S)
    assert found.status == "broken"
    assert found.detail.startswith("AttributeError: ")
    assert found.fix == "pip install --force-reinstall onnxruntime"


def test_a_missing_dependency_is_named_in_the_fix(fake: Fake) -> None:
    fake("onnx", "raise ModuleNotFoundError('No module named google', name='google.protobuf')")
    assert doctor.probe_model(PC, LIMIT_S) == Finding(
        "model", "broken", "ModuleNotFoundError: No module named google", "pip install protobuf"
    )


def test_a_damaged_model(tmp_path: Path, fake: Fake) -> None:
    (tmp_path / "modules/engine").symlink_to(tmp_path / "engine")
    shutil.copytree(Path(doctor.__file__).parents[1] / "engine", tmp_path / "engine", ignore=shutil.ignore_patterns("*.onnx"))
    file(tmp_path / "engine/zoo/freespace.onnx", "version https://git-lfs.github.com/spec/v1")
    found = doctor.probe_model(PC, LIMIT_S)
    assert found.status == "broken"
    assert "not an ONNX file" in found.detail
    assert found.fix == "pip install --force-reinstall --no-deps ."


def test_opencv(fake: Fake) -> None:
    build = "    FFMPEG:   YES\n      avcodec: YES\n    GStreamer:  {}\n"
    code = f"__file__, __version__ = __file__, '4.10.0'\ndef getBuildInformation(): return {build!r}"
    fake("cv2", code.format("NO"))
    assert doctor.probe_opencv(PC, LIMIT_S) == Finding("opencv", "ok", "4.10.0, FFmpeg yes, GStreamer no")
    on_jetson = doctor.probe_opencv(JETSON, LIMIT_S)
    assert (on_jetson.status, on_jetson.fix) == ("ok", "sudo apt install python3-opencv")
    fake("cv2", code.format("YES (1.20.3)"))
    assert doctor.probe_opencv(JETSON, LIMIT_S) == Finding("opencv", "ok", "4.10.0, FFmpeg yes, GStreamer yes")
    fake("cv2", "raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')")
    assert doctor.probe_opencv(PC, LIMIT_S).fix == "sudo apt install libgl1"


def test_pyav_without_an_encoder(fake: Fake) -> None:
    fake("av", "__version__ = '14.0'; codecs_available = {'h264', 'libopenh264'}")
    found = doctor.probe_pyav(PC, LIMIT_S)
    assert (found.status, found.fix) == ("broken", "pip install --force-reinstall --only-binary=:all: av")


def test_torch_builds(fake: Fake) -> None:
    code = "class version: cuda = {!r}\nclass cuda: is_available = staticmethod(lambda: False)\n__version__ = '2.9'"
    fake("torch", code.format(None))
    assert doctor.probe_torch(PC, LIMIT_S) == Finding("torch", "ok", "2.9, CPU build")
    fake("torch", code.format("12.6"))
    assert doctor.probe_torch(PC, LIMIT_S) == Finding("torch", "ok", "2.9, built for CUDA 12.6, sees no GPU")


def test_ros2(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("rclpy", "raise ModuleNotFoundError('No module named rclpy', name='rclpy')")
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    nowhere = Machine(root=tmp_path)
    assert doctor.probe_ros2(nowhere, LIMIT_S).status == "absent"
    assert doctor.probe_ros2(nowhere, LIMIT_S).fix == "pip install 'ros-kilted-rclpy[fastrtps]'"
    file(tmp_path / "opt/ros/jazzy/setup.bash")
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    found = doctor.probe_ros2(nowhere, LIMIT_S)
    assert (found.status, found.fix) == ("missing", "source /opt/ros/jazzy/setup.bash")
    fake("rclpy", "")
    assert doctor.probe_ros2(nowhere, LIMIT_S).detail.endswith(", ROS_DISTRO jazzy")


# -- The driver --------------------------------------------------------------------------------------------------------

LIBCUDA = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned f) {{ {init} }}
int cuDriverGetVersion(int *v) {{ *v = 12060; return 0; }}
int cuDeviceGetCount(int *n) {{ *n = {count}; return 0; }}
int cuDeviceGet(int *d, int i) {{ *d = i; return 0; }}
int cuDeviceGetName(char *s, int n, int d) {{ strncpy(s, d ? "Second" : "NVIDIA RTX A2000", n); return 0; }}
int cuDeviceGetAttribute(int *v, int a, int d) {{ *v = a == 75 ? 8 : a == 76 ? 6 : -1; return 0; }}
int cuDeviceTotalMem_v2(size_t *v, int d) {{ *v = (size_t)6 << 30; return 0; }}
int cuGetErrorName(int e, const char **s) {{ *s = "CUDA_ERROR_NAMED"; return 0; }}
"""


@pytest.mark.parametrize(
    ("init", "count", "status", "detail", "fix"),
    [
        ("return 0;", 1, "ok", "CUDA 12.6, NVIDIA RTX A2000 (sm_86, 6.0 GiB)", ""),
        ("return 0;", 2, "ok", "CUDA 12.6, NVIDIA RTX A2000 (sm_86, 6.0 GiB), Second (sm_86, 6.0 GiB)", ""),
        ("return 0;", 0, "broken", "the driver sees no GPU", "sudo modprobe nvidia"),
        ("return 34;", 1, "broken", "CUDA_ERROR_NAMED (34)", "unset LD_LIBRARY_PATH"),
        ("return 100;", 1, "broken", "CUDA_ERROR_NAMED (100)", "sudo modprobe nvidia"),
        ("return 803;", 1, "broken", "CUDA_ERROR_NAMED (803)", "sudo reboot"),
        ("return *(volatile int *)0;", 1, "broken", "loading it ended by SIGSEGV", "sudo reboot"),
        ("for (;;);", 1, "broken", "no answer within 2 s (the first start after a boot is slow; try once more)", "sudo reboot"),
    ],
)
def test_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str, count: int, status: str, detail: str, fix: str
) -> None:
    library = compiled(tmp_path / "lib", "libcuda.so.1", LIBCUDA.format(init=init, count=count))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = doctor.probe_driver(PC, 2 if "for" in init else LIMIT_S)
    assert found == Finding("driver", status, detail, fix)  # type: ignore[arg-type]


def test_a_hidden_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = compiled(tmp_path / "lib", "libcuda.so.1", LIBCUDA.format(init="return 100;", count=0))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert doctor.probe_driver(PC, LIMIT_S).fix == "unset CUDA_VISIBLE_DEVICES"
    assert doctor.probe_driver(Machine(), LIMIT_S).status == "absent"


def test_a_library_that_is_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file(tmp_path / "lib/libcuda.so.1", "this is text")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "lib"))
    found = doctor.probe_driver(PC, LIMIT_S)
    assert found.status == "broken"
    assert "libcuda.so.1" in found.detail


# -- The machine -------------------------------------------------------------------------------------------------------


def jetson_root(root: Path, release: str) -> Path:
    file(root / "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    file(root / "etc/nv_tegra_release", f"# {release}, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n")
    file(root / "etc/os-release", 'NAME="Ubuntu"\nVERSION_ID="22.04"\nID=ubuntu\nID_LIKE=debian\n')
    return root


@pytest.mark.parametrize(
    ("release", "l4t", "jetpack", "fix"),
    [
        ("R32 (release), REVISION: 7.1", (32, 7), 4, "flash JetPack 6.2 or newer"),
        ("R35 (release), REVISION: 4.1", (35, 4), 5, "flash JetPack 6.2 or newer"),
        ("R36 (release), REVISION: 4.3", (36, 4), 6, "sudo apt install nvidia-jetpack"),
        ("R38 (release), REVISION: 2.0", (38, 2), 7, "sudo apt install nvidia-jetpack"),
        ("nonsense", (0, 0), 0, "sudo apt install nvidia-jetpack"),
    ],
)
def test_jetsons(tmp_path: Path, release: str, l4t: tuple[int, int], jetpack: int, fix: str) -> None:
    machine = doctor.detect_machine(jetson_root(tmp_path, release))
    assert machine.jetson == "NVIDIA Jetson Orin Nano Developer Kit"
    assert (machine.l4t, machine.jetpack, machine.gpu, machine.distribution) == (l4t, jetpack, True, "ubuntu")
    assert doctor.fix_tensorrt(machine) == fix
    detail = doctor.probe_platform(machine).detail
    assert machine.jetson in detail
    assert (f"L4T {l4t[0]}.{l4t[1]} (JetPack {jetpack})" in detail) == bool(jetpack)


def test_tensorrt_of_a_jetson_that_this_python_does_not_see(tmp_path: Path) -> None:
    machine = doctor.detect_machine(jetson_root(tmp_path, "R36 (release), REVISION: 4.3"))
    file(tmp_path / "usr/lib/aarch64-linux-gnu/libnvinfer.so.10")
    assert doctor.fix_tensorrt(machine) == "sudo apt install python3-libnvinfer"
    file(tmp_path / "usr/lib/python3.10/dist-packages/tensorrt/__init__.py")
    assert "--system-site-packages" in doctor.fix_tensorrt(machine)


def test_a_gpu_on_the_bus(tmp_path: Path) -> None:
    assert not doctor.detect_machine(tmp_path).gpu
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    file(device / "vendor", "0x10de\n")
    file(device / "class", "0x040300\n")  # the sound of a graphics card
    assert not doctor.detect_machine(tmp_path).gpu
    file(device / "class", "0x030000\n")
    machine = doctor.detect_machine(tmp_path)
    assert machine.gpu
    assert not machine.jetson


NVCC, ROS2 = "sudo apt install nvidia-cuda-toolkit", "pip install 'ros-kilted-rclpy[fastrtps]'"
PYCUDA, TORCH_CPU = (
    "CUDA_ROOT=/usr/local/cuda pip install pycuda",
    "pip install torch",
)
ROS2_DOCS, JETPACK = "install ROS 2 as https://docs.ros.org says", "sudo apt install nvidia-jetpack"
FIXED = ["driver", "tensorrt", "pycuda", "nvcc", "torch", "ros2"]


@pytest.mark.parametrize(
    ("machine", "fixes"),
    [
        (PC, ["sudo ubuntu-drivers install", "pip install tensorrt", PYCUDA, NVCC, "pip install torch", ROS2]),
        (
            Machine(gpu=True, distribution="debian"),
            ["sudo apt install nvidia-driver", "pip install tensorrt", PYCUDA, NVCC, "pip install torch", ROS2],
        ),
        (
            Machine(gpu=True, container=True),
            ["docker run --gpus all …", "pip install tensorrt", PYCUDA, NVCC, "pip install torch", ROS2],
        ),
        (Machine(), ["", "pip install tensorrt", PYCUDA, NVCC, TORCH_CPU, ROS2]),
        (JETSON, ["sudo apt install --reinstall nvidia-l4t-cuda", JETPACK, PYCUDA, JETPACK, TORCH_CPU, ROS2_DOCS]),
        (Machine(system="Darwin", architecture="aarch64"), ["", "", "", "", TORCH_CPU, ROS2_DOCS]),
    ],
    ids=["ubuntu", "debian", "container", "no gpu", "jetson", "mac"],
)
def test_fixes_by_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Machine, fixes: list[str]) -> None:
    def nothing(name: str, limit_s: float) -> None:
        raise doctor.NotInstalled(name)

    monkeypatch.setattr(doctor, "ask", nothing)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CUDA_HOME", "CUDA_PATH", "ROS_DISTRO"):
        monkeypatch.delenv(name, raising=False)
    machine = replace(machine, root=tmp_path)
    found = [doctor.LIBRARIES[name](machine, 1) for name in FIXED]
    assert [f.fix for f in found] == fixes
    wanted = {"driver", "tensorrt", "pycuda", "nvcc"} if machine.gpu else set()
    assert {f.name for f in found if f.status == "missing"} == wanted


def test_cameras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(root=tmp_path)
    assert doctor.probe_cameras(machine) == Finding("cameras", "absent", "no /dev/video*")
    file(tmp_path / "dev/video0")
    file(tmp_path / "sys/class/video4linux/video0/name", "HD Pro Webcam\n")
    assert doctor.probe_cameras(machine) == Finding("cameras", "ok", "/dev/video0 (HD Pro Webcam)")
    jetson = Machine(root=tmp_path, jetson="NVIDIA Jetson")
    assert doctor.probe_cameras(jetson).fix == "sudo systemctl restart nvargus-daemon"
    file(tmp_path / "tmp/argus_socket")
    assert doctor.probe_cameras(jetson).status == "ok"
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root, who may do everything
    found = doctor.probe_cameras(machine)
    assert (found.status, found.fix) == ("broken", 'sudo usermod -aG video "$USER"')
    assert "may not open video0" in found.detail


def test_nvcc_is_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "echo 'Cuda compilation tools, release {0}, V{0}.1'"
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    if shutil.which("nvcc"):
        pytest.skip("an nvcc in /usr/bin")
    machine = Machine(root=tmp_path, gpu=True)
    assert doctor.probe_nvcc(machine, LIMIT_S).status == "missing"
    last = program(tmp_path / "usr/local/cuda/bin/nvcc", text.format("12.6"))
    assert doctor.probe_nvcc(machine, LIMIT_S).detail == f"12.6, {last}, not in PATH"
    second = program(tmp_path / "bin/nvcc", text.format("11.8"))
    assert doctor.probe_nvcc(machine, LIMIT_S).detail == f"11.8, {second}"
    first = program(tmp_path / "home/bin/nvcc", text.format("13.0"))
    file(tmp_path / "home/include/cuda.h")
    assert doctor.probe_nvcc(machine, LIMIT_S).detail == f"13.0, {first}"
    assert doctor.cuda_root(machine) == tmp_path / "home"


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("exit 3", "ended with code 3"),
        ("echo nonsense", "nonsense"),
        ("exec sleep 60", "no answer within 0.5 s"),
        (None, "OSError"),
    ],
)
def test_a_broken_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, detail: str) -> None:
    nvcc = program(tmp_path / "home/bin/nvcc", text or "")
    if text is None:
        nvcc.write_bytes(b"\x7fELF of another machine")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    found = doctor.concurrently({"nvcc": lambda: doctor.probe_nvcc(PC, 0.5 if "sleep" in str(text) else LIMIT_S)}, LIMIT_S)[
        "nvcc"
    ]
    assert found.status == "broken"
    assert detail in found.detail


def test_a_cache_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not/there/yet"))
    assert doctor.probe_cache().detail.endswith("freespace, writable, 0 files, 0.0 MB")
    assert not (tmp_path / "not").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    found = doctor.probe_cache()
    assert (found.status, found.fix) == ("broken", f'sudo chown -R "$USER" {tmp_path}')


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12 - 10**8, 10**8))  # type: ignore[attr-defined]
    found = doctor.probe_disk()
    assert found.status == "broken"
    assert found.detail.startswith("only 0.1 GB free at ")
