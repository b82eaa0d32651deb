"""Explanations of networks whose reasons are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from engine.preprocess import fit  # noqa: E402
from training import explain  # noqa: E402
from training.explain import (  # noqa: E402
    choose_layer,
    class_activation,
    effective_field,
    explain_activation,
    explain_field,
    open_frames,
    parse_region,
    radius_holding,
    region_mask,
)
from training.models import build_model  # noqa: E402

Mask = NDArray[np.bool_]


def predicted(logits: NDArray[np.float32]) -> Mask:
    return np.asarray(logits > 0)


def everywhere(logits: NDArray[np.float32]) -> Mask:
    return np.ones(logits.shape, bool)


def at(x: int, y: int) -> Callable[[NDArray[np.float32]], Mask]:
    def one(logits: NDArray[np.float32]) -> Mask:
        mask = np.zeros(logits.shape, bool)
        mask[y, x] = True
        return mask

    return one


class Known(nn.Module):
    """Feature maps at half the size, a 1x1 head with known weights, every logit four times."""

    def __init__(self, weights: list[list[float]], width: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 2, 2), nn.ReLU())
        self.after = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(width, len(weights), 1)
        self.head.weight.data = torch.tensor(weights)[:, :, None, None]
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.head(self.after(self.features(x))), scale_factor=2)


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1


# --- class activation ---------------------------------------------------------------------------------------------------------


def test_activation_by_hand(image: torch.Tensor) -> None:
    torch.manual_seed(0)
    weights = [[0.5, -1.0, 2.0], [1.0, 1.0, -1.0]]
    network = Known(weights).eval()
    features = network.features(image)[0].detach().numpy()
    for plane in (0, 1):
        heat, logits, region = class_activation(network, image, "features", plane, predicted)
        # the logit of a cell counts as often as it was repeated and lies in the region; ReLU passes what is positive
        times = region.reshape(6, 2, 8, 2).sum((1, 3))
        mean = (times * (features > 0)).mean((1, 2)) * np.array(weights[plane])
        assert 0 < region.mean() < 1
        assert np.array_equal(region, logits > 0)
        assert np.allclose(heat, np.maximum(0, np.tensordot(mean, features, 1)), atol=1e-5)
        local, _, _ = class_activation(network, image, "features", plane, predicted, "hirescam")
        assert np.allclose(local, times * np.maximum(0, np.tensordot(np.array(weights[plane]), features, 1)), atol=1e-5)


def test_activation_picks_the_channel_that_counts(image: torch.Tensor) -> None:
    torch.manual_seed(1)
    network = Known([[0.0, 3.0, 0.0]]).eval()
    heat, _, _ = class_activation(network, image, "features", 0, everywhere)
    channel = network.features(image)[0, 1].detach().numpy()
    assert channel.max() > 0
    assert np.allclose(heat / heat.max(), channel / channel.max(), atol=1e-6)


class LeftHalf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()), nn.Conv2d(4, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.features(x)
        left = torch.arange(seen.shape[3]) < seen.shape[3] // 2
        return self.head(seen * left).mean((2, 3), keepdim=True).expand(-1, -1, *x.shape[2:])


def test_what_cannot_count_stays_cold(image: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = LeftHalf().eval()
    nn.init.constant_(network.head.weight, 1.0)
    local, _, _ = class_activation(network, image, "features", 0, everywhere, "hirescam")
    assert np.all(local[:, 8:] == 0)
    assert np.any(local[:, :8] > 0)
    pixel, _, _ = class_activation(Known([[1.0, 1.0, 1.0]]).eval(), image, "features", 0, at(5, 4), "hirescam")
    assert set(zip(*np.nonzero(pixel), strict=True)) <= {(2, 2)}


def test_nothing_predicted_is_no_activation(image: torch.Tensor) -> None:
    network = Known([[1.0, 1.0, 1.0]]).eval()
    network.head.bias.data.fill_(-100)
    heat, _, region = class_activation(network, image, "features", 0, predicted)
    assert not region.any()
    assert heat.shape == (6, 8)
    assert not heat.any()


def test_frozen_network_is_explained_and_left_alone(image: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = Known([[1.0, 1.0, 1.0]]).eval().requires_grad_(False)
    heat, _, _ = class_activation(network, image, "features", 0, everywhere)
    assert heat.max() > 0
    assert not any(m._forward_hooks for m in network.modules())
    assert all(p.grad is None for p in network.parameters())


class Aside(Known):
    """A second output that nothing leads to."""

    def __init__(self) -> None:
        super().__init__([[1.0, 1.0, 1.0]])
        self.aside = nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.aside(x)
        return super().forward(x)


def test_layer_without_a_say_is_named(image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"plane 0 does not depend on layer 'aside'"):
        class_activation(Aside().eval(), image, "aside", 0, everywhere)
    with pytest.raises(ValueError, match="gradcam or hirescam"):
        class_activation(Aside().eval(), image, "aside", 0, everywhere, "lime")


@pytest.mark.parametrize("name", ["small", "unet", "unet_resnet18", "segnet_basic", "fcn"])
def test_last_stage_of_the_encoder_is_the_default(name: str) -> None:
    network = build_model(name, 2).eval()
    last = len(network.encoder.stages) - 1
    assert choose_layer(network, torch.zeros(1, 3, 64, 64)) == f"encoder.stages.{last}"


def test_unknown_layer_is_told_the_known_ones() -> None:
    network = build_model("small", 2).eval()
    with pytest.raises(ValueError, match=r"no feature map 'encoder'; known: encoder.stem, .*mix4.*layers inside these"):
        choose_layer(network, torch.zeros(1, 3, 64, 64), "encoder")
    with pytest.raises(ValueError, match=r"60x64; give multiples of its stride, 32"):
        choose_layer(network, torch.zeros(1, 3, 64, 60))


def test_regions() -> None:
    assert parse_region("mask") == ()
    assert parse_region("3, 4") == (3, 4)
    assert parse_region("3,4,5,6") == (3, 4, 5, 6)
    for text in ("", "3", "1,2,3", "a,b", "-1,4"):
        with pytest.raises(ValueError, match="wanted mask"):
            parse_region(text)
    logits = np.zeros((8, 16), np.float32)
    half = fit((32, 16), (16, 8), "stretch")
    box = region_mask((4, 2, 8, 4), logits, half)
    assert np.argwhere(box).tolist() == [[y, x] for y in (1, 2) for x in (2, 3, 4, 5)]
    for pixel, cell in (((0, 0), (0, 0)), ((31, 15), (7, 15)), ((9, 6), (3, 4))):
        assert np.argwhere(region_mask(pixel, logits, half)).tolist() == [list(cell)]
    double = fit((8, 4), (16, 8), "stretch")
    assert np.argwhere(region_mask((1, 2), logits, double)).tolist() == [[4, 2], [4, 3], [5, 2], [5, 3]]
    for outside in ((32, 0), (0, 16), (30, 0, 4, 4), (3, 3, 0, 1)):
        with pytest.raises(ValueError, match="not inside the frame of 32x16"):
            region_mask(outside, logits, half)


# --- effective receptive field ------------------------------------------------------------------------------------------------


class Uniform(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(3 if not i else 1, 1, 3, padding=1, bias=False) for i in range(layers)]
        self.layers = nn.Sequential(*convolutions)
        for convolution in convolutions:
            nn.init.constant_(convolution.weight, 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_uniform_convolutions_make_a_gaussian() -> None:
    """Of n layers each adds 2/3 to the variance along an axis; the distance from the centre is Rayleigh's."""
    n = 24
    field = effective_field(Uniform(n), torch.zeros(2, 3, 64, 80), 0)
    kernel = np.ones(1)
    for _ in range(n):
        kernel = np.convolve(kernel, np.ones(3) / 3)
    wanted = np.zeros((64, 80))
    wanted[32 - n : 33 + n, 40 - n : 41 + n] = np.outer(kernel, kernel)
    assert np.allclose(field.density, wanted, atol=1e-7)
    assert field.pixel == (40, 32)
    assert field.theoretical == (40 - n, 32 - n, 40 + n, 32 + n)
    assert not field.whole_image
    variance = (field.density.sum(0) * (np.arange(80) - 40) ** 2).sum()
    assert variance == pytest.approx(2 / 3 * n)
    for radius, share in zip(field.radii, (0.68, 0.95), strict=True):
        assert radius == pytest.approx(np.sqrt(-2 * np.log(1 - share) * variance), abs=0.5)


def test_field_of_a_pixel_near_the_border_is_cut() -> None:
    field = effective_field(Uniform(3), torch.zeros(1, 3, 16, 16), 0, (1, 14))
    assert field.theoretical == (0, 11, 4, 15)
    assert field.density.sum() == pytest.approx(1)
    assert np.argwhere(field.density).max(0).tolist() == [15, 4]
    with pytest.raises(ValueError, match="outside the output of 16x16"):
        effective_field(Uniform(3), torch.zeros(1, 3, 16, 16), 0, (16, 0))


class Bent(nn.Module):
    """The sign of the gradient is that of the image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs().sum(1, keepdim=True)


def test_gradients_of_several_images_do_not_cancel() -> None:
    images = torch.stack([torch.ones(3, 8, 8), -torch.ones(3, 8, 8)])
    field = effective_field(Bent(), images, 0, (3, 5))
    assert field.density[5, 3] == 1
    with pytest.raises(ValueError, match="has no gradient"):
        effective_field(Bent(), torch.zeros(1, 3, 8, 8), 0)


def test_radius_by_hand() -> None:
    density = np.zeros((9, 9))
    density[4, 4], density[4, 6], density[1, 4] = 0.5, 0.3, 0.2
    assert [radius_holding(density, (4, 4), share) for share in (0.4, 0.6, 0.8, 0.9)] == [0, 2, 2, 3]


# --- files --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network as `training.trainer` saves it."""
    torch.manual_seed(0)
    weights = build_model("small", 2).state_dict()
    path = tmp_path_factory.mktemp("run") / "last.pt"
    config = {"model": "small", "sizes": ["64x64"]}
    torch.save({"average": weights, "config": config, "earlier": [], "epoch": 1, "images": {}}, path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with explain.open_video(path, 10.0) as write:
        for i in range(7):
            write(np.full((48, 65, 3), 30 * i, np.uint8))
    return path


def test_picture_of_a_frame(checkpoint: Path, tmp_path: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "frame.png"), frame)
    out = tmp_path / "cam.png"
    assert explain_activation(str(checkpoint), tmp_path / "frame.png", out, region=(40, 30, 50, 40), device="cpu") == 1
    picture = cv2.imread(str(out))
    assert picture.shape[0] > 90
    assert picture.shape[1] > 160
    assert np.all(picture[30, 40:90] == 255), "the box is drawn"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cam.png", "frame.png"]


def test_cold_places_show_the_frame_and_warm_ones_the_colour() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    heat = np.zeros((6, 8), np.float32)
    heat[4, 2] = 5.0
    picture = explain.draw_activation(frame, heat, (), np.zeros((6, 8), bool), "text")
    assert np.array_equal(picture[:40, :128], frame[:40])
    assert np.array_equal(picture[:96, 64:128], frame[:, 64:])
    hottest = cv2.applyColorMap(np.array([[255]], np.uint8), cv2.COLORMAP_TURBO)[0, 0].astype(float)
    middle = picture[72, 40].astype(float)
    assert np.abs(middle - hottest).sum() < np.abs(frame[72, 40] - hottest).sum()


def test_clip_becomes_a_clip(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "cam.mp4"
    assert explain_activation(str(checkpoint), clip, out, every=3, layer="mix4", method="hirescam", device="cpu") == 3
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        times = [frame.time for frame in container.decode(stream)]
    assert times == pytest.approx([0, 0.3, 0.6], abs=0.01)
    assert [p.name for p in tmp_path.iterdir()] == ["cam.mp4"]


def test_clip_that_fails_leaves_nothing(checkpoint: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, calls = explain.draw_activation, []

    def fail_later(*arguments: object) -> NDArray[np.uint8]:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(explain, "draw_activation", fail_later)
    with pytest.raises(KeyboardInterrupt):
        explain_activation(str(checkpoint), clip, tmp_path / "cam.mp4", device="cpu")
    assert not list(tmp_path.iterdir())


def test_frames_of_every_kind_of_source(clip: Path, tmp_path: Path) -> None:
    fps, frames = open_frames(clip, 2)
    assert fps == pytest.approx(5)
    assert [round(float(f.mean()) / 30) for f in frames] == [0, 2, 4, 6]
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((4, 6, 3), i, np.uint8))
    fps, frames = open_frames(tmp_path, 2)
    assert fps is not None
    assert [f[0, 0, 0] for f in frames] == [0, 2]
    fps, frames = open_frames(tmp_path / "1.png")
    assert fps is None
    assert [f.shape for f in frames] == [(4, 6, 3)]


def test_field_picture(checkpoint: Path, tmp_path: Path) -> None:
    fields = explain_field(str(checkpoint), tmp_path / "field.png", pixel=(20, 40), initial=True, images=2, device="cpu")
    assert len(fields) == 2
    for field in fields:
        assert field.density.shape == (64, 64)
        assert field.density.sum() == pytest.approx(1)
        assert field.radii[0] <= field.radii[1]
        assert field.pixel == (20, 40)
        assert field.whole_image
    one = tmp_path / "one.png"
    explain_field(str(checkpoint), one, images=1, device="cpu")
    both = cv2.imread(str(tmp_path / "field.png"))
    assert both.shape[1] > 1.5 * cv2.imread(str(one)).shape[1]


def test_field_on_images_of_ones_own(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    (noise,) = explain_field("small", tmp_path / "a.png", images=1, size=(64, 32), device="cpu")
    (frames,) = explain_field(str(checkpoint), tmp_path / "b.png", source=clip, images=2, size=(64, 32), device="cpu")
    assert noise.density.shape == frames.density.shape == (32, 64)


def test_mistakes_are_named(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    image, out = tmp_path / "image.png", tmp_path / "out.png"
    cv2.imwrite(str(image), np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    name = str(checkpoint)
    for run in (lambda m: explain_activation(m, image, out), lambda m: explain_field(m, out)):
        with pytest.raises(ValueError, match=r"net.onnx: .* gives no gradients; give the checkpoint"):
            run("net.onnx")
        with pytest.raises(FileNotFoundError, match=r"none.pt"):
            run("none.pt")
    with pytest.raises(ValueError, match="several frames; write a video"):
        explain_activation(name, clip, out)
    with pytest.raises(ValueError, match=r"out.gif: wanted a name that ends in .png"):
        explain_activation(name, image, tmp_path / "out.gif")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        explain_activation(name, image, tmp_path / "there/out.png")
    with pytest.raises(FileNotFoundError, match=r"none.png"):
        explain_activation(name, tmp_path / "none.png", out)
    with pytest.raises(ValueError, match=r"text.png: cannot be decoded"):
        explain_activation(name, tmp_path / "text.png", out)
    with pytest.raises(ValueError, match=r"text.mp4: cannot be opened"):
        explain_activation(name, tmp_path / "text.mp4", tmp_path / "out.mp4")
    with pytest.raises(ValueError, match="no images in this folder"):
        explain_activation(name, tmp_path / "empty", tmp_path / "out.mp4")
    with pytest.raises(ValueError, match="'lane': this network has freespace, ego"):
        explain_activation(name, image, out, plane="lane")
    with pytest.raises(ValueError, match="not inside the frame of 32x32"):
        explain_activation(name, image, out, region=(40, 3))
    with pytest.raises(ValueError, match="every 0"):
        explain_activation(name, image, out, every=0)
    with pytest.raises(ValueError, match="is not trained"):
        explain_field("small", out, initial=True)
    with pytest.raises(ValueError, match="images 0"):
        explain_field(name, out, images=0)
    assert not out.exists()
    assert not [p for p in tmp_path.iterdir() if ".part" in p.name]
