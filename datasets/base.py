"""What every dataset does between its files and the engine.

``CLIPDataset``: read the splits, rename classes if asked, draw shots, take base or new classes.
``SplitFileDataset``: a ``CLIPDataset`` described by one row of ``datasets/rows.py``.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from dassl.config import user_path
from dassl.config.inputs import recording
from dassl.data.datasets import DatasetBase, Datum
from dassl.names import check_availability
from dassl.utils import write_json
from datasets.classnames import rename_classes, unreadable_names
from datasets.imagenet import imagenet_labels, names_of
from datasets.row import TEMPLATE, DatasetRow
from datasets.sampling import HALVES, draw_few_shot, kept_labels, subsample_classes
from datasets.splits import (
    PARTS,
    Splits,
    check_labels,
    check_repeats,
    read_split_file,
    require_images,
    split_notes,
    untested_classes,
)


class CLIPDataset(DatasetBase):
    """Images and class names of one dataset under one config.

    Subclasses implement ``read_splits``; everything else is common.
    """

    default_template: ClassVar[str] = TEMPLATE
    shifted: ClassVar[bool] = False  # as in ``DatasetRow``

    def __init__(self, cfg: Any) -> None:
        """Read, check, draw and subsample as ``cfg`` says.

        Args:
            cfg: Config with ``SEED``, ``OUTPUT_DIR`` and the ``DATASET`` section.

        Raises:
            FileNotFoundError: The data, the split file or an image is missing.
            ValueError: A config value is not allowed, a file is malformed or contradicts itself, or
                there is nothing to test on.
        """
        check_config(cfg)
        # What a reader of the results must know, such as that the split is not the published one.
        self.notes: list[str] = []
        self.shot_seed: int | None = None  # of the few-shot draw; None if nothing was drawn
        # For each class the labels of the ImageNet classes that it stands for, which
        # ``imagenet.logits_of_classes`` takes; None where there are none.
        self.imagenet_labels: list[list[int]] | None = None
        self.imagenet_names: list[str] = []  # all of ImageNet's, in label order; empty likewise
        self.links: dict[str, str] = {}  # real path, by path, of images known to be links
        self.root = data_root(cfg)
        self.dataset_dir = str(self.root)  # below it, once ``read_splits`` knows where
        self.image_dir = str(self.root)  # that stored paths are relative to
        self.template = cfg.DATASET.PROMPT_TEMPLATE or self.default_template
        splits = self.read_splits(cfg)
        for text in split_notes(splits, self.links):
            self.note(text)
        # Before the draw, which groups by label: names change nothing but the texts.
        if cfg.DATASET.CLASSNAMES:
            splits = rename_classes(splits, cfg.DATASET.CLASSNAMES)
        odd = unreadable_names(splits.class_names())
        if odd:
            self.note(
                f"{type(self).__name__}: {odd}; set DATASET.CLASSNAMES to a file with their names"
            )
        # The draw goes over all classes and the half is taken afterwards, as in CoOp: a seed's base
        # and new classes have the same shots whichever half a run is about.
        splits = self._take_shots(cfg, splits)
        half = cfg.DATASET.SUBSAMPLE_CLASSES
        if self.imagenet_labels is not None:
            self.imagenet_labels = [self.imagenet_labels[k] for k in kept_labels(splits, half)]
        splits = subsample_classes(splits, half)
        self._check_test(splits, half, needed=not cfg.TEST.NO_TEST)
        super().__init__(train_x=splits.train, val=splits.val, test=splits.test)

    def read_splits(self, cfg: Any) -> Splits:
        """Read all images of the dataset and set ``dataset_dir`` and ``image_dir``."""
        raise NotImplementedError(f"{type(self).__name__} must implement read_splits")

    def note(self, text: str) -> None:
        """Log a warning and keep it for the record of results."""
        print(f"WARNING: {text}")
        self.notes.append(text)

    def _check_test(self, splits: Splits, half: str, needed: bool) -> None:
        """Report missing test images now, not after training."""
        if not splits.test and needed:
            of = "" if half == "all" else f" of the classes DATASET.SUBSAMPLE_CLASSES {half}"
            raise ValueError(
                f"{type(self).__name__}: {self.dataset_dir} has no test image{of}; add some, or "
                "train without a test: TEST.NO_TEST True"
            )
        lacking = untested_classes(splits) if splits.test else ""
        if lacking:
            self.note(lacking)

    def _take_shots(self, cfg: Any, splits: Splits) -> Splits:
        shots = cfg.DATASET.NUM_SHOTS
        if shots < 0 or not splits.train:
            return splits
        # SEED -1 leaves the choice to us; the global generator, so that a seeded caller repeats it.
        self.shot_seed = cfg.SEED if cfg.SEED >= 0 else random.randrange(2**31)
        print(f"Few-shot draw with seed {self.shot_seed}")
        policy = cfg.VAL.POLICY if "VAL" in cfg else "min4"  # configs of Dassl's own lack it
        drawn = draw_few_shot(splits, shots, self.shot_seed, self.notes, policy)
        self._record_draw(cfg.OUTPUT_DIR, shots, drawn)
        return drawn

    def _record_draw(self, output_dir: str, shots: int, drawn: Splits) -> None:
        """Write what was drawn beside the run's results, for people: it is never read back.

        The draw is a function of split and seed, so a cache could only ever be stale.
        """
        if not output_dir:
            return
        directory = Path(user_path(output_dir)).resolve()
        if directory.is_relative_to(Path(self.dataset_dir).resolve()):
            print(f"The few-shot draw is not recorded: OUTPUT_DIR is inside {self.dataset_dir}")
            return
        directory.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {
            "dataset": type(self).__name__,
            "shots": shots,
            "seed": self.shot_seed,
        }
        for part in ("train", "val"):
            record[part] = [
                [self.relative_path(item), item.label, item.classname]
                for item in getattr(drawn, part)
            ]
        write_json(record, str(directory / f"fewshot_{shots}_seed{self.shot_seed}.json"))

    def relative_path(self, item: Datum) -> str:
        """Path of an image relative to the image directory, with forward slashes."""
        prefix = os.path.join(self.image_dir, "")
        # relpath is slow enough to be felt over the thousand classes of ImageNet.
        inside = item.impath.startswith(prefix)
        path = (
            item.impath[len(prefix) :] if inside else os.path.relpath(item.impath, self.image_dir)
        )
        return Path(path).as_posix()


class SplitFileDataset(CLIPDataset):
    """A dataset that a row of the table describes."""

    row: ClassVar[DatasetRow]

    def read_splits(self, cfg: Any) -> Splits:
        """Read the published split, or make an own one where that is allowed."""
        row = self.row
        if row.prepare is not None:
            with recording(None):  # it looks at the whole suite, not only at what the run reads
                row.prepare(self.root)
        dataset_dir = self.root / row.directory
        image_dir = dataset_dir / row.images
        self.dataset_dir, self.image_dir = str(dataset_dir), str(image_dir)
        require_directory(image_dir, row, self.root)
        if row.split_file is None:
            splits = self._read_files(dataset_dir, image_dir)
        elif (dataset_dir / row.split_file).is_file():
            split_file = dataset_dir / row.split_file
            print(f"Reading split from {split_file}")
            splits = read_split_file(split_file, image_dir)
            require_images(splits, split_file, row.source)
        else:
            splits = self._own_split(cfg, dataset_dir, image_dir)
        self._check_counts(splits)
        if row.wnids:
            # ImageNet's own list, whatever names the shifted set's directory gives its classes.
            names = names_of(self.root / "imagenet").by_wnid
            wnids = function_of(row.wnids)(dataset_dir, image_dir)
            self.imagenet_labels = imagenet_labels(wnids, names)
            self.imagenet_names = list(names.values()) if self.imagenet_labels else []
        return splits

    def _read_files(self, dataset_dir: Path, image_dir: Path) -> Splits:
        if not self.row.reader:
            raise ValueError(f"{self.row.name} has neither a split file nor a reader in the table")
        # A reader may err, and a user's copy too: both get the checks of a split file.
        splits = function_of(self.row.reader)(dataset_dir, image_dir)
        check_labels(splits, str(image_dir))
        check_repeats(splits, str(image_dir))
        require_images(splits, dataset_dir, self.row.source)
        return splits

    def _own_split(self, cfg: Any, dataset_dir: Path, image_dir: Path) -> Splits:
        row = self.row
        message = f"{row.name}: no split file {dataset_dir / str(row.split_file)}"
        if not row.reader:
            raise FileNotFoundError(f"{message}. {row.source}")
        if not cfg.DATASET.ALLOW_OWN_SPLIT:
            raise FileNotFoundError(
                f"{message}. {row.source} Published numbers are made on that split. To go on "
                "without it, DATASET.ALLOW_OWN_SPLIT True makes a deterministic 50/20/30 split, "
                "which is not comparable with published numbers."
            )
        splits = self._read_files(dataset_dir, image_dir)
        self.note(
            f"{message}; made an own split instead. "
            "RESULTS ON IT ARE NOT COMPARABLE WITH PUBLISHED NUMBERS."
        )
        return splits

    def _check_counts(self, splits: Splits) -> None:
        row = self.row
        if row.num_classes is not None and len(splits.class_names()) != row.num_classes:
            self.note(
                f"{row.name}: {len(splits.class_names())} classes, known are {row.num_classes}"
            )
        sizes = tuple(len(part) for part in splits)
        if row.counts is not None and sizes != row.counts:
            self.note(
                f"{row.name}: {'/'.join(map(str, sizes))} {'/'.join(PARTS)} images, known are "
                f"{'/'.join(map(str, row.counts))}; results may not be comparable"
            )


def function_of(path: str) -> Callable[[Path, Path], Any]:
    """The function of this package that a row names, such as ``readers.oxford_pets``."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(f"datasets.{module}"), name)


def check_config(cfg: Any) -> None:
    """Refuse values of the DATASET section that no dataset can serve, before reading anything."""
    shots = cfg.DATASET.NUM_SHOTS
    if shots == 0 or shots < -1:
        raise ValueError(
            f"DATASET.NUM_SHOTS is {shots}; allowed are -1 (all images) and 1, 2, 4, ...; "
            "for zero-shot evaluation leave it at -1 and choose a zero-shot trainer"
        )
    check_availability(cfg.DATASET.SUBSAMPLE_CLASSES, HALVES, "DATASET.SUBSAMPLE_CLASSES")


def data_root(cfg: Any) -> Path:
    """Absolute path of ``--root``; the working directory if that is empty."""
    return Path(os.path.abspath(user_path(cfg.DATASET.ROOT)))


def require_directory(image_dir: Path, row: DatasetRow, root: Path) -> None:
    """Refuse a missing image directory, by a message that says how to get the data."""
    if image_dir.is_dir():
        return
    inside = "/".join(filter(None, (row.directory, row.images)))
    raise FileNotFoundError(
        f"{row.name}: no directory {image_dir}. --root is {root} and must hold {inside}/. "
        f"{row.source} The layout is in DATASETS.md."
    )
