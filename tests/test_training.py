"""Training end to end on data made here: read, learn, resume, export, evaluate."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from engine import DEFAULT_MODEL, open_engine, read_contract  # noqa: E402
from perception.synthetic import render, scene_from_uri  # noqa: E402
from training.augment import augment  # noqa: E402
from training.datasets import CERTAIN, IGNORE, Sample, epoch_indices, find_samples, read_sample, split_of  # noqa: E402
from training.evaluate import evaluate_model  # noqa: E402
from training.export import export_model, load_network, recipe  # noqa: E402
from training.losses import bce_and_dice  # noqa: E402
from training.metrics import Counts, count  # noqa: E402
from training.models.freespace_net import FreespaceNet, start_as_bilinear  # noqa: E402
from training.trainer import TrainConfig, ahead, train  # noqa: E402


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
    out = tmp_path_factory.mktemp("run")
    return train(small_run(data, out, epochs=2))


def small_run(data: Path, out: Path, epochs: int) -> TrainConfig:
    return TrainConfig(
        data=str(data),
        out=str(out),
        pretrained=False,
        epochs=epochs,
        samples_per_epoch=16,
        batch=4,
        sizes=[(96, 64)],
        device="cpu",
    )


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


def test_resumed_run_equals_an_uninterrupted_one(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    config = small_run(data, tmp_path, epochs=2)
    state = {}

    def stop_after_first_epoch(*arguments: object) -> None:
        state.update(arguments[1])  # type: ignore[call-overload]
        torch.save(arguments[1], str(arguments[0]))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.trainer.save_checkpoint", stop_after_first_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert state["epoch"] == 1
    resumed = load_network(train(config))[0].state_dict()
    whole = load_network(checkpoint)[0].state_dict()
    assert all(torch.allclose(resumed[k].float(), whole[k].float(), atol=1e-4) for k in whole)


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
    with pytest.raises(ValueError, match=r"other settings \(epochs\)"):
        train(small_run(data, checkpoint.parent, epochs=3))


def test_broken_checkpoint_is_the_users_matter(data: Path, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"half a checkpoint")
    with pytest.raises(ValueError, match="not a checkpoint"):
        train(small_run(data, tmp_path, epochs=1))


def test_second_phase_starts_from_the_first(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    second = train(replace(small_run(data, tmp_path, epochs=1), init=str(checkpoint), encoder_rate=0.0, decoder_rate=0.0))
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
