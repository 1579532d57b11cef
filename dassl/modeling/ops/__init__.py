"""Operations on features and labels that trainers share."""

from dassl.modeling.ops.mixup import mixup
from dassl.modeling.ops.reverse_grad import ReverseGrad
from dassl.modeling.ops.utils import (
    create_onehot,
    ema_model_update,
    linear_rampup,
    reverse_index,
    sharpen_prob,
    shuffle_index,
    sigmoid_rampup,
)

__all__ = [
    "ReverseGrad",
    "create_onehot",
    "ema_model_update",
    "linear_rampup",
    "mixup",
    "reverse_index",
    "sharpen_prob",
    "shuffle_index",
    "sigmoid_rampup",
]
