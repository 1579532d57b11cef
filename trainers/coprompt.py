"""CoPrompt: coupled prompts and adapters, consistent with the frozen model on other views.

"Consistency-guided Prompt Learning for Vision-Language Models", ICLR 2024, arXiv:2306.01195.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

import clip
from clip import TextBank, adapters_disabled
from clip.prompts import class_descriptions
from dassl.config.paths import resolve
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, PromptedCLIP
from trainers.base.options import context_words, depth, precision, share, text_prompts, weight
from trainers.clip_adapter import FeatureAdapter
from trainers.heads import cosine_logits
from trainers.losses import cosine_distance
from trainers.maple import maple_clip, released_prompts

_ADAPTER = re.compile(r"adapter_(image|text)\.fc\.([02])\.weight$")


class CoPromptCLIP(PromptedCLIP):
    """CLIP with an adapter behind each prompted tower, before features are normalised.

    Args:
        backbone: With coupled prompts.
        prompts: Each class's prompts.
        renormalize: See :class:`trainers.base.PromptedCLIP`.
        image_ratio: Share of the image adapter.
        text_ratio: Share of the text adapter.
    """

    def __init__(
        self,
        backbone: clip.Backbone,
        prompts: list[list[str]],
        *,
        renormalize: bool,
        image_ratio: float,
        text_ratio: float,
    ) -> None:
        super().__init__(backbone, prompts, renormalize=renormalize)
        self.image_adapter = FeatureAdapter(backbone.embed_dim, ratio=image_ratio)
        self.text_adapter = FeatureAdapter(backbone.embed_dim, ratio=text_ratio)

    def raw_image_features(self, image: Tensor) -> Tensor:
        """Adapted image features, not normalised: (B, 3, S, S) -> (B, D)."""
        return self.image_adapter(_single(super().raw_image_features(image)))

    def encode_text(self, tokens: Tensor, length: int | None = None) -> Tensor:
        """Adapted text features, not normalised: (N, T) -> (N, D)."""
        return self.text_adapter(_single(self.backbone.encode_text(tokens, length)))

    def class_weights(self) -> Tensor:
        """Each class's adapted feature, (K, D)."""
        return self._weights_of(self.bank.class_features(self))

    def training_weights(self) -> Tensor:
        """The same with gradients, in one batch."""
        text = self.bank.encode(self, torch.arange(len(self.bank)))
        return self._weights_of(self.bank.class_means(text))


def _single(features: Tensor) -> Tensor:
    """Features in the single precision of the adapters, whatever the encoder's weights are."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


@TRAINER_REGISTRY.register()
class CoPrompt(CLIPTrainer):
    """MaPLe's prompts and two adapters, held to the frozen model on another view and other words.

    CE(s f(x1) h^T, y) + LOSS_WEIGHT [(1 - mean cos(h, h0)) + (1 - mean cos(f(x1), f0(x2)))]

    x1, x2 are two augmentations of the images; h0 are the frozen features of one sentence of each
    class in ``DATASET.PROMPT_PATH``, the m-th of all of them, m drawn anew in every step. The
    sentences stand alone, without a template. They are needed for training only.

    Config, ``TRAINER.CoPrompt``: MaPLe's N_CTX, PROMPT_DEPTH, CTX_INIT, PREC; LOSS_WEIGHT;
    IMAGE_RATIO and TEXT_RATIO, the adapters' shares, 0.1 and 0.2 in the released code. Prompts,
    depth and weight are set per dataset (``base2novel.yaml``), where the release has them in a
    table that beats every flag; it takes them from the target dataset in cross-dataset tests, which
    then fail or drop layers, so ``cross_dataset.yaml`` has ImageNet's for all.
    """

    needs_transformers = True
    released_in_half = True
    model_name = "MultiModalPromptLearner"  # the released checkpoints' folder
    protocols = ("base2novel", "cross_dataset")
    defaults = {
        "N_CTX": text_prompts(4),
        "PROMPT_DEPTH": depth(12, "layers with prompts of their own"),
        "CTX_INIT": context_words("a photo of a"),
        "LOSS_WEIGHT": weight(8.0, "the consistency with the frozen model"),
        "IMAGE_RATIO": share(0.1, "the adapter in the image feature"),
        "TEXT_RATIO": share(0.2, "the adapter in the text feature"),
        "PREC": precision("amp"),
    }

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse other numbers of views than two, or one that serves as both."""
        super().check_cfg(cfg)
        if cfg.DATALOADER.K_TRANSFORMS not in (1, 2):
            raise ValueError(
                "CoPrompt compares two views of an image: DATALOADER.K_TRANSFORMS must be 2 (or "
                f"1, for the same view twice), got {cfg.DATALOADER.K_TRANSFORMS}"
            )

    def build_model(self) -> nn.Module:
        """The frozen backbone with coupled prompts, and the adapters behind it."""
        options = self.options
        self._teacher: tuple[TextBank, Tensor] | None = None
        self.sentence_generator = self.register_generator("sentences")
        return maple_clip(
            self, options, CoPromptCLIP,
            image_ratio=options.IMAGE_RATIO, text_ratio=options.TEXT_RATIO,
        )  # fmt: skip

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        return ["N_CTX, PROMPT_DEPTH and LOSS_WEIGHT go by dataset in base2novel, as released"]

    @torch.no_grad()
    def drawn_teacher_text(self) -> Tensor:
        """``h0``: frozen unit features of the m-th sentence of every class, m drawn anew, (K, D).

        Classes with fewer sentences than others take the one at the same fraction of their list.

        Raises:
            FileNotFoundError: The file of sentences is missing.
            ValueError: It is not named, or classes have no sentence.
        """
        if self._teacher is None:
            path, model = self.cfg.DATASET.PROMPT_PATH, self.model
            if not path:
                raise ValueError(
                    "CoPrompt trains with sentences about the classes, but DATASET.PROMPT_PATH is "
                    "empty; name a file of descriptions (scripts/describe.py writes one)"
                )
            sentences = class_descriptions(self.dm.dataset.classnames, resolve(path))
            bank = TextBank(sentences, model.backbone.tokenize, model.backbone.end_of_text())
            bank = bank.to(self.device)
            with adapters_disabled(model):
                self._teacher = bank, bank.encode_all(model.backbone)
        bank, features = self._teacher
        return features[bank.sample(self.sentence_generator, together=True).to(features.device)]

    def parse_batch_train(self, batch: Any) -> Any:
        """Images (B, 2, 3, S, S), both views of each; labels and domains."""
        views = batch["img"]
        if isinstance(views, list):
            batch = {**batch, "img": torch.stack(views, 1)}
        return super().parse_batch_train(batch)

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 2, 3, S, S) or, one view for both, (B, 3, S, S)."""
        model, weight = self.model, self.options.LOSS_WEIGHT
        x1, x2 = image.unbind(1) if image.ndim == 5 else (image, image)
        h0, f0 = self.drawn_teacher_text(), model.frozen_image(x2)
        f, h = model.image_features(x1), model.training_weights()
        logits = cosine_logits(f, h, model.scale)
        parts = {
            "ce": F.cross_entropy(logits, label),
            "text": weight * cosine_distance(h, h0),
            "image": weight * cosine_distance(f, f0),
        }
        return StepOutput(torch.stack(list(parts.values())).sum(), logits, parts)

    def convert_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Accept the released layout: MaPLe's, and the adapters."""
        released = released_prompts(state_dict, self.model, type(self).__name__)
        converted = super().convert_state_dict(released)
        for name, tensor in state_dict.items():
            if match := _ADAPTER.search(name):
                layer = "down" if match[2] == "0" else "up"
                converted[f"{match[1]}_adapter.{layer}.weight"] = tensor
        return converted
