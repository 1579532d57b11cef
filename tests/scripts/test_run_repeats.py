"""What makes a finished job run again: other files, options or bases, a repeated training."""

import sys

import pytest

from scripts.jobs import Planner
from scripts.pool import JobPool, parse_devices
from scripts.run import build_parser, main, read_settings

ONE = ("--protocol", "base2novel", "--datasets", "dtd", "--seeds", "1")
TRAIN = "base2novel/train_base/dtd/shots_16/LightRA/base2novel/seed1"
TEST = "base2novel/test_new/dtd/shots_16/LightRA/base2novel/seed1"


def stages(repo):
    return [call["out"].split("/")[2] for call in repo.calls()]


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
    assert stages(repo) == ["train_base", "test_new", "train_base", "test_new"]


def test_repeated_training_in_another_call_is_noticed(repo):
    repo.run(*ONE)
    for name in ("result.json", "job.json"):
        (repo.output / TRAIN / name).unlink()
    words = [*ONE, "--no-report"]
    args = build_parser().parse_args(words)
    command = (sys.executable, "-S", str(repo.path / "train.py"))
    train, test = Planner(read_settings(args, [], repo.path, command)).jobs()
    JobPool([train], parse_devices(["cpu"], 1), cwd=repo.path).run()
    assert train.to_do() == ""
    assert test.to_do() == "its training run was repeated"
