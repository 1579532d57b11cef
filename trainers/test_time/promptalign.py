"""PromptAlign: prompts of both towers adapt to an image whose tokens should look like the source's.

"Align Your Prompts: Test-Time Prompting with Distribution Alignment for Zero-Shot Generalization",
NeurIPS 2023, arXiv:2311.01459.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from dassl.config.schema import PATH, Option, count, one_of, with_defaults
from dassl.engine import TRAINER_REGISTRY
from trainers.base import CLIPTrainer
from trainers.base.options import LAYERS, weight
from trainers.test_time.episodes import EPISODE_DEFAULTS, no_training
from trainers.test_time.starts import StartedEpisodes, started_model
from trainers.test_time.token_statistics import TokenStatistics, find_statistics
from trainers.test_time.towers import PromptStart, TunedPrompts, block_inputs

ALIGNMENTS = ("released", "paper")
_DEFAULTS = {name: value for name, value in EPISODE_DEFAULTS.items() if name != "CTX_INIT"}


def alignment(tokens: Sequence[Tensor], mean: Tensor, variance: Tensor) -> Tensor:
    """``sum_l mean |mu_l - mu*_l| + mean |var_l - var*_l|`` over some blocks, a scalar.

    mu and var, the biased variance, are over the S views, per token and channel, of each block's
    input (S, L, W), its own prompts included; mu* and var* of these blocks are (blocks, L, W).
    """
    terms = []
    for own, target, spread in zip(tokens, mean, variance, strict=True):
        # At the start, prompts are what they were for the statistics: the difference is exactly 0,
        # and so is its gradient, only if it is taken first.
        apart = own.to(torch.promote_types(own.dtype, torch.float32)) - target
        terms.append(apart.mean(0).abs().mean())
        terms.append((apart.var(0, correction=0) - spread).abs().mean())
    return torch.stack(terms).sum() if terms else mean.new_zeros(())


@TRAINER_REGISTRY.register()
class PromptAlign(CLIPTrainer):
    """PromptAlign: per image, TPT's loss and the distance of token statistics from the source's.

    Tuned are all parameters that MaPLe trained, see :class:`trainers.maple.MaPLe`: the text prompts
    of all sets, and the maps that make vision prompts of them. Every image starts from the trained
    ones, of FIRST_STAGE.DIR or ``--model-dir``, whose form is the section TRAINER.MaPLe. MaPLe has
    to be trained for 2 epochs with 3 sets of prompts; 5 epochs cost ImageNet-A 6 points.

    Config, ``TRAINER.PromptAlign``: the episodes', see
    :class:`trainers.test_time.episodes.Episodes`. LR is 0.04 for ImageNet's shifts and, in the
    YAML's PER_DATASET, 0.0005 for fine-grained datasets. AugMix is never used. BETA is the
    alignment's weight; ALIGN ``released`` or ``paper``, see :meth:`penalty`. STATISTICS is the file
    of mu* and var*, made by ``scripts/promptalign_statistics.py``; if empty, it is
    ``token_statistics.pt`` in the start's directory, and made on first use over all training images
    of the dataset of the start's run.

    The loss is that of the selected views of the first step in all STEPS. Each image's views pass
    the image encoder twice, the selected ones with gradients; images are adapted one by one.
    """

    protocols = ("ttt",)
    recipe_type = StartedEpisodes
    build_model = started_model
    forward_loss = no_training
    needs_transformers = True
    defaults = {
        **with_defaults(_DEFAULTS, LR=4e-2),
        "BETA": weight(100.0, "the alignment"),
        "ALIGN": Option("released", one_of(*ALIGNMENTS), "which blocks are aligned, and how"),
        "LAYERS": Option(3, count(2, LAYERS), "blocks that are aligned, as released counts them"),
        "STATISTICS": Option("", PATH, "file of the token statistics; '' makes it on first use"),
    }
    _statistics: TokenStatistics | None = None

    @classmethod
    def start_of(cls, cfg: CfgNode) -> str:
        """Name of the method that trained the start."""
        return "MaPLe"

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        how = {
            "released": "two blocks' halves over LAYERS, as the released code",
            "paper": "the mean over all blocks, unlike the released code",
        }
        return [f"statistics are aligned as {how[self.options.ALIGN]} (ALIGN)"]

    @property
    def statistics(self) -> TokenStatistics:
        """mu* and var*, see :func:`trainers.test_time.token_statistics.find_statistics`."""
        if self._statistics is None:
            self.recipe.require_start()
            where = (self.recipe.start_directory, self.options.STATISTICS)
            self._statistics = find_statistics(self.model, self.cfg, self.device, *where)
        return self._statistics

    def before_train(self) -> None:
        """Find the statistics, which all processes make together, then go on to the test."""
        self.set_model_mode("eval")
        self.statistics  # noqa: B018
        super().before_train()

    def load_model(self, directory: Any, epoch: int | None = None) -> None:
        """See ``load_model``; finds the statistics too."""
        super().load_model(directory, epoch)
        self._statistics = None
        self.statistics  # noqa: B018 - what is wrong with them should show before the first image

    def model_inference(self, input: Tensor) -> Tensor:
        """See :meth:`trainers.base.CLIPTrainer.model_inference`."""
        self.statistics  # noqa: B018 - made outside of what is timed
        return super().model_inference(input)

    @property
    def blocks(self) -> range:
        """Numbers of the vision blocks whose inputs are aligned."""
        number = len(self.model.backbone.vision_transformer.resblocks)
        # The released configuration's "from 0 to 3" ends one block early.
        released = min(self.options.LAYERS - 1, number)
        return range(number if self.options.ALIGN == "paper" else released)

    def penalty(self, tokens: Sequence[Tensor]) -> Tensor:
        """The weighted alignment of the inputs of :attr:`blocks`, each (S, L, W).

        ``released`` (default; the authors' code and the numbers the field cites): BETA / LAYERS
        times the sum over the blocks 0 .. LAYERS - 2, half of each term. ``paper``: BETA times the
        mean over all blocks, without halves. Both take an L1 distance as the mean over tokens and
        channels, as the code does.
        """
        options, blocks, source = self.options, self.blocks, self.statistics
        device = tokens[0].device if tokens else self.device
        mean, variance = (t[: len(blocks)].to(device) for t in (source.mean, source.variance))
        released = options.ALIGN == "released"
        weight = 0.5 * options.BETA / options.LAYERS if released else options.BETA / len(blocks)
        return weight * alignment(tokens, mean, variance)

    def episode(self, start: PromptStart, views: Tensor) -> Tensor:
        """See :class:`trainers.test_time.starts.StartedEpisodes`."""
        prompts = TunedPrompts(start, **self.recipe.adamw)
        for _ in range(self.options.STEPS):
            with torch.enable_grad(), block_inputs(self.model.backbone, self.blocks) as tokens:
                logits = prompts.logits(views[1:])  # (S, K)
                loss = self.recipe.entropy(logits) + self.penalty([tokens[b] for b in self.blocks])
            prompts.step(loss)
        return prompts.logits(views[:1])

    def extra_result(self) -> dict[str, Any]:
        """Add what the views were aligned with."""
        return {**super().extra_result(), "token_statistics": self.statistics.about()}
