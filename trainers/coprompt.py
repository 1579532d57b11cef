"""CoPrompt: coupled prompts and adapters, consistent with the frozen model on other views.

"Consistency-guided Prompt Learning for Vision-Language Models", ICLR 2024, arXiv:2306.01195.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from clip import FeatureAdapter, TextBank, adapters_disabled
from clip.layouts import Ends
from clip.prompts import class_descriptions
from clip.text import at_least_single, take_rows
from dassl.config.paths import resolve
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, PromptedCLIP, released
from trainers.base.options import context_words, depth, precision, share, text_prompts, weight
from trainers.heads import cosine_logits
from trainers.losses import cosine_distance
from trainers.maple import maple_clip


class CoPromptCLIP(PromptedCLIP):
    """CLIP with an adapter behind each prompted tower, before features are normalised.

    The ratios are the shares of the adapters; the rest is for :class:`trainers.base.PromptedCLIP`.
    """

    def __init__(self, *args: Any, image_ratio: float, text_ratio: float, **options: Any) -> None:
        super().__init__(*args, **options)
        width = self.backbone.embed_dim
        self.image_adapter = FeatureAdapter(width, ratio=image_ratio)
        self.text_adapter = FeatureAdapter(width, ratio=text_ratio)

    @property
    def text_encoder(self) -> nn.Module:
        """This model: class weights come from behind the adapter."""
        return self

    def encode_text(self, tokens: Tensor, ends: Ends | None = None) -> Tensor:
        """Adapted text features, not normalised: (N, T) -> (N, D)."""
        return self.text_adapter(at_least_single(self.backbone.encode_text(tokens, ends)))

    def raw_image_features(self, image: Tensor) -> Tensor:
        """Adapted image features, not normalised: (B, 3, S, S) -> (B, D)."""
        return self.image_adapter(at_least_single(super().raw_image_features(image)))


@TRAINER_REGISTRY.register()
class CoPrompt(CLIPTrainer):
    """MaPLe's prompts and two adapters, held to the frozen model on another view and other words.

    CE(s f(x1) h^T, y) + LOSS_WEIGHT [(1 - mean cos(h, h0)) + (1 - mean cos(f(x1), f0(x2)))]

    x1, x2 are two augmentations of the images; h0 are the frozen features of each class's m-th
    sentence in ``DATASET.PROMPT_PATH``, m drawn anew in every step. The sentences stand alone,
    without a template, and are needed for training only.

    Config, ``TRAINER.CoPrompt``: the release keeps N_CTX, PROMPT_DEPTH and LOSS_WEIGHT per dataset
    in a table that overrides every flag (here ``base2novel.yaml``). In cross-dataset tests it takes
    the target's, which fails or drops layers, so ``cross_dataset.yaml`` has ImageNet's for all.
    """

    needs_transformers = True
    released_in_half = True
    model_name = "MultiModalPromptLearner"  # the released checkpoints' folder
    released_layout = released.coprompt
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
        options, names = self.options, self.dm.dataset.classnames
        self._teacher: tuple[TextBank, Tensor] | None = None
        self.sentence_generator = self.register_generator("sentences")
        ratios = {"image_ratio": options.IMAGE_RATIO, "text_ratio": options.TEXT_RATIO}
        return maple_clip(self.load_backbone(), names, options, CoPromptCLIP, **ratios)

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        return ["N_CTX, PROMPT_DEPTH and LOSS_WEIGHT go by dataset in base2novel, as released"]

    @torch.no_grad()
    def drawn_teacher_text(self) -> Tensor:
        """``h0``: frozen unit features of the m-th sentence of every class, m drawn anew, (K, D).

        Classes with fewer sentences than others take the one at the same fraction of their list.
        """
        # Read in the first step: evaluation needs no sentences, and may run without the file.
        if self._teacher is None:
            path, backbone = self.cfg.DATASET.PROMPT_PATH, self.model.backbone
            if not path:
                raise ValueError(
                    "CoPrompt trains with sentences about the classes, but DATASET.PROMPT_PATH is "
                    "empty; name a file of descriptions (scripts/describe.py writes one)"
                )
            sentences = class_descriptions(self.dm.dataset.classnames, resolve(path))
            bank = backbone.text_bank(sentences).to(self.device)
            with adapters_disabled(self.model):
                self._teacher = bank, bank.encode_all(backbone)  # features (P, D)
        bank, features = self._teacher
        index = bank.sample(self.sentence_generator, together=True)  # (K,)
        return take_rows(features, index)

    def parse_batch_train(self, batch: Any) -> Any:
        """Images (B, 2, 3, S, S), both views of each; labels and domains."""
        if isinstance(batch["img"], list):
            batch = {**batch, "img": torch.stack(batch["img"], 1)}
        return super().parse_batch_train(batch)

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 2, 3, S, S) or, one view for both, (B, 3, S, S)."""
        model, weight = self.model, self.options.LOSS_WEIGHT
        x1, x2 = image.unbind(1) if image.ndim == 5 else (image, image)
        h0, f0 = self.drawn_teacher_text(), model.frozen_image_features(x2)  # (K, D), (B, D)
        f, h = model.image_features(x1), model.training_weights()  # (B, D), (K, D)
        logits = cosine_logits(f, h, model.scale)  # (B, K)
        parts = {
            "ce": F.cross_entropy(logits, label),
            "text": weight * cosine_distance(h, h0),
            "image": weight * cosine_distance(f, f0),
        }
        return StepOutput(torch.stack(list(parts.values())).sum(), logits, parts)
