"""Servers on loopback that send pictures as cameras do, and fail as cameras do: stopped, frozen, garbled, slowed.

Every picture carries the moment at which it was made: its upper half is a row of black and white blocks, the bits of a
millisecond count, which `age_ms` reads back, also after lossy compression. Its lower half is noise, for the compression to have
something that can break.
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

    server = HttpServer(Handler, "video.mjpg")
    server.start()
    try:
        yield server
    finally:
        server.thaw()
        server.stop()


@contextmanager
def file_server(folder: Path) -> Iterator[HttpServer]:
    """The files of ``folder`` over HTTP, ``server.url`` ending with a slash."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            server.running.wait()
            super().do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    server = HttpServer(functools.partial(Handler, directory=str(folder)), "")
    server.start()
    try:
        yield server
    finally:
        server.thaw()
        server.stop()


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
port, fps, width, height, bits, key_every, user, password = sys.argv[1:]
fps, width, height, bits = int(fps), int(width), int(height), int(bits)


def picture():
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
    f"caps=video/x-raw,format=GRAY8,width={width},height={height},framerate={fps}/1 ! videoconvert ! video/x-raw,format=I420 "
    f"! x264enc tune=zerolatency speed-preset=ultrafast bitrate=2000 key-int-max={key_every} "
    f"! rtph264pay name=pay0 pt=96 config-interval=-1 )"
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

    def __init__(self, fps: int, key_every: int, user: str, password: str) -> None:
        self.port = free_port()
        self.url = f"rtsp://127.0.0.1:{self.port}/camera"
        self._arguments = [fps, WIDTH, HEIGHT, BITS, key_every, user, password]
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
def rtsp_server(fps: int = 25, key_every: int = 12, user: str = "", password: str = "") -> Iterator[RtspServer]:
    """H.264 of `clock_image`'s kind over RTSP, by GStreamer; ask `rtsp_missing` first."""
    server = RtspServer(fps, key_every, user, password)
    try:
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
                if garbled and self.flips:
                    data = bytes(
                        byte ^ self._chance.randrange(1, 256) if self._chance.random() < self.flips / 1e6 else byte
                        for byte in data
                    )
                target.sendall(data)
                if self.bytes_per_s < float("inf"):
                    time.sleep(len(data) / self.bytes_per_s)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _garbled(self, data: bytes) -> bytes:
        return bytes(b ^ self._chance.randrange(1, 256) if self._chance.random() < self.flips / 1e6 else b for b in data)

    def close(self) -> None:
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
