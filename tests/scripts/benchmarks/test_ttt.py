"""Test-time training in the benchmark: the ways it compares agree, and what it prints."""

import pytest
import torch

from scripts import bench
from scripts.benchmarks import ttt as bench_ttt
from trainers.heads import RationalHead


def test_all_ways_agree():
    features, text = bench_ttt.make_features(3, 20, 7, 32)
    features, text = features.double(), text.double()
    for spread in (0, 0.05):
        start = RationalHead(32).double().requires_grad_(False)
        for parameter in start.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
        found = [way(start, features, text, 4) for way in bench_ttt.WAYS]
        still = start(features[:, 0], text, bench_ttt.SCALE).logits
        for other in found[:-1]:
            torch.testing.assert_close(found[-1], other, atol=1e-7, rtol=1e-7)
        assert (found[-1] - still).abs().max() > 1e-3


def test_table(capsys):
    words = ["ttt", "--sizes", "32x5", "--images", "2", "--views", "10", "--rounds", "1"]
    assert bench.main([*words, "--threads", "1", "--backbone", "none"]) == 0
    ones, trained = capsys.readouterr().out.splitlines()[2:4]
    assert ones.split()[:3] == ["ones", "32", "5"]
    assert trained.split()[0] == "trained"
    assert float(ones.split()[-1]) < 1e-5


def test_share_of_the_encoder(capsys, tiny_checkpoint):
    words = ["--sizes", "64x5", "--images", "2", "--views", "10", "--rounds", "1"]
    words += ["--threads", "1", "--backbone", tiny_checkpoint]
    assert bench_ttt.main(words) == 0
    *_, ones, trained = capsys.readouterr().out.splitlines()
    for line in (ones, trained):
        assert 0 < float(line.split(", ")[-1].split("%")[0]) < 100


@pytest.mark.parametrize("size", ["128", "12x40", "0x3", "8x0", "x"])
def test_sizes_that_cannot_be(capsys, size):
    with pytest.raises(SystemExit):
        bench_ttt.main(["--sizes", size])
    assert "--sizes" in capsys.readouterr().err
