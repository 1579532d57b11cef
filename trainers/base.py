"""What our methods share: reading the backbone and the prompts from the config."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

import clip
from clip.prompts import described_prompts, template_prompts
from clip.text import unit_norm
from dassl.engine import TrainerX
from trainers.config import resolve
from trainers.templates import hand_made


class CLIPTrainer(TrainerX):
    """Base of the methods: a frozen backbone, prompts from the config, documented defaults.

    A method sets ``defaults`` (its keys under ``TRAINER.<name>``), returns one module from
    ``build_model`` and computes its loss in ``forward_loss``. The engine does the rest.
    """

    defaults: ClassVar[dict[str, Any]] = {}

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add the method's own keys and their defaults to a config."""
        cfg.TRAINER[cls.__name__] = CfgNode({"PREC": "fp32", **cls.defaults})

    @property
    def options(self) -> CfgNode:
        """The method's section of the config."""
        return self.cfg.TRAINER[type(self).__name__]

    def load_backbone(self) -> clip.Backbone:
        """The pre-trained model the config names, frozen."""
        name = self.cfg.MODEL.BACKBONE.NAME
        print(f"Loading CLIP (backbone: {name})")
        return clip.load(name, precision="fp16" if self.precision == "fp16" else "fp32")

    def prompts(self) -> list[list[str]]:
        """Each class's prompts: with descriptions if ``DATASET.PROMPT_PATH`` names some."""
        dataset = self.cfg.DATASET
        names = self.dm.dataset.classnames
        template = dataset.PROMPT_TEMPLATE or hand_made(dataset.NAME)
        if dataset.PROMPT_PATH:
            return described_prompts(names, template, resolve(dataset.PROMPT_PATH))
        return template_prompts(names, template)


class PromptedCLIP(nn.Module):
    """A backbone with a bank of prompts: CLIP's classifier over K classes.

    Args:
        backbone: The (possibly adapted) model.
        prompts: Each class's prompts.
        renormalize: Scale the means of a class's prompt features to unit norm.
    """

    def __init__(
        self, backbone: clip.Backbone, prompts: list[list[str]], *, renormalize: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.bank = clip.TextBank(prompts, backbone.tokenize, backbone.end_of_text())
        self.renormalize = renormalize

    @property
    def scale(self) -> Tensor:
        """Factor of the cosine similarities, a scalar without gradient."""
        return self.backbone.logit_scale.detach().exp()

    def image_features(self, image: Tensor) -> Tensor:
        """Unit-norm image features: (B, 3, S, S) -> (B, D)."""
        return unit_norm(self.backbone.encode_image(image))

    def class_weights(self) -> Tensor:
        """Each class's mean prompt feature, (K, D)."""
        weights = self.bank.class_features(self.backbone)
        return F.normalize(weights, dim=-1) if self.renormalize else weights

    def forward(self, image: Tensor) -> Tensor:
        """Logits for evaluation: (B, 3, S, S) -> (B, K)."""
        features = self.image_features(image)
        return self.scale * features @ self.class_weights().to(features.dtype).T
