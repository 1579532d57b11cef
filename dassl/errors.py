"""How a program ends: outside causes in one line, mistakes in its own code with a traceback.

Wrong input, a full disk, missing memory, a lost worker process or Ctrl-C need no traceback: the
line says what was wrong and what helps. A KeyError or TypeError is a mistake in the code and keeps
its traceback. Nothing here imports PyTorch, so that scripts which start at once can use it.
"""

from __future__ import annotations

import builtins
import errno
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, NamedTuple, TypeVar

__all__ = [
    "DEBUG_VARIABLE",
    "EPISODE_MEMORY",
    "INTERRUPTED",
    "TEST_MEMORY",
    "TRAINING_MEMORY",
    "VIEWS_MEMORY",
    "Ending",
    "ending",
    "less_memory",
    "plain_errors",
    "plain_main",
]

DEBUG_VARIABLE = "DEBUG_ERRORS"  # set to 1, every program shows where an error came from
INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended
_CLOSED_PIPE = 141  # and of one whose reader has gone
_TURN = 10.0  # seconds that other processes of a run wait for the first one's message

Main = TypeVar("Main", bound=Callable[..., int])

_OUTSIDE = (ValueError, OSError, FloatingPointError, MemoryError)
_MEMORY = (
    "lower DATALOADER.TRAIN_X.BATCH_SIZE or DATALOADER.TEST.BATCH_SIZE, raise OPTIM.ACCUMULATE, "
    "lower TRAIN.KEPT_TOKENS (4096), set TRAIN.GRAD_CHECKPOINTING True, or, for test-time "
    "training, lower TRAINER.<name>.ENCODER_BATCH and BATCH"
)
# What `less_memory` says in the one part of a run that each is about.
TRAINING_MEMORY = (
    "in training, lower DATALOADER.TRAIN_X.BATCH_SIZE, or keep it and raise OPTIM.ACCUMULATE, set "
    "TRAIN.GRAD_CHECKPOINTING True, or lower TRAIN.KEPT_TOKENS (4096)"
)
TEST_MEMORY = "in evaluation and feature caching, lower DATALOADER.TEST.BATCH_SIZE"
VIEWS_MEMORY = (
    "in test-time training, lower TRAINER.<name>.ENCODER_BATCH, the views that are encoded at once"
)
EPISODE_MEMORY = (
    "in test-time training, lower TRAINER.<name>.BATCH, the images that are adapted side by side"
)
_LACKS_MEMORY = re.compile(
    r"out of memory|can't allocate memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED", re.IGNORECASE
)
_SPACE = "make space there, or write to another folder"
_OPEN_FILES = "raise the limit (ulimit -n 4096), or lower DATALOADER.NUM_WORKERS"
_SHARED = (
    "workers lack memory, or shared memory (/dev/shm): give them more (docker run --shm-size 8g), "
    "lower DATALOADER.NUM_WORKERS or the batch size, or set NUM_WORKERS 0"
)
_BY_NUMBER = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or write elsewhere",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "change its permissions, or choose another path",
    errno.EPERM: "change its permissions, or choose another path",
    errno.EMFILE: _OPEN_FILES,
    errno.ENFILE: _OPEN_FILES,
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a file is where a folder is needed: move it, or choose another path",
    errno.EEXIST: "something else has this name: move it, or choose another path",
    errno.EISDIR: "a folder is where a file is needed: move it, or choose another path",
    errno.ENOMEM: _MEMORY,
}
# What PyTorch reports as a plain RuntimeError though the machine is the cause, and what helps.
_BY_TEXT = (
    (r"Too many open files|received \d+ items of ancdata", _OPEN_FILES),
    (r"DataLoader worker .*(killed by signal|exited unexpectedly)|unable to mmap", _SHARED),
    (r"shared memory|to file </?torch_", _SHARED),
    (r"can't start new thread", "raise the limit on processes (ulimit -u), or use fewer workers"),
    (r"PytorchStreamWriter failed", _SPACE),
)
_REMEDY = "remedy"  # attribute of an error, see `less_memory`
_WORKER = re.compile(r"Caught (\w+) in .*\nOriginal Traceback")


class Ending(NamedTuple):
    """The last words of a program that cannot go on, and its exit status."""

    line: str
    status: int


def ending(error: BaseException, also: tuple[type[BaseException], ...] = ()) -> Ending | None:
    """Return how an error ends a program; None for a mistake in its code.

    ``also`` are further types of errors that have a cause outside of the program.
    """
    if isinstance(error, KeyboardInterrupt):
        return Ending("interrupted; what was finished is kept", INTERRUPTED)
    if isinstance(error, BrokenPipeError) and error.filename is None and _reader_has_gone():
        return Ending("the reader of the output has gone (as after | head)", _CLOSED_PIPE)
    text, name = _text(error)
    kind = getattr(builtins, name, type(error))
    expected = isinstance(error, (*_OUTSIDE, *also)) or issubclass(kind, _OUTSIDE)
    if isinstance(error, OSError):
        return Ending(_os_error(error, text), 1)
    hint = _hint(text) if isinstance(error, RuntimeError) else ""
    if _lacks_memory(error):
        text, hint = text or "out of memory", getattr(error, _REMEDY, _MEMORY)
    if not expected and not hint:
        return None
    if hint:  # the rest of the message is about PyTorch's allocator and source code
        text = re.split(r"\n| Including non-PyTorch| Of the allocated", text)[0]
    text = " ".join(text.split())
    return Ending(_joined(text or type(error).__name__, hint), 1)


@contextmanager
def less_memory(remedy: str) -> Iterator[None]:
    """Let an error for want of memory in the block end with what helps there.

    It serves as a decorator too. Of several around each other the innermost counts.

    Args:
        remedy: Names the keys to change, such as ``TRAINING_MEMORY``.
    """
    try:
        yield
    except Exception as error:
        if _lacks_memory(error) and not hasattr(error, _REMEDY):
            setattr(error, _REMEDY, remedy)
        raise


def _lacks_memory(error: BaseException) -> bool:
    # PyTorch's OutOfMemoryError is a RuntimeError, and so is what CUDA's libraries raise.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _LACKS_MEMORY.search(str(error)) is not None
    )


def _text(error: BaseException) -> tuple[str, str]:
    """Return an error's message and, if a data loading worker sent it, the original type's name."""
    text = str(error)
    caught = _WORKER.match(text)
    if caught is None:
        return text, ""
    parts = re.split(rf"^(?:[\w.]+\.)?{caught[1]}: ", text, flags=re.MULTILINE)
    return parts[-1].strip() if len(parts) > 1 else caught[1], caught[1]


def _os_error(error: OSError, text: str) -> str:
    number = error.errno
    if number is None:  # a message of ours, or one that a worker process sent
        found = re.match(r"\[Errno (\d+)\] ", text)
        number, text = (int(found[1]), text[found.end() :]) if found else (None, text)
        return _joined(" ".join(text.split()), _BY_NUMBER.get(number or 0, ""))
    reason = error.strerror or os.strerror(number)
    where = error.filename2 or error.filename
    if isinstance(where, bytes):
        where = os.fsdecode(where)
    text = f'"{where}": {reason}' if where is not None else reason
    return _joined(text, _BY_NUMBER.get(number, ""))


def _hint(text: str) -> str:
    return next((hint for pattern, hint in _BY_TEXT if re.search(pattern, text)), "")


def _joined(text: str, hint: str) -> str:
    return f"{text.rstrip('. ')}; {hint}" if hint else text


@contextmanager
def plain_errors(debug: bool = False, also: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """End the program with one line, if an error with an outside cause leaves the block.

    Of the processes that ``torchrun`` or ``srun`` started, the first speaks at once and the others
    wait for a while: they are stopped when the first ends, so an error of all is printed once on a
    machine.

    Args:
        debug: Let errors through, as the environment variable DEBUG_ERRORS does.
        also: Further types of such errors.

    Raises:
        SystemExit: With ``error: <what>``; or with an exit status for Ctrl-C and a closed pipe,
            after printing that line.
    """
    try:
        yield
        if sys.stdout is not None:  # closed by the shell: >&-
            sys.stdout.flush()
    except BaseException as error:
        found = ending(error, also)
        _drop_unwritable_output()
        if found is None or debug or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
            raise
        if found.status == 1:
            if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) != "0":
                time.sleep(_TURN)
            sys.exit(f"error: {found.line}")
        with suppress(OSError):
            print(f"error: {found.line}", file=sys.stderr)
        sys.exit(found.status)


def plain_main(main: Main) -> Main:
    """Let a script's ``main`` return an exit status for errors with an outside cause."""

    @wraps(main)
    def run(*args: Any, **kwargs: Any) -> int:
        try:
            with plain_errors():
                return main(*args, **kwargs)
        except SystemExit as end:
            if not isinstance(end.code, str):
                raise
            with suppress(OSError):
                print(end.code, file=sys.stderr)
            return 1

    return run  # type: ignore[return-value]


def _output_is_broken() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return True
    except (ValueError, AttributeError):  # closed
        pass
    return False


def _reader_has_gone() -> bool:
    try:
        watch = select.poll()
        watch.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0))
    except (OSError, ValueError, AttributeError):  # a stream without a file, or Windows
        return False


def _drop_unwritable_output() -> None:
    """Redirect standard output to nowhere if it cannot be written: Python flushes it at exit."""
    if _output_is_broken() or _reader_has_gone():
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
