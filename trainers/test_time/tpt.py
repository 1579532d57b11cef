"""TPT: context tokens of the prompt adapt to each unlabelled image.

"Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models", NeurIPS 2022,
arXiv:2209.07511.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from yacs.config import CfgNode

import clip
from clip import adapter_parameters, attach_text_prompts, freeze_except
from clip.text import unit_norm
from dassl.config.schema import Option, one_of, with_defaults
from dassl.data.wrapper import ImageLoader
from dassl.engine import TRAINER_REGISTRY
from trainers.base import PromptedCLIP
from trainers.base.options import text_prompts
from trainers.test_time.augmix import add_augmix
from trainers.test_time.episodes import ENTROPIES, EPISODE_DEFAULTS, most_confident, take_views
from trainers.test_time.starts import STARTS, StartedTrainer
from trainers.test_time.towers import adapted_tower_logits, chosen_pictures

_VECTORS = "backbone.text_prompts.vectors"


class ClassTexts(nn.Module):
    """The class weights as a function of the context tokens: () -> (K, D), with gradients.

    Args:
        backbone: With text prompts attached.
        bank: One prompt per class.
    """

    def __init__(self, backbone: clip.Backbone, bank: clip.TextBank) -> None:
        super().__init__()
        self.backbone, self.bank = backbone, bank

    def forward(self) -> Tensor:
        """Unit-norm class weights, (K, D)."""
        text = self.bank.encode(self.backbone, torch.arange(len(self.bank)))
        return F.normalize(self.bank.class_means(text), dim=-1)


@TRAINER_REGISTRY.register()
class TPT(StartedTrainer):
    """TPT: per image, entropy minimisation on the context tokens of the prompt.

    Image features need no gradient, only the text encoder runs again. All images start from the
    same tokens, so that the first step's texts are encoded once for a whole batch.

    Config, ``TRAINER.TPT``: the episodes', see
    :class:`trainers.test_time.episodes.EpisodicTrainer`; N_CTX
    context tokens, which start as the first words of CTX_INIT; AUGMIX, whether views but the first
    go through AugMix too, as the authors have it on the ten fine-grained datasets and not on
    ImageNet and its shifts; START, "" or the method of a trained run, see
    :class:`trainers.test_time.starts.StartedTrainer`, which stands for N_CTX and CTX_INIT:

    ``CoOp`` (the paper's, arXiv:2209.07511): its context (M, W) is tuned.
    ``CoCoOp`` (the paper's): its context for the clean view, (1, M, W), is tuned, not the network
    that made it. As in the authors' code the network is fed the feature as the encoder gives it,
    which has not unit norm, unlike in CoCoOp itself. Each image has texts of its own from the start
    on: one more pass of the text encoder.
    ``MaPLe`` (the baseline of PromptAlign, arXiv:2311.01459, whose loss this is without its
    alignment): all that MaPLe trained is tuned, the text prompts of all sets and the maps that make
    vision prompts of them. The image encoder runs again too, on the selected views.

    A text encoder's forward and backward pass over all K prompts per image is what an episode costs
    in time and memory, whatever BATCH is.
    """

    defaults = {
        **with_defaults(EPISODE_DEFAULTS, LR=5e-3),
        "N_CTX": text_prompts(4),
        "AUGMIX": Option(False, None, "views but the first go through AugMix too"),
        "START": Option("", one_of("", *STARTS), "method of a trained run to start from"),
    }

    def check_cfg(self, cfg: CfgNode) -> None:
        """See :meth:`trainers.test_time.episodes.EpisodicTrainer.check_cfg`.

        Raises:
            ValueError: START is no method to start from.
        """
        super().check_cfg(cfg)

    def adapts_towers(self, cfg: CfgNode) -> bool:
        """With MaPLe's prompts, which deeper blocks have too."""
        return cfg.TRAINER.TPT.START == "MaPLe"

    @property
    def start(self) -> str:
        """See :class:`trainers.test_time.starts.StartedTrainer`."""
        return self.options.START

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        augmix = "go" if self.options.AUGMIX else "do not go"
        return [
            f"views {augmix} through AugMix; in the release those of the fine-grained datasets do",
            "classes have the names of the dataset's reader; the release has lists of its own",
        ]

    def build_model(self) -> nn.Module:
        """The frozen backbone with context tokens in its text tower, or a start's prompts."""
        options = self.options
        if self.start:
            return self.started_model()
        if not options.CTX_INIT:
            raise ValueError(
                "TRAINER.TPT.CTX_INIT is empty: the context tokens take the place of its first "
                "words; the paper's are 'a photo of a'"
            )
        backbone = self.load_backbone()
        prompts = attach_text_prompts(
            backbone, n_ctx=options.N_CTX, depth=1, init=options.CTX_INIT.replace("_", " ")
        )
        freeze_except(backbone)
        backbone.requires_grad_(False)  # the tokens of an episode are copies
        model = PromptedCLIP(
            backbone, self.prompts(options.CTX_INIT, learned=True), renormalize=True
        )
        if prompts is not None:
            prompts.check_texts(model.bank.tokens)
        return model

    def _views_loader(self, plain: Any) -> ImageLoader:
        loader = super()._views_loader(plain)
        if self.options.AUGMIX:
            dataset: Any = loader.dataset
            add_augmix(dataset.transform)
        return loader

    def adapted_parameters(self) -> int:
        """The context tokens', or what a start has instead."""
        if self.start == "MaPLe":
            return sum(p.numel() for p in adapter_parameters(self.model).values())
        return self.model.backbone.text_prompts.vectors.numel()

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Features (B, D), unit norm but for the start from CoCoOp, which needs theirs."""
        if self.start == "CoCoOp":
            return self.model.raw_image_features(pictures)
        return super().encode_pictures(pictures)

    def encode(self, views: Tensor) -> Tensor:
        """What episodes start from: features (N, V, D), or pictures for the start from MaPLe."""
        features = super().encode(views)
        if self.start != "MaPLe":
            return features
        return chosen_pictures(self.model, views, features, self.selected, self._finish)

    def predict_episodes(self, features: Tensor) -> Tensor:
        """See :meth:`EpisodicTrainer.predict_episodes`."""
        options, prompts = self.options, self.model.backbone.text_prompts
        if self.start == "MaPLe":
            return adapted_tower_logits(
                self.model,
                features,
                ENTROPIES[options.ENTROPY],
                steps=options.STEPS,
                lr=options.LR,
                weight_decay=options.WEIGHT_DECAY,
            )
        if self.start != "CoCoOp":
            return self._adapted_logits(features, prompts.vectors)
        with torch.no_grad():
            contexts = prompts.contexts(features[:, 0])
        rows = zip(unit_norm(features), contexts, strict=True)
        return torch.cat([self._adapted_logits(f[None], context[None]) for f, context in rows])

    def _adapted_logits(self, features: Tensor, start: Tensor) -> Tensor:
        """Logits of view 0 of every image after its episode, (N, K).

        Args:
            features: Unit norm, (N, V, D).
            start: Context that all of them start from, (1, M, W).
        """
        model, options = self.model, self.options
        texts = ClassTexts(model.backbone, model.bank)
        loss = ENTROPIES[options.ENTROPY]
        start = start.detach().clone().requires_grad_()

        def encode(vectors: Tensor) -> Tensor:
            return functional_call(texts, {_VECTORS: vectors}, ()).to(features.dtype)

        with torch.enable_grad():
            text = encode(start)
            shared = text.detach().expand(len(features), -1, -1).clone().requires_grad_()
            logits = _logits(features, shared, model.scale)
            chosen = take_views(features, most_confident(logits.detach(), self.selected))
            (grads,) = torch.autograd.grad(loss(_logits(chosen, shared, model.scale)).sum(), shared)
            adapted = []
            for number, grad in enumerate(grads):
                vectors = start.detach().clone().requires_grad_()
                optimizer = torch.optim.AdamW(
                    [vectors], lr=options.LR, weight_decay=options.WEIGHT_DECAY
                )
                last = number + 1 == len(grads)
                (vectors.grad,) = torch.autograd.grad(text, start, grad, retain_graph=not last)
                optimizer.step()
                for _ in range(options.STEPS - 1):
                    views = chosen[number : number + 1]
                    total = loss(_logits(views, encode(vectors)[None], model.scale)).sum()
                    (vectors.grad,) = torch.autograd.grad(total, vectors)
                    optimizer.step()
                adapted.append(vectors.detach())
        with torch.no_grad():
            found = torch.stack([encode(vectors) for vectors in adapted])
            return _logits(features[:, :1], found, model.scale)[:, 0]


def _logits(features: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Every image's views against its own class weights: (N, S, D), (N, K, D) -> (N, S, K)."""
    return scale * features @ text.mT
