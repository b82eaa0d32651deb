"""What a network is made of, against hand-computed numbers, gradients and torch's own counter."""

from __future__ import annotations

import copy
import json
import math
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from engine import DEFAULT_MODEL  # noqa: E402
from engine.graph import as_fp16  # noqa: E402
from training.checkpoints import size_of  # noqa: E402
from training.models import build_model  # noqa: E402
from training.summary import (  # noqa: E402
    Summary,
    as_json,
    field_at,
    print_summary,
    summarise,
    summarise_network,
    summarise_onnx,
)

INT8_MODEL = DEFAULT_MODEL.with_name("freespace.int8.onnx")


def conv(inputs: int = 2, outputs: int = 2, kernel: int = 3, stride: int = 1, **options: Any) -> nn.Conv2d:
    options.setdefault("padding", options.get("dilation", 1) * (kernel - 1) // 2)
    return nn.Conv2d(inputs, outputs, kernel, stride, **options)


def fields(summary: Summary, *kinds: str) -> list[int]:
    chosen = [a for a in summary.layers if a.kind in kinds]
    assert all(a.field[0] == a.field[1] for a in chosen)
    return [a.field[0] for a in chosen]


# --- receptive fields ---------------------------------------------------------------------------------------------------------


def test_fields_of_vgg16() -> None:
    layers: list[nn.Module] = []
    inputs = 3
    for block in (2, 2, 3, 3, 3):
        for _ in range(block):
            layers += [conv(inputs, 4), nn.ReLU(inplace=True)]
            inputs = 4
        layers.append(nn.MaxPool2d(2))
    summary = summarise_network(nn.Sequential(*layers), (64, 64))
    assert fields(summary, "Conv2d", "MaxPool2d") == [3, 5, 6, 10, 14, 16, 24, 32, 40, 44, 60, 76, 92, 100, 132, 164, 196, 212]
    assert [a.stride for a in summary.layers if a.kind == "MaxPool2d"] == [(2**i, 2**i) for i in range(1, 6)]
    assert not summary.field_clipped


def test_fields_of_alexnet() -> None:
    layers = nn.Sequential(
        *(conv(3, 4, 11, 4, padding=2), nn.MaxPool2d(3, 2), conv(4, 4, 5), nn.MaxPool2d(3, 2)),
        *(conv(4), conv(4, 4), conv(4, 4), nn.MaxPool2d(3, 2))[1:],
    )
    layers.insert(4, conv(4, 4))
    assert fields(summarise_network(layers, (128, 128)), "Conv2d", "MaxPool2d") == [11, 19, 51, 67, 99, 131, 163, 195]


class Residual(nn.Module):
    def __init__(self, inputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second, self.norm = conv(inputs, 4, 3, stride), conv(4, 4), nn.BatchNorm2d(4)
        self.short = conv(inputs, 4, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.second(F.relu(self.first(x)))) + self.short(x))


def test_fields_of_resnet18() -> None:
    blocks = [Residual(4, 2 if stage and not i else 1) for stage in range(4) for i in range(2)]
    summary = summarise_network(nn.Sequential(conv(3, 4, 7, 2), nn.MaxPool2d(3, 2, 1), *blocks), (64, 64))
    ends = [a.field[0] for a in summary.layers if a.kind == "add"]
    assert ends[1::2] == [43, 99, 211, 435]
    assert summary.layers[-1].stride == (32, 32)


def test_fields_of_dilated_convolutions() -> None:
    layers = [conv(3, 2, dilation=1), *(conv(2, 2, dilation=d) for d in (2, 4, 8))]
    assert fields(summarise_network(nn.Sequential(*layers), (32, 32)), "Conv2d") == [3, 7, 15, 31]


def test_fields_need_not_be_square() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 2, (1, 5), padding=(0, 2)), nn.AvgPool2d((2, 1)))
    assert [a.field for a in summarise_network(layers, (16, 16)).layers] == [(5, 1), (5, 2)]


class Up(nn.Module):
    """Two paths that meet again at full size."""

    def __init__(self, up: nn.Module, inputs: int = 4) -> None:
        super().__init__()
        self.down = nn.Sequential(
            conv(3, 4, 5, 2), conv(4, 4, groups=4), nn.AvgPool2d(2), conv(4, 4, dilation=2), conv(4, 16, 1)
        )
        self.up, self.side, self.end = up, conv(3, 2, 1), conv(inputs + 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(torch.cat([self.up(self.down(x)), self.side(x)], 1))


class Resize(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=4, **self.options)


class Channels(nn.Module):
    """Everything that moves or merges dimensions but rows and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = (int(length) for length in x.shape)
        x = x.view(n, 4, 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = self.mlp(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        a, b = x.chunk(2, 1)
        x = torch.stack([a, b], 1).sum(1) + a.mean(1, keepdim=True)
        x = torch.cat([x, x.flip(1), x], 1)[:, :16]
        return F.pixel_shuffle(F.pixel_unshuffle(F.interpolate(x, scale_factor=4), 2), 2)


class Shifted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (3, 1, 0, 2), mode="replicate")[:, :, 1:-1, 2:-2]
        return F.interpolate(F.pad(x, (1, 1, 1, 1)), scale_factor=4)[:, :, 4:-4, 4:-4]


UPS = {
    "transposed_4_2": (nn.Sequential(nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ConvTranspose2d(8, 4, 4, 2, 1)), 4),
    "transposed_3_2": (nn.Sequential(nn.ConvTranspose2d(16, 4, 3, 2, 1, 1), nn.ConvTranspose2d(4, 4, 2, 2)), 4),
    "transposed_8_4": (nn.ConvTranspose2d(16, 4, 8, 4, 2), 4),
    "nearest": (Resize(mode="nearest"), 16),
    "bilinear": (Resize(mode="bilinear"), 16),
    "corners": (Resize(mode="bilinear", align_corners=True), 16),
    "shuffle": (nn.Sequential(nn.PixelShuffle(2), nn.PixelShuffle(2)), 1),
    "replicate": (nn.Sequential(conv(16, 4, 3, padding_mode="replicate"), Resize(mode="nearest")), 4),
    "channels": (Channels(), 16),
    "shifted": (Shifted(), 16),
}


def field_by_gradient(network: nn.Module, size: int, pixel: tuple[int, int]) -> tuple[int, int, int, int]:
    """With all weights positive nothing cancels: the field is where the gradient of the output is not zero."""
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.5)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.forward = lambda x: x  # type: ignore[method-assign]
    image = torch.ones(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    network.double()(image)[0, :, pixel[1], pixel[0]].sum().backward()
    rows, columns = np.nonzero(image.grad[0].abs().sum(0).numpy())
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


@pytest.mark.parametrize("name", UPS)
def test_fields_are_those_of_the_gradient(name: str) -> None:
    network = Up(*copy.deepcopy(UPS[name]))
    found = {pixel: field_at(network, (96, 96), pixel) for pixel in ((48, 48), (49, 47), (51, 50), (2, 95))}
    widest = summarise_network(network, (96, 96)).layers[-1]
    assert not widest.whole_image, widest.assumed
    assert found == {pixel: (field_by_gradient(network, 96, pixel), False) for pixel in found}
    if name not in ("corners", "shifted"):  # there neighbours in a period of 4 show all there is
        boxes = [field_by_gradient(network, 96, (48 + i, 48 + i)) for i in range(4)]
        assert widest.field[0] == max(right - left + 1 for left, _, right, _ in boxes)


def test_network_of_ours_by_gradient() -> None:
    """A U-Net over its own pools: maxima let only one gradient pass, so that means take their place."""
    network = build_model("unet", 2).eval()
    wanted, _ = field_at(network, (320, 32), (160, 16))
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.MaxPool2d | nn.ReLU):
            parent, _, last = name.rpartition(".")
            other = nn.AvgPool2d(module.kernel_size) if isinstance(module, nn.MaxPool2d) else nn.Identity()
            setattr(network.get_submodule(parent), last, other)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    image = torch.ones(1, 3, 32, 320, requires_grad=True)
    network(image)[0, :, 16, 160].sum().backward()
    columns = np.flatnonzero(image.grad[0].abs().sum((0, 1)).numpy())
    assert (wanted[0], wanted[2]) == (columns[0], columns[-1])
    assert 150 < wanted[2] - wanted[0] + 1 <= 320


class Squeeze(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(4, 4, 1), nn.Sigmoid())
        self.wide = nn.Sequential(conv(3, 4), conv(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.wide(x)
        return x * self.gate(x)


def test_global_pooling_sees_the_whole_image_and_hides_nothing() -> None:
    layers = summarise_network(Squeeze(), (32, 16)).layers
    pool = next(a for a in layers if a.kind == "AdaptiveAvgPool2d")
    assert (pool.whole_image, pool.field, pool.stride) == (True, (0, 0), None)
    assert (layers[-1].whole_image, layers[-1].field) == (True, (5, 5))
    assert not layers[0].whole_image
    assert field_at(Squeeze(), (32, 16), (10, 8)) == ((8, 6, 12, 10), True)


class Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "attention":
            flat = x.flatten(2)
            return (flat.transpose(1, 2) @ flat).softmax(1).sum(1).view(x.shape[0], 1, *x.shape[2:])
        if self.kind == "roll":
            return torch.roll(x, 3, 2)
        out = torch.zeros_like(x)
        out[:, :, ::2] = x[:, :, 1::2]
        return out


@pytest.mark.parametrize(
    ("kind", "word"), [("attention", "merges rows and columns"), ("roll", "roll"), ("part", "into a part")]
)
def test_reach_that_is_not_known_is_said_to_be(kind: str, word: str) -> None:
    last = summarise_network(Odd(kind), (16, 16)).layers[-1]
    assert last.whole_image
    assert any(word in name for name in last.assumed)


class ForOneSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.place = nn.Sequential(conv(3, 2), *(conv() for _ in range(9))), nn.Parameter(torch.zeros(1, 2, 16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + self.place


def test_fields_of_a_network_for_one_size_end_at_its_borders() -> None:
    summary = summarise_network(ForOneSize(), (16, 16))
    assert summary.field_clipped
    assert summary.layers[-1].field == (16, 16)
    assert summary.parameters == 3 * 2 * 9 + 2 + 9 * (2 * 2 * 9 + 2) + 2 * 16 * 16


# --- counts -------------------------------------------------------------------------------------------------------------------


def test_multiply_adds_by_hand() -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 5, 2, 2, bias=False), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ConvTranspose2d(8, 4, 2, 2), nn.ReLU()
    )
    summary = summarise_network(layers, (32, 16))
    wanted = [8 * 16 * 8 * 3 * 25, 8 * 16 * 8 * 9, 8 * (16 * 8) * 4 * 4, 0]
    assert [a.macs for a in summary.layers] == wanted
    assert [a.parameters for a in summary.layers] == [600, 80, 8 * 4 * 4 + 4, 0]
    assert [a.shape for a in summary.layers] == [(1, 8, 8, 16), (1, 8, 8, 16), (1, 4, 16, 32), (1, 4, 16, 32)]
    assert summary.flops == 2 * sum(wanted)
    assert summary.weight_bytes == {"fp32": 4 * 812, "fp16": 2 * 812, "int8": 812}


@pytest.mark.parametrize("name", ["small", "segnet_basic", "unet_resnet18"])
def test_networks_of_ours_are_counted_whole(name: str) -> None:
    network = build_model(name, 2).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.zeros(1, 3, 64, 64))
    summary = summarise_network(network, (64, 64))
    assert summary.flops == counter.get_total_flops()
    assert sum(a.parameters for a in summary.layers) == summary.parameters == sum(p.numel() for p in network.parameters())
    assert summary.buffers == sum(b.numel() for b in network.buffers())
    assert summary.layers[-1].shape == (1, 2, 64, 64)
    assert summary.layers[-1].stride == (1, 1)
    assert not any(a.assumed for a in summary.layers)


def test_weights_used_twice_are_counted_once() -> None:
    shared = conv(3, 3)
    summary = summarise_network(nn.Sequential(shared, nn.ReLU(), shared), (8, 8))
    assert [a.parameters for a in summary.layers] == [84, 0, 0]
    assert summary.parameters == 84
    assert summary.macs == 2 * 81 * 64


def test_peak_by_hand() -> None:
    pixels = 4 * 16 * 16  # bytes of a channel
    chain = [conv(3, 8), nn.ReLU(inplace=True), conv(8, 4), conv(4, 4)]
    summary = summarise_network(nn.Sequential(*chain), (16, 16))
    assert summary.peak_bytes == (8 + 4) * pixels
    assert [a.activation_bytes for a in summary.layers] == [8 * pixels, 0, 4 * pixels, 4 * pixels]
    assert summarise_network(nn.Sequential(conv(3, 8), nn.ReLU()), (16, 16)).peak_bytes == 16 * pixels
    # side and sum: 4 channels of the first convolution wait for the others
    skipping = nn.Sequential(conv(3, 4), Residual(4, 1))
    assert summarise_network(skipping, (16, 16)).peak_bytes == (4 + 4 + 4) * pixels
    # the image is read once more at the end and lives till then
    up = Up(nn.PixelShuffle(4), 1)
    assert summarise_network(up, (16, 16)).peak_bytes == (1 + 2 + 3 + 2) * pixels - 2 * pixels


def test_network_is_left_as_it_was() -> None:
    network = build_model("small", 2).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    summarise_network(network, (64, 64))
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert all(p.device.type == "cpu" and p.grad is None for p in network.parameters())


# --- ONNX ---------------------------------------------------------------------------------------------------------------------


def exported(network: nn.Module, path: Path) -> Path:
    torch.onnx.export(network.eval(), (torch.zeros(1, 3, 96, 96),), str(path), dynamo=False, opset_version=18)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["transposed_4_2", "transposed_3_2", "nearest", "bilinear", "corners", "shuffle", "replicate", "channels"]
)
def test_file_and_network_say_the_same(name: str, tmp_path: Path) -> None:
    network = Up(*copy.deepcopy(UPS[name]))
    file, own = summarise_onnx(exported(network, tmp_path / "n.onnx")), summarise_network(network, (96, 96))
    assert file.input_size == (96, 96)
    assert file.macs == own.macs
    assert file.parameters == own.parameters
    assert (file.layers[-1].field, file.layers[-1].whole_image) == (own.layers[-1].field, own.layers[-1].whole_image)
    assert not any(a.assumed for a in file.layers)


def test_shipped_models() -> None:
    """The graph is that of the network, its norms folded in, between uint8 and uint8."""
    own = summarise_network(build_model("small", 2), (448, 256))
    file, quantised = summarise(str(DEFAULT_MODEL)), summarise(str(INT8_MODEL))
    for summary in (file, quantised):
        assert summary.input_size == (448, 256)
        assert summary.macs == own.macs
        assert summary.layers[-1].field == own.layers[-1].field == (595, 595)
        assert summary.layers[-1].whole_image
        assert summary.layers[-1].shape == (1, 2, 256, 448)
        assert not summary.field_clipped
    norms = sum(p.numel() for m in build_model("small", 2).modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    biases = norms // 2  # where a norm was, the convolution has a bias
    assert own.parameters - norms + biases <= file.parameters <= own.parameters - norms + biases + 8
    assert quantised.parameters == pytest.approx(file.parameters, rel=1e-4)
    assert quantised.peak_bytes < file.peak_bytes
    larger = summarise(str(DEFAULT_MODEL), (896, 512))
    assert larger.macs == pytest.approx(4 * file.macs, rel=1e-3)


def test_half_precision_file_takes_half_the_memory(tmp_path: Path) -> None:
    onnx.save(as_fp16(onnx.load(str(DEFAULT_MODEL))), str(tmp_path / "half.onnx"))
    half, full = summarise_onnx(tmp_path / "half.onnx"), summarise_onnx(DEFAULT_MODEL)
    assert half.peak_bytes * 2 == full.peak_bytes


# --- as a person asks for it --------------------------------------------------------------------------------------------------


def test_table_and_json() -> None:
    summary = summarise("small", (128, 64))
    text = StringIO()
    print_summary(summary, Console(file=text))
    for words in ("small at 128x64", f"{summary.parameters:,} parameters", "595 + whole image", "encoder.stem.0", "MFLOP"):
        assert words in text.getvalue(), words
    tree = json.loads(json.dumps(as_json(summary)))
    assert tree["flops"] == 2 * tree["macs"] == sum(a["flops"] for a in tree["layers"])
    assert tree["field"] == [595, 595]
    assert tree["input_size"] == [128, 64]
    assert math.isclose(tree["weight_bytes"]["fp32"], 4 * tree["parameters"])


def test_size_of_a_checkpoint() -> None:
    assert size_of({"config": {"sizes": [[384, 224], [448, 256]]}}) == (448, 256)
    assert size_of({"config": {"sizes": ["384x224", "640x384"]}}) == (640, 384)
    assert size_of({"size": "128x96", "config": {"sizes": ["64x64"]}}) == (128, 96), "what the last phase had"
    assert size_of({}) == (448, 256)


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown network 'smal'; known: "):
        summarise("smal")
    for name in ("none.pt", "none.onnx"):
        with pytest.raises(FileNotFoundError, match=name):
            summarise(str(tmp_path / name))
    for name in ("broken.pt", "broken.onnx"):
        (tmp_path / name).write_bytes(b"nothing of that kind")
        with pytest.raises(ValueError, match=name):
            summarise(str(tmp_path / name))
    with pytest.raises(ValueError, match=r"100x70.*multiples of its stride, 32"):
        summarise("small", (100, 70))
    with pytest.raises(ValueError, match="positive"):
        summarise("small", (0, 64))
    with pytest.raises(ValueError, match="outside the output of 64x32"):
        field_at(nn.Identity(), (64, 32), (64, 0))
