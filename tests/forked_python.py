"""A ``python`` whose programs are forks of one process that has imported PyTorch already.

A test that starts programs one after the other waits for seconds of imports in each. The forks run
what their folder holds: what was imported of this project is forgotten before, and read again.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
PARTS = ("clip", "dassl", "datasets", "scripts", "train", "trainers", "vlmadapt")
SIZE = 8  # bytes that hold a request's length
COMMAND = """#!/bin/sh
case "${{1-}}" in
    -c | -m | -u | - | [!-]*) exec "{python}" -IS "{program}" ask "{address}" "$0" "$@" ;;
    *) exec "{python}" "$@" ;;  # with flags of its own it is another process
esac
"""


@contextlib.contextmanager
def forking_python(folder: Path, *before: str) -> Iterator[Path]:
    """Write a command ``python`` into a folder, which works until the context ends.

    Args:
        folder: Empty; its path is short, as addresses of sockets are.
        before: Words before Python's, which start it elsewhere, such as ``ip netns exec``.
    """
    address, program = folder / "socket", Path(__file__)
    process = subprocess.Popen(
        [*before, sys.executable, str(program), "serve", str(address)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    try:
        assert process.stdout.readline() == b"ready\n"
        command = folder / "python"
        command.write_text(COMMAND.format(python=sys.executable, program=program, address=address))
        command.chmod(0o755)
        yield command
    finally:
        process.stdin.close()  # it ends by itself then, as it does when the tests are killed
        process.wait()
        process.stdout.close()


def serve(address: str) -> dict[str, Any]:
    """Fork a process for each request until standard input ends; return in forks, the request."""
    sys.path[0] = str(REPOSITORY)
    import_module("scripts.training.imports")
    for name in [name for name in sys.modules if name.partition(".")[0] in PARTS]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # forks need not look at what was imported, which would copy its memory
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
        print("ready", flush=True)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            channel, _ = listener.accept()
            with channel:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    listener.close()
                    return keep(channel)
    sys.exit()


def keep(channel: socket.socket) -> dict[str, Any]:
    """Fork the program and tell its status; kill it with its command. Return in the fork."""
    head, files, _, _ = socket.recv_fds(channel, SIZE, 3)
    length, content = int.from_bytes(head, "big"), b""
    while len(content) < length:
        content += channel.recv(length - len(content))
    child = os.fork()
    if child:
        ended = os.pidfd_open(child)
        if ended not in select.select([ended, channel], [], [])[0]:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(OSError):
            channel.sendall(b"%d" % (status if status >= 0 else 128 - status))
        os._exit(0)
    channel.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    return json.loads(content)


def run(request: dict[str, Any]) -> None:
    """Do in a fork what a process of its own would."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.executable = request["command"]  # what it starts is forked as well
    # A new process would draw its own seeds.
    random.seed()
    sys.modules["numpy"].random.seed()
    kind, *words = request["words"]
    if kind == "-u":
        sys.stdout.reconfigure(write_through=True)
        kind, *words = words
    if kind in ("-c", "-"):
        code = words.pop(0) if kind == "-c" else sys.stdin.read()
        sys.argv, sys.path[0] = [kind, *words], ""
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), module.__dict__)
    elif kind == "-m":
        sys.argv, sys.path[0] = words, os.getcwd()
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [kind, *words], str(Path(kind).resolve().parent)
        runpy.run_path(kind, run_name="__main__")


def ask(address: str, command: str, *words: str) -> int:
    """Have a program run with this process's files, folder and variables; return its status."""
    request = {"command": command, "words": words}
    request |= {"folder": os.getcwd(), "environment": dict(os.environ)}
    content = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(address)
        socket.send_fds(channel, [len(content).to_bytes(SIZE, "big")], [0, 1, 2])
        channel.sendall(content)
        return int(channel.recv(SIZE) or 1)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        run(serve(sys.argv[2]))
    else:
        sys.exit(ask(*sys.argv[2:]))
