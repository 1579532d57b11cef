"""The descent of the cross-modal linear probe (arXiv:2301.06267): rates, batches, steps.

Notation: I iterations, S settings of the grid, B rows of a batch, K classes, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

WARM_UP, FIRST_RATE = 50, 1e-5  # iterations, and the rate of the first
_WEIGHTS = 2**19  # numbers: two megabytes, and as much again for gradients and each moment


class Setting(NamedTuple):
    """One run of the grid."""

    rate: float
    decay: float
    batch: int


def grouped(grid: Sequence[Setting], start: Tensor) -> list[list[Setting]]:
    """Settings whose steps are made at once: of one batch size, each with a W as large as `start`.

    On a GPU all of them; on a CPU so few that their weights stay in its cache.
    """
    most = len(grid) if start.device.type != "cpu" else max(1, _WEIGHTS // start.numel())
    groups = []
    for batch in dict.fromkeys(setting.batch for setting in grid):
        own = [setting for setting in grid if setting.batch == batch]
        size = math.ceil(len(own) / math.ceil(len(own) / most))  # alike, where they do not divide
        groups += [own[first : first + size] for first in range(0, len(own), size)]
    return groups


def rate_at(iteration: int, rate: float, total: int) -> float:
    """Learning rate of an iteration, from 0: linear warm-up, then a cosine that ends behind it."""
    if iteration < WARM_UP:
        return rate * iteration / WARM_UP if iteration else FIRST_RATE
    return rate * (1 + math.cos(math.pi * (iteration - WARM_UP) / total)) / 2


def draw_batches(sizes: Sequence[int], batch: int, iterations: int, seed: int) -> Tensor:
    """Row numbers of each batch (I, B), as many rows of each part, parts behind each other.

    A part of ``sizes`` rows is gone through in one shuffled pass after the other, each without its
    last short batch; every part has a generator of its own, from the same seed.
    """
    share, first, columns = batch // len(sizes), 0, []
    for rows in sizes:
        generator = torch.Generator().manual_seed(seed)
        whole = rows - rows % share
        passes = -(-iterations * share // whole)
        drawn = [torch.randperm(rows, generator=generator)[:whole] for _ in range(passes)]
        columns.append(first + torch.cat(drawn)[: iterations * share].view(iterations, share))
        first += rows
    return torch.cat(columns, 1)


def weights_by_step(
    start: Tensor,
    scale: Tensor,
    examples: tuple[Tensor, Tensor],
    batches: Tensor,
    settings: Sequence[Setting],
) -> Iterator[tuple[int, Tensor]]:
    """Steps of AdamW on CE(s x W^T, y) from the same W, for several settings at once.

    Settings of one batch size see the same batches, so that a step makes the logits of all of them
    in one product, and so their gradients. Nothing else connects them: each W is what it would be
    alone.

    Args:
        start: W at first, (K, D).
        scale: s.
        examples: All rows x (N, D) and labels (N,).
        batches: Row numbers of each batch, (I, B).
        settings: Rates and decays.

    Yields:
        The number of the step, from 1, and all W (S, K, D) then: one tensor, which later steps
        change.
    """
    (features, labels), (classes, width) = examples, start.shape
    weight = start.repeat(len(settings), 1, 1)  # (S, K, D)
    gradient = torch.empty_like(weight)
    optimizer = _adamw(weight, gradient, settings)
    iterations, size = batches.shape
    for done, rows in enumerate(batches.to(features.device), 1):
        for group, setting in zip(optimizer.param_groups, settings, strict=True):
            group["lr"] = rate_at(done - 1, setting.rate, iterations)
        x = scale * features[rows]  # (B, D)
        own = labels[rows].view(size, 1, 1).expand(-1, len(settings), 1)  # (B, S, 1)
        # Written out: autograd would take longer than the products of so small a batch.
        logits = (x @ weight.view(-1, width).T).view(size, -1, classes)  # (B, S, K)
        error = logits.softmax(2)
        error.scatter_add_(2, own, error.new_full((), -1).expand_as(own))
        error /= size
        torch.mm(error.view(size, -1).T, x, out=gradient.view(-1, width))
        optimizer.step()
        yield done, weight


def _adamw(weight: Tensor, gradient: Tensor, settings: Sequence[Setting]) -> torch.optim.AdamW:
    """An optimiser of each setting's W, which lie in one tensor (S, K, D), as gradients do."""
    groups = []
    for own, of_own, setting in zip(weight, gradient, settings, strict=True):
        parameter = nn.Parameter(own)
        parameter.grad = of_own
        groups.append({"params": [parameter], "weight_decay": setting.decay})
    # One pass over the numbers in place of a dozen, which is most of a step's time.
    return torch.optim.AdamW(groups, fused=weight.device.type in ("cpu", "cuda"))
