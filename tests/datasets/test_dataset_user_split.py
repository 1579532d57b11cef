import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from dassl.config import get_cfg_default, merge_file
from dassl.data import DataManager
from dassl.data.datasets import build_dataset
from datasets.folder import extend_cfg
from tests.conftest import REPOSITORY

SIZES = (3, 1, 2)
FOLDERS = {"jays": "blue jay", "w": "wren"}


@pytest.fixture
def birds(tmp_path: Path, write_split) -> Path:
    """The root of a set with a split file and an image directory: two classes, 3/1/2 each."""
    base = tmp_path / "birds"
    write_split(base / "split.json", base / "images", FOLDERS, SIZES)
    return tmp_path


def test_split_file_and_image_directory(birds: Path, build) -> None:
    dataset = build("Split", birds, DIR="birds", IMAGES="images", SPLIT_FILE="split.json")
    listed = json.loads((birds / "birds/split.json").read_text())
    for part, items in zip(listed, (dataset.train_x, dataset.val, dataset.test), strict=True):
        found = [[dataset.relative_path(d), d.label, d.classname] for d in items]
        assert found == listed[part]
        assert all(Path(d.impath).is_file() for d in items)
    assert dataset.classnames == ["blue jay", "wren"]
    assert dataset.notes == []


def test_the_shipped_file_needs_only_the_data(birds: Path) -> None:
    cfg = get_cfg_default()
    extend_cfg(cfg)
    merge_file(cfg, REPOSITORY / "configs/datasets/split.yaml")
    cfg.DATASET.ROOT = str(birds)
    dataset = build_dataset(cfg)
    assert type(dataset).__name__ == "Split"
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == (6, 2, 4)
    assert dataset.template == "A photo of a {},"


def test_paths_may_start_at_the_root_itself(tmp_path: Path, build, write_split) -> None:
    write_split(tmp_path / "split.json", tmp_path, FOLDERS, SIZES)
    dataset = build("Split", tmp_path, SPLIT_FILE="split.json")
    assert dataset.relative_path(dataset.train_x[0]) == "jays/img_000.jpg"


def test_test_only_split(tmp_path: Path, build, write_split) -> None:
    write_split(tmp_path / "split.json", tmp_path, FOLDERS, (0, 0, 2))
    dataset = build("Split", tmp_path, SPLIT_FILE="split.json", NUM_SHOTS=16)
    assert (len(dataset.test), dataset.classnames) == (4, ["blue jay", "wren"])
    assert not dataset.train_x


def test_shots_halves_and_names_work_as_everywhere(birds: Path, build, tmp_path) -> None:
    (tmp_path / "names.txt").write_text("blue\nbrown\n")
    values: dict[str, Any] = {"NUM_SHOTS": 2, "SUBSAMPLE_CLASSES": "new", "IMAGES": "images"}
    dataset = build(
        *("Split", birds), DIR="birds", SPLIT_FILE="split.json", OUTPUT_DIR=tmp_path / "out",
        CLASSNAMES=str(tmp_path / "names.txt"), **values
    )  # fmt: skip
    assert dataset.classnames == ["brown"]
    assert [d.label for d in dataset.train_x] == [0, 0]
    record = json.loads((tmp_path / "out/fewshot_2_seed1.json").read_text())
    assert [entry[1:] for entry in record["train"]] == [[0, "blue"]] * 2 + [[1, "brown"]] * 2


def test_missing_things_name_path_and_key(birds: Path, build) -> None:
    with pytest.raises(ValueError, match=r"Split needs DATASET\.SPLIT_FILE.*NAME Folder"):
        build("Split", birds, DIR="birds")
    with pytest.raises(FileNotFoundError, match=r"Split: no directory .*DATASET\.DIR \('bird'\)"):
        build("Split", birds, DIR="bird", SPLIT_FILE="split.json")
    with pytest.raises(FileNotFoundError, match=r"DATASET\.IMAGES \('jpg'\)"):
        build("Split", birds, DIR="birds", IMAGES="jpg", SPLIT_FILE="split.json")
    with pytest.raises(FileNotFoundError, match=r"'splits\.json'.*\['split\.json'\]"):
        build("Split", birds, DIR="birds", IMAGES="images", SPLIT_FILE="splits.json")


def test_missing_images_are_counted(birds: Path, build) -> None:
    with pytest.raises(FileNotFoundError, match=r"12 of the 12 images.*DATASET\.IMAGES"):
        build("Split", birds, DIR="birds", SPLIT_FILE="split.json")
    (birds / "birds/images/w/img_000.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"w/img_000\.jpg is missing.* 1 of the 12 images"):
        build("Split", birds, DIR="birds", IMAGES="images", SPLIT_FILE="split.json")


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (["../x.jpg", 0, "a"], "leaves the image directory"),
        (["x.jpg", "0", "a"], "label is not an integer"),
        (["x.jpg", 0], "not a list of three"),
    ],
)
def test_malformed_entries_are_shown(tmp_path: Path, build, entry, problem) -> None:
    (tmp_path / "split.json").write_text(json.dumps({"train": [entry], "val": [], "test": []}))
    with pytest.raises(ValueError, match=rf"split\.json: train\[0\].*{problem}"):
        build("Split", tmp_path, SPLIT_FILE="split.json")


@pytest.mark.parametrize("name", ["Folder", "Split"])
def test_corrupt_images_are_named_or_skipped(tmp_path: Path, make_cfg, name: str) -> None:
    """From YAML alone, as for every dataset: INPUT.ON_BAD_IMAGE."""
    listed: dict[str, list] = {"train": [], "val": [], "test": []}
    for part in ("train", "test"):
        for label, word in enumerate(("jay", "wren")):
            for number in range(2):
                path = tmp_path / part / word / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (label, number, 0)).save(path)
                listed[part].append([f"{part}/{word}/{number}.png", label, word])
    (tmp_path / "split.json").write_text(json.dumps(listed))
    bad = tmp_path / "test/wren/0.png"
    bad.write_bytes(bad.read_bytes()[:40])
    config = tmp_path / "mine.yaml"
    cfg = make_cfg(name, **({"SPLIT_FILE": "split.json"} if name == "Split" else {}))
    cfg.INPUT.TRANSFORMS = ()
    cfg.DATALOADER.NUM_WORKERS = 0
    with pytest.raises(OSError, match=r"Cannot decode the image.*test/wren/0\.png"):
        list(DataManager(cfg).test_loader)
    config.write_text(yaml.safe_dump({"INPUT": {"ON_BAD_IMAGE": "skip"}}))
    merge_file(cfg, config)
    loader = DataManager(cfg).test_loader
    assert sum(len(batch["label"]) for batch in loader) == 3
    assert list(loader.bad_images) == [str(bad)]


def test_an_empty_test_list_is_found_before_anything_else(tmp_path: Path, make_cfg, write_split):
    write_split(tmp_path / "split.json", tmp_path, FOLDERS, (3, 1, 0))
    cfg = make_cfg("Split", SPLIT_FILE="split.json")
    with pytest.raises(ValueError, match=r"Split: .* has no test image; add some"):
        build_dataset(cfg)
    cfg.TEST.NO_TEST = True
    assert len(build_dataset(cfg).train_x) == 6


def test_a_half_without_test_images_is_refused_the_other_read(tmp_path: Path, build, write_split):
    listed = write_split(tmp_path / "split.json", tmp_path, FOLDERS, (3, 1, 2))
    listed["test"] = [entry for entry in listed["test"] if entry[1] == 0]
    (tmp_path / "split.json").write_text(json.dumps(listed))
    values = {"SPLIT_FILE": "split.json"}
    with pytest.raises(ValueError, match="no test image of the classes DATASET.SUBSAMPLE_CLASSES"):
        build("Split", SUBSAMPLE_CLASSES="new", **values)
    assert build("Split", SUBSAMPLE_CLASSES="base", **values).notes == []
    (note,) = build("Split", **values).notes
    assert note.startswith("1 of 2 classes have no test image ('wren')")


def test_pictures_of_val_that_are_tested_on_are_noted(tmp_path: Path, build, write_split) -> None:
    listed = write_split(tmp_path / "split.json", tmp_path, FOLDERS, (3, 0, 2))
    (tmp_path / "split.json").write_text(json.dumps({**listed, "val": listed["test"]}))
    (note,) = build("Split", SPLIT_FILE="split.json", NUM_SHOTS=1).notes
    assert note.startswith("4 image(s), first")
    assert "are in val and test; a model selected on val (TEST.FINAL_MODEL best_val)" in note
