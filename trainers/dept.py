"""DePT: a linear probe of the trained classes beside a host's prompts, on rescaled channels.

"DePT: Decoupled Prompt Tuning", CVPR 2024, arXiv:2309.07439.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.config.schema import Option, number, one_of
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, PromptedCLIP, released
from trainers.base.options import precision
from trainers.base.templates import DEFAULT, KGCOOP
from trainers.cocoop import cocoop_clip
from trainers.coop import coop_clip
from trainers.heads.probe import DecoupledCLIP
from trainers.kgcoop import kgcoop_clip, knowledge_distance
from trainers.maple import maple_clip


class Host(NamedTuple):
    """A method that DePT can be added to."""

    # (backbone, class names, the host's options) -> its model.
    build: Callable[..., PromptedCLIP]
    # (model, text features h', its options) -> what its loss adds to the cross entropy.
    penalty: Callable[[Any, Tensor, CfgNode], Tensor] | None = None
    # Templates of a frozen teacher by dataset, one of which ``build`` takes too.
    teacher: Mapping[str, str] | None = None


HOSTS = {
    "CoOp": Host(coop_clip),
    "CoCoOp": Host(cocoop_clip),
    "MaPLe": Host(maple_clip),
    "KgCoOp": Host(kgcoop_clip, lambda model, h, o: o.W * knowledge_distance(model, h), KGCOOP),
}


@TRAINER_REGISTRY.register()
class DePT(CLIPTrainer):
    """DePT: (1 - t) CE(host's logits, y) + t CE(probe's logits, y) + the host's penalty, if any.

    The probe reads h'[y] and f', not normalised; its cross entropy is the mean over the B texts and
    the B images. Evaluation on the trained classes may mix both logits; all other classes are
    tested with the host alone.

    Config, ``TRAINER.DePT``: the host's options stand in its own section. PROBE ``released`` lets
    the probe count for base classes, and for all classes of ImageNet and its variants, so that
    few-shot runs on other datasets are tested with the host alone; ``trained``, on whatever classes
    it was trained for. A released checkpoint may be in DePT's folder or the host's.
    """

    released_in_half = True
    needs_text_tower = True
    defaults = {
        "HOST": Option("CoOp", one_of(*HOSTS), "method that the probe joins"),
        "WEIGHT": Option(0.7, number(0, 1), "share of the probe's logits and loss"),
        "LR_FACTOR": Option(6.5, number(above=0), "the probe's learning rate over the host's"),
        "PROBE": Option("released", one_of("released", "trained"), "where its logits count"),
        "PREC": precision("amp"),
    }

    @property
    def host_options(self) -> CfgNode:
        """The host's section of the config."""
        return self.cfg.TRAINER[self.options.HOST]

    def keeps_features(self, cfg: CfgNode) -> bool:
        """Whether the host leaves the image encoder alone."""
        return TRAINER_REGISTRY.get(cfg.TRAINER.DePT.HOST).frozen_image_encoder

    def build_model(self) -> nn.Module:
        """The host's model with a probe."""
        options, dataset = self.options, self.dm.dataset
        host, extra = HOSTS[options.HOST], {}
        backbone = self.load_backbone()
        if host.teacher is not None:
            extra["template"] = self.template(host.teacher.get(self.cfg.DATASET.NAME, DEFAULT))
        model = host.build(backbone, dataset.classnames, self.host_options, **extra)
        return DecoupledCLIP(model, dataset.classnames, options.WEIGHT, self.probe_counts())

    def probe_counts(self) -> bool:
        """Whether PROBE lets the probe count for this run's classes, if it was trained for them."""
        classes, name = self.cfg.DATASET.SUBSAMPLE_CLASSES, self.cfg.DATASET.NAME
        as_released = classes == "base" or (classes == "all" and "ImageNet" in name)
        return as_released or self.options.PROBE == "trained"

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        counts = "counts" if self.probe_counts() else "does not count"
        return [
            f"on {self.options.HOST}",
            f"the probe {counts} where these classes are tested (PROBE {self.options.PROBE})",
        ]

    def param_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """The host's parameters, and the probe's at their own rate."""
        model: Any = module
        rate = self.cfg.OPTIM.LR * self.options.LR_FACTOR
        return [
            {"params": model.host.parameters()},
            {"params": model.probe.parameters(), "lr": rate},
        ]

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S) or cached features (B, D), labels (B,)."""
        host, probe, t = self.model.host, self.model.probe, self.options.WEIGHT
        f, h = host.raw_features(image)  # f' (B, D), h' (K, D); CoCoOp's h' (B, K, D)
        logits = host.similarity(f, h)  # (B, K)
        # Each image's own class, (B, D); CoCoOp's class features differ from image to image.
        own = h[label] if h.ndim == 2 else h[torch.arange(len(label), device=h.device), label]
        rows = torch.cat([probe.of_text(own), probe.of_image(f)])  # (2B, K)
        ce, probe_ce = F.cross_entropy(logits, label), F.cross_entropy(rows, label.repeat(2))
        loss, parts = (1 - t) * ce + t * probe_ce, {"ce": ce, "probe_ce": probe_ce}
        penalty = HOSTS[self.options.HOST].penalty
        if penalty is not None:
            parts["penalty"] = penalty(host, h, self.host_options)
            loss = loss + parts["penalty"]
        return StepOutput(loss, logits, parts)

    def checkpoint_folder(self, directory: str | os.PathLike[str], name: str) -> str:
        """DePT's own folder, or the host's if only that is there."""
        other = TRAINER_REGISTRY.get(self.options.HOST).model_name or name
        foreign = not Path(directory, name).is_dir() and Path(directory, other).is_dir()
        return other if foreign else name

    def convert_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the probe's rows of the run's classes; a class without one leaves the probe unused.

        The released layout is accepted, see :func:`trainers.base.released.dept`.
        """
        host, dataset = self.options.HOST, self.dm.dataset
        convert = TRAINER_REGISTRY.get(host).released_layout
        novel = self.cfg.DATASET.SUBSAMPLE_CLASSES == "new"
        state = released.dept(state_dict, self.model, host, convert, dataset, novel)
        if "probe.classes" not in state:
            return state
        return self.model.probe.fitted(state, "probe.", dataset)
