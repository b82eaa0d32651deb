"""The network that Freespace ships: an EfficientNet-Lite0 encoder and a small feature-pyramid decoder."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.efficientnet_lite import EfficientNetLite0

HEAD_SCALE = 4  # the head works at stride 4


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def upsample(x: Tensor, factor: int = 2) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class FreespaceNet(nn.Module):
    """Logits for ``planes`` planes at full resolution from a normalised BGR image.

    ``forward``: float ``(N, 3, h, w)``, about [-1, 1], h and w multiples of 32 -> logits float ``(N, planes, h, w)``.

    The decoder adds each level to the one below it (Lin et al. 2017, "Feature Pyramid Networks") and mixes with one plain
    3x3 convolution a level; the image-wide average at the top tells every pixel what the scene is. The head predicts
    4 x 4 sub-pixels from every stride-4 cell (Shi et al. 2016, "sub-pixel convolution"): a bilinear resize of the
    logits costs more time on a CPU than the whole decoder.
    """

    stride = 32

    def __init__(self, planes: int = 2, width: int = 48, last_repeats: int = 1) -> None:
        super().__init__()
        self.encoder = EfficientNetLite0(last_repeats)
        _, c4, c8, c16, c32 = self.encoder.channels
        narrow = width // 2
        self.scene = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c32, width, 1), nn.ReLU(inplace=True))
        self.lateral32 = conv(c32, width, 1)
        self.lateral16 = conv(c16, width, 1)
        self.lateral8 = conv(c8, width, 1)
        self.lateral4 = conv(c4, narrow, 1)
        self.mix32 = conv(width, width)
        self.mix16 = conv(width, width)
        self.mix8 = conv(width, narrow)
        self.mix4 = conv(narrow, narrow)
        self.dropout = nn.Dropout2d(0.1)
        self.head = nn.Conv2d(narrow, planes * HEAD_SCALE**2, 3, padding=1, padding_mode="replicate")
        start_as_bilinear(self.head)

    def forward(self, image: Tensor) -> Tensor:
        _, f4, f8, f16, f32 = self.encoder(image)
        x = self.mix32(self.lateral32(f32) + self.scene(f32))
        x = self.mix16(self.lateral16(f16) + upsample(x))
        x = self.mix8(self.lateral8(f8) + upsample(x))
        x = self.mix4(self.lateral4(f4) + upsample(x))
        return F.pixel_shuffle(self.head(self.dropout(x)), HEAD_SCALE)


def start_as_bilinear(head: nn.Conv2d) -> None:
    """Let the head begin as a 1x1 convolution followed by bilinear upsampling: smooth outlines, nothing to unlearn.

    Bilinear upsampling by a whole factor *is* a 3x3 convolution to sub-pixels: each one weighs the cell and its nearest
    neighbours by distance.
    """
    centres = (np.arange(HEAD_SCALE) + 0.5) / HEAD_SCALE - 0.5  # of the sub-pixels, in cells from the cell's centre
    along = np.maximum(0, 1 - np.abs(centres[:, None] - np.array([-1, 0, 1])))
    kernels = torch.from_numpy(np.einsum("iy,jx->ijyx", along, along)).float().reshape(HEAD_SCALE**2, 1, 3, 3)
    planes = head.out_channels // HEAD_SCALE**2
    with torch.no_grad():
        mixing = torch.randn(planes, 1, head.in_channels, 1, 1) / head.in_channels**0.5
        head.weight.copy_((mixing * kernels).reshape(head.weight.shape))
        nn.init.zeros_(head.bias)  # type: ignore[arg-type]
