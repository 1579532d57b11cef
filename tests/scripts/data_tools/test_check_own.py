"""``data.py check``: the bundled suite, data of the user's own, flags."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import data
from scripts.data_tools import output
from scripts.data_tools.check import find_unreadable
from tests.conftest import REPOSITORY


def test_unreadable_images_in_order(tmp_path):
    paths = []
    for number in range(70):  # more than two batches
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("L", (2, 2)).save(paths[-1])
    for number in (3, 69):
        Path(paths[number]).write_bytes(b"no picture")
    Path(paths[40]).unlink()
    assert [path for path, _ in find_unreadable(paths, 2)] == [paths[3], paths[40], paths[69]]


def test_suite_is_drawn_on_first_use_and_not_by_a_check(tmp_path, check):
    status, out, found = check("--root", tmp_path, "--datasets", "shapes", "shapes_v2", "--json")
    assert status == 0
    assert [entry["status"] for entry in found.values()] == ["on first use"] * 2
    assert found["shapes"]["known_counts"] == [960, 240, 1000]
    assert not list(tmp_path.iterdir())
    assert "drawn when a run asks for it" in check("--root", tmp_path, "--datasets", "shapes")[1]


def test_drawn_suite_is_checked(whole_shapes, tmp_path, check):
    status, _, found = check("--root", whole_shapes, "--datasets", "shapes_forms", "--json")
    assert (status, found["shapes_forms"]["status"]) == (0, "ok")
    assert (found["shapes_forms"]["classes"], found["shapes_forms"]["counts"]) == (
        8, [192, 48, 320],
    )  # fmt: skip
    shutil.copytree(Path(whole_shapes) / "shapes" / "forms", tmp_path / "shapes" / "forms")
    split = "split_zhou_ShapesForms.json"
    shutil.copy(Path(whole_shapes) / "shapes" / split, tmp_path / "shapes")
    status, out, _ = check("--root", tmp_path, "--datasets", "shapes_forms")
    assert (status, "was not drawn by this project" in out) == (1, True)
    (tmp_path / "shapes" / "version.txt").write_text("0\n")  # will be drawn anew
    status, out, _ = check("--root", tmp_path, "--datasets", "shapes_forms")
    assert (status, "on first use" in out) == (0, True)
    (tmp_path / "shapes" / "version.txt").write_text("1\n")  # but without checksums
    status, out, _ = check("--root", tmp_path, "--datasets", "shapes_forms")
    assert (status, "on first use" in out) == (0, True)
    shutil.copytree(Path(whole_shapes) / "shapes", tmp_path / "whole" / "shapes")
    image = next((tmp_path / "whole" / "shapes" / "forms").rglob("*.png"))
    image.unlink()
    assert check("--root", tmp_path / "whole", "--datasets", "shapes_forms")[0] == 0
    assert image.is_file()  # drawn again


def test_data_of_ones_own(tmp_path, touch, check):
    touch(tmp_path / "data/birds/train", [f"{bird}/{i}.jpg" for bird in "ab" for i in range(4)])
    touch(tmp_path / "data/birds/test", [f"{bird}/{i}.jpg" for bird in "ab" for i in range(2)])
    file = tmp_path / "birds.yaml"
    # Keys of a check, even a method's, do not matter here.
    file.write_text("DATASET: {NAME: Folder, DIR: birds, NUM_SHOTS: 1, SUBSAMPLE_CLASSES: base}\n"
                    "ALPHA: 1.5\n")  # fmt: skip
    words = ("--root", tmp_path / "data", "--dataset-config-file", file, "--json")
    status, _, found = check(*words)
    assert (status, list(found)) == (0, ["birds"])
    assert (found["birds"]["classes"], sum(found["birds"]["counts"])) == (2, 12)
    assert found["birds"]["known_counts"] is None
    shutil.rmtree(tmp_path / "data/birds/test/b")
    (tmp_path / "data/birds/test/b").mkdir()
    status, _, found = check(*words)
    assert (status, found["birds"]["status"]) == (1, "damaged")
    assert "hold no image directly" in found["birds"]["problem"]
    shutil.rmtree(tmp_path / "data/birds")
    status, _, found = check(*words)
    assert (status, found["birds"]["status"], found["birds"]["remedy"]) == (1, "missing", None)


def test_notes_are_passed_on(tmp_path, touch, check):
    touch(tmp_path / "birds", [f"{number}/{i}.jpg" for number in "12" for i in range(4)])
    file = tmp_path / "birds.yaml"
    file.write_text("DATASET: {NAME: Folder, DIR: birds}\n")
    status, out, _ = check("--root", tmp_path, "--dataset-config-file", file)
    assert status == 0
    assert "birds: note: Folder: the class names" in out


def test_what_is_left_out_and_what_contradicts_is_said(tmp_path, touch, check):
    touch(tmp_path / "birds", [f"{bird}/{i}.jpg" for bird in "ab" for i in range(4)])
    touch(tmp_path / "birds", ["__MACOSX/0.jpg", "a/list.txt"])
    file = tmp_path / "birds.yaml"
    file.write_text("DATASET: {NAME: Folder, DIR: birds}\n")
    words = ("--root", tmp_path, "--dataset-config-file", file)
    status, out, _ = check(*words)
    assert status == 0
    assert "birds: note: Folder: left out of" in out
    assert "1 file(s) ending in .txt (a/list.txt); 1 folder(s) named like" in out
    entry = ["a/0.jpg", 0, "a"]
    split = {"train": [entry, ["b/0.jpg", 1, "b"]], "val": [], "test": [entry]}
    (tmp_path / "birds" / "split.json").write_text(json.dumps(split))
    file.write_text("DATASET: {NAME: Split, DIR: birds, SPLIT_FILE: split.json}\n")
    status, out, _ = check(*words)
    assert status == 1
    assert "birds: damaged: " in out
    assert "split.json: 1 image(s) have a place in train and in test, first" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--datasets", "dtdd"], "--datasets: 'dtdd' is not available. Did you mean 'dtd'?"),
        (
            ["--protocol", "few-shot"],
            "--protocol: 'few-shot' is not available. Did you mean 'few_shot'?",
        ),
        (["--protocol", "cross_dataset", "--datasets", "dtd", "eurosat"], "one source"),
        (["--root", "/none/there"], "--root: no directory /none/there"),
        (["--dataset-config-file", "none.yaml"], "--dataset-config-file: no file none.yaml"),
        (["--dataset-config-file", "empty.yaml"], "DATASET.NAME is not set"),
        (["--dataset-config-file", "odd.yaml"], "DATASET: 'Foldr' is not available"),
        (["--workers", "-1"], "--workers: -1 is below 0"),
        (["--quick", "--full"], "not allowed with"),
    ],
)
def test_bad_input(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty.yaml").write_text("DATASET: {}\n")
    Path("odd.yaml").write_text("DATASET: {NAME: Foldr}\n")
    with pytest.raises(SystemExit) as stop:
        data.main(["check", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_default_root_need_not_exist(monkeypatch, tmp_path, check):
    for module in (data, output):
        monkeypatch.setattr(module, "work_folder", lambda: tmp_path)
    status, out, _ = check("--datasets", "dtd")
    assert status == 1
    assert "get it: python scripts/data.py fetch dtd\n" in out
    assert f"{tmp_path / 'data'} does not exist." in out
    assert not (tmp_path / "data").exists()


def test_every_config_is_checked(tmp_path, check):
    stems = {path.stem for path in (REPOSITORY / "configs/datasets").glob("*.yaml")}
    assert check("--root", tmp_path, "--json")[2].keys() == stems - {"folder", "split", "features"}


def test_directory_that_may_not_be_read(tmp_path, check, monkeypatch):
    (tmp_path / "dtd").mkdir()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    status, out, _ = check("--root", tmp_path, "--datasets", "dtd")
    assert status == 1
    assert f"dtd: damaged: [Errno 13] Permission denied: '{tmp_path / 'dtd'}'" in out


def test_features_of_ones_own(tmp_path, check):
    """Rows are counted; none of them is opened as an image, even by a full check."""
    folder = tmp_path / "data/birds"
    folder.mkdir(parents=True)
    labels = np.arange(12) % 3
    features = np.random.default_rng(0).normal(size=(12, 4))
    for part in ("train", "test"):
        np.savez(
            folder / f"{part}.npz", features=features, labels=labels, classnames=["a", "b", "c"]
        )
    file = tmp_path / "birds.yaml"
    files = 'FEATURES: {TRAIN: "train.npz", TEST: "test.npz"}'
    file.write_text(f'DATASET: {{NAME: Features, DIR: "birds", {files}}}')
    flags = ("--root", tmp_path / "data", "--dataset-config-file", file, "--full", "--json")
    status, _, found = check(*flags)
    assert (status, found["birds"]["status"]) == (0, "ok")
    assert (found["birds"]["classes"], found["birds"]["counts"]) == (3, [12, 0, 12])
    (folder / "test.npz").write_bytes(b"PK")
    status, out, found = check(*flags)
    assert (status, found["birds"]["status"]) == (1, "damaged")
    assert "damaged, half written" in out
