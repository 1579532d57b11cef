"""The classifier of full fine-tuning: an image encoder and a linear layer made of class names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import clip
from clip.text import unit_norm
from trainers.heads import CosineHead, HeadOutput

# What can train, and how the names of its weights begin.
PARTS = {
    "encoder": "backbone.model.visual.",
    "classifier": "classifier",
    "head": "head.",
    "adapter": "adapter.",
}


class LinearCLIP(nn.Module):
    """CLIP's image encoder with a linear classifier W (K, D) in place of the text encoder.

    ``logits = s f W^T`` with the unit-norm image feature f, or what another head makes of f and W.
    W's rows start as text features of unit norm; training may change their norms.

    Args:
        backbone: The pre-trained model; its text encoder only serves to make W.
        num_classes: K.
        initial: Makes the W that training starts from, when it is first needed: a run that loads
            its W never encodes the tens of thousands of texts that this may take.
        head: What makes logits of features and W, see :mod:`trainers.heads`.
        adapter: Applied to the image feature before its normalisation.
    """

    def __init__(
        self,
        backbone: clip.Backbone,
        num_classes: int,
        initial: Callable[[], Tensor],
        *,
        head: nn.Module | None = None,
        adapter: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head or CosineHead()
        self.adapter = adapter or nn.Identity()
        self.columns: list[int] | None = None
        self.classifier = nn.Parameter(torch.zeros(num_classes, backbone.embed_dim))
        self._initial: Callable[[], Tensor] | None = initial

    def resize(self, num_classes: int) -> None:
        """Make room for another number of classes, before their weights are loaded or made."""
        empty = self.classifier.new_zeros(num_classes, self.classifier.shape[1])
        self.classifier = nn.Parameter(empty, requires_grad=self.classifier.requires_grad)

    def train_only(self, parts: Sequence[str]) -> None:
        """Let some of ``PARTS`` train and freeze everything else."""
        trained = tuple(PARTS[part] for part in parts)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(trained))

    @property
    def scale(self) -> Tensor:
        """s, a scalar without gradient: the norm of W's rows does what it could."""
        return self.backbone.logit_scale.detach().exp()

    def image_features(self, image: Tensor) -> Tensor:
        """Unit-norm image features: images (B, 3, S, S), or cached features (B, D) -> (B, D)."""
        # Two dimensions are features already, from the cache.
        features = image if image.ndim == 2 else self.backbone.encode_image(image)
        return unit_norm(self.adapter(features))

    def class_weights(self) -> Tensor:
        """W, (K, D), made now if it was neither made nor loaded before."""
        if self._initial is not None:
            with torch.no_grad(), torch.autocast(self.classifier.device.type, enabled=False):
                self.classifier.copy_(self._initial())
            self._initial = None
        return self.classifier

    def output(self, image: Tensor) -> HeadOutput:
        """What the head makes of images (B, 3, S, S) or cached features (B, D), over all K."""
        return self.head(self.image_features(image), self.class_weights(), self.scale)

    def forward(self, image: Tensor) -> Tensor:
        """Logits for evaluation, (B, K), or of those ``columns`` that a dataset's classes have."""
        logits = self.output(image).logits
        return logits if self.columns is None else logits[:, self.columns]

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if f"{prefix}classifier" in state_dict:
            self._initial = None  # what is loaded must not be overwritten when W is first needed
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
