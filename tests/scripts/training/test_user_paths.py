"""``~`` in every path that a user gives."""

import argparse
from pathlib import Path

import pytest

import train
from dassl.config import user_path
from dassl.config.paths import file_flag, resolve
from dassl.config.schema import trainer_options
from dassl.engine import TRAINER_REGISTRY
from scripts.training.config import build_config, config_options, default_config
from scripts.training.parser import argument_parser
from tests.conftest import REPOSITORY


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    folder = tmp_path / "me"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_one_function(home):
    assert user_path("~/a/~/b") == f"{home}/a/~/b"
    assert user_path("~") == str(home)
    for same in ("./output", "a/~/b", "", "/x//y", "$HOME/x", "./~odd"):
        assert user_path(same) == same
    with pytest.raises(ValueError, match=r"'~nobody-here/x': there is no user 'nobody-here'"):
        user_path("~nobody-here/x")
    assert file_flag("~/x") == home / "x"
    with pytest.raises(argparse.ArgumentTypeError, match="no user 'nobody-here'"):
        file_flag("~nobody-here")


@pytest.mark.parametrize(
    "flag",
    ["root", "output-dir", "resume", "config-file", "dataset-config-file", "backbone", "model-dir",
     "classnames", "predict-output"],
)  # fmt: skip
def test_flags_of_train(home, flag):
    args = argument_parser().parse_args([f"--{flag}=~/x"])
    assert getattr(args, flag.replace("-", "_")) == f"{home}/x"


def test_several_paths_of_one_flag(home):
    args = argument_parser().parse_args(["--predict", "~/a.png", "b.png", "~/c/*.png"])
    assert args.predict == [f"{home}/a.png", "b.png", f"{home}/c/*.png"]


def test_a_user_that_is_not_there_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--root", "~nobody-here/data"])
    assert stop.value.code == 2
    assert "argument --root: '~nobody-here/data': there is no user" in capsys.readouterr().err


def test_every_path_of_the_config(home, shapes_root):
    """Those of the engine, of datasets and of every trainer, from files and from options."""
    (home / "base.yaml").write_text("OUTPUT_DIR: ~/runs\n")
    (home / "own.yaml").write_text("_BASE_: ~/base.yaml\nTRAINER: {NAME: ZeroshotCLIP}\n")
    options = config_options(default_config())
    paths = [k for k, o in options.items() if o.rule.path and k != "MODEL.BACKBONE.NAME"]
    assert {"TRAINER.HPT.STRUCTURES", "TRAINER.RAdaTTT.FROM", "DATASET.SPLIT_FILE"} <= {*paths}
    words = ["--config-file=~/own.yaml", "--backbone", "shapes", "--dataset-config-file"]
    words += [str(REPOSITORY / "configs/datasets/shapes.yaml")]
    read = build_config(argument_parser().parse_args(words))
    assert read.OUTPUT_DIR == f"{home}/runs"
    words += [word for key in paths for word in (key, f"~/{key}")]
    cfg = build_config(argument_parser().parse_args(words))
    for key in paths:
        node = cfg
        for part in key.split("."):
            node = node[part]
        assert node == f"{home}/{key}"


@pytest.mark.parametrize("key", ["OUTPUT_DIR", "TRAINER.WiseFT.START", "MODEL.BACKBONE.NAME"])
def test_a_path_without_a_user_names_its_key(make_config, key):
    with pytest.raises(ValueError, match=f"^{key} is '~nobody-here': there is no user"):
        make_config("LightRA/base2novel", key, "~nobody-here")


def test_no_path_makes_a_folder_of_that_name(home, shapes_root, monkeypatch):
    monkeypatch.setattr("dassl.utils.setup_logger", lambda _: None)
    files = ["--dataset-config-file", str(REPOSITORY / "configs/datasets/shapes.yaml")]
    files += ["--config-file", str(REPOSITORY / "configs/trainers/ZeroshotCLIP/base2novel.yaml")]
    small = ["--device", "cpu", "DATASET.SUBSAMPLE_CLASSES", "base", "OUTPUT_DIR", "~/run"]
    train.main(["--root", shapes_root, *files, "--eval-only", *small])
    assert (home / "run" / "result.json").is_file()
    assert not Path("~").exists()


def test_files_that_trainers_name(home):
    (home / "x.json").write_text("{}")
    assert resolve("~/x.json") == home / "x.json"
    wise = trainer_options("WiseFT", TRAINER_REGISTRY.get("WiseFT"))
    assert wise["TRAINER.WiseFT.START"].rule.path
