"""From a table's name to its jobs: every name, the datasets asked for, what is refused."""

import shlex
from collections import Counter

import pytest
import yaml

from scripts import paper
from scripts.jobs.protocols import FEW_SHOT_DATASETS, REPO
from scripts.papers import catalogue
from scripts.papers.catalogue import NOTHING_PRINTED, read_catalogue
from scripts.papers.runs import Request, chosen_datasets, commands
from scripts.reporting import published

# Training and test of 3 seeds on 11 datasets are 66 jobs a row; figures have one seed.
JOBS = {
    "table1": 8 * 3 * 6 + 3,  # two rows share CLIP's runs; RAdaFT starts from another RAdaFFT
    "table2": 12 * 66,
    "table3": 8 * 3 * 4 + 4 * 3,  # CoOp, CoCoOp, MaPLe and RAda train on ImageNet first
    "table4": 10 * 66,
    "table5": 2 * 6 + 3 + 6,  # MaPLe trains first
    "table6": 18 + 3,
    "table7": 3 * 66,
    "table8": 12 * 66,
    "table9": 8 * 66,
    "table10": 4 * 66,
    "figure3": 2,
    "figure4": 2,
    "figure5": 2,
    "figure6": 10 * 66,
    "lightra": 9 * 66,
}


def dry_run(capsys, tmp_path, *words):
    folders = ("--root", str(tmp_path / "data"), "--output", str(tmp_path / "output"))
    assert paper.main([*words, *folders, "--dry-run"]) == 0
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def flag(command, name):
    return command[command.index(name) + 1]


def folders(found):
    return ["/".join(flag(command, "--output-dir").split("/")[-7:]) for command in found]


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        paper.main(list(words))
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_every_name_is_counted():
    assert list(JOBS) == list(read_catalogue())


@pytest.mark.parametrize("name", JOBS)
def test_jobs_of_a_name(name, capsys, tmp_path):
    found = folders(dry_run(capsys, tmp_path, name))
    assert len(found) == JOBS[name]
    assert len(set(found)) == len(found), "no job twice"
    assert not list(tmp_path.iterdir()), "a dry run touches nothing"


def test_every_row_has_a_config_file_and_a_printed_row():
    for entry in read_catalogue().values():
        for row in entry.rows:
            assert bool(row.run) != bool(row.absent), row.label
            file = REPO / "configs" / "trainers" / row.trainer / f"{row.cfg}.yaml"
            assert row.absent or file.is_file(), file
            if entry.table and row.printed != NOTHING_PRINTED:
                table = published.find_table(entry.paper, entry.table, row.backbone, row.setting)
                assert (row.printed or row.label) in table["rows"], row.label


def test_every_printed_row_has_a_row():
    """Of RAda's tables and of LightRA's page."""
    found = {
        (row.backbone, entry.table, row.setting, row.printed or row.label)
        for entry in read_catalogue().values()
        for row in entry.rows
    }
    for table in published.read_tables():
        if table["paper"] in ("RAda", "LightRA"):
            setting = table["protocol"] if table["table"].startswith("Table 5") else ""
            wanted = {(table["backbone"], table["table"], setting, name) for name in table["rows"]}
            assert wanted <= found, wanted - found


def test_sweep_has_the_weights_of_its_files():
    sweep = read_catalogue()["figure6"]
    values = {row.cfg: row.value for row in sweep.rows if row.value is not None}
    assert sorted(values.values()) == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    for cfg, value in values.items():
        file = REPO / "configs" / "trainers" / "RAda" / f"{cfg}.yaml"
        assert yaml.safe_load(file.read_text()).get("ALPHA", 1.5) == value


def test_some_datasets_and_seeds(capsys, tmp_path):
    words = ("table4", "--datasets", "eurosat,dtd", "--seeds", "7")
    found = folders(dry_run(capsys, tmp_path, *words))
    assert Counter(folder.split("/")[2] for folder in found) == {"eurosat": 20, "dtd": 20}
    assert {folder.split("/")[-1] for folder in found} == {"seed7"}


def test_a_picture_is_of_the_first_seed(capsys, tmp_path):
    found = folders(dry_run(capsys, tmp_path, "figure3", "--datasets", "dtd", "--seeds", "4 5"))
    assert found == [
        f"base2novel/{stage}/dtd/shots_16/RAda/base2novel/seed4"
        for stage in ("train_base", "test_new")
    ]


@pytest.mark.parametrize(
    ("name", "asked", "datasets"),
    [
        ("table2", (), FEW_SHOT_DATASETS),
        ("table2", ("eurosat", "dtd"), ("dtd", "eurosat")),
        ("table2", ("shapes",), ("shapes",)),
        ("table1", ("imagenet_r",), ("imagenet", "imagenet_r")),
        ("table1", ("shapes_v2",), ("shapes", "shapes_v2")),
        ("table1", ("shapes",), ("shapes", "shapes_v2", "shapes_sketch", "shapes_r", "shapes_a")),
        ("table3", ("imagenet_a",), ("imagenet_a",)),
        ("table3", ("shapes",), ("shapes_v2", "shapes_sketch", "shapes_r", "shapes_a")),
    ],
)
def test_datasets_of_a_table(name, asked, datasets):
    entry = read_catalogue()[name]
    assert sorted(chosen_datasets(entry, asked)) == sorted(datasets)
    if entry.protocol.train_stage and entry.protocol.crosses:
        assert chosen_datasets(entry, asked)[0] in ("imagenet", "shapes"), "the source is first"


def test_a_row_of_another_protocol_gets_one_example():
    entry = read_catalogue()["table5"]
    trained, adapted = commands(entry, ["dtd"], Request())
    assert flag(trained, "--datasets") == "dtd"
    assert (flag(adapted, "--source"), flag(adapted, "--targets")) == ("imagenet", "imagenetv2")
    _, adapted = commands(entry, ["shapes"], Request())
    assert (flag(adapted, "--source"), flag(adapted, "--targets")) == ("shapes", "shapes_v2")


def test_flags_and_options_are_passed_on(capsys, tmp_path):
    words = ("figure4", "--datasets", "shapes", "--devices", "cpu", "--backbone", "RN50")
    folders_ = ("--root", str(tmp_path), "--output", str(tmp_path), "--jobs-per-device", "2")
    options = ("--", "OPTIM.MAX_EPOCH", "1")
    assert paper.main([*words, *folders_, "--dry-run", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "--device cpu" in line
        assert "OPTIM.MAX_EPOCH 1 MODEL.BACKBONE.NAME RN50 DATASET.NUM_SHOTS 16" in line


class TestBadInput:
    def test_unknown_name(self, capsys):
        line = refused(capsys, "tabel2")
        assert "name: 'tabel2' is not available. Did you mean 'table2'" in line
        assert "figure6, lightra" in line

    def test_dataset_that_the_table_does_not_have(self, capsys):
        line = refused(capsys, "table1", "--datasets", "dtd")
        assert "--datasets: 'dtd' is not available." in line
        assert "Available for table1: imagenet, imagenetv2" in line
        assert "'shapes_v2' is not available" in refused(
            capsys, "table2", "--datasets", "shapes_v2"
        )

    def test_suite_beside_real_datasets(self, capsys):
        line = refused(capsys, "table2", "--datasets", "dtd", "shapes")
        assert "--datasets: shapes is a demonstration, which shares no table with real" in line

    @pytest.mark.parametrize("word", ["--trainer", "--shots", "--source", "--no-report"])
    def test_what_the_table_decides(self, capsys, word):
        assert f"{word} is decided by table2; leave it out" in refused(capsys, "table2", word, "1")

    def test_backbone_where_the_rows_differ_in_it(self, capsys):
        line = refused(capsys, "table8", "--backbone", "RN50")
        assert "--backbone is what the rows of table8 differ in; leave it out" in line

    def test_flags_that_run_refuses(self, capsys):
        assert "unrecognized arguments: --devcies" in refused(capsys, "table2", "--devcies", "1")
        assert "--seeds: 'x' is no whole number" in refused(capsys, "table2", "--seeds", "x")

    def test_dry_run_of_a_report(self, capsys):
        line = refused(capsys, "table2", "--dry-run", "--report-only")
        assert "both run nothing; give one of them" in line

    def test_no_data(self, capsys, tmp_path):
        assert paper.main(["table2", "--datasets", "dtd", "--root", str(tmp_path)]) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"table2: none of its datasets is under --root {tmp_path} (dtd)" in line
        assert f"python scripts/data.py fetch dtd --root {tmp_path}" in line

    def test_no_source(self, capsys, tmp_path):
        assert paper.main(["table1", "--root", str(tmp_path)]) == 1
        assert "table1: imagenet, which it trains on, is not under" in capsys.readouterr().err

    def test_no_results(self, capsys, tmp_path):
        words = ["table7", "--datasets", "shapes", "--report-only", "--root", str(tmp_path)]
        assert paper.main([*words, "--output", str(tmp_path / "out")]) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"table7: no finished run under {tmp_path / 'out'}" in line
        assert "Without --report-only, this command runs what is missing" in line


def test_the_catalogue_names_what_it_lacks():
    with pytest.raises(ValueError, match="'table11' is not available"):
        catalogue.find_entry("table11")


def test_rows_that_name_rada_itself_are_its_default_form():
    """If the default changes, these rows need config files that say what they are."""
    from trainers.rada import MASK_DEFAULTS

    rows = {name: {r.label: r.run for r in read_catalogue()[name].rows} for name in JOBS}
    assert rows["table7"]["l2"] == rows["table10"]["1 layer"] == "RAda/base2novel"
    assert (MASK_DEFAULTS["REG"].default, MASK_DEFAULTS["MASK_LAYERS"].default) == ("l2", 1)
