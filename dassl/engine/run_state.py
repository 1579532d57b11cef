"""What outlives a process during a run: the resume file, and the remarks collected so far."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from dassl.config import config_hash
from dassl.config.identity import shown, split_change
from dassl.engine.checkpoint import (
    check_finite_state,
    checkpoint_meta,
    plain_state,
    trainable_state,
    unwrap,
)
from dassl.engine.distributed import own_steps
from dassl.engine.precision import effective_precision, requested_precision
from dassl.engine.previous_runs import leftovers, recorded_hashes, set_aside
from dassl.engine.resume import (
    RESUME_NAME,
    random_states,
    read_resume,
    restore_random_states,
    write_resume,
)
from dassl.engine.run_identity import RunIdentity
from dassl.engine.step import drop_caches
from dassl.results import RESULT_NAME, read_identity
from dassl.utils.distributed import gather_objects, is_main, world_size
from dassl.utils.logger import move_earlier_log
from dassl.utils.torchtools import load_checkpoint

__all__ = ["RunState"]


def group_sizes(state: Mapping[str, Any]) -> list[int]:
    """Return the number of parameters in every group of an optimiser.

    Args:
        state: The optimiser's state dict.
    """
    return [len(group["params"]) for group in state["param_groups"]]


class RunState(RunIdentity):
    """Saves and restores a run's state, collects notes.

    Attributes:
        best_result: Best result on the validation images so far.
        scaler: Gradient scaler, or None.
        notes: Remarks that end up in the result.
    """

    cfg: CfgNode
    device: torch.device
    seed: int
    dm: Any
    evaluator: Any
    train_loader_x: Any
    train_loader_u: Any
    scaler: Any = None
    _parallel: Any = None  # the step of several processes
    config_section: str | None = None

    def __init__(self) -> None:
        """Start without state."""
        super().__init__()
        self.best_result = -float("inf")
        self.notes: list[str] = []
        self._created = time.time()
        self._generators: dict[str, torch.Generator] = {}
        self._owns_model = False
        self._training = False

    @property
    def precision(self) -> str:
        """What the run computes in: fp32, fp16, bf16 or amp, after falling back if need be."""
        requested = requested_precision(self.cfg, self.config_section or self.cfg.TRAINER.NAME)
        effective, note = effective_precision(requested, self.device)
        if note:
            self.add_note(note)
        return effective

    def stated_precision(self) -> str:
        """What the run computes in; what the config says where a trainer sees to it itself."""
        if self._owns_model:
            return self.precision
        try:
            return requested_precision(self.cfg, self.config_section or self.cfg.TRAINER.NAME)
        except ValueError:  # its own word for something
            return "custom"

    def add_note(self, note: str) -> None:
        """Print a remark, once, and record it in the result.

        Args:
            note: Remark.
        """
        if note not in self.notes:
            self.notes.append(note)
            print(f"Note: {note}")

    # ------------------------------------------------------------------ resuming

    def extra_state(self) -> dict[str, Any]:
        """Return further state that a resumed run needs (tensors and plain data); none here.

        A method overrides this together with `load_extra_state` if its training depends on more
        than parameters, optimiser and random generators, such as a running average of weights.
        """
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` returned.

        Args:
            state: As saved.
        """

    def begin_epoch(self) -> None:
        """Make the order of images a function of the epoch, so that resuming repeats it."""
        for loader in (self.train_loader_x, self.train_loader_u):
            set_epoch = getattr(getattr(loader, "sampler", None), "set_epoch", None)
            if set_epoch is not None:
                set_epoch(self.epoch)

    def end_epoch(self) -> None:
        """Replace the resume file, every RESUME_FREQ epochs and after the last."""
        if world_size() > 1 and not getattr(self._parallel, "used", False):
            raise own_steps(self.cfg)
        every = self.cfg.TRAIN.RESUME_FREQ
        done = self.epoch + 1
        if every > 0 and (done % every == 0 or done == self.max_epoch):
            state = self.resume_state(done)
            if is_main():
                write_resume(self.output_dir, state)

    def resume_state(self, epochs_done: int) -> dict[str, Any]:
        """Collect everything that the rest of the run depends on.

        Args:
            epochs_done: Epochs trained so far.

        Raises:
            FloatingPointError: A weight is not finite.
        """
        models = {name: trainable_state(model) for name, model in self._models.items()}
        for name, state in models.items():
            check_finite_state(state, f"cannot save the state of {name!r}")

        def states(owners: Mapping[str, Any]) -> dict[str, Any]:
            return {
                name: plain_state(owner.state_dict()) if owner is not None else None
                for name, owner in owners.items()
            }

        return {
            "config_hash": config_hash(self.cfg),
            "identity": self.identity(),
            "device": self.device.type,
            "seed": self.seed,
            "epoch": epochs_done,
            "models": models,
            "optims": states(self._optims),
            "scheds": states(self._scheds),
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "best_result": float(self.best_result),
            "random": random_states(self._generators, self.device),
            "elapsed": time.time() - self.time_start,
            "notes": list(self.notes),
            "extra": self.extra_state(),
        }

    def resume(self) -> None:
        """Restore the state of an interrupted run, if there is one that fits."""
        state = self._usable_state(self.output_dir)
        if state is not None:
            self._restore(state, self.output_dir)
        elif self.cfg.RESUME:
            if not _same_folder(self.cfg.RESUME, self.output_dir):
                self._set_others_aside()
            self._resume_from(self.cfg.RESUME)
        elif not self._set_others_aside() and self.start_epoch < self.max_epoch and is_main():
            self._set_old_result_aside()
        if is_main():
            self.write_identity()
        starts = gather_objects(self.start_epoch)
        if len(set(starts)) > 1:
            raise ValueError(
                f"the processes would start after different epochs ({starts}): OUTPUT_DIR "
                f'"{self.output_dir}" must be on a file system that all machines share'
            )

    def _usable_state(self, directory: str) -> dict[str, Any] | None:
        """Read a resume file; say why, if it cannot be used."""
        try:
            state = read_resume(directory)
        except ValueError as error:
            self._ignore(str(error))
            return None
        if state is None:
            return None
        reason = self._mismatch(state)
        if reason is None:
            return state
        self._ignore(f'"{Path(directory) / RESUME_NAME}" {reason}')
        return None

    def _ignore(self, why: str) -> None:
        print(f"WARNING: not resuming: {why}. Training starts from the beginning.")
        self.notes.append(f"a resume file was ignored: {why}")

    def _mismatch(self, state: Mapping[str, Any]) -> str | None:
        """Return why a state does not belong to this run, or None if it does."""
        if "identity" in state:
            changes = self.changes_since(state["identity"])
            if changes:
                return f"was written with another configuration or data: {shown(changes)}"
        elif state["config_hash"] != config_hash(self.cfg):
            return (
                f"was written with another configuration (hash {state['config_hash']}, "
                f"now {config_hash(self.cfg)})"
            )
        if state["seed"] != self.seed:
            return f"was written with seed {state['seed']}, now {self.seed}"
        for name, model in self._models.items():
            saved = state["models"].get(name, {})
            current = trainable_state(model)
            if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in current.items()}:
                return f"has other trainable parameters for {name!r}"
            if (state["optims"].get(name) is None) != (self._optims[name] is None):
                return f"has another optimiser for {name!r}"
            if self._optims[name] is not None and group_sizes(state["optims"][name]) != group_sizes(
                self._optims[name].state_dict()
            ):
                return f"has other parameter groups in the optimiser of {name!r}"
        return None

    def _restore(self, state: Mapping[str, Any], directory: str) -> None:
        for name, model in self._models.items():
            unwrap(model).load_state_dict(state["models"][name], strict=False)
            drop_caches(model)
            for owner, saved in (
                (self._optims[name], state["optims"][name]),
                (self._scheds[name], state["scheds"][name]),
            ):
                if owner is not None and saved is not None:
                    owner.load_state_dict(saved)
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.best_result = state["best_result"]
        self.start_epoch = self.epoch = state["epoch"]
        self.time_start -= state["elapsed"]
        self._created -= state["elapsed"]
        self.notes += [note for note in state["notes"] if note not in self.notes]
        begun = state.get("device", self.device.type)
        if begun != self.device.type:
            self.add_note(
                f"begun on {begun}, went on after epoch {state['epoch']} on {self.device.type}"
            )
        self.load_extra_state(state["extra"])
        restore_random_states(state["random"], self._generators)
        print(
            f"Resuming after epoch {self.start_epoch} of {self.max_epoch} from "
            f'"{Path(directory) / RESUME_NAME}"'
        )

    def _resume_from(self, directory: str) -> None:
        """Resume from where ``--resume`` says; there, an unusable file is an error."""
        if not os.path.isdir(directory):
            raise FileNotFoundError(f'No directory "{directory}" (set by --resume)')
        state = read_resume(directory)
        if state is None:
            self._check_checkpoints(directory)
            self.start_epoch = self.epoch = self.resume_model_if_exist(directory)
            return
        reason = self._mismatch(state)
        if reason is not None:
            raise ValueError(f'"{Path(directory) / RESUME_NAME}" (set by --resume) {reason}')
        self._restore(state, directory)

    def _check_checkpoints(self, directory: str) -> None:
        """Refuse to go on from checkpoints of another recipe or of other classes."""
        own = list(self.dm.lab2cname.values())
        for name in self.get_model_names():
            pointer = Path(directory) / name / "checkpoint"
            path = pointer.with_name(pointer.read_text().strip()) if pointer.is_file() else None
            if path is None or not path.is_file():
                continue
            meta = checkpoint_meta(load_checkpoint(path))
            self.check_origin(path, meta)
            other = split_change({"classes": meta.get("classnames", own)}, {"classes": own})
            if other:
                raise ValueError(f'"{path}" (set by --resume) cannot be gone on from: {other}')

    def _set_others_aside(self) -> bool:
        """Move away what a run of another identity has left; return whether there was one."""
        why = self._other_run() if is_main() else ""
        if not why:
            return False
        shots, seed = self.cfg.DATASET.NUM_SHOTS, getattr(self.dm.dataset, "shot_seed", None)
        found = leftovers(self.output_dir, keep=[f"fewshot_{shots}_seed{seed}.json"])  # just drawn
        if found:
            target = set_aside(self.output_dir, found)
            move_earlier_log(target)
            print(f'Another run was here ({why}); what it left was moved to "{target}"')
        return True

    def _other_run(self) -> str:
        """Say in what the run that has used the directory differs from this one, if it does."""
        old = read_identity(self.output_dir)
        if old is not None:
            return shown(self.changes_since(old))
        own = config_hash(self.cfg)
        others = [found for found in recorded_hashes(self.output_dir) if found != own]
        if not others:
            return ""
        return f"configuration {others[0] or 'unknown'}, now {own}"

    def _set_old_result_aside(self) -> None:
        """Rename the result of an earlier run: until this one ends, none belongs here."""
        old = Path(self.output_dir) / RESULT_NAME
        if old.is_file():
            kept = old.with_name(f"{RESULT_NAME}.old")
            os.replace(old, kept)
            print(f'Training anew; the earlier result was renamed to "{kept}"')


def _same_folder(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
