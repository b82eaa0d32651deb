"""What training will see: labelled images, and random views of them, as pages to look at."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product, zip_longest
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.files import write_whole
from training.annotations.classes import Classes
from training.annotations.files import encode
from training.annotations.overlay import UNKNOWN_COLOUR, overlay, palette, tile
from training.augment import (
    DEFAULT,
    EFFECTS,
    GEOMETRY,
    Augmentation,
    apply_effects,
    choose,
    take_view,
    view_matrix,
)
from training.datasets import CERTAIN, IGNORE, PLANES, Sample, read_targets

U8 = NDArray[np.uint8]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
COLUMNS = 4  # of the page of effects
CAPTION_PX, LETTERS = 28, 0.6
STATES = (0, 1, IGNORE)  # of one plane
ON_EVERY_VIEW = 0.99  # a probability from which on an effect is not worth naming


def write_preview(
    samples: Sequence[Sample],
    out: Path,
    *,
    augmentation: Augmentation = DEFAULT,
    size: tuple[int, int] = (448, 256),
    count: int = 6,
    views: int = 4,
    width: int = 576,
    seed: int = 1,
) -> list[Path]:
    """Write two pages: ``out``, a row for each image and random views of it, and ``<out>-effects``, each effect by itself.

    Labels lie on the images half transparent, as in `annotations.overlay`: one colour for each state of the planes, named at
    the foot of the page, grey where all of them are unknown, nothing where all of them are 0. A view says what was done to it,
    save what is done to every view.

    Args:
        out: .jpg, .png or .webp.
        size: (width, height) of the views, as the network will see them.
        count: images, taken in turn from the data sets and spread over each.
        views: of each image.
        width: to which wider images are shrunk first, as in training.

    Returns:
        the files written.

    Raises:
        ValueError: no samples, another suffix, or an image that cannot be read.
        OSError: a page cannot be written.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{out}: wanted a picture, {', '.join(SUFFIXES)}")
    if not samples:
        raise ValueError("no samples to show")
    chosen = spread(samples, count)
    images = [read_targets(sample, width) for sample in chosen]
    brightest = max(images, key=lambda pair: float(pair[0].mean()))  # which shows most of what can be done to it
    pages = {
        out: views_page(chosen, images, augmentation, size, views, seed),
        out.with_stem(f"{out.stem}-effects"): effects_page(*brightest, augmentation, size, seed),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, page in pages.items():
        write_whole(path, encode(page, path.suffix.lower()))
    return list(pages)


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most ``count`` of the samples: one of each data set in turn, spread evenly over the images of each."""
    sets: dict[str, list[Sample]] = {}
    for sample in samples:
        sets.setdefault(sample.dataset, []).append(sample)
    wanted = -(-count // len(sets))
    parts = [
        [own[int(i)] for i in np.unique(np.linspace(0, len(own) - 1, min(wanted, len(own))).round())] for own in sets.values()
    ]
    return [sample for turn in zip_longest(*parts) for sample in turn if sample is not None][:count]


def views_page(
    samples: Sequence[Sample],
    images: Sequence[tuple[U8, U8]],
    augmentation: Augmentation,
    size: tuple[int, int],
    views: int,
    seed: int,
) -> U8:
    """Picture ``(h, w, 3)``: a row for each sample, with its image and targets as `read_targets` gives them."""
    rows = []
    for number, (sample, (image, targets)) in enumerate(zip(samples, images, strict=True)):
        title = f"{sample.dataset}: {sample.image.name}, {image.shape[1]}x{image.shape[0]}"
        row = [picture(image, targets, title if sample.condition == "any" else f"{title}, {sample.condition}")]
        limits = augmentation.gentle() if sample.view else augmentation
        for turn in range(views):
            rng = np.random.default_rng([seed, number, turn])
            view, labels, names = one_view(image, targets, size, choose(augmentation, rng), limits, rng)
            told = [name for name in names if getattr(augmentation, name) < ON_EVERY_VIEW]
            row.append(picture(view, labels, ", ".join(told) or "-"))
        rows.append(np.hstack(row))
    present = sorted({int(rank) for _, targets in images for rank in np.unique(ranks_of(targets))})
    return np.vstack([*rows, legend(present, rows[0].shape[1])])


def effects_page(image: U8, targets: U8, augmentation: Augmentation, size: tuple[int, int], seed: int) -> U8:
    """Picture ``(h, w, 3)``: an image as it is, then with each effect, whatever its probability."""
    tiles = []
    for name in ("", *EFFECTS):
        names = [name, "zoom"] if name == "shift" else [name]  # there is nothing to shift without a zoom
        view, labels, applied = one_view(image, targets, size, names, augmentation, np.random.default_rng(seed))
        often = f"{name}, {getattr(augmentation, name):.0%} of the views" if name else "as it is"
        tiles.append(picture(view, labels, often if not name or name in applied else f"{often} (not of this image)"))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % COLUMNS)
    return np.vstack([np.hstack(tiles[i : i + COLUMNS]) for i in range(0, len(tiles), COLUMNS)])


def one_view(
    image: U8, targets: U8, size: tuple[int, int], names: Sequence[str], limits: Augmentation, rng: np.random.Generator
) -> tuple[U8, U8, list[str]]:
    """A view with the effects called ``names``, and those of them that changed something."""
    matrix = view_matrix((image.shape[1], image.shape[0]), size, names, limits, rng)
    view, labels = take_view(image, targets, matrix, size)
    view, applied = apply_effects(view, names, rng)
    return view, labels, [name for name in names if name in GEOMETRY or name in applied]


def all_states() -> Classes:
    """A class for each combination of what the planes can be, so that `overlay` has a colour for each."""
    states = {" ".join(map(str, values)): values for values in product(STATES, repeat=len(PLANES)) if any(values)}
    return Classes(PLANES, (0,) * len(PLANES), states)


def ranks_of(targets: U8) -> NDArray[np.int32]:
    """Class of each pixel in `all_states`, for targets ``(K, h, w)`` of 0 to `CERTAIN`, or `IGNORE`; soft ones are rounded.

    What is not ``freespace`` is nothing else either, labelled or not.
    """
    state = np.where(targets == IGNORE, STATES.index(IGNORE), targets > CERTAIN // 2)
    state[:, state[PLANES.index("freespace")] == 0] = 0
    rank = np.zeros(targets.shape[1:], np.int32)
    for plane in state:
        rank = rank * len(STATES) + plane
    return rank


def picture(image: U8, targets: U8, caption: str) -> U8:
    """The image with its labels on it, in a tile with a caption, whose letters get smaller when there are many."""
    page = tile(overlay(image, ranks_of(targets), all_states()))
    wide = cv2.getTextSize(caption, cv2.FONT_HERSHEY_SIMPLEX, LETTERS, 1)[0][0]
    scale = LETTERS * min(1.0, (page.shape[1] - 12) / max(1, wide))
    page = np.vstack([np.zeros((CAPTION_PX, page.shape[1], 3), np.uint8), page])
    cv2.putText(page, caption, (6, CAPTION_PX - 8), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return page


def legend(ranks: Sequence[int], width: int) -> U8:
    """A line ``(h, width, 3)`` that says what the colours of some classes of `all_states` mean."""
    line = np.zeros((CAPTION_PX, width, 3), np.uint8)
    words = {0: "not", 1: "drivable", IGNORE: "unknown"}
    states = [(0,) * len(PLANES), *all_states().values.values()]
    x = 6
    for rank in ranks:
        text = ", ".join(f"{plane} {words[value]}" for plane, value in zip(PLANES, states[rank], strict=True))
        line[6:-6, x : x + 24] = palette(all_states())[rank]
        cv2.rectangle(line, (x, 6), (x + 24, CAPTION_PX - 7), UNKNOWN_COLOUR, 1)
        cv2.putText(line, text, (x + 32, CAPTION_PX - 8), cv2.FONT_HERSHEY_SIMPLEX, LETTERS, (255, 255, 255), 1, cv2.LINE_AA)
        x += 32 + cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, LETTERS, 1)[0][0] + 24
    return line
