"""Accuracy, F1 score, per-class results, confusion matrix."""

from __future__ import annotations

import os
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

from dassl.evaluation.record import recorded
from dassl.names import check_availability
from dassl.utils.distributed import gather_objects, is_main
from dassl.utils.readings import reads_late
from dassl.utils.registry import Registry
from dassl.utils.torchtools import atomic_torch_save

__all__ = ["EVALUATOR_REGISTRY", "Classification", "EvaluatorBase", "build_evaluator"]

EVALUATOR_REGISTRY = Registry("EVALUATOR")
MOST_WAITING = 100  # batches; a NaN among their logits is found that late


class EvaluatorBase:
    """Interface of evaluators: reset, process batches, evaluate."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let the engine see what `evaluate` returns, whoever calls it."""
        super().__init_subclass__(**kwargs)
        if "evaluate" in vars(cls):
            cls.evaluate = recorded(vars(cls)["evaluate"])  # type: ignore[method-assign]

    def __init__(self, cfg: CfgNode) -> None:
        """Store the configuration."""
        self.cfg = cfg

    def reset(self) -> None:
        """Forget all batches."""
        raise NotImplementedError

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Add a batch: model output and ground truth."""
        raise NotImplementedError

    def gather(self) -> None:
        """Merge what the processes of a run have processed; then each of them has everything.

        The engine calls it before `evaluate` if there are several processes.

        Raises:
            NotImplementedError: The evaluator works in one process only.
        """
        raise NotImplementedError(
            f"{type(self).__name__} cannot put together the results of several processes; start "
            "the run without torchrun, or set TEST.EVALUATOR Classification"
        )

    def evaluate(self) -> OrderedDict[str, float]:
        """Return results by name, the main one first."""
        raise NotImplementedError


class _Count:
    """A running count of an evaluator; whoever reads it has what waits on a GPU counted first."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, evaluator: Any, owner: type | None = None) -> Any:
        if evaluator is None:
            return self
        evaluator.count_waiting()
        return vars(evaluator)[self._name]

    def __set__(self, evaluator: Any, value: Any) -> None:
        vars(evaluator)[self._name] = value


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy over all images and macro-averaged F1 score.

    The running counts have Dassl's names, since subclasses change `process` or read them. On a GPU,
    labels and predictions wait there until a count is read or there are `MOST_WAITING` batches.
    """

    _correct: Any = _Count()  # right predictions
    _total: Any = _Count()  # images
    _y_true: Any = _Count()  # list of labels
    _y_pred: Any = _Count()  # list of predictions
    _per_class_res: Any = _Count()  # list of right (1) and wrong (0) by label, or None
    _waiting: tuple[Tensor, ...] = ()  # one batch each, see `process`

    def __init__(
        self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **kwargs: object
    ) -> None:
        """Start empty; ``lab2cname`` has class names by label, for the per-class results."""
        super().__init__(cfg)
        self._lab2cname = lab2cname or {}
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._waiting = ()
        self._correct = 0
        self._total = 0
        self._y_true = []
        self._y_pred = []
        self._per_class_res = defaultdict(list) if self.cfg.TEST.PER_CLASS_RESULT else None

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Add a batch of logits ``mo``, (B, K), with labels ``gt``, (B,).

        Raises:
            FloatingPointError: A logit is NaN, so the largest of them would mean nothing. Those of
                a GPU are looked at later, by `evaluate` at the latest.
        """
        predicted = mo.max(dim=1).indices  # (B, K) -> (B,)
        spoiled = torch.isnan(mo).any()
        if reads_late(mo.device) and gt.device == mo.device:
            # One tensor for all, so that many batches are one transfer.
            self._waiting += (torch.cat([gt.long(), predicted, spoiled.long()[None]]),)  # 2B + 1
            if len(self._waiting) >= MOST_WAITING:
                self.count_waiting()
            return
        self._count(gt.tolist(), predicted.tolist(), bool(spoiled))

    def count_waiting(self) -> None:
        """Count the batches that wait on a GPU.

        Raises:
            FloatingPointError: A logit was NaN.
        """
        waiting, self._waiting = self._waiting, ()
        numbers = torch.cat(waiting).tolist() if waiting else []
        start = 0
        for batch in waiting:
            images, end = len(batch) // 2, start + len(batch)
            labels, predictions = numbers[start : start + images], numbers[start + images : end - 1]
            self._count(labels, predictions, bool(numbers[end - 1]))
            start = end

    def _count(self, labels: list[int], predictions: list[int], spoiled: bool) -> None:
        """Add a batch's labels and predictions; refuse it if a logit was NaN."""
        if spoiled:
            raise FloatingPointError(
                "the model's logits contain NaN: it has diverged, or the precision is too low "
                "(try TRAINER.<name>.PREC fp32)"
            )
        matches = [int(t == p) for t, p in zip(labels, predictions, strict=True)]
        self._correct += sum(matches)
        self._total += len(labels)
        self._y_true.extend(labels)
        self._y_pred.extend(predictions)
        if self._per_class_res is not None:
            for label, match in zip(labels, matches, strict=True):
                self._per_class_res[label].append(match)

    def gather(self) -> None:
        """Merge the counts, labels and predictions of all processes."""
        own = self._correct, self._total, self._y_true, self._y_pred, self._per_class_res
        # (process 1's counts, process 2's, ...) -> all processes' correct, all totals, ...
        corrects, totals, labels, predictions, per_class = zip(*gather_objects(own), strict=True)
        self._correct, self._total = sum(corrects), sum(totals)
        self._y_true = [label for part in labels for label in part]
        self._y_pred = [label for part in predictions for label in part]
        if self._per_class_res is not None:
            self._per_class_res = defaultdict(list)
            for label, matches in (entry for part in per_class for entry in part.items()):
                self._per_class_res[label].extend(matches)

    def evaluate(self) -> OrderedDict[str, float]:
        """Print and return the results.

        Returns:
            ``accuracy``, ``error_rate`` and ``macro_f1`` in percent, and ``perclass_accuracy`` with
            TEST.PER_CLASS_RESULT.

        Raises:
            ValueError: Nothing was processed.
        """
        if self._total == 0:
            raise ValueError("nothing to evaluate: no test image was processed")
        accuracy = 100.0 * self._correct / self._total
        macro_f1 = 100.0 * mean_f1(self._y_true, self._y_pred)
        results: OrderedDict[str, float] = OrderedDict(
            accuracy=accuracy, error_rate=100.0 - accuracy, macro_f1=macro_f1
        )
        print(
            "=> result\n"
            f"* total: {self._total:,}\n"
            f"* correct: {self._correct:,}\n"
            f"* accuracy: {accuracy:.2f}%\n"
            f"* error: {results['error_rate']:.2f}%\n"
            f"* macro_f1: {macro_f1:.2f}%"
        )
        if self._per_class_res is not None:
            results["perclass_accuracy"] = self._print_per_class()
        if self.cfg.TEST.COMPUTE_CMAT and is_main():
            self._save_confusion_matrix()
        return results

    def per_class(self) -> list[dict[str, Any]]:
        """Return ``label, name, total, correct, accuracy`` of every class that has images."""
        matches = self._per_class_res
        if matches is None:
            matches = defaultdict(list)
            for true, predicted in zip(self._y_true, self._y_pred, strict=True):
                matches[true].append(int(true == predicted))
        return [
            {
                "label": label,
                "name": self._lab2cname.get(label, str(label)),
                "total": len(matches[label]),
                "correct": sum(matches[label]),
                "accuracy": 100.0 * sum(matches[label]) / len(matches[label]),
            }
            for label in sorted(matches)
        ]

    def _print_per_class(self) -> float:
        rows = self.per_class()
        print("=> per-class result")
        for row in rows:
            print(
                f"* class: {row['label']} ({row['name']})\ttotal: {row['total']:,}\t"
                f"correct: {row['correct']:,}\tacc: {row['accuracy']:.2f}%"
            )
        mean = sum(row["accuracy"] for row in rows) / len(rows)
        print(f"* average: {mean:.2f}%")
        return mean

    def _save_confusion_matrix(self) -> None:
        from sklearn.metrics import confusion_matrix  # takes a second, and few runs ask for it

        matrix = confusion_matrix(self._y_true, self._y_pred, normalize="true")
        path = os.path.join(self.cfg.OUTPUT_DIR, "cmat.pt")
        atomic_torch_save(torch.from_numpy(matrix), path)
        print(f'Confusion matrix is saved to "{path}"')


def mean_f1(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """Return the F1 score in [0, 1], averaged over classes.

    Bit for bit scikit-learn's ``f1_score(average="macro")``, whose import takes a second of a run.

    Args:
        labels: True classes, (N,).
        predictions: Predicted classes, (N,).
    """
    total, predicted = Counter(labels), Counter(predictions)
    hits = Counter(t for t, p in zip(labels, predictions, strict=True) if t == p)
    # Only over classes that have images, as in Dassl: any other would count as an F1 of 0.
    scores = [2 * hits[label] / (total[label] + predicted[label]) for label in sorted(total)]  # K
    return float(np.mean(scores))


def build_evaluator(cfg: CfgNode, **kwargs: Any) -> Any:
    """Build the evaluator that ``cfg.TEST.EVALUATOR`` names, with arguments such as ``lab2cname``.

    Raises:
        ValueError: Not registered.
    """
    check_availability(cfg.TEST.EVALUATOR, EVALUATOR_REGISTRY.registered_names())
    if cfg.VERBOSE:
        print(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    evaluator = EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)(cfg, **kwargs)
    # Subclasses of EvaluatorBase are wrapped when they are defined, other classes only here.
    kind: Any = type(evaluator)
    if not isinstance(evaluator, EvaluatorBase) and not hasattr(kind.evaluate, "__wrapped__"):
        kind.evaluate = recorded(kind.evaluate)
    return evaluator
