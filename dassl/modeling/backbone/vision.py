"""torchvision's classifiers without their last layer, under Dassl's names."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models import get_model

from dassl.modeling.backbone.backbone import Backbone
from dassl.modeling.backbone.build import BACKBONE_REGISTRY

__all__ = ["VisionBackbone"]

# Name of the model, path of its classifier.
_CLASSIFIERS = {
    "resnet18": "fc",
    "resnet34": "fc",
    "resnet50": "fc",
    "resnet101": "fc",
    "resnet152": "fc",
    "wide_resnet50_2": "fc",
    "alexnet": "classifier.6",
    "vgg16": "classifier.6",
    "mobilenet_v2": "classifier",
    "vit_b_16": "heads",
}


class VisionBackbone(Backbone):
    """A model of torchvision up to the input of its last linear layer."""

    def __init__(self, name: str, classifier: str, pretrained: bool) -> None:
        """Build torchvision's model ``name`` without the submodule at the path ``classifier``."""
        super().__init__()
        self.model = get_model(name, weights="IMAGENET1K_V1" if pretrained else None)
        # The classifier may hold several layers; the last one with weights is the linear one.
        last = [m for m in self.model.get_submodule(classifier).modules() if hasattr(m, "weight")]
        self._out_features = last[-1].in_features
        parent, _, child = classifier.rpartition(".")
        setattr(self.model.get_submodule(parent), child, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Return features, (B, out_features)."""
        return self.model(x)


def _register(name: str, classifier: str) -> None:
    def build(pretrained: bool = True, **kwargs: Any) -> VisionBackbone:
        return VisionBackbone(name, classifier, pretrained)

    BACKBONE_REGISTRY.register(name, build)


for _name, _classifier in _CLASSIFIERS.items():
    _register(_name, _classifier)
