"""HPT in the form of its release; notation as in ``towers``, K classes, S descriptions a class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scripts.benchmarks.release_forms.step import Prompt, ReleaseStep, tokens_of
from scripts.benchmarks.release_forms.towers import overwrite, unit

HIERARCHY = "backbone.hierarchical_prompts"


class HPT(ReleaseStep):
    """Three cross entropies of two kinds of logits; the frozen image pass is made anew.

    Every text block gets a bias of its own for every text and head. What is frozen of the texts
    (their ties, the descriptions' states and features) is kept, as the trainer's.
    """

    def prepare(self, trainer: Any) -> None:
        """Embed all texts, and lay out their ties over the whole 77 positions."""
        model, tower = trainer.model, self.clip.text
        self.bank = model.structured
        # A generator in the same state draws the same texts.
        self.generator = torch.Generator()
        self.generator.set_state(model.generator.get_state())
        self.states = self.bank.states  # (K, J-1, S, W)
        self.prompt = Prompt(self.bank.texts, tower, len(self.learned[f"{HIERARCHY}.input"]))
        ties = self.bank.ties(torch.arange(len(self.bank)))
        room = len(tower.mask) - ties.entities.shape[-1]
        self.ties = [F.pad(kind, (0, room, 0, room)) for kind in ties]  # (K * S, 77, 77) each
        tokens = tokens_of(model.bank.texts, tower)  # of the descriptions, (K * S, 77)
        each = unit(tower.encode(tokens)).unflatten(0, (len(self.states), -1))  # (K, S, D)
        self.teacher = unit(each.mean(1))  # (K, D)

    def text_features(self) -> Tensor:
        """Features h of one text a class, (K, D)."""
        tower, learned = self.clip.text, self.learned
        index = self.bank.sample(self.generator).to(self.label.device)  # (K,)
        prompts = learned[f"{HIERARCHY}.input"].expand(len(index), -1, -1)
        parts = [self.prompt.prefix[index], prompts, self.prompt.suffix[index]]
        x = (torch.cat(parts, 1) + tower.positional_embedding).permute(1, 0, 2)  # (77, K, W)
        entities, attributes = (kind[index] for kind in self.ties)  # (K, 77, 77)
        blocks: Any = tower.transformer.resblocks
        for number, block in enumerate(blocks):
            if number > 0:
                x = overwrite(x, self.block_prompts(number), 1)
            bias = learned[f"{HIERARCHY}.entity_scale"][number] * entities
            bias = bias + learned[f"{HIERARCHY}.attribute_scale"][number] * attributes
            mask = (bias + tower.mask).repeat_interleave(block.attn.num_heads, 0)  # (K * H, 77, 77)
            x = block(x, mask)
        return unit(tower.pool(x, self.prompt.end[index]))

    def block_prompts(self, number: int) -> Tensor:
        """Global and high-level prompts of a block, (g + S, K, W)."""
        general = self.learned[f"{HIERARCHY}.general"][number - 1]  # (g, W)
        weight, bias = (self.learned[f"{HIERARCHY}.projector.{p}"] for p in ("weight", "bias"))
        z = self.states[:, number - 1]  # (K, S, W)
        high = (z + F.linear(z, weight, bias)).permute(1, 0, 2)  # (S, K, W)
        return torch.cat([general[:, None].expand(-1, len(z), -1), high])

    def loss(self) -> Tensor:
        """See :meth:`ReleaseStep.loss`."""
        sets = list(self.learned["backbone.vision_prompts.vectors"])
        with torch.no_grad():
            f0 = unit(self.clip.visual(self.image))
        by_text = self.clip.logits(f0, self.text_features())
        by_image = self.clip.logits(unit(self.clip.visual(self.image, sets)), self.teacher)
        kinds = ((by_image + by_text) / 2, by_image, by_text)
        return sum((F.cross_entropy(one, self.label) for one in kinds), by_text.new_zeros(()))
