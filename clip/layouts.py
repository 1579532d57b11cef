"""How the tokens of a batch lie in a transformer, and which of them its last block is asked for.

A tower's blocks get one of these layouts in place of the attention mask (see
:mod:`clip.transformer`).

Notation: B images, N texts, L token positions, W transformer width, H heads, Dh = W / H.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Padding tokens for which it pays to attend to a group of texts by itself.
WASTE = 64


class Ends(NamedTuple):
    """What the host knows of N texts, so that it need not ask the device.

    Attributes:
        of: Position of each text's end token.
        shared: How many tokens all texts begin with, prompts in their places included; 0 if they
            must not be packed.
    """

    of: tuple[int, ...]
    shared: int


class Layout(ABC):
    """What attention has to know about the tokens x that go through a tower."""

    @abstractmethod
    def pooled(self, x: Tensor) -> Tensor:
        """The tokens that the tower reads its features at, all that its last block computes."""

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """Attention of the queries of :meth:`pooled` or of all tokens, in the form of q."""


class Whole(Layout):
    """Images, or sequences of which all tokens are wanted: x (B, L, W).

    Args:
        mask: To add to the scores, (L, L), (B * H, L, L) as PyTorch has it, or None.
    """

    def __init__(self, mask: Tensor | None = None) -> None:
        self.mask = mask

    def pooled(self, x: Tensor) -> Tensor:
        """The class token: (B, L, W) -> (B, 1, W)."""
        return x[:, :1]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """See :meth:`Layout.attend`; without a mask the queries may be fewer than the keys."""
        mask = self.mask
        if mask is not None:
            mask = mask.to(q.dtype)
            mask = mask if mask.ndim == 2 else mask.unflatten(0, (-1, heads))  # (B, H, L, L)
        return _attention(q, k, v, heads, mask)


class Padded(Layout):
    """Texts of equal length in a causal tower: x (N, L, W).

    Args:
        end: Positions of their end tokens, (N,).
        mask: To add to the scores, (L, L), or (N, L, L) alike for all heads.
    """

    def __init__(self, end: Tensor, mask: Tensor) -> None:
        self.end, self.mask = end, mask

    def pooled(self, x: Tensor) -> Tensor:
        """The end tokens: (N, L, W) -> (N, 1, W)."""
        return x[torch.arange(x.shape[0], device=x.device), self.end][:, None]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """See :meth:`Layout.attend`."""
        mask = self.mask.to(q.dtype).expand(q.shape[0], -1, -1)  # (N, L, L)
        if q.shape[1] < k.shape[1]:
            mask = self.pooled(mask)  # (N, 1, L)
        return _attention(q, k, v, heads, mask[:, None])


class Packed(Layout):
    """Texts in a causal tower, what they share once and without padding: x (1, T, W).

    Since a token sees only those before it, the tokens that all texts begin with ("start, a photo
    of a") have the same states in all of them. They come first, once; behind them stand the other
    tokens of one text after the other, which attend to the shared ones' keys and values and to
    their own text's. All else that a block does goes token by token. Attention needs texts of equal
    length, so that texts of similar length form a group, padded by a few tokens.

    Each of the ``texts`` keeps its end token for itself; ``device`` is the tokens'.
    """

    def __init__(self, texts: Ends, device: torch.device) -> None:
        ends, shared = texts
        self.length = max(ends) + 1  # L
        self.shared = shared = min(shared, min(ends))
        order = sorted(range(len(ends)), key=ends.__getitem__)
        self.groups = _groups([ends[i] + 1 - shared for i in order])  # (texts, tokens of each)
        numbers = torch.tensor(order)
        last = torch.tensor([ends[i] - shared for i in order])  # place of the end, (N,)
        index, place, start, behind = [], [], 0, shared
        for count, length in self.groups:
            rows = numbers[start : start + count, None]
            index.append((rows * self.length + torch.arange(shared, shared + length)).flatten())
            place.append(behind + torch.arange(count) * length + last[start : start + count])
            start, behind = start + count, behind + count * length
        # One copy to the device, not four.
        moved = torch.cat([*index, *place, numbers.argsort(), last]).to(device, non_blocking=True)
        sizes = [behind - shared, *[len(order)] * 3]
        self._index, self._place, self._back, last = moved.split(sizes)
        self._masks: list[Tensor] = []
        self._end_masks: list[Tensor] = []
        for (_, length), ends_of_group in zip(
            self.groups, last.split([count for count, _ in self.groups]), strict=True
        ):
            seen = torch.ones(length, shared + length, dtype=torch.bool, device=device)
            self._masks.append(seen.tril(shared))  # (m, s + m)
            self._end_masks.append(self._masks[-1][ends_of_group][:, None, None])  # (n, 1, 1, s+m)

    def pack(self, x: Tensor) -> Tensor:
        """Tokens of texts in their given order, (N, L, W) -> (1, T, W)."""
        return torch.cat([x[0, : self.shared], x.flatten(0, 1).index_select(0, self._index)])[None]

    def unpack(self, x: Tensor) -> Tensor:
        """What a tower makes of the end tokens, back in the given order: (1, N, W) -> (N, W)."""
        return x[0].index_select(0, self._back)

    def pooled(self, x: Tensor) -> Tensor:
        """The end tokens, group by group: (1, T, W) -> (1, N, W)."""
        return x.index_select(1, self._place)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """See :meth:`Layout.attend`."""
        at_ends = q.shape[1] < k.shape[1]
        of_groups = [count * length for count, length in self.groups]
        keys, values = (x[0].split([self.shared, *of_groups]) for x in (k, v))
        prefix = keys[0][None], values[0][None]  # (1, s, W)
        if at_ends:
            queries: Sequence[Tensor] = q[0].split([count for count, _ in self.groups])
            out, masks = [], self._end_masks
        else:
            first, *queries = q[0].split([self.shared, *of_groups])
            out, masks = (
                [_attention(first[None], *prefix, heads, None, causal=True)[0]],
                self._masks,
            )
        for (count, _), own, mask, *both in zip(
            self.groups, queries, masks, keys[1:], values[1:], strict=True
        ):
            # (n, s + m, W): the shared tokens' keys and values before each text's own.
            own_k, own_v = (
                torch.cat([common.expand(count, -1, -1), x.unflatten(0, (count, -1))], 1)
                for common, x in zip(prefix, both, strict=True)
            )
            attended = _attention(own.unflatten(0, (count, -1)), own_k, own_v, heads, mask)
            out.append(attended.flatten(0, 1))
        return torch.cat(out)[None]


@lru_cache(maxsize=4)
def packed(ends: Ends, device: torch.device) -> Packed:
    """The layout of the texts; kept, since most methods encode the same ones in every step."""
    with torch.inference_mode(False):  # what evaluation makes there could not serve training
        return Packed(ends, device)


def _groups(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Divide ascending lengths into runs: (number of texts, longest of them) each."""
    groups: list[tuple[int, int]] = []
    count = total = 0
    for length, following in zip(lengths, [*lengths[1:], None], strict=True):
        count, total = count + 1, total + length
        if following is None or (count + 1) * following - total - following > WASTE:
            groups.append((count, length))
            count = total = 0
    return groups


def _attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None, *, causal: bool = False
) -> Tensor:
    """PyTorch's fused attention of (N, l, W) to (N, L, W): (N, l, W)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (N, H, l, Dh)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return out.transpose(1, 2).flatten(2)
