"""The registry of heads."""

from __future__ import annotations

from typing import Any

from dassl.names import check_availability
from dassl.utils.registry import Registry

__all__ = ["HEAD_REGISTRY", "build_head"]

HEAD_REGISTRY = Registry("HEAD")


def build_head(name: str, verbose: bool = True, **kwargs: Any) -> Any:
    """Build a head by its registered name; others, such as ``in_features``, are passed on."""
    check_availability(name, HEAD_REGISTRY.registered_names())
    if verbose:
        print(f"Head: {name}")
    return HEAD_REGISTRY.get(name)(**kwargs)
