"""Seeding and a description of the environment."""

from __future__ import annotations

import os
import platform
import random
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

__all__ = ["collect_env_info", "git_revision", "package_versions", "set_random_seed"]


def set_random_seed(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (all devices). 0 is a seed like any other.

    Args:
        seed: In [0, 2**32).

    Raises:
        ValueError: Out of range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"SEED must be in [0, 2**32), got {seed}")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (other people's transforms use the global generator)
    torch.manual_seed(seed)


def package_versions() -> dict[str, str]:
    """Return the versions that can change a result, ``"absent"`` for what is not installed."""
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
    lines = [f"platform: {platform.platform()}", f"cpus: {os.cpu_count()}"]
    lines += [f"{name}: {version}" for name, version in package_versions().items()]
    lines.append(f"cuda available: {torch.cuda.is_available()} (built for {torch.version.cuda})")
    for index in range(torch.cuda.device_count()):
        lines.append(f"cuda:{index}: {torch.cuda.get_device_name(index)}")
    return "\n".join(lines)


@lru_cache(maxsize=1)
def git_revision() -> dict[str, str | bool | None]:
    """Return the revision of the checkout this package lies in.

    Read once per process: what was imported does not change when files change later.

    Returns:
        ``{"revision": hash or None, "dirty": tracked files differ or None}``; None means that the
        package does not lie in the root of a git checkout.
    """
    root = Path(__file__).resolve().parents[2]

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return {"revision": None, "dirty": None}
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"revision": git("rev-parse", "HEAD"), "dirty": dirty}
    except (OSError, subprocess.SubprocessError):
        return {"revision": None, "dirty": None}
