"""What all networks have in common: an encoder in stages, and stages that can be frozen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

T = TypeVar("T", bound="Network")

DECODER = "decoder"  # the stage that holds everything behind the encoder


class Encoder(nn.Module):
    """A stem and stages that run one after the other.

    ``forward``: float ``(N, 3, h, w)``, BGR, about [-1, 1] -> the last feature map of every stride, finest first.

    Args:
        outputs: (stride, channels) behind the stem and behind every stage.

    Attributes:
        strides, channels: of the feature maps that ``forward`` returns.
        published: whose ImageNet weights fit, for messages; empty where none are published.
        published_whole: how those names of published weights begin that only a deeper network has more of.
    """

    published = ""
    published_whole: tuple[str, ...] = ()

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module], outputs: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        following = [stride for stride, _ in outputs[1:]] + [0]
        self.taps = [i for i, (stride, _) in enumerate(outputs) if stride != following[i]]
        self.strides = tuple(outputs[i][0] for i in self.taps)
        self.channels = tuple(outputs[i][1] for i in self.taps)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for index, stage in enumerate([self.stem, *self.stages]):
            x = stage(x)
            if index in self.taps:
                features.append(x)
        return features

    def packaged_weights(self) -> Path:
        """The file of published weights that an installed package brings.

        Raises:
            FileNotFoundError: there is no such package.
            ValueError: nothing is published for this encoder.
        """
        if not self.published:
            raise ValueError("no weights are published for this network's encoder; start it without pretrained weights")
        raise FileNotFoundError(f"no package brings the weights of {self.published}; give a file that holds them")

    def published_name(self, name: str) -> str:
        """What the published weights call the entry ``name`` of this encoder's state dict."""
        raise NotImplementedError

    def take_our_input(self, weights: dict[str, Tensor]) -> None:
        """Change published weights, already under our names, from their input's colours and scaling to ours."""
        raise NotImplementedError


class Network(nn.Module):
    """Logits for planes at full resolution from a normalised BGR image.

    ``forward``: float ``(N, 3, h, w)``, about [-1, 1], h and w multiples of ``stride`` -> logits float ``(N, planes, h, w)``.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.stride = encoder.strides[-1]
        self.frozen: frozenset[str] = frozenset()

    def train(self: T, mode: bool = True) -> T:
        super().train(mode)
        for name, stage in stages_of(self):
            if name in self.frozen:
                stage.eval()  # or its batch norms would go on following the data
        return self


def stages_of(model: Network) -> list[tuple[str, nn.Module]]:
    """The stages from the input on: ``stem``, ``stage1``, ``stage2``, … of the encoder, then ``decoder`` for all the rest.

    Every parameter of the network is in exactly one of them.
    """
    rest = nn.ModuleList(child for name, child in model.named_children() if name != "encoder")
    stages = [(f"stage{i}", stage) for i, stage in enumerate(model.encoder.stages, 1)]
    return [("stem", model.encoder.stem), *stages, (DECODER, rest)]


def freeze(model: Network, names: Sequence[str]) -> None:
    """Keep the stages ``names`` as they are, besides those frozen before.

    Their parameters need no gradient any more, and they stay in evaluation mode whatever ``model.train()`` says: batch norms
    use and keep their running statistics, dropout passes everything.

    Raises:
        ValueError: the network has no stage of that name.
    """
    check_names(model, names)
    model.frozen |= set(names)
    for name, stage in stages_of(model):
        if name in model.frozen:
            stage.requires_grad_(False)
    model.train(model.training)


def unfreeze(model: Network, names: Sequence[str] | None = None) -> None:
    """Let the stages ``names`` learn again; None: all of them.

    Raises:
        ValueError: the network has no stage of that name.
    """
    chosen = [name for name, _ in stages_of(model)] if names is None else names
    check_names(model, chosen)
    model.frozen -= set(chosen)
    for name, stage in stages_of(model):
        if name in chosen:
            stage.requires_grad_(True)
    model.train(model.training)


def check_names(model: Network, names: Sequence[str]) -> None:
    known = [name for name, _ in stages_of(model)]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown stage {', '.join(unknown)}: the network's stages are {', '.join(known)}")
