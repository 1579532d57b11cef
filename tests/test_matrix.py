"""Every registered trainer, dataset row and config file goes through the same checks."""

import copy
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import clip
from clip import adapter_parameters, adapters_disabled
from dassl.config import config_hash, read_layers
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import (
    TRAINER_REGISTRY,
    SimpleTrainer,
    TrainerBase,
    TrainerX,
    build_trainer,
    read_result,
    trainable_state,
)
from dassl.prediction_file import read_predictions
from datasets.rows import ROWS
from scripts.exporting.graph import Classifier, traced
from tests.conftest import REPOSITORY
from tests.runs import OURS, SMALL, SmallRuns, own_file
from trainers.base import CLIPTrainer

METHOD_FILES = sorted((REPOSITORY / "configs/trainers").glob("*/*.yaml"))
DATASET_FILES = sorted((REPOSITORY / "configs/datasets").glob("*.yaml"))
# Recipes of hundreds of epochs move too little in the few of these tests; with ImageNet's weight of
# its consistency CoPrompt takes three epochs to get back to where it starts (two sets have 0.1).
FASTER = {
    "CLIPAdapter": ("OPTIM.LR", "0.02"),
    "CLAP": ("OPTIM.LR", "1.0"),
    "CLIPAdapterFFT": ("OPTIM.MAX_EPOCH", "3"),
    "CoPrompt": ("TRAINER.CoPrompt.LOSS_WEIGHT", "0.1"),
    "TaskRes": ("OPTIM.LR", "0.05"),
    "ZSLP": ("OPTIM.LR", "1.0"),
}

# Methods whose releases do something that changes numbers and that a run can differ in.
CHOOSERS = {
    *("CLIPAdapter", "CoCoOp", "CoPrompt", "DePT", "IVLP", "KgCoOp", "MMA", "ProGrad"),
    *("PromptAlign", "PromptSRC", "ProVP", "RAda", "RAdaAdapter", "RAdaPrompt", "TPT", "VPT"),
}
# Trained values so few that two epochs move accuracy by less than its scatter.
FEW_VALUES = ("CoOp", "CoCoOp", "KgCoOp", "ProGrad")


def method_id(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def pairs_of_files() -> list[tuple[str, str]]:
    """(method file, dataset file): each with one of the other kind, and those that know another."""
    names = {
        path.stem: yaml.safe_load(path.read_text())["DATASET"]["NAME"] for path in DATASET_FILES
    }
    pairs = {("LightRA/base2novel", dataset) for dataset in names}
    for path in METHOD_FILES:
        known = {name for layer in read_layers(path) for name in layer.per_dataset}
        pairs |= {(method_id(path), d) for d, name in names.items() if name in known}
        pairs |= {(method_id(path), "shapes"), (method_id(path), "imagenet")}
    return sorted(pairs)


@pytest.mark.parametrize(("method", "dataset"), pairs_of_files())
def test_pairs_of_files_make_a_config(make_config, method, dataset):
    cfg = make_config(method, dataset=dataset)
    assert cfg.TRAINER.NAME == method.partition("/")[0]
    assert cfg.TRAINER.NAME in TRAINER_REGISTRY.registered_names()
    assert cfg.DATASET.NAME in DATASET_REGISTRY.registered_names()
    if cfg.MODEL.BACKBONE.NAME == "shapes":
        assert cfg.INPUT.SIZE == (48, 48)


def leaves(section, prefix: str = "") -> dict[str, Any]:
    """Full key -> value."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        nested = isinstance(value, dict)
        found.update(leaves(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return found


def repeated_keys(path: Path, defaults: dict[str, Any]) -> list[str]:
    """Keys of a file that say what holds without it."""
    *bases, own = read_layers(path)
    below: dict[str, Any] = {}
    for base in bases:
        below.update(leaves(base.content))
    # A method's recipe may be whole in its lowest file, defaults included.
    expected = {**defaults, **below}
    return [
        key
        for key, value in leaves(own.content).items()
        if key in expected
        and value == expected[key]
        and (key in below or not key.startswith(("TRAINER.", "OPTIM.")))
    ]


@pytest.mark.parametrize("path", METHOD_FILES, ids=method_id)
def test_config_files_hold_only_differences(path):
    """A key that repeats its default, or its base's value, hides what a file really changes."""
    from scripts.training.config import default_config

    assert not repeated_keys(path, leaves(default_config()))
    assert path.read_text().startswith("#"), "the head says what it is and how it is run"


def test_repetition_of_a_base_is_noticed_in_config_files(tmp_path):
    defaults = {"OPTIM.LR": 1.0, "OPTIM.GAMMA": 2.0, "A.B": 3, "A.C": 4}
    (tmp_path / "low.yaml").write_text("OPTIM: {LR: 5.0, GAMMA: 2.0}\nA: {B: 6}")
    (tmp_path / "mid.yaml").write_text("_BASE_: low.yaml\nA: {B: 7}")
    (tmp_path / "top.yaml").write_text("_BASE_: mid.yaml\nOPTIM: {LR: 5.0}\nA: {B: 6, C: 4}")
    assert repeated_keys(tmp_path / "low.yaml", defaults) == []
    assert repeated_keys(tmp_path / "mid.yaml", defaults) == []
    assert repeated_keys(tmp_path / "top.yaml", defaults) == ["OPTIM.LR", "A.C"]


@pytest.mark.parametrize("name", OURS)
def test_every_method_has_its_protocols(name):
    found = {path.stem for path in METHOD_FILES if path.parent.name == name}
    assert found >= set(TRAINER_REGISTRY.get(name).protocols)


@pytest.mark.parametrize("name", OURS)
def test_no_method_inherits_another(name):
    above = TRAINER_REGISTRY.get(name).__mro__[1:]
    assert not {TRAINER_REGISTRY.get(other) for other in OURS} & set(above)


@pytest.mark.parametrize("name", OURS)
def test_between_a_method_and_dassl_is_one_class(name):
    """What a family of methods shares are functions and its recipe, not a base class."""
    line = TRAINER_REGISTRY.get(name).__mro__[1:]
    assert line == (CLIPTrainer, TrainerX, SimpleTrainer, TrainerBase, object)


@pytest.mark.parametrize("name", [n for n in OURS if TRAINER_REGISTRY.get(n).compares_images])
def test_losses_that_compare_images_need_the_whole_batch(make_config, name):
    with pytest.raises(ValueError, match=rf"OPTIM.ACCUMULATE is 2, but {name}'s loss compares"):
        build_trainer(make_config(own_file(name), *SMALL, "OPTIM.ACCUMULATE", "2"))


@pytest.mark.parametrize(
    "name",
    ["HPT", "IVLP", "LightRA", "LightRAda", "MMA", "MaPLe", "RAdaAdapter", "RAdaPrompt", "VPT"],
)
def test_layers_of_a_resnet_are_refused_before_anything_is_loaded(make_config, name):
    cfg = make_config(own_file(name), flags=("--backbone", "RN50"))
    refusal = rf"{name} adapts the transformer layers.*'RN50'.*ViT-B/16"
    with pytest.raises(ValueError, match=refusal):
        build_trainer(cfg)


def test_every_row_has_a_file_and_every_file_a_row():
    rows = {row.config: row.name for row in ROWS}
    files = {p.stem: yaml.safe_load(p.read_text())["DATASET"]["NAME"] for p in DATASET_FILES}
    assert files == {**rows, "folder": "Folder", "split": "Split", "features": "Features"}


@pytest.fixture(scope="module")
def own_config(shapes_root, tmp_path_factory):
    """(method, trailing options) -> the config of a run, whose first stage is trained."""
    return SmallRuns(shapes_root, lambda: tmp_path_factory.mktemp("run")).of_method


@dataclass(frozen=True)
class FinishedRun:
    """A trainer behind its small run, and what its model was before."""

    trainer: CLIPTrainer
    start: dict[str, torch.Tensor]  # all parameters by name
    declared: set[str]  # names of what required a gradient
    logits: tuple[torch.Tensor, torch.Tensor]  # of a black picture, before and after


def black_picture_logits(trainer: CLIPTrainer) -> torch.Tensor:
    """(1, 20)."""
    return trainer.model.eval()(torch.zeros(1, 3, 48, 48)).detach()


@pytest.fixture(scope="module")
def finished(name, own_config) -> FinishedRun:
    """The method's small run: trained once for all tests that only look at it."""
    trainer = build_trainer(own_config(name, *SMALL))
    before = black_picture_logits(trainer)  # makes what is made when needed
    parameters = dict(trainer.model.named_parameters())
    start = {n: p.detach().clone() for n, p in parameters.items()}
    declared = {n for n, p in parameters.items() if p.requires_grad}
    trainer.train()
    return FinishedRun(trainer, start, declared, (before, black_picture_logits(trainer)))


# In the scope of the module all tests of a method follow each other and share its run.
@pytest.mark.parametrize("name", OURS, scope="module")
class TestTrainer:
    """On the bundled suite: 20 classes, one shot, one epoch."""

    def test_trains_saves_loads_and_reports(self, name, own_config, finished):
        declared, (before, after) = finished.declared, finished.logits
        now = dict(finished.trainer.model.named_parameters())
        assert {n for n, p in now.items() if p.requires_grad} == declared
        assert all(torch.equal(now[n], p) == (n not in declared) for n, p in finished.start.items())
        assert torch.equal(before, after) != bool(declared)

        cfg = finished.trainer.cfg
        result = read_result(cfg.OUTPUT_DIR)
        assert result["trainable_parameters"] == sum(now[n].numel() for n in declared)
        assert result["config_hash"] == config_hash(cfg)
        assert result["num_classes"] == 20
        kept = read_predictions(cfg.OUTPUT_DIR)
        assert len(kept) == result["num_test"]
        wrong = Counter(image.label for image in kept if image.is_wrong)
        assert all(r["total"] - r["correct"] == wrong[r["label"]] for r in result["per_class"])

        other = build_trainer(own_config(name, *SMALL))
        other.load_model(cfg.OUTPUT_DIR if declared else "")
        assert torch.equal(black_picture_logits(other), after)

    def test_its_evaluation_is_one_graph(self, name, finished):
        """For any number of images, as train.py --export writes it."""
        trainer = finished.trainer
        if trainer.recipe.no_graph:
            return
        trainer.set_model_mode("eval")
        images = torch.randn(4, 3, 48, 48)
        run = traced(Classifier(trainer), images[:2]).module()
        with torch.no_grad():
            for some in (images, images[:1]):
                logits, features = run(some)
                torch.testing.assert_close(logits, trainer.model_inference(some), atol=1e-4, rtol=0)
                assert features.shape == (len(some), trainer.model.backbone.embed_dim)

    def test_checkpoint_holds_only_what_trains(self, name, finished):
        files = list(Path(finished.trainer.output_dir).glob("*/model.pth.tar-*"))
        expected = trainable_state(finished.trainer.model)
        assert bool(files) == bool(expected)
        for file in files:
            content = torch.load(file, weights_only=True)
            assert content["state_dict"].keys() == expected.keys()
            assert content["meta"]["method"] == name
            assert content["meta"]["num_classes"] == 20

    def test_the_log_says_what_was_chosen(self, name, own_config, capsys):
        trainer = build_trainer(own_config(name, *SMALL))
        printed = capsys.readouterr().out
        section = trainer.config_section or name
        key, value = next(iter(trainer.options.items()))
        assert f"TRAINER.{section}: {key} {value!r}" in printed
        for line in trainer.choices():
            assert f"{name}: {line}\n" in printed
        said = f"{name}: the release trains in pure half precision" in printed
        assert said == trainer.released_in_half
        assert bool(trainer.choices()) == (name in CHOOSERS)

    def test_disabled_adapters_give_the_pre_trained_model(self, name, own_config):
        trainer = build_trainer(own_config(name, *SMALL))
        # Another kernel computes attention with trained weights, equal but for the last bits.
        backbone = trainer.model.backbone.requires_grad_(False)
        images = torch.randn(2, 3, 48, 48)
        tokens = backbone.tokenize(["a red circle"])
        original = clip.load("shapes")
        plain = original.encode_image(images), original.encode_text(tokens)
        for parameter in adapter_parameters(backbone).values():
            parameter.data.normal_()
        with adapters_disabled(backbone):
            off = backbone.encode_image(images), backbone.encode_text(tokens)
        assert all(torch.equal(a, b) for a, b in zip(plain, off, strict=True))

    def test_new_classes_are_evaluated_with_base_weights(self, name, own_config, finished):
        if "base2novel" not in TRAINER_REGISTRY.get(name).protocols:
            return
        base = finished.trainer
        first_stage = ("FIRST_STAGE.DIR", base.cfg.FIRST_STAGE.DIR)
        options = [*SMALL[:2], "DATASET.SUBSAMPLE_CLASSES", "new", *SMALL[4:], *first_stage]
        new = build_trainer(own_config(name, *options))
        new.load_model(base.output_dir)
        new.test()
        assert read_result(new.output_dir)["eval_only"]
        assert set(new.dm.dataset.classnames).isdisjoint(base.dm.dataset.classnames)
        state = trainable_state(base.model)
        assert all(torch.equal(v, state[k]) for k, v in trainable_state(new.model).items())

    def test_steps_on_a_batch_lower_its_loss(self, name, own_config):
        trainer = build_trainer(own_config(name, *SMALL, "OPTIM.WARMUP_EPOCH", "0"))
        if not trainable_state(trainer.model) or not trainer.recipe.takes_steps:
            return
        trainer.set_model_mode("train")
        trainer.batch_idx, trainer.num_batches = 0, 100  # no step is the last of an epoch
        batch = next(iter(trainer.train_loader_x))
        losses = [trainer.forward_backward(batch)["loss"] for _ in range(20)]
        assert min(losses[-5:]) < losses[0]

    def test_learns(self, name, own_config, whole_shapes):
        """Two epochs on two classes' worth of pictures lower the loss."""
        if name in FEW_VALUES:
            return
        more = ("DATASET.NUM_SHOTS", "8", "OPTIM.MAX_EPOCH", "2")
        options = [*SMALL, *more, *FASTER.get(name, ())]
        # On all test pictures: on a few of them accuracy scatters too much.
        trainer = build_trainer(own_config(name, *options, "DATASET.ROOT", whole_shapes))
        if not trainable_state(trainer.model):
            return
        start = copy.deepcopy(trainer.test())
        trainer.train()
        assert read_result(trainer.output_dir)["metrics"]["accuracy"] > start + 5
