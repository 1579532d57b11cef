"""Whether an exported file computes what the trained run does.

Notation: B images, K classes, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["TOLERANCE", "allowed", "check_images", "disagreement"]

# (B, 3, H, W) -> logits (B, K) and unit-norm features (B, D).
Run = Callable[[Tensor], tuple[Tensor, Tensor]]

TOLERANCE = 1e-4
_BATCHES = (1, 2, 4)  # a graph made for one number of images must serve every other


def check_images(height: int, width: int) -> list[Tensor]:
    """Batches of different sizes, (B, 3, H, W): a grey picture, noise, and coloured patches.

    They are drawn anew in the same way, so that a disagreement comes back.
    """
    generator = torch.Generator().manual_seed(0)
    total = sum(_BATCHES)
    images = torch.randn(total, 3, height, width, generator=generator)
    images[0] = 0
    # Noise alone is far from what encoders see; patches have large even parts, as photos do.
    patches = torch.randn(total // 2, 3, 4, 4, generator=generator)
    images[-len(patches) :] = torch.nn.functional.interpolate(patches, size=(height, width))
    return list(images.split(_BATCHES))


def allowed(logits: Tensor) -> float:
    """How far logits may be off: ``TOLERANCE``, of their largest value where that is above 1.

    CLIP multiplies cosines by 100: there the last bits of single precision are 1e-5 by themselves.
    """
    return TOLERANCE * max(1.0, float(logits.abs().max()))


@torch.no_grad()
def disagreement(trained: Run, exported: Run, batches: list[Tensor], what: str) -> dict[str, float]:
    """The greatest differences of logits and of features over some batches of images.

    Args:
        trained: The run as it evaluates.
        exported: The same images through the exported file.
        batches: From :func:`check_images`.
        what: The file, for messages.

    Raises:
        ValueError: They differ by more than is allowed, or in shape.
    """
    worst = {"logits": 0.0, "features": 0.0}
    for images in batches:
        pairs = zip(worst, trained(images), exported(images), strict=True)
        for name, expected, found in pairs:
            if expected.shape != found.shape:
                raise ValueError(
                    f"{what} gives {name} of shape {tuple(found.shape)} for {len(images)} images, "
                    f"the trained run {tuple(expected.shape)}; nothing is exported"
                )
            limit = allowed(expected) if name == "logits" else TOLERANCE
            distance = float((expected - found).abs().max())
            # Written so that NaN, which compares with nothing, is too much.
            if not distance <= limit:
                raise ValueError(
                    f"{what} does not agree with the trained run: {name} are off by "
                    f"{distance:.2g}, {limit:.2g} is allowed; nothing is exported"
                )
            worst[name] = max(worst[name], distance)
    return worst
