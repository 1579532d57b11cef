"""``train.py --export``: what deployment needs of a trained run, without this project.

The trainer is built as for ``--predict``, on class names alone: neither the run's data nor its
result have to be there.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from yacs.config import CfgNode

from dassl.config.identity import file_hash
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.checkpoint import checkpoint_path, trainable_state
from dassl.utils import load_checkpoint, write_json
from dassl.utils.tools import package_versions
from scripts.exporting import parts as of
from scripts.exporting.agreement import TOLERANCE, check_images, disagreement
from scripts.exporting.describe import ONNX_LINES, preprocessing, readme
from scripts.exporting.graph import Classifier, traced
from scripts.training.predict import Pictures, class_names, prediction_config, trainer_of
from scripts.training.predict_features import encode_images_too
from trainers.base import CLIPTrainer
from trainers.base.templates import own_template

__all__ = ["run_export"]

ABOUT = "export.json"  # written last but one; what else is there is named in it
_FORMAT = 1


def run_export(args: argparse.Namespace) -> int:
    """Write the folder that ``--export`` names, whole or not at all; return the exit status."""
    wanted = args.export_parts or list(of.FILES)
    of.check_packages(wanted)
    _check_target(Path(args.export))
    cfg = _export_config(args)
    preprocess = preprocessing(cfg)
    names = class_names(args, cfg)
    template = cfg.DATASET.PROMPT_TEMPLATE or own_template(cfg.DATASET.NAME)
    # A trainer needs something to test on; this picture is never read.
    pictures = Pictures(names, ["none.jpg"], template)
    trainer = trainer_of(cfg, pictures, args.model_dir, args.load_epoch)
    if not args.model_dir and not cfg.MODEL.INIT_WEIGHTS and trainable_state(trainer.model):
        raise ValueError(
            f"--export of {cfg.TRAINER.NAME} needs --model-dir, the folder of a finished run: the "
            "method has to be trained"
        )
    if cfg.INPUT.FAST_RESIZE:
        trainer.notes.add(
            "INPUT.FAST_RESIZE: the run's pictures were resized by PyTorch; Pillow, which run.py "
            "has, gives other pixels at few places, by one of 255 levels"
        )
    with whole_folder(Path(args.export)) as folder:
        about = _write(folder, trainer, preprocess, wanted, args)
    print(f'Exported to "{args.export}": {", ".join(sorted(about["files"]))}')
    for part, why in about["left_out"].items():
        print(f"Not exported: {of.FILES[part]}, {why}")
    return 0


def _check_target(target: Path) -> None:
    """Refuse a place that holds something: an export is never mixed with other files."""
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise FileExistsError(
            f'--export: "{target}" is there and not empty; name a new folder, or remove it first'
        )


def _export_config(args: argparse.Namespace) -> CfgNode:
    """The run's config, in full precision on the CPU.

    Raises:
        ValueError: The method computes nothing that a fixed graph could.
    """
    cfg = prediction_config(args)
    name = cfg.TRAINER.NAME
    kind = TRAINER_REGISTRY.get(name)
    if not issubclass(kind, CLIPTrainer):
        raise ValueError(
            f"--export: {name} was made for Dassl's engine and does not say where its image and "
            "text features are; derive it from trainers.base.CLIPTrainer"
        )
    if kind.recipe_type.no_graph:
        raise ValueError(f"--export: {name} cannot be exported: {kind.recipe_type.no_graph}")
    encode_images_too(cfg, "--export", "there is no graph from an image to write")
    cfg.defrost()
    # What is learned is in single precision in all modes; rounding is the target machine's affair.
    cfg.DEVICE, cfg.TRAINER[kind.section()].PREC = "cpu", "fp32"
    cfg.freeze()
    return cfg


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write to, which gets its name only if the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, since a rename does not cross file systems.
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    partial.mkdir()
    try:
        yield partial
        with suppress(FileNotFoundError):
            target.rmdir()  # an empty folder, as `_check_target` has seen
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write(
    folder: Path,
    trainer: Any,
    preprocess: dict[str, Any],
    wanted: list[str],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Write all files and return the content of ``export.json``."""
    cfg, model = trainer.cfg, trainer.model
    batches = check_images(*cfg.INPUT.SIZE)
    # First: what trains can be told from what does not only until the graph is made.
    agreement, left_out = _write_weights(folder, trainer, batches[-1], wanted, args)
    model.requires_grad_(False)  # it becomes the constants of a graph
    classifier = Classifier(trainer)
    agreement |= _write_graphs(folder, classifier, batches, wanted)
    names = list(trainer.dm.dataset.classnames)
    write_json(preprocess, folder / "preprocess.json")
    write_json(names, folder / "classes.json")
    height, width = cfg.INPUT.SIZE
    about = {
        "format": _FORMAT,
        "trainer": cfg.TRAINER.NAME,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "num_classes": len(names),
        "embed_dim": model.backbone.embed_dim,
        "height": height,
        "width": width,
        **_text_features(folder, classifier, batches[-1]),
        "run": args.model_dir,
        "load_epoch": args.load_epoch,
        "left_out": left_out,
        "agreement": agreement,
        "versions": package_versions(),
        "notes": list(trainer.notes),
        "files": {path.name: file_hash(path) for path in sorted(folder.iterdir())},
    }
    write_json(about, folder / ABOUT)
    if of.FILES["onnx"] in about["files"]:
        (folder / "run.py").write_text(ONNX_LINES, encoding="utf-8")
    (folder / "README.md").write_text(readme(about), encoding="utf-8")
    return about


def _write_weights(
    folder: Path,
    trainer: Any,
    images: torch.Tensor,
    wanted: list[str],
    args: argparse.Namespace,
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Write what is no graph; return how far it is from the run, and why a part is left out."""
    model = trainer.model
    agreement: dict[str, dict[str, float]] = {}
    left_out: dict[str, str] = {}
    if "adapter" in wanted:
        if trainable_state(model):
            checkpoint = _checkpoint(trainer, args)
            of.write_trained(trainer, checkpoint, folder / of.FILES["adapter"])
        else:
            left_out["adapter"] = f"{trainer.cfg.TRAINER.NAME} trains nothing"
    if "weights" in wanted:
        if why := of.no_weights(model):
            left_out["weights"] = why
        else:
            path = folder / of.FILES["weights"]
            of.write_weights(model, path)
            agreement[path.name] = of.check_weights(model, path, images)
    return agreement, left_out


def _checkpoint(trainer: Any, args: argparse.Namespace) -> dict[str, Any]:
    """The content of the file that the run's weights were read from; empty if there is none."""
    [name] = trainer.checkpoints.trained()
    folder = trainer.checkpoint_folder(args.model_dir, name)
    try:
        return load_checkpoint(checkpoint_path(args.model_dir, folder, args.load_epoch))
    except FileNotFoundError:  # a release's own file, which its method has found by other names
        return {}


def _write_graphs(
    folder: Path, classifier: Classifier, batches: list[torch.Tensor], wanted: list[str]
) -> dict[str, dict[str, float]]:
    """Write the graphs that are wanted, and return how far each is from the trained run."""
    writers = {"onnx": (of.write_onnx, of.onnx_run), "pt2": (of.write_pt2, of.pt2_run)}
    kinds = [part for part in writers if part in wanted]
    if not kinds:
        return {}
    found, program = {}, traced(classifier, batches[-1])
    for part in kinds:
        write, reader = writers[part]
        path = folder / of.FILES[part]
        write(program, path)
        found[path.name] = disagreement(classifier, reader(path), batches, path.name)
    return found


def _text_features(folder: Path, classifier: Classifier, images: torch.Tensor) -> dict[str, Any]:
    """Write the class weights, (K, D), and tell whether they and the features make the logits."""
    with torch.no_grad():
        text = classifier.model.class_weights().float()  # (K, D)
        logits, features = classifier(images)  # (B, K), (B, D)
        scale = float(classifier.model.backbone.logit_scale.exp())
        cosine = scale * features @ text.T if len(text) == logits.shape[1] else torch.inf
        # Closer than a file may be to the run: a mask that has hardly learned is a mask.
        same = float((cosine - logits).abs().max()) <= TOLERANCE
    np.save(folder / "text_features.npy", text.numpy())
    return {"logit_scale": scale, "cosine": same}
