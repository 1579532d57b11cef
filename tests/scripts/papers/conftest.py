"""A small table of hand-made numbers."""

from dataclasses import replace

import pytest

from scripts.papers.catalogue import read_catalogue
from scripts.papers.cells import METRICS, Filler
from scripts.papers.runs import Work
from scripts.reporting.scores import Stat

NO_WORK = Work([])


@pytest.fixture
def fill():
    """Return a function that fills rows of an entry with numbers by row, place and metric.

    A row's numbers are given as ``{"dtd": (base, novel, hm)}``, or a number for accuracy.
    """

    def filled(name, datasets, numbers, *labels, missing=None, work=NO_WORK, **how):
        entry = read_catalogue()[name]
        rows = tuple(row for row in entry.rows if row.label in (labels or numbers))
        given = {}
        for label, places in numbers.items():
            found = given.setdefault(label, {})
            for place, values in places.items():
                if isinstance(values, tuple):
                    for metric, value in zip(METRICS, values, strict=True):
                        found[place, metric] = Stat(value, 0.5, 3)
                else:
                    found[place, "accuracy"] = Stat(values, None, 1)
        seeds = how.pop("seeds", 3)
        filler = Filler(
            replace(entry, rows=rows), datasets, missing or {}, work, seeds, given, **how
        )
        return filler.grids()

    return filled
