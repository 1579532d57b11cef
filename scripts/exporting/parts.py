"""The files of an export that hold a model: how each is written, and how it is run.

Notation: B images, K classes, D embedding width, S their side in pixels.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import clip
from clip.adapters.base import adapters
from dassl.engine.checkpoint import trainable_state
from dassl.utils import load_checkpoint
from dassl.utils.adapter_file import ADAPTER_NAME, read_adapter, write_adapter
from dassl.utils.torchtools import atomic_torch_save
from scripts.exporting.agreement import TOLERANCE, Run

__all__ = ["FILES", "check_packages"]

# By the word of --export-parts.
FILES = {
    "onnx": "model.onnx",
    "pt2": "model.pt2",
    "weights": "clip_weights.pt",
    "adapter": ADAPTER_NAME,
}
_ENCODERS = "backbone.model."  # how the names of the encoders' own weights begin


def check_packages(parts: list[str]) -> None:
    """Refuse to begin where a package is missing that a part needs."""
    needed = ("onnx", "onnxscript", "onnxruntime") if "onnx" in parts else ()
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        others = " ".join(part for part in FILES if part != "onnx")
        raise ValueError(
            f"--export needs {', '.join(missing)} for {FILES['onnx']}: pip install "
            f"{' '.join(missing)}; or leave that file out: --export-parts {others}"
        )


# ---------------------------------------------------------------------- graphs


def write_onnx(program: ExportedProgram, path: Path) -> None:
    """Write a graph as ONNX, with inputs and outputs named ``image``, ``logits``, ``features``."""
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits", "features"]}
    with _quiet():
        if torch.__version__ < "2.7":  # its exporter cannot handle products of unknown size
            program = program.run_decompositions()
        found: Any = torch.onnx.export(program, (), dynamo=True, verbose=False, **names)
        found.save(str(path))  # one file, and another for weights above ONNX's limit of 2 GB


def onnx_run(path: Path) -> Run:
    """The graph in a file as onnxruntime runs it, on the CPU."""
    import onnxruntime  # an extra, see `check_packages`

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = session.run(None, {"image": images.numpy()})
        return torch.from_numpy(logits), torch.from_numpy(features)  # (B, K), (B, D)

    return run


def write_pt2(program: ExportedProgram, path: Path) -> None:
    """Write a graph in PyTorch's own format."""
    with _quiet():
        torch.export.save(program, path)


def pt2_run(path: Path) -> Run:
    """The graph in a file as PyTorch runs it."""
    with _quiet():
        return torch.export.load(path).module()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what PyTorch's exporters say about themselves: the agreement is what counts."""
    # They write to standard error by themselves, whatever `verbose` says.
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# ---------------------------------------------------------------------- the encoders' weights


def no_weights(model: Any) -> str:
    """Why a run has no weights of CLIP's own form to hand on; "" if it has.

    It is read off the model: its encoders' own weights must be what was trained, and nothing may
    stand inside the encoders that CLIP's architecture does not have.
    """
    added = sorted({type(module).__name__ for _, module in adapters(model.backbone)})
    if added:
        return f"{', '.join(added)} in the encoders cannot be folded into CLIP's own weights"
    # By identity: names differ where a method has wrapped the model.
    own = {id(parameter) for parameter in model.backbone.model.parameters()}
    if not any(p.requires_grad and id(p) in own for p in model.parameters()):
        return f"the encoders are the pre-trained ones of {model.backbone.name}"
    return ""


def write_weights(model: Any, path: Path) -> None:
    """Write both encoders' weights as OpenAI's and open_clip's loaders read them."""
    state = model.backbone.model.state_dict()
    atomic_torch_save({key: value.clone() for key, value in state.items()}, path)


def check_weights(model: Any, path: Path, images: Tensor) -> dict[str, float]:
    """Load the file into a plain CLIP and compare its features of images and of the prompts.

    Raises:
        ValueError: They differ from those of the run.
    """
    backbone = model.backbone
    state = load_checkpoint(path)
    if "text_projection" in state and "visual.conv1.weight" in state:
        other: Any = clip.load(str(path)).model
    else:  # not OpenAI's layout: the same architecture takes the weights
        other = clip.load(backbone.name).model
        other.load_state_dict(state)
    # Prompts of the run if it has texts; a classifier of images has none, and any text will do.
    tokens = model.bank.tokens[:8] if hasattr(model, "bank") else backbone.tokenize(["a photo"])
    worst = {}
    with torch.no_grad():
        for name, inputs in (("image", images), ("text", tokens)):
            encode = f"encode_{name}"
            pairs = (getattr(one, encode)(inputs) for one in (backbone.model, other))
            expected, found = (nn.functional.normalize(one, dim=-1) for one in pairs)  # (B, D)
            worst[name] = float((expected - found).abs().max())
    if not max(worst.values()) <= TOLERANCE:
        raise ValueError(
            f"{path.name} does not agree with the trained run: features are off by "
            f"{max(worst.values()):.2g}, {TOLERANCE:.2g} is allowed; nothing is exported"
        )
    return worst


# ---------------------------------------------------------------------- what was trained


def write_trained(trainer: Any, checkpoint: dict[str, Any], path: Path) -> None:
    """Write what training changed as a checkpoint without pickle, and read it back.

    Args:
        trainer: With the weights.
        checkpoint: That they came from; empty if there was none.
        path: Destination.

    Raises:
        ValueError: It does not hold what was written.
    """
    meta = checkpoint.get("meta") or {}
    if "method" in meta:  # as it is: rows per class stay with the classes that they are of
        state = checkpoint["state_dict"]
    else:
        state, meta = trainable_state(trainer.model), trainer.checkpoint_meta()
    write_adapter(path, state, int(checkpoint.get("epoch") or 0), meta)
    # Bit for bit, since this file may be all that is kept of the run.
    found = read_adapter(path)["state_dict"]
    if found.keys() != state.keys() or not all(torch.equal(found[k], state[k]) for k in state):
        raise ValueError(f"{path.name} does not hold what was trained; nothing is exported")
