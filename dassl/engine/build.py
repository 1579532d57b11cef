"""Building a trainer by its name, and the optimiser and schedule of a method's module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.config.defaults import OPTIONS, TOGETHER
from dassl.config.schema import check_config, expand_paths, trainer_options
from dassl.engine.compiled import compile_model
from dassl.engine.device import compute_deterministically
from dassl.engine.distributed import synchronize_statistics
from dassl.engine.step import keep_no_activations
from dassl.names import check_availability
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils.registry import Registry
from dassl.utils.torchtools import load_pretrained_weights

if TYPE_CHECKING:
    from dassl.engine.trainer import SimpleTrainer

__all__ = ["TRAINER_REGISTRY", "adopt", "build_trainer", "check_final_model"]

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg: CfgNode) -> Any:
    """Build the trainer that ``cfg.TRAINER.NAME`` names.

    Raises:
        ValueError: Not registered, or a value of the configuration makes no sense.
    """
    check_availability(cfg.TRAINER.NAME, TRAINER_REGISTRY.registered_names())
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    # Names that other code registers are checked by the code that looks them up.
    check_config(cfg, OPTIONS, TOGETHER, registered=False)
    own = trainer_options(cfg.TRAINER.NAME, trainer)
    check_config(cfg, own)
    cfg = expand_paths(cfg, {**OPTIONS, **own})
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    compute_deterministically(cfg.TRAIN.DETERMINISTIC)
    return trainer(cfg)


def adopt(trainer: SimpleTrainer, module: nn.Module) -> None:
    """Give a trainer the module that its ``build_model`` returned, and everything that it needs.

    The module is moved to the device and registered with a new optimiser, schedule and scaler.
    """
    cfg, device = trainer.cfg, trainer.device
    # Moved before the optimiser is built: that keeps references to the parameters.
    trainer.model = model = synchronize_statistics(module, device).to(device)
    if cfg.TRAIN.GRAD_CHECKPOINTING:
        keep_no_activations(model)
    if cfg.MODEL.INIT_WEIGHTS:
        load_pretrained_weights(model, cfg.MODEL.INIT_WEIGHTS)
    if cfg.TRAIN.COMPILE:
        compile_model(model, trainer.notes)
    optim: Any = None
    sched: Any = None
    if any(p.requires_grad for p in model.parameters()):
        groups = trainer.param_groups(model)
        optim = build_optimizer(model, cfg.OPTIM, groups, trainable_only=True)
        # A dataset for tests only has no steps; weights trained elsewhere can still be loaded.
        steps = len(trainer.train_loader_x) if trainer.train_loader_x is not None else 0
        sched = build_lr_scheduler(optim, cfg.OPTIM, steps)
    if trainer.precision == "amp":
        trainer.scaler = torch.amp.GradScaler(device.type)
    trainer.register_model(trainer.model_name or type(trainer).__name__, model, optim, sched)


def check_final_model(cfg: CfgNode, val_loader: Any) -> None:
    """Refuse to choose weights on validation images where there are none.

    Raises:
        ValueError: TEST.FINAL_MODEL is best_val, and ``val_loader`` is None.
    """
    if cfg.TEST.FINAL_MODEL == "best_val" and val_loader is None:
        raise ValueError(
            f"TEST.FINAL_MODEL is best_val, but {cfg.DATASET.NAME} has no validation "
            "images, and choosing on test images would make the result worthless; set last_step"
        )
