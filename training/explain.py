"""Where a network looks: class activation on frames, and the receptive field that it makes use of.

**Class activation.** Which places of a feature map speak for a plane in a region of its output. The target is the sum of the
plane's logits over the region (Vinogradova et al. 2020, "Towards Interpretable Semantic Segmentation via Gradient-weighted
Class Activation Mapping"). ``gradcam`` weighs every channel with the mean of the target's gradient over the map (Selvaraju et
al. 2017): it says which *features* count, also where they lie outside of what the region can see. ``hirescam`` weighs every
place with its own gradient (Draelos & Carin 2020): places that the region cannot see stay cold. Negative sums count as zero.

**Effective receptive field** (Luo et al. 2016, "Understanding the Effective Receptive Field in Deep Convolutional Neural
Networks"). The size of the gradient of one output pixel by every input pixel, summed over colours, the mean of several images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.files import write_whole
from engine.preprocess import Resampling, fit, resample
from training.checkpoints import planes_of, size_of
from training.datasets import PLANES
from training.distributed import open_device
from training.inference import normalise
from training.models import build_model
from training.summary import field_at, open_network

METHODS = {"gradcam": "Grad-CAM", "hirescam": "HiResCAM"}
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
FOLDER_FPS = 10.0
SHARES = (0.68, 0.95)  # of the effective field's mass

OPACITY = 0.65  # of the warmest place
PANEL_WIDTH = 960
WHITE, DARK, GREEN, AMBER = (255, 255, 255), (24, 24, 24), (80, 200, 60), (40, 180, 230)  # BGR

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]
Region = tuple[int, ...]
"""``()``: what is predicted; ``(x, y)``: a pixel; ``(x, y, width, height)``: a box. In pixels of the frame."""


# --- class activation ---------------------------------------------------------------------------------------------------------


def parse_region(text: str) -> Region:
    """``mask``, ``x,y`` or ``x,y,width,height`` in pixels of the frame. Raises ValueError: it is none of these."""
    if text == "mask":
        return ()
    parts = text.split(",")
    if len(parts) not in (2, 4) or not all(part.strip().isdigit() for part in parts):
        raise ValueError(f"region {text!r}: wanted mask, a pixel as x,y or a box as x,y,width,height")
    return tuple(int(part) for part in parts)


def region_mask(region: Region, logits: F32, resampling: Resampling) -> Mask:
    """The pixels of the network's output, bool ``(h, w)``, that ``region`` stands for; of a pixel or box at least one.

    Args:
        logits: of the plane, float ``(h, w)``.
        resampling: how the frame was brought to the network's size.

    Raises:
        ValueError: the region is not inside the frame.
    """
    if not region:
        return np.asarray(logits > 0)
    x, y, box_width, box_height = (*region, 1, 1)[:4]
    width, height = resampling.frame_size
    if box_width < 1 or box_height < 1 or x < 0 or y < 0 or x + box_width > width or y + box_height > height:
        raise ValueError(f"region {','.join(map(str, region))} is not inside the frame of {width}x{height}")
    corners = np.array([[x - 0.5, y - 0.5], [x + box_width - 0.5, y + box_height - 0.5]])
    first, last = resampling.input_from_frame(corners)
    begin, end = np.ceil(first).astype(int), np.floor(last).astype(int)
    nearest = np.clip(np.rint((first + last) / 2).astype(int), 0, np.array(logits.shape[::-1]) - 1)
    narrow = end < begin  # between the centres of two of the network's pixels
    begin, end = np.where(narrow, nearest, begin), np.where(narrow, nearest, end)
    mask = np.zeros(logits.shape, bool)
    mask[begin[1] : end[1] + 1, begin[0] : end[0] + 1] = True
    return mask


def feature_maps(network: nn.Module, image: Tensor) -> dict[str, tuple[int, int]]:
    """(rows, columns) of the output of every module that gives one feature map, in the order in which they are done.

    Raises:
        ValueError: the network does not take an image of that size.
    """
    sizes: dict[str, tuple[int, int]] = {}

    def remember(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            sizes.pop(name, None)
            sizes[name] = (output.shape[2], output.shape[3])

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: remember(name, output))
        for name, module in network.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            network(image)
    except RuntimeError as error:
        size, stride = f"{image.shape[3]}x{image.shape[2]}", getattr(network, "stride", 32)
        raise ValueError(f"the network does not take an image of {size}; give multiples of its stride, {stride}") from error
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def choose_layer(network: nn.Module, image: Tensor, layer: str | None = None) -> str:
    """``layer`` checked, or the last stage of the encoder: the last module done on the coarsest feature map.

    Raises:
        ValueError: the network has no such layer, or it gives no feature map; the message names those that do.
    """
    known = feature_maps(network, image)
    if layer is None:
        encoder = {name: size for name, size in known.items() if name.startswith("encoder.")} or known
        if not encoder:
            raise ValueError("none of the network's layers gives a feature map")
        coarsest = min(rows * columns for rows, columns in encoder.values())
        return [name for name, (rows, columns) in encoder.items() if rows * columns == coarsest][-1]
    if layer not in known:
        upper = [n for n in known if "." not in n or (n.count(".") < 3 and any(network.get_submodule(n).children()))]
        inner = f", and {len(known) - len(upper)} layers inside these" * (len(upper) < len(known))
        raise ValueError(f"the network has no feature map {layer!r}; known: {', '.join(upper)}{inner}")
    return layer


def class_activation(
    network: nn.Module,
    image: Tensor,
    layer: str,
    plane: int,
    region: Callable[[F32], Mask],
    method: str = "gradcam",
) -> tuple[F32, F32, Mask]:
    """Where the feature map of ``layer`` speaks for ``plane``.

    Args:
        network: in evaluation mode; its gradients are left alone.
        image: float ``(1, 3, h, w)``, normalised.
        layer: name of a module that gives one feature map.
        plane: channel of the output.
        region: from the plane's logits, float ``(h, w)``, to the pixels whose logits are summed, bool ``(h, w)``.
        method: one of `METHODS`.

    Returns:
        the activation at the feature map's size, float and not negative, all zero where the region is empty; the plane's
        logits; the region.

    Raises:
        ValueError: an unknown method, or the plane does not depend on the layer.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r}: wanted {' or '.join(METHODS)}")
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()  # what follows may work in place

    handle = network.get_submodule(layer).register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = network(image)[0, plane]
    finally:
        handle.remove()
    values: F32 = logits.detach().float().cpu().numpy()
    chosen = region(values)
    features = kept[-1]
    if not chosen.any():
        return np.zeros(features.shape[2:], np.float32), values, chosen
    if not logits.requires_grad:
        raise ValueError(f"plane {plane} does not depend on layer {layer!r}; choose another layer")
    target = logits[torch.from_numpy(chosen).to(logits.device)].sum()
    (gradient,) = torch.autograd.grad(target, features, allow_unused=True)
    if gradient is None:
        raise ValueError(f"plane {plane} does not depend on layer {layer!r}; choose another layer")
    weights = gradient.mean((2, 3), keepdim=True) if method == "gradcam" else gradient
    activation = torch.relu((weights * features).sum(1)[0]).detach()
    return activation.float().cpu().numpy(), values, chosen


def explain_activation(
    model: str,
    source: Path,
    out: Path,
    *,
    plane: str = PLANES[0],
    region: Region = (),
    layer: str | None = None,
    method: str = "gradcam",
    size: tuple[int, int] | None = None,
    every: int = 1,
    device: str = "auto",
) -> int:
    """Write class activation over a frame (picture) or the frames of a clip (H.264 video).

    Args:
        model: a checkpoint, or a network's name for one with random weights.
        source: an image; for a video also a video or a folder of images.
        out: `PICTURE_SUFFIXES` or `VIDEO_SUFFIXES`.
        plane, region, layer, method: see `class_activation`, `parse_region` and `choose_layer`.
        size: (width, height) of the network's input; by default that of its training.
        every: take one frame of this many.
        device: auto, cpu or cuda.

    Returns:
        the number of frames written.

    Raises:
        FileNotFoundError: no such model or source.
        ValueError: an option is none that there is, the source cannot be read, the region lies outside of a frame.
    """
    check_options(model, out, PICTURE_SUFFIXES + VIDEO_SUFFIXES)
    network, state = open_network(model)
    channel, target = channel_of(plane, planes_of(state)), open_device(device)
    network, size = network.to(target), size or size_of(state)
    fps, frames = open_frames(source, every)
    video = out.suffix.lower() in VIDEO_SUFFIXES
    if fps is not None and not video:
        raise ValueError(f"{source}: holds several frames; write a video ({', '.join(VIDEO_SUFFIXES)}), or give one image")
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{source}: holds no frame that can be read")
    chosen_layer = choose_layer(network, network_input(first, size, target)[0], layer)

    def picture(frame: U8) -> U8:
        image, resampling = network_input(frame, size, target)
        heat, _, chosen = class_activation(
            network, image, chosen_layer, channel, lambda logits: region_mask(region, logits, resampling), method
        )
        what = describe_region(region) if chosen.any() else "nothing predicted"
        return draw_activation(frame, heat, region, chosen, f"{METHODS[method]}  {chosen_layer}  {plane}  {what}")

    if not video:
        write_picture(out, picture(first))
        return 1
    written = 0
    with open_video(out, fps or FOLDER_FPS) as write:
        for frame in chain([first], frames):
            write(picture(frame))
            written += 1
    return written


def describe_region(region: Region) -> str:
    if not region:
        return "predicted mask"
    return f"pixel {region[0]},{region[1]}" if len(region) == 2 else "box {},{} {}x{}".format(*region)


# --- effective receptive field ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EffectiveField:
    """What one output pixel makes use of.

    Attributes:
        density: float ``(h, w)``, the share of each input pixel; they sum to 1.
        pixel: (x, y) of the output.
        radii: of the circles around it that hold `SHARES` of the mass, pixels.
        theoretical: (left, top, right, bottom) of what it could see, the last two included.
        whole_image: whether it could see the whole image beside that.
    """

    density: F64
    pixel: tuple[int, int]
    radii: tuple[float, ...]
    theoretical: tuple[int, int, int, int]
    whole_image: bool


def effective_field(network: nn.Module, images: Tensor, plane: int, pixel: tuple[int, int] | None = None) -> EffectiveField:
    """Effective receptive field of one output pixel.

    Args:
        network: in evaluation mode; its gradients are left alone.
        images: float ``(N, 3, h, w)``, normalised.
        plane: channel of the output.
        pixel: (x, y) of the output; its centre by default.

    Raises:
        ValueError: the pixel is outside the output, or depends on nothing.
    """
    height, width = images.shape[2:]
    x, y = pixel or (width // 2, height // 2)
    theoretical, whole_image = field_at(network, (width, height), (x, y))
    total = torch.zeros(height, width, dtype=torch.float64, device=images.device)
    for image in images:
        given = image[None].detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(network(given)[0, plane, y, x], given)
        total += gradient[0].double().abs().sum(0)
    density: F64 = total.cpu().numpy()
    mass = float(density.sum())
    if not np.isfinite(mass) or mass == 0:
        raise ValueError(f"the output at {x},{y} has no gradient by the image ({mass:g}); are the weights sound?")
    density = density / mass
    radii = tuple(radius_holding(density, (x, y), share) for share in SHARES)
    return EffectiveField(density, (x, y), radii, theoretical, whole_image)


def settle_norms(network: nn.Module, images: Tensor) -> None:
    """Give the batch norms of an untrained network the statistics of ``images``, as its first step of training would.

    With those that they are built with, every layer shrinks or swells its signal, and shallow paths outweigh deep ones.
    """
    network.eval()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean of all batches
    with torch.no_grad():
        for batch in torch.split(images, 4):
            network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def radius_holding(density: F64, centre: tuple[int, int], share: float) -> float:
    """Radius in pixels of the smallest circle around ``centre`` (x, y) with ``share`` of the mass of ``density`` ``(h, w)``."""
    rows, columns = np.indices(density.shape)
    distances = np.hypot(columns - centre[0], rows - centre[1]).ravel()
    order = np.argsort(distances, kind="stable")
    mass = np.cumsum(density.ravel()[order])
    return float(distances[order][min(int(np.searchsorted(mass, share * mass[-1])), mass.size - 1)])


def explain_field(
    model: str,
    out: Path,
    *,
    source: Path | None = None,
    plane: str = PLANES[0],
    pixel: tuple[int, int] | None = None,
    initial: bool = False,
    images: int = 16,
    every: int = 1,
    size: tuple[int, int] | None = None,
    device: str = "auto",
) -> list[EffectiveField]:
    """Draw the effective receptive field of one output pixel as a heat map (square root of the density).

    Drawn over it: the frame of the theoretical field and the circles that hold `SHARES` of the mass.

    Args:
        model: a checkpoint, or a network's name for one with random weights.
        out: the picture, `PICTURE_SUFFIXES`.
        source: an image, a video or a folder of images to take gradients on; noise by default.
        pixel: (x, y) of the output at the network's size; its centre by default.
        initial: draw the field of the same network before training beside it.
        images: how many of the source are taken at most.
        every: take one image of this many.
        size, device: as of `explain_activation`.

    Returns:
        the field, and the initial one where asked for.

    Raises:
        FileNotFoundError: no such model or source.
        ValueError: an option is none that there is, the source cannot be read, the pixel is outside the output.
    """
    check_options(model, out, PICTURE_SUFFIXES)
    if images < 1:
        raise ValueError(f"images {images}: wanted at least one")
    network, state = open_network(model)
    name = state.get("config", {}).get("model")
    if initial and name is None:
        raise ValueError(f"{model!r} is not trained, it has no earlier state to compare with; give a checkpoint")
    planes, target, size = planes_of(state), open_device(device), size or size_of(state)
    channel = channel_of(plane, planes)
    inputs = torch.cat(list(field_inputs(source, images, every, size, target)))
    networks = {f"{model}, {'trained' if state else 'random weights'}": network}
    if initial:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            networks[f"{name}, before training"] = build_model(name, len(planes))
    for untrained in list(networks.values())[1 if state else 0 :]:
        settle_norms(untrained.to(target), inputs)
    fields = [effective_field(n.to(target), inputs, channel, pixel) for n in networks.values()]
    write_picture(out, np.hstack([draw_field(field, text) for text, field in zip(networks, fields, strict=True)]))
    return fields


def field_inputs(source: Path | None, images: int, every: int, size: tuple[int, int], device: torch.device) -> Iterator[Tensor]:
    """Up to ``images`` normalised inputs ``(1, 3, h, w)``: of the source, or uniform noise, the same every time."""
    if source is None:
        noise = np.random.default_rng(0).integers(0, 256, (images, size[1], size[0], 3), np.uint8)
        yield normalise(torch.from_numpy(noise)).to(device)
        return
    _, frames = open_frames(source, every)
    count = 0
    for count, frame in enumerate(frames, 1):
        yield network_input(frame, size, device)[0]
        if count == images:
            return
    if not count:
        raise ValueError(f"{source}: holds no frame that can be read")


# --- in and out ---------------------------------------------------------------------------------------------------------------


def check_options(model: str, out: Path, suffixes: tuple[str, ...]) -> None:
    """Raises ValueError or FileNotFoundError: the model has no gradients, or the output cannot be written."""
    if Path(model).suffix == ".onnx":
        raise ValueError(f"{model}: an ONNX file gives no gradients; give the checkpoint (.pt) that it was exported from")
    if out.suffix.lower() not in suffixes:
        raise ValueError(f"{out}: wanted a name that ends in {', '.join(suffixes)}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such folder to write {out.name} into")


def channel_of(plane: str, planes: Sequence[str]) -> int:
    if plane not in planes:
        raise ValueError(f"plane {plane!r}: this network has {', '.join(planes)}")
    return list(planes).index(plane)


def network_input(frame: U8, size: tuple[int, int], device: torch.device) -> tuple[Tensor, Resampling]:
    """A BGR frame ``(H, W, 3)`` as the network takes it, float ``(1, 3, h, w)``, and how it came to be that size."""
    resampling = fit((frame.shape[1], frame.shape[0]), size, "stretch")
    small = np.zeros((size[1], size[0], 3), np.uint8)
    resample(frame, resampling, small)
    return normalise(torch.from_numpy(small)[None]).to(device), resampling


def open_frames(source: Path, every: int = 1) -> tuple[float | None, Iterator[U8]]:
    """BGR frames of an image, a video or a folder of images, one of ``every``; and their rate, None for a single image.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it cannot be read as any of these.
    """
    if every < 1:
        raise ValueError(f"every {every}: wanted at least 1")
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such image, video or folder")
    if source.is_dir():
        paths = sorted(p for p in source.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
        if not paths:
            raise ValueError(f"{source}: no images in this folder")
        return FOLDER_FPS, (read_image(path) for path in paths[::every])
    if source.suffix.lower() in IMAGE_SUFFIXES:
        return None, iter([read_image(source)])
    video = cv2.VideoCapture(str(source))
    if not video.isOpened():
        raise ValueError(f"{source}: cannot be opened as an image or a video")
    return (video.get(cv2.CAP_PROP_FPS) or FOLDER_FPS) / every, video_frames(video, every)


def video_frames(video: cv2.VideoCapture, every: int) -> Iterator[U8]:
    number = 0
    try:
        while video.grab():
            found, image = video.retrieve() if number % every == 0 else (False, None)
            if found:
                yield np.asarray(image, np.uint8)
            number += 1
    finally:
        video.release()


def read_image(path: Path) -> U8:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path}: cannot be decoded as an image")
    return np.asarray(image, np.uint8)


def write_picture(path: Path, picture: U8) -> None:
    _, data = cv2.imencode(path.suffix.lower(), picture)
    write_whole(path, np.asarray(data).tobytes())


@contextmanager
def open_video(path: Path, fps: float) -> Iterator[Callable[[U8], None]]:
    """Write BGR frames as H.264 that browsers play; the first sets the size. The file gets its name when it is whole."""
    import av

    part = path.with_name(f".{path.stem}.part{path.suffix}")
    rate = Fraction(fps).limit_denominator(1001)
    try:
        with av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream: Any = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "20"})
            stream.pix_fmt = "yuv420p"
            # What PyAV converts BGR to, said in the stream: BT.601, limited range.
            stream.codec_context.colorspace, stream.codec_context.color_range = 6, 1
            size = (0, 0)

            def write(frame: U8) -> None:
                nonlocal size
                even = cv2.copyMakeBorder(frame, 0, frame.shape[0] % 2, 0, frame.shape[1] % 2, cv2.BORDER_REPLICATE)
                if size == (0, 0):
                    size = (even.shape[1], even.shape[0])
                    stream.width, stream.height = size
                elif size != (even.shape[1], even.shape[0]):
                    even = cv2.resize(even, size, interpolation=cv2.INTER_AREA)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even, np.uint8), "bgr24")))

            yield write
            container.mux(stream.encode(None))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# --- pictures -----------------------------------------------------------------------------------------------------------------


def draw_activation(frame: U8, heat: F32, region: Region, chosen: Mask, text: str) -> U8:
    """``frame`` BGR ``(H, W, 3)`` under ``heat``, with the region's outline and a colour scale to the right.

    The warmest place of a frame has the warmest colour; the number at the scale's top is its activation.
    """
    height, width = frame.shape[:2]
    warmest = float(heat.max())
    scaled = cv2.resize(heat / (warmest or 1.0), (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    colours = cv2.applyColorMap(np.uint8(255 * scaled), cv2.COLORMAP_TURBO)
    canvas = np.uint8(np.rint(frame + (colours.astype(np.float32) - frame) * (OPACITY * np.sqrt(scaled))))
    thickness = max(1, round(height / 360))
    if len(region) == 4:
        x, y, box_width, box_height = region
        cv2.rectangle(canvas, (x, y), (x + box_width - 1, y + box_height - 1), WHITE, thickness)
    elif region:
        cv2.drawMarker(canvas, region, WHITE, cv2.MARKER_CROSS, max(8, height // 24), thickness)
    elif chosen.any():
        mask = cv2.resize(np.uint8(255 * chosen), (width, height), interpolation=cv2.INTER_LINEAR)
        outlines, _ = cv2.findContours(np.uint8(mask > 127), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, WHITE, thickness)
    return with_caption(np.hstack([canvas, colour_scale(height, f"{warmest:.3g}", cv2.COLORMAP_TURBO)]), text)


def draw_field(field: EffectiveField, text: str) -> U8:
    """Heat map of an effective field at a readable size, with a caption and a colour scale."""
    height, width = field.density.shape
    zoom = max(1, round(PANEL_WIDTH / width))
    heat = np.sqrt(field.density / field.density.max())
    large = cv2.resize(np.uint8(np.rint(255 * heat)), (width * zoom, height * zoom), interpolation=cv2.INTER_NEAREST)
    canvas = cv2.applyColorMap(large, cv2.COLORMAP_INFERNO)
    left, top, right, bottom = field.theoretical
    if right >= left:
        cv2.rectangle(canvas, (left * zoom, top * zoom), ((right + 1) * zoom - 1, (bottom + 1) * zoom - 1), WHITE, 2)
    centre = tuple(round((c + 0.5) * zoom) for c in field.pixel)
    for radius, colour in zip(field.radii, (GREEN, AMBER), strict=True):
        cv2.circle(canvas, centre, max(1, round(radius * zoom)), colour, 2, cv2.LINE_AA)
    shares = ", ".join(f"{s:.0%} within {r:.0f} px" for s, r in zip(SHARES, field.radii, strict=True))
    sides = right - left + 1, bottom - top + 1
    could = "the whole image" if sides == (width, height) else f"{sides[0]}x{sides[1]}"
    if field.whole_image and sides != (width, height):
        could = " and ".join([could] * (right >= left) + ["the whole image at once"])
    scale = colour_scale(canvas.shape[0], f"{field.density.max():.2g}", cv2.COLORMAP_INFERNO)
    return with_caption(
        np.hstack([np.asarray(canvas, np.uint8), scale]), text, f"{shares}; could see {could}; colours by the root of the share"
    )


def colour_scale(height: int, top: str, colours: int) -> U8:
    """A strip ``(height, w, 3)``: from ``top`` down to 0 in a colour map of OpenCV."""
    size = font_size(height)
    (text_width, text_height), _ = cv2.getTextSize(top, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    bar, gap = max(8, height // 40), max(4, height // 80)
    strip = np.full((height, bar + 3 * gap + text_width, 3), DARK, np.uint8)
    ramp = np.uint8(np.linspace(255, 0, max(2, height - 2 * gap)))[:, None].repeat(bar, axis=1)
    strip[gap : gap + ramp.shape[0], gap : gap + bar] = cv2.applyColorMap(ramp, colours)
    for text, y in ((top, gap + text_height), ("0", height - gap)):
        cv2.putText(strip, text, (bar + 2 * gap, y), cv2.FONT_HERSHEY_SIMPLEX, size, WHITE, 1, cv2.LINE_AA)
    return strip


def with_caption(picture: U8, *lines: str) -> U8:
    """``picture`` with lines of text below it, made as small as needed to fit its width."""
    width = picture.shape[1]
    size = font_size(picture.shape[0])
    widest = max(cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, size, 1)[0][0] for line in lines)
    size *= min(1.0, 0.97 * width / widest)
    step = max(6, round(36 * size))
    strip = np.full((step * len(lines) + step // 3, width, 3), DARK, np.uint8)
    for i, line in enumerate(lines, 1):
        cv2.putText(strip, line, (width // 100, step * i - step // 6), cv2.FONT_HERSHEY_SIMPLEX, size, WHITE, 1, cv2.LINE_AA)
    return np.vstack([picture, strip])


def font_size(height: int) -> float:
    return min(0.9, max(0.35, height / 900))
