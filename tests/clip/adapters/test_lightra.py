import math

import open_clip
import pytest
import torch
from torch import nn

import clip
from clip import AdaptedAttention, ResidualAttention, adapters_disabled, attach_residual_attention
from clip.backbones import OPENAI_INPUT, Backbone
from tests.conftest import tiny_model

ALL = {"n_ctx_vision": 4, "n_ctx_text": 4, "vision_depth": 12, "text_depth": 12}


def perturb(backbone):
    generator = torch.Generator().manual_seed(1)
    for module in backbone.modules():
        if isinstance(module, ResidualAttention):
            module.value.data.normal_(generator=generator)


def features(backbone):
    images = torch.randn(
        2, 3, backbone.image_size, backbone.image_size, generator=torch.Generator().manual_seed(2)
    )
    return backbone.encode_image(images), backbone.encode_text(
        backbone.tokenize(["a cat", "a longer text"])
    )


def plain_formula(host, residual, x, mask):
    """LightRA as printed: attention matrices written out, the sum projected once."""
    batch, length, width = x.shape
    heads, dim = host.num_heads, width // host.num_heads
    q, k, v = (x @ host.in_proj_weight.T + host.in_proj_bias).split(width, -1)
    q, k, v = (t.view(batch, length, heads, dim).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(dim)
    if mask is not None:
        scores = scores + mask
    out = scores.softmax(-1) @ v
    prefix = (q @ residual.key.transpose(-1, -2) / math.sqrt(dim)).softmax(-1) @ residual.value
    joined = (out + prefix).transpose(1, 2).reshape(batch, length, width)
    return joined @ host.out_proj.weight.T + host.out_proj.bias


@pytest.mark.parametrize("n_ctx", [1, 4, 7])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_plain_formula_with_gradients(n_ctx, masked):
    torch.manual_seed(0)
    host = nn.MultiheadAttention(24, 3, batch_first=True).double()
    nn.init.normal_(host.in_proj_bias)
    nn.init.normal_(host.out_proj.bias)
    attention = AdaptedAttention.around(host)
    attention.residual = ResidualAttention(3, 8, n_ctx).double()
    attention.residual.value.data.normal_()
    x = torch.randn(2, 5, 24, dtype=torch.double, requires_grad=True)
    mask = torch.full((5, 5), -math.inf, dtype=torch.double).triu(1) if masked else None
    wrt = [x, attention.residual.key, attention.residual.value]

    fast = attention(x, x, x, need_weights=False, attn_mask=mask)[0]
    plain = plain_formula(host, attention.residual, x, mask)

    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(fast)
    for a, b in zip(
        torch.autograd.grad((fast * weight).sum(), wrt),
        torch.autograd.grad((plain * weight).sum(), wrt),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_vit_b16_trains_122880_parameters_and_starts_identical():
    torch.manual_seed(0)
    backbone = Backbone(open_clip.create_model("ViT-B-16-quickgelu"), "random", OPENAI_INPUT)
    backbone.eval().requires_grad_(False)
    with torch.no_grad():
        plain = features(backbone)
        names = attach_residual_attention(backbone, **ALL)
        clip.freeze_except(backbone)
        zero = features(backbone)
        perturb(backbone)
        changed = features(backbone)
        with adapters_disabled(backbone):
            disabled = features(backbone)

    assert len(names) == 24
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == 122_880
    for before, at_zero, moved, off in zip(plain, zero, changed, disabled, strict=True):
        assert (before - at_zero).abs().max() == 0
        assert (before - off).abs().max() == 0
        assert (before - moved).abs().max() > 1e-3


@pytest.mark.parametrize("training", [False, True])
def test_identity_with_gradients_enabled(tiny_backbone, training):
    tiny_backbone.train(training)
    plain = features(tiny_backbone)
    attach_residual_attention(tiny_backbone, **ALL)
    clip.freeze_except(tiny_backbone)
    for a, b in zip(plain, features(tiny_backbone.train(training)), strict=True):
        assert torch.equal(a, b)


def test_training_mode_changes_nothing(tiny_backbone):
    plain = features(tiny_backbone)
    assert all(
        torch.equal(a, b) for a, b in zip(plain, features(tiny_backbone.train()), strict=True)
    )


def test_equals_open_clip(tiny_backbone):
    stock = tiny_model()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    tokens = open_clip.tokenize(["a cat"])
    with torch.no_grad():
        torch.testing.assert_close(
            tiny_backbone.encode_image(images), stock.encode_image(images), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            tiny_backbone.encode_text(tokens), stock.encode_text(tokens), rtol=1e-4, atol=1e-5
        )


def test_keeps_state_dict_keys_and_shares_weights(tiny_backbone):
    before = tiny_backbone.state_dict()
    attach_residual_attention(tiny_backbone, **ALL)
    after = tiny_backbone.state_dict()
    assert set(before) <= set(after)
    assert all(
        name.endswith(("residual.key", "residual.value")) for name in set(after) - set(before)
    )
    assert all(before[name].data_ptr() == after[name].data_ptr() for name in before)


@pytest.mark.parametrize(("depth", "adapted"), [(0, 0), (1, 1), (2, 2), (12, 2)])
def test_depth_counts_adapted_layers(tiny_backbone, depth, adapted):
    names = attach_residual_attention(
        tiny_backbone, n_ctx_vision=2, n_ctx_text=3, vision_depth=depth, text_depth=0
    )
    assert len(names) == adapted
    assert all("visual" in name for name in names)


def test_context_lengths_belong_to_their_towers(tiny_backbone):
    attach_residual_attention(
        tiny_backbone, n_ctx_vision=2, n_ctx_text=3, vision_depth=1, text_depth=1
    )
    shapes = [
        tuple(p.shape)
        for n, p in clip.adapter_parameters(tiny_backbone).items()
        if n.endswith("key")
    ]
    assert shapes == [(2, 2, 64), (2, 3, 64)]  # vision first: (heads, N, head width)


def test_initial_keys_are_uniform_and_values_zero():
    torch.manual_seed(0)
    residual = ResidualAttention(12, 64, 4)
    assert residual.value.abs().max() == 0
    assert residual.key.min() > -1
    assert residual.key.max() < 1
    assert abs(residual.key.var().item() - 1 / 3) < 0.03


def test_refuses_twice_and_negative_depth_and_empty_context(tiny_backbone):
    with pytest.raises(ValueError, match="vision depth must be 0 or more"):
        attach_residual_attention(tiny_backbone, vision_depth=-1)
    with pytest.raises(ValueError, match="n_ctx"):
        ResidualAttention(2, 8, 0)
    attach_residual_attention(tiny_backbone)
    with pytest.raises(ValueError, match="already"):
        attach_residual_attention(tiny_backbone)


def test_refuses_resnet(resnet):
    with pytest.raises(ValueError, match="vision tower.*ViT-B/16"):
        attach_residual_attention(resnet)
