"""The ablations of RAda's Table 4 (arXiv:2507.15480) that replace the mask's attention.

The paper names these variants and gives no formula for them; the forms here are ours, each as close
to the mask as its name allows: they start at zero too, so that training starts from CLIP.

Notation: B images, K classes, D embedding width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dassl.names import check_availability
from trainers.heads import HeadOutput, MaskHead, cosine_logits, zero_linear


class MLPMaskHead(MaskHead):
    """The mask from a perceptron, row by row: M = relu(1 + W2 relu(W1 s R)).

    Without attention, a class's mask does not depend on the other classes. Width D inside.
    """

    def __init__(self, embed_dim: int, regularizer: str = "l2") -> None:
        super().__init__(regularizer)
        self.inner = nn.Linear(embed_dim, embed_dim)
        self.out = zero_linear(embed_dim, embed_dim)

    def offset(self, image: Tensor, text: Tensor, rational: Tensor, scale: Tensor) -> Tensor:
        """See :meth:`MaskHead.offset`."""
        return self.out(F.relu(self.inner(rational)))


class FeatureAttentionHead(nn.Module):
    """Self-attention on the features instead of the rational matrix, added to them.

    h <- h + Attention(sqrt(s) h) over the K classes; f <- f + Attention(sqrt(s) f), where an image
    attends to itself alone, as a prediction must not depend on the other images of its batch (the
    paper trains with batch 1). There is no mask, hence no penalty. ``on`` is text, image or both.
    """

    def __init__(self, embed_dim: int, num_heads: int = 8, on: str = "both") -> None:
        super().__init__()
        check_availability(on, ("text", "image", "both"), "HEAD")
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"HEADS: the embedding width D = {embed_dim} is not divisible by {num_heads} heads"
            )
        self.attention = nn.ModuleDict()
        for side in ("text", "image") if on == "both" else (on,):
            attention = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
            nn.init.zeros_(attention.out_proj.weight)
            nn.init.zeros_(attention.out_proj.bias)
            self.attention[side] = attention

    def forward(self, image: Tensor, text: Tensor, scale: Tensor) -> HeadOutput:
        """See :meth:`trainers.heads.MaskHead.forward`."""
        root = scale.detach().sqrt()
        if "text" in self.attention:
            tokens = root * text[None]  # one sequence of K classes, (1, K, D)
            text = text + self.attention["text"](tokens, tokens, tokens, need_weights=False)[0][0]
        if "image" in self.attention:
            tokens = root * image[:, None]  # B sequences of one image, (B, 1, D)
            update = self.attention["image"](tokens, tokens, tokens, need_weights=False)[0]
            image = image + update[:, 0]
        return HeadOutput(cosine_logits(image, text, scale), image.new_zeros(()))
