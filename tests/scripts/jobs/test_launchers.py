"""The pool needs no more of a launcher than its four methods."""

import os

import pytest

from dassl.locks import Owner
from dassl.results import write_result
from scripts.jobs.launchers import Ended
from scripts.jobs.plan import Planner
from scripts.jobs.pool import JobPool
from scripts.jobs.settings import read_settings
from scripts.run import build_parser

WORDS = ["--protocol", "base2novel", "--datasets", "dtd", "eurosat", "--seeds", "1"]


class Queue:
    """Runs one job at a time without a process, as a stage whose exit status is chosen."""

    def __init__(self, status):
        self.status = status
        self.started = []
        self._over = []

    def has_room(self):
        return not self._over

    def start(self, job, why):
        assert self.has_room()
        job.begin(["queue"])
        self.started.append((job.key.stage, job.key.dataset, why))
        status = self.status.get(job.key.dataset, 0)
        if status == 0:
            result = {"trainer": job.key.trainer, "dataset": job.key.dataset, "seed": job.key.seed}
            result |= {"metrics": {"accuracy": 50.0}, "config": {}, "config_hash": ""}
            write_result(job.directory, result)
        self._over.append(Ended(job, status, 1.0))
        return Owner.of(os.getpid())

    def ended(self):
        over, self._over = self._over, []
        return over

    def stop(self, hurry):
        return []


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
    assert list(repo.output.rglob(".job.lock")) == []
