"""What a run depends on: noticed on resuming, in its directory, in its result and its weights."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from dassl.config import config_hash
from dassl.config.identity import (
    FILE_MARK,
    config_changes,
    file_hash,
    files_named,
    is_sealed,
    sealed,
    split_change,
    split_record,
)
from dassl.config.inputs import (
    DATA,
    InputCheck,
    Recording,
    image_record,
    places_of,
    record_inputs,
    recording,
)
from dassl.data.datasets import DatasetBase, Datum
from dassl.engine import build_trainer, is_done, read_result
from tests.dassl.toys import ToyMethod, make_images

CHANGES = {"DATASET__NUM_SHOTS": 2, "OPTIM__MAX_EPOCH": 2}


@pytest.fixture
def root(tmp_path):
    make_images(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def interrupt(monkeypatch):
    def run(cfg):
        with monkeypatch.context() as patch:
            patch.setattr(ToyMethod, "crash_at", (1, 0))
            with pytest.raises(KeyboardInterrupt):
                build_trainer(cfg).train()

    return run


def edit_split(root, change):
    path = root / "toy/split_toy.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def swap_labels(content):
    for rows in content.values():
        for row in rows:
            row[1] = (1, 0, 2)[row[1]]


def rename_class(content):
    for rows in content.values():
        for row in rows:
            row[2] = row[2].replace("blue", "azure")


def drop_test_image(content):
    content["test"].pop()


def other_test_image(content):
    content["test"][0][0] = content["test"][1][0]


# ---------------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swap_labels, "the split changed: label 0 is 'green square', was 'red_square' (2 labels"),
        (rename_class, "the split changed: label 2 is 'azure square', was 'blue square' (1 label"),
        (drop_test_image, "the split changed: 11 test images, were 12"),
        (other_test_image, "the split changed: other images in test"),
    ],
)
def test_another_split_is_not_resumed(make_cfg, root, interrupt, capsys, change, said):
    cfg = make_cfg(root=root, **CHANGES)
    interrupt(cfg)
    edit_split(root, change)
    build_trainer(cfg).train()
    log = capsys.readouterr().out
    assert "WARNING: not resuming: " in log
    assert said in log
    assert "Resuming after epoch" not in log
    assert "epoch [1/2]" in log.split("WARNING: not resuming")[1]
    assert any(said in note for note in read_result(cfg.OUTPUT_DIR)["notes"])


def test_another_picture_is_not_resumed(make_cfg, root, interrupt, capsys):
    cfg = make_cfg(root=root, **CHANGES)
    interrupt(cfg)
    one, other = (root / f"toy/images/red_square/{n}.png" for n in ("08", "09"))  # of the test
    content, times = one.read_bytes(), one.stat()
    one.write_bytes(other.read_bytes()[:-1] + b"\x81")
    other.write_bytes(content)
    os.utime(one, ns=(times.st_atime_ns, times.st_mtime_ns))
    build_trainer(cfg).train()
    log = capsys.readouterr().out
    assert "not resuming" in log
    assert "the images in DATASET.ROOT/toy/images/red_square changed" in log


def test_a_data_set_and_a_file_that_moved_are_the_same(make_cfg, root, tmp_path, interrupt, capsys):
    (tmp_path / "a").write_text("names")
    cfg = make_cfg(root=root, DATASET__CLASSNAMES=str(tmp_path / "a"), **CHANGES)
    interrupt(cfg)
    shutil.copytree(root, tmp_path / "elsewhere")
    shutil.rmtree(root)
    (tmp_path / "a").rename(tmp_path / "b")
    changes = {"DATASET__CLASSNAMES": str(tmp_path / "b"), "TRAIN__PRINT_FREQ": 1, **CHANGES}
    build_trainer(make_cfg(root=tmp_path / "elsewhere", **changes)).train()
    assert "Resuming after epoch 1 of 2" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["names", "names.csv", "~/names.txt", "below/names.yaml"])
def test_a_file_that_the_config_names_is_not_resumed(
    make_cfg, root, tmp_path, interrupt, capsys, monkeypatch, name
):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / name[2:] if name[0] == "~" else root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("one")
    cfg = make_cfg(root=root, DATASET__CLASSNAMES=name, **CHANGES)
    interrupt(cfg)
    path.write_text("two")
    build_trainer(cfg).train()
    log = capsys.readouterr().out
    assert "not resuming" in log
    assert "the file that DATASET.CLASSNAMES names changed" in log


def test_a_resume_file_without_identity_is_told_by_its_config(make_cfg, root, interrupt, capsys):
    cfg = make_cfg(root=root, **CHANGES)
    interrupt(cfg)
    path = Path(cfg.OUTPUT_DIR) / "resume.pth.tar"
    state = torch.load(path, weights_only=True)
    del state["identity"], state["device"]
    torch.save(state, path)
    (Path(cfg.OUTPUT_DIR) / "identity.json").unlink()
    build_trainer(cfg).train()
    assert "Resuming after epoch 1 of 2" in capsys.readouterr().out


def test_keys_that_differ_are_named(make_cfg, root, interrupt, capsys):
    interrupt(make_cfg(root=root, **CHANGES))
    build_trainer(make_cfg(root=root, **CHANGES, OPTIM__LR=0.02)).train()
    assert "configuration or data: OPTIM.LR was 0.05, is 0.02" in capsys.readouterr().out


def test_checkpoints_of_another_recipe_or_of_other_classes_are_not_gone_on_from(make_cfg, root):
    first = make_cfg("first", root=root, **CHANGES)
    build_trainer(first).train()  # leaves checkpoints, no resume file
    changes = {**CHANGES, "OPTIM__MAX_EPOCH": 3, "RESUME": first.OUTPUT_DIR}
    trainer = build_trainer(make_cfg("longer", root=root, **changes))
    trainer.train()
    assert trainer.start_epoch == 2
    with pytest.raises(ValueError, match=r"OPTIM\.LR was 0\.05, is 0\.5"):
        build_trainer(make_cfg("other", root=root, **changes, OPTIM__LR=0.5)).train()
    edit_split(root, rename_class)
    with pytest.raises(ValueError, match="--resume.*label 2 is 'azure square'"):
        build_trainer(make_cfg("third", root=root, **changes)).train()


# ---------------------------------------------------------------------- done, and damaged


def test_done_looks_at_what_was_read(make_cfg, root):
    cfg = make_cfg(root=root, **CHANGES)
    build_trainer(cfg).train()
    own = config_hash(cfg)
    assert is_done(cfg.OUTPUT_DIR, own)
    picture = root / "toy/images/red_square/08.png"
    content = picture.read_bytes()
    picture.write_bytes(content[:-1] + b"\x81")
    assert not is_done(cfg.OUTPUT_DIR, own)
    picture.write_bytes(content)
    assert is_done(cfg.OUTPUT_DIR, own)
    (root / "toy/images/red_square/unlisted.txt").write_text("no image")
    assert is_done(cfg.OUTPUT_DIR, own)
    edit_split(root, rename_class)
    assert not is_done(cfg.OUTPUT_DIR, own)


@pytest.mark.parametrize("name", ["result.json", "identity.json"])
def test_what_was_edited_is_not_done(make_cfg, root, name):
    cfg = make_cfg(root=root, **CHANGES)
    build_trainer(cfg).train()
    path = Path(cfg.OUTPUT_DIR) / name
    content = json.loads(path.read_text())
    content["metrics" if name == "result.json" else "split"] = {"accuracy": 99.0}
    path.write_text(json.dumps(content))
    assert not is_done(cfg.OUTPUT_DIR, config_hash(cfg))
    assert (read_result(cfg.OUTPUT_DIR) is None) == (name == "result.json")


def test_a_seal_survives_json_and_nothing_else():
    content = sealed({"a": (1, 2.5), "b": {10: "x", 9: float("inf")}, "é": None})
    again = json.loads(json.dumps(content, ensure_ascii=False, indent=2))
    assert is_sealed(again)
    assert not is_sealed({**again, "a": [1, 2.0]})
    assert not is_sealed({key: value for key, value in again.items() if key != "b"})
    assert is_sealed({"a": 1})  # of an older version


# ---------------------------------------------------------------------- used folders


def test_another_config_in_a_folder_sets_aside_what_it_would_mix_with(make_cfg, root, capsys):
    best = {"TEST__FINAL_MODEL": "best_val", **CHANGES}
    first = make_cfg(root=root, **best)
    build_trainer(first).train()
    output = Path(first.OUTPUT_DIR)
    (output / "mine.txt").write_text("notes")
    (output / "figures").mkdir()
    weights = torch.load(output / "ToyMethod/model-best.pth.tar", weights_only=True)
    second = make_cfg(root=root, **CHANGES, OPTIM__LR=0.5)
    trainer = build_trainer(second)
    trainer.train()
    log = capsys.readouterr().out
    assert "Another run was here (OPTIM.LR was 0.05, is 0.5; TEST.FINAL_MODEL was" in log
    assert log.count("was moved to") == 1
    kept = output / "previous-1"
    assert read_result(kept)["config"]["OPTIM"]["LR"] == 0.05
    assert {p.name for p in kept.iterdir()} == {
        *("result.json", "predictions.csv.gz", "identity.json", "tensorboard", "ToyMethod")
    }
    assert not (output / "ToyMethod/model-best.pth.tar").exists()
    assert (output / "mine.txt").exists()
    assert (output / "figures").exists()
    evaluated = build_trainer(make_cfg("e", root=root, **CHANGES, OPTIM__LR=0.5))
    evaluated.load_model(output)
    assert torch.equal(evaluated.model.head.weight, trainer.model.head.weight)
    assert not torch.equal(evaluated.model.head.weight, weights["state_dict"]["head.weight"])
    # The same again is no other run.
    build_trainer(second).train()
    assert not (output / "previous-2").exists()
    assert (output / "result.json.old").is_file()


def test_another_split_is_another_run_in_a_folder(make_cfg, root):
    cfg = make_cfg(root=root, **CHANGES)
    build_trainer(cfg).train()
    edit_split(root, rename_class)
    build_trainer(cfg).train()
    names = [row["name"] for row in read_result(Path(cfg.OUTPUT_DIR) / "previous-1")["per_class"]]
    assert names[2] == "blue square"
    assert read_result(cfg.OUTPUT_DIR)["per_class"][2]["name"] == "azure square"


def test_weights_without_identity_are_told_by_their_config(make_cfg, root):
    """As an older version, or a kill before anything was written, leaves them."""
    cfg = make_cfg(root=root, **CHANGES)
    build_trainer(cfg).train()
    output = Path(cfg.OUTPUT_DIR)
    for name in ("identity.json", "result.json"):
        (output / name).unlink()
    build_trainer(cfg).train()
    assert not (output / "previous-1").exists()
    (output / "identity.json").unlink()
    build_trainer(make_cfg(root=root, **CHANGES, OPTIM__LR=0.5)).train()
    assert (output / "previous-1/ToyMethod/model.pth.tar-2").is_file()


def test_an_evaluation_keeps_the_training_s_result(make_cfg, root):
    cfg = make_cfg(root=root, **CHANGES)
    build_trainer(cfg).train()
    for _ in range(2):  # the second replaces its like
        trainer = build_trainer(cfg)
        trainer.load_model(cfg.OUTPUT_DIR)
        trainer.test()
    assert read_result(cfg.OUTPUT_DIR)["eval_only"]
    assert not read_result(Path(cfg.OUTPUT_DIR) / "previous-1")["eval_only"]
    assert not (Path(cfg.OUTPUT_DIR) / "previous-2").exists()


def test_a_best_model_of_another_run_is_left_alone(make_cfg, root, tmp_path, capsys):
    cfgs = [
        make_cfg("a", root=root, TEST__FINAL_MODEL="best_val", **CHANGES, OPTIM__LR=0.5),
        make_cfg("b", root=root, **CHANGES),
    ]
    trainers = [build_trainer(cfg) for cfg in cfgs]
    for trainer in trainers:
        trainer.train()
    shutil.copy(
        tmp_path / "a/ToyMethod/model-best.pth.tar", tmp_path / "b/ToyMethod/model-best.pth.tar"
    )
    loaded = build_trainer(make_cfg("c", root=root, **CHANGES))
    loaded.load_model(tmp_path / "b")
    assert torch.equal(loaded.model.head.weight, trainers[1].model.head.weight)
    assert "is of another run" in capsys.readouterr().out
    # Of one run, the best still goes first.
    assert build_trainer(cfgs[0]).load_model(tmp_path / "a") is None
    assert "model-best.pth.tar" in capsys.readouterr().out


# ---------------------------------------------------------------------- weights


def test_weights_of_another_recipe_are_refused(make_cfg, root, capsys):
    cfg = make_cfg(root=root, **CHANGES)
    build_trainer(cfg).train()
    other = build_trainer(make_cfg("e", root=root, **CHANGES, OPTIM__LR=0.5))
    said = r"otherwise than the config says: OPTIM\.LR was 0\.05, is 0\.5\..*--any-config"
    with pytest.raises(ValueError, match=said):
        other.load_model(cfg.OUTPUT_DIR)
    other.any_config = True
    other.load_model(cfg.OUTPUT_DIR)
    other.test()
    result = read_result(other.output_dir)
    assert result["any_config"]
    assert result["notes"] == [
        "weights that were trained with other options: OPTIM.LR was 0.05, is 0.5"
    ]


def test_what_an_evaluation_may_have_of_its_own(make_cfg, root):
    cfg = make_cfg(root=root, **CHANGES)
    build_trainer(cfg).train()
    own = {"SEED": 3, "DATASET__NUM_SHOTS": -1, "OPTIM__MAX_EPOCH": 5, "TEST__SPLIT": "val"}
    own |= {"DATALOADER__TEST__BATCH_SIZE": 3, "INPUT__TRANSFORMS": ("normalize",)}
    other = build_trainer(make_cfg("e", root=root, **own))
    other.load_model(cfg.OUTPUT_DIR)
    assert other.notes == []


# ---------------------------------------------------------------------- parts


def test_recording_hears_what_is_read_and_listed(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a.json", "b", "c.py", "1.png"):
        (data / name).write_text(name)
    with recording(heard := Recording()):
        (data / "a.json").read_text()
        with open(data / "b", "rb"), open(tmp_path / "written", "w"):
            pass
        (data / "c.py").read_text()
        os.listdir(data)
        with recording(None):
            (data / "1.png").read_bytes()
            os.listdir(tmp_path)
    (data / "1.png").read_bytes()
    assert heard.folders == {str(data)}
    assert heard.files == {str(data / name) for name in ("a.json", "b", "c.py")}
    places = places_of({DATA: data})
    found = record_inputs(heard, places)
    assert found["files"] == {
        "DATASET.ROOT/a.json": file_hash(data / "a.json"),
        "DATASET.ROOT/b": file_hash(data / "b"),
    }

    def check(*arguments):
        return InputCheck().changes(*arguments)

    assert check(found, places) == []
    (data / "z.txt").write_text("no image, no folder")
    assert check(found, places) == []
    (data / "b").write_text("other")
    (data / "2.png").write_text("new")
    assert check(found, places) == [
        "the file DATASET.ROOT/b changed",
        "DATASET.ROOT holds other folders or images",
    ]
    (data / "a.json").unlink()
    assert "the file DATASET.ROOT/a.json is gone" in check(found, places)
    shutil.rmtree(data)  # of another machine: nothing can be said
    assert check(found, places) == []


def test_images_by_content_or_by_size(tmp_path, monkeypatch):
    names = ("1.png", "2.png", "3.png")
    for name in names:
        (tmp_path / name).write_text(name)
    places = places_of({DATA: tmp_path})
    monkeypatch.setattr("dassl.config.inputs._MANY", 2)
    some = image_record([str(tmp_path / name) for name in names[:2]], places)
    every = image_record([str(tmp_path / name) for name in names], places)
    assert some["images"]["DATASET.ROOT"][0] == ["1.png", "2.png"]
    assert every["images"]["DATASET.ROOT"][0] is None
    monkeypatch.setattr("dassl.config.inputs._SOON_READ", 1)
    sizes = image_record([str(tmp_path / name) for name in names], places)
    asked = image_record([str(tmp_path / name) for name in names], places, contents=True)
    assert [r["contents"] for r in (some, every, sizes, asked)] == [True, True, False, True]
    (tmp_path / "3.png").write_text("4.png")
    said = ["the images in DATASET.ROOT changed"]
    assert [InputCheck().changes(r, places) for r in (some, every, sizes, asked)] == [
        *([], said, [], said)
    ]
    (tmp_path / "3.png").write_text("longer")
    assert InputCheck().changes(sizes, places) == said


def test_files_are_found_by_any_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a", "b.pt", "c.yaml"):
        (tmp_path / name).write_text(name)
    config = {"X": {"A": "a", "B": "~/b.pt", "C": ["none", str(tmp_path / "c.yaml")]}, "D": ""}
    config |= {"OUTPUT_DIR": "a", "N": 3}
    assert files_named(config, [tmp_path / "none", tmp_path]) == {
        "X.A": str(tmp_path / "a"),
        "X.B": str(tmp_path / "b.pt"),
        "X.C.1": str(tmp_path / "c.yaml"),
    }


def test_changes_are_told_in_words():
    old = {"A": 1, "B": (1, 2), "F": f"{FILE_MARK}1", "G": "x"}
    new = {"A": 2, "B": [1, 2], "F": f"{FILE_MARK}2", "H": None}
    assert config_changes(old, new) == [
        "A was 1, is 2",
        "the file that F names changed",
        "G was 'x', is not set",
        "H is None, was not set",
    ]
    base = [Datum(f"/r/{k}.png", label=k, classname="ab"[k]) for k in (0, 1)]
    sets = [DatasetBase(train_x=base, test=base), DatasetBase(train_x=base[::-1], test=base)]
    records = [split_record(one, "/r") for one in sets]
    assert split_change(records[0], records[0]) == ""
    assert split_change(*records) == "the split changed: other images in train"
    # The same pictures in the same order, of which two have each other's label.
    swapped = [
        Datum(item.impath, label=1 - item.label, classname="ba"[item.label]) for item in base
    ]
    relabelled = split_record(DatasetBase(train_x=swapped, test=base), "/r")
    assert relabelled["classes"] == records[0]["classes"]
    assert split_change(records[0], relabelled) == "the split changed: other labels in train"
