"""Many copies of RAda's mask side by side, each adapted to an image of its own.

Notation: N images, each with S views; K classes, D embedding width. Nothing is shared between
images: a batch of N gives what N batches of one would.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from dassl.config import user_path
from dassl.engine.checkpoint import checkpoint_path, read_checkpoint
from dassl.utils.torchtools import weights_in
from trainers.heads import RationalHead, cosine_logits
from trainers.test_time.starts import check_form, check_origin


def is_untouched(head: RationalHead) -> bool:
    """Whether the mask is all ones because no output projection has been trained yet.

    This waits for the device; an episode itself does not.
    """
    return not any(bool(p.any()) for n, p in head.named_parameters() if _is_output(n))


def start_logits(
    head: RationalHead, features: Tensor, text: Tensor, scale: Tensor, untouched: bool
) -> Tensor:
    """Logits of all views under the mask that all images start from, (N, V, K).

    Args:
        head: The mask.
        features: f, unit norm, (N, V, D).
        text: h, unit norm, (K, D).
        scale: s.
        untouched: See :func:`is_untouched`.
    """
    if untouched:
        return cosine_logits(features, text, scale)
    # An image at a time: its rational matrices are V K D numbers, and there is no batch of weights
    # here that would gain from more.
    return torch.stack([head(views, text, scale).logits for views in features])


class Masks:
    """N masks that start from the same weights, and AdamW for all of them.

    AdamW works number by number, so that one step on weights stacked along N is a step on each
    image's own.

    Args:
        head: Start of all images; it stays as it is.
        count: N.
        text: h, unit norm, (K, D).
        scale: s.
        untouched: See :func:`is_untouched`.
        lr: Of AdamW.
        weight_decay: Of AdamW.
    """

    def __init__(
        self,
        head: RationalHead,
        count: int,
        text: Tensor,
        scale: Tensor,
        untouched: bool,
        *,
        lr: float,
        weight_decay: float,
    ) -> None:
        self.head, self.text, self.scale = copy.copy(head), text.detach(), scale.detach()
        # Nothing is regularised here; the norm would be one more pass over (N, S, K, D) numbers.
        self.head.regularizer = _no_penalty
        start = {name: weight.detach() for name, weight in head.named_parameters()}
        # While the output projections are zero, no gradient reaches anything else. So the first
        # step needs the attention once, under weights that all images still share, and no backward
        # pass through it.
        self.shared = {n: w for n, w in start.items() if untouched and not _is_output(n)}
        self.weights = {
            name: weight.expand(count, *weight.shape)  # (N, *weight.shape)
            .clone(memory_format=torch.contiguous_format)
            .requires_grad_()
            for name, weight in start.items()
        }
        kind = text.device.type
        self.optimizer = torch.optim.AdamW(
            self.weights.values(),
            lr=lr,
            weight_decay=weight_decay,
            fused=kind in ("cpu", "cuda"),
            # Else PyTorch warns of what a recorded step costs.
            capturable=kind == "cuda" and torch.cuda.is_current_stream_capturing(),
        )

    def logits(self, image: Tensor) -> Tensor:
        """Logits of each image's views under its own mask.

        Args:
            image: f, unit norm, (N, S, D).

        Returns:
            (N, S, K).
        """

        def logits_of_one(weights: dict[str, Tensor], views: Tensor) -> Tensor:
            return functional_call(self.head, weights, (views, self.text, self.scale)).logits

        weights = {**self.weights, **self.shared}
        own = {name: None if name in self.shared else 0 for name in weights}
        return vmap(logits_of_one, in_dims=(own, 0))(weights, image)

    def step(self, loss: Tensor) -> None:
        """Take a step of AdamW on every mask.

        Args:
            loss: Each image's, of the logits of its own mask, (N,).
        """
        adapted = [name for name in self.weights if name not in self.shared]
        grads = torch.autograd.grad(loss.sum(), [self.weights[name] for name in adapted])
        found = dict(zip(adapted, grads, strict=True))
        for name, weight in self.weights.items():
            # Weights without a gradient decay too; the fused kernel takes all to be contiguous.
            weight.grad = found[name].contiguous() if name in found else torch.zeros_like(weight)
        self.optimizer.step()
        self.shared = {}  # from here on all weights differ from image to image


def load_mask(
    head: RationalHead,
    directory: str | os.PathLike[str],
    epoch: int | None,
    form: Mapping[str, Any],
    own: Mapping[str, Any],
    key: str,
) -> None:
    """Copy the mask of a trained ``RAda`` into ``head``.

    Args:
        head: Of the same form.
        directory: The run's.
        epoch: Number of epochs; None for the last.
        form: See :func:`trainers.test_time.starts.check_form`.
        own: What a checkpoint of the current run would say.
        key: Config key or flag that named the directory, for messages.

    Raises:
        FileNotFoundError: The directory or its checkpoint is missing.
        ValueError: It is of another method, backbone or form of the mask.
    """
    root = Path(user_path(directory))
    if not root.is_dir():
        raise FileNotFoundError(
            f"{key}: no directory {root}; it must be the run directory of a trained RAda, or empty"
        )
    try:
        path = checkpoint_path(root, "RAda", epoch)
    except FileNotFoundError:
        within = root / "RAda" if (root / "RAda").is_dir() else root
        found = ", ".join(sorted(p.name for p in within.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"{key}: {root} has no checkpoint RAda/model.pth.tar-{epoch or '<epoch>'}; {within} "
            f"holds: {found}. Train one with --trainer RAda"
        ) from None
    try:
        checkpoint = read_checkpoint(path, {})
        state = weights_in(checkpoint, path)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    check_origin(path, checkpoint["meta"], "RAda", own, key)
    check_form(root, "RADA", form, key)
    head.check_state(state)
    needed = {f"head.{name}": value.shape for name, value in head.state_dict().items()}
    saved = {name: value.shape for name, value in state.items()}
    odd = [n for n in {**needed, **saved} if needed.get(n) != saved.get(n)]
    if odd:
        raise ValueError(
            f"{key}: {path} holds another mask than TRAINER.RAdaTTT describes: {odd[0]!r} and "
            f"{len(odd) - 1} more weights differ. QUERIES must be those of its training"
        )
    head.load_state_dict({name.removeprefix("head."): value for name, value in state.items()})
    print(f'Every episode starts from the mask in "{path}"')


def _is_output(name: str) -> bool:
    return ".out." in name


def _no_penalty(delta: Tensor) -> Tensor:
    return delta.new_zeros(())
