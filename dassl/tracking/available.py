"""Which trackers there are, and whether the packages they need are installed.

Nothing here imports PyTorch or a tracker: the job driver asks before it starts any job.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

__all__ = ["NOTHING", "TRACKERS", "check_installed"]

TENSORBOARD, WANDB, MLFLOW, NOTHING = "tensorboard", "wandb", "mlflow", "none"
TRACKERS = (TENSORBOARD, WANDB, MLFLOW, NOTHING)
# TensorBoard is among the project's own requirements; a run goes on where it is broken.
_NEEDED = {WANDB: ("wandb", "pip install wandb"), MLFLOW: ("mlflow", "pip install mlflow")}


def check_installed(names: Iterable[str]) -> None:
    """Refuse trackers whose package is not there, before anything is computed.

    Args:
        names: From TRACK.

    Raises:
        ValueError: One is not installed, or "none" stands beside others.
    """
    wanted = list(names)
    if NOTHING in wanted and len(wanted) > 1:
        others = " ".join(name for name in wanted if name != NOTHING)
        raise ValueError(f"TRACK (--track): none stands beside {others}; give one of the two")
    for name in wanted:
        package, command = _NEEDED.get(name, ("", ""))
        if package and find_spec(package) is None:
            raise ValueError(
                f"TRACK (--track) is {name}, but {package} is not installed: {command} (or pip "
                "install -r requirements-track.txt for all trackers), or leave it out"
            )
