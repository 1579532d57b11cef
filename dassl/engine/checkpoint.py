"""The content of checkpoints, and the checks before one is loaded."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from dassl.names import nearest
from dassl.utils.adapter_file import ADAPTER_NAME
from dassl.utils.torchtools import (
    BEST_NAME,
    EPOCH_NAME,
    load_checkpoint,
    named_checkpoint,
    not_finite,
)

__all__ = [
    "check_finite_state",
    "checkpoint_meta",
    "checkpoint_path",
    "fitting_state",
    "group_sizes",
    "last_checkpoint",
    "plain_state",
    "read_checkpoint",
    "replaced_backbone",
    "same_backbone",
    "saved_classes",
    "trainable_state",
    "unwrap",
]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside a DataParallel wrapper, or the module itself.

    Trainers in CoOp's style wrap their model like that if they see several GPUs.
    """
    return model.module if isinstance(model, nn.DataParallel) else model


def trainable_state(model: nn.Module) -> OrderedDict[str, Tensor]:
    """Return the part of a state dict that training changes; tensors share the model's memory.

    It has the parameters that require a gradient, and the persistent buffers of modules that own
    such a parameter directly (running statistics of a trained batch norm).
    """
    model = unwrap(model)
    wanted: set[str] = set()
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if any(p.requires_grad for p in own.values()):
            names = [name for name, p in own.items() if p.requires_grad]
            names += [name for name, _ in module.named_buffers(recurse=False)]
            wanted.update(f"{prefix}.{name}" if prefix else name for name in names)
    state = model.state_dict()  # without the buffers that are not persistent
    return OrderedDict((key, value) for key, value in state.items() if key in wanted)


def check_finite_state(state: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights that are not finite; ``what`` begins the message.

    Raises:
        FloatingPointError: A weight is infinite or NaN.
    """
    key = not_finite(state)
    if key is not None:
        raise FloatingPointError(f"{what}: {key!r} has infinite or NaN values; not saved")


def plain_state(value: Any) -> Any:
    """Reduce an optimiser's, schedule's or scaler's state to what is safe to read back.

    NumPy scalars become numbers, live objects are left out; ``torch.load(weights_only=True)``
    accepts the rest.
    """
    if isinstance(value, Mapping):
        return {key: plain_state(item) for key, item in value.items() if _is_plain(item)}
    if isinstance(value, list | tuple):
        # None in place of a live object keeps the positions of the others.
        items = [plain_state(item) if _is_plain(item) else None for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, np.generic):
        return value.item()
    return value


def _is_plain(value: Any) -> bool:
    plain = Mapping | list | tuple | str | bytes | int | float | Tensor | np.generic | None
    return isinstance(value, plain)


def group_sizes(state: Mapping[str, Any]) -> list[int]:
    """Return the number of parameters in every group of an optimiser's state dict."""
    return [len(group["params"]) for group in state["param_groups"]]


def checkpoint_path(directory: str | os.PathLike[str], name: str, epoch: int | None) -> Path:
    """Return the path of a model's checkpoint in a run directory, or in an export.

    Args:
        directory: Run directory.
        name: Folder of the model.
        epoch: Number of epochs; None for the best on the validation images if the run chose one,
            otherwise the last, otherwise the weights of an export, which has no others.

    Raises:
        FileNotFoundError: It is missing; the message says what is there.
    """
    root = Path(directory)
    path = root / name / (BEST_NAME if epoch is None else EPOCH_NAME.format(epoch))
    last = named_checkpoint(path.parent) if epoch is None else None
    if last is not None:
        # The best one beside this run's last one may be another run's.
        if not path.is_file() or (last.is_file() and _of_other_runs(path, last)):
            path = last
    if path.is_file():
        return path
    if epoch is None and (root / ADAPTER_NAME).is_file():
        return root / ADAPTER_NAME
    if not root.is_dir():
        found = f'"{root}" is no directory'
    elif not path.parent.is_dir():
        found = f'"{root}" holds: {_listing(p.name for p in root.iterdir())}'
    else:
        found = f'"{path.parent}" holds: {_listing(p.name for p in path.parent.iterdir())}'
    raise FileNotFoundError(
        f'No checkpoint at "{path}" (set by --model-dir and --load-epoch): {found}'
    )


def last_checkpoint(folder: Path) -> Path | None:
    """Return the file that a model's folder names as its last checkpoint, if it exists."""
    path = named_checkpoint(folder)
    return path if path is not None and path.is_file() else None


def _of_other_runs(best: Path, last: Path) -> bool:
    """Tell whether two checkpoints say that different configs made them; if so, print it."""
    try:
        hashes = [checkpoint_meta(load_checkpoint(p)).get("config_hash") for p in (best, last)]
    except ValueError:
        return False  # damaged: loading it says so
    if None in hashes or hashes[0] == hashes[1]:
        return False
    print(f'"{best}" is of another run (configuration {hashes[0]}) than "{last}": left alone')
    return True


def _listing(names: Iterable[str], limit: int = 12) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return (", ".join(ordered[:limit]) or "nothing") + more


def checkpoint_meta(checkpoint: Any) -> dict[str, Any]:
    """Return what a checkpoint says about its run; Dassl's say nothing, which gives {}."""
    meta = checkpoint.get("meta") if isinstance(checkpoint, dict) else None
    return meta if isinstance(meta, dict) else {}


def same_backbone(saved: Mapping[str, Any], meta: Mapping[str, Any]) -> bool:
    """Tell whether two metas name the same backbone, perhaps by a file that has moved since."""
    names = [str(one.get("backbone")) for one in (saved, meta)]
    hashes = [one.get("backbone_sha256") for one in (saved, meta)]
    # Same content and same name: the file has only moved to another folder.
    moved = all(hashes) and hashes[0] == hashes[1] and len({Path(n).name for n in names}) == 1
    return names[0] == names[1] or moved


def replaced_backbone(saved: Mapping[str, Any], meta: Mapping[str, Any]) -> str:
    """Say so if the backbone's file has changed since the weights were trained; otherwise "".

    A hash that is missing in one of the metas counts as no change.
    """
    hashes = [one.get("backbone_sha256") for one in (saved, meta)]
    if not all(hashes) or hashes[0] == hashes[1]:
        return ""
    return f"the file of the backbone {meta['backbone']!r} is another one"


def read_checkpoint(path: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint and refuse one of another method or backbone than the run's ``meta`` says.

    Raises:
        ValueError: Damaged, without ``state_dict``, or made by another method or backbone.
    """
    checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise ValueError(f'"{path}" has no entry state_dict; it is no checkpoint of a training run')
    saved = checkpoint["meta"] = checkpoint_meta(checkpoint)
    for key, flag in (("method", "--trainer"), ("backbone", "--backbone")):
        # Dassl's checkpoints name neither; then nothing can be refused.
        same = same_backbone(saved, meta) if key == "backbone" else saved.get(key) == meta.get(key)
        if key in saved and key in meta and not same:
            raise ValueError(
                f'"{path}" was trained with {key} {saved[key]!r}, but the current {key} is '
                f"{meta[key]!r}; set {flag} {saved[key]} or another --model-dir"
            )
    return checkpoint


def saved_classes(checkpoint: Any) -> list[str] | None:
    """Return the class names that a checkpoint was trained on, in label order, if it has them."""
    names = checkpoint_meta(checkpoint).get("classnames")
    return list(names) if names else None


def fitting_state(
    path: Path,
    model: nn.Module,
    state_dict: Mapping[str, Any],
    saved_meta: Any,
    meta: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Check that a state dict fits a model: every trainable key, no foreign key, equal shapes.

    Frozen keys of the model may be in it too, with the same shape: Dassl's checkpoints hold the
    whole model.

    Args:
        path: Source of the state dict, for the messages.
        model: Gets the weights.
        state_dict: Returned unchanged.
        saved_meta: ``meta`` entry of the checkpoint, if any.
        meta: The current run's.

    Raises:
        ValueError: It does not fit; the message lists the keys or the shapes.
    """
    trainable = trainable_state(model)
    full = unwrap(model).state_dict()
    missing = [key for key in trainable if key not in state_dict]
    unexpected = [key for key in state_dict if key not in full]
    if missing or unexpected:
        lines = [f'"{path}" does not fit the model.']
        if missing:
            lines.append(f"Missing keys: {_listing(missing)}.")
        if unexpected:
            hint = nearest(unexpected[0], full)
            lines.append(f"Unexpected keys: {_listing(unexpected)}.{hint}")
        raise ValueError(" ".join(lines))
    for key, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise ValueError(f'"{path}": {key!r} is no tensor but a {type(value).__name__}')
        if value.shape != full[key].shape:
            raise ValueError(
                f'"{path}": {key!r} has shape {tuple(value.shape)}, the model needs '
                f"{tuple(full[key].shape)}{_class_hint(saved_meta, meta)}"
            )
    return dict(state_dict)


def _class_hint(saved_meta: Any, meta: Mapping[str, Any]) -> str:
    """Say how the classes differ, if they do."""
    saved = saved_meta.get("classnames") if isinstance(saved_meta, dict) else None
    current = meta.get("classnames")
    if not saved or not current or list(saved) == list(current):
        return ""
    return (
        f"; it was trained on {len(saved)} classes ({_listing(saved, 3)}), "
        f"the current dataset has {len(current)} ({_listing(current, 3)})"
    )
