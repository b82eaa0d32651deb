"""What a run learns from and is measured with: its splits, its views, the planes that are labelled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.datasets import FOOTAGE, PLANES, READERS, VIEWS_FILE, Cache, Sample, find_samples, find_views, read_sample
from training.recipe import Recipe, phases_of
from training.splits import assignment_of, split_samples

PLANE_LOOKS = 50  # labels of a data set that are read to know which planes it has


@dataclass
class Data:
    """What there is to learn from and to measure with."""

    splits: dict[str, list[Sample]]
    cache: Cache  # of what is trained on: labelled images and views
    planes: tuple[str, ...]  # what the network says
    channels: list[int]  # where these are among `PLANES`
    views: dict[str, Any]  # where the views come from


def gather_data(
    recipe: Recipe, data: Path, splits_file: Path | None, views_folder: Path | None, network_planes: Sequence[str] = ()
) -> Data:
    """Find everything below ``data``, split it and look at what it is labelled with.

    Args:
        splits_file: says which sequence is in which split; None: as `training.splits` does it.
        views_folder: what `training.distil` wrote.
        network_planes: what the network says already; none: as the recipe wants it, or what the labels say.

    Raises:
        FileNotFoundError: there is nothing to train on.
        ValueError: data and recipe do not fit each other.
    """
    splits = split_samples(find_samples(data), recipe.data.seed, recipe.data.fractions, splits_file)
    if not splits["train"]:
        raise FileNotFoundError(f"no images for training below {data}: all of them are in dev or val")
    views = find_views(views_folder) if views_folder else []
    cache = Cache(splits["train"] + views, recipe.data.cache_width, recipe.data.cache_mb * 1_000_000)
    shares = {name for phase in phases_of(recipe) for name in phase.shares}
    if absent := shares - {sample.dataset for sample in cache.samples} - {*READERS, FOOTAGE}:
        raise ValueError(f"shares: no data set is called {', '.join(sorted(absent))}")
    origin = read_origin(views_folder)
    if leaked := leaks(origin, splits):
        raise ValueError(
            f"{views_folder}: holds views of {leaked}, which is not in train; write them anew, with the same --splits"
        )
    wanted = network_planes or recipe.planes or labelled_planes(splits["train"], bool(views))
    planes = tuple(plane for plane in PLANES if plane in wanted)
    if len(planes) > 1 and any("cross_entropy" in phase.loss for phase in phases_of(recipe)):
        raise ValueError(
            "loss: cross_entropy takes planes for exclusive classes, and freespace and ego are not; set planes: [freespace]"
        )
    return Data(splits, cache, planes, [PLANES.index(p) for p in planes], origin)


def read_origin(views: Path | None) -> dict[str, Any]:
    """What ``views.json`` in a folder of views says; nothing without one. Raises ValueError: it is broken."""
    if views is None:
        return {}
    try:
        origin: dict[str, Any] = json.loads((views / VIEWS_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{views / VIEWS_FILE}: not JSON; write the views anew") from error
    return origin


def leaks(origin: dict[str, Any], splits: dict[str, list[Sample]]) -> str:
    """A sequence of dev or val that the views show, "" where there is none."""
    kept = assignment_of({name: splits[name] for name in ("dev", "val")})
    for held in kept.values():
        for dataset, sequences in held.items():
            both = set(sequences) & set(origin.get("sequences", {}).get(dataset, ()))
            if both:
                return f"{dataset}/{min(both)}"
    return ""


def labelled_planes(samples: Sequence[Sample], views: bool) -> tuple[str, ...]:
    """The planes that annotators drew, by a look at labels all over each data set; views have scores for all."""
    if views:
        return PLANES
    sets: dict[str, list[Sample]] = {}
    for sample in samples:
        sets.setdefault(sample.dataset, []).append(sample)
    drawn = set()
    for own in sets.values():
        for sample in own[:: max(1, len(own) // PLANE_LOOKS)]:
            planes = read_sample(sample, strict=True)[1]
            drawn |= {name for name, plane in zip(PLANES, planes, strict=True) if (plane == 1).any()}
            if drawn == set(PLANES):
                return PLANES
    if not drawn:
        raise ValueError(f"the labels show no {' and no '.join(PLANES)}; is the mapping right?")
    return tuple(name for name in PLANES if name in drawn)
