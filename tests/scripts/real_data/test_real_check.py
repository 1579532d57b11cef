"""scripts/real_check.py on a small folder of the public layout."""

import gzip
import json
import shutil

import numpy as np
import pytest
import yaml

from dassl.engine import read_result
from scripts import real_check
from scripts.real_data.arrays import EXPECTED


@pytest.fixture
def check(made, tmp_path, capsys):
    """(words) -> exit status, standard output and standard error on a copy of the folder."""
    folder, expected = made
    root = tmp_path / "real"
    shutil.copytree(folder, root)

    def run(*words, expected=expected):
        words = ("--root", root, "--expected", expected, *words)
        status = real_check.main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    run.root, run.expected = root, expected
    return run


def test_all_is_equal(check, tmp_path):
    status, out, _ = check("--quick", "--save", tmp_path / "found.md")
    assert status == 0, out
    assert "24 of 24 equal" in out
    assert "8 of 8 equal" in out
    assert (tmp_path / "found.md").read_text() == out


@pytest.mark.parametrize("there", [True, False], ids=["empty", "no folder"])
def test_absent_data_is_said_in_a_line(check, there):
    shutil.rmtree(check.root)
    if there:
        check.root.mkdir()
    status, out, err = check("--quick")
    assert (status, out) == (3, "")
    assert len(err.splitlines()) == 1
    assert "has none of the files" in err


def test_a_wrong_value_is_found(check, tmp_path):
    expected = yaml.safe_load(check.expected.read_text())
    row = next(row for row in expected["zero_shot"] if row["images"] == "base_test")
    right = row["accuracy"]["base"]
    wrong = tmp_path / "wrong.yaml"
    for step, status in ((0.004, 0), (0.011, 1), (-0.011, 1)):
        row["accuracy"]["base"] = right + step
        wrong.write_text(yaml.safe_dump(expected))
        found, out, _ = check("--quick", expected=wrong)
        assert found == status, out
    (line,) = [line for line in out.splitlines() if "DIFFERS" in line]
    assert "dtd_vit_b16.npz" in line
    assert f"{right:.2f}" in line
    assert "23 of 24 equal" in out


def test_images_that_changed_are_found(check):
    """Labels that are shifted by one class: what a wrong class order looks like."""
    file = check.root / "oxford_pets_25_classes_vit_b32.npz"
    arrays = dict(np.load(file))
    arrays["test_label"] = (arrays["test_label"] + 1) % 5
    np.savez(file, **arrays)
    status, out, _ = check("--quick")
    assert status == 1
    assert "21 of 24 equal" in out


def test_a_missing_file_and_a_missing_array_are_named(check):
    (check.root / "zero_shot_logits_pets.npz").unlink()
    np.savez(check.root / "zero_shot_logits_dtd.npz", cosines=np.eye(3))
    (check.root / "zero_shot_logits_caltech.npz").write_bytes(b"PK\x03\x04 half a file")
    status, out, _ = check("--quick")
    assert status == 1
    assert "zero_shot_logits_pets.npz is missing in" in out
    assert "zero_shot_logits_dtd.npz has no array 'cosine', only 'cosines'" in out
    assert "15 of 24 equal" in out


def test_a_text_of_another_width_is_named(check):
    file = check.root / "imagenet_vit_b32.npz"
    arrays = dict(np.load(file))
    np.savez(file, **{**arrays, "text": arrays["text"][:, :7]})
    status, out, _ = check("--quick")
    assert status == 1
    assert "imagenet_vit_b32.npz: train_1 (5, 8) does not fit text (5, 7)" in out


def change_draws(root, change):
    file = root / "few_shot_draws.json.gz"
    with gzip.open(file, "rt") as stream:
        draws = json.load(stream)
    change(draws)
    with gzip.open(file, "wt") as stream:
        json.dump(draws, stream)


def test_a_wrong_draw_is_named(check):
    def swap(draws):
        train = draws["OxfordPets"]["2-3"]["train"]
        train[0], train[1] = train[1], train[0]
        draws["Caltech101"]["1-1"]["val"][0] = 99
        draws["Caltech101"]["1-1"]["train"].pop()

    change_draws(check.root, swap)
    status, out, _ = check("--quick")
    assert status == 1
    assert "5 of 8 equal" in out
    assert "OxfordPets, 2 shots, seed 3, train: image 0 is train/1_" in out
    assert "Caltech101, 1 shots, seed 1, val: position 99 is beyond the split file's 15 val" in out
    assert "Caltech101, 1 shots, seed 1, train: 2 images are published, 3 are drawn" in out


def test_a_missing_split_file_and_damaged_draws_are_named(check):
    (check.root / "splits" / "split_zhou_Caltech101.json.gz").unlink()
    status, out, _ = check("--quick")
    assert status == 1
    assert "4 of 8 equal" in out
    assert "split_zhou_Caltech101.json.gz is missing in" in out
    file = check.root / "few_shot_draws.json.gz"
    file.write_bytes(file.read_bytes()[:40])
    status, out, _ = check("--quick")
    assert status == 1
    assert "few_shot_draws.json.gz cannot be read" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--methods", "TaskRess"), "Did you mean 'TaskRes'"),
        (
            ("--expected", "none.yaml"),
            f"no file none.yaml; the project's own is {EXPECTED}",
        ),
        (("--seeds", "x"), "--seeds: 'x' is no whole number"),
    ],
)
def test_a_wrong_command_line_is_named(made, capsys, words, said):
    with pytest.raises(SystemExit) as ended:
        real_check.main(["--root", str(made[0]), *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("forked_processes")
def test_methods_run_once_beside_published_numbers(check, tmp_path):
    words = ("--methods", "ZeroshotCLIP", "GDA", "--seeds", "1", "--device", "cpu")
    words += ("--output", tmp_path / "out", "--save", tmp_path / "found.md")
    status, out, err = check(*words)
    assert status == 0, err
    assert "GDA (val none)" in out
    assert "GDA (CHOSEN ON TEST IMAGES)" in out
    zero_shot = yaml.safe_load(check.expected.read_text())["zero_shot"]
    dtd = [row["accuracy"] for row in zero_shot if row["file"] == "dtd_vit_b16.npz"]
    base, novel = dtd[0]["base"], dtd[1]["novel"]
    (row,) = [row for row in out.splitlines() if row.startswith("| ZeroshotCLIP") and "/" in row]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    hm = 2 * base * novel / (base + novel)
    assert cells[1:3] == [f"{base:.2f}", f"{novel:.2f}"]
    assert float(cells[3]) == pytest.approx(hm, abs=0.011)
    assert cells[4] == "53.24 / 59.90 / 56.37"
    assert float(cells[5]) == pytest.approx(hm - 56.37, abs=0.011)
    # Training used the base classes' own images alone.
    runs = sorted((tmp_path / "out").glob("chosen_*/*/*/*/*/*/*/*/result.json"))
    assert len(runs) == 2 + 2 + 4 + 4
    result = read_result(next(run.parent for run in runs if "train_base/dtd" in str(run)))
    assert result["num_classes"] == 3
    # The same command again runs nothing, and prints the same.
    again, second, err = check(*words)
    assert (again, second) == (0, out)
    assert "12 jobs: 12 done before" in err


@pytest.mark.usefixtures("forked_processes")
def test_what_cannot_be_run_is_left_out(check, tmp_path):
    (check.root / "dtd_vit_b16.npz").unlink()
    (check.root / "caltech101_63_classes_vit_b32.npz").unlink()
    words = ("--methods", "ZeroshotCLIP", "--device", "cpu", "--output", tmp_path / "out")
    status, out, err = check(*words)
    assert status == 1
    assert "dtd is left out: dtd_vit_b16.npz is missing in" in err
    assert "| ZeroshotCLIP |" in out
    assert "oxford_pets_25_classes" in out
