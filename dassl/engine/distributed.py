"""Several processes train one model: how they meet, what they cannot train, all their features.

``torchrun --nproc_per_node N train.py ...`` gives the result of one process, up to the rounding of
sums: BATCH_SIZE is the number of images per optimiser step, of which each process takes an Nth.
"""

from __future__ import annotations

import datetime
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from yacs.config import CfgNode

from dassl.engine.device import resolve_device
from dassl.engine.lifelines import AGAIN, Lifelines
from dassl.utils.distributed import (
    barrier,
    gather_counts,
    gather_objects,
    is_main,
    launched_size,
    world_size,
)

__all__ = [
    "PeerLostError",
    "WorldSizeError",
    "check_starts",
    "check_world",
    "gather_features",
    "own_steps",
    "own_test",
    "process_group",
    "synchronize_statistics",
]

# What PyTorch's backends say when a peer is gone or late, partly as plain RuntimeErrors.
_LOST = re.compile(
    r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|Broken pipe|[Tt]imed out waiting|Socket"
)


class WorldSizeError(ValueError):
    """The run cannot be trained by this number of processes."""


class PeerLostError(RuntimeError):
    """Another process of the run has ended, or does not answer."""


@contextmanager
def process_group(cfg: CfgNode) -> Iterator[None]:
    """Join the processes that ``torchrun`` started, inside a block.

    Without ``torchrun``, or with one process, it does nothing. Standard output of all ranks but 0
    is dropped. DEVICE decides between NCCL and Gloo; TRAIN.TIMEOUT is how long processes wait for
    each other.

    Raises:
        PeerLostError: Another process has ended, or does not answer.
        WorldSizeError: There is no device for this process, or the timeout cannot be used.
    """
    if launched_size() == 1:
        yield
        return
    try:
        device = resolve_device(cfg)
    except ValueError as error:
        raise WorldSizeError(str(error)) from None
    if cfg.TRAIN.TIMEOUT <= 0:
        raise WorldSizeError(f"TRAIN.TIMEOUT must be positive (seconds), got {cfg.TRAIN.TIMEOUT}")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # objects are exchanged through the current device
    stdout = sys.stdout
    try:
        _meet("nccl" if device.type == "cuda" else "gloo", cfg.TRAIN.TIMEOUT)
        if not is_main():
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        lifelines = Lifelines()
        with lifelines.watched():
            yield
            barrier()  # rank 0 may still be writing files, and hosts the store that the group needs
        barrier()  # the first one to close its connections must not look lost to another
        lifelines.close()
        dist.destroy_process_group()
    except Exception as error:  # a lost peer shows as one of many types
        if not _is_lost_peer(error):
            raise
        raise PeerLostError(
            f"process {os.environ['RANK']} of {launched_size()} stops: another process of this run "
            f"has ended, or has not answered for {cfg.TRAIN.TIMEOUT} seconds (TRAIN.TIMEOUT); its "
            f"own message, if there is one, says why. {AGAIN} ({_first_line(error)})"
        ) from error
    finally:
        if sys.stdout is not stdout and not is_main():
            sys.stdout.close()
            sys.stdout = stdout


def _meet(backend: str, timeout: float) -> None:
    """Form the group with the other processes.

    Raises:
        PeerLostError: They are not where the launcher says.
    """
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout))
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        where = f"{os.environ['MASTER_ADDR']}, port {os.environ['MASTER_PORT']}"
        raise PeerLostError(
            f"process {os.environ['RANK']} of {launched_size()} has not met the others at {where}, "
            "which MASTER_ADDR and MASTER_PORT name: they must be the first process's machine, by "
            "a name that all machines know, and a port that is free there and open to them "
            f"({_first_line(error)})"
        ) from error


def _is_lost_peer(error: BaseException) -> bool:
    if isinstance(error, dist.DistError):
        return True
    # Not subclasses, such as OutOfMemoryError: they have a cause of their own.
    return type(error) is RuntimeError and _LOST.search(str(error)) is not None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# ---------------------------------------------------------------------- what cannot be trained


def check_world(
    cfg: CfgNode,
    loaders: Mapping[str, Any],
    model: nn.Module | None,
    device: torch.device,
) -> None:
    """Refuse to train if several processes would not give the result of one.

    Args:
        cfg: Configuration.
        loaders: TRAIN_X and TRAIN_U; None where there are no images.
        model: What trains; None if the trainer does its steps itself.
        device: Device of the run.

    Raises:
        WorldSizeError: The number of processes does not divide the batch, there are fewer images
            than processes, the trainer has its own training step, or batch norms train on CPUs.
    """
    processes = world_size()
    if processes == 1:
        return
    for name, loader in loaders.items():
        # With SAME_AS_X the batch size of TRAIN_U is not used.
        if loader is not None and not (name == "TRAIN_U" and cfg.DATALOADER.TRAIN_U.SAME_AS_X):
            batch = cfg.DATALOADER[name].BATCH_SIZE
            _check_share(f"DATALOADER.{name}.BATCH_SIZE", batch, len(loader.dataset), processes)
    if model is None:
        raise own_steps(cfg)
    if device.type != "cuda" and trained_norms(model):
        raise WorldSizeError(
            f"{cfg.TRAINER.NAME} with {cfg.MODEL.BACKBONE.NAME} trains batch norms, whose "
            f"statistics {processes} processes share on GPUs only; start it without torchrun"
        )


def check_starts(epoch: int, directory: str) -> None:
    """Refuse to train if the processes have found different resume files.

    Raises:
        ValueError: They would start at different epochs.
    """
    starts = gather_objects(epoch)
    if len(set(starts)) > 1:
        raise ValueError(
            f"the processes would start after different epochs ({starts}): OUTPUT_DIR "
            f'"{directory}" must be on a file system that all machines share'
        )


def own_steps(cfg: CfgNode) -> WorldSizeError:
    """Return the error for a trainer that does its training steps without the engine."""
    return WorldSizeError(
        f"{cfg.TRAINER.NAME} does its training steps itself, which {world_size()} processes could "
        "not share; start it without torchrun (evaluation, --eval-only, can be shared)"
    )


def own_test(cfg: CfgNode) -> WorldSizeError:
    """Return the error for a trainer that tests without the engine."""
    return WorldSizeError(
        f"{cfg.TRAINER.NAME} has a test() of its own, in which each of {world_size()} processes "
        "has seen its part of the images only; start it without torchrun (--eval-only with "
        "--model-dir tests what was trained)"
    )


def _check_share(key: str, batch: int, images: int, processes: int) -> None:
    if batch % processes:
        fitting = [n for n in range(1, batch + 1) if batch % n == 0]
        best = min(fitting, key=lambda n: (abs(n - processes), n))
        sizes = [m for m in (batch - batch % processes, batch + -batch % processes) if m > 0]
        raise WorldSizeError(
            f"{processes} processes (torchrun --nproc_per_node) do not divide {key} {batch}, the "
            f"images of one step; the nearest number that does is {best}, the nearest batch "
            f"{' or '.join(map(str, sizes))}"
        )
    if images < processes:
        raise WorldSizeError(
            f"{processes} processes (torchrun --nproc_per_node) cannot share {images} training "
            f"images; start at most {images}"
        )


def trained_norms(module: nn.Module) -> bool:
    """Tell whether a batch norm's parameters train."""
    return any(
        isinstance(m, _BatchNorm) and any(p.requires_grad for p in m.parameters(recurse=False))
        for m in module.modules()
    )


def synchronize_statistics(module: nn.Module, device: torch.device) -> nn.Module:
    """Return the module; trained batch norms take their statistics over all processes."""
    if world_size() > 1 and device.type == "cuda" and trained_norms(module):
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return module


def gather_features(tensor: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of the batch, with gradients.

    Each process may compute the loss of the whole batch from them, or that of its own rows against
    all of them: either way DDP's average of the gradients is the gradient of the whole batch's
    loss.

    Args:
        tensor: This process's rows, (n, ...); n may differ between processes.

    Returns:
        (sum of n, ...); with one process, the tensor itself.
    """
    if world_size() == 1:
        return tensor
    counts = gather_counts(len(tensor))
    missing = max(counts) - len(tensor)
    # The collective needs equal shapes: (n, ...) -> (largest n, ...).
    padded = F.pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, missing)) if missing else tensor
    # That of torch.distributed.nn: dist.all_gather would pass no gradients on.
    rows = all_gather(padded)
    # (largest n, ...) per process -> (sum of n, ...)
    return torch.cat([part[:count] for part, count in zip(rows, counts, strict=True)])
