"""Linear probe of CLIP's image features: logistic regression by L-BFGS, with the paper's sweep.

"Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
arXiv:2103.00020, section 3.2 and appendix A.3; few shots as in CoOp's re-run (arXiv:2109.01134).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dassl.config.schema import Option, count, number
from dassl.engine import TRAINER_REGISTRY
from trainers.base import CLIPTrainer
from trainers.frozen.cross_entropy import FullBatch, told_right
from trainers.frozen.model import ClassHead, FrozenCLIP, prompts_of
from trainers.frozen.recipe import FittedAtOnce
from trainers.heads import HeadOutput

COARSE = (-6, -4, -2, 0, 2, 4, 6)  # powers of ten of C
FINE = (1.0, 0.5, 0.25, 0.125)  # then neighbours of the best at these distances: 8 a decade


class ProbeHead(ClassHead):
    """``logits = f' W^T + b`` of image features f' as the encoder gives them; text has no part."""

    raw_image = True
    chosen = ("c",)
    c: Tensor

    def __init__(self, classes: int, width: int, c: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, width))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.add_number("c", c)

    def forward(self, image: Tensor, text: Tensor, scale: Tensor) -> HeadOutput:
        """Logits of f' (B, D): (B, K)."""
        logits = self.of_run(F.linear(image, self.weight, self.bias))
        return HeadOutput(logits, logits.new_zeros(()))


def regress(
    x: Tensor, label: Tensor, c: float, start: tuple[Tensor, Tensor], iterations: int
) -> tuple[Tensor, Tensor]:
    """Minimise ``sum CE + |W|^2 / (2 c)``, b is free: x (N, D), labels (N,) -> W (K, D), b (K,).

    scikit-learn's LogisticRegression, which the paper takes, has the same objective.
    """
    weight, bias = (nn.Parameter(value.clone()) for value in start)
    batch, n = FullBatch(x, label, len(bias)), len(x)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    @torch.no_grad()
    def closure() -> Tensor:
        found = batch.gradient(weight, bias)
        # Over N, so that the tolerance means the same for any number of images.
        weight.grad = found.weight.add_(weight, alpha=1 / (c * n))
        bias.grad = found.bias
        return found.loss + weight.square().sum() / (2 * c * n)

    # LBFGS allows gradients in its closure, which has written them out.
    optimizer.step(closure)
    return weight.detach(), bias.detach()


@TRAINER_REGISTRY.register()
class LinearProbe(CLIPTrainer):
    """W and b by L-BFGS on the features of the training images, seen as test images are.

    C is swept as in the paper, from 1e-6 to 1e6 in eight steps a decade, by halving the distance
    around the best. Under ``VAL.POLICY none`` it is C: 0.316, that of the example in CLIP's
    repository. Features are those of CLIP's joint space, where the paper takes the layer before;
    so does CoOp's re-run, from which the field's few-shot curves are.
    """

    recipe_type = FittedAtOnce
    frozen_image_encoder = True
    defaults = {
        "C": Option(0.316, number(above=0), "inverse strength of the penalty, unless chosen"),
        "ITERATIONS": Option(1000, count(1, 1_000_000), "at most, of L-BFGS"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone and the probe, the only part that is fitted."""
        backbone, classes = self.load_backbone(), len(self.dm.dataset.classnames)
        head = ProbeHead(classes, backbone.embed_dim, self.options.C)
        return FrozenCLIP(backbone, prompts_of(self), head)

    def fit(self) -> None:
        """The probe with the best C."""
        x, label = self.recipe.features.unaugmented()  # (N, D), (N,)
        head, images = self.model.head, self.recipe.validation()
        found: dict[float, tuple[int, tuple[Tensor, Tensor]]] = {}

        def tried(power: float) -> int:
            """Images told right with C = 10^power; each is fitted once."""
            if power not in found and images is not None:
                # From zero, so that no result depends on the order of the sweep.
                start = torch.zeros_like(head.weight), torch.zeros_like(head.bias)
                weight, bias = regress(x, label, 10.0**power, start, self.options.ITERATIONS)
                right = told_right(images[0], images[1], weight, bias)
                found[power] = right, (weight, bias)
            return found[power][0]

        if images is None:
            start = torch.zeros_like(head.weight), torch.zeros_like(head.bias)
            fitted = regress(x, label, self.options.C, start, self.options.ITERATIONS)
        else:
            best: float = max(COARSE, key=tried)
            for distance in FINE:
                best = max((best, best - distance, best + distance), key=tried)
            head.c.fill_(10.0**best)
            fitted = found[best][1]
        with torch.no_grad():
            head.weight.copy_(fitted[0])
            head.bias.copy_(fitted[1])
