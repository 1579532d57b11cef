"""The curve between two models."""

import csv
import functools
from pathlib import Path

import pytest

from dassl.engine import build_trainer, read_result
from scripts.wise_ft import OOD, choose_targets, main
from tests.conftest import config_of_run
from tests.trainers.plain import FEW_TEMPLATES

SMALL = (
    *("DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "20"),
    *("OPTIM.WARMUP_STEP", "1"),
    *FEW_TEMPLATES,
)


@pytest.fixture
def finished(make_config):
    """(method, output, trailing options) -> directory of a finished run, and its accuracy."""

    def train(method, output="run", *options) -> tuple[Path, float]:
        cfg = make_config(f"{method}/fft", *SMALL, *options, output=output)
        build_trainer(cfg).train()
        return Path(cfg.OUTPUT_DIR), read_result(cfg.OUTPUT_DIR)["metrics"]["accuracy"]

    return train


@pytest.fixture(scope="module")
def zero_shot(shapes_root, tmp_path_factory):
    """(dataset) -> accuracy of the pre-trained model, which all runs start from."""

    @functools.cache
    def test(dataset: str) -> float:
        folder = tmp_path_factory.mktemp("zero")
        method = ("ZeroshotCLIP2/fft", *FEW_TEMPLATES)
        cfg = config_of_run(shapes_root, folder, *method, dataset=dataset)
        return build_trainer(cfg).test()

    return test


def rows(directory: Path) -> list[dict[str, float]]:
    with (directory / "wise_ft.csv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("method", ["FT", "FLYP", "RAdaFFT"])
def test_from_the_pre_trained_model_to_the_run(finished, zero_shot, method):
    directory, accuracy = finished(method)
    words = ["--model-dir", str(directory), "--alphas", "1", "0", "0.5", "--device", "cpu"]
    assert main([*words, "--targets", "shapes_v2", "shapes_a"]) == 0
    found = rows(directory / "wise_ft")
    assert [row["alpha"] for row in found] == [0, 0.5, 1]
    assert found[0]["Shapes"] == zero_shot("shapes")
    assert found[2]["Shapes"] == accuracy
    assert found[0]["shapes_v2"] == zero_shot("shapes_v2")
    for row in found:
        assert row[OOD] == pytest.approx((row["shapes_v2"] + row["shapes_a"]) / 2)
    assert (directory / "wise_ft/wise_ft.png").read_bytes().startswith(b"\x89PNG")


def test_between_two_runs(finished, tmp_path):
    one, first = finished("LP", "one")
    two, second = finished("LP", "two", "OPTIM.LR", "0.01")
    words = ["--model-dir", str(two), "--start", str(one), "--alphas", "0", "1"]
    words += ["--targets", "shapes_r", "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(words) == 0
    assert [row["Shapes"] for row in rows(tmp_path / "out")] == [first, second]


def test_targets_are_the_shifts_unless_named():
    assert choose_targets("Shapes", []) == ["shapes_v2", "shapes_sketch", "shapes_r", "shapes_a"]
    assert choose_targets("ImageNet", [])[-1] == "objectnet"
    assert choose_targets("Shapes", ["dtd"]) == ["dtd"]
    with pytest.raises(ValueError, match="DescribableTextures has no shifts"):
        choose_targets("DescribableTextures", [])
    with pytest.raises(ValueError, match="--targets: 'shape_r' is not available. Did you mean"):
        choose_targets("Shapes", ["shape_r"])


def test_what_cannot_be_interpolated_is_said(finished, tmp_path, capsys):
    assert main(["--model-dir", str(tmp_path / "none")]) == 1
    assert "--model-dir: no directory" in capsys.readouterr().err
    zero, _ = finished("ZeroshotCLIP2", "zero")
    assert main(["--model-dir", str(zero), "--targets", "shapes_r", "--device", "cpu"]) == 1
    assert "trained nothing" in capsys.readouterr().err
    lp, _ = finished("LP", "lp")
    ft, _ = finished("FT", "ft")
    words = ["--model-dir", str(lp), "--start", str(ft), "--targets", "shapes_r"]
    assert main([*words, "--device", "cpu"]) == 1
    assert "No checkpoint" in capsys.readouterr().err
