"""ProGrad: steps that do not work against what the pre-trained model knows.

"Prompt-aligned Gradient for Prompt Tuning", ICCV 2023, arXiv:2205.14865.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dassl.config.schema import Option, number
from dassl.engine import TRAINER_REGISTRY, StepOutput
from dassl.engine.base import Names
from dassl.engine.distributed import gather_features
from dassl.utils.readings import reads_late
from trainers.base import CLIPTrainer, released
from trainers.base.options import precision, text_prompts, weight
from trainers.base.templates import DEFAULT, HINT_FIRST
from trainers.kgcoop import taught_clip
from trainers.losses import soft_cross_entropy, with_gradient


def aligned_gradient(a: Tensor, b: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """The task's gradient without its part against the teacher's.

    a if a . b >= 0, else a - strength (a . b / |b|^2) b; a too where that is undefined.

    Args:
        a: Gradient of the task's loss.
        b: Gradient of the distance to the teacher, of the same shape.
        strength: How much of the conflict to take out, LAMBDA.

    Returns:
        The gradient, and whether there was a conflict (1 or 0).
    """
    dot, square = (a * b).sum(), b.square().sum()
    conflict = (dot < 0) & (square > 0)
    step = torch.where(conflict, strength * dot / square, torch.zeros_like(dot))
    return a - step * b, conflict.to(a.dtype)


@TRAINER_REGISTRY.register()
class ProGrad(CLIPTrainer):
    """ProGrad: CoOp's loss L_d, with its gradient aligned to that of a distance L_g to CLIP.

    L_g is the cross entropy between softmax(z0 / T) and softmax(z / T), times T^2, for logits z of
    the context and z0 of the pre-trained model with a template. L_g is never added to L_d; where
    the gradients conflict, :func:`aligned_gradient` takes a part away. Templates are CoOp's with
    what the classes are in front: "a type of pet, a photo of a {}."; or what the user chose
    (``DATASET.PROMPT_TEMPLATE``).

    Config, ``TRAINER.ProGrad``: with CTX_INIT the context starts from the template's words,
    right-aligned, with zero vectors left of them, or else from random vectors.
    """

    model_name = "prompt_learner"  # the released checkpoints' folder
    frozen_image_encoder = True
    needs_text_tower = True
    released_in_half = True
    released_layout = released.coop
    defaults = {
        "N_CTX": text_prompts(16),
        "CTX_INIT": Option(True, None, "the context starts from the template's words"),
        "LAMBDA": weight(1.0, "the part of a conflicting gradient that is taken away"),
        "T": Option(1.0, number(above=0), "temperature of the distance to CLIP"),
        "PREC": precision("amp"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone with a context, and the teacher."""
        self._aside: Tensor | None = None  # its gradient is L_g's of the batch
        self._conflict: Tensor | float = 0.0
        backbone = self.load_backbone()
        template = self.template(HINT_FIRST.get(self.cfg.DATASET.NAME, DEFAULT))
        init = template.partition("{}")[0].strip() if self.options.CTX_INIT else ""
        names, n_ctx = self.dm.dataset.classnames, self.options.N_CTX
        return taught_clip(backbone, names, template, n_ctx=n_ctx, init=init)

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        return [
            f"LAMBDA {self.options.LAMBDA}; the release's is 1, and 0.8 for 8 and 16 shots of "
            "OxfordFlowers, DescribableTextures and EuroSAT"
        ]

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S) or cached features (B, D), labels (B,).

        The loss is L_d; its backward pass keeps L_g's gradient aside, until the whole batch's are
        known.
        """
        model = self.model
        f, h = model.raw_features(image)  # (B, D), (K, D)
        z = model.similarity(f, h)  # (B, K)
        task = F.cross_entropy(z, label)
        z0 = model.similarity(f, model.teacher_weights())
        teacher = soft_cross_entropy(z, z0, self.options.T)
        context = model.backbone.text_prompts.vectors
        if self._aside is None:
            self._aside = torch.zeros_like(context, requires_grad=True)
        kept = with_gradient(torch.zeros_like(task), self._aside, self.gradient(teacher, context))
        return StepOutput(task + kept, z, {"ce": task, "teacher": teacher})

    def gradient(self, loss: Tensor, parameter: Tensor) -> Tensor:
        """Gradient of a loss, computed at the loss scale of amp, as it would be in backward."""
        # As a tensor: the scaler's own number would have to be waited for.
        one = torch.ones((), device=loss.device)
        scale = self.scaler.scale(one) if self.scaler else one
        with torch.autocast(loss.device.type, enabled=False):  # as everywhere in backward passes
            return torch.autograd.grad(loss * scale, parameter, retain_graph=True)[0] / scale

    def model_update(self, names: Names = None) -> None:
        """Align the gradients of the whole batch, then step."""
        context = self.model.backbone.text_prompts.vectors
        if self._aside is not None and self._aside.grad is not None:
            # Both are multiples of the true gradients by the same loss scale, which goes through.
            b = gather_features(self._aside.grad[None]).mean(0)
            context.grad, conflict = aligned_gradient(context.grad, b, self.options.LAMBDA)
            self._conflict = conflict if reads_late(conflict.device) else conflict.item()
        super().model_update(names)

    def forward_backward(self, batch: Any) -> dict[str, Any]:
        """A step; its numbers say whether the gradients were in conflict."""
        self._aside = None  # as with other gradients, what a step that failed has left is dropped
        return {**super().forward_backward(batch), "conflict": self._conflict}
