"""What the methods of full fine-tuning share: W, where training starts, classes of a checkpoint.

Notation: B images, K classes, D embedding width; W the classifier, s the scale of the logits.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

import clip
from clip.prompts import ensemble_prompts, match_key, template_prompts
from dassl.engine import StepOutput
from dassl.engine.checkpoint import checkpoint_path, read_checkpoint
from trainers.base.class_rows import ClassRows, class_rows
from trainers.base.options import templates
from trainers.base.recipe import Recipe
from trainers.finetuning.linear_clip import LinearCLIP

DEFAULTS: dict[str, Any] = {"TEMPLATES": templates(80)}


class FineTuning(Recipe):
    """Of the methods with a classifier W, :class:`LinearCLIP`, on an image encoder that may train.

    A method names the parts that train, ``trains``; it takes its ``build_model`` and its
    ``forward_loss`` from the functions here, or defines its own. One that starts from
    a run of another trainer, whose directory is FIRST_STAGE.DIR (FIRST_STAGE.EPOCH 0 is its last
    epoch), defines ``first_stage``, which returns weights of its model.

    W starts as the text features of the classes, for each the normalised mean over ``TEMPLATES``
    prompts: 80 or 7, open_clip's ImageNet ensembles, and a template that the user chose
    (``DATASET.PROMPT_TEMPLATE``).

    What was trained is evaluated on datasets with the same classes or some of them, by name; a
    classifier over ImageNet's also on its shifts, see
    :meth:`trainers.base.CLIPTrainer.model_inference`.

    Attributes:
        classes: Names of the classes that W has rows for.
    """

    classes: list[str]

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse half-precision weights that train."""
        refuse_half_weights(cfg, self.method, "encoder" in self.trainer.trains)

    def linear_clip(
        self,
        parts: Sequence[str],
        head: Callable[[int], nn.Module] | None = None,
        adapter: Callable[[int], nn.Module] | None = None,
    ) -> LinearCLIP:
        """The pre-trained encoder and W.

        Args:
            parts: What trains.
            head: Embedding width -> what makes logits of f and W; None for CLIP's cosine.
            adapter: Embedding width -> what f goes through first, if anything.
        """
        trainer = self.trainer
        backbone = trainer.load_backbone()
        self.classes = list(trainer.dm.dataset.classnames)
        model = LinearCLIP(
            backbone,
            len(self.classes),
            lambda: self.ensemble_weights(backbone),
            head=head(backbone.embed_dim) if head else None,
            adapter=adapter(backbone.embed_dim) if adapter else None,
        )
        model.train_only(parts)
        return model

    def ensemble_weights(self, backbone: clip.Backbone) -> Tensor:
        """Unit-norm text features of the classes from the prompt ensemble, (K, D)."""
        prompts = self.trainer.ensemble(self.classes, self.trainer.options.TEMPLATES)
        bank = backbone.text_bank(prompts)
        return F.normalize(bank.to(self.trainer.device).class_features(backbone), dim=-1)

    def text_bank(self, found: clip.TextBank | None) -> clip.TextBank:
        """One text of each class that W starts from; all of them are not needed yet."""
        trainer, classes = self.trainer, self.classes
        chosen = trainer.template("")
        prompts = (
            template_prompts(classes, chosen)
            if chosen
            else [texts[:1] for texts in ensemble_prompts(classes, trainer.options.TEMPLATES)]
        )
        return trainer.model.backbone.text_bank(prompts)

    def before_train(self) -> None:
        """Start from the first stage, if the method has one."""
        trainer = self.trainer
        trainer.model.class_weights()  # W is made before anything of it is loaded
        first_stage = getattr(trainer, "first_stage", None)
        if first_stage is not None:
            with trainer.identity.reading_weights():
                trainer.model.load_state_dict(first_stage(), strict=False)

    def rows_by_class(self, found: ClassRows) -> ClassRows:
        """W has a row for each of its classes, which may be more than the dataset's."""
        return dataclasses.replace(
            found,
            keys=["classifier"],
            classes=self.classes,
            remedy="a method with a text encoder",
        )

    def load(self, directory: str | os.PathLike[str] | None, epoch: int | None) -> bool:
        """Make room for the classes that the weights in a run directory were trained on.

        Raises:
            FileNotFoundError: A file is not there.
            ValueError: The checkpoint lacks a class of the dataset.
        """
        if directory:
            name = self.trainer.model_name or self.method
            path = checkpoint_path(directory, name, epoch)
            saved = (read_checkpoint(path, {}).get("meta") or {}).get("classnames")
            if saved and list(saved) != self.classes:
                self.take_classes(list(saved))
        return False

    def take_classes(self, classes: Sequence[str]) -> None:
        """Make W a classifier over other classes, which include the dataset's.

        Raises:
            ValueError: They do not include all of the dataset's.
        """
        dataset, model = self.trainer.dm.dataset, self.trainer.model
        # Over ImageNet's classes its shifts are evaluated by label, see model_inference: names do
        # not tell, since one class of a shift may stand for several labels.
        if [match_key(n) for n in dataset.imagenet_names] != [match_key(n) for n in classes]:
            rows = class_rows(dataset.classnames, classes)
            absent = [n for n, row in zip(dataset.classnames, rows, strict=True) if row is None]
            if absent:
                raise ValueError(
                    f"{len(absent)} of the {len(rows)} classes of {self.trainer.cfg.DATASET.NAME} "
                    f"are none of the {len(classes)} that the classifier was trained on: "
                    f"{', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}. A linear "
                    "classifier knows no others; choose a target whose classes are among them "
                    "(--dataset-config-file, --targets), or a method with a text encoder"
                )
            model.columns = [row for row in rows if row is not None]
        self.classes = list(classes)
        model.resize(len(self.classes))


def refuse_half_weights(cfg: CfgNode, method: str, trains_encoder: bool) -> None:
    """Refuse fp16 weights where an encoder trains.

    Raises:
        ValueError: They are asked for.
    """
    if trains_encoder and cfg.TRAINER[method].PREC == "fp16":
        raise ValueError(
            f"TRAINER.{method}.PREC is fp16, but {method} trains an encoder, and small steps "
            "vanish in half-precision weights; set it to amp, bf16 or fp32"
        )


def encoder_and_classifier(trainer: Any) -> LinearCLIP:
    """The ``build_model`` of methods without a head or an adapter of their own."""
    return trainer.recipe.linear_clip(trainer.trains)


def classifier_loss(trainer: Any, image: Tensor, label: Tensor) -> StepOutput:
    """The ``forward_loss`` of most methods: cross entropy of images (B, 3, S, S), labels (B,).

    Cached features (B, D) may take the images' place.
    """
    logits = trainer.model.output(image).logits  # (B, K)
    return StepOutput(F.cross_entropy(logits, label), logits)
