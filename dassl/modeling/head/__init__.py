"""Layers between a backbone and the classifier."""

from dassl.modeling.head import mlp  # noqa: F401 - registers it
from dassl.modeling.head.build import HEAD_REGISTRY, build_head

__all__ = ["HEAD_REGISTRY", "build_head"]
