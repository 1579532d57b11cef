"""A run that is interrupted and repeated ends exactly like one that was not."""

import os
import signal
from pathlib import Path

import pytest
import torch

from dassl.engine import build_trainer, read_result
from dassl.engine.resume import read_resume
from tests.dassl.torch_files import flip_bit_in
from tests.dassl.toys import ToyMethod
from tests.processes import fork

CHANGES = {
    "DATASET__NUM_SHOTS": 4,
    "TEST__FINAL_MODEL": "best_val",
    "OPTIM__MAX_EPOCH": 4,
    "OPTIM__NAME": "adamw",
    "OPTIM__LR": 0.01,
}


def final_state(cfg):
    path = Path(cfg.OUTPUT_DIR) / "ToyMethod" / f"model.pth.tar-{cfg.OPTIM.MAX_EPOCH}"
    return torch.load(path, weights_only=True)


def assert_same_run(one, two):
    first, second = final_state(one), final_state(two)
    for key, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][key]), key
    assert first["scheduler"] == second["scheduler"]
    for index, state in first["optimizer"]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, second["optimizer"]["state"][index][key])
    results = read_result(one.OUTPUT_DIR), read_result(two.OUTPUT_DIR)
    assert results[0]["metrics"] == results[1]["metrics"]


@pytest.fixture(scope="module")
def uninterrupted(toy_root, tmp_path_factory):
    from tests.dassl.toys import toy_cfg

    cfg = toy_cfg(toy_root, tmp_path_factory.mktemp("whole") / "run", **CHANGES)
    build_trainer(cfg).train()
    return cfg


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("crash_at", [(0, 1), (1, 0), (3, 2)])
def test_interrupted_equals_uninterrupted(
    make_cfg, uninterrupted, workers, crash_at, monkeypatch, capsys
):
    cfg = make_cfg(DATALOADER__NUM_WORKERS=workers, **CHANGES)
    monkeypatch.setattr(ToyMethod, "crash_at", crash_at)
    with pytest.raises(KeyboardInterrupt):
        build_trainer(cfg).train()
    assert read_result(cfg.OUTPUT_DIR) is None
    monkeypatch.setattr(ToyMethod, "crash_at", None)
    torch.manual_seed(99)  # whatever happened in between
    capsys.readouterr()
    build_trainer(cfg).train()
    log = capsys.readouterr().out
    assert (f"Resuming after epoch {crash_at[0]} of 4" in log) == (crash_at[0] > 0)
    assert (f"epoch [{crash_at[0]}/4]" in log) is False  # no epoch is trained twice
    assert_same_run(cfg, uninterrupted)
    assert not (Path(cfg.OUTPUT_DIR) / "resume.pth.tar").exists()


def test_sigkill_in_another_process(make_cfg, uninterrupted):
    cfg = make_cfg(**CHANGES)

    class Killed(ToyMethod):
        model_name = "ToyMethod"

        def forward_loss(self, image, label):
            if (self.epoch, self.batch_idx) == (2, 1):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().forward_loss(image, label)

    process = fork(lambda: Killed(cfg).train())
    process.join(timeout=300)
    assert process.exitcode == -signal.SIGKILL
    assert read_resume(cfg.OUTPUT_DIR)["epoch"] == 2
    build_trainer(cfg).train()
    assert_same_run(cfg, uninterrupted)


def test_killed_between_the_last_epoch_and_the_result(make_cfg, uninterrupted, monkeypatch):
    cfg = make_cfg(**CHANGES)

    class Killed(ToyMethod):
        model_name = "ToyMethod"

        def after_train(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Killed(cfg).train()
    build_trainer(cfg).train()
    assert_same_run(cfg, uninterrupted)


def interrupted(cfg, monkeypatch, crash_at=(2, 0)):
    with monkeypatch.context() as patch:
        patch.setattr(ToyMethod, "crash_at", crash_at)
        with pytest.raises(KeyboardInterrupt):
            build_trainer(cfg).train()


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.98])
def test_a_damaged_resume_file_is_ignored_loudly(
    make_cfg, uninterrupted, monkeypatch, capsys, keep
):
    cfg = make_cfg(**CHANGES)
    interrupted(cfg, monkeypatch)
    path = Path(cfg.OUTPUT_DIR) / "resume.pth.tar"
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    build_trainer(cfg).train()
    log = capsys.readouterr().out
    assert f'WARNING: not resuming: "{path}" is damaged or cut off' in log
    assert_same_run(cfg, uninterrupted)
    assert any("ignored" in note for note in read_result(cfg.OUTPUT_DIR)["notes"])


def test_a_flipped_bit_in_a_resume_file_is_noticed(make_cfg, uninterrupted, monkeypatch, capsys):
    cfg = make_cfg(**CHANGES)
    interrupted(cfg, monkeypatch)
    flip_bit_in(Path(cfg.OUTPUT_DIR) / "resume.pth.tar", "data/0")
    build_trainer(cfg).train()
    log = capsys.readouterr().out
    assert "WARNING: not resuming" in log
    assert "is damaged or cut off: Bad CRC-32 for file" in log
    assert "epoch [1/4]" in log.split("WARNING")[1]
    assert_same_run(cfg, uninterrupted)


def test_another_configuration_does_not_resume(make_cfg, monkeypatch, capsys):
    interrupted(make_cfg(**CHANGES), monkeypatch)
    build_trainer(make_cfg(**{**CHANGES, "OPTIM__LR": 0.02})).train()
    log = capsys.readouterr().out
    assert "WARNING: not resuming" in log
    assert "written with another configuration" in log
    assert "epoch [1/4]" in log.split("WARNING")[1]


def test_a_drawn_seed_survives_the_interruption(make_cfg, monkeypatch, capsys):
    cfg = make_cfg(**{**CHANGES, "SEED": -1})
    interrupted(cfg, monkeypatch)
    seed = read_resume(cfg.OUTPUT_DIR)["seed"]
    trainer = build_trainer(cfg)
    assert trainer.seed == seed
    trainer.train()
    assert read_result(cfg.OUTPUT_DIR)["seed"] == seed
    assert "Resuming after epoch 2" in capsys.readouterr().out


def test_the_best_result_survives_the_interruption(make_cfg, monkeypatch):
    class Scripted(ToyMethod):
        model_name = "ToyMethod"

        def test(self, split=None):
            real = super().test(split)
            return [90.0, 50.0, 60.0, 70.0][self.epoch] if split == "val" else real

    cfg = make_cfg(**CHANGES)
    with monkeypatch.context() as patch:
        patch.setattr(ToyMethod, "crash_at", (2, 0))
        with pytest.raises(KeyboardInterrupt):
            Scripted(cfg).train()
    trainer = Scripted(cfg)
    trainer.train()
    best = torch.load(f"{cfg.OUTPUT_DIR}/ToyMethod/model-best.pth.tar", weights_only=True)
    assert (best["epoch"], trainer.best_result) == (1, 90.0)


def test_resume_freq(make_cfg, monkeypatch):
    cfg = make_cfg(**CHANGES, TRAIN__RESUME_FREQ=3)
    interrupted(cfg, monkeypatch)
    assert read_resume(cfg.OUTPUT_DIR) is None
    never = make_cfg("never", TRAIN__RESUME_FREQ=0)
    seen = []

    class Watching(ToyMethod):
        def after_train(self):
            seen.append(read_resume(self.output_dir))

    Watching(never).train()
    assert seen == [None]


def test_explicit_resume_directory(make_cfg, monkeypatch, uninterrupted):
    source = make_cfg("source", **CHANGES)
    interrupted(source, monkeypatch)
    cfg = make_cfg("other", **CHANGES, RESUME=source.OUTPUT_DIR)
    build_trainer(cfg).train()
    first, second = final_state(cfg), final_state(uninterrupted)
    assert torch.equal(first["state_dict"]["head.weight"], second["state_dict"]["head.weight"])

    with pytest.raises(FileNotFoundError, match="--resume"):
        build_trainer(make_cfg("third", RESUME="/nowhere/at/all")).train()
    with pytest.raises(ValueError, match="another configuration"):
        build_trainer(make_cfg("fourth", RESUME=source.OUTPUT_DIR)).train()


def test_resume_from_checkpoints_as_dassl_does(make_cfg, capsys):
    short = make_cfg("short", trainer="ToyCoOp", TRAIN__CHECKPOINT_FREQ=1, OPTIM__MAX_EPOCH=2)
    build_trainer(short).train()
    cfg = make_cfg("long", trainer="ToyCoOp", RESUME=short.OUTPUT_DIR)
    trainer = build_trainer(cfg)
    trainer.train()
    assert trainer.start_epoch == 2
    assert "epoch [2/3]" not in capsys.readouterr().out.split("Found checkpoint")[1]
    empty = make_cfg("empty")
    os.makedirs(empty.OUTPUT_DIR)
    assert build_trainer(empty).resume_model_if_exist(empty.OUTPUT_DIR) == 0


def test_a_new_run_sets_the_old_result_aside(make_cfg, monkeypatch):
    cfg = make_cfg()
    build_trainer(cfg).train()
    interrupted(make_cfg(), monkeypatch, (0, 0))
    assert read_result(cfg.OUTPUT_DIR) is None
    assert (Path(cfg.OUTPUT_DIR) / "result.json.old").is_file()


def test_leftovers_of_killed_writes_are_removed(make_cfg):
    cfg = make_cfg()
    os.makedirs(cfg.OUTPUT_DIR)
    leftover = Path(cfg.OUTPUT_DIR) / ".resume.pth.tar.123.tmp"
    leftover.write_bytes(b"half")
    build_trainer(cfg).train()
    assert not leftover.exists()


def test_tensorboard_does_not_change_training(make_cfg, monkeypatch, uninterrupted):
    cfg = make_cfg(**CHANGES)
    assert list((Path(uninterrupted.OUTPUT_DIR) / "tensorboard").glob("events*"))
    monkeypatch.setattr(ToyMethod, "write_scalar", lambda *args: None)
    build_trainer(cfg).train()
    assert not (Path(cfg.OUTPUT_DIR) / "tensorboard").exists()
    assert_same_run(cfg, uninterrupted)


def test_an_optimiser_with_other_parameters_does_not_resume(make_cfg, monkeypatch, capsys):
    cfg = make_cfg(trainer="ToyCoOp")
    trainer = build_trainer(cfg)
    monkeypatch.setattr(trainer, "after_train", lambda: None)
    trainer.train()
    path = Path(cfg.OUTPUT_DIR) / "resume.pth.tar"
    state = torch.load(path, weights_only=True)
    state["optims"]["prompt_learner"]["param_groups"][0]["params"] = [0, 1]
    torch.save(state, path)
    build_trainer(cfg).train()
    log = capsys.readouterr().out
    assert "has other parameter groups in the optimiser of 'prompt_learner'" in log
    assert "epoch [1/3]" in log.split("WARNING: not resuming")[1]
