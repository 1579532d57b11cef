"""SLURM's own srun starts one run on two nodes."""

import os
import subprocess
import sys

import pytest

import train
from tests.conftest import REPOSITORY
from tests.dassl.distributed.test_machines import VIEWS, same_result, words_of

pytestmark = pytest.mark.cluster


def test_srun_starts_a_run_on_two_nodes(slurm, shapes_root, tmp_path):
    words = words_of(shapes_root, tmp_path / "two", "RAdaTTT/ttt", "shapes_v2", *VIEWS)
    command = ["srun", "--nodes=2", "--ntasks-per-node=1", sys.executable]
    # The nodes have names of their own, which are no machine's.
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [*command, str(REPOSITORY / "train.py"), *words],
        env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Result written to") == 1
    train.main(words_of(shapes_root, tmp_path / "one", "RAdaTTT/ttt", "shapes_v2", *VIEWS))
    same_result(tmp_path / "two", tmp_path / "one")
