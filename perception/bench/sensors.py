"""Clocks, power, temperature: what the machine's sensors say while it is measured. What is not there is left out."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

PERIOD_S = 0.2

Readings = dict[str, float]

# Of NVML's reasons for lower clocks: hardware slowdown, power cap, and too hot by its own or the driver's judgement.
THROTTLED = 0x4 | 0x8 | 0x20 | 0x40


class Sensor(ABC):
    """Attributes: power_source: what its ``power_w`` is of; empty where it has none."""

    power_source = ""

    @abstractmethod
    def read(self) -> Readings:
        """What it says now; keys carry their unit. Raises nothing."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Safe to call twice."""


class NvmlSensor(Sensor):
    """An NVIDIA GPU, through NVML. Raises whatever ``nvml`` raises where there is none.

    Args:
        nvml: the module ``pynvml`` (package nvidia-ml-py).
        bus: PCI bus id of the GPU that is measured: NVML counts those of the machine, CUDA those that are visible to it. The
            first of all where it is not known.
    """

    power_source = "GPU board"

    def __init__(self, nvml: Any, bus: str | None = None) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        self._gpu = nvml.nvmlDeviceGetHandleByPciBusId(bus.encode()) if bus else nvml.nvmlDeviceGetHandleByIndex(0)

    def read(self) -> Readings:
        nvml, gpu, readings = self._nvml, self._gpu, Readings()
        asked: dict[str, Callable[[], Any]] = {
            "gpu_percent": lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
            "gpu_memory_mb": lambda: nvml.nvmlDeviceGetMemoryInfo(gpu).used / 1e6,
            "gpu_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
            "gpu_memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
            "gpu_celsius": lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
            "gpu_throttled": lambda: bool(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu) & THROTTLED),
        }
        for name, ask in asked.items():
            with suppress(Exception):  # each board lacks another one, and its exceptions are its own
                readings[name] = float(ask())
        return readings

    def close(self) -> None:
        with suppress(Exception):
            self._nvml.nvmlShutdown()


def parse_tegrastats(line: str) -> Readings:
    """One line of ``tegrastats``, of JetPack 4 to 7: load and clock of the GPU, memory, temperatures, power of the board."""
    readings = Readings()
    if ram := re.search(r"\bRAM (\d+)/\d+MB", line):
        readings["board_memory_mb"] = float(ram[1])
    if gpu := re.search(r"\bGR3D_FREQ (\d+)%(?:@\[?(\d+))?", line):
        readings["gpu_percent"] = float(gpu[1])
        if gpu[2]:
            readings["gpu_mhz"] = float(gpu[2])
    if cpu := re.search(r"\bCPU \[([^\]]+)\]", line):
        clocks = [float(mhz) for mhz in re.findall(r"@(\d+)", cpu[1])]
        if clocks:
            readings["cpu_mhz"] = sum(clocks) / len(clocks)
    for name, celsius in re.findall(r"\b([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C\b", line):
        if name.lower() in ("gpu", "cpu", "tj") and float(celsius) > -200:  # what is switched off says -256
            readings[f"{name.lower()}_celsius"] = float(celsius)
    # The whole board where a rail measures it; else the rails there are, GPU and CPU among them, would be only a part.
    for rail in ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0"):
        if power := re.search(rf"\b{rail} (\d+)(?:mW)?/", line):
            readings["power_w"] = float(power[1]) / 1e3
            break
    return readings


class TegrastatsSensor(Sensor):
    """NVIDIA Jetson: the newest line of a running ``tegrastats``. Raises OSError: it cannot be started."""

    power_source = "board"

    def __init__(self, command: Sequence[str] = ("tegrastats", "--interval", str(round(PERIOD_S * 1000)))) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._newest: Readings = {}
        threading.Thread(target=self._listen, name="tegrastats", daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout
        with suppress(ValueError):  # closed while it was read
            for line in self._process.stdout:
                self._newest = parse_tegrastats(line)

    def read(self) -> Readings:
        return dict(self._newest)

    def close(self) -> None:
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)


class JtopSensor(Sensor):
    """NVIDIA Jetson through jetson-stats, where a container has its socket and no ``tegrastats``. Raises what that raises.

    Args:
        board: a ``jtop.jtop()`` that was started.
    """

    power_source = "board"

    def __init__(self, board: Any) -> None:
        self._board = board

    def read(self) -> Readings:
        with suppress(Exception):
            return parse_jtop(self._board.stats)
        return {}

    def close(self) -> None:
        with suppress(Exception):
            self._board.close()


def parse_jtop(stats: dict[str, Any]) -> Readings:
    """The flat dictionary of jetson-stats; the case of its keys differs between versions, power is in mW."""
    known = {"gpu": "gpu_percent", "temp gpu": "gpu_celsius", "temp cpu": "cpu_celsius", "temp tj": "tj_celsius"}
    readings = Readings()
    for key, value in stats.items():
        if isinstance(value, (int, float)):
            if name := known.get(key.lower()):
                readings[name] = float(value)
            elif key.lower() == "power tot":
                readings["power_w"] = value / 1e3
    return readings


class RaplSensor(Sensor):
    """The processor's packages, by their energy counters (Linux powercap). Raises OSError: none may be read."""

    power_source = "processor package"

    def __init__(self, root: Path = Path("/sys/class/powercap")) -> None:
        self._packages = [
            zone for zone in sorted(root.glob("intel-rapl:*")) if (zone / "name").read_text().startswith("package")
        ]
        if not self._packages:
            raise FileNotFoundError(root)
        self._before = time.perf_counter(), self._microjoules()

    def _microjoules(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._packages]

    def read(self) -> Readings:
        try:
            moment, energy = time.perf_counter(), self._microjoules()
            ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in self._packages]
        except (OSError, ValueError):
            return {}
        (since, before), self._before = self._before, (moment, energy)
        spent = sum((now - then) % (top + 1) for now, then, top in zip(energy, before, ranges, strict=True))
        return {"power_w": spent / 1e6 / (moment - since)} if moment > since else {}


class ProcessorSensor(Sensor):
    """Mean clock of the cores."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._files = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
        self._info = root / "proc/cpuinfo"

    def read(self) -> Readings:
        with suppress(OSError, ValueError):
            if self._files:
                return {"cpu_mhz": sum(int(f.read_text()) for f in self._files) / len(self._files) / 1e3}
            clocks = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*: ([\d.]+)", self._info.read_text(), re.M)]
            return {"cpu_mhz": sum(clocks) / len(clocks)} if clocks else {}
        return {}


def open_sensors(gpu: bool, jetson: bool, bus: str | None = None) -> tuple[list[Sensor], list[str]]:
    """All that work here, and a note for each that ought to.

    Args:
        gpu: whether the network runs on an NVIDIA GPU.
        jetson: whether this is one.
        bus: PCI bus id of that GPU, where it is known.
    """
    sensors: list[Sensor] = [ProcessorSensor()]
    notes: list[str] = []
    if jetson:
        try:
            sensors.append(open_jetson())
        except Exception as error:
            notes.append(f"no power, clocks and temperature: neither tegrastats nor jtop works ({error})")
    else:
        if gpu:
            try:
                sensors.append(NvmlSensor(import_module("pynvml"), bus))
            except Exception as error:
                notes.append(f"no figures of the GPU's load, power, clocks: {error}; pip install nvidia-ml-py")
        with suppress(OSError, ValueError):
            sensors.append(RaplSensor())
    return sensors, notes


def open_jetson() -> Sensor:
    if shutil.which("tegrastats"):
        return TegrastatsSensor()
    board = import_module("jtop").jtop()
    board.start()
    return JtopSensor(board)


class Sampler:
    """Reads sensors in a thread of its own. A context manager. The power of several adds up."""

    def __init__(self, sensors: Sequence[Sensor], period_s: float = PERIOD_S) -> None:
        self._sensors, self._period_s = sensors, period_s
        self._taken: list[tuple[int, Readings]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sensors", daemon=True)
        self.power_source = " + ".join(s.power_source for s in sensors if s.power_source)

    def _run(self) -> None:
        while not self._over.wait(self._period_s):
            self._taken.append((time.perf_counter_ns(), self.read()))

    def read(self) -> Readings:
        readings = Readings()
        for sensor in self._sensors:
            found = sensor.read()
            if "power_w" in found and "power_w" in readings:
                found["power_w"] += readings["power_w"]
            readings |= found
        return readings

    def between(self, began_ns: int, ended_ns: int) -> list[Readings]:
        """What was read from one moment to another, `time.perf_counter_ns`."""
        return [readings for moment, readings in self._taken if began_ns <= moment <= ended_ns]

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(timeout=2)
        for sensor in self._sensors:
            sensor.close()
