"""MaPLe (arXiv:2210.03117): coupled prompts."""

import pytest
import torch

from dassl.engine import build_trainer
from tests.trainers.plain import (
    check_step,
    cosine_loss,
    coupled,
    learning_rates,
    plain_image,
    plain_text,
    tokens_of,
    unit,
)

METHOD = "MaPLe"

TEXT, MAPS = "backbone.text_prompts.vectors", "backbone.vision_prompts.maps"


@pytest.mark.parametrize("options", [(), ("TRAINER.MaPLe.PROMPT_DEPTH", "1")])
def test_step_equals_the_formula(build, options):
    trainer = build(*options)
    tokens = tokens_of(trainer)

    def expected(model, learned, image, label):
        f = unit(plain_image(model, image, coupled(learned)))
        h = unit(plain_text(model, tokens, learned[TEXT]))
        logits, ce = cosine_loss(model, f, h, label)
        return {"logits": logits, "loss": ce, "ce": ce}

    check_step(trainer, expected)


@pytest.mark.parametrize(
    ("protocol", "rates"),
    [
        ("base2novel", [1e-5, 3.5e-3, 3.1658e-3, 2.2908e-3, 1.2092e-3]),
        ("cross_dataset", [1e-5, 2.6e-3]),
    ],
)
def test_schedule(make_config, protocol, rates):
    trainer = build_trainer(make_config(f"MaPLe/{protocol}", "DATASET.NUM_SHOTS", "1"))
    assert learning_rates(trainer) == pytest.approx(rates, rel=1e-4)
    assert trainer.cfg.DATALOADER.TRAIN_X.BATCH_SIZE == 4


def test_a_photo_is_learned_and_of_a_stays(build):
    trainer = build()
    backbone = trainer.model.backbone
    words = backbone.tokenize("a photo")[0, 1:3]
    start = backbone.model.token_embedding.weight[words]
    assert torch.equal(backbone.text_prompts.vectors[0], start)
    assert torch.equal(trainer.model.bank.tokens, tokens_of(trainer))


def test_refuses_no_prompts(build):
    with pytest.raises(ValueError, match="depth of 1 .* or more, got 0"):
        build("TRAINER.MaPLe.PROMPT_DEPTH", "0")
