"""Full fine-tuning: what its methods share, and the plain ones.

Notation: B images, K classes, D embedding width; W the classifier, s the scale of the logits. One
loop, the engine's; a method is what trains and its loss.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

import clip
from clip.prompts import ensemble_prompts, match_key, template_prompts
from dassl.engine import TRAINER_REGISTRY, StepOutput
from dassl.engine.checkpoint import checkpoint_path, read_checkpoint
from trainers.base import CLIPTrainer
from trainers.base.class_rows import ClassRows, class_rows
from trainers.base.options import templates, weight
from trainers.finetuning.linear_clip import LinearCLIP
from trainers.finetuning.stages import FirstStageError, read_stage


class FineTuner(CLIPTrainer):
    """Base of the methods with a classifier W; cross entropy unless a method has another loss.

    A method names what ``trains``, and overrides at most ``build_head`` (what makes logits of f and
    W), ``build_adapter`` (what f goes through), ``forward_loss``, and ``first_stage`` (what it
    takes from the run that it starts from).

    W starts as the text features of the classes, for each the normalised mean over ``TEMPLATES``
    prompts: 80 or 7, open_clip's ImageNet ensembles, and a template that the user chose
    (``DATASET.PROMPT_TEMPLATE``). A two-stage method starts from a run of another trainer, whose
    directory is FIRST_STAGE.DIR (FIRST_STAGE.EPOCH 0 is its last epoch).

    What was trained is evaluated on datasets with the same classes or some of them, by name; a
    classifier over ImageNet's also on its shifts, see
    :meth:`trainers.base.CLIPTrainer.model_inference`.
    """

    protocols = ("fft",)
    defaults: ClassVar[dict[str, Any]] = {"TEMPLATES": templates(80)}
    # Which of finetuning_model.PARTS train.
    trains: ClassVar[tuple[str, ...]] = ("encoder", "classifier")
    # Trainers whose runs training may start from; none: the pre-trained model is all it needs.
    first_stages: ClassVar[tuple[str, ...]] = ()

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse what the method cannot work with."""
        super().check_cfg(cfg)
        refuse_half_weights(cfg, type(self).__name__, "encoder" in self.trains)

    def build_model(self) -> nn.Module:
        """The pre-trained encoder, W, and the method's head and adapter."""
        backbone = self.load_backbone()
        self.classes = list(self.dm.dataset.classnames)
        model = LinearCLIP(
            backbone,
            len(self.classes),
            lambda: self.ensemble_weights(backbone),
            head=self.build_head(backbone.embed_dim),
            adapter=self.build_adapter(backbone.embed_dim),
        )
        model.train_only(self.parts())
        return model

    def parts(self) -> tuple[str, ...]:
        """What trains in this run."""
        return self.trains

    def build_head(self, embed_dim: int) -> nn.Module | None:
        """What makes logits of features of width D and W; by default CLIP's cosine."""
        return None

    def build_adapter(self, embed_dim: int) -> nn.Module | None:
        """What is applied to image features of width D; by default nothing."""
        return None

    def ensemble_weights(self, backbone: clip.Backbone) -> Tensor:
        """Unit-norm text features of the classes from the prompt ensemble, (K, D)."""
        prompts = self.ensemble(self.classes, self.options.TEMPLATES)
        bank = backbone.text_bank(prompts)
        return F.normalize(bank.to(self.device).class_features(backbone), dim=-1)

    def text_bank(self) -> clip.TextBank:
        """One text of each class that W starts from; all of them are not needed yet."""
        backbone, chosen = self.model.backbone, self.template("")
        prompts = (
            template_prompts(self.classes, chosen)
            if chosen
            else [texts[:1] for texts in ensemble_prompts(self.classes, self.options.TEMPLATES)]
        )
        return backbone.text_bank(prompts)

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """Cross entropy: images (B, 3, S, S) or cached features (B, D), labels (B,)."""
        logits = self.model.output(image).logits
        return StepOutput(F.cross_entropy(logits, label), logits)

    def before_train(self) -> None:
        """Start from the first stage, if there is one, or from where an earlier process stopped."""
        self.model.class_weights()  # W is made before anything of it is loaded
        if self.first_stages:
            with self.identity.reading_weights():
                self.model.load_state_dict(self.first_stage(), strict=False)
        super().before_train()

    def first_stage(self) -> dict[str, Tensor]:
        """The weights of the run in FIRST_STAGE.DIR.

        Raises:
            FirstStageError: There is none, or it does not fit.
        """
        stage = self.cfg.FIRST_STAGE
        if not stage.DIR:
            methods = " or ".join(self.first_stages)
            first = stage.CONFIG or f"{self.first_stages[0]}/fft"
            raise FirstStageError(
                f"{type(self).__name__} starts from a finished run of {methods}, but "
                f"FIRST_STAGE.DIR is empty: train with configs/trainers/{first}.yaml and set it "
                "to the directory of that run, or let bash run_fft.sh do both"
            )
        meta = self.checkpoint_meta()
        return read_stage(stage.DIR, stage.EPOCH, self.first_stages, self.model, meta)

    def rows_by_class(self) -> ClassRows:
        """W has a row for each of its classes, which may be more than the dataset's."""
        return dataclasses.replace(
            super().rows_by_class(),
            keys=["classifier"],
            classes=self.classes,
            remedy="a method with a text encoder",
        )

    def load_model(
        self, directory: str | os.PathLike[str] | None, epoch: int | None = None
    ) -> None:
        """Load weights, for the classes they were trained on or some of these.

        Args:
            directory: Run directory; empty or None does nothing.
            epoch: Number of epochs; None takes the best on the validation images, else the last.

        Raises:
            FileNotFoundError: A file is not there.
            ValueError: It does not fit, or the checkpoint lacks a class of the dataset.
        """
        if directory:
            name = self.model_name or type(self).__name__
            path = checkpoint_path(directory, name, epoch)
            saved = (read_checkpoint(path, {}).get("meta") or {}).get("classnames")
            if saved and list(saved) != self.classes:
                self.take_classes(list(saved))
        super().load_model(directory, epoch)

    def take_classes(self, classes: Sequence[str]) -> None:
        """Make W a classifier over other classes, which include the dataset's.

        Raises:
            ValueError: They do not include all of the dataset's.
        """
        dataset, model = self.dm.dataset, self.model
        # Over ImageNet's classes its shifts are evaluated by label, see model_inference: names do
        # not tell, since one class of a shift may stand for several labels.
        if [match_key(n) for n in dataset.imagenet_names] != [match_key(n) for n in classes]:
            rows = class_rows(dataset.classnames, classes)
            absent = [n for n, row in zip(dataset.classnames, rows, strict=True) if row is None]
            if absent:
                raise ValueError(
                    f"{len(absent)} of the {len(rows)} classes of {self.cfg.DATASET.NAME} are none "
                    f"of the {len(classes)} that the classifier was trained on: "
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


@TRAINER_REGISTRY.register()
class LP(FineTuner):
    """Linear probe: W trains, the encoder does not."""

    trains = ("classifier",)
    frozen_image_encoder = True


@TRAINER_REGISTRY.register()
class FT(FineTuner):
    """Fine-tuning of encoder and W."""


@TRAINER_REGISTRY.register()
class LPFT(FineTuner):
    """Fine-tuning from a linear probe (Kumar et al., ICLR 2022, arXiv:2202.10054)."""

    first_stages = ("LP",)


@TRAINER_REGISTRY.register()
class L2SP(FineTuner):
    """Fine-tuning held near its starting point (Li et al., ICML 2018, arXiv:1802.01483).

    ``loss = CE + BETA / 2 * sum (theta - theta_0)^2`` over encoder and W, both of which have a
    starting point here. It stands in for weight decay, whose point is zero.
    """

    defaults: ClassVar[dict[str, Any]] = {
        **FineTuner.defaults,
        "BETA": weight(0.01, "half the squared distance to the start"),
    }
    _start: list[Tensor] | None = None

    def start(self) -> list[Tensor]:
        """theta_0, what the parameters were when this was first called."""
        if self._start is None:
            self.model.class_weights()
            self._start = [p.detach().clone() for p in self.model.parameters() if p.requires_grad]
        return self._start

    def before_train(self) -> None:
        """Remember the starting point, even if an earlier process went on from there."""
        self.start()
        super().before_train()

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S), labels (B,)."""
        start = self.start()
        out = super().forward_loss(image, label)
        now = [p for p in self.model.parameters() if p.requires_grad]
        moved = [(p - p0).square().sum() for p, p0 in zip(now, start, strict=True)]
        penalty = 0.5 * self.options.BETA * sum(moved, out.loss.new_zeros(()))
        return StepOutput(out.loss + penalty, out.logits, {"ce": out.loss, "l2sp": penalty})
