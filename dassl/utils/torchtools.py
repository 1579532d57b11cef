"""Checkpoints, pretrained weights and parameter counts."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dassl.names import check_availability, nearest
from dassl.utils.adapter_file import read_adapter
from dassl.utils.files import atomic_write
from dassl.utils.restricted_unpickler import read_restricted

__all__ = [
    "atomic_torch_save",
    "count_num_param",
    "init_network_weights",
    "load_checkpoint",
    "load_pretrained_weights",
    "named_checkpoint",
    "not_finite",
    "open_all_layers",
    "open_specified_layers",
    "resume_from_checkpoint",
    "save_checkpoint",
    "weights_in",
]

BEST_NAME = "model-best.pth.tar"
EPOCH_NAME = "model.pth.tar-{}"
_MODULE_PREFIX = "module."


def atomic_torch_save(obj: Any, path: str | os.PathLike[str]) -> None:
    """Write a PyTorch file atomically.

    Args:
        obj: Tensors and plain containers only: other objects could not be read back safely.
        path: Destination.

    Raises:
        OSError: Writing failed, as on a full disk.
    """
    with atomic_write(path, "wb") as file:
        try:
            torch.save(obj, file)
        except RuntimeError as error:
            # After a failed write PyTorch's archive raises an error about its own state instead.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint(fpath: str | os.PathLike[str], *, shapes_only: bool = False) -> Any:
    """Read a checkpoint without running code from it, tensors on the CPU.

    It is PyTorch's or, by its suffix, a safetensors file. Live objects in it (Dassl's
    ``scheduler``) become inert stand-ins, and a TorchScript archive becomes the dict of its
    weights. All contents are compared with their checksums, which a safetensors file lacks.

    Args:
        fpath: Path of the file.
        shapes_only: Read only names and shapes, which takes no time; tensors are on the meta
            device.

    Returns:
        What was saved, usually a dict with ``state_dict``, ``epoch``, ``optimizer`` and so on.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is damaged, cut off, or of another format, or it holds weights that
            are infinite or NaN.
    """
    if fpath is None:
        raise ValueError("load_checkpoint needs a path, got None")
    if not os.path.isfile(fpath):
        raise FileNotFoundError(f'No checkpoint at "{fpath}"')
    try:
        if os.fspath(fpath).endswith(".safetensors"):
            content = read_adapter(fpath)
        else:
            content = read_restricted(fpath, shapes_only=shapes_only)
    except Exception as error:  # many types: which one depends on where the file is damaged
        raise ValueError(
            f'"{fpath}" is not a readable checkpoint (damaged, cut off or another format): '
            f"{str(error) or type(error).__name__}"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    key = not_finite(state) if isinstance(state, dict) and not shapes_only else None
    if key is not None:
        raise ValueError(
            f'"{fpath}" cannot be used: {key!r} in it has infinite or NaN values, as a training '
            "that failed leaves behind; take another epoch or another copy of the file"
        )
    return content


def weights_in(content: Any, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors by name in the content of a checkpoint or of a bare state dict.

    Raises:
        ValueError: There are none; the message names ``path``.
    """
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    items = state.items() if isinstance(state, dict) else ()
    tensors = {str(key): value for key, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f'"{path}" holds no weights by name, as a state_dict does; objects of other classes, '
            "such as a whole model, are not read"
        )
    return tensors


def not_finite(state: Mapping[str, Any]) -> str | None:
    """Return the name of the first tensor in a state dict with infinite or NaN values, or None."""
    for key, value in state.items():
        # Attention masks are infinite on purpose.
        mask = str(key).endswith("attn_mask")
        if mask or not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        # The sum is finite only if all terms are, and ten times as fast; it may also overflow.
        if not value.sum().isfinite() and not value.isfinite().all():
            return str(key)
    return None


def _without_module_prefix(state_dict: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """Drop the prefix that DataParallel puts before every key."""
    return OrderedDict((key.removeprefix(_MODULE_PREFIX), v) for key, v in state_dict.items())


def save_checkpoint(
    state: dict[str, Any],
    save_dir: str | os.PathLike[str],
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Write ``<save_dir>/model.pth.tar-<epoch>`` and name it in ``<save_dir>/checkpoint``.

    Args:
        state: Has ``state_dict`` and ``epoch``.
        save_dir: Directory, created if missing.
        is_best: Also write ``model-best.pth.tar``.
        remove_module_from_keys: Drop DataParallel's ``module.`` from the keys.
        model_name: File name instead of the one with the epoch. ``model-best.pth.tar`` is not
            recorded as the last checkpoint: resuming continues from the last epoch, not the best.
    """
    if remove_module_from_keys:
        state = {**state, "state_dict": _without_module_prefix(state["state_dict"])}
    name = model_name or EPOCH_NAME.format(state["epoch"])
    path = Path(save_dir) / name
    atomic_torch_save(state, path)
    print(f'Checkpoint saved to "{path}"')
    if name != BEST_NAME:
        # After the weights: a kill in between leaves a name whose file is whole.
        with atomic_write(path.with_name("checkpoint")) as file:
            file.write(f"{name}\n")
        if is_best:
            atomic_torch_save(state, path.with_name(BEST_NAME))


def named_checkpoint(folder: Path) -> Path | None:
    """Return the path that a folder's ``checkpoint`` file names as the last; None without one."""
    pointer = folder / "checkpoint"
    return folder / pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None


def resume_from_checkpoint(
    fdir: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
) -> int:
    """Load the last checkpoint of a directory into model, optimiser and scheduler.

    Args:
        fdir: Directory with a ``checkpoint`` file.
        model: Gets the weights; keys the file does not hold keep their values.
        optimizer: Gets its state, if the file has it.
        scheduler: Gets its state, if the file has it as plain data.

    Returns:
        Number of epochs the checkpoint was trained for, which is the index of the next one.

    Raises:
        FileNotFoundError: No ``checkpoint`` file or the file it names is gone.
        ValueError: A key of the file is not in the model, or a shape differs.
    """
    path = named_checkpoint(Path(fdir))
    if path is None:
        raise FileNotFoundError(f'No "checkpoint" file in "{fdir}" (set by --resume)')
    checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint, dict) or "epoch" not in checkpoint:
        raise ValueError(f'"{path}" has no entry epoch; it is no checkpoint of a training run')
    state = weights_in(checkpoint, path)
    print(f'Loading checkpoint from "{path}"')
    try:
        # Keys may be missing: Dassl saves the whole model, we only what trains.
        unexpected = model.load_state_dict(state, strict=False).unexpected_keys
    except RuntimeError as error:
        raise ValueError(f'"{path}" does not fit the model: {error}') from error
    if unexpected:
        raise ValueError(f'"{path}" has keys that the model lacks: {", ".join(unexpected)}')
    for name, target in (("optimizer", optimizer), ("scheduler", scheduler)):
        saved = checkpoint.get(name)
        # Dassl saves the scheduler itself, which is read as a stand-in without a state.
        if target is not None and isinstance(saved, dict):
            target.load_state_dict(saved)
    return int(checkpoint["epoch"])


def load_pretrained_weights(model: nn.Module, weight_path: str | os.PathLike[str]) -> None:
    """Load from a checkpoint or bare state dict what fits by name and shape; report the rest.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It cannot be read, or holds no weights.
    """
    checkpoint = load_checkpoint(weight_path)
    saved = _without_module_prefix(weights_in(checkpoint, weight_path))
    own = model.state_dict()
    fitting = {
        key: value for key, value in saved.items() if key in own and own[key].shape == value.shape
    }
    discarded = [key for key in saved if key not in fitting]
    model.load_state_dict(fitting, strict=False)
    if not fitting:
        warnings.warn(
            f'Nothing was loaded: no key of "{weight_path}" fits the model by name and shape',
            stacklevel=2,
        )
        return
    print(f'Successfully loaded pretrained weights from "{weight_path}"')
    if discarded:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")


def count_num_param(
    model: nn.Module | None = None, params: Iterable[nn.Parameter] | dict[str, Any] | None = None
) -> int:
    """Return the number of elements of all parameters, trainable or not.

    Args:
        model: Module whose parameters are counted, or
        params: the parameters themselves, or a dict with them under ``params``.

    Raises:
        ValueError: Neither was given.
    """
    if model is not None:
        return sum(p.numel() for p in model.parameters())
    if params is not None:
        listed = params["params"] if isinstance(params, dict) else params
        return sum(p.numel() for p in listed)
    raise ValueError("count_num_param needs a model or params")


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Draw the weights of convolutions and linear layers; biases become 0, norms the identity.

    Args:
        model: Changed in place.
        init_type: normal, xavier, kaiming or orthogonal.
        gain: Standard deviation of normal, gain of xavier and orthogonal.

    Raises:
        ValueError: Another type.
    """
    inits: dict[str, Any] = {
        "normal": lambda weight: nn.init.normal_(weight, 0.0, gain),
        "xavier": lambda weight: nn.init.xavier_normal_(weight, gain),
        "kaiming": lambda weight: nn.init.kaiming_normal_(weight, 0, "fan_in"),
        "orthogonal": lambda weight: nn.init.orthogonal_(weight, gain),
    }
    check_availability(init_type, inits)
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            inits[init_type](module.weight.data)
        elif isinstance(module, nn.modules.batchnorm._NormBase) and module.affine:
            nn.init.ones_(module.weight.data)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias.data)


def open_all_layers(model: nn.Module) -> None:
    """Put a module into training mode with every parameter trainable."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | Iterable[str]) -> None:
    """Train only the named children; freeze the others and put them into evaluation mode.

    Args:
        model: Module, possibly wrapped in DataParallel.
        open_layers: Names of children.

    Raises:
        ValueError: A name is not a child of the model.
    """
    inner = model.module if isinstance(model, nn.DataParallel) else model
    wanted = [open_layers] if isinstance(open_layers, str) else list(open_layers)
    children = dict(inner.named_children())
    for name in wanted:
        if name not in children:
            raise ValueError(
                f"{name!r} is not a child of {type(inner).__name__}.{nearest(name, children)} "
                f"Children: {', '.join(children)}"
            )
    for name, child in children.items():
        child.train(name in wanted)
        child.requires_grad_(name in wanted)
