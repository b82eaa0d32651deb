"""The training loop: phases of a recipe, one after the other, a moving average, checkpoints that resume exactly."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from engine import cpu_flags
from engine.files import write_whole
from training.batches import Batch, ahead, batches
from training.checkpoints import read_resumable, save_checkpoint
from training.distributed import World, join, shared
from training.health import GradientHealth, NotFinite, first_non_finite
from training.hints import hint_loss
from training.inference import evaluate_network, normalise, write_sheets
from training.logs import RunLog, plain, write_environment
from training.losses import Loss, parse_loss
from training.metrics import Counts
from training.models import build_model, freeze, unfreeze
from training.optimisers import Schedule, l1_penalty
from training.phases import check_phase, expand, phase_optimiser, phase_schedule, steps_per_epoch
from training.recipe import Recipe, parse_size, phases_of
from training.report import write_report
from training.run_data import gather_data
from training.splits import assignment_of, describe, write_splits
from training.start import add_hints, start_network

LAST, BEST, REPORT = "last.pt", "best.pt", "report.html"
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
        resumed = read_resumable(self.last, recipe, run.views) if self.last.exists() else None
        kept_splits = run.out / SPLITS_FILE if resumed and (run.out / SPLITS_FILE).exists() else None
        planes = resumed["planes"] if resumed else ()
        self.data = gather_data(recipe, run.data, run.splits or kept_splits, run.views, planes)
        self.network, self.earlier, self.images = start_network(recipe, run.init, self.data, resumed)
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
        schedule = phase_schedule(optimiser, phase, steps_per_epoch(phase, len(self.data.splits["train"])))
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


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move ``average`` towards ``model``: floating weights and statistics by ``1 - decay``, counters all the way."""
    for target, source in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if target.dtype.is_floating_point:
            target.lerp_(source, 1 - decay)
        else:
            target.copy_(source)


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
