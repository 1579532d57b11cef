"""What the page shows of a single run: worst classes, confusions, training curves, costs.

All of it is bounded, so that ten thousand classes or epochs make no larger page than twenty do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl.prediction_file import PREDICTIONS_NAME
from scripts.jobs.protocols import PROTOCOLS
from scripts.reporting.page.mistakes import ClassRow, Mistakes, confusion_of, mistakes_of
from scripts.reporting.page.rows import shots_name

WORST = 8  # classes that are named
CONFUSED = 16  # classes of a confusion matrix; of more, those that are confused most
EPOCHS = 50  # points of a curve
MOST_CLASSES = 2000  # a larger matrix takes hundreds of megabytes to read
NOTES = 5
# That a run's links lead to.
_FILES = ("result.json", "log.txt", "job.log", "identity.json", PREDICTIONS_NAME)
_CURVES = ("loss", "acc")
_EPOCH = re.compile(r"^epoch \[(\d+)/\d+\] ")
# As `MetricMeter` prints: the value of the last batch, then the epoch's mean in parentheses.
_METER = re.compile(r"\b(\w+) \S+ \((-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)\)")
_LAST = " eta "  # what a whole line has at its end


def describe(run: Any) -> dict[str, Any]:
    """Return what the page shows of a run.

    Args:
        run: A row of `scripts.reporting.results.collect` with its label, as ``itertuples`` gives.
    """
    result, directory = run.result, run.directory
    durations = _object(result, "durations")
    per_class = read_classes(result)
    mistakes = mistakes_of(directory, per_class)
    cells, why = confusion_of(mistakes, per_class, CONFUSED), ""
    if not cells:
        cells, why = confusion(directory, per_class, result.get("num_classes"))
    return {
        "protocol": run.protocol,
        "stage": run.stage,
        "trains": run.stage == PROTOCOLS[run.protocol].train_stage,
        "method": run.series,
        "dataset": run.dataset,
        "shots": shots_name(run.shots),
        "seed": run.seed,
        "accuracy": round(run.accuracy, 3),
        "train": _number(durations.get("train")),
        "seconds": _number(durations.get("total")),
        "memory": _number(result.get("peak_memory_mb")),
        "device": str(result.get("device", "")),
        "backbone": run.backbone,
        "trainable": result.get("trainable_parameters"),
        "images": result.get("num_test"),
        "classes": len(per_class) or result.get("num_classes"),
        "worst": worst_classes(per_class),
        "mistaken": mistaken_images(per_class, mistakes),
        "no_mistakes": mistakes.why_not,
        "curve": training_curve(directory / "log.txt"),
        "confusion": cells,
        "no_confusion": why,
        "notes": [str(note) for note in list(result.get("notes") or ())[:NOTES]],
        "files": [name for name in _FILES if (directory / name).is_file()],
    }


def _object(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an entry of a result that should be an object; older versions may lack it."""
    value = result.get(name)
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return round(float(value), 2) if isinstance(value, int | float) and value == value else None


def read_classes(result: Mapping[str, Any]) -> list[ClassRow]:
    """Return the classes of a result; empty where it has none."""
    rows = result.get("per_class")
    found = []
    for place, row in enumerate(rows if isinstance(rows, list) else []):
        try:
            numbers = int(row["total"]), int(row["correct"]), int(row.get("label", place))
            found.append(ClassRow(str(row["name"]), *numbers))
        except (KeyError, TypeError, ValueError, OverflowError):  # an evaluator of the user's own
            return []
    return found


def _worst(per_class: Sequence[ClassRow]) -> list[ClassRow]:
    seen = [row for row in per_class if row[1] > 0]
    return sorted(seen, key=lambda row: row[2] / row[1])[:WORST]


def worst_classes(per_class: Sequence[ClassRow]) -> list[list[Any]]:
    """Return name, images and right answers of the classes with the lowest accuracy."""
    return [list(row[:3]) for row in _worst(per_class)]


def mistaken_images(per_class: Sequence[ClassRow], mistakes: Mistakes) -> list[list[list[Any]]]:
    """Return for each of the `worst_classes` its mistaken images that are shown.

    Each has the name of the class that it was taken for, the confidence in percent, and its path.
    """
    return [
        [
            [image.predicted_name, round(100 * image.confidence), image.image]
            for image in mistakes.examples.get(row.label, ())
        ]
        for row in _worst(per_class)
    ]


def training_curve(log: Path) -> dict[str, Any]:
    """Read the epochs' means off a run's log: ``epoch`` and, as far as printed, loss and acc.

    A log in which a run resumed has some epochs twice: the later ones count.
    """
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:  # gone, or of a user's own trainer
        return {}
    epochs: dict[int, dict[str, float]] = {}
    for line in text.splitlines():
        start = _EPOCH.match(line)
        if start is None or _LAST not in line:  # a killed run's log may end anywhere
            continue
        meters = dict(_METER.findall(line))
        # The last line of an epoch has the mean over all of it.
        epochs[int(start[1])] = {name: float(meters[name]) for name in _CURVES if name in meters}
    names = [name for name in _CURVES if epochs and all(name in v for v in epochs.values())]
    kept = _thinned(sorted(epochs)) if names else []
    if not kept:
        return {}
    return {"epoch": kept, **{name: [epochs[e][name] for e in kept] for name in names}}


def _thinned(epochs: list[int]) -> list[int]:
    """Return at most `EPOCHS` of them, evenly spaced, first and last included."""
    if len(epochs) <= EPOCHS:
        return epochs
    step = (len(epochs) - 1) / (EPOCHS - 1)
    return [epochs[round(number * step)] for number in range(EPOCHS)]


def confusion(
    directory: Path, per_class: Sequence[ClassRow], num_classes: Any
) -> tuple[dict[str, Any], str]:
    """Return the part of a run's ``cmat.pt`` that is shown, or why there is none.

    The matrix is row-normalised: entry (i, j) is the share of class i's images called class j.

    Returns:
        ``names`` and ``cells``, percentages of shape (k, k) with k at most `CONFUSED`; and "". Or
        nothing and a line.
    """
    file = directory / "cmat.pt"
    if not file.is_file():
        return {}, "No confusion matrix here: run with TEST.COMPUTE_CMAT True."
    if len(per_class) > MOST_CLASSES:
        return {}, f"The confusion matrix is left out: more than {MOST_CLASSES} classes."
    import torch  # only where there is a matrix: it takes longer than a table

    try:
        # Only tensors are read: a file from elsewhere runs no code here.
        matrix = torch.load(file, weights_only=True, map_location="cpu").double().numpy()
    except Exception as error:  # a damaged file raises nearly anything
        return {}, f"cmat.pt cannot be read ({type(error).__name__}): evaluate the run again."
    # scikit-learn leaves out classes without images and predictions, so only a matrix of all
    # classes that have images is sure to have their names' order.
    if matrix.ndim != 2 or not len(per_class) == len(matrix) == matrix.shape[1]:
        return {}, (
            f"cmat.pt has shape {tuple(matrix.shape)}, {len(per_class)} of {num_classes} classes "
            "have images: its rows have no certain names."
        )
    wrong = (matrix.sum(1) + matrix.sum(0)) - 2 * matrix.diagonal()  # (K,)
    shown = sorted((-wrong).argsort(kind="stable")[:CONFUSED].tolist())
    return {
        "names": [per_class[place][0] for place in shown],
        "cells": [[round(100 * matrix[i, j]) for j in shown] for i in shown],
    }, ""
