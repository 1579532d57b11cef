"""Seeding, downloads, a description of the environment; and the rest of Dassl's module."""

from __future__ import annotations

import difflib
import os
import platform
import random
import shutil
import subprocess
import urllib.request
from collections.abc import Iterable
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from dassl.names import check_availability
from dassl.utils.files import (
    atomic_write,
    check_isfile,
    listdir_nohidden,
    mkdir_if_missing,
    read_json,
    write_json,
)

__all__ = [
    "check_availability",
    "check_isfile",
    "collect_env_info",
    "download_url",
    "get_most_similar_str_to_a_from_b",
    "git_revision",
    "listdir_nohidden",
    "mkdir_if_missing",
    "package_versions",
    "read_image",
    "read_json",
    "set_random_seed",
    "tolist_if_not",
    "write_json",
]


def read_image(path: str | os.PathLike[str]) -> Any:
    """Read an image file as RGB, see `dassl.data.read_image`."""
    from dassl.data.wrapper import read_image as read  # which is built on this package

    return read(path)


def tolist_if_not(x: Any) -> list[Any]:
    """Return a list unchanged, anything else as a list of one."""
    return x if isinstance(x, list) else [x]


def get_most_similar_str_to_a_from_b(a: str, b: Iterable[str]) -> str | None:
    """Return the string most similar to ``a`` among ``b``; None if there is none."""
    scores = {other: difflib.SequenceMatcher(None, a, other).ratio() for other in b}
    return max(scores, key=lambda other: scores[other], default=None)


def download_url(url: str, dst: str | os.PathLike[str], from_gdrive: bool = False) -> None:
    """Download a file; a failed download leaves nothing under its name.

    Args:
        url: Source.
        dst: Path of the file; missing directories are made.
        from_gdrive: The URL is on Google Drive and fetched by gdown.

    Raises:
        ConnectionError: It cannot be fetched.
    """
    print(f'* url="{url}"\n* destination="{dst}"')
    mkdir_if_missing(os.path.dirname(dst))
    try:
        if from_gdrive:
            import gdown

            if gdown.download(url, os.fspath(dst), quiet=False) is None:
                raise ConnectionError("Google Drive has not given the file")
            return
        with urllib.request.urlopen(url) as source, atomic_write(dst, "wb") as file:
            shutil.copyfileobj(source, file)
    except Exception as error:  # of many types, gdown's own among them
        raise ConnectionError(f'cannot download "{url}" to "{dst}": {error}') from error


def set_random_seed(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (all devices). 0 is a seed like any other.

    Raises:
        ValueError: Not in [0, 2**32).
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"SEED must be in [0, 2**32), got {seed}")
    import numpy as np
    import torch  # which takes seconds; not everybody who imports this module seeds it

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (other people's transforms use the global generator)
    torch.manual_seed(seed)


def package_versions() -> dict[str, str]:
    """Return the versions that can change a result; ``"absent"`` if a package is not installed."""
    import torch

    versions = {"python": platform.python_version()}
    distributions = {"open_clip": "open_clip_torch"}
    for name in ("torch", "torchvision", "open_clip", "numpy"):
        try:
            versions[name] = metadata.version(distributions.get(name, name))
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    versions["torch"] = torch.__version__  # with the build, such as +cu130
    return versions


def collect_env_info() -> str:
    """Return a few lines on platform, packages and devices for the head of a log."""
    import torch

    lines = [f"platform: {platform.platform()}", f"cpus: {os.cpu_count()}"]
    lines += [f"{name}: {version}" for name, version in package_versions().items()]
    lines.append(f"cuda available: {torch.cuda.is_available()} (built for {torch.version.cuda})")
    for index in range(torch.cuda.device_count()):
        lines.append(f"cuda:{index}: {torch.cuda.get_device_name(index)}")
    return "\n".join(lines)


@lru_cache(maxsize=1)
def git_revision() -> dict[str, str | bool | None]:
    """Return the revision of the checkout this package lies in.

    Read once per process: files that change later do not change what was imported.

    Returns:
        ``{"revision": hash or None, "dirty": whether tracked files differ, or None}``; None if the
            package is not in the root of a git checkout.
    """
    root = Path(__file__).resolve().parents[2]

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout.strip()

    try:
        # Installed into somebody else's repository, that one's revision would say nothing.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return {"revision": None, "dirty": None}
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"revision": git("rev-parse", "HEAD"), "dirty": dirty}
    except (OSError, subprocess.SubprocessError):
        return {"revision": None, "dirty": None}
