import open_clip
import pytest

import clip
from clip import attach_text_prompts, attach_vision_prompts
from clip.backbones import OPENAI_INPUT, Backbone
from clip.text import text_tower

TEXTS = ["a photo of a cat.", "a photo of a very small dog that sleeps."]


def test_texts_must_hold_the_words(tiny_backbone):
    prompts = attach_text_prompts(tiny_backbone, n_ctx=4, depth=1)
    prompts.check_texts(tiny_backbone.tokenize(TEXTS))
    with pytest.raises(ValueError, match=r"first 4 tokens of 'a photo of a'; 1 of 3 .* number 2"):
        prompts.check_texts(tiny_backbone.tokenize([*TEXTS, "striped texture."]))
    with pytest.raises(ValueError, match="4 prompts from position 1 on do not fit in 3 tokens"):
        tiny_backbone.encode_text(tiny_backbone.tokenize("cat"))


def test_texts_must_hold_placeholders_without_words(tiny_backbone):
    prompts = attach_text_prompts(tiny_backbone, n_ctx=2, depth=1, init="")
    prompts.check_texts(tiny_backbone.tokenize(["X X cat.", "X X dog."]))
    with pytest.raises(ValueError, match="2 placeholders.*1 of 2"):
        prompts.check_texts(tiny_backbone.tokenize(["X X cat.", "X cat."]))
    with pytest.raises(ValueError, match="1 of 1"):
        prompts.check_texts(tiny_backbone.tokenize(["cat"]))


def test_refuses_bad_numbers(tiny_backbone):
    for attach, tower in ((attach_text_prompts, "text"), (attach_vision_prompts, "vision")):
        with pytest.raises(ValueError, match=f"{tower} depth must be 0 or more.*-1"):
            attach(tiny_backbone, n_ctx=2, depth=-1)
        with pytest.raises(ValueError, match="n_ctx .* at least 1, got 0"):
            attach(tiny_backbone, n_ctx=0, depth=1)
    with pytest.raises(ValueError, match="n_ctx is 5, but 'a photo of a' has 4 tokens"):
        attach_text_prompts(tiny_backbone, n_ctx=5, depth=1)
    with pytest.raises(ValueError, match="n_ctx is 76, but texts have room for 75"):
        attach_text_prompts(tiny_backbone, n_ctx=76, depth=1, init="")
    assert not clip.adapter_parameters(tiny_backbone)


def test_refuses_twice(tiny_backbone):
    attach_text_prompts(tiny_backbone, n_ctx=2, depth=1)
    attach_vision_prompts(tiny_backbone, n_ctx=2, depth=1)
    with pytest.raises(ValueError, match="already.*text_prompts"):
        attach_text_prompts(tiny_backbone, n_ctx=2, depth=1)
    with pytest.raises(ValueError, match="already.*vision_prompts"):
        attach_vision_prompts(tiny_backbone, n_ctx=2, depth=1)


def test_resnet_carries_text_prompts_only(resnet):
    with pytest.raises(ValueError, match=r"vision tower.*ResNets.*ViT-B/16"):
        attach_vision_prompts(resnet, n_ctx=2, depth=1)
    assert attach_vision_prompts(resnet, n_ctx=2, depth=0) is None
    assert attach_text_prompts(resnet, n_ctx=2, depth=1).vectors.shape == (1, 2, 16)


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"pool_type": "avg"}, "'avg' pooling"), ({"attentional_pool": True}, "attention pooling")],
)
def test_refuses_pooling_over_tokens(setting, message):
    vision_cfg = open_clip.model.CLIPVisionCfg(
        layers=1, width=64, patch_size=16, image_size=32, **setting
    )
    text_cfg = open_clip.model.CLIPTextCfg(width=64, heads=2, layers=1)
    backbone = Backbone(open_clip.model.CLIP(64, vision_cfg, text_cfg), "tiny", OPENAI_INPUT)
    with pytest.raises(ValueError, match=f"{message}.*class token"):
        attach_vision_prompts(backbone, n_ctx=2, depth=1)
    assert not clip.adapter_parameters(backbone)


def test_refuses_text_towers_of_another_form(tiny_backbone):
    text_tower(tiny_backbone.model).text_pool_type = "last"
    with pytest.raises(ValueError, match="text tower.*end token.*SigLIP"):
        attach_text_prompts(tiny_backbone, n_ctx=2, depth=1)
