"""Seconds by phase, on a CPU and in the queue of a GPU."""

import pytest
import torch

from trainers.test_time.stopwatch import Stopwatch

PHASES = ("encoder", "adaptation")


def test_seconds_add_up_by_phase(monkeypatch):
    times = iter([1.0, 1.5, 3.5, 10.0, 10.25, 10.5])
    monkeypatch.setattr("trainers.test_time.stopwatch.time.perf_counter", lambda: next(times))
    watch = Stopwatch(torch.device("cpu"), *PHASES)
    assert watch.seconds() == {"encoder": 0.0, "adaptation": 0.0}
    for _ in range(2):
        watch.start()
        for phase in PHASES:
            watch.lap(phase)
    assert watch.seconds() == watch.seconds() == {"encoder": 0.75, "adaptation": 2.25}


def test_a_gpu_is_waited_for_once(monkeypatch):
    queue, waited = [], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            assert stream == "the stream of cuda:1"
            queue.append(self)
            self.milliseconds = 100.0 * len(queue) ** 2

        def elapsed_time(self, end):
            assert waited, "events are not reached yet"
            return end.milliseconds - self.milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    watch = Stopwatch(torch.device("cuda:1"), *PHASES)
    for _ in range(2):
        watch.start()
        for phase in PHASES:
            watch.lap(phase)
    assert not waited
    # Marks at 0.1, 0.4, 0.9 and at 1.6, 2.5, 3.6 seconds.
    expected = {"encoder": pytest.approx(0.3 + 0.9), "adaptation": pytest.approx(0.5 + 1.1)}
    assert watch.seconds() == expected
    assert waited == [torch.device("cuda:1")]
    assert watch.seconds() == expected
    assert len(waited) == 1
