"""A tiny random CLIP in OpenAI's format, shared by all tests."""

from __future__ import annotations

import copy
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import open_clip
import pytest
import torch
from clip.backbones import Backbone, InputSpec

MEAN = STD = (0.5, 0.5, 0.5)


def tiny_model(layers: int = 2, quick_gelu: bool = True) -> torch.nn.Module:
    """32 pixels, patches of 16, width 128 with 2 heads, D = 64."""
    torch.manual_seed(0)
    return open_clip.model.CLIP(
        embed_dim=64,
        vision_cfg=open_clip.model.CLIPVisionCfg(layers=layers, width=128, patch_size=16, image_size=32),
        text_cfg=open_clip.model.CLIPTextCfg(width=128, heads=2, layers=layers),
        quick_gelu=quick_gelu,
    ).eval()


_TINY: list[torch.nn.Module] = []


@pytest.fixture
def tiny_backbone() -> Backbone:
    """A fresh copy; tests may change it."""
    if not _TINY:
        _TINY.append(tiny_model())
    backbone = Backbone(copy.deepcopy(_TINY[0]), "tiny", InputSpec(32, MEAN, STD))
    return backbone.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny CLIP as a state-dict file."""
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.pt"
    torch.save(tiny_model().state_dict(), path)
    return str(path)
