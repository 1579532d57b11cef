"""Gaussian discriminant analysis of features, as GDA (arXiv:2402.04087) has it; see `gda`.

Notation: N rows, K classes, D embedding width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NEIGHBOURS, COPIES = 64, 16  # for a novel class: its nearest rows, and how often its text counts


def pseudo_inverse(matrix: Tensor) -> Tensor:
    """Pseudo-inverse of a symmetric matrix (D, D), with the cut-off of single precision."""
    # Features are in single precision: what is smaller is noise, which the inverse would blow up.
    cut = len(matrix) * torch.finfo(torch.float32).eps
    return torch.linalg.pinv(matrix.double(), rtol=cut, hermitian=True)


def class_means(rows: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Means of the rows of each class (K, D), and the number of its rows (K,)."""
    counts = torch.bincount(label, minlength=classes).clamp(min=1).to(rows)
    sums = rows.new_zeros(classes, rows.shape[1]).index_add_(0, label, rows)
    return sums / counts[:, None], counts


def precision_matrix(rows: Tensor, label: Tensor, means: Tensor, shrinks: bool) -> Tensor:
    """P (D, D) of rows (N, D) with labels (N,) and class means (K, D).

    With ``shrinks`` D pinv((N - 1) C + tr(C) I) for the covariance C of the rows around their
    class's mean; without, as released for base-to-novel, the pseudo-inverse of the mean over
    classes of each class's own covariance.
    """
    centred = rows - means[label]  # (N, D)
    n, width = rows.shape
    if shrinks:
        covariance = centred.T @ centred / max(n - 1, 1)
        eye = torch.eye(width).to(rows)
        return width * pseudo_inverse((n - 1) * covariance + covariance.trace() * eye)
    spare = torch.bincount(label, minlength=len(means)).sub(1).clamp(min=1).to(rows)
    weighted = centred / spare[label].sqrt()[:, None]
    return pseudo_inverse(weighted.T @ weighted / len(means))


def classifier(means: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
    """W = mu P (K, D) and b = log(1/K) - mu P mu / 2 (K,), for equally frequent classes."""
    weight = means @ precision
    return weight, -math.log(len(means)) - (weight * means).sum(1) / 2


def novel_classifier(rows: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """W and b of classes without an image, from their text t (K, D) and training rows (N, D).

    Each takes its 64 nearest rows: mu is the mean of these and 16 copies of t, and P the mean over
    classes of D inv(63 C + tr(C) I) for the scatter C of the rows around t.
    """
    nearest = (text @ rows.T).topk(min(NEIGHBOURS, len(rows)), dim=1).indices  # (K, 64)
    means, precision = torch.empty_like(text), text.new_zeros(text.shape[1], text.shape[1])
    for k, (t, own) in enumerate(zip(text, nearest, strict=True)):
        found = rows[own]  # (64, D)
        means[k] = (found.sum(0) + COPIES * t) / (len(found) + COPIES)
        scatter = (found - t).T @ (found - t)  # 63 C
        ridge = scatter.trace() / max(len(found) - 1, 1)
        # Of full rank, so that the pseudo-inverse is the inverse.
        precision += len(t) * torch.linalg.inv(scatter + ridge * torch.eye(len(t)).to(t))
    return classifier(means, precision / len(text))
