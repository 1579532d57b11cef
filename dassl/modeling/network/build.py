"""The registry of networks."""

from __future__ import annotations

from typing import Any

from dassl.names import check_availability
from dassl.utils.registry import Registry

__all__ = ["NETWORK_REGISTRY", "build_network"]

NETWORK_REGISTRY = Registry("NETWORK")


def build_network(name: str, verbose: bool = True, **kwargs: Any) -> Any:
    """Build a network by its registered name; others are passed on."""
    check_availability(name, NETWORK_REGISTRY.registered_names())
    if verbose:
        print(f"Network: {name}")
    return NETWORK_REGISTRY.get(name)(**kwargs)
