"""What whoever listens to ``freespace run`` hears while a stream breaks off, hangs, is garbled, slow, dark or frozen.

The pictures say when they were made (`servers.clock_road`), and their outlines do, too: so every line of the polygon file that
claims to be valid is held against the clock by what it shows, not by what it says of itself.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest
from conftest import cli_environment, parts_in, write_model
from servers import Image, clock_road, made_at, mjpeg_server, proxy_to, rtsp_missing, rtsp_server

BUDGET_S = 0.25
INVALID_HZ = 20
READ_TIMEOUT_S = 0.6
FROZEN_S = 0.5
RECOVERY_S = 2.0
SLACK_S = 0.25  # a picture's way to us before it is grabbed, and from its result to our reading of the file, on a busy machine
STEADY_S = 0.5

USER, PASSWORD, KEY = "operator7", "pa/ss@wörd", "k3y0fTheCamera"
SETTINGS = f"""
capture: {{read_timeout_s: {READ_TIMEOUT_S}, open_timeout_s: 2.0}}
loop: {{budget_ms: {BUDGET_S * 1e3:g}, invalid_hz: {INVALID_HZ}}}
health: {{frozen_s: {FROZEN_S}}}
polygons: {{plane: PLANE}}
"""
MJPEG, RTSP = "mjpeg", "rtsp"


# -- A run, watched from outside -------------------------------------------------------------------------------------------


@dataclass
class Line:
    """One line of the polygon file, and when it could be read there."""

    at: float
    data: dict[str, Any]

    @property
    def valid(self) -> bool:
        return bool(self.data["valid"])

    @property
    def codes(self) -> set[str]:
        return {cause["code"] for cause in self.data.get("causes", [])}

    @property
    def made(self) -> float | None:
        """When the picture was made, by its outlines."""
        rings = [(np.array(p["exterior"]), [np.array(r) for r in p["interiors"]]) for p in self.data["polygons"]]
        return made_at(rings, self.at)


@dataclass
class Look:
    """What the web page said to one who asked between two moments."""

    begun: float
    ended: float
    path: str
    code: int
    data: dict[str, Any]


@dataclass
class Phase:
    name: str
    begun: float
    ended: float = 0.0


class Run:
    """``freespace run`` in a process of its own, its polygon file, web page and words read as they come."""

    def __init__(self, folder: Path, uri: str, *options: str, settings: str = SETTINGS, looks: bool = False) -> None:
        self.folder = folder
        self.out = folder / "out.jsonl"
        self.lines: list[Line] = []
        self.looks: list[Look] = []
        self.said: list[str] = []
        self.phases: list[Phase] = []
        self.watched = 0
        self.page: str | None = None
        self.code: int | None = None
        self._done = threading.Event()
        self.settings = folder / "settings.yaml"
        self.set(settings)
        command = [sys.executable, "-m", "perception.cli", "run", uri, "--config", str(self.settings)]
        command += ["--model", str(write_model(folder / "tiny.onnx")), "--backend", "onnxruntime", "--threads", "1"]
        command += ["--polygons", str(self.out), *options]
        self.process = subprocess.Popen(
            command, cwd=folder, env=cli_environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        jobs = [self._listen, self._tail] + ([self._look, self._watch] if looks else [])
        self._threads = [threading.Thread(target=job, daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()

    def set(self, settings: str, plane: str = "freespace") -> None:
        self.settings.write_text(settings.replace("PLANE", plane))

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for text in self.process.stderr:
            self.said.append(text)
            if found := re.search(r"web page at http://([^/]+)/", text):
                self.page = found[1]

    def _tail(self) -> None:
        part, rest = self.out.with_name(f".{self.out.stem}.part{self.out.suffix}"), ""
        while not part.exists():
            if self._done.wait(0.01):
                return
        with open(part) as file:
            last = False
            while True:
                if data := file.read():
                    *whole, rest = (rest + data).split("\n")
                    now = time.time()
                    self.lines += [Line(now, json.loads(text)) for text in whole]
                elif last:
                    return
                else:
                    last = self._done.wait(0.004)

    def _look(self) -> None:
        while not self._done.wait(0.1):
            for path in ("/status.json", "/healthz") if self.page else ():
                with suppress(OSError, http.client.HTTPException):
                    self.looks.append(self.look(path))

    def look(self, path: str) -> Look:
        begun = time.time()
        code, body = self.get(path)
        return Look(begun, time.time(), path, code, json.loads(body))

    def get(self, path: str) -> tuple[int, bytes]:
        assert self.page
        connection = http.client.HTTPConnection(self.page, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _watch(self) -> None:
        """Watch the overlay, as a browser does that was left open."""
        while not self.page:
            if self._done.wait(0.02):
                return
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(self.page, timeout=30)
            connection.request("GET", "/stream.mjpg")
            answer = connection.getresponse()
            while data := answer.read1(1 << 16):
                self.watched += len(data)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.phases.append(Phase(name, time.time()))
        yield
        self.phases[-1].ended = time.time()

    def wait_for(self, condition: Callable[[], object], within_s: float = 20.0) -> bool:
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline or self.process.poll() is not None:
                return False
            time.sleep(0.005)
        return True

    def wait_for_valid(self, within_s: float = 10.0) -> bool:
        """Wait for a result of a picture that is made from now on."""
        now, begun = time.time(), len(self.lines)
        return self.wait_for(lambda: any(v.valid and (v.made or 0) >= now for v in self.lines[begun:]), within_s)

    def end(self, number: int = signal.SIGTERM, within_s: float = 15.0) -> float:
        """Send a signal and wait; seconds that it took."""
        begun = time.monotonic()
        self.process.send_signal(number)
        return self.finish(within_s) - begun

    def finish(self, within_s: float = 15.0) -> float:
        """Wait until it has ended, then until everything was read; when it had, on ``time.monotonic``."""
        try:
            self.code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        ended = time.monotonic()
        self._done.set()
        for thread in self._threads:
            thread.join(5)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
        self.stdout = self.process.stdout.read() if self.process.stdout else ""
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        return ended

    def within(self, begun: float, ended: float) -> list[Line]:
        return [line for line in self.lines if begun <= line.at < ended]


@contextmanager
def running(folder: Path, uri: str, *options: str, **more: Any) -> Iterator[Run]:
    folder.mkdir(exist_ok=True)
    run = Run(folder, uri, *options, **more)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.process.kill()
            run.finish()


# -- The drive: one run through every fault -----------------------------------------------------------------------------


class Pictures:
    """What the MJPEG server sends: ``made`` makes each picture; put another one in its place."""

    def __init__(self) -> None:
        self.made: Callable[[], Image] = clock_road

    def __call__(self, number: int) -> Image:
        return self.made()


def noise(low: int, high: int) -> Image:
    return np.random.default_rng(time.time_ns()).integers(low, high, clock_road().shape).astype(np.uint8)


def covered() -> Image:
    """A hand before the lens: grey without an edge, and the sensor's noise."""
    return cv2.add(np.full(clock_road().shape, 90, np.uint8), noise(0, 3))


PICTURE_FAULTS: dict[str, tuple[Callable[[], Callable[[], Image]], set[str]]] = {
    "black": (lambda: lambda: noise(0, 3), {"image_dark", "image_covered"}),
    "frozen": (lambda: lambda still=clock_road(): still, {"image_frozen"}),  # type: ignore[misc]
    "covered": (lambda: covered, {"image_covered"}),
    "overexposed": (lambda: lambda: noise(251, 256), {"image_overexposed"}),
    "out of focus": (lambda: lambda: cv2.GaussianBlur(clock_road(), (0, 0), 12).astype(np.uint8), {"image_defocused"}),
}
"""How to make the pictures, and what may be said of them."""


def drive(kind: str, folder: Path) -> Run:
    """Everything that can go wrong on the way, one after the other, then SIGTERM in the middle of an outage."""
    with ExitStack() as stack:
        pictures = Pictures()
        if kind == RTSP:
            server: Any = stack.enter_context(rtsp_server(user=USER, password=PASSWORD, roads=True, begin=False))
        else:
            server = stack.enter_context(mjpeg_server(pictures))
            server.stop()
        line = stack.enter_context(proxy_to(server.port))
        uri = server.url.replace(str(server.port), str(line.port)).replace(
            "//", f"//{quote(USER, safe='')}:{quote(PASSWORD, safe='')}@"
        ) + (f"?key={KEY}" if kind == MJPEG else "")
        outputs = ["--mcap", "out.mcap", "--state", "state.json", "--serve", "127.0.0.1:0"]
        run = stack.enter_context(running(folder, uri, *outputs, looks=True))

        def back(name: str, mend: Callable[[], None]) -> None:
            with run.phase(f"{name}: back"):
                mend()
                run.phases[-1].begun = time.time()
                run.wait_for_valid()
                run.phases[-1].ended = time.time()
            with run.phase(f"{name}: after"):
                time.sleep(STEADY_S)

        run.wait_for(lambda: run.lines)
        with run.phase("away"):
            time.sleep(0.8)
        back("away", server.start)
        with run.phase("killed"):
            server.stop()
            time.sleep(0.6)
            run.set(SETTINGS, "ego")
            run.process.send_signal(signal.SIGHUP)
            time.sleep(0.6)
        back("killed", server.start)
        with run.phase("stopped"):
            server.freeze()
            time.sleep(1.5)
        back("stopped", server.thaw)
        with run.phase("held up"):
            line.hang.set()
            time.sleep(READ_TIMEOUT_S - 0.1)
        back("held up", line.hang.clear)
        with run.phase("slowed"):
            line.bytes_per_s = 30e3 if kind == RTSP else 200e3
            time.sleep(2.5)
        back("slowed", lambda: setattr(line, "bytes_per_s", float("inf")))
        with run.phase("garbled"):
            line.flips = 100.0
            time.sleep(2.0)
        back("garbled", lambda: setattr(line, "flips", 0.0))
        if kind == MJPEG:
            for name, (make, _) in PICTURE_FAULTS.items():
                with run.phase(name):
                    pictures.made = make()
                    time.sleep(FROZEN_S + 0.4 if name == "frozen" else 0.6)
                back(name, lambda: setattr(pictures, "made", clock_road))
            with run.phase("cut"):
                pictures.made = lambda: clock_road(other_scene=True)
                time.sleep(0.5)
        with run.phase("ended"):
            server.stop()
            time.sleep(0.6)
            run.texts = [run.get(path)[1] for path in ("/", "/status.json", "/healthz", "/metrics", "/polygons.json")]
            run.took = run.end()
        return run


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Both kinds at the same time."""
    kinds = [MJPEG] if rtsp_missing() else [MJPEG, RTSP]
    with ThreadPoolExecutor() as pool:
        return dict(zip(kinds, pool.map(lambda kind: drive(kind, tmp_path_factory.mktemp(kind)), kinds), strict=True))
