"""What a measurement depends on: the machine, the code, the clip."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from engine import cpu_flags
from perception.bench.schema import Gpu, Machine
from perception.config import Config
from perception.doctor import detect_machine, read_text

PACKAGES = ("numpy", "opencv-python", "av", "onnxruntime", "openvino", "torch", "tensorrt", "tensorrt_rtx", "shapely")
TELLING = re.compile(r"^(sse4_2|avx.*|amx.*|fma|f16c|vnni|asimd.*|sve.*|i8mm|bf16|neon)$")  # flags that speed depends on


def describe_machine(root: Path = Path("/")) -> Machine:
    """Raises nothing; what cannot be told is None or empty."""
    found, info = detect_machine(root), read_text(root / "proc/cpuinfo")
    name = re.search(r"^(?:model name|Model|Hardware)\s*: (.+)$", info, re.M)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", read_text(root / "proc/meminfo"), re.M)
    mhz = [float(m) for m in re.findall(r"^cpu MHz\s*: ([\d.]+)", info, re.M)]
    arm = re.search(r"^Features\s*: (.+)$", info, re.M)
    flags = cpu_flags() or set(arm[1].split() if arm else ())
    return Machine(
        cpu=name[1].strip() if name else platform.processor() or found.architecture,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        quota=cpu_quota(root),
        flags=sorted(flag for flag in flags if TELLING.match(flag)),
        memory_gib=round(int(memory[1]) / (1 << 20), 1) if memory else 0.0,
        governor=read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None,
        mhz=round(sum(mhz) / len(mhz)) if mhz else None,
        system=f"{platform.system()} {platform.release()} {found.architecture}",
        board=found.jetson or None,
        gpus=gpus() if found.gpu and not found.jetson else [],
        python=platform.python_version(),
        packages={p: v for p in PACKAGES if (v := version(p))},
    )


def cpu_quota(root: Path) -> float | None:
    """Cores that the control group may use, where fewer than there are."""
    limit, _, period = read_text(root / "sys/fs/cgroup/cpu.max").strip().partition(" ")
    return int(limit) / int(period) if limit.isdigit() and period.isdigit() else None


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def gpus() -> list[Gpu]:
    """By NVML, else by nvidia-smi, else none."""
    with suppress(Exception):
        return nvml_gpus(import_module("pynvml"))
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        fields = "name,driver_version,memory.total,power.limit"
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
        return [parse_smi(line) for line in lines]
    return []


def parse_smi(line: str) -> Gpu:
    name, driver, memory, limit = (field.strip() for field in line.split(","))
    watts = float(limit) if re.fullmatch(r"[\d.]+", limit) else None
    return Gpu(name=name, driver=driver, memory_mib=int(memory), power_limit_w=watts)


def nvml_gpus(nvml: Any) -> list[Gpu]:
    nvml.nvmlInit()
    try:
        driver, found = text(nvml.nvmlSystemGetDriverVersion()), []
        for index in range(nvml.nvmlDeviceGetCount()):
            gpu = nvml.nvmlDeviceGetHandleByIndex(index)
            watts = None
            with suppress(Exception):
                watts = nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3
            memory = nvml.nvmlDeviceGetMemoryInfo(gpu).total >> 20
            found.append(Gpu(name=text(nvml.nvmlDeviceGetName(gpu)), driver=driver, memory_mib=memory, power_limit_w=watts))
        return found
    finally:
        nvml.nvmlShutdown()


def text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def revision(root: Path) -> str | None:
    """Commit of the checkout at ``root``, with a ``+`` where it was changed; None where it is none."""
    if not (root / ".git").exists():
        return None
    with suppress(OSError, subprocess.SubprocessError):
        run = ["git", "-C", str(root)]
        commit = subprocess.run(
            [*run, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
        status = subprocess.run([*run, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10, check=True)
        return commit.stdout.strip() + ("+" if status.stdout.strip() else "")
    return None


def clip_sha256(uri: str, live: bool) -> str | None:
    """Of a file's bytes, of the names and bytes in a folder, or of the URI of what is rendered; None of a live source."""
    if live:
        return None
    path, digest = Path(uri), hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.iterdir() if p.is_file()):
            digest.update(file.name.encode() + file.read_bytes())
    elif path.is_file():
        with open(path, "rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    else:
        digest.update(uri.encode())
    return digest.hexdigest()


def code_sha256(root: Path) -> str:
    """Of the code that is measured, by its bytes: in a changed checkout, and where there is none, too."""
    digest = hashlib.sha256()
    for folder in ("engine", "calibration", "perception", "training"):
        for file in sorted(p for p in (root / folder).rglob("*") if p.suffix in (".py", ".cu", ".cuh")):
            digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()


def folder_sha256(folder: Path) -> str:
    """Of names, sizes and times of all files below ``folder``: what is in them may be too much to read."""
    known = sorted(
        (str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    )
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def config_sha256(config: Config) -> str:
    """Of the settings that differ from the defaults, but for those of the engine, which are told on their own, and names."""
    changed = config.model_dump(
        mode="json", exclude_defaults=True, exclude={"engine": True, "output": True, "capture": {"source"}}
    )
    values = {section: keys for section, keys in changed.items() if keys}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def command_line() -> str:
    import shlex

    from perception.capture.uri import redacted

    return shlex.join(["freespace", *(redacted(a) if "://" in a else a for a in sys.argv[1:])])
