"""What benchmarks measure with, and what the efficiency table counts."""

import copy
import json
import subprocess
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import clip
from scripts import bench
from scripts.benchmarks import command as bench_command
from scripts.benchmarks import efficiency
from scripts.benchmarks.tools import (
    backbone_name,
    build_run,
    count_gflops,
    peak_mib,
    reset_peak,
    resident_mib,
    write_checkpoint,
)
from tests.conftest import tiny_model
from trainers.heads import RationalHead, mask_attention

CPU = torch.device("cpu")


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(shape), dim=-1)


def flops(run) -> float:
    return 1e9 * count_gflops(run)


class TestTools:
    def test_counts_attention_of_the_cpu(self):
        q = torch.randn(2, 3, 8, 16, requires_grad=True)
        one = 2 * 2 * 3 * 8 * 8 * 16  # a product of (8, 16) and (16, 8) matrices, six times
        with torch.no_grad():
            assert flops(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * one
        assert flops(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward()) == 7 * one

    def test_counts_attention_modules_in_evaluation(self):
        module = torch.nn.MultiheadAttention(64, 2, batch_first=True).eval()
        x = torch.randn(1, 8, 64)
        with torch.no_grad():
            counted = flops(lambda: module(x, x, x, need_weights=False))
        assert counted == 4 * 2 * 8 * 64 * 64 + 2 * 2 * 8 * 8 * 64
        assert torch.backends.mha.get_fastpath_enabled()

    @pytest.mark.parametrize("kept", [0, 2**20], ids=["again", "kept"])
    def test_counts_inside_the_mask(self, kept, monkeypatch):
        """Its attention is a custom function, which may make matrices again in its backward."""
        monkeypatch.setattr(mask_attention, "KEPT_ELEMENTS", kept)
        b, k, d = 2, 6, 64
        image, text, head = unit(b, d), unit(k, d), RationalHead(d)
        scale = torch.tensor(100.0)
        pairs, rows = 2 * b * k * k * d, 2 * b * k * d
        with torch.no_grad():
            forward = flops(lambda: head(image, text, scale))
        linear = 2 * d * d * (b + k + 3 * b * k + b * k)  # queries of f, h; R's three; out
        # two sets of scores, one average times V; the image's own scores and values; f h^T
        assert forward == linear + 3 * pairs + 2 * rows + rows
        both = flops(lambda: head(image, text, scale).logits.sum().backward())
        # gradients of the weights, and through out; per set scores again, queries and keys; once
        # scores and values; the image's three; and some dot products, less than one such product
        of_a_set = 2 if kept else 3
        backward = linear + 2 * d * d * b * k + (2 * of_a_set + 2) * pairs + 3 * rows
        assert forward + backward <= both < forward + backward + pairs

    @pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
    def test_memory_of_a_piece_of_work(self):
        reset_peak(CPU)
        before = resident_mib()
        some = torch.ones(2**24)  # 64 MiB
        assert peak_mib(CPU) - before > 60
        del some
        reset_peak(CPU)
        assert peak_mib(CPU) - before < 30

    def test_random_backbone(self, tmp_path):
        model = tiny_model()
        write_checkpoint(copy.deepcopy(model), tmp_path / "random.pt")
        loaded = clip.load(str(tmp_path / "random.pt")).model.state_dict()
        for name, weight in model.state_dict().items():
            assert torch.equal(loaded[name], weight.half().float())
        assert backbone_name("shapes", tmp_path) == "shapes"
        with pytest.raises(ValueError, match=r"--backbone: 'random:ViT-X' is random:<arch"):
            backbone_name("random:ViT-X", tmp_path)


def measured(root, method, kind="pictures"):
    return efficiency.measure(method, kind, 4, root, "shapes", "cpu", 1)


class TestEfficiency:
    def test_pictures_are_a_dataset(self, root):
        data = build_run("ZeroshotCLIP", Path(root), "shapes", "cpu").dm.dataset
        assert data.classnames == ["thing 0000", "thing 0001", "thing 0002"]
        assert (len(data.train_x), len(data.test)) == (6, 6)

    @pytest.mark.parametrize("method", efficiency.methods())
    def test_every_method(self, root, method):
        found = measured(root, method)
        assert list(found) == [
            *("method", "input", "batch", "precision", "parameters", "train_speed", "peak_mib"),
            *("train_gflop", "test_speed", "test_gflop"),
        ]
        assert (found["method"], found["input"], found["batch"]) == (method, "pictures", 4)
        assert found["test_speed"] > 0
        assert found["test_gflop"] > 0.01  # the vision tower's, in all
        if found["parameters"]:
            assert found["train_speed"] > 0
            assert found["train_gflop"] >= found["test_gflop"]
        else:
            assert found["train_speed"] is found["peak_mib"] is found["train_gflop"] is None

    def test_numbers_of_features(self, root):
        zeroshot = measured(root, "ZeroshotCLIP", "features")
        assert zeroshot["test_gflop"] == pytest.approx(2 * 3 * 128 / 1e9)  # f h^T alone
        rada = measured(root, "RAda", "features")
        assert rada["parameters"] == 6 * (128**2 + 128)
        assert 0 < rada["test_gflop"] < rada["train_gflop"] < 0.01

    def test_tasks(self):
        args = efficiency.build_parser().parse_args(
            ["--trainers", "LightRA", "RAda", "--batch", "1", "2"]
        )
        assert [tuple(task.values()) for task in efficiency.tasks(args)] == [
            ("LightRA", "pictures", 1),
            ("LightRA", "pictures", 2),
            ("RAda", "pictures", 1),
            ("RAda", "pictures", 2),
            ("RAda", "features", 1),
            ("RAda", "features", 2),
        ]

    @pytest.mark.usefixtures("forked_processes")
    def test_a_process_of_its_own(self, capsys):
        words = ["--backbone", "shapes", "--trainers", "LightRA", "--classes", "2", "--batch", "3"]
        words += ["--steps", "1", "--device", "cpu", "--threads", "1", "--json"]
        assert efficiency.main(words) == 0
        (found,) = json.loads(capsys.readouterr().out)
        assert found["batch"] == 3
        assert found.keys() == efficiency.COLUMNS.keys()

    def test_failures_are_shown(self, monkeypatch, capsys):
        def run(command, **_):
            task = json.loads(command[command.index("--worker") + 1])
            good = {key: 1234 for key in efficiency.COLUMNS} | {"method": "RAda", "input": "x"}
            good |= {"precision": "fp32"}
            if task["method"] == "RAda":
                return subprocess.CompletedProcess(command, 0, json.dumps(good), "")
            return subprocess.CompletedProcess(command, 1, "", "Traceback\nValueError: no ViT\n")

        monkeypatch.setattr(bench_command.subprocess, "run", run)
        words = ["--backbone", "shapes", "--trainers", "RAda", "LightRA", "--classes", "1"]
        assert bench.main(["efficiency", *words, "--batch", "8"]) == 1
        lines = capsys.readouterr().out.splitlines()
        for heading, _ in efficiency.COLUMNS.values():
            assert heading in lines[0]
        assert lines[2].split()[:4] == ["RAda", "x", "1234", "fp32"]
        assert "1,234" in lines[2]
        assert lines[-2].split() == ["LightRA", "pictures", "8", *"-------"]
        assert lines[-1] == "LightRA (pictures, batch 8): ValueError: no ViT"

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--trainers", "RADA"], "Did you mean 'RAda'"),
            (["--backbone", "shape"], "Unknown backbone 'shape'"),
        ],
    )
    def test_wrong_names(self, words, message, capsys):
        assert efficiency.main(words) == 1
        assert message in capsys.readouterr().err
