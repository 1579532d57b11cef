"""The datasets: importing this package registers them all."""

from __future__ import annotations

from typing import Any

from dassl.config.schema import values_of
from datasets import folder, table

__all__ = ["extend_cfg", "folder", "table"]


def extend_cfg(cfg: Any) -> None:
    """Add the keys of the DATASET section that only this package knows, in place.

    Args:
        cfg: Config, not frozen.
    """
    for key, default in values_of(folder.OPTIONS).items():
        if key not in cfg.DATASET:
            cfg.DATASET[key] = default
