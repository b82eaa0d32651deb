"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from training.models.freespace_net import FreespaceNet

MODELS: dict[str, Callable[[int], nn.Module]] = {
    "freespace": lambda planes: FreespaceNet(planes),
}


def build_model(name: str, planes: int) -> nn.Module:
    """The network ``name`` with ``planes`` output planes, its weights not yet loaded.

    Raises:
        ValueError: no network has that name.
    """
    if name not in MODELS:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(MODELS)}")
    return MODELS[name](planes)
