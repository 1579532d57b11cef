"""``data.py check`` on small trees in the official layouts."""

# ruff: noqa: F811 - fixtures are imported
import json
import os
import shutil

import pytest

from datasets import table
from datasets.rows import row_of
from scripts.data_tools import check as data_check
from scripts.jobs.protocols import FEW_SHOT_DATASETS, IMAGENET_SHIFTS, SUITE

# The trees that the readers are tested on.
from tests.datasets.test_dataset_table import PUBLISHED, tree  # noqa: F401
from tests.datasets.trees import aircraft, imagenets, paint  # noqa: F401

CROSS = {*FEW_SHOT_DATASETS, *IMAGENET_SHIFTS}


@pytest.fixture
def dtd(tree, know):
    """A whole copy of DTD as the table knows it; its root."""
    know("DescribableTextures", 3, (9, 6, 12))
    return tree("DescribableTextures")


@pytest.fixture
def everything(tree, imagenets, aircraft, know):
    """All sets of the cross-dataset protocol below one root."""
    for name in PUBLISHED:
        base = tree(name)
        know(name, 3, (9, 6, 12))
    for directory in aircraft.iterdir():
        if directory != base:
            directory.rename(base / directory.name)
    sizes = {"ImageNet": (12, (72, 0, 24)), "ImageNetV2": (12, (0, 0, 24)),
             "ImageNetSketch": (12, (0, 0, 36)), "ImageNetA": (4, (0, 0, 8)),
             "ImageNetR": (4, (0, 0, 8)), "FGVCAircraft": (4, (12, 12, 12))}  # fmt: skip
    for name, size in sizes.items():
        know(name, *size)
    return base


def test_whole_dataset_is_ok(dtd, check):
    status, out, _ = check("--root", dtd, "--datasets", "dtd")
    assert status == 0
    row = next(line for line in out.splitlines() if line.startswith("dtd"))
    assert row.split() == ["dtd", "ok", "3", "9/6/12", "yes"]
    assert f"free disk at {dtd}: " in out


def test_json(dtd, check, capsys):
    status, out, found = check("--root", dtd, "--datasets", "DescribableTextures", "--json")
    content = json.loads(out)
    assert status == 0
    assert content["ok"] is True
    assert content["root"] == str(dtd)
    assert content["free_bytes"] == pytest.approx(shutil.disk_usage(dtd).free, rel=0.1)
    assert found["dtd"].pop("seconds") < 5
    assert found["dtd"] == {
        "config": "dtd", "name": "DescribableTextures", "directory": str(dtd / "dtd"),
        "status": "ok", "required": True, "problem": None, "remedy": None, "classes": 3,
        "counts": [9, 6, 12], "known_classes": 3, "known_counts": [9, 6, 12], "notes": [],
        "unreadable": [],
    }  # fmt: skip


@pytest.mark.parametrize("name", [*PUBLISHED, "ImageNet", "ImageNetV2", "ImageNetSketch",
                                  "ImageNetA", "ImageNetR", "FGVCAircraft"])  # fmt: skip
def test_every_layout(name, everything, check):
    config = row_of(name).config
    status, _, found = check("--root", everything, "--datasets", config, "--json")
    row = getattr(table, name).row
    assert (status, found[config]["status"]) == (0, "ok")
    assert found[config]["counts"] == list(row.counts)
    # What is read is what a run reads: without its images it is incomplete or damaged.
    images = everything / row.directory / row.images
    last = max(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    last.unlink()
    status, _, found = check("--root", everything, "--datasets", config, "--json")
    assert (status, found[config]["status"]) == (1, "incomplete")
    shutil.rmtree(everything / row.directory)
    status, _, found = check("--root", everything, "--datasets", config, "--json")
    assert (status, found[config]["status"]) == (1, "missing")
    assert f"fetch {config}" in found[config]["remedy"]


def test_missing_images_are_counted_and_the_first_named(dtd, check):
    for number in (1, 3):
        (dtd / f"dtd/images/a/img_00{number}.jpg").unlink()
    status, out, found = check("--root", dtd, "--datasets", "dtd", "--json")
    assert status == 1
    assert found["dtd"]["status"] == "incomplete"
    problem = found["dtd"]["problem"]
    assert problem.startswith(f"{dtd / 'dtd/images/a/img_001.jpg'} is missing, and with it 2 of")
    assert found["dtd"]["remedy"].startswith("complete it, or move what is wrong out of the way")
    assert f"python scripts/data.py fetch dtd --root {dtd}" in found["dtd"]["remedy"]


def test_missing_split_file_is_incomplete(dtd, check):
    (dtd / "dtd" / "split_zhou_DescribableTextures.json").unlink()
    status, out, _ = check("--root", dtd, "--datasets", "dtd")
    assert status == 1
    assert "dtd: incomplete: no split file " in out
    assert "split_zhou_DescribableTextures.json, which published numbers are made on" in out
    assert f"\n  get it: python scripts/data.py fetch dtd --root {dtd}\n" in out


def test_missing_image_directory_is_incomplete(dtd, check):
    shutil.rmtree(dtd / "dtd" / "images")
    status, out, _ = check("--root", dtd, "--datasets", "dtd")
    assert (status, f"dtd: incomplete: no images in {dtd / 'dtd/images'}" in out) == (1, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "found list"),
        ('{"train": [["a.jpg", 0]], "val": [], "test": []}', "not a list of three"),
        ('{"train": [["a.jpg", 1, "x"]], "val": [], "test": []}', "labels must run"),
    ],
)
def test_malformed_split_file_is_damaged(dtd, check, content, message):
    (dtd / "dtd" / "split_zhou_DescribableTextures.json").write_text(content)
    status, out, _ = check("--root", dtd, "--datasets", "dtd")
    assert status == 1
    assert "dtd: damaged: " in out
    assert message in out


@pytest.mark.parametrize(
    ("classes", "counts", "status", "problem"),
    [
        (47, (9, 6, 12), "damaged", "3 classes, known are 47"),
        (3, (10, 6, 12), "incomplete", "9/6/12 train/val/test images, known are 10/6/12"),
        (3, (8, 6, 12), "damaged", "9/6/12 train/val/test images, known are 8/6/12"),
        (47, (2820, 1128, 1692), "incomplete",
         "3 classes, known are 47; 9/6/12 train/val/test images, known are 2,820/1,128/1,692"),
    ],
)  # fmt: skip
def test_other_counts_than_known(dtd, know, check, classes, counts, status, problem):
    know("DescribableTextures", classes, counts)
    code, _, found = check("--root", dtd, "--datasets", "dtd", "--json")
    assert (code, found["dtd"]["status"], found["dtd"]["problem"]) == (1, status, problem)


def test_unsorted_validation_images_are_explained(everything, check):
    images = everything / "imagenet" / "images" / "val"
    for image in list(images.rglob("*.JPEG")):
        image.rename(images / image.name)
    for folder in [path for path in images.iterdir() if path.is_dir()]:
        folder.rmdir()
    status, out, _ = check("--root", everything, "--datasets", "imagenet")
    assert status == 1
    assert "imagenet: damaged: " in out
    assert "must be sorted into folders" in out
    assert "by hand: python scripts/data.py fetch imagenet" in out


def test_protocol_needs_the_field(everything, check):
    status, _, found = check("--root", everything, "--protocol", "cross_dataset", "--json")
    assert status == 0
    assert found.keys() == CROSS
    assert all(entry["required"] for entry in found.values())
    shutil.rmtree(everything / "imagenet-rendition")
    status, _, found = check("--root", everything, "--protocol", "cross_dataset", "--json")
    assert status == 1
    assert [name for name, entry in found.items() if entry["status"] != "ok"] == ["imagenet_r"]
    for protocol in ("base2novel", "few_shot"):
        status, _, found = check("--root", everything, "--protocol", protocol, "--json")
        assert (status, found.keys()) == (0, set(FEW_SHOT_DATASETS))


def test_protocol_on_named_datasets(dtd, check):
    status, _, found = check(
        "--root", dtd, "--protocol", "base2novel", "--datasets", "dtd,shapes", "--json"
    )
    assert (status, list(found)) == (0, ["dtd", "shapes"])
    status, _, found = check(
        "--root", dtd, "--protocol", "cross_dataset", "--datasets", "shapes", "--json"
    )
    assert (status, found.keys()) == (0, set(SUITE))


def test_nothing_is_required_where_nothing_is_named(dtd, check):
    status, out, found = check("--root", dtd, "--json")
    assert status == 0
    assert found.keys() >= {*CROSS, *SUITE, "objectnet"}
    assert not found.keys() & {"folder", "split"}  # these show users how to write theirs
    assert found["eurosat"]["status"] == "missing"
    assert not any(entry["required"] for entry in found.values())
    (dtd / "dtd/images/a/img_001.jpg").unlink()
    assert check("--root", dtd)[0] == 1  # but what is there must be whole
    assert "required" not in check("--root", dtd)[1].splitlines()[0]


def test_quick_lists_no_image(dtd, check, monkeypatch):
    (dtd / "dtd/images/a/img_001.jpg").unlink()
    monkeypatch.setattr(data_check, "build_dataset", None)
    status, _, found = check("--root", dtd, "--datasets", "dtd", "--quick", "--json")
    assert (status, found["dtd"]["status"], found["dtd"]["counts"]) == (0, "ok", None)
    (dtd / "dtd" / "split_zhou_DescribableTextures.json").unlink()
    assert check("--root", dtd, "--datasets", "dtd", "--quick")[0] == 1


def test_no_image_is_asked_about_alone(dtd, check, monkeypatch):
    """Directories are listed once: a ``stat`` per file of a network disk takes hours."""
    asked = []

    def watch(module, name):
        function = getattr(module, name)

        def called(path, *args, **values):
            asked.append(str(path))
            return function(path, *args, **values)

        monkeypatch.setattr(module, name, called)

    for name in ("stat", "lstat"):
        watch(os, name)
    for name in ("exists", "isfile", "isdir"):
        watch(os.path, name)
    assert check("--root", dtd, "--datasets", "dtd")[0] == 0
    assert not [path for path in asked if path.endswith(".jpg")]


@pytest.mark.parametrize("workers", [0, 2])
def test_full_decodes_every_image(dtd, check, workers):
    paint(dtd)
    words = ("--root", dtd, "--datasets", "dtd", "--full", "--workers", workers, "--json")
    assert check(*words)[0] == 0
    cut, empty, page = (dtd / f"dtd/images/c_d/img_00{n}.jpg" for n in (2, 5, 8))
    cut.write_bytes(cut.read_bytes()[:500])
    empty.write_bytes(b"")
    page.write_text("<html>404</html>")
    status, _, found = check(*words)
    assert (status, found["dtd"]["status"]) == (1, "damaged")
    assert dict(found["dtd"]["unreadable"]).keys() == {str(cut), str(empty), str(page)}
    assert "truncated" in dict(found["dtd"]["unreadable"])[str(cut)].lower()
    assert found["dtd"]["problem"].startswith(f"3 image(s) cannot be read, first {cut}: ")
    assert found["dtd"]["counts"] == [9, 6, 12]
    # Without --full nobody opens them.
    assert check("--root", dtd, "--datasets", "dtd")[0] == 0
