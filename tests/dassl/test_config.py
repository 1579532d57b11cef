"""Merging files and options, errors, hash."""

import subprocess
import sys

import pytest
from yacs.config import CfgNode as CN

from dassl.config import clean_cfg, config_hash, get_cfg_default, merge_file, merge_options
from tests.conftest import REPOSITORY


def write(tmp_path, text, name="file.yaml"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_defaults_that_published_numbers_rest_on():
    cfg = get_cfg_default()
    assert cfg.INPUT.SIZE == (224, 224)
    assert cfg.INPUT.RRCROP_SCALE == (0.08, 1.0)
    assert (cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.WEIGHT_DECAY) == ("adam", 3e-4, 5e-4)
    assert (cfg.OPTIM.MOMENTUM, cfg.OPTIM.ADAM_BETA1, cfg.OPTIM.ADAM_BETA2) == (0.9, 0.9, 0.999)
    assert (cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.WARMUP_CONS_LR) == (-1, 1e-5)
    assert cfg.OPTIM.WARMUP_RECOUNT is True
    assert (cfg.SEED, cfg.DATASET.NUM_SHOTS, cfg.TEST.FINAL_MODEL) == (-1, -1, "last_step")
    cfg.OPTIM.LR = 1.0
    assert get_cfg_default().OPTIM.LR == 3e-4


def test_merge_file_converts_what_yaml_reads_differently(tmp_path):
    cfg = get_cfg_default()
    text = "OPTIM: {LR: 1e-3, GAMMA: 1, STEPSIZE: [3, 5]}\nINPUT: {PIXEL_MEAN: [0, 0, 0]}\n"
    merge_file(cfg, write(tmp_path, text + 'MODEL: {BACKBONE: {NAME: "ViT-B/16"}}\n'))
    assert (cfg.OPTIM.LR, cfg.OPTIM.GAMMA, cfg.OPTIM.STEPSIZE) == (1e-3, 1.0, (3, 5))
    assert isinstance(cfg.OPTIM.GAMMA, float)
    assert cfg.INPUT.PIXEL_MEAN == [0, 0, 0]
    assert cfg.MODEL.BACKBONE.NAME == "ViT-B/16"
    merge_file(cfg, write(tmp_path, ""))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OPTIM: {LRR: 1}", r"file\.yaml: unknown config key 'OPTIM\.LRR'.*mean 'OPTIM\.LR'"),
        ("OPTIMM: {LR: 1}", r"unknown config key 'OPTIMM'.*Did you mean 'OPTIM'"),
        ("OPTIM: {MAX_EPOCH: many}", r"OPTIM\.MAX_EPOCH must be of type int.*got 'many'"),
        ("OPTIM: {MAX_EPOCH: 2.5}", r"OPTIM\.MAX_EPOCH must be of type int.*got 2\.5"),
        ("OPTIM: {MAX_EPOCH: true}", r"OPTIM\.MAX_EPOCH must be of type int"),
        ("OPTIM: 3", r"OPTIM is a section of keys, got 3"),
        ("INPUT: {TRANSFORMS: random_flip}", r"type tuple.*write a list.*\['random_flip'\]"),
        ("- 1", r"must hold KEY: value pairs"),
        ("OPTIM: {LR", r"not valid YAML"),
        ("PER_DATASET: {X: {OPTIM: {LRR: 1}}}", r"PER_DATASET\.X: unknown config key"),
        ("PER_DATASET: 3", r"PER_DATASET must map"),
    ],
)
def test_merge_file_errors_leave_the_config_alone(tmp_path, text, message):
    cfg = get_cfg_default()
    with pytest.raises(ValueError, match=message):
        merge_file(cfg, write(tmp_path, text))
    assert cfg == get_cfg_default()


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        merge_file(get_cfg_default(), tmp_path / "none.yaml")


def test_per_dataset_is_merged_last(tmp_path):
    text = "PER_DATASET: {EuroSAT: {OPTIM: {LR: 1.0}}, DTD: {OPTIM: {LR: 2.0}}}\nOPTIM: {LR: 3.0}\n"
    path = write(tmp_path, text)
    for given, named, expected in [
        ("EuroSAT", "", 1.0),
        (None, "DTD", 2.0),
        ("EuroSAT", "DTD", 1.0),
        ("Food101", "", 3.0),
    ]:
        cfg = get_cfg_default()
        cfg.DATASET.NAME = named
        merge_file(cfg, path, given)
        assert cfg.OPTIM.LR == expected
        assert "PER_DATASET" not in cfg


def test_per_shots_goes_between_the_file_and_per_dataset(tmp_path):
    text = """
        OPTIM: {LR: 1.0, GAMMA: 1.0}
        PER_SHOTS: {1: {OPTIM: {LR: 2.0, GAMMA: 2.0}}, 16: {OPTIM: {LR: 3.0}}}
        PER_DATASET: {DTD: {OPTIM: {LR: 4.0}, PER_SHOTS: {2: {OPTIM: {LR: 5.0}}}}}
    """
    path = write(tmp_path, text)
    for dataset, given, named, expected in [
        ("Food101", 1, 16, (2.0, 2.0)),
        ("Food101", None, 16, (3.0, 1.0)),
        ("Food101", 8, 16, (1.0, 1.0)),
        ("DTD", 1, 16, (4.0, 2.0)),
        ("DTD", 2, 16, (5.0, 1.0)),
    ]:
        cfg = get_cfg_default()
        cfg.DATASET.NAME, cfg.DATASET.NUM_SHOTS = dataset, named
        merge_file(cfg, path, shots=given)
        assert (cfg.OPTIM.LR, cfg.OPTIM.GAMMA) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PER_SHOTS: {one: {}}", "PER_SHOTS must map numbers of shots.*'one'"),
        ("PER_SHOTS: {4: {OPTIM: {LRR: 1.0}}}", r"PER_SHOTS\.4.*LRR"),
        ("PER_DATASET: {DTD: {PER_SHOTS: {4: {OPT: 1}}}}", r"PER_DATASET\.DTD, PER_SHOTS\.4.*OPT"),
    ],
)
def test_mistakes_in_per_shots_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        merge_file(get_cfg_default(), write(tmp_path, text))


class TestBase:
    """``_BASE_``: a file that builds on another one."""

    @pytest.mark.parametrize(
        ("dataset", "expected"),
        # Base content < base entry < own content < own entry, and so on upwards.
        [("DTD", (2.0, 4.0, 5.0, 6.0)), ("Food101", (1.0, 3.0, 5.0, 5.0))],
    )
    def test_more_specific_file_wins_in_everything(self, tmp_path, dataset, expected):
        low = """
            OPTIM: {LR: 1.0, GAMMA: 1.0, MOMENTUM: 1.0, WEIGHT_DECAY: 1.0}
            PER_DATASET: {DTD: {OPTIM: {LR: 2.0, GAMMA: 2.0, MOMENTUM: 2.0, WEIGHT_DECAY: 2.0}}}
        """
        mid = """
            PER_DATASET: {DTD: {OPTIM: {GAMMA: 4.0, MOMENTUM: 4.0, WEIGHT_DECAY: 4.0}}}
            OPTIM: {GAMMA: 3.0, MOMENTUM: 3.0, WEIGHT_DECAY: 3.0}
            _BASE_: low.yaml
        """
        top = """
            _BASE_: mid.yaml
            OPTIM: {MOMENTUM: 5.0, WEIGHT_DECAY: 5.0}
            PER_DATASET: {DTD: {OPTIM: {WEIGHT_DECAY: 6.0}}}
        """
        for name, text in (("low", low), ("mid", mid), ("top", top)):
            write(tmp_path, text, f"{name}.yaml")
        keys = ("LR", "GAMMA", "MOMENTUM", "WEIGHT_DECAY")
        cfg = get_cfg_default()
        merge_file(cfg, tmp_path / "top.yaml", dataset)
        assert tuple(cfg.OPTIM[key] for key in keys) == expected
        assert not {"_BASE_", "PER_DATASET"} & set(cfg)

    def test_own_content_wins_over_the_entry_of_its_base(self, tmp_path):
        write(tmp_path, "PER_DATASET: {DTD: {OPTIM: {LR: 4.0, MAX_EPOCH: 9}}}", "base.yaml")
        cfg = get_cfg_default()
        merge_file(cfg, write(tmp_path, "_BASE_: base.yaml\nOPTIM: {LR: 7.0}"), "DTD")
        assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH) == (7.0, 9)

    @pytest.mark.parametrize("named_in", ["base.yaml", "file.yaml"])
    def test_entries_follow_the_name_that_any_of_the_files_sets(self, tmp_path, named_in):
        texts = {
            "base.yaml": "PER_DATASET: {DTD: {OPTIM: {LR: 4.0}}}\n",
            "file.yaml": "_BASE_: base.yaml\nPER_DATASET: {DTD: {OPTIM: {MAX_EPOCH: 9}}}\n",
        }
        texts[named_in] += "DATASET: {NAME: DTD}\n"
        for name, text in texts.items():
            write(tmp_path, text, name)
        cfg = get_cfg_default()
        cfg.DATASET.NAME = "Other"
        merge_file(cfg, tmp_path / "file.yaml")
        assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH) == (4.0, 9)

    def test_paths_are_relative_to_the_file_they_stand_in(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write(tmp_path, "OPTIM: {LR: 4.0}", "one/low.yaml")
        write(tmp_path, "_BASE_: low.yaml\nOPTIM: {GAMMA: 5.0}", "one/mid.yaml")
        write(tmp_path, "_BASE_: ../one/mid.yaml\n", "two/top.yaml")
        write(tmp_path, f"_BASE_: {tmp_path}/two/top.yaml\n", "absolute.yaml")
        for name in ("two/top.yaml", "absolute.yaml"):
            cfg = get_cfg_default()
            merge_file(cfg, name)
            assert (cfg.OPTIM.LR, cfg.OPTIM.GAMMA) == (4.0, 5.0)

    @pytest.mark.parametrize(
        ("base", "text", "message"),
        [
            ("OPTIM: {LRR: 1}", "", r"base\.yaml: unknown config key 'OPTIM\.LRR'.*'OPTIM\.LR'"),
            ("OPTIM: {LR: x}", "", r"base\.yaml: OPTIM\.LR must be of type float"),
            ("- 1", "", r"base\.yaml must hold KEY: value pairs"),
            ("OPTIM: {LR", "", r"base\.yaml is not valid YAML"),
            ("PER_DATASET: 3", "", r"base\.yaml: PER_DATASET must map"),
            ("PER_DATASET: {X: {A: 1}}", "", r"base\.yaml, PER_DATASET\.X: unknown config key 'A'"),
            ("SEED: 3", "OPTIM: {LRR: 1}", r"file\.yaml: unknown config key"),
            ("SEED: 3", "OPTIM: {_BASE_: base.yaml}", r"unknown config key 'OPTIM\._BASE_'"),
        ],
    )
    def test_errors_name_the_file_and_leave_the_config_alone(self, tmp_path, base, text, message):
        write(tmp_path, base, "base.yaml")
        cfg = get_cfg_default()
        with pytest.raises(ValueError, match=message):
            merge_file(cfg, write(tmp_path, f"_BASE_: base.yaml\n{text}"))
        assert cfg == get_cfg_default()

    @pytest.mark.parametrize("value", ["[a.yaml, b.yaml]", "", "3", "{a: b}", "''"])
    def test_is_one_path(self, tmp_path, value):
        with pytest.raises(ValueError, match=r"file\.yaml: _BASE_ must be the path of one YAML"):
            merge_file(get_cfg_default(), write(tmp_path, f"_BASE_: {value}\n"))

    @pytest.mark.parametrize(
        ("value", "hint"),
        [("bas.yaml", r"has \['base\.yaml', 'file\.yaml'\]"), ("no/bas.yaml", "relative to")],
    )
    def test_missing_base_names_both_files(self, tmp_path, value, hint):
        write(tmp_path, "", "base.yaml")
        with pytest.raises(FileNotFoundError, match=rf"/file\.yaml: .*/{value}, .*{hint}"):
            merge_file(get_cfg_default(), write(tmp_path, f"_BASE_: {value}\n"))

    def test_circle_names_the_chain(self, tmp_path):
        write(tmp_path, "_BASE_: b.yaml", "a.yaml")
        write(tmp_path, "_BASE_: ./a.yaml", "b.yaml")
        chain = r"/file\.yaml -> \S+/a\.yaml -> \S+/b\.yaml -> \S+/a\.yaml$"
        with pytest.raises(ValueError, match=chain):
            merge_file(get_cfg_default(), write(tmp_path, "_BASE_: a.yaml"))
        with pytest.raises(ValueError, match=r"/own\.yaml -> \S+/own\.yaml$"):
            merge_file(get_cfg_default(), write(tmp_path, "_BASE_: own.yaml", "own.yaml"))

    def test_pictures_keep_the_size_that_a_base_sets(self, tmp_path, make_config):
        write(tmp_path, "INPUT: {SIZE: [32, 32]}", "low.yaml")
        write(tmp_path, "_BASE_: low.yaml\nINPUT: {PIXEL_MEAN: [0.1, 0.2, 0.3]}", "base.yaml")
        file = write(tmp_path, "_BASE_: base.yaml\nTRAINER: {NAME: ZeroshotCLIP}")
        cfg = make_config(None, flags=("--config-file", str(file)))
        assert (cfg.INPUT.SIZE, cfg.INPUT.PIXEL_MEAN) == ((32, 32), [0.1, 0.2, 0.3])
        file = write(tmp_path, "TRAINER: {NAME: ZeroshotCLIP}")
        assert make_config(None, flags=("--config-file", str(file))).INPUT.SIZE == (48, 48)


def test_images_keep_the_size_that_an_entry_sets(tmp_path, make_config):
    """It was silently replaced by the backbone's."""
    entries = "{Shapes: {INPUT: {SIZE: [32, 32]}, PER_SHOTS: {4: {INPUT: {SIZE: [40, 40]}}}}}"
    file = write(tmp_path, f"TRAINER: {{NAME: ZeroshotCLIP}}\nPER_DATASET: {entries}")
    flags = ("--config-file", str(file))
    assert make_config(None, flags=flags).INPUT.SIZE == (32, 32)
    assert make_config(None, "DATASET.NUM_SHOTS", "4", flags=flags).INPUT.SIZE == (40, 40)


def test_config_files_are_read_without_pytorch():
    """The job driver reads them, whose dry run should not take seconds."""
    code = "import sys, dassl.config; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False)
    assert done.returncode == 0


def test_merge_options():
    cfg = get_cfg_default()
    cfg.TRAINER.X = CN({"PREC": "fp32", "FLAG": False, "TEXT": ""})
    options = ["DATASET.NUM_SHOTS", "16", "TRAINER.X.PREC", "amp", "OPTIM.LR", "2e-3"]
    options += ["TRAINER.X.FLAG", "true", "TRAINER.X.TEXT", "12", "INPUT.SIZE", "(48, 48)"]
    merge_options(cfg, options)
    assert (cfg.DATASET.NUM_SHOTS, cfg.TRAINER.X.PREC, cfg.OPTIM.LR) == (16, "amp", 2e-3)
    assert (cfg.TRAINER.X.FLAG, cfg.TRAINER.X.TEXT, cfg.INPUT.SIZE) == (True, "12", (48, 48))
    with pytest.raises(ValueError, match=r"'DATASET\.NUM_SHOT'.*Did you mean 'DATASET\.NUM_SHOTS'"):
        merge_options(cfg, ["DATASET.NUM_SHOT", "16"])
    with pytest.raises(ValueError, match="odd number"):
        merge_options(cfg, ["DATASET.NUM_SHOTS"])
    with pytest.raises(ValueError, match=r"DATASET\.NUM_SHOTS must be of type int"):
        merge_options(cfg, ["DATASET.NUM_SHOTS", "a"])
    cfg.freeze()
    with pytest.raises(ValueError, match="frozen"):
        merge_options(cfg, ["SEED", "1"])


def test_hash_ignores_only_what_cannot_change_a_result():
    base = config_hash(get_cfg_default())
    assert len(base) == 16
    same = ["OUTPUT_DIR", "x", "RESUME", "x", "VERBOSE", "False", "DATASET.ROOT", "x"]
    same += ["DATALOADER.NUM_WORKERS", "1", "TRAIN.PRINT_FREQ", "1", "TRAIN.CHECKPOINT_FREQ", "1"]
    same += ["TRAIN.RESUME_FREQ", "5", "DEVICE", "cuda:1", "TRAIN.TIMEOUT", "5"]
    same += ["DATASET.HASH_IMAGES", "True", "TEST.COMPUTE_CMAT", "True"]
    same += ["TEST.SAVE_PREDICTIONS", "False"]
    for key, value in zip(same[::2], same[1::2], strict=True):
        cfg = get_cfg_default()
        merge_options(cfg, [key, value])
        assert cfg != get_cfg_default()
        assert config_hash(cfg) == base, key
    for key, value in [("SEED", "0"), ("OPTIM.LR", "1.0"), ("DATASET.NAME", "x")]:
        cfg = get_cfg_default()
        merge_options(cfg, [key, value])
        assert config_hash(cfg) != base, key
    hashes = set()
    for folder in ("a", "b"):
        cfg = get_cfg_default()
        cfg.FEATURE_CACHE = CN({"DIR": folder})
        hashes.add(config_hash(cfg))
    assert len(hashes) == 1
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = [224, 224]  # a list or a tuple is the same configuration
    assert config_hash(cfg) == base


def test_clean_cfg_keeps_the_own_section():
    cfg = get_cfg_default()
    for name in ("COOP", "COCOOP", "LightRA"):
        cfg.TRAINER[name] = CN({"PREC": "fp32"})
    clean_cfg(cfg, "CoOp")
    assert sorted(cfg.TRAINER) == ["COOP", "NAME"]
