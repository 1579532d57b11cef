"""LightRA in the form of its release: both attentions fused, prefixes copied for every sample.

Notation as in ``towers``; H heads, Dh head width, N learned keys a head, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scripts.benchmarks.release_forms.step import ReleaseStep, tokens_of
from scripts.benchmarks.release_forms.towers import (
    Block,
    ReleasedCLIP,
    TextTower,
    VisionTower,
    cosine_gap,
    unit,
)


class PrefixBlock(Block):
    """A block whose queries also attend to N learned keys and values; both sums are projected."""

    prefix: tuple[Tensor, Tensor] | None = None  # keys and values, (H, N, Dh) each

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """See :meth:`Block.attend`; the prefix has no mask."""
        length, batch, width = x.shape
        projected = F.linear(x, self.attn.in_proj_weight, self.attn.in_proj_bias)  # (L, B, 3 W)
        q, k, v = (
            t.reshape(length, batch, self.attn.num_heads, -1).permute(1, 2, 0, 3)  # (B, H, L, Dh)
            for t in projected.chunk(3, -1)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        if self.prefix is not None:
            keys, values = (t.expand(batch, -1, -1, -1) for t in self.prefix)  # (B, H, N, Dh)
            out = out + F.scaled_dot_product_attention(q, keys, values)
        out = out.permute(2, 0, 1, 3).reshape(length * batch, width)
        return self.attn.out_proj(out).view(length, batch, width)


@contextmanager
def prefixed(tower: VisionTower | TextTower, learned: dict[str, Tensor]) -> Iterator[None]:
    """Let a tower use its prefixes inside the ``with``; outside it is the frozen one."""
    start = "backbone.model.visual." if isinstance(tower, VisionTower) else "backbone.model."
    blocks: Any = tower.transformer.resblocks
    for number, block in enumerate(blocks):
        at = f"{start}transformer.resblocks.{number}.attn.residual"
        block.prefix = (learned[f"{at}.key"], learned[f"{at}.value"])
    try:
        yield
    finally:
        for block in blocks:
            block.prefix = None


class LightRA(ReleaseStep):
    """Cross entropy of mixed logits, and the distances to the frozen features.

    A frozen image pass in every step; the frozen text features are kept. One prompt a class.
    """

    block = PrefixBlock

    def prepare(self, trainer: Any) -> None:
        """Encode all prompts by the frozen model."""
        self.tokens = tokens_of(trainer.model.bank.texts, self.clip.text)  # (K, 77)
        self.frozen_text = unit(self.clip.text.encode(self.tokens))  # (K, D)

    def loss(self) -> Tensor:
        """See :meth:`ReleaseStep.loss`."""
        visual, text, options = self.clip.visual, self.clip.text, self.options
        with torch.no_grad():
            f0 = unit(visual(self.image))
        with prefixed(visual, self.learned), prefixed(text, self.learned):
            f = unit(visual(self.image))  # (B, D)
            h = unit(text(text.token_embedding(self.tokens), self.tokens.argmax(-1)))  # (K, D)
        c, h0 = options.COS_WEIGHT, self.frozen_text
        mixed = c * self.clip.logits(f, h) + self.clip.logits(f0, h) + self.clip.logits(f, h0)
        ce = F.cross_entropy(mixed / (c + 2), self.label)
        return ce + options.LOSS_WEIGHT * (cosine_gap(h, h0) + cosine_gap(f, f0))


class LightRAText:
    """Class weights for evaluation, (K, D): the mean over each class's prompts, 77 tokens each."""

    def __init__(self, trainer: Any, batch: dict[str, Any]) -> None:
        model = trainer.model
        self.text = ReleasedCLIP(model.backbone, PrefixBlock).text
        self.learned = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        self.tokens = tokens_of(model.bank.texts, self.text)  # (K * P, 77)
        self.classes = model.bank.num_classes

    def __call__(self) -> Tensor:
        """Encode all prompts, as they come."""
        with prefixed(self.text, self.learned):
            features = unit(self.text.encode(self.tokens))  # (K * P, D)
        return features.unflatten(0, (self.classes, -1)).mean(1)
