"""The bare encoder passes that a method's step needs, with no method around them.

Frozen towers on the tokens that there are: texts take as many as they have, of all lengths in one
pass, attention is fused, matrix products are over all tokens at once. Where a step trains something
inside a tower, gradients go through all blocks to their input, and not to weights.

Notation as in ``towers``; T is the number of tokens of all texts together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from scripts.benchmarks.release_forms.step import tokens_of
from scripts.benchmarks.release_forms.towers import (
    HEAD_WIDTH,
    ReleasedCLIP,
    TextTower,
    VisionTower,
)

TEXTS_AT_ONCE = 200  # of those without gradient, as our own evaluation takes them


class Passes(NamedTuple):
    """How often a step runs each tower."""

    frozen_image: int = 0  # without gradient
    trained_image: int = 0  # with gradient to the input
    trained_text: int = 0
    frozen_text: int = 0


PASSES = {
    "LightRA": Passes(frozen_image=1, trained_image=1, trained_text=1),
    "LightRA-text": Passes(frozen_text=1),
    "RAda": Passes(frozen_image=1),
    "CoOp": Passes(frozen_image=1, trained_text=1),
    "CoCoOp": Passes(frozen_image=1, trained_text=1),  # times B, see bare_passes
    "KgCoOp": Passes(frozen_image=1, trained_text=1),
    "MaPLe": Passes(trained_image=1, trained_text=1),
    "PromptSRC": Passes(frozen_image=1, trained_image=1, trained_text=1),
    "CoPrompt": Passes(frozen_image=1, trained_image=1, trained_text=1),
    "HPT": Passes(frozen_image=1, trained_image=1, trained_text=1),
    "TPT": Passes(frozen_image=1, trained_text=1, frozen_text=1),
}


def bare_passes(label: str, trainer: Any, image: Tensor) -> Callable[[], None]:
    """Return what runs the passes of a step of the method named ``label``.

    Args:
        label: Key of ``PASSES``.
        trainer: Ours, for its towers and texts.
        image: The step's pictures, (B, 3, S, S).
    """
    clip, passes = ReleasedCLIP(trainer.model.backbone), PASSES[label]
    prompts = getattr(trainer.model.backbone, "vision_prompts", None)
    more = prompts.n_ctx if prompts is not None else 0  # prompts are tokens too
    # HPT draws one text of each class's; its own bank holds the descriptions.
    bank = getattr(trainer.model, "structured", trainer.model.bank)
    each = len(bank) // bank.num_classes if hasattr(trainer.model, "structured") else 1
    tokens = tokens_of(bank.texts[::each], clip.text)
    if label == "CoCoOp":
        tokens = tokens.repeat(len(image), 1)  # every image has contexts of its own

    def run() -> None:
        with torch.no_grad():
            for _ in range(passes.frozen_image):
                image_pass(clip.visual, image)
            for _ in range(passes.frozen_text):
                for part in tokens.split(TEXTS_AT_ONCE):
                    text_pass(clip.text, part)
        for _ in range(passes.trained_image):
            image_pass(clip.visual, image, more, trained=True).sum().backward()
        for _ in range(passes.trained_text):
            text_pass(clip.text, tokens, trained=True).sum().backward()

    return run


def image_pass(
    visual: VisionTower, image: Tensor, more: int = 0, *, trained: bool = False
) -> Tensor:
    """Features (B, D) of pictures, with ``more`` tokens behind the patches."""
    batch = len(image)
    patches = visual.conv1(image).flatten(2).transpose(1, 2)  # (B, patches, W)
    x = torch.cat([visual.class_embedding.expand(batch, 1, -1), patches], 1)
    x = F.pad(x + visual.positional_embedding, (0, 0, 0, more))  # (B, L, W)
    x = visual.ln_pre(x).requires_grad_(trained)

    def attend(qkv: Tensor) -> Tensor:
        q, k, v = by_head(qkv)  # (B, H, L, Dh)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    for block in visual.transformer.resblocks:
        x = run_block(block, x, attend)
    return visual.ln_post(x[:, 0]) @ visual.proj


def text_pass(text: TextTower, tokens: Tensor, *, trained: bool = False) -> Tensor:
    """Features (N, D) of texts (N, 77), in the order of their lengths."""
    lengths, order = (tokens.argmax(-1) + 1).sort()
    groups = sorted(Counter(lengths.tolist()).items())  # (length, number of texts)
    rows = [row[:length] for row, length in zip(tokens[order], lengths.tolist(), strict=True)]
    places = torch.cat([text.positional_embedding[: len(row)] for row in rows])  # (T, W)
    x = (text.token_embedding(torch.cat(rows)) + places).requires_grad_(trained)  # (T, W)

    def attend(qkv: Tensor) -> Tensor:
        # Only here do texts of one length stand together; all products are over all T tokens.
        parts = qkv.split([length * count for length, count in groups])
        mixed = []
        for part, (_, count) in zip(parts, groups, strict=True):
            q, k, v = by_head(part.unflatten(0, (count, -1)))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            mixed.append(out.transpose(1, 2).flatten(2).flatten(0, 1))
        return torch.cat(mixed)

    for block in text.transformer.resblocks:
        x = run_block(block, x, attend)
    return text.ln_final(x[lengths.cumsum(0) - 1]) @ text.text_projection


def run_block(block: Any, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
    """A residual block on tokens (..., W); ``attend`` maps (..., 3 W) to (..., W)."""
    attention = block.attn
    qkv = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    x = x + attention.out_proj(attend(qkv))
    return x + block.mlp(block.ln_2(x))


def by_head(qkv: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values (N, H, L, Dh) of (N, L, 3 W)."""
    return tuple(t.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for t in qkv.chunk(3, -1))
