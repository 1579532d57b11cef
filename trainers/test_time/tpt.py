"""TPT: context tokens of the prompt adapt to each unlabelled image.

"Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models", NeurIPS 2022,
arXiv:2209.07511.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip import attach_text_prompts, freeze_except
from dassl.config.schema import Option, one_of, with_defaults
from dassl.engine import TRAINER_REGISTRY
from trainers.base import CLIPTrainer, PromptedCLIP
from trainers.base.options import text_prompts
from trainers.test_time.episodes import EPISODE_DEFAULTS, most_confident, no_training
from trainers.test_time.starts import STARTS, StartedEpisodes
from trainers.test_time.towers import PromptStart, TunedPrompts


@TRAINER_REGISTRY.register()
class TPT(CLIPTrainer):
    """TPT: per image, entropy minimisation on the context tokens of the prompt.

    Image features need no gradient, only the text encoder runs again.

    Config, ``TRAINER.TPT``: the episodes', see :class:`trainers.test_time.episodes.Episodes`; N_CTX
    context tokens, which start as the first words of CTX_INIT; AUGMIX, which the authors use on the
    ten fine-grained datasets and not on ImageNet and its shifts; START, "" or the method of a
    trained run, see :class:`trainers.test_time.starts.StartedEpisodes`, in place of N_CTX and
    CTX_INIT:

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

    protocols = ("ttt",)
    recipe_type = StartedEpisodes
    forward_loss = no_training
    defaults = {
        **with_defaults(EPISODE_DEFAULTS, LR=5e-3),
        "N_CTX": text_prompts(4),
        "AUGMIX": Option(False, None, "views but the first go through AugMix too"),
        "START": Option("", one_of("", *STARTS), "method of a trained run to start from"),
    }

    @classmethod
    def start_of(cls, cfg: CfgNode) -> str:
        """Name of the method that trained the start; "" for none."""
        return cfg.TRAINER.TPT.START

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
        if self.recipe.start:
            return self.recipe.started_model()
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

    def episode(self, start: PromptStart, views: Tensor) -> Tensor:
        """See :class:`trainers.test_time.starts.StartedEpisodes`."""
        prompts = TunedPrompts(start, **self.recipe.adamw)
        if views.ndim == 2:
            (chosen,) = most_confident(prompts.logits(views)[None], self.recipe.selected)  # (S,)
            confident = views[chosen]  # (S, D)
        else:
            confident = views[1:]  # (S, 3, H, W), chosen when they were encoded
        for _ in range(self.options.STEPS):
            with torch.enable_grad():
                loss = self.recipe.entropy(prompts.logits(confident))
            prompts.step(loss)
        return prompts.logits(views[:1])
