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
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import av
import cv2
import numpy as np
import pytest
from conftest import cli_environment, parts_in, write_model
from servers import Image, clock_road, made_at, mjpeg_server, proxy_to, rtsp_missing, rtsp_server

from perception.capture import open_source
from perception.capture.stream import Backlog, begins_picture
from perception.config import CaptureConfig
from perception.frame import Frame

BUDGET_S = 0.25
INVALID_HZ = 20
READ_TIMEOUT_S = 0.6
FROZEN_S = BUDGET_S  # a picture that is repeated is as old as it was when it came first
RECOVERY_S = 2.0
SLACK_S = 0.15  # a picture's way to us before it is grabbed (40 to 60 ms over RTSP), on a busy machine
READING_S = 0.3  # from what is said to our reading it, likewise
STEADY_S = 0.5

USER, PASSWORD, KEY = "operator7", "pa/ss@wörd", "k3y0fTheCamera"
SETTINGS = f"""
capture: {{read_timeout_s: {READ_TIMEOUT_S}, open_timeout_s: 2.0}}
loop: {{budget_ms: {BUDGET_S * 1e3:g}, invalid_hz: {INVALID_HZ}}}
health: {{frozen_s: {FROZEN_S}}}
polygons: {{plane: PLANE}}
"""
MJPEG, RTSP = "mjpeg", "rtsp"
# Libraries may take their time when all else is over, the interpreter too; then a read that still hangs must not wake up.
SLOW_END = """
import ctypes
libc = ctypes.CDLL(None)
libc.__cxa_atexit(libc.usleep, ctypes.c_void_p(300_000), None)
from perception.cli import main
main()
"""


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
    def published(self) -> float:
        return float(self.data["published_ns"]) / 1e9

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

    def __init__(
        self, folder: Path, uri: str, *options: str, settings: str = SETTINGS, looks: bool = False, tail: bool = True
    ) -> None:
        self.folder = folder
        self.out = folder / "out.jsonl"
        self.lines: list[Line] = []
        self.looks: list[Look] = []
        self.said: list[str] = []
        self.phases: list[Phase] = []
        self.watched = 0
        self.page: str | None = None
        self.code: int | None = None
        self.took = 0.0
        self.texts: list[bytes] = []
        self._done = threading.Event()
        self.settings = folder / "settings.yaml"
        self.set(settings)
        command = [sys.executable, "-c", SLOW_END, "run", uri, "--config", str(self.settings)]
        command += ["--model", str(write_model(folder / "tiny.onnx")), "--backend", "onnxruntime", "--threads", "1"]
        command += ["--polygons", str(self.out), *options]
        self.process = subprocess.Popen(
            command, cwd=folder, env=cli_environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        jobs = [self._listen, *([self._tail] if tail else []), *([self._look, self._watch] if looks else [])]
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
    "frozen": (lambda: partial(np.array, clock_road()), {"image_frozen"}),
    "covered": (lambda: covered, {"image_covered"}),
    "overexposed": (lambda: lambda: noise(251, 256), {"image_overexposed"}),
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
                    time.sleep(0.6)
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
    folders = [tmp_path_factory.mktemp(kind) for kind in kinds]
    with ThreadPoolExecutor() as pool:
        return dict(zip(kinds, pool.map(drive, kinds, folders), strict=True))


@pytest.fixture(params=[MJPEG, RTSP])
def drive_of(request: pytest.FixtureRequest, drives: dict[str, Run]) -> Run:
    if request.param not in drives:
        pytest.skip(rtsp_missing())
    return drives[request.param]


OUTAGES = ("away", "killed", "stopped", "ended")
SOURCE = {"source_unreachable", "source_disconnected", "source_stalled", "source_corrupt"}
# What must be said at some time, and what may be said, of results that are not valid.
CODES: dict[str, tuple[set[str], set[str]]] = {
    "away": ({"source_unreachable"}, {"starting"}),
    "killed": ({"source_unreachable"}, {"source_disconnected", "source_stalled"}),
    "stopped": ({"source_stalled"}, set()),
    "held up": ({"source_stalled"}, set()),
    "slowed": (set(), {"source_stalled", "source_disconnected", "source_unreachable"}),
    "garbled": (set(), SOURCE | {"image_overexposed", "image_covered", "image_defocused", "scene_cut"}),
    "ended": ({"source_unreachable"}, {"source_disconnected", "source_stalled"}),
} | {name: (set(), codes) for name, (_, codes) in PICTURE_FAULTS.items()}


def named(run: Run, *names: str) -> list[Phase]:
    return [phase for phase in run.phases if phase.name in names]


def states(lines: Sequence[Line]) -> list[str]:
    """The states one after the other, each once; those in which results are valid are one, and a single late result is none."""
    merged = [
        "valid" if line.valid else str(line.data["state"]) for line in lines if line.codes != {"result_late"} or line.valid
    ]
    return [state for before, state in pairwise(["", *merged]) if state != before]


def excused(run: Run, line: Line) -> bool:
    """Where what a picture shows is not known to be right: bytes that were garbled, until the next key frame, for neither H.264
    nor JPEG has a checksum; and of a line that is always too slow, pictures that do not say when they were taken."""
    slow = ["slowed", "slowed: back"] if run.folder.name.startswith(MJPEG) else []
    phases = named(run, "garbled", "garbled: back", *slow)
    return any(phase.begun <= line.at < phase.ended + SLACK_S for phase in phases)


def test_no_result_is_valid_whose_picture_is_too_old(drive_of: Run) -> None:
    valid = [line for line in drive_of.lines if line.valid]
    seen = {line.at: line.published - (line.made or 0) for line in valid if not excused(drive_of, line)}
    assert len(seen) > 60
    oldest = max(seen, key=lambda at: seen[at])
    phase = next((phase.name for phase in drive_of.phases if phase.begun <= oldest < phase.ended), "between")
    print(f"pictures of valid results: median {np.median(list(seen.values())):.3f}, max {seen[oldest]:.3f} s ({phase})")
    assert {at: round(age, 3) for at, age in seen.items() if not -0.05 < age < BUDGET_S + SLACK_S} == {}
    by_stamp = {line.at: round(line.published - line.data["stamp_ns"] / 1e9, 3) for line in valid}
    assert {at: age for at, age in by_stamp.items() if not 0 <= age < BUDGET_S + 0.01} == {}
    late = [line.at - line.published for line in drive_of.lines]
    print(f"read in the file after {np.median(late):.3f}, at most {max(late):.3f} s")
    assert -0.001 < min(late) <= max(late) < READING_S


def test_whoever_listens_never_holds_a_result_for_valid_for_longer(drive_of: Run) -> None:
    """From one line to the next: what was said last, and how old it is by then."""
    held = {
        line.data["seq"]: round(after.at - line.made, 3)
        for line, after in pairwise(drive_of.lines)
        if line.valid and line.made is not None and not excused(drive_of, line)
    }
    assert {seq: age for seq, age in held.items() if age > BUDGET_S + SLACK_S + READING_S} == {}
    assert not drive_of.lines[-1].valid


def test_what_is_not_valid_has_a_code_that_fits_and_no_polygons(drive_of: Run) -> None:
    for phase in drive_of.phases:
        wrong = [line for line in drive_of.within(phase.begun, phase.ended) if not line.valid]
        assert not any(line.data["polygons"] for line in wrong)
        assert all(line.codes for line in wrong)
        if phase.name in CODES:
            said = set().union(*(line.codes for line in wrong if line is not drive_of.lines[-1]))
            needed, allowed = CODES[phase.name]
            assert needed <= said, phase.name
            assert said <= needed | allowed | {"result_late"}, phase.name
            assert wrong or phase.name in ("slowed", "garbled"), phase.name
    assert drive_of.lines[0].data["seq"] == -1


@pytest.mark.skipif(bool(rtsp_missing()), reason=rtsp_missing() or "there is one")
def test_a_line_that_is_too_slow_is_told_from_one_that_is_dead(drives: dict[str, Run]) -> None:
    (slowed,) = named(drives[RTSP], "slowed")
    said = [line.codes for line in drives[RTSP].within(slowed.begun + 1, slowed.ended) if not line.valid]
    assert sum("result_late" in codes for codes in said) > len(said) / 2 > 5


def test_faults_of_the_picture_are_told_at_once_and_taken_back(drives: dict[str, Run]) -> None:
    run = drives[MJPEG]
    for phase in named(run, *PICTURE_FAULTS):
        first = next(line.at for line in run.within(phase.begun, phase.ended) if not line.valid) - phase.begun
        assert first < READING_S + (FROZEN_S if phase.name == "frozen" else 0.1), phase.name
    (cut,) = named(run, "cut")
    lines = run.within(cut.begun, cut.ended)
    assert [line.valid for line in lines].count(False) == 0, "another scene is no reason not to see"
    assert sum("scene_cut" in line.codes for line in lines) == 1


def test_states_follow_each_other(drive_of: Run) -> None:
    everything = states(drive_of.lines)
    assert everything[0] == "starting"
    assert everything.count("starting") == 1
    assert "error" not in everything
    for phase in drive_of.phases:
        seen = states(drive_of.within(phase.begun, phase.ended))
        fault, _, part = phase.name.partition(": ")
        down = "starting" if fault == "away" else "blind" if fault in PICTURE_FAULTS else "stale"
        if part == "after" or fault == "cut":
            assert seen == ["valid"], phase.name
        elif part == "back" and fault not in ("slowed", "garbled"):
            assert seen in ([down, "valid"], ["valid"]), phase.name
        elif not part and fault not in ("slowed", "garbled"):
            assert seen in ([down], ["valid", down]), phase.name


def test_while_nothing_comes_that_is_said_at_its_rate(drive_of: Run) -> None:
    gaps: list[float] = []
    for phase in named(drive_of, *OUTAGES):
        lines = [line for line in drive_of.within(phase.begun, phase.ended) if not line.data["latency_ms"]]
        assert len({line.data["seq"] for line in lines}) == 1, "no frame is made up"
        gaps += list(np.diff([line.published for line in lines]))
    print(f"without a frame every {np.median(gaps):.3f} s, at most {max(gaps):.3f} s")
    assert np.median(gaps) == pytest.approx(1 / INVALID_HZ, rel=0.3)
    assert max(gaps) < 1 / INVALID_HZ + READING_S


def test_results_come_again_soon_after_the_stream(drive_of: Run) -> None:
    took = {phase.name: phase.ended - phase.begun for phase in drive_of.phases if phase.name.endswith(": back")}
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in took.items()))
    assert {name: round(seconds, 2) for name, seconds in took.items() if seconds > RECOVERY_S + READING_S} == {}


def test_numbers_rise(drive_of: Run) -> None:
    numbers = [line.data["seq"] for line in drive_of.lines if line.data["latency_ms"]]
    assert numbers == sorted(set(numbers))
    everything = [line.data["seq"] for line in drive_of.lines]
    assert everything == sorted(everything)
    for with_frame in (True, False):
        dropped = [line.data["dropped"] for line in drive_of.lines if bool(line.data["latency_ms"]) is with_frame]
        assert dropped == sorted(dropped)


def test_the_page_says_what_the_file_says(drive_of: Run) -> None:
    assert len(drive_of.looks) > 100
    assert {look.code for look in drive_of.looks if look.path == "/healthz"} == {200, 503}
    at = np.array([line.at for line in drive_of.lines])
    strange = []
    for look in drive_of.looks:
        first, last = np.searchsorted(at, [look.begun - READING_S, look.ended + READING_S])
        lines = drive_of.lines[max(0, first - 1) : last]
        said = (look.data["valid"], look.data["state"])
        if lines and said not in {(line.valid, line.data["state"]) for line in lines}:
            strange.append((look.path, *said, [line.data["state"] for line in lines]))
        if look.path == "/healthz":
            assert look.code == (200 if look.data["valid"] else 503)
        elif look.data["valid"]:
            assert look.data["age_ms"] <= BUDGET_S * 1e3
        assert look.data["valid"] or look.data["causes"] or look.data["state"] == "starting"
    assert strange == []


def test_settings_are_read_again_in_an_outage(drive_of: Run) -> None:
    (killed,) = named(drive_of, "killed")
    assert "freespace: settings read again: polygons changed\n" in drive_of.said
    planes = {(line.at > killed.ended, p["plane"]) for line in drive_of.lines for p in line.data["polygons"]}
    assert planes == {(False, "freespace"), (True, "ego")}


def test_what_cannot_be_decoded_is_counted(drives: dict[str, Run]) -> None:
    run = drives[MJPEG]
    (garbled,) = named(run, "garbled")
    dropped = [line.data["dropped"] for line in run.within(garbled.begun, garbled.ended)]
    assert dropped[-1] > dropped[0]


def test_an_end_in_an_outage_closes_everything(drive_of: Run) -> None:
    print(f"SIGTERM: {drive_of.took:.2f} s")
    assert drive_of.code == 130
    assert drive_of.took < 3
    assert drive_of.watched > 10_000, "somebody watched the page"
    assert parts_in(drive_of.folder) == []
    assert "interrupted after" in drive_of.stdout
    assert "Traceback" not in "".join(drive_of.said)
    assert len(drive_of.out.read_text().splitlines()) == len(drive_of.lines)
    frames = len([line for line in drive_of.lines if line.data["latency_ms"]])
    assert f"interrupted after {frames} frames" in drive_of.stdout
    state = json.loads((drive_of.folder / "state.json").read_text())
    assert state == {"next_seq": drive_of.lines[-1].data["seq"] + 1, "starts": 1}


def recorded(path: Path) -> list[tuple[str, bytes]]:
    reader = pytest.importorskip("mcap.reader", reason="the extra 'foxglove' is not installed")
    with open(path, "rb") as file:
        messages = reader.make_reader(file).iter_messages(log_time_order=False)
        return [(channel.topic, message.data) for _, channel, message in messages]


def test_the_recording_has_every_result(drive_of: Run) -> None:
    results = [json.loads(data) for topic, data in recorded(drive_of.folder / "out.mcap") if topic == "/freespace/result"]
    assert results == [line.data for line in drive_of.lines]


def test_no_secret_is_told(drive_of: Run) -> None:
    told = {str(path): path.read_bytes() for path in drive_of.folder.rglob("*") if path.is_file()}
    told |= {"stderr": "".join(drive_of.said).encode(), "stdout": drive_of.stdout.encode()}
    told |= {f"page {i}": text for i, text in enumerate(drive_of.texts)}
    told |= {"looks": json.dumps([look.data for look in drive_of.looks], ensure_ascii=False).encode()}
    told |= {"recording": b"".join(data for _, data in recorded(drive_of.folder / "out.mcap"))}
    secrets = [USER, PASSWORD, KEY, quote(PASSWORD, safe=""), quote(PASSWORD), json.dumps(PASSWORD)[1:-1]]
    secrets += [base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode().rstrip("=")]
    assert [(name, secret) for name, data in told.items() for secret in secrets if secret.encode() in data] == []
    assert b"127.0.0.1" in told["recording"], "the address itself is there"


# -- Ends at other moments ----------------------------------------------------------------------------------------------


PATIENT = SETTINGS.replace(f"read_timeout_s: {READ_TIMEOUT_S}, open_timeout_s: 2.0", "read_timeout_s: 30, open_timeout_s: 30")
MOMENTS = {
    "in a read that hangs": "hang",
    "while it is opened again": "hang cut",
    "between two attempts": "cut",
    "with a server that stands still": "freeze",
    "before anything came": "never",
}


def end_at(folder: Path, what: str) -> Run:
    more = {"cut": "retry_first_s: 30, retry_longest_s: 30", "give up": "give_up_s: 1"}.get(what, "")
    settings = PATIENT.replace("30}", f"30, {more}}}") if more else PATIENT
    with ExitStack() as stack:
        over_rtsp = what == "freeze" and not rtsp_missing()
        server: Any = stack.enter_context(rtsp_server(roads=True) if over_rtsp else mjpeg_server(clock_road))
        line = stack.enter_context(proxy_to(server.port))
        run = stack.enter_context(running(folder, server.url.replace(str(server.port), str(line.port)), settings=settings))
        if what == "never":
            server.stop()
            assert run.wait_for(lambda: run.lines), run.said
        else:
            assert run.wait_for_valid(), run.said
        if what == "give up":
            server.stop()
            run.finish()
            return run
        if "hang" in what:
            line.hang.set()
        if "cut" in what:
            line.cut()
        if what == "cut":
            server.stop()
        if what == "freeze":
            server.freeze()
        time.sleep(0.8)
        run.took = run.end()
        return run


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    moments = {**MOMENTS, "given up": "give up"}
    folders = [tmp_path_factory.mktemp("end") for _ in moments]  # here: pytest does not make them in several threads at once
    with ThreadPoolExecutor() as pool:
        return dict(zip(moments, pool.map(end_at, folders, moments.values()), strict=True))


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_end_at_any_moment(ends: dict[str, Run], moment: str) -> None:
    run = ends[moment]
    print(f"SIGTERM {moment}: {run.took:.2f} s")
    assert (run.code, parts_in(run.folder)) == (130, [])
    assert run.took < 3
    assert len(run.out.read_text().splitlines()) == len(run.lines) > 3
    last, over = run.lines[-2:]
    assert (over.valid, over.data["state"], over.codes) == (False, "stale", {"source_ended"}), "the run's last word"
    assert (last.valid, last.data["state"]) == (False, "starting" if MOMENTS[moment] == "never" else "stale")
    expected = {
        "cut": {"source_disconnected"},
        "hang cut": {"source_disconnected"},
        "never": {"source_unreachable", "starting"},
    }
    assert last.codes <= expected.get(MOMENTS[moment], {"source_stalled"})


def test_a_source_that_is_given_up_ends_the_run_with_an_error(ends: dict[str, Run]) -> None:
    run = ends["given up"]
    assert (run.code, parts_in(run.folder)) == (1, [])
    assert states(run.lines)[-3:] == ["valid", "stale", "error"]
    assert len(run.out.read_text().splitlines()) == len(run.lines)
    assert run.lines[-1].codes <= SOURCE
    assert "given up after 1 s" in run.lines[-1].data["causes"][0]["text"]
    assert "given up after 1 s" in run.said[-1]


# -- Killed and started again -------------------------------------------------------------------------------------------


def test_after_a_kill_the_file_goes_on(tmp_path: Path) -> None:
    part = tmp_path / ".out.part.jsonl"
    with mjpeg_server(clock_road) as server:
        for turn in range(3):
            with running(tmp_path, server.url, "--append", "--state", "state.json", tail=False) as run:
                before = part.stat().st_size if part.exists() else 0
                assert run.wait_for(lambda: part.exists() and part.stat().st_size > before + 20_000)  # noqa: B023
                if turn == 2:
                    run.end()
                else:
                    run.end(signal.SIGKILL)
                    with open(part, "ab") as file:  # the last line was cut off
                        file.write(file.tell() and part.read_bytes()[:100])
    assert run.code == 130
    assert parts_in(tmp_path) == []
    lines = [json.loads(text) for text in run.out.read_text().splitlines()]
    numbers = [line["seq"] for line in lines if line["latency_ms"]]
    assert numbers == sorted(set(numbers))
    assert [line["seq"] for line in lines] == sorted(line["seq"] for line in lines)
    assert sum(b > a + 1000 for a, b in pairwise(numbers)) == 2, "numbers set aside were left out"
    assert json.loads((tmp_path / "state.json").read_text()) == {"next_seq": numbers[-1] + 1, "starts": 3}


# -- Halves of pictures --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(rtsp_missing()), reason=rtsp_missing() or "there is one")
def test_halves_of_pictures_are_not_shown() -> None:
    """A sender that repeats parameter sets before every slice: FFmpeg takes each slice of a key frame for a picture."""
    with rtsp_server(roads=True, config_every=-1) as server, open_source(server.url, CaptureConfig()) as source:
        taken: list[Frame] = []
        taker = threading.Thread(target=lambda: taken.extend(source.frames()), daemon=True)
        taker.start()
        deadline = time.monotonic() + 5
        while "parameter sets within a key frame" not in " ".join(source.problems) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.5)
        assert "parameter sets within a key frame" in " ".join(source.problems)
        source.close()
        taker.join(2)
        assert taken == []


def test_the_beginning_of_a_picture_is_known() -> None:
    """Against an encoder's own slices: the first one of each picture, and no other one."""
    codec = av.CodecContext.create("libx264", "w")
    codec.width, codec.height, codec.pix_fmt, codec.framerate = 320, 160, "yuv420p", Fraction(25)
    codec.options = {"tune": "zerolatency", "preset": "ultrafast", "g": "3", "x264-params": "slices=3:threads=1"}
    for number in range(8):
        (packet,) = codec.encode(av.VideoFrame.from_ndarray(clock_road(number), "bgr24"))
        units = [unit for unit in bytes(packet).replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if unit]
        slices = [unit for unit in units if unit[0] & 31 in (1, 5)]
        others = b"".join(b"\0\0\1" + unit for unit in units if unit[0] & 31 not in (1, 5))
        assert len(slices) == 3
        assert [begins_picture(others + b"\0\0\1" + unit, "h264") for unit in slices] == [True, False, False]
    assert begins_picture(others, "h264")


def test_what_has_waited_is_known_by_pause_and_burst() -> None:
    """25 pictures a second with some jitter, held up for half a second; then a camera that itself paused."""
    chance, backlog, ms = np.random.default_rng(1), Backlog(), 1_000_000
    made = [i * 40 * ms for i in range(60)]
    steady = [backlog.late_ns(at + round(chance.uniform(0, 15) * ms)) for at in made[:40]]
    assert max(steady) == 0
    release = made[52]
    late = [backlog.late_ns(max(at, release) + i * ms) for i, at in enumerate(made[40:])]
    true = [max(0, release - at) for at in made[40:]]
    assert late == pytest.approx(true, abs=35 * ms)
    assert late[14:] == [0] * 6
    paused = [backlog.late_ns(made[-1] + 500 * ms + i * 40 * ms) for i in range(4)]
    assert paused[0] > 400 * ms, "it may have waited"
    assert paused[1:] == [0, 0, 0], "it had not"
    slower = [backlog.late_ns(made[-1] + 620 * ms + i * 200 * ms) for i in range(30)]
    assert slower[12:] == [0] * 18
