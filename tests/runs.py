"""Small runs of every method on the bundled suite: 20 classes, one shot, one epoch."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import trainers  # noqa: F401 - registers the methods
from dassl.engine import TRAINER_REGISTRY, build_trainer
from tests.conftest import config_of_run
from tests.trainers.plain import FEW_TEMPLATES, SHORT_GRID
from tests.trainers.plain import SMALL as ONE_SHOT
from trainers.base import CLIPTrainer

OURS = [
    name
    for name in TRAINER_REGISTRY.registered_names()
    if issubclass(TRAINER_REGISTRY.get(name), CLIPTrainer)
    and TRAINER_REGISTRY.get(name).__module__.startswith("trainers.")
]
SMALL = (*ONE_SHOT, *FEW_TEMPLATES, *SHORT_GRID)
# At the release's rate, with plain SGD, a few steps are lost in the rounding of single precision.
MOVING = {
    "RAdaPrompt": ("OPTIM.NAME", "adam", "OPTIM.LR", "0.0009"),
    "LinearProbe": ("VAL.POLICY", "none"),  # a search may choose a C at which nothing moves
}


def own_file(name: str) -> str:
    """The method's file for the first of its protocols."""
    return f"{name}/{TRAINER_REGISTRY.get(name).protocols[0]}"


def in_precision(name: str, precision: str) -> tuple[str, str]:
    """Options that let a method compute in fp32, amp, bf16 or fp16."""
    return f"TRAINER.{TRAINER_REGISTRY.get(name).section()}.PREC", precision


class SmallRuns:
    """Makes configs of runs, each with a folder of its own; first stages are trained once.

    Args:
        root: Data root with the bundled suite.
        new_folder: Returns an empty folder.
        device: Where they run.
    """

    def __init__(self, root: str, new_folder: Callable[[], Path], device: str = "cpu") -> None:
        self.root, self.new_folder, self.device = root, new_folder, device
        self._first_stage = functools.cache(self._trained)

    def config(self, method_file: str, *options: str, device: str = "") -> Any:
        """The config of a file below configs/trainers, with trailing options."""
        flags = ("--device", device or self.device)
        return config_of_run(self.root, self.new_folder(), method_file, *options, flags=flags)

    def of_method(
        self, name: str, *options: str, first: tuple[str, ...] | None = None, device: str = ""
    ) -> Any:
        """The same of a method's own file, with a trained first stage if it starts from one.

        ``first`` are the first stage's options, where they are not those of the run itself.
        """
        options += MOVING.get(name, ())
        cfg = self.config(own_file(name), *options, device=device)
        if not cfg.FIRST_STAGE.CONFIG or cfg.FIRST_STAGE.DIR:
            return cfg
        folder = self._first_stage(cfg.FIRST_STAGE.CONFIG, *(options if first is None else first))
        options = (*options, "FIRST_STAGE.DIR", folder)
        return self.config(own_file(name), *options, device=device)

    def _trained(self, method_file: str, *options: str) -> str:
        trainer = build_trainer(self.config(method_file, *options))
        trainer.train()
        return trainer.output_dir


@torch.no_grad()
def logits_of(trainer: CLIPTrainer, images: torch.Tensor) -> torch.Tensor:
    """Logits (B, K) of pictures (B, 3, 48, 48), as an evaluation computes them; on the CPU."""
    trainer.set_model_mode("eval")
    with trainer.autocast():
        return trainer.model_inference(images.to(trainer.device)).float().cpu()
