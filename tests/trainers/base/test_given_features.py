"""Runs on ``DATASET.NAME: Features``: the same numbers as on images, without images or weights."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import clip
from dassl.data.features.arrays import read_arrays
from dassl.engine import TRAINER_REGISTRY, build_trainer, read_result, trainable_state
from dassl.prediction_file import read_predictions
from scripts import features as script
from tests.conftest import REPOSITORY
from tests.runs import in_precision, own_file
from tests.trainers.plain import SHORT_GRID
from trainers.base import CLIPTrainer

FROZEN = [
    name
    for name in TRAINER_REGISTRY.registered_names()
    if issubclass(kind := TRAINER_REGISTRY.get(name), CLIPTrainer)
    and kind.__module__.startswith("trainers.")
    and kind.frozen_image_encoder
]
TEXT_LEARNERS = ["CoCoOp", "CoOp", "KgCoOp", "ProGrad"]
WORKING = [name for name in FROZEN if name not in TEXT_LEARNERS]
SMALL = ("DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "3", "FEATURE_CACHE.VIEWS", "2")
BATCH = ("DATALOADER.TRAIN_X.BATCH_SIZE", "8", "DATALOADER.NUM_WORKERS", "0")


@pytest.fixture
def export(shapes_root, tmp_path):
    """(method file, options) -> the config file of features of Shapes, written by the script."""

    def write(method: str, *options: str, suffix=".npz", output="exported") -> Path:
        words = ["export", "--root", shapes_root, "--backbone", "shapes", "--device", "cpu"]
        words += ["--dataset-config-file", str(REPOSITORY / "configs/datasets/shapes.yaml")]
        words += ["--config-file", str(REPOSITORY / f"configs/trainers/{method}.yaml")]
        words += ["--output", str(tmp_path / output), "--suffix", suffix]
        cache = ("FEATURE_CACHE.DIR", str(tmp_path / "cache"))
        assert script.main([*words, *options, *BATCH, *cache]) == 0
        return tmp_path / output / "dataset.yaml"

    return write


@pytest.fixture
def on_features(make_config, tmp_path, monkeypatch):
    """(method file, config file of features, options) -> a trainer; weights may not be loaded."""

    def build(method: str, dataset: Path, *options: str, output="run", weights=False):
        flags = ("--dataset-config-file", str(dataset))
        cfg = make_config(method, *BATCH, *options, flags=flags, output=output)
        with monkeypatch.context() as patch:
            if not weights:
                patch.setattr(clip, "load", refuse)
            return build_trainer(cfg)

    return build


@pytest.fixture
def on_images(make_config, tmp_path):
    """(method file, options) -> a trainer on Shapes with the feature cache."""

    def build(method: str, *options: str, output="images"):
        cache = ("FEATURE_CACHE.DIR", str(tmp_path / "cache"))
        flags = ("--backbone", "shapes", "--feature-cache")
        cfg = make_config(method, *options, *BATCH, *cache, flags=flags, output=output)
        return build_trainer(cfg)

    return build


def refuse(*args, **kwargs):
    raise AssertionError("weights are loaded")


def losses_of(trainer) -> list[float]:
    """Train; the loss of every step."""
    found, step = [], trainer.forward_backward

    def noted(batch):
        summary = step(batch)
        found.append(summary["loss"])
        return summary

    trainer.forward_backward = noted
    trainer.train()
    return found


@pytest.fixture
def same_start(monkeypatch):
    """Seed again behind the backbone: building one draws numbers, and a stand-in draws none."""
    load = CLIPTrainer.load_backbone

    def seeded(self):
        backbone = load(self)
        torch.manual_seed(7)
        return backbone

    monkeypatch.setattr(CLIPTrainer, "load_backbone", seeded)


@pytest.mark.usefixtures("same_start")
@pytest.mark.parametrize("texts", ["given", "encoded"])
@pytest.mark.parametrize("name", ["ZeroshotCLIP", "ZeroshotCLIP2", "RAda", "CLIPAdapter"])
def test_runs_agree_digit_for_digit(name, texts, export, on_images, on_features):
    method = own_file(name)
    images = on_images(method, *SMALL)
    expected = losses_of(images)
    dataset = export(method, *SMALL)
    encoded = ("DATASET.FEATURES.TEXT", "", "MODEL.BACKBONE.NAME", "shapes")
    options = encoded if texts == "encoded" else ()
    given = on_features(method, dataset, *SMALL[2:4], *options, weights=texts == "encoded")
    assert losses_of(given) == expected
    assert bool(expected) == bool(trainable_state(given.model))
    for key, value in trainable_state(images.model).items():
        assert torch.equal(trainable_state(given.model)[key], value)
    found, wanted = (read_result(trainer.output_dir) for trainer in (given, images))
    for key in ("metrics", "per_class", "num_test", "num_classes"):
        assert found[key] == wanted[key]
    assert found["metrics"]["accuracy"] > 2 * found["chance"]


@pytest.mark.parametrize("half", ["base", "new"])
def test_draws_and_halves_agree(half, export, on_images, on_features):
    """Two shots of what was exported whole are the pictures that two shots of images are."""
    dataset = export("ZeroshotCLIP/few_shot", "FEATURE_CACHE.VIEWS", "1")
    options = ("DATASET.NUM_SHOTS", "2", "DATASET.SUBSAMPLE_CLASSES", half)
    given = on_features("ZeroshotCLIP/few_shot", dataset, *options)
    images = on_images("ZeroshotCLIP/few_shot", *options)
    for part in ("train_x", "val", "test"):
        found, wanted = (getattr(trainer.dm.dataset, part) for trainer in (given, images))
        assert [Path(a.impath).parts[-3:] for a in found] == [
            Path(b.impath).parts[-3:] for b in wanted
        ]
        assert [(a.label, a.classname) for a in found] == [(b.label, b.classname) for b in wanted]
    given.train()
    images.train()
    found, wanted = (read_result(trainer.output_dir) for trainer in (given, images))
    assert found["metrics"]["accuracy"] == wanted["metrics"]["accuracy"]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
def test_what_is_exported(suffix, export, on_images):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    dataset = export("RAda/base2novel", *SMALL, suffix=suffix)
    folder, images = dataset.parent, on_images("RAda/base2novel", *SMALL)
    section = yaml.safe_load(dataset.read_text())["DATASET"]
    assert section["NAME"] == "Features"
    files = {"TRAIN": "train", "VAL": "val", "TEST": "test", "TEXT": "text"}
    assert section["FEATURES"] == {key: f"{name}{suffix}" for key, name in files.items()}
    names = ("features", "labels", "classnames", "paths")
    train, _ = read_arrays(folder / f"train{suffix}", names)
    loader = images.train_loader_x
    for view in range(2):
        assert np.array_equal(train["features"][:, view], loader.features(view)[0].numpy())
    assert not np.array_equal(train["features"][:, 0], train["features"][:, 1])
    assert train["labels"].tolist() == [item.label for item in images.dm.dataset.train_x]
    assert train["classnames"] == images.dm.dataset.classnames
    assert train["paths"][0] == images.dm.dataset.relative_path(images.dm.dataset.train_x[0])
    test, _ = read_arrays(folder / f"test{suffix}", names)
    assert np.array_equal(test["features"], images.test_loader.features(0)[0].numpy())
    text, _ = read_arrays(folder / f"text{suffix}", ("text_features", "logit_scale", "text_labels"))
    bank, backbone = images.model.bank, images.model.backbone
    raw = bank.encode_all(backbone, unit=False).numpy()
    assert np.array_equal(text["text_features"].reshape(raw.shape), raw)
    assert np.float32(text["logit_scale"]) == backbone.logit_scale.numpy()


def test_classes_with_different_numbers_of_texts(export, on_images, on_features, tmp_path):
    names = on_images("RAda/base2novel", *SMALL, output="names").dm.dataset.classnames
    prompts = {name: ["one sentence."] + ["and another."] * (k % 3) for k, name in enumerate(names)}
    file = tmp_path / "descriptions.json"
    file.write_text(json.dumps(prompts))
    described = (*SMALL, "DATASET.PROMPT_PATH", str(file), "TRAINER.RADA.CTX_INIT", "")
    images = on_images("RAda/base2novel", *described)
    dataset = export("RAda/base2novel", *described)
    given = on_features("RAda/base2novel", dataset)
    assert given.model.bank.counts.tolist() == images.model.bank.counts.tolist()
    assert torch.equal(given.model.class_weights(), images.model.class_weights())


@pytest.mark.parametrize("name", WORKING)
def test_every_method_without_towers_trains_and_is_evaluated(name, export, on_features, capsys):
    dataset = export("ZeroshotCLIP2/few_shot", *SMALL)
    capsys.readouterr()
    half = in_precision(name, "bf16")  # single precision is in the other tests
    short = ("OPTIM.MAX_EPOCH", "1", *SHORT_GRID)
    trainer = on_features(own_file(name), dataset, *short, *half)
    trainer.train()
    accuracy = read_result(trainer.output_dir)["metrics"]["accuracy"]
    assert accuracy > 3 * 2.5
    printed = capsys.readouterr().out
    assert "No backbone is loaded: image and text features are given" in printed
    assert "prompts and templates have no effect" in printed
    assert "First prompt" not in printed
    again = on_features(own_file(name), dataset, *SHORT_GRID, *half, output="again")
    again.load_model(trainer.output_dir if trainable_state(trainer.model) else "")
    assert again.test() == accuracy


@pytest.mark.parametrize("name", TEXT_LEARNERS)
def test_methods_that_learn_texts_need_a_backbone(name, export, on_features):
    dataset = export("ZeroshotCLIP/few_shot", *SMALL)
    with pytest.raises(ValueError, match=rf"but {name} learns what goes into one\. .*take one of"):
        on_features(own_file(name), dataset)
    options = ("DATASET.FEATURES.TEXT", "", "MODEL.BACKBONE.NAME", "shapes")
    trainer = on_features(own_file(name), dataset, *options, "OPTIM.MAX_EPOCH", "1", weights=True)
    trainer.train()
    assert read_result(trainer.output_dir)["metrics"]["accuracy"] > 2 * 2.5


@pytest.mark.parametrize("name", ["LightRA", "FT", "TPT"])
def test_methods_that_change_features_are_refused(name, export, on_features):
    dataset = export("ZeroshotCLIP/few_shot", *SMALL)
    refusal = rf"{name} changes what the image encoder computes, so it needs images\. Methods"
    with pytest.raises(ValueError, match=refusal) as caught:
        on_features(own_file(name), dataset)
    listed = str(caught.value).rpartition(": ")[2].split(", ")
    assert set(listed) == set(WORKING)


def test_texts_of_a_backbone(export, on_images, on_features):
    """Without text features the named model encodes the method's prompts, as for images."""
    dataset = export("ZeroshotCLIP/few_shot", *SMALL)
    options = ("DATASET.FEATURES.TEXT", "", "MODEL.BACKBONE.NAME", "shapes")
    given = on_features("RAda/base2novel", dataset, *options, weights=True)
    images = on_images("RAda/base2novel", *SMALL)
    assert given.model.bank.texts == images.model.bank.texts
    assert torch.equal(given.model.class_weights(), images.model.class_weights())


def test_a_backbone_of_another_width_is_refused(export, on_features, tiny_checkpoint):
    dataset = export("ZeroshotCLIP/few_shot", *SMALL)
    options = ("DATASET.FEATURES.TEXT", "", "MODEL.BACKBONE.NAME", tiny_checkpoint)
    with pytest.raises(ValueError, match=r"TRAIN has features of width 128, but .* have 64; set"):
        on_features("RAda/base2novel", dataset, *options, weights=True)


def test_views_take_turns_by_epoch(export, on_features):
    dataset = export("ZeroshotCLIP/few_shot", *SMALL)
    trainer = on_features("RAda/base2novel", dataset, "OPTIM.MAX_EPOCH", "3")
    features, _ = read_arrays(dataset.parent / "train.npz", ("features",))
    loader = trainer.train_loader_x
    for epoch in range(3):
        loader.set_epoch(epoch)
        batches = list(loader)
        index = torch.cat([batch["index"] for batch in batches])
        served = torch.cat([batch["img"] for batch in batches])
        assert len(set(index.tolist())) == len(index)
        assert np.array_equal(served, features["features"][index.numpy(), epoch % 2])
    assert "2 views of each training image take turns in 3 epochs" in trainer.notes
    assert trainer.val_loader.views == trainer.test_loader.views == 1


def test_other_features_as_targets(export, on_features):
    """A mask trained on one set is tested on another set of features, with texts of its own."""
    source = export("RAda/base2novel", *SMALL)
    trained = on_features("RAda/base2novel", source)
    trained.train()
    folder = source.parent
    test, _ = read_arrays(folder / "test.npz", ("features", "labels", "classnames"))
    text, _ = read_arrays(folder / "text.npz", ("text_features", "classnames"))
    kept = test["labels"] < 5
    target = folder.parent / "target"
    target.mkdir()
    arrays = {"features": test["features"][kept], "labels": test["labels"][kept]}
    np.savez(target / "test.npz", classnames=test["classnames"][:5], **arrays)
    np.savez(target / "text.npz", **text)
    content = {"NAME": "Features", "DIR": str(target)}
    content["FEATURES"] = {"TEST": "test.npz", "TEXT": "text.npz"}
    (target / "dataset.yaml").write_text(yaml.safe_dump({"DATASET": content}))
    tested = on_features("RAda/base2novel", target / "dataset.yaml", output="tested")
    tested.load_model(trained.output_dir)
    assert tested.test() > 2 * 20
    result = read_result(tested.output_dir)
    assert (result["num_classes"], result["num_test"], result["eval_only"]) == (5, 25, True)
    with pytest.raises(ValueError, match="has no training images"):
        on_features("RAda/base2novel", target / "dataset.yaml", output="untrained").train()
    found = read_predictions(tested.output_dir)
    file = os.path.relpath(target / "test.npz", tested.cfg.DATASET.ROOT)
    assert [image.image for image in found] == [f"{file}#{row}" for row in range(25)]
    right = sum(not image.is_wrong for image in found)
    assert 4 * right == pytest.approx(result["metrics"]["accuracy"])


def test_a_run_is_told_apart_by_its_files(export, on_features):
    dataset = export("ZeroshotCLIP/few_shot", *SMALL)
    first = on_features("RAda/base2novel", dataset).identity.content()
    inputs = first["inputs"]
    read = {Path(path).name for path in inputs["files"]}
    assert {"train.npz", "val.npz", "test.npz", "text.npz"} <= read
    # A line per file, not one per row.
    assert [names for names, _ in inputs["images"].values()] == [
        ["test.npz", "train.npz", "val.npz"]
    ]
    text, _ = read_arrays(dataset.parent / "text.npz", ("text_features", "classnames"))
    np.savez(dataset.parent / "text.npz", text_features=2 * text["text_features"])
    changes = on_features("RAda/base2novel", dataset).identity.changes_since(first)
    assert any("text.npz" in line or "FEATURES.TEXT" in line for line in changes)


def test_transforms_of_images_are_refused(export, on_features):
    dataset = export("ZeroshotCLIP/few_shot", *SMALL)
    with pytest.raises(
        ValueError, match=r"no images to transform: set DATALOADER.K_TRANSFORMS 1 \(got 2"
    ):
        on_features("RAda/base2novel", dataset, "DATALOADER.K_TRANSFORMS", "2")


def test_a_feature_cache_has_nothing_to_do(export, on_features, tmp_path):
    dataset = export("ZeroshotCLIP/few_shot", *SMALL)
    options = ("FEATURE_CACHE.ENABLED", "True", "FEATURE_CACHE.DIR", str(tmp_path / "unused"))
    trainer = on_features("ZeroshotCLIP/few_shot", dataset, *options, "OPTIM.MAX_EPOCH", "2")
    trainer.train()
    assert not (tmp_path / "unused").exists()
    assert list(trainer.notes) == []


def test_methods_that_learn_texts_are_not_exported(export, capsys):
    with pytest.raises(AssertionError):
        export("CoOp/few_shot", *SMALL)
    assert "CoOp learns its texts, so that they are no features" in capsys.readouterr().err


def test_labels_in_another_order_than_texts_are_noted(export, on_features, capsys):
    dataset = export("ZeroshotCLIP/few_shot", *SMALL)
    good = on_features("RAda/base2novel", dataset, "OPTIM.MAX_EPOCH", "2")
    assert good.zero_shot_check["accuracy"] > 3 * 2.5
    assert list(good.notes) == []
    said = "test images with the given text features (chance 2.50%)"
    assert said in capsys.readouterr().out
    text, _ = read_arrays(dataset.parent / "text.npz", ("text_features", "logit_scale"))
    np.savez(dataset.parent / "text.npz", text_features=text["text_features"][::-1])
    turned = on_features("RAda/base2novel", dataset, output="turned")
    assert "is at chance level" in turned.zero_shot_check["doubt"]
    assert any("labels and class names are in different order" in note for note in turned.notes)


def test_classes_with_the_same_text_features_are_noted(export, on_features):
    dataset = export("ZeroshotCLIP/few_shot", *SMALL)
    text, _ = read_arrays(dataset.parent / "text.npz", ("text_features", "classnames"))
    text["text_features"][1] = text["text_features"][0]
    np.savez(dataset.parent / "text.npz", **text)
    notes = on_features("ZeroshotCLIP/few_shot", dataset, "OPTIM.MAX_EPOCH", "2").notes
    assert len(notes) == 1
    assert "cannot tell 2 of 40 classes apart, whose text features are the same" in notes[0]
