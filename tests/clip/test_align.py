"""ALIGN through transformers: text masks, temperature, preprocessing, checkpoints that are none."""

import json
import shutil

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import clip
from clip import TextBank
from clip.align import spec_of
from clip.names import has_vision_transformer
from tests.clip.sources import save_align
from tests.dassl.torch_files import flip_bit_in

TEXTS = ["a cat", "two dogs", "a long red photo of the two blue cats of the dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("align")
    save_align(folder)
    return folder


@pytest.fixture
def backbone(folder):
    return clip.load(f"align:{folder}")


def relative(a, b):
    return ((a - b).norm(dim=-1) / b.norm(dim=-1)).max()


def test_temperature_becomes_a_logarithmic_scale(backbone):
    assert backbone.model.align.temperature.item() == pytest.approx(0.05)
    assert backbone.logit_scale.exp().item() == pytest.approx(20)
    assert backbone.logit_scale.ndim == 0
    assert backbone.logit_bias is None


def test_cutting_padding_is_exact(backbone, monkeypatch):
    tokens = backbone.tokenize(TEXTS)
    mask = tokens.ne(0).long()
    assert tokens.shape == (3, 64)
    tower, seen = backbone.model.align.text_model, []
    whole = tower(input_ids=tokens, attention_mask=mask)[0][:, 0]
    whole = backbone.model.align.text_projection(whole)
    unmasked = backbone.model.align.text_projection(tower(input_ids=tokens)[0][:, 0])
    assert relative(unmasked, whole) > 1e-3  # so the mask matters, and must be right
    forward = tower.forward
    monkeypatch.setattr(
        tower,
        "forward",
        lambda *a, **k: seen.append(tuple(k["input_ids"].shape)) or forward(*a, **k),
    )
    assert relative(backbone.encode_text(tokens), whole) < 1e-5
    each = torch.cat([backbone.encode_text(tokens[i : i + 1]) for i in range(3)])
    assert relative(each, whole) < 1e-5
    # start, words, end; "dogs" is no word of the tiny vocabulary but "dog" and "##s".
    assert seen == [(3, 14), (1, 4), (1, 5), (1, 14)]


def test_the_tokenizers_own_mask_is_the_same(backbone):
    batch = backbone._tokenizer.tokenizer(TEXTS, padding="max_length", max_length=64)
    assert torch.equal(torch.tensor(batch["attention_mask"]), backbone.tokenize(TEXTS).ne(0).long())


def test_text_bank(backbone):
    bank = TextBank([TEXTS[:2], TEXTS[2:]], backbone.tokenize, backbone.end_of_text())
    assert backbone.end_of_text() is None
    features = bank.encode_all(backbone)
    expected = torch.nn.functional.normalize(backbone.encode_text(backbone.tokenize(TEXTS)), dim=-1)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_both_towers(backbone):
    backbone.requires_grad_(True)
    text = backbone.encode_text(backbone.tokenize(TEXTS[:1])).square().sum()
    image = backbone.encode_image(torch.ones(1, 3, 64, 64)).square().sum()
    (text + image + backbone.logit_scale).backward()
    align = backbone.model.align
    assert align.temperature.grad == pytest.approx(-20)  # d(-log t) / dt = -1 / t
    assert align.text_model.embeddings.word_embeddings.weight.grad.abs().sum() > 0
    assert align.vision_model.embeddings.convolution.weight.grad.abs().sum() > 0


def test_batch_norms_and_temperature_stay_in_full_precision(folder):
    align = clip.load(f"align:{folder}", precision="fp16").model.align
    assert align.vision_model.embeddings.batchnorm.running_var.dtype == torch.float32
    assert align.temperature.dtype == torch.float32
    assert align.text_projection.weight.dtype == torch.float16


@pytest.mark.parametrize(
    "arguments",
    [
        dict(rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False, include_top=False),
        dict(rescale_factor=1 / 255, rescale_offset=False, do_normalize=True, include_top=False),
        dict(rescale_factor=1 / 255, rescale_offset=False, do_normalize=True, include_top=True),
        dict(rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=True, include_top=True),
    ],
)
def test_constants_do_what_the_image_processor_does(arguments):
    processor = transformers.EfficientNetImageProcessor(
        do_resize=False, do_center_crop=True, crop_size={"height": 8, "width": 8},
        image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25], **arguments,
    )  # fmt: skip
    spec = spec_of(processor)
    assert spec.size == 8
    pixels = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    expected = torch.as_tensor(processor(images=[pixels.numpy()], return_tensors="pt").pixel_values)
    mean, std = (torch.tensor(v)[:, None, None] for v in (spec.mean, spec.std))
    torch.testing.assert_close((pixels / 255 - mean) / std, expected[0], rtol=1e-4, atol=1e-4)


def test_constants_of_the_published_model():
    """Those of transformers' conversion script: 289 pixels cut from 346, values in [-1, 1]."""
    processor = transformers.EfficientNetImageProcessor(
        do_center_crop=True, rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False,
        include_top=False, resample=2,
    )  # fmt: skip
    assert (processor.size["height"], processor.crop_size["height"]) == (346, 289)
    assert spec_of(processor) == clip.input_spec("align:kakaobrain/align-base")


def test_input_spec_reads_other_checkpoints(folder):
    assert clip.input_spec(f"align:{folder}") == clip.InputSpec(64, (0.5,) * 3, (0.5,) * 3)


def test_pictures_that_are_no_squares(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    file = copy / "preprocessor_config.json"
    content = json.loads(file.read_text()) | {"crop_size": {"height": 64, "width": 32}}
    file.write_text(json.dumps(content))
    for function in (clip.load, clip.input_spec):
        with pytest.raises(ValueError, match="copy.*must be square"):
            function(f"align:{copy}")


def test_no_vision_transformer(folder):
    assert has_vision_transformer(f"align:{folder}") is False
    assert has_vision_transformer("align:kakaobrain/align-base") is False


@pytest.mark.parametrize("place", ["", "align-base", "./nowhere/align", "a/b/c"])
def test_neither_a_directory_nor_a_hub_id(place):
    for function in (clip.load, clip.input_spec):
        with pytest.raises(ValueError, match="neither a directory here nor a hub id"):
            function(f"align:{place}")


def test_offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for function in (clip.load, clip.input_spec):
        with pytest.raises(ConnectionError, match=r"'align:nobody/nothing'.*align:<directory>"):
            function("align:nobody/nothing")


def test_no_such_model_on_the_hub(monkeypatch):
    class NoSuchRepository(huggingface_hub.utils.RepositoryNotFoundError):
        def __init__(self):
            Exception.__init__(self, "404")

    def answer(*args, **kwargs):
        raise OSError("nobody/nothing is not a valid model identifier") from NoSuchRepository()

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", answer)
    with pytest.raises(ValueError, match="the hub has no such model.*align:kakaobrain/align-base"):
        clip.load("align:nobody/nothing")


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def change_weights(copy, change):
    file = copy / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, {"format": "pt"})


def without_tokenizer(copy):
    for name in ("tokenizer.json", "vocab.txt"):
        (copy / name).unlink()


def pickled(copy):
    (copy / "model.safetensors").unlink()
    torch.save({"temperature": Exploit(copy / "owned")}, copy / "pytorch_model.bin")


def flipped(copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    flip_bit_in(copy / "pytorch_model.bin", "data/5")


BROKEN = {
    "no config": lambda copy: (copy / "config.json").unlink(),
    "another model": lambda copy: (copy / "config.json").write_text('{"model_type": "clip"}'),
    "no tokenizer": without_tokenizer,
    "no image processor": lambda copy: (copy / "preprocessor_config.json").unlink(),
    "no weights": lambda copy: (copy / "model.safetensors").unlink(),
    "half a file": lambda copy: (copy / "model.safetensors").write_bytes(b"\x10\x00"),
    "a missing weight": lambda copy: change_weights(copy, lambda s: s.pop("temperature")),
    "another size": lambda copy: change_weights(
        copy, lambda s: s.update({"text_projection.bias": torch.zeros(3)})
    ),
    "code": pickled,
    "a flipped bit": flipped,
}


@pytest.mark.parametrize("broken", BROKEN)
def test_incomplete_checkpoints_are_refused(folder, tmp_path, broken):
    copy = shutil.copytree(folder, tmp_path / "copy")
    BROKEN[broken](copy)
    with pytest.raises(ValueError, match="copy is no complete ALIGN checkpoint"):
        clip.load(f"align:{copy}")
    assert not (copy / "owned").exists()
