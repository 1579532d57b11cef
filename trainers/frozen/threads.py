"""Independent computations on a CPU, as many at a time as PyTorch has threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

import torch

T = TypeVar("T")


def each_in_a_thread(tasks: Sequence[Callable[[Event], T]]) -> list[T]:
    """Call all tasks, each in a thread of its own that computes alone, and return what they return.

    For operations that are too small to be shared by cores: those of one core read what it wrote
    before. No gradients are recorded in them. What a task computes does not depend on how many
    threads there are.

    Args:
        tasks: Called with an event, which is set once another task has failed or the run was
            interrupted: then a task ends early, whatever it returns.
    """
    threads, stop = torch.get_num_threads(), Event()

    def alone(task: Callable[[Event], T]) -> T:
        torch.set_num_threads(1)
        with torch.no_grad():
            return task(stop)

    with ThreadPoolExecutor(min(threads, len(tasks))) as pool:
        try:
            futures = [pool.submit(alone, task) for task in tasks]
            ended, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in ended:
                future.result()
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            # The number is this thread's, but the last one set is also what new threads begin with.
            torch.set_num_threads(threads)
