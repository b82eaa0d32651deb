"""The networks that Freespace deploys: an EfficientNet-Lite0 encoder and a small feature-pyramid decoder, in three sizes."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.base import Encoder, Network
from training.models.efficientnet_lite import EfficientNetLite0
from training.models.layers import conv

HEAD_SCALE = 4  # the head works at stride 4
SMALL = (1, 2, 2, 3, 3, 1)  # blocks per stage: the stride-32 stage, whole, would hold two thirds of the encoder's weights
NANO = (1, 2, 2, 3, 2, 1)


def upsample(x: Tensor, factor: int = 2) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class FreespaceNet(Network):
    """A `Network` that adds each level of a pyramid to the one below it.

    The decoder adds (Lin et al. 2017, "Feature Pyramid Networks") and mixes with one plain 3x3 convolution a level; the
    image-wide average at the top tells every pixel what the scene is. The head predicts 4 x 4 sub-pixels from every stride-4
    cell (Shi et al. 2016, "sub-pixel convolution"): a bilinear resize of the logits costs more time on a CPU than the whole
    decoder.

    Args:
        width: channels of the decoder down to stride 16; half of it below.
        encoder: with feature maps at strides 4, 8, 16 and 32. None: EfficientNet-Lite0 with one block in its last stage.
    """

    def __init__(self, planes: int = 2, width: int = 48, encoder: Encoder | None = None) -> None:
        super().__init__(encoder or EfficientNetLite0(SMALL))
        c4, c8, c16, c32 = self.encoder.channels[-4:]
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
        f4, f8, f16, f32 = self.encoder(image)[-4:]
        x = self.mix32(self.lateral32(f32) + self.scene(f32))
        x = self.mix16(self.lateral16(f16) + upsample(x))
        x = self.mix8(self.lateral8(f8) + upsample(x))
        x = self.mix4(self.lateral4(f4) + upsample(x))
        return F.pixel_shuffle(self.head(self.dropout(x)), HEAD_SCALE)


def freespace_nano(planes: int) -> FreespaceNet:
    """Two thirds of the time of `FreespaceNet` go where the encoder has most cells, and its weights need no more of them.

    So the stem reads the image at stride 4 and every stage works on a quarter of the cells; the head keeps its stride.
    """
    return FreespaceNet(planes, 32, EfficientNetLite0(NANO, stem_stride=4))


def freespace_medium(planes: int) -> FreespaceNet:
    """All of the encoder, and a decoder twice as wide."""
    return FreespaceNet(planes, 96, EfficientNetLite0())


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
