"""Flags that would do nothing are errors; the combinations that mean something are not."""

import json
from pathlib import Path

import pytest

from dassl.engine import build_trainer
from scripts.training.flags import check_effect, check_flags
from scripts.training.parser import argument_parser

MODES = {"train": [], "eval-only": ["--eval-only", "--model-dir", "d"],
         "no-train": ["--no-train"], "predict": ["--predict", "a.png"]}  # fmt: skip
WORDS = {
    "--eval-only": ["--eval-only"],
    "--no-train": ["--no-train"],
    "--model-dir": ["--model-dir", "d"],
    "--resume": ["--resume", "d"],
    "--transforms": ["--transforms", "normalize"],
    "--classnames": ["--classnames", "names.txt"],
    "--top-k": ["--top-k", "5"],
    "--predict-output": ["--predict-output", "a.csv"],
    "--output-dir": ["--output-dir", "d"],
    "--feature-cache": ["--feature-cache"],
    "--head": ["--head", "mlp"],
    "--source-domains": ["--source-domains", "a", "b"],
    "--target-domains": ["--target-domains", "a"],
    "--root": ["--root", "d"],
    "--seed": ["--seed", "0"],
    "--backbone": ["--backbone", "shapes"],
    "--device": ["--device", "cpu"],
    "--track": ["--track", "wandb", "mlflow"],
    "--debug": ["--debug"],
}
NOTHING = {
    "train": ["--model-dir", "--classnames", "--top-k", "--predict-output"],
    "eval-only": ["--no-train", "--resume", "--transforms", "--classnames", "--top-k",
                  "--predict-output"],
    "no-train": ["--model-dir", "--resume", "--classnames", "--top-k", "--predict-output",
                 "--track"],
    "predict": ["--eval-only", "--no-train", "--resume", "--transforms", "--output-dir",
                "--feature-cache", "--head", "--source-domains", "--target-domains", "--track"],
}  # fmt: skip


def parse(*words):
    return argument_parser().parse_args(list(words))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("flag", WORDS)
def test_flags_beside_a_mode(mode, flag):
    if flag in MODES[mode] or (flag, mode) == ("--eval-only", "no-train"):
        return
    if flag in ("--eval-only", "--no-train") and mode == "train":
        return  # that is another mode
    args = parse(*WORDS[flag], *MODES[mode])
    if flag in NOTHING[mode]:
        given = " ".join(WORDS[flag])
        where = "in a training run" if mode == "train" else f"beside --{mode}"
        with pytest.raises(ValueError, match=f"^{given} does nothing {where}: "):
            check_flags(args)
    else:
        check_flags(args)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--load-epoch", "3"], "--load-epoch 3 does nothing in a training run"),
        (["--load-epoch", "0", "--no-train"], "--load-epoch 0 does nothing beside --no-train"),
        (["--load-epoch", "3", "--eval-only"], "--load-epoch 3 does nothing without --model-dir"),
        (["--load-epoch", "3", "--predict", "a"], "--load-epoch 3 does nothing without --model-d"),
        (["--eval-only", "--no-train"], "--no-train does nothing beside --eval-only"),
    ],
)
def test_what_needs_another_flag(words, said):
    with pytest.raises(ValueError, match=said):
        check_flags(parse(*words))


def test_epochs_of_a_run_may_be_chosen():
    for mode in (["--eval-only"], ["--predict", "a"]):
        check_flags(parse("--load-epoch", "0", "--model-dir", "d", *mode))


@pytest.fixture
def built(make_config):
    def build(method, *options):
        return build_trainer(
            make_config(f"{method}/base2novel", "DATASET.NUM_SHOTS", "1", *options)
        )

    return build


def refused(trainer, *words):
    with pytest.raises(ValueError, match="-") as error:
        check_effect(parse(*words), trainer)
    return str(error.value)


def test_flags_that_a_method_does_not_know(built, tmp_path):
    trained, frozen = built("LightRA"), built("ZeroshotCLIP")
    assert "LightRA has its own head" in refused(trained, "--head", "mlp")
    for trainer in (trained, frozen):
        assert "Shapes has no domains" in refused(trainer, "--source-domains", "photo", "sketch")
        assert "--target-domains photo does" in refused(trainer, "--target-domains", "photo")
    assert "ZeroshotCLIP trains nothing" in refused(frozen, "--transforms", "random_flip")
    assert "--resume d does nothing" in refused(frozen, "--resume", "d")
    check_effect(parse("--resume", "d", "--transforms", "random_flip"), trained)


def test_weights_that_a_method_needs_or_cannot_use(built, tmp_path):
    trained, frozen = built("LightRA"), built("ZeroshotCLIP")
    assert "finished run of LightRA" in refused(trained, "--eval-only")
    check_effect(parse("--eval-only", "--model-dir", "d"), trained)
    check_effect(parse("--eval-only"), frozen)

    with pytest.raises(FileNotFoundError, match="--model-dir: no directory nowhere"):
        check_effect(parse("--eval-only", "--model-dir", "nowhere"), frozen)
    directory = ("--eval-only", "--model-dir", str(tmp_path))
    said = f"--model-dir {tmp_path} does nothing: ZeroshotCLIP trains nothing"
    assert said in refused(frozen, *directory)
    result = {"format": 1, "status": "complete", "trainer": "CoOp", "dataset": "Shapes", "seed": 1,
              "metrics": {"accuracy": 1.0}, "config": {}, "config_hash": ""}  # fmt: skip
    Path(tmp_path, "result.json").write_text(json.dumps(result))
    assert said in refused(frozen, *directory)
    # What a protocol's evaluation names: the run on the base classes.
    Path(tmp_path, "result.json").write_text(json.dumps({**result, "trainer": "ZeroshotCLIP"}))
    check_effect(parse(*directory), frozen)
    assert "--load-epoch 2 does nothing" in refused(frozen, *directory, "--load-epoch", "2")
