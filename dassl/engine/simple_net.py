"""A backbone, an optional head, and a linear classifier."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.modeling import build_backbone, build_head

__all__ = ["SimpleNet"]


class SimpleNet(nn.Module):
    """The plain network of Dassl's trainers, built from ``cfg.MODEL``."""

    def __init__(self, cfg: CfgNode, model_cfg: CfgNode, num_classes: int, **kwargs: Any) -> None:
        """Build the parts.

        Args:
            cfg: Configuration.
            model_cfg: ``cfg.MODEL``, or a node like it.
            num_classes: Outputs; 0 for no classifier.
            **kwargs: For backbone and head.

        Raises:
            ValueError: An unknown name.
        """
        super().__init__()
        backbone, head = model_cfg.BACKBONE, model_cfg.HEAD
        self.backbone = build_backbone(
            backbone.NAME, verbose=cfg.VERBOSE, pretrained=backbone.PRETRAINED, **kwargs
        )
        self._fdim: int = self.backbone.out_features
        self.head: Any = None
        if head.NAME and head.HIDDEN_LAYERS:
            self.head = build_head(
                head.NAME,
                verbose=cfg.VERBOSE,
                in_features=self._fdim,
                hidden_layers=head.HIDDEN_LAYERS,
                activation=head.ACTIVATION,
                bn=head.BN,
                dropout=head.DROPOUT,
                **kwargs,
            )
            self._fdim = self.head.out_features
        self.classifier = nn.Linear(self._fdim, num_classes) if num_classes > 0 else None

    @property
    def fdim(self) -> int:
        """Width of the features, D."""
        return self._fdim

    def forward(self, x: Tensor, return_feature: bool = False) -> Any:
        """Classify images.

        Args:
            x: Images, (B, 3, height, width).
            return_feature: Return the features too.

        Returns:
            Logits (B, K), or logits and features (B, D); features alone without a classifier.
        """
        features = self.backbone(x)  # (B, D)
        if self.head is not None:
            features = self.head(features)
        if self.classifier is None:
            return features
        logits = self.classifier(features)  # (B, K)
        return (logits, features) if return_feature else logits
