"""Trainers: the loop, checkpoints, resuming, results."""

from dassl.engine.base import TrainerBase
from dassl.engine.build import TRAINER_REGISTRY, build_trainer
from dassl.engine.checkpoint import trainable_state
from dassl.engine.device import resolve_device
from dassl.engine.simple_net import SimpleNet
from dassl.engine.step import StepOutput, drop_caches
from dassl.engine.trainer import SimpleTrainer
from dassl.engine.trainer_x import TrainerX, TrainerXU
from dassl.results import is_done, read_result

__all__ = [
    "TRAINER_REGISTRY",
    "SimpleNet",
    "SimpleTrainer",
    "StepOutput",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
    "build_trainer",
    "drop_caches",
    "is_done",
    "read_result",
    "resolve_device",
    "trainable_state",
]
