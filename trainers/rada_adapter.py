"""RAda + Adapter: bottlenecks in both towers, trained together with the mask.

"One Last Attention for Your Vision-Language Model", ICCV 2025, arXiv:2507.15480.
"""

from __future__ import annotations

from torch import Tensor, nn

from clip import attach_multimodal_adapters, freeze_except
from dassl.config.schema import Option, count, number
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, PromptedCLIP
from trainers.base.options import context_words, depth
from trainers.mma import rescaling
from trainers.rada import MASK_DEFAULTS, mask_choices, mask_loss, rational_head


@TRAINER_REGISTRY.register()
class RAdaAdapter(CLIPTrainer):
    """Multi-modal adapters in the last layers of both towers below RAda's mask.

    The paper does not say what its adapter is. We take MMA's (CVPR 2024): beside each block a
    bottleneck whose middle matrix both towers share (:class:`clip.MultiModalAdapter`); unlike MMA's
    it starts at zero, as the mask does, so that training starts from CLIP. The loss is RAda's:
    cross entropy plus ALPHA times the regulariser of the mask.

    Config, ``TRAINER.RAdaAdapter``: the mask's keys are :class:`trainers.rada.RAda`'s.
    """

    needs_transformers = True
    defaults = {
        **MASK_DEFAULTS,
        "LAYERS": depth(8, "adapted layers of each tower, from the last"),
        "BOTTLENECK": Option(32, count(1, 4096), "inner width of the adapters"),
        "SCALE": Option(0.1, number(above=0), "factor of their output"),
        "RESCALE_GRADIENT": Option(True, None, "leave it out of their gradient, as MMA's release"),
        "CTX_INIT": context_words("a photo of a", "words before the class name"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone with adapters in both towers, and the mask."""
        options, backbone = self.options, self.load_backbone()
        attach_multimodal_adapters(
            backbone,
            layers=options.LAYERS,
            bottleneck=options.BOTTLENECK,
            scale=options.SCALE,
            rescale_gradient=options.RESCALE_GRADIENT,
            zero_init=True,
        )
        freeze_except(backbone)
        head = rational_head(self.cfg, options, backbone.embed_dim)
        return PromptedCLIP(backbone, self.prompts(options.CTX_INIT), renormalize=True, head=head)

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        return [
            "the paper does not say what its adapter is; this is MMA's, starting at zero",
            "the release's adapters, behind both encoders, start where a ReLU lets no gradient "
            "through, and never train: the published numbers cannot come from them",
            rescaling(self.options.RESCALE_GRADIENT, self.options.SCALE),
            *mask_choices(self.options, self.cfg.ALPHA),
        ]

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S), labels (B,)."""
        return mask_loss(self.model.output(image), label, self.cfg.ALPHA)
