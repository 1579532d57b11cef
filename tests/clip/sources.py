"""Tiny random models of every source, in the files and under the names of the real ones."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from clip import backbones

LAION, SIGLIP = "openclip:ViT-B-16@laion2b_s34b_b88k", "siglip:ViT-B-16-SigLIP@webli"
OPENAI = ("RN50", "RN101", "ViT-B/32", "ViT-B/16", "ViT-L/14")
WORDS = ["a", "photo", "of", "cat", "dog", "cats", "two", "the", "red", "blue", "long", "text"]
LETTERS = [chr(i) for i in range(ord("a"), ord("z") + 1)]


def small_openai_clip(name: str) -> Any:
    """OpenAI's class of that name: 64 pixels, D = 64, patches and depths as far as they are small.

    RN101 has a deeper third stage than RN50, as in the real models.
    """
    vision = dict(layers=2, width=128, image_size=64, patch_size=int(name[-2:]))
    if name.startswith("RN"):
        depths = (1, 1, 2 if name == "RN50" else 3, 1)
        vision = dict(layers=depths, width=64, image_size=64)
    if name == "ViT-L/14":
        vision["image_size"] = 70
    torch.manual_seed(0)
    model = open_clip.model.CLIP(
        embed_dim=64,
        vision_cfg=open_clip.model.CLIPVisionCfg(**vision),
        text_cfg=open_clip.model.CLIPTextCfg(width=64, heads=1, layers=2),
        quick_gelu=True,
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics of a trained model are not 0, 1
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def put_openai_file(monkeypatch: pytest.MonkeyPatch, cache: Path, name: str) -> Any:
    """Save such a model where OpenAI's package keeps that one; the stock model."""
    monkeypatch.setattr(backbones, "OPENAI_CACHE", cache)
    model = small_openai_clip(name)
    torch.save(model.state_dict(), cache / f"{name.replace('/', '-')}.pt")
    return model


def put_open_clip(
    monkeypatch: pytest.MonkeyPatch, folder: Path, arch: str, change: dict[str, Any]
) -> Any:
    """Let open_clip know a smaller ``arch``, with weights on this machine; the stock model.

    Everything but the sizes is the real model's configuration.
    """
    config = open_clip.get_model_config(arch)
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, arch, config)
    torch.manual_seed(0)
    model = open_clip.create_model(arch).eval()
    file = folder / "open_clip_pytorch_model.bin"
    torch.save(model.state_dict(), file)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *a, **k: str(file))
    return model


def put_laion(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """A small ``openclip:ViT-B-16@laion2b_s34b_b88k``."""
    vision = {"image_size": 32, "width": 128, "layers": 2}
    text = {"width": 64, "heads": 1, "layers": 2}
    change = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}
    return put_open_clip(monkeypatch, folder, "ViT-B-16", change)


def put_siglip(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """A small ``siglip:ViT-B-16-SigLIP@webli`` with a timm ViT and a tokenizer of T5's class."""

    def vit_nano(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
        for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            kwargs.pop(key, None)
        sizes = dict(img_size=32, patch_size=16, embed_dim=64, depth=2, num_heads=2)
        return VisionTransformer(**sizes, class_token=False, **kwargs)

    monkeypatch.setitem(timm.models._registry._model_entrypoints, "vit_nano_siglip", vit_nano)
    save_t5_tokenizer(folder / "tokenizer")
    vision = {"image_size": 32, "timm_model_name": "vit_nano_siglip"}
    text = {"hf_tokenizer_name": str(folder / "tokenizer"), "width": 64, "heads": 2, "layers": 2}
    change = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": {**text, "vocab_size": 100}}
    return put_open_clip(monkeypatch, folder, "ViT-B-16-SigLIP", change)


def save_t5_tokenizer(folder: Path) -> None:
    """SigLIP's kind: unigrams, an end token and no start token, padded with the end token."""
    folder.mkdir()
    pieces = ["<pad>", "</s>", "<unk>", *(f"\u2581{w}" for w in WORDS), "\u2581", *LETTERS]
    scores = [0.0] * 3 + [-float(len(pieces))] * (len(pieces) - 3)
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "</s>",
        "unk_token": "<unk>", "extra_ids": 0, "additional_special_tokens": [],
        "model_max_length": 64,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))


def save_align(folder: Path) -> Any:
    """A small ALIGN checkpoint: 64 pixels, D = 16, two EfficientNet stages; the stock model."""
    vision = dict(
        image_size=64, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=16,
        in_channels=[32, 8], out_channels=[8, 16], kernel_sizes=[3, 3], strides=[2, 2],
        num_block_repeats=[1, 1], expand_ratios=[1, 2],
    )  # fmt: skip
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS[1:]]
    vocabulary += [f"##{letter}" for letter in LETTERS]
    text = dict(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AlignModel(
        transformers.AlignConfig(
            text_config=text, vision_config=vision, projection_dim=16, temperature_init_value=0.05
        )
    ).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    model.save_pretrained(folder)
    # The arguments are those of transformers' conversion script, the sizes smaller.
    transformers.EfficientNetImageProcessor(
        do_center_crop=True, rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False,
        include_top=False, resample=2, size={"height": 76, "width": 76},
        crop_size={"height": 64, "width": 64},
    ).save_pretrained(folder)  # fmt: skip
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    transformers.BertTokenizerFast.from_pretrained(
        folder, do_lower_case=True, model_max_length=64
    ).save_pretrained(folder)
    return model
