"""``train.py --predict`` with files of features."""

import json
from pathlib import Path

import numpy as np
import pytest

import train
from dassl.data.features.arrays import read_arrays
from scripts import features as script
from tests.conftest import REPOSITORY

WORDS = ("--device", "cpu", "--", "DATALOADER.NUM_WORKERS", "0")


@pytest.fixture(scope="module")
def exported(shapes_root, tmp_path_factory) -> Path:
    """Features of Shapes in two shots, below a root of their own."""
    root = tmp_path_factory.mktemp("root")
    words = ["export", "--root", shapes_root, "--backbone", "shapes", "--device", "cpu"]
    words += ["--dataset-config-file", str(REPOSITORY / "configs/datasets/shapes.yaml")]
    words += ["--output", str(root / "shapes"), "DATASET.NUM_SHOTS", "2"]
    words += ["FEATURE_CACHE.DIR", str(root / "cache"), "DATALOADER.NUM_WORKERS", "0"]
    assert script.main(words) == 0
    return root / "shapes"


@pytest.fixture(scope="module")
def run(exported) -> Path:
    """A run of RAda on them."""
    output = exported.parent / "run"
    config = REPOSITORY / "configs/trainers/RAda/few_shot.yaml"
    train.main(
        ["--dataset-config-file", str(exported / "dataset.yaml"), "--config-file", str(config)]
        + ["--root", "/", "--output-dir", str(output), "--seed", "1", *WORDS]
        + ["OPTIM.MAX_EPOCH", "1"]
    )
    return output


@pytest.fixture
def predict(tmp_path):
    """(flags) -> exit status or message, and what was written."""

    def call(*words: str | Path):
        file = tmp_path / "found.json"
        with pytest.raises(SystemExit) as stop:
            train.main([*map(str, words), "--predict-output", str(file), *WORDS])
        return stop.value.code, json.loads(file.read_text()) if file.is_file() else None

    return call


def test_rows_are_classified_as_in_the_test_of_the_run(predict, exported, run):
    status, found = predict("--predict", exported / "test.npz", "--model-dir", run, "--top-k", "1")
    assert status == 0
    test, _ = read_arrays(exported / "test.npz", ("labels", "classnames", "paths"))
    assert found["classnames"] == test["classnames"]
    assert [entry["image"] for entry in found["images"]] == test["paths"]
    best = [entry["predictions"][0]["class"] for entry in found["images"]]
    right = [name == test["classnames"][k] for name, k in zip(best, test["labels"], strict=True)]
    accuracy = json.loads((run / "result.json").read_text())["metrics"]["accuracy"]
    assert 100 * np.mean(right) == pytest.approx(accuracy)


def test_several_files_without_paths_or_labels(predict, exported, run, tmp_path):
    features = read_arrays(exported / "test.npz", ("features",))[0]["features"]
    np.save(tmp_path / "one.npy", features[:3])
    np.savez(tmp_path / "two.npz", features=features[3:5])
    status, found = predict(
        "--predict", tmp_path / "one.npy", tmp_path / "two.npz", "--model-dir", run
    )
    assert status == 0
    rows = [f"{tmp_path}/one.npy#{row}" for row in range(3)]
    rows += [f"{tmp_path}/two.npz#{row}" for row in range(2)]
    assert [entry["image"] for entry in found["images"]] == rows
    _, whole = predict("--predict", exported / "test.npz", "--model-dir", run)
    same = [entry["predictions"] for entry in whole["images"][:5]]
    for entry, expected in zip(found["images"], same, strict=True):
        assert [p["class"] for p in entry["predictions"]] == [p["class"] for p in expected]


def test_zero_shot_by_the_dataset_alone(predict, exported):
    status, found = predict(
        "--predict", exported / "val.npz", "--dataset-config-file", exported / "dataset.yaml"
    )
    assert status == 0
    assert found["trainer"] == "ZeroshotCLIP"
    assert len(found["images"]) == len(read_arrays(exported / "val.npz", ("labels",))[0]["labels"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("{folder}", "--model-dir", "{run}"),
            "there is no encoder of images; give a file of features",
        ),
        (("{test}", "{folder}", "--model-dir", "{run}"), "give features alone to such a run"),
        (
            ("{test}", "--backbone", "shapes", "--classnames", "{names}"),
            "need a run on DATASET.NAME Feat",
        ),
        (("{text}", "--model-dir", "{run}"), "text.npz has no array 'features'"),
        (("{wide}", "--model-dir", "{run}"), "must have the shape"),
    ],
)
def test_refusals(predict, exported, run, shapes_root, tmp_path, capsys, words, message):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    np.save(tmp_path / "wide.npy", np.ones((2, 2, 4), np.float32))
    places = {
        "folder": Path(shapes_root, "shapes/v2/test"),
        "run": run,
        "names": tmp_path / "names.txt",
        "wide": tmp_path / "wide.npy",
        **{name: exported / f"{name}.npz" for name in ("test", "text")},
    }
    status, found = predict("--predict", *(word.format(**places) for word in words))
    assert status
    assert found is None
    assert message in capsys.readouterr().err + str(status)


def test_there_is_no_graph_from_images_where_both_features_were_given(run, tmp_path):
    with pytest.raises(SystemExit) as stop:
        train.main(["--export", str(tmp_path / "new"), "--model-dir", str(run)])
    said = "no encoder of images; there is no graph from an image to write"
    assert said in str(stop.value.code)
    assert list(tmp_path.iterdir()) == []


def test_images_where_a_backbone_made_the_texts(predict, exported, shapes_root, tmp_path):
    """Without text features there is a model, which encodes pictures too."""
    config = REPOSITORY / "configs/trainers/RAda/few_shot.yaml"
    options = ("DATASET.FEATURES.TEXT", "", "MODEL.BACKBONE.NAME", "shapes")
    train.main(
        ["--dataset-config-file", str(exported / "dataset.yaml"), "--config-file", str(config)]
        + ["--root", "/", "--output-dir", str(tmp_path / "run"), "--seed", "1", *WORDS]
        + ["OPTIM.MAX_EPOCH", "1", *options]
    )
    picture = next(Path(shapes_root, "shapes/v2/test/solid_blue_square").glob("*.png"))
    status, found = predict("--predict", picture, "--model-dir", tmp_path / "run")
    assert status == 0
    names = [p["class"] for p in found["images"][0]["predictions"]]
    assert set(names) <= set(found["classnames"])
