"""The HTTP server under the web page and the metrics: a thread of its own, and rules about who may ask.

For this machine alone nothing is asked of the client, except that it speaks to it by one of its own names: a foreign web page
whose name was pointed at 127.0.0.1 does not (DNS rebinding). For any other address a token is needed.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
import socket
import threading
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlencode, urlsplit

import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from perception.errors import BadInput, tell

TOKEN_VARIABLE = "FREESPACE_TOKEN"
TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,256}")  # goes into addresses and headers as it is
NEW_TOKEN = 'python -c "import secrets; print(secrets.token_urlsafe(32))"'

CONNECTIONS = 64  # more are closed at once: each holds a file descriptor that a camera may need
SEND_BUFFER = 1 << 17  # bytes; what waits here is old by the time it is seen
UNREAD_MS = 10_000  # a client that takes nothing for so long is let go
CLOSE_S = 2.0

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Server:
    """Answers ``routes`` on ``address`` from a thread of its own until it is closed.

    Args:
        option: how the user asked for it, for messages.
        address: ``HOST:PORT``; port 0 takes a free one.
        token: what a client must show; None takes that of the environment variable FREESPACE_TOKEN, if there is one.

    Attributes:
        address: ``HOST:PORT`` with the port that it listens on.

    Raises:
        BadInput: no such address, in use, not permitted, or it needs a token.
    """

    def __init__(self, option: str, address: str, token: str | None, routes: Sequence[BaseRoute]) -> None:
        token = token or os.environ.get(TOKEN_VARIABLE) or None
        if token and not TOKEN.fullmatch(token):
            raise BadInput(f"the token is too short, or not of letters, digits and . _ ~ - alone; make one with: {NEW_TOKEN}")
        family, target = resolve(option, address)
        local = ip_address(target[0].partition("%")[0]).is_loopback
        if not local and not token:
            raise BadInput(
                f"{option} {address}: others can reach this address, so it needs a token; set {TOKEN_VARIABLE} or output.token "
                f"to the outcome of: {NEW_TOKEN}"
            )
        listener = listen(option, address, family, target)
        self.address = f"{address.rpartition(':')[0]}:{listener.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                Guard(Router(routes, redirect_slashes=False), token, local),
                http=PatientProtocol,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="critical",  # `Guard` says what goes wrong; access logs would hold tokens
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=1,
            )
        )
        # uvicorn handles signals in the main thread only
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="http", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{self.address}/"

    def close(self) -> None:
        """Let everybody go, within two seconds also those who do not read what they asked for."""
        self._server.should_exit = True
        self._thread.join(CLOSE_S)


def resolve(option: str, address: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """The family and socket address of ``HOST:PORT`` or ``[HOST]:PORT``. Raises BadInput."""
    host, _, port = address.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise BadInput(f"{option} {address}: is no address; give HOST:PORT, such as 127.0.0.1:8080")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise BadInput(f"{option} {address}: no machine is called {host}; give an address of this one") from error
    return found[0], found[4]  # type: ignore[return-value]  # IPv6 has two numbers more


def listen(option: str, address: str, family: socket.AddressFamily, target: tuple[str, int]) -> socket.socket:
    """A socket that takes connections already; what it is set to, its connections are. Raises BadInput."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would let two programs share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)
        listener.bind(target)
        listener.listen(CONNECTIONS)
    except OSError as error:
        listener.close()
        raise BadInput(f"{option} {address}: cannot listen there: {error.strerror}; choose another port or address") from error
    return listener


class PatientProtocol(H11Protocol):
    """Takes a bounded number of connections, and closes those over which nothing is asked."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)


class Guard:
    """Lets in those who may ask, has browsers keep the answers to themselves, and says once what goes wrong in answering.

    The token comes as ``Authorization: Bearer`` or as ``?token=``. The latter is answered with a cookie and the way to the
    same address without it, so that the token stays in no history. The cookie holds a value made from the token, not itself.
    """

    def __init__(self, app: ASGIApp, token: str | None, local: bool) -> None:
        self._app, self._local = app, local
        self._token = token.encode() if token else None
        self._cookie = hmac.new(self._token or b"", b"freespace cookie", hashlib.sha256).hexdigest()
        self._told = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await (self._refusal(Request(scope)) or self._app)(scope, receive, send_guarded)
        except Exception as error:
            told = f"{scope['path']}: cannot be answered: {type(error).__name__}: {error}"
            if told != self._told:
                tell(told)
                self._told = told
            if begun:
                raise  # the connection is closed, so that the client sees that its answer is not whole
            await PlainTextResponse("cannot be answered; the program says why\n", 500)(scope, receive, send_guarded)

    def _refusal(self, request: Request) -> Response | None:
        """What to answer instead, None where the client may ask."""
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("only GET and HEAD\n", 405, {"Allow": "GET, HEAD"})
        if self._local and not names_this_machine(request.headers.get("host", "")):
            return PlainTextResponse("this server is for its own machine: ask for 127.0.0.1 or localhost\n", 421)
        site, mode = (request.headers.get(f"sec-fetch-{name}") for name in ("site", "mode"))
        if site not in (None, "none", "same-origin") and mode != "navigate":
            return PlainTextResponse("not for other web pages\n", 403)
        if self._token is None:
            return None
        cookie = f"freespace-{request.scope['server'][1]}"  # cookies are shared by all ports of a machine
        offered = request.query_params.get("token")
        if offered is not None:
            if not same(offered, self._token):
                return not_let_in()
            rest = urlencode([(name, value) for name, value in request.query_params.multi_items() if name != "token"])
            path = "/" + request.url.path.lstrip("/")  # two slashes would lead to another machine
            answer = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
            answer.set_cookie(cookie, self._cookie, httponly=True, samesite="strict")
            return answer
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and same(bearer.strip(), self._token):
            return None
        if same(request.cookies.get(cookie, ""), self._cookie.encode()):
            return None
        return not_let_in()


def not_let_in() -> Response:
    text = "a token is needed: put ?token=TOKEN behind the address, or send the header 'Authorization: Bearer TOKEN'\n"
    return PlainTextResponse(text, 401, {"WWW-Authenticate": "Bearer"})


def same(offered: str, expected: bytes) -> bool:
    """Compare in a time that tells nothing about where they differ."""
    return hmac.compare_digest(offered.encode("utf-8", "replace"), expected)


def names_this_machine(host: str) -> bool:
    """Whether a ``Host`` header is one that only this machine itself can mean."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
