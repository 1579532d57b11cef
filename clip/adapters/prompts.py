"""Learned prompts in both towers: vectors that stand among the tokens of a frozen transformer.

They are attached from outside, by hooks on the tower's own modules, so that the pre-trained
model's state-dict keys and the exact truncation of texts stay what they are.

Notation: B images or texts, L tokens, W transformer width, n prompts (``n_ctx``), J sets of them
(``depth``). Set 0 enters with the input; set j overwrites the same n slots at the input of block j,
for j = 1 .. J-1 (deep prompts: VPT, arXiv:2203.12119; in both towers: MaPLe, arXiv:2210.03117).
From block J on, the slots flow through like any token.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clip.adapters import Adapter, checked_depth, refuse_second
from clip.backbones import Backbone
from clip.text import text_tower

INIT_STD = 0.02  # of random prompts, in all of the methods


class LearnedPrompts(Adapter):
    """What all learned prompts share: where they go, and the hooks that put them there.

    A subclass has the ``vectors`` of all sets (J, n, W), or computes them in :meth:`vectors_of`, as
    MaPLe's vision prompts are computed from the text tower's. ``first_slot`` is the position of the
    first prompt, counted from the end if negative.

    Hooks are methods, not closures: a deep copy of the model gets hooks of its own copy.
    """

    vectors: nn.Parameter

    def __init__(self, n_ctx: int, depth: int, first_slot: int) -> None:
        super().__init__()
        if n_ctx < 1:
            raise ValueError(
                f"n_ctx is the number of learned prompts and must be at least 1, got {n_ctx}; "
                "a depth of 0 means a tower without prompts"
            )
        self.n_ctx, self.depth, self.first_slot = n_ctx, depth, first_slot

    def vectors_of(self, index: int) -> Tensor:
        """The vectors of set ``index`` in 0 .. J-1: (n, W)."""
        return self.vectors[index]

    def hook_blocks(self, transformer: Any) -> None:
        """Let sets 1 .. J-1 overwrite their slots at the inputs of blocks 1 .. J-1."""
        for index, block in enumerate(transformer.resblocks[: self.depth]):
            if index > 0:
                block.register_forward_pre_hook(partial(self._overwrite_input, index))

    def _overwrite_input(
        self, index: int, block: nn.Module, args: tuple[Any, ...]
    ) -> tuple[Any, ...] | None:
        if not self.enabled:
            return None
        return self._overwritten(args[0], index), *args[1:]

    def _overwritten(self, x: Tensor, index: int) -> Tensor:
        """``x`` (B, L, W) with set ``index`` in its slots."""
        length = x.shape[1]
        start = self.first_slot if self.first_slot >= 0 else length + self.first_slot
        behind = start + self.n_ctx
        if not 0 <= start < behind <= length:
            raise ValueError(
                f"{self.n_ctx} prompts from position {start} on do not fit in {length} tokens: "
                "texts need the prompts' words (or as many placeholders) in front"
            )
        return torch.cat([x[:, :start], self._expanded(x, index), x[:, behind:]], 1)

    def _expanded(self, x: Tensor, index: int) -> Tensor:
        """Set ``index`` for every sequence of ``x`` (B, L, W), in its type: (B, n, W)."""
        return self.vectors_of(index).to(x).expand(x.shape[0], -1, -1)


class Phrase(NamedTuple):
    """Words that learned prompts replace and may start from."""

    text: str  # for messages
    words: list[int]  # token numbers, without start and end
    end: int  # number of the end-of-text token


class TextPrompts(LearnedPrompts):
    """Learned vectors in place of the first n words behind the start token.

    Texts keep their words: with the prompts disabled the tower encodes exactly these. Positions
    are added to set 0 as to any token, and the causal mask stays.

    Args:
        phrase: Set 0 starts from the embeddings of its first n words; without words, from random
            vectors as the other sets do.
        table: The frozen token embeddings, (vocabulary, W).
        n_ctx: n.
        depth: J.
    """

    def __init__(self, phrase: Phrase, table: Tensor, *, n_ctx: int, depth: int) -> None:
        super().__init__(n_ctx, depth, first_slot=1)
        self.init, self.words, self.end = phrase.text, phrase.words[:n_ctx], phrase.end
        self.vectors = random_vectors(depth, n_ctx, table)
        if self.words:
            self.vectors.data[0] = table.detach()[self.words]  # (n, W)

    def slots(self, tokens: Tensor) -> Tensor:
        """Positions of the prompts in each text: (N, T) -> (N, n)."""
        first = torch.arange(1, 1 + self.n_ctx, device=tokens.device)
        return first.expand(len(tokens), -1)

    def shareable(self, shared: int) -> int:
        """How many of the tokens that texts begin with are the same with prompts among them.

        Deep prompts overwrite the shared tokens once, for which all their places must be there.
        """
        return shared if self.depth == 1 or shared > self.n_ctx else 0

    def check_texts(self, tokens: Tensor) -> None:
        """Refuse texts (B, T) in which prompts would take the place of anything but their words.

        Without this check a class name would be overwritten silently, and accuracy merely be low.
        Not done at every encoding, since comparing would make the host wait for the device.

        Raises:
            ValueError: A text does not start with the words of ``init``; or, without ``init``,
                texts do not all start with the same n tokens (placeholders).
        """
        slots = tokens.gather(1, self.slots(tokens)).cpu()  # (B, n)
        expected = torch.tensor(self.words) if self.words else slots[0]
        wrong = (slots != expected).any(1) | (slots == self.end).any(1)
        if wrong.any():
            what = (
                f"the first {self.n_ctx} tokens of {self.init!r}"
                if self.words
                else f"{self.n_ctx} placeholders that are the same in all of them"
            )
            raise ValueError(
                f"Learned prompts replace {self.n_ctx} tokens behind the start of each text, so "
                f"all texts must start with {what}; {int(wrong.sum())} of {len(wrong)} do not, "
                f"first number {int(wrong.nonzero()[0])}. Change the template or the prompts' init."
            )

    def _embed(self, table: nn.Module, args: tuple[Any, ...], embeddings: Tensor) -> Tensor | None:
        """Hook behind the token embedding, (B, L, W), before positions are added."""
        return self._overwritten(embeddings, 0) if self.enabled else None


class AppendedPrompts(LearnedPrompts):
    """Prompts appended behind the class token and the patches of a vision tower.

    They enter before ``ln_pre`` and have no positions. Order is irrelevant without a mask, so the
    end serves as well as any place; what is computed at the slots is never pooled.
    """

    def __init__(self, n_ctx: int, depth: int) -> None:
        super().__init__(n_ctx, depth, first_slot=-n_ctx)

    def hook_input(self, visual: Any) -> None:
        """Let set 0 join the tokens of a vision tower."""
        visual.ln_pre.register_forward_pre_hook(self._append)

    def _append(self, ln_pre: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Hook before ``ln_pre``: (B, L, W) -> (B, L + n, W)."""
        if not self.enabled:
            return None
        return torch.cat([args[0], self._expanded(args[0], 0)], 1), *args[1:]


class VisionPrompts(AppendedPrompts):
    """Freely learned vision prompts (VPT, IVLP, PromptSRC), N(0, 0.02) at first.

    They take width, type and device from ``like``, a tensor of the tower, (..., W).
    """

    def __init__(self, n_ctx: int, depth: int, like: Tensor) -> None:
        super().__init__(n_ctx, depth)
        self.vectors = random_vectors(depth, n_ctx, like)


def attach_text_prompts(
    backbone: Backbone, *, n_ctx: int, depth: int, init: str = "a photo of a"
) -> TextPrompts | None:
    """Learn vectors in place of the first ``n_ctx`` tokens of all texts, as ``text_prompts``.

    All texts must start with the words of ``init`` (:meth:`TextPrompts.check_texts`). With fewer
    prompts than words the other words stay frozen: 2 of "a photo of a" learn "a photo".

    Args:
        backbone: With a text tower of CLIP's form; it gets the attribute ``text_prompts``.
        n_ctx: Learned tokens, n.
        depth: Sets, J: the input and the blocks 1 .. J-1. More than it has blocks means all of
            them, 0 no prompts at all, for which None is returned.
        init: Text whose first n token embeddings set 0 starts from; '' for N(0, 0.02), as the
            deeper sets always do.

    Raises:
        ValueError: The depth is negative, ``n_ctx`` is less than 1 or exceeds the tokens of
            ``init`` or of a text, the text tower is not of CLIP's form, or prompts are attached
            already.
    """
    depth = prompt_depth(backbone, "text", depth)
    if depth == 0:
        return None
    refuse_second(backbone, "text_prompts", "learned prompts")
    phrase = phrase_of(backbone, init)
    room = backbone.context_length - 2  # without start and end
    if n_ctx > (len(phrase.words) if init else room):
        has = f"{init!r} has {len(phrase.words)} tokens" if init else f"texts have room for {room}"
        remedy = ", a longer init, or '' for random vectors" if init else ""
        raise ValueError(f"n_ctx is {n_ctx}, but {has}: use fewer prompts{remedy}")
    embedding = text_tower(backbone.model).token_embedding
    prompts = TextPrompts(phrase, embedding.weight, n_ctx=n_ctx, depth=depth)
    embedding.register_forward_hook(prompts._embed)
    prompts.hook_blocks(backbone.text_transformer)
    backbone.text_prompts = prompts
    return prompts


def attach_vision_prompts(backbone: Backbone, *, n_ctx: int, depth: int) -> VisionPrompts | None:
    """Learn ``n_ctx`` tokens behind the patches of all images, as ``vision_prompts``.

    Args:
        backbone: With a vision transformer that pools its class token; it gets the attribute
            ``vision_prompts``.
        n_ctx: Learned tokens, n.
        depth: J, as for :func:`attach_text_prompts`.

    Raises:
        ValueError: The depth is negative, ``n_ctx`` is less than 1, the vision tower has another
            form, or prompts are attached already.
    """
    depth = prompt_depth(backbone, "vision", depth)
    if depth == 0:
        return None
    prompts = VisionPrompts(n_ctx, depth, backbone.model.visual.class_embedding)
    install_vision_prompts(backbone, prompts)
    return prompts


def install_vision_prompts(backbone: Backbone, prompts: AppendedPrompts) -> None:
    """Attach vision prompts of any class; sets beyond the tower's blocks stay unused.

    Raises:
        ValueError: The vision tower has another form, or prompts are attached already.
    """
    prompt_depth(backbone, "vision", prompts.depth)
    visual = backbone.model.visual
    if visual.pool_type != "tok" or visual.attn_pool is not None:
        pooling = "attention" if visual.attn_pool is not None else repr(visual.pool_type)
        raise ValueError(
            f"The vision tower of this backbone has {pooling} pooling, which would take learned "
            "prompts for parts of the image. Only towers that pool their class token can carry "
            "them: ViT-B/16, ViT-B/32, ViT-L/14 or another OpenAI-style ViT."
        )
    refuse_second(backbone, "vision_prompts", "learned prompts")
    prompts.hook_input(visual)
    prompts.hook_blocks(visual.transformer)
    backbone.vision_prompts = prompts


def prompt_depth(backbone: Backbone, tower: str, depth: int) -> int:
    """:func:`clip.adapters.checked_depth` of sets of learned prompts."""
    return checked_depth(backbone, tower, depth, "learned prompts", "sets of learned prompts")


def random_vectors(depth: int, n_ctx: int, like: Tensor) -> nn.Parameter:
    """Vectors to be learned, N(0, 0.02): (depth, n_ctx, W), on the device of ``like`` (..., W)."""
    # Drawn on the host, so that a seed means the same on every device; never in half precision.
    dtype = torch.promote_types(like.dtype, torch.float32)
    vectors = torch.empty(depth, n_ctx, like.shape[-1], dtype=dtype).normal_(std=INIT_STD)
    return nn.Parameter(vectors.to(like.device))


def phrase_of(backbone: Backbone, text: str) -> Phrase:
    """Tokenize a text; a ValueError if the text tower is not of CLIP's form."""
    find_end = backbone.end_of_text()
    tokens = backbone.tokenize(["", text])  # (2, T)
    ends = find_end(tokens).tolist() if find_end else [0, 0]
    if ends[0] != 1:  # the empty text is start and end
        raise ValueError(
            "The text tower of this backbone is not of CLIP's form (start token, words, end token "
            "that is pooled, causal attention), so learned prompts cannot be attached to it. "
            "OpenAI's models and most of OpenCLIP's are; SigLIP and CoCa are not."
        )
    return Phrase(text, tokens[1, 1 : ends[1]].tolist(), int(tokens[0, 1]))


def text_context(backbone: Backbone, n_ctx: int, words: str) -> tuple[str, str]:
    """What learned text prompts start from, and the words before the class names, from CTX_INIT.

    As in the released code of MaPLe and all that builds on it, the first ``n_ctx`` of the words are
    learned and the others stay. With more prompts than words, or no words, prompts start at random
    in place of as many "X". The first result is the ``init`` of :func:`attach_text_prompts`.
    """
    words = words.replace("_", " ")
    find_end = backbone.end_of_text()
    # Towers that are not read at an end token are refused when prompts are attached.
    room = int(find_end(backbone.tokenize(words))) - 1 if find_end else n_ctx
    if n_ctx <= room:
        return words, words
    if words:
        print(f"{words!r} has {room} tokens, fewer than the {n_ctx} prompts: they start at random")
    return "", " ".join(["X"] * n_ctx)
