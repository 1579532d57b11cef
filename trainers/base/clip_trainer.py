"""What our methods share: reading the backbone and the prompts from the config."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from yacs.config import CfgNode

import clip
from clip.backbones import has_vision_transformer, lay_out_for_gpu, weight_files
from dassl.config.identity import digest_of, file_hash
from dassl.config.schema import values_of
from dassl.engine import TrainerX
from dassl.engine.base import Names
from datasets.imagenet import logits_of_classes
from trainers.base.class_rows import ClassRows, contexts_in
from trainers.base.features import check_features, use_features
from trainers.base.given_features import (
    GivenTexts,
    check_given,
    check_width,
    given_backbone,
    given_texts_line,
    gives_features,
    gives_texts,
    use_given_features,
)
from trainers.base.prompt_texts import PromptTexts, text_notes
from trainers.base.recipe import Recipe
from trainers.base.released import Convert
from trainers.base.rounding import Rounding
from trainers.base.zero_shot_check import sanity_check


class CLIPTrainer(TrainerX):
    """Base of the methods: a frozen backbone, prompts from the config, documented defaults.

    What the author of a method needs. It *sets* ``defaults``, its keys under ``TRAINER.<name>``
    (each a plain value or a :class:`dassl.config.schema.Option` that says what is allowed and what
    it means), and those of the flags below that apply; it *defines*

    - ``build_model()``: one module, in which exactly what trains requires a gradient;
    - ``forward_loss(image, label)``: a step's :class:`dassl.engine.StepOutput`;

    with ``self.options`` (its section of the config), ``self.load_backbone()``, ``self.prompts()``
    (or ``template``, ``ensemble``), ``self.dm.dataset``, ``self.register_generator(name)`` for
    random numbers that survive a resume, and ``self.notes.add(text)`` for a remark in the result.
    The engine does the rest. Few methods override more: ``check_cfg``, ``choices``,
    ``keeps_features``, ``param_groups``, ``extra_state`` with ``load_extra_state``,
    ``extra_result``, ``convert_state_dict`` and ``checkpoint_folder`` for released weights,
    ``text_bank`` and ``rows_by_class`` for a classifier that is not made of prompts. What a family
    of methods shares beyond these is its :class:`trainers.base.recipe.Recipe`.
    """

    defaults: ClassVar[dict[str, Any]] = {}
    # Whether image features stay the pre-trained model's, so that they can be computed once.
    frozen_image_encoder: ClassVar[bool] = False
    # Whether it learns in the text encoder, so that text features cannot take the texts' place.
    needs_text_tower: ClassVar[bool] = False
    # Whether the method changes attention layers or their input, which ResNets do not have.
    needs_transformers: ClassVar[bool] = False
    # Whether the loss compares the images of a batch, so that it cannot be taken in parts.
    compares_images: ClassVar[bool] = False
    # Whether the release trains in pure half precision, what is learned included.
    released_in_half: ClassVar[bool] = False
    # Reads the layout of the authors' own checkpoints, one of :mod:`trainers.base.released`.
    released_layout: ClassVar[Convert | None] = None
    # Protocols that it makes sense in: it has a YAML for each, and tests run it by the first.
    protocols: ClassVar[tuple[str, ...]] = ("base2novel", "few_shot", "cross_dataset")
    # What a family of methods shares beyond model and loss: full fine-tuning, test-time episodes.
    recipe_type: ClassVar[type[Recipe]] = Recipe

    def __init__(self, cfg: CfgNode) -> None:
        self.recipe: Any = self.recipe_type(self)
        super().__init__(cfg)
        for module in self.model.modules():
            if isinstance(module, clip.TextBank):
                module.kept_tokens = cfg.TRAIN.KEPT_TOKENS
        self.rows_by_class().match_initial_weights(cfg.MODEL.INIT_WEIGHTS)
        self._print_choices()
        self.show_prompts()
        self.zero_shot_check = sanity_check(self)
        # Last: the check above encodes images, and the features replace the loaders of images.
        if self.uses_features(cfg):
            use_features(self)
        elif cfg.FEATURE_CACHE.ENABLED and not gives_features(cfg):
            self.notes.add(
                "no feature cache: the method needs other features than one frozen one per image"
            )
        self.recipe.prepare()

    def choices(self) -> list[str]:
        """Where the run follows a release rather than its paper, or neither; lines of the log."""
        return []

    def _print_choices(self) -> None:
        # A class that is not registered has no options.
        options = self.cfg.TRAINER.get(self.section(), {})
        if options:
            print(
                f"TRAINER.{self.section()}: {', '.join(f'{k} {v!r}' for k, v in options.items())}"
            )
        lines = self.choices()
        if self.released_in_half:
            lines.append(
                "the release trains in pure half precision, what is learned included, and without "
                f"loss scaling; this run in {self.precision}, what is learned in single precision"
            )
        for line in lines:
            print(f"{type(self).__name__}: {line}")

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse what the method cannot work with; called before anything is built."""
        self.recipe.check_cfg(cfg)
        check_given(cfg, self.keeps_features(cfg), self.needs_text_tower)
        name = cfg.MODEL.BACKBONE.NAME
        if self.needs_transformers and has_vision_transformer(name) is False:
            raise ValueError(
                f"{type(self).__name__} adapts the transformer layers of both towers; the vision "
                f"tower of backbone {name!r} (MODEL.BACKBONE.NAME) has none of CLIP's form. "
                "ViT-B/16, ViT-B/32, ViT-L/14 or an openclip: ViT works."
            )
        if self.compares_images and cfg.OPTIM.ACCUMULATE > 1:
            raise ValueError(
                f"OPTIM.ACCUMULATE is {cfg.OPTIM.ACCUMULATE}, but {type(self).__name__}'s loss "
                "compares the images of a batch with each other, so that parts of it give another "
                "one; set it to 1. TRAIN.GRAD_CHECKPOINTING True or more processes save memory too"
            )
        if self.uses_features(cfg):
            check_features(cfg, cfg.TRAINER.NAME, self.keeps_features(cfg))

    def keeps_features(self, cfg: CfgNode) -> bool:
        """Whether image features stay the pre-trained model's under this config."""
        return self.frozen_image_encoder

    def uses_features(self, cfg: CfgNode) -> bool:
        """Whether image features are computed once: if asked for, and kept or insisted on."""
        cache = cfg.FEATURE_CACHE
        if gives_features(cfg):
            return False  # there is nothing left to compute
        return cache.ENABLED and (cache.REQUIRED or self.keeps_features(cfg))

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add the method's own keys and their defaults to a config."""
        cfg.TRAINER[cls.section()] = CfgNode(values_of({"PREC": "fp32", **cls.defaults}))

    @classmethod
    def section(cls) -> str:
        """Name of the method's section under ``TRAINER``."""
        return cls.config_section or cls.__name__

    @property
    def options(self) -> CfgNode:
        """The method's section of the config."""
        return self.cfg.TRAINER[self.section()]

    # ------------------------------------------------------------------ prompts

    @cached_property
    def texts(self) -> PromptTexts:
        """What makes prompts of the config and the class names."""
        context = values_of(self.defaults).get("CTX_INIT")
        kind = GivenTexts if gives_texts(self.cfg) else PromptTexts
        return kind(self.cfg.DATASET, self.dm.dataset.classnames, context)

    def prompts(self, context: str = "", learned: bool = False) -> list[list[str]]:
        """Each class's prompts, see :meth:`PromptTexts.prompts`."""
        return self.texts.prompts(context, learned)

    def template(self, own: str) -> str:
        """The user's template, else the method's own, see :meth:`PromptTexts.template`."""
        return self.texts.template(own)

    def ensemble(self, classnames: list[str], size: int, own: str = "") -> list[list[str]]:
        """Each class's prompts of 7 or 80 templates, see :meth:`PromptTexts.ensemble`."""
        return self.texts.ensemble(classnames, size, own)

    def text_bank(self) -> clip.TextBank | None:
        """The texts that stand for the classes; None if the method has none."""
        model = getattr(self, "model", None)
        modules = model.modules() if isinstance(model, nn.Module) else ()
        found = (module for module in modules if isinstance(module, clip.TextBank))
        return self.recipe.text_bank(next(found, None))

    def show_prompts(self) -> None:
        """Log the first prompt; note what is wrong with the texts, or has no effect on them."""
        bank = self.text_bank()
        first = ""
        if isinstance(bank, clip.FeatureBank):
            print(given_texts_line(bank))
        elif bank is not None:
            first = f", the first is {bank.texts[0]!r}"
            counts = f"{bank.num_classes} classes, {len(bank)} texts"
            print(f'First prompt: "{bank.texts[0]}" ({counts})')
            backbone = getattr(self.model, "backbone", None)
            cut = backbone.cuts(bank.texts, bank.tokens) if backbone is not None else ""
            if cut and cut not in self.notes:
                self.notes.append(cut)  # logged when they were tokenised
        if bank is not None:
            for note in text_notes(bank, self.dm.dataset.classnames, self.cfg.DATASET.NAME):
                self.notes.add(note)
        if self.texts.unused_template:
            self.notes.add(
                f"DATASET.PROMPT_TEMPLATE {self.texts.unused_template!r} has no effect: "
                f"{type(self).__name__} has other prompts{first}; see the options of "
                f"TRAINER.{self.section()}"
            )

    # ------------------------------------------------------------------ the backbone and the data

    def build_data_loader(self) -> None:
        """Build dataset and loaders; a dataset of features gives these in the images' place."""
        super().build_data_loader()
        if gives_features(self.cfg):
            use_given_features(self)

    def load_backbone(self) -> clip.Backbone:
        """The pre-trained model the config names, frozen; a stand-in where texts are given."""
        given = given_backbone(self)
        if given is not None:
            return given
        name = self.cfg.MODEL.BACKBONE.NAME
        print(f"Loading CLIP (backbone: {name})")
        backbone = clip.load(name, precision="fp16" if self.precision == "fp16" else "fp32")
        if self.device.type == "cuda":
            lay_out_for_gpu(backbone)
        check_width(self, backbone)
        return backbone

    # ------------------------------------------------------------------ a run

    @cached_property
    def rounding(self) -> Rounding:
        """What rounds frozen weights once, under autocast."""
        return Rounding(self)

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        """Switch models to training or evaluation; weights are rounded in training."""
        super().set_model_mode(mode, names)
        self.rounding.switch(mode)

    def run_epoch(self) -> None:
        """Train for one epoch."""
        try:
            super().run_epoch()
        finally:
            self.rounding.switch("end")

    def checkpoint_meta(self) -> dict[str, Any]:
        """Add a hash of the backbone's files on this machine; "" where its name tells it all."""
        # Where texts are given, the name is only a remark on what made the features.
        files = [] if gives_texts(self.cfg) else weight_files(self.cfg.MODEL.BACKBONE.NAME)
        content = digest_of([file_hash(path) for path in files]) if files else ""
        return {**super().checkpoint_meta(), "backbone_sha256": content}

    def model_inference(self, input: Tensor) -> Tensor:
        """Logits over the dataset's classes, (B, K), of images (B, 3, S, S) or features (B, D).

        A classifier over all classes of ImageNet serves ImageNet's halves and shifts too, through
        the columns that their classes stand for.

        Args:
            input: Images (B, 3, S, S), or cached features (B, D), or what else the test loader of
                a recipe gives.
        """
        self.rounding.round_for_test()
        logits = self.recipe.logits(input)
        dataset = self.dm.dataset
        over_imagenet = len(getattr(dataset, "imagenet_names", ())) == logits.shape[1]
        if over_imagenet and logits.shape[1] != self.num_classes:
            return logits_of_classes(logits, dataset.imagenet_labels)
        return logits

    def extra_result(self) -> dict[str, Any]:
        """Add the outcome of the zero-shot check, and the recipe's entries."""
        return {"zero_shot_check": self.zero_shot_check, **self.recipe.extra_result()}

    # ------------------------------------------------------------------ checkpoints

    def before_train(self) -> None:
        """Start from the recipe's weights, or from where an earlier process stopped."""
        self.recipe.before_train()
        super().before_train()

    def after_train(self) -> None:
        """Let the recipe do what follows the last epoch, then test."""
        self.recipe.finish()
        super().after_train()

    def load_model(
        self, directory: str | os.PathLike[str] | None, epoch: int | None = None
    ) -> None:
        """Load weights from a run directory, see `dassl.engine.base.TrainerBase.load_model`."""
        if not self.recipe.load(directory, epoch):
            super().load_model(directory, epoch)

    def convert_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Translate a released layout, and let the head refuse weights of another shape."""
        convert = type(self).released_layout
        if convert is not None:
            state_dict = convert(state_dict, self.model, type(self).__name__)
        check = getattr(self.model.head, "check_state", None)
        if check is not None:
            check({name: value for name, value in state_dict.items() if name.startswith("head.")})
        return state_dict

    def rows_by_class(self) -> ClassRows:
        """What the model learns with a row per class: contexts, if every class has its own."""
        keys = [name for name, module in contexts_in(self.model).items() if module.per_class]
        dataset = self.dm.dataset
        rows = ClassRows(
            self.model, dataset, self.cfg.DATASET, self.notes, keys, dataset.classnames
        )
        return self.recipe.rows_by_class(rows)

    def match_classes(
        self, path: Path, state_dict: dict[str, Tensor], classnames: Sequence[str] | None
    ) -> dict[str, Tensor]:
        """Pick the rows of the run's classes, in their order, by name."""
        return self.rows_by_class().match(path, state_dict, classnames)

    def resume_model_if_exist(self, directory: str | os.PathLike[str]) -> int:
        """Continue from the last checkpoints in a directory, of the same classes."""
        self.rows_by_class().check_resumed(Path(directory, self.model_name or type(self).__name__))
        return super().resume_model_if_exist(directory)
