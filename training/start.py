"""The network as a run starts, or goes on: from chance, from pretrained weights or from checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from training.checkpoints import images_of, mean_of, network_of, planes_of, read_checkpoint, shipped_checkpoint, with_planes
from training.hints import HintHead
from training.models import Network, build_model, load_encoder
from training.recipe import Recipe
from training.run_data import Data


def start_network(
    recipe: Recipe, init: Sequence[Path], data: Data, resumed: dict[str, Any] | None
) -> tuple[Network, list[dict[str, Any]], dict[str, int]]:
    """The network as training starts or goes on, the recipes of the trainings before, and how many images of which data set
    it will have learnt from in all of them.

    Args:
        init: checkpoints, or names of shipped ones, whose mean all of the network starts from; none: what the recipe says.
        resumed: what `training.checkpoints.read_resumable` found.

    Raises:
        FileNotFoundError: no such checkpoint, or no pretrained weights.
        ValueError: they are of another network, or say other planes.
    """
    torch.manual_seed(recipe.seed)
    network = build_model(recipe.model, len(data.planes), dropout=recipe.dropout, initialisation=recipe.initialisation)
    own = Counter(sample.dataset for sample in data.splits["train"])
    if resumed:
        network.load_state_dict(resumed["model"])
        return network, resumed["earlier"], resumed["images"]
    if paths := init or ((Path(recipe.init),) if recipe.init else ()):
        states = [read_checkpoint(shipped_checkpoint(path)) for path in paths]
        if network_of(states[-1]) != recipe.model:
            raise ValueError(f"{paths[-1]}: holds the network {network_of(states[-1])}, and the recipe says {recipe.model}")
        network.load_state_dict(with_planes(mean_of(states), network, planes_of(states[-1]), data.planes))
        return network, [*states[-1]["earlier"], states[-1]["config"]], images_of(states, own)
    seen = []
    if recipe.pretrained is not False:
        path = None if recipe.pretrained is True else Path(recipe.pretrained)
        load_encoder(network, path)
        if path:
            with suppress(ValueError):  # published weights, which bring no list of images
                seen = [read_checkpoint(path)]
    return network, [], images_of(seen, own)


def add_hints(network: Network, recipe: Recipe, data: Data, resumed: dict[str, Any] | None) -> HintHead | None:
    """The network with its throw-away head, where the recipe wants one. Raises ValueError: the views bring no hints."""
    if not recipe.hints.weight:
        return None
    if "hints" not in data.views:
        raise ValueError("hints.weight is set, but the views have no hints; write them by 'freespace distil --hints LAYER'")
    hinted = HintHead(network.cpu(), recipe.hints.layer, len(data.views["hints"]["mean"]))
    if resumed:
        hinted.head.load_state_dict(resumed["hint_head"])
    return hinted
