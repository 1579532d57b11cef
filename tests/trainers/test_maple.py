"""MaPLe (arXiv:2210.03117): coupled prompts."""

from __future__ import annotations

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
    whole_clip,
    write_released,
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


def released_state(trainer):
    """What the release writes: the input's map and vectors in half precision, CLIP beside them."""
    generator = torch.Generator().manual_seed(0)
    sets = torch.randn(trainer.model.backbone.text_prompts.vectors.shape, generator=generator)
    state = {**whole_clip(), "prompt_learner.ctx": sets[0].half()}
    for j in range(len(sets)):
        name = "proj" if j == 0 else f"compound_prompt_projections.{j - 1}"
        weight = 0.1 * torch.randn(128, 128, generator=generator)
        state[f"prompt_learner.{name}.weight"] = weight.half() if j == 0 else weight
        state[f"prompt_learner.{name}.bias"] = torch.randn(128, generator=generator)
        if j:
            state[f"prompt_learner.compound_prompts_text.{j - 1}"] = sets[j]
    return state


def test_released_checkpoint_loads_and_evaluates(build, tmp_path):
    trainer = build()
    state = released_state(trainer)
    folder = write_released(tmp_path, "MultiModalPromptLearner", state, 5)
    before = trainer.test()
    trainer.load_model(folder, epoch=5)
    assert trainer.test() != before
    prompts, maps = trainer.model.backbone.text_prompts, trainer.model.backbone.vision_prompts.maps
    learner = {n.removeprefix("prompt_learner."): v.float() for n, v in state.items()}
    assert torch.equal(prompts.vectors[0], learner["ctx"])
    assert torch.equal(prompts.vectors[1], learner["compound_prompts_text.0"])
    assert torch.equal(maps[0].weight, learner["proj.weight"])
    assert torch.equal(maps[0].bias, learner["proj.bias"])
    assert torch.equal(maps[1].weight, learner["compound_prompt_projections.0.weight"])
    assert torch.equal(maps[1].bias, learner["compound_prompt_projections.0.bias"])


def test_released_checkpoint_of_another_depth_is_refused(build, tmp_path):
    folder = write_released(tmp_path, "MultiModalPromptLearner", released_state(build()), 2)
    small = build("TRAINER.MaPLe.PROMPT_DEPTH", "1", output="other")
    with pytest.raises(ValueError, match=r"model's has J = 1 .*set TRAINER.MaPLe.PROMPT_DEPTH"):
        small.load_model(folder, epoch=2)


def test_released_checkpoint_without_a_map_is_refused(build, tmp_path):
    trainer = build()
    state = released_state(trainer)
    del state["prompt_learner.compound_prompt_projections.0.bias"]
    folder = write_released(tmp_path, "MultiModalPromptLearner", state, 5)
    with pytest.raises(ValueError, match=r"Missing keys: backbone.vision_prompts.maps.1.bias"):
        trainer.load_model(folder, epoch=5)


def test_file_without_prompts_is_refused(build, tmp_path):
    folder = write_released(tmp_path, "MultiModalPromptLearner", whole_clip(), 5)
    with pytest.raises(ValueError, match=r"Missing keys: backbone.text_prompts.vectors"):
        build().load_model(folder, epoch=5)


def test_refuses_no_prompts_and_resnets(build, make_config):
    with pytest.raises(ValueError, match="depth of 1 .* or more, got 0"):
        build("TRAINER.MaPLe.PROMPT_DEPTH", "0")
    with pytest.raises(ValueError, match="MaPLe adapts the transformer layers.*'RN50'"):
        build_trainer(make_config("MaPLe/base2novel", flags=("--backbone", "RN50")))
