"""MobileNetV2 as a feature encoder (Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks")."""

from __future__ import annotations

from torch import Tensor, nn

from training.models.base import Encoder
from training.models.layers import InvertedResidual
from training.models.pretrained import fold_normalisation

# (expansion, stride, output channels, repeats) per stage; all kernels are 3x3.
STAGES = ((1, 1, 16, 1), (6, 2, 24, 2), (6, 2, 32, 3), (6, 2, 64, 4), (6, 1, 96, 3), (6, 2, 160, 3), (6, 1, 320, 1))

# Where the published blocks keep what `InvertedResidual.layers` holds by position.
EXPANDED = {0: "0.0", 1: "0.1", 3: "1.0", 4: "1.1", 6: "2", 7: "3"}
UNEXPANDED = {0: "0.0", 1: "0.1", 3: "1", 4: "2"}


class MobileNetV2(Encoder):
    """Feature maps at strides 2 to 32 (16, 24, 32, 96 and 320 channels), without the classifier's 1x1 convolution."""

    published = "torchvision's mobilenet_v2"

    def __init__(self) -> None:
        stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6(inplace=True))
        stages, outputs, inputs, reached = [], [(2, 32)], 32, 2
        for expansion, stride, channels, repeats in STAGES:
            blocks = []
            for repeat in range(repeats):
                blocks.append(InvertedResidual(inputs, channels, expansion, 3, 1 if repeat else stride, nn.BatchNorm2d))
                inputs = channels
            stages.append(nn.Sequential(*blocks))
            reached *= stride
            outputs.append((reached, channels))
        super().__init__(stem, stages, outputs)

    def published_name(self, name: str) -> str:
        part, index, *rest = name.split(".")
        if part == "stem":
            return f"features.0.{index}.{rest[0]}"
        stage, (block, _, position, entry) = int(index), rest
        number = 1 + sum(repeats for *_, repeats in STAGES[:stage]) + int(block)
        names = UNEXPANDED if STAGES[stage][0] == 1 else EXPANDED
        return f"features.{number}.conv.{names[int(position)]}.{entry}"

    def take_our_input(self, weights: dict[str, Tensor]) -> None:
        fold_normalisation(weights, "stem.0.weight", mean="stem.1.running_mean")
