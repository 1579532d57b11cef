"""The command a user types: what goes right, and what is said when it cannot."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import clip
import train
from tests.conftest import REPOSITORY

CONFIGS = REPOSITORY / "configs"


@pytest.fixture
def run(shapes_root, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "setup_logger", lambda _: None)  # it would keep sys.stdout

    def run(*words, method="LightRA/base2novel", dataset="shapes", root=shapes_root, output="run"):
        command = ["--root", str(root), "--output-dir", str(tmp_path / output), "--seed", "1"]
        command += ["--dataset-config-file", str(CONFIGS / f"datasets/{dataset}.yaml")]
        command += ["--config-file", str(CONFIGS / f"trainers/{method}.yaml"), "--device", "cpu"]
        options = ["DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1"]
        flags = [word for word in words if word.startswith("-") or words[0].startswith("-")]
        train.main([*command, *flags, *options, *(w for w in words if w not in flags)])
        return json.loads((tmp_path / output / "result.json").read_text())

    return run


def refused(capsys, run, *words, **where) -> str:
    with pytest.raises(SystemExit) as stop:
        run(*words, **where)
    message = str(stop.value)
    assert message.startswith("error: ")
    assert "Traceback" not in capsys.readouterr().err
    return message


def test_train_then_evaluate_on_new_classes(run, tmp_path):
    base = run("DATASET.SUBSAMPLE_CLASSES", "base")
    assert base["subsample_classes"] == "base"
    assert not base["eval_only"]
    train_dir = str(tmp_path / "run")
    new = run("--eval-only", "--model-dir", train_dir, output="new")
    assert new["eval_only"]
    assert new["model_dir"] == train_dir
    assert new["num_classes"] == 40


def test_seed_zero_is_a_seed(run):
    assert run("SEED", "0")["seed"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--trainer", "LightRa"), ["LightRa", "LightRA"]),
        (("DATASET.NAME", "Shape"), ["Shape", "Shapes"]),
        (("--backbone", "ViT-B/61"), ["ViT-B/61", "ViT-B/16"]),
        (("--backbone", "RN50"), ["RN50", "LightRA", "ViT-B/16"]),
        (("OPTIM.LRR", "1"), ["OPTIM.LRR", "OPTIM.LR"]),
        (("OPTIM.LR", "fast"), ["OPTIM.LR", "fast", "float"]),
        (("DATASET.NUM_SHOTS", "0"), ["DATASET.NUM_SHOTS", "0"]),
        (("DATASET.SUBSAMPLE_CLASSES", "novel"), ["novel", "all, base, new"]),
        (("DATASET.PROMPT_PATH", "none.json"), ["none.json", "DATASET.PROMPT_PATH"]),
        (("TRAINER.LightRA.PREC", "fp8"), ["fp8", "fp16"]),
        (("--eval-only", "--model-dir", "nowhere"), ["nowhere", "--model-dir"]),
        (("--config-file", "configs/trainers/LightRA/base2new.yaml"), ["--config-file"]),
        (("--device", "cuda:9"), ["cuda"]),
    ],
)
def test_bad_words_are_explained(capsys, run, words, said):
    message = refused(capsys, run, *words)
    for part in said:
        assert part in message


def test_missing_data_says_where_it_was_looked_for(capsys, run, tmp_path):
    message = refused(capsys, run, "--backbone", "shapes", dataset="dtd", root=tmp_path / "none")
    for part in (str(tmp_path / "none" / "dtd"), "--root", "DATASETS.md", "dtd-r1.0.1.tar.gz"):
        assert part in message


def test_class_without_prompt_is_named(capsys, run, tmp_path):
    (tmp_path / "p.json").write_text(json.dumps({"dotted green star": ["a star."]}))
    message = refused(capsys, run, "DATASET.PROMPT_PATH", str(tmp_path / "p.json"))
    assert "39 of 40 classes" in message
    assert "'checkered pink cross'" in message


def test_checkpoint_of_another_method_backbone_or_shape(capsys, run, tmp_path):
    run()
    path = tmp_path / "run" / "ResidualAttention" / "model.pth.tar-1"
    content = torch.load(path, weights_only=True)

    def evaluate(*options):
        return refused(
            capsys, run, "--eval-only", "--model-dir", str(tmp_path / "run"), *options, output="e"
        )

    torch.save({**content, "meta": {**content["meta"], "method": "RAda"}}, path)
    assert "'RAda'" in evaluate()
    torch.save({**content, "meta": {**content["meta"], "backbone": "ViT-B/16"}}, path)
    assert "'ViT-B/16'" in evaluate()
    path.write_bytes(path.read_bytes()[:1000])
    assert "model.pth.tar-1" in evaluate()


def test_weights_of_another_config_are_refused_unless_told(capsys, run, tmp_path):
    backbone = tmp_path / "clip.bin"
    torch.save(clip.load("shapes").model.state_dict(), backbone)
    words = ("MODEL.BACKBONE.NAME", str(backbone))
    trained = run(*words)["metrics"]
    there = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    said = refused(capsys, run, *there, *words, "TRAINER.LightRA.N_CTX_TEXT", "2", output="e")
    assert "trained otherwise than the config says: TRAINER.LightRA.N_CTX_TEXT was 4, is 2." in said
    assert "--any-config" in said

    (tmp_path / "moved").mkdir()
    moved = backbone.rename(tmp_path / "moved" / backbone.name)
    words = ("MODEL.BACKBONE.NAME", str(moved))
    assert run(*there, *words, output="e")["metrics"] == trained
    state = torch.load(moved.rename(backbone), weights_only=True)
    state["visual.proj"] += 0.5
    torch.save(state, backbone)
    words = ("MODEL.BACKBONE.NAME", str(backbone))
    said = refused(capsys, run, *there, *words, output="f")
    assert f"the file of the backbone '{backbone}' is another one" in said
    result = run("--any-config", *there, *words, output="f")
    assert result["metrics"] != trained
    assert any("weights that were trained with other options" in n for n in result["notes"])


@pytest.mark.parametrize(
    ("command", "said"),
    [([], "--trainer or --config-file"), (["--trainer", "LightRA"], "--dataset-config-file")],
)
def test_missing_names_say_which_flag_gives_them(command, said):
    with pytest.raises(SystemExit, match=said):
        train.main(command)


def test_debug_shows_the_error_itself(run):
    with pytest.raises(ValueError, match="ViT-B/61"):
        run("--debug", "--backbone", "ViT-B/61")


def test_non_finite_loss_stops_and_keeps_the_last_good_state(run, tmp_path, monkeypatch):
    from trainers.lightra import LightRA

    original, steps = LightRA.forward_loss, []

    def explode(self, image, label):
        steps.append(1)
        out = original(self, image, label)
        return out if len(steps) <= 4 else type(out)(out.loss * float("nan"), out.logits)

    monkeypatch.setattr(LightRA, "forward_loss", explode)
    with pytest.raises(FloatingPointError, match=r"epoch|batch|step"):
        run("OPTIM.MAX_EPOCH", "9")
    assert not (tmp_path / "run" / "result.json").exists()
    state = torch.load(tmp_path / "run" / "resume.pth.tar", weights_only=True)
    assert state["epoch"] in (1, 2)
    assert "nan" not in str(state["models"] if "models" in state else state).lower()


def test_a_feature_cache_that_cannot_be_written_is_one_line(run, tmp_path, capsys, monkeypatch):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    options = ("--feature-cache", "FEATURE_CACHE.DIR")
    message = refused(capsys, run, *options, str(blocked), method="RAda/base2novel")
    assert "FEATURE_CACHE.DIR" in message
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    cache = tmp_path / "cache"
    message = refused(capsys, run, *options, str(cache), method="RAda/base2novel")
    assert str(cache) in message
    assert "MiB" in message
    monkeypatch.undo()
    monkeypatch.setattr(train, "setup_logger", lambda _: None)
    assert run(*options, str(cache), method="RAda/base2novel")["trainer"] == "RAda"
