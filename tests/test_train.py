"""The command a user types: what goes right, and what is said when it cannot."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import clip
import dassl.engine
import train
from dassl.config import layers, merge
from tests.conftest import REPOSITORY

CONFIGS = REPOSITORY / "configs"


@pytest.fixture
def run(shapes_root, tmp_path, monkeypatch):
    monkeypatch.setattr("dassl.utils.setup_logger", lambda _: None)  # it would keep sys.stdout

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


def test_non_finite_loss_stops_and_keeps_the_last_good_state(capsys, run, tmp_path, monkeypatch):
    from trainers.lightra import LightRA

    original, steps = LightRA.forward_loss, []

    def explode(self, image, label):
        steps.append(1)
        out = original(self, image, label)
        return out if len(steps) <= 4 else type(out)(out.loss * float("nan"), out.logits)

    monkeypatch.setattr(LightRA, "forward_loss", explode)
    message = refused(capsys, run, "OPTIM.MAX_EPOCH", "9")
    assert "the loss is infinite or NaN (nan) in epoch 3, batch 1" in message
    assert not (tmp_path / "run" / "result.json").exists()
    state = torch.load(tmp_path / "run" / "resume.pth.tar", weights_only=True)
    assert state["epoch"] in (1, 2)
    assert "nan" not in str(state["models"] if "models" in state else state).lower()


def test_untrained_weights_are_no_result(capsys, run, tmp_path):
    message = refused(capsys, run, "--eval-only")
    assert "--eval-only needs --model-dir, the folder of a finished run of LightRA" in message
    assert "--trainer ZeroshotCLIP" in message
    assert not (tmp_path / "run" / "result.json").exists()


def test_an_unreadable_picture_is_one_line_whenever_it_is_met(
    capsys, run, shapes_root, tmp_path, monkeypatch
):
    shutil.copytree(shapes_root, tmp_path / "data")
    picture = next((tmp_path / "data/shapes/main/test").rglob("*.png"))
    picture.write_bytes(picture.read_bytes()[:40])
    monkeypatch.setattr("datasets.shapes.mend", lambda folder: None)  # would draw it again
    for workers in ("0", "1"):
        options = ("DATALOADER.NUM_WORKERS", workers)
        message = refused(capsys, run, *options, root=tmp_path / "data", output=workers)
        assert message.startswith(f'error: Cannot decode the image "{picture}": ')
        assert "\n" not in message


def test_a_set_without_training_or_test_pictures_is_told_before_training(
    capsys, run, tmp_path, monkeypatch
):
    message = refused(capsys, run, dataset="shapes_v2")
    assert "ShapesV2 has no training images" in message
    build = dassl.engine.build_trainer

    def without_tests(cfg):
        trainer = build(cfg)
        trainer.test_loader = None
        return trainer

    monkeypatch.setattr("dassl.engine.build_trainer", without_tests)
    message = refused(capsys, run)
    assert "Shapes has no images in the split 'test' (TEST.SPLIT)" in message
    assert "TEST.NO_TEST True" in message
    assert not (tmp_path / "run" / "resume.pth.tar").exists()


@pytest.mark.parametrize("below", ["", "run"])
def test_an_output_folder_that_is_a_file_is_told_before_anything(capsys, run, tmp_path, below):
    (tmp_path / "file").write_text("kept")
    message = refused(capsys, run, output=str(Path("file", below)))
    assert str(Path(tmp_path, "file", below)) in message
    assert "OUTPUT_DIR, set by --output-dir" in message
    assert (tmp_path / "file").read_text() == "kept"


def test_a_name_that_is_too_long_is_told_before_anything(capsys, run):
    message = refused(capsys, run, output="x" * 300)
    assert "File name too long (OUTPUT_DIR, set by --output-dir); choose a shorter name" in message


def test_a_full_disk_is_told_before_training(capsys, run, tmp_path, monkeypatch):
    disk = SimpleNamespace(f_bavail=3, f_frsize=1000)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    message = refused(capsys, run, method="RAda/base2novel")
    assert f'"{tmp_path / "run"}": ' in message
    assert "0.8 MiB are needed for checkpoints, 0.0 MiB are free" in message
    assert not (tmp_path / "run" / "resume.pth.tar").exists()


def test_a_disk_that_fills_up_is_one_line_and_the_last_state_stays(
    capsys, run, tmp_path, monkeypatch
):
    real = os.fsync

    def full(descriptor):
        if (tmp_path / "run" / "resume.pth.tar").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    message = refused(capsys, run, "OPTIM.MAX_EPOCH", "3")
    assert f'"{tmp_path / "run" / "resume.pth.tar"}": No space left on device' in message
    state = torch.load(tmp_path / "run" / "resume.pth.tar", weights_only=True)
    assert state["epoch"] == 1
    assert [path.name for path in (tmp_path / "run").rglob("*.tmp")] == []


def test_ctrl_c_is_one_line(capsys, run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dassl.engine.build_trainer", interrupt)
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "error: interrupted; what was finished is kept\n"


def test_a_mistake_in_the_code_keeps_its_traceback(run, monkeypatch):
    def mistake(*_):
        raise KeyError("x")

    monkeypatch.setattr("dassl.engine.build_trainer", mistake)
    with pytest.raises(KeyError):
        run()


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
    monkeypatch.setattr("dassl.utils.setup_logger", lambda _: None)
    assert run(*options, str(cache), method="RAda/base2novel")["trainer"] == "RAda"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["OPTIM.LR", "0.1", "--debug"], "--debug comes after the KEY VALUE options; flags go fir"),
        (["OPTIM.LR", "0.1", "--seed=1"], "--seed=1 comes after the KEY VALUE options; flags go"),
        (["OPTIM.LR", "--seed", "1"], "--seed comes after the KEY VALUE options; flags go first"),
        (["OPTIM.LR", "0.1", "-h"], "-h comes after the KEY VALUE options; flags go first"),
        (["OPTIM.LR", "0.1", "--sede", "1"], "--sede .* is no flag either. Did you mean '--seed'"),
        (["OPTIM.LR"], r"OPTIM\.LR has no value: .* KEY VALUE pairs, got 'OPTIM\.LR'"),
        (["SEED", "1", "OPTIM.LR"], r"OPTIM\.LR has no value: "),
        (
            ["OPTIM.LR", "OPTIM.MAX_EPOCH", "1"],
            r"OPTIM\.LR has no value \(OPTIM\.MAX_EPOCH follows",
        ),
        (["OPTIM.LR=0.1"], r"'OPTIM\.LR=0\.1': a key and its value are two words: OPTIM\.LR 0\.1"),
    ],
)
def test_options_of_a_wrong_form_are_explained(words, said):
    with pytest.raises(SystemExit, match=f"^error: {said}"):
        train.main(["--trainer", "LightRA", *words])


@pytest.mark.parametrize(
    "command",
    ["train.py --help", "scripts/report.py --help", "scripts/data.py --help",
     "scripts/run.py --dry-run --protocol base2novel --datasets shapes"],
)  # fmt: skip
def test_what_answers_at_once_does_not_import_pytorch(command):
    code = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "torchvision", "open_clip", "sklearn", "transformers", "matplotlib"}
sys.exit(", ".join(heavy & {*sys.modules}) or None)
"""
    words = [sys.executable, "-c", code, *command.split()]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 100


@pytest.mark.parametrize(("given", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(given, policy):
    """PyTorch reads the variable when it is imported, so it has to be there before."""
    code = "import os, sys, train; print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    environment = {name: v for name, v in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if given:
        environment["OMP_WAIT_POLICY"] = given
    words = [sys.executable, "-c", code]
    done = subprocess.run(
        words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", policy]


def test_a_run_imports_nothing_that_it_does_not_need(shapes_root, tmp_path):
    """By name: what only other commands, options or tools of libraries need."""
    code = """
import sys, train
from dassl.engine import SimpleTrainer
unused = {"sklearn", "scipy", "pandas", "matplotlib", "gdown", "torch._inductor.compile_fx"}
def step(self, *parts):  # the first one's numbers are the first that TensorBoard gets
    print("STEP", *sorted({*unused, "tensorboard"} & {*sys.modules}))
    return original(self, *parts)
original, SimpleTrainer.model_backward = SimpleTrainer.model_backward, step
train.main(sys.argv[1:])
print("END", *sorted(unused & {*sys.modules}))
"""
    words = ["--root", shapes_root, "--output-dir", str(tmp_path), "--seed", "1", "--device", "cpu"]
    words += ["--dataset-config-file", "configs/datasets/shapes.yaml"]
    words += ["--config-file", "configs/trainers/LightRA/base2novel.yaml"]
    words += ["DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert next(line for line in lines if line.startswith("STEP")) == "STEP"
    assert lines[-1] == "END"


def test_a_config_is_built_without_loading_the_backbone(make_config, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(torch, "frombuffer", None)  # what makes numbers of a file's bytes
    for name, side in (("shapes", 48), (tiny_checkpoint, 32), ("RN50x4", 288)):
        cfg = make_config("ZeroshotCLIP/base2novel", flags=("--backbone", name))
        assert cfg.INPUT.SIZE == (side, side)


def test_each_file_is_read_once_and_each_of_its_values_converted_once(make_config, monkeypatch):
    read, converted = Counter(), Counter()
    read_yaml, convert = layers.read_yaml, merge._convert

    def counting_read(path):
        read[path] += 1
        return read_yaml(path)

    def counting_convert(key, value, current, source):
        converted[source, key] += 1
        return convert(key, value, current, source)

    monkeypatch.setattr(layers, "read_yaml", counting_read)
    monkeypatch.setattr(merge, "_convert", counting_convert)
    options = ("DATASET.NUM_SHOTS", "4", "OPTIM.LR", "0.1")
    make_config("CoPrompt/base2novel", *options, flags=("--backbone", "shapes"))
    assert {Path(path).name for path in read} >= {"shapes.yaml", "base2novel.yaml"}
    assert {source for source, _ in converted} >= {*read, "command line"}
    assert {*read.values(), *converted.values()} == {1}


def test_a_word_of_another_flag_that_is_a_key_is_explained():
    with pytest.raises(SystemExit, match=r"--transforms takes .*'OPTIM\.LR'.* put -- before"):
        train.main(["--transforms", "random_flip", "OPTIM.LR", "0.1"])


def test_of_an_option_given_twice_the_last_counts_and_it_is_said(make_config, capsys):
    cfg = make_config("LightRA/base2novel", *("OPTIM.LR", "0.1", "SEED", "3", "OPTIM.LR", "0.2"))
    assert cfg.OPTIM.LR == 0.2
    assert "OPTIM.LR is given twice: '0.2' counts, not '0.1' before it" in capsys.readouterr().err
    make_config("LightRA/base2novel", *("OPTIM.LR", "0.1", "OPTIM.LR", "0.1"))
    assert not capsys.readouterr().err
