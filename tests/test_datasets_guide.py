"""The worked example of DATASETS.md, run as it is printed."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from dassl.config.defaults import OPTIONS as ENGINE_OPTIONS
from dassl.engine import read_result
from datasets.features import OPTIONS as FEATURE_OPTIONS
from datasets.folder import OPTIONS
from scripts.describe import build_parser
from tests.conftest import REPOSITORY

GUIDE = (REPOSITORY / "DATASETS.md").read_text()
FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOLDERS = ("clip", "dassl", "datasets", "trainers", "scripts", "configs", "prompts")


def section(title: str) -> str:
    return GUIDE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks_of(title: str) -> list[tuple[str, str, str]]:
    """Language, file and text of each fenced block of a section."""
    return [match.groups() for match in FENCE.finditer(section(title))]


BLOCKS = blocks_of("Your own data")
FEATURE_BLOCKS = blocks_of("Features instead of images")


@pytest.fixture(scope="module")
def follow(tmp_path_factory, whole_shapes, forking_python):
    """(blocks) -> a copy of the repository in which an example was followed block by block."""

    def make(blocks: list[tuple[str, str, str]]) -> Path:
        root = tmp_path_factory.mktemp("guide")
        copy_parts(root)
        (root / "data").mkdir()
        (root / "data/shapes").symlink_to(whole_shapes + "/shapes")  # drawing it takes seconds
        for language, name, text in blocks:
            if language != "bash":
                (root / name).write_text(text)
            else:
                run_block(root, text, forking_python)
        return root

    return make


def copy_parts(root: Path) -> None:
    """Copy what the examples use of the repository."""
    for folder in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=ignored)
    for file in (REPOSITORY / "train.py", *REPOSITORY.glob("run_*.sh")):
        shutil.copy(file, root)


def run_block(root: Path, text: str, python: Path) -> None:
    """Run a block of commands in a folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{python.parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, text + done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(follow) -> Path:
    return follow(BLOCKS)


@pytest.fixture(scope="module")
def with_features(follow) -> Path:
    return follow(FEATURE_BLOCKS)


def test_example_has_commands_and_files():
    kinds = [language for language, _, _ in BLOCKS]
    assert kinds == ["bash", "json", "yaml", "bash", "json", "yaml", "bash"]
    assert all(bool(name) == (language != "bash") for language, name, _ in BLOCKS)
    assert max(len(line) for _, _, text in BLOCKS for line in text.splitlines()) <= 100


def test_zero_shot_on_class_folders(checkout):
    result = read_result(checkout / "output/forms_zeroshot")
    assert (result["dataset"], result["num_classes"], result["num_test"]) == ("Folder", 8, 320)
    assert result["metrics"]["accuracy"] > 3 * result["chance"]
    names = [one["name"] for one in result["per_class"]]
    assert "plus sign" in names
    assert "cross" not in names


def test_training_on_class_folders(checkout):
    result = read_result(checkout / "output/forms")
    assert (result["trainer"], result["shots"], result["num_test"]) == ("LightRA", 4, 320)
    assert result["metrics"]["accuracy"] > 3 * result["chance"]
    assert (checkout / "output/forms/ResidualAttention/model.pth.tar-30").is_file()
    draw = json.loads((checkout / "output/forms/fewshot_4_seed1.json").read_text())
    assert len(draw["train"]) == 32
    log = (checkout / "output/forms/log.txt").read_text()
    assert "No class descriptions" in log
    assert "Prompts: open_clip's 7 templates and 'A photo of a {},'" in log


def test_split_file_and_damaged_image(checkout):
    result = read_result(checkout / "output/hearts")
    assert (result["dataset"], result["num_classes"], result["num_test"]) == ("Split", 2, 3)
    assert [(one["name"], one["total"]) for one in result["per_class"]] == [
        ("heart", 1),
        ("plus sign", 2),
    ]
    damaged = "test/heart/0001.png"
    assert any(damaged in note for note in result["notes"])
    assert damaged in (checkout / "output/hearts/log.txt").read_text()


def test_features_of_ones_own(with_features):
    assert max(len(line) for _, _, text in FEATURE_BLOCKS for line in text.splitlines()) <= 100
    runs = with_features / "output/eft"
    for stage, names in (("train_base", ["circle", "cross"]), ("test_new", ["heart", "star"])):
        result = read_result(runs / stage / "mine/shots_8/RAda/eft/seed1")
        assert result["dataset"] == "Features"
        assert [one["name"] for one in result["per_class"]] == names
        assert result["metrics"]["accuracy"] > 60
    rows = (with_features / "found.csv").read_text().splitlines()
    assert len(rows) == 1 + 4 * 16


def test_features_that_were_exported(with_features):
    result = read_result(with_features / "output/forms_features")
    assert (result["num_classes"], result["num_test"]) == (8, 320)
    assert result["metrics"]["accuracy"] > 3 * result["chance"]


def test_shipped_files_and_switches_are_the_documented_ones():
    text = section("Class descriptions")
    rows = re.findall(r"^\| `(prompts/\S+)` \| (\d+) \| ([\d or]+) \|", text, re.MULTILINE)
    assert {name for name, _, _ in rows} == {
        f"prompts/{path.name}" for path in (REPOSITORY / "prompts").glob("*.json")
    }
    for name, classes, numbers in rows:
        content = json.loads((REPOSITORY / name).read_text())
        assert len(content) == int(classes)
        found = sorted({len(sentences) for sentences in content.values()})
        assert found == [int(n) for n in numbers.split(" or ")]
    assert set(re.findall(r"^\| `(\w+)`(?: \(default\))? \|", text, re.MULTILINE)) == {
        *ENGINE_OPTIONS["DATASET.PROMPT_SOURCE"].rule.names()
    }


def test_the_quoted_prompt_is_a_real_one():
    quoted = re.search(r'"A photo of a banded, ([^"]*)"', section("Class descriptions"))[1]
    content = json.loads((REPOSITORY / "prompts/DescribableTextures.json").read_text())
    assert " ".join(quoted.split()) in content["banded"]


def test_describe_commands_are_accepted():
    commands = re.findall(r"^    python scripts/describe\.py (.*)$", GUIDE, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        args = build_parser().parse_args(shlex.split(command))
        assert bool(args.base_url) != bool(args.local)
        if args.dataset:
            assert (REPOSITORY / f"configs/datasets/{args.dataset}.yaml").is_file()


def test_the_copied_config_files_name_every_option_of_their_reader():
    named: set[str] = set()
    for stem in ("folder", "split", "features"):
        path = REPOSITORY / f"configs/datasets/{stem}.yaml"
        section = yaml.safe_load(path.read_text())["DATASET"]
        named |= {*section, *section.get("FEATURES", ())}
    assert {*OPTIONS, *FEATURE_OPTIONS} <= named
