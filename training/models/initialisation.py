"""Ways to start the weights of convolutions."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn

Convolution = nn.Conv2d | nn.ConvTranspose2d

NORMAL_STD = 0.02


def fans(layer: Convolution) -> tuple[float, float]:
    """How many weights reach one output, and how many outputs one input reaches."""
    reach_output, reach_input = layer.weight.numel() / layer.out_channels, layer.weight.numel() / layer.in_channels
    if isinstance(layer, nn.ConvTranspose2d):
        return reach_output / prod(layer.stride), reach_input
    return reach_output, reach_input / prod(layer.stride)


def he(layer: Convolution) -> None:
    """Normal, variance 2 / fan-in: keeps the signal's size through ReLUs (He et al. 2015, "Delving Deep into Rectifiers")."""
    nn.init.normal_(layer.weight, std=(2 / fans(layer)[0]) ** 0.5)


def xavier(layer: Convolution) -> None:
    """Uniform, variance 2 / (fan-in + fan-out) (Glorot & Bengio 2010, "Understanding the Difficulty of Training")."""
    limit = (6 / sum(fans(layer))) ** 0.5
    nn.init.uniform_(layer.weight, -limit, limit)


def normal(layer: Convolution) -> None:
    """Normal, standard deviation `NORMAL_STD` whatever the layer's size (as in Radford et al. 2016, "DCGAN")."""
    nn.init.normal_(layer.weight, std=NORMAL_STD)


def orthogonal(layer: Convolution) -> None:
    """Every group's weights as a matrix (first axis, all others) have orthonormal rows or columns (Saxe et al. 2014)."""
    groups: tuple[Tensor, ...] = layer.weight.chunk(layer.groups)
    for group in groups:
        nn.init.orthogonal_(group)


INITIALISATIONS: dict[str, Callable[[Convolution], None]] = {
    "he": he,
    "xavier": xavier,
    "normal": normal,
    "orthogonal": orthogonal,
}


@torch.no_grad()
def initialise(model: nn.Module, name: str) -> None:
    """Start the weights of all convolutions of ``model`` anew, plain and transposed ones; everything else stays.

    Args:
        name: a key of `INITIALISATIONS`, or ``default`` to leave every layer as its network built it.

    Raises:
        ValueError: there is no such initialisation.
    """
    if name == "default":
        return
    if name not in INITIALISATIONS:
        raise ValueError(f"unknown initialisation {name!r}; known: default, {', '.join(INITIALISATIONS)}")
    for layer in model.modules():
        if isinstance(layer, Convolution):
            INITIALISATIONS[name](layer)
