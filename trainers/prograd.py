"""ProGrad: steps that do not work against what the pre-trained model knows.

"Prompt-aligned Gradient for Prompt Tuning", ICCV 2023, arXiv:2205.14865.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.coop import CoOp
from trainers.kgcoop import taught_clip
from trainers.losses import soft_cross_entropy, with_gradient
from trainers.templates import DEFAULT, HINT_FIRST


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
class ProGrad(CoOp):
    """ProGrad: CoOp's loss L_d, with its gradient aligned to that of a distance L_g to CLIP.

    L_g is the cross entropy between softmax(z0 / T) and softmax(z / T), times T^2, for logits z of
    the context and z0 of the pre-trained model with a template. L_g is never added to L_d; where
    the gradients conflict, :func:`aligned_gradient` takes a part away. Templates are CoOp's with
    what the classes are in front: "a type of pet, a photo of a {}.".

    Config, ``TRAINER.ProGrad``: N_CTX, M; CTX_INIT, whether the context starts from the template's
    words, right-aligned, with zero vectors left of them, or else from random vectors; LAMBDA; T;
    PREC.
    """

    defaults = {"N_CTX": 16, "CTX_INIT": True, "LAMBDA": 1.0, "T": 1.0, "PREC": "amp"}

    def build_model(self) -> nn.Module:
        """The frozen backbone with a context, and the teacher."""
        template = HINT_FIRST.get(self.cfg.DATASET.NAME, DEFAULT)
        init = template.partition("{}")[0].strip() if self.options.CTX_INIT else ""
        return taught_clip(self, HINT_FIRST, n_ctx=self.options.N_CTX, init=init)

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S) or cached features (B, D), labels (B,)."""
        model, options = self.model, self.options
        f, h = model.features(image)
        z = model.similarity(f, h)
        z0 = model.similarity(f, model.teacher_weights())
        task = F.cross_entropy(z, label)
        teacher = soft_cross_entropy(z, z0, options.T)
        context = model.backbone.text_prompts.vectors
        a, b = (self.gradient(loss, context) for loss in (task, teacher))
        gradient, conflict = aligned_gradient(a, b, options.LAMBDA)
        parts: dict[str, Any] = {"ce": task, "teacher": teacher, "conflict": conflict}
        return StepOutput(with_gradient(task, context, gradient), z, parts)

    def gradient(self, loss: Tensor, parameter: Tensor) -> Tensor:
        """Gradient of a loss, computed at the loss scale of amp, as it would be in backward."""
        scale = self.scaler.get_scale() if self.scaler else 1.0
        with torch.autocast(loss.device.type, enabled=False):  # as everywhere in backward passes
            return torch.autograd.grad(loss * scale, parameter, retain_graph=True)[0] / scale
