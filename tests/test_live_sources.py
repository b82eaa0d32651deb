"""Cameras and streams: what is opened again, what is never shown, and what an address never gives away."""

from __future__ import annotations

import gc
import os
import random
import socket
import string
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import av
import av.codec.hwaccel
import cv2
import numpy as np
import pytest
from conftest import FASTSTART, numbered_video
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from servers import (
    SYSTEM_PYTHON,
    age_ms,
    clock_image,
    file_server,
    free_port,
    mjpeg_server,
    proxy_to,
    rtsp_missing,
    rtsp_server,
)

from perception.capture import Selection, Source, camera, gstreamer, open_source, stream
from perception.capture import live as live_module
from perception.capture.live import MOST_PROBLEMS, MOST_STUCK, Attempt, Connection, Ended, Grab, LiveSource, Lost, pause
from perception.capture.stream import Lag, StreamConnection
from perception.capture.uri import Address, parse, redacted
from perception.causes import Code
from perception.config import CaptureConfig
from perception.errors import BadInput, FreespaceError
from perception.frame import Frame

QUICK: dict[str, Any] = {"open_timeout_s": 0.4, "read_timeout_s": 0.1, "retry_first_s": 0.01, "retry_longest_s": 0.04}
RECOVERY_S = 2.0
SETTINGS = CaptureConfig(retry_longest_s=1.5)  # and up to half a second to open it
PICTURE = np.zeros((4, 6, 3), np.uint8)


def soon(condition: Callable[[], object], within_s: float = 5.0) -> float:
    """Seconds until ``condition`` held."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < within_s, "it never came about"
        time.sleep(0.002)
    return time.monotonic() - begun


# -- A connection that does as it is told ------------------------------------------------------------------------------


class Script(Connection):
    """Plays ``steps``: a Grab, Lost, None or exception is what `read` gives; an event is waited for first."""

    def __init__(self, *steps: object, then: object = None) -> None:
        self.steps = iter(steps)
        self.then = then
        self.closed = False

    def read(self) -> Grab | Lost | None:
        for step in self.steps:
            if isinstance(step, threading.Event):
                step.wait(20)
                continue
            if isinstance(step, BaseException):
                raise step
            return step  # type: ignore[return-value]
        if isinstance(self.then, threading.Event):
            self.then.wait(20)
        raise self.then if isinstance(self.then, Exception) else FreespaceError("it broke off")

    def close(self) -> None:
        self.closed = True


def grab() -> Grab:
    return Grab(PICTURE.copy)


@contextmanager
def live(connect: Callable[[], Connection], **settings: Any) -> Iterator[LiveSource]:
    capture = CaptureConfig(**{**QUICK, **settings})
    with LiveSource(Address("rtsp", "rtsp://host/", "rtsp://host/"), capture, connect, random.Random(1)) as source:
        assert isinstance(source, LiveSource)
        yield source


class Taker(threading.Thread):
    """Takes what `frames` gives; ``error`` is what ended it."""

    def __init__(self, source: Source) -> None:
        super().__init__(daemon=True)
        self.source, self.taken, self.error = source, list[Frame](), None
        self.start()

    def run(self) -> None:
        try:
            for frame in self.source.frames():
                self.taken.append(frame)
        except BaseException as error:
            self.error = error

    def until_more(self, within_s: float = 5.0) -> float:
        count = len(self.taken)
        return soon(lambda: len(self.taken) > count, within_s)

    def finish(self, within_s: float = 1.0) -> None:
        self.join(within_s)
        assert not self.is_alive(), "frames() did not end"


def test_what_waited_while_the_program_stood_still_is_not_taken_for_new() -> None:
    """As after SIGSTOP, or on a machine that swaps: a picture that waited in the driver would get the stamp of now."""
    stay = threading.Event()
    with live(lambda: Script(stay, then=Ended()), read_timeout_s=1, open_timeout_s=5) as source:
        now = time.monotonic()
        assert source._take(Attempt(now - 10, now - 9, now - 0.5), grab())
        with pytest.raises(TimeoutError):
            source._take(Attempt(now - 10, now - 9, now - 1.5), grab())
        stay.set()


def test_frames_say_which_of_them_follow_each_other() -> None:
    def grabs() -> Iterator[Grab]:
        for _ in range(5):
            time.sleep(0.01)
            yield grab()
        raise FreespaceError("broke off")

    with live(lambda: Slow(grabs())) as source:
        taker = Taker(source)
        soon(lambda: source.reconnections >= 2)
        stretches = [frame.stretch for frame in taker.taken]
        assert stretches == sorted(stretches)
        assert {0, 1} <= set(stretches)


# -- Newest wins -------------------------------------------------------------------------------------------------------


def test_the_newest_picture_wins_and_the_others_are_counted() -> None:
    go, taken, stay = threading.Event(), threading.Event(), threading.Event()
    script = Script(go, grab(), taken, *(grab() for _ in range(9)), stay, then=Ended())
    with live(lambda: script, read_timeout_s=5, open_timeout_s=5) as source:
        frames = source.frames()
        threading.Timer(0.05, go.set).start()
        assert next(frames).seq == 0
        taken.set()
        soon(lambda: source.dropped == 8)  # one is taken, one waits
        newest = next(frames)
        assert newest.seq == 9
        assert newest.dropped == 8
        stay.set()
        assert list(frames) == []
        assert source.trouble is not None
        assert source.trouble.code is Code.ENDED


def test_a_frame_is_stamped_when_the_grab_returned_not_when_it_was_taken() -> None:
    go, stay = threading.Event(), threading.Event()
    grabbed = Grab(lambda: (time.sleep(0.1), PICTURE)[1], decode_ms=3.0)
    with live(lambda: Script(go, grabbed, stay, then=Ended()), read_timeout_s=5, open_timeout_s=5) as source:
        threading.Timer(0.05, go.set).start()
        frame = next(source.frames())
        assert (frame.stamp_ns, frame.grabbed_ns, frame.clock) == (grabbed.stamp_ns, grabbed.grabbed_ns, "system")
        assert abs(time.time_ns() - frame.stamp_ns) < 10e9
        assert frame.decode_ms >= 103
        stay.set()


def test_every_takes_one_of_so_many_and_duration_ends_it() -> None:
    def connect() -> Connection:
        return Script(*(Grab(PICTURE.copy, i, i * 10**8) for i in range(30)), then=Ended())

    with live(connect, every=3) as source:
        taker = Taker(source)
        soon(lambda: source.trouble is not None and source.trouble.code is Code.ENDED)
        taker.finish()
        assert all(frame.seq % 3 == 0 for frame in taker.taken)

    def slowly() -> Iterator[Grab]:
        for i in range(30):
            time.sleep(0.005)
            yield Grab(PICTURE.copy, i, i * 10**8)

    with live(lambda: Slow(slowly()), duration_s=1.0) as source:
        taker = Taker(source)
        taker.finish()
        assert taker.taken[-1].grabbed_ns - taker.taken[0].grabbed_ns < 10**9


class Slow(Connection):
    def __init__(self, grabs: Iterator[Grab]) -> None:
        self.grabs = grabs

    def read(self) -> Grab:
        try:
            return next(self.grabs)
        except StopIteration:
            raise Ended from None

    def close(self) -> None:
        pass


def ticking(period_s: float = 0.005, count: int = 1 << 30) -> Slow:
    """A camera that works."""

    def grabs() -> Iterator[Grab]:
        for _ in range(count):
            time.sleep(period_s)
            yield grab()

    return Slow(grabs())


# -- Opened again ------------------------------------------------------------------------------------------------------


def test_a_read_that_never_returns_is_left_to_itself() -> None:
    stuck = threading.Event()
    first = Script(*(grab() for _ in range(3)), stuck, grab())
    connections: list[Connection] = []

    def connect() -> Connection:
        connections.append(ticking() if connections else first)
        return connections[-1]

    with live(connect) as source:
        taker = Taker(source)
        soon(lambda: source.reconnections == 1)
        assert any("no picture for 0.1 s" in problem for problem in source.problems)
        taker.until_more()
        assert source.trouble is None
        assert not first.closed
        stuck.set()
        soon(lambda: first.closed)  # by its own thread
        assert len(connections) == 2
        seqs = [frame.seq for frame in taker.taken]
        assert seqs == sorted(set(seqs))


def test_no_more_than_a_few_connections_may_hang() -> None:
    stuck = threading.Event()
    opened = []

    def connect() -> Connection:
        opened.append(1)
        return Script(grab(), stuck)

    with live(connect) as source:
        soon(lambda: source.trouble is not None and "hang in the driver" in source.trouble.text)
        time.sleep(0.2)
        assert len(opened) == MOST_STUCK
        stuck.set()
        soon(lambda: len(opened) > MOST_STUCK)  # there is room again


def test_an_opening_that_hangs_is_tried_again_beside_it() -> None:
    stuck, tries = threading.Event(), []

    def connect() -> Connection:
        tries.append(1)
        if len(tries) == 1:
            stuck.wait(20)
        return ticking()

    with live(connect) as source:
        taker = Taker(source)
        assert source.trouble is not None
        soon(lambda: any("no answer in 0.4 s" in problem for problem in source.problems))
        taker.until_more()
        assert source.trouble is None
        assert source.reconnections == 0  # it had never been open before
        stuck.set()


@pytest.mark.parametrize(
    ("step", "code", "text"),
    [
        (FreespaceError("cable out"), Code.DISCONNECTED, "broke off: cable out"),
        (OSError(5, "Input/output error"), Code.DISCONNECTED, "broke off: Input/output error"),
        (TimeoutError(), Code.STALLED, "no picture for 0.1 s"),
        (cv2.error("what OpenCV says"), Code.DISCONNECTED, "what OpenCV says"),
    ],
)
def test_the_trouble_says_what_happened(step: Exception, code: Code, text: str) -> None:
    away, tries = threading.Event(), []

    def connect() -> Connection:
        tries.append(1)
        if len(tries) > 1:
            away.wait(20)
            return ticking()
        return Script(grab(), step)

    with live(connect, open_timeout_s=10) as source:
        soon(lambda: source.trouble is not None and source.trouble.code is code)
        assert source.trouble is not None
        assert text in source.trouble.text
        assert source.trouble.text.startswith("rtsp://host/: ")
        away.set()
        soon(lambda: source.trouble is None)
        assert source.reconnections == 1


def test_what_cannot_be_opened_yet_is_tried_until_it_can() -> None:
    tries: list[float] = []

    def connect() -> Connection:
        tries.append(time.monotonic())
        if len(tries) < 6:
            raise FreespaceError("connection refused")
        return ticking()

    with live(connect) as source:
        assert source.trouble is not None
        assert source.trouble.code is Code.UNREACHABLE
        Taker(source).until_more()
        gaps = np.diff(tries)
        for number, gap in enumerate(gaps[:5], 1):
            longest = min(0.04, 0.01 * 2 ** (number - 1))
            assert longest / 2 <= gap < longest + 0.1
        assert sum("connection refused" in problem for problem in source.problems) == 1  # said once, not five times


@given(st.integers(1, 10_000), st.floats(0.001, 10), st.floats(0.001, 100), st.integers(0, 1 << 30))
def test_pauses_are_doubled_bounded_and_jittered(failures: int, first: float, longest: float, seed: int) -> None:
    capture = CaptureConfig(retry_first_s=first, retry_longest_s=longest)
    full = longest if failures > 40 else min(longest, first * 2 ** (failures - 1))
    assert full / 2 <= pause(capture, failures, random.Random(seed)) <= full


def test_jitter_spreads_those_who_lost_the_same_camera() -> None:
    capture = CaptureConfig(retry_first_s=1, retry_longest_s=1)
    pauses = [pause(capture, 1, random.Random(seed)) for seed in range(200)]
    counts, _ = np.histogram(pauses, 5, (0.5, 1.0))
    assert counts.min() > 15


def test_a_mistake_is_told_at_once_but_only_before_anything_worked() -> None:
    def never() -> Connection:
        raise BadInput("no such device")

    with pytest.raises(BadInput, match="no such device"), live(never):
        pass

    tries = []

    def unplugged() -> Connection:
        tries.append(1)
        if len(tries) in (2, 3):
            raise BadInput("rtsp://host/: no such device")
        return Script(grab()) if len(tries) == 1 else ticking()

    with live(unplugged) as source:
        soon(lambda: len(tries) == 4)
        soon(lambda: source.trouble is None)
        assert "rtsp://host/: cannot be opened: no such device" in source.problems


def test_it_gives_up_when_told_to() -> None:
    def connect() -> Connection:
        raise FreespaceError("connection refused")

    begun = time.monotonic()
    with live(connect, give_up_s=0.3) as source:
        with pytest.raises(FreespaceError, match=r"connection refused; given up after 0\.3 s"):
            list(source.frames())
        assert 0.29 < time.monotonic() - begun < 2


def test_it_gives_up_on_a_source_that_hangs() -> None:
    stuck = threading.Event()
    with live(lambda: Script(stuck), give_up_s=0.3, read_timeout_s=5, open_timeout_s=5) as source:
        with pytest.raises(FreespaceError, match="given up"):
            list(source.frames())
        stuck.set()


@pytest.mark.parametrize("where", ["read", "open", "pause"])
def test_close_ends_it_from_another_thread(where: str) -> None:
    stuck = threading.Event()

    def connect() -> Connection:
        if where == "open":
            stuck.wait(20)
        if where == "pause":
            raise FreespaceError("connection refused")
        return Script(stuck)

    capture = {
        "open_timeout_s": 0.1 if where == "open" else 30,
        "read_timeout_s": 30,
        "retry_first_s": 30,
        "retry_longest_s": 30,
    }
    with live(connect, **capture) as source:
        taker = Taker(source)
        time.sleep(0.05)
        source.close()
        taker.finish(within_s=1.0)
        assert taker.error is None
        source.close()
    stuck.set()


# -- What cannot be decoded --------------------------------------------------------------------------------------------


def test_what_cannot_be_decoded_is_counted_and_never_shown() -> None:
    def broken() -> np.ndarray:
        raise ValueError("no picture in it")

    ready, end = threading.Event(), threading.Event()
    steps = [ready, Lost("bits missing"), Lost("bits missing"), grab(), end]
    with live(lambda: Script(*steps, then=Ended()), read_timeout_s=5, open_timeout_s=5) as source:
        taker = Taker(source)
        time.sleep(0.02)
        ready.set()
        taker.until_more()
        assert [frame.seq for frame in taker.taken] == [2]
        assert (source.dropped, taker.taken[0].dropped) == (2, 2)
        assert source.problems == ["rtsp://host/: a picture could not be decoded: bits missing"]
        end.set()
    stay = threading.Event()
    with live(lambda: Script(stay, Grab(broken), then=Ended()), read_timeout_s=5, open_timeout_s=5) as source:
        frames = Taker(source)
        threading.Timer(0.05, stay.set).start()
        soon(lambda: source.problems)
        frames.finish()
        assert frames.taken == []
        assert source.dropped == 1
        assert "no picture in it" in source.problems[0]


def test_data_without_pictures_are_trouble_and_begun_anew() -> None:
    class Undecodable(Connection):
        def read(self) -> None:
            time.sleep(0.005)

        def close(self) -> None:
            pass

    opened = []

    def connect() -> Connection:
        opened.append(time.monotonic())
        return Undecodable()

    with live(connect) as source:
        soon(lambda: source.trouble is not None and source.trouble.code is Code.CORRUPT)
        assert len(opened) == 1  # a key frame may yet come
        soon(lambda: len(opened) == 2)
        assert opened[1] - opened[0] > 2 * QUICK["open_timeout_s"]


def test_problems_are_bounded_and_hold_no_credentials() -> None:
    tries = []
    address = Address("rtsp", "rtsp://me:hunter2@host/", "rtsp://host/")

    def connect() -> Connection:
        tries.append(1)
        return Script(grab(), FreespaceError(f"'rtsp://me:hunter2@host/' said {len(tries)} to hunter2"))

    with LiveSource(address, CaptureConfig(**{**QUICK, "retry_first_s": 1e-4, "retry_longest_s": 1e-4}), connect) as source:
        soon(lambda: len(tries) > MOST_PROBLEMS)
        assert 0 < len(source.problems) <= MOST_PROBLEMS
        assert not any("hunter2" in problem for problem in source.problems)
        assert any("said" in problem for problem in source.problems)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_a_hundred_reconnections_leave_nothing_behind() -> None:
    """Over HTTP, each broken off by the server after a few pictures."""

    def short(number: int) -> np.ndarray:
        if number == 2:
            raise ConnectionError
        return clock_image(number)

    settings, before = CaptureConfig(retry_first_s=1e-3, retry_longest_s=2e-3), set(threading.enumerate())
    with mjpeg_server(short, fps=500) as server, open_source(server.url, settings) as source:
        taker = Taker(source)
        soon(lambda: source.reconnections > 5)
        gc.collect()
        files, threads = open_files(), threading.active_count()
        soon(lambda: source.reconnections > 105, within_s=20)
        gc.collect()
        assert open_files() <= files + 4  # one connection more or less on its way, at both ends
        assert threading.active_count() <= threads + 4
        assert sum(isinstance(thing, StreamConnection) for thing in gc.get_objects()) <= 2
        source.close()
        taker.finish()
    soon(lambda: not [thread for thread in set(threading.enumerate()) - before if thread.name in ("live", "grab")])


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_server_that_takes_the_call_and_says_nothing(scheme: str) -> None:
    """Its connections are given up one after the other, and none stays open."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        address = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/x"
        settings = CaptureConfig(open_timeout_s=0.2, retry_first_s=0.01, retry_longest_s=0.01)
        before = set(threading.enumerate())
        with open_source(address, settings) as source:
            soon(lambda: source.trouble is not None and source.trouble.code is Code.UNREACHABLE)
            assert source.trouble is not None
            assert source.trouble.text == f"{address}: cannot be opened: no answer in 0.2 s"
            time.sleep(1.0)
            assert len(set(threading.enumerate()) - before) <= 1 + MOST_STUCK
        soon(lambda: not [t for t in set(threading.enumerate()) - before if t.name == "grab"])


def test_hardware_that_does_not_start_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hardware:
        def __init__(self, name: str, **options: bool) -> None:
            self.name = name

        def create(self, codec: object) -> None:
            if self.name == "cuda":
                raise PermissionError(1, "no driver")

    monkeypatch.setattr(av.codec.hwaccel, "HWAccel", Hardware)
    monkeypatch.setattr(av.codec.hwaccel, "hwdevices_available", lambda: ["cuda", "qsv", "amf"])
    for there, name in (({"cuda", "qsv"}, "qsv"), ({"cuda"}, ""), (set(), "")):
        monkeypatch.setattr(stream, "likely", lambda there=there: there)
        found, hardware = stream.accelerator.__wrapped__()
        assert found == name
        assert (hardware.name if hardware else "") == name


# -- MJPEG, by a real server -------------------------------------------------------------------------------------------


def test_mjpeg_stopped_started_frozen_and_thawed() -> None:
    settings = CaptureConfig(read_timeout_s=0.5, retry_longest_s=1.5, width=640)
    with mjpeg_server(fps=50) as server, open_source(server.url, settings) as source:
        taker = Taker(source)
        soon(lambda: len(taker.taken) > 20)
        errors = [age_ms(frame.image, frame.stamp_ns) for frame in taker.taken]
        assert np.median(errors) < 20
        assert min(errors) > -2  # no stamp is older than its picture
        assert "mjpeg" in source.detail
        assert source.problems == [f"{server.url}: width 640 was asked for, 320 comes"]
        server.stop()
        soon(lambda: source.trouble is not None)
        time.sleep(0.5)
        assert source.trouble is not None
        assert source.trouble.code is Code.UNREACHABLE
        server.start()
        assert taker.until_more() < RECOVERY_S
        server.freeze()
        soon(lambda: source.trouble is not None and source.trouble.code is Code.STALLED)
        server.thaw()
        assert taker.until_more() < RECOVERY_S
        assert source.trouble is None
        assert source.reconnections >= 2
        stamps = [frame.stamp_ns for frame in taker.taken]
        assert stamps == sorted(set(stamps))
        made = [frame.stamp_ns / 1e6 - age_ms(frame.image, frame.stamp_ns) for frame in taker.taken]
        assert min(np.diff(made)) > 0  # none was shown twice
        source.close()
        taker.finish()


def test_broken_jpegs_are_not_shown() -> None:
    def garble(number: int, jpeg: bytes) -> bytes:
        return jpeg[: len(jpeg) // 2] if number % 3 == 0 else jpeg

    with mjpeg_server(fps=50, garble=garble) as server, open_source(server.url, CaptureConfig()) as source:
        taker = Taker(source)
        soon(lambda: len(taker.taken) > 20)
        assert source.dropped >= 8
        for frame in taker.taken:
            assert frame.image[40:].std() > 20  # the noise below, which a broken picture ends before
            assert frame.image[-8:].std() > 20
        source.close()
        taker.finish()


# -- RTSP, by a real server --------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(rtsp_missing()), reason=rtsp_missing() or "there is one")
def test_rtsp_with_a_password_stopped_started_frozen_and_thawed() -> None:
    with rtsp_server(user="me", password="pa/ss@wörd") as server:
        url = server.url.replace("//", f"//me:{quote('pa/ss@wörd', safe='')}@")
        with open_source(url, SETTINGS) as source:
            assert source.uri == server.url
            taker = Taker(source)
            soon(lambda: len(taker.taken) > 30)
            errors = [age_ms(frame.image, frame.stamp_ns) for frame in taker.taken]
            assert np.median(errors) < 30
            assert min(errors) > -10
            assert {frame.image.shape for frame in taker.taken} == {(64, 320, 3)}
            server.stop()
            soon(lambda: source.trouble is not None)
            server.start()
            assert taker.until_more() < RECOVERY_S
            server.freeze()
            soon(lambda: source.trouble is not None and source.trouble.code is Code.STALLED)
            server.thaw()
            assert taker.until_more() < RECOVERY_S
            said = [source.uri, source.detail, *source.problems, *(frame.source for frame in taker.taken)]
            secret = ("pa/ss", "pa%2F", "wörd", "w%C3", "me:", "@")
            assert not [text for text in said for part in secret if part in text]
            begun = time.monotonic()
            source.close()
            taker.finish()
            assert time.monotonic() - begun < 1
        wrong = server.url.replace("//", "//me:hunter2@")
        with open_source(wrong, CaptureConfig()) as source:
            assert source.trouble is not None
            assert source.trouble.code is Code.UNREACHABLE
            assert "401" in source.trouble.text
            assert "hunter2" not in str((source.trouble, source.problems))


@pytest.mark.skipif(bool(rtsp_missing()), reason=rtsp_missing() or "there is one")
def test_rtsp_over_a_bad_line() -> None:
    with rtsp_server(key_every=6) as server, proxy_to(server.port) as line:
        url = server.url.replace(str(server.port), str(line.port))
        with open_source(url, CaptureConfig()) as source:
            taker = Taker(source)
            soon(lambda: len(taker.taken) > 20)
            line.flips = 50.0  # of a million bytes
            soon(lambda: source.dropped > 10, within_s=10)
            line.flips = 0.0
            assert taker.until_more() < RECOVERY_S
            clean = len(taker.taken)
            soon(lambda: len(taker.taken) > clean + 10)
            line.hang.set()
            time.sleep(0.6)  # too short to be given up
            line.hang.clear()
            begun = len(taker.taken)
            soon(lambda: len(taker.taken) > begun + 15)
            # What had piled up is not taken for new: by its own clock no picture is much older than its stamp says.
            errors = [age_ms(frame.image, frame.stamp_ns) for frame in taker.taken[clean:]]
            assert max(errors) < 150
            source.close()
            taker.finish()


def test_the_lag_of_what_piled_up_is_known() -> None:
    """Against arrival times made by hand: a delay of 5 ms, a burst after 400 ms of nothing, and clocks 100 ppm apart."""
    lag = Lag()
    second = 1_000_000_000
    assert lag.late_ns(7 * second, 0) == 0
    assert not lag.caught_up
    assert lag.late_ns(7 * second + 1000, second // 25) == 0  # came with the first one: that had waited
    assert not lag.caught_up
    base = 7 * second + 1000 - second // 25
    assert lag.late_ns(base + 2 * second // 25, 2 * second // 25) == 0
    assert lag.caught_up
    held = base + second
    late = [lag.late_ns(held, media) for media in range(12 * second // 25, second, second // 25)]
    assert late == pytest.approx([second - media for media in range(12 * second // 25, second, second // 25)], abs=2e6)
    assert max(lag.late_ns(base + round(media * 1.0001), media) for media in range(second, 600 * second, second // 25)) < 2e6
    assert lag.late_ns(base + 700 * second, 0) == 0  # the sender began anew


# -- Recordings over HTTP ----------------------------------------------------------------------------------------------


@pytest.fixture
def web_folder(tmp_path: Path) -> Path:
    numbered_video(tmp_path / "clip.mp4", 12, container=FASTSTART)
    (tmp_path / "download").write_bytes((tmp_path / "clip.mp4").read_bytes())
    with av.open(str(tmp_path / "list.m3u8"), "w", format="hls", options={"hls_time": "0.5", "hls_list_size": "0"}) as file:
        stream = file.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 32, "yuv420p", {"g": "10", "preset": "ultrafast"}
        for i in range(24):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 64, 3), 16 + 9 * i, np.uint8), "bgr24")))
        file.mux(stream.encode(None))
    return tmp_path


def test_a_recording_on_a_web_server_is_read_as_one_on_disk(web_folder: Path) -> None:
    with open_source(str(web_folder / "clip.mp4"), Selection(every=2)) as source:
        expected = [(frame.seq, frame.stamp_ns, frame.image.tobytes()) for frame in source.frames()]
    with file_server(web_folder) as server:
        with open_source(server.url + "clip.mp4?token=hunter2", Selection(every=2)) as source:
            assert source.uri == server.url + "clip.mp4?…"
            assert [(frame.seq, frame.stamp_ns, frame.image.tobytes()) for frame in source.frames()] == expected
            assert source.problems == []
        with pytest.raises(BadInput, match="404") as caught:
            open_source(server.url.replace("//", "//me:hunter2@") + "none.mp4")
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("name", "count", "seconds"), [("download", 12, 1.1), ("list.m3u8", 24, 1.15)])
def test_other_recordings_over_http_come_at_their_own_pace_and_end(
    web_folder: Path, name: str, count: int, seconds: float
) -> None:
    with file_server(web_folder) as server, open_source(server.url + name, CaptureConfig()) as source:
        taker = Taker(source)
        taker.finish(within_s=6)
        assert taker.error is None
        assert count - 4 <= len(taker.taken) <= count  # those before one asked are gone
        assert source.trouble is not None
        assert source.trouble.code is Code.ENDED
        took = (taker.taken[-1].grabbed_ns - taker.taken[0].grabbed_ns) / 1e9
        assert took == pytest.approx(seconds - 1 / 20 * (count - len(taker.taken)), abs=0.4)


# -- Recordings as live ------------------------------------------------------------------------------------------------


def test_a_recording_in_real_time_keeps_its_stamps_and_its_pace(tmp_path: Path) -> None:
    clip = str(numbered_video(tmp_path / "clip.mp4", 10))
    with open_source(clip, CaptureConfig(realtime=True)) as source:
        assert source.live
        frames = list(source.frames())
        assert [frame.seq for frame in frames] == list(range(10))
        assert [frame.stamp_ns for frame in frames] == [i * 10**8 for i in range(10)]
        assert {frame.clock for frame in frames} == {"media"}
        due = frames[0].grabbed_ns + np.arange(10) * 10**8
        late = [frame.grabbed_ns for frame in frames] - due
        assert min(late) > -1e6
        assert np.median(late) < 20e6
        assert source.dropped == 0


def test_who_is_too_slow_for_a_recording_in_real_time_loses_frames(tmp_path: Path) -> None:
    clip = str(numbered_video(tmp_path / "clip.mp4", 12))
    with open_source(clip, CaptureConfig(realtime=True)) as source:
        taken = []
        for frame in source.frames():
            taken.append(frame)
            time.sleep(0.25)
        assert 3 <= len(taken) <= 7
        assert source.dropped == 12 - len(taken)
        assert taken[-1].dropped <= source.dropped
        assert taken[-1].seq == 11


def test_a_recording_in_real_time_can_be_closed_and_its_errors_come_out(tmp_path: Path) -> None:
    with open_source("synthetic://drive?size=64x36&seconds=60", CaptureConfig(realtime=True)) as source:
        taker = Taker(source)
        taker.until_more()
        source.close()
        taker.finish()
        assert taker.error is None
    (tmp_path / "broken.png").write_bytes(b"no image")
    with (
        pytest.raises(BadInput, match="cannot be decoded"),
        open_source(str(tmp_path / "broken.png"), CaptureConfig(realtime=True)) as s,
    ):
        list(s.frames())


@pytest.mark.parametrize("settings", [{}, {"start_s": 0.3, "every": 2}])
def test_a_loop_goes_on_counting(tmp_path: Path, settings: dict[str, Any]) -> None:
    clip = str(numbered_video(tmp_path / "clip.mp4", 10))
    with open_source(clip, CaptureConfig(**settings)) as source:
        once = list(source.frames())
    with open_source(clip, CaptureConfig(loop=True, **settings)) as source:
        frames = []
        for frame in source.frames():
            frames.append(frame)
            if len(frames) == 3 * len(once) + 1:
                break
    step = settings.get("every", 1)
    assert [frame.seq for frame in frames] == [once[0].seq + i * step for i in range(len(frames))]
    assert [frame.stamp_ns for frame in frames] == [once[0].stamp_ns + i * step * 10**8 for i in range(len(frames))]
    for index, frame in enumerate(frames):
        assert np.array_equal(frame.image, once[index % len(once)].image)
    assert len({frame.name for frame in frames}) == len(frames)


def test_a_loop_of_nothing_ends(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "b.png").write_bytes(b"no image")
    with open_source(str(tmp_path), CaptureConfig(loop=True)) as source, pytest.raises(FreespaceError, match="no frame"):
        list(source.frames())


# -- Cameras -----------------------------------------------------------------------------------------------------------


class FakeDevice:
    """Does as V4L2 does: takes what it has, and gives what it can."""

    def __init__(self, sizes: dict[str, tuple[int, int]], exposes: bool = True) -> None:
        self.sizes, self.exposes, self.asked = sizes, exposes, list[tuple[int, float]]()
        self.fourcc, self.released, self.opened = "YUYV", False, True
        self.pictures: list[np.ndarray | None] = [np.full((2, 2), 7, np.uint8), None, np.full((2, 2, 4), 9, np.uint8)]
        self.current: np.ndarray | None = None

    def isOpened(self) -> bool:
        return self.opened

    def set(self, setting: int, value: float) -> bool:
        self.asked.append((setting, value))
        if setting == cv2.CAP_PROP_FOURCC:
            self.fourcc = int(value).to_bytes(4, "little").decode()
        return self.exposes or setting != cv2.CAP_PROP_EXPOSURE

    def get(self, setting: int) -> float:
        size = self.sizes[self.fourcc]
        return {
            cv2.CAP_PROP_FRAME_WIDTH: size[0],
            cv2.CAP_PROP_FRAME_HEIGHT: size[1],
            cv2.CAP_PROP_FPS: 29.97,
            cv2.CAP_PROP_FOURCC: int.from_bytes(self.fourcc.encode(), "little"),
        }[setting]

    def grab(self) -> bool:
        if not self.pictures:
            return False
        self.current = self.pictures.pop(0)
        return True

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        return self.current is not None, self.current

    def release(self) -> None:
        self.released = True


def opened_camera(monkeypatch: pytest.MonkeyPatch, device: FakeDevice, **settings: Any) -> Connection:
    monkeypatch.setattr(camera, "check_device", lambda address: None)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *arguments: device)
    return camera.open_camera(parse("0"), CaptureConfig(**settings))


def test_a_camera_is_asked_and_what_it_gives_instead_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice({"YUYV": (640, 480), "MJPG": (1920, 1080)}, exposes=False)
    asked = {"width": 1280, "height": 1080, "fps": 30.0, "pixel_format": "mjpg", "exposure_ms": 8.0}
    connection = opened_camera(monkeypatch, device, **asked)
    assert connection.remarks == (
        "0: width 1280 was asked for, 1920 comes",
        "0: exposure_ms 8.0 was asked for, which cannot be set here",
    )
    assert device.asked[0][0] == cv2.CAP_PROP_FOURCC  # before the size, which depends on it
    assert (cv2.CAP_PROP_EXPOSURE, 80.0) in device.asked  # 100 microseconds each
    assert (cv2.CAP_PROP_AUTO_EXPOSURE, 1) in device.asked
    assert connection.detail == "V4L2 MJPG 1920x1080 at 29.97 FPS"
    grey = connection.read()
    assert isinstance(grey, Grab)
    assert np.array_equal(grey.picture(), np.full((2, 2, 3), 7))
    assert isinstance(connection.read(), Lost)
    with_alpha = connection.read()
    assert isinstance(with_alpha, Grab)
    assert np.array_equal(with_alpha.picture(), np.full((2, 2, 3), 9))
    with pytest.raises(FreespaceError, match="no more"):
        connection.read()
    connection.close()
    assert device.released


def test_a_camera_that_is_none_or_busy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="no such camera as /dev/video97"):
        open_source("97")
    with pytest.raises(BadInput, match="no such camera"):
        open_source("v4l2:///dev/v4l/by-id/none")
    with pytest.raises(BadInput, match="cannot be opened as a camera"):
        open_source("/dev/null")
    with pytest.raises(BadInput, match="is no device"):
        open_source(f"v4l2://{__file__}")
    with pytest.raises(BadInput, match="four letters"):
        opened_camera(monkeypatch, FakeDevice({}), pixel_format="H264!")
    device = FakeDevice({})
    device.opened = False
    with pytest.raises(BadInput, match="another program has it"):
        opened_camera(monkeypatch, device)
    assert device.released


@pytest.mark.parametrize("uri", ["csi://0", "gstreamer://videotestsrc ! rtspsrc user-pw=hunter2"])
def test_an_opencv_without_gstreamer_is_said(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gstreamer, "has_gstreamer", lambda: False)
    with pytest.raises(BadInput, match="needs an OpenCV with GStreamer") as caught:
        open_source(uri)
    assert "hunter2" not in str(caught.value)


def test_pipelines() -> None:
    def pipeline(uri: str, **settings: Any) -> str:
        return gstreamer.pipeline_of(parse(uri), CaptureConfig(**settings))

    sink = "videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
    assert pipeline("gstreamer://videotestsrc !") == f"videotestsrc ! {sink}"
    assert pipeline("gstreamer://v4l2src ! appsink name=mine") == "v4l2src ! appsink name=mine"
    csi = pipeline("csi://1", width=1920, height=1080, fps=29.97, exposure_ms=5)
    assert csi.startswith('nvarguscamerasrc sensor-id=1 exposuretimerange="5000000 5000000" ! video/x-raw(memory:NVMM),')
    assert "width=1920,height=1080,framerate=30000/1001 !" in csi
    assert csi.endswith(sink)
    rtsp = pipeline("rtsp://me:a%22%40b@host:554/x?y=1")
    assert rtsp.startswith('rtspsrc location="rtsp://host:554/x?y=1" user-id="me" user-pw="a\\"@b" protocols=tcp latency=0')


@pytest.mark.skipif(bool(rtsp_missing()), reason=rtsp_missing() or "there is one")
def test_gstreamer_reads_the_password_that_was_meant() -> None:
    password = 'a "b\\c!d é'
    pipeline = gstreamer.pipeline_of(parse(f"rtsp://me:{quote(password, safe='')}@host/x"), CaptureConfig())
    script = (
        "import sys, gi; gi.require_version('Gst', '1.0'); from gi.repository import Gst; Gst.init(None)\n"
        "bin = Gst.parse_bin_from_description(sys.argv[1] + ' name=s', False)\n"
        "s = bin.get_by_name('s'); print(s.props.user_pw, s.props.location, sep='\\n')"
    )
    command = [SYSTEM_PYTHON, "-c", script, pipeline.partition(" !")[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.splitlines() == [password, "rtsp://host/x"]


# -- Addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "kind", "target"),
    [
        ("0", "v4l2", "/dev/video0"),
        ("/dev/video2", "v4l2", "/dev/video2"),
        ("v4l2:///dev/video0", "v4l2", "/dev/video0"),
        ("v4l2://3", "v4l2", "/dev/video3"),
        ("/dev/v4l/by-id/usb-cam", "v4l2", "/dev/v4l/by-id/usb-cam"),
        ("csi://0", "csi", "0"),
        ("RTSP://host/a", "rtsp", "rtsp://host/a"),
        ("rtsps://u:p@host:322/a", "rtsp", "rtsps://u:p@host:322/a"),
        ("http://host:8080/video.mjpg", "stream", "http://host:8080/video.mjpg"),
        ("https://host/live.m3u8?t=1", "stream", "https://host/live.m3u8?t=1"),
        ("https://host/drive.MP4?t=1", "video", "https://host/drive.MP4?t=1"),
        ("rtsp://[::1]:554/a", "rtsp", "rtsp://[::1]:554/a"),
        ("gstreamer://videotestsrc ! x", "gstreamer", "videotestsrc ! x"),
        ("synthetic://curve?size=64x36", "synthetic", "synthetic://curve?size=64x36"),
        ("drive.mp4", "file", "drive.mp4"),
        ("./0", "file", "./0"),
        ("a:b.mp4", "file", "a:b.mp4"),
    ],
)
def test_addresses(uri: str, kind: str, target: str) -> None:
    address = parse(uri)
    assert (address.kind, address.target) == (kind, target)


@pytest.mark.parametrize(
    "uri",
    ["", " ", "\0", "csi://front", "csi://", "v4l2://cam", "gstreamer://", "rtsp://", "rtsp:///a", "http://h:99999/", "http://[/",
     "ftp://h/a", "screen://0", "rtsp://u:a/b@h/x", "rtsp://h h/x"],
)  # fmt: skip
def test_addresses_that_are_none(uri: str) -> None:
    with pytest.raises(BadInput):
        open_source(uri)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://user:pass@host:554/path", "rtsp://host:554/path"),
        ("rtsp://user:p@ss@host/path", "rtsp://host/path"),
        ("http://host/a?token=x&user=y#z", "http://host/a?…"),
        ("rtsp://u:a/b@host/x", "rtsp://…"),
        ("http://host/a?user=me@x.org&pw=abc", "http://…"),
        ("rtsp:/u:secret@host/x", "rtsp:/host/x"),
        ("u:secret@host/x", "…host/x"),
        ("gstreamer://rtspsrc location=rtsp://u:p@h/x user-id=u user-pw=\"a b\" ! x", "gstreamer://rtspsrc location=rtsp://h/x "
         "user-id=… user-pw=… ! x"),
        ("gstreamer://souphttpsrc location='http://u:a b@h/x?k=1' ! x", "gstreamer://souphttpsrc location='http://h/x?…' ! x"),
        ("/data/a@b/c.mp4", "/data/a@b/c.mp4"),
        ("synthetic://curve?size=64x36", "synthetic://curve?size=64x36"),
    ],
)  # fmt: skip
def test_what_is_shown_of_an_address(uri: str, shown: str) -> None:
    assert redacted(uri) == shown


ANY_TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@given(ANY_TEXT, ANY_TEXT, st.sampled_from(["rtsp", "rtsps", "http", "https", "RTSP"]))
@example("me", "p@ss:w/rd?x#y", "rtsp")
@example("a?b", "c@d", "http")
def test_no_user_or_password_is_ever_shown(user: str, password: str, scheme: str) -> None:
    """Whatever they are, what is shown is one of two texts: nothing of them can be in it."""
    for pair in (f"{user}:{password}", f"{quote(user, safe='')}:{quote(password, safe='')}"):
        assert redacted(f"{scheme}://{pair}@host/path?t={pair}") in (f"{scheme}://host/path?…", f"{scheme}://…")
        assert redacted(f"{scheme}://{pair}@host/path") in (f"{scheme}://host/path", f"{scheme}://…")
    encoded = f"{quote(user, safe='')}:{quote(password, safe='')}"
    assert redacted(f"{scheme}://{encoded}@host/path") == f"{scheme}://host/path"


SECRET = st.text(string.ascii_letters + string.digits + "@:%/?#! &=+é", min_size=1, max_size=12).map(lambda text: f"Zq{text}Zq")


@given(SECRET, st.sampled_from(["'{}' refused", 'could not open "{}": 401', "{}: no route", "GET {} HTTP/1.1", "{}"]))
def test_no_password_is_in_a_cleaned_message(password: str, message: str) -> None:
    encoded = quote(password, safe="")
    address = parse(f"rtsp://user:{encoded}@host/path?key={encoded}")
    for secret in (password, encoded):
        for text in (message.format(address.target), message.format(f"user:{secret}"), message.format(secret)):
            cleaned = address.cleaned(text)
            assert password not in cleaned
            assert encoded not in cleaned


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(av, "open", refuse)
    monkeypatch.setattr(live_module, "CLOSING_S", 0.0)


SCHEMES = ["", "v4l2://", "csi://", "rtsp://", "rtsps://", "http://", "https://", "gstreamer://", "synthetic://", "://", "x://"]


@pytest.mark.usefixtures("no_network")
@hypothesis_settings(max_examples=150, deadline=None)
@given(st.sampled_from(SCHEMES), st.text(max_size=30))
@example("", "a\ud800")
@example("http://", "[::1")
@example("rtsp://", "host:٣/")
def test_any_text_is_a_source_or_a_mistake(scheme: str, rest: str) -> None:
    with suppress(BadInput), open_source(scheme + rest, CaptureConfig()) as source:
        assert isinstance(source, Source)


def test_a_live_source_has_no_beginning() -> None:
    with pytest.raises(BadInput, match="cannot begin"):
        open_source(f"rtsp://127.0.0.1:{free_port()}/", CaptureConfig(start_s=1))


def test_nothing_heavy_is_loaded_for_nothing() -> None:
    script = "import sys, perception, perception.capture; print(sorted({'av', 'cv2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"
