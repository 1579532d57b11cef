"""A run directory that was used before: resume the same run, move another run's files away."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dassl.config import config_hash
from dassl.config.identity import IDENTITY_NAME, shown, split_change
from dassl.engine.checkpoint import checkpoint_meta, last_checkpoint
from dassl.engine.distributed import check_starts
from dassl.engine.resume import RESUME_NAME, read_resume, restore_state
from dassl.engine.run_identity import RunIdentity
from dassl.engine.saving import Checkpoints
from dassl.prediction_file import PREDICTIONS_NAME
from dassl.results import RESULT_NAME, read_identity, read_result
from dassl.utils.distributed import is_main
from dassl.utils.logger import move_earlier_log
from dassl.utils.torchtools import BEST_NAME, load_checkpoint

if TYPE_CHECKING:
    from dassl.engine.trainer import SimpleTrainer

__all__ = ["PREVIOUS", "Resumption", "leftovers", "resume", "set_aside"]

PREVIOUS = "previous-{}"
# What runs leave besides folders of weights; any other file may be the user's own.
_FILES = (
    *(RESULT_NAME, f"{RESULT_NAME}.old", RESUME_NAME),
    *(PREDICTIONS_NAME, "token_statistics.pt", "cmat.pt"),
)
_DRAW = "fewshot_*.json"
_TRACKED = ("tensorboard", "wandb")  # folders of trackers
_WEIGHTS = ("checkpoint", "model.pth.tar-*", BEST_NAME)


def leftovers(directory: str | os.PathLike[str], keep: Iterable[str] = ()) -> list[Path]:
    """Return what a run has left in its directory, except for some names; its identity last."""
    root = Path(directory)
    found = [root / name for name in _FILES if (root / name).is_file()]
    found += sorted(root.glob(_DRAW))
    found += [root / name for name in _TRACKED if (root / name).is_dir()]
    folders = sorted(path for path in root.glob("*") if path.is_dir())
    found += [path for path in folders if any(any(path.glob(name)) for name in _WEIGHTS)]
    found += [root / IDENTITY_NAME] * (root / IDENTITY_NAME).is_file()
    return [path for path in found if path.name not in keep]


def _recorded_hashes(root: Path) -> list[str]:
    """Return the config hashes in what runs have left; "" for a file that has none."""
    result = read_result(root)
    found = [str(result["config_hash"])] if result is not None else []
    with suppress(ValueError):  # nobody can use a damaged resume file
        state = read_resume(root)
        found += [str(state["config_hash"])] if state is not None else []
    for folder in leftovers(root):
        if folder.is_dir() and folder.name not in _TRACKED:
            files = (folder / BEST_NAME, last_checkpoint(folder))
            found += [_hash_of(file) for file in files if file is not None and file.is_file()]
    return found


def _hash_of(checkpoint: Path) -> str:
    with suppress(ValueError):
        return str(checkpoint_meta(load_checkpoint(checkpoint)).get("config_hash", ""))
    return ""


def set_aside(directory: str | os.PathLike[str], found: Iterable[Path]) -> Path:
    """Move files of a run into the next free ``previous-<n>`` below its directory."""
    root = Path(directory)
    # More numbers than entries: one of them is free.
    numbers = range(1, len(os.listdir(root)) + 2)
    target = next(p for n in numbers if not (p := root / PREVIOUS.format(n)).exists())
    target.mkdir()
    # The identity goes last: after a kill in between, the next run still sees another run here.
    for path in found:
        os.replace(path, target / path.name)
    return target


class Resumption:
    """Finds the state that a killed run has left, and makes room where another run was.

    Args:
        identity: What the current run is made from.
        checkpoints: The models that would continue.
        notes: Gets the reason why a resume file is not used.

    Attributes:
        found: The resume file that `find` has last looked at.
    """

    def __init__(self, identity: RunIdentity, checkpoints: Checkpoints, notes: list[str]) -> None:
        self.identity = identity
        self.checkpoints = checkpoints
        self.notes = notes
        self.cfg = identity.cfg
        self.directory = self.cfg.OUTPUT_DIR
        self.found = Path(self.directory) / RESUME_NAME

    def find(self, trains: bool) -> Mapping[str, Any] | None:
        """Return the state to continue from, in OUTPUT_DIR or otherwise in ``--resume``.

        If OUTPUT_DIR has none, other runs' files in it are moved away. ``trains`` tells whether
        there are epochs to train. None means that training starts anew, or that ``--resume`` has
        checkpoints only.

        Raises:
            FileNotFoundError: ``--resume`` is not a directory.
            ValueError: The resume file there belongs to another run or cannot be read.
        """
        state = self._usable_state()
        if state is not None:
            return state
        named = self.cfg.RESUME
        if named:  # a directory to continue from, perhaps this run's own
            if os.path.realpath(named) != os.path.realpath(self.directory):
                self._set_others_aside()
            return self._named_state(named)
        if not self._set_others_aside() and trains and is_main():
            self._set_old_result_aside()
        return None

    def _usable_state(self) -> dict[str, Any] | None:
        """Return the state in OUTPUT_DIR; if there is an unusable one, log why."""
        try:
            state = read_resume(self.directory)
        except ValueError as error:
            state, why = None, str(error)
        else:
            reason = self._mismatch(state) if state is not None else None
            if reason is None:
                return state
            why = f'"{self.found}" {reason}'
        print(f"WARNING: not resuming: {why}. Training starts from the beginning.")
        self.notes.append(f"a resume file was ignored: {why}")
        return None

    def _named_state(self, directory: str) -> dict[str, Any] | None:
        """Return the state in the directory of ``--resume``, where an unusable one is an error."""
        if not os.path.isdir(directory):
            raise FileNotFoundError(f'No directory "{directory}" (set by --resume)')
        self.found = Path(directory) / RESUME_NAME
        state = read_resume(directory)
        reason = self._mismatch(state) if state is not None else None
        if reason is not None:
            raise ValueError(f'"{self.found}" (set by --resume) {reason}')
        return state

    def _mismatch(self, state: Mapping[str, Any]) -> str | None:
        """Return why a state does not belong to this run, or None if it does."""
        if "identity" in state:
            changes = self.identity.changes_since(state["identity"])
            if changes:
                return f"was written with another configuration or data: {shown(changes)}"
        elif state["config_hash"] != config_hash(self.cfg):
            return (
                f"was written with another configuration (hash {state['config_hash']}, "
                f"now {config_hash(self.cfg)})"
            )
        if state["seed"] != self.identity.seed:
            return f"was written with seed {state['seed']}, now {self.identity.seed}"
        return self.checkpoints.mismatch(state)

    def _set_others_aside(self) -> bool:
        """Move away the files of a run with another identity; return whether there was one."""
        why = self._other_run() if is_main() else ""
        if not why:
            return False
        shots = self.cfg.DATASET.NUM_SHOTS
        seed = getattr(self.identity.dm.dataset, "shot_seed", None)
        found = leftovers(self.directory, keep=[f"fewshot_{shots}_seed{seed}.json"])  # this run's
        if found:
            target = set_aside(self.directory, found)
            move_earlier_log(target)
            print(f'Another run was here ({why}); what it left was moved to "{target}"')
        return True

    def _other_run(self) -> str:
        """Say how the run that has used the directory differs from this one; "" if it does not."""
        old = read_identity(self.directory)
        if old is not None:
            return shown(self.identity.changes_since(old))
        # Older versions left no identity: only the config's hash can be compared.
        own = config_hash(self.cfg)
        others = [found for found in _recorded_hashes(Path(self.directory)) if found != own]
        return f"configuration {others[0] or 'unknown'}, now {own}" if others else ""

    def _set_old_result_aside(self) -> None:
        """Rename the result of an earlier run: it does not belong to this one."""
        old = Path(self.directory) / RESULT_NAME
        if old.is_file():
            kept = old.with_name(f"{RESULT_NAME}.old")
            os.replace(old, kept)
            print(f'Training anew; the earlier result was renamed to "{kept}"')


def check_checkpoints(
    directory: str | os.PathLike[str],
    names: Iterable[str],
    classes: list[str],
    check_origin: Callable[[Path, Mapping[str, Any]], None],
) -> None:
    """Refuse to continue from ``--resume`` with checkpoints of another recipe or other classes.

    Args:
        directory: The directory of ``--resume``.
        names: The registered models.
        classes: Class names of the run, in label order.
        check_origin: Refuses another recipe, given a path and the checkpoint's meta.

    Raises:
        ValueError: The checkpoints do not fit.
    """
    for name in names:
        path = last_checkpoint(Path(directory) / name)
        if path is None:
            continue
        meta = checkpoint_meta(load_checkpoint(path))
        check_origin(path, meta)
        other = split_change({"classes": meta.get("classnames", classes)}, {"classes": classes})
        if other:
            raise ValueError(f'"{path}" (set by --resume) cannot be gone on from: {other}')


def resume(trainer: SimpleTrainer) -> None:
    """Let a trainer continue from the state of an interrupted run, if one fits.

    Raises:
        FileNotFoundError: ``--resume`` is not a directory.
        ValueError: The files there belong to another run.
    """
    cfg = trainer.cfg
    resumption = Resumption(trainer.identity, trainer.checkpoints, trainer.notes)
    state = resumption.find(trains=trainer.start_epoch < trainer.max_epoch)
    if state is not None:
        restore_state(trainer, state)
        print(
            f"Resuming after epoch {trainer.start_epoch} of {trainer.max_epoch} from "
            f'"{resumption.found}"'
        )
    elif cfg.RESUME:
        classes = list(trainer.dm.lab2cname.values())
        check_checkpoints(cfg.RESUME, trainer.get_model_names(), classes, trainer.check_origin)
        trainer.start_epoch = trainer.epoch = trainer.resume_model_if_exist(cfg.RESUME)
    if is_main():
        trainer.record.write_identity()
    check_starts(trainer.start_epoch, trainer.output_dir)
