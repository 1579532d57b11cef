"""RAda on every backbone its tables name, as small random models of the same classes, offline."""

import pytest
import torch

from dassl.engine import build_trainer
from tests.clip import sources
from tests.trainers.plain import SMALL

BACKBONES = {  # by the config file that names it
    "table8_rn50": "RN50",
    "table8_rn101": "RN101",
    "table8_vit_b32": "ViT-B/32",
    "base2novel": "ViT-L/14",
    "table9_openclip": "openclip:ViT-B-16@laion2b_s34b_b88k",
    "table9_siglip": "siglip:ViT-B-16-SigLIP@webli",
    "table9_align": "align:kakaobrain/align-base",
}
NO_TEST = ("TEST.NO_TEST", "True")


@pytest.fixture
def build(make_config, monkeypatch, tmp_path):
    """(config file, trailing options) -> trainer of RAda; weights of its backbone are at hand."""
    weights = tmp_path / "weights"
    weights.mkdir()

    def make(config: str, *options: str, output: str = "run"):
        name = BACKBONES[config]
        if config == "base2novel" or name.startswith("align:"):
            # The one is not named in the file; the other's real name would be looked up online.
            name = f"align:{weights}" if name.startswith("align:") else name
            options = (*options, "MODEL.BACKBONE.NAME", name)
        if ":" not in name:  # OpenAI's names say 224 pixels; the small models take fewer
            side = "70" if name == "ViT-L/14" else "64"
            options = (*options, "INPUT.SIZE", f"({side}, {side})")
        if not any(weights.iterdir()):
            put(name)
        return build_trainer(
            make_config(f"RAda/{config}", *SMALL, *NO_TEST, *options, output=output)
        )

    def put(name: str) -> None:
        if name.startswith("align:"):
            sources.save_align(weights)
        elif name.startswith("siglip:"):
            sources.put_siglip(monkeypatch, weights)
        elif name.startswith("openclip:"):
            sources.put_laion(monkeypatch, weights)
        else:
            sources.put_openai_file(monkeypatch, weights, name)

    return make


@pytest.mark.parametrize("config", BACKBONES)
def test_trains_saves_loads_and_caches(build, config, tmp_path):
    trainer = build(config)
    assert trainer.cfg.MODEL.BACKBONE.NAME.split(":")[0] == BACKBONES[config].split(":")[0]
    model = trainer.model.eval()
    image = torch.randn(2, 3, *trainer.cfg.INPUT.SIZE)
    f, h = model.image_features(image), model.class_weights()
    assert torch.equal(model(image), model.scale * f @ h.T), "starts as the zero-shot model"
    statistics = {n: b.clone() for n, b in model.backbone.named_buffers()}
    trainer.train()
    after = model.eval()(image)
    assert not torch.equal(after, model.scale * f @ h.T)
    assert all(torch.equal(b, statistics[n]) for n, b in model.backbone.named_buffers())
    accuracy = trainer.test(split="val")

    options = ("FEATURE_CACHE.ENABLED", "True", "FEATURE_CACHE.DIR", str(tmp_path / "cache"))
    cached = build(config, *options, output="cached")
    cached.load_model(trainer.output_dir)
    assert torch.equal(cached.model.eval()(image), after)
    assert cached.test(split="val") == accuracy
    for plain, kept in zip(trainer.val_loader, cached.val_loader, strict=True):
        assert torch.equal(model(plain["img"]), cached.model(kept["img"]))
