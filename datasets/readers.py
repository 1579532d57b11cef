"""Readers of the datasets' own files, for machines that lack the published split file.

Here are those of datasets that are class folders; those with lists are in ``datasets/lists.py``,
ImageNet and its shifts in ``datasets/imagenet.py``.

Each takes ``(dataset_dir, image_dir)`` and returns all images. The rules are CoOp's (50/20/30 per
class, or 80/20 of an official train-and-val list), but CoOp drew its split unseeded and then
published it: no rule can make that one again. Ours has a fixed seed and sorted listings, so it is
the same on every machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dassl.data.datasets import Datum
from datasets.sampling import split_three_ways
from datasets.splits import Splits

OWN_SPLIT_SEED = 1
OWN_SPLIT_RATIO = (0.5, 0.2, 0.3)
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
)  # fmt: skip

CALTECH_NEW_NAMES = {
    "airplanes": "airplane",
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
}
EUROSAT_NEW_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}


def list_directories(directory: Path) -> list[str]:
    """Names of the directories in a directory, sorted, without hidden ones."""
    with os.scandir(directory) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())


def list_images(directory: Path) -> list[str]:
    """Names of the image files in a directory, sorted, without hidden ones."""
    with os.scandir(directory) as entries:
        return sorted(
            e.name
            for e in entries
            if not e.name.startswith(".") and e.name.lower().endswith(IMAGE_SUFFIXES)
        )


def read_class_folders(
    image_dir: Path, *, ignored: tuple[str, ...] = (), new_names: Mapping[str, str] | None = None
) -> Splits:
    """Split a tree of class folders 50/20/30 per class; labels follow the sorted folder names.

    Args:
        image_dir: Directory of the class folders.
        ignored: Folders that are no class.
        new_names: Class names of folders whose own name is not readable.

    Raises:
        ValueError: There is no class folder, or one has fewer than two images.
    """
    names = new_names or {}
    folders = [name for name in list_directories(image_dir) if name not in ignored]
    if not folders:
        raise ValueError(f"{image_dir} holds no class folders; the layout is in DATASETS.md")
    groups = []
    for label, folder in enumerate(folders):
        directory = image_dir / folder
        files = list_images(directory)
        if len(files) < 2:
            raise ValueError(f"{directory} holds {len(files)} image(s); too few for a split")
        classname = names.get(folder, folder)
        groups.append(
            [
                Datum(impath=str(directory / file), label=label, classname=classname)
                for file in files
            ]
        )
    return Splits(*split_three_ways(groups, OWN_SPLIT_RATIO, OWN_SPLIT_SEED))


def describable_textures(dataset_dir: Path, image_dir: Path) -> Splits:
    """DTD: 47 class folders, 50/20/30."""
    return read_class_folders(image_dir)


def eurosat(dataset_dir: Path, image_dir: Path) -> Splits:
    """EuroSAT: ten class folders whose CamelCase names get readable ones, 50/20/30."""
    return read_class_folders(image_dir, new_names=EUROSAT_NEW_NAMES)


def caltech101(dataset_dir: Path, image_dir: Path) -> Splits:
    """Caltech101: class folders without the background and the second set of faces, 50/20/30."""
    return read_class_folders(
        image_dir, ignored=("BACKGROUND_Google", "Faces_easy"), new_names=CALTECH_NEW_NAMES
    )


def food101(dataset_dir: Path, image_dir: Path) -> Splits:
    """Food-101: class folders, 50/20/30; its own lists in ``meta`` have no val and go unused."""
    return read_class_folders(image_dir)
