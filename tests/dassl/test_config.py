"""Merging files and options, errors, hash."""

import pytest
from yacs.config import CfgNode as CN

from dassl.config import clean_cfg, config_hash, get_cfg_default, merge_file, merge_options


def write(tmp_path, text):
    path = tmp_path / "file.yaml"
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
    same += ["TRAIN.RESUME_FREQ", "5"]
    for key, value in zip(same[::2], same[1::2], strict=True):
        cfg = get_cfg_default()
        merge_options(cfg, [key, value])
        assert cfg != get_cfg_default()
        assert config_hash(cfg) == base, key
    for key, value in [("SEED", "0"), ("OPTIM.LR", "1.0"), ("DATASET.NAME", "x")]:
        cfg = get_cfg_default()
        merge_options(cfg, [key, value])
        assert config_hash(cfg) != base, key
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = [224, 224]  # a list or a tuple is the same configuration
    assert config_hash(cfg) == base


def test_clean_cfg_keeps_the_own_section():
    cfg = get_cfg_default()
    for name in ("COOP", "COCOOP", "LightRA"):
        cfg.TRAINER[name] = CN({"PREC": "fp32"})
    clean_cfg(cfg, "CoOp")
    assert sorted(cfg.TRAINER) == ["COOP", "NAME"]
