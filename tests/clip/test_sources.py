"""What holds for backbones of every source, each a tiny random model of the real class."""

import open_clip
import pytest
import torch
import transformers
from torch.nn import functional as F

import clip
from clip import align, backbones, names
from clip.backbones import Backbone, input_spec
from clip.text import unit_norm
from dassl.engine.step import freeze_statistics
from tests.clip import sources
from trainers.base import PromptedCLIP

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
CLASSES = [["a photo of a cat", "the cat"], ["two dogs"], ["a long red text"]]
EVERY = [*sources.OPENAI, sources.LAION, sources.SIGLIP, "align"]


@pytest.fixture
def source(request, monkeypatch, tmp_path):
    """The name of a backbone whose files are on this machine, and the stock model."""
    name = request.param
    if name == sources.LAION:
        return name, sources.put_laion(monkeypatch, tmp_path)
    if name == sources.SIGLIP:
        return name, sources.put_siglip(monkeypatch, tmp_path)
    if name == "align":
        return f"align:{tmp_path}", sources.save_align(tmp_path)
    return name, sources.put_openai_file(monkeypatch, tmp_path, name)


def pictures(backbone, count=3):
    side = backbone.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def stock_logits(stock, images, tokens):
    """The source library's own image-text logits."""
    with torch.no_grad():
        if isinstance(stock, transformers.AlignModel):
            return stock(tokens, images, attention_mask=tokens.ne(0).long()).logits_per_image
        return stock.get_logits(images, tokens)[0]


@pytest.mark.parametrize("source", EVERY, indirect=True)
def test_logits_are_the_source_librarys(source):
    name, stock = source
    backbone = clip.load(name)
    images = pictures(backbone)
    tokens = backbone.tokenize(["a photo of a cat", "two dogs", "the long red text"])
    image, text = unit_norm(backbone.encode_image(images)), unit_norm(backbone.encode_text(tokens))
    assert image.shape == text.shape == (3, backbone.embed_dim)
    logits = backbone.logit_scale.exp() * image @ text.T
    if backbone.logit_bias is not None:
        logits = logits + backbone.logit_bias
    expected = stock_logits(stock, images, tokens)
    assert expected.std() > 0.01
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("source", EVERY, indirect=True)
def test_zero_shot_probabilities_are_the_softmax_of_those_logits(source):
    name, stock = source
    backbone = clip.load(name)
    images = pictures(backbone)
    model = PromptedCLIP(backbone, [texts[:1] for texts in CLASSES], renormalize=True).eval()
    expected = stock_logits(
        stock, images, backbone.tokenize([texts[0] for texts in CLASSES])
    ).softmax(-1)
    torch.testing.assert_close(model(images).softmax(-1), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("source", EVERY, indirect=True)
def test_banks_of_several_prompts_average_unit_features(source):
    backbone = clip.load(source[0])
    model = PromptedCLIP(backbone, CLASSES, renormalize=False).eval()
    each = [unit_norm(backbone.encode_text(backbone.tokenize(texts))).mean(0) for texts in CLASSES]
    torch.testing.assert_close(model.class_weights(), torch.stack(each), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("source", EVERY, indirect=True)
def test_nothing_moves_in_training_mode(source):
    backbone = clip.load(source[0])
    images, tokens = pictures(backbone), backbone.tokenize(["a cat"])
    buffers = {k: v.clone() for k, v in backbone.named_buffers()}
    expected = backbone.encode_image(images), backbone.encode_text(tokens)
    assert not any(p.requires_grad for p in backbone.parameters())
    backbone.train()
    freeze_statistics(backbone)  # as the engine does
    torch.testing.assert_close(backbone.encode_image(images), expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone.encode_text(tokens), expected[1], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(v, buffers[k]) for k, v in backbone.named_buffers())


@pytest.mark.parametrize("source", ["RN50", "RN101"], indirect=True)
def test_without_the_engine_a_resnets_statistics_would_move(source):
    backbone = clip.load(source[0])
    before = backbone.model.visual.bn1.running_mean.clone()
    backbone.train().encode_image(pictures(backbone))
    assert not torch.equal(backbone.model.visual.bn1.running_mean, before)


@pytest.mark.parametrize("source", EVERY, indirect=True)
@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_low_precision(source, precision, dtype):
    full, low = clip.load(source[0]), clip.load(source[0], precision=precision)
    images, tokens = pictures(full), full.tokenize(["a cat", "two dogs"])
    assert low.dtype == dtype
    for exact, rounded in (
        (full.encode_image(images), low.encode_image(images)),
        (full.encode_text(tokens), low.encode_text(tokens)),
    ):
        assert rounded.dtype == dtype
        assert F.cosine_similarity(exact, rounded.float()).min() > 0.999


@pytest.mark.parametrize("source", EVERY, indirect=True)
def test_weights_that_are_no_numbers_are_refused(source, tmp_path):
    name, stock = source
    with torch.no_grad():
        list(stock.parameters())[-1].view(-1)[0] = torch.nan
    if name.startswith("align"):
        stock.save_pretrained(tmp_path)
    else:
        (file,) = (p for p in tmp_path.iterdir() if p.suffix in (".pt", ".bin"))
        torch.save(stock.state_dict(), file)
    with pytest.raises(ValueError, match="infinite or NaN values"):
        clip.load(name)


@pytest.mark.parametrize("source", EVERY, indirect=True)
def test_preprocessing_constants(source):
    name, _ = source
    backbone = clip.load(name)
    half = name.startswith(("siglip", "align"))
    assert backbone.image_mean == pytest.approx(HALF if half else CLIP_MEAN)
    assert backbone.image_std == pytest.approx(HALF if half else CLIP_STD)
    # OpenAI's names promise the real models' 224 pixels; the others' sizes are in their files.
    assert input_spec(name).size == (224 if name in names.OPENAI else backbone.image_size)
    assert (input_spec(name).mean, input_spec(name).std) == (
        backbone.image_mean,
        backbone.image_std,
    )


@pytest.mark.parametrize("source", EVERY, indirect=True)
def test_texts_that_do_not_fit(source, capsys):
    backbone = clip.load(source[0])
    length = 64 if source[0].startswith(("siglip", "align")) else 77
    ends = 1 if source[0].startswith("siglip") else 2  # SigLIP has no start token
    fits, long = "cat " * (length - ends), "cat " * (length - ends + 1)
    assert backbone.context_length == length
    assert backbone.tokenize(fits, truncate=False).shape == (1, length)
    with pytest.raises(ValueError, match=f"needs {length + 1} tokens.*takes {length}: 'cat cat"):
        backbone.tokenize(["a cat", long], truncate=False)
    assert capsys.readouterr().out == ""
    cut = backbone.tokenize(["a cat", fits, long, long])
    assert torch.equal(cut[1], cut[2])  # the end token survives
    assert capsys.readouterr().out.startswith(f"2 of 4 texts are longer than the model's {length}")


# Architectures without weights: (name, D, side, T, blocks of the vision tower or None).
REAL = [
    ("RN50", 1024, 224, 77, None),
    ("RN101", 512, 224, 77, None),
    ("ViT-B/32", 512, 224, 77, 12),
    ("ViT-B/16", 512, 224, 77, 12),
    ("ViT-L/14", 768, 224, 77, 24),
    (sources.LAION, 512, 224, 77, 12),
    (sources.SIGLIP, 768, 224, 64, None),
]


@pytest.mark.parametrize(("name", "dim", "side", "length", "blocks"), REAL)
def test_the_real_architectures(name, dim, side, length, blocks):
    arch = names.openai_arch(name) if name in names.OPENAI else names.arch_and_tag(name)[0]
    with torch.device("meta"):
        model = open_clip.create_model(arch, device="meta")
    backbone = Backbone(model, name, input_spec(name), tokenizer=lambda *a, **k: torch.empty(0))
    assert (backbone.embed_dim, backbone.image_size, backbone.context_length) == (dim, side, length)
    half = name == sources.SIGLIP
    assert backbone.image_mean == pytest.approx(HALF if half else CLIP_MEAN)
    assert backbone.image_std == pytest.approx(HALF if half else CLIP_STD)
    assert (backbone.logit_bias is None) == (not half)
    vision = backbone.vision_transformer
    assert (None if vision is None else len(vision.resblocks)) == blocks
    assert names.has_vision_transformer(name) == (blocks is not None)
    assert len(backbone.text_transformer.resblocks) == 12
    images = torch.empty(2, 3, side, side, device="meta")
    assert backbone.encode_image(images).shape == (2, dim)


def test_the_real_align_architecture():
    config = transformers.AlignConfig(vision_config={"hidden_dim": 640, "image_size": 289})
    with torch.device("meta"):
        model = align.Align(transformers.AlignModel(config), 64, 0)
    spec = input_spec(f"align:{names.ALIGN_BASE}")
    backbone = Backbone(model, "align", spec, tokenizer=lambda *a, **k: torch.empty(0))
    assert (backbone.embed_dim, backbone.image_size, backbone.context_length) == (640, 289, 64)
    assert backbone.image_mean == backbone.image_std == HALF
    with torch.device("meta"):
        assert backbone.encode_image(torch.empty(1, 3, 289, 289)).shape == (1, 640)
    assert backbone.vision_transformer is None
    assert backbone.text_transformer is None
    assert backbone.end_of_text() is None


def test_openai_constants():
    assert backbones.OPENAI_INPUT == clip.InputSpec(224, CLIP_MEAN, CLIP_STD)
