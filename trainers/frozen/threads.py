"""Independent computations on a CPU, as many at a time as PyTorch may use cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

import torch

T = TypeVar("T")


def each_in_a_thread(tasks: Sequence[Callable[[Event], T]]) -> list[T]:
    """Call all tasks, each in a thread with its share of the cores, and return what they return.

    For operations that are too small to be shared by cores: one core finds in its cache what it
    wrote before. No gradients are recorded in them.

    Args:
        tasks: Called with an event, which is set once another task has failed or the run was
            interrupted: then a task ends early, whatever it returns.
    """
    threads, stop = torch.get_num_threads(), Event()
    at_a_time = min(threads, len(tasks))

    def call(task: Callable[[Event], T]) -> T:
        torch.set_num_threads(threads // at_a_time)
        with torch.no_grad():
            return task(stop)

    with ThreadPoolExecutor(at_a_time) as pool:
        try:
            futures = [pool.submit(call, task) for task in tasks]
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
