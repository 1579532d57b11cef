"""Measures seconds, memory and operations, and builds runs that need no download."""

from __future__ import annotations

import ctypes
import gc
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)
from yacs.config import CfgNode

import datasets.table  # noqa: F401 - registers the datasets
import trainers  # noqa: F401 - registers the methods
from dassl.engine import build_trainer
from dassl.engine.graphs import graphed_step
from scripts.jobs.protocols import REPO
from scripts.training.config import build_config
from scripts.training.parser import argument_parser

MIB = 2**20
RANDOM = "random:"
RANDOM_VIT = f"{RANDOM}ViT-B-16-quickgelu"  # the shape of OpenAI's ViT-B/16
_ATEN = torch.ops.aten


def resident_mib(peak: bool = False) -> float:
    """Memory of this process now, or its peak since the start or :func:`reset_peak`.

    Without Linux's /proc only the peak since the start is known and stands for both. On Linux
    ``getrusage`` is no alternative: its peak can be that of the process that started this one.
    """
    field = "VmHWM" if peak else "VmRSS"
    with suppress(OSError):
        found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) / 2**10
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (MIB if sys.platform == "darwin" else 2**10)


def reset_peak(device: torch.device) -> None:
    """Let the peak memory start again from what is in use now, if the system can."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError, AttributeError):  # glibc: give back what earlier work has freed
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib(device: torch.device) -> float:
    """Most memory in use since :func:`reset_peak`: PyTorch's on CUDA, else the whole process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return resident_mib(peak=True)


def median_seconds(run: Callable[[], object], steps: int, device: torch.device) -> float:
    """Median of the seconds that ``run`` takes, waiting for the device each time."""
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


DESCRIPTIONS = "descriptions.json"
DESCRIBED = ("CoPrompt",)  # methods that cannot train without sentences about the classes


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    # A gradient of zero may come without a shape; it has the queries'.
    return sdpa_backward_flop_count(query if grad is None else grad, query, key, value)


# The counter knows the fused attention of GPUs only; the CPU's does the same products.
_CPU_ATTENTION: dict[Any, Any] = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class _NoModules:
    """Replaces ``FlopCounterMode``'s tracker of the modules that operations belong to."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        pass


def count_gflops(run: Callable[[], object]) -> float:
    """Billions of floating-point operations of ``run``, a multiply-add being two.

    Counted by ``torch.utils.flop_counter.FlopCounterMode``: matrix products, convolutions and
    fused attention, forward and backward, also inside custom autograd functions, whose products
    are dispatched one by one. Elementwise operations, softmax, norms and the optimiser are not.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation that the counter does not know
    counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    # Only the total is wanted; the tracker of modules fails on modules that are called twice with
    # tensors of one graph, as maps between prompts are.
    counter.mod_tracker = cast(Any, _NoModules())
    try:
        with counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops() / 1e9


def write_checkpoint(model: nn.Module, path: Path) -> None:
    """Write an open_clip model of CLIP's form as a checkpoint in OpenAI's format, as fp16."""
    torch.save({name: value.half() for name, value in model.state_dict().items()}, path)


def backbone_name(name: str, directory: Path) -> str:
    """Return a name for ``clip.load``: ``random:<open_clip architecture>`` becomes a file."""
    if not name.startswith(RANDOM):
        return name
    architecture = name.removeprefix(RANDOM)
    if architecture not in open_clip.list_models():
        raise ValueError(
            f"--backbone: {name!r} is random:<architecture of open_clip>, such as {RANDOM_VIT}"
        )
    torch.manual_seed(0)
    path = directory / f"{architecture}.pt"
    write_checkpoint(open_clip.create_model(architecture), path)
    return str(path)


def write_pictures(
    root: Path, classes: int, train: int, test: int, side: int, names: Sequence[str] = ()
) -> None:
    """Write class folders of random pictures that the dataset ``Folder`` reads.

    ``root/pictures`` gets ``train`` and ``test``, with that many pictures per class, and ``val``
    with one in all; a sentence about each class goes to ``DESCRIPTIONS``. Classes have numbers for
    ``names`` if none are given.
    """
    folders = list(names) or [f"thing_{kind:04}" for kind in range(classes)]
    texts = {name: [f"a picture of {name.replace('_', ' ')}."] for name in folders}
    (root / DESCRIPTIONS).write_text(json.dumps(texts))
    rng = np.random.default_rng(0)
    for part, number, kinds in (("train", train, classes), ("val", 1, 1), ("test", test, classes)):
        for kind in range(kinds):
            folder = root / "pictures" / part / folders[kind]
            folder.mkdir(parents=True)
            for picture in range(number):
                write_picture(folder / f"{picture:04}.jpg", (side, side), rng)


def write_picture(path: Path, size: tuple[int, int], rng: np.random.Generator) -> None:
    """Write a random picture of ``size``, its width and height."""
    # Blobs: noise would be slower to decode than photographs are.
    width, height = (max(2, side // 16) for side in size)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)


def run_config(method: str, root: Path, backbone: str, device: str, *options: object) -> CfgNode:
    """A run's config as ``train.py`` makes it, on the pictures in ``root``.

    Args:
        method: Registered name, whose ``base2novel.yaml`` or else ``ttt.yaml`` is used if there is
            one; ``<name>:<file>`` for another of its files, ``DePT:base2novel_maple``.
        root: Directory of :func:`write_pictures`.
        backbone: A name for ``clip.load``.
        device: auto, cpu, cuda...
        options: Keys and values, applied last.
    """
    method, _, asked = method.partition(":")
    words = ["--trainer", method, "--root", root, "--backbone", backbone, "--device", device]
    words += ["--seed", 0, "--output-dir", root / "output"]
    words += ["--dataset-config-file", REPO / "configs" / "datasets" / "folder.yaml"]
    folder = REPO / "configs" / "trainers" / method
    files = [folder / f"{stem}.yaml" for stem in ([asked] if asked else ["base2novel", "ttt"])]
    found = [file for file in files if file.is_file()]
    if asked and not found:
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "no file"
        raise ValueError(f"{method}:{asked}: {files[0]} does not exist; there is: {known}")
    if found:
        words += ["--config-file", found[0]]
    words += ["DATASET.DIR", "pictures", "VERBOSE", False, "TRAIN.PRINT_FREQ", 0]
    if method in DESCRIBED:
        words += ["DATASET.PROMPT_PATH", root / DESCRIPTIONS]
    words += options
    return build_config(argument_parser().parse_args(list(map(str, words))))


def build_run(method: str, root: Path, backbone: str, device: str, *options: object) -> Any:
    """A trainer as ``train.py`` builds it, of :func:`run_config`'s arguments."""
    return build_trainer(run_config(method, root, backbone, device, *options))


def begin_training(trainer: Any) -> None:
    """Set what the engine's loop sets before its first batch, so that steps can be taken by hand.

    The epoch never has a last batch, so that the learning rate stays.
    """
    trainer.set_model_mode("train")
    trainer.graphed = graphed_step(trainer, None)
    trainer.epoch = trainer.batch_idx = 0
    trainer.num_batches = sys.maxsize
