"""CoOp's context: learned words around the class name, for all classes, each class or each image.

Notation: N texts, K classes, L tokens, W transformer width, D embedding width, n context vectors.
A text is ``[start][context][name][.][end]``, or has the name in the middle or in front of the
context. The full stop stays at the end, unless the tokenizer merges it with the name's last
character (see :meth:`ContextPrompts.tokenize`). Only the context is learned (CoOp,
arXiv:2109.01134).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip.adapters import refuse_second
from clip.adapters.prompts import Phrase, TextPrompts, phrase_of, random_vectors
from clip.backbones import Backbone
from clip.layouts import Ends
from clip.text import TextBank, encode_embeddings, encode_in_parts, take_rows, text_tower

POSITIONS = ("end", "middle", "front")  # of the class name
PLACEHOLDER = "X"


class ContextPrompts(TextPrompts):
    """Learned vectors in place of n words of each text, which may stand on both sides of the name.

    Attributes:
        vectors: (1, n, W), or (K, n, W) if ``per_class``: every class has a context of its own.

    Args:
        phrase: The words in the context's places in all texts.
        table: The frozen token embeddings, (vocabulary, W).
        n_ctx: n.
        before: How many of the n stand before the class name.
        template: What texts must look like, with ``{}`` for the class name.
        random: How many contexts to learn from random vectors, one or K; 0 for one that starts
            from the words.
    """

    places: Tensor  # numbers of the words, (n,)

    def __init__(
        self,
        phrase: Phrase,
        table: Tensor,
        *,
        n_ctx: int,
        before: int,
        template: str,
        random: int = 0,
    ) -> None:
        super().__init__(phrase, table, n_ctx=n_ctx, depth=1)
        self.before, self.template, self.per_class = before, template, random > 1
        if random:
            self.vectors = random_vectors(random, n_ctx, table)
        places = torch.tensor(self.words, device=table.device)
        self.register_buffer("places", places, persistent=False)

    def tokenize(self, backbone: Backbone, names: list[str]) -> Tensor:
        """Texts around class names: N names -> (N, T) token numbers.

        As in CoOp's release, a name takes as many of the first tokens of "name." as it has alone,
        which leaves the full stop for the end. Not so for "kite (bird of prey).": its last token is
        ").", and nothing is left.
        """
        tokens = backbone.tokenize([f"{self.init} {name}." for name in names])
        if self.before == self.n_ctx:
            return tokens
        alone, end = (  # end tokens of the bare names and of the whole texts, (N, 1)
            (numbers == self.end).int().argmax(-1, keepdim=True)
            for numbers in (backbone.tokenize(names), tokens)
        )
        length = torch.minimum(alone - 1, end - 1 - self.n_ctx)  # of the name, (N, 1)
        place = torch.arange(tokens.shape[1]).expand(len(tokens), -1)  # (N, T)
        # The name moves forward to behind the first words, and the other words to behind it.
        after = place - self.before - 1 - length  # how far behind the name
        source = torch.where(after < 0, place + self.n_ctx - self.before, place - length)
        moved = (place > self.before) & (place <= self.n_ctx + length)
        return tokens.gather(1, torch.where(moved, source, place))

    def slots(self, tokens: Tensor) -> Tensor:
        """Positions of the context in each text, (N, L) -> (N, n).

        Behind a name the words are searched for, since a full stop may follow them or not.
        """
        number = torch.arange(self.n_ctx, device=tokens.device)
        behind = self.places[self.before :]
        if not len(behind):
            return (1 + number).expand(tokens.shape[0], -1)
        found = (tokens.unfold(1, len(behind), 1) == behind).all(-1)  # (N, places of a first word)
        # The last place counts: a name may contain the same words.
        last = found.shape[1] - 1 - found.flip(1).int().argmax(-1, keepdim=True)  # (N, 1)
        return torch.where(number < self.before, 1 + number, last - self.before + number)

    def placed(self, embeddings: Tensor, tokens: Tensor, vectors: Tensor) -> Tensor:
        """Put context vectors, (n, W) for all texts or (N, n, W), in their places.

        The embeddings (N, L, W) are of the tokens (N, L).
        """
        if tokens.shape[1] < self.n_ctx + 2:  # without the start and end tokens
            raise ValueError(
                f"A context of {self.n_ctx} does not fit in {tokens.shape[1]} tokens: texts need "
                f"the form {self.template!r}"
            )
        slots = self.slots(tokens)[..., None].expand(-1, -1, embeddings.shape[-1])  # (N, n, W)
        return embeddings.scatter(1, slots, vectors.to(embeddings).expand(tokens.shape[0], -1, -1))

    def encode(
        self, backbone: Backbone, tokens: Tensor, vectors: Tensor, ends: Ends | None = None
    ) -> Tensor:
        """Features of texts (N, L) with their context, (n, W) or (N, n, W): not normalised, (N, D).

        ``ends`` are the texts', which share at most what all have the same vectors in.
        """
        table = text_tower(backbone.model).token_embedding.weight
        end = (tokens == self.end).int().argmax(-1)
        placed = self.placed(F.embedding(tokens, table), tokens, vectors)
        if ends is not None:
            # Behind the start token, contexts of their own tell texts apart.
            own = vectors.ndim == 3
            ends = ends._replace(shared=1 if own else self.shareable(ends.shared))
        return encode_embeddings(backbone.model, placed, end, ends)

    def shareable(self, shared: int) -> int:
        """See :meth:`clip.adapters.prompts.TextPrompts.shareable`."""
        # Behind a name the context's places differ from text to text.
        return shared if self.before == self.n_ctx else min(shared, 1 + self.before)

    def _embed(self, table: nn.Module, args: tuple[Any, ...], embeddings: Tensor) -> Tensor | None:
        if not self.enabled:
            return None
        if self.per_class:
            raise ValueError(
                "Every class has a context of its own here, and these texts do not say whose they "
                "are: encode them by a ClassContextBank, or with the adapters disabled"
            )
        return self.placed(embeddings, args[0], self.vectors[0])


class ConditionalPrompts(ContextPrompts):
    """A context that a small network shifts for each image (CoCoOp, arXiv:2203.05557).

    The context for image i is ``vectors + meta(f_i)``: one shift for all n vectors and all classes.
    A text without an image gets the context itself. ``image_width`` is D, the rest is for
    :class:`ContextPrompts`.
    """

    def __init__(self, phrase: Phrase, table: Tensor, *, image_width: int, **options: Any) -> None:
        super().__init__(phrase, table, **options)
        hidden = image_width // 16  # as in the release
        self.meta_net = nn.Sequential()
        self.meta_net.add_module("linear1", nn.Linear(image_width, hidden))
        self.meta_net.add_module("relu", nn.ReLU())
        self.meta_net.add_module("linear2", nn.Linear(hidden, table.shape[1]))
        self.meta_net.to(table.device)

    def contexts(self, image: Tensor) -> Tensor:
        """The context of each image, of its unit-norm features: (B, D) -> (B, n, W)."""
        return self.vectors + self.meta_net(image)[:, None]

    def encode_pairs(self, backbone: Backbone, bank: TextBank, image: Tensor) -> Tensor:
        """Features of every text with every image's context, not normalised: (B, K, D).

        Image by image, since the context is what the K texts of ``bank`` share; of all pairs
        together no more activations are kept than the bank allows. ``image`` are unit-norm
        features, (B, D).
        """
        if torch.compiler.is_compiling():
            return self._encode_all_pairs(backbone, bank, image)
        every, kept = torch.arange(len(bank)), bank.kept_tokens // len(image)

        def encode(context: Tensor, index: Tensor) -> Tensor:
            return self.encode(backbone, bank.cut_tokens(index), context, bank.ends(index))

        return torch.stack(
            [
                encode_in_parts(partial(encode, context), every, bank.lengths, kept)
                for context in self.contexts(image)  # (n, W) of an image
            ]
        )

    def _encode_all_pairs(self, backbone: Backbone, bank: TextBank, image: Tensor) -> Tensor:
        """The same in one batch of texts: a graph has no loop over images of unknown number."""
        tokens = bank.tokens[:, : max(bank.lengths)]  # (K, L)
        contexts = self.contexts(image)  # (B, n, W)
        texts = tokens.expand(image.shape[0], -1, -1).flatten(0, 1)  # (B * K, L)
        every = contexts[:, None].expand(-1, len(bank), -1, -1).flatten(0, 1)  # (B * K, n, W)
        return self.encode(backbone, texts, every).unflatten(0, (-1, len(bank)))


class ClassContextBank(TextBank):
    """A bank whose texts are encoded with the context of their class."""

    def _encode_part(self, encoder: Any, index: Tensor) -> Tensor:
        prompts = encoder.text_prompts
        if not prompts.enabled:
            return super()._encode_part(encoder, index)
        contexts = prompts.vectors[take_rows(self.owner, index)]  # (N, n, W)
        return prompts.encode(encoder, self.cut_tokens(index), contexts, self.ends(index))


def attach_context(
    backbone: Backbone,
    *,
    n_ctx: int,
    init: str = "",
    position: str = "end",
    num_classes: int = 0,
    conditional: bool = False,
) -> ContextPrompts:
    """Learn a context around class names, as ``text_prompts`` of the backbone.

    Its ``template`` is what texts must look like. The i-th context vector starts from the i-th
    token of ``init``. As in CoOp, n counts *words*: a phrase with a comma or a rare word has more
    tokens, and those left over stay frozen between context and name. With fewer words than n the
    free places on the left start from zero vectors (ProGrad, arXiv:2205.14865).

    Args:
        backbone: With a text tower of CLIP's form.
        n_ctx: n.
        init: Words to start from; '' for N(0, 0.02).
        position: Where the name stands: end, middle (behind the first n // 2) or front.
        num_classes: K for a context per class, 0 for one; with ``init`` there is one.
        conditional: Whether each image shifts the context, see :class:`ConditionalPrompts`.

    Raises:
        ValueError: An option that cannot be used, words left over with another position than end, a
            text tower of another form, or prompts are attached already.
    """
    if position not in POSITIONS:
        raise ValueError(f"position must be one of {', '.join(POSITIONS)}, got {position!r}")
    refuse_second(backbone, "text_prompts", "learned prompts")
    _check_room(n_ctx, init, room=backbone.context_length - 3)  # without start, full stop and end
    free = n_ctx - len(init.split())
    words = [PLACEHOLDER] * free + init.split()
    phrase = phrase_of(backbone, " ".join(words))
    if len(phrase.words) > n_ctx and position != "end":
        raise ValueError(
            f"{init!r} has {len(phrase.words) - free} tokens for {n_ctx - free} words, and only "
            "behind the context is there a place for those left over: use position 'end', or other "
            "words"
        )
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
    embedding = text_tower(backbone.model).token_embedding
    form: dict[str, Any] = {
        "n_ctx": n_ctx,
        "before": before,
        "template": " ".join([*words[:before], "{}", *words[before:]]) + ".",
        "random": 0 if init else max(1, num_classes),
    }
    if conditional:
        form["image_width"] = backbone.embed_dim
    kind = ConditionalPrompts if conditional else ContextPrompts
    prompts = kind(phrase, embedding.weight, **form)
    if init:
        prompts.vectors.data[:, :free] = 0
    embedding.register_forward_hook(prompts._embed)
    backbone.text_prompts = prompts
    return prompts


def _check_room(n_ctx: int, init: str, room: int) -> None:
    least = max(1, len(init.split()))
    if not least <= n_ctx <= room:
        of = f"the words of {init!r}" if init.split() else "one vector"
        raise ValueError(
            f"n_ctx must be from {least} ({of}) to {room} (the room of a text), got {n_ctx}"
        )
