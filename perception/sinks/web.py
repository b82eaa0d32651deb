"""A web page with the live overlay and how the run is doing, and the same for programs.

=================  ==========================================================================================
``/``              the page
``/overlay.jpg``   the newest overlay; ``?after=N`` waits for another than number N (204: none came); 503: none yet
``/stream.mjpg``   overlays as they come (``multipart/x-mixed-replace``)
``/vehicle.json``  the vehicle's width and front bumper, the camera's yaw (``base_link``); null if it is not calibrated
``/polygons.json`` the newest result, ``freespace/1``; not valid where the run as a whole is not; 503: none yet
``/status.json``   `perception.status.Status`
``/healthz``       200 while results may be used, else 503 with the causes
``/metrics``       `perception.sinks.metrics`
=================  ==========================================================================================

An overlay is made only when somebody asks for it, at most once a tick, and everybody who asks within that tick gets the same.
So the thread that writes only leaves the newest output behind, and a slow watcher misses pictures but delays nobody.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from engine.preprocess import Resampling, fit, resample
from perception.errors import tell
from perception.freespace import Freespace, Polygon
from perception.overlay import draw, label
from perception.sinks.base import Output, Sink
from perception.sinks.metrics import Metrics
from perception.sinks.server import Server
from perception.status import Status

PAGE = Path(__file__).with_name("page.html")
QUALITY = 75  # of JPEG
LONGEST_WAIT_S = 2.0  # for another picture
BOUNDARY = "next-picture"


@dataclass(frozen=True)
class Picture:
    """One overlay as it is sent.

    Attributes:
        number: another one for each picture.
        grabbed_ns: of its frame, on `time.perf_counter_ns`.
    """

    number: int
    jpeg: bytes
    grabbed_ns: int

    @property
    def headers(self) -> dict[str, str]:
        age_ms = (time.perf_counter_ns() - self.grabbed_ns) / 1e6
        return {"X-Picture": str(self.number), "X-Age-Ms": f"{age_ms:.0f}"}


class WebSink(Sink):
    """Serves the page at ``address``; see `perception.sinks.server.Server` for address, token and what is raised.

    Args:
        status: asked when somebody looks, from other threads.
        width: of the overlay at most, pixels.
        rate_hz: overlays a second at most.
        watchers: how many may wait for pictures at a time.
    """

    lossless = False

    def __init__(
        self,
        address: str,
        token: str | None,
        status: Callable[[], Status],
        width: int = 960,
        rate_hz: float = 10.0,
        watchers: int = 8,
    ) -> None:
        self._status, self._width, self._rate = status, width, rate_hz
        self._watchers = Watchers(watchers)
        self._metrics = Metrics(status)
        self._newest: tuple[int, Output | None, Freespace | None] = (0, None, None)  # the first counts the outputs
        self._painting = threading.Lock()
        self._tick = -1  # at which the picture was looked at
        self._picture: Picture | None = None
        self._shown: object = None  # what is to be seen in it
        self._closing = False
        self._page, self._policy = read_page(PAGE)
        routes = [
            Route("/", self._answer_page),
            Route("/overlay.jpg", self._answer_overlay),
            Route("/stream.mjpg", self._answer_stream),
            Route("/polygons.json", self._answer_polygons),
            Route("/vehicle.json", self._answer_vehicle),
            Route("/status.json", self._answer_status),
            Route("/healthz", self._answer_health),
            Route("/metrics", self._metrics.answer),
        ]
        self.server = Server("--serve", address, token, routes)
        self.target = Path(self.server.address)
        tell(f"web page at {self.server.url}")

    def write(self, output: Output) -> None:
        self._newest = (self._newest[0] + 1, output, output.result)
        self._metrics.observe(output.result)

    def write_without_frame(self, result: Freespace) -> None:
        self._newest = (*self._newest[:2], result)
        self._metrics.observe(result)

    def close(self) -> None:
        self._closing = True
        self.server.close()

    # -- What there is to show -------------------------------------------------------------------------------------

    def result(self) -> Freespace | None:
        """The newest result; not valid where the run as a whole is not, however good it once was."""
        return judged(self._newest[2], self._status())

    def picture(self) -> Picture | None:
        """The newest overlay, at most a tick old; None before the first. While nothing is valid it is grey and says how old.

        From any thread.
        """
        with self._painting:
            tick = int(time.monotonic() * self._rate)
            if tick == self._tick:
                return self._picture
            self._tick = tick
            number, output, newest = self._newest
            result = judged(newest, self._status())
            if output is None or result is None:
                return None
            age_s = (time.perf_counter_ns() - output.frame.grabbed_ns) / 1e9
            shown = (number, None if result.valid else (result.state, int(age_s)))
            if self._picture is None or shown != self._shown:
                jpeg = paint(output, result, age_s, self._width)
                count = self._picture.number + 1 if self._picture else 1
                self._picture, self._shown = Picture(count, jpeg, output.frame.grabbed_ns), shown
            return self._picture

    # -- Answers: those that only look run in a pool of threads, those that wait in the server's loop ----------------

    def _answer_page(self, request: Request) -> Response:
        return HTMLResponse(self._page, headers={"Content-Security-Policy": self._policy})

    def _answer_status(self, request: Request) -> Response:
        return Response(json.dumps(asdict(self._status())), media_type="application/json")

    def _answer_health(self, request: Request) -> Response:
        status = self._status()
        health = {"valid": status.valid, "state": status.state, "causes": [cause.to_dict() for cause in status.causes]}
        return Response(json.dumps(health), 200 if status.valid else 503, media_type="application/json")

    def _answer_polygons(self, request: Request) -> Response:
        result = self.result()
        if result is None:
            return PlainTextResponse("no result yet\n", 503)
        return Response(result.to_json(), media_type="application/json")

    def _answer_vehicle(self, request: Request) -> Response:
        output, vehicle = self._newest[1], None
        if output and output.metres:
            config, mount = output.metres.config, output.metres.camera.mount
            vehicle = {"width_m": config.vehicle_width_m, "bumper_m": config.bumper_m, "camera_yaw": mount.yaw}
        return Response(json.dumps(vehicle), media_type="application/json")

    async def _answer_overlay(self, request: Request) -> Response:
        after = request.query_params.get("after")
        picture = await run_in_threadpool(self.picture)
        if after is not None:
            if self._watchers.full:
                return self._watchers.refusal()
            until = time.monotonic() + LONGEST_WAIT_S
            with self._watchers:
                while picture is None or str(picture.number) == after:
                    if self._closing or time.monotonic() > until or await request.is_disconnected():
                        return Response(status_code=204)
                    await self._next_tick()
                    picture = await run_in_threadpool(self.picture)
        if picture is None:
            return PlainTextResponse("no picture yet\n", 503)
        return Response(picture.jpeg, headers=picture.headers, media_type="image/jpeg")

    async def _answer_stream(self, request: Request) -> Response:
        media_type = f"multipart/x-mixed-replace; boundary={BOUNDARY}"
        if request.method == "HEAD":
            return Response(media_type=media_type)
        if self._watchers.full:
            return self._watchers.refusal()
        return WatchedResponse(self._parts(), self._watchers, media_type)

    async def _parts(self) -> AsyncIterator[bytes]:
        sent = 0
        yield f"--{BOUNDARY}\r\n".encode()
        while not self._closing:
            picture = await run_in_threadpool(self.picture)
            if picture and picture.number != sent:
                sent = picture.number
                fields = {"Content-Type": "image/jpeg", "Content-Length": len(picture.jpeg), **picture.headers}
                head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
                # The boundary comes at once: browsers show a part when they have seen its end.
                yield b"%b\r\n%b\r\n--%b\r\n" % (head.encode(), picture.jpeg, BOUNDARY.encode())
            await self._next_tick()

    async def _next_tick(self) -> None:
        """Everybody wakes at the same moment, so that one picture serves them all."""
        await asyncio.sleep((1 - time.monotonic() * self._rate % 1) / self._rate)


class Watchers:
    """Counts those who wait for pictures, in the server's loop: ``with`` for as long as one does."""

    def __init__(self, most: int) -> None:
        self._most, self._now = most, 0

    @property
    def full(self) -> bool:
        return self._now >= self._most

    def refusal(self) -> Response:
        return PlainTextResponse(f"{self._most} are watching already\n", 503, {"Retry-After": "5"})

    def __enter__(self) -> None:
        self._now += 1

    def __exit__(self, *_: object) -> None:
        self._now -= 1


class WatchedResponse(StreamingResponse):
    """A stream that counts as a watcher until the client leaves or it ends."""

    def __init__(self, content: AsyncIterator[bytes], watchers: Watchers, media_type: str) -> None:
        super().__init__(content, media_type=media_type)
        self._watchers = watchers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._watchers:
            await super().__call__(scope, receive, send)


def judged(result: Freespace | None, status: Status) -> Freespace | None:
    """``result``, or what must be said in its place where the run has come to be not valid since."""
    if result is None or not result.valid or status.valid:
        return result
    return replace(result, valid=False, polygons=[], ground=None, state=status.state, causes=list(status.causes))


def paint(output: Output, result: Freespace, age_s: float, width: int) -> bytes:
    """JPEG of the frame with ``result``, at most ``width`` pixels wide; in grey with its age where that is not valid."""
    columns, rows = output.frame.size
    columns, rows = min(columns, width), max(1, round(rows * min(1, width / columns)))
    view = fit(output.frame.size, (columns, rows), "stretch")
    image = np.empty((rows, columns, 3), np.uint8)
    resample(output.frame.image, view, image)
    if result.valid:
        result = replace(result, polygons=[seen(polygon, view) for polygon in result.polygons])
        image = draw(image, result, output.metres)
    else:
        grey = (0.6 * np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))).astype(np.uint8)
        image = np.repeat(grey[:, :, None], 3, axis=2)
        label(image, f"NOT VALID ({result.state})  picture {age_s:.0f} s old")
    _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return np.asarray(jpeg).tobytes()


def seen(polygon: Polygon, view: Resampling) -> Polygon:
    """``polygon`` in the pixels of the smaller picture."""
    exterior, *interiors = map(view.input_from_frame, polygon.rings)
    return replace(polygon, exterior=exterior, interiors=interiors)


def read_page(path: Path) -> tuple[str, str]:
    """The page, and the content security policy that allows what it holds and asks its own server, and nothing else."""
    page = path.read_text(encoding="utf-8")
    hashes = {
        tag: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for tag, text in re.findall(r"<(style|script)>(.*?)</\1>", page, re.DOTALL)
    }
    policy = (
        "default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; "
        f"style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy
