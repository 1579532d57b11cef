"""The registry of datasets."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from dassl.names import check_availability
from dassl.utils.registry import Registry

__all__ = ["DATASET_REGISTRY", "build_dataset"]

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg: CfgNode) -> Any:
    """Build the dataset that ``cfg.DATASET.NAME`` names.

    Raises:
        ValueError: Not registered.
    """
    check_availability(cfg.DATASET.NAME, DATASET_REGISTRY.registered_names())
    if cfg.VERBOSE:
        print(f"Loading dataset: {cfg.DATASET.NAME}")
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
