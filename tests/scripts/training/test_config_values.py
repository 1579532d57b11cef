"""Values that make no sense are refused in one line each, before anything is loaded."""

import re
from pathlib import Path

import pytest

import train
import trainers  # noqa: F401 - registers the methods
from dassl.config import get_cfg_default, merge_file, read_layers
from dassl.config.defaults import TOGETHER
from dassl.config.layers import PER_SHOTS
from dassl.config.schema import (
    PATH,
    Option,
    check_config,
    count,
    each,
    number,
    one_of,
    trainer_options,
)
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, build_trainer
from scripts.training.config import config_options, default_config
from tests.conftest import REPOSITORY

FILES = sorted((REPOSITORY / "configs").glob("*/**/*.yaml"))


@pytest.fixture(scope="module")
def declared():
    cfg = default_config()
    return cfg, config_options(cfg)


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_every_key_says_what_it_means_and_its_default_is_allowed():
    cfg = default_config()
    options = config_options(cfg)
    assert {key for key, _ in leaves(cfg)} == set(options)
    assert [key for key, option in options.items() if not option.meaning] == []
    assert [
        key for key, value in leaves(cfg) if type(value) is not type(options[key].default)
    ] == []
    # An empty name is one that is still to be set.
    odd = [key for key, option in options.items() if not option.rule.holds(option.default)]
    assert sorted(odd) == ["DATASET.NAME", "TRAINER.NAME"]
    check_config(cfg, options, TOGETHER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_all_that_the_files_can_set_is_allowed(path: Path, declared):
    """With each of the sections for a dataset or a number of shots, of its bases too."""
    default, options = declared
    layers = read_layers(path)
    parts = [part for layer in layers for part in (layer.content, *layer.per_dataset.values())]
    shots = {n for part in parts for n in part.get(PER_SHOTS, {})}
    datasets = {name for layer in layers for name in layer.per_dataset}
    for dataset, number_of in [
        (None, -1),
        *((d, -1) for d in datasets),
        *((None, n) for n in shots),
    ]:
        cfg = default.clone()
        merge_file(cfg, path, dataset, number_of, known_datasets=DATASET_REGISTRY)
        check_config(cfg, options, TOGETHER)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("OPTIM.LR", "0", "a finite number above 0, at most 10000, got 0.0"),
        ("OPTIM.LR", "1e999", "a finite number above 0, at most 10000, got inf"),
        ("OPTIM.WARMUP_CONS_LR", "-1.0", "a finite number above 0"),
        ("OPTIM.WARMUP_EPOCH", "1000000000", "a whole number -1 to 1000000"),
        ("OPTIM.WARMUP_EPOCH", "300", r"at most OPTIM.MAX_EPOCH (20)"),
        ("OPTIM.WEIGHT_DECAY", "-1e-4", "a finite number 0 or more, got -0.0001"),
        ("OPTIM.WEIGHT_DECAY", "1e999", "a finite number 0 or more, got inf"),
        ("OPTIM.GAMMA", "-0.1", "a finite number above 0, at most 1"),
        ("OPTIM.ADAM_BETA1", "1.0", "a finite number 0 or more, below 1"),
        ("OPTIM.ACCUMULATE", "0", "a whole number 1 or more"),
        ("OPTIM.STEPSIZE", "(5.5,)", "values, each -1 or a whole number 1 or more"),
        ("OPTIM.NAME", "adm", "one of adam, "),
        ("INPUT.SIZE", "(0, 0)", "2 values, each a whole number 1 to 4096, got (0, 0)"),
        ("INPUT.SIZE", "(224,)", "2 values, each a whole number"),
        ("INPUT.SIZE", "('a', 'b')", "2 values, each a whole number"),
        ("INPUT.PIXEL_STD", "(0, 0, 0)", "1 or 3 values, each a finite number above 0, at most 1"),
        ("INPUT.PIXEL_MEAN", "(123.7, 116.8, 103.9)", "1 or 3 values, each a finite number 0 to 1"),
        ("INPUT.RRCROP_SCALE", "(2, 3)", "2 values, each a finite number above 0, at most 1"),
        ("INPUT.RRCROP_SCALE", "(0.9, 0.1)", "the least share, then the largest"),
        ("INPUT.GB_K", "2", "an odd number 1 to 999"),
        ("INPUT.TRANSFORMS", "['random_flp']", "values, each one of random_translation"),
        ("SEED", "-2", "a whole number -1 to 4294967295"),
        ("DEVICE", "gpu", "auto, cpu, cuda, cuda:N or mps, got 'gpu'"),
        ("TRAIN.TIMEOUT", "99999999999", "a whole number 1 to 31536000"),
        ("DATASET.NUM_SHOTS", "-2", "-1 or a whole number 1 or more"),
        ("DATASET.SPLIT_RATIO", "(1, 1, 1)", "three shares (train, val, test) that sum to 1"),
        ("DATALOADER.TRAIN_X.BATCH_SIZE", "0", "a whole number 1 or more"),
        ("ALPHA", "1e999", "a finite number 0 or more, got inf"),
        ("TEMP", "0", "a finite number above 0"),
        ("FIRST_STAGE.EPOCH", "-1", "a whole number 0 or more"),
        ("TRAINER.LightRA.LOSS_WEIGHT", "-9", "a finite number 0 or more"),
        ("TRAINER.LightRA.VISION_DEPTH", "999", "a whole number 0 to 128"),
        ("TRAINER.LightRA.N_CTX_TEXT", "1000000", "a whole number 1 to 1024"),
        ("TRAINER.LightRA.PREC", "fp8", "one of fp32, fp16, bf16, amp, got 'fp8'"),
        ("TRAINER.CoOp.N_CTX", "76", "a whole number 1 to 75"),
        ("TRAINER.DePT.HOST", "CoOpp", "one of CoOp, "),
    ],
)
def test_senseless_values_are_refused(make_config, key, value, allowed):
    with pytest.raises(
        ValueError, match=f"^{re.escape(key)} must be {re.escape(allowed)}"
    ) as error:
        make_config("LightRA/base2novel", key, value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        ("OPTIM.MAX_EPOCH", "0", "OPTIM.WARMUP_EPOCH", "-1"),
        ("OPTIM.WEIGHT_DECAY", "0", "OPTIM.MAX_GRAD_NORM", "0", "TRAIN.RESUME_FREQ", "0"),
        ("OPTIM.LR_SCHEDULER", "multi_step", "OPTIM.STEPSIZE", "(30, 60)"),
        ("OPTIM.LR_SCHEDULER", "single_step", "OPTIM.STEPSIZE", "(-1,)", "OPTIM.GAMMA", "1"),
        ("INPUT.TRANSFORMS", "()", "INPUT.PIXEL_STD", "(1, 1, 1)", "INPUT.PIXEL_MEAN", "(0, 0, 0)"),
        ("TRAINER.LightRA.TEXT_DEPTH", "0", "TRAINER.LightRA.LOSS_WEIGHT", "0"),
        ("DATASET.NUM_SHOTS", "-1", "SEED", "-1", "DATALOADER.NUM_WORKERS", "0"),
    ],
)
def test_what_people_set_is_allowed(make_config, options):
    assert make_config("LightRA/base2novel", *options).is_frozen()


def test_rules_of_several_keys(make_config):
    steps = ("OPTIM.LR_SCHEDULER", "multi_step", "OPTIM.STEPSIZE", "(5, 3)")
    with pytest.raises(
        ValueError, match=r"STEPSIZE must be epochs above 0 that increase .*\(5, 3\)"
    ):
        make_config("LightRA/base2novel", *steps)
    nesterov = ("OPTIM.NAME", "sgd", "OPTIM.SGD_NESTEROV", "True", "OPTIM.MOMENTUM", "0")
    with pytest.raises(ValueError, match=r"SGD_NESTEROV must be False unless .*got 0\.0 and 0"):
        make_config("LightRA/base2novel", *nesterov)


def test_all_that_is_wrong_is_said_together(make_config):
    with pytest.raises(ValueError, match="SEED must be") as error:
        make_config("LightRA/base2novel", "OPTIM.LR", "-1", "SEED", "-9", "TEST.SPLIT", "tset")
    lines = str(error.value).splitlines()
    assert [line.split()[0] for line in lines] == ["SEED", "OPTIM.LR", "TEST.SPLIT"]
    assert lines[2].endswith("Did you mean 'test'?")


def test_it_is_checked_before_a_backbone_is_loaded(shapes_root):
    words = ["--root", shapes_root, "--trainer", "LightRA", "--backbone", "/no/such/file.pt"]
    words += ["--dataset-config-file", str(REPOSITORY / "configs/datasets/shapes.yaml")]
    with pytest.raises(SystemExit, match=r"^error: OPTIM\.LR must be .* got -1\.0"):
        train.main([*words, "OPTIM.LR", "-1"])


class TestOtherPeoplesCode:
    """Configs that are not made by ``scripts.training.config``."""

    @pytest.fixture
    def trainer(self):
        class Foreign:
            defaults = {"WIDTH": Option(8, count(1, 64), "of the layer"), "PLAIN": 3}

            def __init__(self, cfg):
                self.cfg = cfg

        TRAINER_REGISTRY.register(Foreign)
        yield Foreign
        del TRAINER_REGISTRY._objects["Foreign"]

    def test_building_a_trainer_checks_too(self, trainer):
        cfg = get_cfg_default()
        cfg.TRAINER.NAME = "Foreign"
        cfg.DATASET.NAME, cfg.OPTIM.NAME, cfg.OWN = "TheirPictures", "lars", -1  # looked up later
        assert build_trainer(cfg).cfg is cfg
        cfg.OPTIM.LR = -1.0
        with pytest.raises(ValueError, match=r"OPTIM\.LR must be a finite number above 0.*-1\.0"):
            build_trainer(cfg)

    def test_their_options_are_checked(self, trainer):
        cfg = get_cfg_default()
        cfg.TRAINER.NAME = "Foreign"
        cfg.TRAINER.Foreign = type(cfg)({"WIDTH": 65, "PLAIN": -3})
        with pytest.raises(
            ValueError, match=r"^TRAINER\.Foreign\.WIDTH must be .* 1 to 64, got 65"
        ):
            build_trainer(cfg)
        assert list(trainer_options("Foreign", trainer)) == ["TRAINER.Foreign.WIDTH"]

    def test_home_directories_in_their_paths(self, trainer, monkeypatch):
        monkeypatch.setenv("HOME", "/home/me")
        cfg = get_cfg_default()
        cfg.TRAINER.NAME, cfg.OUTPUT_DIR = "Foreign", "~/runs"
        cfg.freeze()
        built = build_trainer(cfg).cfg
        assert (built.OUTPUT_DIR, built.is_frozen()) == ("/home/me/runs", True)


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (number(0, 1), (0, 1.0, 0.5), (-0.1, 1.1, float("nan"), True, "1", None)),
        (number(above=0, below=1), (0.5,), (0, 1)),
        (number(), (-1e9, 3), (float("inf"), float("-inf"), float("nan"))),
        (count(1, also=(-1,)), (-1, 1, 99), (0, -2, 1.0, True)),
        (each(count(1), 2), ((1, 2), [3, 4]), ((1,), (1, 2, 3), (1, 0), 1)),
        (each(count(1)), ((), (1,), 5), ((0,), "x")),
        (one_of("a", 7), ("a", 7), ("b", 7.0, "7", ["a"])),
        (PATH, ("", "x"), (3,)),
    ],
)
def test_rules(rule, good, bad):
    assert [value for value in good if not rule.holds(value)] == []
    assert [value for value in bad if rule.holds(value)] == []
