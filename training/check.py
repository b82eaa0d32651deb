"""A look at all labelled data before anyone trains on it: what there is, and what is wrong with it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from training.annotations.base import counted
from training.datasets import (
    IGNORE,
    MASKS,
    PLANES,
    READERS,
    SPLITS,
    Sample,
    read_label,
    read_planes,
    survey,
    without_labels,
)
from training.splits import FRACTIONS, split_samples, unit_of

VALUES: dict[str, frozenset[int]] = {
    "camvid": frozenset(range(12)),
    "idd_lite": frozenset({*range(7), IGNORE}),
    "bdd100k": frozenset({0, 1}),
}
"""What the labels of the public data sets may hold."""

NEAR_BITS = 4  # of 64: images of one scene from one place; different scenes differ by 8 and more on the public data sets
FLAT = 2.0  # grey levels: a thumbnail with a smaller standard deviation has no features to compare
BLOCK = 256
SHOWN = 10  # problems of a kind that are printed
FEW = 10  # images of a split: fewer say little

NEAR = "nearly equals an image of another split"
ADVICE = {
    NEAR: "on such images the IoU comes out better than on a new drive; put both sequences into one split (--splits), or leave "
    "one of the two images out"
}
"""What follows from problems of a kind and what to do, said once for all of them."""
MORE = "add sequences, or say which it gets in a file of splits (--splits)"
EMPTY = {
    "train": ": there is nothing to train on; " + MORE,
    "dev": ": training shows no IoU and writes no best.pt; raise its share (--set data.dev=0.2), " + MORE,
    "val": ": there is nothing to report on; " + MORE,
}
SCARCE = {"train": "a network may learn them by heart", "val": "their IoU says little about others"}

U8 = NDArray[np.uint8]
BITS = np.array([i.bit_count() for i in range(1 << 16)], np.uint8)


class Problem(NamedTuple):
    """Something about ``file`` (or a data set), ``reason`` being the kind; ``serious`` where training fails or learns wrong."""

    file: str
    reason: str
    detail: str = ""
    serious: bool = True


class Shares(NamedTuple):
    """Pixels of one plane."""

    positive: int = 0
    negative: int = 0
    unknown: int = 0

    def __str__(self) -> str:
        known = self.positive + self.negative
        total = known + self.unknown
        parts = [f"{part / total:9.1%}" if total else f"{'-':>9}" for part in self]
        return " ".join([*parts, f"{self.positive / known:9.1%}" if known else f"{'-':>9}"])


@dataclass
class Row:
    """One data set's part in one split.

    Attributes:
        sizes: images by (width, height).
        planes: pixels by plane, over all images that could be read.
        grey: images with one channel.
    """

    dataset: str
    split: str
    images: int = 0
    sequences: set[str] = field(default_factory=set)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    conditions: Counter[str] = field(default_factory=Counter)
    planes: dict[str, Shares] = field(default_factory=lambda: dict.fromkeys(PLANES, Shares()))
    grey: int = 0


@dataclass
class Report:
    """What `check_data` found."""

    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing serious was found."""
        return not any(problem.serious for problem in self.problems)

    @property
    def verdict(self) -> str:
        """One line for a user."""
        serious = sum(problem.serious for problem in self.problems)
        images, sets = sum(row.images for row in self.rows), len({row.dataset for row in self.rows})
        notes = len(self.problems) - serious
        return (
            f"{'ok' if self.ok else 'not ok'}: {counted(images, 'labelled image')} in {counted(sets, 'data set')}, "
            f"{counted(serious, 'problem')}, {counted(notes, 'note')}"
        )


class Look(NamedTuple):
    """One image and its labels: ``size`` (width, height), ``fingerprint`` None where the image has no features."""

    size: tuple[int, int]
    planes: tuple[Shares, ...]
    grey: bool
    fingerprint: int | None


def check_data(root: Path, *, seed: int = 1, fractions: Mapping[str, float] = FRACTIONS, splits: Path | None = None) -> Report:
    """Read every labelled image in ``root``, on all cores, with a progress bar on stderr where that is a terminal.

    Args:
        seed, fractions, splits: as `splits.split_samples` takes them.

    Raises:
        FileNotFoundError, ValueError: there is nothing to check; see `datasets.survey` and `splits.split_samples`.
    """
    found = survey(root)
    split = {sample: name for name, part in split_samples(found.samples, seed, fractions, splits).items() for sample in part}
    report = Report()
    public = tuple(root / name for name in READERS)
    for image in found.unlabelled:
        of_public = any(folder in image.parents for folder in public)
        report.problems.append(Problem(str(image), "has no label", "" if of_public else "; it is left out", of_public))

    report.problems += [Problem(str(folder), without_labels(folder), serious=False) for folder in found.bare]

    rows: dict[tuple[str, str], Row] = {}
    seen: list[tuple[Sample, Look]] = []
    for sample, look in look_at_all(found.samples):
        name = split[sample]
        row = rows.setdefault((sample.dataset, name), Row(sample.dataset, name))
        row.images += 1
        row.sequences.add(sample.sequence)
        row.conditions[sample.condition] += 1
        if isinstance(look, Exception):
            report.problems.append(Problem(str(sample.image), "cannot be used", f": {look}"))
            continue
        row.sizes[look.size] += 1
        row.grey += look.grey
        row.planes = {p: add((row.planes[p], shares)) for p, shares in zip(PLANES, look.planes, strict=True)}
        seen.append((sample, look))
    report.rows = [rows[key] for key in sorted(rows, key=lambda key: (key[0], SPLITS.index(key[1])))]
    drivable = {row.dataset for row in report.rows if any(shares.positive for shares in row.planes.values())}
    for sample, look in seen:
        report.problems += remarks(sample, look, sample.dataset in drivable)
    of_sets = problems_of_sets(report.rows, {sample.dataset for sample in found.samples if sample.planes})
    report.problems += of_sets
    if not any(problem.serious for problem in of_sets):  # otherwise the planes are not what they will be
        report.problems += problems_of_planes(report.rows, files_of_planes(found.samples))
    report.problems += problems_of_splits(report.rows)
    prints = [(sample, look.fingerprint) for sample, look in seen if look.fingerprint is not None]
    report.problems += leaks([s for s, _ in prints], [split[s] for s, _ in prints], np.array([f for _, f in prints], np.uint64))
    return report


def look_at_all(samples: Sequence[Sample]) -> Iterator[tuple[Sample, Look | ValueError]]:
    """Every sample with what a look at it gave, or why there is none."""
    from rich.console import Console
    from rich.progress import track

    def look(sample: Sample) -> Look | ValueError:
        try:
            return look_at(sample)
        except ValueError as error:
            return error

    console = Console(stderr=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = track(
            pool.map(look, samples), "checking", len(samples), console=console, transient=True, disable=not console.is_terminal
        )
        yield from zip(samples, looks, strict=True)


def look_at(sample: Sample) -> Look:
    """Raises ValueError as `datasets.read_sample`, and for label values that a public data set does not have."""
    image = cv2.imread(str(sample.image), cv2.IMREAD_ANYCOLOR)
    if image is None:
        raise ValueError(f"cannot decode {sample.image}")
    if sample.dataset in VALUES:
        present = np.flatnonzero(np.bincount(read_label(sample.label).ravel())).tolist()
        if strange := [str(value) for value in present if value not in VALUES[sample.dataset]]:
            raise ValueError(f"{sample.label} holds {', '.join(strange)}, which labels of {sample.dataset} do not")
    planes = read_planes(sample)
    height, width = image.shape[:2]
    if planes.shape[1:] != (height, width):
        raise ValueError(f"is {width}x{height} but its label is {planes.shape[2]}x{planes.shape[1]}: {sample.label}")
    counts = (np.bincount(plane.ravel(), minlength=256)[[1, 0, IGNORE]].tolist() for plane in planes)
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return Look((width, height), tuple(Shares(*c) for c in counts), image.ndim == 2, fingerprint(np.asarray(grey, np.uint8)))


def fingerprint(grey: U8) -> int | None:
    """64 bits of an image ``(h, w)``: where it gets brighter from left to right, on a grid of 8 x 8 ("dHash", Krawetz 2013).

    None for an image without features.
    """
    small = np.asarray(cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA), np.int16)
    if small.std() < FLAT:
        return None
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def remarks(sample: Sample, look: Look, expected: bool) -> list[Problem]:
    """What is odd about one image that can be read; something drivable is ``expected`` if its data set has any."""
    file, found = str(sample.image), []
    if ends_early(sample.image):
        found.append(Problem(file, "ends early: a part of the image is missing", serious=False))
    if not expected:  # which is said of the data set
        return found
    if all(shares.positive + shares.negative == 0 for shares in look.planes):
        found.append(Problem(file, "is unknown everywhere: nothing can be learnt from it", serious=False))
    elif all(shares.positive == 0 for shares in look.planes):
        found.append(Problem(file, "has nothing drivable in it", serious=False))
    return found


def ends_early(path: Path) -> bool:
    """Whether a JPEG has no end: decoders fill up what is missing and say nothing."""
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        return False
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))  # some programs write something behind the end
        return b"\xff\xd9" not in file.read()


def add(shares: Iterable[Shares]) -> Shares:
    return Shares(*(sum(values) for values in zip(*shares, strict=True)))


def files_of_planes(samples: Iterable[Sample]) -> set[str]:
    """Planes that have files of their own."""
    return {plane for s in samples if s.planes for plane, path in zip(PLANES, s.planes, strict=True) if path}


def problems_of_sets(rows: Sequence[Row], by_plane: Container[str]) -> list[Problem]:
    """What is wrong with data sets as a whole, of which some are labelled ``by_plane``."""
    found = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        own = [row for row in rows if row.dataset == dataset]
        planes = [add(row.planes[plane] for row in own) for plane in PLANES]
        if any(map(sum, planes)) and not any(shares.positive for shares in planes):
            if dataset in by_plane and any(shares.negative and shares.unknown for shares in planes):
                found.append(Problem(dataset, "seems to hold masks", f": {MASKS}"))
            else:
                found.append(Problem(dataset, "has nothing drivable in any label", "; is the mapping right?", False))
        grey, images = sum(row.grey for row in own), sum(row.images for row in own)
        if grey:
            found.append(Problem(dataset, "has grey images", f": {grey} of {images}", serious=False))
    return found


def problems_of_planes(rows: Sequence[Row], with_files: Container[str]) -> list[Problem]:
    """Planes of which ``train`` shows only one kind of pixels, of those that are labelled or have files."""
    planes = {plane: add(row.planes[plane] for row in rows if row.split == "train") for plane in PLANES}
    drawn = [plane for plane, shares in planes.items() if shares.positive]
    found = []
    if any(map(sum, planes.values())) and not drawn:
        nothing = f": no label there says {' or '.join(PLANES)}, which training refuses"
        found.append(Problem("train", "has nothing drivable in it", nothing))
    for plane, (positive, negative, _) in planes.items():
        if positive and not negative:
            others = [other for other in drawn if other != plane]
            remedy = f"make the labels with a mapping whose background says {plane}: 0 ('freespace masks --mapping')"
            without = f", or leave it out (--set planes=[{','.join(others)}])" if others else ""
            what = f"never says where {plane} is absent"
            found.append(Problem("train", what, f": a network would learn to call everything {plane}; {remedy}{without}"))
        elif drawn and not positive and (negative or plane in with_files):
            found.append(Problem("train", f"never says where {plane} is", ": training leaves that plane out", False))
    return found


def problems_of_splits(rows: Sequence[Row]) -> list[Problem]:
    """Splits with few images or none."""
    found = []
    for split in SPLITS:
        images = sum(row.images for row in rows if row.split == split)
        if not images:
            found.append(Problem(split, "has no images", EMPTY[split], serious=split == "train"))
        elif images < FEW and split in SCARCE:
            found.append(Problem(split, f"has only {counted(images, 'image')}", f": {SCARCE[split]}; label more", False))
    return found


def leaks(samples: Sequence[Sample], splits: Sequence[str], prints: NDArray[np.uint64]) -> list[Problem]:
    """Images that nearly equal one that is nearer to training: of ``val`` in ``train`` or ``dev``, of ``dev`` in ``train``.

    Those of one sequence that is cut in time are one problem together: at the cut they cannot but look alike.
    """
    found: list[Problem] = []
    alike: Counter[tuple[str, str]] = Counter()
    for i, j in near_pairs(splits, prints):
        unit, other = ((samples[k].dataset, unit_of(samples[k])) for k in (i, j))
        if unit == other:
            alike[unit] += 1
        else:
            where = f": {splits[i]}, and {samples[j].image} in {splits[j]}"
            found.append(Problem(str(samples[i].image), NEAR, where, False))
    units: dict[tuple[str, str], Counter[str]] = {}
    for sample, split in zip(samples, splits, strict=True):
        units.setdefault((sample.dataset, unit_of(sample)), Counter())[split] += 1
    for (dataset, sequence), held in units.items():
        if len(held) > 1:
            later = [split for split in SPLITS if split in held][1:]
            where = (
                f": frames beside the cuts of {sequence!r} look alike ({alike[dataset, sequence]} of "
                f"{sum(held[split] for split in later)} in {' and '.join(later)} nearly equal an earlier split's), so the "
                f"IoU comes out better than on a new drive; label a second one, or leave out frames beside the cuts"
            )
            found.append(Problem(dataset, "has a sequence that is cut in time", where, False))
    return found


def near_pairs(splits: Sequence[str], prints: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Each image of ``dev`` or ``val`` with the nearest one of splits nearer to training, where these nearly equal."""
    rank = np.array([SPLITS.index(split) for split in splits])
    found = []
    for later in (1, 2):
        ours, theirs = np.flatnonzero(rank == later), np.flatnonzero(rank < later)
        if not theirs.size:
            continue
        for start in range(0, len(ours), BLOCK):
            block = ours[start : start + BLOCK]
            distance = hamming(prints[block], prints[theirs])
            nearest = distance.argmin(axis=1)
            near = distance[np.arange(len(block)), nearest] <= NEAR_BITS
            found += list(zip(block[near].tolist(), theirs[nearest[near]].tolist(), strict=True))
    return found


def hamming(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Bits by which each of ``a`` ``(n,)`` differs from each of ``b`` ``(m,)``: ``(n, m)``."""
    different = np.bitwise_xor(a[:, None], b[None, :])
    return np.asarray(BITS[different.view(np.uint16).reshape(len(a), len(b), 4)].sum(axis=2, dtype=np.uint8))


def print_report(report: Report) -> None:
    """A table by data set, split and plane, then all problems and notes, then the verdict, on stdout."""
    width = max([8, *(len(row.dataset) for row in report.rows)])
    print(
        f"{'data set':<{width}} split {'images':>7} {'sequences':>9}  {'size':<20} {'plane':<10}"
        f"{'drivable':>9} {'not':>9} {'unknown':>9} {'of known':>9}"
    )
    for row in report.rows:
        common = [f"{w}x{h}" for (w, h), _ in row.sizes.most_common(1)]
        sizes = "".join(common) + (f" and {len(row.sizes) - 1} more" if len(row.sizes) > 1 else "")
        start = f"{row.dataset:<{width}} {row.split:<5} {row.images:>7} {len(row.sequences):>9}  {sizes:<20} "
        for plane, shares in row.planes.items():
            print(f"{start}{plane:<10}{shares}")
            start = " " * len(start)
        if set(row.conditions) != {"any"}:
            print(f"{start}{', '.join(f'{name} {count}' for name, count in sorted(row.conditions.items()))}")
    kinds = Counter(problem.reason for problem in report.problems)
    shown: Counter[str] = Counter()
    for problem in sorted(report.problems, key=lambda p: (not p.serious, list(kinds).index(p.reason))):
        word = "problem" if problem.serious else "note"
        shown[problem.reason] += 1
        if shown[problem.reason] <= SHOWN:
            print(f"{word}: {problem.file} {problem.reason}{problem.detail}")
        elif shown[problem.reason] == kinds[problem.reason]:
            print(f"{word}: {kinds[problem.reason] - SHOWN} more: {problem.reason}")
        if shown[problem.reason] == kinds[problem.reason] and problem.reason in ADVICE:
            print(f"{' ' * len(word)}  {ADVICE[problem.reason]}")
    print(report.verdict)
