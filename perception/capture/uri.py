"""What a source's address means, and how it may be shown: without user, password and query."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from perception.errors import BadInput

Kind = Literal["file", "synthetic", "video", "stream", "rtsp", "v4l2", "csi", "gstreamer"]

KNOWN = "v4l2://, csi://, rtsp://, http://, gstreamer:// or synthetic://…"
RECORDED = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv"})  # files on a web server
HIDDEN = "…"
SHORTEST_SECRET = 3  # characters: anything shorter would be found in every other word

SCHEME = r"[A-Za-z][A-Za-z0-9+.-]+://?"
WHOLE = re.compile(rf"(?P<scheme>{SCHEME})(?P<rest>.*)", re.DOTALL)
# Within a text an address ends with the quotes around it, or at a space.
WITHIN = re.compile(
    rf"(?P<quote>[\"'])(?P<quoted>{SCHEME})(?P<inner>.*?)(?P=quote)|(?P<scheme>{SCHEME})(?P<rest>\S*)", re.DOTALL
)
# Of GStreamer elements: user-id, user-pw, proxy-pw, passphrase, …
SETTING = re.compile(
    r"(?P<name>\b[\w-]*(?:user|login|pw|pass|pwd|secret|token|key|cookie|headers?)[\w-]*\s*=\s*)(?:\([^)]*\)\s*)?"
    r"(?P<value>\"(?:\\.|[^\"\\])*\"|'[^']*'|(?:\\.|\S)+)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Address:
    """Where frames come from.

    Attributes:
        kind: ``file`` (or folder), ``synthetic``, ``video`` (a recording on a web server), ``stream`` (MJPEG, HLS and whatever
            else comes over HTTP), ``rtsp``, ``v4l2``, ``csi`` or ``gstreamer``.
        target: what is opened: a path, a device, a sensor's number, a pipeline, or the whole address with its credentials.
        shown: the address as it may be shown, logged and published.
    """

    kind: Kind
    target: str = field(repr=False)
    shown: str

    @property
    def live(self) -> bool:
        return self.kind not in ("file", "synthetic", "video")

    @property
    def remote(self) -> bool:
        """Whether it is on the network, its address one that may hold credentials."""
        return self.kind in ("stream", "video", "rtsp")

    def cleaned(self, text: str) -> str:
        """``text``, for example a library's message, without any credential of this address."""
        text = text.replace(self.target, self.shown) if self.remote else text
        for secret in secrets(self.target) if self.remote else ():
            text = text.replace(secret, HIDDEN)
        return redacted(text, whole=False)


def parse(uri: str) -> Address:
    """Take ``uri`` apart; nothing is opened.

    A bare number is a camera (``0`` is ``/dev/video0``); a file of that name is ``./0``.

    Raises:
        BadInput: no source has such an address.
    """
    shown = redacted(uri)
    if not uri.strip() or any(ord(c) < 32 for c in uri if c not in "\n\t"):
        raise BadInput(f"{shown!r} is no source; give a video, an image, a folder, a camera's number, or {KNOWN}")
    if re.fullmatch(r"[0-9]{1,3}", uri):
        return Address("v4l2", f"/dev/video{int(uri)}", uri)
    scheme, found, rest = uri.partition("://")
    scheme = scheme.lower()
    if not found:
        return Address("v4l2" if is_camera(uri) else "file", uri, shown)
    if scheme == "synthetic":
        return Address("synthetic", uri, uri)
    if scheme == "v4l2":
        if re.fullmatch(r"[0-9]{1,3}", rest):
            rest = f"/dev/video{int(rest)}"
        if not rest.startswith("/"):
            raise BadInput(f"{shown}: names no device; write v4l2:///dev/video0")
        return Address("v4l2", rest, shown)
    if scheme == "csi":
        if not re.fullmatch(r"[0-9]{1,2}", rest):
            raise BadInput(f"{shown}: wants a sensor's number, as in csi://0")
        return Address("csi", str(int(rest)), shown)
    if scheme == "gstreamer":
        if not rest.strip():
            raise BadInput("gstreamer:// wants a pipeline, as in 'gstreamer://videotestsrc ! videoconvert'")
        return Address("gstreamer", rest.strip(), shown)
    if scheme in ("rtsp", "rtsps", "http", "https"):
        check_host(uri, shown)
        uri = f"{scheme}://{rest}"  # FFmpeg knows them in small letters only
        if scheme.startswith("rtsp"):
            return Address("rtsp", uri, shown)
        return Address("video" if Path(urlsplit(uri).path).suffix.lower() in RECORDED else "stream", uri, shown)
    raise BadInput(f"{shown}: unknown kind of source {scheme!r}; give a video, an image, a folder, or {KNOWN}")


def is_camera(path: str) -> bool:
    if path.startswith(("/dev/video", "/dev/v4l/")):
        return True
    try:
        return Path(path).is_char_device()
    except (OSError, ValueError):
        return False


def check_host(uri: str, shown: str) -> None:
    try:
        parts = urlsplit(uri)
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        named = False
    if not named or re.search(r"\s", uri):
        raise BadInput(
            f"{shown}: names no host, or no possible port; in a password write %2F for /, %3F for ?, %23 for #, %20 for a space"
        )


def redacted(text: str, whole: bool = True) -> str:
    """``text`` without the user, password and query of any address in it, and without the like settings of a pipeline.

    Where it cannot be told what is a password and what is not (an ``@`` behind the host), only the kind of address is left.

    Args:
        whole: ``text`` is one address, whatever characters are in it; else a sentence or a pipeline that may hold several.
    """
    match = WHOLE.fullmatch(text) if whole else None
    if match is not None and match["scheme"].lower().startswith("synthetic:"):
        return text
    if match is not None and not match["scheme"].lower().startswith("gstreamer:"):
        return match["scheme"] + without_secrets(match["rest"])
    if whole and match is None:  # rtsp:// forgotten?
        return re.sub(r"^[^/]*:.*@", HIDDEN, text, flags=re.DOTALL)
    head, body = (match["scheme"], match["rest"]) if match else ("", text)
    return head + SETTING.sub(lambda m: m["name"] + HIDDEN, WITHIN.sub(hide, body))


def hide(match: re.Match[str]) -> str:
    if mark := match["quote"]:
        return mark + match["quoted"] + without_secrets(match["inner"]) + mark
    return match["scheme"] + without_secrets(match["rest"])


def without_secrets(rest: str) -> str:
    """What stands behind ``scheme://``, less its secrets."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    behind = rest[len(authority) :]
    if "@" in behind:
        return HIDDEN
    path = re.split(r"[?#]", behind, maxsplit=1)[0]
    return authority.rpartition("@")[2] + path + ("?" + HIDDEN if len(path) < len(behind) else "")


def secrets(uri: str) -> list[str]:
    """User, password and the values of the query of an address, in every spelling a message may have; the longest first."""
    try:
        parts = urlsplit(uri)
        given = [parts.username or "", parts.password or "", parts.netloc.rpartition("@")[0], parts.query]
    except ValueError:
        return []
    given += [value.partition("=")[2] for value in parts.query.split("&")]
    spellings = {spelling for text in given for spelling in (text, unquote(text), quote(unquote(text), safe=""))}
    return sorted((text for text in spellings if len(text) >= SHORTEST_SECRET), key=len, reverse=True)
