import copy

import pytest
import torch

from clip import attach_coupled_prompts, attach_text_prompts
from tests.clip.adapters.test_prompts import backbone_of, features
from tests.trainers.plain import plain_image, plain_text


def images(count=2):
    return torch.randn(count, 3, 32, 32, dtype=torch.double)


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_towers_equal_the_plain_formula_with_gradients(depth):
    backbone = backbone_of().double()
    reference = copy.deepcopy(backbone)
    text, coupled = attach_coupled_prompts(backbone, n_ctx=2, depth=depth)
    pictures = images()
    parameters = [text.vectors, *coupled.parameters()]
    assert len(parameters) == 1 + 2 * depth
    vectors, *maps = [p.detach().clone().requires_grad_() for p in parameters]
    vision = [vectors[j] @ maps[2 * j].T + maps[2 * j + 1] for j in range(depth)]

    tokens = backbone.tokenize(["a photo of a cat.", "a photo of a very small dog that sleeps."])
    ours = [backbone.encode_text(tokens), backbone.encode_image(pictures)]
    plain = [
        plain_text(reference.model, tokens, vectors),
        plain_image(reference.model, pictures, vision),
    ]
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    weights = [torch.randn_like(f) for f in plain]
    gradients = [
        torch.autograd.grad(sum((f * w).sum() for f, w in zip(fs, weights, strict=True)), ps)
        for fs, ps in ((ours, parameters), (plain, [vectors, *maps]))
    ]
    for a, b in zip(*gradients, strict=True):
        assert b.abs().max() > 1e-6
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_maps_of_deeper_sets_start_equal_and_apart_from_the_first(tiny_backbone):
    _, coupled = attach_coupled_prompts(backbone_of(), n_ctx=2, depth=4)
    first, *deeper = coupled.maps
    assert len(deeper) == 3
    assert all(torch.equal(m.weight, deeper[0].weight) for m in deeper)
    assert all(torch.equal(m.bias, deeper[0].bias) for m in deeper)
    assert not torch.equal(first.weight, deeper[0].weight)
    assert len({m.weight.data_ptr() for m in coupled.maps}) == 4


def test_depth_is_bounded_by_the_shallower_tower(tiny_backbone):
    text, coupled = attach_coupled_prompts(tiny_backbone, n_ctx=1, depth=99)
    assert len(text.vectors) == len(coupled.maps) == 2


def test_half_precision_towers_take_single_precision_maps(tiny_backbone):
    from open_clip.model import convert_weights_to_lp

    convert_weights_to_lp(tiny_backbone.model, torch.bfloat16)
    _, coupled = attach_coupled_prompts(tiny_backbone, n_ctx=2, depth=2)
    assert {p.dtype for p in coupled.parameters()} == {torch.float32}
    assert all(f.isfinite().all() for f in features(tiny_backbone))


def test_bad_depth_and_second_attachment(tiny_backbone):
    with pytest.raises(ValueError, match="depth of 1 .* or more, got 0"):
        attach_coupled_prompts(tiny_backbone, n_ctx=2, depth=0)
    attach_text_prompts(tiny_backbone, n_ctx=2, depth=1)
    with pytest.raises(ValueError, match="has learned prompts already"):
        attach_coupled_prompts(tiny_backbone, n_ctx=2, depth=1)
