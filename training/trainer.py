"""The training loop: phases of a recipe, mixed data sets and sizes, a moving average, checkpoints that resume exactly."""

from __future__ import annotations

import io
import json
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from engine import cpu_flags
from engine.files import write_whole
from engine.preprocess import fit, resample
from training.augment import apply_effects, choose, parse_augmentation, take_view, view_matrix
from training.datasets import (
    FOOTAGE,
    IGNORE,
    PLANES,
    READERS,
    VIEWS_FILE,
    Cache,
    Sample,
    epoch_indices,
    find_samples,
    find_views,
    hard_targets,
    read_sample,
)
from training.distributed import World, join, shared
from training.health import GradientHealth, NotFinite, first_non_finite
from training.hints import HintHead, hint_loss, read_hint
from training.logs import RunLog, plain, write_environment
from training.losses import Loss, parse_loss
from training.metrics import Counts, count
from training.models import OLD_NAMES, Network, build_model, freeze, load_encoder, stages_of, unfreeze
from training.models.pretrained import INPUT_MEAN, INPUT_SCALE
from training.optimisers import Schedule, build_optimiser, build_schedule, l1_penalty
from training.recipe import Recipe, parse_size, phases_of
from training.report import write_report
from training.sheets import prediction_sheet
from training.splits import assignment_of, describe, split_samples, write_splits

T = TypeVar("T")

LAST, BEST, REPORT = "last.pt", "best.pt", "report.html"
SHEET_IMAGES = 12
LEAST_BATCHES = 30  # of an epoch, where the recipe does not say
PLANE_LOOKS = 50  # labels of a data set that are read to know which planes it has
SPLITS_FILE = "splits.json"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Run:
    """Where a training run takes place: what may differ when it is resumed.

    Attributes:
        data: folder of data sets, see `training.datasets`.
        out: folder for checkpoints, logs and the report.
        splits: file that says which sequence is in which split; None: as `training.splits` does it.
        views: folder that `training.distil` wrote, trained on as well.
        init: checkpoints, or names of shipped ones (``small``), whose mean all of the network starts from.
        threads: of the CPU; 0 leaves it to torch.
        workers: threads that augment images.
        device: ``auto``, ``cpu`` or ``cuda``.
        tensorboard: write TensorBoard's event files, too.
    """

    data: Path
    out: Path
    splits: Path | None = None
    views: Path | None = None
    init: tuple[Path, ...] = ()
    threads: int = 0
    workers: int = 1
    device: str = "auto"
    tensorboard: bool = False


@dataclass
class Data:
    """What there is to learn from and to measure with."""

    splits: dict[str, list[Sample]]
    cache: Cache  # of what is trained on: labelled images and views
    planes: tuple[str, ...]  # what the network says
    channels: list[int]  # where these are among `PLANES`
    views: dict[str, Any]  # where the views come from


class Batch(NamedTuple):
    """This process's part of a batch.

    Attributes:
        images: uint8 ``(n, h, w, 3)`` BGR.
        targets: uint8 ``(n, K, h, w)``, 0 to `CERTAIN` or `IGNORE`.
        hints, hinted: see `training.hints`; None without them.
    """

    images: Tensor
    targets: Tensor
    hints: Tensor | None = None
    hinted: Tensor | None = None


def normalise(images: Tensor) -> Tensor:
    """uint8 ``(N, h, w, 3)`` BGR -> float ``(N, 3, h, w)`` in about [-1, 1]: what the deployed graph does, too."""
    return (images.to(torch.float32).permute(0, 3, 1, 2) - INPUT_MEAN) * INPUT_SCALE


def train(recipe: Recipe, run: Run) -> Path:
    """Train, writing ``last.pt`` after every epoch, and ``best.pt`` where the mean IoU on ``dev`` is the best so far; go on
    from ``last.pt`` where there is one, with the same losses to the bit on a CPU.

    Beside them lie the logs, ``splits.json`` and, in the end, pictures of predictions and ``report.html``. Under
    ``torchrun`` all processes train as one.

    Returns:
        path of the final checkpoint, ``last.pt``: the moving average after the last epoch.

    Raises:
        FileNotFoundError: no data, or no pretrained weights.
        ValueError: an unknown name in the recipe, or an unfinished run with other settings in ``run.out``.
        NotFinite: the loss is no number; the message names the layer.
    """
    with join(run.device) as world:
        if run.threads:
            torch.set_num_threads(run.threads)
        return Training(recipe, run, world).go()


class Training:
    """The state of a run between two epochs."""

    def __init__(self, recipe: Recipe, run: Run, world: World) -> None:
        self.recipe, self.run, self.world = recipe, run, world
        self.phases = phases_of(recipe)
        self.last = run.out / LAST
        resumed = load_checkpoint(self.last, recipe, run) if self.last.exists() else None
        self.data = gather_data(recipe, run, resumed)
        self.network, self.earlier, self.images = start_network(recipe, run, self.data, resumed)
        self.hinted = add_hints(self.network, recipe, self.data, resumed)
        for phase in self.phases:
            check_phase(phase, self.network, self.hinted, self.data, world)
        (self.hinted or self.network).to(world.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = build_model(recipe.model, len(self.data.planes)).to(world.device)
        self.average.load_state_dict(resumed["average"] if resumed else self.network.state_dict())
        self.epoch: int = resumed["epoch"] if resumed else 0
        self.steps: int = resumed["steps"] if resumed else 0
        self.best: dict[str, Any] = resumed["best"] if resumed else {"epoch": 0, "iou": None}
        self.resumed = resumed
        self.dtype = DTYPES.get(choose_precision(recipe.precision, world.device))
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.dtype is torch.float16)
        if resumed and resumed["scaler"]:  # empty where that epoch was computed in another precision
            self.scaler.load_state_dict(resumed["scaler"])

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    @property
    def stopped(self) -> bool:
        """Whether the IoU on ``dev`` has stood still for too long."""
        return bool(0 < self.recipe.stop_after <= self.epoch - self.best["epoch"])

    def go(self) -> Path:
        """Train what is left."""
        run = self.run
        if self.epoch >= self.epochs or self.stopped:
            if self.world.first:
                print(f"{self.last}: finished already, {self.epoch} epochs")
                if not (run.out / REPORT).exists():
                    self.report()
            return self.last
        log = None
        if self.world.first:
            run.out.mkdir(parents=True, exist_ok=True)
            write_whole(run.out / "recipe.yaml", yaml.safe_dump(self.recipe.model_dump(), sort_keys=False).encode())
            write_splits(run.out / SPLITS_FILE, assignment_of(self.data.splits))
            write_environment(run.out, str(self.world.device))
            log = RunLog(run.out, epochs_done=self.epoch, tensorboard=run.tensorboard)
        try:
            first = 0
            if log:
                print(self.describe(), flush=True)
            for phase in self.phases:
                if self.epoch < first + phase.epochs and not self.stopped:
                    self.train_phase(phase, first, log)
                first += phase.epochs
        except KeyboardInterrupt:
            if log:
                done = (
                    f"after {self.epoch} of {self.epochs} epochs; the same command goes on"
                    if self.epoch
                    else "in its first epoch"
                )
                print(f"interrupted {done}", file=sys.stderr)
            raise
        finally:
            if log:
                log.close()
        if log:
            self.report()
        return self.last

    def describe(self) -> str:
        """What is about to happen, in one line."""
        start = "goes on" if self.epoch else "starts"
        precision = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]
        views = sum(sample.view for sample in self.data.cache.samples)
        learnt = describe(self.data.splits) + (f", {views} views" if views else "")
        missing = "" if self.data.splits["dev"] else "; without dev there is no IoU and no best.pt"
        where = f"{self.recipe.model} for {' and '.join(self.data.planes)}, {precision} on {self.world.device}"
        return f"{where}: {start} after {self.epoch} of {self.epochs} epochs; {learnt}{missing}"

    def report(self) -> None:
        write_sheets(self.average, self.data, self.phases[-1], self.run.out, self.world.device)
        print(f"report {write_report(self.run.out)}")

    def train_phase(self, phase: Recipe, first: int, log: RunLog | None) -> None:
        """The epochs of a phase that begins after ``first``, or what is left of them; it has its own optimiser and schedule."""
        unfreeze(self.network)
        freeze(self.network, expand(phase.freeze, self.network))
        (self.hinted or self.network).zero_grad(set_to_none=True)  # what was just frozen would count when gradients are clipped
        optimiser = phase_optimiser(self.network, self.hinted, phase)
        network = shared(self.hinted or self.network, self.world)
        steps = steps_per_epoch(phase, len(self.data.splits["train"]))
        settings = phase.schedule.model_dump()
        settings["every"] = phase.schedule.every and phase.schedule.every * steps
        schedule = build_schedule(optimiser, steps=steps * phase.epochs, **settings)
        health = GradientHealth(self.network, optimiser)
        if self.resumed and self.epoch > first:
            optimiser.load_state_dict(self.resumed["optimiser"])
            schedule.load_state_dict(self.resumed["schedule"])
            health.load_state(self.resumed["health"])
        self.resumed = None
        for epoch in range(max(first, self.epoch), first + phase.epochs):
            started = time.perf_counter()
            mean = self.train_epoch(network, phase, epoch, optimiser, schedule, health, log)
            seconds = time.perf_counter() - started
            rows = self.world.agree(self.measure(phase) if self.world.first else {})
            iou = float(np.mean([c.iou for c in rows.values()])) if rows else float("nan")
            schedule.epoch(iou)
            self.epoch = epoch + 1
            best = bool(rows) and (self.best["iou"] is None or iou > self.best["iou"])
            if best:
                self.best = {"epoch": self.epoch, "iou": iou}
            if log:
                dev = {
                    name: {"iou": c.iou, "dice": c.dice, "precision": c.precision, "recall": c.recall}
                    for name, c in rows.items()
                }
                entry = {"epoch": self.epoch, "loss": mean, "rate": max(schedule.rates), "seconds": seconds}
                log.epoch(entry | ({"dev": dev} if dev else {}))
                self.save(phase, optimiser, schedule, health, best)
                say(self.epoch, self.epochs, mean, seconds, rows, best)
            if self.stopped:
                return

    def train_epoch(
        self,
        network: nn.Module,
        phase: Recipe,
        epoch: int,
        optimiser: torch.optim.Optimizer,
        schedule: Schedule,
        health: GradientHealth,
        log: RunLog | None,
    ) -> float:
        """One pass; returns the mean loss."""
        world, loss, losses = self.world, parse_loss(phase.loss), []
        steps = steps_per_epoch(phase, len(self.data.splits["train"]))
        torch.manual_seed(phase.seed * 10_007 + epoch + 1_000_003 * world.rank)  # of the epoch: a resumed run goes on the same
        network.train()
        started = time.perf_counter()
        for batch in progress(ahead(batches(self.data, phase, epoch, world, self.run.workers)), steps, epoch, log):
            inputs = normalise(batch.images.to(world.device)).contiguous(memory_format=torch.channels_last)
            with torch.autocast(world.device.type, self.dtype, enabled=self.dtype is not None):
                answer = network(inputs)
            logits = answer[0] if self.hinted else answer
            parts = loss.parts(world.gather(logits.float()), world.gather(batch.targets.to(world.device)))
            total = loss.total(parts)
            if batch.hints is not None and batch.hinted is not None:
                given = (world.gather(t.to(world.device)) for t in (batch.hints, batch.hinted))
                parts["hints"] = hint_loss(world.gather(answer[1].float()), *given)
                total = total + phase.hints.weight * parts["hints"]
            rate = max(schedule.rates)
            if not torch.isfinite(total):
                self.give_up(inputs, batch.targets, loss)
            penalty = l1_penalty(self.network, phase.optimiser.l1) if phase.optimiser.l1 else 0.0
            optimiser.zero_grad(set_to_none=True)
            self.scaler.scale(total * world.size + penalty).backward()  # type: ignore[no-untyped-call]
            self.scaler.unscale_(optimiser)
            health.step()
            norm = float(nn.utils.clip_grad_norm_(network.parameters(), phase.optimiser.clip or float("inf")))
            if not np.isfinite(norm) and not self.scaler.is_enabled():
                self.give_up(inputs, batch.targets, loss)
            self.scaler.step(optimiser)
            self.scaler.update()
            schedule.step()
            self.steps += 1
            update_average(self.average, self.network, min(phase.ema, (self.steps + 1) / (self.steps + 10)))
            losses.append(total.item())
            last = inputs
            if log:
                values = {name: part.item() for name, part in parts.items()}
                numbers = {"epoch": epoch + 1, "step": self.steps, "rate": rate, "gradient_norm": norm}
                log.step(loss=losses[-1], parts=values, seconds=time.perf_counter() - started, **numbers)  # type: ignore[arg-type]
            started = time.perf_counter()
        if log:
            health.look(self.network, last)
        return float(np.mean(losses))

    def give_up(self, inputs: Tensor, targets: Tensor, loss: Loss) -> None:
        """Raises NotFinite, which names the layer where it began."""
        device = self.world.device
        with torch.autocast(device.type, self.dtype, enabled=self.dtype is not None):
            cause = first_non_finite(self.network, inputs, targets.to(device), lambda z, t: loss(z.float(), t))
        raise NotFinite(self.steps + 1, cause)

    def measure(self, phase: Recipe) -> dict[str, Counts]:
        size = parse_size(phase.sizes[-1])
        return evaluate_network(self.average, self.data.splits["dev"], size, self.world.device, self.data.planes)

    def save(
        self, phase: Recipe, optimiser: torch.optim.Optimizer, schedule: Schedule, health: GradientHealth, best: bool
    ) -> None:
        """Write ``last.pt`` and, where this epoch is the best one, ``best.pt``, which has weights enough to be deployed."""
        found = {
            "average": self.average.state_dict(),
            "epoch": self.epoch,
            "config": self.recipe.model_dump(),
            "planes": list(self.data.planes),
            "size": phase.sizes[-1],
            "earlier": self.earlier,
            "views": self.data.views,
            "images": self.images,
            "sequences": assignment_of({"train": self.data.splits["train"]})["train"],
            "best": self.best,
        }
        state = {
            "model": self.network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "health": health.state,
            "steps": self.steps,
            "hint_head": self.hinted.head.state_dict() if self.hinted else {},
        }
        if best:
            save_checkpoint(self.run.out / BEST, found)
        save_checkpoint(self.last, found | state)
        write_whole(self.run.out / "health.json", json.dumps(plain(health.report()), indent=1).encode())


def gather_data(recipe: Recipe, run: Run, resumed: dict[str, Any] | None) -> Data:
    """Raises FileNotFoundError: there is nothing to train on. Raises ValueError: data and recipe do not fit each other."""
    file = run.splits or (run.out / SPLITS_FILE if resumed and (run.out / SPLITS_FILE).exists() else None)
    splits = split_samples(find_samples(run.data), recipe.data.seed, recipe.data.fractions, file)
    if not splits["train"]:
        raise FileNotFoundError(f"no images for training below {run.data}: all of them are in dev or val")
    views = find_views(run.views) if run.views else []
    cache = Cache(splits["train"] + views, recipe.data.cache_width, recipe.data.cache_mb * 1_000_000)
    shares = {name for phase in phases_of(recipe) for name in phase.shares}
    if absent := shares - {sample.dataset for sample in cache.samples} - {*READERS, FOOTAGE}:
        raise ValueError(f"shares: no data set is called {', '.join(sorted(absent))}")
    origin = read_origin(run.views) if run.views else {}
    if leaked := leaks(origin, splits):
        raise ValueError(
            f"{run.views}: holds views of {leaked}, which is not in train; write them anew, with the same --splits"
        )
    wanted = resumed["planes"] if resumed else recipe.planes or labelled_planes(splits["train"], bool(views))
    planes = tuple(plane for plane in PLANES if plane in wanted)
    if len(planes) > 1 and any("cross_entropy" in phase.loss for phase in phases_of(recipe)):
        raise ValueError(
            "loss: cross_entropy takes planes for exclusive classes, and freespace and ego are not; set planes: [freespace]"
        )
    return Data(splits, cache, planes, [PLANES.index(p) for p in planes], origin)


def read_origin(views: Path) -> dict[str, Any]:
    """What ``views.json`` says. Raises ValueError: it is broken."""
    try:
        origin: dict[str, Any] = json.loads((views / VIEWS_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{views / VIEWS_FILE}: not JSON; write the views anew") from error
    return origin


def leaks(origin: dict[str, Any], splits: dict[str, list[Sample]]) -> str:
    """A sequence of dev or val that the views show, "" where there is none."""
    kept = assignment_of({name: splits[name] for name in ("dev", "val")})
    for held in kept.values():
        for dataset, sequences in held.items():
            both = set(sequences) & set(origin.get("sequences", {}).get(dataset, ()))
            if both:
                return f"{dataset}/{min(both)}"
    return ""


def labelled_planes(samples: Sequence[Sample], views: bool) -> tuple[str, ...]:
    """The planes that annotators drew, by a look at labels all over each data set; views have scores for all."""
    if views:
        return PLANES
    sets: dict[str, list[Sample]] = {}
    for sample in samples:
        sets.setdefault(sample.dataset, []).append(sample)
    drawn = set()
    for own in sets.values():
        for sample in own[:: max(1, len(own) // PLANE_LOOKS)]:
            planes = read_sample(sample, strict=True)[1]
            drawn |= {name for name, plane in zip(PLANES, planes, strict=True) if (plane == 1).any()}
            if drawn == set(PLANES):
                return PLANES
    if not drawn:
        raise ValueError(f"the labels show no {' and no '.join(PLANES)}; is the mapping right?")
    return tuple(name for name in PLANES if name in drawn)


def check_phase(phase: Recipe, network: Network, hinted: HintHead | None, data: Data, world: World) -> None:
    """Raises ValueError now for what would stop the run when the phase begins."""
    world.share(phase.batch)
    parse_augmentation(phase.augment)
    parse_loss(phase.loss)
    for size in phase.sizes:
        if any(side % network.stride for side in parse_size(size)):
            raise ValueError(f"sizes: {size}: {phase.model} wants multiples of {network.stride}")
    if phase.schedule.name == "plateau" and not data.splits["dev"] and world.first:
        print("note: no images in dev, so the plateau schedule will not cut the rate", file=sys.stderr)
    if phase.stop_after and not data.splits["dev"]:
        raise ValueError("stop_after: there are no images in dev to see an improvement on; set data.dev, or leave it out")
    unfreeze(network)
    freeze(network, expand(phase.freeze, network))
    settings = phase.schedule.model_dump() | {"every": None}
    build_schedule(phase_optimiser(network, hinted, phase), steps=1000, **settings)


def start_network(
    recipe: Recipe, run: Run, data: Data, resumed: dict[str, Any] | None
) -> tuple[Network, list[dict[str, Any]], dict[str, int]]:
    """The network as training starts or goes on, the recipes of the trainings before, and how many images of which data set
    it will have learnt from in all of them."""
    torch.manual_seed(recipe.seed)
    network = build_model(recipe.model, len(data.planes), dropout=recipe.dropout, initialisation=recipe.initialisation)
    own = Counter(sample.dataset for sample in data.splits["train"])
    if resumed:
        network.load_state_dict(resumed["model"])
        return network, resumed["earlier"], resumed["images"]
    if paths := run.init or ((Path(recipe.init),) if recipe.init else ()):
        states = [read_checkpoint(shipped_checkpoint(path)) for path in paths]
        if network_of(states[-1]) != recipe.model:
            raise ValueError(f"{paths[-1]}: holds the network {network_of(states[-1])}, and the recipe says {recipe.model}")
        network.load_state_dict(with_planes(mean_of(states), network, planes_of(states[-1]), data.planes))
        return network, [*states[-1]["earlier"], states[-1]["config"]], images_of(states, own)
    seen = []
    if recipe.pretrained is not False:
        path = None if recipe.pretrained is True else Path(recipe.pretrained)
        load_encoder(network, path)
        if path:
            with suppress(ValueError):  # published weights, which bring no list of images
                seen = [read_checkpoint(path)]
    return network, [], images_of(seen, own)


def images_of(states: Sequence[dict[str, Any]], own: Mapping[str, int]) -> dict[str, int]:
    """Images by data set of several trainings together; of a data set in more than one, the most that one saw."""
    return {
        name: max(n.get(name, 0) for n in (own, *(s["images"] for s in states)))
        for name in sorted({*own, *(name for s in states for name in s["images"])})
    }


def shipped_checkpoint(path: Path) -> Path:
    """``path``, or the checkpoint of that name that comes with the package, such as ``small``.

    Raises:
        FileNotFoundError: there is neither.
    """
    if path.exists():
        return path
    shipped = {found.stem: found for found in sorted((Path(__file__).parent / "weights").glob("*.pt"))}
    if str(path) not in shipped:
        raise FileNotFoundError(f"{path}: no such checkpoint; shipped ones are called {', '.join(shipped)}")
    return shipped[str(path)]


def add_hints(network: Network, recipe: Recipe, data: Data, resumed: dict[str, Any] | None) -> HintHead | None:
    """The network with its throw-away head, where the recipe wants one. Raises ValueError: the views bring no hints."""
    if not recipe.hints.weight:
        return None
    if "hints" not in data.views:
        raise ValueError("hints.weight is set, but the views have no hints; write them by 'freespace distil --hints LAYER'")
    hinted = HintHead(network.cpu(), recipe.hints.layer, len(data.views["hints"]["mean"]))
    if resumed:
        hinted.head.load_state_dict(resumed["hint_head"])
    return hinted


def mean_of(states: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """The mean of checkpoints' weights ("model soup", Wortsman et al. 2022). Raises ValueError: their networks differ."""
    first = states[0]
    if any(network_of(s) != network_of(first) or planes_of(s) != planes_of(first) for s in states):
        raise ValueError("checkpoints of different networks cannot be averaged")
    averages = [s["average"] for s in states]
    return {k: (sum(a[k].double() for a in averages) / len(averages)).to(v.dtype) for k, v in first["average"].items()}


def with_planes(weights: dict[str, Tensor], network: nn.Module, old: Sequence[str], new: Sequence[str]) -> dict[str, Tensor]:
    """The weights of a network that says the planes ``old``, for one that says ``new``: the rest of the last layer is left out.

    Raises:
        ValueError: there are new planes.
    """
    if tuple(old) == tuple(new):
        return weights
    if missing := [plane for plane in new if plane not in old]:
        raise ValueError(f"init: that network does not say {', '.join(missing)}, only {', '.join(old)}; leave init out")
    kept = torch.tensor([old.index(plane) for plane in new])
    wanted, fitted = network.state_dict(), {}
    for name, tensor in weights.items():
        for axis, (has, wants) in enumerate(zip(tensor.shape, wanted[name].shape, strict=True)):
            if has != wants:  # channels by plane, each plane's together
                channels = torch.arange(has).reshape(len(old), -1)[kept].flatten()
                tensor = tensor.index_select(axis, channels)
        fitted[name] = tensor
    return fitted


def network_of(state: dict[str, Any]) -> str:
    name: str = state["config"]["model"]
    return OLD_NAMES.get(name, name)


def planes_of(state: dict[str, Any]) -> tuple[str, ...]:
    return tuple(state.get("planes", PLANES))  # checkpoints once said both planes, always


def size_of(state: dict[str, Any]) -> tuple[int, int]:
    """(width, height) that a checkpoint's network was measured at."""
    size = state.get("size") or state["config"]["sizes"][-1]
    return parse_size(size) if isinstance(size, str) else (size[0], size[1])  # older checkpoints have two numbers


def expand(names: Sequence[str], network: Network) -> list[str]:
    """Names of stages, ``encoder`` written out."""
    stages = [name for name, _ in stages_of(network)]
    if unknown := [name for name in names if name not in (*stages, "encoder")]:
        raise ValueError(f"unknown stage {', '.join(unknown)}; {', '.join(stages)} are there, and encoder for all but the last")
    return [n for name in names for n in (stages[:-1] if name == "encoder" else [name])]


def phase_optimiser(network: Network, hinted: HintHead | None, phase: Recipe) -> torch.optim.Optimizer:
    settings = phase.optimiser
    factors = {stage: factor for name, factor in settings.stages.items() for stage in expand([name], network)}
    return build_optimiser(
        hinted or network,
        name=settings.name,
        rate=settings.rate,
        stages=stages_of(network),
        stage_rates=factors,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


def steps_per_epoch(phase: Recipe, images: int) -> int:
    """Whole batches alone: as many as hold the samples of an epoch. A handful of images is gone through more than once."""
    return -(-(phase.samples_per_epoch or max(images, LEAST_BATCHES * phase.batch)) // phase.batch)


def choose_precision(wanted: str, device: torch.device) -> str:
    """What ``auto`` stands for: bf16 where the device computes in it, fp16 on other GPUs, fp32 on other CPUs.

    Raises:
        ValueError: fp16 on a CPU.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise ValueError("precision fp16 is for GPUs; give bf16 or fp32")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if {"avx512_bf16", "amx_bf16", "bf16"} & cpu_flags() else "fp32"


def load_checkpoint(path: Path, recipe: Recipe, run: Run) -> dict[str, Any]:
    """State of an earlier run to go on from.

    Raises:
        ValueError: the file is broken, or the run had other settings.
    """
    state = read_checkpoint(path)
    if "steps" not in state:
        raise ValueError(f"{path}: cannot be resumed; start from it in another --out by --init")
    wanted, earlier = recipe.model_dump(), state["config"]
    changed = [k for k in wanted if json.dumps(wanted[k], sort_keys=True) != json.dumps(earlier.get(k), sort_keys=True)]
    changed += ["--views"] if state["views"] != (read_origin(run.views) if run.views else {}) else []
    if changed:
        first = changed[0]
        before = f"; {first} was {earlier.get(first)!r}" if first in wanted else ""
        raise ValueError(
            f"{path}: that run had other settings ({', '.join(changed)}{before}); give them again, or another --out"
        )
    return state


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `train` saved: ``average`` (weights), ``config`` (the recipe), ``planes``, ``epoch``, ``earlier`` (the recipes of
    trainings before), ``images`` (how many per data set), ``views`` (``views.json`` of a distillation), and more to resume.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no such file.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"average", "config", "earlier", "epoch", "images"} - state.keys()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such checkpoint") from error
    except Exception as error:
        raise ValueError(f"{path}: not a checkpoint of 'freespace train'") from error
    if missing:
        raise ValueError(f"{path}: not a checkpoint of 'freespace train': no {', '.join(sorted(missing))}")
    return state


def batches(data: Data, phase: Recipe, epoch: int, world: World, workers: int) -> Iterator[Batch]:
    """This process's part of the augmented batches of an epoch.

    Every sample has random numbers of its own, so that neither workers nor processes change what is made of it.
    """
    cache, augmentation = data.cache, parse_augmentation(phase.augment)
    rng = np.random.default_rng([phase.seed, epoch])
    steps = steps_per_epoch(phase, len(data.splits["train"]))
    shares = phase.shares or dict(Counter(sample.dataset for sample in cache.samples))
    indices = epoch_indices(cache.samples, shares, steps * phase.batch, rng)
    sizes = rng.integers(len(phase.sizes), size=steps)
    part = world.share(phase.batch)

    def look(position: int) -> Batch:
        index, size = indices[position], parse_size(phase.sizes[sizes[position // phase.batch]])
        sample, (image, planes) = cache.samples[index], cache[index]
        own, source = np.random.default_rng([phase.seed, epoch, position]), (image.shape[1], image.shape[0])
        names = choose(augmentation, own)
        matrix = view_matrix(source, size, names, augmentation.gentle() if sample.view else augmentation, own)
        view, targets = take_view(image, planes[data.channels], matrix, size)
        hints = read_hint(sample, data.views["hints"], matrix, source, size) if phase.hints.weight else ()
        return Batch(torch.from_numpy(apply_effects(view, names, own)[0]), torch.from_numpy(targets), *hints)

    with ThreadPoolExecutor(max(1, workers), "augmentation") as pool:
        for step in range(steps):
            looks = list(pool.map(look, range(step * phase.batch, (step + 1) * phase.batch)[part]))
            yield Batch(*(torch.stack(column) for column in zip(*looks, strict=True) if column[0] is not None))


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


def progress(items: Iterator[Batch], steps: int, epoch: int, log: RunLog | None) -> Iterator[Batch]:
    """The same items, with a bar on stderr where that is a terminal."""
    if log is None or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, f"epoch {epoch + 1}", steps, console=Console(stderr=True), transient=True)


def say(epoch: int, epochs: int, loss: float, seconds: float, rows: dict[str, Counts], best: bool) -> None:
    measured = "".join(f", {name} {c.iou:.4f}" for name, c in rows.items())
    print(f"epoch {epoch}/{epochs}: loss {loss:.4f}{measured}{' (best)' if best else ''}, {seconds:.0f} s", flush=True)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for target, source in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if target.dtype.is_floating_point:
            target.lerp_(source, 1 - decay)
        else:
            target.copy_(source)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    data = io.BytesIO()
    torch.save(state, data)
    write_whole(path, data.getvalue())


@torch.no_grad()
def evaluate_network(
    model: nn.Module, samples: Sequence[Sample], size: tuple[int, int], device: torch.device, planes: Sequence[str] = PLANES
) -> dict[str, Counts]:
    """Dataset-level counts per ``dataset/plane``, at label resolution, from the torch network (a check while training)."""
    model.eval()
    totals: dict[str, Counts] = {}
    for sample in samples:
        image, labels = read_sample(sample, strict=True)
        logits = predict(model, image, size, device)
        for plane, name in zip(logits, planes, strict=True):
            key, label = f"{sample.dataset}/{name}", labels[PLANES.index(name)]
            totals[key] = totals.get(key, Counts()) + count(positive(plane, label.shape), label)
    return {k: v for k, v in sorted(totals.items()) if v.tp + v.fn}


def positive(logits: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.asarray(cv2.resize(logits, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR) > 0)


def predict(model: nn.Module, image: NDArray[np.uint8], size: tuple[int, int], device: torch.device) -> NDArray[np.float32]:
    """Logits ``(K, h, w)`` at the network's size for a BGR image ``(H, W, 3)`` that is stretched to it."""
    small = np.zeros((size[1], size[0], 3), np.uint8)
    resample(image, fit((image.shape[1], image.shape[0]), size, "stretch"), small)
    logits: NDArray[np.float32] = model(normalise(torch.from_numpy(small)[None].to(device)))[0].float().cpu().numpy()
    return logits


@torch.no_grad()
def write_sheets(model: nn.Module, data: Data, phase: Recipe, out: Path, device: torch.device) -> None:
    """Pictures of what the network says of images that it was not trained on or, where there are none, was."""
    model.eval()
    split = "dev" if data.splits["dev"] else "train"
    size, every = parse_size(phase.sizes[-1]), max(1, len(data.splits[split]) // SHEET_IMAGES)
    chosen = data.splits[split][::every][:SHEET_IMAGES]
    images, targets, scores = [], [], []
    for sample in chosen:
        image, planes = read_sample(sample, strict=True)
        images.append(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
        known = hard_targets(planes[data.channels])
        targets.append(np.stack([cv2.resize(plane, size, interpolation=cv2.INTER_NEAREST) for plane in known]))
        scores.append(1 / (1 + np.exp(-predict(model, image, size, device))))
    if any((t != IGNORE).any() for t in targets):
        (out / "sheets").mkdir(exist_ok=True)
        names = [sample.image.stem for sample in chosen]
        path = out / "sheets" / f"{split}.jpg"
        prediction_sheet(np.stack(images), np.stack(targets), np.stack(scores), path, names, data.planes)
