"""VPT (arXiv:2203.12119) in MaPLe's form: prompts in the vision tower alone."""

from __future__ import annotations

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
    whole_clip,
    write_released,
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


def test_texts_are_encoded_once(build, monkeypatch):
    trainer = build()
    calls = []
    encode = trainer.model.backbone.encode_text
    monkeypatch.setattr(
        trainer.model.backbone, "encode_text", lambda *a, **k: calls.append(1) or encode(*a, **k)
    )
    trainer.train()
    assert len(calls) == 1


def test_schedule(make_config):
    trainer = build_trainer(make_config("VPT/base2novel", "DATASET.NUM_SHOTS", "1"))
    rates = [1e-5, 2.5e-3, 2.2613e-3, 1.6363e-3, 0.8637e-3]
    assert learning_rates(trainer) == pytest.approx(rates, rel=1e-4)
    assert trainer.cfg.DATALOADER.TRAIN_X.BATCH_SIZE == 4


def released_state(trainer):
    sets = torch.randn(trainer.model.backbone.vision_prompts.vectors.shape)
    state = {**whole_clip(), "image_encoder.VPT": sets[0].half()}
    for j in range(1, len(sets)):
        state[f"image_encoder.transformer.resblocks.{j}.VPT_shallow"] = sets[j]
    return state


def test_released_checkpoint_loads_and_evaluates(build, tmp_path):
    trainer = build()
    state = released_state(trainer)
    before = trainer.test()
    trainer.load_model(write_released(tmp_path, "prompt_learner", state, 5), epoch=5)
    assert trainer.test() != before
    vectors = trainer.model.backbone.vision_prompts.vectors
    assert torch.equal(vectors[0], state["image_encoder.VPT"].float())
    name = "image_encoder.transformer.resblocks.{}.VPT_shallow"
    assert all(torch.equal(vectors[j], state[name.format(j)]) for j in range(1, len(vectors)))


def test_released_checkpoint_of_another_number_is_refused(build, tmp_path):
    folder = write_released(tmp_path, "prompt_learner", released_state(build()), 5)
    small = build("TRAINER.VPT.N_CTX_VISION", "4", output="other")
    with pytest.raises(ValueError, match=r"n = 8 .*has J = \d+ sets of n = 4 .*N_CTX_VISION"):
        small.load_model(folder, epoch=5)


def test_file_without_prompts_is_refused(build, tmp_path):
    folder = write_released(tmp_path, "prompt_learner", whole_clip(), 5)
    with pytest.raises(ValueError, match=r"Missing keys: backbone.vision_prompts.vectors"):
        build().load_model(folder, epoch=5)


def test_refuses_a_resnet(make_config):
    with pytest.raises(ValueError, match="VPT adapts the transformer layers.*'RN50'"):
        build_trainer(make_config("VPT/base2novel", flags=("--backbone", "RN50")))
