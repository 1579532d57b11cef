"""RAda + Prompt: learned prompts in both towers, trained together with the mask.

"One Last Attention for Your Vision-Language Model", ICCV 2025, arXiv:2507.15480.
"""

from __future__ import annotations

from collections.abc import Sequence

from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor, nn

from clip.text import unit_norm
from dassl.config.schema import Option, with_defaults
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, PromptedCLIP, released, template_means
from trainers.ivlp import PROMPT_DEFAULTS, both_towers
from trainers.rada import MASK_DEFAULTS, mask_choices, mask_loss, rational_head


class AveragedTextCLIP(PromptedCLIP):
    """Class weights h = (g + t) / |g + t|, halfway between prompted and frozen text features.

    g are the features with prompts, t the pre-trained model's of 80 templates in the mean, both
    (K, D) and not normalised before they are added.
    """

    classnames: Sequence[str]  # of the run
    _frozen: Tensor | None = None

    def training_weights(self) -> Tensor:
        """See :meth:`trainers.base.PromptedCLIP.training_weights`."""
        text = self.bank.encode(self.text_encoder, self.bank.starts, unit=False)  # (K, D)
        return self._averaged(text)

    def class_weights(self) -> Tensor:
        """See :meth:`trainers.base.PromptedCLIP.class_weights`."""
        return self._averaged(self.bank.class_features(self.text_encoder, unit=False))

    def _averaged(self, text: Tensor) -> Tensor:
        if self._frozen is None:  # made where the model computes, which its building does not know
            self._frozen = template_means(self, self.classnames, OPENAI_IMAGENET_TEMPLATES)
        return unit_norm((text + self._frozen) / 2)


@TRAINER_REGISTRY.register()
class RAdaPrompt(CLIPTrainer):
    """Independent prompts in both towers (IVLP's form) below RAda's mask.

    The defaults are those of the released ``prompt_rada.py``, which fits what the paper says of
    this row: 2 + 2 prompts in 9 layers, class weights that are halfway to the frozen ones of 80
    templates (:class:`AveragedTextCLIP`), and, by ALPHA 0 in the YAML, the cross entropy alone. The
    release's IVLP with a mask is ``ivlp.yaml``.

    Config, ``TRAINER.RAdaPrompt``: the prompts' keys are :class:`trainers.ivlp.IVLP`'s, the mask's
    :class:`trainers.rada.RAda`'s. FROZEN_TEXT False leaves the frozen text features out.
    """

    needs_transformers = True
    released_in_half = True
    model_name = "VLPromptLearner"  # the released checkpoints' folder
    released_layout = released.rada_prompt
    defaults = {
        **MASK_DEFAULTS,
        **with_defaults(PROMPT_DEFAULTS, N_CTX_TEXT=2, N_CTX_VISION=2),
        "FROZEN_TEXT": Option(True, None, "average text features with the frozen ones"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone with prompts in both towers, and the mask."""
        options = self.options
        kind = AveragedTextCLIP if options.FROZEN_TEXT else PromptedCLIP
        model = both_towers(self.load_backbone(), self.prompts, options, kind)
        if isinstance(model, AveragedTextCLIP):
            model.classnames = self.dm.dataset.classnames
        model.head = rational_head(self.cfg, options, model.backbone.embed_dim)
        return model

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        text = {
            True: "averaged with the frozen ones of 80 templates, as released",
            False: "not averaged with the frozen ones, unlike the release's prompt_rada.py",
        }
        loss = "the cross entropy alone, as the release's prompt_rada.py"
        if self.cfg.ALPHA:
            loss = f"the cross entropy and {self.cfg.ALPHA} times the mask's regulariser"
        return [
            f"text features are {text[self.options.FROZEN_TEXT]} (FROZEN_TEXT)",
            f"the loss is {loss} (ALPHA)",
            *mask_choices(self.options, self.cfg.ALPHA),
        ]

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S), labels (B,)."""
        return mask_loss(self.model.output(image), label, self.cfg.ALPHA)
