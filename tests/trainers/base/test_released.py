"""Released checkpoints of the methods with prompts in the towers: they load, or say why not.

Each is what the release writes: a whole CLIP beside the prompts, some values in half precision.
"""

import pytest
import torch

from tests.trainers.plain import whole_clip, write_released

TEXT, VISION = "backbone.text_prompts.vectors", "backbone.vision_prompts.vectors"
MAPS = "backbone.vision_prompts.maps"
EPOCH = 5


def sets_like(trainer, name):
    """Values for a parameter with the sets of a tower's prompts, (J, n, W)."""
    return torch.randn(trainer.model.get_parameter(name).shape)


def halved_first(sets):
    """As a release has them: the first set in half precision, the others in single."""
    return torch.stack([sets[0].half().float(), *sets[1:]])


def by_layer(trainer, **names):
    """IVLP's layout, of the towers whose first set has a name: (state, our values)."""
    state, ours = whole_clip(), {}
    for tower, first in names.items():
        own = TEXT if tower == "text" else VISION
        sets = sets_like(trainer, own)
        state[first] = sets[0].half()
        for j in range(1, len(sets)):
            state[f"{tower}_encoder.transformer.resblocks.{j}.VPT_shallow"] = sets[j]
        ours[own] = halved_first(sets)
    return state, ours


def ivlp(trainer):
    return by_layer(trainer, text="prompt_learner.ctx", image="image_encoder.VPT")


def promptsrc(trainer):
    """With its second, unprompted vision tower."""
    state, ours = ivlp(trainer)
    state["prompt_learner.ZS_image_encoder.class_embedding"] = torch.randn(768).half()
    state["prompt_learner.ZS_image_encoder.proj"] = torch.randn(768, 512).half()
    return state, ours


def vpt(trainer):
    return by_layer(trainer, image="image_encoder.VPT")


def provp(trainer):
    sets = sets_like(trainer, VISION)
    return {"prompt_embeddings": sets}, {VISION: sets}


def maple(trainer):
    """The input's map and vectors are in half precision."""
    sets = sets_like(trainer, TEXT)
    state = {**whole_clip(), "prompt_learner.ctx": sets[0].half()}
    ours = {TEXT: halved_first(sets)}
    for j in range(len(sets)):
        name = "proj" if j == 0 else f"compound_prompt_projections.{j - 1}"
        weight = 0.1 * torch.randn(128, 128)
        state[f"prompt_learner.{name}.weight"] = weight.half() if j == 0 else weight
        state[f"prompt_learner.{name}.bias"] = torch.randn(128)
        for part in ("weight", "bias"):
            ours[f"{MAPS}.{j}.{part}"] = state[f"prompt_learner.{name}.{part}"].float()
        if j:
            state[f"prompt_learner.compound_prompts_text.{j - 1}"] = sets[j]
    return state, ours


def coprompt(trainer):
    """With the frozen model it is distilled from."""
    state, ours = maple(trainer)
    state["model_distill.text_projection"] = torch.randn(512, 512).half()
    for kind in ("image", "text"):
        down, up = torch.randn(32, 128), torch.randn(128, 32).half()
        state |= {f"adapter_{kind}.fc.0.weight": down, f"adapter_{kind}.fc.2.weight": up}
        ours |= {f"{kind}_adapter.down.weight": down, f"{kind}_adapter.up.weight": up.float()}
    return state, ours


MASK = {
    **{"q_proj1": "query.image", "q_proj2": "query.text", "q_proj3": "query.rational"},
    **{"k_proj": "key", "v_proj": "value", "out_proj": "out"},
}


def rada_prompt(trainer):
    """PromptSRC's with the mask; that of the release's IVLP has factors which nothing reads."""
    state, ours = promptsrc(trainer)
    state["mha.alpha"] = torch.ones(3)
    for theirs, name in MASK.items():
        for part, size in (("weight", (128, 128)), ("bias", (128,))):
            state[f"mha.{theirs}.{part}"] = 0.3 * torch.randn(size)
            ours[f"head.layers.0.{name}.{part}"] = state[f"mha.{theirs}.{part}"]
    state["prompt_learner.token_prefix"] = torch.randn(20, 1, 128).half()
    return state, ours


LAYOUTS = {
    "IVLP": (ivlp, "VLPromptLearner"),
    "PromptSRC": (promptsrc, "VLPromptLearner"),
    "MaPLe": (maple, "MultiModalPromptLearner"),
    "CoPrompt": (coprompt, "MultiModalPromptLearner"),
    "VPT": (vpt, "prompt_learner"),
    "ProVP": (provp, "Prompt_learner"),
    "RAdaPrompt": (rada_prompt, "VLPromptLearner"),
    "RAdaPrompt/ivlp": (rada_prompt, "VLPromptLearner"),
}


@pytest.mark.parametrize("method", LAYOUTS)
def test_loads_and_evaluates(build, tmp_path, whole_shapes, method):
    layout, folder = LAYOUTS[method]
    # On a few pictures other weights may be right equally often.
    trainer = build("DATASET.ROOT", whole_shapes, method=method)
    state, ours = layout(trainer)
    before = trainer.test()
    trainer.load_model(write_released(tmp_path, folder, state, EPOCH), epoch=EPOCH)
    assert trainer.test() != before
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained.keys() == ours.keys()
    for name, parameter in trained.items():
        assert torch.equal(parameter, ours[name]), name


@pytest.mark.parametrize(
    ("method", "key", "value", "message"),
    [
        ("IVLP", "PROMPT_DEPTH_TEXT", 1, r"text tower has J = \d+ sets.*IVLP.PROMPT_DEPTH_TEXT"),
        ("PromptSRC", "PROMPT_DEPTH_VISION", 1,
         "vision tower has J = 3.*PromptSRC.PROMPT_DEPTH_VISION"),
        ("MaPLe", "PROMPT_DEPTH", 1, "model's has J = 1 .*set TRAINER.MaPLe.PROMPT_DEPTH"),
        ("VPT", "N_CTX_VISION", 4, r"n = 8 .*has J = \d+ sets of n = 4 .*N_CTX_VISION"),
        ("ProVP", "N_CTX", 8, "n = 16 .*has J = 3 sets of n = 8 .*N_CTX"),
    ],
)  # fmt: skip
def test_another_number_of_prompts_is_refused(build, tmp_path, method, key, value, message):
    layout, folder = LAYOUTS[method]
    state, _ = layout(build(method=method))
    small = build(f"TRAINER.{method}.{key}", str(value), method=method, output="other")
    with pytest.raises(ValueError, match=message):
        small.load_model(write_released(tmp_path, folder, state, EPOCH), epoch=EPOCH)


@pytest.mark.parametrize(
    ("method", "missing"), [("IVLP", TEXT), ("MaPLe", TEXT), ("VPT", VISION), ("ProVP", VISION)]
)
def test_file_without_prompts_is_refused(build, tmp_path, method, missing):
    folder = write_released(tmp_path, LAYOUTS[method][1], whole_clip(), EPOCH)
    with pytest.raises(ValueError, match=f"Missing keys: {missing}"):
        build(method=method).load_model(folder, epoch=EPOCH)


@pytest.mark.parametrize(
    ("method", "lost", "missing"),
    [
        ("MaPLe", "prompt_learner.compound_prompt_projections.0.bias", f"{MAPS}.1.bias"),
        ("CoPrompt", "adapter_text.fc.2.weight", "text_adapter.up.weight"),
    ],
)
def test_file_without_a_part_is_refused(build, tmp_path, method, lost, missing):
    layout, folder = LAYOUTS[method]
    trainer = build(method=method)
    state, _ = layout(trainer)
    del state[lost]
    with pytest.raises(ValueError, match=f"Missing keys: {missing}"):
        trainer.load_model(write_released(tmp_path, folder, state, EPOCH), epoch=EPOCH)
