"""DePT: a classifier of the trained classes beside a host's prompts, on channels of its own.

"DePT: Decoupled Prompt Tuning", CVPR 2024, arXiv:2309.07439.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

import clip
from dassl.config.schema import Option, number, one_of
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, PromptedCLIP
from trainers.base.dept_files import Convert, from_release, released_maple
from trainers.base.options import precision
from trainers.cocoop import cocoop_clip
from trainers.coop import coop_clip, released_context
from trainers.heads.probe import Probe
from trainers.kgcoop import kgcoop_clip, knowledge_distance, released_kgcoop
from trainers.maple import maple_clip


class Host(NamedTuple):
    """A method that DePT can be added to.

    Attributes:
        build: (trainer, the host's options) -> its model.
        convert: What reads its release's prompt learner.
        penalty: (model, text features h', its options) -> what its loss adds to the cross entropy.
        frozen_image: Whether it leaves the image encoder alone.
    """

    build: Callable[[CLIPTrainer, CfgNode], PromptedCLIP]
    convert: Convert
    penalty: Callable[[Any, Tensor, CfgNode], Tensor] | None = None
    frozen_image: bool = True


HOSTS = {
    "CoOp": Host(coop_clip, released_context),
    "CoCoOp": Host(cocoop_clip, released_context),
    "MaPLe": Host(maple_clip, released_maple, frozen_image=False),
    "KgCoOp": Host(
        kgcoop_clip,
        released_kgcoop,
        lambda model, h, options: options.W * knowledge_distance(model, h),
    ),
}


class DecoupledCLIP(nn.Module):
    """A host's model and the probe.

    Args:
        host: With one prompt per class.
        classnames: K names.
        weight: t.
        mixes: Whether the probe counts in evaluation, on the classes it was trained for.
    """

    def __init__(
        self, host: PromptedCLIP, classnames: Sequence[str], weight: float, mixes: bool = True
    ) -> None:
        super().__init__()
        self.host = host
        self.probe = Probe(classnames, host.backbone.embed_dim)
        self.weight, self.mixes = weight, mixes

    @property
    def backbone(self) -> clip.Backbone:
        """The host's."""
        return self.host.backbone

    def forward(self, image: Tensor) -> Tensor:
        """(1 - t) host's logits + t probe's on its classes, the host's on others: -> (B, K)."""
        f = self.host.raw_image_features(image)
        logits = self.host(f)
        if not (self.mixes and self.probe.enabled and self.probe.knows_classes()):
            return logits
        return (1 - self.weight) * logits + self.weight * self.probe.of_image(f)


@TRAINER_REGISTRY.register()
class DePT(CLIPTrainer):
    """DePT: (1 - t) CE(host's logits, y) + t CE(probe's logits, y) + the host's penalty, if any.

    The probe reads h'[y] and f', not normalised; its mean is over the B texts and the B images.
    Evaluation on the classes that were trained may mix both logits; on any others the host's count
    alone.

    Config, ``TRAINER.DePT``: HOST, a name of ``HOSTS``, with its options in its own section; WEIGHT
    t; LR_FACTOR, learning rate of the probe as a multiple of the host's; PREC. PROBE, where the
    probe's logits count: ``released``, for base classes, and for all classes of ImageNet and its
    variants, so that few-shot runs on other datasets are tested with the host alone; ``trained``,
    on whatever classes it was trained for.
    A released checkpoint may be in DePT's folder or the host's ("prompt_learner"; MaPLe's,
    "MultiModalPromptLearner"); which classes its probe serves, see :mod:`trainers.base.dept_files`.
    """

    released_in_half = True
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
        return HOSTS[cfg.TRAINER.DePT.HOST].frozen_image

    def build_model(self) -> nn.Module:
        """The host's model with a probe."""
        options, dataset = self.options, self.dm.dataset
        host = HOSTS[options.HOST].build(self, self.host_options)
        return DecoupledCLIP(host, dataset.classnames, options.WEIGHT, self.probe_counts())

    def probe_counts(self) -> bool:
        """Whether PROBE lets the probe count for this run's classes, if it was trained for them."""
        classes, name = self.cfg.DATASET.SUBSAMPLE_CLASSES, self.cfg.DATASET.NAME
        released = classes == "base" or (classes == "all" and "ImageNet" in name)
        return released or self.options.PROBE == "trained"

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
        f, h = host.features(image)
        logits = host.similarity(f, h)
        own = h[label] if h.ndim == 2 else h[torch.arange(len(label), device=h.device), label]
        ce = F.cross_entropy(logits, label)
        rows = torch.cat([probe.of_text(own), probe.of_image(f)])  # (2B, K)
        probe_ce = F.cross_entropy(rows, label.repeat(2))
        loss, parts = (1 - t) * ce + t * probe_ce, {"ce": ce, "probe_ce": probe_ce}
        penalty = HOSTS[self.options.HOST].penalty
        if penalty is not None:
            parts["penalty"] = penalty(host, h, self.host_options)
            loss = loss + parts["penalty"]
        return StepOutput(loss, logits, parts)

    def checkpoint_folder(self, directory: str | os.PathLike[str], name: str) -> str:
        """Its own; if it is not there, the host's."""
        other = TRAINER_REGISTRY.get(self.options.HOST).model_name or name
        foreign = not Path(directory, name).is_dir() and Path(directory, other).is_dir()
        return other if foreign else name

    def convert_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the probe's rows of the run's classes; where one has none, it will stay unused.

        The released layout is accepted, see :func:`trainers.base.dept_files.from_release`.
        """
        host = self.options.HOST
        state_dict = from_release(state_dict, self, host, HOSTS[host].convert)
        if "probe.classes" not in state_dict:
            return state_dict
        return self.model.probe.fitted(state_dict, "probe.", self.dm.dataset)
