"""ImageNet and its shifts: trees of twelve classes, and twice of the real thousand."""

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from datasets.imagenet import read_wnid_names, standard_names
from datasets.rows import row_of
from tests.datasets.trees import NAMES, SHIFTS, V2, WNIDS, write_names


@pytest.fixture
def root(imagenets: Path) -> Path:
    return imagenets


def folders_by_label(items: list[Any]) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for item in items:
        found.setdefault(item.label, set()).add(Path(item.impath).parent.name)
    return found


def test_imagenet_is_labelled_by_wnid_and_tested_on_val(root: Path, build) -> None:
    dataset = build("ImageNet", root)
    assert dataset.classnames == list(NAMES.values())
    assert dataset.num_classes == 12
    assert dataset.lab2cname[2] == dataset.lab2cname[4] == "missile"
    assert (len(dataset.train_x), len(dataset.test)) == (72, 24)
    assert not dataset.val
    for items in (dataset.train_x, dataset.test):
        assert folders_by_label(items) == {label: {wnid} for label, wnid in enumerate(WNIDS)}
    assert dataset.relative_path(dataset.train_x[0]) == "train/n00000001/n00000001_0.JPEG"
    assert dataset.relative_path(dataset.test[-1]) == "val/n10000000/n10000000_1.JPEG"
    assert dataset.dataset_dir == str(root / "imagenet")


def test_draw_follows_the_rule_over_sorted_files(root: Path, tmp_path: Path, build) -> None:
    dataset = build("ImageNet", root, SEED=3, NUM_SHOTS=2, OUTPUT_DIR=tmp_path / "out")
    generator = random.Random(3)
    expected = []
    for wnid in WNIDS:
        names = [f"train/{wnid}/{wnid}_{i}.JPEG" for i in range(6)]
        expected += generator.sample(names, 2)
    assert [dataset.relative_path(d) for d in dataset.train_x] == expected
    record = json.loads((tmp_path / "out" / "fewshot_2_seed3.json").read_text())
    assert [entry[0] for entry in record["train"]] == expected
    assert record["val"] == []
    assert len(dataset.test) == 24


def test_two_classes_of_one_name_stay_two(root: Path, build) -> None:
    dataset = build("ImageNet", root, NUM_SHOTS=2)
    counts = Counter(d.label for d in dataset.train_x if d.classname == "missile")
    assert counts == {2: 2, 4: 2}
    names = root / "names.json"
    names.write_text('{"4": "projectile"}')
    renamed = build("ImageNet", root, CLASSNAMES=str(names))
    assert (renamed.lab2cname[2], renamed.lab2cname[4]) == ("missile", "projectile")


@pytest.mark.parametrize(
    ("name", "base"), [("ImageNet", 6), ("ImageNetV2", 6), ("ImageNetSketch", 6), ("ImageNetA", 2)]
)
def test_halves(name: str, base: int, root: Path, build) -> None:
    everything = build(name, root)
    halves = [build(name, root, SUBSAMPLE_CLASSES=half) for half in ("base", "new")]
    assert [half.classnames for half in halves] == [
        everything.classnames[:base],
        everything.classnames[base:],
    ]
    assert [len(half.test) for half in halves] == [len(everything.test) // 2] * 2
    assert all({d.label for d in half.test} == set(range(base)) for half in halves)


def test_imagenetv2_takes_folders_as_numbers(root: Path, build) -> None:
    dataset = build("ImageNetV2", root)
    assert dataset.classnames == list(NAMES.values())
    assert [d.label for d in dataset.test] == [label for label in range(12) for _ in range(2)]
    assert folders_by_label(dataset.test) == {label: {str(label)} for label in range(12)}
    assert dataset.lab2cname[10] == "junco"
    assert not dataset.train_x
    assert not dataset.val


def test_sketch_has_the_labels_of_imagenet(root: Path, build) -> None:
    dataset = build("ImageNetSketch", root)
    assert dataset.lab2cname == build("ImageNet", root).lab2cname
    assert folders_by_label(dataset.test) == {label: {wnid} for label, wnid in enumerate(WNIDS)}
    assert not dataset.train_x


@pytest.mark.parametrize("name", ["ImageNetA", "ImageNetR"])
def test_subsets_are_labelled_from_0_by_wnid(name: str, root: Path, build) -> None:
    dataset = build(name, root, NUM_SHOTS=16)
    assert folders_by_label(dataset.test) == {i: {WNIDS[3 * i + 2]} for i in range(4)}
    assert dataset.classnames == ["missile", "hen", "great grey owl", "toilet paper"]
    assert [Path(d.impath).name for d in dataset.test] == ["a.jpg", "b.jpg"] * 4
    assert not dataset.train_x


def test_list_in_the_own_directory_goes_first(root: Path, build, capsys) -> None:
    own = root / "imagenet-adversarial"
    write_names(own, {**NAMES, "n00000011": "rocket"})
    assert build("ImageNetA", root).classnames[0] == "rocket"
    assert f"Reading class names from {own / 'classnames.txt'}" in capsys.readouterr().out
    assert build("ImageNetR", root).classnames[0] == "missile"


def test_standard_names_are_those_of_the_field() -> None:
    """Golden: ends, repeats and the two cranes of OpenAI's list, with wnids of WordNet 3.0."""
    names = standard_names()
    assert list(names) == sorted(names)
    assert len(names) == 1000
    assert list(names.items())[:2] == [("n01440764", "tench"), ("n01443537", "goldfish")]
    assert list(names.items())[999] == ("n15075141", "toilet paper")
    repeated = {name: n for name, n in Counter(names.values()).items() if n > 1}
    assert repeated == {"missile": 2, "sunglasses": 2}
    labels = {wnid: label for label, wnid in enumerate(names)}
    assert names["n02012849"] == "crane bird"
    assert names["n03126707"] == "construction crane"
    assert [labels[wnid] for wnid in ("n03773504", "n04008634")] == [657, 744]
    assert [labels[wnid] for wnid in ("n04355933", "n04356056")] == [836, 837]


def test_a_thousand_folders_need_no_list(tmp_path: Path, touch, build, capsys) -> None:
    wnids = list(standard_names())
    for part in ("train", "val"):
        touch(tmp_path / "imagenet" / "images" / part, [f"{wnid}/1.JPEG" for wnid in wnids])
    touch(tmp_path / V2, [f"{label}/1.jpeg" for label in range(1000)])
    touch(tmp_path / SHIFTS["ImageNetA"], ["n01614925/1.jpg", "n01498041/1.jpg"])
    source, second = build("ImageNet", tmp_path), build("ImageNetV2", tmp_path)
    assert source.lab2cname == second.lab2cname
    assert (source.num_classes, len(source.test), len(second.test)) == (1000, 1000, 1000)
    assert (source.lab2cname[744], source.lab2cname[657]) == ("missile", "missile")
    assert [len(source.notes), len(second.notes)] == [1, 1]
    # ImageNet-A's first two classes, in the order of their wnids.
    assert build("ImageNetA", tmp_path).classnames == ["stingray", "bald eagle"]
    new = build("ImageNet", tmp_path, SUBSAMPLE_CLASSES="new")
    assert (new.num_classes, new.classnames[-1]) == (500, "toilet paper")
    assert "Reading class names" not in capsys.readouterr().out


def test_fewer_folders_than_a_thousand_are_counted(tmp_path: Path, touch, build) -> None:
    wnids = list(standard_names())[1:]
    touch(tmp_path / "imagenet" / "images" / "train", [f"{wnid}/1.JPEG" for wnid in wnids])
    (tmp_path / "imagenet" / "images" / "val").mkdir()
    with pytest.raises(ValueError, match=r"images/train holds 999 of the 1,000 .* n01440764"):
        build("ImageNet", tmp_path)
    touch(tmp_path / V2, [f"{label}/1.jpeg" for label in range(1, 1000)])
    with pytest.raises(ValueError, match=r"holds 999 folders, but must hold 0 to 999 .*: 0$"):
        build("ImageNetV2", tmp_path)


def test_images_side_by_side_are_explained(root: Path, touch, build) -> None:
    for folder in (root / "imagenet" / "images" / "val").iterdir():
        for image in folder.iterdir():
            image.rename(folder.parent / image.name)
        folder.rmdir()
    with pytest.raises(ValueError, match="val holds 0 of the 12 .* must be sorted into folders"):
        build("ImageNet", root)


@pytest.mark.parametrize("part", ["train", "val"])
def test_missing_part_is_named(part: str, root: Path, build) -> None:
    (root / "imagenet" / "images" / part).rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"no directory .*images/{part}; .* per wnid"):
        build("ImageNet", root)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("ImageNet", "imagenet/images/train/n99999999"),
        ("ImageNet", "imagenet/images/val/tench"),
        ("ImageNetSketch", SHIFTS["ImageNetSketch"] + "/n99999999"),
        ("ImageNetA", SHIFTS["ImageNetA"] + "/2"),
        ("ImageNetV2", f"{V2}/12"),
    ],
)
def test_unknown_folder_is_named(name: str, folder: str, root: Path, build) -> None:
    (root / folder).mkdir()
    with pytest.raises(ValueError, match="unknown|are no class of") as error:
        build(name, root)
    assert str((root / folder).parent) in str(error.value)
    assert Path(folder).name in str(error.value)
    assert str(root / "imagenet" / "classnames.txt") in str(error.value)


@pytest.mark.parametrize("name", [*SHIFTS, "ImageNetV2", "ImageNet"])
def test_empty_folder_is_named(name: str, root: Path, build) -> None:
    image = Path(build(name, root).test[0].impath)
    for file in image.parent.iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=f"{image.parent} holds no image"):
        build(name, root)


@pytest.mark.parametrize("name", [*SHIFTS, "ImageNetV2", "ImageNet"])
def test_missing_data_names_path_flag_and_source(name: str, tmp_path: Path, build) -> None:
    row = row_of(name)
    with pytest.raises(FileNotFoundError, match=r"--root is .* The layout is in DATASETS") as error:
        build(name, tmp_path)
    assert str(tmp_path / row.directory / row.images) in str(error.value)
    assert row.source in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("n01440764 tench\nn01443537\n", r"classnames\.txt:2: 'n01443537' is not 'wnid name'"),
        ("\n1440764 tench\n", r"classnames\.txt:2: '1440764 tench' is not"),
        ("n01440764 tench\nn01440764 carp\n", r"classnames\.txt:2: n01440764 is named a second"),
        ("\n", r"classnames\.txt is empty"),
    ],
)
def test_malformed_list_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "classnames.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_wnid_names(path)


def test_no_file_is_asked_about(root: Path, build, monkeypatch) -> None:
    """On a network disk a ``stat`` for each of a million images takes an hour."""
    asked: list[str] = []

    def watch(module: Any, name: str) -> None:
        function = getattr(module, name)

        def called(path: Any, *args: Any, **values: Any) -> Any:
            asked.append(str(path))
            return function(path, *args, **values)

        monkeypatch.setattr(module, name, called)

    for name in ("stat", "lstat"):
        watch(os, name)
    for name in ("exists", "isfile", "isdir"):
        watch(os.path, name)
    assert len(build("ImageNet", root).train_x) == 72
    assert not [path for path in asked if path.endswith(".JPEG")]
    assert len(asked) < 12
