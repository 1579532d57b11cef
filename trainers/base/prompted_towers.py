"""What the methods with learned prompts in the towers share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

import clip
from dassl.engine import StepOutput
from trainers.heads import HeadOutput


def text_context(backbone: clip.Backbone, n_ctx: int, words: str) -> tuple[str, str]:
    """What learned text prompts start from, and the words that class names stand behind.

    The released code of MaPLe and all that builds on it: the first ``n_ctx`` of the words are
    learned and the others stay; more prompts than words, or no words, mean random prompts in the
    place of as many "X".

    Args:
        backbone: Tokenizes.
        n_ctx: n, prompts.
        words: CTX_INIT.

    Returns:
        The ``init`` of :func:`clip.attach_text_prompts`, and the context of
        :meth:`trainers.base.CLIPTrainer.prompts`.
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


def classification_loss(output: HeadOutput, label: Tensor) -> StepOutput:
    """CE(s f h^T, y), the whole loss of CoOp, VPT, IVLP and MaPLe.

    Args:
        output: Of the head.
        label: (B,).
    """
    ce = F.cross_entropy(output.logits, label)
    return StepOutput(ce, output.logits, {"ce": ce})


def stacked_sets(
    state: Mapping[str, Tensor], first: str, deeper: str, start: int = 1
) -> Tensor | None:
    """The prompts of a released checkpoint as one tensor, (J, n, W), in single precision.

    Args:
        state: Of the checkpoint.
        first: Name of set 0, (n, W).
        deeper: Names of the others, with ``{}`` for their numbers.
        start: Number of set 1 in these names.

    Returns:
        None if there is no set 0.
    """
    if first not in state:
        return None
    sets = [state[first]]
    while (name := deeper.format(len(sets) - 1 + start)) in state:
        sets.append(state[name])
    return torch.stack([vectors.float() for vectors in sets])


def check_sets(tower: str, found: Tensor | None, own: Tensor | None, keys: str) -> None:
    """Say in the config's words why a released checkpoint's prompts do not fit.

    Args:
        tower: text or vision.
        found: What the file has, (J, n, W), or None.
        own: What the model has.
        keys: Config keys of J and n.

    Raises:
        ValueError: The numbers of sets or prompts, or the widths, differ.
    """
    shapes = [(0, 0, 0) if sets is None else tuple(sets.shape) for sets in (found, own)]
    if shapes[0] == shapes[1]:
        return
    words = ["J = {} sets of n = {} prompts of width {}".format(*shape) for shape in shapes]
    raise ValueError(
        f"The checkpoint's {tower} tower has {words[0]}, the model's has {words[1]}: set {keys} "
        "(and --backbone) to what it was trained with"
    )
