"""A run's folder: writable, used by one run at a time, cleared of killed runs' temporary files.

Two runs in one folder would mix their logs, checkpoints and results.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from dassl.engine.checkpoint import trainable_state
from dassl.locks import RUN_LOCK, FileLock, LockedError, Owner, acquire, remove_leftovers
from dassl.utils.distributed import is_main

__all__ = ["check_room", "run_folder"]

_LONGEST = 160  # bytes of a name below the folder, such as those of TensorBoard's files
_PATH_LIMIT = 4096


@contextmanager
def run_folder(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Reserve OUTPUT_DIR, created if missing, for this run inside a block; rank 0 does it for all.

    Raises:
        OSError: It cannot be written.
        ValueError: Another run is at work in it.
    """
    if not is_main():
        yield
        return
    folder = Path(directory)
    try:
        lock = _take(folder)
    except OSError as error:
        reason = f"{error.strerror} (OUTPUT_DIR, set by --output-dir)"
        raise OSError(error.errno, reason, str(folder)) from error
    with lock:
        # A subfolder with a log or a lock belongs to another run, which may be at work.
        models = (path for path in folder.iterdir() if path.is_dir() and not _is_run(path))
        remove_leftovers([folder, *models], alone=lock.held)
        yield


def _take(folder: Path) -> FileLock:
    # Checked at once: the folder itself can be made, and saving would fail after an epoch.
    if len(os.fsencode(folder)) + _LONGEST > _PATH_LIMIT:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = acquire(folder / RUN_LOCK)
    except LockedError as busy:
        raise ValueError(
            f'another run is at work in "{folder}" ({busy.owner or "a process that gives no name"})'
            "; wait for its end, stop it, or set another --output-dir"
        ) from None
    try:
        lock.record(Owner.of(os.getpid()))
    except OSError:  # no space even for that
        lock.release()
        raise
    return lock


def check_room(directory: str | os.PathLike[str], models: Mapping[str, nn.Module]) -> None:
    """Check before training that its files can be saved in OUTPUT_DIR.

    ``models`` are by the name of their folder in it.

    Raises:
        OSError: A file has the name of a folder that is needed, or there is not enough space for a
            checkpoint and the resume file, without the optimiser's state.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*models, "tensorboard"):
        if (folder / name).exists() and not (folder / name).is_dir():
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder / name))
    states = [value for model in models.values() for value in trainable_state(model).values()]
    # Twice: for a checkpoint and for the resume file.
    needed = 2 * sum(value.numel() * value.element_size() for value in states)
    if not hasattr(os, "statvfs"):  # Windows
        return
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{needed / 2**20:,.1f} MiB are needed for checkpoints, {free / 2**20:,.1f} MiB are "
            "free (OUTPUT_DIR, set by --output-dir)",
            str(folder),
        )


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("log.txt", "job.log", RUN_LOCK))
