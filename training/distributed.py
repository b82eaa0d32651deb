"""Several processes that train as one: PyTorch DistributedDataParallel under ``torchrun``.

Two things make the result that of one process with the same batch. The loss sees the scores of *all* processes, so that what
it divides by (known pixels, images with road) is the batch's and not a part's. And batch norm takes its statistics from
the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process (``rank``) among ``size`` of them, and where it computes."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """Which samples of a batch are this process's. Raises ValueError: the batch cannot be divided evenly."""
        if batch % self.size:
            raise ValueError(f"a batch of {batch} cannot be shared evenly by {self.size} processes; change batch")
        part = batch // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def gather(self, part: Tensor) -> Tensor:
        """The parts of all processes one after the other; the gradient flows to this process's own alone.

        A loss of the whole, times ``size``, then has the right gradient once DistributedDataParallel has averaged it.
        """
        if self.size == 1:
            return part
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, part.detach().contiguous())
        parts[self.rank] = part
        return torch.cat(parts)

    def agree(self, value: T) -> T:
        """The first process's value, for all."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


@contextmanager
def join(device_name: str) -> Iterator[World]:
    """This process's place among those that ``torchrun`` started, or alone.

    Raises:
        ValueError: a device that torch does not know, or that is not here.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = open_device(device_name)
    if size == 1:
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # One process alone measures on dev and writes, while the others wait.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        yield World(dist.get_rank(), size, device)
        dist.barrier()  # one that ends while another is still at work can bring both down
    finally:
        dist.destroy_process_group()


def open_device(name: str) -> torch.device:
    """``auto`` takes CUDA where there is one. Raises ValueError for a device that torch does not know or that is not here."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r}: wanted auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r}: wanted auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch finds no CUDA here; give --device cpu, or install a CUDA build of torch")
    return device


def shared(network: nn.Module, world: World) -> nn.Module:
    """The network as `World.size` processes train it together; what needs no gradient stays as it is.

    Its batch norms are changed in place; names and shapes of its weights stay.
    """
    if world.size == 1:
        return network
    if world.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return nn.parallel.DistributedDataParallel(network, device_ids=[world.device.index])
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm
    return nn.parallel.DistributedDataParallel(network)


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes: what `nn.SyncBatchNorm` does, which does not run on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        axes, shape = (0, 2, 3), (1, -1, 1, 1)
        count = values.numel() // values.shape[1] * dist.get_world_size()
        mean = total(values.sum(axes)) / count
        centred = values - mean.view(shape)
        variance = total(centred.square().sum(axes)) / count
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / max(1, count - 1)), momentum)
            self.num_batches_tracked += 1
        scaled = centred * (variance + self.eps).rsqrt().view(shape)
        y: Tensor = scaled * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)


def total(part: Tensor) -> Tensor:
    """Sum over the processes, through which the gradient flows to all of them."""
    summed: Tensor = Sum.apply(part)  # type: ignore[no-untyped-call]
    return summed


class Sum(torch.autograd.Function):
    """The gradient of a sum over the processes is the sum of theirs."""

    @staticmethod
    def forward(context: object, part: Tensor) -> Tensor:
        summed = part.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed)
        return summed
