import copy
import math

import open_clip
import pytest
import torch

import clip
from clip import MultiModalAdapter, attach_multimodal_adapters
from clip.backbones import Backbone, InputSpec
from tests.conftest import MEAN, STD

TEXTS = ["a photo of a cat.", "a photo of a very small dog."]


def backbone_of(text_layers=3, vision_layers=4):
    torch.manual_seed(0)
    vision_cfg = open_clip.model.CLIPVisionCfg(
        layers=vision_layers, width=128, patch_size=16, image_size=32
    )
    text_cfg = open_clip.model.CLIPTextCfg(width=64, heads=2, layers=text_layers)
    model = open_clip.model.CLIP(64, vision_cfg, text_cfg)
    return Backbone(model, "tiny", InputSpec(32, MEAN, STD)).requires_grad_(False).eval()


def pictures():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def features(backbone):
    return backbone.encode_image(pictures()), backbone.encode_text(backbone.tokenize(TEXTS))


def attach(backbone, **options):
    torch.manual_seed(3)
    adapters = attach_multimodal_adapters(
        backbone, **{"layers": 2, "bottleneck": 8, "scale": 0.1, **options}
    )
    for adapter in adapters:
        for name, parameter in adapter.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_(std=0.1)
    return adapters


def plain_features(backbone, adapters, scale, images=None, tokens=None):
    """Both towers written out without hooks; blocks are paired from the end."""
    images = pictures() if images is None else images
    tokens = backbone.tokenize(TEXTS) if tokens is None else tokens

    def run(blocks, x, tower, mask=None):
        for i, block in enumerate(blocks):
            k = len(adapters) - len(blocks) + i
            extra = 0
            if k >= 0:
                p = dict(adapters[k].named_parameters())
                y = block.ln_1(x) @ p[f"down_{tower}.weight"].T + p[f"down_{tower}.bias"]
                y = y.clamp(min=0) @ p["shared.weight"].T + p["shared.bias"]
                y = y.clamp(min=0) @ p[f"up_{tower}.weight"].T + p[f"up_{tower}.bias"]
                extra = scale * y
            x = block(x, attn_mask=mask) + extra
        return x

    model, visual = backbone.model, backbone.model.visual
    patches = visual.conv1(images.to(visual.conv1.weight)).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(patches), 1, -1), patches], 1)
    x = visual.ln_pre(x + visual.positional_embedding)
    image = visual.ln_post(run(visual.transformer.resblocks, x, "vision")[:, 0]) @ visual.proj
    x = model.token_embedding.weight[tokens] + model.positional_embedding
    x = model.ln_final(run(model.transformer.resblocks, x, "text", model.attn_mask))
    return image, x[range(len(x)), tokens.argmax(-1)] @ model.text_projection


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_equals_the_plain_formula_with_gradients(layers, rescale):
    scale = 0.1
    backbone = backbone_of().double().requires_grad_(True)
    reference = copy.deepcopy(backbone)
    adapters = attach(backbone, layers=layers, scale=scale, rescale_gradient=rescale)
    backbone.double()
    copies = copy.deepcopy(adapters)

    fast = features(backbone)
    plain = plain_features(reference, copies, scale)

    generator = torch.Generator().manual_seed(4)
    weights = [torch.randn(f.shape, generator=generator).double() for f in fast]
    for encoded, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(encoded, expected, rtol=1e-9, atol=1e-9)
    for pair in (fast, plain):
        sum((f * w).sum() for f, w in zip(pair, weights, strict=True)).backward()
    for adapter, twin in zip(adapters, copies, strict=True):
        for p, q in zip(adapter.parameters(), twin.parameters(), strict=True):
            assert q.grad.abs().sum() > 0
            expected = q.grad / scale if rescale else q.grad
            torch.testing.assert_close(p.grad, expected, rtol=1e-9, atol=1e-9)
    hosts = dict(reference.model.named_parameters())
    for name, parameter in backbone.model.named_parameters():  # the gradient passed down is true
        if hosts[name].grad is not None:
            torch.testing.assert_close(parameter.grad, hosts[name].grad, rtol=1e-9, atol=1e-9)


def test_zero_initialisation_is_plain_clip_and_trains(tiny_backbone):
    plain = features(tiny_backbone)
    (adapter,) = attach_multimodal_adapters(tiny_backbone, layers=1, zero_init=True)
    at_zero = features(tiny_backbone)
    assert all(torch.equal(a, b) for a, b in zip(plain, at_zero, strict=True))
    sum(f.square().sum() for f in at_zero).backward()
    assert adapter.up_text.weight.grad.abs().sum() > 0
    assert adapter.up_vision.weight.grad.abs().sum() > 0


def test_initialisation_is_kaiming_over_outputs():
    torch.manual_seed(0)
    adapter = MultiModalAdapter(512, 768)
    for name, std in (
        ("down_text", 0.25),
        ("down_vision", 0.25),
        ("shared", 0.25),
        ("up_text", 0.0625),
        ("up_vision", math.sqrt(2 / 768)),
    ):
        linear = getattr(adapter, name)
        assert linear.weight.std().item() == pytest.approx(std, rel=0.05)
        assert linear.bias.abs().max() == 0


@pytest.mark.parametrize(("layers", "count"), [(8, 674_560), (4, 337_280), (99, 1_011_840)])
def test_parameters_on_vit_b16(vit_b16, layers, count):
    with torch.device("meta"):
        attach_multimodal_adapters(vit_b16, layers=layers)
    clip.freeze_except(vit_b16)
    assert sum(p.numel() for p in vit_b16.parameters() if p.requires_grad) == count


@pytest.mark.parametrize(("layers", "adapted"), [(0, 0), (1, 1), (3, 3), (12, 3)])
def test_blocks_are_paired_from_the_end(layers, adapted):
    backbone = backbone_of()
    adapters = attach(backbone, layers=layers)
    assert len(adapters) == adapted
    for transformer in (backbone.text_transformer, backbone.vision_transformer):
        adapted_blocks = [block.beside is not None for block in transformer.resblocks]
        assert adapted_blocks == [False] * (len(adapted_blocks) - adapted) + [True] * adapted


def test_both_towers_use_the_shared_map():
    backbone = backbone_of()
    before = features(backbone)
    adapters = attach(backbone)
    adapted = features(backbone)
    for adapter in adapters:
        adapter.shared.bias.data.add_(1)
    for plain, old, new in zip(before, adapted, features(backbone), strict=True):
        assert (old - plain).abs().max() > 1e-4
        assert (new - old).abs().max() > 1e-4


def test_truncation_stays_exact_beside_prompts():
    backbone = backbone_of()
    attach(backbone, layers=3)
    backbone.double()
    clip.attach_text_prompts(backbone, n_ctx=2, depth=3)
    tokens = backbone.tokenize(TEXTS)
    torch.testing.assert_close(
        backbone.encode_text(tokens), backbone.model.encode_text(tokens), rtol=1e-9, atol=1e-9
    )


def test_refuses_bad_numbers_and_twice(tiny_backbone):
    with pytest.raises(ValueError, match="layers must be 0 or more.*-1"):
        attach_multimodal_adapters(tiny_backbone, layers=-1)
    with pytest.raises(ValueError, match="bottleneck.*at least 1, got 0"):
        attach_multimodal_adapters(tiny_backbone, layers=1, bottleneck=0)
    for scale in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="scale.*positive and finite"):
            attach_multimodal_adapters(tiny_backbone, layers=1, scale=scale)
    assert not clip.adapter_parameters(tiny_backbone)
    attach_multimodal_adapters(tiny_backbone, layers=1)
    with pytest.raises(ValueError, match="already"):
        attach_multimodal_adapters(tiny_backbone, layers=1)


def test_refuses_resnet(resnet):
    with pytest.raises(ValueError, match=r"vision tower.*ResNets.*ViT-B/16"):
        attach_multimodal_adapters(resnet, layers=1)
    assert attach_multimodal_adapters(resnet, layers=0) == []
