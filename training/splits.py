"""Which images are trained on, which are for choices (dev), and which for the report only (val).

Images of one sequence look alike, so a sequence is in one split as a whole. Public data sets keep `datasets.split_of`. A data
set of one's own keeps its published splits; otherwise a hash of its name, the sequence's and a seed says where a sequence goes.
More images of a sequence never move it. Of `MANY` sequences or more each has a draw of its own, so that further sequences move
none of those there; fewer are counted out in the order of their hashes, so that a split gets what is due to it, and a further
sequence may move those at the borders. Data sets of a single sequence are cut in time. Whoever goes on collecting writes the
splits to a file, which settles it.

A file holds what was decided, split -> data set -> sequences, for people to read and change::

    train:
      mine: [drive-a, drive-b]
      camvid: [train/0001TP, train/0006R0, train/0016E5]    # published splits stand in front
    val:
      mine: [drive-c]
      yard: [walk @ f_0800 .. f_0999]                       # images of a sequence from one to another
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import yaml

from engine.files import write_whole
from training.annotations.base import counted
from training.annotations.files import natural
from training.datasets import READERS, SPLITS, Sample, split_of

FRACTIONS: Mapping[str, float] = {"train": 0.75, "dev": 0.05, "val": 0.2}
MANY = 40  # sequences, of which independent draws come near to the fractions
NAMED = 5  # sequences that a message names, of many

Assignment = dict[str, dict[str, list[str]]]
"""Split -> data set -> entries, as in the file."""


def split_samples(
    samples: Sequence[Sample], seed: int = 1, fractions: Mapping[str, float] = FRACTIONS, file: Path | None = None
) -> dict[str, list[Sample]]:
    """The samples of each of `SPLITS`, in the order given. Views are always for training.

    Args:
        seed: of the hash for data sets of one's own; public and published splits do not depend on it.
        fractions: of the sequences of each data set of one's own, by split; they add up to 1.
        file: what `write_splits` wrote, instead of all that.

    Raises:
        FileNotFoundError: ``file`` is not there.
        ValueError: ``fractions`` are none, ``file`` is broken, or does not say where a sequence goes.
    """
    views = [sample for sample in samples if sample.view]
    images = [sample for sample in samples if not sample.view]
    split = look_up(images, read_splits(file), file) if file else assign(images, seed, check_fractions(fractions))
    split |= dict.fromkeys(views, "train")
    return {name: [sample for sample in samples if split[sample] == name] for name in SPLITS}


def check_fractions(fractions: Mapping[str, float]) -> Mapping[str, float]:
    """``fractions`` as they are. Raises ValueError: they are none."""
    values = list(fractions.values())
    if set(fractions) - set(SPLITS) or any(not 0 <= v <= 1 for v in values) or abs(sum(values) - 1) > 1e-6:
        raise ValueError(f"fractions {dict(fractions)}: wanted shares of {', '.join(SPLITS)} that add up to 1")
    return fractions


def assign(samples: Sequence[Sample], seed: int, fractions: Mapping[str, float]) -> dict[Sample, str]:
    """Split of each sample, without a file; says on stderr which data sets are cut in time."""
    split: dict[Sample, str] = {}
    own: dict[str, dict[str, list[Sample]]] = {}
    for sample in samples:
        if sample.dataset in READERS or sample.published_split:
            split[sample] = split_of(sample)
        else:
            own.setdefault(sample.dataset, {}).setdefault(sample.sequence, []).append(sample)
    for name, sequences in own.items():
        if len(sequences) == 1:
            [(sequence, images)] = sequences.items()
            split |= split_in_time(images, fractions)
            print(f"note: {name}: {sequence!r} is its only sequence, which is split in time", file=sys.stderr)
        else:
            where = split_sequences(name, list(sequences), seed, fractions)
            split |= {sample: where[sequence] for sequence, images in sequences.items() for sample in images}
    return split


def split_sequences(dataset: str, sequences: Sequence[str], seed: int, fractions: Mapping[str, float]) -> dict[str, str]:
    """Split of each of at least two sequences: ``val`` for the lowest hashes, then ``dev``, then ``train``.

    Of fewer than `MANY` as many as `quotas` says, of others as many as their hashes say, each for itself.
    """
    place = {name: uniform_hash(f"{seed}/{dataset}/{name}") for name in sequences}
    counts = quotas(len(place), fractions) if len(place) < MANY else drawn(list(place.values()), fractions)
    ordered = sorted(place, key=lambda name: place[name])
    return dict(zip(ordered, [split for split in ("val", "dev", "train") for _ in range(counts[split])], strict=True))


def drawn(places: Sequence[float], fractions: Mapping[str, float]) -> dict[str, int]:
    """How many hashes fall to each split; one of the fullest goes to a split that has a fraction and would stay empty."""
    val = sum(place < fractions.get("val", 0) for place in places)
    dev = sum(place < fractions.get("val", 0) + fractions.get("dev", 0) for place in places) - val
    counts = {"train": len(places) - dev - val, "dev": dev, "val": val}
    for name in SPLITS:
        if fractions.get(name, 0) > 0 and not counts[name]:
            counts[max(counts, key=lambda other: counts[other])] -= 1
            counts[name] = 1
    return counts


def quotas(count: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """How many of at least two sequences each split gets: its fraction, rounded, and the rest for ``train``.

    Where it has a fraction, ``val`` gets at least one, ``dev`` at least one of four or more, ``train`` at least one, and no
    fewer than ``val`` unless that is what the fractions say.
    """
    share = {name: round(fractions.get(name, 0), 6) for name in SPLITS}
    val = max(round(share["val"] * count), 1) if share["val"] else 0
    dev = max(round(share["dev"] * count), 1 if count >= 4 else 0) if share["dev"] else 0
    if not share["train"]:
        dev = min(dev, count - bool(val))
        return {"train": 0, "dev": dev, "val": count - dev}
    while (train := count - dev - val) < max(1, val if share["train"] >= share["val"] else 1):
        if val > dev:
            val -= 1
        else:
            dev -= 1
    return {"train": train, "dev": dev, "val": val}


def uniform_hash(text: str) -> float:
    """At least 0 and less than 1, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def in_time(sample: Sample) -> list[tuple[int, int, str]]:
    """Sort key for images of one sequence."""
    return natural(Path(sample.image.stem))


def split_in_time(images: Sequence[Sample], fractions: Mapping[str, float]) -> dict[Sample, str]:
    """Split of each image of one sequence: the first ones for training, the last ones for the report.

    Of two images or more each split that has a fraction gets one, as far as there are enough, training first and dev last.
    """
    ordered = sorted(images, key=in_time)
    order = [name for name in ("train", "val", "dev") if fractions.get(name, 0) > 0]
    counts = {name: int(fractions[name] * len(ordered)) for name in order}
    for name in order:
        if counts[name] == 0 and sum(counts.values()) < len(ordered):
            counts[name] = 1
    counts[order[0]] += len(ordered) - sum(counts.values())
    names = [name for name in SPLITS for _ in range(counts.get(name, 0))]
    return dict(zip(ordered, names, strict=True))


def describe(splits: Mapping[str, Sequence[Sample]]) -> str:
    """What each split holds, as in ``train 120 images (12 sequences), dev 8 (1), val 30 (3)``."""
    parts: list[str] = []
    for name, samples in splits.items():
        images, sequences = len(samples), len({(sample.dataset, unit_of(sample)) for sample in samples})
        if parts:
            parts.append(f"{name} {images} ({sequences})")
        else:
            parts.append(f"{name} {counted(images, 'image')} ({counted(sequences, 'sequence')})")
    return ", ".join(parts)


# -- Files -------------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """One entry of a file: a sequence, all of it or its images from ``first`` to ``last``, names without suffixes."""

    sequence: str
    first: str = ""
    last: str = ""

    def __str__(self) -> str:
        return f"{self.sequence} @ {self.first} .. {self.last}" if self.first else self.sequence

    def holds(self, image: str) -> bool:
        return not self.first or natural(Path(self.first)) <= natural(Path(image)) <= natural(Path(self.last))


def parse_entry(text: str) -> Entry:
    sequence, at, images = text.rpartition(" @ ")
    first, between, last = images.partition(" .. ")
    return Entry(sequence, first, last) if at and between else Entry(text)


def unit_of(sample: Sample) -> str:
    """What a file calls the sequence: a published split may hold images of a sequence that others hold, too."""
    return f"{sample.published_split}/{sample.sequence}" if sample.published_split else sample.sequence


def assignment_of(splits: Mapping[str, Sequence[Sample]]) -> Assignment:
    """What `write_splits` takes, from what `split_samples` gave."""
    held: dict[tuple[str, str], list[tuple[Sample, str]]] = {}
    for split, samples in splits.items():
        for sample in samples:
            if not sample.view:
                held.setdefault((sample.dataset, unit_of(sample)), []).append((sample, split))
    assignment: Assignment = {split: {} for split in splits}
    for (dataset, unit), images in held.items():
        images.sort(key=lambda pair: in_time(pair[0]))
        parts = [(split, [s.image.stem for s, _ in part]) for split, part in groupby(images, key=lambda pair: pair[1])]
        for split, names in parts:
            entry = Entry(unit, names[0], names[-1]) if len(parts) > 1 else Entry(unit)
            assignment[split].setdefault(dataset, []).append(str(entry))
    return assignment


def write_splits(path: Path, assignment: Assignment) -> None:
    """Write ``assignment`` as JSON if that is the suffix of ``path``, else as YAML. Raises ValueError as `read_splits`."""
    check_assignment(assignment, path)
    if path.suffix == ".json":
        text = json.dumps(assignment, indent=1, ensure_ascii=False) + "\n"
    else:
        text = yaml.safe_dump(assignment, sort_keys=False, allow_unicode=True, width=120)
    write_whole(path, text.encode())


def read_splits(path: Path) -> Assignment:
    """What `write_splits` wrote, or a person.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is something else, or a sequence is in two splits.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of splits")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))  # which reads JSON as well
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: broken YAML or JSON: {' '.join(str(error).split())}") from error
    return check_assignment(data, path)


def check_assignment(data: object, path: Path) -> Assignment:
    """``data`` as it is, without parts that are empty. Raises ValueError as `read_splits`."""
    if not isinstance(data, dict) or not data or set(data) - set(SPLITS):
        raise ValueError(f"{path}: wanted {', '.join(SPLITS)}, each with data sets, each with a list of sequences")
    assignment: Assignment = {}
    where: dict[tuple[str, str], dict[str, list[Entry]]] = {}
    for split, sets in data.items():
        if not isinstance(sets or {}, dict):
            raise ValueError(f"{path}: {split}: wanted data sets, each with a list of sequences, not {sets!r}")
        for dataset, entries in (sets or {}).items():
            if not isinstance(entries, list):
                raise ValueError(f"{path}: {split}: {dataset}: wanted a list of sequences, not {entries!r}")
            for text in entries:
                if not isinstance(text, str):
                    raise ValueError(f"{path}: {split}: {dataset}: a sequence's name is text; put {text!r} in quotes")
                entry = parse_entry(text)
                where.setdefault((dataset, entry.sequence), {}).setdefault(split, []).append(entry)
        assignment[split] = {str(dataset): list(entries) for dataset, entries in (sets or {}).items()}
    for (dataset, sequence), parts in where.items():
        if (names := overlapping(parts)) is not None:
            raise ValueError(f"{path}: {dataset}: {sequence!r} is in {' and in '.join(names)}; leave it in one of them")
    return assignment


def overlapping(parts: Mapping[str, Iterable[Entry]]) -> tuple[str, str] | None:
    """Two splits that hold the same images of one sequence, if any do."""
    entries = [(split, entry) for split, listed in parts.items() for entry in listed]
    for i, (split, one) in enumerate(entries):
        for other_split, other in entries[:i]:
            if split != other_split and (not one.first or not other.first or one.holds(other.first) or other.holds(one.first)):
                return other_split, split
    return None


def look_up(samples: Sequence[Sample], assignment: Assignment, path: Path) -> dict[Sample, str]:
    """Split of each sample as the file at ``path`` says; entries that hold no sample are named on stderr.

    Raises:
        ValueError: it does not say it of all.
    """
    entries: dict[tuple[str, str], list[tuple[str, Entry]]] = {}
    for split, sets in assignment.items():
        for dataset, texts in sets.items():
            for text in texts:
                entry = parse_entry(text)
                entries.setdefault((dataset, entry.sequence), []).append((split, entry))
    found: dict[Sample, str] = {}
    missing: dict[str, None] = {}
    used: set[tuple[str, Entry]] = set()
    for sample in samples:
        listed = entries.get((sample.dataset, unit_of(sample)), [])
        holding = [(split, entry) for split, entry in listed if entry.holds(sample.image.stem)]
        if holding:
            found[sample] = holding[0][0]
            used |= {(sample.dataset, entry) for _, entry in holding}
        else:
            missing[f"{sample.dataset}/{unit_of(sample)}" + (f" @ {sample.image.stem}" if listed else "")] = None
    if missing:
        raise ValueError(f"{path}: does not say in which split {some_of(missing)} is; add it, or write the splits anew")
    parts = [(split, dataset, entry) for (dataset, _), listed in entries.items() for split, entry in listed]
    if idle := [f"{split}: {dataset}/{entry}" for split, dataset, entry in parts if (dataset, entry) not in used]:
        print(f"note: {path}: no image is meant by {some_of(idle)}", file=sys.stderr)
    return found


def some_of(names: Iterable[str]) -> str:
    """The first ones, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:NAMED]) + (f" and {len(listed) - NAMED} more" if len(listed) > NAMED else "")
