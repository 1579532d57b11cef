"""`bench.py gpu` on the CPU: cases on tiny towers, processes, what is made of a profile."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from dassl.engine import graphs
from scripts import bench
from scripts.benchmarks import cases, gpu, gpu_cases, gpu_timing, released
from scripts.benchmarks.gpu_cases import CASES, EPOCH, NAMES, Bench
from scripts.benchmarks.gpu_timing import merged, spans, time_step
from tests.dassl.test_graphs import Recording

CPU = torch.device("cpu")
# One case for each form; the last three are not in `bench.py released`.
FORMS = ["LightRA/100/4/amp", "RAda-head/50/1", "RAdaTTT/200/16/bf16", "RAdaFT/100/32/amp"]
GRAPHS = "RAda-head/50/1/graphs"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Measures with three classes and towers of one layer."""
    root = tmp_path_factory.mktemp("gpu")
    cases.write_head_towers(root / "tiny.pt")
    return Bench(root, str(root / "tiny.pt"), "cpu", most=3)


class TestCases:
    def test_what_is_asked_for_is_there(self):
        assert {f"LightRA/{k}/4/amp" for k in (24, 100, 500, 1000)} <= CASES.keys()
        assert {f"RAda-head/{k}/{b}" for k in (50, 1000) for b in (1, 32)} <= CASES.keys()
        assert GRAPHS in CASES
        assert {f"RAda/{k}/{b}/amp" for k in (50, 1000) for b in (1, 32)} <= CASES.keys()
        for name in ("MaPLe", "PromptSRC", "CoOp", "RAdaFT", "TPT", "RAdaTTT"):
            assert any(case.label == name for case in CASES.values())
        assert sorted(NAMES) == sorted([*CASES, EPOCH])
        assert len(set(NAMES)) == len(NAMES)

    @pytest.mark.parametrize("name", FORMS)
    def test_ours_and_the_plain_form_are_measured(self, name, tiny, monkeypatch):
        monkeypatch.setattr(gpu_timing, "ENOUGH", 0.1)
        row = tiny.measure(name)
        assert "error" not in row
        assert (row["classes"], row["precision"]) == (3, CASES[name].precision)
        assert row["times"] == row["release_seconds"] / row["ours_seconds"]
        assert row["images_a_second"] == row["batch"] * row["ours_a_second"] > 0
        assert row["ours_mib"] > 0
        assert row["ours_busy"] is row["release_busy"] is None, "a CPU is no GPU"

    def test_steps_of_a_graph_are_replayed(self, tiny, monkeypatch):
        monkeypatch.setattr(graphs, "CUDAGraph", Recording)
        monkeypatch.setattr(Recording, "replays", 0)
        monkeypatch.setattr(gpu_timing, "ENOUGH", 0.1)
        assert "error" not in tiny.measure(GRAPHS)
        steps = Recording.replays
        assert steps > 0
        assert "error" not in tiny.measure("RAda-head/50/1")
        assert Recording.replays == steps, "not asked for"

    @pytest.mark.parametrize("name", ["RAdaFT/100/32", "RAdaTTT/200/16/bf16"])
    def test_plain_forms_compute_what_ours_does(self, name, tiny, tiny_checkpoint):
        case = CASES[name]._replace(classes=3, batch=2)
        gap = released.check(case, tiny.inputs(3), tiny_checkpoint, "cpu")
        assert 0 <= gap <= released.TOLERANCE

    def test_a_difference_is_said_beside_the_times(self, tiny, monkeypatch):
        def differ(*_):
            raise ValueError("they do not compute the same\nat all")

        monkeypatch.setattr(released, "check", differ)
        monkeypatch.setattr(gpu_timing, "ENOUGH", 0.1)
        row = Bench(tiny.root, tiny.backbone, "cpu", most=3).measure("RAda-head/50/1")
        assert row["error"] == "check: ValueError: they do not compute the same"
        assert row["times"] > 0

    def test_what_a_way_lacks_does_not_hide_the_other(self, tiny, monkeypatch):
        prepared = released.prepared

        def full(case, way, *rest):
            if way == "release":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            return prepared(case, way, *rest)

        monkeypatch.setattr(released, "prepared", full)
        monkeypatch.setattr(gpu_timing, "ENOUGH", 0.1)
        row = tiny.measure("RAda-head/50/1")
        assert row["note"].startswith("release: OutOfMemoryError: CUDA out of memory. Tried")
        assert "error" not in row, "a card may be too small for it"
        assert row["ours_seconds"] > 0
        assert "release_seconds" not in row
        assert "times" not in row

    def test_an_epoch_from_pictures(self, tiny, monkeypatch):
        monkeypatch.setattr(gpu_cases, "EPOCH_SIDE", 32)
        monkeypatch.setattr(gpu_cases, "EPOCH_WORKERS", 1)
        row = tiny.measure(EPOCH)
        assert row["images_a_second"] > 0
        assert (row["method"], row["batch"], row["ours_busy"]) == (EPOCH, 4, None)


class TestTiming:
    def test_fast_steps_are_repeated_and_slow_ones_less(self, monkeypatch):
        monkeypatch.setattr(gpu_timing, "peak_mib", lambda _: 7.0)
        for seconds, timed in ((0.001, 20), (0.5, 8), (3.0, 3)):
            calls = []

            def median(run, count, _, seconds=seconds, calls=calls):
                calls.append(count)
                run()
                return seconds

            monkeypatch.setattr(gpu_timing, "median_seconds", median)
            steps = []
            found = time_step(lambda steps=steps: steps.append(1), CPU)
            assert (found["steps"], found["seconds"], found["mib"]) == (timed, seconds, 7.0)
            assert calls == [1, 1, timed, 1, 1]
            assert found["a_second"] == timed / seconds

    @pytest.mark.parametrize(
        ("given", "length"),
        [
            ([], 0),
            ([(0, 2), (5, 6)], 3),
            ([(5, 6), (0, 2), (1, 3), (1, 2)], 4),  # unsorted, overlapping, inside
            ([(0, 10), (2, 3), (9, 12)], 12),
        ],
    )
    def test_what_runs_at_the_same_time_counts_once(self, given, length):
        assert merged(given) == length

    def test_only_what_runs_on_the_gpu_counts(self):
        def event(start, end, device=DeviceType.CUDA, annotation=False):
            return SimpleNamespace(
                time_range=SimpleNamespace(start=start, end=end),
                device_type=device,
                is_user_annotation=annotation,
            )

        events = [event(0, 4), event(0, 9, DeviceType.CPU), event(0, 9, annotation=True)]
        assert spans(events) == [(0, 4)]

    def test_the_profilers_events_have_what_is_read(self):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            torch.ones(3) @ torch.ones(3)
        assert found.events()
        assert spans(found.events()) == []


# Stands for bench.py: writes lines as a worker does, dies, or hangs.
WORKER = """
import json, os, sys, time
task = json.loads(sys.argv[sys.argv.index("--worker") + 1])
print("what the engine prints")
if "silent" in task["names"][0]:
    sys.exit(9)
def note(**line):
    with open(task["file"], "a") as file:
        file.write(json.dumps(line) + "\\n")
for name in task["names"]:
    note(name=name)
    if name == "dies":
        os._exit(139)
    if name == "hangs":
        time.sleep(60)
    note(name=name, row={"method": name})
    if name == "ends":
        sys.exit(1)
"""


class TestProcesses:
    @pytest.fixture
    def run(self, tmp_path, monkeypatch):
        (tmp_path / "scripts").mkdir()
        (tmp_path / "scripts" / "bench.py").write_text(WORKER)
        monkeypatch.setattr(gpu, "REPO", tmp_path)

        def run(*names, seconds=60.0, each=60.0):
            task = {"names": list(names), "root": str(tmp_path)}
            return gpu.measure_all(task, seconds, each, tmp_path / "log")

        return run

    def test_one_process_measures_all(self, run, tmp_path):
        assert run("a", "b") == {"a": {"method": "a"}, "b": {"method": "b"}}
        assert (tmp_path / "log").read_text().count("what the engine prints") == 1

    def test_the_next_process_goes_on_behind_what_ended_one(self, run):
        found = run("a", "dies", "b", "ends", "c")
        assert list(found) == ["a", "dies", "b", "ends", "c"]
        assert found["dies"] == {"error": "its process ended with status 139"}
        assert found["ends"] == {"method": "ends"}, "it was measured before"
        assert found["c"] == {"method": "c"}

    def test_a_name_that_takes_too_long_is_ended(self, run):
        found = run("a", "hangs", "b", each=3.0)
        assert found["hangs"] == {"error": "took longer than 3 s"}
        assert found["b"] == {"method": "b"}

    def test_when_the_time_is_up_the_rest_is_not_run(self, run):
        found = run("a", "hangs", "b", seconds=3.0)
        assert found == {"a": {"method": "a"}, "hangs": {"error": gpu.NOT_RUN}}

    def test_a_process_that_never_starts_a_name(self, run):
        found = run("silent", "a")
        assert found["silent"] == {"error": "its process ended with status 9"}
        assert found["a"] == {"method": "a"}


class TestCommand:
    def test_writes_and_prints_all_names(self, tmp_path, monkeypatch, capsys):
        measured = {"method": "MaPLe", "classes": 3, "ours_seconds": 0.002, "times": 2.0}
        measured |= {"error": "release: too slow"}
        monkeypatch.setattr(gpu, "measure_all", lambda *_: {"MaPLe/100/4": measured})
        names = ["MaPLe/100/4", "CoOp/100/4"]
        words = ["gpu", "--tiny", "--json", str(tmp_path / "rows.json"), "--names", *names]
        assert bench.main(words) == 1
        rows = json.loads((tmp_path / "rows.json").read_text())
        assert [row["name"] for row in rows] == names
        assert rows[1]["error"] == gpu.NOT_RUN
        lines = capsys.readouterr().out.splitlines()
        assert lines[2].split()[:3] == ["MaPLe", "3", "-"]
        assert lines[2].split()[5:8] == ["2", "-", "2.00"]
        assert lines[3:] == ["MaPLe/100/4: release: too slow", f"CoOp/100/4: {gpu.NOT_RUN}"]

    def test_wrong_words(self, capsys):
        assert bench.main(["gpu", "--names", "MaPLe"]) == 1
        assert "--names: 'MaPLe' is none of LightRA/100/4/amp" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            bench.main(["gpu", "--seconds", "0"])
        assert "--seconds must be at least 1, got 0" in capsys.readouterr().err
