"""Networks by name.

Each is a `training.models.base.Network`: an encoder in stages and a decoder, normalised BGR in, logits at full size out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from training.models.base import Network, freeze, stages_of, unfreeze
from training.models.efficientnet_lite import EfficientNetLite0
from training.models.fcn import FCN8s
from training.models.freespace_net import FreespaceNet, freespace_medium, freespace_nano
from training.models.initialisation import INITIALISATIONS, initialise
from training.models.mobilenet_v2 import MobileNetV2
from training.models.pretrained import load_encoder
from training.models.resnet import ResNet
from training.models.segnet import SegNetBasic
from training.models.unet import UNet

__all__ = [
    "INITIALISATIONS",
    "MODELS",
    "OLD_NAMES",
    "Network",
    "build_model",
    "freeze",
    "initialise",
    "load_encoder",
    "stages_of",
    "unfreeze",
]


@dataclass(frozen=True)
class Architecture:
    """What a name stands for.

    Attributes:
        description: one line for people.
        build: the network from its number of output planes.
    """

    description: str
    build: Callable[[int], Network]


DECODER_WIDTHS = (256, 128, 64, 32, 16)  # of the U-Nets over published encoders, coarsest first

MODELS: dict[str, Architecture] = {
    "nano": Architecture("deployed: small's layers on a quarter of the cells, head at stride 4", freespace_nano),
    "small": Architecture("deployed: EfficientNet-Lite0, feature pyramid 48 wide, head at stride 4", FreespaceNet),
    "medium": Architecture("deployed: all of EfficientNet-Lite0, feature pyramid 96 wide", freespace_medium),
    "fcn": Architecture("FCN-8s: VGG-16, transposed convolutions, skips at strides 8 and 16", FCN8s),
    "unet": Architecture("the classic U-Net: double convolutions, 4 levels, 32 to 512 channels", UNet),
    "segnet_basic": Architecture("SegNet-Basic: 7x7 convolutions, 4 levels, unpooling where the maxima were", SegNetBasic),
    "unet_mobilenetv2": Architecture("U-Net over MobileNetV2", lambda k: UNet(k, MobileNetV2(), DECODER_WIDTHS)),
    "unet_resnet18": Architecture("U-Net over ResNet-18", lambda k: UNet(k, ResNet(18), DECODER_WIDTHS)),
    "unet_resnet50": Architecture("U-Net over ResNet-50", lambda k: UNet(k, ResNet(50), DECODER_WIDTHS)),
    "unet_efficientnet_lite0": Architecture(
        "U-Net over EfficientNet-Lite0", lambda k: UNet(k, EfficientNetLite0(), DECODER_WIDTHS)
    ),
}
OLD_NAMES = {"freespace": "small"}  # in checkpoints from before there were sizes


def build_model(name: str, planes: int, *, dropout: float | None = None, initialisation: str = "default") -> Network:
    """The network ``name`` with ``planes`` output planes, its weights not trained; the same for the same seed of torch.

    Args:
        dropout: rate of all its dropout layers, in [0, 1), in place of the network's own.
        initialisation: how the weights of its convolutions start: ``default``, or a key of `INITIALISATIONS`.

    Raises:
        ValueError: no network or initialisation has that name, or the rate is none.
    """
    name = OLD_NAMES.get(name, name)
    if name not in MODELS:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(MODELS)}")
    if dropout is not None and not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout}: wanted a rate in [0, 1)")
    model = MODELS[name].build(planes)
    initialise(model, initialisation)
    for layer in model.modules():
        if dropout is not None and isinstance(layer, nn.Dropout | nn.Dropout2d):
            layer.p = dropout
    return model
