"""Losses against NumPy written from their definitions, and sums of them by name."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from training.datasets import CERTAIN, IGNORE  # noqa: E402
from training.losses import LOSSES, bce_and_dice, parse_loss, to_index, to_one_hot  # noqa: E402

F64 = NDArray[np.float64]


def batch(seed: int = 0, soft: bool = False, side: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Float64 logits and targets (3, 2, side, side): unknown pixels, a plane without labels, one with nothing to find."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (3, 2, side, side))
    targets = rng.integers(0, CERTAIN + 1, logits.shape) if soft else rng.integers(0, 2, logits.shape) * CERTAIN
    targets[rng.random(logits.shape) < 0.2] = IGNORE
    targets[1, 1] = IGNORE
    targets[2, 0][targets[2, 0] != IGNORE] = 0
    return torch.tensor(logits), torch.tensor(targets.astype(np.uint8))


# The definitions once more, plane by plane over the known pixels alone, in NumPy.


def planes_of(logits: torch.Tensor, targets: torch.Tensor) -> list[tuple[F64, F64]]:
    """Logits and probabilities of the known pixels of each plane of each image."""
    pairs = zip(
        logits.numpy().reshape(-1, logits[0, 0].numel()), targets.numpy().reshape(-1, targets[0, 0].numel()), strict=True
    )
    return [(z[t != IGNORE], t[t != IGNORE] / 254) for z, t in pairs]


def sigmoid(z: F64) -> F64:
    return 1 / (1 + np.exp(-z))


def entropy(z: F64, t: F64) -> F64:
    return -(t * np.log(sigmoid(z)) + (1 - t) * np.log(sigmoid(-z)))


def over_pixels(logits: torch.Tensor, targets: torch.Tensor, of) -> float:
    return float(np.mean(np.concatenate([of(z, t) for z, t in planes_of(logits, targets)])))


def over_planes(logits: torch.Tensor, targets: torch.Tensor, of) -> float:
    return float(np.mean([of(z, t) for z, t in planes_of(logits, targets) if (t > 0.5).any()]))


def numpy_focal(z: F64, t: F64) -> F64:
    p = sigmoid(z)
    alpha_t, p_t = np.where(t == 1, 0.25, 0.75), np.where(t == 1, p, 1 - p)
    soft = (0.25 * t + 0.75 * (1 - t)) * (t - p) ** 2 * entropy(z, t)
    return np.where((t == 0) | (t == 1), -alpha_t * (1 - p_t) ** 2 * np.log(p_t), soft)


def numpy_dice(z: F64, t: F64) -> float:
    p = sigmoid(z)
    return 1 - (2 * np.sum(p * t) + 1) / (np.sum(p) + np.sum(t) + 1)


def numpy_iou(z: F64, t: F64) -> float:
    p = sigmoid(z)
    return 1 - (np.sum(np.minimum(p, t)) + 1) / (np.sum(np.maximum(p, t)) + 1)


def numpy_tversky(z: F64, t: F64) -> float:
    p = sigmoid(z)
    tp, fp, fn = np.sum(p * t), np.sum(p * (1 - t)), np.sum((1 - p) * t)
    return 1 - (tp + 1) / (tp + 0.3 * fp + 0.7 * fn + 1)


def numpy_lovasz(z: F64, t: F64) -> float:
    """The Lovász extension from its definition: 1 - IoU of the set of the worst i pixels, by differences."""
    truth = t > 0.5
    errors = np.maximum(0, 1 - z * np.where(truth, 1, -1))
    loss, wrong, before = 0.0, np.zeros(len(z), bool), 0.0
    for i in np.argsort(-errors):
        wrong[i] = True
        said = truth ^ wrong
        after = 1 - np.sum(said & truth) / np.sum(said | truth)
        loss, before = loss + errors[i] * (after - before), after
    return loss


def numpy_boundary(logits: torch.Tensor, targets: torch.Tensor) -> float:
    shares = []
    for z, t in zip(logits.numpy().reshape(-1, *logits.shape[2:]), targets.numpy().reshape(-1, *logits.shape[2:]), strict=True):
        sides = {True: np.argwhere((t > 127) & (t != IGNORE)), False: np.argwhere(t <= 127)}
        wrong, total = 0.0, 0.0
        for side, points in sides.items():
            for y, x in points if len(sides[not side]) else ():
                far = np.hypot(*(sides[not side] - (y, x)).T).min() - 0.5
                wrong, total = wrong + far * (sigmoid(-z[y, x]) if side else sigmoid(z[y, x])), total + far
        shares += [wrong / total] if total else []
    return float(np.mean(shares))


def numpy_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> float:
    terms = []
    for n, y, x in itertools.product(*(range(s) for s in (logits.shape[0], *logits.shape[2:]))):
        z, t = logits[n, :, y, x].numpy(), targets[n, :, y, x].numpy()
        if not (t == IGNORE).any():
            on = np.flatnonzero(t > 127)
            terms.append(np.log(1 + np.exp(z).sum()) - (z[on[-1]] if on.size else 0))
    return float(np.mean(terms))


REFERENCES = {
    "bce": lambda z, t: over_pixels(z, t, entropy),
    "cross_entropy": numpy_cross_entropy,
    "soft_iou": lambda z, t: over_planes(z, t, numpy_iou),
    "dice": lambda z, t: over_planes(z, t, numpy_dice),
    "tversky": lambda z, t: over_planes(z, t, numpy_tversky),
    "focal": lambda z, t: over_pixels(z, t, numpy_focal),
    "lovasz": lambda z, t: over_planes(z, t, numpy_lovasz),
    "boundary": numpy_boundary,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("soft", [False, True])
def test_value_is_the_definition(name: str, soft: bool) -> None:
    logits, targets = batch(seed=1, soft=soft)
    assert LOSSES[name](logits, targets).item() == pytest.approx(REFERENCES[name](logits, targets), rel=1e-6)
    assert LOSSES[name](logits.float(), targets).item() == pytest.approx(REFERENCES[name](logits, targets), rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("soft", [False, True])
def test_gradient_is_the_slope(name: str, soft: bool) -> None:
    logits, targets = batch(seed=2, soft=soft, side=4)
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, targets), logits.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_unknown_pixels_have_no_part(name: str) -> None:
    """Not whatever their logits are, nor by being there: the planes of an image that are all unknown may as well be missing."""
    logits, targets = batch(seed=3)
    value = LOSSES[name](logits, targets)
    strange = torch.where(targets == IGNORE, torch.tensor([torch.nan, torch.inf, 1e300]).double()[torch.arange(9) % 3], logits)
    strange.requires_grad_()
    loss = LOSSES[name](strange, targets)
    loss.backward()
    assert loss.item() == value.item()
    assert torch.all(strange.grad[targets == IGNORE] == 0)
    assert torch.all(torch.isfinite(strange.grad))
    assert torch.any(strange.grad != 0)


@pytest.mark.parametrize("name", LOSSES)
def test_image_without_labels_changes_nothing(name: str) -> None:
    logits, targets = batch(seed=4)
    more = torch.cat([targets, torch.full_like(targets[:2], IGNORE)])
    assert LOSSES[name](torch.cat([logits, logits[:2]]), more).item() == pytest.approx(LOSSES[name](logits, targets).item())


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"cross_entropy"}))
def test_plane_without_labels_changes_nothing(name: str) -> None:
    logits, targets = batch(seed=5)
    alone = LOSSES[name](logits[:, :1], targets[:, :1])
    other = targets.clone()
    other[:, 1] = IGNORE
    assert LOSSES[name](logits, other).item() == pytest.approx(alone.item())


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_known_is_nothing_lost(name: str) -> None:
    logits = torch.randn(2, 2, 5, 7, requires_grad=True)
    loss = LOSSES[name](logits, torch.full((2, 2, 5, 7), IGNORE, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert torch.all(logits.grad == 0)


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in LOSSES), ("focal", {"gamma": 0.5})])
def test_large_logits_are_stable_in_float32(name: str, options: dict[str, float]) -> None:
    _, targets = batch(seed=6)
    right = torch.where(targets == CERTAIN, 1e4, -1e4)
    if name == "cross_entropy":  # exclusive: where both planes are there the last one wins
        right[:, 0][targets[:, 1] == CERTAIN] = -1e4
    for logits, least, most in ((right, 0, 1e-3), (-right, 0.2, 2.1e4)):
        logits = logits.clone().requires_grad_()
        loss = LOSSES[name](logits, targets, **options)
        loss.backward()
        assert least <= loss.item() <= most
        assert torch.all(torch.isfinite(logits.grad))


@pytest.mark.parametrize("name", ["bce", "soft_iou", "focal"])
def test_soft_targets_are_met_at_their_own_probability(name: str) -> None:
    target = torch.full((1, 1, 4, 4), round(0.7 * CERTAIN), dtype=torch.uint8)
    said = (0.5, 0.65, 0.7, 0.75, 0.9)
    losses = [LOSSES[name](torch.full((1, 1, 4, 4), float(np.log(p / (1 - p)))), target).item() for p in said]
    assert np.argmin(losses) == 2


def test_lovasz_of_confident_answers_is_the_jaccard_distance() -> None:
    """Where each logit is 0 or right by more than 1, the errors are 1 and 0 and the extension is the set function itself."""
    truth = torch.zeros(1, 1, 4, 8, dtype=torch.uint8)
    truth[..., :4] = CERTAIN
    logits = torch.where(truth == CERTAIN, 2.0, -2.0)
    logits[0, 0, 0, 2:7] = 0.0  # two missed, three too many: 1 - IoU = 5 / 19
    assert LOSSES["lovasz"](logits, truth).item() == pytest.approx(5 / 19)


def test_boundary_weighs_errors_by_their_distance() -> None:
    truth = torch.zeros(1, 1, 1, 8, dtype=torch.uint8)
    truth[..., :4] = CERTAIN  # distances 3.5 2.5 1.5 0.5 | 0.5 1.5 2.5 3.5, 16 in all
    right = torch.where(truth == CERTAIN, 50.0, -50.0)
    for column, share in ((0, 3.5 / 16), (4, 0.5 / 16)):
        logits = right.clone()
        logits[..., column] *= -1
        assert LOSSES["boundary"](logits, truth).item() == pytest.approx(share)
    assert LOSSES["boundary"](-right, truth).item() == pytest.approx(1)


def test_focal_without_focus_is_half_the_entropy() -> None:
    logits, targets = batch(seed=7, soft=True)
    half = LOSSES["focal"](logits, targets, gamma=0, alpha=0.5)
    assert half.item() == pytest.approx(0.5 * LOSSES["bce"](logits, targets).item())


def test_tversky_of_halves_is_dice() -> None:
    """But for the 1 that is added: in large planes it does not matter."""
    logits, targets = batch(seed=8, side=64)
    even = LOSSES["tversky"](logits, targets, alpha=0.5, beta=0.5).item()
    assert even == pytest.approx(LOSSES["dice"](logits, targets).item(), abs=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_and_types_are_checked(name: str) -> None:
    logits, targets = batch()
    for wrong in (targets[:, :1], targets.float(), targets[0]):
        with pytest.raises(ValueError, match="wanted both"):
            LOSSES[name](logits, wrong)


# Sums by name.


def test_usual_sum_is_the_usual_function_to_the_bit() -> None:
    for seed in range(5):
        logits, targets = batch(seed, soft=seed % 2 == 1, side=33)
        results = []
        for loss in (parse_loss("bce + 0.5*dice"), bce_and_dice, earlier_bce_and_dice):
            z = logits.float().requires_grad_()
            value = loss(z, targets)
            value.backward()
            results.append((value.item(), z.grad))
        assert results[0][0] == results[1][0] == results[2][0]
        assert torch.equal(results[0][1], results[1][1])
        assert torch.equal(results[0][1], results[2][1])


def earlier_bce_and_dice(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """As the first released weights were trained with: their curves can be made again."""
    known = targets != IGNORE
    truth = torch.where(known, targets, 0).to(logits.dtype) / CERTAIN
    weight = known.to(logits.dtype)
    entropies = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, weight, reduction="sum")
    scores, truth = torch.sigmoid(logits) * weight, truth * weight
    dice = 1 - (2 * (scores * truth).sum((2, 3)) + 1) / ((scores + truth).sum((2, 3)) + 1)
    counted = ((truth > 0.5) & known).any(3).any(2)
    return entropies / weight.sum().clamp(min=1) + 0.5 * ((dice * counted).sum() / counted.sum().clamp(min=1))


def test_sum_and_its_parts() -> None:
    logits, targets = batch(seed=9)
    loss = parse_loss(" 0.7*focal(gamma=3, alpha=0.5)+lovasz + 2e-1 * dice")
    parts = loss.parts(logits, targets)
    assert list(parts) == ["focal(gamma=3, alpha=0.5)", "lovasz", "dice"]
    assert parts["focal(gamma=3, alpha=0.5)"] == LOSSES["focal"](logits, targets, gamma=3, alpha=0.5)
    wanted = 0.7 * parts["focal(gamma=3, alpha=0.5)"] + parts["lovasz"] + 0.2 * parts["dice"]
    assert loss(logits, targets).item() == pytest.approx(wanted.item())
    assert loss.total(parts).item() == pytest.approx(wanted.item())
    assert str(loss) == "0.7*focal(gamma=3, alpha=0.5) + lovasz + 0.2*dice"
    assert parse_loss(str(loss)) == loss


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "character 1: wanted a loss"),
        ("bce +", "character 6: wanted a loss"),
        ("bce + 0.5*dise", "character 11: unknown loss 'dise'"),
        ("bce - dice", "character 5: wanted '+' or the end, not '-'"),
        ("bce dice", "character 5: wanted '+' or the end, not 'd'"),
        ("bce + -1*dice", "character 7: weight '-1'"),
        ("1.2.3*dice", "character 1: weight '1.2.3'"),
        ("1e999*dice", "character 1: weight '1e999'"),
        ("dice + 0.5 * dice", "character 14: dice is there twice"),
        ("focal(gama=3)", "character 7: unknown option 'gama' of focal; its options are gamma, alpha"),
        ("focal(gamma=3, gamma=2)", "second option 'gamma'"),
        ("focal(3)", "unknown option '3'"),
        ("dice(gamma=3)", "it has no options"),
        ("focal(gamma=three)", "wanted a number, not 'three'"),
        ("focal(gamma=-1)", "character 1: focal(gamma=-1): gamma -1"),
        ("bce + focal(alpha=2)", "alpha 2"),
        ("tversky(beta=-1)", "beta -1"),
        ("focal(gamma=3", "wanted '+' or the end"),
    ],
)
def test_mistakes_in_a_sum_are_named_with_their_place(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="known losses: bce, cross_entropy, soft_iou, dice") as error:
        parse_loss(text)
    assert message in str(error.value)


@given(
    text=st.lists(
        st.sampled_from(["bce", "dice", "focal", "(", ")", "gamma=", ",", "0.3333333", "1e-9", "+", "*", "-", " "])
    ).map("".join)
)
@settings(max_examples=100, deadline=None)
def test_any_text_is_a_sum_or_a_mistake(text: str) -> None:
    try:
        loss = parse_loss(text)
    except ValueError:
        return
    assert parse_loss(str(loss)) == loss


# Planes and classes.


def test_classes_of_planes_by_hand() -> None:
    targets = np.array([[[0, 254, 254, 255, 100]], [[0, 0, 254, 254, 200]]], np.uint8)
    wanted = np.array([[0, 1, 2, IGNORE, 2]], np.uint8)
    assert np.array_equal(to_index(targets), wanted)
    assert torch.equal(to_index(torch.tensor(targets)), torch.tensor(wanted))
    one_hot = to_one_hot(wanted, 2)
    assert one_hot.tolist() == [[[0, 254, 0, 255, 0]], [[0, 0, 254, 255, 254]]]
    assert one_hot.dtype == np.uint8


@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7), (2, 3, 5, 7)])
def test_classes_and_planes_go_round(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    index = rng.choice(np.array([0, 1, 2, 3, IGNORE], np.uint8), shape)
    index.setflags(write=False)
    one_hot = to_one_hot(index, 3)
    assert one_hot.shape == (*shape[:-2], 3, *shape[-2:])
    assert np.array_equal(to_index(one_hot), index)
    tensor = torch.tensor(index)
    assert torch.equal(to_one_hot(tensor, 3), torch.tensor(one_hot))
    assert torch.equal(to_index(to_one_hot(tensor, 3)), tensor)
    assert to_one_hot(tensor, 3).dtype == torch.uint8
    assert np.array_equal(to_one_hot(to_index(one_hot), 3), one_hot), "also from exclusive planes"


def test_class_without_a_plane_is_refused() -> None:
    with pytest.raises(ValueError, match="index 3 in the labels, wanted 0 to 2"):
        to_one_hot(np.array([[0, 3]], np.uint8), 2)
