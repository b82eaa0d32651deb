"""Residual networks as feature encoders (He et al. 2016, "Deep Residual Learning for Image Recognition")."""

from __future__ import annotations

from torch import Tensor, nn

from training.models.base import Encoder
from training.models.pretrained import fold_normalisation


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu(y + self.downsample(x))
        return out


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, beside a shortcut; the 3x3 one takes the stride, as in torchvision."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = self.relu(y + self.downsample(x))
        return out


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


# Block and its repeats per stage.
DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(Encoder):
    """Feature maps at strides 2 to 32: 64 channels behind the stem, then 64, 128, 256 and 512 times the block's expansion.

    Args:
        depth: 18 or 50.
    """

    published_whole = ("layer",)

    def __init__(self, depth: int) -> None:
        block, repeats = DEPTHS[depth]
        stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
        stages, outputs, inputs = [], [(2, 64)], 64
        for index, count in enumerate(repeats):
            layers: list[nn.Module] = [] if index else [nn.MaxPool2d(3, 2, 1)]
            for repeat in range(count):
                layers.append(block(inputs, 64 << index, 1 if repeat or not index else 2))
                inputs = block.expansion * (64 << index)
            stages.append(nn.Sequential(*layers))
            outputs.append((4 << index, inputs))
        super().__init__(stem, stages, outputs)
        self.published = f"torchvision's resnet{depth}"

    def published_name(self, name: str) -> str:
        part, index, *rest = name.split(".")
        if part == "stem":
            return f"{'conv1' if index == '0' else 'bn1'}.{rest[0]}"
        stage, (block, *entry) = int(index), rest
        number = int(block) if stage else int(block) - 1  # the first stage begins with the pool
        return ".".join([f"layer{stage + 1}", str(number), *entry])

    def take_our_input(self, weights: dict[str, Tensor]) -> None:
        fold_normalisation(weights, "stem.0.weight", mean="stem.1.running_mean")
