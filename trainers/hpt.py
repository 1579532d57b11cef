"""HPT: hierarchical prompts from class descriptions and their structure.

"Learning Hierarchical Prompt with Structured Linguistic Knowledge for Vision-Language Models",
AAAI 2024, arXiv:2312.06323.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import clip
from clip import attach_vision_prompts, freeze_except
from clip.adapters.hpt import StructuredBank, attach_hierarchical_prompts, end_states
from clip.prompts import readable
from dassl.config.schema import PATH, Option, count
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, FrozenTextCLIP, released
from trainers.base.hpt_files import class_descriptions, class_structures
from trainers.base.options import MANY, precision, text_prompts, vision_prompts
from trainers.heads import cosine_logits


class HPTCLIP(FrozenTextCLIP):
    """CLIP with prompts in both towers; each prompted tower is compared with the other frozen one.

    Its own bank holds the descriptions, whose frozen features are h0; h is made of ``structured``.
    """

    def __init__(
        self,
        backbone: clip.Backbone,
        descriptions: list[list[str]],
        structured: StructuredBank,
        generator: torch.Generator,
    ) -> None:
        super().__init__(backbone, descriptions, renormalize=True)
        self.structured = structured
        self.generator = generator

    def drawn_text(self) -> Tensor:
        """Unit-norm features h of one text per class, drawn anew, (K, D)."""
        return self.structured.encode(self.backbone, self.structured.sample(self.generator))

    def both_logits(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """The image tower's logits s f h0^T and the text tower's s f0 h^T, (B, K) each.

        ``text`` is h, unit norm, (K, D).
        """
        by_image = cosine_logits(self.image_features(image), self.class_weights(), self.scale)
        return by_image, cosine_logits(self.frozen_image_features(image), text, self.scale)

    def forward(self, image: Tensor) -> Tensor:
        """Logits for evaluation, their mean, with all texts of each class: -> (B, K)."""
        text = F.normalize(self.structured.class_features(self.backbone), dim=-1)  # (K, D)
        by_image, by_text = self.both_logits(image, text)
        return (by_image + by_text) / 2


@TRAINER_REGISTRY.register()
class HPT(CLIPTrainer):
    """Learned, class-wise and structural knowledge in the text tower, deep prompts in the other.

    See :class:`clip.adapters.hpt.HierarchicalPrompts`. With f, h of the prompted towers and f0, h0
    of the frozen ones (h0 the normalised mean over the class's descriptions):
    logits_i = s f h0^T, logits_t = s f0 h^T, logits = their mean, and the loss is
    CE(logits) + CE(logits_i) + CE(logits_t); f and h never meet. Each step draws one text per
    class, evaluation encodes all of them once (the release for every batch).

    Config, ``TRAINER.HPT``: DESCRIPTIONS and STRUCTURES are files per dataset, ``{}`` being its
    name: ``{class: [sentence, ...]}`` and what :mod:`clip.adapters.hpt_structures` describes.
    ImageNet's serve its variants. A class with fewer than N_SET repeats them, one with more leaves
    some out.

    Not in the release: without a file of descriptions, the dataset's own prompts take their place
    (``DATASET.PROMPT_SOURCE``); without structures, a text is the class name and a description, and
    no tokens are tied. The log names the files that were read.
    """

    needs_transformers = True
    released_in_half = True
    protocols = ("base2novel", "cross_dataset")
    model_name = "Model"  # the released checkpoints' folder
    released_layout = released.hpt
    defaults = {
        "N_SET": Option(5, count(1, MANY), "descriptions and texts per class"),
        "N_TPRO": text_prompts(2),
        "N_VPRO": vision_prompts(2),
        "DESCRIPTIONS": Option(
            "prompts/hpt/descriptions/{}.json", PATH, "descriptions of the dataset {}"
        ),
        "STRUCTURES": Option(
            "prompts/hpt/structures/{}.json", PATH, "their structures; '' ties nothing"
        ),
        "PREC": precision("amp"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone with prompts in both towers, and two banks of texts."""
        options = self.options
        descriptions, structures = class_descriptions(self), class_structures(self)
        backbone = self.load_backbone()
        prompts = attach_hierarchical_prompts(
            backbone, general=options.N_TPRO, descriptions=options.N_SET
        )
        blocks = len(backbone.vision_transformer.resblocks)
        attach_vision_prompts(backbone, n_ctx=options.N_VPRO, depth=blocks)
        freeze_except(backbone)
        names = self.dm.dataset.classnames
        bank = backbone.text_bank(descriptions)
        # z of the K classes' S descriptions behind each block but the last, (K, S, J-1, W).
        states = end_states(backbone, bank).unflatten(0, (len(names), prompts.descriptions))
        texts = [
            [one.text(name) for one in structures[k]]
            if structures
            else [f"{readable(name)}. {sentence}" for sentence in descriptions[k]]
            for k, name in enumerate(names)
        ]
        structured = StructuredBank(backbone, texts, structures, states.transpose(1, 2))
        return HPTCLIP(backbone, descriptions, structured, self.register_generator("structures"))

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S), labels (B,)."""
        by_image, by_text = self.model.both_logits(image, self.model.drawn_text())  # (B, K)
        logits = (by_image + by_text) / 2
        kinds = {"ce": logits, "image": by_image, "text": by_text}
        parts = {kind: F.cross_entropy(one, label) for kind, one in kinds.items()}
        return StepOutput(parts["ce"] + parts["image"] + parts["text"], logits, parts)
