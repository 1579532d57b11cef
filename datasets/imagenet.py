"""ImageNet and its shifts, whose class folders are called by WordNet id (wnid) or numbered.

A class is its place among the sorted wnids, never its name: OpenAI's names say "missile" and
"sunglasses" twice each, so 1000 classes have 998 names.

Names come from ``classnames.txt`` ("wnid name" lines) in the dataset's directory or in
``imagenet/``, as CoOp has it; without one they are open_clip's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dassl.data.datasets import Datum
from datasets.classnames import WNID
from datasets.readers import list_directories, list_images, read_lines
from datasets.splits import Splits

if TYPE_CHECKING:
    from torch import Tensor

NAMES_FILE = "classnames.txt"
STANDARD = "ImageNet's standard list"


class ClassNames(NamedTuple):
    """Names by wnid, in the order of the sorted wnids, and where they come from."""

    by_wnid: dict[str, str]
    source: str


@cache
def standard_names() -> dict[str, str]:
    """The 1000 classes: names of open_clip (OpenAI's, corrected) by wnid.

    open_clip lists names only, in the order of the sorted wnids; the wnids are those of timm, which
    open_clip depends on.
    """
    # Imported when asked for: both take seconds to load, and only this file needs them here.
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    wnids = sorted(ImageNetInfo("imagenet-1k").label_names())
    return dict(zip(wnids, IMAGENET_CLASSNAMES, strict=True))


def find_names(dataset_dir: Path) -> ClassNames:
    """Read class names as :func:`names_of`, and log where a list of the user's was found."""
    names = names_of(dataset_dir)
    if names.source != STANDARD:
        print(f"Reading class names from {names.source}")
    return names


def names_of(dataset_dir: Path) -> ClassNames:
    """Read the nearest ``classnames.txt``, or take the standard names."""
    for directory in (dataset_dir, dataset_dir.parent / "imagenet"):
        path = directory / NAMES_FILE
        if path.is_file():
            return ClassNames(read_wnid_names(path), str(path))
    return ClassNames(standard_names(), STANDARD)


def imagenet_labels(
    wnids: Sequence[Sequence[str]], names: Mapping[str, str]
) -> list[list[int]] | None:
    """The labels of ImageNet that each class of a dataset, given by its wnids, stands for.

    ``names`` are ImageNet's by wnid, in label order. None if they are only a part of ImageNet, and
    lack a class.
    """
    label_of = {wnid: label for label, wnid in enumerate(names)}
    labels = [[label_of[wnid] for wnid in group if wnid in label_of] for group in wnids]
    return labels if all(labels) else None


def logits_of_classes(logits: Tensor, imagenet_labels: Sequence[Sequence[int]]) -> Tensor:
    """Score each class of a dataset by the best of the ImageNet classes that it stands for.

    ImageNet-A and -R select 200 of the 1000 columns. A class of ObjectNet may stand for several
    ("Alarm clock" for both analog and digital clock); the maximum makes a prediction right if any
    of them wins over all that other classes stand for. Columns of no class are left out.

    Args:
        logits: Of a classifier over the C classes of ImageNet, (B, C).
        imagenet_labels: For each of the K classes its columns, at least one: a dataset's
            ``imagenet_labels``.

    Returns:
        Logits over the dataset's own classes, (B, K).

    Raises:
        ValueError: A class has no column, or one that the logits lack.
    """
    import torch  # only here: what lists datasets has to start at once

    empty = [label for label, columns in enumerate(imagenet_labels) if not columns]
    if empty or not imagenet_labels:
        raise ValueError(f"every class must stand for a class of ImageNet; none for {empty}")
    used = [column for columns in imagenet_labels for column in columns]
    if min(used) < 0 or max(used) >= logits.shape[1]:
        raise ValueError(
            f"classes stand for ImageNet's {min(used)} to {max(used)}, but the classifier has "
            f"{logits.shape[1]} outputs; it must have been built over all classes of ImageNet"
        )
    widest = max(map(len, imagenet_labels))
    # The first column once more changes no maximum.
    filled = [[*columns, *[columns[0]] * (widest - len(columns))] for columns in imagenet_labels]
    index = torch.tensor(filled, device=logits.device)  # (K, G), at most G columns per class
    return logits[:, index].amax(-1)  # (B, K, G) -> (B, K)


def misnamed(
    classnames: Sequence[str], labels: Sequence[Sequence[int]], names: Sequence[str]
) -> list[str]:
    """A sentence for each class that has the name of another class of ImageNet.

    A class may have a name of its own; many with each other's names are in the wrong order.
    ``labels`` are those of ImageNet that each class stands for, ``names`` ImageNet's by label.
    """
    named: dict[str, set[int]] = {}
    for label, name in enumerate(names):
        named.setdefault(_plain(name), set()).add(label)
    return [
        f"class {label} is called {name!r}, but is ImageNet's {names[own[0]]!r}"
        for label, (name, own) in enumerate(zip(classnames, labels, strict=True))
        # A name that no class of ImageNet has was chosen by the user, and fits.
        if not named.get(_plain(name), set(own)) & set(own)
    ]


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def all_wnids(dataset_dir: Path, image_dir: Path) -> list[list[str]]:
    """The wnid of each label of ImageNet, ImageNet-Sketch and ImageNetV2."""
    return [[wnid] for wnid in names_of(dataset_dir).by_wnid]


def folder_wnids(dataset_dir: Path, image_dir: Path) -> list[list[str]]:
    """The wnid of each label of ImageNet-A and -R."""
    return [[wnid] for wnid in list_directories(image_dir)]


def read_wnid_names(path: Path) -> dict[str, str]:
    """Read "n01440764 tench" lines, in any order, into the order of the sorted wnids."""
    names: dict[str, str] = {}
    for where, line in read_lines(path, "DATASETS.md says what it holds"):
        wnid, name = (*line.split(None, 1), "")[:2]
        if not WNID.fullmatch(wnid) or not name.strip():
            raise ValueError(f"{where}: {line!r} is not 'wnid name', such as 'n01440764 tench'")
        if wnid in names:
            raise ValueError(f"{where}: {wnid} is named a second time")
        names[wnid] = name.strip()
    if not names:
        raise ValueError(f"{path} is empty; remove it to have the standard names")
    return dict(sorted(names.items()))


def imagenet(dataset_dir: Path, image_dir: Path) -> Splits:
    """ImageNet: ``train`` and ``val``, of which the latter is the test set.

    The test labels were never published, so the field tests on the validation images. The val split
    is therefore left empty: to select a model on it would be to select on the test set.
    """
    names = find_names(dataset_dir)
    for part in ("train", "val"):
        if not (image_dir / part).is_dir():
            raise FileNotFoundError(
                f"ImageNet: no directory {image_dir / part}; {image_dir} must hold train/ and val/ "
                "with a folder per wnid. The layout is in DATASETS.md."
            )
    train, test = (
        read_wnid_folders(image_dir / part, names, every_class=True) for part in ("train", "val")
    )
    return Splits(train, [], test)


def imagenet_sketch(dataset_dir: Path, image_dir: Path) -> Splits:
    """ImageNet-Sketch: all classes of ImageNet, test only."""
    return Splits([], [], read_wnid_folders(image_dir, find_names(dataset_dir), every_class=True))


def imagenet_subset(dataset_dir: Path, image_dir: Path) -> Splits:
    """ImageNet-A and -R: 200 classes, labelled 0..199 by their sorted wnids, test only.

    Accuracy is over these 200, as in both papers and in CoOp's tables.
    """
    return Splits([], [], read_wnid_folders(image_dir, find_names(dataset_dir), every_class=False))


def imagenetv2(dataset_dir: Path, image_dir: Path) -> Splits:
    """ImageNetV2: folders ``0`` to ``999`` are labels, to be taken as numbers; test only.

    Sorted as text (0, 1, 10, 100, ...) nearly all labels would be those of other classes.
    """
    names = find_names(dataset_dir)
    found = set(list_directories(image_dir))
    expected = [str(label) for label in range(len(names.by_wnid))]
    if found != set(expected):
        odd = min(found.symmetric_difference(expected))
        raise ValueError(
            f"{image_dir} holds {len(found):,} folders, but must hold 0 to {expected[-1]} for the "
            f"{len(expected):,} classes of {names.source}; first that is missing or unknown: {odd}"
        )
    items: list[Datum] = []
    for label, (folder, name) in enumerate(zip(expected, names.by_wnid.values(), strict=True)):
        items += read_folder(str(image_dir / folder), label, name)
    return Splits([], [], items)


def read_wnid_folders(directory: Path, names: ClassNames, *, every_class: bool) -> list[Datum]:
    """Read class folders called by wnid; labels follow the sorted wnids that are there.

    Files beside the folders are skipped. A folder outside of ``names`` is an error, and with
    ``every_class`` a missing one too.
    """
    # list_directories sorts, and a class is its place among the sorted wnids.
    wnids = list_directories(directory)
    unknown = [wnid for wnid in wnids if wnid not in names.by_wnid]
    if unknown:
        raise ValueError(
            f"{directory}: {len(unknown):,} folder(s) are no class of {names.source}, first "
            f"{unknown[0]!r}; folders are to be called by wnid, such as n01440764"
        )
    missing = [wnid for wnid in names.by_wnid if wnid not in wnids]
    if not wnids or (every_class and missing):
        raise ValueError(
            f"{directory} holds {len(wnids):,} of the {len(names.by_wnid):,} class folders of "
            f"{names.source}, first missing: {missing[0]}. Complete them (images lying side by "
            f"side must be sorted into folders), or list the classes of a subset in {NAMES_FILE}."
        )
    items: list[Datum] = []
    for label, wnid in enumerate(wnids):
        items += read_folder(str(directory / wnid), label, names.by_wnid[wnid])
    return items


def read_folder(directory: str, label: int, name: str) -> list[Datum]:
    """List one class's images, at least one, sorted, without asking the disk about each."""
    files = list_images(Path(directory))
    if not files:
        raise ValueError(f"{directory} holds no image; complete the data")
    # A million times: os.path.join would be most of the reading.
    prefix = os.path.join(directory, "")
    return [Datum(prefix + file, label, 0, name) for file in files]
