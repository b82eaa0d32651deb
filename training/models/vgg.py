"""VGG-16 as a feature encoder (Simonyan & Zisserman 2015, "Very Deep Convolutional Networks", configuration D)."""

from __future__ import annotations

from torch import Tensor, nn

from training.models.base import Encoder
from training.models.initialisation import initialise
from training.models.pretrained import fold_normalisation

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # (channels, convolutions), each followed by a pool


class VGG16(Encoder):
    """Feature maps at strides 2 to 32, behind the pools (64, 128, 256, 512 and 512 channels)."""

    published = "torchvision's vgg16"

    def __init__(self) -> None:
        blocks, inputs = [], 3
        for channels, count in BLOCKS:
            layers: list[nn.Module] = []
            for _ in range(count):
                layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = channels
            blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
        super().__init__(blocks[0], blocks[1:], [(2 << i, channels) for i, (channels, _) in enumerate(BLOCKS)])
        initialise(self, "he")  # thirteen layers without a batch norm fade out with torch's own start

    def published_name(self, name: str) -> str:
        part, *rest = name.split(".")
        block = 0 if part == "stem" else int(rest.pop(0)) + 1
        before = sum(2 * count + 1 for _, count in BLOCKS[:block])
        return f"features.{before + int(rest[0])}.{rest[1]}"

    def take_our_input(self, weights: dict[str, Tensor]) -> None:
        fold_normalisation(weights, "stem.0.weight", bias="stem.0.bias")
