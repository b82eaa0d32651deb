"""The loop on live sources: what it does when something goes wrong, and that nothing wrong is ever said to be valid."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import road_image
from numpy.typing import NDArray

from engine.base import Engine
from engine.contract import EngineError
from perception.capture import Source
from perception.causes import Cause, Code
from perception.config import Config, HealthConfig, LoopConfig, StabiliseConfig
from perception.errors import FreespaceError
from perception.frame import Frame
from perception.freespace import Freespace
from perception.lookout import Lookout, Sight, Sighted
from perception.monitor import Monitor
from perception.node import Interpreter, run
from perception.service import Memory
from perception.sinks.base import Output, Sink
from perception.sinks.window import WindowSink

BUDGET_MS = 150
SETTINGS = Config(loop=LoopConfig(budget_ms=BUDGET_MS, invalid_hz=20), stabilise=StabiliseConfig(enabled=False))
UNCHECKED = SETTINGS.model_copy(update={"health": HealthConfig(enabled=False)})
SLACK_MS = 60  # a busy machine may take so long between the judgement and the test's own look at the clock
RNG = np.random.default_rng(5)


def noisy_road() -> NDArray[np.uint8]:
    """The road as a camera sees it: no two pictures are the same."""
    image = road_image(256, 128)
    return cv2.add(image, RNG.integers(0, 6, image.shape, np.uint8))


class Script(Source):
    """A live source that does what ``acts`` says: the items it yields are pictures, or seconds to be silent."""

    def __init__(self, acts: Callable[[Script], Iterator[NDArray[np.uint8] | float]]) -> None:
        super().__init__("camera", live=True)
        self._acts = acts

    def frames(self) -> Iterator[Frame]:
        seq = 0
        for act in self._acts(self):
            if isinstance(act, float):
                time.sleep(act)
                continue
            yield Frame(act, seq, time.time_ns(), "system", "camera", dropped=self.dropped)
            seq += 1


def steadily(count: int, fps: float = 40, picture: Callable[[], NDArray[np.uint8]] = noisy_road) -> Iterator[Any]:
    for _ in range(count):
        yield picture()
        yield 1 / fps


class Witness(Sink):
    """Remembers what it gets and when; checks each valid result as a planner in the vehicle would."""

    def __init__(self, delay_s: float = 0.0, error: Exception | None = None, lossless: bool = True) -> None:
        self.target = Path("witness")
        self.results: list[Freespace] = []
        self.outputs: list[Output] = []
        self.wrong: list[str] = []
        self.lossless = lossless
        self.over = False  # whether it was said that the run is
        self._delay_s, self._error = delay_s, error

    def write(self, output: Output) -> None:
        time.sleep(self._delay_s)
        if self._error:
            raise self._error
        age_ms = (time.perf_counter_ns() - output.frame.grabbed_ns) / 1e6
        if output.result.valid and not self._delay_s and age_ms > BUDGET_MS + SLACK_MS:
            self.wrong.append(f"frame {output.result.seq} is valid and {age_ms:.0f} ms old")
        self.outputs.append(output)
        self.results.append(output.result)

    def write_without_frame(self, result: Freespace) -> None:
        if result.valid or result.polygons or not result.causes or self.over:
            self.wrong.append(f"without a frame: {result}")
        self.over = (result.state, [c.code for c in result.causes]) == ("stale", [Code.ENDED])
        if not self.over:
            self.results.append(result)

    def close(self) -> None:
        pass

    @property
    def states(self) -> list[str]:
        """The states in the order in which they came, each once for every time it was entered."""
        states = [r.state for r in self.results]
        return [s for i, s in enumerate(states) if i == 0 or states[i - 1] != s]

    def codes(self, state: str) -> set[Code]:
        return {cause.code for r in self.results if r.state == state for cause in r.causes}


class Slow(Witness):
    """A file on a slow disk."""


class Viewer(Witness):
    """A screen nobody waits for."""


def watch(source: Source, engine: Engine, config: Config = UNCHECKED, **more: Any) -> tuple[Witness, Any]:
    witness = Witness()
    summary = run(source, engine, [witness], config, **more)
    assert witness.wrong == []
    return witness, summary


class Slowly:
    """An engine that takes its time over some frames."""

    def __init__(self, engine: Engine, seconds: Callable[[int], float]) -> None:
        self._engine, self._seconds, self._count = engine, seconds, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def collect(self) -> Any:
        time.sleep(self._seconds(self._count))
        self._count += 1
        return self._engine.collect()


def test_a_steady_camera_runs(tiny_engine: Engine) -> None:
    witness, summary = watch(Script(lambda s: steadily(60)), tiny_engine)
    assert summary.frames + summary.dropped == 60
    assert summary.invalid.total() <= 2, "the first may be late: the engine warms up"
    assert witness.states[-1] == "running"
    assert witness.over, "the last word is that nothing holds any more"
    assert all(r.latency_ms["age"] < BUDGET_MS for r in witness.results if r.valid)


def test_silence_is_stale_within_the_budget_and_ends_with_the_next_frame(tiny_engine: Engine) -> None:
    def acts(source: Script) -> Iterator[Any]:
        yield from steadily(20)
        source.trouble = Cause(Code.STALLED, "No frame for 0.5 s.")
        yield 0.8
        source.trouble = None
        yield from steadily(20)

    witness, _ = watch(Script(acts), tiny_engine)
    assert witness.states[-3:] == ["running", "stale", "running"]
    assert witness.codes("stale") == {Code.STALLED}
    reports = [r for r in witness.results if r.state == "stale"]
    assert 0.5 * 20 * 0.65 <= len(reports) <= 20 * 0.8 + 2, "at the configured rate"
    assert all((r.seq, r.valid) == (19, False) for r in reports), "no frame is invented"
    moments = [r.published_ns for r in witness.results]
    assert moments == sorted(set(moments)), "each says when it was said"


def test_a_source_that_never_begins_is_starting(tiny_engine: Engine) -> None:
    def acts(source: Script) -> Iterator[Any]:
        source.trouble = Cause(Code.UNREACHABLE, "No route to host.")
        yield 0.5
        source.trouble = None
        yield from steadily(10)

    witness, _ = watch(Script(acts), tiny_engine)
    assert witness.states[0] == "starting"
    assert witness.states[-1] == "running"
    assert Code.UNREACHABLE in witness.codes("starting")
    assert witness.results[0].seq == -1


def test_a_network_that_is_too_slow_gives_nothing_valid(tiny_engine: Engine) -> None:
    engine: Any = Slowly(tiny_engine, lambda i: 0.2)
    witness, summary = watch(Script(lambda s: steadily(60)), engine)
    assert summary.invalid["result_late"] >= summary.frames > 2
    assert not any(r.valid for r in witness.results)
    assert Code.LATE in witness.codes("stale")


def test_a_result_that_is_held_up_after_it_was_judged_is_not_valid(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that swaps, or by SIGSTOP, in just that moment."""
    count, begin = iter(range(1000)), Freespace.__post_init__

    def late(result: Freespace) -> None:
        time.sleep(0.4 if result.valid and next(count) == 10 else 0)
        begin(result)

    monkeypatch.setattr(Freespace, "__post_init__", late)
    witness, _ = watch(Script(lambda s: steadily(40)), tiny_engine)
    assert all(r.latency_ms["age"] < BUDGET_MS + SLACK_MS for r in witness.results if r.valid)


def test_a_network_that_hangs_is_named_while_it_hangs(tiny_engine: Engine) -> None:
    engine: Any = Slowly(tiny_engine, lambda i: 0.7 if i == 10 else 0.0)
    witness, summary = watch(Script(lambda s: steadily(60)), engine)
    assert Code.STUCK in witness.codes("stale")
    assert witness.states[-1] == "running"
    assert summary.dropped_by["slot"] > 5, "the frames of that time are dropped and counted"


def test_a_network_that_fails_says_so_last(tiny_engine: Engine) -> None:
    def fail(count: int) -> float:
        if count == 5:
            raise EngineError("the device is gone")
        return 0.0

    engine: Any = Slowly(tiny_engine, fail)
    witness = Witness()
    with pytest.raises(EngineError, match="the device is gone"):
        run(Script(lambda s: steadily(60)), engine, [witness], UNCHECKED)
    last = witness.results[-1]
    assert (last.state, last.valid, last.polygons) == ("error", False, [])
    assert last.causes[0].code is Code.FAILED
    assert witness.wrong == []


def test_a_source_that_ends_for_good_says_so_last(tiny_engine: Engine) -> None:
    def acts(source: Script) -> Iterator[Any]:
        yield from steadily(5)
        raise FreespaceError("camera: gone for 60 s")

    witness = Witness()
    with pytest.raises(FreespaceError, match="gone for 60 s"):
        run(Script(acts), tiny_engine, [witness], UNCHECKED)
    assert (witness.results[-1].state, witness.results[-1].valid) == ("error", False)
    assert witness.results[-1].causes[0].code is Code.ENDED, "it was not the network"


def test_only_the_newest_frame_counts(tiny_engine: Engine) -> None:
    engine: Any = Slowly(tiny_engine, lambda i: 0.05)
    witness, summary = watch(Script(lambda s: steadily(100, 100)), engine)
    assert summary.frames + summary.dropped == 100
    assert summary.dropped_by["slot"] > 30
    seen = [r.seq for r in witness.results if r.latency_ms]
    assert seen == sorted(set(seen))
    assert all(r.dropped == r.seq - i for i, r in enumerate(r for r in witness.results if r.latency_ms))
    assert Code.DROPPING in witness.codes("degraded")


def test_dark_pictures_are_blind_and_carry_nothing(tiny_engine: Engine, tmp_path: Path) -> None:
    dark = np.zeros_like(road_image())

    def acts(source: Script) -> Iterator[Any]:
        yield from steadily(20)
        yield from steadily(20, picture=lambda: cv2.add(dark, RNG.integers(0, 3, dark.shape, np.uint8)))
        yield from steadily(30)

    witness, _ = watch(Script(acts), tiny_engine, SETTINGS)
    blind = [o for o in witness.outputs if o.frame.image.max() < 10]
    assert blind
    assert not any(o.result.valid or o.result.polygons or o.scores.any() for o in blind)
    assert "blind" in witness.states
    assert witness.codes("blind") & {Code.DARK, Code.COVERED}
    assert witness.results[-1].valid


def test_a_frozen_camera_is_blind(tiny_engine: Engine) -> None:
    still = noisy_road()

    def acts(source: Script) -> Iterator[Any]:
        yield from steadily(20)
        yield from steadily(60, picture=lambda: still)
        yield from steadily(20)

    witness, _ = watch(Script(acts), tiny_engine, SETTINGS)
    assert Code.FROZEN in witness.codes("blind")
    assert witness.results[-1].valid


def test_a_slow_output_slows_nothing(tiny_engine: Engine) -> None:
    slow, viewer, quick = Slow(delay_s=0.2), Viewer(delay_s=0.2, lossless=False), Witness()
    summary = run(Script(lambda s: steadily(80)), tiny_engine, [slow, viewer, quick], UNCHECKED)
    assert len(quick.outputs) == summary.frames
    assert len(quick.outputs) + summary.dropped == 80
    assert summary.dropped_by["slot"] < 20
    assert len(slow.outputs) < 60
    assert Code.SINK_DROPPING in quick.codes("degraded")
    assert summary.dropped_by["slow"] > 0
    assert "viewer" not in summary.dropped_by, "it is shown what it has time for"


def test_a_dead_output_leaves_the_others_working(tiny_engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    dead, good = Witness(error=OSError(28, "No space left on device")), Witness()
    with pytest.raises(FreespaceError, match="No space left"):
        run(Script(lambda s: steadily(40)), tiny_engine, [dead, good], UNCHECKED)
    assert good.outputs[-1].frame.seq == 39
    assert Code.SINK_FAILED in good.codes("degraded")
    assert "the others go on" in capfd.readouterr().err


def test_the_last_dead_output_ends_the_run(tiny_engine: Engine) -> None:
    began = time.monotonic()
    with pytest.raises(FreespaceError, match="No space left"):
        run(Script(lambda s: steadily(400)), tiny_engine, [Witness(error=OSError(28, "No space left"))], UNCHECKED)
    assert time.monotonic() - began < 8


def test_numbers_go_on_where_the_last_run_ended(tiny_engine: Engine, tmp_path: Path) -> None:
    seen: list[int] = []
    for _ in range(2):
        witness = Witness()
        run(Script(lambda s: steadily(10)), tiny_engine, [witness, Memory(tmp_path / "state.json")], UNCHECKED)
        seen += [o.result.seq for o in witness.outputs]
    assert seen == sorted(set(seen))
    assert seen[-1] >= 19


def test_a_recording_can_be_run_as_if_it_were_live(tiny_engine: Engine) -> None:
    class Recording(Script):
        def __init__(self) -> None:
            super().__init__(lambda s: steadily(40, 200))
            self.live = False

    latest = UNCHECKED.model_copy(update={"loop": LoopConfig(policy="latest")})
    engine: Any = Slowly(tiny_engine, lambda i: 0.03)
    assert run(Recording(), engine, [], latest).dropped > 5
    engine = Slowly(tiny_engine, lambda i: 0.03)
    assert run(Recording(), engine, [], UNCHECKED).dropped == 0


def test_status_can_be_asked_from_another_thread_throughout(tiny_engine: Engine) -> None:
    source = Script(lambda s: steadily(60, 100))
    monitor = Monitor(source, UNCHECKED.loop, True, "m", "b")
    done, failures = threading.Event(), []

    def ask() -> None:
        while not done.is_set():
            try:
                monitor.status()
            except Exception as error:
                failures.append(error)
                return

    thread = threading.Thread(target=ask)
    thread.start()
    run(source, tiny_engine, [Witness()], UNCHECKED, monitor=monitor)
    done.set()
    thread.join()
    assert failures == []


def test_settings_read_again_do_not_make_a_frozen_camera_valid(tiny_engine: Engine) -> None:
    still, witness = noisy_road(), Witness()

    def acts(source: Script) -> Iterator[Any]:
        yield from steadily(10)
        yield from steadily(80, picture=lambda: still)

    def changed() -> Config | None:
        polygons = SETTINGS.polygons.model_copy(update={"tolerance_px": 0.6})
        return SETTINGS.model_copy(update={"polygons": polygons}) if len(witness.outputs) == 60 else None

    run(Script(acts), tiny_engine, [witness], SETTINGS, changed=changed)
    blind = [r.state == "blind" for r in witness.results]
    assert any(blind)
    assert all(blind[blind.index(True) :])


def test_every_frame_of_a_live_source_is_judged_by_its_age_too(tiny_engine: Engine) -> None:
    def acts(source: Script) -> Iterator[Any]:
        yield from steadily(10)
        yield 0.5
        yield from steadily(3)

    settings = UNCHECKED.model_copy(update={"loop": LoopConfig(policy="all", budget_ms=BUDGET_MS)})
    witness, _ = watch(Script(acts), tiny_engine, settings)
    assert witness.states[-3:] == ["running", "stale", "running"]


def test_frames_that_come_too_late_are_said_to(tiny_engine: Engine) -> None:
    class Late(Script):
        def frames(self) -> Iterator[Frame]:
            for frame in super().frames():
                yield replace(frame, grabbed_ns=frame.grabbed_ns - 2 * BUDGET_MS * 1_000_000)

    witness, summary = watch(Late(lambda s: steadily(20)), tiny_engine)
    assert (summary.frames, summary.dropped) == (0, 20)
    assert witness.codes("stale") == {Code.LATE}


def test_a_source_that_is_given_up_is_not_taken_for_the_network(tiny_engine: Engine) -> None:
    def acts(source: Script) -> Iterator[Any]:
        yield from steadily(5)
        source.trouble = Cause(Code.UNREACHABLE, "No route to host.")
        raise FreespaceError("camera: given up after 60 s")

    witness = Witness()
    with pytest.raises(FreespaceError, match="given up"):
        run(Script(acts), tiny_engine, [witness], UNCHECKED)
    assert [cause.code for cause in witness.results[-1].causes] == [Code.UNREACHABLE]


def test_outputs_that_hang_at_the_end_cost_no_other_its_time_and_are_named(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perception.node.SINK_CLOSING_S", 0.3)
    over = threading.Event()

    class Hanging(Witness):
        def close(self) -> None:
            over.wait(20)

    class Closing(Witness):
        closed = 0.0

        def close(self) -> None:
            self.closed = time.monotonic()

    closing = Closing()
    source = Script(lambda s: steadily(5))
    began = time.monotonic()
    with pytest.raises(FreespaceError, match="could not be finished in time"):
        run(source, tiny_engine, [Hanging(), Hanging(), Hanging(), closing], UNCHECKED)
    over.set()
    assert time.monotonic() - began < 0.9 + 0.2
    assert closing.closed


def test_nobody_reading_what_is_said_costs_no_output(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    closed = []

    class Dead(Witness):
        def close(self) -> None:
            closed.append(self)

    good = Witness()
    monkeypatch.setattr(sys, "stderr", Gone())
    with pytest.raises(FreespaceError, match="No space left"):
        run(Script(lambda s: steadily(20)), tiny_engine, [Dead(error=OSError(28, "No space left")), good], UNCHECKED)
    assert closed
    assert good.outputs[-1].frame.seq == 19


def test_the_memory_alone_is_no_output(tiny_engine: Engine, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(FreespaceError, match="No space left"):
        run(
            Script(lambda s: steadily(400)),
            tiny_engine,
            [Witness(error=OSError(28, "No space left")), Memory(tmp_path / "state.json")],
            UNCHECKED,
        )
    assert time.monotonic() - began < 8


def test_a_watchdog_that_fails_ends_the_run(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(monitor: Monitor) -> None:
        raise RuntimeError("no watch is kept")

    monkeypatch.setattr("perception.service.heartbeat", fail)
    with pytest.raises(RuntimeError, match="no watch is kept"):
        run(Script(lambda s: steadily(400)), tiny_engine, [Witness()], UNCHECKED)


def test_after_a_blind_picture_and_in_another_stretch_nothing_is_held(tiny_engine: Engine) -> None:
    pictures = {5: np.zeros_like(road_image())}

    class Stretches(Script):
        def frames(self) -> Iterator[Frame]:
            for seq in range(30):
                picture = pictures.get(seq, noisy_road())
                yield Frame(picture, seq, seq * 40_000_000, "media", "clip", stretch=seq // 20)

    source = Stretches(lambda s: iter(()))
    source.live = False
    settings = Config(health=HealthConfig(clear_s=0.0))
    monitor = Monitor(source, settings.loop, False)
    lookout, interpreter = Lookout(settings.health, False, True), Interpreter(settings, tiny_engine, True, monitor)
    fresh = []
    for frame in source.frames():
        tiny_engine.submit([frame.image])
        held = interpreter.stabiliser
        assert held
        reset, held.reset = held.reset, lambda: fresh.append(frame.seq)  # noqa: B023
        sight: Future[Sight] = Future()
        lookout.fulfil(Sighted(frame, sight))
        interpreter.read(frame, sight, 0, 0)
        held.reset = reset
    assert fresh == [0, 5, 20]


def test_a_window_does_not_go_on_showing_what_was_true(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[NDArray[np.uint8]] = []
    monkeypatch.setenv("DISPLAY", ":0")
    for name, fake in {
        "namedWindow": lambda *_: None,
        "imshow": lambda _, image: shown.append(image),
        "waitKey": lambda _: -1,
        "getWindowProperty": lambda *_: 1.0,
        "destroyWindow": lambda _: None,
    }.items():
        monkeypatch.setattr(cv2, name, fake)

    def acts(source: Script) -> Iterator[Any]:
        yield from steadily(10)
        yield 0.5

    summary = run(Script(acts), tiny_engine, [WindowSink()], UNCHECKED)
    assert len(shown) > summary.frames
    assert shown[-1].mean() < 0.6 * shown[0].mean()


# -- As a service ------------------------------------------------------------------------------------------------------


def start(*arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "perception.cli", "run", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    )


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def lines(path: Path) -> list[dict[str, Any]]:
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    found = path if path.exists() else part
    return [json.loads(line) for line in found.read_text().splitlines() if line.endswith("}")] if found.exists() else []


@pytest.fixture(scope="module")
def drive() -> str:
    return "synthetic://drive?seconds=60&size=320x180"


def test_a_service_reports_reloads_and_ends(tmp_path: Path, tiny_model: Path, drive: str) -> None:
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(str(tmp_path / "notify"))
    heard.settimeout(20)
    settings, out = tmp_path / "settings.yaml", tmp_path / "out.jsonl"
    plain = f"engine: {{model: {tiny_model}, backend: onnxruntime}}\nhealth: {{enabled: false}}\n"
    settings.write_text(plain)
    process = start(
        drive, "--realtime", "--config", str(settings), "--polygons", str(out), env={"NOTIFY_SOCKET": str(tmp_path / "notify")}
    )
    try:
        assert heard.recv(1000) == b"READY=1"
        beat = heard.recv(1000).decode()
        assert beat.startswith("WATCHDOG=1\nSTATUS=")
        wait_until(lambda: len(lines(out)) > 3)
        assert {p["plane"] for line in lines(out) for p in line["polygons"]} <= {"freespace"}
        settings.write_text("polygons: {plane: nonsense}\n")
        process.send_signal(signal.SIGHUP)
        while not (message := heard.recv(1000)).startswith(b"RELOADING=1\nMONOTONIC_USEC="):
            assert message.startswith(b"WATCHDOG=1")
        count = len(lines(out))
        wait_until(lambda: len(lines(out)) > count + 3)
        settings.write_text(plain + "polygons: {min_region: 1.0}\n")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: lines(out)[-1]["polygons"] == [])
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "settings stay as they are" in stderr
    assert "settings read again: polygons changed" in stderr
    assert "interrupted after" in stdout
    assert out.exists(), "the file got its name"
    messages = []
    heard.settimeout(0.2)
    try:
        while True:
            messages.append(heard.recv(1000))
    except TimeoutError:
        pass
    assert messages[-1] == b"STOPPING=1"


def test_hangup_without_settings_ends_cleanly(tmp_path: Path, tiny_model: Path, drive: str) -> None:
    out = tmp_path / "out.jsonl"
    process = start(drive, "--realtime", "--model", str(tiny_model), "--backend", "onnxruntime", "--polygons", str(out))
    try:
        wait_until(lambda: len(lines(out)) > 2)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out.exists()
