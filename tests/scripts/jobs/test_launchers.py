"""The pool needs no more of a launcher than its few methods."""

import pytest

from dassl.results import write_result
from scripts.jobs.launchers import QUEUED
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
