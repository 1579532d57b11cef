"""The check before a run, on ImageNet-R trees made of the bundled suite's pictures."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import clip
from dassl.config import config_hash
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import build_trainer, read_result
from dassl.engine.resume import random_states
from datasets.imagenet import standard_names
from datasets.row import Figure
from trainers.base import zero_shot_check as sanity
from trainers.base.zero_shot_check import FIGURES, count_correct, is_checked, sample_rows, verdict

CLASSES = 12
TEMPLATE = "A photo of a {},"
METHOD = "ZeroshotCLIP/cross_dataset"


@pytest.fixture(scope="session")
def known_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The bundled model as a checkpoint of the user's: nothing tells that it is the bundled one."""
    path = tmp_path_factory.mktemp("known") / "clip.pt"
    torch.save(clip.load("shapes").model.state_dict(), path)
    return str(path)


def wnid(label: int) -> str:
    return f"n{label:08d}"


@pytest.fixture
def rendition(whole_shapes: str, tmp_path: Path) -> Callable[..., Path]:
    """A root with ImageNet-R; ``folder(k)`` says in whose folder the pictures of class k lie."""
    split = json.loads((Path(whole_shapes) / "shapes" / "split_zhou_Shapes.json").read_text())
    names = dict(sorted({entry[1]: entry[2] for entry in split["test"]}.items()))
    chosen = list(names)[:: len(names) // CLASSES][:CLASSES]  # of many colours and forms

    def make(folder: Callable[[int], int] = lambda label: label) -> Path:
        root = tmp_path / "data"
        (root / "imagenet").mkdir(parents=True)
        lines = [f"{wnid(k)} {names[label]}\n" for k, label in enumerate(chosen)]
        (root / "imagenet" / "classnames.txt").write_text("".join(lines))
        for k, label in enumerate(chosen):
            directory = root / "imagenet-rendition" / "imagenet-r" / wnid(folder(k))
            directory.mkdir(parents=True)
            for path, of, _ in split["test"]:
                if of == label:
                    (directory / Path(path).name).symlink_to(Path(whole_shapes) / "shapes" / path)
        return root

    return make


@pytest.fixture
def config(make_config, known_model: str):
    """(data root, options) -> config of a zero-shot run on ImageNet-R with the known model."""

    def make(root: Path, *options: str, method: str = METHOD, output: str = "run") -> Any:
        size = ("INPUT.SIZE", "[48, 48]", "DATALOADER.NUM_WORKERS", "0")
        return make_config(
            method, "MODEL.BACKBONE.NAME", known_model, *size, *options,
            dataset="imagenet_r", output=output, flags=("--root", str(root)),
        )  # fmt: skip

    return make


def half_way(label: int) -> int:
    return (label + CLASSES // 2) % CLASSES


def test_accuracy_is_logged_and_recorded(rendition, config, capsys) -> None:
    cfg = config(rendition(), "TRAINER.ZeroshotCLIP.TEMPLATE", TEMPLATE)
    trainer = build_trainer(cfg)
    accuracy = trainer.test()
    check = read_result(cfg.OUTPUT_DIR)["zero_shot_check"]
    # 300 pictures: all are looked at, and the method is the same.
    assert check == {
        "accuracy": pytest.approx(accuracy), "images": 300, "template": TEMPLATE,
        "chance": pytest.approx(100 / 12), "published": None, "doubt": "",
    }  # fmt: skip
    assert accuracy > 40
    log = capsys.readouterr().out
    line = f"Zero-shot check of ImageNetR: {accuracy:.2f}% on 300 of 300 test images with"
    assert f"{line} 'A photo of a {{}},' and {cfg.MODEL.BACKBONE.NAME} (chance 8.33%)" in log
    assert not trainer.notes


def test_folders_in_another_order_are_called_out(rendition, config) -> None:
    """The names are those of the list, so nothing but the pictures can tell."""
    cfg = config(rendition(half_way))
    trainer = build_trainer(cfg)
    trainer.test()
    result = read_result(cfg.OUTPUT_DIR)
    assert result["zero_shot_check"]["doubt"] == "is at chance level (8.33%)"
    (note,) = [note for note in result["notes"] if "zero-shot check" in note]
    assert "300 test images is at chance level (8.33%). Most likely labels and class n" in note
    assert "DATASET.CLASSNAMES" in note


def test_names_in_another_order_are_called_out_without_a_model(
    rendition, config, tmp_path: Path
) -> None:
    root = rendition()
    names = [line[10:] for line in (root / "imagenet/classnames.txt").read_text().splitlines()]
    file = tmp_path / "names.txt"
    file.write_text("\n".join([*names[6:], *names[:6]]))
    trainer = build_trainer(config(root, "DATASET.CLASSNAMES", str(file)))
    first, second = trainer.notes
    assert first.startswith("12 of 12 classes of ImageNetR have the name of another class of Im")
    assert f"class 0 is called {names[6]!r}, but is ImageNet's {names[0]!r}" in first
    assert "is at chance level" in second
    # One class of a name that belongs to another is no disorder; nor are names of one's own.
    file.write_text("\n".join([names[1], *names[1:-1], "something else"]))
    trainer = build_trainer(config(root, "DATASET.CLASSNAMES", str(file)))
    assert not [note for note in trainer.notes if "have the name" in note]
    assert trainer.zero_shot_check["accuracy"] > 30
    file.write_text("\n".join([*names[6:], *names[:6]]))
    off = config(root, "DATASET.CLASSNAMES", str(file), "TEST.ZERO_SHOT_CHECK", "none")
    assert not build_trainer(off).notes


def test_a_list_that_does_not_fit_the_wnids_is_called_out(tmp_path: Path) -> None:
    """The user's classnames.txt itself may be what is out of order: it is held to the field's."""
    names = list(standard_names().values())
    shifted = [*names[1:], names[0]]
    labels = [[label] for label in range(1000)]

    def notes(classnames: list[str]) -> list[str]:
        found: list[str] = []
        dataset = SimpleNamespace(
            classnames=classnames, imagenet_names=classnames, imagenet_labels=labels,
            num_classes=1000,
        )  # fmt: skip
        test = SimpleNamespace(ZERO_SHOT_CHECK="shifts")
        cfg = SimpleNamespace(TEST=test, DATASET=SimpleNamespace(NAME="ImageNetV2"))
        trainer: Any = SimpleNamespace(
            cfg=cfg, dm=SimpleNamespace(dataset=dataset), notes=SimpleNamespace(add=found.append)
        )
        sanity.check_names(trainer)
        return found

    assert notes(names) == []
    # missile and sunglasses: two neighbours bear the same name
    (note,) = notes(shifted)
    assert note.startswith("999 of 1000 classes of ImageNetV2 have the name")
    assert "class 0 is called 'goldfish', but is ImageNet's 'tench'" in note


def test_far_below_the_published_figure_is_called_out(
    rendition, config, monkeypatch, known_model: str, capsys
) -> None:
    root = rendition()
    monkeypatch.setitem(FIGURES, ("ImageNetR", known_model), Figure(99.0, "some prompts"))
    trainer = build_trainer(config(root))
    assert trainer.zero_shot_check["published"] == 99.0
    assert "(published 99% with some prompts; chance 8.33%)" in capsys.readouterr().out
    (note,) = trainer.notes
    assert "is far below the published 99%. Most likely" in note
    # The figure is of all classes: a half has none.
    half = build_trainer(config(root, "DATASET.SUBSAMPLE_CLASSES", "base"))
    assert half.zero_shot_check["published"] is None
    assert half.zero_shot_check["images"] == 150


@pytest.mark.parametrize(
    ("accuracy", "images", "figure", "word"),
    [
        (1.6, 500, None, ""),  # 0.5 + 3 * 0.32
        (1.4, 500, None, "chance"),
        (0.0, 500, 47.87, "chance"),
        (36.5, 500, 47.87, ""),  # 47.87 - 5 - 3 * 2.23
        (36.0, 500, 47.87, "far below"),
        (60.0, 500, 47.87, ""),
    ],
)
def test_verdict(accuracy: float, images: int, figure: float | None, word: str) -> None:
    said = verdict(accuracy, images, 0.5, Figure(figure, "") if figure else None)
    assert word in said
    assert bool(said) == bool(word)


def test_one_class_cannot_be_at_chance_level() -> None:
    assert verdict(100.0, 20, 100.0, None) == ""


def test_figures_are_those_of_the_papers() -> None:
    """RAda, arXiv:2507.15480: single template from test-time training, else 80 templates."""
    one = "'a photo of a {}.'"
    assert {name: FIGURES[name, "ViT-B/16"] for name, _ in FIGURES} == {
        "ImageNet": (68.3, "80 templates"), "ImageNetV2": (60.86, one),
        "ImageNetSketch": (46.09, one), "ImageNetA": (47.87, one), "ImageNetR": (73.98, one),
        "ObjectNet": (54.2, "80 templates"),
    }  # fmt: skip


def test_sample_is_bounded_and_the_same_for_all_runs() -> None:
    assert sample_rows(7) == list(range(7))
    rows = sample_rows(50_000)
    assert len(set(rows)) == 500
    assert rows == sorted(rows) == sample_rows(50_000)
    # From all over the set, which lies sorted by class.
    assert max(np.diff(rows)) < 1500


@pytest.mark.parametrize(
    ("dataset", "backbone", "options", "expected"),
    [
        ("imagenet_r", "ViT-B/16", (), True),
        ("objectnet", "RN50", (), True),
        ("imagenet_r", "shapes", ("TEST.ZERO_SHOT_CHECK", "all"), False),
        ("shapes_v2", "shapes", ("TEST.ZERO_SHOT_CHECK", "all"), False),
        ("imagenet_r", "ViT-B/16", ("TEST.ZERO_SHOT_CHECK", "none"), False),
        ("imagenet_r", "ViT-B/16", ("INPUT.NO_TRANSFORM", "True"), False),
        ("imagenet", "ViT-B/16", (), False),
        ("imagenet", "ViT-B/16", ("TEST.ZERO_SHOT_CHECK", "all"), True),
        ("oxford_pets", "ViT-B/16", ("DATASET.CLASSNAMES", "names.txt"), True),
        ("oxford_pets", "ViT-B/16", (), False),
    ],
)
def test_what_is_checked(make_config, dataset, backbone, options, expected) -> None:
    cfg = make_config(METHOD, "MODEL.BACKBONE.NAME", backbone, *options, dataset=dataset)
    shifted = DATASET_REGISTRY.get(cfg.DATASET.NAME).shifted
    data = SimpleNamespace(shifted=shifted, test=["a picture"])
    trainer: Any = SimpleNamespace(cfg=cfg, dm=SimpleNamespace(dataset=data))
    assert is_checked(trainer) == expected
    data.test = []
    assert not is_checked(trainer)


def test_bundled_model_is_never_checked(make_config, monkeypatch) -> None:
    monkeypatch.setattr(sanity, "count_correct", lambda *args: pytest.fail("it was"))
    cfg = make_config("ZeroshotCLIP/cross_dataset", "TEST.ZERO_SHOT_CHECK", "all")
    assert build_trainer(cfg).zero_shot_check is None


def test_unknown_choice_is_refused(make_config) -> None:
    with pytest.raises(ValueError, match=r"TEST\.ZERO_SHOT_CHECK .* got 'shift'.* 'shifts'"):
        make_config(METHOD, "TEST.ZERO_SHOT_CHECK", "shift")


def test_switch_does_not_make_another_run(make_config) -> None:
    hashes = {
        config_hash(make_config(METHOD, "TEST.ZERO_SHOT_CHECK", choice))
        for choice in ("shifts", "all", "none")
    }
    assert hashes == {config_hash(make_config(METHOD))}


@pytest.mark.parametrize("method", ["LightRA", "RAdaPrompt"])
def test_runs_are_bit_identical_with_and_without(make_config, known_model, method: str) -> None:
    """Weights, results and every random generator, from building to the end of training."""
    runs = []
    for choice in ("all", "none"):
        cfg = make_config(
            f"{method}/few_shot", "MODEL.BACKBONE.NAME", known_model, "OPTIM.MAX_EPOCH", "1",
            "DATASET.NUM_SHOTS", "1", "DATASET.PROMPT_PATH", "", "TEST.ZERO_SHOT_CHECK", choice,
            "DATALOADER.TRAIN_X.BATCH_SIZE", "8",
            dataset="shapes_colours", output=choice,
        )  # fmt: skip
        trainer = build_trainer(cfg)
        checked = trainer.zero_shot_check is not None
        assert checked == (choice == "all")
        built = random_states(trainer._generators, trainer.device)
        modes = [module.training for module in trainer.model.modules()]
        trainer.train()
        runs.append(
            {
                "built": built,
                "trained": random_states(trainer._generators, trainer.device),
                "modes": modes,
                "weights": trainer.model.state_dict(),
                "metrics": read_result(cfg.OUTPUT_DIR)["metrics"],
                "per_class": read_result(cfg.OUTPUT_DIR)["per_class"],
            }
        )
    equal(*runs)


def equal(first: Any, second: Any) -> None:
    """Assert that two nested structures hold the same numbers, tensors bit by bit."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            equal(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            equal(one, other)
    else:
        assert first == second


def test_global_generators_do_not_move(rendition, config) -> None:
    trainer = build_trainer(config(rendition()))
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    before = random_states({}, trainer.device)
    sanity.sanity_check(trainer)
    equal(before, random_states({}, trainer.device))


def test_adapters_take_no_part_and_come_back(rendition, config) -> None:
    """What is checked is the pre-trained model, whatever was attached to it."""
    root = rendition()
    plain = build_trainer(config(root)).zero_shot_check
    trainer = build_trainer(config(root, method="LightRA/cross_dataset"))
    assert trainer.zero_shot_check == plain
    for parameter in clip.adapter_parameters(trainer.model).values():
        torch.nn.init.normal_(parameter, std=5.0)
    right = count_correct(trainer, range(300))
    assert right == (round(plain["accuracy"] * 3), 300)
    assert all(m.enabled for m in trainer.model.modules() if isinstance(m, clip.Adapter))


def test_check_comes_before_the_feature_cache(rendition, config, tmp_path: Path) -> None:
    root = rendition()
    plain = build_trainer(config(root)).zero_shot_check
    cache = ("FEATURE_CACHE.ENABLED", "True", "FEATURE_CACHE.DIR", str(tmp_path / "cache"))
    trainer = build_trainer(config(root, *cache))
    assert trainer.zero_shot_check == plain
    assert trainer.test() > 40


def test_unreadable_pictures_do_not_count(rendition, config) -> None:
    root = rendition()
    folder = root / "imagenet-rendition" / "imagenet-r" / wnid(0)
    for path in list(folder.iterdir())[:5]:
        path.unlink()
        path.write_bytes(b"no picture")
    trainer = build_trainer(config(root, "INPUT.ON_BAD_IMAGE", "skip"))
    assert trainer.zero_shot_check["images"] == 295
