"""What a run leaves behind while it goes: ``steps.csv``, ``epochs.csv``, ``log.jsonl``, TensorBoard, ``environment.json``."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from engine.files import write_whole

STEPS, EPOCHS, LOG, ENVIRONMENT = "steps.csv", "epochs.csv", "log.jsonl", "environment.json"
PACKAGES = ("freespace", "torch", "numpy", "opencv-python")


class RunLog:
    """The logs of one run, which a resumed run goes on with as if it had never stopped.

    ``steps.csv`` has a row per step of the optimiser: epoch, step, loss, ``loss/<part>`` for each part, rate,
    gradient_norm, seconds. ``log.jsonl`` has the entry of each epoch, and ``epochs.csv`` the same, flat: a nested
    ``{"dev": {"camvid/freespace": {"iou": 0.9}}}`` is the column ``dev/camvid/freespace/iou``. Columns are those of the
    first row, and those that come later. Numbers are written in full, so equal files mean equal runs. Everything is on disk
    after each epoch.
    """

    def __init__(self, run: Path, *, epochs_done: int = 0, tensorboard: bool = False) -> None:
        """Open the logs in the folder ``run``; what they say of epochs after ``epochs_done`` is cut off first.

        TensorBoard's files go to ``run/tensorboard``; where its package is not installed, a sentence says so.

        Raises:
            ValueError: a file there is no log of ours.
        """
        run.mkdir(parents=True, exist_ok=True)
        self._steps = Table(run / STEPS, epochs_done)
        self._epochs = Table(run / EPOCHS, epochs_done)
        cut_entries(run / LOG, epochs_done)
        self._log = open(run / LOG, "a", encoding="utf-8", newline="\n")  # noqa: SIM115 - open for the whole run
        self._last_step = int(self._steps.last.get("step", 0))
        self._writer = open_tensorboard(run / "tensorboard", self._last_step + 1) if tensorboard else None

    def step(
        self,
        *,
        epoch: int,
        step: int,
        loss: float,
        parts: Mapping[str, float],
        rate: float,
        gradient_norm: float,
        seconds: float,
    ) -> None:
        """One step of the optimiser; ``epoch`` and ``step`` count from 1 over the whole run, ``rate`` is the step's own."""
        losses = {"loss": loss, **{f"loss/{name}": value for name, value in parts.items()}}
        rates = {"rate": rate, "gradient_norm": gradient_norm}
        self._steps.add({"epoch": epoch, "step": step, **losses, **rates, "seconds": seconds})
        self._last_step = step
        if self._writer is not None:
            for tag, value in (*losses.items(), *rates.items()):
                self._writer.add_scalar(tag if "/" in tag else f"step/{tag}", value, step)

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """The epoch's entry: ``epoch`` and whatever else, nested; then everything is flushed to disk."""
        flat = flatten(plain(entry))
        self._epochs.add({"epoch": entry["epoch"], **flat})
        self._log.write(json.dumps(plain(entry)) + "\n")
        if self._writer is not None:
            for tag, value in flat.items():
                if isinstance(value, (int, float)) and tag != "epoch":
                    self._writer.add_scalar(tag if "/" in tag else f"epoch/{tag}", value, self._last_step)
        self.flush()

    def flush(self) -> None:
        for file in (self._steps, self._epochs, self._log, self._writer):
            if file is not None:
                file.flush()

    def close(self) -> None:
        """Everything on disk; no more rows after that."""
        for file in (self._steps, self._epochs, self._log, self._writer):
            if file is not None:
                file.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Table:
    """A CSV file that rows are appended to. A column that comes later is empty in the rows before it.

    Attributes:
        last: the last row that was kept of an earlier run, as text by column.
    """

    def __init__(self, path: Path, epochs_done: int) -> None:
        self.path = path
        self.columns, rows = cut_rows(path, epochs_done)
        self.last: dict[str, str] = dict(zip(self.columns, rows[-1], strict=True)) if rows else {}
        self._file: TextIO = open(path, "a", encoding="utf-8", newline="")  # noqa: SIM115 - open for the whole run
        self._writer = csv.writer(self._file, lineterminator="\n")

    def add(self, row: Mapping[str, Any]) -> None:
        """Append; a column without a value stays empty."""
        if new := [name for name in row if name not in self.columns]:
            self._widen(new)
        self._writer.writerow([row.get(name, "") for name in self.columns])

    def _widen(self, names: Sequence[str]) -> None:
        self._file.close()
        _, *rows = csv.reader(io.StringIO(self.path.read_text(encoding="utf-8"))) if self.columns else [[]]
        self.columns = [*self.columns, *names]
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.columns, *(row + [""] * len(names) for row in rows)])
        write_whole(self.path, out.getvalue().encode())
        self._file = open(self.path, "a", encoding="utf-8", newline="")  # noqa: SIM115 - open for the whole run
        self._writer = csv.writer(self._file, lineterminator="\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def cut_rows(path: Path, epochs_done: int) -> tuple[list[str], list[list[str]]]:
    """Leave in ``path`` the rows up to the epoch ``epochs_done``; its columns and those rows. Without rows it is emptied."""
    if not path.exists():
        return [], []
    text = path.read_text(encoding="utf-8")
    columns, *rows = list(csv.reader(io.StringIO(text))) or [[]]
    if columns and columns[0] != "epoch":
        raise ValueError(f"{path}: not a log of training (its first column is {columns[0]!r}); remove it")
    whole = [row for row in rows if len(row) == len(columns) and row[0].isdigit()]  # a last row may be torn
    kept = [row for row in whole if int(row[0]) <= epochs_done]
    columns = columns if kept else []
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([columns, *kept] if kept else [])
    if out.getvalue() != text:
        write_whole(path, out.getvalue().encode())
    return columns, kept


def cut_entries(path: Path, epochs_done: int) -> None:
    """Leave in ``log.jsonl`` the entries up to the epoch ``epochs_done``. Raises ValueError: it is no such log."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    try:
        entries = read_entries(text)
        kept = "".join(line + "\n" for line, entry in entries if entry["epoch"] <= epochs_done)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a log of training (an entry has no epoch); remove it") from error
    if kept != text:
        write_whole(path, kept.encode())


def read_entries(text: str) -> list[tuple[str, Any]]:
    """Lines of ``log.jsonl`` and what they say, without the last one where it is torn. Raises ValueError: it is not JSON."""
    entries: list[tuple[str, Any]] = []
    lines = [line for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines, 1):
        try:
            entries.append((line, json.loads(line)))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"log.jsonl: line {number} is not JSON; remove the line") from error
    return entries


def flatten(entry: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"dev": {"camvid/freespace": 0.9}}`` -> ``{"dev/camvid/freespace": 0.9}``; lists and None are left out."""
    flat: dict[str, Any] = {}
    for key, value in entry.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        elif value is not None and not isinstance(value, (list, tuple)):
            flat[f"{prefix}{key}"] = value
    return flat


def plain(value: Any) -> Any:
    """As JSON can say it: scalars of NumPy and torch become Python's, numbers that are not finite null."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def open_tensorboard(folder: Path, first_step: int) -> Any:
    """A writer whose files take the place of what earlier ones say from ``first_step`` on; None without the package."""
    if util.find_spec("tensorboard") is None:
        print("no TensorBoard log: the package is not installed; pip install tensorboard", file=sys.stderr)
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first_step)


def write_environment(run: Path, device: str, command: Sequence[str] | None = None) -> None:
    """Add to ``environment.json`` a start of the run: time (UTC), command, device, versions. `training.report` shows it."""
    path = run / ENVIRONMENT
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"] if path.exists() else []
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not written by this program; remove it") from error
    start = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        "command": shlex.join(sys.argv if command is None else command),
        "device": device,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": f"{platform.system()} {platform.machine()}",
    }
    run.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps({"starts": [*starts, start]}, indent=1) + "\n").encode())


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed as a package"
