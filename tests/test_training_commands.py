"""From polygon JSON to a running network, as a person types it."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra 'train' is not installed")

from perception import cli
from perception.synthetic import render, scene_from_uri

SIZE = (160, 96)
SETTINGS = ("sizes=[96x64]", "samples_per_epoch=16", "batch=4", "precision=fp32", "shares={}")


def here(*arguments: object) -> tuple[int, str, str]:
    """Runs the command line in this process: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["freespace", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    return int(caught.value.code or 0), out.getvalue(), err.getvalue()


def label(folder: Path, sequence: int, number: int) -> None:
    """A synthetic frame, and the outline of its road as LabelMe writes it."""
    rendered = render(scene_from_uri(f"synthetic://drive?size={SIZE[0]}x{SIZE[1]}&seed={sequence}"), 15 * number)
    name = f"drive{sequence}_{number:04d}"
    cv2.imwrite(str(folder / f"{name}.jpg"), rendered.image)
    outlines, _ = cv2.findContours(
        (rendered.masks["freespace"] > 0).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    road = max(outlines, key=cv2.contourArea)[:, 0].tolist()
    shape = {"label": "Freespace", "points": road, "shape_type": "polygon", "group_id": None, "flags": {}}
    document = {"version": "5.0.1", "flags": {}, "shapes": [shape], "imagePath": f"{name}.jpg", "imageData": None}
    document |= {"imageHeight": SIZE[1], "imageWidth": SIZE[0]}
    (folder / f"{name}.json").write_text(json.dumps(document))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    images = root / "mine/images"
    images.mkdir(parents=True)
    for sequence in range(1, 6):
        for number in range(4):
            label(images, sequence, number)
    code, _, err = here("masks", images, "--out", root / "mine/labels")
    assert code == 0, err
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fine-tuned from the shipped weights."""
    out = tmp_path_factory.mktemp("runs") / "mine"
    settings = [
        part for setting in (*SETTINGS, "phases=[{epochs: 1, freeze: [encoder]}, {epochs: 1}]") for part in ("--set", setting)
    ]
    code, printed, err = here("train", "finetune", "--data", data, "--out", out, "--device", "cpu", *settings)
    assert code == 0, err
    assert f"checkpoint {out / 'last.pt'}" in printed
    return out


def test_from_json_to_a_running_network(data: Path, run: Path, tmp_path: Path) -> None:
    code, _, err = here("export", run / "last.pt", "--out", tmp_path / "mine.onnx")
    assert code == 0, err
    command = ("evaluate", "--data", data, "--splits", run / "splits.json", "--model", tmp_path / "mine.onnx")
    code, printed, err = here(*command, "--backend", "onnxruntime", "--report", tmp_path / "a.json")
    assert code == 0, err
    [row] = json.loads((tmp_path / "a.json").read_text())["results"]
    held = json.loads((run / "splits.json").read_text())["val"]["mine"]
    assert (row["dataset"], row["plane"], row["images"]) == ("mine", "freespace", 4 * len(held))
    assert row["iou"] > 0.5, "the shipped weights know what a road looks like"
    assert f"{row['iou']:.4f}" in printed
    code, printed, err = here("evaluate", "--compare", tmp_path / "a.json", tmp_path / "a.json")
    assert code == 0, err
    assert "0.0000" in printed

    drive = ("run", data / "mine/images", "--model", tmp_path / "mine.onnx", "--backend", "onnxruntime")
    code, _, err = here(*drive, "--polygons", tmp_path / "p.jsonl")
    assert code == 0, err
    results = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(results) == 20
    assert all(p["plane"] == "freespace" for r in results for p in r["polygons"])
    code, _, err = here("masks", "--from-polygons", tmp_path / "p.jsonl", "--out", tmp_path / "corrections")
    assert code == 0, err
    assert len(list((tmp_path / "corrections").glob("*.json"))) == 20


def test_weights_to_start_from(data: Path, run: Path, tmp_path: Path) -> None:
    code, _, err = here("export", run / "last.pt", run / "last.pt", "--out", tmp_path / "w.pt")
    assert code == 0, err
    settings = [part for setting in (*SETTINGS, "epochs=1") for part in ("--set", setting)]
    code, _, err = here("train", "small", "--data", data, "--out", tmp_path / "r", "--init", tmp_path / "w.pt", *settings)
    assert code == 0, err


def test_check_and_preview(data: Path, tmp_path: Path) -> None:
    code, printed, err = here("train", "--data", data, "--check")
    assert code == 0, err
    assert "mine" in printed
    code, printed, err = here("train", "--data", data, "--preview", tmp_path / "p.jpg", "--set", "sizes=[96x64]")
    assert code == 0, err
    assert {p.name for p in tmp_path.iterdir()} == {"p.jpg", "p-effects.jpg"}
    broken = tmp_path / "data/broken"
    (broken / "images").mkdir(parents=True)
    (broken / "labels").mkdir()
    for i in range(4):
        cv2.imwrite(str(broken / f"images/{i}.jpg"), np.zeros((48, 64, 3), np.uint8))
        cv2.imwrite(str(broken / f"labels/{i}.png"), np.ones((48, 60), np.uint8))
    code, printed, _ = here("train", "--data", tmp_path / "data", "--check")
    assert code == 1
    assert "64x48" in printed
    assert "60x48" in printed


def test_looking_into_a_network(data: Path, run: Path, tmp_path: Path) -> None:
    code, printed, err = here("summary", run / "last.pt", "--json")
    assert code == 0, err
    assert json.loads(printed)
    frame = next((data / "mine/images").glob("*.jpg"))
    code, _, err = here("explain", run / "last.pt", frame, "--out", tmp_path / "cam.png", "--device", "cpu")
    assert code == 0, err
    assert cv2.imread(str(tmp_path / "cam.png")) is not None
    code, _, err = here(
        "explain", run / "last.pt", "--field", "--out", tmp_path / "field.png", "--images", 2, "--device", "cpu"
    )
    assert code == 0, err
    assert cv2.imread(str(tmp_path / "field.png")) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("smal",), "no recipe 'smal'"),
        (("--set", "epocs=3"), "epocs: unknown key"),
        (("--set", "loss=bce + dise"), "unknown loss 'dise'"),
        (("--set", "model=resnet"), "unknown network 'resnet'"),
        (("--set", "freeze=[stage99]"), "unknown stage"),
        (("--set", "augment={snow: 1}"), "no effect 'snow'"),
        (("unet", "--init", "small"), "holds the network"),
        (("--splits", "nowhere.json"), "no such file of splits"),
        (("--init", "nowhere.pt"), "nowhere.pt"),
        (("--device", "gpu"), "wanted auto, cpu or cuda"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments: tuple[str, ...], message: str, data: Path, tmp_path: Path) -> None:
    code, _, err = here("train", *arguments, "--data", data, "--out", tmp_path / "run")
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "run/last.pt").exists()


def test_mistakes_about_files_name_the_file(data: Path, run: Path, tmp_path: Path) -> None:
    broken, missing = tmp_path / "broken.json", tmp_path / "nowhere"
    broken.write_text("{")
    onnx, views = tmp_path / "m.onnx", tmp_path / "views"
    for message, *command in (
        (f"{run}: is a folder; give the checkpoint in it, such as {run / 'last.pt'}", "export", run, "--out", onnx),
        (f"{run}: is a folder", "summary", run),
        (f"no report {missing}", "export", run / "last.pt", "--out", onnx, "--report", missing),
        (f"{broken}: not a report", "export", run / "last.pt", "--out", onnx, "--report", broken),
        (f"{missing}: no such file", "distil", "--teacher", missing, "--data", data, "--out", views),
        (f"{missing}: no such file", "distil", "--teacher", broken, "--footage", missing, "--data", data, "--out", views),
    ):
        code, _, err = here(*command)
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err
    assert not onnx.exists()
    assert not views.exists()
