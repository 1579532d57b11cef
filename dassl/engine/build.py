"""The registry of trainers."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from dassl.config.defaults import OPTIONS, TOGETHER
from dassl.config.schema import check_config, expand_paths, trainer_options
from dassl.names import check_availability
from dassl.utils.registry import Registry

__all__ = ["TRAINER_REGISTRY", "build_trainer"]

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg: CfgNode) -> Any:
    """Build the trainer that ``cfg.TRAINER.NAME`` names.

    Args:
        cfg: Configuration.

    Returns:
        The trainer.

    Raises:
        ValueError: Not registered, or a value of the configuration makes no sense.
    """
    check_availability(cfg.TRAINER.NAME, TRAINER_REGISTRY.registered_names())
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    # Names of other people's code are left to the code that looks them up.
    check_config(cfg, OPTIONS, TOGETHER, registered=False)
    own = trainer_options(cfg.TRAINER.NAME, trainer)
    check_config(cfg, own)
    cfg = expand_paths(cfg, {**OPTIONS, **own})
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    return trainer(cfg)
