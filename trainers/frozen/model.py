"""CLIP with frozen encoders and a head whose weights belong to the classes of training.

Notation: B images, K classes of the run, K0 of training, D embedding width, s CLIP's factor.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import clip
from clip import freeze_except
from clip.prompts import template_prompts
from clip.text import at_least_single, unit_norm
from trainers.base import FrozenTextCLIP
from trainers.base.templates import hand_made
from trainers.heads import HeadOutput, cosine_logits


class ClassHead(nn.Module):
    """From features to logits over the classes that it was fitted for.

    A subclass defines ``forward(image, text, scale)``, as all heads do (:mod:`trainers.heads`).
    What it learns are its parameters; numbers that a search sets are buffers of one element.

    Attributes:
        raw_image: Whether it reads image features as the encoder gives them, not of unit norm.
        chosen: Names of the buffers that a search on validation images sets.
        columns: Where the K classes of the run are among the K0; None if they are the same.
        known: Whether all K are among the K0; if not, :meth:`novel` serves all of them.
    """

    raw_image: ClassVar[bool] = False
    chosen: ClassVar[tuple[str, ...]] = ()
    columns: list[int] | None = None
    known = True
    # What tells classes apart that were not trained, for the log.
    novel_words: ClassVar[str] = "zero-shot text"

    def add_number(self, name: str, value: float) -> None:
        """Add a number that is saved with the weights."""
        self.register_buffer(name, torch.tensor(float(value)))

    def of_run(self, values: Tensor) -> Tensor:
        """Pick the classes of the run: (..., K0) -> (..., K)."""
        return values if self.columns is None else values[..., self.columns]

    def novel(self, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        """Logits over classes of which nothing was learned: f (B, D), t (K, D) -> (B, K).

        Zero-shot, which no few-shot head beats where it has no shots.
        """
        return cosine_logits(image, text, scale)

    def take_classes(self, rows: list[int | None], trained: int) -> None:
        """Serve the run's classes: the place of each among the ``trained`` classes, if any."""
        self.known = None not in rows
        places = [row for row in rows if row is not None]
        same = places == list(range(trained))
        self.columns = None if same or not self.known else places

    def make_room(self, state: dict[str, Tensor], prefix: str) -> None:
        """Take the number of rows, of classes or images, that saved weights have."""
        for name, own in [*self.named_parameters(), *self.named_buffers()]:
            saved = state.get(prefix + name)
            # Widths must agree: a difference there is another backbone, which is refused later.
            if saved is not None and saved.ndim > 0 and saved.shape[1:] == own.shape[1:]:
                own.data = own.new_zeros(saved.shape)


class FrozenCLIP(FrozenTextCLIP):
    """CLIP with such a head: ``logits = head(f, h, s)``, or the head's ``novel``.

    Args:
        backbone: The model; nothing in it trains.
        prompts: Each class's prompts.
        head: What trains.
        unit_text: Whether h are means of unit-norm text features, scaled to unit norm again, or
            means of features as the encoder gives them, as several releases take them.
    """

    head: ClassHead

    def __init__(
        self,
        backbone: clip.Backbone,
        prompts: list[list[str]],
        head: ClassHead,
        *,
        unit_text: bool = True,
    ) -> None:
        super().__init__(backbone, prompts, renormalize=True, head=head)
        freeze_except(backbone)
        self.unit_text = unit_text

    @torch.no_grad()
    def class_weights(self) -> Tensor:
        """Text features of the classes, (K, D); nothing changes them, so they are made once."""
        if self._frozen_weights is None and not self.unit_text:
            raw = at_least_single(self.bank.encode_all(self.text_encoder, unit=False))  # (P, D)
            self._frozen_weights = self.bank.class_means(raw)
        return super().class_weights()

    def output(self, image: Tensor) -> HeadOutput:
        """What the head makes of pictures (B, 3, S, S) or cached features (B, D)."""
        raw = at_least_single(self.raw_image_features(image))  # (B, D)
        text = self.class_weights()
        if not self.head.known:
            logits = self.head.novel(unit_norm(raw), F.normalize(text, dim=-1), self.scale)
            return HeadOutput(logits, logits.new_zeros(()))
        return self.head(raw if self.head.raw_image else unit_norm(raw), text, self.scale)

    def forward(self, image: Tensor) -> Tensor:
        """Logits, (B, K)."""
        return self.output(image).logits


def prompts_of(trainer: Any, own: str = "") -> list[list[str]]:
    """CoOp's template of the dataset; on ImageNet open_clip's seven, and a method's ``own``.

    ``DATASET.PROMPT_TEMPLATE``, if the user sets it, takes the place of either template.
    """
    names, dataset = trainer.dm.dataset.classnames, trainer.cfg.DATASET.NAME
    if "ImageNet" in dataset:
        return trainer.ensemble(names, 7, own)
    return template_prompts(names, trainer.template(hand_made(dataset)))
