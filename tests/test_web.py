"""The web page against real clients: plain HTTP, sockets that misbehave, and a real browser."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from conftest import Image, make_output
from test_birdseye import calibrated, grounded, measured, region
from test_birdseye import invalid as without_ground

from perception.causes import Cause, Code
from perception.errors import BadInput
from perception.freespace import Distance, Freespace, Polygon
from perception.sinks import Output
from perception.status import Status

if TYPE_CHECKING:
    from perception.sinks.web import WebSink

MISSING = "the extra 'web' is not installed"
web = pytest.importorskip("perception.sinks.web", reason=MISSING)
server = pytest.importorskip("perception.sinks.server", reason=MISSING)

TOKEN = "a-token-that-is-long-enough"
RUNNING = Status("running", (), True, frames=7, fps=29.5, age_ms=12.0, source="rtsp://camera/1", uptime_s=61.0)
BROKEN = Cause(Code.DISCONNECTED, "The camera broke off 3 s ago.")
STALE = replace(RUNNING, state="stale", valid=False, causes=(BROKEN,), age_ms=3000.0)
BLACK = np.zeros((720, 1280, 3), np.uint8)


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FREESPACE_TOKEN", raising=False)


@dataclass
class Site:
    """A page, and the status that it is told."""

    status: Status = RUNNING
    sinks: list[WebSink] = field(default_factory=list)

    def open(self, address: str = "127.0.0.1:0", token: str | None = None, **options: Any) -> WebSink:
        self.sinks.append(web.WebSink(address, token, lambda: self.status, **options))
        return self.sinks[-1]

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()


@pytest.fixture
def site() -> Iterator[Site]:
    with closing(Site()) as made:
        yield made


def port_of(sink: WebSink) -> int:
    return int(sink.server.address.rpartition(":")[2])


def ask(sink: WebSink, path: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and body; underscores in ``headers`` stand for dashes. Redirections are not followed."""
    with closing(http.client.HTTPConnection("127.0.0.1", port_of(sink), timeout=10)) as connection:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def decoded(jpeg: bytes) -> Image:
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image, np.uint8)


def right_half(image: Image, number: int = 0) -> Output:
    """``image`` with its right half drivable."""
    output = make_output(image, number)
    height, width = image.shape[:2]
    x, bottom, right = width / 2 - 0.5, height - 0.5, width - 0.5
    polygon = Polygon("freespace", True, 0.9, 1.0, np.array([[x, bottom], [right, bottom], [right, -0.5], [x, -0.5]]))
    return replace(output, result=replace(output.result, polygons=[polygon]))


def invalid(output: Output) -> Freespace:
    return replace(output.result, valid=False, polygons=[], state="stale", causes=[BROKEN])


def wait_for(condition: Callable[[], object], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.02)


class Stream:
    """A reader of ``/stream.mjpg``."""

    def __init__(self, sink: WebSink) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port_of(sink), timeout=10)
        self.connection.request("GET", "/stream.mjpg")
        self.answer = self.connection.getresponse()
        self.boundary = b"--" + (self.answer.getheader("Content-Type") or "").partition("boundary=")[2].encode()

    def read(self) -> tuple[int, Image]:
        """Number and picture of the next part."""
        assert self.answer.readline().strip() == self.boundary
        fields = http.client.parse_headers(self.answer)
        assert fields["Content-Type"] == "image/jpeg"
        picture = decoded(self.answer.read(int(fields["Content-Length"])))
        assert self.answer.readline() == b"\r\n"
        return int(fields["X-Picture"]), picture

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


def unread(sink: WebSink, path: str = "/stream.mjpg") -> socket.socket:
    """A client that asks and never reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port_of(sink)))
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return client


# -- What is answered ----------------------------------------------------------------------------------------------


def test_before_the_first_result_there_is_nothing_to_show(site: Site) -> None:
    site.status = Status()
    sink = site.open()
    assert [ask(sink, path)[0] for path in ("/overlay.jpg", "/polygons.json", "/healthz")] == [503, 503, 503]
    assert json.loads(ask(sink, "/status.json")[2])["state"] == "starting"
    assert ask(sink, "/")[1]["Content-Type"].startswith("text/html")
    assert ask(sink, "/elsewhere")[0] == 404


def test_the_status_is_the_one_that_is_told(site: Site) -> None:
    site.status = replace(STALE, latency_ms={"total": {50: 8.5, 99: 12.0}}, dropped={"slot": 3}, source="caf\udce9.mp4")
    said = json.loads(ask(site.open(), "/status.json")[2])
    assert said["causes"] == [{"code": "source_disconnected", "text": BROKEN.text}]
    assert said["latency_ms"] == {"total": {"50": 8.5, "99": 12.0}}
    assert (said["valid"], said["dropped"], said["age_ms"], said["source"]) == (False, {"slot": 3}, 3000.0, "caf\udce9.mp4")


def test_the_overlay_shows_the_polygons_where_they_are(site: Site) -> None:
    sink = site.open()
    sink.write(right_half(BLACK))
    code, headers, jpeg = ask(sink, "/overlay.jpg")
    picture = decoded(jpeg)
    assert (code, headers["Content-Type"], picture.shape) == (200, "image/jpeg", (540, 960, 3))
    assert float(headers["X-Age-Ms"]) < 5000
    rows = picture[100:500].astype(float)  # below the caption; the border is at column 480
    np.testing.assert_allclose(rows[:, 40:470].mean(axis=(0, 1)), (0, 0, 0), atol=2)
    np.testing.assert_allclose(rows[:, 490:940].mean(axis=(0, 1)), 0.4 * np.array([80, 200, 60]), atol=3)


def test_small_pictures_keep_their_size(site: Site) -> None:
    sink = site.open()
    sink.write(make_output(np.zeros((240, 320, 3), np.uint8)))
    assert decoded(ask(sink, "/overlay.jpg")[2]).shape == (240, 320, 3)


def test_the_newest_result_is_there_as_it_was_written(site: Site) -> None:
    sink = site.open()
    for number in range(3):
        sink.write(right_half(BLACK, number))
    assert ask(sink, "/polygons.json")[2].decode() == right_half(BLACK, 2).result.to_json()
    assert ask(sink, "/healthz")[0] == 200


def test_a_result_that_was_good_once_is_not_handed_out_when_the_run_is_not(site: Site) -> None:
    """As when the loop itself hangs: the last thing it said is that all was well."""
    sink = site.open(rate_hz=50)
    sink.write(right_half(np.full((720, 1280, 3), (0, 0, 250), np.uint8)))
    assert Freespace.from_json(ask(sink, "/polygons.json")[2].decode()).valid
    before = ask(sink, "/overlay.jpg")
    site.status = STALE
    result = Freespace.from_json(ask(sink, "/polygons.json")[2].decode())
    assert (result.valid, result.state, result.polygons, result.causes) == (False, "stale", [], [BROKEN])
    code, _, health = ask(sink, "/healthz")
    assert (code, json.loads(health)["causes"]) == (503, [BROKEN.to_dict()])
    time.sleep(0.05)
    after = ask(sink, "/overlay.jpg")
    assert after[1]["X-Picture"] != before[1]["X-Picture"]
    assert decoded(before[2]).std(axis=2).mean() > 20
    assert decoded(after[2]).std(axis=2).max() <= 2, "an old picture is shown in colour, as if it were live"


def test_ground_that_was_free_once_is_not_handed_out_either(site: Site) -> None:
    sink = site.open()
    sink.write(grounded(calibrated()))
    assert json.loads(ask(sink, "/polygons.json")[2])["ground"]["area_m2"] > 50
    site.status = STALE
    assert Freespace.from_json(ask(sink, "/polygons.json")[2].decode()).ground is None


def test_the_vehicle_is_known_with_a_calibrated_camera(site: Site) -> None:
    sink = site.open()
    assert json.loads(ask(sink, "/vehicle.json")[2]) is None
    sink.write(make_output(BLACK))
    assert json.loads(ask(sink, "/vehicle.json")[2]) is None
    sink.write(grounded(calibrated(yaw=0.2, bumper_m=3.5, vehicle_width_m=1.8)))
    assert json.loads(ask(sink, "/vehicle.json")[2]) == {"width_m": 1.8, "bumper_m": 3.5, "camera_yaw": 0.2}


def test_the_overlay_shows_the_ground_from_above(site: Site) -> None:
    sink = site.open()
    made = grounded(calibrated())
    sink.write(make_output(made.frame.image))
    sink.write(made)
    picture = decoded(ask(sink, "/overlay.jpg")[2]).astype(int)
    green = picture[..., 1] - picture[..., 2] > 40
    assert green[6:204, 540:634].sum() > 300, "in the corner, where the sky is"
    assert green[6:100, :500].sum() == 0


def test_a_report_without_a_frame_makes_the_picture_grey(site: Site) -> None:
    sink = site.open(rate_hz=50)
    output = right_half(np.full((720, 1280, 3), (0, 0, 250), np.uint8))
    sink.write(output)
    sink.write_without_frame(invalid(output))
    picture = decoded(ask(sink, "/overlay.jpg")[2]).astype(float)
    assert picture.std(axis=2).max() <= 2
    # Red is 0.299 * 250 in grey, darkened to 0.6 of it, and the right half no longer looks drivable
    np.testing.assert_allclose(picture[100:, :470].mean(), 0.6 * 75, atol=2)
    np.testing.assert_allclose(picture[100:, 490:].mean(), 0.6 * 75, atol=2)
    assert ask(sink, "/polygons.json")[2].decode() == invalid(output).to_json()
    sink.write(output)
    time.sleep(0.05)
    assert decoded(ask(sink, "/overlay.jpg")[2]).std(axis=2).mean() > 20


def test_waiting_for_another_picture(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "LONGEST_WAIT_S", 0.3)
    sink = site.open(rate_hz=50)
    assert ask(sink, "/overlay.jpg?after=")[0] == 204
    sink.write(make_output(BLACK, 0))
    number = ask(sink, "/overlay.jpg?after=")[1]["X-Picture"]
    assert ask(sink, f"/overlay.jpg?after={number}")[0] == 204
    later = threading.Timer(0.1, sink.write, [make_output(BLACK, 1)])
    later.start()
    code, headers, _ = ask(sink, f"/overlay.jpg?after={number}")
    assert (code, headers["X-Picture"] != number) == (200, True)


def test_the_stream_shows_each_picture_once(site: Site) -> None:
    sink = site.open(rate_hz=50)
    sink.write(make_output(np.full((64, 64, 3), 10, np.uint8), 0))
    with closing(Stream(sink)) as stream:
        for level in (10, 90, 170):
            number, picture = stream.read()
            assert abs(picture[40:].mean() - level * 0.6 - np.mean([80, 200, 60]) * 0.4) < 3
            sink.write(make_output(np.full((64, 64, 3), level + 80, np.uint8), level))
    assert number == 3


def test_head_of_the_stream_ends(site: Site) -> None:
    code, headers, body = ask(site.open(), "/stream.mjpg", "HEAD")
    assert (code, body) == (200, b"")
    assert headers["Content-Type"].startswith("multipart/x-mixed-replace")


# -- What it costs -------------------------------------------------------------------------------------------------


def test_nothing_is_painted_for_nobody_and_once_for_all(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    painted = []

    def counting(*arguments: Any) -> bytes:
        painted.append(time.monotonic())
        return paint(*arguments)

    paint = web.paint
    monkeypatch.setattr(web, "paint", counting)
    sink = site.open(rate_hz=20)
    for number in range(50):
        sink.write(make_output(BLACK, number))
    assert painted == []
    streams = [Stream(sink) for _ in range(4)]
    seen: list[list[int]] = [[] for _ in streams]

    def watch(i: int) -> None:
        with suppress(AssertionError, OSError, http.client.HTTPException), closing(streams[i]) as stream:
            while True:
                seen[i].append(stream.read()[0])

    threads = [threading.Thread(target=watch, args=[i]) for i in range(len(streams))]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    while time.monotonic() < began + 1.5:
        sink.write(make_output(BLACK, 0))
        time.sleep(0.005)
    sink.close()
    for thread in threads:
        thread.join(5)
    assert len(painted) <= 1.5 * 20 + 2, "more pictures than ticks"
    assert min(map(len, seen)) > 0.5 * len(painted), "a watcher got less than half of the pictures"


def test_who_never_reads_delays_nobody(site: Site) -> None:
    sink = site.open(rate_hz=100)
    noise = np.random.default_rng(0).integers(0, 255, (720, 1280, 3), np.uint8)  # half a megabyte each
    sink.write(make_output(noise))
    with closing(unread(sink)), closing(unread(sink)), closing(Stream(sink)) as stream:
        costs, numbers = [], []
        for number in range(200):
            began = time.perf_counter()
            sink.write(make_output(noise, number))
            costs.append(time.perf_counter() - began)
            if number % 20 == 0:
                numbers.append(stream.read()[0])
            time.sleep(0.002)
        assert np.percentile(costs, 95) < 0.003
        assert len(set(numbers)) == len(numbers)
        began = time.monotonic()
        sink.close()
        assert time.monotonic() - began < 2.0
    assert not any(thread.name == "http" and thread.is_alive() for thread in threading.enumerate())


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system cannot let such clients go")
def test_who_never_reads_is_let_go(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "UNREAD_MS", 300)
    sink = site.open(rate_hz=100, watchers=1)
    noise = np.random.default_rng(0).integers(0, 255, (720, 1280, 3), np.uint8)
    with closing(unread(sink)):
        wait_for(lambda: sink._watchers.full)
        assert ask(sink, "/stream.mjpg")[0] == 503
        began = time.monotonic()
        while sink._watchers.full:
            sink.write(make_output(noise))
            time.sleep(0.02)
            assert time.monotonic() - began < 8


def test_watchers_are_few(site: Site) -> None:
    sink = site.open(watchers=2)
    sink.write(make_output(BLACK))
    first, second = Stream(sink), Stream(sink)
    with closing(second):
        assert ask(sink, "/stream.mjpg")[0] == 503
        assert ask(sink, "/overlay.jpg?after=")[0] == 503
        assert ask(sink, "/overlay.jpg")[0] == 200, "it waits for nothing"
        first.close()
        wait_for(lambda: not sink._watchers.full)
        with closing(Stream(sink)) as third:
            assert third.answer.status == 200


def test_connections_are_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 3)
    sink = site.open()
    idle = [socket.create_connection(("127.0.0.1", port_of(sink)), timeout=5) for _ in range(3)]
    time.sleep(0.2)
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(sink, "/status.json")
    for client in idle:
        client.close()
    time.sleep(0.2)
    assert ask(sink, "/status.json")[0] == 200


# -- Who may ask ---------------------------------------------------------------------------------------------------


def test_only_reading(site: Site) -> None:
    sink = site.open()
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        code, headers, _ = ask(sink, "/status.json", method)
        assert (code, headers["Allow"]) == (405, "GET, HEAD")


def test_foreign_names_are_refused_on_loopback(site: Site) -> None:
    sink = site.open()
    for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "10.0.0.5", "0.0.0.0", "", "[", "::1]"):
        assert ask(sink, "/status.json", Host=host)[0] in (400, 421), host  # 400 where it is no name at all
    for host in ("localhost", "LOCALHOST:9", "127.0.0.1:8080", "127.0.0.9", "[::1]:8080"):
        assert ask(sink, "/status.json", Host=host)[0] == 200, host


def test_other_pages_cannot_show_it(site: Site) -> None:
    sink = site.open()
    for where in ("cross-site", "same-site"):
        assert ask(sink, "/overlay.jpg", Sec_Fetch_Site=where, Sec_Fetch_Mode="no-cors")[0] == 403
        assert ask(sink, "/", Sec_Fetch_Site=where, Sec_Fetch_Mode="navigate")[0] == 200, "a link to it"
    assert ask(sink, "/status.json", Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="cors")[0] == 200


def test_every_answer_is_guarded(site: Site) -> None:
    sink = site.open("127.0.0.1:0", TOKEN)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    for path, method, given in (
        ("/", "GET", bearer),
        ("/elsewhere", "GET", bearer),
        ("/overlay.jpg", "GET", bearer),
        ("/", "POST", bearer),
        ("/", "GET", {}),
        (f"/?token={TOKEN}", "GET", {}),
    ):
        _, headers, _ = ask(sink, path, method, **given)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert not [name for name in headers if name.lower().startswith("access-control") or name.lower() == "server"]


def test_others_need_the_token(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    sink = site.open("0.0.0.0:0", TOKEN)
    paths = ("/", "/overlay.jpg", "/stream.mjpg", "/polygons.json", "/status.json", "/healthz", "/metrics", "/elsewhere")
    for path in paths:
        code, headers, body = ask(sink, path)
        assert (code, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert TOKEN.encode() not in body
    for wrong in (TOKEN[:-1], TOKEN + "x", "", "\xe9"):
        assert ask(sink, "/status.json", Authorization=f"Bearer {wrong}")[0] == 401
    assert ask(sink, "/status.json", Authorization=f"Basic {TOKEN}")[0] == 401
    assert ask(sink, "/status.json", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask(sink, "/status.json", Authorization=f"Bearer {TOKEN}", Host="car.example")[0] == 200
    ask(sink, f"/?token={TOKEN}")
    sink.close()
    assert TOKEN not in "".join(capfd.readouterr())


def test_a_token_in_the_address_becomes_a_cookie(site: Site) -> None:
    sink = site.open("0.0.0.0:0", TOKEN)
    code, headers, body = ask(sink, f"/status.json?a=1&token={TOKEN}&b=%26")
    cookie, *attributes = (part.strip() for part in headers["Set-Cookie"].split(";"))
    assert (code, headers["Location"]) == (303, "/status.json?a=1&b=%26")
    assert {"httponly", "samesite=strict", "path=/"} <= {attribute.lower() for attribute in attributes}
    assert TOKEN not in str(headers) + body.decode()
    assert ask(sink, "/status.json", Cookie=cookie)[0] == 200
    assert ask(sink, "/status.json", Cookie=cookie[:-1])[0] == 401
    assert ask(sink, "/status.json", Cookie=f"{cookie.partition('=')[0]}={TOKEN}")[0] == 401
    for wrong in ("?token=", "?token=wrong", f"?token={TOKEN}x"):
        code, headers, _ = ask(sink, f"/{wrong}", Cookie=cookie)
        assert (code, headers["Set-Cookie"]) == (401, None)


def test_the_redirection_stays_on_this_machine(site: Site) -> None:
    assert ask(site.open("0.0.0.0:0", TOKEN), f"//evil.example/?token={TOKEN}")[1]["Location"] == "/evil.example/"


def test_another_token_ends_old_cookies(site: Site) -> None:
    sink = site.open("0.0.0.0:0", TOKEN)
    cookie = ask(sink, f"/?token={TOKEN}")[1]["Set-Cookie"].partition(";")[0]
    sink.close()
    same, other = site.open(sink.server.address, TOKEN), None
    assert ask(same, "/", Cookie=cookie)[0] == 200, "a restart must not end it"
    same.close()
    other = site.open(sink.server.address, TOKEN + "2")
    assert ask(other, "/", Cookie=cookie)[0] == 401


def test_the_token_from_the_environment(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREESPACE_TOKEN", TOKEN)
    sink = site.open()
    assert ask(sink, "/status.json")[0] == 401, "who sets one wants it asked for, on this machine as well"
    assert ask(sink, "/status.json", Authorization=f"Bearer {TOKEN}")[0] == 200


def test_no_token_no_other_address(site: Site) -> None:
    with pytest.raises(BadInput, match=r"needs a token.*FREESPACE_TOKEN.*secrets\.token_urlsafe"):
        site.open("0.0.0.0:0")


@pytest.mark.parametrize("token", ["brief", "with spaces in it, but long", "schlüssel-schlüssel", "x" * 300])
def test_tokens_that_would_not_do(site: Site, token: str) -> None:
    with pytest.raises(BadInput, match=r"secrets\.token_urlsafe") as caught:
        site.open("127.0.0.1:0", token)
    assert token not in str(caught.value)


@pytest.mark.parametrize("address", ["8080", ":8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000", "h:٣", ""])
def test_what_is_no_address(site: Site, address: str) -> None:
    with pytest.raises(BadInput, match="HOST:PORT"):
        site.open(address)


def test_addresses_that_cannot_be_had(site: Site) -> None:
    taken = site.open()
    with pytest.raises(BadInput, match=r"(?i)--serve 127\.0\.0\.1:\d+: cannot listen there: address already in use"):
        site.open(taken.server.address)
    with pytest.raises(BadInput, match="cannot listen there"):
        site.open("192.0.2.1:8080", TOKEN)  # of no machine
    with pytest.raises(BadInput, match="no machine is called"):
        site.open("no-such-machine.invalid:8080")


def test_ipv6(site: Site) -> None:
    try:
        sink = site.open("[::1]:0")
    except BadInput:
        pytest.skip("no IPv6 here")
    with closing(http.client.HTTPConnection("::1", port_of(sink), timeout=5)) as connection:
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
    assert urlsplit(sink.server.url).hostname == "::1"


# -- How it begins, fails and ends -----------------------------------------------------------------------------------


def test_signals_stay_with_the_program(site: Site) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert ask(site.open(), "/healthz")[0] == 200
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_fails_is_said_once(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> Status:
        raise RuntimeError("no status")

    sink = web.WebSink("127.0.0.1:0", None, fail)
    site.sinks.append(sink)
    assert [ask(sink, "/status.json")[0] for _ in range(3)] == [500] * 3
    assert ask(sink, "/")[0] == 200
    told = capfd.readouterr().err.splitlines()[1:]  # the first says where the page is
    assert told == ["freespace: /status.json: cannot be answered: RuntimeError: no status"]


def test_it_says_where_it_is(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    sink = site.open()
    assert capfd.readouterr().err == f"freespace: web page at http://127.0.0.1:{port_of(sink)}/\n"


def test_closing_with_watchers(site: Site) -> None:
    sink = site.open()
    sink.write(make_output(BLACK))
    streams = [Stream(sink) for _ in range(3)]
    with closing(unread(sink, "/overlay.jpg?after=1")), closing(socket.create_connection(("127.0.0.1", port_of(sink)))):
        time.sleep(0.2)
        began = time.monotonic()
        sink.close()
        assert time.monotonic() - began < 2.0
    for stream in streams:
        assert stream.answer.read().endswith(stream.boundary + b"\r\n"), "the answer is not whole"
        stream.close()
    again = site.open(sink.server.address)
    assert port_of(again) == port_of(sink)


# -- In a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=390,844")
    for flag in (*flags, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    chrome.set_page_load_timeout(20)
    try:
        yield chrome
    finally:
        chrome.quit()


class Feed(threading.Thread):
    """Writes pictures of changing grey until it is paused."""

    def __init__(self, sink: WebSink) -> None:
        super().__init__(daemon=True)
        self.sink, self.paused, self.ended = sink, False, False

    def run(self) -> None:
        number = 0
        while not self.ended:
            if not self.paused:
                self.sink.write(make_output(np.full((360, 640, 3), 20 + number % 200, np.uint8), number))
                number += 1
            time.sleep(0.03)


def test_the_page_in_a_browser(site: Site, browser: Any) -> None:
    sink = site.open("127.0.0.1:0", TOKEN)
    feed = Feed(sink)
    feed.start()

    def text(name: str) -> str:
        return str(browser.execute_script("return document.getElementById(arguments[0]).innerText", name))

    def shown(name: str) -> bool:
        return bool(browser.execute_script("return document.getElementById(arguments[0]).checkVisibility()", name))

    def colour() -> str:
        return str(browser.execute_script("return getComputedStyle(document.getElementById('badge')).backgroundColor"))

    def picture() -> tuple[str, int]:
        return tuple(browser.execute_script("const p = document.getElementById('picture'); return [p.src, p.naturalWidth]"))

    try:
        browser.get(f"{sink.server.url}?token={TOKEN}")
        assert browser.current_url == sink.server.url, "the token stays in the address"
        wait_for(lambda: text("state") == "RUNNING")
        wait_for(lambda: picture()[1] == 640)
        first = picture()[0]
        wait_for(lambda: picture()[0] != first)
        assert text("fps") == "29.5"
        assert text("source") == "rtsp://camera/1"
        assert (text("causes"), shown("banner"), browser.title) == ("", False, "RUNNING · Freespace")
        green = colour()

        sentence = "<b>Half</b> of the frames were dropped."
        site.status = replace(RUNNING, state="degraded", causes=(Cause(Code.DROPPING, sentence),))
        wait_for(lambda: text("state") == "DEGRADED")
        assert sentence in text("causes"), "it is to be shown as text"
        assert not shown("banner")
        assert colour() != green

        feed.paused, site.status = True, STALE
        wait_for(lambda: text("state") == "STALE")
        assert BROKEN.text in text("causes")
        assert shown("banner")
        assert text("verdict") == "NO VALID RESULT"
        wait_for(lambda: "s old" in text("age"))
        wait_for(lambda: "old" in browser.find_element("id", "view").get_attribute("class"))

        feed.paused, site.status = False, RUNNING
        wait_for(lambda: text("state") == "RUNNING" and not shown("banner"))
        entries = [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        assert entries == []

        sink.close()
        wait_for(lambda: text("state") == "CONNECTION LOST")
        assert text("verdict") == "CONNECTION LOST"
        assert "old" in browser.find_element("id", "view").get_attribute("class")
        stopped = picture()[0]

        feed.sink = site.open(sink.server.address, TOKEN)  # as a restarted program would
        wait_for(lambda: text("state") == "RUNNING" and not shown("banner") and picture()[0] != stopped)

        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        hosts = {urlsplit(url).netloc for url in asked if urlsplit(url).scheme.startswith("http")}
        assert hosts == {sink.server.address}
        size = "return [document.documentElement.scrollWidth, innerWidth]"
        width, room = browser.execute_script(size)
        assert width <= room, "the page is wider than a phone"
    finally:
        feed.ended = True
        feed.join(5)


def colours(browser: Any, points: list[tuple[float, float]]) -> list[tuple[int, ...]]:
    """RGBA of the page's map at points of the ground: 15 m to the left and right, from 60 m ahead to 1 m behind the origin."""
    script = """
        const map = document.getElementById('above'), scale = map.width / 30, c = map.getContext('2d');
        return arguments[0].map(([x, y]) => [...c.getImageData((15 - y) * scale, (60 - x) * scale, 1, 1).data]);
    """
    return [tuple(colour) for colour in browser.execute_script(script, points)]


def test_the_ground_in_a_browser(site: Site, browser: Any) -> None:
    """Drawn by the page from the numbers of the newest result; gone as soon as that does not hold any more."""
    metres = calibrated(bumper_m=2.0)
    made = grounded(
        metres, [region(metres, (2, 30), (-3, 3), ((14.0, 18.0), (-1.0, 1.0))), region(metres, (40, 50), (5, 9), ego=False)]
    )
    assert made.result.ground is not None
    widths, area = made.result.ground.widths, made.result.ground.area_m2
    ahead = replace(made.result.ground, ahead=Distance(12.04, 10.96, float("inf")))
    sink = site.open()

    def text(name: str) -> str:
        return str(browser.execute_script("return document.getElementById(arguments[0]).innerText", name))

    def shown() -> bool:
        return bool(browser.execute_script("return document.getElementById('ground').checkVisibility()"))

    browser.get(sink.server.url)
    wait_for(lambda: text("state") == "RUNNING")
    browser.get_log("browser")  # of the page before
    sink.write(make_output(BLACK))
    time.sleep(0.5)
    assert not shown(), "there is no calibration"
    feed = threading.Event()

    def write() -> None:
        while not feed.wait(0.05):
            sink.write(replace(made, result=replace(made.result, ground=ahead)))

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        wait_for(shown)
        wait_for(lambda: text("ahead") == "12.0 m")
        assert text("ahead-range") == "ahead (11.0 or more)"
        assert text("area") == f"{area:.0f} m²"
        assert (widths[1].left_m, widths[1].right_m) == pytest.approx((3, -3), abs=0.02)
        assert (widths[0].left_ends, widths[1].left_ends) == (False, True), "nearby the picture ends before the road does"
        assert text("widths").split("\n") == [
            "5 m\t" + f"{widths[0].left_m - widths[0].right_m:.1f} m or more",
            "10 m\t6.0 m",
            "20 m\t6.0 m",
            "30 m\tnone",
        ]
        free, hole, beyond, aside, other = colours(browser, [(8, 2), (16, 0.5), (35, 2), (25, 8), (43, 7)])
        assert free == pytest.approx((60, 200, 80, 102), abs=3)
        assert other == pytest.approx((230, 180, 40, 102), abs=3)
        assert [colour[3] for colour in (hole, beyond, aside)] == [0, 0, 0]
        bar, vehicle = colours(browser, [(22, 0), (1, 0.5)])
        assert bar[:3] == pytest.approx((217, 70, 239), abs=3)
        assert vehicle[3] == 255
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
        wait_for(lambda: sum(colours(browser, [(1, 0.5)])[0][:3]) > 600)
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
        )
        wait_for(lambda: sum(colours(browser, [(1, 0.5)])[0][:3]) < 200)
        width, room = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert width <= room

        site.status = STALE
        wait_for(lambda: text("ahead") == "–")
        assert (text("area"), text("widths").strip()) == ("–", "")
        assert colours(browser, [(8, 2), (22, 0)]) == [(0, 0, 0, 0)] * 2, "it must not look free"
        site.status = RUNNING
        wait_for(lambda: text("ahead") == "12.0 m")
        feed.set()
        writer.join()
        sink.write_without_frame(without_ground(made.result))
        wait_for(lambda: text("ahead") == "–")
        sink.write(replace(made, result=replace(made.result, ground=measured())))
        wait_for(lambda: text("ahead-range") == "ahead: not all of the way is seen")
        entries = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert entries == []
        sink.close()
        wait_for(lambda: text("state") == "CONNECTION LOST")
        assert text("area") == "–"
    finally:
        feed.set()


def test_a_server_that_hangs_is_noticed(site: Site, browser: Any) -> None:
    hang = threading.Event()

    def status() -> Status:
        if hang.is_set():
            time.sleep(3)
        return RUNNING

    sink = web.WebSink("127.0.0.1:0", None, status)
    site.sinks.append(sink)
    browser.get(sink.server.url)
    wait_for(lambda: browser.title == "RUNNING · Freespace")
    hang.set()
    wait_for(lambda: browser.title == "CONNECTION LOST · Freespace", 8)
    hang.clear()
    wait_for(lambda: browser.title == "RUNNING · Freespace", 8)
