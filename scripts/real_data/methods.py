"""Methods on the public features, through the ordinary protocols and the job driver.

Notation: N rows, K classes, D embedding width.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dassl.data.features.arrays import write_arrays
from dassl.utils.files import atomic_write
from scripts.jobs.devices import parse_devices
from scripts.jobs.job import Job
from scripts.jobs.local import LocalLauncher, Slot
from scripts.jobs.plan import Planner
from scripts.jobs.pool import JobPool, Outcome
from scripts.jobs.protocols import PROTOCOLS, REPO
from scripts.jobs.settings import Settings
from scripts.jobs.warm import WarmSlot, check_warm
from scripts.real_data.arrays import half_of, read_needed

METHODS = (
    *("ZeroshotCLIP", "RAda", "TaskRes", "TipAdapterF"),
    *("CLAP", "GDA", "LPPlusPlus", "CLIPAdapter"),
)
# What they choose is chosen on nothing, and on the test images: the data have no validation images.
CHOOSING = {"TipAdapterF", "GDA", "LPPlusPlus"}
POLICIES = ("none", "released")
SHOTS = 16


class FeatureSettings(Settings):
    """Settings whose datasets' config files lie beside the features."""

    def dataset_file(self, dataset: str) -> Path:
        """Return the config file of a dataset."""
        return self.root / f"{dataset}.yaml"


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        runs: The section ``runs`` of the expected values, without what is not there.
        methods: Names of trainers.
        seeds: Of each; zero-shot has one.
        output: Folder of features and runs.
        device: auto, cpu, mps or a GPU's number.
    """

    runs: Mapping[str, Mapping[str, Any]]
    methods: Sequence[str]
    seeds: tuple[int, ...]
    output: Path
    device: str = "auto"

    def protocol(self, dataset: str) -> str:
        """The protocol that a dataset has the images for."""
        return "base2novel" if "novel" in self.runs[dataset] else "few_shot"

    def without(self, names: Container[str]) -> Plan:
        """The same for the other datasets."""
        return replace(self, runs={n: run for n, run in self.runs.items() if n not in names})

    def folder(self, policy: str) -> Path:
        """Where the runs lie of methods that chose their numbers in this way, or choose none."""
        return self.output / f"chosen_{policy}"


def write_datasets(root: Path, plan: Plan) -> dict[str, str]:
    """Write each run's features in the project's own form; return why some could not be, by name.

    A dataset with ``novel`` images gets both halves: the protocol subsamples them as it does any
    dataset. Of its novel classes there are no training images, and none is ever used; the class's
    text feature stands in for one, since a dataset's classes are those of its training images.
    """
    problems = {}
    for name, run in plan.runs.items():
        parts = [run[part] for part in ("train", "test", "novel") if part in run]
        wanted = [word for part in parts for word in (part, f"{part}_label")]
        try:
            arrays = read_needed(root / run["file"], [*wanted, "text", "classnames"])
        except (OSError, ValueError) as error:
            problems[name] = str(error)
            continue
        _write_dataset(plan.output / "data", name, run, arrays)
    return problems


def _write_dataset(
    root: Path, name: str, run: Mapping[str, Any], arrays: Mapping[str, Any]
) -> None:
    folder, text = root / name, arrays["text"]  # (K, D)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        part: [(arrays[run[part]], arrays[f"{run[part]}_label"].astype(np.int64))]
        for part in ("train", "test")
    }
    if "novel" in run:
        first = half_of(len(text), "novel").start
        label = arrays[f"{run['novel']}_label"].astype(np.int64)
        parts["test"].append((arrays[run["novel"]], first + label))
        parts["train"].append((text[first:], np.arange(first, len(text))))
    for part, rows in parts.items():
        features, labels = (np.concatenate(own) for own in zip(*rows, strict=True))  # (N, D), (N,)
        content = {"features": features, "labels": labels, "classnames": arrays["classnames"]}
        write_arrays(folder / f"{part}.npz", content)
    write_arrays(folder / "text.npz", {"text_features": text, "classnames": arrays["classnames"]})
    files = {"TRAIN": "train.npz", "TEST": "test.npz", "TEXT": "text.npz"}
    section = {"DATASET": {"NAME": "Features", "DIR": name, "FEATURES": files}}
    with atomic_write(root / f"{name}.yaml") as file:
        yaml.safe_dump(section, file, sort_keys=False)


def plan_jobs(plan: Plan) -> list[Job]:
    """The jobs of all methods on all datasets, in the order of the datasets."""
    jobs = []
    for dataset in plan.runs:
        for method in plan.methods:
            for policy in POLICIES if method in CHOOSING else POLICIES[:1]:
                jobs += Planner(_settings(plan, dataset, method, policy)).jobs()
    return jobs


def _settings(plan: Plan, dataset: str, method: str, policy: str) -> FeatureSettings:
    options = ["VAL.POLICY", policy] if method in CHOOSING else []
    if method == "TipAdapterF":
        for key, value in plan.runs[dataset].get("constants", {}).items():
            options += [f"TRAINER.{method}.{key}", str(value)]
    protocol = PROTOCOLS[plan.protocol(dataset)]
    return FeatureSettings(
        protocol=protocol,
        rows=((method, protocol.name),),
        datasets=(dataset,),
        targets=(),
        shots=(SHOTS,),
        seeds=plan.seeds[:1] if method == "ZeroshotCLIP" else plan.seeds,
        root=plan.output / "data",
        output=plan.folder(policy),
        options=tuple(options),
        repo=REPO,
        train_command=(sys.executable, str(REPO / "train.py")),
        relative=False,
    )


def run_jobs(jobs: Sequence[Job], device: str) -> tuple[list[Outcome], list[int]]:
    """Run what is not done; return how each job ended, and the signals that stopped it, if any."""
    devices = parse_devices([device], 1)
    slot: Any = partial(WarmSlot, program=(sys.executable, str(REPO / "train.py")))
    try:
        check_warm(devices)
    except ValueError:
        slot = Slot  # each job imports for itself, which takes longer and gives the same
    pool = JobPool(jobs, LocalLauncher(devices, cwd=REPO, slot=slot))
    return pool.run(), pool.signals
