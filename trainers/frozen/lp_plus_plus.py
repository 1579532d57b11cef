"""LP++: a linear probe with text, whose step sizes follow from the features.

"LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP", CVPR 2024, arXiv:2404.02285.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip.text import unit_norm
from dassl.config.schema import Option, count, number
from dassl.engine import TRAINER_REGISTRY
from trainers.base import CLIPTrainer
from trainers.frozen.cross_entropy import FullBatch, told_right
from trainers.frozen.gaussian import class_means
from trainers.frozen.model import ClassHead, FrozenCLIP, prompts_of
from trainers.frozen.recipe import FittedAtOnce
from trainers.heads import HeadOutput

MOMENTUM = 0.9
ALPHA_EVERY = 10  # steps


class BlendedHead(ClassHead):
    """``logits = f W^T + b + alpha (f t^T)``, alpha (K0,), without CLIP's factor of 100."""

    chosen = ("steps",)

    def __init__(self, classes: int, width: int, steps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, width))
        self.bias = nn.Parameter(nn.Linear(width, classes).bias.detach())  # PyTorch's start
        self.alpha = nn.Parameter(torch.zeros(classes))
        self.add_number("steps", steps)

    def forward(self, image: Tensor, text: Tensor, scale: Tensor) -> HeadOutput:
        """Logits of f (B, D) with text t (K, D): (B, K)."""
        probe = self.of_run(F.linear(image, self.weight, self.bias))
        logits = probe + self.of_run(self.alpha) * (image @ text.T)
        return HeadOutput(logits, logits.new_zeros(()))


class Descent:
    """Full-batch descent on the mean cross entropy of N features, with derived step sizes.

    W and b: momentum 0.9, rate 4 N / lambda_max(X^T X). alpha: plain steps, every tenth one of the
    others', of rate N / (4 max_k sum_n (x_n t_k)^2), along the sum of all gradients so far, which
    the release never clears.

    Text costs nothing beside the probe: alpha_k (x t_k) = x (alpha_k t_k), so that the logits are
    those of a classifier V = W + alpha t, and the gradient for alpha_k is V's row k times t_k.

    Args:
        head: Its start; changed in place.
        x: Unit features, (N, D).
        label: Labels, (N,).
        text: Unit text features t, (K, D).
    """

    def __init__(self, head: BlendedHead, x: Tensor, label: Tensor, text: Tensor) -> None:
        self.head, self.text = head, text
        self.batch = FullBatch(x, label, len(text))
        gram = x.T @ x  # (D, D)
        # sum_n (x_n t_k)^2 = t_k X^T X t_k
        squares = ((text @ gram) * text).sum(1)  # (K,)
        self.rate = float(4 * len(x) / torch.linalg.eigvalsh(gram)[-1])
        self.alpha_rate = float(len(x) / (4 * squares.max()))
        self.moved = torch.zeros_like(head.weight), torch.zeros_like(head.bias)
        self.alpha_gradient = torch.zeros_like(head.alpha)
        self.done = 0

    def blended(self) -> Tensor:
        """V, (K, D)."""
        return torch.addcmul(self.head.weight, self.head.alpha[:, None], self.text)

    def step(self) -> None:
        """One step."""
        head = self.head
        found = self.batch.gradient(self.blended(), head.bias)
        self.alpha_gradient += (found.weight * self.text).sum(1)
        for own, moved, gradient in zip(
            (head.weight, head.bias), self.moved, (found.weight, found.bias), strict=True
        ):
            moved.mul_(MOMENTUM).add_(gradient)
            own.sub_(moved, alpha=self.rate)
        self.done += 1
        if self.done % ALPHA_EVERY == 0:
            head.alpha.sub_(self.alpha_gradient, alpha=self.alpha_rate)

    def told_right(self, f: Tensor, label: Tensor) -> int:
        """How many images with unit features (N, D), labels (N,) are told right by now."""
        return told_right(f, label, self.blended(), self.head.bias)


@TRAINER_REGISTRY.register()
class LPPlusPlus(CLIPTrainer):
    """W starts from the sums of the classes' features, alpha from 250 times their mean similarity.

    The head of the step that does best on validation images is kept, the last of equal ones; under
    ``VAL.POLICY none`` that of the last step. The release's policy is ``shots``. Features are of
    one augmentation of each image.

    Config, ``TRAINER.LPPlusPlus``: STEPS 300 and ALPHA_FACTOR 250 as released.
    """

    recipe_type = FittedAtOnce
    frozen_image_encoder = True
    defaults = {
        "STEPS": Option(300, count(1, 1_000_000), "of full-batch descent"),
        "ALPHA_FACTOR": Option(250.0, number(above=0), "alpha's start over the mean similarity"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone and the probe, the only part that is fitted."""
        backbone, classes = self.load_backbone(), len(self.dm.dataset.classnames)
        head = BlendedHead(classes, backbone.embed_dim, self.options.STEPS)
        return FrozenCLIP(backbone, prompts_of(self), head)

    @torch.no_grad()
    def fit(self) -> None:
        """Descend, and keep the best head."""
        views, label = self.recipe.features.views(1)
        x, text, head = unit_norm(views[0]), self.model.class_weights(), self.model.head
        means, counts = class_means(x, label, len(text))
        head.weight.copy_(means * counts[:, None])
        own = (means * text).sum(1).mean()  # a class's mean similarity, over classes
        head.alpha.fill_(self.options.ALPHA_FACTOR * own)
        descent = Descent(head, x, label, text)
        images, best, kept = self.recipe.validation(), -1, None
        unit = None if images is None else (unit_norm(images[0]), images[1])
        for _ in range(self.options.STEPS):
            descent.step()
            if unit is not None:
                found = descent.told_right(*unit)
                if found >= best:
                    best = found
                    head.steps.fill_(descent.done)
                    kept = {name: value.clone() for name, value in head.state_dict().items()}
        if kept is not None:
            head.load_state_dict(kept)
