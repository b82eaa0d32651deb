"""Augmented batches of mixed data sets and sizes, made while the network learns from those before."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from training.augment import apply_effects, choose, parse_augmentation, take_view, view_matrix
from training.datasets import epoch_indices
from training.distributed import World
from training.hints import read_hint
from training.phases import steps_per_epoch
from training.recipe import Recipe, parse_size
from training.run_data import Data

T = TypeVar("T")


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
