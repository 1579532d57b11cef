"""Frozen weights rounded once: the features of autocast bit for bit, and nothing left behind."""

import pytest
import torch
from torch import nn

import clip
from clip import attach_residual_attention, freeze_except
from clip.rounded_weights import RoundedWeights, frozen_factors
from tests.clip.sources import (
    LAION,
    SIGLIP,
    put_laion,
    put_openai_file,
    put_siglip,
    save_align,
)

TEXTS = ["a cat", "two dogs", "a long red photo of the two blue cats of the dog"]


@pytest.fixture(params=["ViT-B/16", "RN50", LAION, SIGLIP, "align"])
def backbone(request, monkeypatch, tmp_path):
    name = request.param
    if name == "align":
        save_align(tmp_path / "align")
        return clip.load(f"align:{tmp_path / 'align'}")
    if name in (LAION, SIGLIP):
        (put_laion if name == LAION else put_siglip)(monkeypatch, tmp_path)
    else:
        put_openai_file(monkeypatch, tmp_path, name)
    return clip.load(name)


def features(backbone):
    """Of images and texts under autocast."""
    side = backbone.image_size
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        texts = backbone.encode_text(backbone.tokenize(TEXTS))
        return backbone.encode_image(images), texts


def test_features_are_those_of_autocast_bit_for_bit(backbone):
    expected = features(backbone)
    before = dict(backbone.named_parameters())
    rounded = RoundedWeights(backbone, torch.bfloat16)
    rounded.put()
    rounded.put()  # again, as in the next epoch
    changed = [n for n, p in backbone.named_parameters() if p.dtype == torch.bfloat16]
    assert len(changed) > len(before) / 3
    whole = (nn.LayerNorm, nn.BatchNorm2d, nn.Embedding)
    for module in backbone.modules():
        if isinstance(module, whole):
            assert all(p.dtype == torch.float32 for p in module.parameters(recurse=False))
    assert list(dict(backbone.named_parameters())) == list(before)
    for found, exact in zip(features(backbone), expected, strict=True):
        assert found.dtype == exact.dtype
        assert torch.equal(found, exact)
    rounded.take_out()
    rounded.take_out()
    assert all(p is before[name] for name, p in backbone.named_parameters())


def test_what_trains_and_what_is_not_used_stays_as_it_is(tiny_backbone):
    attach_residual_attention(tiny_backbone)
    freeze_except(tiny_backbone)
    rounded = RoundedWeights(tiny_backbone, torch.float16, image_side=False)
    rounded.put()
    for name, parameter in tiny_backbone.named_parameters():
        if parameter.requires_grad or ".visual." in name:
            assert parameter.dtype == torch.float32, name
    found = {f"{type(module).__name__} {name}" for module, name in frozen_factors(tiny_backbone)}
    assert "Conv2d weight" in found  # of the vision tower, which was not asked for above
    rounded.take_out()
    tiny_backbone.model.visual.requires_grad_(True)  # as in full fine-tuning
    rounded = RoundedWeights(tiny_backbone, torch.float16)
    rounded.put()
    assert all(p.dtype == torch.float32 for p in tiny_backbone.model.visual.parameters())
    assert tiny_backbone.model.text_projection.dtype == torch.float16


def test_weights_loaded_meanwhile_are_rounded_the_next_time(tiny_backbone):
    rounded = RoundedWeights(tiny_backbone, torch.bfloat16)
    rounded.put()
    rounded.take_out()
    layer = tiny_backbone.model.visual.transformer.resblocks[1].mlp.c_fc
    nn.init.constant_(layer.weight, 3.0)
    rounded.put()
    assert torch.equal(layer.weight, torch.full_like(layer.weight, 3.0))
    assert layer.weight.dtype == torch.bfloat16
