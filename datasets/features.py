"""Data that arrives as embeddings: ``DATASET.NAME: Features``, described in YAML alone.

Below ``<root>/<DATASET.DIR>`` lie files of features of a frozen image encoder, one for each of
train, val and test, and one of the classes' text features, in any format of
`dassl.data.features.arrays`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dassl.config.schema import PATH, TEXT, Option, add_options, number, values_of
from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.base import CLIPDataset
from datasets.feature_files import (
    ClassTexts,
    Part,
    check_widths,
    class_names,
    label_numbers,
    read_part,
    read_texts,
    texts_of,
)
from datasets.folder import own_directory, own_options
from datasets.sampling import kept_labels
from datasets.splits import PARTS, Splits, check_labels, check_repeats

# Keys of the section DATASET.FEATURES.
OPTIONS: dict[str, Option] = {
    "TRAIN": Option("", PATH, "file of training features in DIR; empty for a set to test on"),
    "VAL": Option("", PATH, "file of validation features; may be empty"),
    "TEST": Option("", PATH, "file of test features"),
    "TRAIN_LABELS": Option("", PATH, "file of TRAIN's labels, if TRAIN itself has none"),
    "VAL_LABELS": Option("", PATH, "file of VAL's labels, if VAL itself has none"),
    "TEST_LABELS": Option("", PATH, "file of TEST's labels, if TEST itself has none"),
    "KEY": Option("features", TEXT, "name of the array or column of features"),
    "LABEL_KEY": Option("labels", TEXT, "name of that of labels: numbers from 0, or class names"),
    "TEXT": Option("", PATH, "file of the classes' text features; empty takes the backbone's"),
    "TEXT_KEY": Option("text_features", TEXT, "name of their array or column"),
    "LOGIT_SCALE": Option(
        0.0, number(0, 10_000), "factor of the cosines beside TEXT; 0 takes the file's, else 100"
    ),
}


def extend_cfg(cfg: Any) -> None:
    """Add the section DATASET.FEATURES, in place."""
    add_options(cfg, {f"DATASET.FEATURES.{key}": option for key, option in OPTIONS.items()})


@dataclass(frozen=True, eq=False, slots=True)
class FeatureDatum(Datum):
    """A row of features in place of an image.

    ``impath`` is the picture's path if the file states it, else ``<file>#<row>``; no picture need
    be there.
    """

    file: str = ""
    row: int = 0


@DATASET_REGISTRY.register()
class Features(CLIPDataset):
    """The user's own embeddings.

    Attributes:
        features: By part (train, val, test) the array (N, D), or (N, V, D) with V views of each
            picture, that the ``row`` of its items counts in; in single precision.
        class_texts: The text features of this run's classes, in label order; None if a backbone
            has to make them.
    """

    # Zero-shot accuracy is looked at before a run: labels and texts may be in different order.
    shifted = True
    features: dict[str, np.ndarray]
    class_texts: ClassTexts | None

    def __init__(self, cfg: Any) -> None:
        """Read, check, draw and subsample, see `datasets.base.CLIPDataset`."""
        super().__init__(cfg)
        # Only now the classes of the run have their names, of which a file may have changed some.
        if self.class_texts is not None:
            self.class_texts = texts_of(self.class_texts, self.classnames, self._names, self._kept)

    def read_splits(self, cfg: Any) -> Splits:
        """Read all files, and check that they belong together."""
        section = cfg.DATASET.get("FEATURES", {})
        option = {key: section.get(key, default) for key, default in values_of(OPTIONS).items()}
        directory = own_directory(self, own_options(cfg)["DIR"], "it holds the files of features")
        self.dataset_dir = self.image_dir = str(directory)
        if not option["TRAIN"] and not option["TEST"]:
            raise ValueError(
                "DATASET.NAME Features needs DATASET.FEATURES.TRAIN or DATASET.FEATURES.TEST, "
                "names of files in the directory DATASET.DIR"
            )
        parts = {p: read_part(directory, p, option) for p in PARTS if option[p.upper()]}
        # Whole arrays: draws and halves choose rows of them, so that nothing is copied here.
        self.features = {name: part.features for name, part in parts.items()}
        self.class_texts = read_texts(directory, option) if option["TEXT"] else None
        widths = {str(part.file): part.features.shape[-1] for part in parts.values()}
        if self.class_texts is not None:
            widths[self.class_texts.file] = self.class_texts.rows[0].shape[1]
            self._note_unused_prompts(cfg)
        check_widths(widths)
        # Checked as a split file is: what follows takes labels without gaps for granted.
        names = class_names(parts, self.class_texts, bool(cfg.DATASET.CLASSNAMES))
        splits = Splits(*(_items(parts.get(name), names, directory) for name in PARTS))
        check_labels(splits, str(directory))
        _require_rows(splits, names, directory)
        check_repeats(splits, str(directory))
        # For text features in label order: those of a half are found by position.
        self._names = names
        self._kept = kept_labels(splits, cfg.DATASET.SUBSAMPLE_CLASSES)
        return splits

    def _note_unused_prompts(self, cfg: Any) -> None:
        for key in ("PROMPT_PATH", "PROMPT_TEMPLATE"):
            if cfg.DATASET[key]:
                self.note(
                    f"DATASET.{key} {cfg.DATASET[key]!r} has no effect: the classes' texts are "
                    "features already, of DATASET.FEATURES.TEXT"
                )


def _items(part: Part | None, names: list[str], directory: Path) -> list[Datum]:
    """The rows of a part as items."""
    if part is None:
        return []
    # Below the data, as those of images: a run's record must not depend on the working directory.
    paths: Sequence[str] = [str(directory / path) for path in part.paths or ()]
    file = str(part.file)
    return [
        FeatureDatum(
            impath=paths[row] if paths else f"{file}#{row}",
            label=label,
            classname=names[label],
            file=file,
            row=row,
        )
        for row, label in enumerate(label_numbers(part, names))
    ]


def _require_rows(splits: Splits, names: list[str], directory: Path) -> None:
    """Refuse names at the end of the list without a row, which `check_labels` cannot know of."""
    present = len(splits.class_names())
    if present < len(names):
        part = "training" if splits.train else "test"
        raise ValueError(
            f"{directory}: {len(names)} class names, but no {part} features of "
            f"{names[present : present + 3]}; leave these names out"
        )
