"""From features to logits: CLIP's cosine, RAda's mask over the rational matrix, linear probes."""

from trainers.heads.rational import (
    QUERIES,
    REGULARIZERS,
    SOFTMAX,
    CosineHead,
    HeadOutput,
    MaskHead,
    RationalHead,
    cosine_logits,
    zero_linear,
)

__all__ = [
    "CosineHead",
    "HeadOutput",
    "MaskHead",
    "QUERIES",
    "REGULARIZERS",
    "RationalHead",
    "SOFTMAX",
    "cosine_logits",
    "zero_linear",
]
