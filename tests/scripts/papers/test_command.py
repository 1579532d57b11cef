"""The whole command over a stand-in for train.py: what runs, what is printed, what is written."""

import sys

import pytest

from scripts import paper
from scripts.papers import making

TABLE = ("table7", "--datasets", "dtd", "--seeds", "1")
STEMS = ("table7_l1", "table7_linf", "base2novel")


@pytest.fixture
def make(repo, monkeypatch, capsys):
    """Return a function that runs paper.py there and gives status, stdout and stderr."""
    missing = {}
    monkeypatch.setattr(paper, "without_data", lambda *_: missing)
    for stem in STEMS:
        repo.write(f"configs/trainers/RAda/{stem}.yaml", f"OPTIM:\n  LR: 0.{len(stem)}\n")

    def run(*words, gone=()):
        missing.clear()
        missing.update({name: f"{name} is not there: no directory" for name in gone})
        command = (sys.executable, "-S", "-E", str(repo.path / "train.py"))
        status = paper.main(list(words), repo=repo.path, train_command=command)
        return (status, *capsys.readouterr())

    return run


def row_of(text, label):
    return next(line for line in text.splitlines() if line.startswith(f"| {label}"))


def test_runs_what_is_missing_and_writes(make, repo):
    status, out, err = make(*TABLE)
    assert status == 0
    assert "6 jobs: 6 ran" in err
    assert len(repo.calls()) == 6
    assert "50.00 / 82.16 / -" in row_of(out, "l2")
    assert " - / 80.06 / - |" in row_of(out, "l1 or linf (first")
    folder = repo.output / "papers" / "table7"
    assert sorted(file.name for file in folder.iterdir()) == [
        "table7.md",
        "table7.png",
        "table7.tex",
    ]
    assert (folder / "table7.md").read_text().strip() in out
    for file in folder.iterdir():
        assert f'Written: "{file}"' in out


def test_finished_jobs_are_not_repeated(make, repo):
    _, first, _ = make(*TABLE)
    status, again, err = make(*TABLE)
    assert (status, again) == (0, first)
    assert "6 jobs: 6 done before" in err
    status, again, _ = make(*TABLE, "--report-only")
    assert (status, again) == (0, first)
    assert len(repo.calls()) == 6
    # A figure of the same run finds it.
    make("figure3", "--datasets", "dtd", "--dry-run")
    assert len(repo.calls()) == 6
    _, _, err = make("figure3", "--datasets", "dtd", "--dry-run")
    assert "0 of 2 jobs to run" in err


def test_a_failed_row_says_why_and_the_others_are_printed(make, repo):
    repo.plan(fail=["train_base/dtd/shots_16/RAda/table7_l1"])
    status, out, _ = make(*TABLE)
    assert status == 1
    assert "- / - / -" in row_of(out, "l1 [")
    assert "50.00 / 82.16" in row_of(out, "l2")
    assert "2 of 2 runs are missing: ValueError: the reason it failed" in out


def test_nothing_finished(make, repo):
    repo.plan(fail=["output"])
    status, out, err = make(*TABLE)
    assert status == 1
    assert "table7: no finished run under" in err.splitlines()[-1]
    assert "ValueError: the reason it failed" in err.splitlines()[-1]
    assert not (repo.output / "papers").exists()


def test_datasets_that_are_not_there_are_left_out(make, repo):
    status, out, _ = make(
        "table7", "--seeds", "1", "--datasets", "dtd", "eurosat", gone=["eurosat"]
    )
    assert status == 0
    assert {call["out"].split("/")[-5] for call in repo.calls()} == {"dtd"}
    assert "eurosat is not there: no directory." in out


def test_other_options_are_named(make):
    _, out, _ = make(*TABLE, "--", "OPTIM.MAX_EPOCH", "2")
    assert "Run with OPTIM.MAX_EPOCH 2, in place of the recipe's." in out
    _, out, _ = make(*TABLE, "--backbone", "RN50")
    assert "Run with RN50 in every row, so that nothing compares with the paper." in out


@pytest.mark.parametrize("kind", ["figure3", "figure4", "figure5"])
def test_pictures_of_a_mask(make, monkeypatch, kind):
    drawn = []
    monkeypatch.setattr("scripts.papers.masks.draw_mask", lambda *given: drawn.append(given))
    status, out, _ = make(kind, "--datasets", "dtd", "--devices", "cpu")
    assert status == 0
    ((name, job, paths, request),) = drawn
    assert name == {"figure3": "rows", "figure4": "histogram", "figure5": "maps"}[kind]
    assert job.key.stage == "train_base"
    assert [path.name for path in paths] == [f"{kind}_dtd.png", f"{kind}_dtd.pdf"]
    assert request.device == "cpu"
    assert f"![{kind}_dtd]({kind}_dtd.png)" in out
    assert "RAda: the release's scripts run one seed." in out


def test_a_signal_stops_before_the_next_protocol(make, monkeypatch):
    started = []
    monkeypatch.setattr(paper, "commands", lambda *_: [["--protocol", "base2novel"]] * 2)
    monkeypatch.setattr(paper, "plan", lambda *_: [])
    monkeypatch.setattr(paper, "start", lambda words, *_: started.append(words) or 130)
    assert make(*TABLE)[0] == 130
    assert len(started) == 1


def test_every_kind_of_entry_is_made():
    """What ``making`` decides by kind covers all that the catalogue has."""
    from scripts.papers.catalogue import PICTURES, read_catalogue

    kinds = {entry.kind for entry in read_catalogue().values()}
    assert kinds == {"means", "datasets", "shifts", "costs", "sweep", *PICTURES}
    assert making.PICTURE_SUFFIXES == (".png", ".pdf")
