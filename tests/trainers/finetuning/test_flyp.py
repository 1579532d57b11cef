"""FLYP's contrastive loss and captions; the weights between two models."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from clip.text import unit_norm
from dassl.engine import trainable_state
from tests.trainers.finetuning.runs import HALF, batch
from trainers.finetuning.flyp import contrastive_loss
from trainers.finetuning.wise_ft import interpolate


def plain_contrast(f, h, label, scale, positives) -> torch.Tensor:
    """One row after the other."""
    total = torch.zeros((), dtype=f.dtype)
    for a, b in ((f, h), (h, f)):
        for i in range(len(label)):
            same = [j for j in range(len(label)) if label[j] == label[i]]
            logits = [scale * (a[i] * b[j]).sum() for j in range(len(label))]
            left_out = set(same) - {i} if positives == "mask" else set()
            below = sum(x.exp() for j, x in enumerate(logits) if j not in left_out).log()
            right = same if positives == "class" else [i]
            total = total - sum(logits[j] - below for j in right) / len(right)
    return total / (2 * len(label))


@pytest.mark.parametrize("positives", ["pair", "class", "mask"])
def test_contrastive_loss_is_its_formula(positives):
    torch.manual_seed(0)
    f, h = (F.normalize(torch.randn(6, 8, dtype=torch.float64), dim=1) for _ in range(2))
    f, h = f.requires_grad_(), h.requires_grad_()
    scale, label = torch.tensor(5.0, dtype=torch.float64), torch.tensor([0, 1, 0, 2, 0, 1])
    found = contrastive_loss(f, h, label, scale, positives)
    expected = plain_contrast(f, h, label, scale, positives)
    torch.testing.assert_close(found, expected)
    grads = zip(
        torch.autograd.grad(found, (f, h)), torch.autograd.grad(expected, (f, h)), strict=True
    )
    for a, b in grads:
        torch.testing.assert_close(a, b)


def test_contrast_of_distinct_classes_is_the_same_however_positives_count():
    torch.manual_seed(0)
    f, h = (F.normalize(torch.randn(4, 8), dim=1) for _ in range(2))
    losses = [
        contrastive_loss(f, h, torch.arange(4), torch.tensor(5.0), positives)
        for positives in ("pair", "class", "mask")
    ]
    assert torch.allclose(losses[0], losses[1])
    assert torch.allclose(losses[0], losses[2])


def test_flyp_draws_captions_of_the_labels(build_fft):
    trainer = build_fft("FLYP", "TRAINER.FLYP.TEMPLATES", "80")
    label = torch.tensor([3, 3, 3, 11] * 50)
    drawn = trainer.draw_captions(label)
    assert torch.equal(trainer.model.bank.owner[drawn], label)
    assert len(drawn[label == 3].unique()) > 50, "most of the 80 templates in 150 draws"


def test_flyp_step_encodes_the_captions_drawn(build_fft):
    trainer = build_fft("FLYP")
    image, label = batch(classes=40)
    state = trainer.captions.get_state()
    drawn = trainer.draw_captions(label)
    trainer.captions.set_state(state)
    out = trainer.forward_loss(image, label)
    backbone = trainer.model.backbone
    f = unit_norm(backbone.encode_image(image))
    h = unit_norm(backbone.model.encode_text(trainer.model.bank.tokens[drawn]))
    scale = backbone.logit_scale.exp()
    expected = contrastive_loss(f, h, label, scale, "pair")
    torch.testing.assert_close(out.loss, expected, rtol=1e-5, atol=1e-5)
    out.loss.backward()
    assert backbone.logit_scale.grad.abs() > 0


def test_flyp_classifies_by_what_its_text_encoder_has_become(train_fft, build_fft):
    directory = train_fft("FLYP", *HALF, output="flyp")
    trainer = build_fft("FLYP", output="new", dataset="shapes_v2")
    before = trainer.model.eval().class_weights().clone()
    trainer.load_model(directory)
    after = trainer.model.eval().class_weights()
    assert after.shape == before.shape
    assert not torch.allclose(before, after, atol=1e-6)


def test_interpolation_is_exact_at_its_ends():
    torch.manual_seed(0)
    start = {"a": torch.randn(3, 4), "n": torch.tensor(3)}
    end = {"a": torch.randn(3, 4), "n": torch.tensor(7)}
    assert torch.equal(interpolate(start, end, 0)["a"], start["a"])
    assert torch.equal(interpolate(start, end, 1.0)["a"], end["a"])
    assert interpolate(start, end, 1)["n"] == 7
    quarter = interpolate(start, end, 0.25)
    torch.testing.assert_close(quarter["a"], 0.75 * start["a"] + 0.25 * end["a"])
    assert quarter["n"] == 3
    interpolate(start, end, 0)["a"].zero_()
    assert start["a"].any(), "a copy"


@pytest.mark.parametrize("end", [{}, {"a": torch.zeros(2, 3)}, {"a": torch.zeros(3), "b": 1}])
def test_nothing_lies_between_models_of_different_form(end):
    with pytest.raises(ValueError, match="nothing between them"):
        interpolate({"a": torch.zeros(3)}, end, 0.5)


@pytest.mark.parametrize("alpha", ["0.0", "0.5", "1.0"])
def test_wise_ft_saves_what_lies_between(train_fft, build_fft, alpha):
    ft = train_fft("FT", output="ft")
    options = ("FIRST_STAGE.DIR", ft, "TRAINER.WiseFT.ALPHA", alpha)
    wise = train_fft("WiseFT", *options, output="wise")
    loaded = build_fft("WiseFT", "TRAINER.WiseFT.ALPHA", alpha, output="loaded")
    loaded.load_model(wise)
    fine_tuned, fresh = build_fft("FT", output="a"), build_fft("FT", output="b")
    fine_tuned.load_model(ft)
    fresh.model.class_weights()
    for name, value in trainable_state(loaded.model).items():
        ends = (trainable_state(t.model)[name] for t in (fresh, fine_tuned))
        torch.testing.assert_close(value, torch.lerp(*ends, float(alpha)), rtol=0, atol=1e-7)
