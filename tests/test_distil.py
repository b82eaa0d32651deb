"""Distillation: what a teacher's views hold, and that training takes them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from training.augment import random_view, take_view  # noqa: E402
from training.checkpoints import read_checkpoint  # noqa: E402
from training.datasets import CERTAIN, IGNORE, Sample, find_samples, find_views, read_targets, split_of  # noqa: E402
from training.distil import Teacher, look, parse_views, without_seams, write_views  # noqa: E402
from training.hints import relative  # noqa: E402
from training.losses import bce_and_dice  # noqa: E402
from training.recipe import HintConfig, Recipe  # noqa: E402
from training.trainer import Run, train  # noqa: E402

SIZE = (128, 64)
GREEN, RED, GREY = (0, 255, 0), (0, 0, 255), (114, 114, 114)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says drivable with the probability 0.9 where green exceeds red, else 0.1; RGB / 255 in."""
    weights = np.zeros((2, 3, 1, 1), np.float32)
    weights[1, :, 0, 0] = (-1, 1, 0)  # red, green, blue
    nodes = [
        helper.make_node("Conv", ["image", "weights"], ["difference"], kernel_shape=[1, 1]),
        helper.make_node("Sign", ["difference"], ["sign"]),
        helper.make_node("Mul", ["sign", "strength"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE[1], SIZE[0]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2, SIZE[1], SIZE[0]])],
        [
            onnx.numpy_helper.from_array(weights, "weights"),
            onnx.numpy_helper.from_array(np.array(np.log(9.0), np.float32), "strength"),
        ],
    )
    path = tmp_path_factory.mktemp("teacher") / "teacher.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def half_green() -> np.ndarray:
    """Upper half red, lower half green."""
    image = np.empty((96, 192, 3), np.uint8)
    image[:48], image[48:] = RED, GREEN
    return image


def test_teacher_reads_rgb(teacher_file: Path) -> None:
    score = Teacher(teacher_file).score(cv2.resize(half_green(), SIZE))
    assert score.shape == (SIZE[1], SIZE[0])
    assert np.allclose(score[:30], 0.1, atol=0.01)
    assert np.allclose(score[-30:], 0.9, atol=0.01)


@pytest.mark.parametrize("ego", [0, 1, IGNORE])
def test_label_and_teacher_are_blended(teacher_file: Path, ego: int) -> None:
    image = np.full((96, 192, 3), GREEN, np.uint8)
    planes = np.stack([np.full((96, 192), IGNORE, np.uint8), np.full((96, 192), ego, np.uint8)])
    view, targets = look(Teacher(teacher_file), image, planes, np.random.default_rng(1))
    wanted = 0.9 if ego == IGNORE else 0.6 * 0.9 + 0.4 * ego
    known = targets[1] != IGNORE
    assert known.mean() > 0.3
    assert np.allclose(targets[1][known] / CERTAIN, wanted, atol=0.01)
    assert np.all(targets[0] == IGNORE), "the teacher says nothing of the other plane"
    outside = np.all(view == GREY, axis=2)
    assert np.all(targets[1][outside] == IGNORE), "nothing is known outside the image"


def test_off_the_road_no_teacher_is_asked(teacher_file: Path) -> None:
    planes = np.zeros((2, 96, 192), np.uint8)
    _, targets = look(Teacher(teacher_file), np.full((96, 192, 3), GREEN, np.uint8), planes, np.random.default_rng(1))
    assert set(np.unique(targets[1])) <= {0, IGNORE}


def test_seams_between_lanes_are_closed() -> None:
    score = np.full((360, 640), 0.9, np.float32)
    score[:, 300:304] = 0.05  # a lane marking
    score[:, 400:440] = 0.05  # a car
    closed = without_seams(score)
    assert np.all(closed[:, 300:304] == np.float32(0.9))
    assert np.all(closed[:, 405:435] == np.float32(0.05))


def test_views_are_written_read_and_trained_on(teacher_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "data/bdd100k/train"
    (data / "images").mkdir(parents=True)
    (data / "labels").mkdir()
    for name in ("a", "b", "c", "d"):
        cv2.imwrite(str(data / f"images/{name}.jpg"), half_green())
        cv2.imwrite(str(data / f"labels/{name}.png"), np.repeat([[0], [1]], 48, 0).repeat(192, 1).astype(np.uint8))
    video = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (192, 96))
    for _ in range(11):
        video.write(half_green())
    video.release()
    samples = [Sample("bdd100k", n, data / f"images/{n}.jpg", data / f"labels/{n}.png") for n in ("a", "b")]
    views = tmp_path / "views"
    count = write_views(Teacher(teacher_file), samples, [tmp_path / "clip.avi"], {"bdd100k": 2, "footage": 1}, views)
    assert count == 2 * 2 + 3, "one frame a second: 0, 1 and 2 s"
    origin = json.loads((views / "views.json").read_text())
    assert origin["views"] == {"bdd100k": 4, "footage": 3}
    assert origin["footage"] == ["clip.avi"]

    found = find_views(views)
    assert [s.dataset for s in found] == ["bdd100k"] * 4 + ["footage"] * 3
    image, targets = read_targets(found[0])
    assert (image.shape, targets.shape) == ((360, 640, 3), (2, 360, 640))
    green = (image[..., 1] > 200) & (image[..., 2] < 60)
    assert np.median(targets[1][green & (targets[1] != IGNORE)]) == pytest.approx((0.6 * 0.9 + 0.4) * CERTAIN, abs=1)

    recipe = Recipe(pretrained=False, epochs=1, samples_per_epoch=8, batch=4, sizes=["96x64"])
    run = Run(tmp_path / "data", tmp_path / "run", views=views, device="cpu")
    assert read_checkpoint(train(recipe, run))["views"]["views"] == {"bdd100k": 4, "footage": 3}


def test_unfinished_views_are_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "bdd100k").mkdir()
    cv2.imwrite(str(tmp_path / "bdd100k/0.jpg"), half_green())
    with pytest.raises(FileNotFoundError, match=r"views\.json"):
        find_views(tmp_path)


def test_soft_targets_are_met_at_their_own_probability() -> None:
    """The cross-entropy part is least where the network says what the target says."""
    target = torch.full((1, 2, 4, 4), round(0.7 * CERTAIN), dtype=torch.uint8)
    losses = [
        bce_and_dice(torch.full((1, 2, 4, 4), float(np.log(p / (1 - p)))), target, dice_weight=0).item()
        for p in (0.5, 0.65, 0.7, 0.75, 0.9)
    ]
    assert np.argmin(losses) == 2


@pytest.mark.parametrize("text", ["bdd100k", "bdd100k=x", "=,", "", "bdd100k=-1", "bdd=4"])
def test_broken_numbers_of_views_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="wanted"):
        parse_views(text)


def test_other_networks_are_no_teachers(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match=r"tiny\.onnx"):
        Teacher(tiny_model)


def test_hints_are_written_and_learnt_from(teacher_file: Path, tmp_path: Path) -> None:
    """The hint of the made-up teacher is the sign of green less red: the head learns it, and the loss says so."""
    folder = tmp_path / "data/bdd100k/train"
    for part, image in (("images", half_green()), ("labels", np.zeros((96, 192), np.uint8))):
        (folder / part).mkdir(parents=True)
        for i in range(6):
            cv2.imwrite(str(folder / part / f"{i}.{'jpg' if part == 'images' else 'png'}"), image)
    samples = [s for s in find_samples(tmp_path / "data") if split_of(s) == "train"]
    write_views(Teacher(teacher_file, "sign"), samples, [], {"bdd100k": 3}, tmp_path / "views")
    origin = json.loads((tmp_path / "views/views.json").read_text())["hints"]
    hint = np.load(next((tmp_path / "views/bdd100k").glob("*.npy")))
    assert origin["layer"] == "sign"
    assert hint.dtype == np.float16
    assert hint.shape == (2, SIZE[1], SIZE[0])
    assert abs(origin["mean"][1]) < 1
    recipe = Recipe(
        pretrained=False,
        epochs=4,
        samples_per_epoch=32,
        batch=4,
        sizes=["96x64"],
        hints={"weight": 1.0, "layer": "mix8"},
        planes=["ego"],
        precision="fp32",
    )
    path = train(recipe, Run(tmp_path / "data", tmp_path / "run", views=tmp_path / "views", device="cpu"))
    steps = [line.split(",") for line in (tmp_path / "run/steps.csv").read_text().splitlines()]
    column = steps[0].index("loss/hints")
    values = [float(row[column]) for row in steps[1:]]
    assert np.mean(values[-8:]) < 0.5 * np.mean(values[:8])
    assert all(not name.startswith("hint") for name in read_checkpoint(path)["average"]), "the head is thrown away"
    with pytest.raises(ValueError, match="no layer 'mix9'"):
        train(
            recipe.model_copy(update={"hints": HintConfig(weight=1.0, layer="mix9")}),
            Run(tmp_path / "data", tmp_path / "o", views=tmp_path / "views"),
        )
    (tmp_path / "views/views.json").write_text("{}")
    with pytest.raises(ValueError, match="no hints"):
        train(recipe, Run(tmp_path / "data", tmp_path / "o", views=tmp_path / "views"))


def test_hints_move_with_their_image() -> None:
    """A bright spot in a hint lies where the same spot of the image lies after a flip, a zoom and a shift."""
    image, size = np.zeros((144, 256, 3), np.uint8), (128, 64)
    cv2.circle(image, (180, 60), 12, (255, 255, 255), -1)
    rng = np.random.default_rng(3)
    for _ in range(8):
        matrix = random_view((256, 144), size, rng)
        view, _ = take_view(image, np.zeros((1, 144, 256), np.uint8), matrix, size)
        hint = torch.from_numpy(cv2.resize(image[..., 0], (32, 18), interpolation=cv2.INTER_AREA)).float()[None, None]
        grid = torch.nn.functional.affine_grid(relative(matrix, (256, 144), size)[None], [1, 1, 64, 128], align_corners=False)
        moved = torch.nn.functional.grid_sample(hint, grid, align_corners=False)[0, 0].numpy()
        spot = (view[..., 0] > 128) & (view[..., 1] > 128)
        if spot.sum() > 60:
            assert moved[spot].mean() > 100
            ys, xs = np.nonzero(spot)
            weights = moved / moved.sum()
            centre = (weights * np.arange(128)).sum(), (weights.T * np.arange(64)).sum()
            assert abs(centre[0] - xs.mean()) < 4
            assert abs(centre[1] - ys.mean()) < 4
