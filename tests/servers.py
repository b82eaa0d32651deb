"""Servers on loopback that send pictures as cameras do, and fail as cameras do: stopped, frozen, garbled, slowed.

Every picture carries the moment at which it was made: the upper half of `clock_image` is a row of black and white blocks, the
bits of a millisecond count, which `age_ms` reads back, also after lossy compression. Its lower half is noise, for the
compression to have something that can break. `clock_road` is the same for whoever sees only results: its bits are drivable to
the model of ``conftest.write_model``, so that `made_at` reads the time from polygons.
"""

from __future__ import annotations

import functools
import http.server
import os
import random
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

BITS = 16
WIDTH, HEIGHT = 320, 64
ROAD_BITS, ROAD_TICK_S = 15, 0.004  # they come round after 131 s
ROAD_HEIGHT, SKY, MIDDLE = 160, 40, 100  # rows: the sky ends, the second line of bits begins
SYSTEM_PYTHON = "/usr/bin/python3"
START_TIMEOUT_S = 20.0


def clock_image(number: int = 0) -> Image:
    """uint8 BGR ``(64, 320, 3)`` that says when it was made."""
    now_ms = int(time.time() * 1000) % (1 << BITS)
    row = np.repeat([255 * (now_ms >> bit & 1) for bit in range(BITS)], WIDTH // BITS)
    noise = np.random.default_rng(number).integers(60, 200, (HEIGHT // 2, WIDTH))
    return np.repeat(np.vstack([np.tile(row, (HEIGHT // 2, 1)), noise])[..., None], 3, axis=2).astype(np.uint8)


def age_ms(image: Image, stamp_ns: int | None = None) -> float:
    """How long before ``stamp_ns`` (Unix time; by default now) the picture was made; below zero where the stamp is older."""
    blocks = image[4 : HEIGHT // 2 - 4].mean(axis=(0, 2)).reshape(BITS, -1).mean(axis=1)
    made = sum(int(level > 128) << bit for bit, level in enumerate(blocks))
    stamp = (time.time_ns() if stamp_ns is None else stamp_ns) / 1e6
    return (stamp - made + (1 << (BITS - 1))) % (1 << BITS) - (1 << (BITS - 1))


@functools.cache
def road_with(level: int, scene: int = 0) -> Image:
    """uint8 BGR ``(160, 320, 3)``: below a sky two lines of 16 blocks, the lower ones drivable where the bit is ``level``, the
    upper ones where it is not. They differ in red alone, so that they are the same scene to `perception.pictures`. Grey on top
    changes nothing, and leaves no part without anything to see."""
    image = np.full((ROAD_HEIGHT, WIDTH, 3), (0, 120, 200), np.uint8)
    image[MIDDLE:, :, 2] = 0 if level else 200
    image[SKY:MIDDLE, :, 2] = 200 if level else 0
    things = np.random.default_rng(scene).integers(0, 50, (ROAD_HEIGHT // 4, WIDTH // 4, 1), np.uint8)
    return image + np.repeat(np.repeat(things, 4, 0), 4, 1)


def clock_road(number: int = 0, other_scene: bool = False) -> Image:
    """A road that says when it was made; in the other scene everything that was drivable is not, and it looks otherwise."""
    ticks = int(time.time() / ROAD_TICK_S) % (1 << ROAD_BITS)
    bits = ticks ^ (1 << BITS) - 1 if other_scene else ticks  # the highest says which scene it is
    column = WIDTH // BITS
    blocks = [road_with(bits >> bit & 1, int(other_scene))[:, bit * column : (bit + 1) * column] for bit in range(BITS)]
    return np.concatenate(blocks, axis=1)


def made_at(rings: Sequence[tuple[Image, Sequence[Image]]], about_s: float) -> float | None:
    """Unix time at which the `clock_road` with these outlines (exterior, holes) was made, in the 131 s around ``about_s``;
    None where that cannot be read: it is no such picture, or not a whole one."""
    canvas = np.zeros((ROAD_HEIGHT, WIDTH), np.uint8)
    for exterior, holes in rings:
        cv2.fillPoly(canvas, [np.asarray(ring, np.float64).round().astype(np.int32) for ring in (exterior, *holes)], 1)
    columns = (np.arange(BITS) * 2 + 1) * WIDTH // BITS // 2
    upper, lower = (canvas[(a + b) // 2, columns].astype(bool) for a, b in ((SKY, MIDDLE), (MIDDLE, ROAD_HEIGHT)))
    if (upper == lower).any() or canvas[: SKY // 2].any():
        return None
    bits = sum(int(bit) << place for place, bit in enumerate(lower))
    ticks = bits ^ (1 << BITS) - 1 if bits >> ROAD_BITS else bits
    period_s = ROAD_TICK_S * (1 << ROAD_BITS)
    return about_s - (about_s - ticks * ROAD_TICK_S + period_s / 2) % period_s + period_s / 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- MJPEG and files over HTTP -----------------------------------------------------------------------------------------


class HttpServer:
    """A server in this process. ``stop`` breaks off what is being sent; ``start`` comes back under the same address."""

    def __init__(self, handler: Callable[..., socketserver.BaseRequestHandler], path: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/{path}"
        self.running = threading.Event()  # cleared: nothing more is sent, the connections stay
        self._handler = handler
        self._server: Listener | None = None

    def start(self) -> None:
        self.running.set()
        self._server = Listener(("127.0.0.1", self.port), self._handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            server.cut()

    def freeze(self) -> None:
        self.running.clear()

    def thaw(self) -> None:
        self.running.set()


class Listener(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, *arguments: object) -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(*arguments)  # type: ignore[arg-type]

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        self._connections.add(request)
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is nothing to report."""

    def cut(self) -> None:
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serving(server: HttpServer) -> Iterator[HttpServer]:
    """``server`` at work."""
    server.start()
    try:
        yield server
    finally:
        server.thaw()
        server.stop()


@contextmanager
def mjpeg_server(
    frames: Sequence[Image] | Callable[[int], Image] = clock_image,
    fps: float = 25.0,
    garble: Callable[[int, bytes], bytes] = lambda number, jpeg: jpeg,
) -> Iterator[HttpServer]:
    """``multipart/x-mixed-replace`` of ``frames`` (in a circle, or made by a function of the picture's number).

    Args:
        garble: what is sent instead of picture ``number``'s JPEG.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            due = time.perf_counter()
            for number in range(1 << 30):
                server.running.wait()
                image = frames(number) if callable(frames) else frames[number % len(frames)]
                jpeg = garble(number, cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
                header = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(header.encode() + jpeg + b"\r\n")
                due = max(due + 1 / fps, time.perf_counter() - 1 / fps)
                time.sleep(max(0.0, due - time.perf_counter()))

        def log_message(self, *arguments: object) -> None:
            pass

    with serving(HttpServer(Handler, "video.mjpg")) as server:
        yield server


@contextmanager
def file_server(folder: Path) -> Iterator[HttpServer]:
    """The files of ``folder`` over HTTP, ``server.url`` ending with a slash."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            server.running.wait()
            super().do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    with serving(HttpServer(functools.partial(Handler, directory=str(folder)), "")) as server:
        yield server


# -- RTSP --------------------------------------------------------------------------------------------------------------

RTSP_SCRIPT = """
import os, sys, time
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer

Gst.init(None)
if sys.argv[1:] == ["--check"]:
    sys.exit(0 if all(map(Gst.ElementFactory.find, ("appsrc", "x264enc", "rtph264pay"))) else 1)
port, fps, width, height, bits, key_every, user, password, config_every, road, road_bits, road_tick_s = sys.argv[1:]
fps, width, height, bits, road_bits = int(fps), int(width), int(height), int(bits), int(road_bits)
pixel_format = "BGR" if road else "GRAY8"
if road:
    size, column = 3 * width, 3 * width // bits
    data = open(road, "rb").read()
    rows = [data[start:start + size] for start in range(0, len(data), size)]
    levels = rows[:height], rows[height:]


def picture():
    if road:
        ticks = int(time.time() / float(road_tick_s)) % (1 << road_bits)
        return b"".join(
            levels[ticks >> bit & 1][y][bit * column:(bit + 1) * column] for y in range(height) for bit in range(bits)
        )
    now = int(time.time() * 1000) % (1 << bits)
    row = b"".join(bytes([255 * (now >> bit & 1)]) * (width // bits) for bit in range(bits))
    noise = bytes(60 + value // 2 for value in os.urandom(width * 4)) * (height // 8)
    return row * (height // 2) + noise


def configure(factory, media):
    source = media.get_element().get_child_by_name("source")

    def push():
        return source.emit("push-buffer", Gst.Buffer.new_wrapped(picture())) == Gst.FlowReturn.OK

    timer = GLib.timeout_add(1000 // fps, push)
    media.connect("unprepared", lambda media: GLib.source_remove(timer))


server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(port)
factory = GstRtspServer.RTSPMediaFactory()
factory.set_shared(True)
factory.set_launch(
    f"( appsrc name=source is-live=true do-timestamp=true format=time "
    f"caps=video/x-raw,format={pixel_format},width={width},height={height},framerate={fps}/1 ! videoconvert "
    f"! video/x-raw,format=I420 ! x264enc tune=zerolatency speed-preset=ultrafast bitrate=2000 key-int-max={key_every} "
    f"! rtph264pay name=pay0 pt=96 config-interval={config_every} )"
)
factory.connect("media-configure", configure)
if user:
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_permission_for_role("user", "media.factory.access", True)
    permissions.add_permission_for_role("user", "media.factory.construct", True)
    factory.set_permissions(permissions)
server.get_mount_points().add_factory("/camera", factory)
assert server.attach(None)
print("ready", flush=True)
GLib.MainLoop().run()
"""


@functools.cache
def rtsp_missing() -> str:
    """Why there can be no RTSP server here; empty where there can."""
    with suppress(OSError, subprocess.TimeoutExpired):
        command = [SYSTEM_PYTHON, "-c", RTSP_SCRIPT, "--check"]
        if not subprocess.run(command, capture_output=True, timeout=START_TIMEOUT_S, check=False).returncode:
            return ""
    return f"no GStreamer RTSP server with H.264 for {SYSTEM_PYTHON}"


class RtspServer:
    """A server in a process of its own, at ``rtsp://127.0.0.1:PORT/camera``, which the methods stop, freeze and start."""

    def __init__(self, fps: int, key_every: int, user: str, password: str, config_every: int, road: str) -> None:
        self.port = free_port()
        self.url = f"rtsp://127.0.0.1:{self.port}/camera"
        height = ROAD_HEIGHT if road else HEIGHT
        size, code = (WIDTH, height, BITS), (road, ROAD_BITS, ROAD_TICK_S)
        self._arguments = [fps, *size, key_every, user, password, config_every, *code]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [SYSTEM_PYTHON, "-c", RTSP_SCRIPT, str(self.port), *map(str, self._arguments)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        watchdog = threading.Timer(START_TIMEOUT_S, self._process.kill)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        assert line == "ready\n", "the RTSP server did not start"

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(timeout=5)
            assert process.stdout is not None
            process.stdout.close()

    def freeze(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)


@contextmanager
def rtsp_server(
    fps: int = 25,
    key_every: int = 12,
    user: str = "",
    password: str = "",
    roads: bool = False,
    config_every: int = 1,
    begin: bool = True,
) -> Iterator[RtspServer]:
    """H.264 of the kind of `clock_image`, or of `clock_road`, over RTSP, by GStreamer; ask `rtsp_missing` first.

    Args:
        config_every: seconds after which parameter sets are repeated; -1: before every slice of a key frame, which H.264 does
            not allow.
    """
    with tempfile.NamedTemporaryFile(suffix=".bgr") as levels:
        if roads:
            levels.write(road_with(0).tobytes() + road_with(1).tobytes())
            levels.flush()
        server = RtspServer(fps, key_every, user, password, config_every, levels.name if roads else "")
        try:
            if begin:
                server.start()
            yield server
        finally:
            server.stop()


# -- A bad line in between ---------------------------------------------------------------------------------------------


class Proxy:
    """Passes connections on to a server, as badly as asked: ``flips`` is how many of a million bytes towards the client are
    garbled, ``bytes_per_s`` how many pass at most, ``hang`` lets nothing pass while it is set."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.flips = 0.0
        self.bytes_per_s = float("inf")
        self.hang = threading.Event()
        self._target = target
        self._chance = random.Random(1)
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self._open: list[socket.socket] = [self._listening]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                self._open += [client, server]
                threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, garbled: bool) -> None:
        with suppress(OSError):
            while data := source.recv(4096):
                while self.hang.is_set():
                    time.sleep(0.01)
                target.sendall(self._garbled(data) if garbled and self.flips else data)
                if self.bytes_per_s < float("inf"):
                    time.sleep(len(data) / self.bytes_per_s)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _garbled(self, data: bytes) -> bytes:
        return bytes(b ^ self._chance.randrange(1, 256) if self._chance.random() < self.flips / 1e6 else b for b in data)

    def cut(self) -> None:
        """Break off the connections there are."""
        for end in self._open[1:]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.hang.clear()
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def proxy_to(target: int) -> Iterator[Proxy]:
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.close()


if __name__ == "__main__":  # something to look at: python tests/servers.py
    with mjpeg_server() as shown:
        print(shown.url, file=sys.stderr)
        time.sleep(3600)
