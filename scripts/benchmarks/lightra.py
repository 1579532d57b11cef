"""LightRA's fast paths: a training step, and the encoding of many prompts."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip import Backbone, adapters_disabled, attach_residual_attention, freeze_except
from clip.backbones import OPENAI_INPUT
from scripts.benchmarks.tools import Case, median_seconds, peak_mib
from trainers.lightra import LightRACLIP, lightra_loss

CLASSES, BATCH = 200, 4
WORDS = {"forty": 33, "ten": 3}  # added to the prompt, so that it has that many tokens
CPU = torch.device("cpu")


class PlainAttention(nn.Module):
    """LightRA as printed: prefix copied for every sample, attention as explicit matrix products."""

    def __init__(self, host: nn.MultiheadAttention) -> None:
        super().__init__()
        self.host: Any = host

    def forward(
        self, x: Tensor, *_: Tensor, attn_mask: Tensor | None = None, **__: object
    ) -> tuple[Tensor, None]:
        """(B, L, W) -> (B, L, W)."""
        host = self.host
        batch, length, width = x.shape
        qkv = F.linear(x, host.in_proj_weight, host.in_proj_bias)
        q, k, v = (
            t.view(batch, length, host.num_heads, -1).transpose(1, 2)  # (B, H, L, Dh)
            for t in qkv.chunk(3, -1)
        )
        scale = 1 / math.sqrt(host.head_dim)
        scores = q @ k.transpose(-1, -2) * scale  # (B, H, L, L)
        if attn_mask is not None:
            scores = scores + attn_mask
        out = scores.softmax(-1) @ v  # (B, H, L, Dh)
        if host.residual is not None and host.residual.enabled:
            key, value = (
                t.expand(batch, -1, -1, -1).clone()
                for t in (host.residual.key, host.residual.value)
            )
            out = out + (q @ key.transpose(-1, -2) * scale).softmax(-1) @ value
        return host.out_proj(out.transpose(1, 2).reshape(batch, length, width)), None


def random_backbone() -> Backbone:
    """A model of ViT-B/16's shape."""
    return Backbone(open_clip.create_model("ViT-B-16-quickgelu"), "random", OPENAI_INPUT)


def build(case: str, plain: bool) -> LightRACLIP:
    """A random model with residual attention and the case's prompts."""
    torch.manual_seed(0)
    backbone = random_backbone().requires_grad_(False).eval()
    attach_residual_attention(backbone)
    freeze_except(backbone)
    if plain:
        for transformer in (backbone.vision_transformer, backbone.text_transformer):
            for block in transformer.resblocks:
                block.attn = PlainAttention(block.attn)
    if case == "evaluation":
        prompts = [["a photo of a cat" + " cat" * (32 * p // 9) + "." for p in range(10)]] * CLASSES
    else:
        prompts = [["a photo of a cat" + " cat" * WORDS[case]]] * CLASSES
    return LightRACLIP(backbone, prompts, renormalize=False)


def training_step(model: LightRACLIP, plain: bool) -> Callable[[], None]:
    """One step; the frozen text features are given to both, as both compute them once."""
    side = model.backbone.image_size
    images, labels = torch.randn(BATCH, 3, side, side), torch.arange(BATCH)
    frozen = F.normalize(torch.randn(CLASSES, model.backbone.embed_dim), dim=-1)  # (K, D)
    index = torch.arange(CLASSES)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)

    def plain_text() -> Tensor:
        return F.normalize(model.backbone.model.encode_text(model.bank.tokens), dim=-1)

    def step() -> None:
        with torch.no_grad(), adapters_disabled(model.backbone):
            f0 = model.image_features(images)
        f = model.image_features(images)
        h = plain_text() if plain else model.bank.encode(model.backbone, index)
        loss = lightra_loss(f, h, f0, frozen, labels, model.scale, 3.5, 9.0).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def evaluation(model: LightRACLIP, plain: bool) -> Callable[[], None]:
    """Features of all prompts; the plain way takes them as they come, 77 tokens each."""

    @torch.no_grad()
    def encode() -> None:
        if plain:
            for tokens in model.bank.tokens.split(100):
                F.normalize(model.backbone.model.encode_text(tokens), dim=-1)
        else:
            model.bank.encode_all(model.backbone)

    return encode


def measure(case: str, plain: bool, steps: int) -> dict[str, float]:
    """Median seconds and peak memory in MiB of this process."""
    model = build(case, plain)
    run = (evaluation if case == "evaluation" else training_step)(model, plain)
    if case == "evaluation":
        steps = 1  # so long that first-time costs do not show
    else:
        run()  # warm-up
    seconds = median_seconds(run, steps, CPU)
    return {"seconds": seconds, "mib": peak_mib(CPU)}


CASES = {
    name: Case(title, partial(measure, name))
    for name, title in {
        "forty": f"LightRA training step, {CLASSES} classes, batch {BATCH}, 40-token prompts",
        "ten": f"LightRA training step, {CLASSES} classes, batch {BATCH}, 10-token prompts",
        "evaluation": f"Encoding {CLASSES} classes x 10 prompts of 8 to 40 tokens",
    }.items()
}
