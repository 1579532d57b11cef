"""Zero-shot CLIP (Radford et al. 2021, arXiv:2103.00020): nothing is trained."""

from __future__ import annotations

from torch import nn
from yacs.config import CfgNode

from clip.prompts import check_template, template_prompts
from dassl.config.schema import TEXT, Option
from dassl.engine import TRAINER_REGISTRY
from trainers.base import CLIPTrainer, PromptedCLIP
from trainers.base.options import templates
from trainers.base.templates import hand_made


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(CLIPTrainer):
    """One hand-made template per dataset (CoOp's), or ``TRAINER.ZeroshotCLIP.TEMPLATE``.

    ``DATASET.PROMPT_TEMPLATE``, if the user sets it, replaces the hand-made one, but not TEMPLATE.
    """

    defaults = {"TEMPLATE": Option("", TEXT, "replaces the dataset's own template")}
    frozen_image_encoder = True

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse a template without a place for the name."""
        super().check_cfg(cfg)
        template = cfg.TRAINER.ZeroshotCLIP.TEMPLATE
        if template:
            check_template(template, "TRAINER.ZeroshotCLIP.TEMPLATE")

    def build_model(self) -> nn.Module:
        """CLIP with the dataset's template."""
        template = self.options.TEMPLATE or self.template(hand_made(self.cfg.DATASET.NAME))
        prompts = template_prompts(self.dm.dataset.classnames, template)
        return PromptedCLIP(self.load_backbone(), prompts, renormalize=True)


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(CLIPTrainer):
    """The mean over a template ensemble, as CoOp's trainer of that name.

    ``TRAINER.ZeroshotCLIP2.TEMPLATES`` is 7 (open_clip's chosen ones; CoOp's choice) or 80. The
    dataset's hand-made template joins the 7, except on ImageNet; ``DATASET.PROMPT_TEMPLATE``, if
    the user sets it, joins either.
    """

    defaults = {"TEMPLATES": templates(7)}
    frozen_image_encoder = True

    def build_model(self) -> nn.Module:
        """CLIP with class weights from the ensemble."""
        size, dataset = self.options.TEMPLATES, self.cfg.DATASET.NAME
        own = hand_made(dataset) if size == 7 and dataset != "ImageNet" else ""
        prompts = self.ensemble(self.dm.dataset.classnames, size, own)
        return PromptedCLIP(self.load_backbone(), prompts, renormalize=True)
