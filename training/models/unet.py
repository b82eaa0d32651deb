"""U-Net (Ronneberger, Fischer & Brox 2015): the classic one, and its decoder behind other encoders."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from training.models.base import Encoder, Network
from training.models.layers import conv


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs), conv(outputs, outputs))


class UNetEncoder(Encoder):
    """Double convolutions with a pool between: feature maps at strides 1 to 16, ``width`` channels at stride 1, doubling.

    With padding and batch norms, which the paper does not have: labels then cover the whole image, and no start is too bad.
    """

    def __init__(self, width: int) -> None:
        channels = [width << level for level in range(5)]
        stages = [nn.Sequential(nn.MaxPool2d(2), double_conv(finer, coarser)) for finer, coarser in pairwise(channels)]
        super().__init__(double_conv(3, width), stages, [(1 << level, c) for level, c in enumerate(channels)])


class Level(nn.Module):
    """Doubles the size by a transposed convolution, joins the encoder's features of that size, mixes."""

    def __init__(self, inputs: int, skipped: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, 2)
        self.mix = double_conv(outputs + skipped, outputs)

    def forward(self, x: Tensor, skipped: Sequence[Tensor]) -> Tensor:
        y: Tensor = self.mix(torch.cat([*skipped, self.up(x)], 1))
        return y


class UNet(Network):
    """An encoder, and a decoder that joins its feature maps level by level.

    Args:
        encoder: with feature maps at stride 1 or 2 and every doubling of it; None: the classic one, 32 channels wide where
            the paper has 64.
        widths: channels of the decoder's levels, coarsest first, down to stride 1.
    """

    def __init__(self, planes: int, encoder: Encoder | None = None, widths: Sequence[int] = (256, 128, 64, 32)) -> None:
        super().__init__(encoder or UNetEncoder(width=widths[-1]))
        coarsest, *skips = reversed(self.encoder.channels)
        skips += [0] * (len(widths) - len(skips))  # an encoder without features at full size
        levels = [
            Level(inputs, skipped, outputs)
            for inputs, skipped, outputs in zip([coarsest, *widths[:-1]], skips, widths, strict=True)
        ]
        self.levels = nn.ModuleList(levels)
        self.dropout = nn.Dropout2d(0.1)
        self.head = nn.Conv2d(widths[-1], planes, 1)

    def forward(self, image: Tensor) -> Tensor:
        x, *skips = reversed(self.encoder(image))
        for index, level in enumerate(self.levels):
            x = level(x, skips[index : index + 1])
        logits: Tensor = self.head(self.dropout(x))
        return logits
