"""RAda at test time: the mask adapts to each unlabelled image.

"One Last Attention for Your Vision-Language Model", ICCV 2025, arXiv:2507.15480, its test-time
training, which was never released: settings and equations are the paper's, what it leaves open is
TPT's (arXiv:2209.07511).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clip import freeze_except
from dassl.config import user_path
from dassl.config.schema import PATH, Option, with_defaults
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.checkpoint import checkpoint_path, read_checkpoint, replaced_backbone
from dassl.engine.result import read_result
from dassl.utils.torchtools import weights_in
from trainers.base import FrozenTextCLIP, backbone_content
from trainers.heads import RationalHead, cosine_logits
from trainers.rada import MASK_DEFAULTS, rational_head
from trainers.test_time.episodes import (
    ENTROPIES,
    EPISODE_DEFAULTS,
    EpisodicTrainer,
    most_confident,
    take_views,
)
from trainers.test_time.mask import adapt, is_untouched, stacked_logits

_KEY = "TRAINER.RAdaTTT.FROM"
_SHARED = ("HEADS", "QUERIES", "SOFTMAX", "PROJ_LAYERS")  # what a mask's weights do not tell


@TRAINER_REGISTRY.register()
class RAdaTTT(EpisodicTrainer):
    """RAda, test-time training: per image, entropy minimisation on the mask alone.

    The most confident views' entropy is minimised by steps of AdamW on the mask; the clean view is
    predicted; mask and optimiser start anew with the next image. From a mask of all ones only its
    output projection gets a gradient in the first step.

    Config, ``TRAINER.RAdaTTT``: the episodes', see
    :class:`trainers.test_time.episodes.EpisodicTrainer`; the
    mask's, see :class:`trainers.rada.RAda` (REG has no effect here), and top-level TEMP; FROM, run
    directory of a trained ``RAda`` whose mask is the start (RAda dagger), or "" for ones. The paper
    gives no WEIGHT_DECAY; AdamW's own is the default.

    Each image of a batch has its own mask: 4 copies of its weights while it adapts (values, AdamW's
    two moments, gradient), 25 MB at D = 512, and 40 K D bytes or so per selected view.
    """

    defaults = {
        **with_defaults(EPISODE_DEFAULTS, STEPS=3, LR=8e-4),
        **MASK_DEFAULTS,
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
            load_mask(head, self.options.FROM, self.cfg, self.options, None, _KEY)
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
        load_mask(self.model.head, directory, self.cfg, self.options, epoch, "--model-dir")
        self.identity.loaded_from = (os.fspath(directory), epoch)

    def adapted_parameters(self) -> int:
        """The mask's."""
        return sum(p.numel() for p in self.model.head.parameters())

    def predict_episodes(self, features: Tensor) -> Tensor:
        """See :meth:`EpisodicTrainer.predict_episodes`."""
        model, options = self.model, self.options
        with torch.autocast(features.device.type, enabled=False), torch.no_grad():
            text = model.class_weights().to(features.dtype)
            scale = model.scale.to(features.dtype)
            return adapted_logits(
                model.head,
                features,
                text,
                scale,
                selected=self.selected,
                entropy=options.ENTROPY,
                steps=options.STEPS,
                lr=options.LR,
                weight_decay=options.WEIGHT_DECAY,
            )


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
) -> Tensor:
    """Logits of view 0 of every image after its episode, (N, K).

    Args:
        head: Where all episodes start; it stays as it is.
        features: f, unit norm, (N, V, D).
        text: h, unit norm, (K, D).
        scale: s.
        selected: Views to learn from, S.
        entropy: A key of ``ENTROPIES``.
        steps: Of AdamW.
        lr: Of AdamW.
        weight_decay: Of AdamW.
    """
    with torch.no_grad():
        if is_untouched(head):  # a mask of ones changes no logit
            start = cosine_logits(features, text, scale)
        else:
            # An image at a time: its rational matrices are V K D numbers, and there is no batch of
            # weights here that would gain from more.
            start = torch.stack([head(views, text, scale).logits for views in features])
        chosen = take_views(features, most_confident(start, selected))
    with torch.enable_grad():
        layers = adapt(
            head,
            chosen,
            text,
            scale,
            ENTROPIES[entropy],
            steps=steps,
            lr=lr,
            weight_decay=weight_decay,
        )
    with torch.no_grad():
        return stacked_logits(head, layers, features[:, :1], text, scale)[:, 0]


def load_mask(
    head: RationalHead,
    directory: str | os.PathLike[str],
    cfg: Any,
    options: Any,
    epoch: int | None,
    key: str,
) -> None:
    """Copy the mask of a trained ``RAda`` into ``head``.

    Args:
        head: Of the same form.
        directory: The run's.
        cfg: The current run's config.
        options: The current trainer's section.
        epoch: Number of epochs; None for the last.
        key: Config key or flag that named the directory, for messages.

    Raises:
        FileNotFoundError: The directory or its checkpoint is missing.
        ValueError: It is of another method, backbone or form of the mask.
    """
    root = Path(user_path(directory))
    if not root.is_dir():
        raise FileNotFoundError(
            f"{key}: no directory {root}; it must be the run directory of a trained RAda, or empty"
        )
    try:
        path = checkpoint_path(root, "RAda", epoch)
    except FileNotFoundError:
        within = root / "RAda" if (root / "RAda").is_dir() else root
        found = ", ".join(sorted(p.name for p in within.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"{key}: {root} has no checkpoint RAda/model.pth.tar-{epoch or '<epoch>'}; {within} "
            f"holds: {found}. Train one with --trainer RAda"
        ) from None
    try:
        checkpoint = read_checkpoint(path, {})
        state = weights_in(checkpoint, path)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    check_origin(root, path, checkpoint["meta"], cfg, options, key)
    head.check_state(state)
    own = {f"head.{name}": value for name, value in head.state_dict().items()}
    odd = [n for n in {**own, **state} if n not in own or n not in state]
    odd = odd or [n for n, value in state.items() if own[n].shape != value.shape]
    if odd:
        raise ValueError(
            f"{key}: {path} holds another mask than TRAINER.RAdaTTT describes: {odd[0]!r} and "
            f"{len(odd) - 1} more weights differ. QUERIES must be those of its training"
        )
    head.load_state_dict({name.removeprefix("head."): value for name, value in state.items()})
    print(f'Every episode starts from the mask in "{path}"')


def check_origin(
    root: Path, path: Path, meta: dict[str, Any], cfg: Any, options: Any, key: str
) -> None:
    """Refuse a mask that another method, backbone or way of computing it was trained with.

    Args:
        root: The run's directory.
        path: Its checkpoint.
        meta: Of the checkpoint.
        cfg: The current run's config.
        options: The current trainer's section.
        key: Config key or flag that named the directory, for messages.

    Raises:
        ValueError: One of them differs.
    """
    backbone = cfg.MODEL.BACKBONE.NAME
    for what, needed, remedy in (
        ("method", "RAda", "name a run of RAda"),
        ("backbone", backbone, f"set --backbone {meta.get('backbone')}, or name another run"),
    ):
        if meta.get(what, needed) != needed:
            raise ValueError(
                f"{key}: {path} was trained with {what} {meta[what]!r}, needed is {needed!r}; "
                f"{remedy}"
            )
    own = {"backbone": backbone, "backbone_sha256": backbone_content(backbone)}
    replaced = replaced_backbone(meta, own)
    if replaced:
        raise ValueError(f"{key}: since {path} was trained, {replaced}; repeat that run")
    trained = (read_result(root) or {}).get("config") or {}
    theirs = {"TEMP": trained.get("TEMP"), **trained.get("TRAINER", {}).get("RADA", {})}
    ours = {"TEMP": cfg.TEMP, **options}
    for name in ("TEMP", *_SHARED):
        value = list(ours[name]) if isinstance(ours[name], tuple) else ours[name]
        if theirs.get(name) is not None and theirs[name] != value:
            where = name if name == "TEMP" else f"TRAINER.RAdaTTT.{name}"
            raise ValueError(
                f"{key}: the mask in {root} was trained with {name} {theirs[name]!r}, but {where} "
                f"is {value!r}; set it to {theirs[name]!r}"
            )
