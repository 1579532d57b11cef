"""Own splits of class folders, with torchvision's readers as a second opinion."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torchvision import datasets as torchvision_datasets

from datasets import readers
from datasets.readers import list_images

EUROSAT_SIZES = {
    "AnnualCrop": 10, "Forest": 11, "HerbaceousVegetation": 12, "Highway": 13, "Industrial": 4,
    "Pasture": 5, "PermanentCrop": 6, "Residential": 7, "River": 8, "SeaLake": 9,
}  # fmt: skip
CALTECH_SIZES = {
    "BACKGROUND_Google": 5, "Faces": 10, "Faces_easy": 10, "Leopards": 6, "Motorbikes": 7,
    "airplanes": 8, "wild_cat": 9,
}  # fmt: skip


def write_folders(touch: Any, directory: Path, sizes: dict[str, int], pattern: str) -> None:
    for folder, size in sizes.items():
        touch(directory / folder, [pattern.format(folder, i) for i in range(1, size + 1)])


@pytest.fixture
def eurosat(tmp_path: Path, touch) -> Path:
    write_folders(touch, tmp_path / "eurosat" / "2750", EUROSAT_SIZES, "{}_{}.jpg")
    return tmp_path


@pytest.fixture
def caltech(tmp_path: Path, touch) -> Path:
    images = tmp_path / "caltech-101" / "101_ObjectCategories"
    write_folders(touch, images, CALTECH_SIZES, "image_{1:04d}.jpg")
    (images / "BACKGROUND_Google" / "tmp").touch()
    return tmp_path


@pytest.fixture
def dtd(tmp_path: Path, touch) -> Path:
    """The tree that dtd-r1.0.1.tar.gz unpacks to, with its own lists."""
    root = tmp_path / "dtd"
    sizes = {"zigzagged": 10, "banded": 10, "polka-dotted": 20}
    write_folders(touch, root / "dtd" / "images", sizes, "{}_{:04d}.jpg")
    (root / "dtd" / "images" / "waffled.orig").touch()
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for folder, size in sizes.items():
        for i in range(1, size + 1):
            lists[("train", "val", "test")[i % 3]].append(f"{folder}/{folder}_{i:04d}.jpg")
    touch(root / "dtd" / "labels", [])
    (root / "dtd" / "labels").mkdir()
    for part, names in lists.items():
        (root / "dtd" / "labels" / f"{part}1.txt").write_text("\n".join(names) + "\n")
    return root


@pytest.fixture
def food(tmp_path: Path, touch) -> Path:
    """The tree that food-101.tar.gz unpacks to; its own lists have no val."""
    root = tmp_path / "food-101"
    sizes = {"waffles": 8, "apple_pie": 12, "baby_back_ribs": 4}
    write_folders(touch, root / "images", sizes, "{1}.jpg")
    (root / "images" / ".DS_Store").touch()
    (root / "meta").mkdir()
    for part, first in (("train", 0), ("test", 1)):
        lists = {
            name: [f"{name}/{i}" for i in range(1, size + 1) if (i % 4 == 0) == first]
            for name, size in sizes.items()
        }
        (root / "meta" / f"{part}.json").write_text(json.dumps(lists))
    return tmp_path


def everything(dataset: Any) -> list[Any]:
    return [*dataset.train_x, *dataset.val, *dataset.test]


def sizes_per_class(part: list[Any]) -> list[int]:
    counts = Counter(item.label for item in part)
    return [counts[label] for label in sorted(counts)]


def test_eurosat(eurosat: Path, build) -> None:
    dataset = build("EuroSAT", eurosat, ALLOW_OWN_SPLIT=True)
    assert dataset.classnames == [
        "Annual Crop Land", "Forest", "Herbaceous Vegetation Land", "Highway or Road",
        "Industrial Buildings", "Pasture Land", "Permanent Crop Land", "Residential Buildings",
        "River", "Sea or Lake",
    ]  # fmt: skip
    assert sizes_per_class(dataset.train_x) == [5, 6, 6, 6, 2, 2, 3, 4, 4, 4]
    assert sizes_per_class(dataset.val) == [2, 2, 2, 3, 1, 1, 1, 1, 2, 2]
    assert sizes_per_class(dataset.test) == [3, 3, 4, 4, 1, 2, 2, 2, 2, 3]
    theirs = torchvision_datasets.EuroSAT(str(eurosat))
    assert {d.impath: d.label for d in everything(dataset)} == dict(theirs.samples)


def test_caltech101(caltech: Path, build) -> None:
    dataset = build("Caltech101", caltech, ALLOW_OWN_SPLIT=True)
    assert dataset.classnames == ["face", "leopard", "motorbike", "airplane", "wild_cat"]
    assert sizes_per_class(dataset.train_x) == [5, 3, 4, 4, 4]
    assert sizes_per_class(dataset.val) == [2, 1, 1, 2, 2]
    assert sizes_per_class(dataset.test) == [3, 2, 2, 2, 3]
    (caltech / "caltech101").symlink_to(caltech / "caltech-101")
    theirs = torchvision_datasets.Caltech101(str(caltech))
    ours = Counter(
        readers.CALTECH_NEW_NAMES.get(name, name)
        for name in (theirs.categories[label] for label in theirs.y)
        if name != "Faces_easy"
    )
    assert Counter(d.classname for d in everything(dataset)) == ours
    kept = [name for name in theirs.categories if name != "Faces_easy"]
    assert [readers.CALTECH_NEW_NAMES.get(name, name) for name in kept] == dataset.classnames


def test_describable_textures(dtd: Path, build) -> None:
    dataset = build("DescribableTextures", dtd, ALLOW_OWN_SPLIT=True)
    assert dataset.classnames == ["banded", "polka-dotted", "zigzagged"]
    assert sizes_per_class(dataset.train_x) == [5, 10, 5]
    assert sizes_per_class(dataset.val) == [2, 4, 2]
    assert sizes_per_class(dataset.test) == [3, 6, 3]
    theirs = {}
    for part in ("train", "val", "test"):
        other = torchvision_datasets.DTD(str(dtd.parent), split=part)
        assert other.classes == dataset.classnames
        theirs.update(zip(map(str, other._image_files), other._labels, strict=True))
    assert {d.impath: d.label for d in everything(dataset)} == theirs


def test_food101(food: Path, build) -> None:
    dataset = build("Food101", food, ALLOW_OWN_SPLIT=True)
    assert dataset.classnames == ["apple_pie", "baby_back_ribs", "waffles"]
    assert sizes_per_class(dataset.train_x) == [6, 2, 4]
    assert sizes_per_class(dataset.val) == [2, 1, 2]
    assert sizes_per_class(dataset.test) == [4, 1, 2]
    theirs = {}
    for part in ("train", "test"):
        other = torchvision_datasets.Food101(str(food), split=part)
        assert other.classes == dataset.classnames
        theirs.update(zip(map(str, other._image_files), other._labels, strict=True))
    assert {d.impath: d.label for d in everything(dataset)} == theirs


@pytest.mark.parametrize("name", ["EuroSAT", "Caltech101", "DescribableTextures", "Food101"])
def test_own_split_is_loud_and_the_same_every_time(name: str, build, request, capsys) -> None:
    fixture = {"EuroSAT": "eurosat", "Caltech101": "caltech", "Food101": "food",
               "DescribableTextures": "dtd"}[name]  # fmt: skip
    root = request.getfixturevalue(fixture)
    with pytest.raises(FileNotFoundError, match="ALLOW_OWN_SPLIT True makes a deterministic"):
        build(name, root)
    before = sorted(root.rglob("*"))
    runs = [build(name, root, ALLOW_OWN_SPLIT=True, SEED=seed) for seed in (1, 2)]
    assert "NOT COMPARABLE WITH PUBLISHED NUMBERS" in runs[0].notes[0]
    assert "WARNING: " + runs[0].notes[0] in capsys.readouterr().out
    for part in ("train_x", "val", "test"):
        first, second = ([d.impath for d in getattr(run, part)] for run in runs)
        assert first == second
    paths = [d.impath for d in everything(runs[0])]
    assert len(paths) == len(set(paths))
    assert sorted(root.rglob("*")) == before


def test_own_split_golden(eurosat: Path, build) -> None:
    """Pinned: a change of the split would change every number that was made on it.

    Made with: sort the ten names, random.Random(1).shuffle, take the first five.
    """
    dataset = build("EuroSAT", eurosat, ALLOW_OWN_SPLIT=True)
    crops = [Path(d.impath).stem for d in dataset.train_x if d.label == 0]
    assert crops == [f"AnnualCrop_{i}" for i in [6, 8, 9, 7, 5]]


def test_own_split_ignores_the_order_of_the_disk(eurosat: Path, build, monkeypatch) -> None:
    import os

    before = [d.impath for d in build("EuroSAT", eurosat, ALLOW_OWN_SPLIT=True).train_x]
    scandir = os.scandir

    class Reversed:
        def __init__(self, path: Any) -> None:
            with scandir(path) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self) -> Any:
            return iter(self.entries)

        def __exit__(self, *error: object) -> None:
            return None

    monkeypatch.setattr(os, "scandir", Reversed)
    assert [d.impath for d in build("EuroSAT", eurosat, ALLOW_OWN_SPLIT=True).train_x] == before


def test_lone_image_and_empty_tree_name_the_directory(eurosat: Path, touch, build) -> None:
    touch(eurosat / "eurosat" / "2750" / "Zoo", ["only.jpg", "notes.txt"])
    with pytest.raises(ValueError, match=r"2750/Zoo holds 1 image\(s\)"):
        build("EuroSAT", eurosat, ALLOW_OWN_SPLIT=True)
    (eurosat / "dtd" / "images").mkdir(parents=True)
    with pytest.raises(ValueError, match="dtd/images holds no class folders"):
        build("DescribableTextures", eurosat, ALLOW_OWN_SPLIT=True)


def test_listing_skips_what_is_hidden_or_no_image(tmp_path: Path, touch) -> None:
    touch(tmp_path, ["b.JPG", "a.png", "c.webp", ".d.jpg", "._e.jpg", "f.txt", "Thumbs.db"])
    assert list_images(tmp_path) == ["a.png", "b.JPG", "c.webp"]
