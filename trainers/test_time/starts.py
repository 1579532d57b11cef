"""Trained prompts as the start of test-time episodes: those of CoOp, CoCoOp and MaPLe."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from yacs.config import CfgNode

from clip import freeze_except
from dassl.engine import TRAINER_REGISTRY, read_result
from dassl.engine.checkpoint import (
    checkpoint_path,
    fitting_state,
    read_checkpoint,
    replaced_backbone,
)
from dassl.engine.step import drop_caches
from trainers.base import PromptedCLIP, released
from trainers.cocoop import cocoop_clip
from trainers.coop import coop_clip
from trainers.finetuning.stages import FirstStageError
from trainers.maple import maple_clip
from trainers.test_time.episodes import EpisodicTrainer

FLAG = "--model-dir"
FIRST_STAGE_KEY = "FIRST_STAGE.DIR"


class Start(NamedTuple):
    """How a method's trained prompts are built again and read.

    Attributes:
        build: (backbone, class names, the method's section of the config) -> classifier.
        convert: (released or own state, classifier, section) -> state with the classifier's keys.
        form: Keys of the section that a run must agree in.
    """

    build: Callable[..., PromptedCLIP]
    convert: released.Convert
    form: tuple[str, ...]


STARTS = {
    "CoOp": Start(coop_clip, released.coop, ("CTX_INIT", "CLASS_TOKEN_POSITION")),
    "CoCoOp": Start(cocoop_clip, released.coop, ("CTX_INIT",)),
    "MaPLe": Start(maple_clip, released.maple, ("N_CTX", "PROMPT_DEPTH", "CTX_INIT")),
}


class StartedTrainer(EpisodicTrainer):
    """Base of test-time training that may start from the prompts of a trained run.

    The run is FIRST_STAGE.DIR (FIRST_STAGE.EPOCH 0 is its last epoch) or ``--model-dir``, its own
    or a released checkpoint's folder. The form of its prompts is that method's section of the
    config, as TRAINER.CoOp.

    Attributes:
        start_directory: Of the run that all episodes start from; "" for none.
    """

    start_directory = ""

    @property
    def start(self) -> str:
        """Name of the method that trained the start; "" for none."""
        raise NotImplementedError(f"{type(self).__name__} must say what it starts from")

    def started_model(self) -> PromptedCLIP:
        """The start's classifier, with the weights of FIRST_STAGE.DIR if that is set.

        Raises:
            FirstStageError: See :func:`load_start`.
            ValueError: TRAINER.CoOp.CSC is set.
        """
        section = self.cfg.TRAINER[self.start]
        if section.get("CSC"):
            raise ValueError(
                f"TRAINER.{self.start}.CSC is True: contexts of the training set's classes are no "
                "start for the classes of another set; name a run with one context for all"
            )
        backbone, names = self.load_backbone(), self.dm.dataset.classnames
        model = STARTS[self.start].build(backbone, names, section)
        model.requires_grad_(False)  # what an episode adapts are copies
        stage = self.cfg.FIRST_STAGE
        if stage.DIR:
            load_start(self, model, stage.DIR, stage.EPOCH or None, FIRST_STAGE_KEY)
            self.start_directory = stage.DIR
        return model

    def load_model(
        self, directory: str | os.PathLike[str] | None, epoch: int | None = None
    ) -> None:
        """Start all episodes from the prompts of a trained run, as FIRST_STAGE.DIR does.

        Args:
            directory: Run directory, also of another run of this trainer; empty or None needs
                FIRST_STAGE.DIR.
            epoch: Number of epochs; None for the last.

        Raises:
            FirstStageError: There is no start, or see :func:`load_start`.
        """
        result = read_result(directory) if directory and self.start else None
        if result and result["trainer"] == type(self).__name__:
            # What that run started from: by --model-dir, else by its config.
            stage = result["config"]["FIRST_STAGE"]
            named = result["model_dir"]
            epoch = result["load_epoch"] if named else stage["EPOCH"] or None
            directory = named or stage["DIR"]
        if directory and self.start:
            load_start(self, self.model, directory, epoch, FLAG)
            self.start_directory = os.fspath(directory)
            self.identity.loaded_from = (os.fspath(directory), epoch)
            return
        self.require_start()
        super().load_model(directory, epoch)

    def require_start(self) -> None:
        """Refuse to go on without trained prompts.

        Raises:
            FirstStageError: None were loaded.
        """
        if not self.start or self.start_directory:
            return
        config = self.cfg.FIRST_STAGE.CONFIG or f"{self.start}/cross_dataset"
        raise FirstStageError(
            f"{type(self).__name__} starts from a finished run of {self.start}, but neither {FLAG} "
            f"nor {FIRST_STAGE_KEY} names one: train with configs/trainers/{config}.yaml, or let "
            "bash run_ttt.sh do both"
        )

    def model_inference(self, input: Tensor) -> Tensor:
        """See :meth:`EpisodicTrainer.model_inference`.

        Args:
            input: Views (N, V, 3, S, S), or pictures (N, 3, S, S).

        Raises:
            FirstStageError: There is no start.
        """
        self.require_start()
        return super().model_inference(input)

    def extra_result(self) -> dict[str, Any]:
        """Add what episodes started from."""
        own = {"start": {"method": self.start, "directory": self.start_directory}}
        return {**super().extra_result(), **(own if self.start else {})}


def load_start(
    trainer: StartedTrainer,
    model: PromptedCLIP,
    directory: str | os.PathLike[str],
    epoch: int | None,
    key: str,
) -> None:
    """Copy the trained prompts of a run into ``model``.

    Args:
        trainer: Says which method's, and has the config.
        model: Of the same form.
        directory: The run's.
        epoch: Number of epochs; None for the last.
        key: Config key or flag that named the directory, for messages.

    Raises:
        FirstStageError: The directory has no weights, or they are of another method, backbone or
            form.
    """
    method, cfg = trainer.start, trainer.cfg
    folder = TRAINER_REGISTRY.get(method).model_name or method
    try:
        path = checkpoint_path(directory, folder, epoch)
        content = read_checkpoint(path, {})
    except (FileNotFoundError, ValueError) as error:
        raise FirstStageError(
            f"{key} must be the directory of a run of {method}: {error}"
        ) from None
    meta = content["meta"]
    for what, needed in (("method", method), ("backbone", cfg.MODEL.BACKBONE.NAME)):
        if meta.get(what, needed) != needed:
            raise FirstStageError(
                f"{key}: {path} was trained with {what} {meta[what]!r}, this run needs {needed!r}"
            )
    replaced = replaced_backbone(meta, trainer.checkpoint_meta())
    if replaced:
        raise FirstStageError(f"{key}: since {path} was trained, {replaced}; repeat that run")
    _check_form(method, cfg, Path(directory), key)
    freeze_except(model)  # the names of what trains are what the file must hold
    try:
        state = STARTS[method].convert(dict(content["state_dict"]), model, method)
        state = fitting_state(path, model, state, meta, trainer.checkpoint_meta())
    except ValueError as error:
        raise FirstStageError(f"{key}: {error}") from None
    finally:
        model.requires_grad_(False)
    model.load_state_dict(state, strict=False)
    drop_caches(model)
    print(f'Every episode starts from the prompts in "{path}"')


def _check_form(method: str, cfg: CfgNode, directory: Path, key: str) -> None:
    """Compare what a run's weights do not tell of its prompts."""
    config = (read_result(directory) or {}).get("config") or {}
    theirs = config.get("TRAINER", {}).get(method, {})
    for name in STARTS[method].form:
        ours = cfg.TRAINER[method][name]
        if theirs.get(name, ours) != ours:
            raise FirstStageError(
                f"{key}: the prompts in {directory} were trained with TRAINER.{method}.{name} "
                f"{theirs[name]!r}, here it is {ours!r}; set it to {theirs[name]!r}"
            )
