"""DePT's released checkpoints: a host's keys among a whole CLIP's weights, and the probe's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainers.base import CLIPTrainer
from trainers.maple import released_prompts

State = dict[str, Tensor]
# (its release's state, model, section of the config) -> state with the model's keys.
Convert = Callable[[State, nn.Module, str], State]

_LEARNER = "prompt_learner."
_FROZEN = ("image_encoder.", "text_encoder.", "logit_scale")
_PROBE = {
    "film_lp_img.scale": "image_scale",
    "film_lp_img.bias": "image_shift",
    "film_lp_text.scale": "text_scale",
    "film_lp_text.bias": "text_shift",
    "linear_probe_proj.weight": "weight",
    "linear_probe_proj.bias": "bias",
}


def released_maple(state: State, model: nn.Module, method: str) -> State:
    """:func:`trainers.maple.released_prompts` of keys without ``prompt_learner.``."""
    return released_prompts({_LEARNER + name: t for name, t in state.items()}, model, method)


def from_release(state: State, trainer: CLIPTrainer, host: str, convert: Convert) -> State:
    """Translate a released checkpoint of DePT.

    Args:
        state: Keys of the prompt learner and the probe may begin with ``prompt_learner.``. Without
            a probe's it is returned as it is.
        trainer: Of DePT.
        host: Name of its host.
        convert: Gets the prompt learner's keys without the prefix.

    Returns:
        State with ``host.*`` and ``probe.*``.
    """
    bare = {name.removeprefix(_LEARNER): tensor for name, tensor in state.items()}
    if "linear_probe_proj.weight" not in bare:
        return state
    # Beside a learner with the prefix is the rest of the model, such as KgCoOp's unused adapter.
    prefix = _LEARNER if f"{_LEARNER}ctx" in state else ""
    names = [n for n in state if n.startswith(prefix) and not n.startswith(_FROZEN)]
    learner = {n.removeprefix(prefix): state[n] for n in names}
    learner = {n: t for n, t in learner.items() if n.removeprefix(_LEARNER) not in _PROBE}
    probe = {own: bare[name] for name, own in _PROBE.items() if name in bare}
    model: Any = trainer.model
    novel = trainer.cfg.DATASET.SUBSAMPLE_CLASSES == "new"
    probe |= _rows(probe, model.probe.current.cpu(), trainer.dm.dataset, novel)
    converted = {f"host.{n}": t for n, t in convert(learner, model.host, host).items()}
    return converted | {f"probe.{n}": t for n, t in probe.items()}


def _rows(probe: State, current: Tensor, dataset: Any, novel: bool) -> State:
    """Weights of a released probe, which does not name its classes, and the classes they are for.

    All classes of ImageNet serve its parts and variants by label. As many rows as the run has
    classes are theirs, but for a run on new classes, which no release was trained on. Any other
    rows are of no class of the run.
    """
    rows, labels = len(probe["weight"]), dataset.imagenet_labels or []
    if rows == len(dataset.imagenet_names) and all(len(columns) == 1 for columns in labels):
        picked = [columns[0] for columns in labels]
        chosen: State = {name: probe[name][picked] for name in ("weight", "bias") if name in probe}
        return chosen | {"classes": current}
    if rows == len(current) and not novel:
        return {"classes": current}
    return {"classes": torch.full((rows,), -1)}
