"""Weights of one run as the start of another: what two-stage fine-tuning rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clip.prompts import match_key
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.checkpoint import (
    checkpoint_path,
    read_checkpoint,
    replaced_backbone,
    same_backbone,
    trainable_state,
)
from dassl.utils.torchtools import weights_in
from trainers.base import CLIPTrainer
from trainers.finetuning.linear_clip import PARTS


class FirstStageError(ValueError):
    """A two-stage method has nothing to start from, or what it was given does not fit."""


def read_stage(
    directory: str,
    epoch: int,
    methods: Sequence[str],
    model: nn.Module,
    meta: Mapping[str, Any],
    key: str = "FIRST_STAGE.DIR",
) -> dict[str, Tensor]:
    """The weights that a finished run left, checked against the model they are for.

    Args:
        directory: Of the run.
        epoch: Number of epochs; 0 for the last, or the best on validation images.
        methods: The trainers that may have made it.
        model: What the weights are for, unchanged here.
        meta: Of the current run: ``backbone`` and ``classnames`` have to be the same.
        key: Config key that named the directory, for messages.

    Raises:
        FirstStageError: The run has no weights, is of another method, backbone or classes, or its
            weights do not fit the model.
    """
    what = " or ".join(methods)
    # A run's weights lie in a folder named after its method.
    method = next((name for name in methods if (Path(directory) / name).is_dir()), None)
    if method is None:
        raise FirstStageError(f"{key}: {directory!r} holds no weights of a finished run of {what}")
    try:
        path = checkpoint_path(directory, method, epoch or None)
        content = read_checkpoint(path, {})
    except (FileNotFoundError, ValueError) as error:
        where = f"{key} and FIRST_STAGE.EPOCH"
        message = str(error).replace("--model-dir and --load-epoch", where)
        raise FirstStageError(message) from None
    saved = content.get("meta") or {}
    # The same backbone by name, from a file with other content, explains more than a mismatch.
    replaced = replaced_backbone(saved, meta)
    if replaced:
        raise FirstStageError(f"{key}: since {path} was trained, {replaced}; repeat that run")
    if not same_backbone(saved, meta):
        raise FirstStageError(
            f"{key}: {path} was trained with the backbone {saved.get('backbone')!r}, this run has "
            f"{meta['backbone']!r}; set --backbone to the former, or name another run of {what}"
        )
    check_same_classes(f"{key}: {path}", saved.get("classnames") or [], meta["classnames"])
    state = weights_in(content, path)
    parts = tuple(PARTS[part] for part in TRAINER_REGISTRY.get(method).trains)
    problem = misfit(model, state, parts)
    if problem:
        raise FirstStageError(f"{key}: {path} does not fit this run: {problem}")
    return state


def read_first_stage(trainer: CLIPTrainer, methods: Sequence[str]) -> dict[str, Tensor]:
    """The weights of the run in FIRST_STAGE.DIR, which one of some methods has to have made.

    Raises:
        FirstStageError: There is none, or it does not fit.
    """
    stage = trainer.cfg.FIRST_STAGE
    if not stage.DIR:
        first = stage.CONFIG or f"{methods[0]}/fft"
        raise FirstStageError(
            f"{type(trainer).__name__} starts from a finished run of {' or '.join(methods)}, but "
            f"FIRST_STAGE.DIR is empty: train with configs/trainers/{first}.yaml and set it "
            "to the directory of that run, or let bash run_fft.sh do both"
        )
    meta = trainer.checkpoint_meta()
    return read_stage(stage.DIR, stage.EPOCH, methods, trainer.model, meta)


def check_same_classes(where: str, saved: Sequence[str], own: Sequence[str]) -> None:
    """Refuse weights over other classes.

    Raises:
        FirstStageError: Number or names differ.
    """
    if len(saved) != len(own):
        raise FirstStageError(
            f"{where} has a classifier over {len(saved)} classes, the dataset of this run has "
            f"{len(own)}; both stages need the same DATASET.NAME and SUBSAMPLE_CLASSES"
        )
    for label, (old, new) in enumerate(zip(saved, own, strict=True)):
        if match_key(old) != match_key(new):
            raise FirstStageError(
                f"{where} has other classes than the dataset of this run: class {label} is "
                f"{old!r} there and {new!r} here"
            )


def misfit(model: nn.Module, state: Mapping[str, Tensor], parts: tuple[str, ...]) -> str:
    """Say what keeps weights from being loaded into a model; empty if nothing does.

    ``parts`` are the beginnings of the names that must be there, of those that train in the model.
    """
    full = model.state_dict()
    missing = [n for n in trainable_state(model) if n.startswith(parts) and n not in state]
    unknown = [n for n in state if n not in full]
    shapes = [
        f"{n} is {tuple(value.shape)} instead of {tuple(full[n].shape)}"
        for n, value in state.items()
        if n in full and value.shape != full[n].shape
    ]
    problems = (("missing", missing), ("unknown", unknown), ("other shapes", shapes))
    texts = [f"{word} {', '.join(names[:3])}" for word, names in problems if names]
    return "; ".join(texts)
