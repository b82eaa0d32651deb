"""A phase of a recipe as it meets network and data: stages by name, optimiser and schedule, steps of an epoch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from training.augment import parse_augmentation
from training.distributed import World
from training.hints import HintHead
from training.losses import parse_loss
from training.models import Network, freeze, stages_of, unfreeze
from training.optimisers import Schedule, build_optimiser, build_schedule
from training.recipe import Recipe, parse_size
from training.run_data import Data

LEAST_BATCHES = 30  # of an epoch, where the recipe does not say


def check_phase(phase: Recipe, network: Network, hinted: HintHead | None, data: Data, world: World) -> None:
    """Raises ValueError now for what would stop the run when the phase begins."""
    world.share(phase.batch)
    parse_augmentation(phase.augment)
    parse_loss(phase.loss)
    for size in phase.sizes:
        if any(side % network.stride for side in parse_size(size)):
            raise ValueError(f"sizes: {size}: {phase.model} wants multiples of {network.stride}")
    if phase.schedule.name == "plateau" and not data.splits["dev"] and world.first:
        print("note: no images in dev, so the plateau schedule will not cut the rate", file=sys.stderr)
    if phase.stop_after and not data.splits["dev"]:
        raise ValueError("stop_after: there are no images in dev to see an improvement on; set data.dev, or leave it out")
    unfreeze(network)
    freeze(network, expand(phase.freeze, network))
    settings = phase.schedule.model_dump() | {"every": None}
    build_schedule(phase_optimiser(network, hinted, phase), steps=1000, **settings)


def phase_optimiser(network: Network, hinted: HintHead | None, phase: Recipe) -> torch.optim.Optimizer:
    """The phase's optimiser, over the head for hints as well where there is one. Raises ValueError: an unknown stage."""
    settings = phase.optimiser
    factors = {stage: factor for name, factor in settings.stages.items() for stage in expand([name], network)}
    return build_optimiser(
        hinted or network,
        name=settings.name,
        rate=settings.rate,
        stages=stages_of(network),
        stage_rates=factors,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


def phase_schedule(optimiser: torch.optim.Optimizer, phase: Recipe, steps: int) -> Schedule:
    """The phase's schedule, for epochs of ``steps``."""
    settings = phase.schedule.model_dump()
    settings["every"] = phase.schedule.every and phase.schedule.every * steps
    return build_schedule(optimiser, steps=steps * phase.epochs, **settings)


def expand(names: Sequence[str], network: Network) -> list[str]:
    """Names of stages, ``encoder`` written out. Raises ValueError: the network has no such stage."""
    stages = [name for name, _ in stages_of(network)]
    if unknown := [name for name in names if name not in (*stages, "encoder")]:
        raise ValueError(f"unknown stage {', '.join(unknown)}; {', '.join(stages)} are there, and encoder for all but the last")
    return [n for name in names for n in (stages[:-1] if name == "encoder" else [name])]


def steps_per_epoch(phase: Recipe, images: int) -> int:
    """Whole batches alone: as many as hold the samples of an epoch. A handful of images is gone through more than once."""
    return -(-(phase.samples_per_epoch or max(images, LEAST_BATCHES * phase.batch)) // phase.batch)
