"""SegNet-Basic (Badrinarayanan, Kendall & Cipolla 2017, "SegNet: A Deep Convolutional Encoder-Decoder Architecture")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.base import Encoder, Network

LEVELS = 4


def block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 7, padding=3, bias=False), nn.BatchNorm2d(outputs)]


class SegNetEncoder(Encoder):
    """A 7x7 convolution a level, a pool between: feature maps at strides 1 to 8, all ``width`` channels, not pooled yet."""

    def __init__(self, width: int) -> None:
        stages = [nn.Sequential(nn.MaxPool2d(2), *block(width, width), nn.ReLU(inplace=True)) for _ in range(LEVELS - 1)]
        stem = nn.Sequential(*block(3, width), nn.ReLU(inplace=True))
        super().__init__(stem, stages, [(1 << level, width) for level in range(LEVELS)])


class SegNetBasic(Network):
    """Four levels down by max-pooling and up by putting values back where the maxima were; no features are passed across."""

    def __init__(self, planes: int, width: int = 64) -> None:
        super().__init__(SegNetEncoder(width))
        self.stride = 2**LEVELS  # the deepest features are pooled once more
        self.levels = nn.ModuleList(nn.Sequential(*block(width, width)) for _ in range(LEVELS))
        self.dropout = nn.Dropout2d(0.1)
        self.head = nn.Conv2d(width, planes, 1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.encoder(image)
        x = F.max_pool2d(features[-1], 2)
        for level, pooled_from in zip(self.levels, reversed(features), strict=True):
            x = level(unpool(x, pooled_from))
        logits: Tensor = self.head(self.dropout(x))
        return logits


def unpool(x: Tensor, pooled_from: Tensor) -> Tensor:
    """``F.max_unpool2d`` of ``x`` with the places of the maxima of ``pooled_from``, in operators that every runtime has.

    Args:
        x: ``(N, C, h, w)``.
        pooled_from: ``(N, C, 2h, 2w)``; the first of several equal maxima of a 2x2 window counts, row by row.

    Returns:
        ``(N, C, 2h, 2w)``, zero beside the maxima.
    """
    n, channels, height, width = x.shape
    windows = F.pixel_unshuffle(pooled_from, 2).reshape(n, channels, 4, height, width)
    first = windows.argmax(2, keepdim=True) == torch.arange(4, device=x.device)[:, None, None]
    return F.pixel_shuffle((first * x[:, :, None]).reshape(n, 4 * channels, height, width), 2)
