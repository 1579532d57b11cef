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
from dassl.config.schema import Option, count, each, one_of, with_defaults
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
    "MASK_LAYERS": Option(1, count(1, LAYERS), "attention layers of the mask"),
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
        layers=options.MASK_LAYERS,
        regularizer=options.REG,
    )


def mask_loss(output: HeadOutput, label: Tensor, alpha: float) -> StepOutput:
    """CE(logits, y) + alpha * regulariser (arXiv:2507.15480, section 3), for labels (B,)."""
    ce = F.cross_entropy(output.logits, label)
    parts = {"ce": ce, "mask": output.penalty}
    return StepOutput(ce + alpha * output.penalty, output.logits, parts)


def mask_choices(options: CfgNode, alpha: float) -> list[str]:
    """Which form of the mask a trainer's section describes, where paper and release differ."""
    softmax = {
        "joint": "one over all K x K scores of a head, as in the released code",
        "row": "one per row, as the paper reads; the released code has one over all K x K scores",
    }
    regularizer = {
        "l2": "l2, the mean of (M - 1)^2, as in all released trainers but rada.py, which runs linf",
        "l2_sum": "l2_sum, an image's squared norm of M - 1, K D times the mean",
        "linf": "linf, as the released rada.py runs; the paper has l2, its other trainers its mean",
        "l1": "l1, of the paper's Table 7",
    }
    lines = [f"softmax: {softmax[options.SOFTMAX]} (SOFTMAX)"]
    if alpha:
        lines.append(f"regulariser: {regularizer[options.REG]} (REG)")
    return lines


@TRAINER_REGISTRY.register()
class RAda(CLIPTrainer):
    """RAda, efficient fine-tuning: both encoders and the text features are frozen.

    Config, released keys: top level ALPHA, weight of the regulariser (paper: 1.5, robust from 0.5
    to 2.5), and TEMP, temperature of the mask's attention; in ``TRAINER.RADA``, CTX_INIT "" stands
    for each dataset's own prompts. Ours: SOFTMAX ``joint`` (released code: one softmax over all
    K * K scores of a head, times K) or ``row`` (as the paper reads); REG ``l2`` (paper), ``l1`` or
    ``linf`` (what the released ``rada.py`` runs); MASK_LAYERS, of the mask's attention (appendix
    H); HEAD, which replaces it as in Table 4: ``mlp``, or attention on the features instead of the
    rational matrix, ``text``, ``image`` or ``both``. PROJ_LAYERS is read by nothing in the release,
    whose YAML sets it to 4.
    """

    config_section = "RADA"
    released_layout = released.rada
    frozen_image_encoder = True
    static_step = True
    defaults = {
        **with_defaults(MASK_DEFAULTS, SOFTMAX="row"),
        "N_CTX": Option(4, count(0, MANY), "no effect, as in the released code"),
        "CTX_INIT": context_words("a photo of a", "words before the class name"),
        "PROMPT_DEPTH": Option(9, count(0, LAYERS), "no effect, as in the released code"),
        "PROJ_LAYERS": Option(1, count(1, LAYERS), "no effect, as released; see MASK_LAYERS"),
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

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        options = self.options
        lines = mask_choices(options, self.cfg.ALPHA) if options.HEAD == "rational" else []
        if options.PROJ_LAYERS != 1:
            lines.append(
                f"PROJ_LAYERS {options.PROJ_LAYERS} has no effect, as in the released code; the "
                f"mask has {options.MASK_LAYERS} attention layer(s), which MASK_LAYERS sets"
            )
        if self.precision == "fp16":
            lines.append("the release computes in single precision whatever PREC is; this run not")
        return lines

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S) or cached features (B, D), labels (B,)."""
        return mask_loss(self.model.output(image), label, self.cfg.ALPHA)
