"""Choosing a number by accuracy on validation images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from torch import Tensor

Choice = TypeVar("Choice")


def correct(logits: Tensor, label: Tensor) -> int:
    """How many of the images with logits (N, K) and labels (N,) are told right."""
    return int((logits.argmax(1) == label).sum())


def best_of(
    candidates: Iterable[Choice], logits: Callable[[Choice], Tensor], label: Tensor
) -> Choice:
    """The candidate whose logits (N, K) tell most images right; of equal ones the first."""
    return max(candidates, key=lambda candidate: correct(logits(candidate), label))
