"""PromptAlign: prompts of both towers adapt to an image whose tokens should look like the source's.

"Align Your Prompts: Test-Time Prompting with Distribution Alignment for Zero-Shot Generalization",
NeurIPS 2023, arXiv:2311.01459.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip import adapter_parameters
from dassl.config.schema import PATH, Option, count, one_of, with_defaults
from dassl.engine import TRAINER_REGISTRY
from trainers.base.options import LAYERS, weight
from trainers.finetuning.stages import FirstStageError
from trainers.test_time.episodes import ENTROPIES, EPISODE_DEFAULTS
from trainers.test_time.starts import FIRST_STAGE_KEY, StartedTrainer
from trainers.test_time.token_statistics import (
    COMMAND,
    FILE_NAME,
    FORMAT,
    TokenStatistics,
    model_hash,
    read_statistics,
    run_statistics,
)
from trainers.test_time.towers import adapted_tower_logits, chosen_pictures

ALIGNMENTS = ("released", "paper")
_KEY = "TRAINER.PromptAlign.STATISTICS"
_DEFAULTS = {name: value for name, value in EPISODE_DEFAULTS.items() if name != "CTX_INIT"}


def alignment(tokens: Sequence[Tensor], mean: Tensor, variance: Tensor) -> Tensor:
    """``sum_l mean |mu_l - mu*_l| + mean |var_l - var*_l|`` over some blocks, a scalar.

    mu and var, the biased variance, are over the views, per token and channel.

    Args:
        tokens: Inputs of each block, (S, L, W), of S views, its own prompts among them.
        mean: mu* of these blocks, (len(tokens), L, W).
        variance: var*, likewise.
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
class PromptAlign(StartedTrainer):
    """PromptAlign: per image, TPT's loss and the distance of token statistics from the source's.

    Tuned are all parameters that MaPLe trained, see :class:`trainers.maple.MaPLe`: the text prompts
    of all sets, and the maps that make vision prompts of them. Every image starts from the trained
    ones, of FIRST_STAGE.DIR or ``--model-dir``, whose form is the section TRAINER.MaPLe. MaPLe has
    to be trained for 2 epochs with 3 sets of prompts; 5 epochs cost ImageNet-A 6 points.

    Config, ``TRAINER.PromptAlign``: the episodes', see
    :class:`trainers.test_time.episodes.EpisodicTrainer`. LR is
    0.04 for ImageNet's shifts and, in the YAML's PER_DATASET, 0.0005 for fine-grained datasets.
    AugMix is never used. BETA is the alignment's weight. ALIGN:

    ``released`` (default; the authors' code and the numbers the field cites): BETA / LAYERS times
    the sum over the inputs of the vision blocks 0 .. LAYERS - 2, half of each term, with LAYERS 3:
    the configuration's "from 0 to 3" ends one block early there, but the weight is divided by 3.
    ``paper``: BETA times the mean over the inputs of all blocks, without halves.

    Both take an L1 distance as the mean over tokens and channels, as the code does.

    A block's input are the tokens that it works on: deep prompts of its own have replaced the last
    block's already.

    STATISTICS is the file of mu* and var*, made by ``scripts/promptalign_statistics.py``; if empty,
    it is ``token_statistics.pt`` in the start's directory, and made on first use over all training
    images of the dataset that the start was trained on.

    The loss is that of the selected views of the first step in all STEPS. Each image's views pass
    the image encoder twice, the selected ones with gradients; images are adapted one by one.
    """

    needs_transformers = True
    start = "MaPLe"
    defaults = {
        **with_defaults(_DEFAULTS, LR=4e-2),
        "BETA": weight(100.0, "the alignment"),
        "ALIGN": Option("released", one_of(*ALIGNMENTS), "which blocks are aligned, and how"),
        "LAYERS": Option(3, count(2, LAYERS), "blocks that are aligned, as released counts them"),
        "STATISTICS": Option("", PATH, "file of the token statistics; '' makes it on first use"),
    }

    _statistics: TokenStatistics | None = None

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        how = {
            "released": "two blocks' halves over LAYERS, as the released code",
            "paper": "the mean over all blocks, unlike the released code",
        }
        return [f"statistics are aligned as {how[self.options.ALIGN]} (ALIGN)"]

    def adapts_towers(self, cfg: CfgNode) -> bool:
        """MaPLe's prompts, which deeper blocks have too."""
        return True

    def build_model(self) -> nn.Module:
        """MaPLe's classifier, frozen."""
        return self.started_model()

    def adapted_parameters(self) -> int:
        """All of MaPLe's."""
        return sum(p.numel() for p in adapter_parameters(self.model).values())

    @property
    def blocks(self) -> range:
        """Numbers of the vision blocks whose inputs are aligned."""
        number = len(self.model.backbone.vision_transformer.resblocks)
        released = min(self.options.LAYERS - 1, number)
        return range(number if self.options.ALIGN == "paper" else released)

    @property
    def statistics(self) -> TokenStatistics:
        """mu* and var*, read or, if there is no file yet, made.

        Raises:
            FileNotFoundError: STATISTICS names no file.
            FirstStageError: There is no start, or it does not say what it was trained on.
            ValueError: STATISTICS is of another model, or of an earlier format.
        """
        if self._statistics is None:
            self.require_start()
            self._statistics = self._find_statistics()
        return self._statistics

    def _find_statistics(self) -> TokenStatistics:
        named, own = self.options.STATISTICS, model_hash(self.model)
        path = Path(named or self.start_directory, "" if named else FILE_NAME)
        if named or path.is_file():
            found = read_statistics(path, _KEY)
            if found.format != FORMAT:
                trouble = f"has token statistics of format {found.format}, not of {FORMAT}"
            elif found.model != own:
                trouble = (
                    "was made with another model (backbone or trained prompts) than "
                    f"{self.start_directory}"
                )
            else:
                return found
            if named:
                raise ValueError(f"{_KEY}: {path} {trouble}; repeat {COMMAND}, or leave it empty")
            print(f'"{path}" {trouble}: they are made again')
        try:
            return run_statistics(self, self.start_directory, path)
        except ValueError as error:
            raise FirstStageError(f"{FIRST_STAGE_KEY}: {error}") from None

    def load_model(self, directory: Any, epoch: int | None = None) -> None:
        """See ``load_model``; finds the statistics too."""
        super().load_model(directory, epoch)
        self._statistics = None
        self.statistics  # noqa: B018 - what is wrong with them should show before the first image

    def model_inference(self, input: Tensor) -> Tensor:
        """See :meth:`trainers.test_time.episodes.EpisodicTrainer.model_inference`."""
        self.statistics  # noqa: B018 - made outside of what is timed
        return super().model_inference(input)

    def penalty(self, tokens: Sequence[Tensor]) -> Tensor:
        """The weighted alignment.

        Args:
            tokens: Inputs of :attr:`blocks`, each (S, L, W).
        """
        options, blocks, targets = self.options, self.blocks, self.statistics
        rows = slice(blocks.start, blocks.stop)
        device = tokens[0].device if tokens else self.device
        mean, variance = (t[rows].to(device) for t in (targets.mean, targets.variance))
        weight = options.BETA / len(blocks)
        if options.ALIGN == "released":
            weight = 0.5 * options.BETA / options.LAYERS
        return weight * alignment(tokens, mean, variance)

    def encode(self, views: Tensor) -> Tensor:
        """View 0 and the most confident ones: (N, V, 3, S, S) bytes -> (N, 1 + S, 3, S, S)."""
        features = super().encode(views)
        return chosen_pictures(self.model, views, features, self.selected, self._finish)

    def predict_episodes(self, features: Tensor) -> Tensor:
        """Adapt to each image and classify its view 0.

        Args:
            features: Pictures, see :meth:`encode`.
        """
        options = self.options
        return adapted_tower_logits(
            self.model,
            features,
            ENTROPIES[options.ENTROPY],
            steps=options.STEPS,
            lr=options.LR,
            weight_decay=options.WEIGHT_DECAY,
            penalty=self.penalty,
            blocks=self.blocks,
        )

    def extra_result(self) -> dict[str, Any]:
        """Add what the views were aligned with."""
        found = self.statistics
        names = ("dataset", "images", "model", "format")
        about = {name: getattr(found, name) for name in names}
        return {**super().extra_result(), "token_statistics": about}
