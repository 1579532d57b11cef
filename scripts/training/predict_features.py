"""``train.py --predict`` with files of features in place of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from yacs.config import CfgNode

from dassl.config import user_path
from dassl.data.datasets import DatasetBase, Datum
from dassl.data.features.arrays import READ_SUFFIXES, read_arrays
from datasets.base import data_root
from datasets.feature_files import (
    ClassTexts,
    check_widths,
    checked_features,
    read_texts,
    texts_of,
)
from datasets.features import FeatureDatum

NAME = "Features"


def take_input(cfg: CfgNode, patterns: Sequence[str], classnames: list[str]) -> FeatureRows | None:
    """The rows to classify where ``--predict`` names files of features; None for images.

    A run on features classifies images too, by a changed ``cfg``, if a backbone made its texts.

    Raises:
        ValueError: Features for a run on images, or images for a run without an image encoder.
    """
    files = [Path(user_path(pattern)) for pattern in patterns]
    given = [file for file in files if _holds_features(file)]
    if given and cfg.DATASET.NAME == NAME and len(given) == len(files):
        return FeatureRows(cfg, given, classnames)
    if given:
        raise ValueError(
            f"--predict: {given[0]} holds features, which need a run on DATASET.NAME Features, "
            f"this one is on {cfg.DATASET.NAME}; give features alone to such a run, or images"
        )
    # Images from here on.
    fix = f"give a file of features instead ({', '.join(READ_SUFFIXES[:5])}, ...)"
    encode_images_too(cfg, "--predict", fix)
    return None


def encode_images_too(cfg: CfgNode, flag: str, fix: str) -> None:
    """Let a run on features classify images, by a changed ``cfg``; others can already.

    Raises:
        ValueError: Its texts were given as features too; the message begins with ``flag`` and ends
            with what to do, ``fix``.
    """
    if cfg.DATASET.NAME != NAME:
        return
    if cfg.DATASET.FEATURES.TEXT:
        raise ValueError(
            f"{flag}: the run was made on given image and text features, so there is no encoder of "
            f"images; {fix}"
        )
    cfg.defrost()
    cfg.DATASET.NAME = "Folder"  # data of the user's own too, but images
    cfg.freeze()


def _holds_features(path: Path) -> bool:
    return path.suffix.lower() in READ_SUFFIXES or (path / "state.json").is_file()


class FeatureRows(DatasetBase):
    """A dataset of class names and of rows of features whose classes are unknown.

    Args:
        cfg: Config of the run; its DATASET section says how the array is called, and where the text
            features are.
        files: Files of features (N, D).
        classnames: In label order.
    """

    # What methods ask of datasets besides, see datasets.base.CLIPDataset.
    shifted = False
    imagenet_names = ()
    imagenet_labels = None
    template = ""

    def __init__(self, cfg: CfgNode, files: Sequence[Path], classnames: list[str]) -> None:
        option: dict[str, Any] = dict(cfg.DATASET.FEATURES)
        key = option["KEY"]
        parts: list[np.ndarray] = []
        items: list[Datum] = []
        for file in files:
            if not file.exists():
                raise FileNotFoundError(f"--predict: no file {file}")
            found, present = read_arrays(file, (key, "paths"))
            if key not in found:
                raise ValueError(
                    f"--predict: {file} has no array {key!r} (DATASET.FEATURES.KEY), only {present}"
                )
            features = checked_features(found[key], f"{file}: {key}", (2,))
            paths = found.get("paths") or [f"{file}#{row}" for row in range(len(features))]
            first = sum(map(len, parts))
            items += [
                FeatureDatum(path, 0, 0, classnames[0], str(file), first + row)
                for row, path in enumerate(paths)
            ]
            parts.append(features)
        super().__init__(test=items)
        widths = {str(file): part.shape[1] for file, part in zip(files, parts, strict=True)}
        self.class_texts: ClassTexts | None = None
        if option["TEXT"]:
            texts = read_texts(data_root(cfg) / cfg.DATASET.DIR, option)
            # The run's classes are all there are, whatever half of a dataset they were.
            every = list(range(len(classnames)))
            self.class_texts = texts_of(texts, classnames, classnames, every)
            widths[self.class_texts.file] = self.class_texts.rows[0].shape[1]
        check_widths(widths)
        self.features = {"test": np.concatenate(parts)}
        # Set by hand, as DatasetBase would derive them from the made-up labels.
        self._classnames, self._num_classes = classnames, len(classnames)
        self._lab2cname = dict(enumerate(classnames))
