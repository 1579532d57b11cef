"""Full fine-tuning and test-time training in the driver and in the reports."""

import shlex
from pathlib import Path

import pytest

from scripts import report
from scripts.jobs.protocols import ALL_IMAGES, PROTOCOLS, RunKey, read_shots, source_of
from scripts.reporting.published import shown
from scripts.reporting.results import Selection
from scripts.run import main

SUITE_SHIFTS = ["shapes_v2", "shapes_sketch", "shapes_r", "shapes_a"]
FIVE = ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r", "objectnet"]


def dry_run(repo, capsys, *words):
    assert main(["--dry-run", *words, "--seeds", "1"], repo=repo.path) == 0
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def flag(command, name):
    return command[command.index(name) + 1] if name in command else None


def places(commands):
    """(stage, dataset, trainer, cfg) of each command."""
    return [tuple(flag(c, "--output-dir").split("/")[i] for i in (2, 3, 5, 6)) for c in commands]


@pytest.fixture
def staged(repo):
    """A repository in which RAda's full fine-tuning starts from LightRA's."""
    repo.write("configs/trainers/RAda/fft.yaml", "FIRST_STAGE: {CONFIG: LightRA/first}\n")
    repo.write("configs/trainers/LightRA/first.yaml", "OPTIM: {LR: 0.001}\n")
    return repo


# ------------------------------------------------------------------ jobs


def test_fft_trains_on_all_images_and_evaluates_on_shifts(repo, capsys):
    words = ("--protocol", "fft", "--trainer", "LightRA")
    train, *tests = dry_run(repo, capsys, *words, "--source", "shapes")
    assert places([train]) == [("train", "shapes", "LightRA", "fft")]
    assert flag(train, "--output-dir").split("/")[4] == "shots_all"
    assert train[-4:] == ["DATASET.NUM_SHOTS", "-1", "DATASET.SUBSAMPLE_CLASSES", "all"]
    assert [place[:2] for place in places(tests)] == [("test", name) for name in SUITE_SHIFTS]
    assert all("DATASET.NUM_SHOTS" not in test for test in tests)
    assert {flag(test, "--model-dir") for test in tests} == {flag(train, "--output-dir")}
    imagenet = dry_run(repo, capsys, *words)
    assert [place[1] for place in places(imagenet)] == ["imagenet", *FIVE]
    assert PROTOCOLS["fft"].trainer == "RAdaFT"


def test_first_stage_is_made_first_and_its_directory_passed_on(staged, capsys):
    words = ("--protocol", "fft", "--trainer", "RAda", "--source", "shapes")
    first, second, *tests = dry_run(staged, capsys, *words)
    assert places([first, second]) == [
        ("train", "shapes", "LightRA", "first"),
        ("train", "shapes", "RAda", "fft"),
    ]
    assert flag(first, "--config-file") == "configs/trainers/LightRA/first.yaml"
    assert flag(second, "FIRST_STAGE.DIR") == flag(first, "--output-dir")
    assert "--eval-only" not in second
    assert flag(second, "--model-dir") is None
    assert flag(first, "FIRST_STAGE.DIR") is None
    for test in tests:
        assert flag(test, "--model-dir") == flag(second, "--output-dir")
        assert flag(test, "FIRST_STAGE.DIR") is None


def test_a_first_stage_asked_for_by_itself_runs_once(staged, capsys):
    staged.write("configs/trainers/RAda/fft.yaml", "FIRST_STAGE: {CONFIG: LightRA/fft}\n")
    words = ("--protocol", "fft", "--source", "shapes", "--targets", "shapes_r", "--trainer")
    for trainers in ("RAda LightRA", "LightRA RAda"):
        found = places(dry_run(staged, capsys, *words, trainers))
        assert len(found) == len(set(found)) == 4
        stages = {(stage, trainer) for stage, _, trainer, _ in found}
        assert stages == {(s, t) for s in ("train", "test") for t in ("RAda", "LightRA")}
        order = [trainer for stage, _, trainer, _ in found if stage == "train"]
        assert order == ["LightRA", "RAda"]


def test_second_stage_is_repeated_when_its_first_one_changes(staged):
    words = ("--protocol", "fft", "--trainer", "RAda", "--source", "shapes", "--seeds", "1")
    words += ("--targets", "shapes_r")
    assert staged.run(*words) == 0
    assert len(staged.calls()) == 3
    assert staged.run(*words) == 0
    assert len(staged.calls()) == 3, "all done"
    staged.write("configs/trainers/LightRA/first.yaml", "OPTIM: {LR: 0.002}\n")
    assert staged.run(*words) == 0
    assert len(staged.calls()) == 6


def test_failed_first_stage_skips_what_needs_it(staged):
    staged.plan(fail=["LightRA/first"])
    words = ("--protocol", "fft", "--trainer", "RAda", "--source", "shapes", "--seeds", "1")
    assert staged.run(*words) == 1
    assert staged.calls() == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("LightRA/none", "FIRST_STAGE.CONFIG is 'LightRA/none', but there is no"),
        ("LightRA", "FIRST_STAGE.CONFIG is 'LightRA', but there is no"),
        ("RAda/fft", "it is its own first stage"),
    ],
)
def test_first_stages_that_cannot_be_are_named(repo, capsys, config, message):
    repo.write("configs/trainers/RAda/fft.yaml", f"FIRST_STAGE: {{CONFIG: {config}}}\n")
    with pytest.raises(SystemExit) as stop:
        main(["--protocol", "fft", "--trainer", "RAda", "--source", "shapes"], repo=repo.path)
    assert stop.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "configs/trainers/RAda/fft.yaml" in error
    assert message in error


def test_ttt_only_evaluates(repo, capsys):
    words = ("--protocol", "ttt", "--trainer", "LightRA")
    tests = dry_run(repo, capsys, *words, "--source", "shapes")
    assert places(tests) == [("test", name, "LightRA", "ttt") for name in SUITE_SHIFTS]
    assert all("--eval-only" in test for test in tests)
    assert all(flag(test, "--model-dir") is None for test in tests)
    imagenet = dry_run(repo, capsys, *words)
    assert [place[1] for place in places(imagenet)] == FIVE[:4]


def test_ttt_evaluates_what_a_first_stage_has_trained(repo, capsys):
    repo.write("configs/trainers/RAda/ttt.yaml", "FIRST_STAGE: {CONFIG: LightRA/few_shot}\n")
    words = ("--protocol", "ttt", "--trainer", "RAda", "--source", "shapes")
    first, *tests = dry_run(repo, capsys, *words)
    assert places([first]) == [("train", "shapes", "LightRA", "few_shot")]
    assert flag(first, "DATASET.NUM_SHOTS") == "16"
    assert len(tests) == 4
    assert {flag(test, "--model-dir") for test in tests} == {flag(first, "--output-dir")}


def test_a_source_without_shifts_needs_targets(repo, capsys):
    with pytest.raises(SystemExit):
        main(["--protocol", "fft", "--trainer", "RAda", "--source", "dtd"], repo=repo.path)
    assert "--targets: name the datasets" in capsys.readouterr().err


def test_all_images_in_the_place_of_shots():
    key = RunKey("fft", "train", "shapes", ALL_IMAGES, "FT", "fft", 3)
    directory = key.directory(Path("/out"))
    assert directory.parts[-4] == "shots_all"
    assert RunKey.parse(directory) == key
    assert read_shots(["all"]) == (ALL_IMAGES,)
    assert read_shots(["4 all", "2"]) == (4, 2, ALL_IMAGES)
    assert source_of("imagenet_a") == source_of("objectnet") == "imagenet"
    assert (source_of("shapes_r"), source_of("shapes_forms")) == ("shapes", "")


# ------------------------------------------------------------------ reports


def write_fft(write_run, trainer, numbers, source="imagenet", **changes):
    for seed in (1, 2):
        run = {"trainer": trainer, "protocol": "fft", "shots": "all", **changes}
        own, *shifts = numbers
        names = FIVE if source == "imagenet" else SUITE_SHIFTS
        trained = write_run("train", source, seed, own, **run)
        for name, number in zip(names, shifts, strict=True):
            write_run("test", name, seed, number + seed, **run, model_dir=str(trained))


def test_table_of_fft_has_source_shifts_and_their_mean(write_run, tmp_path):
    write_fft(write_run, "FT", (80, 70, 48, 46, 71, 52))
    (section,) = report.build(Selection("fft", tmp_path)).sections
    (table,) = section.tables
    assert table.header == ["trainer", "imagenet", *FIVE, "OOD mean"]
    assert table.rows[0][:3] == ["FT", "80.00 ± 0.00", "71.50 ± 0.71"]
    assert table.rows[0][-1] == "58.90 ± 0.71"
    names = [row[0] for row in table.rows]
    assert names == ["FT", "CLIP *", "RAda *", "RAda-FT *"]
    assert table.rows[-1] == [
        *("RAda-FT *", "81.40", "71.90", "50.40", "51.70", "75.50", "56.80", "61.26"),
    ]
    assert not section.warnings


def test_published_numbers_stand_beside_the_same_shifts_only(write_run, tmp_path):
    write_fft(write_run, "FT", (80, 70, 48, 46, 71, 52))
    for name in ("objectnet",):
        for file in tmp_path.glob(f"fft/test/{name}/**/result.json"):
            file.unlink()
    (section,) = report.build(Selection("fft", tmp_path)).sections
    assert [row[0] for row in section.tables[0].rows] == ["FT"]


def test_suite_has_a_table_without_published_numbers(write_run, tmp_path):
    write_fft(write_run, "FT", (80, 70, 48, 46, 71), source="shapes", backbone="shapes")
    (section,) = report.build(Selection("fft", tmp_path)).sections
    assert section.suite
    assert section.tables[0].header == ["trainer", "shapes", *SUITE_SHIFTS, "OOD mean"]
    assert [row[0] for row in section.tables[0].rows] == ["FT"]


def test_a_mere_first_stage_has_no_row(write_run, tmp_path):
    write_fft(write_run, "RAdaFT", (80, 70, 48, 46, 71, 52))
    run = {"trainer": "RAdaFFT", "protocol": "fft", "shots": "all", "cfg": "fft_5epochs"}
    write_run("train", "imagenet", 1, 70, **run)
    (section,) = report.build(Selection("fft", tmp_path)).sections
    assert section.series == ["RAdaFT"]
    (section,) = report.build(Selection("fft", tmp_path, cfg=("fft", "fft_5epochs"))).sections
    assert len(section.series) == 2


def test_table_of_ttt_has_no_source(write_run, tmp_path):
    for trainer, gain in (("ZeroshotCLIP", 0), ("RAdaTTT", 5)):
        for number, name in enumerate(FIVE[:4]):
            write_run("test", name, 1, 60 + gain + number, trainer=trainer, protocol="ttt")
    write_run("train", "imagenet", 1, 70, trainer="RAda", protocol="ttt", cfg="few_shot")
    (section,) = report.build(Selection("ttt", tmp_path)).sections
    assert section.title == "ttt, shifts of imagenet"
    (table,) = section.tables
    assert table.header == ["trainer", *FIVE[:4], "OOD mean"]
    assert [row[0] for row in table.rows][-2:] == ["CLIP *", "RAda *"]
    means = {row[0]: row[-1] for row in table.rows}
    assert means == {
        "RAdaTTT": "66.50", "ZeroshotCLIP": "61.50", "CLIP *": "57.20", "RAda *": "63.49",
    }  # fmt: skip


def test_means_of_published_rows_are_over_shifts():
    assert [round(row.values["shifts"], 2) for row in shown("fft")] == [58.38, 57.82, 61.26]
    assert [row.values["shifts"] for row in shown("ttt")] == pytest.approx([57.2, 63.495])
