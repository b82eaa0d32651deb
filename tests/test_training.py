"""Training end to end on data made here: read, learn, resume, export, evaluate."""

from __future__ import annotations

import csv
import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from engine import DEFAULT_MODEL, open_engine, read_contract  # noqa: E402
from perception.synthetic import render, scene_from_uri  # noqa: E402
from training.augment import augment  # noqa: E402
from training.batches import ahead  # noqa: E402
from training.checkpoints import read_checkpoint, size_of, with_planes  # noqa: E402
from training.datasets import CERTAIN, IGNORE, Sample, epoch_indices, find_samples, read_sample, split_of  # noqa: E402
from training.evaluate import evaluate_model, trained_on  # noqa: E402
from training.export import export_model, load_network, recipe  # noqa: E402
from training.health import NotFinite  # noqa: E402
from training.losses import bce_and_dice  # noqa: E402
from training.metrics import Counts, count  # noqa: E402
from training.models import build_model  # noqa: E402
from training.models.freespace_net import FreespaceNet, start_as_bilinear  # noqa: E402
from training.recipe import Recipe, load_recipe  # noqa: E402
from training.trainer import Run, train  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve synthetic road images in the layout and label values of the three data sets."""
    root = tmp_path_factory.mktemp("data")
    for folder, kind in (
        ("camvid/train", "camvid"),
        ("camvid/val", "camvid"),
        ("idd_lite/train", "idd"),
        ("bdd100k/train", "bdd"),
    ):
        for part in ("images", "labels"):
            (root / folder / part).mkdir(parents=True)
        for i in range(3):
            rendered = render(scene_from_uri(f"synthetic://drive?size=160x96&seed={len(kind)}"), 10 * i)
            road, ego = rendered.masks["freespace"] > 0, rendered.masks["ego"] > 0
            label = {"camvid": np.where(road, 3, 5), "idd": np.where(road, 0, 1), "bdd": ego}[kind].astype(np.uint8)
            stem = f"{i}_{i:06d}"
            cv2.imwrite(str(root / folder / "images" / f"{stem}.jpg"), rendered.image)
            cv2.imwrite(str(root / folder / "labels" / f"{stem}.png"), label)
    (root / "bdd100k/train/night.txt").write_text("1_000001\n")
    return root


@pytest.fixture(scope="module")
def checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(small_recipe(epochs=2), run_in(tmp_path_factory.mktemp("run"), data))


def small_recipe(**changes: Any) -> Recipe:
    settings = {"pretrained": False, "samples_per_epoch": 16, "batch": 4, "sizes": ["96x64"], "precision": "fp32"}
    return Recipe(**(settings | changes))


def run_in(out: Path, data: Path, **places: Any) -> Run:
    return Run(data, out, device="cpu", **places)


def test_labels_become_planes(data: Path) -> None:
    samples = {s.dataset: s for s in find_samples(data)}
    camvid, idd, bdd = (read_sample(samples[n])[1] for n in ("camvid", "idd_lite", "bdd100k"))
    for planes in (camvid, idd):
        assert set(np.unique(planes[0])) == {0, 1}
        assert np.array_equal(planes[1] == IGNORE, planes[0] == 1), "ego is unknown on the road, and only there"
        assert np.all(planes[1][planes[0] == 0] == 0)
    assert np.all(bdd[0][bdd[1] == 1] == 1), "what the ego vehicle may use is road"
    assert np.any(bdd[0] == IGNORE)
    strict = read_sample(samples["bdd100k"], strict=True)[1]
    assert np.all(strict[0] == IGNORE)
    assert set(np.unique(strict[1])) == {0, 1}


def test_void_is_unknown_in_both_planes(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "i.png"), np.zeros((4, 6, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "l.png"), np.full((4, 6), 11, np.uint8))
    _, planes = read_sample(Sample("camvid", "a", tmp_path / "i.png", tmp_path / "l.png"))
    assert np.all(planes == IGNORE)


def test_seams_between_lanes_are_unknown_for_training(tmp_path: Path) -> None:
    label = np.zeros((72, 128), np.uint8)
    label[40:60, 20:60] = label[40:60, 61:100] = 1
    cv2.imwrite(str(tmp_path / "i.png"), np.zeros((72, 128, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "l.png"), label)
    _, planes = read_sample(Sample("bdd100k", "a", tmp_path / "i.png", tmp_path / "l.png"))
    assert np.all(planes[1][42:58, 60] == IGNORE)
    assert np.all(planes[0][42:58, 60] == 1)
    assert np.all(planes[0][:30] == 0), "nothing far above the road is road"
    assert np.all(planes[0][66:, 50:70] == 0), "the bonnet is no road"


@pytest.mark.parametrize(
    ("break_it", "message"), [("size", "its label is"), ("missing", "has no label"), ("broken", "cannot decode")]
)
def test_broken_data_is_named(break_it: str, message: str, tmp_path: Path) -> None:
    images, labels = tmp_path / "camvid/train/images", tmp_path / "camvid/train/labels"
    images.mkdir(parents=True)
    labels.mkdir()
    cv2.imwrite(str(images / "a_1.jpg"), np.zeros((8, 8, 3), np.uint8))
    if break_it == "size":
        cv2.imwrite(str(labels / "a_1.png"), np.zeros((8, 9), np.uint8))
    if break_it == "broken":
        (labels / "a_1.png").write_bytes(b"no image")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        [read_sample(sample) for sample in find_samples(tmp_path)]
    assert "a_1" in str(error.value)


def test_split_keeps_sequences_together_and_never_moves() -> None:
    samples = [Sample("idd_lite", str(i % 100), Path(f"{i}.jpg"), Path(f"{i}.png")) for i in range(400)]
    by_sequence: dict[str, set[str]] = {}
    for s in samples:
        by_sequence.setdefault(s.sequence, set()).add(split_of(s))
    assert all(len(splits) == 1 for splits in by_sequence.values())
    assert 10 <= sum(v == {"val"} for v in by_sequence.values()) <= 30
    assert split_of(samples[7]) == "train"
    assert split_of(Sample("camvid", "0016E5", Path("a"), Path("b"), published_split="val")) == "val"


def test_epoch_takes_each_data_set_by_its_share() -> None:
    samples = [Sample("a", "", Path(), Path())] * 10 + [Sample("b", "", Path(), Path())] * 1000
    chosen = epoch_indices(samples, {"a": 0.5, "b": 0.5}, 100, np.random.default_rng(0))
    first = [i for i in chosen if i < 10]
    assert len(chosen) == 100
    assert len(first) == 50
    assert np.bincount(first).tolist() == [5] * 10, "a small set is gone through before it repeats"
    assert len({i for i in chosen if i >= 10}) == 50


def test_augmentation_moves_image_and_target_together() -> None:
    image = np.zeros((80, 120, 3), np.uint8)
    image[30:60, 40:90] = 255
    planes = (image[..., 0] > 0).astype(np.uint8)[None]
    agreed = []
    for seed in range(20):
        view, target = augment(image, planes, (96, 64), np.random.default_rng(seed))
        assert view.shape == (64, 96, 3)
        assert target.shape == (1, 64, 96)
        inside, outside = view[target[0] == 1].mean(), view[target[0] == 0].mean()
        agreed.append(inside > outside + 20)
    assert all(agreed)


def test_loss_ignores_what_is_unknown() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 8, 8, requires_grad=True)
    targets = torch.randint(0, 2, (2, 2, 8, 8), dtype=torch.uint8) * CERTAIN
    targets[:, 1] = IGNORE
    loss = bce_and_dice(logits, targets)
    loss.backward()
    assert torch.all(logits.grad[:, 1] == 0)
    assert torch.any(logits.grad[:, 0] != 0)
    known, truth = logits[:, 0].detach(), (targets[:, 0] == CERTAIN).float()
    bce = torch.nn.functional.binary_cross_entropy_with_logits(known, truth)
    p = torch.sigmoid(known)
    dice = (1 - (2 * (p * truth).sum((1, 2)) + 1) / (p.sum((1, 2)) + truth.sum((1, 2)) + 1)).mean()
    assert loss.item() == pytest.approx((bce + 0.5 * dice).item(), rel=1e-5)
    assert bce_and_dice(logits, torch.full_like(targets, IGNORE)).item() == 0


def test_counts_by_hand() -> None:
    target = np.array([[1, 1, 0, 0, IGNORE, IGNORE]], np.uint8)
    prediction = np.array([[True, False, True, False, True, False]])
    counts = count(prediction, target)
    assert (counts.tp, counts.fn, counts.fp, counts.tn, counts.images) == (1, 1, 1, 1, 1)
    assert counts.iou == pytest.approx(1 / 3)
    assert counts.dice == pytest.approx(1 / 2)
    assert (counts + counts).iou == counts.iou
    assert count(prediction, np.full_like(target, IGNORE)).images == 0
    assert np.isnan(Counts().iou)


def test_head_starts_as_bilinear_upsampling() -> None:
    head = torch.nn.Conv2d(5, 2 * 16, 3, padding=1, padding_mode="replicate")
    start_as_bilinear(head)
    x = torch.randn(1, 5, 6, 7)
    mixing = head.weight.reshape(2, 16, 5, 3, 3).sum((3, 4))[:, 0, :, None, None]
    wanted = torch.nn.functional.interpolate(torch.nn.functional.conv2d(x, mixing), scale_factor=4, mode="bilinear")
    assert torch.allclose(torch.nn.functional.pixel_shuffle(head(x), 4), wanted, atol=1e-5)


def test_network_is_small_enough_for_a_vehicle() -> None:
    network = FreespaceNet()
    assert sum(p.numel() for p in network.parameters()) < 1_500_000
    assert network(torch.zeros(1, 3, 64, 96)).shape == (1, 2, 64, 96)


def test_training_learns_and_logs(checkpoint: Path) -> None:
    log = [json.loads(line) for line in (checkpoint.parent / "log.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in log] == [1, 2]
    assert log[1]["loss"] < log[0]["loss"]


def losses(run: Path) -> list[dict[str, str]]:
    """Every step's row but for its seconds."""
    with open(run / "steps.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_resumed_run_equals_an_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    """With dropout, a plateau, and a phase that begins after the interruption: the same losses and weights to the bit."""
    phases = [{"epochs": 2, "freeze": ["stem", "stage1"]}, {"epochs": 1, "optimiser": {"rate": 1e-4}}]
    recipe = small_recipe(phases=phases, schedule={"name": "plateau", "patience": 0})
    whole = train(recipe, run_in(tmp_path / "whole", data))

    def stop_after_first_epoch(path: Path, state: dict[str, Any]) -> None:
        torch.save(state, str(path))
        if path.name == "last.pt":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.trainer.save_checkpoint", stop_after_first_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, run_in(tmp_path / "cut", data))
    assert read_checkpoint(tmp_path / "cut/last.pt")["epoch"] == 1
    resumed = train(recipe, run_in(tmp_path / "cut", data))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 3 * 4
    one, other = (read_checkpoint(path) for path in (whole, resumed))
    assert all(torch.equal(one["model"][k], other["model"][k]) for k in one["model"])
    assert all(torch.equal(one["average"][k], other["average"][k]) for k in one["average"])
    before = (tmp_path / "cut/steps.csv").read_bytes()
    train(recipe, run_in(tmp_path / "cut", data))
    assert (tmp_path / "cut/steps.csv").read_bytes() == before, "a finished run stays as it is"


def test_workers_do_not_change_the_result(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    train(small_recipe(epochs=2), run_in(tmp_path, data, workers=3))
    assert losses(tmp_path) == losses(checkpoint.parent)


def test_run_leaves_everything_behind(checkpoint: Path) -> None:
    run = checkpoint.parent
    names = {path.name for path in run.iterdir()}
    logs = {"steps.csv", "epochs.csv", "log.jsonl", "health.json", "environment.json"}
    assert names == {"last.pt", "recipe.yaml", "splits.json", "report.html", "sheets"} | logs, "no dev images, so no best.pt"
    assert load_recipe(str(run / "recipe.yaml"), {}) == small_recipe(epochs=2)
    splits = json.loads((run / "splits.json").read_text())
    assert splits["val"]["camvid"] == ["val/0", "val/1", "val/2"]
    state = read_checkpoint(checkpoint)
    assert sum(state["images"].values()) == sum(len(s) for s in splits["train"].values())
    assert state["planes"] == ["freespace", "ego"]


def test_frozen_stages_keep_their_weights_in_a_phase_and_learn_in_the_next(data: Path, tmp_path: Path) -> None:
    def encoder(phases: list[dict[str, Any]], out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        state = read_checkpoint(train(small_recipe(phases=phases, ema=0.0), run_in(out, data)))
        torch.manual_seed(1)
        start = build_model("small", 2).state_dict()
        return start, state["model"]

    start, after = encoder([{"epochs": 1, "freeze": ["encoder"]}], tmp_path / "a")
    kept = [k for k in start if k.startswith("encoder.")]
    assert all(torch.equal(start[k], after[k]) for k in kept), "running statistics, too"
    assert not torch.equal(start["head.weight"], after["head.weight"])
    start, after = encoder([{"epochs": 1, "freeze": ["encoder"]}, {"epochs": 1}], tmp_path / "b")
    assert not torch.equal(start["encoder.stem.0.weight"], after["encoder.stem.0.weight"])


def test_loss_that_is_no_number_stops_the_run_and_names_the_layer(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    state["average"]["mix8.0.weight"][:] = 1e38
    torch.save(state, tmp_path / "bad.pt")
    with pytest.raises(NotFinite, match=r"step 1: .*mix8"):
        train(small_recipe(epochs=1), run_in(tmp_path / "run", data, init=(tmp_path / "bad.pt",)))
    assert not (tmp_path / "run/last.pt").exists()


def test_run_stops_where_dev_stands_still(data: Path, tmp_path: Path) -> None:
    splits = {
        "train": {"camvid": ["train/0", "train/1"], "idd_lite": ["0", "1", "2"], "bdd100k": ["0_000000", "1_000001"]},
        "dev": {"camvid": ["train/2"], "bdd100k": ["2_000002"]},
        "val": {"camvid": ["val/0", "val/1", "val/2"]},
    }
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    frozen = small_recipe(epochs=9, stop_after=2, optimiser={"rate": 1e-12, "weight_decay": 0.0}, ema=0.0)
    run = run_in(tmp_path / "run", data, splits=tmp_path / "splits.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.trainer.evaluate_network", lambda *_: {"camvid/freespace": Counts(tp=1, fn=1, images=1)})
        state = read_checkpoint(train(frozen, run))
    assert state["epoch"] == 3, "the first one is the best, and two more did not better it"
    assert read_checkpoint(tmp_path / "run/best.pt")["epoch"] == 1
    assert state["best"] == {"epoch": 1, "iou": 0.5}


def test_planes_are_those_that_are_labelled(data: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/camvid").symlink_to(data / "camvid")
    path = train(small_recipe(epochs=1), run_in(tmp_path / "run", tmp_path / "data"))
    assert read_checkpoint(path)["planes"] == ["freespace"]
    export_model(path, tmp_path / "m.onnx", (96, 64))
    assert read_contract(tmp_path / "m.onnx").planes == ("freespace",)
    with pytest.raises(ValueError, match="cross_entropy"):
        train(small_recipe(epochs=1, loss="cross_entropy"), run_in(tmp_path / "other", data))


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_other_optimisers_learn_with_l1_and_a_sum_of_losses(optimiser: str, data: Path, tmp_path: Path) -> None:
    rate = {"sgd": 0.05, "adam": 1e-3}[optimiser]
    settings = {"name": optimiser, "rate": rate, "l1": 1e-6}
    train(small_recipe(epochs=3, optimiser=settings, loss="focal + 0.5*lovasz + 0.1*boundary"), run_in(tmp_path, data))
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert entries[-1]["loss"] < entries[0]["loss"]
    columns = (tmp_path / "steps.csv").read_text().splitlines()[0]
    assert "loss/focal,loss/lovasz,loss/boundary" in columns


def test_phases_may_have_losses_of_their_own_and_clip_what_learns_alone(data: Path, tmp_path: Path) -> None:
    """Gradients of a stage that a later phase freezes are not in its norm: a run resumed between them is the same."""
    phases = [{"epochs": 1, "loss": "bce"}, {"epochs": 1, "loss": "dice + bce", "freeze": ["encoder"], "sizes": ["64x64"]}]
    recipe = small_recipe(phases=phases, optimiser={"clip": 0.1})
    whole = train(recipe, run_in(tmp_path / "whole", data))

    def stop_after_first_epoch(path: Path, state: dict[str, Any]) -> None:
        torch.save(state, str(path))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.trainer.save_checkpoint", stop_after_first_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, run_in(tmp_path / "cut", data))
    train(recipe, run_in(tmp_path / "cut", data))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert [row["loss/dice"] != "" for row in losses(tmp_path / "whole")] == [False] * 4 + [True] * 4
    assert size_of(read_checkpoint(whole)) == (64, 64), "the size it was measured at last"


def test_models_remember_what_the_weights_before_them_saw(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    own = tmp_path / "data/mine"
    (own / "images").mkdir(parents=True)
    (own / "labels/freespace").mkdir(parents=True)
    for i in range(6):
        cv2.imwrite(str(own / f"images/drive{i}_0.jpg"), np.full((64, 96, 3), 90, np.uint8))
        label = np.zeros((64, 96), np.uint8)
        label[32:] = 1
        cv2.imwrite(str(own / f"labels/freespace/drive{i}_0.png"), label)
    path = train(small_recipe(epochs=1), run_in(tmp_path / "run", tmp_path / "data", init=(checkpoint,)))
    state = read_checkpoint(path)
    assert state["planes"] == ["freespace"], "of two planes the one that is labelled"
    assert set(state["images"]) == {"bdd100k", "camvid", "idd_lite", "mine"}
    export_model(path, tmp_path / "m.onnx")
    contract = read_contract(tmp_path / "m.onnx")
    assert contract.input_size == (96, 64)
    assert "CamVid" in contract.metadata["freespace.training_data"]
    trained = json.loads((tmp_path / "run/splits.json").read_text())["train"]["mine"]
    assert json.loads(contract.metadata["freespace.trained_sequences"]) == {"mine": sorted(trained)}
    samples = find_samples(tmp_path / "data")
    assert trained_on(contract.metadata, samples) == len(trained)


def test_planes_keep_their_weights_when_one_is_left_out(checkpoint: Path) -> None:
    state = read_checkpoint(checkpoint)
    both, one = build_model("small", 2).eval(), build_model("small", 1).eval()
    both.load_state_dict(state["average"])
    one.load_state_dict(with_planes(state["average"], one, ("freespace", "ego"), ("ego",)))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(one(x)[:, 0], both(x)[:, 1], atol=1e-6)
    with pytest.raises(ValueError, match="does not say ego"):
        with_planes(state["average"], both, ("freespace",), ("freespace", "ego"))


def test_views_of_other_splits_are_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "views").mkdir()
    (tmp_path / "views/views.json").write_text(json.dumps({"sequences": {"camvid": ["val/1"]}}))
    with pytest.raises(ValueError, match=r"holds views of camvid/val/1, which is not in train"):
        train(small_recipe(epochs=1), run_in(tmp_path / "run", data, views=tmp_path / "views"))
    (tmp_path / "views/views.json").write_text("{")
    with pytest.raises(ValueError, match=r"views\.json: not JSON"):
        train(small_recipe(epochs=1), run_in(tmp_path / "run", data, views=tmp_path / "views"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phases": [{"epochs": 1}, {"freeze": ["stage77"]}]}, "unknown stage stage77"),
        ({"phases": [{"epochs": 1}, {"loss": "bse"}]}, "unknown loss 'bse'"),
        ({"phases": [{"epochs": 1}, {"freeze": ["encoder", "decoder"]}]}, "nothing to learn"),
        ({"sizes": ["100x60"]}, "wants multiples of 32"),
        ({"shares": {"camwid": 1.0}}, "no data set is called camwid"),
        ({"stop_after": 3}, "no images in dev"),
        ({"hints": {"weight": 1.0}}, "the views have no hints"),
    ],
)
def test_mistakes_stop_a_run_before_it_begins(changes: dict[str, Any], message: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train(small_recipe(**changes), run_in(tmp_path / "run", data))
    assert not (tmp_path / "run").exists()


def test_two_processes_train_as_one(data: Path, tmp_path: Path) -> None:
    """The same command under torchrun, gloo between them: what one process makes of the same batches."""
    small = ["epochs=1", "samples_per_epoch=8", "batch=4", "sizes=[96x64]", "pretrained=false", "dropout=0.0", "precision=fp32"]
    gentle = ["optimiser.name=sgd", "optimiser.rate=0.001", "schedule.name=constant", "schedule.warmup=0.0", "ema=0.0"]
    command = ["train", "--data", str(data), "--device", "cpu", "--threads", "1"]
    command += [part for setting in small + gentle for part in ("--set", setting)]
    alone = [sys.executable, "-m", "perception.cli"]
    together = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "perception.cli"]
    for name, start in (("one", alone), ("two", together)):
        done = subprocess.run([*start, *command, "--out", str(tmp_path / name)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("checkpoint ") == 1, "one process speaks for all"
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one[0].keys() == two[0].keys()
    for mine, theirs in zip(one, two, strict=True):
        assert float(mine["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-3)
    assert read_checkpoint(tmp_path / "two/last.pt")["epoch"] == 1


GRADIENTS = """
import sys, torch
from training.distributed import join, shared
from training.losses import parse_loss
from training.models import build_model, freeze

with join("cpu") as world:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build_model("small", 2, dropout=0.0).double().train()
    freeze(network, ["stem"])
    images = torch.randn(4, 3, 64, 64, dtype=torch.double)
    targets = torch.randint(0, 256, (4, 2, 64, 64), dtype=torch.uint8)
    targets[0, 1] = targets[3] = 255  # unequal shares of what is known
    part = world.share(4)
    together = shared(network, world)  # to be kept until the gradients are there
    logits = world.gather(together(images[part]))
    loss = parse_loss("bce + 0.5*dice + lovasz")(logits, world.gather(targets[part]))
    (loss * world.size).backward()
    if world.first:
        found = {k: p.grad for k, p in network.named_parameters() if p.grad is not None}
        torch.save({"loss": loss.detach(), "gradients": found, "buffers": dict(network.named_buffers())}, sys.argv[1])
"""


def test_gradients_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    """In float64, where rounding cannot hide a wrong factor: losses, gradients and the norms' statistics."""
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    for name, start in (("one", []), ("two", together)):
        command = [sys.executable, *start, str(script), str(tmp_path / f"{name}.pt")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "two"))
    assert torch.allclose(one["loss"], two["loss"], rtol=1e-12)
    assert one["gradients"].keys() == two["gradients"].keys()
    assert not any(name.startswith("encoder.stem") for name in one["gradients"])
    largest = max(g.abs().max() for g in one["gradients"].values())
    assert all(torch.allclose(g, two["gradients"][k], rtol=1e-6, atol=1e-6 * largest) for k, g in one["gradients"].items())
    assert all(torch.allclose(b.double(), two["buffers"][k].double(), rtol=1e-6) for k, b in one["buffers"].items())


def test_export_and_evaluate(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    assert export_model(checkpoint, path, (96, 64)) <= 2
    contract = read_contract(path)
    assert contract.input_size == (96, 64)
    assert "CamVid" in contract.metadata["freespace.training_data"]
    assert json.loads(contract.metadata["freespace.recipe"])[0]["epochs"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    with open_engine(path) as engine:
        rows = evaluate_model(engine, data, "val")
    key = ("camvid", "all", "freespace")
    assert rows[key].images == 3
    assert rows[key].tp + rows[key].fn == sum(
        np.count_nonzero(cv2.imread(str(p), cv2.IMREAD_UNCHANGED) == 3) for p in (data / "camvid/val/labels").iterdir()
    )
    assert all(plane == ("ego" if name == "bdd100k" else "freespace") for name, _, plane in rows)


def test_export_refuses(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        export_model(checkpoint, tmp_path / "m.onnx", (100, 64))
    (tmp_path / "other.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a checkpoint"):
        export_model(tmp_path / "other.pt", tmp_path / "m.onnx", (96, 64))
    assert not list(tmp_path.glob("*.onnx"))


def test_shipped_model_on_real_labelled_frames() -> None:
    """A tripwire, not a report: the measured numbers stand in the model card."""
    shared = Path(__file__).parents[2] / "shared/data"
    if not shared.exists():
        pytest.skip("the labelled data sets are not here")
    samples = [s for s in find_samples(shared) if split_of(s) == "val"]
    totals = {"camvid": Counts(), "idd_lite": Counts(), "bdd100k": Counts()}
    with open_engine(DEFAULT_MODEL) as engine:
        for sample in samples[::8]:
            image, planes = read_sample(sample, strict=True)
            scores = engine.segment([image]).values[0]
            plane = 1 if sample.dataset == "bdd100k" else 0
            upscaled = cv2.resize(scores[plane], (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)
            totals[sample.dataset] += count(upscaled > 127, planes[plane])
    assert totals["camvid"].iou > 0.9
    assert totals["idd_lite"].iou > 0.84
    assert totals["bdd100k"].iou > 0.7


def test_report_of_other_weights_is_not_built_in(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"weights": "0", "results": []}')
    with pytest.raises(ValueError, match="other weights"):
        export_model(checkpoint, tmp_path / "m.onnx", (96, 64), tmp_path / "report.json")
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_run_with_other_settings_is_not_resumed(data: Path, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"other settings \(epochs; epochs was 2\)"):
        train(small_recipe(epochs=3), run_in(checkpoint.parent, data))


def test_broken_checkpoint_is_the_users_matter(data: Path, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"half a checkpoint")
    with pytest.raises(ValueError, match="not a checkpoint"):
        train(small_recipe(epochs=1), run_in(tmp_path, data))


def test_second_phase_starts_from_the_first(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    still = small_recipe(epochs=1, optimiser={"rate": 1e-12})
    second = train(still, run_in(tmp_path, data, init=(checkpoint,)))
    network, state = load_network(second)
    before = load_network(checkpoint)[0].state_dict()
    weights = [k for k, v in before.items() if v.ndim == 4]
    assert all(torch.allclose(network.state_dict()[k], before[k]) for k in weights)
    assert [phase["epochs"] for phase in recipe(state)] == [2, 1]


def test_several_checkpoints_are_averaged(checkpoint: Path, tmp_path: Path) -> None:
    other = torch.load(checkpoint, weights_only=True)
    other["average"] = {k: v + 2 if v.dtype.is_floating_point else v for k, v in other["average"].items()}
    torch.save(other, tmp_path / "other.pt")
    one, both = (load_network(*paths)[0].state_dict() for paths in ([checkpoint], [checkpoint, tmp_path / "other.pt"]))
    assert all(torch.allclose(both[k], one[k] + 1, atol=1e-5) for k, v in one.items() if v.dtype.is_floating_point)


def test_items_made_ahead_keep_their_order_and_their_failures() -> None:
    assert list(ahead(iter(range(20)))) == list(range(20))

    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("broken image")

    taken = ahead(failing())
    assert next(taken) == 1
    with pytest.raises(ValueError, match="broken image"):
        next(taken)
    before = threading.active_count()
    for item in ahead(iter(range(1000))):
        if item == 2:
            break
    gc.collect()
    assert threading.active_count() <= before, "a loop that ends early leaves no thread behind"
