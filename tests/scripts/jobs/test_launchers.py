"""The pool needs no more of a launcher than its few methods."""

import os
import signal

import pytest

from dassl.results import write_result
from scripts.jobs.launchers import QUEUED, Ended
from scripts.jobs.plan import Planner
from scripts.jobs.pool import JobPool
from scripts.jobs.settings import read_settings
from scripts.jobs.work import judge
from scripts.run import build_parser

WORDS = ["--protocol", "base2novel", "--datasets", "dtd", "eurosat", "--seeds", "1"]


class Queue:
    """Runs one job at a time without a process, as a stage whose exit status is chosen."""

    takes_waiting = False
    outlives_driver = False

    def __init__(self, status):
        self.status = status
        self.started = []
        self._now = None

    def room(self):
        return self._now is None

    def submit(self, jobs):
        (job,) = jobs
        assert self.room()
        why = job.to_do()
        job.directory.mkdir(parents=True, exist_ok=True)
        job.begin(["queue"])
        self.started.append((job.key.stage, job.key.dataset, why))
        if self.status.get(job.key.dataset, 0) == 0:
            result = {"trainer": job.key.trainer, "dataset": job.key.dataset, "seed": job.key.seed}
            result |= {"metrics": {"accuracy": 50.0}, "config": {}, "config_hash": ""}
            write_result(job.directory, result)
        self._now = job

    def state(self, job):
        if job is not self._now:
            return QUEUED
        self._now = None
        return judge(job, self.status.get(job.key.dataset, 0), 1.0)

    def cancel(self, jobs, hurry):
        raise AssertionError("nothing is left to be stopped")

    def close(self):
        self.closed = True


@pytest.mark.parametrize(("status", "reason"), [(3, "exit status 3"), (-9, "killed by SIGKILL")])
def test_another_launcher_runs_the_same_jobs(repo, status, reason):
    settings = read_settings(build_parser().parse_args(WORDS), [], repo.path, None)
    queue = Queue({"eurosat": status})
    outcomes = JobPool(Planner(settings).jobs(), queue).run()
    assert queue.started == [
        ("train_base", "dtd", "no complete result"),
        ("test_new", "dtd", "no complete result"),
        ("train_base", "eurosat", "no complete result"),
    ]
    ends = [(outcome.status, outcome.reason) for outcome in outcomes]
    assert ends[:3] == [("ran", ""), ("ran", ""), ("failed", reason)]
    assert ends[3] == ("skipped", f"{outcomes[2].job} failed")
    again = JobPool(Planner(settings).jobs(), queue).run()
    assert [outcome.status for outcome in again] == ["done", "done", "failed", "skipped"]
    assert queue.closed


class Engine:
    """Has a queue of its own, in which nothing moves but what the test says."""

    takes_waiting = True
    outlives_driver = True

    def __init__(self, states):
        self.states = states  # what to do, or the state, by stage
        self.calls = []

    def room(self):
        return 99

    def submit(self, jobs):
        self.calls.append(("submit", [job.key.stage for job in jobs]))

    def state(self, job):
        state = self.states.get(job.key.stage, QUEUED)
        return state() if callable(state) else state

    def cancel(self, jobs, hurry):
        self.calls.append(("cancel", [job.key.stage for job in jobs]))

    def close(self):
        self.calls.append("close")


@pytest.fixture
def run_with(repo):
    """Return a function that runs two jobs with a launcher, and gives the pool and the outcomes."""

    def run(launcher):
        words = ["--protocol", "base2novel", "--datasets", "dtd", "--seeds", "1"]
        settings = read_settings(build_parser().parse_args(words), [], repo.path, None)
        pool = JobPool(Planner(settings).jobs(), launcher)
        return pool, pool.run()

    return run


def test_an_engine_takes_jobs_before_their_parents_end_and_loses_those_of_a_failed_one(run_with):
    engine = Engine({"train_base": Ended("failed", "a lost node")})
    _, (train, test) = run_with(engine)
    both = ["train_base", "test_new"]
    assert engine.calls == [("submit", both), ("cancel", ["test_new"]), "close"]
    assert (train.status, train.reason) == ("failed", "a lost node")
    assert (test.status, test.reason) == ("skipped", f"{train.job} failed")


@pytest.mark.parametrize(
    ("number", "stopped", "reason"),
    [
        (signal.SIGHUP, [], "left to go on"),
        (signal.SIGTERM, [("cancel", ["train_base", "test_new"])], "stopped while running"),
    ],
)
def test_only_the_end_of_the_terminal_leaves_an_engines_jobs(run_with, number, stopped, reason):
    before = signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored, and stays so
    engine = Engine({"train_base": lambda: os.kill(os.getpid(), number) or QUEUED})
    try:
        pool, outcomes = run_with(engine)
    finally:
        signal.signal(number, before)
    assert engine.calls[1:] == [*stopped, "close"]
    assert pool.left == (not stopped)
    assert {(outcome.status, outcome.reason) for outcome in outcomes} == {("interrupted", reason)}


def test_what_was_taken_before_a_refusal_is_stopped(run_with):
    class Refusing(Engine):
        def submit(self, jobs):
            raise ValueError("too many jobs")

    engine = Refusing({})
    with pytest.raises(ValueError, match="too many jobs"):
        run_with(engine)
    assert engine.calls == [("cancel", ["train_base", "test_new"]), "close"]
