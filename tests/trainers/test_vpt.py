"""VPT (arXiv:2203.12119) in MaPLe's form: prompts in the vision tower alone."""

import pytest

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

METHOD = "VPT"

VISION = "backbone.vision_prompts.vectors"


@pytest.mark.parametrize("options", [(), ("TRAINER.VPT.PROMPT_DEPTH_VISION", "1")])
def test_step_equals_the_formula(build, options):
    trainer = build(*options)
    tokens = tokens_of(trainer)

    def expected(model, learned, image, label):
        f = unit(plain_image(model, image, learned[VISION]))
        logits, ce = cosine_loss(model, f, unit(plain_text(model, tokens)), label)
        return {"logits": logits, "loss": ce, "ce": ce}

    check_step(trainer, expected)


def test_texts_are_encoded_once(build, count_calls):
    trainer = build()
    calls = count_calls(trainer.model.backbone, "encode_text")
    trainer.train()
    assert len(calls) == 1


def test_schedule(make_config):
    trainer = build_trainer(make_config("VPT/base2novel", "DATASET.NUM_SHOTS", "1"))
    rates = [1e-5, 2.5e-3, 2.2613e-3, 1.6363e-3, 0.8637e-3]
    assert learning_rates(trainer) == pytest.approx(rates, rel=1e-4)
    assert trainer.cfg.DATALOADER.TRAIN_X.BATCH_SIZE == 4
