"""CoCoOp: its formula on uncut texts, chunks, settings, released files."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import clip.text
from clip import ConditionalPrompts, adapters_disabled
from tests.trainers.baselines import (
    around_names,
    assert_sgd,
    epoch_rates,
    write_released,
)
from tests.trainers.plain import unit

METHOD = "CoCoOp"


def one_step(trainer):
    """Logits, loss and gradients by name of one training step, in double precision."""
    torch.manual_seed(1)
    model = trainer.model.double()
    image, label = torch.randn(3, 3, 48, 48, dtype=torch.float64), torch.tensor([0, 19, 7])
    out = trainer.forward_loss(image, label)
    out.loss.backward()
    return image, label, out, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def test_logits_loss_and_gradients_equal_the_formula(build):
    trainer = build()
    image, label, out, gradients = one_step(trainer)

    backbone, names = trainer.model.backbone, trainer.dm.dataset.classnames
    own = {
        n: p.detach().clone().requires_grad_(True)
        for n, p in clip.adapter_parameters(backbone).items()
    }
    ctx, w1, b1, w2, b2 = own.values()
    assert w1.shape == (8, 128)
    plain = trainer.load_backbone().double().model
    f = unit(plain.encode_image(image))
    pi = (f @ w1.T + b1).clamp(min=0) @ w2.T + b2
    h = torch.stack([unit(around_names(plain, names, 4, ctx[0] + shift)) for shift in pi])
    logits = plain.logit_scale.exp() * (f[:, None] * h).sum(-1)
    loss = F.cross_entropy(logits, label)
    torch.testing.assert_close(out.logits, logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.loss, loss, rtol=1e-9, atol=1e-9)
    for (name, got), expected in zip(
        gradients.items(), torch.autograd.grad(loss, list(own.values())), strict=True
    ):
        assert expected.abs().max() > 0, name
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)


def test_all_pairs_in_one_batch_are_the_same(build, monkeypatch, count_calls):
    """The form that torch.export gets, which must not depend on the number of images."""
    model = build().model.double().eval()
    image = torch.randn(3, 3, 48, 48, dtype=torch.float64)
    at_once = count_calls(ConditionalPrompts, "_encode_all_pairs")
    with torch.no_grad():
        one_by_one = model(image)
        assert not at_once
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        torch.testing.assert_close(model(image), one_by_one, rtol=1e-9, atol=1e-9)
    assert at_once


def test_chunks_change_nothing(build, monkeypatch):
    whole = build()
    image, _, out, gradients = one_step(whole)
    evaluated = whole.model.eval()(image)
    monkeypatch.setattr(clip.text, "BATCH_TOKENS", 50)
    sizes = []
    encode = ConditionalPrompts.encode
    monkeypatch.setattr(
        ConditionalPrompts,
        "encode",
        lambda self, backbone, tokens, *more: (
            sizes.append(tokens.numel()) or encode(self, backbone, tokens, *more)
        ),
    )
    chunked = build("TRAIN.KEPT_TOKENS", "160", output="other")
    chunked.model.load_state_dict(whole.model.state_dict())
    _, _, other, others = one_step(chunked)
    assert len(sizes) > 10
    assert max(sizes) <= 100
    torch.testing.assert_close(other.logits, out.logits, rtol=1e-9, atol=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-8, atol=1e-10)
    sizes.clear()
    with torch.no_grad():
        torch.testing.assert_close(chunked.model.eval()(image), evaluated, rtol=1e-9, atol=1e-9)
    assert max(sizes) < 50 + max(chunked.model.bank.lengths)  # to the end of the last text


def test_evaluation_gives_the_logits_of_training(build):
    trainer = build()
    image, label = torch.randn(2, 3, 48, 48), torch.tensor([0, 1])
    trained = trainer.forward_loss(image, label).logits
    model = trainer.model.eval()
    torch.testing.assert_close(model(image), trained, rtol=1e-5, atol=1e-4)
    features = model.backbone.encode_image(image)
    torch.testing.assert_close(model(features), trained, rtol=1e-5, atol=1e-4)


def test_disabled_is_clip(build):
    model = build().model.eval()
    image = torch.randn(2, 3, 48, 48)
    with torch.no_grad(), adapters_disabled(model.backbone):
        plain = model.scale * model.image_features(image) @ model.class_weights().T
        assert torch.equal(model(image), plain)
    assert not torch.allclose(model(image), plain, atol=1e-2)


@pytest.mark.parametrize("protocol", ["base2novel", "cross_dataset", "few_shot"])
def test_schedule_and_settings(make_config, protocol):
    cfg = make_config(f"CoCoOp/{protocol}", dataset="imagenet")
    assert_sgd(cfg)
    assert cfg.DATALOADER.TRAIN_X.BATCH_SIZE == 1
    assert (cfg.TRAINER.CoCoOp.CTX_INIT, cfg.TRAINER.CoCoOp.N_CTX) == ("a photo of a", 4)
    rates = epoch_rates(cfg)
    assert rates[:2] == pytest.approx([1e-5, 2e-3])
    assert len(rates) == 10
    assert rates[-1] == pytest.approx(1.9e-4, rel=1e-2)


def test_released_checkpoint_loads_and_evaluates(build, tmp_path, whole_shapes):
    torch.manual_seed(2)
    state = {
        "ctx": torch.randn(4, 128),
        "token_prefix": torch.randn(500, 1, 128),
        "token_suffix": torch.randn(500, 72, 128),
        "meta_net.linear1.weight": torch.randn(8, 128),
        "meta_net.linear1.bias": torch.randn(8),
        "meta_net.linear2.weight": torch.randn(128, 8),
        "meta_net.linear2.bias": torch.randn(128),
    }
    # A context changes so little that only all test pictures tell.
    trainer = build("DATASET.ROOT", whole_shapes)
    before = trainer.test()
    trainer.load_model(write_released(tmp_path / "r", "prompt_learner", state, 10), epoch=10)
    own = clip.adapter_parameters(trainer.model.backbone)
    assert torch.equal(own["text_prompts.vectors"][0], state["ctx"].half().float())
    for name in list(state)[3:]:
        assert torch.equal(own[f"text_prompts.{name}"], state[name].half().float())
    assert trainer.test() != before
    del state["meta_net.linear2.bias"]
    with pytest.raises(ValueError, match=r"Missing keys: .*meta_net\.linear2\.bias"):
        trainer.load_model(write_released(tmp_path / "r", "prompt_learner", state, 10), epoch=10)
