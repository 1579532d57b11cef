"""Training with frozen weights that are rounded once: the same run, with fewer operations."""

import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from yacs.config import CfgNode

from clip.rounded_weights import RoundedWeights
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.checkpoint import trainable_state
from trainers.base import CLIPTrainer, clip_trainer

METHODS = ["LightRA", "MaPLe", "CoOp", "RAda", "PromptSRC", "CoCoOp", "KgCoOp", "MMA", "HPT"]
SMALL_BATCHES = ("DATALOADER.TEST.BATCH_SIZE", "8")
QUIET = ("TEST.NO_TEST", "True", "TRAIN.PRINT_FREQ", "1", "DATALOADER.NUM_WORKERS", "0")


def half(method):
    """Options of a run in bf16."""
    return (*QUIET, f"TRAINER.{TRAINER_REGISTRY.get(method).section()}.PREC", "bf16")


def outcome(trainer, capsys):
    """Losses in the log, and what was learned, after training."""
    capsys.readouterr()
    trainer.train()
    losses = re.findall(r"loss \S+ \(\S+\)", capsys.readouterr().out)
    assert losses
    return losses, trainable_state(trainer.model)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_the_same_bit_for_bit(build, monkeypatch, capsys, method):
    put = []
    original = RoundedWeights.put
    monkeypatch.setattr(RoundedWeights, "put", lambda self: put.append(1) or original(self))
    losses, state = outcome(build(*half(method), method=method), capsys)
    assert put
    monkeypatch.setattr(RoundedWeights, "put", lambda self: None)
    plain_losses, plain = outcome(build(*half(method), method=method, output="plain"), capsys)
    assert losses == plain_losses
    assert all(torch.equal(value, plain[name]) for name, value in state.items())


@pytest.mark.parametrize("method", ["RAdaFFT", "FT"])
def test_so_is_full_fine_tuning_whose_encoder_stays_whole(build_fft, monkeypatch, capsys, method):
    def run(output):
        return outcome(build_fft(method, *half(method), output=output), capsys)

    losses, state = run("rounded")
    monkeypatch.setattr(RoundedWeights, "put", lambda self: None)
    plain_losses, plain = run("plain")
    assert losses == plain_losses
    assert all(torch.equal(value, plain[name]) for name, value in state.items())


def types(trainer):
    return {parameter.dtype for parameter in trainer.model.parameters()}


def test_only_training_sees_them(build, tmp_path):
    trainer = build(*half("LightRA"), method="LightRA")
    before = {name: id(parameter) for name, parameter in trainer.model.named_parameters()}
    assert types(trainer) == {torch.float32}
    trainer.set_model_mode("train")
    assert types(trainer) == {torch.float32, torch.bfloat16}
    trainable = (p for p in trainer.model.parameters() if p.requires_grad)
    assert all(parameter.dtype == torch.float32 for parameter in trainable)
    trainer.set_model_mode("eval")
    assert types(trainer) == {torch.float32}
    trainer.train()
    assert {name: id(parameter) for name, parameter in trainer.model.named_parameters()} == before
    (path,) = tmp_path.rglob("model.pth.tar-1")
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert saved.keys() == trainable_state(trainer.model).keys()
    assert {value.dtype for value in saved.values()} == {torch.float32}


def test_without_autocast_there_are_none(build):
    trainer = build(*QUIET, method="RAda")
    trainer.set_model_mode("train")
    assert trainer.rounding.training is None
    assert types(trainer) == {torch.float32}


def test_cached_features_keep_the_hash_of_their_encoder(build, tmp_path):
    cache = ("FEATURE_CACHE.ENABLED", "True", "FEATURE_CACHE.DIR", str(tmp_path / "cache"))
    trainer = build(*half("RAda"), *cache, method="RAda")
    encoder = trainer.train_loader_x.encoder
    before = encoder.weights()
    trainer.set_model_mode("train")
    assert torch.bfloat16 in types(trainer)
    assert encoder.weights() == before


class CastsOfFrozen(TorchDispatchMode):
    """Counts how often a frozen weight, or a part of one, is copied into another type."""

    def __init__(self, model):
        super().__init__()
        frozen = [
            p
            for name, p in model.named_parameters()
            # Positions are added; open_clip brings them to the type of the tokens.
            if not p.requires_grad and p.ndim > 1 and "positional_embedding" not in name
        ]
        self.places = {p.untyped_storage().data_ptr() for p in frozen}
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.count += args[0].untyped_storage().data_ptr() in self.places
        return func(*args, **(kwargs or {}))


def test_a_step_rounds_no_frozen_weight_but_one(build):
    trainer = build(*half("LightRA"), method="LightRA")
    trainer.batch_idx, trainer.num_batches = 0, 100
    batch = next(iter(trainer.train_loader_x))
    counts = []
    for rounded in (True, False):
        trainer.set_model_mode("train")
        if not rounded:
            trainer.rounding.training.take_out()
        trainer.forward_backward(batch)  # the first one encodes the frozen texts, too
        with CastsOfFrozen(trainer.model) as casts:
            trainer.forward_backward(batch)
        counts.append(casts.count)
    layers = len(trainer.model.backbone.model.transformer.resblocks)
    # The matrix that tells open_clip in which type texts enter the tower.
    assert counts[0] == 1
    assert counts[1] > 10 * layers


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_only_for_a_gpu_are_kernels_laid_out_anew(count_calls, device):
    calls = count_calls(clip_trainer, "lay_out_for_gpu")
    cfg = CfgNode({"MODEL": {"BACKBONE": {"NAME": "shapes"}}, "DATASET": {"NAME": "Shapes"}})
    trainer = SimpleNamespace(cfg=cfg, precision="fp32", device=torch.device(device))
    backbone = CLIPTrainer.load_backbone(trainer)
    assert calls == ([(backbone,)] if device == "cuda" else [])


class CastsByBatch:
    """Counts casts of frozen weights of the vision tower in each batch of a test."""

    def __init__(self, trainer, monkeypatch):
        self.counts, self.logits = [], []
        inference = partial(type(trainer).model_inference, trainer)

        def counted(images):
            with CastsOfFrozen(trainer.model.backbone.model.visual) as casts:
                self.logits.append(inference(images))
            self.counts.append(casts.count)
            return self.logits[-1]

        monkeypatch.setattr(trainer, "model_inference", counted)


@pytest.mark.parametrize("method", [*METHODS, "ZeroshotCLIP", "FT"])
def test_a_test_gives_the_same_logits_bit_for_bit(build, build_fft, monkeypatch, method):
    if method == "FT":
        trainer = build_fft(method, *half(method), *SMALL_BATCHES)
    else:
        trainer = build(*half(method), *SMALL_BATCHES, method=method)
    before = {name: id(parameter) for name, parameter in trainer.model.named_parameters()}
    rounded = CastsByBatch(trainer, monkeypatch)
    trainer.test()
    assert {name: id(parameter) for name, parameter in trainer.model.named_parameters()} == before
    monkeypatch.setattr(RoundedWeights, "put", lambda self: None)
    plain = CastsByBatch(trainer, monkeypatch)
    trainer.test()
    assert len(rounded.logits) == len(plain.logits) > 1
    for found, exact in zip(rounded.logits, plain.logits, strict=True):
        assert torch.equal(found, exact)


def test_a_test_rounds_no_weight_of_the_vision_tower(build, monkeypatch):
    trainer = build(*half("LightRA"), *SMALL_BATCHES, method="LightRA")
    rounded = CastsByBatch(trainer, monkeypatch)
    trainer.test()
    assert len(rounded.counts) > 2
    assert set(rounded.counts[1:]) == {0}  # the first batch is counted from before they are rounded
    monkeypatch.setattr(RoundedWeights, "put", lambda self: None)
    plain = CastsByBatch(trainer, monkeypatch)
    trainer.test()
    assert min(plain.counts) > 10
