"""Building the optimiser from ``cfg.OPTIM``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.names import check_availability, nearest
from dassl.optim.radam import RAdam

__all__ = ["AVAILABLE_OPTIMIZERS", "AVAI_OPTIMS", "build_optimizer", "has_fused_kernel"]

AVAILABLE_OPTIMIZERS = ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"]
AVAI_OPTIMS = AVAILABLE_OPTIMIZERS  # Dassl's name


def build_optimizer(
    model: nn.Module | Iterable[Any],
    optim_cfg: CfgNode,
    param_groups: Any = None,
    *,
    trainable_only: bool = False,
) -> torch.optim.Optimizer:
    """Build an optimiser over a model's parameters.

    As in Dassl, frozen parameters are in it too: a trainer may thaw them later, and the indices in
    its state are those of released checkpoints. No step changes a parameter without gradient.

    Args:
        model: Module, iterable of parameters, or list of parameter groups.
        optim_cfg: ``cfg.OPTIM``.
        param_groups: Parameters or parameter groups to use instead of all of the model's. Not
            together with STAGED_LR.
        trainable_only: Leave out parameters that require no gradient, and groups without others.

    Returns:
        The optimiser; SGD has momentum and weight decay by default (0.9 and 5e-4), as in Dassl.

    Raises:
        ValueError: Unknown name, nothing to train, or STAGED_LR where it cannot work.
        TypeError: STAGED_LR with something that is not a module.
    """
    check_availability(optim_cfg.NAME, AVAILABLE_OPTIMIZERS)
    if optim_cfg.STAGED_LR:
        if param_groups is not None:
            warnings.warn("OPTIM.STAGED_LR is ignored: param_groups are given", stacklevel=2)
        else:
            param_groups = _staged_groups(model, optim_cfg)
    if param_groups is None:
        param_groups = model.parameters() if isinstance(model, nn.Module) else model
    groups = _groups(param_groups)
    if trainable_only:
        groups = [{**g, "params": [p for p in g["params"] if p.requires_grad]} for g in groups]
        groups = [group for group in groups if group["params"]]
    if not any(group["params"] for group in groups):
        raise ValueError(
            "nothing to optimise: "
            + ("no parameter requires a gradient" if trainable_only else "there is no parameter")
        )
    optim = _create(groups, optim_cfg)
    optim.register_load_state_dict_pre_hook(_keep_own_kernels)
    return optim


def _groups(param_groups: Iterable[Any]) -> list[dict[str, Any]]:
    """Bring parameters or groups into group form."""
    listed = list(param_groups)
    groups = listed if listed and isinstance(listed[0], dict) else [{"params": listed}]
    # PyTorch takes a lone parameter or an iterator as a group's params; here both become a list.
    return [
        {**group, "params": [params] if isinstance(params, torch.Tensor) else list(params)}
        for group in groups
        for params in [group["params"]]
    ]


def _staged_groups(model: Any, optim_cfg: CfgNode) -> list[dict[str, Any]]:
    """Split a module's children into new layers (LR) and base layers (LR * BASE_LR_MULT)."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"OPTIM.STAGED_LR needs a module, got {type(model).__name__}")
    inner = model.module if isinstance(model, nn.DataParallel) else model
    # A string is one name: as a sequence it would be one name per letter.
    names = optim_cfg.NEW_LAYERS
    new_layers = {names} if isinstance(names, str) else set(names)
    children = dict(inner.named_children())
    if not new_layers:
        warnings.warn("OPTIM.NEW_LAYERS is empty: every layer gets the base rate", stacklevel=3)
    for name in sorted(new_layers - set(children)):
        raise ValueError(
            f"OPTIM.NEW_LAYERS: {name!r} is not a child of {type(inner).__name__}."
            f"{nearest(name, children)} Children: {', '.join(children)}"
        )
    new = [p for name in children if name in new_layers for p in children[name].parameters()]
    # By identity, since == on parameters compares their numbers.
    taken = {id(p) for p in new}
    base = [p for p in inner.parameters() if id(p) not in taken]
    base_lr = optim_cfg.LR * optim_cfg.BASE_LR_MULT
    # This order is Dassl's: get_current_lr reports the first group's rate.
    return [{"params": base, "lr": base_lr}, {"params": new}]


def has_fused_kernel(name: str, params: Sequence[torch.Tensor]) -> bool:
    """Tell whether one kernel updates all parameters, instead of a dozen that each pass over them.

    Such a step also looks itself whether a gradient scaler has found infinite gradients; for the
    others the scaler waits for the GPU in every step. SGD's is for GPUs only: PyTorch's default on
    a CPU is as fast, and the numbers that were made with it stay the same.

    Args:
        name: One of sgd, adam, amsgrad and adamw.
        params: All of the optimiser's.
    """
    devices = ("cuda",) if name == "sgd" else ("cpu", "cuda")
    return all(p.device.type in devices and p.is_floating_point() for p in params)


def _start_momentum(sgd: torch.optim.Optimizer, *_: Any) -> None:
    """Let the momentum of parameters start at 0 before the fused kernel sees them.

    PyTorch starts it with uninitialised memory that the first step fills, and a gradient scaler
    often skips the very first one. It also fails if some parameters have momentum and others, which
    get their first gradient now, have none. From 0, without dampening, the first step is the same.
    """
    for group in sgd.param_groups:
        for p in group["params"]:
            if p.grad is not None and sgd.state[p].get("momentum_buffer") is None:
                sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)


def _keep_own_kernels(optim: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Let a state that another device has saved keep this optimiser's choice of kernels."""
    groups = [
        {**saved, **{key: own[key] for key in ("fused", "foreach") if key in own}}
        for saved, own in zip(state["param_groups"], optim.param_groups, strict=False)
    ]
    # With another number of groups PyTorch refuses the state, and says so.
    return {**state, "param_groups": groups + state["param_groups"][len(groups) :]}


def _create(groups: list[dict[str, Any]], cfg: CfgNode) -> torch.optim.Optimizer:
    """Call the constructor of the optimiser that ``cfg.NAME`` names."""
    common: dict[str, Any] = {"lr": cfg.LR, "weight_decay": cfg.WEIGHT_DECAY}
    betas = (cfg.ADAM_BETA1, cfg.ADAM_BETA2)
    if cfg.NAME == "rmsprop":
        return torch.optim.RMSprop(groups, momentum=cfg.MOMENTUM, alpha=cfg.RMSPROP_ALPHA, **common)
    if cfg.NAME == "radam":
        return RAdam(groups, betas=betas, **common)
    common["fused"] = has_fused_kernel(cfg.NAME, [p for g in groups for p in g["params"]])
    if cfg.NAME == "sgd":
        common["fused"] &= cfg.SGD_DAMPNING == 0  # see `_start_momentum`
        sgd = torch.optim.SGD(
            groups,
            momentum=cfg.MOMENTUM,
            dampening=cfg.SGD_DAMPNING,
            nesterov=cfg.SGD_NESTEROV,
            **common,
        )
        if common["fused"] and cfg.MOMENTUM > 0:
            sgd.register_step_pre_hook(_start_momentum)
        return sgd
    if cfg.NAME == "adamw":
        return torch.optim.AdamW(groups, betas=betas, **common)
    return torch.optim.Adam(groups, betas=betas, amsgrad=cfg.NAME == "amsgrad", **common)
