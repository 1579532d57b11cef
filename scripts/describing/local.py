"""A language model that transformers runs in this process: --local of scripts/describe.py.

It is kept beside the endpoints because it needs no server and no further package, and because a
seed makes its answers reproducible, which the servers do not promise.
"""

from __future__ import annotations

import sys
from typing import Any

from scripts.describing.text import Messages, ModelError

NO_ROOM = 32  # a model is asked only if its context has room for that many new tokens


class LocalModel:
    """A causal language model.

    Args:
        name: Directory, or id on the hub.
        device: auto, cpu, cuda, cuda:N or mps.
        temperature: Of the sampling.
        seed: Of the sampling.
        new_tokens: Longest answer, in tokens.
    """

    def __init__(
        self,
        name: str,
        *,
        device: str = "auto",
        temperature: float = 0.7,
        seed: int = 1,
        new_tokens: int = 400,
    ) -> None:
        # Imported only here, because an endpoint needs neither.
        import torch

        from dassl.config import get_cfg_default
        from dassl.engine.device import resolve_device

        cfg = get_cfg_default()
        cfg.DEVICE = device
        self.device = resolve_device(cfg)
        self.tokenizer, self.model = _load_local(name)
        self.model.to(self.device).eval()
        self.name, self.temperature, self.new_tokens = name, temperature, new_tokens
        self.requests = 0
        torch.manual_seed(seed)

    def __call__(self, messages: Messages) -> str:
        """Return the answer's text; a ModelError if the model's context has no room for one."""
        import torch

        self.requests += 1
        text, start = self._text(messages)
        tokens = self.tokenizer(text, return_tensors="pt", add_special_tokens=bool(start))
        inputs = {k: tokens[k].to(self.device) for k in ("input_ids", "attention_mask")}
        length = inputs["input_ids"].shape[1]  # input_ids: (1, length)
        context = getattr(self.model.config, "max_position_embeddings", None) or sys.maxsize
        room = min(self.new_tokens, context - length)
        if room < NO_ROOM:
            raise ModelError(
                f"--local {self.name}: its context of {context} tokens has no room for an answer "
                f"to a request of {length}"
            )
        end = self.tokenizer.eos_token_id
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                do_sample=True,
                temperature=self.temperature,
                max_new_tokens=room,
                pad_token_id=self.tokenizer.pad_token_id if end is None else end,
            )
        return start + self.tokenizer.decode(output[0, length:], skip_special_tokens=True)

    def _text(self, messages: Messages) -> tuple[str, str]:
        """Return the text to continue, and the end of it that already belongs to the answer."""
        if self.tokenizer.chat_template:
            chat = self.tokenizer.apply_chat_template
            return chat(messages, tokenize=False, add_generation_prompt=True), ""
        # A base model is not trained on conversations, but it continues a list once begun.
        start = '["'
        return "\n\n".join([*(m["content"] for m in messages), start]), start


def _load_local(name: str) -> tuple[Any, Any]:
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ModelError(f"--local needs the package transformers: {error}") from error
    try:
        return AutoTokenizer.from_pretrained(name), AutoModelForCausalLM.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"--local {name}: no model there that can be read ({lines[0]}). It names a directory "
            "with a causal language model of transformers, or one on the hub"
        ) from error
