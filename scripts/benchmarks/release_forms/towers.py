"""CLIP's towers in the form of OpenAI's package, which the releases are built on.

Tokens lie sequence first, (L, N, W), attention is PyTorch's module with an additive mask, texts
always have all 77 positions, and the last block computes all tokens too.

Notation: B images, N texts, L tokens, W transformer width, D embedding width, n prompts in a set.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_WIDTH = 64  # of all of OpenAI's models
CHUNK = 100  # texts in one pass where nothing is learned


def unit(features: Tensor) -> Tensor:
    """Rows divided by their norm, as releases write it: (N, D) -> (N, D)."""
    return features / features.norm(dim=-1, keepdim=True)


class QuickGELU(nn.Module):
    """OpenAI's activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A residual block; a subclass may attend in another way."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // HEAD_WIDTH)
        self.ln_1 = nn.LayerNorm(width)
        layers = OrderedDict[str, nn.Module](
            c_fc=nn.Linear(width, 4 * width), gelu=QuickGELU(), c_proj=nn.Linear(4 * width, width)
        )
        self.mlp = nn.Sequential(layers)
        self.ln_2 = nn.LayerNorm(width)

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(L, N, W) -> (L, N, W); the mask is added to the scores, (L, L) or (N * H, L, L)."""
        return self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(L, N, W) -> (L, N, W)."""
        x = x + self.attend(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """The stack of blocks."""

    def __init__(self, width: int, layers: int, block: type[Block]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(block(width) for _ in range(layers))

    def forward(
        self, x: Tensor, mask: Tensor | None = None, sets: Sequence[Tensor] = (), first: int = 0
    ) -> Tensor:
        """Run all blocks: (L, N, W) -> (L, N, W).

        Args:
            x: Tokens, the prompts of set 0 among them.
            mask: Added to the scores, (L, L).
            sets: Deep prompts, (n, W) each; set j overwrites its tokens before block j.
            first: Place of the first prompt, counted from the end if negative.
        """
        for index, block in enumerate(self.resblocks):
            if 0 < index < len(sets):
                x = overwrite(x, sets[index], first % len(x))
            x = block(x, mask)
        return x


def overwrite(x: Tensor, prompts: Tensor, first: int) -> Tensor:
    """Put prompts, (n, W) for all or (n, N, W), into (L, N, W) from place ``first`` on."""
    if prompts.ndim == 2:
        prompts = prompts[:, None].expand(-1, x.shape[1], -1)  # (n, N, W)
    return torch.cat([x[:first], prompts, x[first + len(prompts) :]])


class VisionTower(nn.Module):
    """The image encoder."""

    def __init__(self, state: Mapping[str, Tensor], block: type[Block] = Block) -> None:
        super().__init__()
        width, _, patch, _ = state["visual.conv1.weight"].shape
        with torch.device("meta"):  # no memory: the weights are assigned
            self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
            self.class_embedding = nn.Parameter(torch.empty(width))
            self.positional_embedding = nn.Parameter(
                torch.empty_like(state["visual.positional_embedding"], device="meta")
            )
            self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
            self.transformer = Transformer(width, _layers(state, "visual.transformer"), block)
            self.proj = nn.Parameter(torch.empty_like(state["visual.proj"], device="meta"))
        _assign(self, state, "visual.")

    def forward(self, image: Tensor, sets: Sequence[Tensor] = ()) -> Tensor:
        """Features, not normalised: (B, 3, S, S) -> (B, D).

        ``sets`` are prompts behind the patches, (n, W) each, those of set 0 before ``ln_pre``.
        """
        x = self.conv1(image).flatten(2).permute(0, 2, 1)  # (B, patches, W)
        zeros = x.new_zeros(len(x), 1, x.shape[-1])
        x = torch.cat([self.class_embedding + zeros, x], 1) + self.positional_embedding
        if len(sets):
            x = torch.cat([x, sets[0].expand(len(x), -1, -1)], 1)
        x = self.ln_pre(x).permute(1, 0, 2)  # (L, B, W)
        x = self.transformer(x, sets=sets, first=-len(sets[0]) if len(sets) else 0)
        return self.ln_post(x.permute(1, 0, 2)[:, 0]) @ self.proj


class TextTower(nn.Module):
    """The text encoder."""

    mask: Tensor

    def __init__(self, state: Mapping[str, Tensor], block: type[Block] = Block) -> None:
        super().__init__()
        places = state["positional_embedding"]  # (77, W)
        length, width = places.shape
        with torch.device("meta"):
            self.token_embedding = nn.Embedding(len(state["token_embedding.weight"]), width)
            self.positional_embedding = nn.Parameter(torch.empty(length, width))
            self.transformer = Transformer(width, _layers(state, "transformer"), block)
            self.ln_final = nn.LayerNorm(width)
            self.text_projection = nn.Parameter(
                torch.empty_like(state["text_projection"], device="meta")
            )
        _assign(self, state, "")
        mask = places.new_full((length, length), float("-inf")).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def pool(self, x: Tensor, end: Tensor) -> Tensor:
        """Features (N, D) of tokens (L, N, W) at the end tokens (N,)."""
        # OpenAI's package normalises all tokens and takes one of each text after that.
        x = self.ln_final(x.permute(1, 0, 2))  # (N, L, W)
        return x[torch.arange(len(x), device=x.device), end] @ self.text_projection

    def forward(self, embedded: Tensor, end: Tensor, sets: Sequence[Tensor] = ()) -> Tensor:
        """Features, not normalised, of embedded texts (N, 77, W): (N, D).

        Args:
            embedded: With the prompts of set 0 in it.
            end: Places of the end tokens, (N,).
            sets: Prompts from the first word on, (n, W) each.
        """
        x = (embedded + self.positional_embedding).permute(1, 0, 2)  # (77, N, W)
        return self.pool(self.transformer(x, self.mask, sets, first=1), end)

    @torch.no_grad()
    def encode(self, tokens: Tensor) -> Tensor:
        """Features of texts (N, 77) that nothing is learned in: not normalised, (N, D)."""
        return torch.cat([self(self.token_embedding(t), t.argmax(-1)) for t in tokens.split(CHUNK)])


class ReleasedCLIP:
    """Both towers, frozen, with the weights of a :class:`clip.Backbone`, which are shared."""

    def __init__(self, backbone: Any, block: type[Block] = Block) -> None:
        state = backbone.model.state_dict()
        self.visual, self.text = VisionTower(state, block), TextTower(state, block)
        self.scale = backbone.logit_scale.detach().exp()

    def logits(self, image: Tensor, text: Tensor) -> Tensor:
        """Logits s f h^T of unit-norm features (B, D) and (K, D): (B, K)."""
        return self.scale * image @ text.t()


def cosine_gap(a: Tensor, b: Tensor) -> Tensor:
    """1 - mean cosine of matching rows, (N, D) each: a scalar."""
    return 1 - F.cosine_similarity(a, b, dim=-1).mean()


def _layers(state: Mapping[str, Tensor], transformer: str) -> int:
    start = f"{transformer}.resblocks."
    return len({name[len(start) :].split(".")[0] for name in state if name.startswith(start)})


def _assign(module: nn.Module, state: Mapping[str, Tensor], prefix: str) -> None:
    # By the module's names: the backbone's state may hold adapters beside the frozen weights.
    own = {name: state[prefix + name] for name in module.state_dict()}
    module.load_state_dict(own, assign=True)
    module.requires_grad_(False)
