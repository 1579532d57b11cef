"""Distances between all rows of two matrices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dassl.names import check_availability

__all__ = ["compute_distance_matrix", "cosine_distance", "euclidean_squared_distance"]


def compute_distance_matrix(input1: Tensor, input2: Tensor, metric: str = "euclidean") -> Tensor:
    """Return the distance of every row of (M, D) to every row of (N, D), (M, N).

    ``metric`` is euclidean, whose distance is the squared one, or cosine.

    Raises:
        ValueError: Other shapes, or another metric.
    """
    if input1.ndim != 2 or input2.ndim != 2 or input1.shape[1] != input2.shape[1]:
        raise ValueError(
            f"expected (M, D) and (N, D), got {tuple(input1.shape)} and {tuple(input2.shape)}"
        )
    distances = {"euclidean": euclidean_squared_distance, "cosine": cosine_distance}
    check_availability(metric, distances)
    return distances[metric](input1, input2)


def euclidean_squared_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """Return ``|a|^2 + |b|^2 - 2 a b`` of all rows a of (M, D) and b of (N, D), (M, N)."""
    squares = input1.square().sum(1)[:, None] + input2.square().sum(1)[None]  # (M, N)
    return torch.addmm(squares, input1, input2.T, alpha=-2)


def cosine_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """Return 1 minus the cosine of all rows of (M, D) and (N, D), (M, N)."""
    # (M, D) @ (D, N) -> (M, N)
    return 1 - F.normalize(input1, dim=1) @ F.normalize(input2, dim=1).T
