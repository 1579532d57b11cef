"""All names in Dassl's ``dassl.engine.trainer``, with the modules that hold them here."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["NAMES", "look_up"]

# Imported only on demand: some build on `dassl.engine.trainer`, some take time to import.
_HOLDERS = {
    "dassl.data": "DataManager",
    "dassl.engine.base": "TrainerBase",
    "dassl.engine.simple_net": "SimpleNet",
    "dassl.engine.trainer": "SimpleTrainer",
    "dassl.engine.trainer_x": "TrainerX TrainerXU",
    "dassl.evaluation": "build_evaluator",
    "dassl.modeling": "build_backbone build_head",
    "dassl.optim": "build_lr_scheduler build_optimizer",
    "dassl.utils": "AverageMeter MetricMeter count_num_param load_checkpoint "
    "load_pretrained_weights mkdir_if_missing resume_from_checkpoint save_checkpoint "
    "tolist_if_not",
    "torch.utils.tensorboard": "SummaryWriter",
}
_HOLDER = {name: module for module, names in _HOLDERS.items() for name in names.split()}
NAMES = list(_HOLDER)


def look_up(name: str) -> Any:
    """Return one of the names, as the ``__getattr__`` of `dassl.engine.trainer`.

    Raises:
        AttributeError: It is not one of them.
    """
    if name not in _HOLDER:
        raise AttributeError(f"module 'dassl.engine.trainer' has no attribute {name!r}")
    return getattr(import_module(_HOLDER[name]), name)
