"""A process that has imported what ``train.py`` needs and forks itself for each job.

``scripts/jobs/warm.py`` starts it as ``worker.py train.py``, with a socket as standard input, and
says what is sent. A fork does what a process of its own would: its arguments, its log, its process
group, and ``train.py`` as the main program. Nothing but imports happens before, and no thread is
started: a fork has only the thread that made it, so that whatever waits for another one would wait
for ever (OpenMP's threads are started by the first large operation), and CUDA works in no fork of a
process that has used it.
"""

from __future__ import annotations

import gc
import json
import os
import random
import runpy
import select
import signal
import sys
import threading
import warnings
from contextlib import suppress
from importlib import import_module
from typing import Any

CHANNEL = 0  # standard input, the socket to the driver
IMPORTS = "scripts.training.imports"  # imports all that a job needs
GPUS = ("/dev/nvidia", "/dev/kfd")  # what CUDA and ROCm open when they are first asked for GPUs
POLL = 0.05  # seconds between looks at a running job


def serve(script: str, request: dict[str, Any] | None) -> list[str]:
    """Do jobs until the driver has gone; return only in forks, with their job's arguments.

    Args:
        script: ``train.py``.
        request: What a worker before this one was asked for; None if there was none.
    """
    gc.disable()  # imports leave no garbage, and looking for it takes a tenth of their time
    import_module(IMPORTS)
    gc.freeze()  # and forks need not look at what was imported, which would copy its memory
    gc.enable()
    imported = files()
    while True:
        request = request or receive()
        log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        if files() != imported:
            # Code has changed, which a new process would run. Python cannot forget what it has
            # imported, so this process starts over.
            again = [*sys.orig_argv[: sys.orig_argv.index(__file__) + 1], script]
            os.execv(sys.executable, [*again, json.dumps(request)])
        reason = unfit()
        if reason:
            print(f"error: --warm: {reason}; run without --warm", file=sys.stderr, flush=True)
            send(status=1)
        else:
            child = fork()
            if child == 0:
                return request["arguments"]
            send(status=watch(child))
        request = None


def files() -> dict[str, tuple[int, int]]:
    """Return size and time of every imported file and of its folder, where others may appear."""
    found = {}
    for module in list(sys.modules.values()):
        path = getattr(module, "__dict__", {}).get("__file__")
        for name in (path, os.path.dirname(path)) if path else ():
            if name not in found:
                with suppress(OSError):
                    status = os.stat(name)
                    found[name] = status.st_size, status.st_mtime_ns
    return found


def unfit() -> str:
    """Return why a fork could not do a job; empty if it can."""
    torch = sys.modules.get("torch")
    used = torch is not None and torch.cuda.is_initialized()
    # PyTorch calls it unused after torch.cuda.is_available(), but then it works in no fork either.
    if used or any(name.startswith(GPUS) for name in open_files()):
        return "an import has used CUDA, which then works in no fork of the process"
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate()[1:])
        return f"an import has started a thread ({names}), which a fork of the process has not"
    return ""


def open_files() -> list[str]:
    """Return the paths of what this process has open, as far as the system tells."""
    names = []
    with suppress(OSError):
        for number in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # the listing itself is closed by now
                names.append(os.readlink(f"/proc/self/fd/{number}"))
    return names


def fork() -> int:
    """Fork this process, as a job needs it; return the fork's id here and 0 in the fork."""
    with warnings.catch_warnings():
        # Python warns of any thread. NumPy's OpenBLAS has some, and stops them around a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    os.setsid()
    # Told before anything else: the driver has to know whom to stop, even if the worker dies now.
    if not send(pid=os.getpid()):
        os._exit(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, CHANNEL)
    os.close(nothing)
    # A new process would draw its own seeds; all forks have this one's.
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
    return 0


def watch(child: int) -> int:
    """Return the exit status of a fork; kill it and end if the driver has gone."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        # Nothing is sent while a job runs, so there is something to read only at the end.
        if select.select([CHANNEL], [], [], POLL)[0]:
            for kill in (os.kill, os.killpg):  # it may have no group of its own yet
                with suppress(ProcessLookupError):
                    kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            sys.exit()


def receive() -> dict[str, Any]:
    """Wait for the next job; end if the driver has gone."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(CHANNEL, 65536)
        if not part:
            sys.exit()
        line += part
    return json.loads(line)


def send(**answer: int) -> bool:
    """Tell the driver something; return whether it is there."""
    with suppress(OSError):
        os.write(CHANNEL, f"{json.dumps(answer)}\n".encode())
        return True
    return False


def main(script: str, request: str = "null") -> None:
    """Serve; in a fork, run ``train.py`` as Python does."""
    path = os.path.abspath(script)
    sys.path[0] = os.path.dirname(path)
    sys.argv = [script, *serve(script, json.loads(request))]
    runpy.run_path(path, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
