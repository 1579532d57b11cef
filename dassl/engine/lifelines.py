"""How the processes of a run notice at once that one of them has ended, and end with a line.

PyTorch's collectives hear of a lost process only while they wait for it, on GPUs often not before
TRAIN.TIMEOUT. Hours may pass between two of them: in test-time training, processes meet at the end
only. ``torchrun`` stops the processes of its own machine, and ``srun`` by default none. So every
process holds a connection to the first one, which the system closes when either has ended, however
it ended.
"""

from __future__ import annotations

import os
import secrets
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dassl.utils.distributed import broadcast_object, gather_objects, is_main, rank, world_size

__all__ = ["AGAIN", "Lifelines"]

AGAIN = "The same command, with any number of processes, resumes after the last whole epoch."
_PATIENCE = 20.0  # seconds for a connection
_TURN = 3.0  # seconds in which the main thread may hear of a lost process by itself
_SILENCE = 60  # seconds after which the system asks whether the other machine is still there


class Lifelines:
    """This process's connections: of the first one to all others, of any other one to the first.

    Attributes:
        peers: By rank.
    """

    def __init__(self) -> None:
        """Connect; all processes of the group have to do so at once.

        Where connections are not allowed, a line says so, and a lost process is noticed late.
        """
        self.peers: dict[int, socket.socket] = {}
        server = _listen() if is_main() else None
        # The word keeps out whoever else tries ports, and would look like a process that ends.
        own = (_own_address(), server.getsockname()[1]) if server is not None else ("", 0)
        address, word = broadcast_object((own, secrets.token_bytes(16)))
        reason = "" if server is not None else self._call(address, word)
        reasons = [reason for reason in gather_objects(reason) if reason]
        if server is not None:
            with server:  # the callers wait in its queue
                self._accept(server, word, world_size() - 1 - len(reasons))
            if reasons:
                print(
                    f"Processes cannot connect to {address[0]}, port {address[1]}, of the first "
                    f"one ({reasons[0]}): one that is lost may be noticed only after TRAIN.TIMEOUT"
                )

    def _call(self, address: tuple[str, int], word: bytes) -> str:
        """Connect to the first process; return why that cannot be, or nothing."""
        try:
            line = socket.create_connection(address, timeout=_PATIENCE)
            line.sendall(word + rank().to_bytes(4, "big"))
        except OSError as error:
            return str(error)
        self._keep(0, line)
        return ""

    def _accept(self, server: socket.socket, word: bytes, expected: int) -> None:
        """Take the calls of the other processes."""
        server.settimeout(_PATIENCE)
        # A caller that has ended since then will be missed in the next collective.
        with suppress(OSError):
            while len(self.peers) < expected:
                line, _ = server.accept()
                line.settimeout(_PATIENCE)
                said = line.recv(len(word) + 4, socket.MSG_WAITALL)
                if said[:-4] == word:
                    self._keep(int.from_bytes(said[-4:], "big"), line)

    def _keep(self, peer: int, line: socket.socket) -> None:
        line.settimeout(None)
        # A machine that loses its power closes nothing.
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):  # macOS has another name
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENCE)
        self.peers[peer] = line

    @contextmanager
    def watched(self) -> Iterator[None]:
        """End this process with a line if another one ends inside the block, or on SIGTERM.

        torchrun sends it to all processes of a machine when one has failed. A thread, woken by the
        interpreter's own handler, prints the line: the main thread may be waiting for the lost
        process in a collective, where no Python code runs until the timeout.
        """
        woken, waking = socket.socketpair()
        waking.setblocking(False)
        handler = signal.signal(signal.SIGTERM, lambda *_: None)
        descriptor = signal.set_wakeup_fd(waking.fileno())
        watcher = threading.Thread(target=self._watch, args=(woken,), daemon=True)
        watcher.start()
        try:
            yield
        except BaseException:
            for line in self.peers.values():
                line.detach()  # stays open while this process has something to say
            self.peers = {}
            raise
        finally:
            signal.set_wakeup_fd(descriptor)
            signal.signal(signal.SIGTERM, handler)
            waking.close()
            watcher.join()  # it may be speaking, and ends the process then

    def close(self) -> None:
        """Close the connections, when no process watches them any more."""
        for line in self.peers.values():
            line.close()

    def _watch(self, woken: socket.socket) -> None:
        selector = selectors.DefaultSelector()
        selector.register(woken, selectors.EVENT_READ)
        for peer, line in self.peers.items():
            selector.register(line, selectors.EVENT_READ, peer)
        with woken, selector:
            while True:
                for key, _ in selector.select():
                    if key.data is None:
                        if _stopped(woken):
                            return
                    else:
                        lost = self._lost(key.data)
                        if not _left_to_main(woken):
                            _end(1, f"process {lost} has ended, see its message if it has one")
                        return

    def _lost(self, peer: int) -> int:
        """Return who has ended, by what a peer's connection says; the first process tells all."""
        said = b""
        with suppress(OSError):
            said = self.peers[peer].recv(4)
        lost = int.from_bytes(said, "big") if said else peer
        if is_main():
            for line in self.peers.values():
                with suppress(OSError):
                    line.sendall(lost.to_bytes(4, "big"))
        return lost


def _listen() -> socket.socket:
    both = socket.has_dualstack_ipv6()  # machines may know each other by either kind of address
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", 0), family=family, backlog=world_size(), dualstack_ipv6=both)


def _own_address() -> str:
    """Return this machine's address, as the other machines of the run reach it."""
    master = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    family, *_, address = socket.getaddrinfo(*master, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)  # sends nothing, but chooses the network
        own = probe.getsockname()[0]
    # The first process may run elsewhere than the store of a rendezvous; where it is the same
    # machine, others may know it by that name only.
    return master[0] if own == address[0] or own.startswith("127.") else own


def _stopped(woken: socket.socket) -> bool:
    """Tell whether the main thread has left the block; end this process if a signal asks for it."""
    received = woken.recv(1)
    if received and received[0] == signal.SIGTERM:
        reason = "was told to stop, most likely because another one has ended, see its message"
        _end(128 + signal.SIGTERM, reason, stops="")
    return not received


def _left_to_main(woken: socket.socket) -> bool:
    """Wait for a moment; tell whether the main thread ends the run itself, as it should."""
    woken.settimeout(_TURN)
    with suppress(TimeoutError):
        return _stopped(woken)
    return False


def _end(status: int, reason: str, stops: str = "stops: ") -> None:
    """Print a line and end this process without its main thread."""
    message = f"error: process {rank()} of {world_size()} {stops}{reason}. {AGAIN}\n"
    # Not print: the main thread may hold the stream's lock.
    with suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, message.encode())
    os._exit(status)
