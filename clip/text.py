"""Encoding of prompts: exact truncation, and the bank of all prompts of all classes.

Notation: P prompts of K classes, T token positions the tokenizer fills (77), L of them in use,
W transformer width, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from clip.adapters import adapter_switches
from clip.layouts import Ends, Padded, packed
from clip.transformer import is_open

# Tokens of a batch without gradients: bounds memory, whatever the number of prompts.
BATCH_TOKENS = 8_192
# Tokens of a training step whose activations are kept, 0.3 MB each in ViT-B/16's text tower in
# single precision. Those of further texts are computed again in the backward pass.
KEPT_TOKENS = 16_384


def text_tower(model: Any) -> Any:
    """The module with embeddings, transformer and projection of an open_clip model's text side."""
    return getattr(model, "text", model)


def _pool_type(model: Any) -> str | None:
    """Where the text tower reads its feature; open_clip stores it in either of two places."""
    return getattr(model, "text_pool_type", None) or getattr(text_tower(model), "pool_type", None)


def pools_at_end_of_text(model: Any) -> bool:
    """Whether tokens behind the end-of-text token can be cut without changing anything.

    True for causal towers that read their feature at the end-of-text token, CLIP's form; false for
    bidirectional towers and for those that pool at the last position or over all of them.
    """
    tower = text_tower(model)
    return (
        getattr(tower, "attn_mask", None) is not None
        and _pool_type(model) in ("argmax", "eos")
        and getattr(tower, "cls_emb", None) is None
        and not getattr(tower, "use_pad_mask", False)
    )


def end_of_text(model: Any, tokens: Tensor) -> Tensor:
    """Position of each sequence's end-of-text token: (N, T) -> (N,)."""
    if _pool_type(model) == "eos":
        eos = getattr(model, "text_eos_id", None) or text_tower(model).eos_id
        return tokens.eq(eos).int().argmax(-1)  # the first maximum, where several ends follow
    return tokens.argmax(-1)  # CLIP's vocabulary gives the end-of-text token the highest number


def encode_embeddings(
    model: Any, embeddings: Tensor, end: Tensor, ends: Ends | None = None
) -> Tensor:
    """Encode embeddings (N, L, W) that have no positions yet: features, not normalised, (N, D).

    L may be any length that holds all end-of-text tokens, whose positions are ``end`` (N,), if the
    tower :func:`pools_at_end_of_text`. With ``ends`` what the texts share is encoded once.
    """
    tower = text_tower(model)
    length = embeddings.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    x = embeddings.to(dtype) + tower.positional_embedding[:length].to(dtype)
    mask, end = tower.attn_mask[:length, :length], end.to(x.device, non_blocking=True)
    if not is_open(tower.transformer):
        x = tower.transformer(x, attn_mask=mask)[torch.arange(len(x), device=x.device), end]
    elif ends is not None and ends.shared:
        layout = packed(ends, x.device)
        x = layout.unpack(tower.transformer(layout.pack(x), attn_mask=layout))
    else:
        x = tower.transformer(x, attn_mask=Padded(end, mask))[:, 0]
    # LayerNorm works token by token, so only the pooled token needs it.
    x = tower.ln_final(x)
    projection = tower.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def encode_tokens(model: Any, tokens: Tensor, ends: Ends | None = None) -> Tensor:
    """Features of texts (N, T), cut exactly behind the longest one's end: not normalised, (N, D).

    ``ends``, if the caller knows them, save the device synchronisation of looking them up.
    """
    if not pools_at_end_of_text(model):
        return model.encode_text(tokens)
    end = end_of_text(model, tokens)
    length = (int(end.max()) if ends is None else max(ends.of)) + 1
    embeddings = text_tower(model).token_embedding(tokens[:, :length])
    return encode_embeddings(model, embeddings, end, ends)


def at_least_single(features: Tensor) -> Tensor:
    """Features in single precision, unless they are in double already."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def unit_norm(features: Tensor) -> Tensor:
    """Scale rows to unit norm, in single precision at least: (N, D) -> (N, D).

    Half precision would round the small distances between adapted and frozen features away.
    """
    return F.normalize(at_least_single(features), dim=-1)


def take_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table on any device, by numbers on the host: (N, ...), (n,) -> (n, ...)."""
    # A few numbers are copied without waiting; to index by them would wait for the device.
    return table.index_select(0, index.to(table.device, non_blocking=True))


def encode_in_parts(
    encode: Callable[[Tensor], Tensor], index: Tensor, lengths: Sequence[int], kept: int
) -> Tensor:
    """``encode(index)``, (n, D), with the activations of at most ``kept`` tokens in memory.

    If texts ``index`` (n,) of so many tokens are more, the first ones are encoded part by part
    without keeping anything, and again in the backward pass. The last parts are kept: their
    backward pass comes first and makes room. Without gradients parts have ``BATCH_TOKENS``. Both
    numbers are kept to within a text's length.
    """
    gradients = torch.is_grad_enabled()
    limit = kept if gradients else BATCH_TOKENS
    behind = torch.tensor(lengths).cumsum(0)  # tokens so far, (n,)
    if not 0 < limit < behind[-1]:
        return encode(index)
    size = max(1, kept // 4) if gradients else limit  # a part in the making, and three to keep
    part = torch.div(behind - 1, size, rounding_mode="floor")  # of each text, (n,)
    counts = torch.unique_consecutive(part, return_counts=True)[1].tolist()
    again = len(counts) - 3 if gradients else 0
    return torch.cat(
        [
            # Nothing in the towers is drawn at random.
            checkpoint(encode, texts, use_reentrant=False, preserve_rng_state=False)
            if number < again
            else encode(texts)
            for number, texts in enumerate(index.split(counts))
        ]
    )


class TextBank(nn.Module):
    """All prompts of all classes, tokenised once, and their features.

    Args:
        prompts: For each of the K classes its prompts, at least one.
        tokenize: Texts -> (N, T) token numbers, as :meth:`clip.backbones.Backbone.tokenize`.
        end_of_text: (N, T) -> (N,), or None if sequences must not be cut.

    Attributes:
        texts: The P prompts, for messages.
        shared: How many tokens all prompts begin with.
        kept_tokens: See :data:`KEPT_TOKENS`; 0 keeps all activations, however many.

    Raises:
        ValueError: There is no class, or a class has no prompt.
    """

    tokens: Tensor
    owner: Tensor
    alike = "prompts have the same tokens"  # what `twins` have in common, in words

    def __init__(
        self,
        prompts: Sequence[Sequence[str]],
        tokenize: Callable[[list[str]], Tensor],
        end_of_text: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        empty = [k for k, texts in enumerate(prompts) if not texts]
        if empty or not prompts:
            raise ValueError(f"Every class needs a prompt; none for the classes numbered {empty}")
        counts = torch.tensor([len(texts) for texts in prompts])
        self.texts = [text for texts in prompts for text in texts]
        tokens = tokenize(self.texts)
        lengths = (
            end_of_text(tokens) + 1 if end_of_text else torch.full((len(tokens),), tokens.shape[1])
        )
        self.num_classes = len(prompts)
        self.kept_tokens = KEPT_TOKENS
        # Without an end-of-text token to be pooled, nothing is known of what may be left out.
        self.shared = int((tokens == tokens[0]).all(0).cumprod(0).sum()) if end_of_text else None
        # Lengths stay on the host, so that cutting never waits for the device.
        self.lengths: list[int] = lengths.tolist()
        self.counts = counts
        self.starts = counts.cumsum(0) - counts
        owner = torch.repeat_interleave(torch.arange(self.num_classes), counts)
        # Prompts belong to the classes of a run, not to what was trained: kept out of state dicts.
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("owner", owner, persistent=False)
        self._cache: dict[object, Tensor] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def twins(self) -> list[list[int]]:
        """Groups of classes whose prompts have the same tokens: nothing tells them apart."""
        rows = [row.tobytes() for row in self.tokens.cpu().numpy()]
        groups: dict[frozenset[bytes], list[int]] = {}
        for k, (start, count) in enumerate(
            zip(self.starts.tolist(), self.counts.tolist(), strict=True)
        ):
            groups.setdefault(frozenset(rows[start : start + count]), []).append(k)
        return [group for group in groups.values() if len(group) > 1]

    def sample(self, generator: torch.Generator, together: bool = False) -> Tensor:
        """Numbers of one prompt per class, drawn uniformly: (K,).

        With ``together`` there is one draw for all classes, so that those with equally many prompts
        get the prompt of the same place in their lists.
        """
        draw = torch.rand(1 if together else self.num_classes, generator=generator)
        # The clamp: in single precision the product may round up to the number of prompts.
        return self.starts + (draw * self.counts).long().clamp(max=self.counts - 1)

    def cut_tokens(self, index: Tensor) -> Tensor:
        """Tokens of the prompts numbered ``index`` (n,), up to the longest one's end: (n, L)."""
        length = max(self.lengths[i] for i in index.tolist())
        return take_rows(self.tokens, index)[:, :length]

    def ends(self, index: Tensor) -> Ends | None:
        """What is known of the prompts numbered ``index`` (n,); None if nothing may be cut."""
        if self.shared is None:
            return None
        return Ends(tuple(self.lengths[i] - 1 for i in index.tolist()), self.shared)

    def encode(self, encoder: Any, index: Tensor, unit: bool = True) -> Tensor:
        """Features (n, D) of the prompts numbered ``index`` (n,).

        With gradients, activations of more than ``kept_tokens`` tokens are not kept but computed
        again in the backward pass, part by part: memory is bounded, the gradient is the same.

        ``encoder`` is a :class:`clip.Backbone`, or what wraps one and has its ``encode_text``.
        """
        lengths = [self.lengths[i] for i in index.tolist()]
        part = partial(self._encode_part, encoder)
        features = encode_in_parts(part, index, lengths, self.kept_tokens)
        return unit_norm(features) if unit else features

    def _encode_part(self, encoder: Any, index: Tensor) -> Tensor:
        """Features of some prompts in one batch, not normalised: index (n,) -> (n, D)."""
        return encoder.encode_text(self.cut_tokens(index), self.ends(index))

    @torch.no_grad()
    def encode_all(self, encoder: Any, unit: bool = True) -> Tensor:
        """Features of all prompts, (P, D), in batches of similar length; see :meth:`encode`."""
        order = sorted(range(len(self)), key=self.lengths.__getitem__)
        features: list[Tensor] = []
        batch: list[int] = []
        for i in order:  # ascending, so the newcomer is the longest of its batch
            if batch and (len(batch) + 1) * self.lengths[i] > BATCH_TOKENS:
                features.append(self.encode(encoder, torch.tensor(batch), unit))
                batch = []
            batch.append(i)
        features.append(self.encode(encoder, torch.tensor(batch), unit))
        sorted_features = torch.cat(features)
        out = torch.empty_like(sorted_features)
        out[torch.tensor(order).to(out.device, non_blocking=True)] = sorted_features
        return out

    def class_means(self, features: Tensor) -> Tensor:
        """Mean of each class's prompt features, not normalised again: (P, D) -> (K, D)."""
        sums = features.new_zeros(self.num_classes, features.shape[1])  # (K, D)
        sums.index_add_(0, self.owner, features)
        return sums / self.counts.to(features, non_blocking=True)[:, None]

    def class_features(self, encoder: Any, unit: bool = True) -> Tensor:
        """Class weights for evaluation: means over each class's prompt features, (K, D).

        Those have unit norm before the mean, unless ``unit`` is False.

        Kept until :meth:`drop_cache` (called by the engine after every optimiser step and load) or
        ``train(True)``, separately for every state of the adapters' switches. Never in training.
        """
        if self.training:
            return self.class_means(self.encode_all(encoder, unit))
        device = self.tokens.device.type
        autocast = torch.is_autocast_enabled(device)
        # Features differ between precisions too: under autocast they are not those outside of it.
        dtype = torch.get_autocast_dtype(device) if autocast else None
        key = adapter_switches(encoder), dtype, unit
        if key not in self._cache:
            self._cache[key] = self.class_means(self.encode_all(encoder, unit))
        return self._cache[key]

    def drop_cache(self) -> None:
        """Forget the class weights: the weights they were made with have changed."""
        self._cache.clear()

    def train(self, mode: bool = True) -> TextBank:
        """Switch the mode; going to training drops the cache."""
        if mode:
            self.drop_cache()
        return super().train(mode)
