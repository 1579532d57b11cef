"""Backbones that adapters are attached to, beside the tiny CLIP of all tests."""

import open_clip
import pytest
import torch

from clip.backbones import OPENAI_INPUT, Backbone


@pytest.fixture
def vit_b16() -> Backbone:
    """ViT-B/16's sizes without its memory, to count parameters."""
    with torch.device("meta"):
        vision_cfg = open_clip.model.CLIPVisionCfg(layers=12, width=768, patch_size=16)
        text_cfg = open_clip.model.CLIPTextCfg(width=512, heads=8, layers=12)
        return Backbone(open_clip.model.CLIP(512, vision_cfg, text_cfg), "B", OPENAI_INPUT)


@pytest.fixture
def resnet() -> Backbone:
    """A tiny CLIP whose vision tower has no transformer."""
    vision_cfg = open_clip.model.CLIPVisionCfg(
        layers=(1, 1, 1, 1), width=4, head_width=4, image_size=32
    )
    text_cfg = open_clip.model.CLIPTextCfg(width=16, heads=2, layers=1)
    return Backbone(open_clip.model.CLIP(16, vision_cfg, text_cfg), "RN", OPENAI_INPUT)
