"""CoOp: learned context words in front of class names.

"Learning to Prompt for Vision-Language Models", IJCV 2022, arXiv:2109.01134.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from clip import Backbone, ClassContextBank, TextBank, attach_context, freeze_except
from clip.adapters.coop import POSITIONS
from clip.prompts import readable
from dassl.config.schema import Option, one_of
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, PromptedCLIP, released
from trainers.base.options import context_words, precision, text_prompts


class ContextCLIP(PromptedCLIP):
    """CLIP whose prompts are a learned context and the class name.

    Args:
        backbone: With a context attached.
        classnames: K names.
    """

    def __init__(self, backbone: Backbone, classnames: list[str]) -> None:
        context: Any = backbone.text_prompts
        names = [[readable(name)] for name in classnames]
        super().__init__(backbone, names, renormalize=True)
        # The context puts itself around the names, which are all that the base class has tokenised.
        bank = ClassContextBank if context.per_class else TextBank
        self.bank = bank(names, partial(context.tokenize, backbone), backbone.end_of_text())
        self.bank.texts = [context.template.replace("{}", name) for [name] in names]
        context.check_texts(self.bank.tokens)


def first_words(options: CfgNode) -> dict[str, Any]:
    """Length and start of a context: of the words CTX_INIT, else of N_CTX random vectors."""
    init = options.CTX_INIT.replace("_", " ").strip()
    return {"init": init, "n_ctx": len(init.split()) or options.N_CTX}


def coop_clip(backbone: Backbone, classnames: list[str], options: CfgNode) -> ContextCLIP:
    """What the ``options`` of :class:`CoOp` describe.

    Raises:
        ValueError: CSC with words to start from.
    """
    if options.CSC and options.CTX_INIT:
        raise ValueError(
            f"CSC is True, but CTX_INIT {options.CTX_INIT!r} gives one context for all classes its "
            "words to start from; for a context per class, which starts at random, set CTX_INIT ''"
        )
    attach_context(
        backbone,
        **first_words(options),
        position=options.CLASS_TOKEN_POSITION,
        num_classes=len(classnames) if options.CSC else 0,
    )
    freeze_except(backbone)
    return ContextCLIP(backbone, classnames)


def context_loss(trainer: Any, image: Tensor, label: Tensor) -> StepOutput:
    """The ``forward_loss`` of plain cross entropy: images (B, 3, S, S), labels (B,).

    Cached features (B, D) may take the images' place.
    """
    model = trainer.model
    logits = model.similarity(*model.raw_features(image))  # (B, K)
    ce = F.cross_entropy(logits, label)
    return StepOutput(ce, logits, {"ce": ce})


@TRAINER_REGISTRY.register()
class CoOp(CLIPTrainer):
    """CoOp: cross entropy on CLIP's logits s f h^T, h_k of the text ``[context] name_k.``, learned.

    Config, ``TRAINER.CoOp``: the words of CTX_INIT set M by their number and leave their surplus
    tokens frozen; '' starts from N(0, 0.02). CLASS_TOKEN_POSITION middle is behind half of the
    context. CSC is for random starts only.
    The released weights for ImageNet were trained with older transforms than the release has now: a
    flip, a random translation and a crop of the centre.
    """

    model_name = "prompt_learner"  # the released checkpoints' folder
    frozen_image_encoder = True
    needs_text_tower = True
    released_in_half = True
    released_layout = released.coop
    forward_loss = context_loss
    defaults = {
        "N_CTX": text_prompts(16),
        "CTX_INIT": context_words(""),
        "CSC": Option(False, None, "a context per class"),
        "CLASS_TOKEN_POSITION": Option("end", one_of(*POSITIONS), "place of the class name"),
        "PREC": precision("amp"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone with a context, and the class names behind it."""
        return coop_clip(self.load_backbone(), self.dm.dataset.classnames, self.options)
