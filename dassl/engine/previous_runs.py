"""A run directory that another run has used before."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from dassl.config.identity import IDENTITY_NAME
from dassl.engine.checkpoint import checkpoint_meta
from dassl.engine.resume import RESUME_NAME, read_resume
from dassl.results import RESULT_NAME, read_result
from dassl.utils.torchtools import BEST_NAME, load_checkpoint

__all__ = ["PREVIOUS", "leftovers", "recorded_hashes", "set_aside"]

PREVIOUS = "previous-{}"
# What runs leave besides folders of weights; other files may be the user's own.
_FILES = (RESULT_NAME, f"{RESULT_NAME}.old", RESUME_NAME, "token_statistics.pt", "cmat.pt")
_DRAW = "fewshot_*.json"
_WEIGHTS = ("checkpoint", "model.pth.tar-*", BEST_NAME)


def leftovers(directory: str | os.PathLike[str], keep: Iterable[str] = ()) -> list[Path]:
    """Return what a run has left in its directory, its identity last.

    Args:
        directory: Run directory.
        keep: Names that do not count.
    """
    root = Path(directory)
    found = [root / name for name in _FILES if (root / name).is_file()]
    found += sorted(root.glob(_DRAW))
    found += [root / "tensorboard"] * (root / "tensorboard").is_dir()
    folders = sorted(path for path in root.glob("*") if path.is_dir())
    found += [path for path in folders if any(any(path.glob(name)) for name in _WEIGHTS)]
    found += [root / IDENTITY_NAME] * (root / IDENTITY_NAME).is_file()
    return [path for path in found if path.name not in keep]


def recorded_hashes(directory: str | os.PathLike[str]) -> list[str]:
    """Return the config hashes in what a run has left; "" where one does not say.

    Args:
        directory: Run directory.
    """
    root = Path(directory)
    result = read_result(root)
    found = [str(result["config_hash"])] if result is not None else []
    with suppress(ValueError):  # a damaged resume file is of no use to anybody
        state = read_resume(root)
        found += [str(state["config_hash"])] if state is not None else []
    for path in leftovers(root):
        if path.is_dir() and path.name != "tensorboard":
            found += [_hash_of(file) for file in (path / BEST_NAME, _last(path)) if file.is_file()]
    return found


def _last(folder: Path) -> Path:
    pointer = folder / "checkpoint"
    return folder / (pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else "-")


def _hash_of(checkpoint: Path) -> str:
    with suppress(ValueError):
        return str(checkpoint_meta(load_checkpoint(checkpoint)).get("config_hash", ""))
    return ""


def set_aside(directory: str | os.PathLike[str], found: Iterable[Path]) -> Path:
    """Move what a run has left into the next free ``previous-<n>`` below its directory.

    Args:
        directory: Run directory.
        found: From `leftovers`. The identity goes last: a kill in between leaves the rest to the
            next call.

    Returns:
        The folder.
    """
    root = Path(directory)
    numbers = range(1, len(os.listdir(root)) + 2)
    target = next(p for n in numbers if not (p := root / PREVIOUS.format(n)).exists())
    target.mkdir()
    for path in found:
        os.replace(path, target / path.name)
    return target
