"""The rolling resume file: all that a killed run needs to end as if it had not been killed."""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from yacs.config import CfgNode

from dassl.config import config_hash
from dassl.locks import remove_leftovers
from dassl.utils.distributed import is_main
from dassl.utils.restricted_unpickler import read_restricted
from dassl.utils.torchtools import atomic_torch_save

if TYPE_CHECKING:
    from dassl.engine.trainer import SimpleTrainer

__all__ = [
    "RESUME_NAME",
    "collect_state",
    "random_states",
    "read_resume",
    "remove_resume",
    "resolve_seed",
    "restore_random_states",
    "restore_state",
    "write_resume",
]

RESUME_NAME = "resume.pth.tar"
_FORMAT = 1
_ENTRIES = ("config_hash", "seed", "epoch", "models", "optims", "scheds", "random", "best_result")


def random_states(
    generators: Mapping[str, torch.Generator], device: torch.device
) -> dict[str, Any]:
    """Return the states of all random generators as plain data."""
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    states: dict[str, Any] = {
        "python": random.getstate(),
        # As a list: arrays are not among what the reader of these files rebuilds.
        "numpy": (name, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "generators": {key: g.get_state() for key, g in generators.items()},
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state_all()
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random_states(
    states: Mapping[str, Any], generators: Mapping[str, torch.Generator]
) -> None:
    """Set all random generators to saved states."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    for key, state in states["generators"].items():
        if key in generators:
            generators[key].set_state(state)
    # On a machine with other GPUs, their generators keep the seed's state.
    if "cuda" in states and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


def collect_state(trainer: SimpleTrainer, epochs: int) -> dict[str, Any]:
    """Return everything that the rest of a run depends on, after a number of epochs.

    Raises:
        FloatingPointError: A loss since the last look, or a weight, is not finite.
    """
    trainer.readings.read()
    scaler = trainer.scaler
    return {
        "config_hash": config_hash(trainer.cfg),
        "identity": trainer.identity.content(),
        "device": trainer.device.type,
        "seed": trainer.seed,
        "epoch": epochs,
        **trainer.checkpoints.state(),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "best_result": float(trainer.best_result),
        "random": random_states(trainer._generators, trainer.device),
        "elapsed": time.time() - trainer.time_start,
        "notes": list(trainer.notes),
        "tracked": dict(trainer.tracking.ids),
        "extra": trainer.extra_state(),
    }


def restore_state(trainer: SimpleTrainer, state: Mapping[str, Any]) -> None:
    """Put a trainer into the state in which another process stopped."""
    trainer.checkpoints.restore(state)
    if trainer.scaler is not None and state["scaler"] is not None:
        trainer.scaler.load_state_dict(state["scaler"])
    trainer.best_result = state["best_result"]
    trainer.start_epoch = trainer.epoch = state["epoch"]
    # Count the killed process's time too, as if this process had begun earlier.
    trainer.time_start -= state["elapsed"]
    trainer.record.started -= state["elapsed"]
    trainer.tracking.ids.update(state.get("tracked", {}))  # older files have none
    trainer.notes += [note for note in state["notes"] if note not in trainer.notes]
    now, begun = trainer.device.type, state.get("device", trainer.device.type)
    if begun != now:
        trainer.notes.add(f"begun on {begun}, went on after epoch {state['epoch']} on {now}")
    trainer.load_extra_state(state["extra"])
    # Last, since everything before may draw random numbers.
    restore_random_states(state["random"], trainer._generators)


def write_resume(directory: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Replace the resume file, atomically; only rank 0 of several processes does it."""
    if is_main():
        remove_leftovers([Path(directory)], alone=True)
        atomic_torch_save({"format": _FORMAT, **state}, Path(directory) / RESUME_NAME)


def read_resume(directory: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read the resume file; None if there is none.

    Raises:
        ValueError: The file cannot be used: cut off, damaged, another format.
    """
    path = Path(directory) / RESUME_NAME
    if not path.is_file():
        return None
    try:
        state = read_restricted(path)
    except Exception as error:  # many types: which one depends on where the file is damaged
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f'"{path}" is damaged or cut off: {reason}') from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(f'"{path}" is no resume file of this version')
    absent = [key for key in _ENTRIES if key not in state]
    if absent:
        raise ValueError(f'"{path}" lacks {", ".join(absent)}')
    return state


def remove_resume(directory: str | os.PathLike[str]) -> None:
    """Remove the resume file, if there is one."""
    remove_leftovers([Path(directory)], alone=True)
    with suppress(FileNotFoundError):
        (Path(directory) / RESUME_NAME).unlink()


def resolve_seed(cfg: CfgNode) -> int:
    """Return the run's seed, drawing one if ``cfg.SEED`` is negative.

    An interrupted run with a drawn seed resumes with the same one: another seed would give another
    few-shot draw under the same weights.
    """
    if cfg.SEED >= 0:
        return cfg.SEED
    with suppress(ValueError):  # an unreadable file is reported when training starts
        state = read_resume(cfg.OUTPUT_DIR)
        if state is not None and state["config_hash"] == config_hash(cfg):
            print(f"SEED is {cfg.SEED}: continuing with the interrupted run's seed {state['seed']}")
            return state["seed"]
    seed = secrets.randbelow(2**31)
    print(f"SEED is {cfg.SEED}: drew seed {seed}")
    return seed
