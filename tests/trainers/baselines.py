"""What tests of the baselines share: small runs on Shapes, plain towers, released files, rates."""

from pathlib import Path

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from dassl.optim import build_lr_scheduler
from tests.trainers import plain


def uncut_text(model, embeddings: Tensor, end: Tensor) -> Tensor:
    """An open_clip text tower over all 77 positions, from embeddings: not normalised, (N, D)."""
    x = model.transformer(embeddings + model.positional_embedding, attn_mask=model.attn_mask)
    return model.ln_final(x)[range(len(x)), end] @ model.text_projection


def around_names(model, names: list[str], n_ctx: int, context: Tensor, position="end") -> Tensor:
    """CoOp's prompts put together piece by piece, as in its release: text features (K, D).

    Args:
        model: open_clip's, without learned prompts.
        names: K class names.
        n_ctx: n.
        context: (n, W), or (K, n, W).
        position: Of the name.
    """
    encode = open_clip.tokenizer._tokenizer.encode
    tokens = open_clip.tokenize([" ".join(["X"] * n_ctx) + f" {name}." for name in names])
    embedded = F.embedding(tokens, model.token_embedding.weight)
    rows = []
    for i, name in enumerate(names):
        ctx = context if context.ndim == 2 else context[i]
        start, rest = embedded[i, :1], embedded[i, 1 + n_ctx :]
        length = len(encode(name))
        if position == "end":
            pieces = [start, ctx, rest]
        elif position == "middle":
            half = n_ctx // 2
            pieces = [start, ctx[:half], rest[:length], ctx[half:], rest[length:]]
        else:
            pieces = [start, rest[:length], ctx, rest[length:]]
        rows.append(torch.cat(pieces))
    return uncut_text(model, torch.stack(rows), tokens.argmax(-1))


def write_released(folder: Path, name: str, state: dict[str, Tensor], epoch: int) -> str:
    """:func:`tests.trainers.plain.write_released` of half-precision weights."""
    half = {key: value.half() for key, value in state.items()}
    return plain.write_released(folder, name, half, epoch)


def epoch_rates(cfg) -> list[float]:
    """Learning rate in every epoch of a config."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], cfg.OPTIM.LR)
    schedule = build_lr_scheduler(optimizer, cfg.OPTIM)
    rates = []
    for _ in range(cfg.OPTIM.MAX_EPOCH):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def assert_sgd(cfg) -> None:
    """The optimiser of the Dassl family."""
    optim = cfg.OPTIM
    assert (optim.NAME, optim.MOMENTUM, optim.WEIGHT_DECAY) == ("sgd", 0.9, 5e-4)
    assert (optim.SGD_NESTEROV, optim.SGD_DAMPNING) == (False, 0)
