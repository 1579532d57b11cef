"""CoOp: learned context words in front of class names.

"Learning to Prompt for Vision-Language Models", IJCV 2022, arXiv:2109.01134.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

import clip
from clip import ClassContextBank, TextBank, attach_context, freeze_except
from clip.adapters.coop import POSITIONS
from clip.prompts import readable
from dassl.config.schema import Option, one_of
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, PromptedCLIP
from trainers.base.options import context_words, precision, text_prompts

ADAPTER = "backbone.text_prompts"  # where the context is in the model


class ContextCLIP(PromptedCLIP):
    """CLIP whose prompts are a learned context and the class name.

    Args:
        backbone: With a context attached.
        classnames: K names.
    """

    def __init__(self, backbone: clip.Backbone, classnames: list[str]) -> None:
        context: Any = backbone.text_prompts
        names = [[readable(name)] for name in classnames]
        super().__init__(backbone, names, renormalize=True)
        bank = ClassContextBank if context.per_class else TextBank
        self.bank = bank(names, partial(context.tokenize, backbone), backbone.end_of_text())
        self.bank.texts = [context.template.replace("{}", name) for [name] in names]
        context.check_texts(self.bank.tokens)


def context_backbone(trainer: CLIPTrainer, **context: Any) -> clip.Backbone:
    """The frozen backbone with a context, ``context`` as :func:`clip.attach_context` takes it."""
    backbone = trainer.load_backbone()
    attach_context(backbone, **context)
    freeze_except(backbone)
    return backbone


def first_words(options: CfgNode) -> dict[str, Any]:
    """Length and start of a context: of the words CTX_INIT, else of N_CTX random vectors."""
    init = options.CTX_INIT.replace("_", " ").strip()
    return {"init": init, "n_ctx": len(init.split()) or options.N_CTX}


def coop_clip(trainer: CLIPTrainer, options: CfgNode) -> ContextCLIP:
    """What the ``options`` of :class:`CoOp` describe.

    Raises:
        ValueError: CSC with words to start from.
    """
    if options.CSC and options.CTX_INIT:
        raise ValueError(
            f"CSC is True, but CTX_INIT {options.CTX_INIT!r} gives one context for all classes its "
            "words to start from; for a context per class, which starts at random, set CTX_INIT ''"
        )
    backbone = context_backbone(
        trainer,
        **first_words(options),
        position=options.CLASS_TOKEN_POSITION,
        num_classes=trainer.num_classes if options.CSC else 0,
    )
    return ContextCLIP(backbone, trainer.dm.dataset.classnames)


def released_context(
    state: dict[str, Tensor], model: nn.Module, method: str, ignored: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Translate a released prompt learner's keys: ``ctx``, and ``meta_net.*`` where there is one.

    ``token_prefix`` and ``token_suffix`` belong to the class names of training and are dropped.

    Args:
        state: Of a checkpoint; returned as it is if it has no ``ctx``.
        model: Gets the weights.
        method: Section of the config, for the message.
        ignored: Further keys without use.

    Raises:
        ValueError: The context has another length.
    """
    if "ctx" not in state:
        return state
    drop = {"token_prefix", "token_suffix", *ignored}
    converted = {f"{ADAPTER}.{k}": v for k, v in state.items() if k not in {"ctx", *drop}}
    context = state["ctx"] if state["ctx"].ndim == 3 else state["ctx"][None]
    own = model.get_parameter(f"{ADAPTER}.vectors")
    if context.shape[1] != own.shape[1]:
        raise ValueError(
            f"The checkpoint's context has {context.shape[1]} vectors, the model's {own.shape[1]}: "
            f"set TRAINER.{method}.N_CTX {context.shape[1]} and TRAINER.{method}.CTX_INIT '', or a "
            "phrase of as many words"
        )
    return {**converted, f"{ADAPTER}.vectors": context}


class ContextTrainer(CLIPTrainer):
    """Base of the methods that learn a context; their loss is the cross entropy, if not another."""

    model_name = "prompt_learner"  # the released checkpoints' folder
    frozen_image_encoder = True
    released_in_half = True

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S) or cached features (B, D), labels (B,)."""
        logits = self.model.similarity(*self.model.features(image))
        ce = F.cross_entropy(logits, label)
        return StepOutput(ce, logits, {"ce": ce})

    def convert_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Accept the released layout, see :func:`released_context`."""
        return released_context(state_dict, self.model, type(self).__name__)


@TRAINER_REGISTRY.register()
class CoOp(ContextTrainer):
    """CoOp: cross entropy on CLIP's logits s f h^T, h_k of the text ``[context] name_k.``, learned.

    Config, ``TRAINER.CoOp``: N_CTX, M; CTX_INIT, words to start from, which set M by their number
    and leave their surplus tokens frozen, '' for N(0, 0.02); CLASS_TOKEN_POSITION, end, middle
    (behind half of the context) or front; CSC, a context per class, for random starts only; PREC.
    The released weights for ImageNet were trained with older transforms than the release has now: a
    flip, a random translation and a crop of the centre.
    """

    defaults = {
        "N_CTX": text_prompts(16),
        "CTX_INIT": context_words(""),
        "CSC": Option(False, None, "a context per class"),
        "CLASS_TOKEN_POSITION": Option("end", one_of(*POSITIONS), "place of the class name"),
        "PREC": precision("amp"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone with a context, and the class names behind it."""
        return coop_clip(self, self.options)
