"""What makes a finished job run again: other files, options or bases, a repeated training."""

import json
import shutil
import sys

import pytest

from dassl.config.identity import digest_of, sealed
from dassl.config.inputs import (
    DATA,
    WEIGHTS,
    Recording,
    image_record,
    places_of,
    record_inputs,
)
from scripts.jobs.devices import parse_devices
from scripts.jobs.local import LocalLauncher
from scripts.jobs.plan import Planner
from scripts.jobs.pool import JobPool
from scripts.jobs.settings import read_settings
from scripts.run import build_parser, main
from tests.scripts.conftest import ONE, TEST, TRAIN


@pytest.mark.parametrize(
    ("name", "text", "repeated"),
    [
        ("trainers/LightRA/base2novel", "OPTIM:\n  LR: 0.1\n", True),
        ("trainers/LightRA/base2novel", "# why\nOPTIM: {LR: 0.005}\n", False),
        ("trainers/LightRA/base2novel", "OPTIM: {LR: 0.005}\nPER_DATASET: {Dtd: {A: 1}}\n", True),
        ("trainers/RAda/base2novel", "OPTIM:\n  LR: 0.1\n", False),
        ("datasets/dtd", "DATASET: {NAME: Dtd, PROMPT_TEMPLATE: '{}.'}\n", True),
        ("datasets/eurosat", "DATASET: {NAME: Other}\n", False),
    ],
)
def test_changed_config_file_is_repeated(repo, name, text, repeated):
    repo.run(*ONE)
    repo.write(f"configs/{name}.yaml", text)
    repo.run(*ONE)
    assert len(repo.calls()) == (4 if repeated else 2)


def test_other_datasets_entries_do_not_count(repo):
    file = "configs/trainers/LightRA/base2novel.yaml"
    repo.write(file, "PER_DATASET: {Dtd: {A: 1}, Eurosat: {A: 1}}\n")
    repo.run(*ONE)
    repo.write(file, "PER_DATASET: {Dtd: {A: 1}, Eurosat: {A: 2}}\n")
    repo.run(*ONE)
    assert len(repo.calls()) == 2


class TestBase:
    """What counts as a change when a config file builds on others."""

    FILE = "configs/trainers/LightRA/base2novel.yaml"

    def write(self, repo, low="SEED: 1", mid="OPTIM: {LR: 1.0}", top="OPTIM: {LR: 2.0}", **more):
        repo.write("configs/low.yaml", low)
        repo.write("configs/trainers/mid.yaml", f"_BASE_: ../low.yaml\n{mid}")
        repo.write(self.FILE, f"_BASE_: ../mid.yaml\n{top}")

    def jobs_after(self, repo, **texts):
        """Run with the usual texts, then with these; return how many jobs the second call ran."""
        self.write(repo)
        repo.run(*ONE)
        before = len(repo.calls())
        self.write(repo, **texts)
        repo.run(*ONE)
        return len(repo.calls()) - before

    @pytest.mark.parametrize(
        "texts",
        [
            {"low": "SEED: 2"},
            {"mid": "OPTIM: {LR: 1.0, GAMMA: 0.5}"},
            {"mid": "OPTIM: {LR: 1.0}\nPER_DATASET: {Dtd: {OPTIM: {GAMMA: 0.5}}}"},
            {"low": "SEED: 1\nPER_DATASET: {Dtd: {OPTIM: {GAMMA: 0.5}}}"},
            # It wins over the content now, which it did not as a base's.
            {"top": "PER_DATASET: {Dtd: {OPTIM: {LR: 1.5}}}\nOPTIM: {LR: 2.0}"},
        ],
    )
    def test_changed_base_is_repeated(self, repo, texts):
        assert self.jobs_after(repo, **texts) == 2

    @pytest.mark.parametrize(
        "texts",
        [
            {"low": "# why\nSEED: 1"},
            {"low": "SEED: 1\nPER_DATASET: {Eurosat: {SEED: 2}}"},
            {"mid": "OPTIM: {LR: 3.0}"},  # the top's counts
            {"low": "PER_DATASET: {Dtd: {OPTIM: {LR: 4.0}}}\nSEED: 1"},
            {"low": "", "mid": "OPTIM: {LR: 1.0}\nSEED: 1"},
            {"low": "OPTIM: {LR: 2.0}", "mid": "SEED: 1", "top": ""},
        ],
    )
    def test_files_that_say_the_same_together_are_not(self, repo, texts):
        assert self.jobs_after(repo, **texts) == 0

    def test_keys_may_move_from_a_file_into_a_base(self, repo):
        repo.write(self.FILE, "OPTIM: {LR: 2.0, GAMMA: 0.5}\nPER_DATASET: {Dtd: {SEED: 3}}")
        repo.run(*ONE)
        top = "OPTIM: {GAMMA: 0.5}\nPER_DATASET: {Dtd: {SEED: 3}}"
        self.write(repo, low="", mid="OPTIM: {LR: 2.0}", top=top)
        repo.run(*ONE)
        assert len(repo.calls()) == 2

    def test_text_file_that_a_base_names_counts(self, repo):
        names = {"low": "DATASET: {CLASSNAMES: prompts/names.txt}"}
        repo.write("prompts/names.txt", "a")
        self.write(repo, **names)
        repo.run(*ONE)
        repo.write("prompts/names.txt", "b")
        repo.run(*ONE)
        assert len(repo.calls()) == 4
        # Not where the file above names another one.
        self.write(repo, **names, top="DATASET: {CLASSNAMES: none.txt}")
        repo.run(*ONE)
        repo.write("prompts/names.txt", "c")
        repo.run(*ONE)
        assert len(repo.calls()) == 6

    def test_dataset_files_have_bases_too(self, repo):
        repo.write("configs/datasets/dtd.yaml", "_BASE_: low.yaml\nDATASET: {ROOT: x}")
        repo.write(self.FILE, "PER_DATASET: {Dtd: {A: 1}, Other: {A: 1}}")
        for low, calls in (("Dtd, B: 1", 2), ("Dtd, B: 2", 4), ("Other, B: 2", 6)):
            repo.write("configs/datasets/low.yaml", f"DATASET: {{NAME: {low}}}")
            repo.run(*ONE)
            assert len(repo.calls()) == calls
        repo.write(self.FILE, "PER_DATASET: {Dtd: {A: 2}, Other: {A: 1}}")
        repo.run(*ONE)
        assert len(repo.calls()) == 6


def test_changed_prompt_file_is_repeated(repo):
    repo.write("configs/datasets/dtd.yaml", "DATASET: {NAME: Dtd, PROMPT_PATH: prompts/d.json}\n")
    repo.write("prompts/d.json", '{"a": ["b"]}')
    repo.run(*ONE)
    repo.run(*ONE)
    assert len(repo.calls()) == 2
    repo.write("prompts/d.json", '{"a": ["c"]}')
    repo.run(*ONE)
    assert len(repo.calls()) == 4


@pytest.mark.parametrize(("text", "kept"), [('{"a": ["b"]}', True), ('{"a": ["c"]}', False)])
def test_half_a_training_goes_on_only_with_the_same_files(repo, text, kept):
    repo.write("configs/datasets/dtd.yaml", "DATASET: {NAME: Dtd, PROMPT_PATH: prompts/d.json}\n")
    repo.write("prompts/d.json", '{"a": ["b"]}')
    repo.plan(unfinished=["train_base"])
    repo.run(*ONE)
    resume = repo.output / TRAIN / "resume.pth.tar"
    resume.write_text("state")
    repo.write("prompts/d.json", text)
    repo.run(*ONE)
    assert resume.exists() == kept


def test_changed_options_are_repeated_but_not_another_device_or_root(repo):
    repo.run(*ONE, "--devices", "cpu")
    repo.run(*ONE, "--devices", "auto", "--root", "/elsewhere")
    assert len(repo.calls()) == 2
    # --no-report is put last by the helper, where options end.
    command = (sys.executable, "-S", str(repo.path / "train.py"))
    words = [*ONE, "--no-report", "--", "OPTIM.LR", "0.1"]
    assert main(words, repo=repo.path, train_command=command) == 0
    assert len(repo.calls()) == 4


def test_evaluation_is_repeated_when_its_training_was(repo):
    repo.run(*ONE)
    (repo.output / TRAIN / "result.json").unlink()
    repo.plan(fail=["test_new"])
    repo.run(*ONE)
    # The old evaluation is of weights that are gone, and must not pass for a result.
    assert not (repo.output / TEST / "result.json").exists()
    repo.plan()
    repo.run(*ONE)
    assert repo.stages() == ["train_base", "test_new", "train_base", "test_new"]


def test_repeated_training_in_another_call_is_noticed(repo):
    repo.run(*ONE)
    for name in ("result.json", "job.json"):
        (repo.output / TRAIN / name).unlink()
    words = [*ONE, "--no-report"]
    args = build_parser().parse_args(words)
    command = (sys.executable, "-S", str(repo.path / "train.py"))
    train, test = Planner(read_settings(args, [], repo.path, command)).jobs()
    JobPool([train], LocalLauncher(parse_devices(["cpu"], 1), cwd=repo.path)).run()
    assert train.to_do() == ""
    assert test.to_do() == "its training run was repeated"


def jobs(repo, *words, options=()):
    args = build_parser().parse_args([*ONE, *words, "--no-report"])
    return Planner(read_settings(args, list(options), repo.path, None)).jobs()


def reasons(repo, *words, options=()):
    """Why each job of a command would run; "" where it is done."""
    return [job.to_do() for job in jobs(repo, *words, options=options)]


class TestWhatTheRunRead:
    """The stand-in of train.py reads nothing; what a run would record is put beside its result."""

    @pytest.fixture(autouse=True)
    def finished(self, repo):
        repo.run(*ONE)
        for name in ("pets/cat/1.png", "pets/cat/2.png", "pets/dog/1.png", "pets/split.json"):
            repo.write(f"data/{name}", name)
        data = repo.path / "data"
        read = Recording(
            files={str(data / "pets/split.json"), str(repo.path / "prompts/p.csv")},
            folders={str(data / "pets"), str(data / "pets/cat")},
        )
        repo.write("prompts/p.csv", "a cat")
        repo.write(f"output/{TRAIN}/Net/model.pth.tar-1", "weights")
        places = places_of({DATA: data, WEIGHTS: repo.output / TRAIN})
        places["repository"] = str(repo.path)
        for stage, weights in (
            (TRAIN, set()),
            (TEST, {str(repo.output / TRAIN / "Net/model.pth.tar-1")}),
        ):
            inputs = record_inputs(Recording(read.files | weights, read.folders), places)
            inputs |= image_record([str(data / f"pets/cat/{n}.png") for n in (1, 2)], places)
            identity = {"format": 1, "inputs": {**inputs, "places": places}}
            path = repo.output / stage / "result.json"
            result = json.loads(path.read_text())
            repo.write(f"output/{stage}/identity.json", json.dumps(identity))
            path.write_text(json.dumps(sealed({**result, "identity": digest_of(identity)})))
        # The evaluation was of this very training.
        record = json.loads((repo.output / TEST / "job.json").read_text())
        record["parent_result"] = jobs(repo)[1].parent_digest()
        repo.write(f"output/{TEST}/job.json", json.dumps(record))
        assert reasons(repo) == ["", ""]

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("data/pets/split.json", "{}", "the file DATASET.ROOT/pets/split.json changed"),
            ("data/pets/split.json", None, "the file DATASET.ROOT/pets/split.json is gone"),
            ("prompts/p.csv", "a dog", "the file repository/prompts/p.csv changed"),
            ("data/pets/cat/2.png", "same size!!", "the images in DATASET.ROOT/pets/cat changed"),
            ("data/pets/cat/3.png", "", "DATASET.ROOT/pets/cat holds other folders or images"),
            ("data/pets/eel/1.png", "", "DATASET.ROOT/pets holds other folders or images"),
            (
                f"output/{TRAIN}/identity.json",
                "{}",
                "identity.json is missing or was changed after",
            ),
        ],
    )
    def test_another_input_is_named(self, repo, name, text, said):
        if text is None:
            (repo.path / name).unlink()
        else:
            repo.write(name, text)
        train, test = reasons(repo)
        assert train.startswith(said)
        assert test == "its training run is not done"

    def test_a_renamed_class_folder_is_named(self, repo):
        (repo.path / "data/pets/cat").rename(repo.path / "data/pets/zebra")
        assert reasons(repo)[0] == (
            "DATASET.ROOT/pets holds other folders or images; DATASET.ROOT/pets/cat is gone; "
            "the images in DATASET.ROOT/pets/cat changed"
        )

    def test_other_weights_are_another_evaluation(self, repo):
        repo.write(f"output/{TRAIN}/Net/model.pth.tar-1", "cut")
        assert reasons(repo) == ["", "the file --model-dir/Net/model.pth.tar-1 changed"]

    def test_what_was_not_read_and_a_place_that_moved_do_not_matter(self, repo):
        repo.write("data/pets/notes.txt", "mine")
        repo.write("data/pets/dog/2.png", "not listed")
        shutil.move(repo.path / "data", repo.path / "elsewhere")
        assert reasons(repo, "--root", str(repo.path / "elsewhere")) == ["", ""]
        assert reasons(repo, "--root", str(repo.path / "not_here")) == ["", ""]
        assert reasons(repo) == ["", ""]

    def test_an_edited_result_is_damaged(self, repo):
        path = repo.output / TRAIN / "result.json"
        path.write_text(path.read_text().replace("50.0", "99.0"))
        said = "result.json is damaged: it was changed after it was written"
        assert reasons(repo)[0] == said
        path.write_text(path.read_text()[:-9])
        assert reasons(repo)[0] == "result.json is damaged: cut short or no JSON"


@pytest.mark.parametrize("name", ["names", "names.csv", "~/names.txt", "below/names.yaml"])
@pytest.mark.parametrize("place", ["repo", "root"])
def test_a_named_file_counts_whatever_its_name(repo, monkeypatch, name, place):
    monkeypatch.setenv("HOME", str(repo.path))
    own = name[2:] if name[0] == "~" else name
    path = own if place == "repo" or name[0] == "~" else f"data/{own}"
    repo.write("configs/datasets/dtd.yaml", f"DATASET: {{NAME: Dtd, CLASSNAMES: {name}}}\n")
    repo.write(path, "a")
    repo.run(*ONE)
    assert reasons(repo) == ["", ""]
    repo.write(path, "b")
    assert reasons(repo)[0] == f"config or options changed: the file {name} changed"


def test_a_named_file_that_moved_is_the_same(repo, tmp_path):
    (tmp_path / "a").write_text("names")
    command = (sys.executable, "-S", "-E", str(repo.path / "train.py"))
    words = [*ONE, "--no-report", "--", "DATASET.CLASSNAMES", str(tmp_path / "a")]
    assert main(words, repo=repo.path, train_command=command) == 0
    (tmp_path / "a").rename(tmp_path / "b")
    options = ["DATASET.CLASSNAMES", str(tmp_path / "b")]
    assert reasons(repo, options=options) == ["", ""]
    (tmp_path / "b").write_text("others")
    assert "the file that DATASET.CLASSNAMES names changed" in reasons(repo, options=options)[0]


def test_keys_that_cannot_matter_do_not_and_others_are_named(repo):
    repo.run(*ONE)
    harmless = ["TRAIN.TIMEOUT", "5", "TRAIN.PRINT_FREQ", "1", "DATALOADER.NUM_WORKERS", "0"]
    assert reasons(repo, options=harmless) == ["", ""]
    repo.write("configs/trainers/LightRA/base2novel.yaml", "OPTIM: {LR: 0.005}\nVERBOSE: False\n")
    assert reasons(repo) == ["", ""]
    said = "config or options changed: OPTIM.LR was 0.005, is 0.1"
    assert reasons(repo, options=["OPTIM.LR", "0.1"])[0] == said
    record = repo.output / TRAIN / "job.json"
    content = json.loads(record.read_text())
    del content["content"]  # of an older version
    record.write_text(json.dumps(content))
    assert reasons(repo)[0] == ""
    assert reasons(repo, options=["OPTIM.LR", "0.1"])[0] == "config or options changed"
