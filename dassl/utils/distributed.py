"""The processes of one run, as ``torchrun`` starts them; a single process is rank 0 of 1.

They exchange tensors and objects by PyTorch's own collectives: NCCL between GPUs, Gloo between
CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed as dist

__all__ = [
    "barrier",
    "broadcast_object",
    "gather_counts",
    "gather_objects",
    "is_main",
    "launched_size",
    "local_rank",
    "local_size",
    "main_first",
    "rank",
    "sum_over_ranks",
    "world_size",
]

T = TypeVar("T")
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched_size() -> int:
    """Return how many processes a launcher says it has started; 1 without a launcher."""
    # Other programs set RANK or WORLD_SIZE too; only with all four can processes meet.
    if any(name not in os.environ for name in _ENVIRONMENT):
        return 1
    return int(os.environ["WORLD_SIZE"])


def local_rank() -> int:
    """Return the number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0)) if launched_size() > 1 else 0


def local_size() -> int:
    """Return the number of the run's processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if launched_size() > 1 else 1


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if _grouped() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _grouped() else 1


def is_main() -> bool:
    """Tell whether this process is the one that writes files and logs."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def _device() -> torch.device:
    """Return the device on which the group's collectives need their tensors."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def sum_over_ranks(values: list[float]) -> list[float]:
    """Add up lists of numbers, equally long everywhere, over the processes in double precision."""
    if world_size() == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=_device())
    dist.all_reduce(total)
    return total.tolist()


def gather_counts(count: int) -> list[int]:
    """Return the counts of all processes, by rank."""
    if world_size() == 1:
        return [count]
    # As tensors: objects would be pickled, and their sizes gathered first.
    own = torch.tensor([count], device=_device())
    counts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(counts, own)
    return [int(number) for number in torch.cat(counts).tolist()]


def first_row(count: int) -> int:
    """Return where this process's ``count`` rows begin among those of all processes."""
    return sum(gather_counts(count)[: rank()])


def gather_objects(value: T) -> list[T]:
    """Return the values (plain data) of all processes, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: T) -> T:
    """Return rank 0's value (plain data) on every process."""
    if world_size() == 1:
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


@contextmanager
def main_first() -> Iterator[None]:
    """Let rank 0 run a block before the others: it may download or write what they then find."""
    # The others wait before the block, rank 0 after it: they meet in one barrier.
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()
