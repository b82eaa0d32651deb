"""The fully convolutional network FCN-8s (Long, Shelhamer & Darrell 2015, "Fully Convolutional Networks")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.models.base import Network
from training.models.vgg import VGG16


class FCN8s(Network):
    """VGG-16, scores at strides 32, 16 and 8, brought together and to full size by transposed convolutions.

    The two layers behind the encoder have 1024 channels and the first of them a dilated 3x3 kernel, in place of 4096 and 7x7:
    a twentieth of the weights at the same accuracy (Chen et al. 2018, "DeepLab", LargeFOV). The scores of the skips start at
    zero and the transposed convolutions as bilinear upsampling, so training begins with the coarse network and refines it.
    """

    def __init__(self, planes: int) -> None:
        super().__init__(VGG16())
        *_, c8, c16, c32 = self.encoder.channels
        self.classifier = nn.Sequential(
            nn.Conv2d(c32, 1024, 3, padding=3, dilation=3),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(1024, 1024, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
        )
        self.score32 = nn.Conv2d(1024, planes, 1)
        self.score16 = nn.Conv2d(c16, planes, 1)
        self.score8 = nn.Conv2d(c8, planes, 1)
        self.up32 = upsampling(planes, 2)
        self.up16 = upsampling(planes, 2)
        self.up8 = upsampling(planes, 8)
        for skip in (self.score16, self.score8):
            nn.init.zeros_(skip.weight)

    def forward(self, image: Tensor) -> Tensor:
        *_, f8, f16, f32 = self.encoder(image)
        x = self.up32(self.score32(self.classifier(f32)))
        x = self.up16(x + self.score16(f16))
        logits: Tensor = self.up8(x + self.score8(f8))
        return logits


def upsampling(planes: int, factor: int) -> nn.ConvTranspose2d:
    """A transposed convolution that starts as bilinear upsampling of every plane by an even ``factor``."""
    layer = nn.ConvTranspose2d(planes, planes, 2 * factor, factor, factor // 2, bias=False)
    along = 1 - ((torch.arange(2 * factor) + 0.5) / factor - 1).abs()
    with torch.no_grad():
        layer.weight.copy_(torch.eye(planes)[:, :, None, None] * torch.outer(along, along))
    return layer
