"""Saving and loading the registered models with their optimisers and schedules."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dassl.engine.checkpoint import (
    check_finite_state,
    group_sizes,
    plain_state,
    trainable_state,
    unwrap,
)
from dassl.engine.step import drop_caches
from dassl.utils.distributed import barrier, is_main
from dassl.utils.torchtools import resume_from_checkpoint, save_checkpoint

__all__ = ["Checkpoints"]


class Checkpoints:
    """Saves and restores what trains: one folder per model, and the models' part of a resume file.

    The three dicts, by a model's name, are the trainer's own: models that it registers later are
    saved too. The optimiser of a model that does not train is None.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optims: Mapping[str, Any],
        scheds: Mapping[str, Any],
    ) -> None:
        self.models, self.optims, self.scheds = models, optims, scheds

    def trained(self) -> list[str]:
        """Return the names of models with trainable parameters; the others have no checkpoint."""
        return [name for name, model in self.models.items() if trainable_state(model)]

    def _weights(self, what: str) -> dict[str, Any]:
        """Return what trains of every model; all of it is checked before any of it is written.

        Raises:
            FloatingPointError: A weight is not finite.
        """
        states = {name: trainable_state(model) for name, model in self.models.items()}
        for name, state in states.items():
            check_finite_state(state, f"cannot save {what}{name!r}")
        return states

    def save(
        self,
        directory: str | os.PathLike[str],
        epochs: int,
        meta: Mapping[str, Any],
        *,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Save every model that trains, atomically; only rank 0 of several processes does it.

        Args:
            directory: Run directory; each model has a folder in it.
            epochs: Epochs done, which also name the file.
            meta: What the files say about the run.
            is_best: Also save as the best.
            val_result: Result on the validation images.
            model_name: File name instead of the one with the epoch.

        Raises:
            FloatingPointError: A weight is not finite; nothing is overwritten.
        """
        for name, state in self._weights("").items():
            if not state or not is_main():
                continue
            content = {
                "state_dict": state,
                "epoch": epochs,
                # Dassl's entries, so that its code reads these files too.
                "optimizer": _state_of(self.optims[name]),
                "scheduler": _state_of(self.scheds[name]),
                "val_result": None if val_result is None else float(val_result),
                "meta": dict(meta),
            }
            save_checkpoint(content, Path(directory) / name, is_best=is_best, model_name=model_name)
        barrier()  # other processes may read what rank 0 has written

    def put(self, name: str, state: Mapping[str, Any]) -> None:
        """Load checked weights into a model."""
        # Not strict: a checkpoint holds only what trains.
        unwrap(self.models[name]).load_state_dict(state, strict=False)
        drop_caches(self.models[name])

    def continue_from(self, directory: str | os.PathLike[str]) -> int:
        """Load the last checkpoint of every model, its optimiser and schedule, as Dassl does.

        Returns the epoch to start at; 0 if any model has no checkpoint.
        """
        names = self.trained()
        pointers = [Path(directory) / name / "checkpoint" for name in names]
        if not names or not all(pointer.is_file() for pointer in pointers):
            print("No checkpoint found, train from scratch")
            return 0
        print(f'Found checkpoint at "{directory}" (will resume training)')
        start_epoch = 0
        for name in names:
            # Models are saved together, so each file gives the same epoch.
            start_epoch = resume_from_checkpoint(
                Path(directory) / name,
                unwrap(self.models[name]),
                self.optims[name],
                self.scheds[name],
            )
            drop_caches(self.models[name])
        return start_epoch

    # ------------------------------------------------------------------ in the resume file

    def state(self) -> dict[str, Any]:
        """Return weights, optimisers and schedules, for the resume file.

        Raises:
            FloatingPointError: A weight is not finite.
        """
        return {
            "models": self._weights("the state of "),
            "optims": {name: _state_of(optim) for name, optim in self.optims.items()},
            "scheds": {name: _state_of(sched) for name, sched in self.scheds.items()},
        }

    def mismatch(self, state: Mapping[str, Any]) -> str | None:
        """Say why `restore` could not use a state; None if it can."""
        for name, model in self.models.items():
            saved, optim = state["optims"].get(name), self.optims[name]
            if _shapes(state["models"].get(name, {})) != _shapes(trainable_state(model)):
                return f"has other trainable parameters for {name!r}"
            if (saved is None) != (optim is None):
                return f"has another optimiser for {name!r}"
            if optim is not None and group_sizes(saved) != group_sizes(optim.state_dict()):
                return f"has other parameter groups in the optimiser of {name!r}"
        return None

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue with a state's weights, optimisers and schedules."""
        for name in self.models:
            self.put(name, state["models"][name])
            for owner, saved in (
                (self.optims[name], state["optims"][name]),
                (self.scheds[name], state["scheds"][name]),
            ):
                if owner is not None and saved is not None:
                    owner.load_state_dict(saved)


def _state_of(owner: Any) -> Any:
    return None if owner is None else plain_state(owner.state_dict())


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.shape for key, value in state.items()}
