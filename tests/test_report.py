"""Logs that a resumed run goes on with, the report as a page that a browser can read, and prediction sheets."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra 'train' is not installed")

from training.datasets import CERTAIN, IGNORE
from training.logs import RunLog, flatten, write_environment
from training.report import SHOWN_SHEETS, best_of, metrics_of, thinned, write_report
from training.sheets import prediction_sheet

VOID = {"meta", "img", "br", "hr", "link", "input"}


def write_epochs(run: Path, first: int, last: int, epochs_done: int = 0, **options: Any) -> None:
    """A made-up run; its numbers depend on epoch and step alone."""
    with RunLog(run, epochs_done=epochs_done, **options) as log:
        for epoch in range(first, last + 1):
            for step in range(3 * epoch - 2, 3 * epoch + 1):
                log_step(log, epoch, step)
            iou = 0.9 + (0.05 if epoch == 2 else 0.01 * epoch)
            log.epoch({"epoch": epoch, "loss": 1 / epoch, "dev": {"a/freespace": {"iou": iou, "f1": np.float32(0.5)}}})


def log_step(log: RunLog, epoch: int, step: int) -> None:
    value = 1 / (3 * step)
    log.step(epoch=epoch, step=step, loss=value, parts={"bce": value / 7}, rate=1e-3, gradient_norm=2.0, seconds=0.25)


def test_logs_hold_every_number_in_full(tmp_path: Path) -> None:
    write_epochs(tmp_path, 1, 2)
    with open(tmp_path / "steps.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "step", "loss", "loss/bce", "rate", "gradient_norm", "seconds"]
    assert [(int(r["epoch"]), int(r["step"])) for r in rows] == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6)]
    assert [float(r["loss/bce"]) for r in rows] == [1 / (3 * s) / 7 for s in range(1, 7)]
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert entries[1] == {"epoch": 2, "loss": 0.5, "dev": {"a/freespace": {"iou": 0.9 + 0.05, "f1": 0.5}}}
    with open(tmp_path / "epochs.csv") as file:
        assert [r["dev/a/freespace/iou"] for r in csv.DictReader(file)] == [str(0.9 + 0.01), str(0.9 + 0.05)]


def test_resumed_log_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    write_epochs(tmp_path / "whole", 1, 4)
    broken = tmp_path / "broken"
    write_epochs(broken, 1, 3)  # and its checkpoint is that of epoch 2
    with RunLog(broken, epochs_done=3) as log:
        log_step(log, 4, 10)
    for name, torn in (("steps.csv", "4,11,0.0"), ("log.jsonl", '{"epoch": 4, "lo'), ("epochs.csv", "4")):
        with open(broken / name, "a") as file:
            file.write(torn)
    write_epochs(broken, 3, 4, epochs_done=2)
    for name in ("steps.csv", "epochs.csv", "log.jsonl"):
        assert (broken / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(p.name for p in broken.iterdir()) == ["epochs.csv", "log.jsonl", "steps.csv"]


def test_everything_is_on_disk_after_an_epoch(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log_step(log, 1, 1)
    log.epoch({"epoch": 1, "loss": math.nan})
    assert len((tmp_path / "steps.csv").read_text().splitlines()) == 2
    assert (tmp_path / "log.jsonl").read_text() == '{"epoch": 1, "loss": null}\n'
    log.close()


def test_columns_that_come_later_are_empty_before(tmp_path: Path) -> None:
    write_epochs(tmp_path, 1, 1)
    later = {"epoch": 2, "step": 4, "loss": 0.1, "parts": {"dice": 0.5}, "rate": 0.1, "gradient_norm": 1.0, "seconds": 0.1}
    with RunLog(tmp_path, epochs_done=1) as log:
        log.step(**later)
        log.epoch({"epoch": 2, "loss": 0.1, "dev": {"a/freespace": {"iou": 0.5, "precision": 0.25}}})
    with open(tmp_path / "steps.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["loss/dice"] for row in rows] == ["", "", "", "0.5"]
    assert rows[3]["loss/bce"] == ""
    with open(tmp_path / "epochs.csv", newline="") as file:
        assert [row["dev/a/freespace/precision"] for row in csv.DictReader(file)] == ["", "0.25"]
    assert write_report(tmp_path).exists()


@pytest.mark.parametrize(
    ("name", "text"), [("steps.csv", "name,age\nx,3\n"), ("log.jsonl", '{"a": 1}\n'), ("log.jsonl", 'x\n{"epoch": 1}\n')]
)
def test_files_of_others_are_not_cut(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"remove"):
        RunLog(tmp_path)
    assert (tmp_path / name).read_text() == text


def test_tensorboard_has_the_same_numbers_after_a_resume(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_epochs(tmp_path, 1, 3, tensorboard=True)
    write_epochs(tmp_path, 3, 4, epochs_done=2, tensorboard=True)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = events.Scalars("step/loss")
    assert [e.step for e in losses] == list(range(1, 13))
    assert [e.value for e in losses] == pytest.approx([1 / (3 * s) for s in range(1, 13)])
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("dev/a/freespace/iou")][1:3] == [(6, 0.95), (9, 0.93)]


def test_without_tensorboard_a_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.logs.util.find_spec", lambda name: None)
    write_epochs(tmp_path, 1, 1, tensorboard=True)
    assert "pip install tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "tensorboard").exists()


def test_flatten_keeps_what_a_column_can_hold() -> None:
    assert flatten({"epoch": 1, "dev": {"a/ego": {"iou": 0.5}, "n": None}, "list": [1]}) == {"epoch": 1, "dev/a/ego/iou": 0.5}


class Page(HTMLParser):
    """Checks that tags are balanced; keeps tags, identifiers and text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up run with every part a report can show, and with text that would break a page if it were not escaped."""
    folder = tmp_path_factory.mktemp("runs") / "mine & <yours>"
    write_epochs(folder, 1, 3)
    (folder / "config.json").write_text(json.dumps({"model": "<script>alert(1)</script>", "optimiser": {"rate": 0.002}}))
    (folder / "splits.yaml").write_text("seed: 1\ntrain:\n  camvid: [a, b, c]\ndev:\n  camvid: [d]\n")
    layer = {"name": "stem.0", "kind": "Conv2d", "weights": 8, "gradient": 1e-9, "weight": 1.0, "update": None}
    rows = [{**layer, "relative": 1e-6, "verdict": "vanishing"}]
    findings = ["The gradient vanishes in stem.0."]
    (folder / "health.json").write_text(
        json.dumps({"layers": rows, "findings": findings, "dead": {"x": 0.5}} | {"steps": 120, "measured": 3})
    )
    write_environment(folder, "cpu", ["freespace", "train", "--data", "my data"])
    write_environment(folder, "cuda", ["freespace", "train", "--data", "my data"])
    image = np.full((1, 24, 32, 3), 90, np.uint8)
    for epoch in range(1, SHOWN_SHEETS + 3):
        target = np.zeros((1, 2, 24, 32), np.uint8)
        prediction_sheet(image, target, target.astype(np.float32), folder / f"sheets/epoch-{epoch:03d}.jpg", ["a"])
    return folder


def test_report_is_one_page_that_needs_nothing_else(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link", re.sub(r"base64,[^\"]*", "", source))
    references = [a[k] for _, a in page.tags for k in ("src", "href", "srcset", "data") if k in a]
    assert all(r is not None and r.startswith(("#", "data:image/")) for r in references)
    identifiers = [a["id"] for _, a in page.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    used = {r[1:] for r in references if r and r.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", source))
    assert used
    assert used <= set(identifiers), "curves find their clips and markers"
    assert [t for t, _ in page.tags if t in ("h1", "title")] == ["title", "h1"]
    assert page.all("html") == [{"lang": "en"}]
    assert "prefers-color-scheme: dark" in source
    assert not list(run.glob(".*")), "nothing half-written stays"


def test_report_says_what_the_run_did(run: Path) -> None:
    page = Page(write_report(run).read_text(encoding="utf-8"))
    text = " ".join(page.words)
    assert "Training run mine & <yours>" in text
    for said in (
        "<script>alert(1)</script>",
        "optimiser.rate",
        "0.9500",  # the best IoU, of epoch 2
        "0.9300",  # the last
        "The gradient vanishes in stem.0.",
        "Measured at 3 of the 120 steps of the last phase. These are few",
        "freespace train --data 'my data'",
        "Started 2 times",
        "IoU on dev",
        "Parts of the loss",
        f"{SHOWN_SHEETS} of {SHOWN_SHEETS + 2} sheets are shown",
    ):
        assert said in text
    assert "cuda" in text
    assert re.search(r"train\s+camvid\s+3", text)
    assert len(page.all("img")) == SHOWN_SHEETS
    assert len(page.all("svg")) == 6  # loss, parts, rate, gradient, IoU, F1
    labels = [a["aria-label"] for a in page.all("svg")]
    assert labels[:2] == ["Loss", "Parts of the loss"]
    assert sum(a.get("class") == "best" for a in page.all("td")) == 2


def test_curves_have_the_points_of_the_log(run: Path) -> None:
    """The line of the IoU goes up, then down, in the proportion of 0.91, 0.95, 0.93."""
    source = write_report(run).read_text(encoding="utf-8")
    chart = re.search(r'aria-label="IoU on dev".*?</svg>', source, re.DOTALL)
    assert chart
    line = re.search(r'd="M ([^"]+)"\s+clip-path="[^"]*"\s+style="fill: none; stroke: var\(--c0\)', chart[0])
    assert line
    y = np.array([float(point.split()[1]) for point in line[1].split("L")])
    assert len(y) == 3
    assert (y[0] - y[2]) / (y[0] - y[1]) == pytest.approx((0.93 - 0.91) / (0.95 - 0.91), abs=0.01)


def test_every_part_is_optional_and_broken_parts_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "health.json").write_text("[1]")
    (tmp_path / "steps.csv").write_bytes(b"\xff\xfe")
    (tmp_path / "recipe.yaml").write_text("model: unet\n")
    text = " ".join(Page(write_report(tmp_path).read_text(encoding="utf-8")).words)
    for name in ("config.json", "health.json", "steps.csv"):
        assert f"{name} cannot be read" in text
    assert "unet" in text
    assert "Curves" not in text


def test_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing of a run"):
        write_report(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write_report(tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_rest_is_there(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_epochs(tmp_path, 1, 2)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = " ".join(Page(write_report(tmp_path).read_text(encoding="utf-8")).words)
    assert "matplotlib is not installed" in text
    assert "0.9500" in text


def test_metrics_are_read_by_place_and_their_best_is_found() -> None:
    entries = [
        {"epoch": e, "loss": 1.0, "loss/bce": 0.5, "dev/a/ego": iou, "dev/a/ego/boundary/f": 0.1, "dev/loss": loss}
        for e, iou, loss in ((1, 0.5, 0.3), (2, 0.7, 0.2), (3, 0.7, 0.4))
    ]
    metrics = {tuple(m): (m, s) for m, s in metrics_of(entries).items()}
    assert set(metrics) == {("dev", "a", "ego", "iou"), ("dev", "a", "ego", "boundary/f"), ("dev", "all", "all", "loss")}
    assert best_of(*metrics["dev", "a", "ego", "iou"]) == 1, "the earliest of equals"
    assert best_of(*metrics["dev", "all", "all", "loss"]) == 1, "of losses the least"


def test_long_curves_are_drawn_by_mean_and_range() -> None:
    x, y = np.arange(3000.0), np.tile([1.0, 2.0, 6.0, math.nan], 750)
    middles, mean, low, high = thinned(x, y)
    assert low is not None
    assert high is not None
    assert middles[0] == 4.5
    assert mean[0] == pytest.approx((1 + 2 + 6 + 1 + 2 + 6 + 1 + 2) / 8)
    assert (low[0], high[0]) == (1, 6)
    assert thinned(x[:9], y[:9])[1].tolist()[:3] == [1, 2, 6]


def test_errors_have_their_colours(tmp_path: Path) -> None:
    """Four quarters of a black image: found, false, missed and unknown; IoU 1/3."""
    image = np.zeros((1, 160, 320, 3), np.uint8)
    target = np.zeros((1, 2, 160, 320), np.uint8)
    target[0, 1] = IGNORE  # this plane has no row
    target[0, 0, :80, :160] = target[0, 0, 80:, :160] = CERTAIN
    target[0, 0, 80:, 160:] = IGNORE
    scores = np.zeros((1, 2, 160, 320), np.float32)
    scores[0, 0, :80] = 0.9
    prediction_sheet(image, target, scores, tmp_path / "sheets/page.jpg", ["one"])
    page = cv2.imread(str(tmp_path / "sheets/page.jpg"))
    assert page is not None
    assert page.shape == (22 + 22 + 160, 4 * 320, 3)
    errors = page[44:, 960:].astype(int)
    found, false, missed, unknown = errors[40, 80], errors[40, 240], errors[120, 80], errors[120, 240]
    assert found.argmax() == 1
    assert false.argmax() == 2
    assert missed.argmax() == 0
    assert np.ptp(unknown) < 8
    assert unknown.mean() > 40
    assert page[44 + 40, 10].max() < 8, "the image as it is"
    assert page[44 + 120, 320 + 80].max() > 50, "the label"
    assert page[44 + 120, 640 + 80].max() < 8, "nothing predicted there"


def test_sheets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    image, target = np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 2, 8, 8), np.uint8)
    with pytest.raises(ValueError, match="do not belong together"):
        prediction_sheet(image, target[:, :, :4], target.astype(np.float32), tmp_path / "a.jpg", ["a"])
    with pytest.raises(ValueError, match="nothing is known"):
        prediction_sheet(image, np.full_like(target, IGNORE), target.astype(np.float32), tmp_path / "a.jpg", ["a"])
    assert not list(tmp_path.iterdir())
