"""A backbone without towers, for data that arrives as features: text features that were given.

Notation: K classes, P texts in all, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from clip.backbones import OPENAI_INPUT, Backbone
from clip.layouts import Ends
from clip.text import TextBank, take_rows, unit_norm

__all__ = ["FeatureBackbone", "FeatureBank"]


class FeatureBank(TextBank):
    """A text bank whose texts were encoded elsewhere.

    Args:
        rows: For each of the K classes its text features, (P_k, D) each, of any norm.
        source: Where they come from, for messages.
    """

    features: Tensor
    alike = "text features are the same"

    def __init__(self, rows: Sequence[Tensor], source: str) -> None:
        # A token stands for each text, since what counts and batches texts asks for tokens.
        texts = [[f"text {p} of class {k}" for p in range(len(own))] for k, own in enumerate(rows)]
        super().__init__(texts, lambda texts: torch.zeros(len(texts), 1, dtype=torch.long))
        self.source = source
        self.register_buffer("features", torch.cat(list(rows)), persistent=False)  # (P, D)

    def encode(self, encoder: Any, index: Tensor, unit: bool = True) -> Tensor:
        """The given features of the texts numbered ``index``: (n,) -> (n, D)."""
        features = take_rows(self.features, index)
        return unit_norm(features) if unit else features

    def twins(self) -> list[list[int]]:
        """Groups of classes with the same text features: nothing tells them apart."""
        # By their bits: what differs at all gives other logits.
        groups: dict[bytes, list[int]] = {}
        ends = (self.starts + self.counts).tolist()
        for k, (start, end) in enumerate(zip(self.starts.tolist(), ends, strict=True)):
            own = self.features[start:end].cpu().numpy().tobytes()
            groups.setdefault(own, []).append(k)
        return [group for group in groups.values() if len(group) > 1]


class _Scale(nn.Module):
    """What is left of a model without towers."""

    def __init__(self, logit_scale: float) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale))


class FeatureBackbone(Backbone):
    """Stands in for a backbone where image and text features are given.

    Whatever prompts a method has, its text bank holds the given features of the classes. What needs
    a tower is refused by a ValueError.

    Args:
        rows: As in `FeatureBank`.
        logit_scale: Logarithm of the factor of the cosines.
        source: Where the features come from, for messages.
    """

    def __init__(self, rows: Sequence[Tensor], logit_scale: float, source: str) -> None:
        # Not Backbone's constructor, which takes a model apart that is not there.
        nn.Module.__init__(self)
        self.model: Any = _Scale(logit_scale)
        self.name = "features"
        # Methods make parts of this width, and loaders ask for the images' size although none come.
        self.embed_dim = rows[0].shape[1]
        spec = OPENAI_INPUT
        self.image_size, self.image_mean, self.image_std = spec.size, spec.mean, spec.std
        self.context_length = 77  # CLIP's, so that what attaches prompts gets to our refusal
        self._rows, self._source = list(rows), source

    @property
    def dtype(self) -> torch.dtype:
        """Type of the features."""
        return torch.float32

    def text_bank(self, prompts: Sequence[Sequence[str]]) -> FeatureBank:
        """The given features, one set for each of the classes whose prompts these are."""
        if len(prompts) != len(self._rows):
            self._refuse(f"text features of {len(prompts)} classes; {len(self._rows)} are given")
        return FeatureBank(self._rows, self._source)

    def cuts(self, texts: list[str], tokens: Tensor) -> str:
        """Nothing was tokenised, so nothing was cut."""
        return ""

    def encode_image(self, images: Tensor) -> NoReturn:
        """Refused: there is no image encoder."""
        self._refuse("an image encoder")

    def encode_text(self, tokens: Tensor, ends: Ends | None = None) -> NoReturn:
        """Refused: there is no text encoder."""
        self._refuse("a text encoder")

    def tokenize(self, texts: str | list[str], truncate: bool = True) -> NoReturn:
        """Refused: there is no text encoder."""
        self._refuse("a text encoder")

    def end_of_text(self) -> NoReturn:
        """Refused: there is no text encoder."""
        self._refuse("a text encoder")

    @property
    def vision_transformer(self) -> NoReturn:
        """Refused: there is no image encoder."""
        self._refuse("an image encoder")

    @property
    def text_transformer(self) -> NoReturn:
        """Refused: there is no text encoder."""
        self._refuse("a text encoder")

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(
            f"this method needs {what}, but the run has features only ({self._source}); leave "
            "DATASET.FEATURES.TEXT out, so that MODEL.BACKBONE.NAME is loaded, or take another one"
        )
