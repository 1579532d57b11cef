"""Paths that a user gives, and where they are looked up."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

__all__ = ["REPOSITORY", "file_flag", "path_flag", "resolve", "user_path"]

REPOSITORY = Path(__file__).resolve().parents[2]


def user_path(text: str | os.PathLike[str]) -> str:
    """Read a path as a shell would: ``~`` and ``~name`` at its start are home directories.

    Nothing else is replaced, not even variables, so that a path without ``~`` stays as it is.

    Raises:
        ValueError: The path starts with ``~`` and the name of no user.
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

    So a config can name ``prompts/DTD.json`` whatever folder the run is started in.
    """
    given = Path(user_path(path))
    return given if given.exists() or given.is_absolute() else REPOSITORY / given


def path_flag(text: str) -> str:
    """Read the path of a command-line flag, as argparse's ``type``; see :func:`user_path`."""
    try:
        return user_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def file_flag(text: str) -> Path:
    """Read the path of a command-line flag as a ``Path``; see :func:`path_flag`."""
    return Path(path_flag(text))
