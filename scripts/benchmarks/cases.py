"""The cases of ``bench.py released``: what is compared, on which pictures and texts.

Texts have the lengths that they have in use: class names are ImageNet's, of one to four words for
the most part, and descriptions have 12 to 44 words, with which prompts have 37 tokens on average.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
from torch.nn import functional as F

from dassl.data.transforms import finish
from scripts.benchmarks.efficiency import first_batch
from scripts.benchmarks.release_forms import contexts, deep, hpt, lightra, rada, tpt
from scripts.benchmarks.tools import begin_training, build_run, write_checkpoint, write_pictures
from trainers import promptsrc

EMBED_DIM = 512  # D of cases that are given image features, as ViT-B/16's
PROMPTS_A_CLASS = 5  # in evaluation, and HPT's texts
SIDE = 32  # of the pictures' files; loading them is not measured
WORDS = (
    "a round small large bright dark green red grey brown long short thin wide soft smooth old new "
    "shape body head side top edge line leaf wood metal water stone with and of on in the its near"
).split()


class Case(NamedTuple):
    """One row of the table.

    Attributes:
        label: What is compared; the method, unless it is one part of it.
        classes: K.
        batch: B; for TPT the images adapted in a step.
        method: The trainer's registered name.
        release: Makes the release's step of a trainer and its batch.
        input: What a step is given: pictures, features, views, or texts for evaluation.
        precision: fp32, amp, bf16 or fp16; the release runs under autocast where ours does.
        graphs: Whether ours replays CUDA graphs (TRAIN.CUDA_GRAPHS).
    """

    label: str
    classes: int
    batch: int
    method: str
    release: Callable[[Any, dict[str, Any]], Callable[[], torch.Tensor]]
    input: str = "pictures"
    precision: str = "fp32"
    graphs: bool = False

    @property
    def name(self) -> str:
        """What ``--cases`` calls it."""
        parts = [self.label, str(self.classes), str(self.batch)]
        parts += [self.precision] if self.precision != "fp32" else []
        return "/".join([*parts, "graphs"] if self.graphs else parts)


CASES = [
    *(Case("LightRA", k, b, "LightRA", lightra.LightRA) for k in (24, 100, 500) for b in (4, 16)),
    Case("LightRA", 1000, 4, "LightRA", lightra.LightRA),
    Case("LightRA-text", 100, PROMPTS_A_CLASS, "LightRA", lightra.LightRAText, "texts"),
    *(
        Case("RAda-head", k, b, "RAda", rada.RAdaHead, "features")
        for k in (50, 500, 1000)
        for b in (1, 32)
    ),
    Case("RAda", 100, 1, "RAda", rada.RAda),
    Case("CoOp", 100, 4, "CoOp", contexts.CoOp),
    Case("CoCoOp", 100, 1, "CoCoOp", contexts.CoCoOp),
    Case("KgCoOp", 100, 4, "KgCoOp", contexts.KgCoOp),
    Case("MaPLe", 100, 4, "MaPLe", deep.MaPLe),
    Case("PromptSRC", 100, 4, "PromptSRC", deep.PromptSRC),
    Case("CoPrompt", 100, 4, "CoPrompt", deep.CoPrompt),
    Case("HPT", 100, 4, "HPT", hpt.HPT),
    Case("TPT", 100, 1, "TPT", tpt.TPT, "views"),
    Case("TPT", 1000, 1, "TPT", tpt.TPT, "views"),
]


def class_names(count: int) -> list[str]:
    """Names of ImageNet's classes, and after them the same with another word."""
    # Names become folders and sentences: those with slashes or brackets are left out.
    names = dict.fromkeys(open_clip.IMAGENET_CLASSNAMES)
    plain = [name.lower() for name in names if all(word.isalpha() for word in name.split())]
    plain = list(dict.fromkeys(plain))
    return [*plain, *(f"small {name}" for name in plain)][:count]


def write_inputs(root: Path, classes: int, batch: int) -> None:
    """Write K classes with pictures for a batch and all texts about them; see :func:`options`."""
    names, rng = class_names(classes), np.random.default_rng(0)
    write_pictures(root, classes, -(-batch // classes), 1, SIDE, names)

    def words(least: int, most: int) -> list[str]:
        return rng.choice(WORDS, rng.integers(least, most + 1)).tolist()

    def structure() -> dict[str, Any]:
        """Words tied in pairs, as many as HPT's descriptions of 20 words have."""
        entities, attributes = words(4, 7), words(4, 7)
        pairs = list(zip(entities, entities[1:], strict=False))
        tied = list(zip(entities, attributes, strict=False))
        return dict(
            entities=entities, attributes=attributes, entity_pairs=pairs, attribute_pairs=tied
        )

    of_class = range(PROMPTS_A_CLASS)
    files: dict[str, dict[str, Any]] = {
        "one": {name: [" ".join(words(12, 44))] for name in names},
        "several": {name: [" ".join(words(12, 44)) for _ in of_class] for name in names},
        "structures": {name: [structure() for _ in of_class] for name in names},
    }
    for stem, content in files.items():
        (root / f"{stem}.json").write_text(json.dumps(content))


def write_head_towers(path: Path) -> None:
    """Write small towers with ViT-B/16's embedding width, for cases with features given."""
    torch.manual_seed(0)
    vision = open_clip.model.CLIPVisionCfg(layers=1, width=64, patch_size=16, image_size=SIDE)
    text = open_clip.model.CLIPTextCfg(width=64, heads=1, layers=1)
    write_checkpoint(open_clip.model.CLIP(EMBED_DIM, vision, text, quick_gelu=True), path)


def options(case: Case, root: Path, check: bool) -> list[object]:
    """Keys and values of a run's config, beside the method's own YAML.

    Warm-up epochs are left out, so that steps move something. With ``check``, steps are plain SGD's
    for all methods: Adam turns a rounding error of a gradient near zero into a full step.
    """
    section = {"RAda": "RADA"}.get(case.method, case.method.partition(":")[0])
    found: list[object] = ["DATALOADER.NUM_WORKERS", 0, f"TRAINER.{section}.PREC", case.precision]
    found += ["DATALOADER.TRAIN_X.BATCH_SIZE", case.batch, "OPTIM.WARMUP_EPOCH", -1]
    found += ["TRAIN.CUDA_GRAPHS", case.graphs]
    if case.input == "views":
        found += [f"TRAINER.{section}.BATCH", case.batch]
    if section == "RADA":
        found += ["TRAINER.RADA.SOFTMAX", "joint"]  # the release's
    if case.method == "LightRA":
        stem = "several" if case.input == "texts" else "one"
        found += ["DATASET.PROMPT_PATH", root / f"{stem}.json"]
    if case.method == "HPT":
        found += ["TRAINER.HPT.DESCRIPTIONS", root / "several.json"]
        found += ["TRAINER.HPT.STRUCTURES", root / "structures.json"]
    if section == "RAdaFT":
        # Plain steps at one learning rate, as the release form takes them; few texts to make W of.
        found += ["OPTIM.MAX_GRAD_NORM", 0, "OPTIM.LR_SCHEDULER", "cosine"]
        found += ["OPTIM.WARMUP_STEP", 0, "TRAINER.RAdaFT.TEMPLATES", 7]
    return [*found, "OPTIM.NAME", "sgd", "OPTIM.LR", 0.01] if check else found


def build(
    case: Case,
    root: Path,
    backbone: str,
    device: str,
    check: bool = False,
    more: Sequence[object] = (),
) -> Any:
    """Our trainer of a case, a little off its start, where nothing is zero by construction.

    ``more`` are keys and values behind those of :func:`options`.
    """
    given = options(case, root, check)
    trainer = build_run(case.method, root, backbone, device, *given, *more)
    if hasattr(trainer.model, "classifier"):
        trainer.model.class_weights()  # else W would be made over what is added to it here
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    if case.method == "PromptSRC":
        keep_one_template(trainer)
    return trainer


def keep_one_template(trainer: Any) -> None:
    """Let PromptSRC's teacher read one template in place of 60, once before all steps.

    It is no part of a step, and would take a minute in every process.
    """
    templates = promptsrc.TEACHER_TEMPLATES
    promptsrc.TEACHER_TEMPLATES = templates[:1]
    try:
        _ = trainer.teacher_text  # the trainer keeps it
    finally:
        promptsrc.TEACHER_TEMPLATES = templates


def batch_of(case: Case, trainer: Any) -> dict[str, Any]:
    """What a step is given, on the device."""
    if case.input == "views":
        return first_batch(trainer, trainer.test_loader, "views")
    batch = first_batch(trainer, trainer.train_loader_x, "pictures")
    if case.input == "features":
        # Any unit vectors cost the same as an encoder's.
        features = torch.randn(case.batch, trainer.model.backbone.embed_dim)
        batch["img"] = F.normalize(features, dim=-1).to(trainer.device)  # (B, D)
    return batch


def pictures(case: Case, trainer: Any, batch: dict[str, Any]) -> torch.Tensor:
    """What a step's image passes run on, (B, 3, S, S); of two views of an image the first."""
    image = batch["img"]
    if case.input == "views":
        return finish(image[0], trainer.recipe.normalize)  # (V, 3, S, S)
    return image[0] if isinstance(image, list) else image


def our_step(case: Case, trainer: Any, batch: dict[str, Any]) -> Callable[[], torch.Tensor]:
    """Our step of a case: its loss, the logits of an episode, or the class weights."""
    begin_training(trainer)
    if case.input in ("pictures", "features"):
        # Nothing is read from the device here: a step would wait for it.
        return lambda: torch.as_tensor(trainer.forward_backward(batch)["loss"])
    trainer.set_model_mode("eval")
    model = trainer.model

    @torch.no_grad()
    def evaluate() -> torch.Tensor:
        if case.input == "views":
            with trainer.autocast():
                return trainer.model_inference(batch["img"])  # (B, K)
        # Else the second time would only look up the first one's result.
        model.bank.drop_cache()
        return model.class_weights()  # (K, D)

    return evaluate


def named_cases(wanted: Sequence[str]) -> list[Case]:
    """The cases of that name or label, in the order of the table.

    Raises:
        ValueError: There is none of a name.
    """
    known = {case.name for case in CASES} | {case.label for case in CASES}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(
            f"--cases: {unknown[0]!r} is no case; there are {', '.join(c.name for c in CASES)}, "
            "and each part before a slash stands for all of its cases"
        )
    return [case for case in CASES if case.name in wanted or case.label in wanted]
