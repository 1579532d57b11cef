"""RAda: a learned mask over the rational matrix, on frozen features.

"One Last Attention for Your Vision-Language Model", ICCV 2025, arXiv:2507.15480: its efficient
fine-tuning.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from clip import freeze_except
from dassl.config.schema import Option, count, each, one_of
from dassl.engine import TRAINER_REGISTRY, StepOutput
from dassl.names import check_availability
from trainers.base import CLIPTrainer, FrozenTextCLIP, released
from trainers.base.options import LAYERS, MANY, context_words
from trainers.heads import QUERIES, REGULARIZERS, SOFTMAX, HeadOutput, RationalHead
from trainers.heads.mask_ablations import FeatureAttentionHead, MLPMaskHead

# Keys of every trainer with a mask, in its own section.
MASK_DEFAULTS: dict[str, Any] = {
    "HEADS": Option(8, count(1, 4096), "heads of the mask's attention"),
    "QUERIES": Option(QUERIES, each(one_of(*QUERIES), 1, 2, 3), "what the mask's queries are"),
    "SOFTMAX": Option("joint", one_of(*SOFTMAX), "over all scores of a head, or each row"),
    "REG": Option("l2", one_of(*REGULARIZERS), "norm of the mask's regulariser"),
    "PROJ_LAYERS": Option(1, count(1, LAYERS), "attention layers of the mask"),
}
HEADS = ("rational", "mlp", "text", "image", "both")


def rational_head(cfg: CfgNode, options: CfgNode, embed_dim: int) -> RationalHead:
    """The mask that a trainer's section and the top-level TEMP describe."""
    return RationalHead(
        embed_dim,
        num_heads=options.HEADS,
        temperature=cfg.TEMP,
        queries=options.QUERIES,
        softmax=options.SOFTMAX,
        layers=options.PROJ_LAYERS,
        regularizer=options.REG,
    )


def mask_loss(output: HeadOutput, label: Tensor, alpha: float) -> StepOutput:
    """CE(logits, y) + alpha * regulariser (arXiv:2507.15480, section 3), for labels (B,)."""
    ce = F.cross_entropy(output.logits, label)
    parts = {"ce": ce, "mask": output.penalty}
    return StepOutput(ce + alpha * output.penalty, output.logits, parts)


@TRAINER_REGISTRY.register()
class RAda(CLIPTrainer):
    """RAda, efficient fine-tuning: both encoders and the text features are frozen.

    Config, released keys: top level ALPHA, weight of the regulariser (paper: 1.5, robust from 0.5
    to 2.5), and TEMP, temperature of the mask's attention; in ``TRAINER.RADA``, CTX_INIT "" stands
    for each dataset's own prompts. Ours: SOFTMAX ``joint`` (released code: one softmax over all
    K * K scores of a head, times K) or ``row`` (as the paper reads); REG ``l2`` (paper), ``l1`` or
    ``linf`` (what the released ``rada.py`` runs); HEAD, which replaces the mask's attention as in
    Table 4: ``mlp``, or attention on the features instead of the rational matrix, ``text``,
    ``image`` or ``both``.
    """

    config_section = "RADA"
    released_layout = released.rada
    frozen_image_encoder = True
    static_step = True
    defaults = {
        **MASK_DEFAULTS,
        "N_CTX": Option(4, count(0, MANY), "no effect, as in the released code"),
        "CTX_INIT": context_words("a photo of a", "words before the class name"),
        "PROMPT_DEPTH": Option(9, count(0, LAYERS), "no effect, as in the released code"),
        "HEAD": Option("rational", one_of(*HEADS), "what masks the features"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone, the frozen class weights, and the mask."""
        backbone = self.load_backbone()
        head = self.build_head(backbone.embed_dim)
        freeze_except(backbone)  # nothing of it trains: its features may come from the cache
        prompts = self.prompts(self.options.CTX_INIT)
        return FrozenTextCLIP(backbone, prompts, renormalize=True, head=head)

    def build_head(self, embed_dim: int) -> nn.Module:
        """The head that ``HEAD`` names."""
        options = self.options
        kind = check_availability(options.HEAD, HEADS, "TRAINER.RADA.HEAD")
        if kind == "rational":
            return rational_head(self.cfg, options, embed_dim)
        if kind == "mlp":
            return MLPMaskHead(embed_dim, regularizer=options.REG)
        return FeatureAttentionHead(embed_dim, num_heads=options.HEADS, on=kind)

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S) or cached features (B, D), labels (B,)."""
        return mask_loss(self.model.output(image), label, self.cfg.ALPHA)
