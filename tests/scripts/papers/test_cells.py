"""Cells against numbers worked out by hand: differences, misprints, subsets, what is missing."""

import pytest

from scripts.jobs.protocols import FEW_SHOT_DATASETS
from scripts.papers.catalogue import read_catalogue
from scripts.papers.cells import MISPRINT, Printed, measure
from scripts.papers.costs import costs
from scripts.papers.runs import Work
from scripts.reporting.scores import Stat

SHIFTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")


class FakeJob:
    """A job as the cells see it."""

    def __init__(self, directory, key, why=""):
        self.directory, self.key, self.why = directory, key, why
        self.parent, self.log = None, directory / "job.log"

    def to_do(self):
        return self.why


def numbers_of(cell):
    ours = None if cell.ours is None else cell.ours.mean
    return ours, cell.paper, None if cell.difference is None else round(cell.difference, 2)


def test_a_dataset_and_its_mean(fill):
    grids = fill(
        "table2", ["dtd"], {"RAda": {"dtd": (75.19, 56.89, 64.77), "mean": (75.19, 56.89, 64.77)}}
    )
    (grid,) = grids  # of one dataset the mean is all there is
    assert (grid.title, grid.header) == ("dtd", ("base", "novel", "HM"))
    ((label, marks, cells),) = grid.rows
    assert label == "RAda"
    assert marks == ("the release's scripts run one seed",)
    expected = [(75.19, 79.17, -3.98), (56.89, 58.70, -1.81)]
    assert [numbers_of(cell) for cell in cells[:2]] == expected
    # The paper prints 67.42, the harmonic mean of unrounded values.
    assert cells[2].paper == pytest.approx(67.42, abs=0.01)


def test_mean_over_all_datasets_is_the_printed_one(fill):
    numbers = {name: (80.0, 70.0, 74.67) for name in (*FEW_SHOT_DATASETS, "mean")}
    mean, *each = fill("table2", FEW_SHOT_DATASETS, {"RAda": numbers})
    assert [grid.title for grid in each] == list(FEW_SHOT_DATASETS)
    assert mean.title == "mean over 11 datasets"
    assert [cell.paper for cell in mean.rows[0][2]] == [82.16, 74.14, 77.94]


def test_mean_over_some_is_made_again(fill):
    places = ("dtd", "eurosat", "mean")
    mean, *_ = fill(
        "table2", ["dtd", "eurosat"], {"RAda": dict.fromkeys(places, (80.0, 60.0, 68.57))}
    )
    base, novel, hm = (79.17 + 90.40) / 2, (58.70 + 74.72) / 2, 0.0
    hm = 2 * base * novel / (base + novel)
    assert [cell.paper for cell in mean.rows[0][2]] == pytest.approx([base, novel, hm])
    assert mean.rows[0][2][0].difference == pytest.approx(80 - base)


def test_a_mean_alone_compares_with_nothing_over_fewer(fill):
    (grid,) = fill(
        "table4", ["dtd"], {"query R": {"dtd": (1.0, 2.0, 3.0), "mean": (1.0, 2.0, 3.0)}}
    )
    ((_, marks, cells),) = grid.rows
    assert "printed over 11 datasets, ours is over 1" in marks
    assert [numbers_of(cell) for cell in cells] == [
        (1, 81.99, None),
        (2, 73.89, None),
        (3, 77.72, None),
    ]


class TestMisprints:
    def test_values_of_another_row(self, fill):
        places = {name: (80.0, 60.0, 68.57) for name in ("dtd", "caltech101", "mean")}
        mean, caltech, dtd = fill("table2", ["caltech101", "dtd"], {"CoOp": places})
        for grid in (mean, dtd):  # made again with a misprint, the mean is none either
            ((_, marks, cells),) = grid.rows
            assert MISPRINT in marks
            assert [cell.difference for cell in cells] == [None] * 3
            assert cells[0].paper is not None
        assert caltech.rows[0][1] == ()
        assert caltech.rows[0][2][0].difference == pytest.approx(80 - 98)

    def test_one_cell(self, fill):
        places = dict.fromkeys((*FEW_SHOT_DATASETS, "mean"), (80.0, 60.0, 68.57))
        mean, *each = fill("table2", FEW_SHOT_DATASETS, {"MMA": places})
        marks = [[bool(cell.marks) for cell in grid.rows[0][2]] for grid in (mean, each[-1])]
        assert marks == [[False, True, True], [False, False, True]]
        assert [cell.difference is None for cell in mean.rows[0][2]] == [False, True, True]

    def test_of_a_mean_of_shifts(self, fill):
        numbers = {"TPT": {name: 60.0 for name in (*SHIFTS, "mean_shifts")}}
        (grid,) = fill("table3", SHIFTS, numbers, seeds=1)
        ((_, _, cells),) = grid.rows
        assert [cell.paper for cell in cells] == [64.35, 47.94, 54.77, 77.06, 60.81]
        assert [cell.difference is None for cell in cells] == [False] * 4 + [True]
        assert cells[4].marks == (MISPRINT,)

    def test_of_a_whole_row(self, fill):
        places = dict.fromkeys((*FEW_SHOT_DATASETS, "mean"), (82.0, 74.0, 77.8))
        (grid,) = fill("table9", FEW_SHOT_DATASETS, {"CLIP: RAda": places, "SigLIP: RAda": places})
        wrong, right = grid.rows
        assert MISPRINT in wrong[1]
        assert numbers_of(wrong[2][0]) == (82, 78.42, None)
        assert numbers_of(right[2][0]) == (82, 84.13, -2.13)


def test_shifts(fill):
    """Table 1: the mean over some of the shifts is made again over the same ones."""
    places = {"imagenet": 80.0, "imagenet_r": 70.0, "imagenet_a": 40.0, "mean_shifts": 55.0}
    (grid,) = fill("table1", ["imagenet", "imagenet_r", "imagenet_a"], {"FT": places}, seeds=1)
    assert grid.header == ("imagenet", "imagenet_r", "imagenet_a", "mean of shifts")
    found = [numbers_of(cell) for cell in grid.rows[0][2]]
    assert found == [
        (80, 81.3, -1.3),
        (70, 65.6, 4.4),
        (40, 36.7, 3.3),
        (55, (65.6 + 36.7) / 2, 3.85),
    ]


def test_unknown_rows_of_table7_stand_by_themselves(fill):
    (grid,) = fill("table7", FEW_SHOT_DATASETS, {}, "l1", "l1 or linf (first printed row)")
    ours, paper = grid.rows
    assert [cell.paper for cell in ours[2]] == [None] * 3
    assert [cell.paper for cell in paper[2]] == [80.06, 73.87, 76.84]
    assert paper[1] == ("which of l1 and linf it is was lost",)


def test_method_that_is_not_ours(fill):
    (grid,) = fill("table1", ["imagenet"], {}, "FLYP dagger")
    ((_, marks, cells),) = grid.rows
    assert marks == ("FLYP in RAda's two-stage schedule is no method of this project",)
    assert numbers_of(cells[0]) == (None, 82.6, None)


def test_missing_data(fill):
    gone = {"dtd": "dtd is not there: no directory"}
    places = {"eurosat": (80.0, 70.0, 74.67), "mean": (80.0, 70.0, 74.67)}
    mean, dtd, _ = fill("table2", ["dtd", "eurosat"], {"RAda": places}, missing=gone)
    assert mean.title == "eurosat"
    assert gone["dtd"] not in mean.rows[0][1], "the sheet says it once"
    assert gone["dtd"] in dtd.rows[0][1]
    assert numbers_of(dtd.rows[0][2][0]) == (None, 79.17, None)


def test_another_backbone_compares_with_nothing(fill):
    places = {"dtd": (80.0, 70.0, 74.67), "mean": (80.0, 70.0, 74.67)}
    (grid,) = fill("table2", ["dtd"], {"RAda": places}, comparable=False)
    assert [cell.difference for cell in grid.rows[0][2]] == [None] * 3


def test_demonstration_has_no_number_of_the_paper(fill):
    places = {"shapes": (80.0, 70.0, 74.67), "mean": (80.0, 70.0, 74.67)}
    labels = ("RAda", "CoOp")
    (grid,) = fill("table2", ["shapes"], {"RAda": places}, *labels, demonstration=True)
    assert [cell.paper for _, _, cells in grid.rows for cell in cells] == [None] * 6
    (grid,) = fill("table1", ["shapes"], {}, "FLYP dagger", "FT", demonstration=True)
    assert [label for label, _, _ in grid.rows] == ["FT"]


@pytest.fixture
def eight_runs(write_run):
    """RAda on two datasets and two seeds: (directory, key) of its jobs by stage, dataset, seed."""
    from scripts.jobs.protocols import RunKey

    found = {}
    for dataset in ("dtd", "eurosat"):
        for seed in (1, 2):
            for stage, accuracy in (("train_base", 80.0 + seed), ("test_new", 60.0 + seed)):
                directory = write_run(stage, dataset, seed, accuracy, trainer="RAda")
                found[stage, dataset, seed] = (directory, RunKey.parse(directory))
    return found


class TestMeasuring:
    def test_means_of_finished_jobs(self, eight_runs, tmp_path):
        work = Work([FakeJob(*run) for run in eight_runs.values()])
        found = measure(read_catalogue()["table2"], work, tmp_path)
        assert list(found) == ["RAda"]
        assert found["RAda"]["dtd", "base"] == Stat(81.5, pytest.approx(0.7071, abs=1e-4), 2)
        assert found["RAda"]["mean", "novel"].mean == 61.5
        assert found["RAda"]["mean", "hm"].mean == pytest.approx(2 * 81.5 * 61.5 / 143)

    def test_results_of_jobs_that_are_to_run_again_do_not_count(self, eight_runs, tmp_path):
        jobs = [
            FakeJob(*run, why="options changed" * (key[2] == 2)) for key, run in eight_runs.items()
        ]
        found = measure(read_catalogue()["table2"], Work(jobs), tmp_path)
        assert found["RAda"]["dtd", "base"] == Stat(81, None, 1)

    def test_a_failed_run_is_named(self, eight_runs, tmp_path, fill):
        jobs = [FakeJob(*run) for run in eight_runs.values()]
        failed = jobs[-1]
        failed.why = "no complete result"
        failed.log.write_text("epoch 1\nValueError: what was wrong\n")
        places = {
            "dtd": (80.0, 70.0, 74.67),
            "eurosat": (80.0, 70.0, 74.67),
            "mean": (80.0, 70.0, 74.67),
        }
        mean, dtd, eurosat = fill("table2", ["dtd", "eurosat"], {"RAda": places}, work=Work(jobs))
        assert "1 of 8 runs are missing: ValueError: what was wrong" in mean.rows[0][1]
        assert "1 of 4 runs are missing: ValueError: what was wrong" in eurosat.rows[0][1]
        assert not any("missing" in mark for mark in dtd.rows[0][1])

    def test_nothing_there(self, tmp_path):
        assert measure(read_catalogue()["table2"], Work([]), tmp_path) == {}


def test_fewer_seeds_than_asked_for(fill):
    places = {"dtd": (80.0, 70.0, 74.67), "mean": (80.0, 70.0, 74.67)}
    (grid,) = fill("table2", ["dtd"], {"RAda": places}, seeds=5)
    assert "3 of 5 seeds" in grid.rows[0][1]


def test_costs_of_a_run():
    rows = {row.label: row for row in read_catalogue()["table5"].rows}
    result = {
        "shots": 16,
        "num_classes": 20,
        "num_test": 500,
        "config": {"OPTIM": {"MAX_EPOCH": 10}},
        "durations": {"train": 64.0, "test": 5.0},
        "peak_memory_mb": 1000.0,
    }
    assert costs(result, rows["RAda EFT"]) == {"fps": 50.0, "memory_gb": pytest.approx(1.048576)}
    assert costs(result, rows["RAda TTT"])["fps"] == 100.0
    assert Printed.of(read_catalogue()["table5"], rows["RAda TTT"]).values["mean", "fps"] == 68.39
