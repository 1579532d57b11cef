"""The descent of the cross-modal linear probe (arXiv:2301.06267): rates, batches, steps.

Notation: B rows of a batch, K classes, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

WARM_UP, FIRST_RATE = 50, 1e-5  # iterations, and the rate of the first


def rate_at(iteration: int, rate: float, total: int) -> float:
    """Learning rate of an iteration, from 0: linear warm-up, then a cosine that ends behind it."""
    if iteration < WARM_UP:
        return rate * iteration / WARM_UP if iteration else FIRST_RATE
    return rate * (1 + math.cos(math.pi * (iteration - WARM_UP) / total)) / 2


def endless_batches(rows: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers (size,) from one shuffled pass after the other, short batches left out."""
    while True:
        yield from torch.randperm(rows, generator=generator)[: rows - rows % size].split(size)


def example_batches(
    parts: Sequence[tuple[Tensor, Tensor]], size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches with as many rows of each part: x (B, D), labels (B,)."""
    draws = [
        endless_batches(len(label), size // len(parts), torch.Generator().manual_seed(seed))
        for _, label in parts
    ]
    while True:
        rows = [next(draw) for draw in draws]
        chosen = [(x[r], label[r]) for (x, label), r in zip(parts, rows, strict=True)]
        yield torch.cat([x for x, _ in chosen]), torch.cat([label for _, label in chosen])


def weights_by_step(
    start: Tensor,
    scale: Tensor,
    batches: Iterator[tuple[Tensor, Tensor]],
    rates: list[float],
    decay: float,
) -> Iterator[tuple[int, Tensor]]:
    """Steps of AdamW at these rates on CE(s x W^T, y): their number, from 1, and W (K, D) then.

    W is one tensor, which later steps change.
    """
    weight = nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([weight], weight_decay=decay)
    for done, (rate, (x, label)) in enumerate(zip(rates, batches, strict=False), 1):
        optimizer.param_groups[0]["lr"] = rate
        # Written out: autograd would take longer than the products of so small a batch.
        error = (scale * x @ weight.data.T).softmax(1)
        error[torch.arange(len(label)), label] -= 1
        weight.grad = scale * error.T @ x / len(label)
        optimizer.step()
        yield done, weight.data
