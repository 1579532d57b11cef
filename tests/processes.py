"""Processes for tests that kill them or let several work together."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import torch


def fork(job: Callable[..., None], *args: Any) -> BaseProcess:
    """Start a job in a process that has imported already what a new one takes seconds for."""

    def run() -> None:
        torch.set_num_threads(1)  # a pool of threads does not survive the fork
        job(*args)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process
