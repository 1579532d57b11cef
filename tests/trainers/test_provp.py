"""ProVP-Ref (arXiv:2304.08386): progressive vision prompts and feature reformation."""

import math

import pytest
import torch

import clip
from clip import attach_progressive_prompts
from dassl.engine import build_trainer
from tests.trainers.plain import (
    SMALL,
    check_step,
    cosine_loss,
    learning_rates,
    plain_image,
    plain_text,
    tokens_of,
    unit,
)
from trainers import provp

METHOD = "ProVP"

VISION = "backbone.vision_prompts.vectors"


@pytest.mark.parametrize(
    ("options", "alpha"),
    [((), 0.01), (("TRAINER.ProVP.ALPHA", "0.5"), 0.5), (("TRAINER.ProVP.PROMPT_DEPTH", "1"), 0)],
)
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_step_equals_the_formula(build, options, alpha, weight):
    """The prompts stand behind the class token here, at the end in the method."""
    trainer = build(*options, "TRAINER.ProVP.REF_WEIGHT", str(weight))
    tokens = tokens_of(trainer)

    def expected(model, learned, image, label):
        f = unit(plain_image(model, image, learned[VISION], alpha=alpha))
        f0 = unit(plain_image(model, image)).detach()
        logits, ce = cosine_loss(model, f, unit(plain_text(model, tokens)), label)
        ref = -weight * torch.log_softmax(f @ f0.T, 1).diag().mean()
        return {"logits": logits, "loss": ce + ref, "ce": ce, "ref": ref}

    check_step(trainer, expected)


def test_two_processes_contrast_the_whole_batch(build, monkeypatch):
    trainer = build()
    model = trainer.model.double()
    image, label = torch.randn(5, 3, 48, 48).double(), torch.randint(20, (5,))
    whole = trainer.forward_loss(image, label)
    (expected,) = torch.autograd.grad(whole.loss, model.backbone.vision_prompts.vectors)
    frozen = model.frozen_image_features(image)
    monkeypatch.setattr(provp, "gather_features", lambda own: frozen)
    found, ref = 0, 0
    for rows in (slice(0, 2), slice(2, 5)):
        monkeypatch.setattr(provp, "first_row", lambda count, first=rows.start: first)
        out, share = trainer.forward_loss(image[rows], label[rows]), (rows.stop - rows.start) / 5
        found += share * torch.autograd.grad(out.loss, model.backbone.vision_prompts.vectors)[0]
        ref += share * out.parts["ref"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ref, whole.parts["ref"])


def test_start_is_uniform_as_released():
    backbone = clip.load("shapes")
    vectors = attach_progressive_prompts(backbone, n_ctx=200, depth=3).vectors.detach()
    bound = math.sqrt(6 / (3 * 14 * 14 + 128))
    assert 0.99 * bound < vectors.abs().max() <= bound
    assert vectors.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize(
    ("dataset", "text"),
    [
        ("shapes", "a photo of a {}."),
        ("oxford_pets", "a type of pet, a photo of a {}."),
        ("oxford_flowers", "a type of flower, a photo of a {}."),
        ("fgvc_aircraft", "a type of aircraft, a photo of a {}."),
        ("food101", "a type of food, a photo of {}."),
        ("dtd", "a texture of {}."),
        ("eurosat", "a centered satellite photo of {}."),
        ("ucf101", "a photo of a person doing {}."),
        ("sun397", "a photo of a {}."),
    ],
)
def test_templates(make_config, monkeypatch, dataset, text):
    trainer = build_trainer(make_config("ProVP/base2novel", *SMALL))
    monkeypatch.setattr(trainer, "cfg", make_config("ProVP/base2novel", dataset=dataset))
    monkeypatch.setattr(trainer, "load_backbone", lambda: clip.load("shapes"))
    assert torch.equal(trainer.build_model().bank.tokens, tokens_of(trainer, text))


def test_texts_are_encoded_once(build, count_calls):
    trainer = build()
    calls = count_calls(trainer.model.backbone, "encode_text")
    trainer.train()
    assert len(calls) == 1


def test_schedule(make_config):
    trainer = build_trainer(make_config("ProVP/base2novel", "DATASET.NUM_SHOTS", "1"))
    rates = learning_rates(trainer)
    assert rates[:3] == pytest.approx([1e-5, 0.1, 0.0999753], rel=1e-6)
    assert (len(rates), rates[51]) == (100, pytest.approx(0.05))
    assert trainer.cfg.DATALOADER.TRAIN_X.BATCH_SIZE == 32


@pytest.mark.parametrize(
    ("protocol", "dataset", "shots", "expected"),
    [
        ("base2novel", "dtd", 16, (0.1, 1e-3, 100)),
        ("base2novel", "imagenet", 16, (5.0, 5e-3, 100)),
        ("few_shot", "dtd", 1, (0.1, 1e-3, 50)),
        ("few_shot", "dtd", 2, (0.1, 5e-4, 100)),
        ("few_shot", "dtd", 4, (0.1, 5e-4, 100)),
        ("few_shot", "dtd", 8, (0.1, 5e-4, 200)),
        ("few_shot", "dtd", 16, (0.1, 5e-4, 200)),
        ("few_shot", "imagenet", 1, (5.0, 5e-3, 100)),
    ],
)
def test_settings(make_config, protocol, dataset, shots, expected):
    cfg = make_config(f"ProVP/{protocol}", "DATASET.NUM_SHOTS", str(shots), dataset=dataset)
    assert (cfg.OPTIM.LR, cfg.OPTIM.WEIGHT_DECAY, cfg.OPTIM.MAX_EPOCH) == expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("PROMPT_DEPTH", "0", "depth of 1 or more blocks, got 0"),
        ("N_CTX", "0", "N_CTX must be a whole number 1 to 1024, got 0"),
        ("ALPHA", "1.0", "ALPHA must be .* 0 or more, below 1, got 1.0"),
    ],
)
def test_bad_values_are_refused(build, key, value, message):
    with pytest.raises(ValueError, match=message):
        build(f"TRAINER.ProVP.{key}", value)


def test_the_log_says_that_the_last_epoch_is_tested(build, capsys):
    build()
    assert "published numbers are the best of all, on the test set" in capsys.readouterr().out
