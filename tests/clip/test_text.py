import pytest
import torch

from clip import TextBank, adapters_disabled, attach_residual_attention
from clip import text as text_module
from clip.text import encode_tokens

PROMPTS = [
    ["a cat", "a photo of a small cat that sleeps on a very old red sofa"],
    ["a dog"],
    ["a bird", "one more bird", "a bird, seen from far away"],
]


@pytest.fixture
def bank(tiny_backbone):
    return TextBank(PROMPTS, tiny_backbone.tokenize, tiny_backbone.end_of_text()).eval()


def test_truncation_is_exact(tiny_backbone):
    tokens = tiny_backbone.tokenize([t for texts in PROMPTS for t in texts])
    with torch.no_grad():
        full = tiny_backbone.model.encode_text(tokens)
        cut = tiny_backbone.encode_text(tokens)
    assert ((full - cut).norm(dim=-1) / full.norm(dim=-1)).max() < 1e-6


def test_truncation_really_cuts(tiny_backbone, count_calls):
    calls = count_calls(text_module, "encode_embeddings")
    tiny_backbone.encode_text(tiny_backbone.tokenize(["a cat", "a black cat"]))
    assert [x.shape[1] for _, x, *_ in calls] == [5]  # start, a, black, cat, end


def test_gradient_of_truncated_text_is_exact(tiny_backbone):
    weight = tiny_backbone.model.ln_final.weight.requires_grad_(True)
    tokens = tiny_backbone.tokenize(["a cat", "two dogs"])
    full = torch.autograd.grad(tiny_backbone.model.encode_text(tokens).square().sum(), weight)[0]
    cut = torch.autograd.grad(tiny_backbone.encode_text(tokens).square().sum(), weight)[0]
    torch.testing.assert_close(full, cut, rtol=1e-5, atol=1e-5)


def test_towers_that_read_everything_are_not_cut(tiny_backbone):
    tiny_backbone.model.text_pool_type = "last"
    tokens = tiny_backbone.tokenize(["a cat"])
    assert tiny_backbone.end_of_text() is None
    assert torch.equal(
        encode_tokens(tiny_backbone.model, tokens), tiny_backbone.model.encode_text(tokens)
    )


def test_a_prompt_of_full_length_survives(tiny_backbone):
    tokens = tiny_backbone.tokenize(["cat " * 200])
    assert tokens[0, -1] == tokens.max()  # still ends
    torch.testing.assert_close(
        tiny_backbone.encode_text(tokens),
        tiny_backbone.model.encode_text(tokens),
        rtol=1e-5,
        atol=1e-5,
    )


def test_untruncated_tokenising_names_the_text(tiny_backbone):
    with pytest.raises(ValueError, match=r"102 tokens.*'cat cat"):
        tiny_backbone.tokenize(["cat " * 100], truncate=False)


def test_encode_all_keeps_the_order_and_batches(tiny_backbone, bank, monkeypatch):
    texts = [t for group in PROMPTS for t in group]
    expected = torch.cat([tiny_backbone.encode_text(tiny_backbone.tokenize([t])) for t in texts])
    expected = torch.nn.functional.normalize(expected, dim=-1)
    torch.testing.assert_close(bank.encode_all(tiny_backbone), expected, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(text_module, "BATCH_TOKENS", 9)
    torch.testing.assert_close(bank.encode_all(tiny_backbone), expected, rtol=1e-5, atol=1e-6)


def test_class_features_are_plain_means(tiny_backbone, bank):
    every = bank.encode_all(tiny_backbone)
    expected = torch.stack([every[0:2].mean(0), every[2], every[3:6].mean(0)])
    torch.testing.assert_close(bank.class_features(tiny_backbone), expected, rtol=1e-6, atol=1e-7)
    assert bank.class_features(tiny_backbone).norm(dim=-1)[0] < 0.9999  # not normalised again


def test_sampling_is_uniform_per_class_and_repeatable(bank):
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([bank.sample(generator) for _ in range(3000)])
    assert set(draws[:, 0].tolist()) == {0, 1}
    assert set(draws[:, 1].tolist()) == {2}
    shares = torch.bincount(draws[:, 2], minlength=6)[3:] / 3000
    assert (shares - 1 / 3).abs().max() < 0.03
    again = torch.Generator().manual_seed(0)
    assert torch.equal(torch.stack([bank.sample(again) for _ in range(3000)]), draws)


def test_cache_is_used_only_in_evaluation_and_dropped(tiny_backbone, bank):
    first = bank.class_features(tiny_backbone)
    assert bank.class_features(tiny_backbone) is first
    tiny_backbone.model.ln_final.weight.data.mul_(-1)
    assert bank.class_features(tiny_backbone) is first
    bank.drop_cache()
    second = bank.class_features(tiny_backbone)
    assert not torch.allclose(first, second)
    bank.train()
    assert bank.class_features(tiny_backbone) is not bank.class_features(tiny_backbone)
    bank.eval()
    assert bank.class_features(tiny_backbone) is not second


def test_cache_knows_the_adapters_switches(tiny_backbone, bank):
    plain = bank.class_features(tiny_backbone)
    attach_residual_attention(tiny_backbone)
    for module in tiny_backbone.modules():
        if hasattr(module, "residual"):
            module.residual.value.data.normal_()
    adapted = bank.class_features(tiny_backbone)
    assert not torch.allclose(plain, adapted)
    with adapters_disabled(tiny_backbone):
        assert torch.equal(bank.class_features(tiny_backbone), plain)
    assert torch.equal(bank.class_features(tiny_backbone), adapted)


def test_class_without_prompt_is_refused(tiny_backbone):
    with pytest.raises(ValueError, match=r"\[1\]"):
        TextBank([["a"], []], tiny_backbone.tokenize)


def test_prompts_stay_out_of_state_dicts(bank):
    assert bank.state_dict() == {}


def test_classes_of_the_same_tokens_are_twins(tiny_backbone):
    prompts = [["a cat", "one cat"], ["a dog"], ["One  cat", "a CAT"], ["a cat"], ["a dog"]]
    bank = TextBank(prompts, tiny_backbone.tokenize, tiny_backbone.end_of_text())
    assert bank.twins() == [[0, 2], [1, 4]]
    assert bank.texts[:3] == ["a cat", "one cat", "a dog"]
