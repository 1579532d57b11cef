"""The project as an installed package, under one name of its own.

Its parts are called clip, dassl, datasets and trainers, as users of CoOp and Dassl expect. As
packages of those names they would hide OpenAI's clip and Hugging Face's datasets from every program
of the environment. Here they lie in one folder, which only programs that ask for it look into.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["folder", "use"]

_PARTS = ("clip", "dassl", "datasets", "scripts", "trainers")


def folder() -> Path:
    """Return the folder with train.py, configs/ and the project's parts.

    It lies in this package or, after an editable install, is the clone.
    """
    here = Path(__file__).resolve().parent
    installed = here / "project"
    return installed if installed.is_dir() else here.parents[1]


def use() -> Path:
    """Let this process import the project's parts by their names, before others of those names.

    Returns:
        Their folder.

    Raises:
        ImportError: Another package of such a name has been imported already: a process can have
            only one.
    """
    root = folder()
    for name in _PARTS:
        # A namespace package has no file.
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and not Path(file).resolve().is_relative_to(root):
            raise ImportError(
                f"vlmadapt.use(): this process has imported another {name} ({file}), and can have "
                f"only one; call use() before that, or do without that package in this process"
            )
    if str(root) not in sys.path[:1]:
        sys.path.insert(0, str(root))
    return root
