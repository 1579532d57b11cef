"""IVLP (arXiv:2210.03117, arXiv:2307.06948): independent prompts in both towers."""

import pytest
import torch

from dassl.engine import build_trainer
from tests.trainers.plain import (
    check_step,
    cosine_loss,
    learning_rates,
    plain_image,
    plain_text,
    tokens_of,
    unit,
)

METHOD = "IVLP"

TEXT, VISION = "backbone.text_prompts.vectors", "backbone.vision_prompts.vectors"


@pytest.mark.parametrize("options", [(), ("TRAINER.IVLP.PROMPT_DEPTH_VISION", "1")])
def test_step_equals_the_formula(build, options):
    trainer = build(*options)
    tokens = tokens_of(trainer)

    def expected(model, learned, image, label):
        f = unit(plain_image(model, image, learned[VISION]))
        h = unit(plain_text(model, tokens, learned[TEXT]))
        logits, ce = cosine_loss(model, f, h, label)
        return {"logits": logits, "loss": ce, "ce": ce}

    check_step(trainer, expected)


def test_evaluation_equals_the_formula(build):
    model = build().model.double().eval()
    image = torch.randn(2, 3, 48, 48, dtype=torch.double)
    assert torch.allclose(model(image), model.output(image).logits, atol=1e-9)


def test_deep_language_prompting_leaves_images_alone(build):
    trainer = build(protocol="deep_language")
    assert [n for n, p in trainer.model.named_parameters() if p.requires_grad] == [TEXT]
    f, f0 = (
        encode(torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1)))
        for encode in (trainer.model.image_features, trainer.model.frozen_image_features)
    )
    assert torch.equal(f, f0)


@pytest.mark.parametrize(
    ("protocol", "lr", "epochs"),
    [
        ("base2novel", 2.5e-3, 20),
        ("maple", 3.5e-3, 5),
        ("cross_dataset", 3.5e-3, 5),
        ("deep_language", 2.5e-3, 5),
    ],
)
def test_schedule(make_config, protocol, lr, epochs):
    trainer = build_trainer(make_config(f"IVLP/{protocol}", "DATASET.NUM_SHOTS", "1"))
    rates = learning_rates(trainer)
    assert len(rates) == epochs
    assert rates[:2] == pytest.approx([1e-5, lr])
    if epochs == 5:  # as the authors' logs say
        assert rates[2:] == pytest.approx([0.905 * lr, 0.655 * lr, 0.345 * lr], abs=lr / 1000)
    group = trainer._optims["VLPromptLearner"].param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 5e-4, False)
    assert trainer.cfg.DATALOADER.TRAIN_X.BATCH_SIZE == 4


def test_more_prompts_than_words_start_at_random(build, capsys):
    backbone = build("TRAINER.IVLP.N_CTX_TEXT", "5").model.backbone
    assert "fewer than the 5 prompts" in capsys.readouterr().out
    assert backbone.text_prompts.vectors.shape[1] == 5
    assert not backbone.text_prompts.words
