"""Released checkpoints of the methods: from their authors' names of weights to the model's.

Each ``Convert`` takes the weights by name, the model they are for, and the section of the config
that a message should name. Weights in another layout, such as our own, come back as they are. Other
numbers of prompts than the model's are a ValueError that says which keys to set.

Notation: n prompts or context vectors, J sets of them, H heads, N keys, W transformer width.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]
Convert = Callable[[State, Any, str], State]

TEXT_PROMPTS, VISION_PROMPTS = "backbone.text_prompts", "backbone.vision_prompts"

_LEARNER = "prompt_learner."
# Only the class names of training need them.
_OF_CLASSES = {"token_prefix", "token_suffix"}
# Weights of KgCoOp's learner that were never trained or used.
_KGCOOP_UNUSED = {"bias_vectors", "meta_net.linear1.weight", "meta_net.linear1.bias"}
_MAPLE_MAP = re.compile(
    r"prompt_learner\.(?:proj|compound_prompt_projections\.(\d+))\.(weight|bias)$"
)
_COPROMPT_ADAPTER = re.compile(r"adapter_(image|text)\.fc\.([02])\.weight$")
_CLIP_ADAPTER = {"fc.0.weight": "adapter.down.weight", "fc.2.weight": "adapter.up.weight"}
_PROVP = "prompt_embeddings"
_LIGHTRA_POOL = re.compile(r"(visual|text)ResidualAttention\.(\d+)\.prefix_pool$")
_RADA_MASK = re.compile(r"(?:^|\.)mha\.(\w+)\.(weight|bias)$")
_RADA = {
    "q_proj1": "query.image",
    "q_proj2": "query.text",
    "q_proj3": "query.rational",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "out",
}
_HPT_PART = re.compile(r"(?:^|\.)(prompt_learner|vision_prompt_learner|topo_prompt_learner)\.(.+)$")
_HPT = {
    "p_input": "input",
    "p_ins_projector.weight": "projector.weight",
    "p_ins_projector.bias": "projector.bias",
    "e2e_scal": "entity_scale",
    "e2a_scal": "attribute_scale",
}
_DEPT_FROZEN = ("image_encoder.", "text_encoder.", "logit_scale")
_DEPT_PROBE = {
    "film_lp_img.scale": "image_scale",
    "film_lp_img.bias": "image_shift",
    "film_lp_text.scale": "text_scale",
    "film_lp_text.bias": "text_shift",
    "linear_probe_proj.weight": "weight",
    "linear_probe_proj.bias": "bias",
}


def coop(state: State, model: Any, method: str) -> State:
    """CoOp, ProGrad and CoCoOp: ``ctx``, and CoCoOp's ``meta_net.*``."""
    if "ctx" not in state:
        return state
    converted = {
        f"{TEXT_PROMPTS}.{name}": tensor
        for name, tensor in state.items()
        if name not in _OF_CLASSES | {"ctx"}
    }
    context = state["ctx"] if state["ctx"].ndim == 3 else state["ctx"][None]  # (1 or K, n, W)
    own = model.get_parameter(f"{TEXT_PROMPTS}.vectors")
    if context.shape[1] != own.shape[1]:
        raise ValueError(
            f"The checkpoint's context has {context.shape[1]} vectors, the model's {own.shape[1]}: "
            f"set TRAINER.{method}.N_CTX {context.shape[1]} and TRAINER.{method}.CTX_INIT '', or a "
            "phrase of as many words"
        )
    return {**converted, f"{TEXT_PROMPTS}.vectors": context}


def kgcoop(state: State, model: Any, method: str) -> State:
    """KgCoOp: as CoOp, with weights that nothing used."""
    return coop({n: t for n, t in state.items() if n not in _KGCOOP_UNUSED}, model, method)


def maple(state: State, model: Any, method: str) -> State:
    """MaPLe: text prompts and the maps of the vision prompts, among a whole CLIP's weights."""
    sets = _sets(state, f"{_LEARNER}ctx", f"{_LEARNER}compound_prompts_text.{{}}", start=0)
    if sets is None:
        return state
    own = model.backbone.text_prompts.vectors
    _check_sets("text", sets, own, f"TRAINER.{method}.PROMPT_DEPTH and N_CTX")
    converted = {f"{TEXT_PROMPTS}.vectors": sets}
    for name, tensor in state.items():
        if match := _MAPLE_MAP.match(name):
            index = 0 if match[1] is None else int(match[1]) + 1
            converted[f"{VISION_PROMPTS}.maps.{index}.{match[2]}"] = tensor
    return converted


def coprompt(state: State, model: Any, method: str) -> State:
    """CoPrompt: MaPLe's, and the adapters behind both towers."""
    converted = dict(maple(state, model, method))
    for name, tensor in state.items():
        if match := _COPROMPT_ADAPTER.search(name):
            layer = "down" if match[2] == "0" else "up"
            converted[f"{match[1]}_adapter.{layer}.weight"] = tensor
    return converted


def ivlp(state: State, model: Any, method: str) -> State:
    """IVLP and PromptSRC: prompts of both towers by layer, among a whole CLIP's weights."""
    blocks = "{}_encoder.transformer.resblocks"
    found = {
        "text": _sets(state, f"{_LEARNER}ctx", blocks.format("text") + ".{}.VPT_shallow"),
        "vision": _sets(state, "image_encoder.VPT", blocks.format("image") + ".{}.VPT_shallow"),
    }
    if all(sets is None for sets in found.values()):
        return state
    converted: State = {}
    for tower, sets in found.items():
        prompts = getattr(model.backbone, f"{tower}_prompts", None)
        end = tower.upper()
        keys = f"TRAINER.{method}.PROMPT_DEPTH_{end} and N_CTX_{end}"
        _check_sets(tower, sets, None if prompts is None else prompts.vectors, keys)
        if sets is not None:
            converted[f"backbone.{tower}_prompts.vectors"] = sets
    return converted


def vpt(state: State, model: Any, method: str) -> State:
    """VPT: prompts of the vision tower by layer, among a whole CLIP's weights."""
    deeper = "image_encoder.transformer.resblocks.{}.VPT_shallow"
    sets = _sets(state, "image_encoder.VPT", deeper)
    if sets is None:
        return state
    own = model.backbone.vision_prompts.vectors
    _check_sets("vision", sets, own, f"TRAINER.{method}.PROMPT_DEPTH_VISION and N_CTX_VISION")
    return {f"{VISION_PROMPTS}.vectors": sets}


def provp(state: State, model: Any, method: str) -> State:
    """ProVP: one tensor with all prompts, (J, n, W)."""
    if _PROVP not in state:
        return state
    own = model.backbone.vision_prompts.vectors
    _check_sets("vision", state[_PROVP], own, f"TRAINER.{method}.PROMPT_DEPTH and N_CTX")
    return {f"{VISION_PROMPTS}.vectors": state[_PROVP]}


def hpt(state: State, model: Any, method: str) -> State:
    """HPT: three learners, among several whole CLIPs."""
    parts = {m.groups(): t for name, t in state.items() if (m := _HPT_PART.search(name))}
    text = {key: t for (part, key), t in parts.items() if part != "vision_prompt_learner"}
    vision = {key: t for (part, key), t in parts.items() if part == "vision_prompt_learner"}
    if "p_input" not in text or "p_input" not in vision:
        return state
    own = "backbone.hierarchical_prompts."
    converted = {own + _HPT[key]: tensor for key, tensor in text.items() if key in _HPT}
    for scale in {own + "entity_scale", own + "attribute_scale"} & converted.keys():
        converted[scale] = converted[scale].flatten()  # released with a dimension of 1 more
    converted[own + "general"] = _stacked(text, "p_uni.")
    deeper = _stacked(vision, "p_visual.")
    converted[f"{VISION_PROMPTS}.vectors"] = torch.cat([vision["p_input"][None], deeper])
    return converted


def clip_adapter(state: State, model: Any, method: str) -> State:
    """CLIP-Adapter: its two matrices alone."""
    return {_CLIP_ADAPTER.get(name, name): tensor for name, tensor in state.items()}


def task_res(state: State, model: Any, method: str) -> State:
    """TaskRes: residuals of the text features; the features themselves are made again."""
    if "text_feature_residuals" not in state:
        return state
    return _with_numbers({"head.residual": state["text_feature_residuals"].float()}, model)


def prototypes(state: State, model: Any, method: str) -> State:
    """ZS-LP and CLAP: class prototypes, and the text features that they started from."""
    if "prototypes" not in state or "base_text_features" not in state:
        return state
    moved = state["prototypes"].float() - state["base_text_features"].float()  # (K, D)
    converted = _with_numbers({"head.residual": moved}, model)
    if "head.strength" in converted:  # only training needs it
        converted["head.strength"] = torch.zeros(len(moved))
    return converted


def _with_numbers(state: State, model: Any) -> State:
    """Add the numbers of a model's head that a released file does not hold."""
    own = {f"head.{name}": value for name, value in model.head.state_dict().items()}
    return {**own, **state}


def lightra(state: State, model: Any, method: str) -> State:
    """LightRA: per layer one ``prefix_pool`` (2, N, W), keys then values."""
    towers = {
        "visual": ("model.visual.transformer", model.backbone.vision_transformer),
        "text": ("model.transformer", model.backbone.text_transformer),
    }
    converted: State = {}
    for name, tensor in state.items():
        match = _LIGHTRA_POOL.search(name)
        if not match:
            converted[name] = tensor
            continue
        (tower, transformer), layer = towers[match[1]], int(match[2])
        # The release has one layer more than its depth says; its last has the same heads.
        block = transformer.resblocks[min(layer, len(transformer.resblocks) - 1)]
        residual = f"backbone.{tower}.resblocks.{layer}.attn.residual"
        for part, rows in zip(("key", "value"), tensor.unbind(0), strict=True):
            heads = rows.unflatten(-1, (block.attn.num_heads, -1)).transpose(0, 1)  # (H, N, Dh)
            converted[f"{residual}.{part}"] = heads.contiguous()
    return converted


def rada(state: State, model: Any, method: str) -> State:
    """RAda: the mask as ``mha.*``, among a whole CLIP's weights.

    Raises:
        ValueError: The model's mask has another softmax than the release's.
    """
    converted: State = {}
    for name, tensor in state.items():
        match = _RADA_MASK.search(name)
        if match and match[1] in _RADA:
            converted[f"head.layers.0.{_RADA[match[1]]}.{match[2]}"] = tensor
    # The weights fit either softmax, and predict otherwise with the wrong one.
    layers = getattr(getattr(model, "head", None), "layers", ())
    if converted and not all(layer.joint for layer in layers):
        raise ValueError(
            "The checkpoint is of RAda's release, whose mask has one softmax over all scores of a "
            "head; set SOFTMAX in the trainer's section to joint, as configs/trainers/RAda/"
            "released.yaml does"
        )
    return converted or state


def rada_prompt(state: State, model: Any, method: str) -> State:
    """RAda + Prompt, and IVLP + mask: IVLP's prompts and the mask, among whole CLIPs' weights."""
    prompts = ivlp(state, model, method)
    # Weights of our own layout come back as the same object.
    return state if prompts is state else {**prompts, **rada(state, model, method)}


def dept(state: State, model: Any, host: str, convert: Convert, dataset: Any, novel: bool) -> State:
    """DePT: a host's keys among a whole CLIP's weights, and the probe's.

    Keys of the prompt learner and the probe may begin with ``prompt_learner.``. ``convert`` reads
    the host's own release; ``novel`` says whether the run is on the new classes of a dataset.
    """
    bare = {name.removeprefix(_LEARNER): tensor for name, tensor in state.items()}
    if "linear_probe_proj.weight" not in bare:
        return state
    # Beside a learner with the prefix is the rest of the model, such as KgCoOp's unused adapter.
    prefix = _LEARNER if f"{_LEARNER}ctx" in state else ""
    names = [n for n in state if n.startswith(prefix) and not n.startswith(_DEPT_FROZEN)]
    learner = {n.removeprefix(prefix): state[n] for n in names}
    learner = {n: t for n, t in learner.items() if n.removeprefix(_LEARNER) not in _DEPT_PROBE}
    if convert is maple:  # whose own release has the prefix
        learner = {_LEARNER + name: tensor for name, tensor in learner.items()}
    probe = {own: bare[name] for name, own in _DEPT_PROBE.items() if name in bare}
    probe |= _probe_rows(probe, model.probe.current.cpu(), dataset, novel)
    converted = {f"host.{n}": t for n, t in convert(learner, model.host, host).items()}
    return converted | {f"probe.{n}": t for n, t in probe.items()}


def _probe_rows(probe: State, current: Tensor, dataset: Any, novel: bool) -> State:
    """Weights of a released probe, which does not name its classes, and the classes they are for.

    All classes of ImageNet serve its parts and variants by label. Otherwise, as many rows as the
    run has classes are taken for theirs, except on new classes, which no release was trained on.
    All other rows belong to no class of the run.
    """
    rows, labels = len(probe["weight"]), dataset.imagenet_labels or []
    if rows == len(dataset.imagenet_names) and all(len(columns) == 1 for columns in labels):
        picked = [columns[0] for columns in labels]
        chosen: State = {name: probe[name][picked] for name in ("weight", "bias") if name in probe}
        return chosen | {"classes": current}
    if rows == len(current) and not novel:
        return {"classes": current}
    return {"classes": torch.full((rows,), -1)}


def _sets(state: State, first: str, deeper: str, start: int = 1) -> Tensor | None:
    """Prompts by layer as one tensor, (J, n, W), in single precision; None without a set 0.

    ``first`` is the name of set 0, (n, W); ``deeper`` has ``{}`` for the others' numbers, which
    count from ``start``.
    """
    if first not in state:
        return None
    sets = [state[first]]
    while (name := deeper.format(len(sets) - 1 + start)) in state:
        sets.append(state[name])
    return torch.stack([vectors.float() for vectors in sets])


def _stacked(state: State, prefix: str) -> Tensor:
    """``prefix0``, ``prefix1``, ... as one tensor with them along the first dimension."""
    numbers = sorted(int(k.removeprefix(prefix)) for k in state if k.startswith(prefix))
    tensors = [state[f"{prefix}{number}"] for number in numbers]
    return torch.stack(tensors) if tensors else torch.empty(0)


def _check_sets(tower: str, found: Tensor | None, own: Tensor | None, keys: str) -> None:
    """Refuse prompts (J, n, W) of another shape than the model's; ``keys`` of the config set it."""
    shapes = [(0, 0, 0) if sets is None else tuple(sets.shape) for sets in (found, own)]
    if shapes[0] == shapes[1]:
        return
    words = ["J = {} sets of n = {} prompts of width {}".format(*shape) for shape in shapes]
    raise ValueError(
        f"The checkpoint's {tower} tower has {words[0]}, the model's has {words[1]}: set {keys} "
        "(and --backbone) to what it was trained with"
    )
