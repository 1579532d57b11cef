"""``train.py --help-config``."""

import subprocess
import sys

import pytest

import train
from tests.conftest import REPOSITORY


def printed(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        train.main(["--help-config", *words])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_one_key(capsys):
    assert printed(capsys, "OPTIM.LR") == (
        "OPTIM.LR 0.0003\n"
        "    learning rate before its schedule; allowed: a finite number above 0, at most 10000\n"
    )


def test_a_section_whatever_its_case(capsys):
    out = printed(capsys, "trainer.LightRA")
    keys = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert "TRAINER.LightRA.N_CTX_TEXT" in keys
    assert all(key.startswith("TRAINER.LightRA.") for key in keys)
    assert "learned keys per head of the text tower; allowed: a whole number 1 to 1024" in out


def test_names_that_are_registered_are_listed(capsys):
    assert "Shapes" in printed(capsys, "DATASET.NAME")


def test_all_keys(capsys):
    out = printed(capsys)
    for key in ("SEED -1", "ALPHA 1.5", "DATASET.SPLIT_SEED 1", "TRAINER.WiseFT.ALPHA 0.5"):
        assert f"\n{key}\n" in f"\n{out}"
    assert "no description" not in out


@pytest.mark.parametrize(
    ("word", "hint"),
    [("OPTIM.LRR", "'OPTIM.LR'"), ("OPTIMM", "'OPTIM'"), ("TRAINER.CoOpp", "CoOp")],
)
def test_unknown_keys_have_a_nearest(capsys, word, hint):
    with pytest.raises(SystemExit) as stop:
        train.main(["--help-config", word])
    assert stop.value.code == 2
    assert f"no config key or section {word!r}. Did you mean" in (err := capsys.readouterr().err)
    assert hint in err


def test_a_pipe_that_closes_is_no_error():
    command = f"{sys.executable} train.py --help-config | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "VERSION 1\n", "")
