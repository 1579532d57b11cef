"""scripts/gpu.sh: its stages, its report, and all of it on tiny towers on the CPU."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch

from scripts import gpu
from scripts.benchmarks.gpu import NOT_RUN
from scripts.benchmarks.gpu_cases import EPOCH
from scripts.benchmarks.gpu_report import TARGETS, make_report, markdown, published
from scripts.benchmarks.outcomes import VARIABLE, read_outcomes
from tests.conftest import REPOSITORY

SHELL = REPOSITORY / "scripts" / "gpu.sh"


class TestWithoutGPU:
    def test_the_command_says_so(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert gpu.main([str(tmp_path / "out")]) == 3
        printed = capsys.readouterr()
        assert printed.err.startswith("no CUDA GPU: PyTorch ")
        assert printed.err.count("\n") == 1
        assert printed.out == ""
        assert not (tmp_path / "out").exists()

    @pytest.mark.skipif(
        os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg"), reason="there is a GPU"
    )
    def test_nothing_is_installed_where_there_is_none(self, tmp_path):
        # In a copy: the checkout may have an environment of its own.
        copies = tmp_path / "scripts"
        copies.mkdir()
        for name in ("gpu.sh", "setup.sh"):
            shutil.copy(SHELL.parent / name, copies)
        found = subprocess.run(
            ["bash", str(copies / SHELL.name)],
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin"},
        )
        assert found.returncode == 3
        assert found.stderr.startswith("no CUDA GPU: ")
        assert (found.stderr.count("\n"), found.stdout) == (1, "")
        assert [path.name for path in tmp_path.iterdir()] == ["scripts"]

    def test_a_given_python_is_used(self, tmp_path):
        python = tmp_path / "python"
        python.write_text('#!/bin/sh\necho "$@"\n')
        python.chmod(0o755)
        words = ["bash", str(SHELL), "some folder", "--seconds", "5"]
        env = {"PATH": os.environ["PATH"], "PYTHON": str(python)}
        found = subprocess.run(words, capture_output=True, text=True, env=env)
        assert found.stdout == "scripts/gpu.py some folder --seconds 5\n"
        assert found.returncode == 0


class TestStages:
    def run(self, tmp_path, code, limit=30.0, good=(0,)):
        command = [sys.executable, "-c", code]
        return gpu.run_stage(command, limit, tmp_path / "log", {"GIVEN": "7"}, good)

    def test_what_it_prints_is_kept(self, tmp_path):
        stage = self.run(tmp_path, "import os; print(os.environ['GIVEN'])")
        assert stage.ending == "finished"
        assert (tmp_path / "log").read_text() == "7\n"

    def test_statuses(self, tmp_path):
        assert self.run(tmp_path, "raise SystemExit(1)", good=(0, 1)).ending == "finished"
        assert self.run(tmp_path, "raise SystemExit(4)").ending == "ended with status 4"

    def test_one_over_its_limit_is_ended_with_what_it_started(self, tmp_path):
        child = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', "
        child += "'import time; time.sleep(60)']); print(p.pid, flush=True); time.sleep(60)"
        stage = self.run(tmp_path, child, limit=2.0)
        assert stage.ending == "stopped at its limit of 2 s"
        assert stage.seconds < 20
        number = int((tmp_path / "log").read_text())
        for _ in range(100):  # the system takes a moment to forget it
            if not running(number):
                break
            time.sleep(0.1)
        assert not running(number)

    def test_processes_by_cores_and_memory(self):
        def words(cores, memory, device="cuda"):
            return gpu.test_command(device, "", {"cores": cores, "memory_gib": memory})

        assert words(16, 80)[-2:] == ["-n", "8"]
        assert words(8, 80)[-2:] == ["-n", "4"]
        assert words(16, 8)[-2:] == ["-n", "2"]
        assert "-n" not in words(2, 80)
        assert "-n" not in words(16, None, "cpu")
        assert gpu.test_command("cuda", "a or b", {"cores": 1, "memory_gib": 8})[-2:] == [
            "-k", "a or b"
        ]  # fmt: skip


def running(number):
    try:
        with open(f"/proc/{number}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


TESTS = """
import time
import pytest

def test_good(): pass
def test_bad(): assert [1, 2] == [1, 3]
@pytest.mark.skip(reason="no such card")
def test_skipped(): pass
@pytest.fixture
def broken(): raise RuntimeError("no room")
def test_setup(broken): pass
@pytest.fixture
def late():
    yield
    raise RuntimeError("too late")
def test_teardown(late): pass
def test_bad_twice(late): assert 0, "the first"
def test_last(): {last}
"""


@pytest.fixture
def outcomes(tmp_path):
    """(the last test's body, pytest's words) -> what the plugin has noted, by the test's name."""

    def run(last, *words, timeout=120):
        (tmp_path / "test_some.py").write_text(TESTS.format(last=last))
        file = tmp_path / "found.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "scripts.benchmarks.outcomes"]
        command += ["-p", "no:cacheprovider", "-c", "/dev/null", str(tmp_path), *words]
        env = {**os.environ, VARIABLE: str(file), "PYTHONPATH": str(REPOSITORY)}
        limit = gpu.run_stage(command, timeout, tmp_path / "log", env, (0, 1))
        found = {test["name"].rpartition("::")[2]: test for test in read_outcomes(file)}
        return limit.ending, found

    return run


class TestOutcomes:
    @pytest.mark.parametrize("words", [(), ("-n", "2")], ids=["alone", "several processes"])
    def test_of_every_kind(self, outcomes, words):
        ending, found = outcomes("pass", *words)
        assert ending == "finished"
        assert {name: test["outcome"] for name, test in found.items()} == {
            "test_good": "passed",
            "test_bad": "failed",
            "test_skipped": "skipped",
            "test_setup": "failed",
            "test_teardown": "failed",
            "test_bad_twice": "failed",
            "test_last": "passed",
        }
        assert found["test_skipped"]["message"] == "Skipped: no such card"
        assert found["test_bad"]["message"].startswith("assert [1, 2] == [1, 3]")
        assert found["test_setup"]["message"] == "RuntimeError: no room"
        assert found["test_bad_twice"]["message"].startswith("AssertionError: the first")

    def test_what_was_over_before_the_limit_is_kept(self, outcomes):
        ending, found = outcomes("time.sleep(60)", timeout=10)
        assert ending == "stopped at its limit of 10 s"
        assert found["test_good"]["outcome"] == "passed"
        assert found["test_last"]["outcome"] == "not run"

    def test_no_file_and_a_line_cut_off(self, tmp_path):
        assert read_outcomes(tmp_path / "none") == []
        (tmp_path / "cut").write_text('{"collected": ["a", "b"]}\n{"name": "a", "outc')
        assert [test["outcome"] for test in read_outcomes(tmp_path / "cut")] == ["not run"] * 2


MACHINE = {"card": "Some Card", "cards": 1, "driver": None, "cuda": "12.4"}
FINISHED = {"seconds": 3.0, "ending": "finished"}


def report(tests=(), rows=(), **stages):
    tests = [dict(zip(("name", "outcome", "message"), test, strict=True)) for test in tests]
    return make_report(MACHINE, {"tests": FINISHED, "bench": FINISHED, **stages}, tests, rows, 9.0)


PASSED = ("tests/cuda/a.py::test_a", "passed", "")
ROW = {
    "name": "LightRA/100/4/amp", "method": "LightRA", "classes": 100, "batch": 4, "times": 3.5,
    "input": "pictures", "precision": "amp", "ours_seconds": 0.01, "release_seconds": 0.035,
    "ours_a_second": 120.0, "images_a_second": 480.0, "ours_mib": 900.0, "release_mib": 3000.0,
    "ours_busy": 0.934, "release_busy": None,
}  # fmt: skip


class TestReport:
    def test_keys(self):
        found = report([PASSED], [ROW])
        assert list(found) == [
            "ok", "summary", "machine", "seconds", "stages", "tests", "methods", "timings",
            "targets", "published", "not_run",
        ]  # fmt: skip
        assert found["ok"]
        assert found["summary"] == (
            "1 tests passed, 0 failed, 0 skipped; 1 measurements, 0 failed; 0 not run"
        )

    @pytest.mark.parametrize(
        "changes",
        [
            {"tests": [PASSED, ("b", "failed", "why")]},
            {"tests": [PASSED, ("b", "not run", "")]},
            {"tests": []},
            {"rows": []},
            {"rows": [{**ROW, "error": "release: out of memory"}]},
            {"rows": [ROW, {"name": EPOCH, "error": NOT_RUN}]},
            {"bench": {"seconds": 1.0, "ending": "ended with status 9"}},
        ],
    )
    def test_it_is_ok_only_if_all_ran_and_passed(self, changes):
        assert not report(**{"tests": [PASSED], "rows": [ROW], **changes})["ok"]

    def test_skipped_tests_and_missed_targets_are_no_failure(self):
        found = report([PASSED, ("b", "skipped", "two GPUs")], [{**ROW, "times": 1.5}])
        assert found["ok"]
        assert found["targets"][0]["verdict"] == "missed"

    def test_targets(self):
        rows = [
            ROW,
            {"name": EPOCH, "ours_busy": 0.79},
            {"name": "LightRA/1000/4/amp", "ours_mib": 7629.0},
            {"name": "RAdaTTT/200/16/bf16", "error": "ours: failed"},
        ]
        found = report([PASSED], rows)["targets"]
        assert len(found) == len(TARGETS) == 5
        assert found[2]["what"].startswith("RAdaTTT, ")
        verdicts = [(t["shown"], t["bound"], t["verdict"]) for t in found]
        assert verdicts == [
            ("3.5", "at least 3", "met"),
            ("-", "at least 1500", "not measured"),
            ("-", "at least 200", "not measured"),
            ("79%", "at least 80%", "missed"),
            ("7629", "at most 7629", "met"),
        ]

    def test_every_method_by_precision(self):
        start = "tests/cuda/test_every_method.py::test_trains_and_more"
        tests = [(f"{start}[RAda-fp32]", "passed", ""), (f"{start}[RAda-amp]", "failed", "why")]
        tests += [(f"{start}[CoOp-amp]", "not run", ""), PASSED]
        found = report(tests, [ROW])
        assert found["methods"] == {
            "RAda": {"fp32": "passed", "amp": "failed"},
            "CoOp": {"amp": "not run"},
        }
        cells = [line.replace(" ", "") for line in markdown(found).splitlines()]
        assert {"|method|fp32|amp|", "|RAda|passed|failed|", "|CoOp|-|notrun|"} <= set(cells)

    def test_published_numbers_stand_beside(self):
        training, test_time = published()
        assert {name: row["fps"] for name, row in training["rows"].items()} == {
            "MaPLe": 27.20, "RAda": 50.11
        }  # fmt: skip
        assert {name: row["fps"] for name, row in test_time["rows"].items()} == {
            "MaPLe": 34.51, "RAda": 68.39
        }  # fmt: skip
        assert "A100" in training["note"]

    def test_markdown(self):
        tests = [PASSED, ("tests/b.py::test_b", "failed", "assert 1 == 2 | really")]
        rows = [ROW, {"name": EPOCH, "error": NOT_RUN}]
        lines = markdown(report(tests, rows)).splitlines()
        assert lines[0] == "# GPU report: Some Card"
        table = next(line for line in lines if line.startswith("| LightRA "))
        assert [cell.strip() for cell in table.strip("|").split("|")] == [
            "LightRA", "100", "4", "pictures", "amp", "10", "35", "3.50", "480", "900", "3000",
            "93%", "-",
        ]  # fmt: skip
        assert f"- {EPOCH}: {NOT_RUN}" in lines
        failed = next(line for line in lines if "test_b" in line)
        assert "assert 1 == 2 \\| really" in failed
        assert any("MaPLe 27.2 images/s, RAda 50.11 images/s" in line for line in lines)


class TestAll:
    @pytest.mark.usefixtures("forked_processes")
    def test_on_the_cpu(self, tmp_path, capsys):
        words = [str(tmp_path), "--device", "cpu", "--tiny", "--select", "test_mask and 5"]
        status = gpu.main([*words, "--names", "RAda-head/50/1/graphs", "--seconds", "200"])
        found = json.loads((tmp_path / "gpu_report.json").read_text())
        assert status == 0, (tmp_path / "tests.log").read_text()
        assert found["ok"]
        assert found["tests"]["passed"] == len(found["tests"]["outcomes"]) == 2
        (row,) = found["timings"]
        assert row["times"] > 0
        assert found["targets"][1]["verdict"] in ("met", "missed")
        assert found["machine"]["torch"] == torch.__version__
        assert (tmp_path / "gpu_report.md").read_text().startswith("# GPU report: no GPU")
        assert found["summary"] in capsys.readouterr().out

    def test_a_failing_stage_does_not_stop_the_next(self, tmp_path, monkeypatch):
        failing = [sys.executable, "-c", "raise SystemExit(7)"]
        monkeypatch.setattr(gpu, "test_command", lambda *_: failing)
        rows = json.dumps([ROW])

        def bench(args, path, *_):
            return [sys.executable, "-c", f"open({str(path)!r}, 'w').write({rows!r})"]

        monkeypatch.setattr(gpu, "bench_command", bench)
        assert gpu.main([str(tmp_path), "--device", "cpu"]) == 1
        found = json.loads((tmp_path / "gpu_report.json").read_text())
        assert found["stages"]["tests"]["ending"] == "ended with status 7"
        assert found["stages"]["bench"]["ending"] == "finished"
        assert found["not_run"] == ["tests"]
        assert found["timings"] == [ROW]
