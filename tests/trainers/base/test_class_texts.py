"""What is noted of class names and prompts: classes that read the same, texts that were cut."""

import json

import open_clip
import pytest
from PIL import Image

from dassl.engine import build_trainer


@pytest.fixture
def build(make_config, tmp_path):
    """(method, class names, options) -> trainer on a split with two pictures per class and part."""

    def make(method, names, *options, dataset="Split"):
        folder = tmp_path / "data" / "own"
        rows = []
        for label, name in enumerate(names):
            for number in range(4):
                path = folder / f"{label}_{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (48, 48), (label, number, 0)).save(path)
                rows.append([path.name, label, name])
        content = {"train": rows[::2], "val": [], "test": rows[1::2]}
        (folder / "split.json").write_text(json.dumps(content))
        words = ("DATASET.ROOT", str(tmp_path / "data"), "DATASET.DIR", "own", "DATASET.IMAGES", "")
        flags = ("--backbone", "shapes")
        cfg = make_config(method, *words, *options, dataset="split", flags=flags)
        return build_trainer(cfg)

    return make


def about_texts(trainer):
    return [note for note in trainer.notes if "classes apart" in note]


@pytest.mark.parametrize(
    "method",
    [
        *("ZeroshotCLIP/base2novel", "ZeroshotCLIP2/base2novel", "CoOp/base2novel", "LP/fft"),
        *("LightRA/base2novel", "DePT/base2novel", "RAdaTTT/ttt", "FLYP/fft"),
    ],
)
def test_classes_that_look_the_same_are_noted_once(build, capsys, method):
    names = ["Heart", "star", "heart", "blue_star", "Blue star", "blue  star"]
    trainer = build(method, names)
    (note,) = about_texts(trainer)
    assert "cannot tell 5 of 6 classes apart" in note
    assert "'Heart' and 'heart', 'blue_star' and 'Blue star' and 'blue  star'" in note
    assert capsys.readouterr().out.count(note) == 1


def test_names_that_differ_behind_the_last_token(build, capsys):
    long = "very " * 90
    trainer = build("ZeroshotCLIP/base2novel", [f"{long}red", f"{long}blue", "circle"])
    (note,) = about_texts(trainer)
    assert "2 of 3 classes" in note
    (cut,) = [note for note in trainer.notes if "were cut" in note]
    assert cut.startswith("2 of 3 texts are longer than the model's 77 tokens")
    assert capsys.readouterr().out.count(cut) == 1


def test_two_labels_of_one_name(build):
    (note,) = about_texts(build("ZeroshotCLIP/base2novel", ["missile", "missile", "x"]))
    assert "2 of 3 classes" in note


def test_descriptions_tell_classes_of_one_name_apart(build, tmp_path):
    """Not where they are the same file's entry, but other classes of other descriptions."""
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"heart": ["a red one."], "star": ["a red one."]}))
    trainer = build("LightRA/base2novel", ["heart", "star"], "DATASET.PROMPT_PATH", str(path))
    assert not about_texts(trainer)


@pytest.mark.parametrize(("dataset", "noted"), [("ImageNet", 0), ("Split", 1)])
def test_the_doubles_of_imagenet_are_known(build, dataset, noted):
    trainer = build("ZeroshotCLIP/base2novel", ["missile", "sunglasses"])
    names = list(open_clip.IMAGENET_CLASSNAMES)
    trainer.dm.dataset.classnames[:] = names
    trainer.cfg.defrost()
    trainer.cfg.DATASET.NAME = dataset
    trainer.notes.clear()
    trainer.model = trainer.build_model()
    trainer.show_prompts()
    assert len(about_texts(trainer)) == noted


def test_names_without_letters(build):
    trainer = build("ZeroshotCLIP/base2novel", ["---", "c3", "猫", "?!"])
    (note,) = [note for note in trainer.notes if "letter" in note]
    assert note == "2 of 4 class names have neither letter nor digit: '---', '?!'"


def test_no_name_at_all(build):
    with pytest.raises(ValueError, match=r"1 of 2 classes have no name \(labels \[1\], '_ _'\)"):
        build("ZeroshotCLIP/base2novel", ["circle", "_ _"])


def test_distinct_names_are_not_noted(build):
    trainer = build("ZeroshotCLIP/base2novel", ["red circle", "red circles", "circle red"])
    assert trainer.notes == []
