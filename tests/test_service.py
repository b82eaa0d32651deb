"""What the service manager hears, and what outlives a restart."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import road_image

from engine.preprocess import fit
from perception import service
from perception.frame import Frame
from perception.freespace import Freespace
from perception.service import RESERVED, Memory
from perception.sinks.base import Output


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """The manager's end of the socket."""
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(str(tmp_path / "notify"))
    heard.settimeout(5)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return heard


def test_without_a_manager_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not service.notify("READY=1")


def test_the_manager_hears(manager: socket.socket) -> None:
    assert service.notify("READY=1")
    assert manager.recv(100) == b"READY=1"


def test_an_abstract_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind("\0freespace-test")
        heard.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@freespace-test")
        assert service.notify("WATCHDOG=1")
        assert heard.recv(100) == b"WATCHDOG=1"


def test_a_manager_that_is_gone_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    assert not service.notify("READY=1")


def test_a_manager_that_does_not_read_is_not_waited_for(manager: socket.socket) -> None:
    sent = [service.notify("STATUS=" + "x" * 1000) for _ in range(2000)]
    assert sent[0]
    assert not sent[-1], "its queue is full"


def output(seq: int) -> Output:
    image = road_image()
    frame = Frame(image, seq, 0, "system", "camera")
    result = Freespace(seq, "camera", "camera", 0, "system", frame.size, True, "running", "m", "b", 0, [], {})
    return Output(frame, result, np.zeros((32, 64), np.uint8), fit(frame.size, (64, 32), "stretch"))


def test_numbers_go_on_after_a_clean_end(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "state.json")
    assert (memory.first_seq, memory.restarts) == (0, 0)
    for seq in range(42):
        memory.write(output(seq))
    memory.close()
    again = Memory(tmp_path / "state.json")
    assert (again.first_seq, again.restarts) == (42, 1)


def test_no_number_is_given_twice_after_a_crash(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "state.json")
    for seq in range(RESERVED // 2):
        memory.write(output(seq))
    again = Memory(tmp_path / "state.json")  # the first was never closed
    assert again.first_seq >= RESERVED // 2
    assert again.restarts == 1


@pytest.mark.parametrize(
    "text", ["", "[]", '{"next_seq": 3}', '{"next_seq": -1, "starts": 0}', '{"next_seq": true, "starts": 0}', "no"]
)
def test_a_state_that_is_none_is_set_aside(tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    assert Memory(path).first_seq == 0
    assert Memory(path).restarts == 1, "the second one reads what the first one wrote"
    assert (tmp_path / "state.json.bad").read_text() == text
    assert "is no state of an earlier run" in capfd.readouterr().err


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "launch" / "freespace.service").read_text()
    unit = tmp_path / "freespace.service"
    unit.write_text(text.replace("/opt/freespace/bin/freespace", sys.executable).replace("User=freespace", "User=root"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, [x for x in done.stderr.splitlines() if "freespace" in x]) == (0, [])
