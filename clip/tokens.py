"""Tokenize texts with open_clip's BPE or a hub tokenizer, and report texts that were cut.

N texts, T token positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

SHOWN = 100  # characters of a text that a message quotes


def count_tokens(tokenizer: Any, text: str) -> int:
    """How many positions a text needs, with its start and end tokens.

    open_clip's ``SimpleTokenizer`` adds both; the tokenizer inside an ``HFTokenizer`` adds what its
    model wants, SigLIP's only an end, BERT's both.
    """
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None:
        return len(tokenizer.encode(text)) + 2
    return len(inner(tokenizer.clean_fn(text), truncation=False, verbose=False)["input_ids"])


def tokenize(
    tokenizer: Callable[..., Tensor], texts: str | list[str], context_length: int, truncate: bool
) -> Tensor:
    """Token numbers of texts, (N, T); longer texts are cut before their end token, and counted.

    Raises:
        ValueError: ``truncate`` is false and a text does not fit; the error quotes the text.
    """
    texts = [texts] if isinstance(texts, str) else texts
    if not truncate:
        for text in texts:
            used = count_tokens(tokenizer, text)
            if used > context_length:
                raise ValueError(
                    f"Text needs {used} tokens, the model takes {context_length}: {_quoted(text)}. "
                    "Shorten it, or let truncate=True cut it"
                )
    tokens = tokenizer(texts, context_length=context_length)
    if truncate and (sentence := cuts(tokenizer, texts, tokens)):
        print(sentence)
    return tokens


def cuts(tokenizer: Any, texts: list[str], tokens: Tensor) -> str:
    """A sentence that counts the texts that were cut to tokens (N, T); empty if none was."""
    inner = getattr(tokenizer, "tokenizer", None)
    padding = 0 if inner is None else inner.pad_token_id
    # Only rows without padding can have been cut. The last position tells nothing: it is an end
    # token in every full row, and SigLIP pads with its end token.
    full = tokens[:, -2].ne(padding).nonzero().flatten().tolist()
    cut = [texts[i] for i in full if count_tokens(tokenizer, texts[i]) > tokens.shape[1]]
    if not cut:
        return ""
    return (
        f"{len(cut)} of {len(texts)} texts are longer than the model's {tokens.shape[1]} tokens "
        f"and were cut, first {_quoted(cut[0])}"
    )


def _quoted(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
