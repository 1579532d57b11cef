"""Expansion of protocols into jobs, dry runs, bad input."""

import shlex
import sys

import pytest

from scripts.jobs.devices import parse_devices
from scripts.jobs.protocols import FEW_SHOT_DATASETS, PROTOCOLS, RunKey
from scripts.run import main


def dry_run(repo, capsys, *words):
    status = main(["--dry-run", *words], repo=repo.path)
    assert status == 0
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def flag(command, name):
    return command[command.index(name) + 1]


def test_base2novel_trains_on_base_and_evaluates_that_model_on_new(repo, capsys):
    words = ("--protocol", "base2novel", "--datasets", "dtd", "--seeds", "5")
    train, test = dry_run(repo, capsys, *words, "--root", "/data", "--", "OPTIM.MAX_EPOCH", "3")
    layout = "output/base2novel/{}/dtd/shots_16/LightRA/base2novel/seed5"
    assert train == [
        sys.executable,
        "train.py",
        *("--root", "/data", "--seed", "5", "--trainer", "LightRA"),
        *("--dataset-config-file", "configs/datasets/dtd.yaml"),
        *("--config-file", "configs/trainers/LightRA/base2novel.yaml"),
        *("--output-dir", layout.format("train_base")),
        *("OPTIM.MAX_EPOCH", "3"),
        *("DATASET.NUM_SHOTS", "16", "DATASET.SUBSAMPLE_CLASSES", "base"),
    ]
    assert flag(test, "--output-dir") == layout.format("test_new")
    assert flag(test, "--model-dir") == layout.format("train_base")
    assert "--eval-only" in test
    assert "--eval-only" not in train
    assert test[-6:] == [
        *("OPTIM.MAX_EPOCH", "3"),
        *("DATASET.NUM_SHOTS", "16", "DATASET.SUBSAMPLE_CLASSES", "new"),
    ]


def test_trackers_are_passed_on_and_change_no_job(repo, capsys, monkeypatch):
    monkeypatch.setattr("dassl.tracking.available.find_spec", lambda name: name)
    words = ("--protocol", "base2novel", "--datasets", "dtd", "--seeds", "5")
    tracked = dry_run(repo, capsys, *words, "--track", "tensorboard wandb")
    for command in tracked:
        place = command.index("--track")
        # A flag follows: otherwise the options behind it would be taken for trackers.
        assert command[place : place + 4] == ["--track", "tensorboard", "wandb", "--root"]
        del command[place : place + 3]
    assert tracked == dry_run(repo, capsys, *words)
    assert repo.run(*words) == 0
    assert dry_run(repo, capsys, *words, "--track", "wandb") == []  # all done: nothing runs again


@pytest.mark.parametrize(
    ("trackers", "said"),
    [
        ("wandb", "TRACK (--track) is wandb, but wandb is not installed: pip install wandb"),
        ("none wandb", "TRACK (--track): none stands beside wandb"),
        ("wanda", "Did you mean 'wandb'?"),
    ],
)
def test_trackers_are_checked_before_the_first_job(repo, capsys, monkeypatch, trackers, said):
    monkeypatch.setattr("dassl.tracking.available.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["--protocol", "few_shot", "--datasets", "dtd", "--track", trackers], repo=repo.path)
    assert said in " ".join(capsys.readouterr().err.split())


def test_eft_is_base2novel_with_a_default_trainer_of_its_own(repo, capsys):
    words = ("--datasets", "dtd", "--seeds", "5")
    found = dry_run(repo, capsys, "--protocol", "eft", *words)
    usual = dry_run(repo, capsys, "--protocol", "base2novel", "--trainer", "RAda", *words)
    assert {flag(c, "--trainer") for c in found} == {"RAda"}
    assert flag(found[0], "--config-file") == "configs/trainers/RAda/eft.yaml"
    layout = "output/eft/{}/dtd/shots_16/RAda/eft/seed5"
    assert flag(found[0], "--output-dir") == layout.format("train_base")
    assert flag(found[1], "--model-dir") == layout.format("train_base")
    assert [[word.replace("eft", "base2novel") for word in c] for c in found] == usual
    found = dry_run(repo, capsys, "--protocol", "eft", "--trainer", "LightRA", *words)
    assert {flag(c, "--trainer") for c in found} == {"LightRA"}


def test_every_trainer_runs_with_every_config_named(repo, capsys):
    for trainer in ("LightRA", "RAda"):
        repo.write(f"configs/trainers/{trainer}/table4_mlp.yaml", "_BASE_: few_shot.yaml\n")
    words = ("--protocol", "few_shot", "--datasets", "dtd", "--shots", "1 2", "--seeds", "1")
    words += ("--trainer", "RAda LightRA", "--cfg", "table4_mlp, few_shot", "table4_mlp")
    found = dry_run(repo, capsys, *words)
    assert [
        (flag(c, "--trainer"), *flag(c, "--output-dir").split("/")[-2:], c[-3]) for c in found
    ] == [
        (trainer, cfg, "seed1", shots)
        for trainer in ("RAda", "LightRA")
        for cfg in ("table4_mlp", "few_shot")
        for shots in ("1", "2")
    ]
    assert all(
        flag(c, "--config-file").split("/")[2:]
        == [flag(c, "--trainer"), flag(c, "--output-dir").split("/")[-2] + ".yaml"]
        for c in found
    )


def test_a_config_that_one_of_the_trainers_lacks_is_an_error(repo, capsys):
    repo.write("configs/trainers/RAda/table4_mlp.yaml", "_BASE_: few_shot.yaml\n")
    words = ["--protocol", "few_shot", "--dry-run", "--cfg", "few_shot table4_mlp"]
    assert main([*words, "--trainer", "RAda"], repo=repo.path) == 0
    with pytest.raises(SystemExit) as stop:
        main([*words, "--trainer", "RAda LightRA"], repo=repo.path)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "--cfg: 'table4_mlp' is not available." in message
    assert "Available for LightRA: base2novel, cross_dataset, eft, few_shot, fft, ttt" in message


def test_rows_are_pairs_of_trainer_and_config(repo, capsys):
    repo.write("configs/trainers/RAda/table4_mlp.yaml", "_BASE_: eft.yaml\n")
    words = ("--protocol", "base2novel", "--datasets", "dtd", "--seeds", "1")
    pairs = ["RAda/table4_mlp", "LightRA/base2novel"]
    found = dry_run(repo, capsys, *words, "--rows", *pairs, pairs[0])
    assert ["/".join(flag(c, "--config-file").split("/")[2:]) for c in found] == [
        f"{pair}.yaml" for pair in pairs for _ in range(2)
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("RAda/base2novel", "--trainer", "RAda"), "--rows stands for --trainer and --cfg"),
        (("RAda/base2nvel",), "--rows: 'base2nvel' is not available. Did you mean 'base2novel'"),
        (("RAda",), "--rows: '' is not available. Available for RAda: base2novel"),
        (("RADA/base2novel",), "--rows: 'RADA' is not available. Did you mean 'RAda'"),
    ],
)
def test_wrong_rows(repo, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main(["--protocol", "base2novel", "--dry-run", "--rows", *words], repo=repo.path)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_report_of_rows_misses_no_other_pair(write_run, tmp_path, capsys):
    """Each trainer has a file of its own: the pairs across are no rows that are missing."""
    from scripts import report

    for trainer, cfg in (("RAda", "table4_mlp"), ("LightRA", "base2novel")):
        for stage in ("train_base", "test_new"):
            write_run(stage, "dtd", 1, 50.0, trainer=trainer, cfg=cfg)
    rows = (("RAda", "table4_mlp"), ("LightRA", "base2novel"), ("RAda", "base2novel"))
    pairs = {"trainers": ("RAda", "LightRA"), "cfg": ("table4_mlp", "base2novel")}
    built = report.build(
        report.Selection("base2novel", tmp_path, **pairs, rows=rows, must_exist=False)
    )
    missing = [line for line in built.warnings() if "missing row" in line]
    assert missing == ["missing row: RAda (base2novel) has no finished run here"]


def test_few_shot_defaults_to_all_shots_datasets_and_three_seeds(repo, capsys):
    commands = dry_run(repo, capsys, "--protocol", "few_shot", "--trainer", "LightRA", "RAda")
    cells = {
        (flag(c, "--trainer"), flag(c, "--dataset-config-file"), c[-3], flag(c, "--seed"))
        for c in commands
    }
    assert len(commands) == len(cells) == 2 * 11 * 5 * 3
    assert {c[-3] for c in commands} == {"1", "2", "4", "8", "16"}
    assert all(c[-4] == "DATASET.NUM_SHOTS" and c[-1] == "all" for c in commands)
    assert {cell[1] for cell in cells} == {
        f"configs/datasets/{name}.yaml" for name in FEW_SHOT_DATASETS
    }


def test_default_datasets_are_the_real_ones_that_have_a_config(repo, capsys):
    for name in FEW_SHOT_DATASETS[:9]:
        (repo.path / f"configs/datasets/{name}.yaml").unlink()
    commands = dry_run(repo, capsys, "--protocol", "base2novel", "--seeds", "1")
    found = [flag(c, "--dataset-config-file").rsplit("/", 1)[1] for c in commands]
    assert found == ["eurosat.yaml", "eurosat.yaml", "ucf101.yaml", "ucf101.yaml"]


def targets(commands):
    stages = [flag(c, "--output-dir").split("/")[2:4] for c in commands]
    assert [stage for stage, _ in stages] == ["train"] + ["test"] * (len(stages) - 1)
    return [dataset for _, dataset in stages]


def test_cross_dataset_goes_from_imagenet_to_ten_datasets_and_four_shifts(repo, capsys):
    commands = dry_run(repo, capsys, "--protocol", "cross_dataset", "--seeds", "1")
    assert targets(commands) == [
        *FEW_SHOT_DATASETS,
        *("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"),
    ]
    assert "DATASET.NUM_SHOTS" in commands[0]
    assert all("DATASET.NUM_SHOTS" not in c and c[-1] == "all" for c in commands[1:])
    assert {flag(c, "--model-dir") for c in commands[1:]} == {flag(commands[0], "--output-dir")}


@pytest.mark.parametrize("name", ["--source", "--datasets"])
def test_cross_dataset_within_the_suite(repo, capsys, name):
    commands = dry_run(repo, capsys, "--protocol", "cross_dataset", name, "shapes", "--seeds", "1")
    assert targets(commands) == [
        *("shapes", "shapes_colours", "shapes_textures", "shapes_forms", "shapes_counts"),
        *("shapes_v2", "shapes_sketch", "shapes_r", "shapes_a"),
    ]


def test_cross_dataset_from_another_source_has_no_shifts(repo, capsys):
    commands = dry_run(
        repo, capsys, "--protocol", "cross_dataset", "--source", "dtd", "--seeds", "1"
    )
    assert targets(commands) == ["dtd", *(name for name in FEW_SHOT_DATASETS if name != "dtd")]


def test_lists_may_be_words_or_quoted_and_repeats_count_once(repo, capsys):
    words = ("--protocol", "base2novel", "--datasets", "dtd eurosat", "folder", "--seeds", "0,2 0")
    commands = dry_run(repo, capsys, *words)
    found = [(c[7].split("/")[-1], flag(c, "--seed")) for c in commands[::2]]
    names = [flag(c, "--dataset-config-file").split("/")[-1] for c in commands[::2]]
    assert names == ["dtd.yaml"] * 2 + ["eurosat.yaml"] * 2 + ["folder.yaml"] * 2
    assert [seed for _, seed in found] == ["0", "2"] * 3


def test_dry_run_touches_nothing_and_names_a_single_device(repo, capsys):
    before = sorted(repo.path.rglob("*"))
    words = ("--protocol", "few_shot", "--datasets", "dtd", "--shots", "1", "--seeds", "1")
    (command,) = dry_run(repo, capsys, *words, "--devices", "3")
    assert command[0] == "CUDA_VISIBLE_DEVICES=3"
    assert flag(command, "--device") == "cuda"
    (command,) = dry_run(repo, capsys, *words, "--devices", "0 1")
    assert not command[0].startswith("CUDA")
    (command,) = dry_run(repo, capsys, *words, "--devices", "cpu")
    assert command[0] == "CUDA_VISIBLE_DEVICES="
    assert command.index("--device") < command.index("DATASET.NUM_SHOTS")
    assert sorted(repo.path.rglob("*")) == before


def test_dry_run_quotes_for_the_shell(repo, capsys):
    words = ("--protocol", "few_shot", "--datasets", "dtd", "--shots", "1", "--seeds", "1")
    main([*words, "--dry-run", "--root", "/my data", "--", "A.B", "(1, 2)"], repo=repo.path)
    out = capsys.readouterr().out
    assert "--root '/my data'" in out
    assert "A.B '(1, 2)'" in out


def test_paths_are_absolute_when_called_from_elsewhere(repo, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("a")
    words = ("--protocol", "few_shot", "--datasets", "dtd", "--shots", "1", "--seeds", "1")
    options = ("--", "DATASET.CLASSNAMES", "names.txt")
    (command,) = dry_run(repo, capsys, *words, "--output", "mine", *options)
    assert command[1] == str(repo.path / "train.py")
    assert flag(command, "--root") == str(repo.path / "data")
    assert flag(command, "--output-dir").startswith(str(tmp_path / "mine/few_shot/train/dtd"))
    assert flag(command, "DATASET.CLASSNAMES") == str(tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol", "base2new"], "Did you mean 'base2novel'"),
        (["--protocol", "few_shot", "--trainer", "lightra"], "Did you mean 'LightRA'"),
        (["--protocol", "few_shot", "--cfg", "fewshot"], "Did you mean 'few_shot'"),
        (["--protocol", "few_shot", "--datasets", "dtd", "eurosta"], "Did you mean 'eurosat'"),
        (
            ["--protocol", "cross_dataset", "--source", "imagnet"],
            "--source: 'imagnet' is not available",
        ),
        (
            ["--protocol", "cross_dataset", "--targets", "pets"],
            "--targets: 'pets' is not available",
        ),
        (["--protocol", "cross_dataset", "--source", "folder"], "--targets: name the datasets"),
        (["--protocol", "cross_dataset", "--datasets", "dtd", "eurosat"], "one source"),
        (["--protocol", "few_shot", "--source", "dtd"], "--source is for"),
        (["--protocol", "few_shot", "--targets", "dtd"], "--targets is for"),
        (["--protocol", "few_shot", "--shots", "0"], "--shots: '0'"),
        (["--protocol", "few_shot", "--shots", "many"], "--shots: 'many'"),
        (["--protocol", "few_shot", "--seeds", "-1"], "--seeds"),
        (["--protocol", "few_shot", "--devices", "gpu"], "'gpu' is no device"),
        (["--protocol", "few_shot", "--devices", "0 cuda:0"], "given twice"),
        (["--protocol", "few_shot", "--devices", "0+1 1"], "1 is given twice"),
        (["--protocol", "few_shot", "--devices", "0+cpu"], "'0+cpu' is no device"),
        (["--protocol", "few_shot", "--jobs-per-device", "0"], "--jobs-per-device"),
        (["--protocol", "few_shot", "--", "OPTIM.LR"], "'OPTIM.LR' after -- has no value"),
        (["--protocol", "few_shot", "--", "--dry-run", "1"], "'--dry-run' is no key"),
        (["--protocol", "few_shot", "--", "SEED", "4"], "use --seeds"),
        (["--protocol", "few_shot", "--", "DATASET.NUM_SHOTS", "4"], "use --shots"),
    ],
)
def test_bad_input_names_what_is_allowed(repo, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main(words, repo=repo.path)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not repo.output.exists()


def test_unreadable_config_is_named(repo, capsys):
    repo.write("configs/trainers/LightRA/few_shot.yaml", "OPTIM: [")
    with pytest.raises(SystemExit):
        main(["--protocol", "few_shot", "--dry-run"], repo=repo.path)
    assert "LightRA/few_shot.yaml is not valid YAML" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: few_shto.yaml\n", "few_shto.yaml, which is no file"),
        ("_BASE_: few_shot.yaml\n", "_BASE_ goes round in a circle"),
        ("PER_DATASET: 3\n", "few_shot.yaml: PER_DATASET must map"),
    ],
)
def test_config_that_cannot_be_put_together_is_named(repo, capsys, text, message):
    repo.write("configs/trainers/LightRA/few_shot.yaml", text)
    with pytest.raises(SystemExit) as stop:
        main(["--protocol", "few_shot", "--dry-run"], repo=repo.path)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert f"{repo.path}/configs/trainers/LightRA/few_shot.yaml" in err
    assert message in err


def test_device_settings(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    both, gpu, mps, auto = parse_devices(["0+cuda:1", "cuda:2", "mps", "auto"], 1)
    assert both.environment == {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert (both.processes, gpu.processes) == (2, 1)
    assert (gpu.flags, gpu.environment) == (("--device", "cuda"), {"CUDA_VISIBLE_DEVICES": "2"})
    assert (mps.flags, mps.environment) == (("--device", "mps"), {})
    assert (auto.flags, auto.environment) == ((), {})
    assert "OMP_NUM_THREADS" not in parse_devices(["cpu"], 1)[0].environment
    assert parse_devices(["cpu"], 4)[0].environment["OMP_NUM_THREADS"] == "2"


def test_run_directory_round_trip(tmp_path):
    key = RunKey("base2novel", "test_new", "dtd", 4, "RAda", "ablation_mlp", 0)
    directory = key.directory(tmp_path)
    layout = "base2novel/test_new/dtd/shots_4/RAda/ablation_mlp/seed0"
    assert directory.relative_to(tmp_path).as_posix() == layout
    assert RunKey.parse(directory) == key
    assert RunKey.parse("output/base2novel/test_new/dtd/shots_x/RAda/cfg/seed0") is None
    assert RunKey.parse("short/path") is None


def test_protocols_name_their_halves():
    base2novel = PROTOCOLS["base2novel"]
    assert base2novel.classes_of("train_base") == "base"
    assert base2novel.classes_of("test_new") == "new"
    assert PROTOCOLS["cross_dataset"].classes_of("test") == "all"
    assert [row.name for row in PROTOCOLS.values() if row.base_to_novel] == ["base2novel", "eft"]
