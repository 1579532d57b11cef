"""A small repository with configs and a stand-in for train.py, and a way to write results."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from scripts.jobs import protocols  # noqa: E402
from scripts.jobs.pool import JobPool  # noqa: E402
from scripts.jobs.protocols import RunKey  # noqa: E402

# Takes train.py's flags, notes in calls.jsonl that and where it ran, writes result.json. What it
# does is told by fake.json in the directory it runs in: run directories to fail in, and so on.
FAKE_TRAIN = """
import json, os, subprocess, sys, time
words = sys.argv[1:]
flags, options = {}, []
while words:
    word = words.pop(0)
    if word == "--eval-only":
        flags[word] = True
    elif word.startswith("--"):
        flags[word] = words.pop(0)
    else:
        options.append(word)
out = flags["--output-dir"]
plan = json.load(open("fake.json")) if os.path.exists("fake.json") else {}
def wanted(name):
    return any(part in out for part in plan.get(name, []))
env = {k: os.environ.get(k) for k in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
call = {"out": out, "flags": flags, "options": options, "env": env, "start": time.time()}
if plan.get("child"):
    # A data loading worker of sorts, that does not want to stop.
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    call["child"] = subprocess.Popen([sys.executable, "-S", "-c", code]).pid
call["pid"], call["parent"] = os.getpid(), os.getppid()
print("progress 1\\rprogress 2")
print("training", out, flush=True)
if plan.get("hang"):
    open("started", "w").write(json.dumps(call))
    time.sleep(60)
time.sleep(plan.get("sleep", 0))
if wanted("fail"):
    sys.exit("ValueError: the reason it failed")
o = dict(zip(options[::2], options[1::2]))
result = {
    "format": 1, "status": "running" if wanted("unfinished") else "complete",
    "seed": int(flags["--seed"]), "trainer": flags["--trainer"], "backbone": "shapes",
    "subsample_classes": o["DATASET.SUBSAMPLE_CLASSES"], "metrics": {"accuracy": 50.0},
    "model_dir": flags.get("--model-dir", ""), "time": time.time(),
    "dataset": flags["--dataset-config-file"], "config": {}, "config_hash": "",
}
json.dump(result, open(os.path.join(out, "result.json"), "w"))
call["end"] = time.time()
open("calls.jsonl", "a").write(json.dumps(call) + "\\n")
"""

# A plan of two jobs, and where they write.
ONE = ("--protocol", "base2novel", "--datasets", "dtd", "--seeds", "1")
TRAIN = "base2novel/train_base/dtd/shots_16/LightRA/base2novel/seed1"
TEST = "base2novel/test_new/dtd/shots_16/LightRA/base2novel/seed1"

TRAINERS = ("LightRA", "RAda")
DATASETS = (*protocols.DATASET_ORDER, "folder")


@pytest.fixture(autouse=True)
def _quick_pool(monkeypatch):
    monkeypatch.setattr(JobPool, "poll", 0.01)
    monkeypatch.setattr(JobPool, "patience", 0.05)


@pytest.fixture
def forked_processes(monkeypatch, forking_python):
    """Let processes of Python that a script starts be forks, which need not import PyTorch."""
    monkeypatch.setattr(sys, "executable", str(forking_python))


def copy_scripts(path: Path) -> Path:
    """Copy the scripts and what they need of the engine, with what Python has compiled of them."""
    shutil.copytree(ROOT / "scripts", path / "scripts")
    for folder in ("dassl", "dassl/config", "dassl/tracking", "dassl/utils", "datasets"):
        (path / folder).mkdir()
        for file in (ROOT / folder).glob("*.py"):  # the rows, which nothing heavy is behind
            shutil.copy(file, path / folder)
    for script in ROOT.glob("run_*.sh"):
        shutil.copy(script, path)
    return path


@pytest.fixture(scope="session")
def copied_scripts(tmp_path_factory) -> Path:
    """A folder that all repositories of the tests link to."""
    return copy_scripts(tmp_path_factory.mktemp("copied"))


class FakeRepo:
    """A repository in a temporary directory; the scripts in it are links to a copy."""

    def __init__(self, path: Path, copied_scripts: Path) -> None:
        self.path = path
        self.output = path / "output"
        shutil.copytree(copied_scripts, path, copy_function=os.link, dirs_exist_ok=True)
        (path / "pyproject.toml").touch()  # a clone, not an installed package
        (path / "train.py").write_text(FAKE_TRAIN)
        for name in DATASETS:
            self.write(f"configs/datasets/{name}.yaml", f"DATASET:\n  NAME: {name.title()}\n")
        for trainer in TRAINERS:
            for stem in protocols.PROTOCOLS:
                self.write(f"configs/trainers/{trainer}/{stem}.yaml", "OPTIM:\n  LR: 0.005\n")

    def write(self, name: str, text: str) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).unlink(missing_ok=True)  # a link leads to the file of all other tests
        (self.path / name).write_text(text)

    def plan(self, **plan: object) -> None:
        self.write("fake.json", json.dumps(plan))

    def calls(self) -> list[dict]:
        file = self.path / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def stages(self) -> list[str]:
        return [call["out"].split("/")[2] for call in self.calls()]

    def run(self, *words: str) -> int:
        from scripts.run import main

        command = (sys.executable, "-S", "-E", str(self.path / "train.py"))
        return main([*words, "--no-report"], repo=self.path, train_command=command)


@pytest.fixture
def repo(tmp_path, copied_scripts, monkeypatch) -> FakeRepo:
    """A repository that is the current directory."""
    (tmp_path / "repo").mkdir()
    monkeypatch.chdir(tmp_path / "repo")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return FakeRepo(tmp_path / "repo", copied_scripts)


@pytest.fixture
def write_run(tmp_path):
    """Return a function that writes the result of a run under ``tmp_path``."""

    def write(stage, dataset, seed, accuracy, /, *, trainer="LightRA", cfg="", shots=16, **changes):
        protocol = {"train_base": "base2novel", "test_new": "base2novel"}.get(stage, "")
        protocol = changes.pop("protocol", protocol)
        key = RunKey(protocol, stage, dataset, shots, trainer, cfg or protocol, seed)
        directory = key.directory(tmp_path)
        result = {
            "format": 1,
            "status": "complete",
            "trainer": trainer,
            "dataset": dataset,
            "backbone": "ViT-B/16",
            "seed": seed,
            "subsample_classes": protocols.PROTOCOLS[protocol].classes_of(stage),
            "metrics": {"accuracy": accuracy},
            "num_test": 1000,
            "chance": 2.0,
            "config": {"SEED": seed, "OPTIM": {"LR": 0.005}},
            "config_hash": "",
            "split_hash": f"{dataset}{seed}",
            "notes": [],
            "model_dir": "",
            **changes,
        }
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "result.json").write_text(json.dumps(result))
        return directory

    return write
