"""What is measured, as a process that can be asked: this code or another checkout, with its settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from engine.settings import read_settings
from perception.config import Config, load_config
from perception.errors import BadInput, FreespaceError

ROOT = Path(__file__).parents[2]
CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from perception.bench.worker import main; main()"
START_LIMIT_S = 900.0  # a plan may have to be built
ANSWER_LIMIT_S = 120.0  # beyond what was asked for
EVALUATION_LIMIT_S = 3600.0
SHORT = ("model", "backend", "precision", "threads", "input_size")  # keys that may stand without their section


@dataclass(frozen=True)
class Variant:
    """Attributes: what: in words; checkout: folder of the code, None for this one."""

    what: str
    config: Config
    checkout: Path | None = None


def parse_variant(text: str, base: Config) -> Variant:
    """A YAML file of settings, or ``KEY=VALUE,...`` on top of ``base``: keys of the configuration, those of its ``engine``
    section also without it, and ``checkout=FOLDER`` for other code.

    Raises:
        BadInput: a key or value is none, a file or folder is not there.
    """
    path = Path(text)
    if path.suffix in (".yaml", ".yml"):
        return Variant(text, load_config(path, {}))
    changes: dict[str, Any] = {}
    checkout = None
    for part in text.split(","):
        key, equals, value = (p.strip() for p in part.partition("="))
        if not equals or not key:
            raise BadInput(f"--against {part!r}: wanted KEY=VALUE such as backend=onnxruntime, or a .yaml file")
        if key == "checkout":
            checkout = Path(value)
            if not (checkout / "perception" / "bench").is_dir():
                raise BadInput(f"--against checkout={value}: is no checkout with perception/bench in it")
        else:
            changes[f"engine.{key}" if key in SHORT else key] = parsed(value)
    return Variant(text, changed(base, changes), checkout)


def parsed(value: str) -> Any:
    """Text as YAML has it: numbers are numbers."""
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def changed(base: Config, changes: dict[str, Any]) -> Config:
    """``base`` with other values by the path of their key. Raises BadInput: a key or value is none."""
    given = {
        f"{section}.{key}": value
        for section, keys in base.model_dump(exclude_defaults=True).items()
        for key, value in keys.items()
    }
    try:
        return read_settings(Config, None, given | changes)
    except ValueError as error:
        raise BadInput(str(error)) from error


class NoSuchCombination(BadInput):
    """Model, precision and size do not go together, whatever is installed."""


class Worker:
    """A process that serves one variant. A context manager.

    Attributes:
        facts: of its engine, its clip, its code, and what its start took.

    Raises:
        BadInput, FreespaceError: it cannot be started; the message is its own.
    """

    def __init__(self, variant: Variant, source: str, throughput: bool, batch: int = 1) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - lives as long as we
        where = [str((variant.checkout or ROOT).absolute()), *(p for p in sys.path if Path(p or ".").absolute() != ROOT)]
        task = {
            "source": source,
            "config": variant.config.model_dump(mode="json", exclude_defaults=True),
            "throughput": throughput,
            "batch": batch,
            "spawned_ns": time.perf_counter_ns(),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(where)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": where[0]},
        )
        try:
            self._send(task)
            self.facts = self._read(START_LIMIT_S)
        except BaseException:
            self.close()
            raise

    def ask(self, limit_s: float = ANSWER_LIMIT_S, **request: Any) -> dict[str, Any]:
        """Raises BadInput, FreespaceError: the process says so, has ended, or did not answer in time."""
        self._send(request)
        return self._read(limit_s)

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise FreespaceError(self._ended()) from error

    def _read(self, limit_s: float) -> dict[str, Any]:
        assert self._process.stdout
        alarm = threading.Timer(limit_s, self._process.kill)
        alarm.start()
        try:
            line = self._process.stdout.readline()
        finally:
            alarm.cancel()
        if not line:
            raise FreespaceError(self._ended())
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            if reply.get("mismatch"):
                raise NoSuchCombination(reply["error"])
            raise (BadInput if reply["mistake"] else FreespaceError)(reply["error"])
        return reply

    def _ended(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        return f"the process that is measured ended with code {code}{': ' + said[-1] if said else ''}"

    def close(self) -> None:
        if self._process.stdin:
            with suppress(OSError):  # it has ended, and something was still on its way to it
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._process.kill()
        self.close()
