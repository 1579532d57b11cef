"""How far numbers of a GPU may be from the CPU's in single precision."""

import torch

# Relative, of whole tensors. Half precision has 11 bits and bfloat16 has 8, and errors of a dozen
# layers add up.
TOLERANCE = {"fp32": 1e-3, "amp": 2e-2, "fp16": 2e-2, "bf16": 6e-2}


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference, divided by that of what is expected; NaN if one is in there."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm())
