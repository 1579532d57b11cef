"""Test images shared among processes: each counted once, each adapted as one process would."""

from pathlib import Path

import pytest
import torch

from dassl.engine import build_trainer, read_result
from dassl.utils.distributed import rank
from tests.dassl.distributed_toys import run_processes
from tests.trainers.test_time.starts import make_run, views_options
from trainers.test_time.token_statistics import FILE_NAME

# 100 images are 14 batches of 7 and one of 2, and the first of two processes takes the odd one too.
BATCH, SHARES = 7, (7 * 7 + 2, 7 * 7)


@pytest.fixture
def runs(make_config):
    """(output) -> the configs of tests of three methods, in folders of that name."""
    maple = make_run(make_config, "MaPLe")

    def make(output):
        starts = {"PromptAlign": ("FIRST_STAGE.DIR", str(maple.output_dir))}
        return [
            make_config(
                f"{name}/ttt",
                *views_options(name),
                *(f"TRAINER.{name}.BATCH", str(BATCH)),
                *("DATASET.SUBSAMPLE_CLASSES", "base"),
                *starts.get(name, ()),
                dataset="shapes_v2",
                output=f"{output}/{name}",
            )
            for name in ("RAdaTTT", "TPT", "PromptAlign")
        ]

    return make, maple.output_dir


def test_metrics_are_those_of_one_process(runs, shapes_root, tmp_path):
    make, start = runs
    two, one = make("two"), make("one")

    def both(roots, output):
        for cfg in two:
            trainer = build_trainer(cfg)
            assert len(trainer.test_loader.sampler) == SHARES[rank()]
            trainer.train()

    assert run_processes(both, (shapes_root,), tmp_path / "said") == [0, 0]
    file = Path(start, FILE_NAME)
    shared = torch.load(file, weights_only=True)
    file.unlink()
    for cfg in one:
        build_trainer(cfg).train()
    alone = torch.load(file, weights_only=True)
    for name in ("images", "dataset", "model"):
        assert shared[name] == alone[name]
    for name in ("mean", "variance"):
        torch.testing.assert_close(shared[name], alone[name], rtol=1e-6, atol=1e-7)
    for first, second in zip(two, one, strict=True):
        found, expected = read_result(first.OUTPUT_DIR), read_result(second.OUTPUT_DIR)
        for key in ("metrics", "per_class", "num_test"):
            assert found[key] == expected[key]
        assert found["processes"] == 2
