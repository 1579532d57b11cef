"""Trackers: what they are told, what a resumed run continues, and what a failing one may not do."""

import json
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dassl.engine import build_trainer, read_result
from dassl.tracking import tracking
from dassl.tracking.available import check_installed
from dassl.tracking.base import Tracker
from dassl.tracking.tracking import closing_trackers
from tests.dassl.toys import ToyMethod


class Notebook(Tracker):
    """Writes down what it is told; fails where it is told to."""

    def __init__(self, fails_in=()):
        self.fails_in = fails_in
        self.calls, self.scalars = [], {}

    def _note(self, name, value=None):
        self.calls.append((name, value))
        if name in self.fails_in:
            raise ConnectionError("no route\nto the server")

    def start(self, run, earlier):
        self.run, self.place = run, "a notebook"
        self._note("start", earlier)
        return earlier or f"id of {run.name}"

    def scalar(self, tag, value, step):
        if not self.scalars or "scalar" in self.fails_in:
            self._note("scalar")
        self.scalars[tag, step] = value

    def result(self, content):
        self._note("result", content)

    def files(self, paths):
        self._note("files", [path.name for path in paths])

    def close(self, failed):
        self._note("close", failed)


@pytest.fixture
def train(make_cfg, monkeypatch):
    """Train the toy with one tracker, as train.py does; return the tracker."""

    def train(tracker, crash_at=None, **changes):
        monkeypatch.setattr(tracking, "check_installed", lambda names: None)
        monkeypatch.setattr(tracking, "_tracker", lambda name: tracker)
        monkeypatch.setattr(ToyMethod, "crash_at", crash_at)
        trainer = build_trainer(make_cfg(TRACK=("wandb",), **changes))
        with closing_trackers(trainer):
            trainer.train()
        return trainer

    return train


def test_a_tracker_is_told_scalars_result_and_files(train, capsys):
    notebook = Notebook()
    trainer = train(notebook)
    assert [name for name, _ in notebook.calls] == ["start", "scalar", "result", "files", "close"]
    calls = dict(notebook.calls)
    result = read_result(trainer.output_dir)
    assert calls["result"]["metrics"] == result["metrics"]
    assert calls["files"] == ["result.json", "identity.json"]
    assert calls["close"] is False
    # Three epochs of four batches, of which every second is printed; then the test.
    steps = {step for tag, step in notebook.scalars if tag == "train/loss"}
    assert steps == {1, 3, 5, 7, 9, 11} | {trainer.num_batches * n - 1 for n in (1, 2, 3)}
    assert notebook.scalars["test/accuracy", 2] == result["metrics"]["accuracy"]
    assert notebook.run.name == "ToyMethod ToySquares seed 1"
    assert notebook.run.config["OPTIM.LR"] == 0.05
    assert "TRAINER.TOYCOOP.PREC" not in notebook.run.config  # another method's
    assert capsys.readouterr().out.count("Tracking with wandb: a notebook") == 1
    assert not (Path(trainer.output_dir) / "tensorboard").exists()  # it was not asked for


def test_a_resumed_run_continues_its_tracked_run(train):
    first, second, other = Notebook(), Notebook(), Notebook()
    with pytest.raises(KeyboardInterrupt):
        train(first, crash_at=(1, 1))
    assert first.calls[-1] == ("close", True)
    train(second)
    assert second.calls[0] == ("start", "id of ToyMethod ToySquares seed 1")
    assert second.calls[-1] == ("close", False)
    assert min(step for tag, step in second.scalars if tag == "train/loss") > 3
    train(other)  # the run is finished: the same command trains anew
    assert other.calls[0] == ("start", "")


@pytest.mark.parametrize("where", ["start", "scalar", "result", "files", "close"])
def test_a_failing_tracker_is_left_behind_with_one_line(train, capsys, where):
    notebook = Notebook(fails_in=(where,))
    trainer = train(notebook)
    out = capsys.readouterr().out
    said = "WARNING: wandb has failed, the run goes on without it: no route to the server\n"
    assert out.count("WARNING") == 1
    assert said in out
    assert notebook.calls[-1][0] == where  # nothing more is asked of it
    assert read_result(trainer.output_dir)["metrics"]["accuracy"] >= 0


def test_only_the_first_process_writes(make_cfg, monkeypatch):
    monkeypatch.setattr(tracking, "check_installed", lambda names: None)
    monkeypatch.setattr(tracking, "is_main", lambda: False)
    made = tracking.tracking_of(make_cfg(TRACK=("wandb", "mlflow")), 1, None)
    made.scalar("train/loss", 1.0, 0)
    made.close(failed=False)
    assert made.ids == {}


def test_what_is_not_installed_is_refused_before_training(monkeypatch, make_cfg):
    monkeypatch.setattr("dassl.tracking.available.find_spec", lambda name: None)
    for name in ("wandb", "mlflow"):
        with pytest.raises(
            ValueError, match=f"is {name}, but {name} is not installed: pip install {name}"
        ):
            build_trainer(make_cfg(TRACK=(name,)))
    check_installed(["tensorboard"])


def test_none_stands_alone(make_cfg):
    with pytest.raises(ValueError, match="none stands beside wandb; give one of the two"):
        check_installed(["none", "wandb"])
    trainer = build_trainer(make_cfg(TRACK="none"))  # a bare name is a list of one
    trainer.train()
    assert not (Path(trainer.output_dir) / "tensorboard").exists()


@pytest.fixture
def interrupted(make_cfg, monkeypatch):
    """Train with a real tracker, once interrupted and once to the end."""

    def run(tracker):
        cfg = make_cfg(TRACK=(tracker,), TEST__PER_CLASS_RESULT=True)
        for crash_at in ((1, 1), None):
            monkeypatch.setattr(ToyMethod, "crash_at", crash_at)
            trainer = build_trainer(cfg)
            try:
                with closing_trackers(trainer):
                    trainer.train()
            except KeyboardInterrupt:
                assert crash_at
        return trainer

    return run


def test_mlflow_in_a_folder_of_files(interrupted, monkeypatch, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    trainer = interrupted("mlflow")
    result = read_result(trainer.output_dir)
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("vlmadapt")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "ToyMethod ToySquares seed 1"
    assert run.info.status == "FINISHED"
    assert run.data.params["OPTIM.LR"] == "0.05"
    assert run.data.metrics["result/accuracy"] == result["metrics"]["accuracy"]
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert max(metric.step for metric in losses) == 3 * trainer.num_batches - 1
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"per_class.json", "result.json", "identity.json"}
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert json.loads((folder / "result.json").read_text())["metrics"] == result["metrics"]
    table = json.loads((folder / "per_class.json").read_text())
    assert len(table["data"]) == trainer.num_classes


def test_weights_and_biases_without_network(interrupted, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    trainer = interrupted("wandb")
    result = read_result(trainer.output_dir)
    # Each process leaves a folder, which `wandb sync` puts into one run by its id.
    folders = sorted((Path(trainer.output_dir) / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert {folder.name.rsplit("-", 1)[1] for folder in folders} == {trainer.tracking.ids["wandb"]}
    first, second = map(whole_records, folders)
    assert second["run"].display_name == "ToyMethod ToySquares seed 1"
    assert second["run"].run_group == "ToyMethod ToySquares"
    assert second["summary"]["result/accuracy"] == result["metrics"]["accuracy"]
    assert any(name.startswith("result/per_class") for name in second["summary"])  # a table
    assert second["exit_code"] == 0
    assert first["exit_code"] == 1
    assert {"result.json", "identity.json"} <= second["files"]
    assert max(second["steps"]) == 3 * trainer.num_batches - 1


def messages(path):
    """The messages in W&B's file: LevelDB's log format behind a header of seven bytes."""
    content, place, message = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768  # in this block; no part of a message crosses its end
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        message += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield message
            message = b""


def name_of(item):
    return item.key or "/".join(item.nested_key)


def whole_records(folder):
    """A run's records once W&B's own process has written the last one, after the run's end."""
    from google.protobuf.message import DecodeError

    deadline, found = time.monotonic() + 60, {}
    while "exit_code" not in found:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
        with suppress(DecodeError):  # the last one is being written
            found = records(folder)
    return found


def records(folder):
    """What a folder of an offline run tells the server when it is uploaded."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = {"summary": {}, "files": set(), "steps": set()}
    for message in messages(next(folder.glob("*.wandb"))):
        record = Record.FromString(message)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
        elif kind == "exit":
            found["exit_code"] = record.exit.exit_code
        elif kind == "summary":
            found["summary"] |= {
                name_of(i): json.loads(i.value_json) for i in record.summary.update
            }
        elif kind == "files":
            found["files"] |= {item.path for item in record.files.files}
        elif kind == "history":
            steps = [i.value_json for i in record.history.item if name_of(i) == "train/step"]
            found["steps"] |= {json.loads(step) for step in steps}
    return found
