"""Cross entropy of a linear classifier on all rows at once, with its gradient written out.

Notation: N rows, K classes, D embedding width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK = 2**18  # logits that are made at once: a megabyte, which stays in a core's cache


class Gradient(NamedTuple):
    """Mean cross entropy, a scalar, and its gradients for W (K, D) and b (K,)."""

    loss: Tensor
    weight: Tensor
    bias: Tensor


class FullBatch:
    """``mean_n CE(x_n W^T + b, y_n)`` for any W and b.

    With P the softmax of the logits, the gradient for W is (P - onehot(y))^T X / N. The part of the
    labels is the same for all W, so that it is made once; P is made in blocks of rows, since an
    (N, K) matrix that leaves the cache between its exponentials and its product takes longer than
    both.

    Args:
        x: Features, (N, D).
        label: Labels, (N,).
        classes: K.
    """

    def __init__(self, x: Tensor, label: Tensor, classes: int) -> None:
        self.x, self.label = x, label
        self.counts = torch.bincount(label, minlength=classes).to(x)  # (K,)
        self.sums = x.new_zeros(classes, x.shape[1]).index_add_(0, label, x)  # (K, D)

    def gradient(self, weight: Tensor, bias: Tensor) -> Gradient:
        """Loss and gradients at W (K, D) and b (K,)."""
        loss, of_weight, of_bias = self.x.new_zeros(()), -self.sums, -self.counts
        rows = max(1, _BLOCK // len(bias))
        for x, label in zip(self.x.split(rows), self.label.split(rows), strict=True):
            logits = torch.addmm(bias, x, weight.T)  # (B, K)
            # Relative to the largest one, as log_softmax does: exponentials cannot overflow.
            logits -= logits.amax(1, keepdim=True)
            own = logits.gather(1, label[:, None]).sum()
            p = logits.exp_()
            total = p.sum(1, keepdim=True)  # (B, 1)
            loss += total.log().sum() - own
            p /= total
            of_weight.addmm_(p.T, x)
            of_bias += p.sum(0)
        n = len(self.x)
        return Gradient(loss / n, of_weight.div_(n), of_bias.div_(n))


def told_right(x: Tensor, label: Tensor, weight: Tensor, bias: Tensor) -> int:
    """How many of N images with features (N, D), labels (N,) W (K, D) and b (K,) tell right."""
    rows = max(1, _BLOCK // len(bias))
    found = [torch.addmm(bias, own, weight.T).argmax(1) for own in x.split(rows)]
    return int((torch.cat(found) == label).sum())
