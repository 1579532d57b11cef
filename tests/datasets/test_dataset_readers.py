"""Own splits from the official files, with torchvision's readers as a second opinion."""

from __future__ import annotations

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
PETS = {"Abyssinian": 1, "american_bulldog": 2, "Egyptian_Mau": 3}


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
def pets(tmp_path: Path, touch) -> Path:
    """Lists like the official ones, which begin with comments and are sorted by name."""
    root = tmp_path / "oxford_pets"
    for part, first in (("trainval", 0), ("test", 100)):
        lines = ["#Image CLASS-ID SPECIES BREED ID"] if part == "trainval" else []
        for breed, label in PETS.items():
            names = [f"{breed}_{first + i}" for i in range(10 + label)]
            touch(root / "images", [f"{name}.jpg" for name in names])
            lines += [f"{name} {label} 1 1" for name in names]
        touch(root / "annotations", [f"{part}.txt"])
        (root / "annotations" / f"{part}.txt").write_text("\n".join(lines) + "\n")
    (root / "images" / "Abyssinian_0.mat").touch()
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


def test_oxford_pets(pets: Path, build) -> None:
    dataset = build("OxfordPets", pets, ALLOW_OWN_SPLIT=True)
    assert dataset.classnames == ["abyssinian", "american_bulldog", "egyptian_mau"]
    assert sizes_per_class(dataset.train_x) == [9, 10, 10]
    assert sizes_per_class(dataset.val) == [2, 2, 3]
    (pets / "oxford-iiit-pet").symlink_to(pets / "oxford_pets")
    for part, ours in (
        ("trainval", dataset.train_x + dataset.val),
        ("test", dataset.test),
    ):
        path = pets / "oxford-iiit-pet" / "annotations" / f"{part}.txt"
        text = path.read_text()
        # torchvision does not know the comments that the full list of the archive begins with.
        path.write_text("\n".join(line for line in text.splitlines() if line[0] != "#"))
        theirs = torchvision_datasets.OxfordIIITPet(str(pets), split=part)
        assert {Path(d.impath).name: d.label for d in ours} == {
            path.name: label for path, label in zip(theirs._images, theirs._labels, strict=True)
        }
        assert [name.replace("_", " ").title() for name in dataset.classnames] == theirs.classes


def test_official_test_list_of_pets_is_kept_in_order(pets: Path, build) -> None:
    dataset = build("OxfordPets", pets, ALLOW_OWN_SPLIT=True)
    names = [Path(d.impath).stem for d in dataset.test]
    assert names == [f"{b}_{100 + i}" for b, label in PETS.items() for i in range(10 + label)]


@pytest.mark.parametrize("name", ["EuroSAT", "Caltech101", "OxfordPets", "DescribableTextures"])
def test_own_split_is_loud_and_the_same_every_time(name: str, build, request, capsys) -> None:
    fixture = {"EuroSAT": "eurosat", "Caltech101": "caltech", "OxfordPets": "pets",
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


@pytest.mark.parametrize(
    "line", ["Abyssinian_1 1 1", "Abyssinian_1 one 1 1", "Abyssinian_1 0 1 1", "a b c d e"]
)
def test_malformed_line_of_pets_is_named(pets: Path, build, line: str) -> None:
    path = pets / "oxford_pets" / "annotations" / "test.txt"
    path.write_text(f"Abyssinian_100 1 1 1\n\n{line}\n")
    with pytest.raises(ValueError, match=r"test\.txt:3: ") as error:
        build("OxfordPets", pets, ALLOW_OWN_SPLIT=True)
    assert line in str(error.value)


def test_class_numbers_of_pets_without_images_are_refused(pets: Path, build) -> None:
    path = pets / "oxford_pets" / "annotations" / "trainval.txt"
    path.write_text(path.read_text() + "Abyssinian_100 5 1 1\n")
    with pytest.raises(ValueError, match="oxford_pets/images: labels must run .* no image has 3"):
        build("OxfordPets", pets, ALLOW_OWN_SPLIT=True)


def test_missing_list_or_image_of_pets_is_named(pets: Path, build) -> None:
    (pets / "oxford_pets" / "images" / "Abyssinian_3.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"Abyssinian_3\.jpg is missing.* 1 of the 72"):
        build("OxfordPets", pets, ALLOW_OWN_SPLIT=True)
    (pets / "oxford_pets" / "annotations" / "trainval.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"trainval\.txt; unpack annotations\.tar\.gz"):
        build("OxfordPets", pets, ALLOW_OWN_SPLIT=True)


def test_listing_skips_what_is_hidden_or_no_image(tmp_path: Path, touch) -> None:
    touch(tmp_path, ["b.JPG", "a.png", "c.webp", ".d.jpg", "._e.jpg", "f.txt", "Thumbs.db"])
    assert list_images(tmp_path) == ["a.png", "b.JPG", "c.webp"]
