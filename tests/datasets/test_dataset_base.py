import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from datasets.base import CLIPDataset
from datasets.splits import Splits

FOLDERS = {"abyssinian": "abyssinian", "beagle": "beagle", "sphynx": "sphynx"}


@pytest.fixture
def pets(tmp_path: Path, write_split) -> Path:
    """Three of the pets, 6/5/4 images each; returns the dataset's directory."""
    directory = tmp_path / "data" / "oxford_pets"
    write_split(directory / "split_zhou_OxfordPets.json", directory / "images", FOLDERS, (6, 5, 4))
    return directory


def drawn(dataset: Any) -> dict[str, list[list[Any]]]:
    return {
        part: [[dataset.relative_path(d), d.label, d.classname] for d in items]
        for part, items in (("train", dataset.train_x), ("val", dataset.val))
    }


def test_draw_of_a_dataset_is_the_published_one(pets: Path, build) -> None:
    dataset = build("OxfordPets", pets.parent, SEED=2, NUM_SHOTS=5)
    split = json.loads((pets / "split_zhou_OxfordPets.json").read_text())
    random.seed(2)
    expected = [e for label in range(3) for e in random.sample(_of(split, "train", label), 5)]
    expected_val = [e for label in range(3) for e in random.sample(_of(split, "val", label), 4)]
    assert drawn(dataset) == {"train": expected, "val": expected_val}
    assert len(dataset.test) == 12


def _of(split: dict[str, Any], part: str, label: int) -> list[Any]:
    return [entry for entry in split[part] if entry[1] == label]


def test_draw_comes_before_the_halves(pets: Path, build) -> None:
    """New classes keep the images that they have in a draw over all classes."""
    everything = build("OxfordPets", pets.parent, NUM_SHOTS=2)
    new = build("OxfordPets", pets.parent, NUM_SHOTS=2, SUBSAMPLE_CLASSES="new")
    assert [d.impath for d in new.train_x] == [
        d.impath for d in everything.train_x if d.classname == "sphynx"
    ]
    assert {d.label for d in new.train_x + new.val + new.test} == {0}
    assert new.classnames == ["sphynx"]
    base = build("OxfordPets", pets.parent, NUM_SHOTS=2, SUBSAMPLE_CLASSES="base")
    assert base.classnames == ["abyssinian", "beagle"]
    assert base.lab2cname == {0: "abyssinian", 1: "beagle"}
    assert base.num_classes == 2


def test_draw_is_recorded_with_relative_paths(pets: Path, tmp_path: Path, build) -> None:
    output = tmp_path / "output" / "run"
    dataset = build("OxfordPets", pets.parent, SEED=3, NUM_SHOTS=2, OUTPUT_DIR=output)
    assert [p.name for p in output.iterdir()] == ["fewshot_2_seed3.json"]
    record = json.loads((output / "fewshot_2_seed3.json").read_text())
    assert record == {"dataset": "OxfordPets", "shots": 2, "seed": 3, **drawn(dataset)}
    assert all(not os.path.isabs(entry[0]) for entry in record["train"] + record["val"])


def test_record_holds_the_labels_of_the_split_in_either_half(pets, tmp_path, build) -> None:
    for half in ("all", "new"):
        build(
            "OxfordPets", pets.parent, NUM_SHOTS=1, SUBSAMPLE_CLASSES=half,
            OUTPUT_DIR=tmp_path / half,
        )  # fmt: skip
    name = "fewshot_1_seed1.json"
    assert (tmp_path / "all" / name).read_text() == (tmp_path / "new" / name).read_text()


def test_data_can_move(pets: Path, tmp_path: Path, build) -> None:
    def run(root: Path, output: Path) -> str:
        build("OxfordPets", root, NUM_SHOTS=2, OUTPUT_DIR=output)
        return (output / "fewshot_2_seed1.json").read_text()

    before = run(pets.parent, tmp_path / "out")
    shutil.move(pets.parent, tmp_path / "elsewhere")
    assert run(tmp_path / "elsewhere", tmp_path / "out") == before
    assert run(tmp_path / "elsewhere", tmp_path / "out2") == before


def test_a_stale_record_is_not_believed(pets: Path, tmp_path: Path, build) -> None:
    record = tmp_path / "fewshot_2_seed1.json"
    record.write_text('{"train": []}')
    assert len(build("OxfordPets", pets.parent, NUM_SHOTS=2, OUTPUT_DIR=tmp_path).train_x) == 6
    assert len(json.loads(record.read_text())["train"]) == 6


def test_nothing_is_written_without_output_dir_or_into_the_data(
    pets, tmp_path, build, capsys, monkeypatch
) -> None:
    before = sorted(pets.parent.rglob("*"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    build("OxfordPets", pets.parent, NUM_SHOTS=2)
    assert sorted(pets.parent.rglob("*")) == before
    assert list((tmp_path / "here").iterdir()) == []
    build("OxfordPets", pets.parent, NUM_SHOTS=2, OUTPUT_DIR=pets / "out")
    assert sorted(pets.parent.rglob("*")) == before
    assert "OUTPUT_DIR is inside" in capsys.readouterr().out
    build("OxfordPets", pets.parent, OUTPUT_DIR=pets.parent.parent / "all_images")
    assert not (pets.parent.parent / "all_images").exists()


def test_the_engines_own_draw_still_works(pets: Path, build) -> None:
    dataset = build("OxfordPets", pets.parent)
    ours = build("OxfordPets", pets.parent, SEED=4, NUM_SHOTS=3).train_x
    random.seed(4)
    theirs = dataset.generate_fewshot_dataset(dataset.train_x, num_shots=3)
    assert [d.impath for d in theirs] == [d.impath for d in ours]


class Bomb:
    """Unpickling this fails the test."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_of_others_are_ignored(pets: Path, build) -> None:
    cache = pets / "split_fewshot" / "shot_2-seed_1.pkl"
    cache.parent.mkdir()
    for path in (cache, pets / "preprocessed.pkl"):
        path.write_bytes(pickle.dumps(Bomb()))
    assert len(build("OxfordPets", pets.parent, NUM_SHOTS=2).train_x) == 6


def test_short_class_is_logged_and_gives_all(pets: Path, build, capsys) -> None:
    dataset = build("OxfordPets", pets.parent, NUM_SHOTS=16)
    assert len(dataset.train_x) == 18
    assert "abyssinian (6), beagle (6), sphynx (6)" in capsys.readouterr().out


def test_seed_zero_is_a_seed_and_minus_one_draws_one(pets, tmp_path, build, capsys) -> None:
    zero = build("OxfordPets", pets.parent, NUM_SHOTS=2, SEED=0)
    assert zero.shot_seed == 0
    assert drawn(zero) == drawn(build("OxfordPets", pets.parent, NUM_SHOTS=2, SEED=0))
    free = build("OxfordPets", pets.parent, NUM_SHOTS=2, SEED=-1, OUTPUT_DIR=tmp_path / "out")
    assert f"seed {free.shot_seed}\n" in capsys.readouterr().out
    assert (tmp_path / "out" / f"fewshot_2_seed{free.shot_seed}.json").is_file()
    other = build("OxfordPets", pets.parent, NUM_SHOTS=2, SEED=-1)
    assert other.shot_seed != free.shot_seed
    assert drawn(free) == drawn(build("OxfordPets", pets.parent, NUM_SHOTS=2, SEED=free.shot_seed))


@pytest.mark.parametrize("shots", [0, -2])
def test_zero_shots_are_an_error_before_anything_is_read(tmp_path, build, shots) -> None:
    with pytest.raises(ValueError, match=rf"DATASET\.NUM_SHOTS is {shots}; allowed are -1"):
        build("OxfordPets", tmp_path / "nowhere", NUM_SHOTS=shots)


def test_unknown_half_is_an_error_before_anything_is_read(tmp_path, build) -> None:
    with pytest.raises(ValueError, match=r"SUBSAMPLE_CLASSES: 'novel' is not available"):
        build("OxfordPets", tmp_path / "nowhere", SUBSAMPLE_CLASSES="novel")


def test_template_of_the_config_wins(pets: Path, build) -> None:
    assert build("OxfordPets", pets.parent).template == "A photo of a {},"
    own = build("OxfordPets", pets.parent, PROMPT_TEMPLATE="a pet, {}.")
    assert own.template == "a pet, {}."


def test_home_and_relative_roots(pets: Path, build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pets.parent.parent))
    assert build("OxfordPets", "~/data").dataset_dir == str(pets)
    monkeypatch.chdir(pets.parent)
    assert build("OxfordPets", "").dataset_dir == str(pets)


def test_a_subclass_must_read_its_splits(make_cfg) -> None:
    class Forgetful(CLIPDataset):
        pass

    with pytest.raises(NotImplementedError, match="Forgetful must implement read_splits"):
        Forgetful(make_cfg("Forgetful"))


def test_note_is_logged_and_kept(make_cfg, capsys) -> None:
    class Noted(CLIPDataset):
        def read_splits(self, cfg: Any) -> Splits:
            self.note("half of it is missing")
            from dassl.data.datasets import Datum

            return Splits([], [], [Datum("a.jpg", 0, 0, "a")])

    dataset = Noted(make_cfg("Noted", NUM_SHOTS=4))
    assert dataset.notes == ["half of it is missing"]
    assert "WARNING: half of it is missing" in capsys.readouterr().out
    assert (len(dataset.test), dataset.num_classes, dataset.shot_seed) == (1, 1, None)


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("n.txt", "one\n two \n\nthree\n", ["one", "two", "three"]),
        ("n.json", '["one", "two", "three"]', ["one", "two", "three"]),
        ("n.json", '{"beagle": "hound"}', ["abyssinian", "hound", "sphynx"]),
        ("n.json", '{"0": "cat", "sphynx": "bald cat"}', ["cat", "beagle", "bald cat"]),
    ],
)
def test_class_names_of_the_user(pets, tmp_path, build, file, content, expected) -> None:
    path = tmp_path / file
    path.write_text(content)
    dataset = build("OxfordPets", pets.parent, CLASSNAMES=str(path))
    assert dataset.classnames == expected
    assert {d.classname for d in dataset.test} == set(expected)
    new = build("OxfordPets", pets.parent, CLASSNAMES=str(path), SUBSAMPLE_CLASSES="new")
    assert new.classnames == expected[2:]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("n.txt", "one\ntwo\n", r"has 2 names, but the dataset has 3 classes.*'abyssinian'"),
        ("n.json", '["one", "two", "three", "four"]', "has 4 names"),
        ("n.json", '{"beagel": "hound"}', "'beagel' is neither .* Did you mean 'beagle'"),
        ("n.json", '{"3": "hound"}', r"'3' is neither a class name nor a label 0\.\.2"),
        ("n.json", '["one", "two", 3]', "must hold class names as texts"),
        ("n.json", '{"beagle": ""}', "must hold class names as texts"),
        ("n.json", '"one"', "must hold class names as texts"),
        ("n.json", "[", r"n\.json is not valid JSON"),
    ],
)
def test_bad_class_names_say_what_is_wrong(pets, tmp_path, build, file, content, message) -> None:
    path = tmp_path / file
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        build("OxfordPets", pets.parent, CLASSNAMES=str(path))
    assert str(path) in str(error.value)


def test_missing_class_name_file_names_path_and_key(pets, tmp_path, build) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.txt; DATASET\.CLASSNAMES"):
        build("OxfordPets", pets.parent, CLASSNAMES=str(tmp_path / "none.txt"))
