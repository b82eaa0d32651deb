"""The training loop: mixed data sets, mixed sizes, exponential moving average, checkpoints that resume exactly."""

from __future__ import annotations

import json
import math
import os
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.preprocess import fit, resample
from training.augment import augment
from training.datasets import (
    FOOTAGE,
    PLANES,
    READERS,
    VIEWS_FILE,
    Cache,
    Sample,
    epoch_indices,
    find_samples,
    find_views,
    read_sample,
    split_of,
)
from training.losses import bce_and_dice
from training.metrics import Counts, count
from training.models import build_model

T = TypeVar("T")

MAY_CHANGE = ("data", "out", "init", "views", "threads", "device")  # settings that a resumed run may have otherwise

INPUT_MEAN, INPUT_SCALE = 127.0, 1.0 / 128.0


@dataclass
class TrainConfig:
    """A training run. Sizes are (width, height) in pixels, rates are AdamW's at the peak of the schedule."""

    data: str = "data"
    out: str = "runs/freespace"
    views: str = ""  # folder that `training.distil` wrote: trained on as well
    model: str = "freespace"
    pretrained: bool = True  # start the encoder from ImageNet weights
    init: str = ""  # or start all of it from the average of this checkpoint: a second, gentler phase
    epochs: int = 24
    samples_per_epoch: int = 2000
    batch: int = 12
    sizes: list[tuple[int, int]] = field(default_factory=lambda: [(384, 224), (448, 256)])
    shares: dict[str, float] = field(default_factory=lambda: {"camvid": 0.22, "idd_lite": 0.43, "bdd100k": 0.35, FOOTAGE: 0.05})
    encoder_rate: float = 5e-4
    decoder_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    ema: float = 0.998
    cache_width: int = 576
    seed: int = 1
    threads: int = 0
    device: str = "auto"


def normalise(images: Tensor) -> Tensor:
    """uint8 ``(N, h, w, 3)`` BGR -> float ``(N, 3, h, w)`` in about [-1, 1]: what the deployed graph does, too."""
    return (images.to(torch.float32).permute(0, 3, 1, 2) - INPUT_MEAN) * INPUT_SCALE


def train(config: TrainConfig) -> Path:
    """Train, writing ``last.pt`` after every epoch and ``log.jsonl`` beside it; go on from ``last.pt`` where there is one.

    The result is the moving average after the last epoch: no epoch is picked by its score.

    Returns:
        path of the final checkpoint, ``last.pt``.

    Raises:
        FileNotFoundError: no data, or no pretrained weights.
        ValueError: an unknown device or network, or an unfinished run with other settings in ``config.out``.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    if config.threads:
        torch.set_num_threads(config.threads)
    device = open_device(config.device)
    samples = find_samples(Path(config.data))
    splits = {name: [s for s in samples if split_of(s) == name] for name in ("train", "dev")}
    views = find_views(Path(config.views)) if config.views else []
    cache = Cache(splits["train"] + views, config.cache_width)

    torch.manual_seed(config.seed)
    model = build_model(config.model, len(PLANES))
    checkpoint_path = out / "last.pt"
    resumed = load_checkpoint(checkpoint_path, config) if checkpoint_path.exists() else None
    earlier: list[dict[str, Any]] = resumed["earlier"] if resumed else []
    if resumed is None and config.init:
        first = read_checkpoint(Path(config.init))
        model.load_state_dict(first["average"])
        earlier = [*first["earlier"], first["config"]]
    elif resumed is None and config.pretrained:
        model.encoder.load_imagenet()  # type: ignore[operator, union-attr]
    model = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = build_model(config.model, len(PLANES)).to(device)
    average.load_state_dict(model.state_dict())
    optimiser = build_optimiser(model, config)
    steps_per_epoch = math.ceil(config.samples_per_epoch / config.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: rate_at(step / (steps_per_epoch * config.epochs), config.warmup)
    )
    first_epoch = 0
    if resumed is not None:
        model.load_state_dict(resumed["model"])
        average.load_state_dict(resumed["average"])
        optimiser.load_state_dict(resumed["optimiser"])
        schedule.load_state_dict(resumed["schedule"])
        first_epoch = resumed["epoch"]

    for epoch in range(first_epoch, config.epochs):
        started, losses = time.perf_counter(), []
        rng = np.random.default_rng([config.seed, epoch])
        torch.manual_seed(config.seed * 10_007 + epoch)  # of the epoch alone, so that a resumed run goes on the same
        model.train()
        for images, targets in ahead(batches(cache, config, rng)):
            images, targets = images.to(device), targets.to(device)
            with torch.autocast(device.type, torch.bfloat16):
                logits = model(normalise(images).contiguous(memory_format=torch.channels_last))
            loss = bce_and_dice(logits.float(), targets)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            schedule.step()
            update_average(average, model, min(config.ema, (schedule.last_epoch + 1) / (schedule.last_epoch + 10)))
            losses.append(loss.item())
        entry: dict[str, Any] = {
            "epoch": epoch + 1,
            "loss": round(float(np.mean(losses)), 4),
            "seconds": round(time.perf_counter() - started, 1),
        }
        if splits["dev"]:
            entry["dev"] = {
                k: round(v.iou, 4) for k, v in evaluate_network(average, splits["dev"], config.sizes[-1], device).items()
            }
        with open(out / "log.jsonl", "a") as log:
            log.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)
        save_checkpoint(
            checkpoint_path,
            {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "epoch": epoch + 1,
                "config": asdict(config),
                "earlier": earlier,
                "views": json.loads((Path(config.views) / VIEWS_FILE).read_text()) if config.views else {},
                "images": {name: sum(s.dataset == name for s in splits["train"]) for name in READERS},
            },
        )
    return checkpoint_path


def open_device(name: str) -> torch.device:
    """``auto`` takes CUDA where there is one. Raises ValueError for a name torch does not know."""
    try:
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r}: wanted auto, cpu or cuda") from error


def load_checkpoint(path: Path, config: TrainConfig) -> dict[str, Any]:
    """State of an earlier run to go on from.

    Raises:
        ValueError: the file is broken, or the run had other settings.
    """
    state = read_checkpoint(path)
    wanted, earlier = asdict(config), state["config"]
    changed = [k for k in wanted if k not in MAY_CHANGE and json.dumps(wanted[k]) != json.dumps(earlier.get(k))]
    if changed:
        raise ValueError(f"{path}: that run had other settings ({', '.join(changed)}); give them again, or another --out")
    if state["epoch"] >= config.epochs:
        print(f"{path}: finished already, {state['epoch']} epochs")
    return state


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `train` saved: ``model``, ``average``, ``optimiser``, ``schedule``, ``epoch``, ``config``, ``earlier`` (the
    configurations of earlier phases), ``images`` (how many per data set), ``views`` (``views.json`` of a distillation).

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no such file.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"average", "config", "earlier", "epoch", "images"} - state.keys()
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: not a checkpoint of 'freespace train'") from error
    if missing:
        raise ValueError(f"{path}: not a checkpoint of 'freespace train': no {', '.join(sorted(missing))}")
    return state


def batches(cache: Cache, config: TrainConfig, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented batches of one epoch: images uint8 ``(N, h, w, 3)``, targets uint8 ``(N, K, h, w)``."""
    indices = epoch_indices(cache.samples, config.shares, config.samples_per_epoch, rng)
    for start in range(0, len(indices), config.batch):
        size = tuple(config.sizes[int(rng.integers(len(config.sizes)))])
        chosen = indices[start : start + config.batch]
        views = [augment(*cache[i], (size[0], size[1]), rng, cache.samples[i].view) for i in chosen]
        if len(views) > 1:  # batch norm wants more than one
            yield torch.from_numpy(np.stack([v[0] for v in views])), torch.from_numpy(np.stack([v[1] for v in views]))


def ahead(items: Iterator[T], count: int = 3) -> Iterator[T]:
    """The same items in the same order, made by a thread of its own while the network learns from those before."""
    waiting: queue.Queue[T | BaseException | None] = queue.Queue(count)
    stopped = threading.Event()

    def work() -> None:
        last: BaseException | None = None
        try:
            for item in items:
                waiting.put(item)
                if stopped.is_set():
                    return
        except BaseException as error:  # the thread that takes the items is the one to raise it
            last = error
        waiting.put(last)

    thread = threading.Thread(target=work, name="augmentation", daemon=True)
    thread.start()
    try:
        while not isinstance(item := waiting.get(), BaseException):
            if item is None:
                return
            yield item
        raise item
    finally:
        stopped.set()
        with suppress(queue.Empty):
            while True:
                waiting.get_nowait()
        thread.join()


def build_optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; a lower rate for the pretrained encoder, no decay on norms and biases."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rate = config.encoder_rate if name.startswith("encoder.") else config.decoder_rate
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW([{"params": p, "lr": r, "weight_decay": d} for (r, d), p in groups.items()])


def rate_at(progress: float, warmup: float) -> float:
    """Linear warm-up, then a half cosine down to a hundredth."""
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for target, source in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if target.dtype.is_floating_point:
            target.lerp_(source, 1 - decay)
        else:
            target.copy_(source)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


@torch.no_grad()
def evaluate_network(model: nn.Module, samples: list[Sample], size: tuple[int, int], device: torch.device) -> dict[str, Counts]:
    """Dataset-level counts per ``dataset/plane``, at label resolution, from the torch network (a check while training)."""
    model.eval()
    totals: dict[str, Counts] = {}
    for sample in samples:
        image, planes = read_sample(sample, strict=True)
        small = np.zeros((size[1], size[0], 3), np.uint8)
        resample(image, fit((image.shape[1], image.shape[0]), size, "stretch"), small)
        logits = model(normalise(torch.from_numpy(small)[None].to(device)))[0].cpu().numpy()
        for plane, name in enumerate(PLANES):
            key = f"{sample.dataset}/{name}"
            totals[key] = totals.get(key, Counts()) + count(positive(logits[plane], planes.shape[1:]), planes[plane])
    return {k: v for k, v in sorted(totals.items()) if v.tp + v.fn}


def positive(logits: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.asarray(cv2.resize(logits, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR) > 0)
