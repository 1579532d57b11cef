"""Methods that other people's trainers override without calling ours, and what must follow them.

``train``, ``test`` and ``load_model`` of every subclass are wrapped when the class is made, so that
a run ends with its result whatever their bodies do, and whoever calls them. If an override calls
its parent's method, only the outermost call counts.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from dassl.engine.distributed import own_test
from dassl.errors import TEST_MEMORY, TRAINING_MEMORY, less_memory
from dassl.evaluation.record import recorded_evaluations
from dassl.utils.distributed import world_size

__all__ = ["wrap_overrides"]

_Class = TypeVar("_Class", bound=type)
_Method = Callable[..., Any]
_MARK = "_followed_up"  # on a wrapped method, which subclasses inherit and must not wrap again


def wrap_overrides(cls: _Class) -> _Class:
    """Wrap a new class's ``train``, ``test`` and ``load_model``, its own or those of a mixin."""
    for name, wrap in (("train", _train), ("test", _test), ("load_model", _load_model)):
        method: Any = getattr(cls, name)
        if not hasattr(method, _MARK):
            wrapped: Any = wrap(method)
            setattr(wrapped, _MARK, True)
            setattr(cls, name, wrapped)
    return cls


def _train(train: _Method) -> _Method:
    """Write the run's result after training, unless the trainer has done so."""

    @functools.wraps(train)
    def train_and_finish(self: Any, *args: Any, **kwargs: Any) -> Any:
        record = self.record
        if record.training:  # an override has called its parent's
            return train(self, *args, **kwargs)
        record.training = True
        try:
            with less_memory(TRAINING_MEMORY):
                returned = train(self, *args, **kwargs)
        finally:
            record.training = False
        record.finish_train(type(self).__name__)
        return returned

    return train_and_finish


def _test(test: _Method) -> _Method:
    """Record a test's outcome: what its evaluator found, otherwise what it returned."""

    @functools.wraps(test)
    def test_and_record(self: Any, *args: Any, **kwargs: Any) -> Any:
        record = self.record
        if record.testing:  # an override has called its parent's
            return test(self, *args, **kwargs)
        self.readings.read()  # a bad loss is reported instead of the accuracy that it led to
        record.testing = True
        record.predictions = None  # those of an earlier test
        started = time.time()
        try:
            with less_memory(TEST_MEMORY), recorded_evaluations() as evaluations:
                returned = test(self, *args, **kwargs)
        finally:
            record.testing = False
            for end in record.at_test_end:
                end()
        # A trainer's own test has only seen this process's share of the images.
        if world_size() > 1 and not self._gathered:
            raise own_test(self.cfg)
        self._gathered = False
        record.finish_test(
            f"{type(self).__name__}.test()",
            record.split_tested(args[0] if args else kwargs.get("split")),
            returned,
            evaluations,
            time.time() - started,
        )
        return returned

    return test_and_record


def _load_model(load_model: _Method) -> _Method:
    """Note what was loaded, unless the trainer has done so."""

    @functools.wraps(load_model)
    def load_and_note(self: Any, *args: Any, **kwargs: Any) -> Any:
        identity = self.identity
        before = identity.loaded_from  # every load makes a new tuple, hence compared by `is`
        returned = load_model(self, *args, **kwargs)
        directory = args[0] if args else kwargs.get("directory")
        epoch = args[1] if len(args) > 1 else kwargs.get("epoch")
        if directory and not self.record.training and identity.loaded_from is before:
            identity.loaded_from = (os.fspath(directory), epoch)
        return returned

    return load_and_note
