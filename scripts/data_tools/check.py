"""Check whether a dataset is there, complete and readable, with the readers that a run uses.

A dataset is *ok*; *on first use*: the bundled suite, not drawn yet; *missing*; *incomplete*: files
or images are missing; or *damaged*: its files cannot be used as they are.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm
from yacs.config import CfgNode

import datasets.features
import datasets.folder
import datasets.table  # noqa: F401 - registers the datasets
from dassl.config import get_cfg_default, merge_file
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from datasets import shapes
from datasets.base import data_root
from datasets.downloads import Download
from datasets.features import FeatureDatum
from datasets.row import DatasetRow
from datasets.splits import PARTS

OK, ON_FIRST_USE, MISSING, INCOMPLETE, DAMAGED = (
    "ok", "on first use", "missing", "incomplete", "damaged",
)  # fmt: skip
USABLE = (OK, ON_FIRST_USE)


@dataclass(frozen=True)
class Target:
    """A dataset to check."""

    config: str  # stem of its config file
    file: Path
    cfg: CfgNode  # the config of a run on it, with all shots and classes
    row: DatasetRow | None  # None for data of the user's own

    @property
    def name(self) -> str:
        """``DATASET.NAME``."""
        return self.cfg.DATASET.NAME

    @property
    def directory(self) -> Path:
        """Its directory below the root."""
        below = self.row.directory if self.row else self.cfg.DATASET.DIR
        return data_root(self.cfg) / below

    @property
    def is_template(self) -> bool:
        """Whether the file is only an example to copy, as folder.yaml is for the reader Folder."""
        return self.row is None and self.config == self.name.lower()

    @property
    def download(self) -> Download | None:
        """Where it can be downloaded."""
        return self.row.download if self.row else None


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    target: Target
    status: str  # one of the five above
    problem: str = ""  # what is wrong, in a line; empty if nothing is
    # A file or directory is missing altogether, so that it can be fetched without touching what is
    # there.
    absent: bool = False
    classes: int | None = None  # None if they were not read
    counts: tuple[int, int, int] | None = None  # images of train, val and test
    notes: tuple[str, ...] = ()  # what a run on it would warn of
    unreadable: tuple[tuple[str, str], ...] = field(default=())  # (path, reason) of each image
    seconds: float = 0.0

    @property
    def usable(self) -> bool:
        """Whether a run may start on it."""
        return self.status in USABLE


def read_target(file: Path, root: Path) -> Target:
    """Read a dataset's config file; a malformed one or an unknown dataset is a ValueError."""
    if not file.is_file():
        raise FileNotFoundError(f"--dataset-config-file: no file {file}")
    cfg = read_config(file)
    if not cfg.DATASET.NAME:
        raise ValueError(f"{file}: DATASET.NAME is not set")
    row = getattr(DATASET_REGISTRY.get(cfg.DATASET.NAME), "row", None)
    cfg.DATASET.ROOT = str(root)
    # All shots and classes, whatever the file asks for in a run.
    cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES, cfg.OUTPUT_DIR = -1, "all", ""
    return Target(file.stem, file, cfg, row)


def read_config(file: Path) -> CfgNode:
    """Return the defaults merged with a dataset's config file."""
    cfg = get_cfg_default()
    datasets.folder.extend_cfg(cfg)
    datasets.features.extend_cfg(cfg)
    try:
        merge_file(cfg, file, known_datasets=DATASET_REGISTRY)
    except ValueError:
        # It may set keys of a method. Loading all methods takes seconds, so only now.
        from scripts.training.config import default_config

        cfg = default_config()
        merge_file(cfg, file, known_datasets=DATASET_REGISTRY)
    return cfg


def check(target: Target, depth: str = "normal", workers: int = 0) -> Finding:
    """Check one dataset without writing anything, not even the bundled suite.

    Args:
        target: The dataset.
        depth: ``quick`` looks for directory and split file; ``normal`` also does what a run does
            before its first image, looks for all images and compares the known counts; ``full``
            also decodes every image.
        workers: Processes that decode; 0 for this one.
    """
    start = time.perf_counter()
    try:
        finding = _check_layout(target)
        if finding.status == OK and depth != "quick":
            finding = _check_content(target, workers if depth == "full" else None)
    except OSError as error:  # no permission to read a directory, a failing disk
        finding = Finding(target, DAMAGED, str(error))
    return replace(finding, seconds=time.perf_counter() - start)


def _check_layout(target: Target) -> Finding:
    row, directory = target.row, target.directory
    if row is not None and row.prepare is not None:
        return _check_suite(target)
    if not directory.is_dir() or not any(directory.iterdir()):
        return Finding(target, MISSING, f"no directory {directory}", absent=True)
    if row is None:
        return Finding(target, OK)
    images = directory / row.images
    if not images.is_dir() or not any(images.iterdir()):
        return Finding(target, INCOMPLETE, f"no images in {images}", absent=True)
    if row.split_file is not None and not (directory / row.split_file).is_file():
        problem = f"no split file {directory / row.split_file}, which published numbers are made on"
        return Finding(target, INCOMPLETE, problem, absent=True)
    return Finding(target, OK)


def _check_suite(target: Target) -> Finding:
    """Check the bundled suite, which a run draws unless something else is in its place."""
    stamp = target.directory / "version.txt"
    if stamp.is_file():
        return Finding(target, OK if shapes.is_current(target.directory) else ON_FIRST_USE)
    if not target.directory.exists():
        return Finding(target, ON_FIRST_USE)
    return Finding(
        target, DAMAGED, f"{target.directory} was not drawn by this project (no version.txt); "
        "move it away"
    )  # fmt: skip


def _check_content(target: Target, workers: int | None) -> Finding:
    """Build the dataset as a run does; images are decoded unless ``workers`` is None."""
    try:
        # Readers print what they load, which would break up the table and the JSON.
        with contextlib.redirect_stdout(io.StringIO()):
            dataset = build_dataset(target.cfg)
    except FileNotFoundError as error:
        return Finding(target, INCOMPLETE, str(error))
    except ValueError as error:
        return Finding(target, DAMAGED, str(error))
    parts = (dataset.train_x or [], dataset.val or [], dataset.test or [])
    finding = Finding(
        target,
        OK,
        classes=dataset.num_classes,
        counts=(len(parts[0]), len(parts[1]), len(parts[2])),
        notes=tuple(getattr(dataset, "notes", ())),
    )
    finding = _compare_counts(finding)
    if workers is None:
        return finding
    # A split file may list an image in several splits: decode it once.
    # Rows of features are no files: all of them were read and checked above.
    items = [item for part in parts for item in part if not isinstance(item, FeatureDatum)]
    paths = dict.fromkeys(item.impath for item in items)
    return _add_unreadable(finding, find_unreadable(list(paths), workers, target.config))


def _compare_counts(finding: Finding) -> Finding:
    row = finding.target.row
    if row is None or finding.counts is None:
        return finding
    wrong = []
    if row.num_classes not in (None, finding.classes):
        wrong.append(f"{finding.classes:,} classes, known are {row.num_classes:,}")
    if row.counts not in (None, finding.counts):
        wrong.append(
            f"{format_counts(finding.counts)} {'/'.join(PARTS)} images, known are "
            f"{format_counts(row.counts)}"
        )
    if not wrong:
        return finding
    # Fewer images: incomplete. As many or more: another version of the dataset.
    fewer = sum(finding.counts) < sum(row.counts or ())
    status = INCOMPLETE if fewer else DAMAGED
    return replace(finding, status=status, problem="; ".join(wrong))


def _add_unreadable(finding: Finding, unreadable: list[tuple[str, str]]) -> Finding:
    if not unreadable:
        return finding
    path, reason = unreadable[0]
    text = f"{len(unreadable):,} image(s) cannot be read, first {path}: {reason}"
    problem = "; ".join(filter(None, (finding.problem, text)))
    return replace(finding, status=DAMAGED, problem=problem, unreadable=tuple(unreadable))


class _Decoded:
    """A DataLoader's dataset: why each image cannot be decoded, or "" if it can."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> str:
        from dassl.data import read_image

        try:
            read_image(self.paths[index])
        except OSError as error:
            return str(error.__cause__ or error) or type(error).__name__
        return ""


def find_unreadable(
    paths: Sequence[str], workers: int, name: str = "images"
) -> list[tuple[str, str]]:
    """Decode images as a run would, in ``workers`` processes; return (path, reason) of failures."""
    from torch.utils.data import DataLoader  # seconds that the other depths save

    images: Any = _Decoded(paths)
    loader = DataLoader(images, batch_size=32, num_workers=workers, collate_fn=list)
    reasons: list[str] = []
    with tqdm(desc=name, total=len(paths), unit=" images", disable=None, leave=False) as bar:
        for batch in loader:
            reasons += batch
            bar.update(len(batch))
    return [(path, reason) for path, reason in zip(paths, reasons, strict=True) if reason]


def known_counts(row: DatasetRow | None) -> tuple[int | None, tuple[int, int, int] | None]:
    """Number of classes and of train, val and test images that a dataset must have."""
    if row is not None and row.name in shapes.SUITE:
        suite = shapes.SUITE[row.name]
        train, val, test = (count * len(suite.classes) for count in suite.per_class)
        return len(suite.classes), (train, val, test)
    return (row.num_classes, row.counts) if row else (None, None)


def format_counts(counts: Iterable[int] | None) -> str:
    """Write train, val and test counts: ``4,128/1,649/2,465``."""
    return "/".join(f"{count:,}" for count in counts or ())


def default_workers() -> int:
    """Processors that this process may use."""
    affinity: Any = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
