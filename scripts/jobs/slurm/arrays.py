"""Groups jobs into SLURM's arrays: one submission for all jobs of a stage, however many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from scripts.jobs.job import Job

LARGEST = 1000  # jobs in an array; clusters refuse more unless they are set up for it

Array = tuple[Job, ...]  # in the order of their indices


def make_arrays(jobs: Sequence[Job], submitted: Sequence[Job] = ()) -> list[Array]:
    """Group jobs into arrays, an array after the one that it waits for.

    Jobs that wait for none make one array. The others make one for each of their kind (the same
    stage, and the same place among what builds on one parent), where job i waits for job i of the
    parents' array; or an array of one, which waits for one job.

    Args:
        jobs: A job's parent comes before it.
        submitted: Jobs that have been submitted before and have not ended.
    """
    new, before = {*jobs}, {*submitted}
    behind = Counter(job.parent for job in jobs)
    first = [job for job in jobs if job.parent not in new and job.parent not in before]
    # Those with most behind them first, so that an array that only some have a part in has the
    # indices from 0 on.
    first.sort(key=lambda job: -behind[job])
    arrays = [tuple(first[i : i + LARGEST]) for i in range(0, len(first), LARGEST)]
    arrays += [(job,) for job in jobs if job.parent in before]
    for array in arrays:  # which grows meanwhile
        arrays += _behind(array, jobs)
    return arrays


def _behind(array: Array, jobs: Sequence[Job]) -> Iterator[Array]:
    """Yield the arrays of the jobs that build directly on an array's."""
    places = {parent: index for index, parent in enumerate(array)}
    count: Counter[tuple[int, str]] = Counter()
    kinds: dict[tuple[str, int], dict[int, Job]] = {}
    for job in jobs:
        index = places.get(job.parent) if job.parent is not None else None
        if index is not None:
            kind = job.key.stage, count[index, job.key.stage]
            count[index, job.key.stage] += 1
            kinds.setdefault(kind, {})[index] = job
    for of_kind in kinds.values():
        if sorted(of_kind) == list(range(len(of_kind))):
            yield tuple(of_kind[index] for index in range(len(of_kind)))
        else:
            yield from ((job,) for job in of_kind.values())
