import json
import os
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dassl.data.datasets import Datum
from datasets.splits import (
    Splits,
    check_labels,
    check_repeats,
    missing_files,
    read_split_file,
    require_images,
    split_notes,
    untested_classes,
)

GOOD = {
    "train": [["a/1.jpg", 0, "cat"], ["b/1.jpg", 1, "dog"]],
    "val": [["a/2.jpg", 0, "cat"]],
    "test": [["b/2.jpg", 1, "dog"]],
}


def write(directory: Path, content: object) -> Path:
    path = directory / "split_zhou_Pets.json"
    path.write_text(json.dumps(content))
    return path


def test_reads_every_entry_below_the_image_directory(tmp_path: Path) -> None:
    splits = read_split_file(write(tmp_path, GOOD), tmp_path / "images")
    assert [(d.impath, d.label, d.classname) for d in splits.train] == [
        (str(tmp_path / "images" / "a" / "1.jpg"), 0, "cat"),
        (str(tmp_path / "images" / "b" / "1.jpg"), 1, "dog"),
    ]
    assert [d.impath for d in splits.val] == [str(tmp_path / "images/a/2.jpg")]
    assert [d.label for d in splits.test] == [1]
    assert splits.class_names() == ["cat", "dog"]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (["a/2.jpg", 0], "not a list of three"),
        ({"path": "a/2.jpg"}, "not a list of three"),
        ([7, 0, "cat"], "the path is not a text"),
        (["", 0, "cat"], "the path is not a text"),
        (["/data/a/2.jpg", 0, "cat"], "the path is absolute"),
        (["\\\\disk\\a\\2.jpg", 0, "cat"], "the path is absolute"),
        (["C:/data/2.jpg", 0, "cat"], "the path is absolute"),
        (["a/../../2.jpg", 0, "cat"], "leaves the image directory"),
        (["a/2.jpg", "0", "cat"], "the label is not an integer"),
        (["a/2.jpg", True, "cat"], "the label is not an integer"),
        (["a/2.jpg", -1, "cat"], "the label is not an integer"),
        (["a/2.jpg", 0, " "], "the class name is not a text"),
        (["a/2.jpg", 0, None], "the class name is not a text"),
    ],
)
def test_malformed_entry_is_named_with_its_file(tmp_path: Path, entry: object, reason: str) -> None:
    path = write(tmp_path, {**GOOD, "val": [["a/3.jpg", 0, "cat"], entry]})
    with pytest.raises(ValueError, match=r"val\[1\]") as error:
        read_split_file(path, tmp_path)
    assert reason in str(error.value)
    assert str(path) in str(error.value)


def test_dots_within_a_name_are_no_parent_directory(tmp_path: Path) -> None:
    path = write(tmp_path, {**GOOD, "val": [["a/2..jpg", 0, "cat"]]})
    assert read_split_file(path, tmp_path).val[0].impath.endswith("a/2..jpg")


@pytest.mark.parametrize("content", [[], {"train": [], "test": []}, {**GOOD, "val": {}}])
def test_missing_part_is_named(tmp_path: Path, content: object) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match="must hold") as error:
        read_split_file(path, tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b'{"train": [', b"\xff\xfe\x00", b""])
def test_broken_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "split_zhou_Pets.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"split_zhou_Pets\.json is not valid JSON"):
        read_split_file(path, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": [["a/1.jpg", 0, "cat"], ["b/1.jpg", 2, "dog"]]}, "no image has 1"),
        ({"train": [["a/1.jpg", 1, "cat"], ["b/1.jpg", 2, "dog"]]}, "no image has 0"),
        ({"test": [["b/2.jpg", 2, "cow"]]}, "test has labels that train lacks: 2"),
        ({"val": [["a/2.jpg", 0, "dog"]]}, r"val\[0\] .* calls label 0 'dog', .* 'cat'"),
        ({"train": [], "test": []}, "neither train nor test holds an image"),
    ],
)
def test_labels_that_would_shift_classes_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_split_file(write(tmp_path, {**GOOD, **change}), tmp_path)


def test_test_only_split_takes_its_classes_from_test() -> None:
    test = [Datum("x/1.jpg", 1, 0, "b"), Datum("x/2.jpg", 0, 0, "a")]
    splits = Splits([], [], test)
    check_labels(splits, "x")
    assert splits.class_names() == ["a", "b"]


def test_missing_images_are_counted_and_the_split_file_named(tmp_path: Path, touch) -> None:
    touch(tmp_path, ["a/1.jpg", "b/2.jpg"])
    path = write(tmp_path, GOOD)
    splits = read_split_file(path, tmp_path)
    with pytest.raises(FileNotFoundError, match="2 of the 4 images") as error:
        require_images(splits, path, "Ask the baker.")
    assert str(error.value).startswith(str(tmp_path / "a/2.jpg"))
    assert str(path) in str(error.value)
    assert "--root" in str(error.value)
    assert "Ask the baker." in str(error.value)
    touch(tmp_path, ["a/2.jpg", "b/1.jpg"])
    require_images(splits, path, "")


def test_one_listing_per_directory_and_no_stat_per_file(
    tmp_path: Path, touch, monkeypatch: pytest.MonkeyPatch, count_calls
) -> None:
    names = [f"{folder}/{i}.jpg" for folder in "abc" for i in range(50)]
    touch(tmp_path, names)
    listed = count_calls(os, "scandir")
    monkeypatch.setattr(os.path, "exists", lambda path: pytest.fail(f"asked for {path}"))
    monkeypatch.setattr(os.path, "isfile", lambda path: pytest.fail(f"asked for {path}"))
    assert missing_files(str(tmp_path / name) for name in names) == []
    assert sorted(listed) == [(str(tmp_path / folder),) for folder in "abc"]


def test_a_disk_that_ignores_case_is_believed(
    tmp_path: Path, touch, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, ["1.JPG"])
    assert missing_files([str(tmp_path / "1.jpg")]) == [str(tmp_path / "1.jpg")]
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    assert missing_files([str(tmp_path / "1.jpg")]) == []


@given(
    there=st.sets(st.sampled_from([f"{d}/{i}" for d in "ab" for i in range(4)])),
    asked=st.lists(st.sampled_from([f"{d}/{i}" for d in "abc" for i in range(4)])),
)
def test_missing_files_agrees_with_exists(tmp_path_factory, touch_, there, asked) -> None:
    directory = tmp_path_factory.mktemp("tree")
    touch_(directory, there)
    paths = [str(directory / name) for name in asked]
    assert sorted(missing_files(paths)) == sorted(p for p in paths if not os.path.exists(p))


@pytest.fixture(scope="module")
def touch_():
    def make(directory: Path, names) -> None:
        for name in names:
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).touch()

    return make


@pytest.mark.parametrize("label", [2, 1_000_000_000, 10**30])
def test_a_large_label_is_named_and_takes_no_memory(tmp_path: Path, label: int) -> None:
    path = write(tmp_path, {**GOOD, "train": [*GOOD["train"], ["c/1.jpg", label + 1, "cow"]]})
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"3 classes have labels up to {label + 1:,}; .* has 2"):
        read_split_file(path, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_gaps_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, {**GOOD, "train": [*GOOD["train"], ["c/1.jpg", 999, "cow"]]})
    with pytest.raises(ValueError, match=r"no image has 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 987 m"):
        read_split_file(path, tmp_path)


@pytest.mark.parametrize("key", ["train", "test"])
def test_a_part_that_is_there_twice_is_refused(tmp_path: Path, key: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(GOOD)[:-1] + f', "{key}": []}}')
    with pytest.raises(ValueError, match=rf"split\.json .*the key '{key}' is there 2 times"):
        read_split_file(path, tmp_path)


@pytest.mark.parametrize("path", ["a/1.jpg", "./a/1.jpg", "a//1.jpg", "a/./1.jpg"])
@pytest.mark.parametrize(
    ("part", "entry", "said"),
    [
        ("train", [1, "dog"], "1 image(s) have more than one label"),
        ("val", [1, "dog"], "1 image(s) have more than one label"),
        ("test", [1, "dog"], "1 image(s) have more than one label"),
        ("test", [0, "cat"], "1 image(s) have a place in train and in test"),
    ],
)
def test_a_split_that_contradicts_itself_is_refused(
    tmp_path: Path, path: str, part: str, entry: list[object], said: str
) -> None:
    file = write(tmp_path, {**GOOD, part: [*GOOD[part], [path, *entry]]})
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        read_split_file(file, tmp_path)
    message = str(error.value)
    assert message.startswith(f"{file}: ")
    assert f"first {tmp_path}/a/1.jpg: train[0] is 0 ('cat'), " in message
    assert f"{part}[{len(GOOD[part])}] is {entry[0]} ('{entry[1]}')" in message


def test_twice_in_test_is_refused_even_behind_val(tmp_path: Path) -> None:
    twice = [["a/2.jpg", 0, "cat"], ["./a/2.jpg", 0, "cat"]]
    with pytest.raises(ValueError, match=r"1 image\(s\) have more than one place in test"):
        read_split_file(write(tmp_path, {**GOOD, "test": [*GOOD["test"], *twice]}), tmp_path)


@pytest.mark.parametrize(
    ("part", "path", "said"),
    [
        ("train", "a/1.jpg", "are in train twice; they count twice"),
        ("val", "a/2.jpg", "are in val twice; they count twice"),
        ("val", "a/1.jpg", "are in train and val; accuracy on val"),
        ("test", "a/2.jpg", "are in val and test; a model selected on val"),
    ],
)
def test_what_may_be_meant_is_said(tmp_path: Path, part: str, path: str, said: str) -> None:
    splits = read_split_file(
        write(tmp_path, {**GOOD, part: [*GOOD[part], [path, 0, "cat"]]}), tmp_path
    )
    (note,) = split_notes(splits)
    assert note.startswith(f"1 image(s), first {tmp_path}/{path}, {said}")


def test_links_are_what_they_lead_to() -> None:
    splits = Splits([Datum("x/1.jpg", 0, 0, "a")], [], [Datum("y/1.jpg", 0, 0, "a")])
    check_repeats(splits, "x")
    with pytest.raises(ValueError, match="in train and in test"):
        check_repeats(splits, "x", {"y/1.jpg": "x/1.jpg"})


def test_a_good_split_has_nothing_to_say(tmp_path: Path) -> None:
    splits = read_split_file(write(tmp_path, GOOD), tmp_path)
    assert split_notes(splits) == []
    assert "1 of 2 classes have no test image ('cat')" in untested_classes(splits)
