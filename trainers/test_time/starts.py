"""Trained weights as the start of test-time episodes: prompts of CoOp, CoCoOp and MaPLe, masks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from yacs.config import CfgNode

from clip import adapter_parameters, freeze_except
from clip.text import unit_norm
from dassl.engine import TRAINER_REGISTRY, read_result
from dassl.engine.checkpoint import (
    checkpoint_path,
    fitting_state,
    read_checkpoint,
    replaced_backbone,
)
from dassl.engine.step import drop_caches
from trainers.base import PromptedCLIP, released
from trainers.cocoop import cocoop_clip
from trainers.coop import coop_clip
from trainers.finetuning.stages import FirstStageError
from trainers.maple import maple_clip
from trainers.test_time.episodes import Episodes
from trainers.test_time.towers import PromptStart, confident_views

FLAG = "--model-dir"
FIRST_STAGE_KEY = "FIRST_STAGE.DIR"
CONTEXT = "backbone.text_prompts.vectors"  # the parameter of a learned context


class Start(NamedTuple):
    """How a method's trained prompts are built again and read.

    Attributes:
        build: (backbone, class names, the method's section of the config) -> classifier.
        convert: (released or own state, classifier, section) -> state with the classifier's keys.
        form: Keys of the section that a run must agree in.
    """

    build: Callable[..., PromptedCLIP]
    convert: released.Convert
    form: tuple[str, ...]


STARTS = {
    "CoOp": Start(coop_clip, released.coop, ("CTX_INIT", "CLASS_TOKEN_POSITION")),
    "CoCoOp": Start(cocoop_clip, released.coop, ("CTX_INIT",)),
    "MaPLe": Start(maple_clip, released.maple, ("N_CTX", "PROMPT_DEPTH", "CTX_INIT")),
}


class StartedEpisodes(Episodes):
    """Episodes on prompts, which may start from those of a trained run.

    A method defines ``start_of(cfg)``, the name of the method that trained the start ("" for none),
    and ``episode(start, views)``: on a fresh copy of the prompts of a :class:`PromptStart`, one
    image's features (V, D) or views (1 + S, 3, H, W) -> logits of its view 0, (1, K).

    The run is FIRST_STAGE.DIR (FIRST_STAGE.EPOCH 0 is its last epoch) or ``--model-dir``, its own
    or a released checkpoint's folder. The form of its prompts is that method's section of the
    config, as TRAINER.CoOp.

    Attributes:
        start_directory: Of the run that all episodes start from; "" for none.
    """

    start_directory = ""

    @property
    def start(self) -> str:
        """Name of the method that trained the start; "" for none."""
        return self.trainer.start_of(self.trainer.cfg)

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse what episodes or a start cannot work with.

        Raises:
            ValueError: Activations of adapted blocks would be made again.
        """
        super().check_cfg(cfg)
        if cfg.TRAIN.GRAD_CHECKPOINTING and self.trainer.start_of(cfg) == "MaPLe":
            raise ValueError(
                f"TRAIN.GRAD_CHECKPOINTING is True, but {self.method} adapts copies of "
                "prompts inside the towers, and activations made again would be those of the "
                "prompts themselves; set it to False"
            )

    def adapted(self) -> Mapping[str, Tensor]:
        """All that MaPLe trained, or else the context tokens."""
        model = self.trainer.model
        if self.start == "MaPLe":
            return adapter_parameters(model)
        return {CONTEXT: model.get_parameter(CONTEXT)}

    def started_model(self) -> PromptedCLIP:
        """The start's classifier, with the weights of FIRST_STAGE.DIR if that is set.

        Raises:
            FirstStageError: See :meth:`_load_start`.
            ValueError: TRAINER.CoOp.CSC is set.
        """
        trainer = self.trainer
        section = trainer.cfg.TRAINER[self.start]
        if section.get("CSC"):
            raise ValueError(
                f"TRAINER.{self.start}.CSC is True: contexts of the training set's classes are no "
                "start for the classes of another set; name a run with one context for all"
            )
        backbone, names = trainer.load_backbone(), trainer.dm.dataset.classnames
        model = STARTS[self.start].build(backbone, names, section)
        model.requires_grad_(False)  # what an episode adapts are copies
        stage = trainer.cfg.FIRST_STAGE
        if stage.DIR:
            self._load_start(model, stage.DIR, stage.EPOCH or None, FIRST_STAGE_KEY)
            self.start_directory = stage.DIR
        return model

    def load(self, directory: str | os.PathLike[str] | None, epoch: int | None) -> bool:
        """Start all episodes from the prompts of a trained run, as FIRST_STAGE.DIR does.

        Args:
            directory: Run directory, also of another run of this trainer; empty or None needs
                FIRST_STAGE.DIR.
            epoch: Number of epochs; None for the last.

        Raises:
            FirstStageError: There is no start, or see :meth:`_load_start`.
        """
        result = read_result(directory) if directory and self.start else None
        if result and result["trainer"] == self.method:
            # The directory is another test's: go on to what that one started from, by --model-dir
            # or else by its config.
            stage = result["config"]["FIRST_STAGE"]
            named = result["model_dir"]
            epoch = result["load_epoch"] if named else stage["EPOCH"] or None
            directory = named or stage["DIR"]
        # Nothing of a start is trained here, so that its weights are not this trainer's own ones,
        # which the engine would look for.
        if directory and self.start:
            self._load_start(self.trainer.model, directory, epoch, FLAG)
            self.start_directory = os.fspath(directory)
            self.trainer.identity.loaded_from = (os.fspath(directory), epoch)
            return True
        self.require_start()
        return False

    def require_start(self) -> None:
        """Refuse to go on without trained prompts.

        Raises:
            FirstStageError: None were loaded.
        """
        if not self.start or self.start_directory:
            return
        config = self.trainer.cfg.FIRST_STAGE.CONFIG or f"{self.start}/cross_dataset"
        raise FirstStageError(
            f"{self.method} starts from a finished run of {self.start}, but neither {FLAG} "
            f"nor {FIRST_STAGE_KEY} names one: train with configs/trainers/{config}.yaml, or let "
            "bash run_ttt.sh do both"
        )

    def logits(self, input: Tensor) -> Tensor:
        """See :meth:`Episodes.logits`.

        Args:
            input: Views (N, V, 3, H, W), or images (N, 3, H, W).

        Raises:
            FirstStageError: There is no start.
        """
        self.require_start()
        return super().logits(input)

    def encode(self, views: Tensor) -> Tensor:
        """What episodes work on: features of all views, (N, V, D).

        MaPLe's prompts change image features, so that the image encoder runs again on what an
        episode needs: view 0 and the confident views as images, (N, 1 + S, 3, H, W).
        """
        features = super().encode(views)
        if self.start != "MaPLe":
            return features
        return confident_views(self.trainer.model, views, features, self.selected, self.normalize)

    def encode_images(self, images: Tensor) -> Tensor:
        """Features (B, D), unit norm except for the start from CoCoOp, which needs theirs."""
        if self.start == "CoCoOp":
            return self.trainer.model.raw_image_features(images)
        return super().encode_images(images)

    @torch.no_grad()
    def predict_episodes(self, views: Tensor) -> Tensor:
        """Logits of view 0 of each image after its episode, (N, K).

        Args:
            views: What :meth:`encode` returns.
        """
        trainer, model = self.trainer, self.trainer.model
        if self.start != "CoCoOp":
            start = PromptStart(model, self.adapted())
            return torch.cat([trainer.episode(start, one) for one in views])
        # The clean view's feature decides where an image's context starts.
        contexts = model.backbone.text_prompts.contexts(views[:, 0])  # (N, M, W)
        starts = (PromptStart(model, {CONTEXT: context[None]}) for context in contexts)
        pairs = zip(starts, unit_norm(views), strict=True)
        return torch.cat([trainer.episode(start, features) for start, features in pairs])

    def extra_result(self) -> dict[str, Any]:
        """Add what episodes started from."""
        own = {"start": {"method": self.start, "directory": self.start_directory}}
        return {**super().extra_result(), **(own if self.start else {})}

    def _load_start(
        self, model: PromptedCLIP, directory: str | os.PathLike[str], epoch: int | None, key: str
    ) -> None:
        """Copy the trained prompts of a run into ``model``.

        Args:
            model: Of the same form.
            directory: The run's.
            epoch: Number of epochs; None for the last.
            key: Config key or flag that named the directory, for messages.

        Raises:
            FirstStageError: The directory has no weights, or they are of another method, backbone
                or form.
        """
        method, own = self.start, self.trainer.checkpoint_meta()
        folder = TRAINER_REGISTRY.get(method).model_name or method
        try:
            path = checkpoint_path(directory, folder, epoch)
            content = read_checkpoint(path, {})
        except (FileNotFoundError, ValueError) as error:
            raise FirstStageError(
                f"{key} must be the directory of a run of {method}: {error}"
            ) from None
        meta = content["meta"]
        check_origin(path, meta, method, own, key)
        section = self.trainer.cfg.TRAINER[method]
        form = {f"TRAINER.{method}.{name}": section[name] for name in STARTS[method].form}
        check_form(directory, method, form, key)
        freeze_except(model)  # the names of what trains are what the file must hold
        try:
            state = STARTS[method].convert(dict(content["state_dict"]), model, method)
            state = fitting_state(path, model, state, meta, own)
        except ValueError as error:
            raise FirstStageError(f"{key}: {error}") from None
        finally:
            model.requires_grad_(False)
        model.load_state_dict(state, strict=False)
        drop_caches(model)  # class weights of the prompts from before
        print(f'Every episode starts from the prompts in "{path}"')


def started_model(trainer: Any) -> PromptedCLIP:
    """The ``build_model`` of a method that always starts from a trained run's prompts."""
    return trainer.recipe.started_model()


def check_origin(
    path: Path, meta: Mapping[str, Any], method: str, own: Mapping[str, Any], key: str
) -> None:
    """Refuse weights that another method or backbone was trained with.

    Args:
        path: Of the checkpoint.
        meta: What it says about its run; what it does not say cannot differ.
        method: Name of the method that is needed.
        own: What a checkpoint of the current run would say.
        key: Config key or flag that named the run, for messages.

    Raises:
        FirstStageError: One of them differs.
    """
    for what, needed, remedy in (
        ("method", method, f"name a run of {method}"),
        ("backbone", own["backbone"], f"set --backbone {meta.get('backbone')}, or name another"),
    ):
        if meta.get(what, needed) != needed:
            raise FirstStageError(
                f"{key}: {path} was trained with {what} {meta[what]!r}, this run needs "
                f"{needed!r}; {remedy}"
            )
    replaced = replaced_backbone(meta, own)
    if replaced:
        raise FirstStageError(f"{key}: since {path} was trained, {replaced}; repeat that run")


def check_form(
    directory: str | os.PathLike[str], section: str, form: Mapping[str, Any], key: str
) -> None:
    """Compare what a run's weights do not tell of how they are used.

    Args:
        directory: The run's; without a result nothing can be compared.
        section: Of its config, below ``TRAINER``; top-level keys are looked up too.
        form: The current run's values by config key.
        key: Config key or flag that named the run, for messages.

    Raises:
        FirstStageError: One of them differs.
    """
    config = (read_result(directory) or {}).get("config") or {}
    recorded = {**config, **config.get("TRAINER", {}).get(section, {})}
    for name, value in form.items():
        ours = list(value) if isinstance(value, tuple) else value  # as JSON has it
        theirs = recorded.get(name.rpartition(".")[2])
        if theirs is not None and theirs != ours:
            raise FirstStageError(
                f"{key}: the weights in {directory} were trained with {name} {theirs!r}, here it "
                f"is {ours!r}; set it to {theirs!r}"
            )
