"""Own splits of class folders."""

from pathlib import Path
from typing import Any

import pytest

from datasets.readers import list_images
from tests.datasets.trees import everything, sizes_per_class


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


def test_caltech101(caltech: Path, build) -> None:
    dataset = build("Caltech101", caltech, ALLOW_OWN_SPLIT=True)
    assert dataset.classnames == ["face", "leopard", "motorbike", "airplane", "wild_cat"]
    assert sizes_per_class(dataset.train_x) == [5, 3, 4, 4, 4]
    assert sizes_per_class(dataset.val) == [2, 1, 1, 2, 2]
    assert sizes_per_class(dataset.test) == [3, 2, 2, 2, 3]


def test_describable_textures(dtd: Path, build) -> None:
    dataset = build("DescribableTextures", dtd, ALLOW_OWN_SPLIT=True)
    assert dataset.classnames == ["banded", "polka-dotted", "zigzagged"]
    assert sizes_per_class(dataset.train_x) == [5, 10, 5]
    assert sizes_per_class(dataset.val) == [2, 4, 2]
    assert sizes_per_class(dataset.test) == [3, 6, 3]


def test_food101(food: Path, build) -> None:
    dataset = build("Food101", food, ALLOW_OWN_SPLIT=True)
    assert dataset.classnames == ["apple_pie", "baby_back_ribs", "waffles"]
    assert sizes_per_class(dataset.train_x) == [6, 2, 4]
    assert sizes_per_class(dataset.val) == [2, 1, 2]
    assert sizes_per_class(dataset.test) == [4, 1, 2]


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
