"""RAda at test time: the mask adapts to each unlabelled image.

"One Last Attention for Your Vision-Language Model", ICCV 2025, arXiv:2507.15480, its test-time
training, which was never released: settings and equations are the paper's, what it leaves open is
TPT's (arXiv:2209.07511).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from clip import freeze_except
from dassl.config.schema import PATH, Option, with_defaults
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.graphs import Replayed, has_graphs
from dassl.results import read_result
from trainers.base import CLIPTrainer, FrozenTextCLIP
from trainers.heads import RationalHead
from trainers.rada import MASK_DEFAULTS, rational_head
from trainers.test_time.episodes import (
    ENTROPIES,
    EPISODE_DEFAULTS,
    Episodes,
    most_confident,
    no_training,
    take_views,
)
from trainers.test_time.mask import Masks, is_untouched, load_mask, start_logits
from trainers.test_time.starts import FLAG

_KEY = "TRAINER.RAdaTTT.FROM"
_FORM = ("HEADS", "QUERIES", "SOFTMAX", "MASK_LAYERS")  # what a mask's weights do not tell


def adapted_logits(
    head: RationalHead,
    features: Tensor,
    text: Tensor,
    scale: Tensor,
    *,
    selected: int,
    entropy: str,
    steps: int,
    lr: float,
    weight_decay: float,
    untouched: bool | None = None,
) -> Tensor:
    """Adapt a copy of the mask to each image; logits of its view 0 under that copy, (N, K).

    Args:
        head: The mask that every image starts from; it stays as it is.
        features: f of all views, unit norm, (N, V, D).
        text: h, unit norm, (K, D).
        scale: s.
        selected: Views to learn from, S.
        entropy: A key of ``ENTROPIES``.
        steps: Of AdamW.
        lr: Of AdamW.
        weight_decay: Of AdamW.
        untouched: What :func:`trainers.test_time.mask.is_untouched` says, which is asked for None.
    """
    if untouched is None:
        untouched = is_untouched(head)
    with torch.no_grad():
        start = start_logits(head, features, text, scale, untouched)  # (N, V, K)
        confident = take_views(features, most_confident(start, selected))  # (N, S, D)
    adamw = {"lr": lr, "weight_decay": weight_decay}
    masks = Masks(head, len(features), text, scale, untouched, **adamw)
    with torch.enable_grad():
        for _ in range(steps):
            masks.step(ENTROPIES[entropy](masks.logits(confident)))
    with torch.no_grad():
        return masks.logits(features[:, :1])[:, 0]


@TRAINER_REGISTRY.register()
class RAdaTTT(CLIPTrainer):
    """RAda, test-time training: per image, entropy minimisation on the mask alone.

    Mask and optimiser start anew with each image. From a mask of all ones only its output
    projection gets a gradient in the first step.

    Config, ``TRAINER.RAdaTTT``: the episodes', see :class:`trainers.test_time.episodes.Episodes`;
    the mask's, see :class:`trainers.rada.RAda` (REG has no effect here), and top-level TEMP; FROM,
    run directory of a trained ``RAda`` whose mask is the start (RAda dagger), or "" for ones. The
    paper gives no WEIGHT_DECAY; AdamW's own is the default.

    Each image of a batch has its own mask: 4 copies of its weights while it adapts (values, AdamW's
    two moments, gradient), 25 MB at D = 512, and 40 K D bytes or so per selected view.
    """

    protocols = ("ttt",)
    recipe_type = Episodes
    forward_loss = no_training
    _replayed: Replayed | None = None  # the episodes of a batch, as one CUDA graph
    defaults = {
        **with_defaults(EPISODE_DEFAULTS, STEPS=3, LR=8e-4),
        **with_defaults(MASK_DEFAULTS, SOFTMAX="row"),  # as RAda's, whose masks it starts from
        "FROM": Option("", PATH, "directory of a trained RAda whose mask is the start"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone, the frozen class weights, and the mask all episodes start from."""
        backbone = self.load_backbone()
        head = rational_head(self.cfg, self.options, backbone.embed_dim)
        freeze_except(backbone)
        prompts = self.prompts(self.options.CTX_INIT)
        model = FrozenTextCLIP(backbone, prompts, renormalize=True, head=head)
        if self.options.FROM:
            self._load_mask(head, self.options.FROM, None, _KEY)
        head.requires_grad_(False)
        return model

    def load_model(
        self, directory: str | os.PathLike[str] | None, epoch: int | None = None
    ) -> None:
        """Start all episodes from the mask of a trained ``RAda``, as FROM does.

        Args:
            directory: Run directory, also of another ``RAdaTTT``; empty or None does nothing.
            epoch: Number of epochs; None for the last.
        """
        result = read_result(directory) if directory else None
        if result and result["trainer"] == type(self).__name__:
            directory = result["model_dir"]  # what that one started from, unless its FROM says it
        if not directory:
            super().load_model(directory, epoch)
            return
        self._load_mask(self.model.head, directory, epoch, FLAG)
        self.identity.loaded_from = (os.fspath(directory), epoch)

    def _load_mask(
        self, head: RationalHead, directory: str | os.PathLike[str], epoch: int | None, key: str
    ) -> None:
        options = self.options
        form = {"TEMP": self.cfg.TEMP, **{f"TRAINER.RAdaTTT.{n}": options[n] for n in _FORM}}
        load_mask(head, directory, epoch, form, self.checkpoint_meta(), key)
        self._replayed = None  # it may have been recorded for a mask of ones

    def adapted(self) -> Mapping[str, Tensor]:
        """The mask."""
        return {f"head.{name}": p for name, p in self.model.head.named_parameters()}

    def predict_episodes(self, features: Tensor) -> Tensor:
        """See :func:`adapted_logits`; features (N, V, D), unit norm."""
        with torch.autocast(features.device.type, enabled=False), torch.no_grad():
            if self.cfg.TRAIN.CUDA_GRAPHS and has_graphs(self.device, self.notes):
                if self._replayed is None:
                    untouched = is_untouched(self.model.head)
                    episodes = partial(self._episodes, untouched=untouched)
                    self._replayed = Replayed(lambda batch: [episodes(batch)], self.notes)
                if self._replayed.takes(features):
                    (logits,) = self._replayed(features)
                    return logits.clone()
            return self._episodes(features)

    def _episodes(self, features: Tensor, untouched: bool | None = None) -> Tensor:
        model, options = self.model, self.options
        text = model.class_weights().to(features.dtype)  # (K, D)
        scale = model.scale.to(features.dtype)
        settings = {"steps": options.STEPS, "entropy": options.ENTROPY, **self.recipe.adamw}
        settings |= {"selected": self.recipe.selected, "untouched": untouched}
        return adapted_logits(model.head, features, text, scale, **settings)
