"""TRAIN.COMPILE: the parts of a model that say so run as ``torch.compile`` makes them.

Modules keep their classes, names and state dicts: what is compiled are functions that a module
calls. A module with such functions has a method ``compile_parts(compiler)`` that replaces them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["Compiler", "compile_model"]

# Forms of one function: of both towers, with and without gradients, adapters switched on and off.
# PyTorch's limit, 8, is for functions that a model has to itself.
FORMS = 64


class Compiler:
    """Compiles functions; as soon as one cannot be, all of them run as they were written.

    Args:
        notes: Gets the remark, see `dassl.engine.record.Notes`.
        backend: Of ``torch.compile``.
    """

    def __init__(self, notes: Any, backend: str = "inductor") -> None:
        # Here: it takes a second, and not every version of PyTorch imports it anyway.
        import torch._dynamo

        self.failed = False
        self._notes, self._backend = notes, backend
        self._done: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._errors = torch._dynamo.exc.TorchDynamoException
        torch._dynamo.config.cache_size_limit = FORMS  # newer ones call it recompile_limit, too

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the compiled function, which takes positional arguments."""
        if function not in self._done:
            self._done[function] = self._compile(function)
        return self._done[function]

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        # Whole or not at all: pieces of a graph would cost what compiling is to save.
        compiled = torch.compile(function, fullgraph=True, backend=self._backend)

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            if self.failed:
                return function(*args)
            try:
                return compiled(*args)
            except self._errors as error:
                result = function(*args)  # a mistake in the arguments is raised from here
                self.failed = True
                # The first line names the backend, the second the reason; a long story follows.
                reason = " ".join(str(error).strip().splitlines()[:2]) or type(error).__name__
                self._notes.add(f"TRAIN.COMPILE: not compiled, as PyTorch cannot: {reason}")
                return result

        return call


def compile_model(model: nn.Module, notes: Any) -> None:
    """Compile the parts of a model that have something to be compiled.

    Nothing is compiled before it is called for the first time.
    """
    parts: list[Any] = [m for m in model.modules() if callable(getattr(m, "compile_parts", None))]
    if not parts:
        notes.add("TRAIN.COMPILE has no effect: nothing in this model can be compiled")
        return
    compiler = Compiler(notes)
    for part in parts:
        part.compile_parts(compiler)
