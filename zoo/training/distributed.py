"""Several processes: joining, distributing indices, averaging, gathering. NCCL on GPUs, gloo on CPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class Process:
    """This process: its rank of `world` processes and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0


@contextmanager
def joined(device: str | torch.device = "cpu", timeout_s: float = 600.0) -> Iterator[Process]:
    """Join the processes that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_*); a single process
    without them.

    Args:
        device: "cpu" or "cuda"; a bare "cuda" becomes the device of the local rank.
        timeout_s: seconds after which an unresponsive peer is an error.
    """
    device = torch.device(device)
    if "RANK" not in os.environ:
        yield Process(0, 1, device)
        return
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s))
    try:
        yield Process(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def distribute(model: nn.Module, process: Process) -> nn.Module:
    """The model on the process's device, with gradients averaged over all processes; unchanged for a single
    process."""
    model = model.to(process.device)
    if process.world == 1:
        return model
    devices = [process.device] if process.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=devices)


def bare(model: nn.Module) -> nn.Module:
    """The module without its distributed wrapper, as saved in checkpoints."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def share(count: int, process: Process) -> range:
    """This process's indices of `count` items; every index is assigned to exactly one process."""
    return range(process.rank, count, process.world)


def anywhere(flag: bool, process: Process) -> bool:
    """Whether a flag is set in any process; all must call this."""
    if process.world == 1:
        return flag
    value = torch.tensor(float(flag), device=process.device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value)


def share_buffers(model: nn.Module, process: Process) -> None:
    """Copy the buffers of rank 0 to every process (statistics of batch norms differ after the last update),
    so that all evaluate the saved model."""
    if process.world > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def gather(items: list[Any], process: Process) -> list[Any]:
    """The items of every process, by rank, in one list on every process (for results of a distributed
    evaluation)."""
    if process.world == 1:
        return list(items)
    everyone: list[list[Any]] = [[] for _ in range(process.world)]
    dist.all_gather_object(everyone, items)
    return [item for part in everyone for item in part]
