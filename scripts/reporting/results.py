"""Finished runs, found by their directories, as the rows of one table.

pandas is imported inside the functions that make a table: a dry run should not cost its import.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dassl.names import check_availability
from dassl.results import RESULT_NAME, read_result
from scripts.jobs.protocols import (
    ALL_IMAGES,
    PROTOCOLS,
    RunKey,
    dataset_rank,
    source_of,
)

if TYPE_CHECKING:
    import pandas as pd

# Metric of a stage, by the classes it is tested on.
CLASS_METRICS = {"base": "base", "new": "novel", "all": "accuracy"}


@dataclass(frozen=True)
class Selection:
    """Which runs a report is about; an empty tuple selects all there are."""

    protocol: str
    output: Path  # directory that the run directories are under
    trainers: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()  # by their config files
    cfg: tuple[str, ...] = ()  # stems of trainer config files
    # Pairs of these; without any, each trainer goes with each stem.
    rows: tuple[tuple[str, str], ...] = ()
    shots: tuple[int, ...] = ()  # images per class
    seeds: tuple[int, ...] = ()  # also those whose absence is reported
    # A name without any finished run is an error, probably a typing error; not where its jobs may
    # just have failed.
    must_exist: bool = True

    def accepts(self, key: RunKey) -> bool:
        """Tell whether a run is selected."""
        wanted = (
            (self.rows, (key.trainer, key.cfg)),
            (self.trainers, key.trainer),
            (self.datasets, key.dataset),
            (self.cfg, key.cfg),
            (self.shots, key.shots),
            (self.seeds, key.seed),
        )
        return all(not values or value in values for values, value in wanted)

    def rank(self, key: RunKey) -> tuple[Any, ...]:
        """Return a sort key: trainers and configs as selected, by name where nothing is."""
        named = ((key.trainer, self.trainers), (key.cfg, self.cfg))
        series = [(want.index(name) if name in want else len(want), name) for name, want in named]
        return (*series, dataset_rank(key.dataset), key.stage, key.shots, key.seed)


def run_directories(selection: Selection) -> Iterator[tuple[RunKey, Path]]:
    """Yield every directory of the protocol that has a ``result.json``, whatever is in it."""
    base = selection.output / selection.protocol
    for file in sorted(base.glob(f"*/*/shots_*/*/*/seed*/{RESULT_NAME}")):
        key = RunKey.parse(file.parent)
        # A stage that the protocol does not have is the first stage of some other run.
        if key is not None and key.stage in PROTOCOLS[key.protocol].stages:
            yield key, file.parent


def collect(selection: Selection) -> pd.DataFrame:
    """Return the finished runs of a selection in table order.

    Returns:
        One row per run: the parts of its `RunKey`; ``metric``, ``accuracy``, ``backbone`` and
        ``trains`` (whether anything does); ``source``, the dataset that the evaluated model was
        trained on; ``directory`` and ``result``.

    Raises:
        ValueError: The protocol is unknown, or a selected trainer or stem has no finished run.
        LookupError: No selected run has finished.
    """
    import pandas as pd

    check_availability(selection.protocol, PROTOCOLS, "--protocol")
    finished = {
        key: (path, result)
        for key, path in run_directories(selection)
        if (result := read_result(path)) is not None
    }
    # Names of all finished runs, selected or not: a name is wrong only if no run has it.
    found = {(key.trainer, key.cfg) for key in finished}
    base = selection.output / selection.protocol
    if found and selection.must_exist:
        _check_names(selection, found, f" under {base}")
    rows = [
        _row(key, *finished[key])
        for key in sorted(filter(selection.accepts, finished), key=selection.rank)
    ]
    if not rows:
        raise LookupError(f"No finished run of {selection.protocol} under {base} is selected.")
    return pd.DataFrame(rows)


def _row(key: RunKey, directory: Path, result: dict[str, Any]) -> dict[str, Any]:
    return {
        **vars(key),
        "metric": CLASS_METRICS[PROTOCOLS[key.protocol].classes_of(key.stage)],
        "accuracy": float(result["metrics"]["accuracy"]),
        # Older versions did not write these entries; their runs belong in the table too.
        "backbone": str(result.get("backbone", "")),
        "trains": result.get("trainable_parameters") != 0,
        "source": _source(key, result),
        "directory": directory,
        "result": result,
    }


def _source(key: RunKey, result: dict[str, Any]) -> str:
    """The dataset of the training; if nothing was trained, the one whose shift is evaluated."""
    protocol = PROTOCOLS[key.protocol]
    if key.stage == protocol.train_stage:
        return key.dataset
    # The path may be of another machine: only its last parts count.
    trained = RunKey.parse(str(result.get("model_dir") or ""))
    if trained is None and not protocol.train_stage:
        return source_of(key.dataset)
    return trained.dataset if trained else ""


def _check_names(selection: Selection, found: set[tuple[str, str]], where: str) -> None:
    for name in selection.trainers:
        check_availability(name, sorted({trainer for trainer, _ in found}), "--trainer", where)
    # A stem that only unselected trainers have would leave an empty table.
    stems = {cfg for trainer, cfg in found if trainer in (selection.trainers or (trainer,))}
    for name in selection.cfg:
        check_availability(name, sorted(stems), "--cfg", where)


def with_labels(runs: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Add ``series``: a label for the runs that share a row of the table.

    It is the trainer, with the config file if the trainer has several or one that is not the
    protocol's own, with the number of shots if it differs and has no column in the table, and, for
    a method that chooses numbers, with the images that it chose them on.
    """
    own = {trainer: {protocol} == set(part.cfg) for trainer, part in runs.groupby("trainer")}
    several = protocol != "few_shot" and runs.shots.nunique() > 1
    labels = []
    columns = (runs.trainer, runs.cfg, runs.shots, runs.result)
    for trainer, cfg, shots, result in zip(*columns, strict=True):
        extra = [] if own[trainer] else [cfg]
        policy = policy_of(result)
        if policy:
            # A number that was chosen on what it is measured on must not look like the others.
            extra.append("CHOSEN ON TEST IMAGES" if policy == "released" else f"val {policy}")
        if several:
            extra.append("all images" if shots == ALL_IMAGES else f"{shots} shots")
        labels.append(f"{trainer} ({', '.join(extra)})" if extra else trainer)
    return runs.assign(series=labels)


def policy_of(result: dict[str, Any]) -> str:
    """VAL.POLICY of a run that chooses numbers; "" for other methods."""
    return str((result.get("validation") or {}).get("policy") or "")
