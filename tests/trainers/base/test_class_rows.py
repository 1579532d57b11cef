"""What is learned per class is matched by name: contexts of CoOp, classifiers, probes."""

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch

import train
from dassl.engine import build_trainer, read_result
from tests.conftest import config_of_run
from tests.trainers.baselines import write_released
from tests.trainers.finetuning.runs import SMALL as TUNED
from tests.trainers.plain import SMALL
from trainers.base.class_rows import class_rows

CSC = ("TRAINER.CoOp.CSC", "True", "TRAINER.CoOp.CTX_INIT", "", "TRAINER.CoOp.N_CTX", "2")
HALF = "DATASET.SUBSAMPLE_CLASSES"
METHODS = {
    "CoOp": ("CoOp/base2novel", (*SMALL, *CSC)),
    "DePT": ("DePT/base2novel", (*SMALL, *CSC)),
    "FT": ("FT/fft", TUNED),
}


@pytest.mark.parametrize(
    ("classes", "trained", "rows"),
    [
        (["b", "a"], ["a", "b"], [1, 0]),
        (["Red_Cat"], ["dog", "red  cat"], [1]),
        (["missile", "x", "missile"], ["missile", "missile", "x"], [0, 2, 1]),
        (["heart", "Heart"], ["Heart", "heart"], [1, 0]),
        (["HEART", "Heart"], ["Heart", "heart"], [1, 0]),
        (["a", "a", "c"], ["b", "a"], [1, 1, None]),
    ],
)
def test_rows_by_name(classes, trained, rows):
    assert class_rows(classes, trained) == rows


@pytest.fixture
def reordered(shapes_root, tmp_path):
    """A data root whose Shapes have the same classes in reverse order."""
    source = Path(shapes_root, "shapes")
    shutil.copytree(source, tmp_path / "data" / "shapes", copy_function=_link)
    file = tmp_path / "data" / "shapes" / "split_zhou_Shapes.json"
    split = json.loads(file.read_text())
    last = max(label for part in split.values() for _, label, _ in part)
    file.unlink()
    file.write_text(
        json.dumps(
            {
                part: [[path, last - label, name] for path, label, name in rows]
                for part, rows in split.items()
            }
        )
    )
    return str(tmp_path / "data")


def _link(source, target):
    Path(target).symlink_to(Path(source).resolve())


@pytest.fixture(scope="module")
def trained(shapes_root, tmp_path_factory):
    """(method, options) -> a trainer that has trained, on all classes unless told otherwise."""

    @functools.cache
    def run(method, *options):
        config, own = METHODS[method]
        settings = (*own, HALF, "all", "DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1")
        folder = tmp_path_factory.mktemp("trained")
        trainer = build_trainer(config_of_run(shapes_root, folder, config, *settings, *options))
        trainer.train()
        return trainer

    return run


@pytest.mark.parametrize("method", METHODS)
def test_another_order_of_the_classes_changes_nothing(trained, make_config, reordered, method):
    run = trained(method)
    config, own = METHODS[method]
    options = (*own, HALF, "all", "DATASET.ROOT", reordered)
    other = build_trainer(make_config(config, *options, output="other"))
    assert other.dm.dataset.classnames == run.dm.dataset.classnames[::-1]
    other.load_model(run.output_dir)
    image = torch.randn(3, 3, 48, 48)
    for trainer in (run, other):
        trainer.set_model_mode("eval")
    with torch.no_grad():
        expected, found = run.model_inference(image), other.model_inference(image)
    torch.testing.assert_close(found, expected.flip(1), rtol=1e-5, atol=1e-4)
    assert other.test() == pytest.approx(run.test())


@pytest.mark.parametrize("method", METHODS)
def test_some_of_the_classes(trained, make_config, monkeypatch, method):
    run = trained(method)
    config, own = METHODS[method]
    other = build_trainer(make_config(config, *own, HALF, "new", output="other"))
    other.load_model(run.output_dir)
    if method == "DePT":  # its probe does not count on new classes
        monkeypatch.setattr(run.model, "mixes", False)
    image = torch.randn(2, 3, 48, 48)
    for trainer in (run, other):
        trainer.set_model_mode("eval")
    with torch.no_grad():
        expected, found = run.model_inference(image), other.model_inference(image)
    torch.testing.assert_close(found, expected[:, 20:], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", ["CoOp", "DePT"])
def test_contexts_of_base_classes_are_none_of_new_ones(trained, make_config, method):
    run = trained(method, HALF, "base")
    config, own = METHODS[method]
    other = build_trainer(make_config(config, *own, HALF, "new", output="other"))
    with pytest.raises(ValueError, match=r"20 of the 20 classes.*CSC False") as error:
        other.load_model(run.output_dir)
    assert repr(other.dm.dataset.classnames[0]) in str(error.value)
    assert "\n" not in str(error.value)


def test_one_context_or_one_per_class(make_config, tmp_path):
    for rows, own, message in ((20, "False", "20 contexts.*CSC True"), (1, "True", "CSC False")):
        words = (*SMALL, *CSC, "TRAINER.CoOp.CSC", own)
        trainer = build_trainer(make_config("CoOp/base2novel", *words))
        state = {"ctx": torch.randn(rows, 2, 128)}
        directory = write_released(tmp_path / own, "prompt_learner", state, 50)
        with pytest.raises(ValueError, match=message):
            trainer.load_model(directory, epoch=50)


def test_evaluation_from_the_command_line(trained, shapes_root, tmp_path):
    run = trained("CoOp", HALF, "base")
    words = [
        *("--root", shapes_root, "--output-dir", str(tmp_path / "eval"), "--device", "cpu"),
        *("--dataset-config-file", "configs/datasets/shapes.yaml", "--eval-only"),
        *("--config-file", "configs/trainers/CoOp/base2novel.yaml", "--model-dir", run.output_dir),
        *(*CSC, HALF, "new"),
    ]
    with pytest.raises(SystemExit) as stop:
        train.main(words)
    assert str(stop.value).startswith("error: ")
    assert "none of the 20 that were trained" in str(stop.value)
    assert read_result(tmp_path / "eval") is None


def test_released_contexts_without_names(make_config, tmp_path):
    state = {"ctx": torch.randn(20, 2, 128)}
    directory = write_released(tmp_path / "r", "prompt_learner", state, 50)
    base = build_trainer(make_config("CoOp/base2novel", *SMALL, *CSC, HALF, "base"))
    base.load_model(directory, epoch=50)
    assert any("does not name its classes" in note for note in base.notes)
    new = build_trainer(make_config("CoOp/base2novel", *SMALL, *CSC, HALF, "new"))
    with pytest.raises(ValueError, match="never those that were trained"):
        new.load_model(directory, epoch=50)


@pytest.mark.parametrize("method", ["CoOp", "FT"])
def test_initial_weights(trained, make_config, reordered, method):
    run = trained(method)
    (file,) = Path(run.output_dir).rglob("model.pth.tar-1")
    config, own = METHODS[method]
    options = (*own, "MODEL.INIT_WEIGHTS", str(file), HALF)
    other = build_trainer(
        make_config(config, *options, "all", "DATASET.ROOT", reordered, output="other")
    )
    (key,) = run.rows_by_class().keys
    rows = run.model.get_parameter(key)
    assert torch.equal(other.model.get_parameter(key), rows.flip(0))


@pytest.mark.parametrize("method", ["CoOp", "FT"])
def test_initial_weights_and_resuming_refuse_other_classes(trained, make_config, method):
    run = trained(method, HALF, "base")
    (file,) = Path(run.output_dir).rglob("model.pth.tar-1")
    config, own = METHODS[method]
    with pytest.raises(ValueError, match="none of the 20 that were trained"):
        build_trainer(make_config(config, *own, "MODEL.INIT_WEIGHTS", str(file), HALF, "new"))
    cfg = make_config(config, *own, HALF, "new", output="other")
    with pytest.raises(ValueError, match="same classes in the same order"):
        build_trainer(cfg).resume_model_if_exist(run.output_dir)


def test_twins_of_a_classifier_keep_their_rows(build_fft):
    """Two classes of one name have their rows in the order in which they occur."""
    trainer = build_fft("LP")
    names = ["missile", "x", "missile", *trainer.dm.dataset.classnames]
    trainer.dm.dataset.classnames[:3] = ["missile", "missile", names[3]]
    trainer.recipe.take_classes([*names, *trainer.dm.dataset.classnames[3:]])
    assert trainer.model.columns[:3] == [0, 2, 3]
