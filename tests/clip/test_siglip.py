"""SigLIP through open_clip: its bias, its tokenizer, its errors."""

import huggingface_hub
import open_clip
import pytest
import torch

import clip
from clip.names import arch_and_tag
from clip.text import unit_norm
from tests.clip.sources import SIGLIP, put_siglip


@pytest.fixture
def stock(monkeypatch, tmp_path):
    return put_siglip(monkeypatch, tmp_path)


@pytest.fixture
def backbone(stock):
    return clip.load(SIGLIP)


def test_the_class_and_what_it_was_trained_on(backbone, stock):
    assert type(backbone.model) is open_clip.CustomTextCLIP
    assert all(
        torch.equal(v, stock.state_dict()[k]) for k, v in backbone.model.state_dict().items()
    )
    assert backbone.model.visual.preprocess_cfg["resize_mode"] == "squash"  # what InputSpec says
    assert backbone.vision_transformer is None
    assert backbone.end_of_text() is None  # it reads both ways and pools at the last position


def test_bias_makes_pairwise_probabilities_and_no_difference_to_a_softmax(backbone, stock):
    images = torch.randn(2, 3, 32, 32)
    tokens = backbone.tokenize(["a cat", "two dogs", "a red photo"])
    cosines = unit_norm(backbone.encode_image(images)) @ unit_norm(backbone.encode_text(tokens)).T
    logits = backbone.logit_scale.exp() * cosines
    expected = stock.get_logits(images, tokens)[0]
    assert backbone.logit_bias.item() == -10
    pairwise = torch.sigmoid(logits + backbone.logit_bias)
    torch.testing.assert_close(pairwise, expected.sigmoid(), rtol=1e-4, atol=1e-7)
    assert (torch.sigmoid(logits) - pairwise).min() > 0.01  # so there the bias matters
    torch.testing.assert_close(logits.softmax(-1), expected.softmax(-1), rtol=1e-4, atol=1e-6)


def test_tokens_are_open_clips_cut_or_not(backbone):
    texts = ["A  photo, of a CAT.", "long " * 63, "long " * 64, "cat " * 500]
    expected = open_clip.get_tokenizer("ViT-B-16-SigLIP").tokenizer(
        [open_clip.tokenizer.canonicalize_text(text) for text in texts],
        max_length=64, padding="max_length", truncation=True, return_tensors="pt",
    )["input_ids"]  # fmt: skip
    tokens = backbone.tokenize(texts)
    assert torch.equal(tokens, expected)
    assert tokens[0, :6].tolist() == [3, 4, 5, 3, 6, 1]  # no start token, lower case, one end
    assert tokens[:, -1].tolist() == [1, 1, 1, 1]
    assert torch.equal(tokens[1], tokens[2])


def test_the_name_older_open_clip_calls_exists_in_newer_transformers(backbone):
    inner = backbone._tokenizer.tokenizer
    assert inner.batch_encode_plus(["a cat", "dog"])["input_ids"] == [[3, 6, 1], [7, 1]]


def test_long_texts_are_named_with_both_numbers(backbone):
    text = "a long red text " * 16  # 64 words and the end
    with pytest.raises(ValueError, match="needs 65 tokens, the model takes 64: 'a long red"):
        backbone.tokenize(["a cat", text], truncate=False)
    assert backbone.tokenize(text[:-5], truncate=False)[0].eq(1).sum() == 1


def test_cut_texts_are_counted_in_one_line(backbone, capsys):
    clip.TextBank([["a cat", "cat " * 64], ["dog " * 99]], backbone.tokenize)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("2 of 3 texts are longer than the model's 64 tokens and were cut")
    assert "'cat cat" in lines[0]
    assert len(lines[0]) < 250
    clip.TextBank([["a cat", "cat " * 63]], backbone.tokenize)
    assert capsys.readouterr().out == ""


def test_tokenizer_that_cannot_be_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(open_clip, "create_model", lambda *a, **k: pytest.fail("loads weights"))
    with pytest.raises(ConnectionError, match=f"tokenizer files of backbone '{SIGLIP}'"):
        clip.load(SIGLIP)


def test_weights_that_cannot_be_downloaded(stock, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", unreachable)
    with pytest.raises(ConnectionError, match="weights of backbone 'siglip.*no route.*--backbone"):
        clip.load(SIGLIP)


def test_the_prefix_is_for_siglip_only():
    with pytest.raises(ValueError, match="is no SigLIP. Write openclip:ViT-B-16@openai"):
        clip.load("siglip:ViT-B-16@openai")
    assert arch_and_tag("openclip:ViT-B-16-SigLIP@webli") == ("ViT-B-16-SigLIP", "webli")
