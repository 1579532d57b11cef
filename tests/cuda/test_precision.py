"""Features on the GPU against the CPU's in single precision; the loss scale of amp."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import open_clip
import pytest
import torch

import clip
from clip.backbones import Backbone, InputSpec
from dassl.engine import build_trainer, trainable_state
from dassl.engine.device import PRECISIONS, autocast_context
from tests.conftest import MEAN, STD
from tests.cuda.agreement import TOLERANCE, difference
from tests.runs import SMALL
from trainers.heads import RationalHead

pytestmark = pytest.mark.cuda

TEXTS = ["a", "a photo of a red circle.", " ".join(["word"] * 90)]


def resnet() -> Backbone:
    """A tiny CLIP with a ResNet: convolutions, batch norms, attention pooling."""
    torch.manual_seed(0)
    vision = open_clip.model.CLIPVisionCfg(layers=(1, 1, 1, 1), width=16, image_size=64)
    text = open_clip.model.CLIPTextCfg(width=64, heads=1, layers=1)
    model = open_clip.model.CLIP(64, vision, text, quick_gelu=True)
    return Backbone(model, "resnet", InputSpec(64, MEAN, STD)).requires_grad_(False).eval()


@torch.no_grad()
def features(backbone, precision, images, device):
    """Of images and texts."""
    # Without a scale for losses: nothing is trained here.
    autocast = precision in ("amp", "bf16")
    with autocast_context(precision, device) if autocast else nullcontext():
        image = backbone.encode_image(images.to(device))
        return image, backbone.encode_text(backbone.tokenize(TEXTS).to(device))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["vit", "shapes", "resnet"])
def test_features(name, precision, device, tiny_backbone):
    if device.type == "cpu" and precision in ("amp", "fp16"):
        pytest.skip("a CPU computes in neither")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        pytest.skip("this GPU has no bfloat16")
    made = {"vit": lambda: tiny_backbone, "shapes": lambda: clip.load("shapes"), "resnet": resnet}
    backbone = made[name]()
    torch.manual_seed(0)
    images = torch.randn(4, 3, backbone.image_size, backbone.image_size)
    expected = features(backbone, "fp32", images, torch.device("cpu"))
    if precision == "fp16":
        backbone = backbone.half()
    found = features(backbone.to(device), precision, images, device)
    for one, other in zip(found, expected, strict=True):
        assert difference(one, other) <= TOLERANCE[precision]


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("classes", [5, 300])
def test_mask_and_its_gradients(classes, batch, device):
    """RAda's fused attention over classes, in chunks that other devices cut elsewhere."""
    torch.manual_seed(0)
    head = RationalHead(64)
    for parameter in head.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    image, text = torch.randn(batch, 64), torch.randn(classes, 64)
    image, text = (rows / rows.norm(dim=-1, keepdim=True) for rows in (image, text))
    # The same head moves from the one to the other.
    found = []
    for where in ("cpu", device):
        head = head.to(where)
        out = head(image.to(where), text.to(where), torch.tensor(100.0, device=where))
        head.zero_grad()
        (out.logits.square().mean() + out.penalty).backward()
        gradients = [p.grad.flatten().cpu() for p in head.parameters()]
        found.append((out.logits, torch.cat(gradients)))
    for one, other in zip(*reversed(found), strict=True):
        assert difference(one, other) <= TOLERANCE["fp32"]


def large_loss(forward_loss, image, label):
    out = forward_loss(image, label)
    return replace(out, loss=1e6 * out.loss)


def test_a_step_that_overflows_is_skipped_and_training_goes_on(runs, device, monkeypatch):
    trainer = build_trainer(runs.of_method("RAda", *SMALL, "TRAINER.RADA.PREC", "amp"))
    # On a CPU the run itself has none, but the scaler's own logic is the same there.
    trainer.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**127)
    trainer.set_model_mode("train")
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 100
    batch = next(iter(trainer.train_loader_x))

    before = {name: p.clone() for name, p in trainable_state(trainer.model).items()}
    with monkeypatch.context() as patch:
        # Finite itself, and infinite in single precision times 2^127.
        patch.setattr(trainer, "forward_loss", partial(large_loss, trainer.forward_loss))
        trainer.forward_backward(batch)
    after = trainable_state(trainer.model)
    assert all(torch.equal(after[name], p) for name, p in before.items())
    assert trainer.scaler.get_scale() == 2.0**126

    trainer.scaler.update(1024.0)  # it would take many steps to get there by halves
    trainer.forward_backward(batch)
    after = trainable_state(trainer.model)
    assert any(not torch.equal(after[name], p) for name, p in before.items())
    assert all(p.isfinite().all() for p in after.values())
