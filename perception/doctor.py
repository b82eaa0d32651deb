"""What is installed on this machine, what of it works, and the one command that mends each thing that does not.

Everything that loads native code is tried in a process of its own with a time limit: a broken driver hangs, a broken library
ends the process. The parent imports nothing but the standard library until it prints.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

SCHEMA = "freespace-doctor/1"
LIMIT_S = 17.0  # for everything
REAP_S = 1.0  # a process that hangs in a driver may not even die
CPU_ENGINES = ("openvino", "onnxruntime")  # those that open within seconds; a GPU engine may have to be built first
NEEDED_TO_RUN = ("freespace", "model")
ENOUGH_DISK = 1 << 30
GPU_ENGINES = ("tensorrt", "tensorrt_rtx")
NEEDED_BY_GPU_ENGINES = ("driver", "pycuda", "nvcc")
OLDEST_TENSORRT = 10
FRAMES = 5

Status = Literal["ok", "missing", "broken", "absent"]
Values = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of the thing; the names and their order are always the same.
        status: ``ok``; ``missing``: not here and wanted on this machine; ``broken``: here and does not work; ``absent``: not
            here and not needed.
        detail: one line: versions, or what went wrong.
        fix: a command for the shell (now and then a sentence), empty where there is nothing to do.
    """

    name: str
    status: Status
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """Attributes: what was found, what ``--backend auto`` takes here as a sentence, whether ``freespace run`` can work."""

    findings: tuple[Finding, ...]
    auto: str
    ready: bool

    def to_json(self) -> str:
        """One indented JSON object with the keys ``schema``, ``ready``, ``auto`` and ``findings``."""
        findings = [asdict(finding) for finding in self.findings]
        return json.dumps({"schema": SCHEMA, "ready": self.ready, "auto": self.auto, "findings": findings}, indent=2)


@dataclass(frozen=True)
class Machine:
    """What the fixes depend on.

    Attributes:
        system: as `platform.system` says, ``Linux`` where anything but the CPU is of interest.
        architecture: ``x86_64`` or ``aarch64``.
        distribution: ``ID`` of os-release, such as ``ubuntu``.
        jetson: the board's name, empty elsewhere.
        l4t: release of Jetson Linux as (major, minor), (0, 0) where unknown.
        gpu: whether an NVIDIA GPU is on the bus or on the chip, driver or not.
        container: whether this is one.
        root: of the file system, another one in tests.
    """

    system: str = "Linux"
    architecture: str = "x86_64"
    distribution: str = ""
    jetson: str = ""
    l4t: tuple[int, int] = (0, 0)
    gpu: bool = False
    container: bool = False
    root: Path = Path("/")

    @property
    def jetpack(self) -> int:
        """Major version of JetPack, 0 where this is no Jetson or an unknown one."""
        major = self.l4t[0]
        return 0 if major < 32 else 4 if major < 34 else 5 if major < 36 else 6 if major < 38 else 7


class NotInstalled(Exception):
    """The thing itself is not there."""


class Failed(Exception):
    """It is there and does not work. ``module`` names a Python module that it misses."""

    def __init__(self, problem: str, module: str = "") -> None:
        super().__init__(problem)
        self.module = module


def examine(root: Path = Path("/"), limit_s: float = LIMIT_S) -> Report:
    """Look at everything, in little more than ``limit_s`` seconds whatever hangs. Raises nothing.

    Args:
        root: where /dev, /etc, /proc and /sys are looked for.
        limit_s: half of it, or what is left, is for the engines: they are timed when the other probes are done.
    """
    started, half_s = time.monotonic(), limit_s / 2
    machine = detect_machine(root)
    probes: dict[str, Callable[[], Finding]] = {
        "python": probe_python,
        "platform": partial(probe_platform, machine),
        **{name: partial(probe, machine, half_s) for name, probe in LIBRARIES.items()},
        "cameras": partial(probe_cameras, machine),
        "cache": probe_cache,
        "disk": probe_disk,
    }
    findings = concurrently(probes, half_s)
    left_s = max(half_s, limit_s - (time.monotonic() - started))
    engines = {name: partial(probe_engine, name, left_s) for name in CPU_ENGINES}
    findings |= concurrently({**engines, "auto": partial(probe_auto, left_s)}, left_s)
    auto = findings.pop("auto")
    ready, sentence = judge(findings, auto)
    first = ("python", "platform", "freespace", "model", *CPU_ENGINES)
    return Report(tuple(findings[name] for name in dict.fromkeys((*first, *findings))), sentence, ready)


def judge(findings: dict[str, Finding], auto: Finding) -> tuple[bool, str]:
    """(whether ``freespace run`` can work, what ``--backend auto`` does here), from all findings and that of `probe_auto`."""

    def working(*names: str) -> bool:
        return all(findings[name].status == "ok" for name in names)

    engines = [name for name in GPU_ENGINES if working(name, *NEEDED_BY_GPU_ENGINES)]
    engines += [name for name in CPU_ENGINES if working(name)]
    ready = working(*NEEDED_TO_RUN) and bool(engines)
    if auto.status == "ok" and auto.name in engines:
        return ready, f"--backend auto takes {auto.detail}."
    instead = f"; --backend {engines[0]} works" if engines else ""
    if auto.status == "ok":
        spoilt = (auto.name, *(NEEDED_BY_GPU_ENGINES if auto.name in GPU_ENGINES else ()))
        why = ", ".join(f"{name} is {findings[name].status}" for name in spoilt if not working(name))
        return ready, f"--backend auto tries {auto.detail}, but {why}{instead}."
    return ready, f"--backend auto does not work here: {auto.detail.rstrip('.')}{instead}."


def concurrently(probes: dict[str, Callable[[], Finding]], limit_s: float) -> dict[str, Finding]:
    """Findings of ``probes`` by name, in their order; what raises or is not back soon after ``limit_s`` counts as broken."""
    findings: dict[str, Finding] = {}

    def work(name: str, probe: Callable[[], Finding]) -> None:
        try:
            findings[name] = probe()
        except Exception as error:
            findings[name] = Finding(name, "broken", in_one_line(error))

    # Daemons, not a pool: a pool would wait at exit for one that hangs in a dead network drive.
    threads = [threading.Thread(target=work, args=item, daemon=True) for item in probes.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + limit_s + 1.5 * REAP_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = f"no answer within {limit_s:.2g} s"
    return {name: findings.get(name) or Finding(name, "broken", late) for name in probes}


# -- The machine -------------------------------------------------------------------------------------------------------


def detect_machine(root: Path = Path("/")) -> Machine:
    """Read what kind of machine this is from the files below ``root``. Raises nothing."""
    model = read_text(root / "proc/device-tree/model").strip("\0\n ")
    release = re.search(r"R(\d+) \(release\), REVISION: (\d+)", read_text(root / "etc/nv_tegra_release"))
    jetson = model if "jetson" in model.lower() else "NVIDIA Jetson" if release else ""
    distribution = re.search(r'^ID="?([\w.-]+)', read_text(root / "etc/os-release"), re.M)
    return Machine(
        system=platform.system(),
        architecture={"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine()),
        distribution=distribution[1] if distribution else "",
        jetson=jetson,
        l4t=(int(release[1]), int(release[2])) if release else (0, 0),
        gpu=bool(jetson) or nvidia_on_the_bus(root),
        container=any(os.path.exists(root / mark) for mark in (".dockerenv", "run/.containerenv")),
        root=root,
    )


def nvidia_on_the_bus(root: Path) -> bool:
    devices = (root / "sys/bus/pci/devices").glob("*")
    return any(read_text(d / "vendor").strip() == "0x10de" and read_text(d / "class").startswith("0x03") for d in devices)


def read_text(path: Path) -> str:
    """Content of ``path``, empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def probe_python() -> Finding:
    version = platform.python_version()
    where = "in a virtual environment" if sys.prefix != sys.base_prefix else "not in a virtual environment"
    untested = "" if (3, 10) <= sys.version_info[:2] <= (3, 13) else "; Freespace is made for 3.10 to 3.13"
    return Finding("python", "ok", f"{version}, {sys.executable}, {where}{untested}")


def probe_platform(machine: Machine) -> Finding:
    parts = [f"{machine.system} {machine.architecture.replace('x86_64', 'x86-64')}", f"{os.cpu_count()} processors"]
    if machine.distribution:
        parts.insert(1, machine.distribution)
    if machine.jetson:
        parts.append(machine.jetson)
        if machine.jetpack:
            parts.append(f"L4T {machine.l4t[0]}.{machine.l4t[1]} (JetPack {machine.jetpack})")
    if machine.container:
        parts.append("in a container")
    return Finding("platform", "ok", ", ".join(parts))


def probe_cameras(machine: Machine) -> Finding:
    if machine.system != "Linux":
        return Finding("cameras", "absent", f"not looked for on {machine.system}")
    devices = sorted((machine.root / "dev").glob("video[0-9]*"))
    names = {d: read_text(machine.root / "sys/class/video4linux" / d.name / "name").strip() for d in devices}
    detail = ", ".join(f"/dev/{d.name}" + (f" ({name})" if name else "") for d, name in names.items()) or "no /dev/video*"
    if closed := [d.name for d in devices if not os.access(d, os.R_OK | os.W_OK)]:
        detail = f"{detail}; this user may not open {', '.join(closed)} (log in again after the fix)"
        return Finding("cameras", "broken", detail, 'sudo usermod -aG video "$USER"')
    if machine.jetson and not (machine.root / "tmp/argus_socket").exists():
        fix = (
            "docker run -v /tmp/argus_socket:/tmp/argus_socket …"
            if machine.container
            else "sudo systemctl restart nvargus-daemon"
        )
        return Finding("cameras", "broken", f"{detail}; CSI cameras: no /tmp/argus_socket, nvargus-daemon is not running", fix)
    return Finding("cameras", "ok" if devices else "absent", detail)


def probe_cache() -> Finding:
    cache = cache_folder()
    there = nearest_existing(cache)
    if not there.is_dir():
        return Finding("cache", "broken", f"{cache}: {there} is not a folder", 'export XDG_CACHE_HOME="$HOME/.cache"')
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding("cache", "broken", f"{cache}: may not be written", f'sudo chown -R "$USER" {there}')
    files = [size for path in cache.rglob("*") if (size := file_size(path)) is not None]
    return Finding("cache", "ok", f"{cache}, writable, {len(files)} files, {sum(files) / 1e6:.1f} MB")


def probe_disk() -> Finding:
    there = nearest_existing(cache_folder())
    free = shutil.disk_usage(there).free
    if free < ENOUGH_DISK:
        return Finding("disk", "broken", f"only {free / 1e9:.1f} GB free at {there}", "pip cache purge")
    return Finding("disk", "ok", f"{free / 1e9:.1f} GB free at {there}")


def cache_folder() -> Path:
    from platformdirs import user_cache_path

    return Path(user_cache_path("freespace"))


def nearest_existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if os.path.exists(p))


def file_size(path: Path) -> int | None:
    try:
        return path.lstat().st_size if path.is_file() else None
    except OSError:
        return None


# -- In a process of its own -------------------------------------------------------------------------------------------

MARK = "freespace-doctor: "  # libraries print as they like; the answer is the line that begins so
# The path is set first: the child must see the modules that this process sees, not those of the current folder.
CHILD = "import sys; sys.path[:] = sys.argv[2:]; from perception.doctor import answer; answer(sys.argv[1])"


def ask(inspection: str, limit_s: float) -> Values:
    """What the function of this name in `INSPECTIONS` returns in a process of its own.

    Raises:
        NotInstalled: it found nothing to look at.
        Failed: it raised, ended the process, or was not done in time.
    """
    code, out, err = run_limited([sys.executable, "-c", CHILD, inspection, *sys.path], limit_s)
    for line in reversed(out.splitlines()):
        if line.startswith(MARK):
            reply = json.loads(line[len(MARK) :])
            break
    else:
        last = in_one_line(err.strip().splitlines()[-1]) if err.strip() else ""
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        raise Failed(f"loading it {how}{': ' + last if last else ''}")
    if reply.get("missing"):
        raise NotInstalled(inspection)
    if "error" in reply:
        raise Failed(reply["error"], reply["module"])
    return dict(reply["values"])


def answer(inspection: str) -> None:
    """Run an inspection in this process, print its outcome as one line and end the process."""
    reply: Values
    try:
        reply = {"values": INSPECTIONS[inspection]()}
    except NotInstalled:
        reply = {"missing": True}
    except BaseException as error:  # a module that calls sys.exit() while it is imported is broken, too
        module = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
        reply = {"error": in_one_line(error), "module": module.partition(".")[0]}
    print(f"\n{MARK}{json.dumps(reply)}", flush=True)
    os._exit(0)  # what crashes while it is unloaded works all the same


def run_limited(command: list[str], limit_s: float) -> tuple[int, str, str]:
    """(exit code, stdout, stderr). Raises `Failed` where it cannot be started or is not done within ``limit_s`` seconds."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace")
    except OSError as error:
        raise Failed(in_one_line(error)) from error
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=REAP_S)
        raise Failed(f"no answer within {limit_s:.2g} s (the first start after a boot is slow; try once more)") from None
    return process.returncode, out, err


def in_one_line(problem: BaseException | str) -> str:
    text = " ".join(str(problem).split())
    if isinstance(problem, BaseException):
        text = f"{type(problem).__name__}: {text}" if text else type(problem).__name__
    return text if len(text) <= 300 else text[:299] + "…"


def load(module: str) -> Any:
    """Import ``module``. Raises `NotInstalled` where its package is not there, and whatever importing it raises."""
    package = module.partition(".")[0]
    try:
        loaded = import_module(module)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise NotInstalled(module) from error
        raise
    if getattr(sys.modules[package], "__file__", None) is None:
        raise ImportError(f"{package} is an empty folder, left over from an earlier installation")
    return loaded


def inspect_freespace() -> Values:
    import perception

    import_module("perception.session")  # all that `freespace run` needs whatever its source and outputs
    return {"version": perception.__version__}


def inspect_model() -> Values:
    from engine import DEFAULT_MODEL, read_contract

    contract = read_contract(DEFAULT_MODEL)
    return {"sha256": contract.sha256, "planes": contract.planes, "size": contract.input_size}


def inspect_engine(name: str) -> Values:
    version = str(load(name).__version__).partition("-")[0]
    import numpy as np

    from engine import open_engine

    grey = np.full((720, 1280, 3), 128, np.uint8)
    with open_engine(None, name) as engine:
        engine.segment([grey])  # allocates
        spent_ms = []
        for _ in range(FRAMES):
            started = time.perf_counter_ns()
            engine.segment([grey])
            spent_ms.append((time.perf_counter_ns() - started) / 1e6)
        return {"version": version, "precision": engine.precision, "frame_ms": min(spent_ms)}


def inspect_auto() -> Values:
    from engine import AUTO, BACKENDS, installed, open_engine, usable

    for name in AUTO:
        if BACKENDS[name].gpu and installed(name) and not usable(name):  # not opened: it might be built for minutes first
            return {"name": name, "what": f"{name} on the GPU", "reason": "the fastest that is installed"}
    with open_engine() as engine:
        what = f"{engine.name} in {engine.precision} on the {engine.device}"
        return {"name": engine.name, "what": what, "reason": engine.reason}


def inspect_torch() -> Values:
    torch = load("torch")
    return {"version": torch.__version__, "cuda": torch.version.cuda, "usable": torch.cuda.is_available()}


def inspect_driver() -> Values:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        if "No such file" in str(error) or platform.system() != "Linux":
            raise NotInstalled("libcuda.so.1") from error
        raise
    version, count = ctypes.c_int(), ctypes.c_int()
    code = cuda.cuInit(0) or cuda.cuDriverGetVersion(ctypes.byref(version)) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if code:
        text = ctypes.c_char_p()
        with suppress(AttributeError):
            cuda.cuGetErrorName(code, ctypes.byref(text))
        return {"code": code, "error": (text.value or b"CUDA error").decode()}
    return {"code": 0, "cuda": cuda_version(version.value), "devices": [cuda_device(cuda, i) for i in range(count.value)]}


def cuda_device(cuda: Any, ordinal: int) -> str:
    device, major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), ordinal)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # compute capability, its major
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # and minor number
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return f"{name.value.decode(errors='replace')} (sm_{major.value}{minor.value}, {memory.value / (1 << 30):.1f} GiB)"


def cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def inspect_tensorrt() -> Values:
    return {"version": version_of(load("tensorrt")), "library": mapped_tensorrt("libnvinfer.so")}


def inspect_tensorrt_rtx() -> Values:
    for module in ("tensorrt_rtx", "tensorrt_rtx_bindings"):  # the package, and its bindings when installed alone
        with suppress(NotInstalled):
            return {"version": version_of(load(module)), "library": mapped_tensorrt("libtensorrt_rtx.so")}
    raise NotInstalled("tensorrt_rtx")


def version_of(module: Any) -> str:
    version = getattr(module, "__version__", None)
    if not isinstance(version, str):
        raise ImportError(f"{module.__name__} says no version; it is not whole")
    return version


def mapped_tensorrt(name: str) -> str:
    """Version of the TensorRT library ``name`` that this process has loaded, empty where it cannot be told."""
    found = re.search(rf"/\S*/{re.escape(name)}\S*", read_text(Path("/proc/self/maps")))
    try:
        number = ctypes.CDLL(found[0]).getInferLibVersion() if found else 0
    except (OSError, AttributeError):
        return ""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}" if number else ""


def inspect_pycuda() -> Values:
    return {"version": load("pycuda").VERSION_TEXT, "cuda": ".".join(map(str, load("pycuda.driver").get_version()[:2]))}


def inspect_opencv() -> Values:
    cv2 = load("cv2")
    built = dict(re.findall(r"(FFMPEG|GStreamer):\s+(YES|NO)", cv2.getBuildInformation()))
    return {"version": cv2.__version__, "ffmpeg": built.get("FFMPEG") == "YES", "gstreamer": built.get("GStreamer") == "YES"}


def inspect_pyav() -> Values:
    av = load("av")
    return {"version": av.__version__, "libx264": "libx264" in av.codecs_available}


def inspect_ros2() -> Values:
    load("rclpy")
    try:
        return {"version": metadata.version("rclpy")}
    except metadata.PackageNotFoundError:
        return {"version": ""}


INSPECTIONS: dict[str, Callable[[], Values]] = {
    "freespace": inspect_freespace,
    "model": inspect_model,
    **{name: partial(inspect_engine, name) for name in CPU_ENGINES},
    "auto": inspect_auto,
    "torch": inspect_torch,
    "driver": inspect_driver,
    "tensorrt": inspect_tensorrt,
    "tensorrt_rtx": inspect_tensorrt_rtx,
    "pycuda": inspect_pycuda,
    "opencv": inspect_opencv,
    "pyav": inspect_pyav,
    "ros2": inspect_ros2,
}


# -- What the answers mean ---------------------------------------------------------------------------------------------

# What Freespace needs: module -> package on the index.
PACKAGES = {
    "cv2": "opencv-python",
    "google": "protobuf",
    "yaml": "pyyaml",
    **{n: n for n in ("av", "numpy", "onnx", "orjson", "platformdirs", "pydantic", "rich", "shapely", "typer")},
}
# A library that a package from the index expects of the system -> Debian's and Ubuntu's package.
SYSTEM_PACKAGES = {"libGL.so.1": "libgl1", "libgthread-2.0.so.0": "libglib2.0-0", "libgomp.so.1": "libgomp1"}


def library(
    name: str,
    limit_s: float,
    meaning: Callable[[Values], Finding],
    *,
    wanted: bool,
    install: str,
    mend: str = "",
    unused: str = "",
) -> Finding:
    """Ask a process of its own about ``name`` and let ``meaning`` judge its answer.

    Args:
        wanted: whether it ought to be on this machine.
        install: the fix where it is not.
        mend: the fix where it is and fails, by default ``install``.
        unused: what its absence means where it is not wanted.
    """
    try:
        return meaning(ask(name, limit_s))
    except NotInstalled:
        detail = f"not installed; {unused}" if unused and not wanted else "not installed"
        return Finding(name, "missing" if wanted else "absent", detail, install)
    except Failed as error:
        fix = mend or install
        if error.module in PACKAGES:
            fix = f"pip install {PACKAGES[error.module]}"
        for library_file, package in SYSTEM_PACKAGES.items():
            if library_file in str(error):
                fix = f"sudo apt install {package}"
        return Finding(name, "broken", str(error), fix)


def probe_engine(name: str, limit_s: float) -> Finding:
    def meaning(found: Values) -> Finding:
        frame = f"a 1280x720 frame in {found['frame_ms']:.1f} ms, fastest of {FRAMES}"
        return Finding(name, "ok", f"{found['version']}, {found['precision']}, {frame}")

    return library(
        name, limit_s, meaning, wanted=True, install=f"pip install {name}", mend=f"pip install --force-reinstall {name}"
    )


def probe_auto(limit_s: float) -> Finding:
    """A finding named after the backend that ``auto`` takes, its detail says how and why."""

    def meaning(found: Values) -> Finding:
        return Finding(found["name"], "ok", f"{found['what']}: {found['reason'].removeprefix('auto: ')}")

    return library("auto", limit_s, meaning, wanted=True, install="")


def probe_freespace(machine: Machine, limit_s: float) -> Finding:
    reinstall = "pip install --force-reinstall ."
    return library(
        "freespace",
        limit_s,
        lambda f: Finding("freespace", "ok", f["version"]),
        wanted=True,
        install="pip install .",
        mend=reinstall,
    )


def probe_model(machine: Machine, limit_s: float) -> Finding:
    def meaning(found: Values) -> Finding:
        width, height = found["size"]
        return Finding("model", "ok", f"{found['sha256'][:12]}, {width}x{height}, planes {', '.join(found['planes'])}")

    return library(
        "model", limit_s, meaning, wanted=True, install="pip install .", mend="pip install --force-reinstall --no-deps ."
    )


def probe_torch(machine: Machine, limit_s: float) -> Finding:
    def meaning(found: Values) -> Finding:
        built = "CPU build" if not found["cuda"] else f"built for CUDA {found['cuda']}"
        usable = "" if not found["cuda"] else ", sees a GPU" if found["usable"] else ", sees no GPU"
        return Finding("torch", "ok", f"{found['version']}, {built}{usable}")

    return library(
        "torch",
        limit_s,
        meaning,
        wanted=False,
        install="pip install torch",
        mend="pip install --force-reinstall torch",
        unused="for training and 'parity' only",
    )


def probe_driver(machine: Machine, limit_s: float) -> Finding:
    def meaning(found: Values) -> Finding:
        if found["code"] == 0 and found["devices"]:
            return Finding("driver", "ok", f"CUDA {found['cuda']}, {', '.join(found['devices'])}")
        code = found["code"] or NO_DEVICE
        problem = f"{found['error']} ({code})" if found["code"] else "the driver sees no GPU"
        if code == NO_DEVICE and not machine.gpu:
            return Finding("driver", "absent", f"{problem}, and there is none on the bus")
        return Finding("driver", "broken", problem, fix_cuda_error(machine, code))

    return library(
        "driver",
        limit_s,
        meaning,
        wanted=machine.gpu,
        install=fix_driver(machine),
        mend="sudo reboot",
        unused="no NVIDIA GPU here",
    )


STUB_LIBRARY, NO_DEVICE = 34, 100  # of CUresult


def fix_cuda_error(machine: Machine, code: int) -> str:
    if code == STUB_LIBRARY:
        return "unset LD_LIBRARY_PATH"  # a toolkit's lib64/stubs hides the driver's own library
    if code != NO_DEVICE:
        return "sudo reboot"  # a driver updated under a running kernel, or one that fell over
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return "unset CUDA_VISIBLE_DEVICES"
    return fix_driver(machine) if machine.container else "sudo modprobe nvidia"


def fix_driver(machine: Machine) -> str:
    if machine.system != "Linux" or not machine.gpu:
        return ""
    if machine.container:
        return "docker run --runtime nvidia …" if machine.jetson else "docker run --gpus all …"
    if machine.jetson:
        return "sudo apt install --reinstall nvidia-l4t-cuda"
    return {"ubuntu": "sudo ubuntu-drivers install", "debian": "sudo apt install nvidia-driver"}.get(
        machine.distribution, "install the driver from https://www.nvidia.com/drivers"
    )


def probe_tensorrt(machine: Machine, limit_s: float) -> Finding:
    return library(
        "tensorrt",
        limit_s,
        lambda found: judge_tensorrt(machine, found["version"], found["library"]),
        wanted=machine.gpu,
        install=fix_tensorrt(machine),
        mend=fix_tensorrt(machine) if machine.jetson else "pip install --force-reinstall --no-cache-dir tensorrt",
        unused="for NVIDIA GPUs only",
    )


def judge_tensorrt(machine: Machine, version: str, library_version: str) -> Finding:
    """Whether TensorRT with bindings and library of these versions (the latter may be empty) is one that Freespace can use."""
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:3])
    loaded = tuple(int(n) for n in re.findall(r"\d+", library_version)[:3])
    if not numbers or numbers[0] < OLDEST_TENSORRT:
        fix = "flash JetPack 6.2 or newer" if machine.jetson else "pip install --upgrade tensorrt"
        return Finding("tensorrt", "broken", f"{version} is too old, {OLDEST_TENSORRT}.0 or newer is needed", fix)
    if loaded and loaded != numbers:
        fix = "unset LD_LIBRARY_PATH" if "LD_LIBRARY_PATH" in os.environ else fix_tensorrt(machine)
        return Finding("tensorrt", "broken", f"bindings {version}, but the library that loads is {library_version}", fix)
    typing = "strongly typed by flag" if numbers[0] == 10 else "strongly typed only"
    return Finding("tensorrt", "ok", f"{version}, {typing}")


def fix_tensorrt(machine: Machine) -> str:
    if machine.system not in ("Linux", "Windows"):
        return ""
    if not machine.jetson:
        return "pip install tensorrt"
    if machine.jetpack in (4, 5):
        return "flash JetPack 6.2 or newer"  # up to JetPack 6.0 it is TensorRT 8
    if any((machine.root / "usr/lib").glob("python3*/dist-packages/tensorrt")):
        # The system's Python has it, this one does not see it.
        return "/usr/bin/python3 -m venv --clear --system-site-packages .venv && .venv/bin/pip install ."
    if any((machine.root / "usr/lib/aarch64-linux-gnu").glob("libnvinfer.so.*")):
        return "sudo apt install python3-libnvinfer"
    return "sudo apt install nvidia-jetpack"


def probe_tensorrt_rtx(machine: Machine, limit_s: float) -> Finding:
    def meaning(found: Values) -> Finding:
        if found["library"] and not found["version"].startswith(found["library"]):
            problem = f"bindings {found['version']}, but the library that loads is {found['library']}"
            return Finding("tensorrt_rtx", "broken", problem, install)
        return Finding("tensorrt_rtx", "ok", f"{found['version']}, strongly typed only")

    possible = machine.architecture == "x86_64" and machine.system in ("Linux", "Windows")
    install = "pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings" if possible else ""
    return library("tensorrt_rtx", limit_s, meaning, wanted=False, install=install, unused="for NVIDIA RTX GPUs only")


def probe_pycuda(machine: Machine, limit_s: float) -> Finding:
    install = f"CUDA_ROOT={cuda_root(machine)} pip install pycuda" if machine.system == "Linux" else ""
    finding = library(
        "pycuda",
        limit_s,
        lambda found: Finding("pycuda", "ok", f"{found['version']}, built for CUDA {found['cuda']}"),
        wanted=machine.gpu,
        install=install,
        mend=install.replace("install", "install --force-reinstall --no-cache-dir --no-binary pycuda"),
        unused="for NVIDIA GPUs only",
    )
    if finding.status == "broken" and "libcuda.so" in finding.detail:  # it is the driver that is missing
        detail = f"installed, but there is no driver: {finding.detail}"
        return Finding("pycuda", "broken" if machine.gpu else "absent", detail, fix_driver(machine))
    return finding


def probe_nvcc(machine: Machine, limit_s: float) -> Finding:
    nvcc = find_nvcc(machine)
    install = f"sudo apt install {'nvidia-jetpack' if machine.jetson else 'nvidia-cuda-toolkit'}"
    if machine.system != "Linux":
        install = ""
    if not nvcc:
        detail = "not found; CUDA kernels are compiled with it" + ("" if machine.gpu else ", for NVIDIA GPUs only")
        return Finding("nvcc", "missing" if machine.gpu else "absent", detail, install)
    code, out, err = run_limited([str(nvcc), "--version"], limit_s)
    release = re.search(r"release ([\d.]+)", out)
    if code or not release:
        why = in_one_line(err or out) or f"ended with code {code}"
        return Finding("nvcc", "broken", f"{nvcc}: {why}", install.replace("install", "install --reinstall"))
    hint = "" if shutil.which("nvcc") else ", not in PATH"
    return Finding("nvcc", "ok", f"{release[1]}, {nvcc}{hint}")


def find_nvcc(machine: Machine) -> Path | None:
    """The CUDA compiler: of $CUDA_HOME, $CUDA_PATH, PATH or /usr/local/cuda, whichever has one first."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    in_path = shutil.which("nvcc")
    candidates = [*(Path(home, "bin", "nvcc") for home in homes), *([Path(in_path)] if in_path else [])]
    return next(
        (c for c in (*candidates, machine.root / "usr/local/cuda/bin/nvcc") if c.is_file() and os.access(c, os.X_OK)), None
    )


def cuda_root(machine: Machine) -> Path:
    """Folder of the CUDA toolkit, where it usually is if there is none."""
    nvcc = find_nvcc(machine)
    usual = Path("/usr/local/cuda")
    if nvcc is None or machine.jetson:
        return usual
    root = nvcc.resolve().parents[1]
    return root if (root / "include/cuda.h").is_file() else usual


def probe_opencv(machine: Machine, limit_s: float) -> Finding:
    def meaning(found: Values) -> Finding:
        yes = {True: "yes", False: "no"}
        detail = f"{found['version']}, FFmpeg {yes[found['ffmpeg']]}, GStreamer {yes[found['gstreamer']]}"
        if machine.jetson and not found["gstreamer"]:
            return Finding("opencv", "ok", f"{detail}: CSI cameras need the system's OpenCV", "sudo apt install python3-opencv")
        return Finding("opencv", "ok", detail)

    reinstall = "pip install --force-reinstall opencv-python"
    return library("opencv", limit_s, meaning, wanted=True, install="pip install opencv-python", mend=reinstall)


def probe_pyav(machine: Machine, limit_s: float) -> Finding:
    reinstall = "pip install --force-reinstall --only-binary=:all: av"

    def meaning(found: Values) -> Finding:
        if not found["libx264"]:
            return Finding("pyav", "broken", f"{found['version']} has no libx264, overlay videos cannot be written", reinstall)
        return Finding("pyav", "ok", f"{found['version']}, libx264 yes")

    return library("pyav", limit_s, meaning, wanted=True, install="pip install av", mend=reinstall)


def probe_ros2(machine: Machine, limit_s: float) -> Finding:
    distribution = os.environ.get("ROS_DISTRO", "")

    def meaning(found: Values) -> Finding:
        version = f"rclpy {found['version']}".strip()
        return Finding("ros2", "ok", f"{version}, {'ROS_DISTRO ' + distribution if distribution else 'ROS_DISTRO not set'}")

    fix = fix_ros2(machine)
    return library("ros2", limit_s, meaning, wanted=bool(distribution), install=fix, unused="for ROS 2 robots only")


def fix_ros2(machine: Machine) -> str:
    installed = sorted(p.parent.name for p in (machine.root / "opt/ros").glob("*/setup.bash"))
    if installed:
        return f"source /opt/ros/{installed[-1]}/setup.bash"
    if machine.system == "Linux" and machine.architecture == "x86_64" and not machine.jetson:
        return "pip install 'ros-kilted-rclpy[fastrtps]'"
    return "install ROS 2 as https://docs.ros.org says"


LIBRARIES: dict[str, Callable[[Machine, float], Finding]] = {
    "freespace": probe_freespace,
    "model": probe_model,
    "torch": probe_torch,
    "driver": probe_driver,
    "tensorrt": probe_tensorrt,
    "tensorrt_rtx": probe_tensorrt_rtx,
    "pycuda": probe_pycuda,
    "nvcc": probe_nvcc,
    "opencv": probe_opencv,
    "pyav": probe_pyav,
    "ros2": probe_ros2,
}


# -- What a person sees ------------------------------------------------------------------------------------------------


def print_report(report: Report) -> None:
    """A table of all findings, the fixes, and two sentences, on stdout; in colour where that is a terminal."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a board or a camera may be named in any script
    if sys.stdout.isatty():
        try:
            print_table(report.findings)
        except Exception:  # rich is a library like any other, and may be the broken one
            print_lines(report.findings)
    else:
        print_lines(report.findings)
    for title, statuses in (("to fix", ("missing", "broken")), ("optional", ("absent", "ok"))):
        if fixes := [f for f in report.findings if f.fix and f.status in statuses]:
            print(f"\n{title}:")
            for finding in fixes:
                print(f"  {finding.name:<13} {finding.fix}")
    print(f"\n{report.auto}")
    print("freespace run works here." if report.ready else "freespace run does not work here.")


def print_lines(findings: tuple[Finding, ...]) -> None:
    for finding in findings:
        print(f"{finding.status:<8} {finding.name:<13} {finding.detail}")


def print_table(findings: tuple[Finding, ...]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "missing": "yellow", "broken": "red", "absent": "dim"}
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        table.add_row(Text(finding.status, colours[finding.status]), Text(finding.name, "bold"), Text(finding.detail))
    Console().print(table)
