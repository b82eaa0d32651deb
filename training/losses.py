"""Losses over planes, with unknown pixels left out, and weighted sums of them by name.

Shapes: logits float32 or float64 ``(N, K, h, w)``; targets uint8 ``(N, K, h, w)``, 0 to `CERTAIN` for probabilities 0 to 1,
or `IGNORE`. An unknown pixel has no part in value, gradient or normalisation, whatever its logit is; where nothing is known
a loss is 0 and so is its gradient. Every loss raises ValueError where shapes or dtype are others.

Losses of overlap (`dice`, `soft_iou`, `tversky`, `lovasz`) are means over the planes of single images that have anything to
find: a plane that is only known not to be there, as ``ego`` off a road whose lanes nobody drew, says nothing of overlap.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.datasets import CERTAIN, IGNORE

Labels = TypeVar("Labels", NDArray[np.uint8], Tensor)


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, mean over known pixels; least where the network says the target's own probability."""
    logits, truth, weight = known_part(logits, targets)
    return F.binary_cross_entropy_with_logits(logits, truth, weight, reduction="sum") / weight.sum().clamp(min=1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Softmax cross-entropy over the planes as exclusive classes and a background whose logit is 0, mean over known pixels.

    The class of a pixel is `to_index` of its targets, so it takes part only where every plane is labelled.
    """
    check(logits, targets)
    index = to_index(targets).long()
    known = index != IGNORE
    logits = torch.where(known[:, None], logits, 0)
    scores = torch.cat([torch.zeros_like(logits[:, :1]), logits], 1)
    return F.cross_entropy(scores, index, ignore_index=IGNORE, reduction="sum") / known.sum().clamp(min=1)


def focal(logits: Tensor, targets: Tensor, *, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """``alpha_t (1 - p_t)^gamma`` x binary cross-entropy, mean over known pixels (Lin et al. 2017).

    For soft targets t the factor is ``|t - p|^gamma``, the same for hard ones (Li et al. 2020, "Generalized focal loss").

    Raises:
        ValueError: gamma below 0, or alpha, the weight of positive pixels, not between 0 and 1.
    """
    if not gamma >= 0 or not 0 <= alpha <= 1:
        raise ValueError(f"gamma {gamma:g}, alpha {alpha:g}: wanted gamma of at least 0 and alpha between 0 and 1")
    logits, truth, weight = known_part(logits, targets)
    # A power below 1 has no finite slope at 0, where a saturated sigmoid arrives.
    distance = (truth - torch.sigmoid(logits)).abs().clamp(min=torch.finfo(logits.dtype).tiny)
    weight = weight * (alpha * truth + (1 - alpha) * (1 - truth)) * distance**gamma
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return (weight * entropy).sum() / (targets != IGNORE).sum().clamp(min=1)


def dice(logits: Tensor, targets: Tensor) -> Tensor:
    """``1 - (2|AB| + 1) / (|A| + |B| + 1)`` with probabilities for sets (Milletari et al. 2016)."""
    logits, truth, weight = known_part(logits, targets)
    scores = torch.sigmoid(logits) * weight
    overlap, total = (scores * truth).sum((2, 3)), (scores + truth).sum((2, 3))
    return mean_to_find(1 - (2 * overlap + 1) / (total + 1), truth)


def soft_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """``1 - (|AB| + 1) / (|A + B| + 1)``, the Jaccard loss, with probabilities for sets.

    Overlap and union are ``(a + b -+ |a - b|) / 2``: for hard targets the same as products, and for soft ones least where the
    network says the target (Wang et al. 2023, "Jaccard metric losses").
    """
    logits, truth, weight = known_part(logits, targets)
    scores = torch.sigmoid(logits) * weight
    total, apart = (scores + truth).sum((2, 3)), (scores - truth).abs().sum((2, 3))
    return mean_to_find(1 - (total - apart + 2) / (total + apart + 2), truth)


def tversky(logits: Tensor, targets: Tensor, *, alpha: float = 0.3, beta: float = 0.7) -> Tensor:
    """``1 - (TP + 1) / (TP + alpha FP + beta FN + 1)`` with probabilities for counts (Salehi et al. 2017).

    Raises:
        ValueError: alpha, the price of false positives, or beta, that of false negatives, is below 0.
    """
    if not alpha >= 0 or not beta >= 0:
        raise ValueError(f"alpha {alpha:g}, beta {beta:g}: wanted at least 0")
    logits, truth, weight = known_part(logits, targets)
    scores = torch.sigmoid(logits) * weight
    tp = (scores * truth).sum((2, 3))
    fp, fn = scores.sum((2, 3)) - tp, truth.sum((2, 3)) - tp
    return mean_to_find(1 - (tp + 1) / (tp + alpha * fp + beta * fn + 1), truth)


def lovasz(logits: Tensor, targets: Tensor) -> Tensor:
    """Lovász hinge, the convex surrogate of 1 - IoU for each plane of each image (Berman et al. 2018).

    Soft targets count as their likelier side. The paper also takes planes with nothing to find, for their highest logit alone;
    here they are left out as everywhere in this module.
    """
    logits, truth, weight = known_part(logits, targets)
    positive = (truth > 0.5).flatten(2)
    signs = positive.to(logits.dtype) * 2 - 1
    # Margins of unknown pixels are 0, so they are sorted behind all that count.
    errors = F.relu((1 - logits.flatten(2) * signs) * weight.flatten(2))
    errors, order = errors.sort(dim=2, descending=True)
    positive = positive.gather(2, order)
    size = positive.sum(2, keepdim=True)
    missed = (size - positive.cumsum(2)).to(logits.dtype)
    union = (size + (~positive).cumsum(2)).to(logits.dtype)
    # How much 1 - IoU grows with each further wrong pixel, in closed form: differences of neighbouring IoUs would leave few
    # digits in float32.
    growth = torch.where(positive, 1 / union, missed / (union * (union - 1)).clamp(min=1))
    return mean_to_find((errors * growth).sum(2), truth)


def boundary(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of the known pixels that are wrong, each weighed by its distance from the true outline (Kervadec et al. 2019).

    Of the losses of outlines this one has no parameter, and trusts labels least where annotators err: close to the outline. It
    punishes what lies far off, patches and holes, and goes with a loss of overlap or entropy. The distance is the one to the
    nearest known pixel of the other side, so a plane of an image takes part where both sides are known. The paper's
    ``sum(phi * p)`` less its constant ``sum(phi * t)`` is ``sum(|phi| |p - t|)``; the division by ``sum(|phi|)`` is ours, for
    values from 0 to 1 at any size. Soft targets count as their likelier side. Distances are computed on the CPU, one image
    after the other.
    """
    logits, truth, _ = known_part(logits, targets)
    positive = truth > 0.5
    sides = torch.stack([positive, ~positive], 2) & (targets != IGNORE)[:, :, None]
    distances = [outline_distance(plane[0], plane[1]) for plane in sides.flatten(0, 1).cpu().numpy()]
    distance = torch.from_numpy(np.stack(distances)).to(logits).reshape(logits.shape)
    wrong = (torch.sigmoid(logits) - positive.to(logits.dtype)).abs()
    total = distance.sum((2, 3))
    share = (wrong * distance).sum((2, 3)) / total.clamp(min=torch.finfo(logits.dtype).tiny)
    return share.sum() / (total > 0).sum().clamp(min=1)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "bce": bce,
    "cross_entropy": cross_entropy,
    "soft_iou": soft_iou,
    "dice": dice,
    "tversky": tversky,
    "focal": focal,
    "lovasz": lovasz,
    "boundary": boundary,
}


@dataclass(frozen=True)
class Term:
    """One weighted loss of a sum, its options by name."""

    weight: float
    name: str
    options: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        """As in the sum, without its weight: ``focal(gamma=3)``."""
        return self.name + (f"({', '.join(f'{k}={plain(v)}' for k, v in self.options)})" if self.options else "")

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        return LOSSES[self.name](logits, targets, **dict(self.options))


@dataclass(frozen=True)
class Loss:
    """A weighted sum of losses, made by `parse_loss`."""

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        return " + ".join(str(t) if t.weight == 1 else f"{plain(t.weight)}*{t}" for t in self.terms)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The weighted sum, a scalar."""
        return self.total(self.parts(logits, targets))

    def parts(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Each loss by its name as in the sum, without its weight."""
        return {str(term): term(logits, targets) for term in self.terms}

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """The weighted sum of `parts`, for who wants both and to compute them once."""
        return torch.stack([term.weight * parts[str(term)] for term in self.terms]).sum()


TERM = re.compile(
    r"\s*(?:(?P<weight>[-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*\*)?\s*(?P<name>[A-Za-z_]\w*)\s*(?:\((?P<options>[^()]*)\))?\s*"
)


def parse_loss(text: str) -> Loss:
    """A loss from its name or a sum: ``bce + 0.5*dice``, ``0.7*focal(gamma=3) + lovasz``.

    Raises:
        ValueError: no such sum, loss or option, or a value out of its range; the message says at which character.
    """
    terms: list[Term] = []
    start = 0
    while True:
        match = TERM.match(text, start)
        if not match:
            raise mistake(text, len(text) - len(text[start:].lstrip()), "wanted a loss")
        terms.append(parse_term(text, match))
        if [str(t) for t in terms].count(str(terms[-1])) > 1:
            raise mistake(text, match.start("name"), f"{terms[-1]} is there twice")
        if match.end() == len(text):
            return Loss(tuple(terms))
        if text[match.end()] != "+":
            raise mistake(text, match.end(), f"wanted '+' or the end, not {text[match.end()]!r}")
        start = match.end() + 1


def parse_term(text: str, match: re.Match[str]) -> Term:
    """One term of the sum ``text``. Raises ValueError as `parse_loss` does."""
    name = match["name"]
    if name not in LOSSES:
        raise mistake(text, match.start("name"), f"unknown loss {name!r}")
    weight = number(match["weight"] or "1")
    if weight is None or weight < 0:
        raise mistake(text, match.start("weight"), f"weight {match['weight']!r}: wanted a number of at least 0")
    known = [p.name for p in inspect.signature(LOSSES[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    options: dict[str, float] = {}
    for item in re.finditer(r"[^,]+", match["options"] or ""):
        key, _, value = (part.strip() for part in item[0].partition("="))
        at, parsed = match.start("options") + item.start(), number(value)
        if key not in known or key in options:
            names = f"its options are {', '.join(known)}" if known else "it has no options"
            raise mistake(text, at, f"{'unknown' if key not in known else 'second'} option {key!r} of {name}; {names}")
        if parsed is None:
            raise mistake(text, at, f"{key} of {name}: wanted a number, not {value!r}")
        options[key] = parsed
    term = Term(weight, name, tuple(options.items()))
    try:  # so that a value out of range is refused now and not in the first step of a run
        term(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.uint8))
    except ValueError as error:
        raise mistake(text, match.start("name"), f"{term}: {error}") from error
    return term


def number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def plain(value: float) -> str:
    """As a person writes it, and exactly."""
    return repr(float(value)).removesuffix(".0")


def mistake(text: str, at: int, what: str) -> ValueError:
    return ValueError(f"loss {text!r}, character {at + 1}: {what}; known losses: {', '.join(LOSSES)}, as in 'bce + 0.5*dice'")


def bce_and_dice(logits: Tensor, targets: Tensor, dice_weight: float = 0.5) -> Tensor:
    """`bce` plus ``dice_weight`` x `dice`: what ``bce + 0.5*dice`` gives."""
    return bce(logits, targets) + dice_weight * dice(logits, targets)


def to_index(targets: Labels) -> Labels:
    """Planes as exclusive classes: uint8 ``(..., K, h, w)`` of 0 to `CERTAIN` or `IGNORE` -> uint8 ``(..., h, w)``.

    0 is background and k + 1 is plane k. Where several planes are more likely than not the last one wins; a pixel with an
    unknown plane is `IGNORE`.
    """
    if isinstance(targets, np.ndarray):
        return np.asarray(to_index(torch.tensor(targets)).numpy(), np.uint8)
    numbers = torch.arange(1, targets.shape[-3] + 1, dtype=torch.uint8, device=targets.device)[:, None, None]
    index = torch.where(targets > CERTAIN // 2, numbers, 0).amax(-3)
    return torch.where((targets == IGNORE).any(-3), IGNORE, index)


def to_one_hot(index: Labels, planes: int) -> Labels:
    """Exclusive classes as targets: uint8 ``(..., h, w)`` of 0 to ``planes`` or `IGNORE` -> uint8 ``(..., planes, h, w)``.

    A plane is `CERTAIN` where it is the class and 0 elsewhere; an unknown pixel is `IGNORE` in every plane.

    Raises:
        ValueError: an index is above ``planes`` and not `IGNORE`.
    """
    if isinstance(index, np.ndarray):
        return np.asarray(to_one_hot(torch.tensor(index), planes).numpy(), np.uint8)
    wrong = index[(index > planes) & (index != IGNORE)]
    if wrong.numel():
        raise ValueError(f"index {int(wrong[0])} in the labels, wanted 0 to {planes}, or {IGNORE} for unknown")
    numbers = torch.arange(1, planes + 1, dtype=torch.uint8, device=index.device)[:, None, None]
    index = index.unsqueeze(-3)
    return torch.where(index == IGNORE, IGNORE, (index == numbers).to(torch.uint8) * CERTAIN)


def check(logits: Tensor, targets: Tensor) -> None:
    """Raises ValueError where they do not belong together."""
    if logits.ndim != 4 or logits.shape != targets.shape or targets.dtype != torch.uint8:
        raise ValueError(
            f"logits {tuple(logits.shape)} and {targets.dtype} targets {tuple(targets.shape)}: "
            f"wanted both (N, K, h, w), targets as torch.uint8"
        )


def known_part(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, probabilities of the targets, and 1 for known pixels; all are 0 on unknown ones, and so are the gradients."""
    check(logits, targets)
    known = targets != IGNORE
    truth = torch.where(known, targets, 0).to(logits.dtype) / CERTAIN
    return torch.where(known, logits, 0), truth, known.to(logits.dtype)


def mean_to_find(values: Tensor, truth: Tensor) -> Tensor:
    """Mean of ``values`` ``(N, K)`` over those planes of images that have a pixel more likely than not."""
    counted = (truth > 0.5).any(3).any(2)
    return (values * counted).sum() / counted.sum().clamp(min=1)


def outline_distance(positive: NDArray[np.bool_], negative: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Pixels between each known pixel and the outline, half a pixel before the nearest one of the other side.

    0 where neither side has it, and everywhere where one side is empty.
    """
    if not positive.any() or not negative.any():
        return np.zeros(positive.shape, np.float32)
    inside, outside = (
        cv2.distanceTransform((~other).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for other in (negative, positive)
    )
    return np.where(positive, inside - 0.5, np.where(negative, outside - 0.5, 0)).astype(np.float32)
