"""Checkpoints: what they hold, how they are refused, and that reading one never runs code."""

import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from dassl.config import to_plain
from dassl.engine import build_trainer, trainable_state
from dassl.utils import (
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)
from tests.dassl.torch_files import SPOILED, live_checkpoint, spoil
from tests.dassl.toys import ToyMethod, ToyModel


@pytest.fixture
def trained(make_cfg):
    cfg = make_cfg("trained", OPTIM__MAX_EPOCH=1)
    trainer = build_trainer(cfg)
    trainer.train()
    return trainer


def rewrite(trainer, change):
    """Apply a change to the checkpoint's content and return its directory."""
    path = Path(trainer.output_dir) / "ToyMethod" / "model.pth.tar-1"
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return trainer.output_dir


def test_content(trained):
    path = Path(trained.output_dir) / "ToyMethod" / "model.pth.tar-1"
    content = torch.load(path, weights_only=True)
    assert set(content) == {"state_dict", "epoch", "optimizer", "scheduler", "val_result", "meta"}
    assert list(content["state_dict"]) == [
        "head_norm.weight",
        "head_norm.bias",
        "head_norm.running_mean",
        "head_norm.running_var",
        "head_norm.num_batches_tracked",
        "head.weight",
        "head.bias",
    ]
    assert content["epoch"] == 1
    assert content["meta"] == {
        "method": "ToyMethod",
        "backbone": "",
        "config_hash": content["meta"]["config_hash"],
        "dataset": "ToySquares",
        "recipe": content["meta"]["recipe"],
        "classnames": ["red_square", "green square", "blue square"],
        "num_classes": 3,
        "config": to_plain(trained.cfg),
    }
    recipe = content["meta"]["recipe"]
    assert (recipe["OPTIM.LR"], recipe["OPTIM.MAX_EPOCH"]) == (0.05, 1)
    assert not {"TRAINER.ToyMethod.PREC", "MODEL.BACKBONE.NAME", "SEED"} & recipe.keys()
    assert content["scheduler"] == {"last_epoch": 1, "base_lrs": [0.05]}


def test_save_and_load_is_exact(trained, make_cfg):
    other = build_trainer(make_cfg("other", SEED=2))
    assert not torch.equal(other.model.head.weight, trained.model.head.weight)
    other.load_model(trained.output_dir, epoch=1)
    for key, value in trainable_state(trained.model).items():
        assert torch.equal(trainable_state(other.model)[key], value)


def test_buffers_that_are_not_persistent_are_left_out():
    class WithBuffers(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))
            self.register_buffer("kept", torch.zeros(1))
            self.register_buffer("dropped", torch.zeros(1), persistent=False)
            self.frozen = nn.BatchNorm1d(3).requires_grad_(False)

    assert list(trainable_state(WithBuffers())) == ["weight", "kept"]
    assert list(trainable_state(nn.DataParallel(WithBuffers()))) == ["weight", "kept"]


def test_whole_models_written_by_dassl_are_tolerated(trained, make_cfg):
    full = {f"module.{k}": v for k, v in trained.model.state_dict().items()}
    directory = Path(trained.output_dir) / "ToyMethod"
    save_checkpoint({"state_dict": full, "epoch": 7}, directory)
    other = build_trainer(make_cfg("other", SEED=2))
    other.load_model(trained.output_dir, epoch=7)
    for key, value in trained.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[key], value)


def test_missing_directory_and_file(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--model-dir and --load-epoch.*no directory"):
        trained.load_model(tmp_path / "nowhere", epoch=1)
    with pytest.raises(FileNotFoundError, match=r"model\.pth\.tar-5.*holds: .*model\.pth\.tar-1"):
        trained.load_model(trained.output_dir, epoch=5)
    (Path(trained.output_dir) / "ToyMethod" / "checkpoint").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-best\.pth\.tar"):
        trained.load_model(trained.output_dir)
    os.rename(
        Path(trained.output_dir) / "ToyMethod", Path(trained.output_dir) / "ResidualAttention"
    )
    with pytest.raises(FileNotFoundError, match="holds: ResidualAttention"):
        trained.load_model(trained.output_dir, epoch=1)


def test_without_an_epoch_the_best_is_loaded_or_else_the_last(trained, make_cfg):
    other = build_trainer(make_cfg("other", SEED=2))
    other.load_model(trained.output_dir)
    assert torch.equal(other.model.head.weight, trained.model.head.weight)
    best = {k: torch.zeros_like(v) for k, v in trainable_state(trained.model).items()}
    directory = Path(trained.output_dir) / "ToyMethod"
    save_checkpoint({"state_dict": best, "epoch": 1}, directory, model_name="model-best.pth.tar")
    other.load_model(trained.output_dir)
    assert other.model.head.weight.abs().sum() == 0


def test_missing_keys(trained):
    directory = rewrite(trained, lambda c: c["state_dict"].pop("head.bias"))
    with pytest.raises(ValueError, match=r"Missing keys: head\.bias"):
        trained.load_model(directory, epoch=1)


def test_unexpected_keys(trained):
    directory = rewrite(trained, lambda c: c["state_dict"].update({"haed.bias": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"Unexpected keys: haed\.bias\. Did you mean 'head.bias'"):
        trained.load_model(directory, epoch=1)


def test_shapes_name_the_classes(trained):
    def change(content):
        content["state_dict"]["head.weight"] = torch.zeros(5, 16)
        content["meta"]["classnames"] = list("abcde")

    directory = rewrite(trained, change)
    message = r"head\.weight.*\(5, 16\).*\(3, 16\).*trained on 5 classes \(a, b, c and 2 more\)"
    with pytest.raises(ValueError, match=message):
        trained.load_model(directory, epoch=1)


def test_other_class_names_alone_are_fine(trained):
    directory = rewrite(trained, lambda c: c["meta"].update(classnames=["x"], num_classes=1))
    trained.load_model(directory, epoch=1)
    assert trained.identity.loaded_from == (directory, 1)


@pytest.mark.parametrize("key", ["method", "backbone"])
def test_another_method_or_backbone_is_refused(trained, key):
    directory = rewrite(trained, lambda c: c["meta"].update({key: "Another"}))
    with pytest.raises(ValueError, match=f"trained with {key} 'Another'"):
        trained.load_model(directory, epoch=1)


def test_a_refused_file_changes_nothing(trained):
    before = trained.model.state_dict()["head.weight"].clone()

    def change(content):
        content["state_dict"]["head.weight"] += 1
        content["state_dict"]["head.bias"] = torch.zeros(9)

    with pytest.raises(ValueError, match=r"head\.bias"):
        trained.load_model(rewrite(trained, change), epoch=1)
    assert torch.equal(trained.model.head.weight, before)


def test_files_that_are_no_checkpoint(trained):
    path = Path(trained.output_dir) / "ToyMethod" / "model.pth.tar-1"
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="no entry state_dict"):
        trained.load_model(trained.output_dir, epoch=1)
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match=f'"{path}" is not a readable checkpoint'):
        trained.load_model(trained.output_dir, epoch=1)


@pytest.mark.parametrize("how", SPOILED)
def test_spoiled_files_are_refused_and_change_nothing(trained, make_cfg, how):
    path = Path(trained.output_dir) / "ToyMethod" / "model.pth.tar-1"
    other = build_trainer(make_cfg("other", SEED=2))
    before = {key: value.clone() for key, value in other.model.state_dict().items()}
    spoil(path, how)
    with pytest.raises(ValueError, match=f'"{path}" .*{SPOILED[how]}'):
        other.load_model(trained.output_dir)
    with pytest.raises(ValueError, match=f'"{path}" '):
        resume_from_checkpoint(path.parent, other.model)
    assert all(torch.equal(value, before[key]) for key, value in other.model.state_dict().items())


@pytest.mark.parametrize("how", SPOILED)
def test_spoiled_initial_weights_are_refused(trained, make_cfg, how):
    path = Path(trained.output_dir) / "ToyMethod" / "model.pth.tar-1"
    spoil(path, how)
    said = SPOILED[how].replace("has no entry state_dict", "holds no weights by name")
    with pytest.raises(ValueError, match=f'"{path}" .*{said}'):
        build_trainer(make_cfg("other", MODEL__INIT_WEIGHTS=str(path)))


def test_convert_state_dict_accepts_foreign_layouts(trained, make_cfg):
    class Converting(ToyMethod):
        model_name = "ToyMethod"

        def convert_state_dict(self, state_dict):
            return {k.replace("old_", ""): v for k, v in state_dict.items()}

    def change(content):
        content["state_dict"] = {f"old_{k}": v for k, v in content["state_dict"].items()}

    directory = rewrite(trained, change)
    other = Converting(make_cfg("other", SEED=2))
    other.load_model(directory, epoch=1)
    assert torch.equal(other.model.head.weight, trained.model.head.weight)


def test_a_dassl_checkpoint_loads_into_a_trainer(make_cfg, trained):
    other = build_trainer(make_cfg("other", SEED=2))
    content = live_checkpoint()
    content["state_dict"] = trained.model.state_dict()
    directory = Path(trained.output_dir) / "ToyMethod"
    torch.save(content, directory / "model.pth.tar-3")
    other.load_model(trained.output_dir, epoch=3)
    assert torch.equal(other.model.head.weight, trained.model.head.weight)


# ---------------------------------------------------------------------- helpers


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    state = {"state_dict": {"w": torch.zeros(2)}, "epoch": 1}
    save_checkpoint(state, tmp_path)
    before = (tmp_path / "model.pth.tar-1").read_bytes()

    def killed(*args):
        raise KeyboardInterrupt

    state["state_dict"]["w"] += math.pi
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(state, tmp_path)
    assert (tmp_path / "model.pth.tar-1").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "model.pth.tar-1"]
    save_checkpoint(state, tmp_path, is_best=True)
    assert (tmp_path / "model.pth.tar-1").read_bytes() != before
    assert load_checkpoint(tmp_path / "model-best.pth.tar")["epoch"] == 1


def test_resume_from_checkpoint(tmp_path):
    def parts():
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
        return model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)

    model, optim = parts()
    model(torch.ones(1, 2)).sum().backward()
    optim.step()
    state = {"state_dict": model.state_dict(), "epoch": 4, "optimizer": optim.state_dict()}
    save_checkpoint(state, tmp_path)
    other, other_optim = parts()
    assert resume_from_checkpoint(tmp_path, other, other_optim) == 4
    assert torch.equal(other.weight, model.weight)
    assert other_optim.state_dict()["state"][0]["momentum_buffer"].abs().sum() > 0
    with pytest.raises(FileNotFoundError, match="--resume"):
        resume_from_checkpoint(tmp_path / "none", other)
    with pytest.raises(ValueError, match="keys that the model lacks"):
        resume_from_checkpoint(tmp_path, nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="does not fit the model"):
        resume_from_checkpoint(tmp_path, nn.Linear(3, 3))


def test_load_pretrained_weights(tmp_path, capsys):
    model = ToyModel(3)
    path = tmp_path / "weights"
    torch.save({"module.head.bias": torch.full((3,), 7.0), "other": torch.ones(1)}, path)
    load_pretrained_weights(model, path)
    assert model.head.bias.tolist() == [7.0] * 3
    assert "discarded due to unmatched keys or size: ['other']" in capsys.readouterr().out
    torch.save({"head.bias": torch.zeros(4)}, path)
    with pytest.warns(UserWarning, match="Nothing was loaded"):
        load_pretrained_weights(model, path)


def test_init_weights_are_used(make_cfg, tmp_path):
    torch.save({"head.bias": torch.full((3,), 7.0)}, tmp_path / "weights")
    trainer = build_trainer(make_cfg(MODEL__INIT_WEIGHTS=str(tmp_path / "weights")))
    assert trainer.model.head.bias.tolist() == [7.0] * 3


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere")
