"""A trained run's classifier as one graph: image tensor -> logits and features.

Notation: B images, K classes, D embedding width, S their side in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from clip import Backbone
from clip.adapters.base import adapter_switches

__all__ = ["Classifier", "traced"]

# Images of a batch. No limit in practice, but PyTorch 2.6 does not take "any number" for a promise
# that a slice up to the last one, which it writes as the largest integer, holds all.
_MOST = 2**31 - 1


class Classifier(nn.Module):
    """What a trainer evaluates with, as a function of the images alone.

    It is :meth:`trainers.base.CLIPTrainer.model_inference`, which every method has, so that nothing
    here knows one method from another. The texts are no input: methods keep the class weights that
    they evaluate with, and what is kept when the graph is made becomes a constant of it.
    """

    def __init__(self, trainer: Any) -> None:
        super().__init__()
        # The model is no part of this module: so its weights are constants of the graph as the text
        # features are, those that images need and no others, and what Python asks of them
        # (whether a checkpoint has the run's classes) is answered once and for all.
        self._trainer = trainer

    @property
    def model(self) -> Any:
        """The trainer's model."""
        return self._trainer.model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and unit-norm image features (B, D) of normalised images (B, 3, S, S)."""
        with encoded_once(self.model.backbone):
            logits = self._trainer.model_inference(image)  # (B, K)
            return logits.float(), self.model.image_features(image).float()


@contextmanager
def encoded_once(backbone: Backbone) -> Iterator[None]:
    """Inside the block, the same images are encoded once for each state of the adapters' switches.

    Logits and features both need the image encoder, and a graph would hold it twice.
    """
    encode = backbone.encode_image
    kept: dict[Any, Tensor] = {}

    def once(images: Tensor) -> Tensor:
        key = id(images), adapter_switches(backbone)
        if key not in kept:
            kept[key] = encode(images)
        return kept[key]

    backbone.encode_image = once  # type: ignore[method-assign]
    try:
        yield
    finally:
        del backbone.encode_image  # the instance's; the class's is there again


def traced(classifier: Classifier, images: Tensor) -> ExportedProgram:
    """The graph of a classifier, for any number of images.

    Args:
        classifier: Its model in evaluation mode, nothing in it requiring a gradient.
        images: Two or more, to trace with, (B, 3, S, S).

    Raises:
        ValueError: The classifier is no such graph; the message has PyTorch's reason.
    """
    with torch.no_grad():
        classifier(images)  # what evaluation makes once and keeps must be there before the tracing
        try:
            # Not strict: the methods' Python runs as it is, whatever Dynamo makes of it.
            program = torch.export.export(
                classifier,
                (images,),
                dynamic_shapes=({0: Dim("batch", min=1, max=_MOST)},),
                strict=False,
            )
        except Exception as error:  # PyTorch raises many kinds, some with pages of advice
            said = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise ValueError(f"PyTorch cannot make one graph of it: {said}") from error
    # What was only asked for on the way, as types of tensors, PyTorch 2.6 could not read back.
    program.graph.eliminate_dead_code()
    return program
