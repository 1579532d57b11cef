"""Training and tests with frozen weights that are rounded once, see :mod:`clip.rounded_weights`."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from clip.rounded_weights import RoundedWeights
from dassl.engine.device import AUTOCAST_TYPES
from trainers.base.given_features import gives_texts


class Rounding:
    """Puts rounded weights into a trainer's backbone while an epoch or a test runs.

    It takes them out again, since what follows may load weights, or use them in full precision.

    Args:
        trainer: A :class:`trainers.base.CLIPTrainer`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        trainer.record.at_test_end.append(self.end_test)

    @cached_property
    def training(self) -> RoundedWeights | None:
        """The frozen weights as autocast uses them in training; None if it is not used."""
        return self._rounded(text_side=True)

    @cached_property
    def tower(self) -> RoundedWeights | None:
        """The same of the vision tower alone, for tests."""
        return self._rounded(text_side=False)

    def _rounded(self, *, text_side: bool) -> RoundedWeights | None:
        trainer = self.trainer
        backbone = getattr(trainer.model, "backbone", None)
        dtype = AUTOCAST_TYPES.get(trainer.precision)
        # The stand-in beside given text features has no weights.
        if backbone is None or dtype is None or gives_texts(trainer.cfg):
            return None
        image_side = not trainer.uses_features(trainer.cfg)
        return RoundedWeights(backbone, dtype, image_side=image_side, text_side=text_side)

    def switch(self, mode: str) -> None:
        """Round for training; take out what is rounded in any other mode."""
        if self.training is not None:
            if mode == "train":
                self.training.put()
            else:
                self.training.take_out()

    def round_for_test(self) -> None:
        """Round the vision tower if a test runs under autocast: called when an image arrives.

        Not earlier: what a test prepares, such as features that are looked up by a hash of their
        encoder's weights, may be made outside of autocast.
        """
        under_autocast = torch.is_autocast_enabled(self.trainer.device.type)
        if self.trainer.record.testing and under_autocast and self.tower is not None:
            self.tower.put()

    def end_test(self) -> None:
        """Take out what a test has rounded."""
        if self.tower is not None:
            self.tower.take_out()
