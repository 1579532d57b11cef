"""The classifier of nearly all methods: a backbone, the classes' prompts, and a head.

Notation: B images, K classes, D embedding width, S their side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import clip
from clip.prompts import readable
from clip.text import unit_norm
from trainers.heads import CosineHead, HeadOutput, cosine_logits


class PromptedCLIP(nn.Module):
    """CLIP as a classifier over K classes, each with one or more prompts.

    Methods read it by these names, where x are images (B, 3, S, S), or what the frozen encoder
    made of them (B, D), from the feature cache::

        raw_image_features(x)     f'  (B, D)  not normalised; override it to change image features
        image_features(x)         f   (B, D)  unit norm
        frozen_image_features(x)  f0  (B, D)  of the pre-trained model, without gradient
        training_weights()        h   (K, D)  class weights with gradient, all prompts in one batch
        class_weights()           h   (K, D)  the same to evaluate with, kept until a step
        output(x)                             what the head makes of f and the training weights
        forward(x)                    (B, K)  logits to evaluate with

    Methods that learn from features before they are normalised (DePT), or whose text features
    depend on the image (CoCoOp), use a pair of their own, for classes with one prompt each::

        raw_features(x)    f' (B, D) and h' (K, D), or (B, K, D) where h' depends on the image
        similarity(f', h')    (B, K)  CLIP's logits of them

    Args:
        backbone: The model, with whatever was attached to it.
        prompts: Each class's prompts.
        renormalize: Scale the means of a class's prompt features to unit norm.
        head: What makes logits of features, see :mod:`trainers.heads`; by default CLIP's cosine.
    """

    def __init__(
        self,
        backbone: clip.Backbone,
        prompts: list[list[str]],
        *,
        renormalize: bool,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.bank = backbone.text_bank(prompts)
        self.renormalize = renormalize
        self.head = head or CosineHead()

    @property
    def scale(self) -> Tensor:
        """The factor s of the cosine similarities, a scalar without gradient."""
        return self.backbone.logit_scale.detach().exp()

    @property
    def text_encoder(self) -> nn.Module:
        """What encodes the prompts; override it where something stands behind the text tower."""
        return self.backbone

    def raw_image_features(self, image: Tensor) -> Tensor:
        """Image features f', (B, D)."""
        # Two dimensions are features already, from the cache.
        return image if image.ndim == 2 else self.backbone.encode_image(image)

    def image_features(self, image: Tensor) -> Tensor:
        """Image features f, (B, D)."""
        return unit_norm(self.raw_image_features(image))

    @torch.no_grad()
    def frozen_image_features(self, image: Tensor) -> Tensor:
        """Image features f0, (B, D)."""
        with clip.adapters_disabled(self):
            return self.image_features(image)

    def training_weights(self) -> Tensor:
        """Class weights h with gradient into the text tower, (K, D)."""
        text = self.bank.encode(self.text_encoder, torch.arange(len(self.bank)))  # (P, D)
        return self._normalized(self.bank.class_means(text))

    def class_weights(self) -> Tensor:
        """Class weights h for evaluation, (K, D)."""
        return self._normalized(self.bank.class_features(self.text_encoder))

    def _normalized(self, means: Tensor) -> Tensor:
        return F.normalize(means, dim=-1) if self.renormalize else means

    def output(self, image: Tensor) -> HeadOutput:
        """Logits of a training step, and what else the head computes."""
        return self.head(self.image_features(image), self.training_weights(), self.scale)

    def forward(self, image: Tensor) -> Tensor:
        """Logits for evaluation, (B, K)."""
        return self.head(self.image_features(image), self.class_weights(), self.scale).logits

    def raw_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Of a step f' (B, D) and h' (K, D), with gradients into both towers."""
        text = self.bank.encode(self.text_encoder, torch.arange(len(self.bank)), unit=False)
        return self.raw_image_features(image), text

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """Logits s f h^T of f' and h', (B, K)."""
        return cosine_logits(unit_norm(image), unit_norm(text), self.scale)


class FrozenTextCLIP(PromptedCLIP):
    """The same for methods that leave the text encoder alone: class weights are made once."""

    _frozen_weights: Tensor | None = None

    @torch.no_grad()
    def class_weights(self) -> Tensor:
        """Class weights h, (K, D), in training too."""
        if self._frozen_weights is None:
            self._frozen_weights = super().class_weights()
        return self._frozen_weights

    def training_weights(self) -> Tensor:
        """The same: nothing that trains takes part in them."""
        return self.class_weights()


@torch.no_grad()
def template_means(
    model: PromptedCLIP, classnames: Sequence[str], templates: Sequence[Callable[[str], str]]
) -> Tensor:
    """The pre-trained model's features of the classes, mean over templates, (K, D).

    They are not normalised, neither before the mean nor after it.
    """
    backbone = model.backbone
    prompts = [[template(readable(name)) for template in templates] for name in classnames]
    bank = backbone.text_bank(prompts).to(model.bank.tokens.device)
    with clip.adapters_disabled(model):
        return bank.class_means(bank.encode_all(backbone, unit=False))
