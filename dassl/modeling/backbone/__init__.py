"""Feature extractors: base class, registry, torchvision's."""

from dassl.modeling.backbone import vision  # noqa: F401 - registers torchvision's
from dassl.modeling.backbone.backbone import Backbone
from dassl.modeling.backbone.build import BACKBONE_REGISTRY, build_backbone

__all__ = ["BACKBONE_REGISTRY", "Backbone", "build_backbone"]
