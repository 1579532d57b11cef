"""The paths that a user gives, and where they are looked for."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

__all__ = ["REPOSITORY", "file_flag", "path_flag", "resolve", "user_path"]

REPOSITORY = Path(__file__).resolve().parents[2]


def user_path(text: str | os.PathLike[str]) -> str:
    """Read a path as a shell would: ``~`` and ``~name`` at its start are home directories.

    Nothing else is replaced, no variables either, so that a path without ``~`` stays what it is.

    Args:
        text: Path of a flag, an option or a config file.

    Returns:
        The path.

    Raises:
        ValueError: It starts with ``~``, but there is no user of that name.
    """
    path = os.path.expanduser(os.fspath(text))
    if path.startswith("~"):
        user = path.partition("/")[0]
        raise ValueError(
            f"{os.fspath(text)!r}: there is no user {user[1:]!r}; ~ alone is your own home "
            f"directory, and what is really called {user!r} is written ./{user}"
        )
    return path


def resolve(path: str) -> Path:
    """Find a file that a config names: as given, else relative to the repository.

    Args:
        path: Value of a key. Configs name files of the repository so, ``prompts/DTD.json``,
            whatever folder a run is started in.
    """
    given = Path(user_path(path))
    return given if given.exists() or given.is_absolute() else REPOSITORY / given


def path_flag(text: str) -> str:
    """Read the path of a command-line flag, as argparse's ``type``.

    Args:
        text: What was given.

    Returns:
        The path, see :func:`user_path`.

    Raises:
        argparse.ArgumentTypeError: There is no such user.
    """
    try:
        return user_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def file_flag(text: str) -> Path:
    """The same as :func:`path_flag`, as a ``Path``."""
    return Path(path_flag(text))
