import json
import os
from pathlib import Path
from typing import Any

import pytest
from torchvision.datasets import ImageFolder

from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset
from datasets import folder
from datasets.folder import extend_cfg


def paths(items: list[Any], directory: Path) -> list[str]:
    return [Path(d.impath).relative_to(directory).as_posix() for d in items]


@pytest.fixture
def birds(tmp_path: Path, touch) -> Path:
    """The root of a set in three parts: two classes with 4/2/3 images each."""
    for part, size in (("train", 4), ("val", 2), ("test", 3)):
        for name in ("blue_jay", "wren"):
            touch(tmp_path / "birds" / part / name, [f"{i}.jpg" for i in range(size)])
    return tmp_path


@pytest.fixture
def tree(tmp_path: Path, touch) -> Path:
    """The root of a set in one tree: two classes with 10 images each."""
    for name in ("blue_jay", "wren"):
        touch(tmp_path / "birds" / name, [f"{i}.png" for i in range(10)])
    return tmp_path


def test_three_parts(birds: Path, build) -> None:
    dataset = build("Folder", birds, DIR="birds")
    assert dataset.classnames == ["blue jay", "wren"]
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == (8, 4, 6)
    assert paths(dataset.test, birds / "birds") == [
        f"test/{name}/{i}.jpg" for name in ("blue_jay", "wren") for i in range(3)
    ]
    assert [d.label for d in dataset.test] == [0, 0, 0, 1, 1, 1]
    assert dataset.notes == []
    assert dataset.template == "A photo of a {},"
    for part, items in (("train", dataset.train_x), ("test", dataset.test)):
        theirs = ImageFolder(birds / "birds" / part)
        assert [(d.impath, d.label) for d in items] == theirs.samples


def test_the_root_itself_may_hold_the_parts(birds: Path, build) -> None:
    dataset = build("Folder", birds / "birds")
    assert dataset.classnames == ["blue jay", "wren"]
    assert dataset.relative_path(dataset.test[0]) == "test/blue_jay/0.jpg"


def test_val_is_taken_from_train_where_it_is_absent(birds: Path, build, tmp_path) -> None:
    (birds / "birds" / "val").rename(tmp_path / "unused")
    dataset = build("Folder", birds, DIR="birds", SPLIT_RATIO=(0.2, 0.2, 0.6))
    # Equal shares of train and val: half of the four images of each class.
    assert [d.label for d in dataset.val] == [0, 0, 1, 1]
    everything = paths(dataset.train_x + dataset.val, birds / "birds")
    assert sorted(everything) == sorted(
        f"train/{name}/{i}.jpg" for name in ("blue_jay", "wren") for i in range(4)
    )
    assert len(dataset.test) == 6
    none = build("Folder", birds, DIR="birds", SPLIT_RATIO=(0.5, 0, 0.5))
    assert (len(none.train_x), len(none.val or [])) == (8, 0)


def test_test_only_serves_zero_shot_evaluation(birds: Path, build, tmp_path) -> None:
    for part in ("train", "val"):
        (birds / "birds" / part).rename(tmp_path / part)
    dataset = build("Folder", birds, DIR="birds", NUM_SHOTS=16)
    assert dataset.classnames == ["blue jay", "wren"]
    assert len(dataset.test) == 6
    assert not dataset.train_x
    assert not dataset.val


def test_one_tree_is_split_by_ratio(tree: Path, build) -> None:
    dataset = build("Folder", tree, DIR="birds", SPLIT_RATIO=(0.6, 0.1, 0.3))
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == (12, 2, 6)
    everything = paths(dataset.train_x + dataset.val + dataset.test, tree / "birds")
    assert sorted(everything) == sorted(
        f"{name}/{i}.png" for name in ("blue_jay", "wren") for i in range(10)
    )
    for items in (dataset.train_x, dataset.val, dataset.test):
        assert sum(d.label for d in items) == len(items) / 2
        assert all((d.classname == "wren") == (d.label == 1) for d in items)


def test_the_split_depends_on_its_own_seed_only(tree: Path, build) -> None:
    def test_paths(**values: Any) -> list[str]:
        return paths(build("Folder", tree, DIR="birds", **values).test, tree)

    first = test_paths(SEED=1)
    assert test_paths(SEED=2) == first
    assert test_paths(SPLIT_SEED=1) == first
    assert test_paths(SPLIT_SEED=2) != first


def test_shots_and_halves_work_as_everywhere(tree: Path, build, tmp_path) -> None:
    dataset = build(
        "Folder", tree, DIR="birds", NUM_SHOTS=2, SUBSAMPLE_CLASSES="new", OUTPUT_DIR=tmp_path / "o"
    )
    assert dataset.classnames == ["wren"]
    assert [d.label for d in dataset.train_x] == [0, 0]
    record = json.loads((tmp_path / "o" / "fewshot_2_seed1.json").read_text())
    assert [entry[1:] for entry in record["train"]] == [
        [0, "blue jay"], [0, "blue jay"], [1, "wren"], [1, "wren"],
    ]  # fmt: skip
    assert record["train"][2][0] == dataset.relative_path(dataset.train_x[0])


def test_hidden_files_and_others_are_skipped(birds: Path, build, touch) -> None:
    test = birds / "birds" / "test"
    touch(test / "wren", [".hidden.jpg", "._0.jpg", "list.txt", "Thumbs.db", "UP.JPEG"])
    touch(test, [".DS_Store", ".ipynb_checkpoints/0.jpg", "README.md"])
    dataset = build("Folder", birds, DIR="birds")
    assert paths(dataset.test, test)[3:] == [
        "wren/0.jpg", "wren/1.jpg", "wren/2.jpg", "wren/UP.JPEG",
    ]  # fmt: skip
    assert dataset.classnames == ["blue jay", "wren"]


def test_split_file_belongs_to_the_other_class(tree: Path, build) -> None:
    with pytest.raises(ValueError, match=r"'mine\.json', but .* DATASET\.NAME Split does"):
        build("Folder", tree, DIR="birds", SPLIT_FILE="mine.json")


def test_numbered_folders_sort_as_numbers_and_ask_for_names(tmp_path, build, touch) -> None:
    """As text they would come 0, 1, 10, 11, 2, and names given in order would be shifted."""
    for number in range(12):
        touch(tmp_path / "n" / str(number), ["0.jpg", "1.jpg", "2.jpg"])
    dataset = build("Folder", DIR="n")
    assert dataset.classnames == [str(number) for number in range(12)]
    assert all(str(d.label) == Path(d.impath).parent.name for d in dataset.test)
    assert "set DATASET.CLASSNAMES" in dataset.notes[0]
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"bird {number}" for number in range(12)))
    named = build("Folder", DIR="n", CLASSNAMES=str(names))
    assert named.notes == []
    assert all(d.classname == f"bird {Path(d.impath).parent.name}" for d in named.test)


def test_a_class_may_be_called_train(tmp_path: Path, build, touch) -> None:
    for name in ("train", "bus"):
        touch(tmp_path / name, [f"{i}.jpg" for i in range(5)])
    assert build("Folder").classnames == ["bus", "train"]


def test_missing_directory_names_path_flag_and_key(tmp_path: Path, build) -> None:
    with pytest.raises(FileNotFoundError) as error:
        build("Folder", DIR="birds")
    message = str(error.value)
    assert str(tmp_path / "birds") in message
    assert f"--root ({tmp_path})" in message
    assert "DATASET.DIR ('birds')" in message


def test_empty_class_is_named(birds: Path, build, touch) -> None:
    touch(birds / "birds" / "train" / "owl", ["readme.txt"])
    with pytest.raises(ValueError, match=r"train: class folder\(s\) \['owl'\] hold no image"):
        build("Folder", birds, DIR="birds")


def test_directory_one_level_too_high_is_noticed(tree: Path, build) -> None:
    with pytest.raises(ValueError, match=r"\['birds'\] hold no image directly.*DATASET\.DIR"):
        build("Folder", tree)


@pytest.mark.parametrize("part", ["val", "test"])
def test_classes_that_train_lacks_are_listed(birds: Path, build, touch, part: str) -> None:
    touch(birds / "birds" / part, ["owl/0.jpg", "emu/0.jpg"])
    with pytest.raises(ValueError, match=rf"{part} has classes that train/ lacks: emu, owl"):
        build("Folder", birds, DIR="birds")


def test_val_classes_are_compared_with_test_where_there_is_no_train(birds, build, touch) -> None:
    (birds / "birds" / "train").rename(birds / "unused")
    touch(birds / "birds" / "val", ["owl/0.jpg"])
    with pytest.raises(ValueError, match="val has classes that test/ lacks: owl"):
        build("Folder", birds, DIR="birds")


def test_train_without_test_says_what_to_do(birds: Path, build) -> None:
    (birds / "birds" / "test").rename(birds / "unused")
    with pytest.raises(ValueError, match=r"train/ but no test/.*rename val/"):
        build("Folder", birds, DIR="birds")


def test_no_class_folder_at_all(tmp_path: Path, build) -> None:
    (tmp_path / "birds" / ".hidden").mkdir(parents=True)
    with pytest.raises(ValueError, match="birds holds no class folders; expected are train/"):
        build("Folder", DIR="birds")


def test_parts_without_class_folders_are_no_classes(tmp_path: Path, build, touch) -> None:
    for part in ("train", "test"):
        touch(tmp_path / part, [f"{i}.jpg" for i in range(5)])
    with pytest.raises(ValueError, match=r"holds images in \['test', 'train'\] directly"):
        build("Folder")


@pytest.mark.parametrize("stray", ["train/stray.jpg", "test/stray.jpg"])
def test_stray_image_does_not_hide_a_part(birds: Path, build, touch, stray: str) -> None:
    touch(birds / "birds", [stray])
    with pytest.raises(ValueError, match=f"birds: {stray[: stray.index('/')]} must hold class"):
        build("Folder", birds, DIR="birds")


def test_flat_train_beside_nested_test_is_refused(birds: Path, build, touch) -> None:
    (birds / "birds" / "train").rename(birds / "unused")
    touch(birds / "birds" / "train", ["0.jpg"])
    with pytest.raises(ValueError, match="train must hold class folders"):
        build("Folder", birds, DIR="birds")


def test_directories_beside_the_parts_are_noted(birds: Path, build, touch) -> None:
    touch(birds / "birds" / "valid" / "wren", ["0.jpg"])
    assert "['valid']" in build("Folder", birds, DIR="birds").notes[0]


def test_lone_image_of_a_tree_is_named(tree: Path, build, touch) -> None:
    touch(tree / "birds" / "owl", ["0.jpg"])
    with pytest.raises(ValueError, match=r"class folder\(s\) \['owl'\] hold one image"):
        build("Folder", tree, DIR="birds")


def test_two_folders_of_one_class_name_are_refused(tree: Path, build, touch) -> None:
    touch(tree / "birds" / "blue jay", ["0.jpg", "1.jpg"])
    with pytest.raises(ValueError, match="'blue jay' and 'blue_jay' are both class 'blue jay'"):
        build("Folder", tree, DIR="birds")


def test_bad_ratio_names_the_key(tree: Path, build) -> None:
    with pytest.raises(ValueError, match=r"DATASET\.SPLIT_RATIO is \(0\.9, 0\.2, 0\.3\)"):
        build("Folder", tree, DIR="birds", SPLIT_RATIO=(0.9, 0.2, 0.3))


def test_a_config_that_was_not_extended_has_the_defaults(tree: Path) -> None:
    cfg = get_cfg_default()
    for key in folder.OPTIONS:
        cfg.DATASET.pop(key, None)
    cfg.DATASET.NAME = "Folder"
    cfg.DATASET.ROOT = str(tree / "birds")
    assert build_dataset(cfg).classnames == ["blue jay", "wren"]


def test_extending_keeps_what_is_set() -> None:
    cfg = get_cfg_default()
    cfg.DATASET["DIR"] = "mine"
    extend_cfg(cfg)
    assert cfg.DATASET.DIR == "mine"
    assert (cfg.DATASET.IMAGES, cfg.DATASET.SPLIT_FILE, cfg.DATASET.SPLIT_SEED) == ("", "", 1)


class TestLeftOut:
    """Nothing is dropped unseen: counted by kind, with names, in one note."""

    def note_of(self, dataset: Any) -> str:
        (note,) = dataset.notes
        return note

    def test_files_by_suffix_and_hidden_ones(self, birds: Path, build, touch) -> None:
        base = birds / "birds"
        touch(base / "test" / "wren", [".hidden.jpg", "a.txt", "b.TXT", "Thumbs.db", "LICENSE"])
        touch(base, ["README.md", "loose.jpg", ".DS_Store"])
        note = self.note_of(build("Folder", birds, DIR="birds"))
        assert note.startswith(f"Folder: left out of {base}: ")
        for said in (
            "1 file(s) ending in .txt (test/wren/a.txt)",
            "1 file(s) ending in .TXT (test/wren/b.TXT)",
            "1 file(s) ending in .db (test/wren/Thumbs.db)",
            "1 file(s) ending in .md (README.md)",
            "1 file(s) without a suffix (test/wren/LICENSE)",
            "2 hidden file(s) or folder(s) (.DS_Store, test/wren/.hidden.jpg)",
            "1 image(s) outside of class folders (loose.jpg)",
        ):
            assert said in note

    @pytest.mark.parametrize(
        "name", ["__MACOSX", ".ipynb_checkpoints", "@eaDir", "thumbs", "Thumbnails", "lost+found"]
    )
    def test_foreign_folders_are_no_classes(self, tree, build, touch, name: str) -> None:
        """Beside the classes and in each of them."""
        touch(tree / "birds" / name, [f"{i}.jpg" for i in range(9)])
        touch(tree / "birds" / "wren" / name, ["0.jpg"])
        dataset = build("Folder", tree, DIR="birds")
        assert dataset.classnames == ["blue jay", "wren"]
        assert f"({name}, wren/{name})" in self.note_of(dataset)

    def test_foreign_folders_in_parts(self, birds: Path, build, touch) -> None:
        for part in ("train", "test"):
            touch(birds / "birds" / part / "@eaDir", ["0.jpg"])
        dataset = build("Folder", birds, DIR="birds")
        assert dataset.classnames == ["blue jay", "wren"]
        assert "(train/@eaDir, test/@eaDir)" in self.note_of(dataset)

    def test_a_foreign_folder_does_not_make_a_part_of_a_class(self, tmp_path, build, touch) -> None:
        for name in ("train", "bus"):
            touch(tmp_path / name, [f"{i}.jpg" for i in range(5)])
            touch(tmp_path / name / "@eaDir", ["0.jpg"])
        assert build("Folder").classnames == ["bus", "train"]

    def test_folders_without_an_image_beside_classes(self, tree: Path, build, touch) -> None:
        (tree / "birds" / "empty").mkdir()
        touch(tree / "birds" / "docs" / "more", ["a.txt"])
        dataset = build("Folder", tree, DIR="birds")
        assert dataset.classnames == ["blue jay", "wren"]
        assert "2 folder(s) without an image (docs, empty)" in self.note_of(dataset)

    def test_images_below_a_class_folder(self, tree: Path, build, touch) -> None:
        touch(tree / "birds" / "wren" / "more" / "deep", ["1.jpg", "2.jpg", "3.jpg", "4.jpg"])
        dataset = build("Folder", tree, DIR="birds")
        assert len(dataset.train_x + dataset.val + dataset.test) == 20
        assert (
            "4 image(s) in folders inside a class folder (wren/more/deep/1.jpg, "
            "wren/more/deep/2.jpg, wren/more/deep/3.jpg, ...)" in self.note_of(dataset)
        )

    def test_every_suffix_that_pillow_decodes_is_an_image(self, tree: Path, build, touch) -> None:
        names = ["a.jfif", "b.JPE", "c.gif", "d.Webp", "e.jp2", "f.TIFF", "g.tga", "h.pnm"]
        touch(tree / "birds" / "wren", names)
        dataset = build("Folder", tree, DIR="birds")
        assert len(dataset.train_x + dataset.val + dataset.test) == 28
        assert dataset.notes == []
        touch(tree / "birds" / "wren", ["i.heic", "j.svg", "k.h5", "l.eps", "m.mpeg", "n.pdf"])
        dataset = build("Folder", tree, DIR="birds")
        assert len(dataset.train_x + dataset.val + dataset.test) == 28
        assert self.note_of(dataset).count("file(s) ending in") == 6

    def test_broken_links_are_missing_images(self, tree: Path, build) -> None:
        (tree / "birds" / "wren" / "x.png").symlink_to(tree / "gone.png")
        with pytest.raises(FileNotFoundError, match=r"wren/x\.png is a link to .*gone\.png"):
            build("Folder", tree, DIR="birds")

    def test_links_that_contradict_each_other(self, birds: Path, build, tmp_path) -> None:
        base = birds / "birds"
        link = base / "test" / "wren" / "again.jpg"
        link.symlink_to(base / "train" / "wren" / "0.jpg")
        with pytest.raises(ValueError, match=r"have a place in train and in test"):
            build("Folder", birds, DIR="birds")
        link.unlink()
        for target in ("wren", "blue_jay"):
            (base / "val" / target).rename(tmp_path / target)
        (base / "val" / "wren").symlink_to(base / "train" / "wren")
        note = self.note_of(build("Folder", birds, DIR="birds"))
        assert note.startswith("4 image(s), first")
        assert "are in train and val" in note
        (base / "train" / "owl").symlink_to(base / "train" / "wren")
        with pytest.raises(ValueError, match=r"4 image\(s\) have more than one label"):
            build("Folder", birds, DIR="birds")

    def test_a_whole_part_that_is_a_link(self, birds: Path, build, tmp_path) -> None:
        base = birds / "birds"
        (base / "test").rename(tmp_path / "unused")
        (base / "test").symlink_to(base / "train")
        with pytest.raises(ValueError, match=r"8 image\(s\) have a place in train and in test"):
            build("Folder", birds, DIR="birds")

    def test_links_outside_and_loops_are_fine(self, tree: Path, build, tmp_path, touch) -> None:
        touch(tmp_path / "elsewhere", ["0.jpg", "1.jpg", "2.jpg"])
        (tree / "birds" / "owl").symlink_to(tmp_path / "elsewhere")
        (tree / "birds" / "wren" / "up").symlink_to(tree / "birds")
        dataset = build("Folder", tree, DIR="birds")
        assert dataset.classnames == ["blue jay", "owl", "wren"]
        assert len(dataset.train_x + dataset.val + dataset.test) == 23

    def test_a_class_folder_whose_name_is_no_unicode(self, tree: Path, build) -> None:
        os.mkdir(os.fsencode(tree / "birds") + b"/caf\xe9")
        for number in range(3):
            (tree / "birds" / "caf\udce9" / f"{number}.jpg").touch()
        with pytest.raises(ValueError, match=r"class folder 'caf\\udce9' is not UTF-8"):
            build("Folder", tree, DIR="birds")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("n01440764", "n01443537"), "WordNet ids (2 of 2, first n01440764)"),
        (("n01440764", "shark"), "WordNet ids (1 of 2, first n01440764)"),
        (("1", "2"), "numbers (1 to 2)"),
        (("001.Laysan_Albatross", "002.Crow"), "numbered ('001.Laysan Albatross')"),
    ],
)
def test_names_that_mean_nothing_are_noted(tmp_path, build, touch, names, said) -> None:
    for name in names:
        touch(tmp_path / name, ["0.jpg", "1.jpg", "2.jpg"])
    (note,) = build("Folder").notes
    assert note.startswith(f"Folder: the class names are {said}, which mean nothing")
    assert note.endswith("set DATASET.CLASSNAMES to a file with their names")


def test_years_and_words_with_numbers_mean_something(tmp_path, build, touch) -> None:
    for name in ("2012 Audi TTS Coupe", "2007 Dodge Dakota"):
        touch(tmp_path / name, ["0.jpg", "1.jpg", "2.jpg"])
    assert build("Folder").notes == []
