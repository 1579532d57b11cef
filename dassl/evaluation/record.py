"""What evaluators returned during a test, whoever wrote the test."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dassl.evaluation.predictions import Predictions

__all__ = ["Evaluation", "numbers", "recorded", "recorded_evaluations"]


@dataclass(frozen=True)
class Evaluation:
    """The outcome of one call of an evaluator's ``evaluate``.

    Attributes:
        results: Numbers by name, the main one first; never empty.
        per_class: The evaluator's results per class, if it has any.
        left_out: Names of results that are not numbers.
        predictions: Of the images, if the engine's own test has made them.
    """

    results: dict[str, float]
    per_class: list[dict[str, Any]]
    left_out: list[str]
    predictions: Predictions | None = None


_open: list[list[Evaluation]] = []  # one list per block, innermost last
_depth = 0  # of nested calls of `evaluate`: a method that calls its parent's is recorded once


@contextmanager
def recorded_evaluations() -> Iterator[list[Evaluation]]:
    """Give a list that grows with every evaluation inside a block."""
    found: list[Evaluation] = []
    _open.append(found)
    try:
        yield found
    finally:
        _open.pop()


def recorded(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """Let `recorded_evaluations` see an evaluator's ``evaluate``.

    If the method calls its parent's, only the outer call counts.
    """

    @functools.wraps(evaluate)
    def evaluate_and_record(self: Any, *args: Any, **kwargs: Any) -> Any:
        global _depth
        _depth += 1
        try:
            results = evaluate(self, *args, **kwargs)
        finally:
            _depth -= 1
        if _depth == 0 and _open:
            kept, left_out = numbers(results)
            if kept:
                per_class = self.per_class() if hasattr(self, "per_class") else []
                _open[-1].append(Evaluation(kept, per_class, left_out))
        return results

    return evaluate_and_record


def numbers(value: Any) -> tuple[dict[str, float], list[str]]:
    """Take the numbers out of what a test or an evaluator returned.

    Args:
        value: A mapping; a number, which is then called accuracy; a sequence, whose first element
            counts; anything else has no numbers.

    Returns:
        Numbers by name, and the names of the other entries.
    """
    if isinstance(value, list | tuple) and value:
        value = value[0]
    entries = value if isinstance(value, Mapping) else {"accuracy": value}
    kept: dict[str, float] = {}
    left_out: list[str] = []
    for name, entry in entries.items():
        number = _number(entry)
        if number is None:
            left_out.append(str(name))
        else:
            kept[str(name)] = number
    return kept, left_out


def _number(value: Any) -> float | None:
    if isinstance(value, bool | str | bytes):
        return None
    try:
        return float(value)  # of a tensor or an array too, if it has one element
    except (TypeError, ValueError, RuntimeError):
        return None
