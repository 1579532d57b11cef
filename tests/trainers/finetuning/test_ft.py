"""Full fine-tuning: where it starts, what trains, losses against plain formulas."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from clip import FeatureAdapter
from clip.text import unit_norm
from dassl.engine import trainable_state
from tests.trainers.finetuning.runs import ENCODER, HALF, W, batch
from tests.trainers.heads.test_rational import plain


def shake(trainer) -> None:
    torch.manual_seed(1)
    trainer.model.class_weights()
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)


def names(trainer) -> set[str]:
    """Beginnings of what trains."""
    found = set()
    for name in trainable_state(trainer.model):
        found.add(ENCODER if name.startswith(ENCODER) else name.split(".")[0])
    return found


@pytest.mark.parametrize("method", ["LP", "FT", "L2SP", "RAdaFFT"])
def test_starts_with_the_logits_of_the_ensemble(build_fft, method):
    image, _ = batch()
    # With 7 templates ZeroshotCLIP2 has the dataset's own one beside them.
    ensemble = build_fft("ZeroshotCLIP2", "TRAINER.ZeroshotCLIP2.TEMPLATES", "80")
    ensemble = ensemble.model.eval()(image)
    ours = build_fft(method, f"TRAINER.{method}.TEMPLATES", "80", output="ours").model.eval()(image)
    torch.testing.assert_close(ours, ensemble, rtol=1e-5, atol=1e-4)


def test_classifier_is_the_mean_over_templates(build_fft):
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    trainer = build_fft("FT", "TRAINER.FT.TEMPLATES", "80")
    backbone = trainer.model.backbone
    name = trainer.dm.dataset.classnames[7].replace("_", " ")
    texts = [template(name) for template in OPENAI_IMAGENET_TEMPLATES]
    with torch.no_grad():
        features = unit_norm(backbone.model.encode_text(backbone.tokenize(texts)))
    assert len(texts) == 80
    expected = F.normalize(features.mean(0), dim=0)
    torch.testing.assert_close(trainer.model.class_weights()[7].detach(), expected)


def test_a_loaded_classifier_needs_no_text(train_fft, build_fft, monkeypatch):
    directory = train_fft("LP", output="lp")
    other = build_fft("LP", output="other")
    monkeypatch.setattr(
        other.recipe, "ensemble_weights", lambda backbone: pytest.fail("encoded texts")
    )
    other.load_model(directory)
    assert other.model.eval()(batch()[0]).shape == (6, 40)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("LP", {W}),
        ("FT", {ENCODER, W}),
        ("L2SP", {ENCODER, W}),
        ("LPFT", {ENCODER, W}),
        ("WiseFT", {ENCODER, W}),
        ("RAdaFFT", {"head"}),
        ("RAdaFT", {ENCODER, W, "head"}),
        ("CLIPAdapterFFT", {"adapter"}),
        ("CLIPAdapterFT", {ENCODER, W, "adapter"}),
    ],
)
def test_what_trains(build_fft, method, expected):
    assert names(build_fft(method)) == expected


def test_whether_the_classifier_trains_in_stage_1_is_a_switch(build_fft):
    assert names(build_fft("RAdaFFT", "TRAINER.RAdaFFT.TRAIN_CLASSIFIER", "True")) == {"head", W}


def test_all_of_clip_trains_in_flyp(build_fft):
    model = build_fft("FLYP").model
    assert all(p.requires_grad for p in model.parameters())
    assert model.backbone.logit_scale.requires_grad


def gradients(trainer, loss) -> list[torch.Tensor]:
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    return list(torch.autograd.grad(loss, parameters))


@pytest.mark.parametrize("method", ["LP", "FT", "LPFT"])
def test_loss_is_the_cross_entropy_of_the_linear_layer(build_fft, method):
    trainer = build_fft(method, *HALF)
    shake(trainer)
    model, (image, label) = trainer.model, batch()
    out = trainer.forward_loss(image, label)
    f = model.backbone.model.encode_image(image)
    f = f / f.norm(dim=1, keepdim=True)
    logits = model.backbone.logit_scale.detach().exp() * f @ model.classifier.T
    expected = -(logits - logits.logsumexp(1, keepdim=True))[torch.arange(6), label].mean()
    torch.testing.assert_close(out.loss, expected, rtol=1e-5, atol=1e-5)
    both = zip(gradients(trainer, out.loss), gradients(trainer, expected), strict=True)
    for found, wanted in both:
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("method", "weight"), [("RAdaFFT", 0.7), ("RAdaFT", 0.0)])
def test_loss_of_the_mask_on_the_classifier(build_fft, method, weight):
    """Stage 1 has the regulariser, stage 2 has not; W's rows are what h is elsewhere."""
    trainer = build_fft(method, *HALF, "ALPHA", "0.7")
    shake(trainer)
    model, (image, label) = trainer.model, batch()
    f = unit_norm(model.backbone.encode_image(image))
    logits, penalty, _ = plain(
        model.head, f, model.classifier, model.scale, temp=1.0, joint=True, num_heads=8, reg="l2"
    )
    expected = F.cross_entropy(logits, label) + weight * penalty
    out = trainer.forward_loss(image, label)
    torch.testing.assert_close(out.loss, expected, rtol=1e-4, atol=1e-4)
    both = zip(gradients(trainer, out.loss), gradients(trainer, expected), strict=True)
    for found, wanted in both:
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_penalty_is_half_beta_times_the_squared_way_from_the_start(build_fft):
    trainer = build_fft("L2SP", *HALF, "TRAINER.L2SP.BETA", "0.3", "OPTIM.MAX_EPOCH", "0")
    trainer.before_train()
    start = {n: p.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    image, label = batch()
    assert trainer.forward_loss(image, label).parts["l2sp"] == 0
    shake(trainer)
    out = trainer.forward_loss(image, label)
    now = dict(trainer.model.named_parameters())
    way = sum((now[n] - p).square().sum() for n, p in start.items())
    torch.testing.assert_close(out.parts["l2sp"], 0.15 * way)
    torch.testing.assert_close(out.loss, out.parts["ce"] + 0.15 * way)
    (gradient,) = torch.autograd.grad(out.parts["l2sp"], trainer.model.classifier)
    torch.testing.assert_close(gradient, 0.3 * (now[W] - start[W]))


def test_adapter_follows_its_formula():
    torch.manual_seed(0)
    adapter, v = FeatureAdapter(16, reduction=4, ratio=0.2), torch.randn(3, 16)
    down, up = adapter.down.weight, adapter.up.weight
    expected = 0.2 * ((v @ down.T).clamp(min=0) @ up.T).clamp(min=0) + 0.8 * v
    torch.testing.assert_close(adapter(v), expected)
    assert sum(p.numel() for p in adapter.parameters()) == 2 * 16 * 4
    with pytest.raises(ValueError, match=r"REDUCTION must be from 1 to D = 16, got 17"):
        FeatureAdapter(16, reduction=17)


def test_adapter_stands_before_the_normalisation(build_fft):
    trainer = build_fft("CLIPAdapterFFT")
    image, _ = batch()
    v = trainer.model.backbone.encode_image(image)
    expected = unit_norm(trainer.model.adapter(v))
    torch.testing.assert_close(trainer.model.image_features(image), expected)
    torch.testing.assert_close(trainer.model.image_features(v), expected)
