"""CONTRIBUTING.md's worked examples, taken from its text, work as it says."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.engine import TRAINER_REGISTRY, build_trainer, read_result
from dassl.results import write_result
from datasets.shapes_render import COLOURS, FORMS, TEXTURES, Objects, Style, render
from scripts import report, run
from scripts.jobs.protocols import PROTOCOLS, Protocol, RunKey
from tests.conftest import REPOSITORY

GUIDE = (REPOSITORY / "CONTRIBUTING.md").read_text()
FENCE = re.compile(r"^```\w+ (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
METHOD, METHOD_YAML = "trainers/linear_residual.py", "configs/trainers/LinearResidual/"
SPLIT = "data/signs/split_zhou_Signs.json"


def examples(section: str) -> dict[str, str]:
    """File name -> text of the fenced blocks below a heading."""
    text = GUIDE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return {match[1]: match[2] for match in FENCE.finditer(text)}


BLOCKS = {name: examples(f"Add a {name}") for name in ("method", "dataset", "protocol")}


@pytest.mark.parametrize("name", BLOCKS)
def test_example_is_short(name):
    lines = [line for text in BLOCKS[name].values() for line in text.splitlines() if line.strip()]
    assert 0 < len(lines) < 40
    assert max(map(len, lines)) <= 100


def test_every_block_belongs_to_an_example():
    assert GUIDE.count("\n```") == 2 * sum(map(len, BLOCKS.values()))


def test_named_files_and_commands_exist():
    for path in re.findall(r"`((?:\w+/)+\w+\.(?:py|sh))`", GUIDE):
        assert (REPOSITORY / path).is_file() or path in BLOCKS["method"], path
    for command in ("scripts/test.sh", ".ci/run"):
        assert os.access(REPOSITORY / command, os.X_OK) or f"bash {command}" in GUIDE
        assert (REPOSITORY / command).is_file()


@pytest.fixture
def method(tmp_path, monkeypatch):
    """The example's module, registered as long as the test runs, and its config file."""
    (config,) = (name for name in BLOCKS["method"] if name.startswith(METHOD_YAML))
    for name in (METHOD, config):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(BLOCKS["method"][name])
    monkeypatch.setattr(TRAINER_REGISTRY, "_objects", dict(TRAINER_REGISTRY._objects))
    spec = importlib.util.spec_from_file_location("linear_residual", tmp_path / METHOD)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, str(tmp_path / config)


def test_method_trains(method, make_config):
    module, config = method
    cfg = make_config(
        None,
        *("DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "4"),
        flags=("--config-file", config),
    )
    trainer = build_trainer(cfg)
    assert isinstance(trainer, module.LinearResidual)
    plain = {name: value.clone() for name, value in trainer.model.named_parameters()}
    before = trainer.test()
    images = torch.randn(2, 3, 48, 48)
    zero = trainer.model.eval()(images).detach()

    trainer.train()

    result = read_result(cfg.OUTPUT_DIR)
    assert result["metrics"]["accuracy"] > before
    assert result["trainable_parameters"] == trainer.model.backbone.embed_dim**2
    now = dict(trainer.model.named_parameters())
    changed = {name for name, value in plain.items() if not torch.equal(now[name], value)}
    assert changed == {"residual.weight"}
    (file,) = Path(cfg.OUTPUT_DIR).glob("*/model.pth.tar-1")
    assert torch.load(file, weights_only=True)["state_dict"].keys() == {"residual.weight"}
    # With its weight at zero it is the pre-trained model again.
    trainer.model.residual.weight.data.zero_()
    assert torch.equal(trainer.model.eval()(images), zero)


def test_method_keeps_the_house_rules(method):
    """Lint and form of the example, by the repository's own settings."""
    settings = ["--config", str(REPOSITORY / "pyproject.toml"), "--no-cache", method[0].__file__]
    for words in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *words, *settings]
        done = subprocess.run(ruff, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_registry_is_left_clean():
    assert "LinearResidual" not in TRAINER_REGISTRY
    assert "base2all" not in PROTOCOLS


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of the repository into which method and dataset are put as the guide says."""
    root = tmp_path / "checkout"
    for package in ("clip", "dassl", "datasets", "trainers", "scripts", "configs", "prompts"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / package, root / package, ignore=ignored)
    shutil.copy(REPOSITORY / "train.py", root)
    files = {**BLOCKS["method"], **BLOCKS["dataset"]}
    row = files.pop("datasets/rows.py")
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    replace(root / "datasets/rows.py", r"^ROWS = \(\n", lambda match: f"{match[0]}{row},")
    return root


def replace(path: Path, pattern: str, new: Any) -> None:
    text, count = re.subn(pattern, new, path.read_text(), flags=re.MULTILINE)
    assert count == 1, f"{path} has another form than the guide's test expects"
    path.write_text(text)


def draw_signs(root: Path) -> None:
    """Give the split file its pictures: plain red triangles and blue circles."""
    split = json.loads((root / SPLIT).read_text())
    entries = [entry for part in split.values() for entry in part]
    texture, colour, form = (
        np.array([list(words).index(word) for word in wanted])
        for words, wanted in zip(
            (TEXTURES, COLOURS, FORMS),
            zip(*(("solid", *name.split()) for _, _, name in entries), strict=True),
            strict=True,
        )
    )
    objects = Objects(form, colour, texture, np.ones(len(entries), np.intp))
    pictures = render(objects, Style(), np.random.default_rng(0))
    for (path, _, _), pixels in zip(entries, pictures, strict=True):
        target = root / "data/signs/images" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target)


def test_dataset_is_read_and_evaluated_in_a_checkout(checkout, forking_python):
    """Also that ``train.py`` finds the method by its file alone."""
    draw_signs(checkout)
    (config,) = (name for name in BLOCKS["method"] if name.startswith(METHOD_YAML))
    words = [
        *("--root", "data", "--dataset-config-file", "configs/datasets/signs.yaml"),
        *("--config-file", config, "--backbone", "shapes", "--output-dir", "run", "--seed", "1"),
        *("--device", "cpu", "DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1"),
        *("DATALOADER.TRAIN_X.BATCH_SIZE", "2", "DATALOADER.NUM_WORKERS", "0"),
    ]
    done = subprocess.run(
        [forking_python, "train.py", *words],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout
    result = read_result(checkout / "run")
    assert (result["trainer"], result["dataset"]) == ("LinearResidual", "Signs")
    assert (result["num_test"], result["num_classes"]) == (4, 2)
    assert [one["name"] for one in result["per_class"]] == ["red triangle", "blue circle"]
    assert result["metrics"]["accuracy"] == 100


@pytest.fixture
def protocol(monkeypatch) -> Protocol:
    """The example's row, in the table as long as the test runs."""
    row = eval(BLOCKS["protocol"]["scripts/jobs/protocols.py"], {"Protocol": Protocol})
    monkeypatch.setitem(PROTOCOLS, row.name, row)
    return row


def guide_command(script: str) -> list[str]:
    """Arguments of the guide's command for a new protocol."""
    (line,) = re.findall(rf"^    python scripts/{script} (--protocol base2all.*)$", GUIDE, re.M)
    return shlex.split(line)


def test_protocol_expands_to_jobs(protocol, capsys, tmp_path):
    words = [*guide_command("run.py"), "--output", str(tmp_path), "--seeds", "1"]
    assert run.main(words) == 0
    train, test = (shlex.split(line) for line in capsys.readouterr().out.splitlines())
    assert train[-2:] == ["DATASET.SUBSAMPLE_CLASSES", "base"]
    assert test[-2:] == ["DATASET.SUBSAMPLE_CLASSES", "all"]
    trained = train[train.index("--output-dir") + 1]
    assert trained.endswith("base2all/train_base/shapes/shots_16/LightRA/base2novel/seed1")
    assert test[test.index("--model-dir") + 1] == trained
    assert "--eval-only" in test


def write_results(protocol: Protocol, output: Path, missing: tuple[str, str] = ("", "")) -> None:
    """Two seeds on two datasets: base 80 and 82, all 60 and 62, 10 more on the second one."""
    for number, dataset in enumerate(("dtd", "eurosat")):
        for stage, value in zip(protocol.stages, (80.0, 60.0), strict=True):
            for seed in (1, 2) if (dataset, stage) != missing else ():
                key = RunKey(protocol.name, stage, dataset, 16, "LightRA", "base2novel", seed)
                accuracy = value + 10 * number + 2 * (seed - 1)
                result = {
                    "seed": seed,
                    "trainer": "LightRA",
                    "dataset": dataset,
                    "config": {},
                    "config_hash": "",
                    "subsample_classes": protocol.classes_of(stage),
                    "metrics": {"accuracy": accuracy},
                }
                key.directory(output).mkdir(parents=True)
                write_result(key.directory(output), result)


def test_report_of_the_protocol(protocol, capsys, tmp_path):
    write_results(protocol, tmp_path)
    words = [*guide_command("report.py"), "--output", str(tmp_path)]
    assert report.main([*words, "--plot", str(tmp_path / "bars.png")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["dataset", "trainer", "base", "all"] in lines
    assert ["dtd", "LightRA", "(base2novel)", "81.00", "±", "1.41", "61.00", "±", "1.41"] in lines
    assert ["mean", "LightRA", "(base2novel)", "86.00", "±", "1.41", "66.00", "±", "1.41"] in lines
    assert not any("WARNING" in line or "Published" in line for line in lines)
    with Image.open(tmp_path / "bars.png") as figure:
        assert figure.width > 100


def test_mean_is_over_datasets_with_every_stage(protocol, capsys, tmp_path):
    write_results(protocol, tmp_path, missing=("eurosat", "test_all"))
    assert report.main([*guide_command("report.py"), "--output", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["eurosat", "LightRA", "(base2novel)", "91.00", "±", "1.41", "-"] in lines
    assert ["mean", "LightRA", "(base2novel)", "81.00", "±", "1.41", "61.00", "±", "1.41"] in lines
