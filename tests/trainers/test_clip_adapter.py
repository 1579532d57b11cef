"""CLIP-Adapter: its step against the plain formula, its schedule, released checkpoints."""

import pytest
import torch
from torch.nn import functional as F

import clip
from clip import FeatureAdapter, adapters_disabled
from clip.text import unit_norm
from dassl.engine import build_trainer
from tests.trainers.plain import check_released, learning_rates, write_released

METHOD = "CLIPAdapter"


@pytest.mark.parametrize("kept", [False, True])
def test_logits_loss_and_gradients_equal_the_formula(build, kept):
    trainer = build("TRAINER.CLIPAdapter.RATIO", "0.3")
    model = trainer.model.double()
    plain = clip.load("shapes").double()
    image, label = torch.randn(3, 3, 48, 48, dtype=torch.float64), torch.tensor([0, 5, 19])
    names = [name.replace("_", " ") for name in trainer.dm.dataset.classnames]
    h = unit_norm(plain.model.encode_text(plain.tokenize([f"a photo of a {n}." for n in names])))
    v = plain.encode_image(image)
    down, up = (
        w.detach().clone().requires_grad_()
        for w in (model.adapter.down.weight, model.adapter.up.weight)
    )
    adapted = 0.3 * ((v @ down.T).clamp(min=0) @ up.T).clamp(min=0) + 0.7 * v
    logits = plain.logit_scale.exp() * (adapted / adapted.norm(dim=-1, keepdim=True)) @ h.T
    loss = F.cross_entropy(logits, label)

    out = trainer.forward_loss(v.detach() if kept else image, label)

    torch.testing.assert_close(out.logits, logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.loss, loss, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.eval()(image), logits, rtol=1e-9, atol=1e-9)
    ours = torch.autograd.grad(out.loss, [model.adapter.down.weight, model.adapter.up.weight])
    for mine, expected in zip(ours, torch.autograd.grad(loss, [down, up]), strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-10)


def test_a_features_length_does_not_matter(build):
    """Without biases the adapter is homogeneous: blending before or after normalising is one."""
    model = build().model.eval()
    v = torch.randn(2, 128)
    torch.testing.assert_close(model.image_features(v), model.image_features(10 * v))
    assert not torch.allclose(model.image_features(v), unit_norm(v), atol=0.01)


def test_parameters_on_rn50():
    assert sum(p.numel() for p in FeatureAdapter(1024).parameters()) == 524_288


def test_starts_near_clip_and_is_clip_when_disabled(build):
    model, zero_shot = build().model.eval(), build(method="ZeroshotCLIP/base2novel", output="z")
    image = torch.randn(2, 3, 48, 48)
    plain = zero_shot.model.eval()
    with adapters_disabled(model):
        assert torch.equal(model(image), plain(image))
    f, f0 = model.image_features(image), plain.image_features(image)
    assert 0.95 < F.cosine_similarity(f, f0).min() < 0.99999


def test_text_is_encoded_once(build, count_calls):
    trainer = build("OPTIM.MAX_EPOCH", "2")
    calls = count_calls(trainer.model.bank, "encode_all")
    trainer.train()
    assert len(calls) == 1


def test_schedule_is_coops(make_config):
    cfg = make_config("CLIPAdapter/few_shot", "OPTIM.MAX_EPOCH", "50")
    assert (cfg.OPTIM.NAME, cfg.OPTIM.MOMENTUM, cfg.OPTIM.WEIGHT_DECAY) == ("sgd", 0.9, 5e-4)
    assert (cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.TRAINER.CLIPAdapter.PREC) == (32, "fp32")
    rates = learning_rates(build_trainer(cfg))
    # from a log of CoOp's with these settings
    assert rates[:4] == pytest.approx([1e-5, 2e-3, 1.99803e-3, 1.99211e-3], rel=1e-5)
    assert rates[-1] == pytest.approx(7.9e-6, rel=1e-2)


@pytest.mark.parametrize("protocol", ["few_shot", "base2novel", "cross_dataset"])
def test_imagenet_is_trained_for_fewer_epochs(make_config, protocol):
    options = ("MODEL.BACKBONE.NAME", "shapes")
    cfg = make_config(f"CLIPAdapter/{protocol}", *options, dataset="imagenet")
    assert cfg.OPTIM.MAX_EPOCH == 50
    assert make_config(f"CLIPAdapter/{protocol}").OPTIM.MAX_EPOCH == 200


def test_released_checkpoints_load_and_evaluate(build, tmp_path):
    source, loaded = build(), build("SEED", "2", output="loaded")
    state = {
        "fc.0.weight": source.model.adapter.down.weight.detach(),
        "fc.2.weight": source.model.adapter.up.weight.detach(),
    }
    folder = write_released(tmp_path / "released", "clip_adapter", state, 50)
    check_released(source, loaded, folder, epoch=50)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"fc.0.weight": torch.zeros(256, 1024), "fc.2.weight": torch.zeros(1024, 256)},
            r"adapter.down.weight.*\(256, 1024\).*needs \(32, 128\)",
        ),
        ({"prompt_learner.ctx": torch.zeros(4, 128)}, r"Missing keys: adapter.down.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(build, tmp_path, state, message):
    with pytest.raises(ValueError, match=message):
        build().load_model(
            write_released(tmp_path / "released", "clip_adapter", state, 50), epoch=50
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("REDUCTION", "0"), "REDUCTION must be a whole number 1 .*got 0"),
        (("REDUCTION", "129"), "REDUCTION must be from 1 to D = 128, got 129"),
        (("RATIO", "0.0"), "RATIO.*above 0, at most 1, got 0.0"),
        (("RATIO", "1.5"), "RATIO.*got 1.5"),
    ],
)
def test_bad_settings_are_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(f"TRAINER.CLIPAdapter.{options[0]}", options[1])
