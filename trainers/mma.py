"""MMA: multi-modal adapters beside the last blocks of both towers.

"MMA: Multi-Modal Adapter for Vision-Language Models" (Yang et al., CVPR 2024); facts that the paper
leaves open are those of its released code, VLM-MultiModalAdapter.
"""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn import functional as F

from clip import attach_multimodal_adapters, freeze_except
from dassl.config.schema import Option, count, number
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, PromptedCLIP
from trainers.base.options import context_words, precision

BLOCKS = 12  # of the towers that ADAPTER_START counts in, ViT-B/16's
_RELEASED = re.compile(r"(text|visual|shared)_adapter\.(\d+)\.(down\.0|up|0)\.(weight|bias)$")
_PARTS = {
    ("text", "down.0"): "down_text",
    ("text", "up"): "up_text",
    ("visual", "down.0"): "down_vision",
    ("visual", "up"): "up_vision",
    ("shared", "0"): "shared",
}
_OF_THE_RUN = ("token_embedding", "tokenized_prompts")  # belong to the class names, not to MMA


def rescaling(rescale: bool, scale: float) -> str:
    """What the log says of an adapter's gradients, see :class:`MMA`."""
    what = f"divided by the scale {scale}, as MMA's release does" if rescale else "the true ones"
    return f"gradients of the adapters are {what} (RESCALE_GRADIENT)"


@TRAINER_REGISTRY.register()
class MMA(CLIPTrainer):
    """Bottlenecks whose middle map both towers share (:class:`clip.MultiModalAdapter`).

    The loss is CE(s f h^T, y); both features are the adapted towers'.

    Config, ``TRAINER.MMA``: ADAPTER_START counts in towers of 12 blocks (5: the last 8); towers are
    paired from the end, and all blocks of a shorter tower are adapted. RESCALE_GRADIENT leaves the
    factor a out of the gradient of the adapters' own parameters, as the released code does but the
    paper does not say; otherwise they would hardly move. The release can adapt the embeddings too
    (its index 0), which no released config does. The defaults are the released configs' values; the
    released code's own (start 4, scale 0.1) made no published number.
    """

    needs_transformers = True
    protocols = ("base2novel", "cross_dataset")
    model_name = "adapter_learner"  # the released checkpoints' folder
    defaults = {
        "ADAPTER_START": Option(5, count(1, BLOCKS), "first adapted block, counted from 1"),
        "ADAPTER_DIM": Option(32, count(1, 4096), "inner width of the adapters"),
        "ADAPTER_SCALE": Option(0.001, number(above=0), "factor of their output"),
        "RESCALE_GRADIENT": Option(True, None, "leave it out of their gradient, as released"),
        "CTX_INIT": context_words("a photo of a", "words before the class name"),
        "PREC": precision("amp"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone with adapters in both towers."""
        options, backbone = self.options, self.load_backbone()
        attach_multimodal_adapters(
            backbone,
            layers=BLOCKS + 1 - options.ADAPTER_START,
            bottleneck=options.ADAPTER_DIM,
            scale=options.ADAPTER_SCALE,
            rescale_gradient=options.RESCALE_GRADIENT,
        )
        freeze_except(backbone)
        return PromptedCLIP(backbone, self.prompts(options.CTX_INIT), renormalize=True)

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        return [rescaling(self.options.RESCALE_GRADIENT, self.options.ADAPTER_SCALE)]

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S), labels (B,)."""
        logits = self.model.output(image).logits
        return StepOutput(F.cross_entropy(logits, label), logits)

    def convert_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Accept the released layout: blocks by number, what is shared apart from the towers."""
        found = {name: match for name in state_dict if (match := _RELEASED.search(name))}
        if not found:
            return super().convert_state_dict(state_dict)
        # The release counts blocks from 1, and its towers have 12; ours are counted from its first.
        first = min(int(match[2]) for match in found.values())
        count = max(int(match[2]) for match in found.values()) - first + 1
        own = len(self.model.backbone.multimodal_adapters)
        if count != own:
            raise ValueError(
                f"The weights have adapters in {count} blocks from number {first} on, the model in "
                f"{own}; set TRAINER.MMA.ADAPTER_START (now {self.options.ADAPTER_START}) to "
                f"{first}, and --backbone to the one they were trained with"
            )
        converted: dict[str, Tensor] = {}
        for name, tensor in state_dict.items():
            if name in found:
                tower, number, part, kind = found[name].groups()
                adapter = f"backbone.multimodal_adapters.{int(number) - first}"
                converted[f"{adapter}.{_PARTS[tower, part]}.{kind}"] = tensor
            elif name not in _OF_THE_RUN:
                converted[name] = tensor
        return converted
