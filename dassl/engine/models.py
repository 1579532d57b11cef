"""Registered models: modes, learning rates, checkpoints."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dassl.engine.checkpoint import (
    check_finite_state,
    checkpoint_meta,
    checkpoint_path,
    fitting_state,
    plain_state,
    read_checkpoint,
    saved_classes,
    trainable_state,
    unwrap,
)
from dassl.engine.step import drop_caches
from dassl.names import nearest
from dassl.utils.distributed import barrier, is_main
from dassl.utils.torchtools import resume_from_checkpoint, save_checkpoint

__all__ = ["Names", "RegisteredModels"]

Names = str | Sequence[str] | None


class RegisteredModels:
    """Models by name, each with its optimiser, its schedule and a directory of checkpoints.

    Attributes:
        any_config: Load weights although they were trained with other options.
    """

    any_config: bool = False

    def __init__(self) -> None:
        """Start without models."""
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, Any] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()

    def register_model(
        self, name: str = "model", model: Any = None, optim: Any = None, sched: Any = None
    ) -> None:
        """Put a model under the engine's care: modes, checkpoints, schedule, resuming.

        Args:
            name: Directory of its checkpoints.
            model: Module.
            optim: Its optimiser, or None if it does not train.
            sched: Its schedule, or None.

        Raises:
            AttributeError: ``super().__init__()`` was not called.
            ValueError: The name is taken.
        """
        if self.__dict__.get("_models") is None:
            raise AttributeError("call super().__init__() before register_model")
        if name in self._models:
            raise ValueError(f"a model is already registered as {name!r}; choose another name")
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: Names = None) -> list[str]:
        """Return the names of registered models.

        Args:
            names: One or several names to check, or None for all.

        Raises:
            ValueError: A name is not registered.
        """
        known = list(self._models)
        if names is None:
            return known
        wanted = [names] if isinstance(names, str) else list(names)
        for name in wanted:
            if name not in known:
                raise ValueError(
                    f"no model is registered as {name!r}.{nearest(name, known)} "
                    f"Registered: {', '.join(known) or '(none)'}"
                )
        return wanted

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        """Switch registered models to training or evaluation.

        Args:
            mode: train, or test or eval.
            names: Which models; None for all.

        Raises:
            ValueError: Another mode.
        """
        if mode not in ("train", "test", "eval"):
            raise ValueError(f"mode must be train, test or eval, got {mode!r}")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    def get_current_lr(self, names: Names = None) -> float:
        """Return the learning rate of the first parameter group of a model.

        Args:
            names: The first of these models; None for the first registered. 0 without optimiser.
        """
        wanted = self.get_model_names(names)
        optim = self._optims[wanted[0]] if wanted else None
        return float(optim.param_groups[0]["lr"]) if optim is not None else 0.0

    def update_lr(self, names: Names = None) -> None:
        """Advance the schedules, once per epoch.

        Args:
            names: Of which models; None for all.
        """
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def checkpoint_meta(self) -> dict[str, Any]:
        """Return what a checkpoint says about its run; subclasses fill it."""
        return {}

    def check_origin(self, path: Path, meta: Mapping[str, Any]) -> None:
        """Refuse weights that were made otherwise than the config says; subclasses know how.

        Args:
            path: Of the checkpoint.
            meta: What it says about its run; empty if nothing.
        """

    def convert_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Translate a foreign checkpoint's layout to the model's keys; identity by default.

        Called by `load_model` before keys and shapes are checked.

        Args:
            state_dict: As read.
        """
        return state_dict

    def match_classes(
        self, path: Path, state_dict: dict[str, Any], classnames: Sequence[str] | None
    ) -> dict[str, Any]:
        """Bring what a checkpoint holds per class into the order of the classes; identity here.

        Called by `load_model` behind `convert_state_dict`.

        Args:
            path: Of the checkpoint, for messages.
            state_dict: With the model's keys.
            classnames: Of its classes, in label order; None if it does not name them.
        """
        return state_dict

    def checkpoint_folder(self, directory: str | os.PathLike[str], name: str) -> str:
        """Return the folder of a run directory that a model is loaded from; its name by default.

        Args:
            directory: Run directory, maybe of a foreign layout.
            name: Name the model is registered under.
        """
        return name

    def save_model(
        self,
        epoch: int,
        directory: str | os.PathLike[str],
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Save what trains of every registered model, atomically.

        Args:
            epoch: Current epoch, from 0; the file is named by the number of epochs done.
            directory: Run directory; each model has a directory in it.
            is_best: Also save as the best.
            val_result: Result on the validation images.
            model_name: File name instead of the one with the epoch.

        Raises:
            FloatingPointError: A weight is not finite; nothing is overwritten.
        """
        states = {name: trainable_state(self._models[name]) for name in self.get_model_names()}
        for name, state in states.items():
            check_finite_state(state, f"cannot save {name!r}")
        for name, state in states.items():
            if not state or not is_main():
                continue
            optim, sched = self._optims[name], self._scheds[name]
            save_checkpoint(
                {
                    "state_dict": state,
                    "epoch": epoch + 1,
                    "optimizer": plain_state(optim.state_dict()) if optim is not None else None,
                    "scheduler": plain_state(sched.state_dict()) if sched is not None else None,
                    "val_result": None if val_result is None else float(val_result),
                    "meta": self.checkpoint_meta(),
                },
                Path(directory) / name,
                is_best=is_best,
                model_name=model_name,
            )
        barrier()  # other processes may read what rank 0 has written

    def load_model(
        self, directory: str | os.PathLike[str] | None, epoch: int | None = None
    ) -> None:
        """Load the weights of every registered model from a run directory.

        Everything is checked before anything is changed. Models without trainable parameters have
        no checkpoint and are left alone.

        Args:
            directory: Run directory; empty or None does nothing.
            epoch: Number of epochs; None takes the best on the validation images.

        Raises:
            FileNotFoundError: A file is not there.
            ValueError: A file is damaged, of another method, backbone or config, or does not fit.
        """
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        meta = self.checkpoint_meta()
        loads = []
        for name in self.get_model_names():
            model = self._models[name]
            if not trainable_state(model):
                print(f"Nothing to load for {name!r}: it has no trainable parameters")
                continue
            path = checkpoint_path(directory, self.checkpoint_folder(directory, name), epoch)
            checkpoint = read_checkpoint(path, meta)
            self.check_origin(path, checkpoint_meta(checkpoint))
            state = self.convert_state_dict(dict(checkpoint["state_dict"]))
            state = self.match_classes(path, state, saved_classes(checkpoint))
            state = fitting_state(path, model, state, checkpoint.get("meta"), meta)
            loads.append((name, path, state, checkpoint.get("epoch")))
        for name, path, state, trained in loads:
            unwrap(self._models[name]).load_state_dict(state, strict=False)
            drop_caches(self._models[name])
            print(f'Loading weights to {name} from "{path}" (epoch = {trained})')

    def resume_model_if_exist(self, directory: str | os.PathLike[str]) -> int:
        """Continue from the last checkpoints in a directory, as Dassl does.

        Args:
            directory: Run directory.

        Returns:
            The epoch to start at; 0 if any model has no checkpoint.
        """
        names = [name for name in self.get_model_names() if trainable_state(self._models[name])]
        pointers = [Path(directory) / name / "checkpoint" for name in names]
        if not names or not all(pointer.is_file() for pointer in pointers):
            print("No checkpoint found, train from scratch")
            return 0
        print(f'Found checkpoint at "{directory}" (will resume training)')
        start_epoch = 0
        for name in names:
            start_epoch = resume_from_checkpoint(
                Path(directory) / name,
                unwrap(self._models[name]),
                self._optims[name],
                self._scheds[name],
            )
            drop_caches(self._models[name])
        return start_epoch
