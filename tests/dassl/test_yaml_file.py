"""What a YAML file means, and what is refused."""

import math
import re

import pytest

from dassl.config import get_cfg_default, merge_file, merge_options
from dassl.config.yaml_file import read_yaml


def write(tmp_path, text):
    path = tmp_path / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-08", -8),
        ("0o10", 8),
        ("0x1F", 31),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", -math.inf),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("2024-01-01", "2024-01-01"),
        ("yes", "yes"),
        ("off", "off"),
        ("n", "n"),
        ("True", True),
        ("~", None),
        ("", None),
        ("=", "="),
        ("!!int '010'", 10),
    ],
)
def test_a_value_is_what_it_looks_like(tmp_path, text, value):
    read = read_yaml(write(tmp_path, f"A: {text}\n"))["A"]
    assert read == value
    assert type(read) is type(value)


def test_anchors_merge_keys_and_line_ends_work(tmp_path):
    text = b"\xef\xbb\xbfX: &x {a: 1, b: 2}\r\nY: {<<: *x, b: 3}\r\n"
    assert read_yaml(write(tmp_path, text)) == {"X": {"a": 1, "b": 2}, "Y": {"a": 1, "b": 3}}
    assert read_yaml(write(tmp_path, "# nothing\n")) is None


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "OPTIM:\n  LR: 1\n  'LR': 2\n",
            r"key 'LR' stands twice .* line 2; .*\(line 3, column 3\)",
        ),
        ("OPTIM: {LR: 1}\nSEED: 1\nOPTIM: {GAMMA: 1}\n", r"key 'OPTIM' stands twice"),
        ("1: a\n01: b\n", r"key '01' stands twice"),
        ("A: &a {b: 1}\nC: {<<: *a, <<: *a}", r"key '<<' stands twice"),
        ("A:\n\tB: 1", r"found character '\\t' that cannot start any token \(line 2, column 1\)"),
        ("A: 1\n---\nB: 2\n", r"expected a single document"),
        ("A: !!python/name:os.system x", r"python/name:os\.system' makes no value"),
        ("A: !mine 3", r"tag '!mine' makes no value"),
        ("A: !!int x", r"'x' is no whole number"),
        ("A: !!bool x", r"'x' is neither true nor false"),
        ("[" * 10_000, r"nested more than 50 levels deep"),
        ("{a: " * 10_000, r"nested more than 50 levels deep"),
        (LAUGHS, r"more than 100000 values"),
        ("A: &a [*a]", r"\*a contains itself"),
        ("? [a]\n: b", r"a key must be one word"),
        ("A: " + "9" * 5000, r"is no whole number"),
        ("A: 1\n".encode("utf-16"), r"not UTF-8 text"),
    ],
)
def test_what_is_refused_is_one_line_with_its_place(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is not valid YAML: ") as refusal:
        read_yaml(path)
    assert re.search(message, str(refusal.value))
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500


def test_a_tag_runs_nothing(tmp_path):
    mark = tmp_path / "ran"
    with pytest.raises(ValueError, match="makes no value"):
        read_yaml(write(tmp_path, f"A: !!python/object/apply:os.mkdir ['{mark}']"))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("file", "option", "expected"),
    [
        ("DATASET: {NUM_SHOTS: 010}", "010", 10),
        ("DATASET: {NUM_SHOTS: '-01'}", "-01", -1),
        ("DATASET: {NUM_SHOTS: 1_6}", "1_6", 16),
    ],
)
def test_files_and_options_read_numbers_alike(tmp_path, file, option, expected):
    cfg = get_cfg_default()
    merge_file(cfg, write(tmp_path, file))
    assert cfg.DATASET.NUM_SHOTS == expected
    cfg.DATASET.NUM_SHOTS = 0
    merge_options(cfg, ["DATASET.NUM_SHOTS", option])
    assert cfg.DATASET.NUM_SHOTS == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OPTIM: {MAX_EPOCH: 1:30}", r"OPTIM\.MAX_EPOCH must be of type int.* got '1:30'"),
        ("OPTIM: {MAX_EPOCH: 2024-01-01}", r"must be of type int.* got '2024-01-01'"),
        ("OPTIM: {MAX_EPOCH: yes}", r"must be of type int.* got 'yes'"),
        ("OPTIM: {LR: ~}", r"OPTIM\.LR must be of type float.* got None .*leave a key out"),
        ("OUTPUT_DIR: ~", r"OUTPUT_DIR must be of type str.* got None .*quote a text"),
        ("OUTPUT_DIR: 12", r"OUTPUT_DIR must be of type str.* got 12 .*quote it"),
        ("USE_CUDA: 1", r"USE_CUDA must be of type bool.* write true or false"),
        ("OPTIM: {LR: " + "9" * 4000 + "}", r"OPTIM\.LR must be of type float.*4000 characters"),
    ],
)
def test_values_of_another_type_are_refused(tmp_path, text, message):
    cfg = get_cfg_default()
    with pytest.raises(ValueError, match=message) as refusal:
        merge_file(cfg, write(tmp_path, text))
    assert cfg == get_cfg_default()
    assert len(str(refusal.value)) < 500


def test_words_for_true_and_false(tmp_path):
    cfg = get_cfg_default()
    merge_file(cfg, write(tmp_path, "USE_CUDA: off\nVERBOSE: No\nOPTIM: {STAGED_LR: yes}\n"))
    assert (cfg.USE_CUDA, cfg.VERBOSE, cfg.OPTIM.STAGED_LR) == (False, False, True)
    # Where a text is wanted, they are text.
    merge_file(cfg, write(tmp_path, "OUTPUT_DIR: no\nRESUME: on\n"))
    assert (cfg.OUTPUT_DIR, cfg.RESUME) == ("no", "on")


def test_brackets_without_end_are_a_wrong_value():
    with pytest.raises(ValueError, match=r"INPUT\.SIZE must be of type tuple.*characters\)"):
        merge_options(get_cfg_default(), ["INPUT.SIZE", "(" * 100_000])


class TestEntries:
    """``PER_DATASET`` and ``PER_SHOTS``."""

    def test_a_misspelt_dataset_is_refused_with_the_nearest(self, tmp_path):
        path = write(tmp_path, "PER_DATASET: {EuroSat: {OPTIM: {LR: 1.0}}}")
        with pytest.raises(ValueError, match=r"entry for 'EuroSat'.*Did you mean 'EuroSAT'"):
            merge_file(get_cfg_default(), path, known_datasets=["DTD", "EuroSAT"])
        cfg = get_cfg_default()
        merge_file(cfg, path, "EuroSat")
        assert cfg.OPTIM.LR == 1.0

    def test_a_config_knows_the_registered_datasets(self, tmp_path, make_config):
        from dassl.data.datasets import DATASET_REGISTRY

        text = "TRAINER: {NAME: ZeroshotCLIP}\nPER_DATASET: {OwnPictures: {SEED: 3}}\n"
        flags = ("--config-file", str(write(tmp_path, text)))
        with pytest.raises(ValueError, match=r"file\.yaml: PER_DATASET has an entry for 'OwnPict"):
            make_config(None, flags=flags)
        DATASET_REGISTRY.register(type("OwnPictures", (), {}))
        try:
            assert make_config(None, flags=flags).TRAINER.NAME == "ZeroshotCLIP"
        finally:
            del DATASET_REGISTRY._objects["OwnPictures"]

    @pytest.mark.parametrize("number", ["0", "-2", "1.0", "true", "'4'", "four", "1:30", "~"])
    @pytest.mark.parametrize(
        "place", ["PER_SHOTS: {%s: {}}", "PER_DATASET: {X: {PER_SHOTS: {%s: {}}}}"]
    )
    def test_senseless_shots_are_refused(self, tmp_path, number, place):
        with pytest.raises(ValueError, match=r"PER_SHOTS must map .* or -1 for all"):
            merge_file(get_cfg_default(), write(tmp_path, place % number))

    def test_shots_may_be_written_with_zeros_in_front(self, tmp_path):
        cfg = get_cfg_default()
        merge_file(cfg, write(tmp_path, "PER_SHOTS: {010: {SEED: 7}}"), shots=10)
        assert cfg.SEED == 7
