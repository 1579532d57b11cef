"""Training and tests with frozen weights that are rounded once, see :mod:`clip.rounded_weights`."""

from __future__ import annotations

from functools import cached_property

import torch
from yacs.config import CfgNode

from clip.rounded_weights import RoundedWeights
from dassl.engine import TrainerX
from dassl.engine.base import Names
from dassl.engine.device import AUTOCAST_TYPES
from trainers.base.given_features import gives_texts

__all__ = ["RoundedTrainer"]


class RoundedTrainer(TrainerX):
    """Puts rounded weights into the backbone while an epoch or a test runs, and takes them out.

    What follows may load weights, or use them in full precision.
    """

    def uses_features(self, cfg: CfgNode) -> bool:
        """Whether image features are computed once, so that the vision tower is not used."""
        raise NotImplementedError

    @cached_property
    def rounded_weights(self) -> RoundedWeights | None:
        """The frozen weights as autocast uses them in training; None if it is not used."""
        return self._rounded(text_side=True)

    @cached_property
    def rounded_tower(self) -> RoundedWeights | None:
        """The same of the vision tower alone, for tests."""
        return self._rounded(text_side=False)

    def _rounded(self, *, text_side: bool) -> RoundedWeights | None:
        backbone = getattr(self.model, "backbone", None)
        dtype = AUTOCAST_TYPES.get(self.precision)
        # The stand-in beside given text features has no weights.
        if backbone is None or dtype is None or gives_texts(self.cfg):
            return None
        image_side = not self.uses_features(self.cfg)
        return RoundedWeights(backbone, dtype, image_side=image_side, text_side=text_side)

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        """Switch models to training or evaluation; weights are rounded in training."""
        super().set_model_mode(mode, names)
        if self.rounded_weights is not None:
            if mode == "train":
                self.rounded_weights.put()
            else:
                self.rounded_weights.take_out()

    def run_epoch(self) -> None:
        """Train for one epoch."""
        try:
            super().run_epoch()
        finally:
            if self.rounded_weights is not None:
                self.rounded_weights.take_out()

    def test(self, split: str | None = None) -> float:
        """Evaluate on a split, see :meth:`dassl.engine.trainer.SimpleTrainer.test`."""
        try:
            return super().test(split)
        finally:
            if self.rounded_tower is not None:
                self.rounded_tower.take_out()

    def round_for_test(self) -> None:
        """Round the vision tower if a test runs under autocast: called when an image arrives.

        Not earlier: what a test prepares, such as features that are looked up by a hash of their
        encoder's weights, may be made outside of autocast.
        """
        under_autocast = torch.is_autocast_enabled(self.device.type)
        if self.record.testing and under_autocast and self.rounded_tower is not None:
            self.rounded_tower.put()
