"""``train.py --export``, end to end: what is written runs elsewhere and agrees with the run."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import clip
from dassl.data.wrapper import read_image
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer, read_result, trainable_state
from dassl.utils import load_checkpoint
from dassl.utils.adapter_file import ADAPTER_NAME, read_adapter, write_adapter
from scripts.drawing.trained_run import load_run
from scripts.exporting import export as export_module
from scripts.exporting import parts
from scripts.exporting.agreement import TOLERANCE, allowed, check_images, disagreement
from scripts.training.parser import EXPORT_PARTS
from tests.runs import OURS, SMALL
from tests.scripts.exporting.runs import run_train

# One of each kind: adapters in the encoders, a mask behind them, texts that depend on the image,
# both encoders trained, nothing trained. That all others are graphs is in test_matrix.py.
IN_FULL = ("LightRA", "RAda", "CoCoOp", "FLYP", "ZeroshotCLIP")


@pytest.mark.parametrize("name", IN_FULL)
def test_all_files_agree_with_the_run(name, trained, exported):
    folder = exported(name)
    about = json.loads((folder / "export.json").read_text())
    run = trained(name)
    rows = read_result(run)["per_class"]
    names = json.loads((folder / "classes.json").read_text())
    assert names == [row["name"] for row in sorted(rows, key=lambda row: row["label"])]
    assert {path.name for path in folder.iterdir()} == {
        *about["files"], "export.json", "README.md", "run.py",
    }  # fmt: skip
    assert about["files"].keys() >= {"model.onnx", "model.pt2", "text_features.npy"}
    assert (ADAPTER_NAME in about["files"]) == (name != "ZeroshotCLIP")
    assert about["files"].keys() | {parts.FILES[p] for p in about["left_out"]} >= {
        *parts.FILES.values()
    }
    for worst in about["agreement"].values():
        assert max(worst.values()) <= TOLERANCE

    # Not by the export's own comparison: the run's logits of pictures that it never saw.
    images = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(7))
    expected = logits_of_run(run, images)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    logits, features = session.run(["logits", "features"], {"image": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=TOLERANCE, rtol=0)
    again, same = torch.export.load(folder / "model.pt2").module()(images)
    torch.testing.assert_close(again, expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(same, torch.from_numpy(features), atol=TOLERANCE, rtol=0)
    text = np.load(folder / "text_features.npy")
    cosine = about["logit_scale"] * features @ text.T
    assert about["cosine"] == bool(np.abs(cosine - logits).max() <= TOLERANCE)
    assert about["cosine"] == (name in ("LightRA", "FLYP", "ZeroshotCLIP"))


def logits_of_run(folder: str, images: torch.Tensor | Path) -> torch.Tensor:
    """Logits (B, K) of a finished run, built again from its own config and data.

    ``images`` are tensors (B, 3, S, S), or a file, which its own test transform makes one of.
    """
    trainer = load_run(Path(folder), device="cpu")
    trainer.set_model_mode("eval")
    if isinstance(images, Path):
        images = trainer.dm.tfm_test(read_image(str(images)))[None]
    with torch.no_grad():
        return trainer.model_inference(images)


def test_the_readme_runs_where_this_project_is_not(exported, trained, shapes_root, tmp_path):
    """On a JPEG that is no square, in a process that could not import it: as --predict has it."""
    folder = exported("LightRA")
    lines = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert lines == (folder / "run.py").read_text()
    picture = next(Path(shapes_root, "shapes").rglob("*.png"))
    wide = Image.open(picture).convert("RGB").resize((150, 95), Image.Resampling.BICUBIC)
    wide.save(tmp_path / "photo.jpg", quality=90)

    script = tmp_path / "elsewhere.py"
    script.write_text(lines + "print(json.dumps(logits[0].tolist()))\n")
    words = [sys.executable, "-I", str(script), str(tmp_path / "photo.jpg")]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    logits = torch.tensor(json.loads(second))
    failed = subprocess.run([sys.executable, "-I", "-c", "import clip.adapters"], cwd=folder)
    assert failed.returncode != 0
    expected = logits_of_run(trained("LightRA"), tmp_path / "photo.jpg")[0]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)

    table = tmp_path / "found.csv"
    words = ("--model-dir", trained("LightRA"), "--top-k", 20, "--predict-output", table)
    assert run_train("--predict", tmp_path / "photo.jpg", *words, "--device", "cpu") == 0
    rows = list(csv.DictReader(table.open()))
    names = json.loads((folder / "classes.json").read_text())
    assert first.rpartition(" ")[0] == rows[0]["class"]
    predicted = {row["class"]: float(row["probability"]) for row in rows}
    found = dict(zip(names, logits.softmax(-1).tolist(), strict=True))
    assert found == pytest.approx(predicted, abs=1e-4)


def test_weights_of_both_encoders_are_a_clip_of_their_own(exported, trained):
    folder = exported("FLYP")
    own = clip.load(str(folder / "clip_weights.pt"))
    checkpoint = load_checkpoint(next(Path(trained("FLYP")).glob("*/model.pth.tar-1")))
    state = {k.removeprefix("backbone.model."): v for k, v in checkpoint["state_dict"].items()}
    assert state
    loaded = own.model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    # open_clip's own loader rounds such a file to half precision on the way.
    other = open_clip.load_openai_model(str(folder / "clip_weights.pt"), device="cpu")
    images = check_images(48, 48)[-1]
    with torch.no_grad():
        features = [F.normalize(m.encode_image(images), dim=-1) for m in (own.model, other)]
    torch.testing.assert_close(*features, atol=5e-3, rtol=0)


class TestAdapterFile:
    def test_an_export_is_a_model_dir(self, exported, trained, make_config, shapes_root):
        """Tested on the run's classes and on new ones as the run itself is, to the last bit."""
        folder = exported("RAda", "adapter")
        for classes in ("base", "new"):
            options = (*SMALL, "DATASET.SUBSAMPLE_CLASSES", classes)  # the last one counts
            states = []
            for directory in (trained("RAda"), folder):
                trainer = build_trainer(make_config("RAda/base2novel", *options))
                trainer.load_model(directory)
                states.append(trainable_state(trainer.model))
            assert states[0].keys() == states[1].keys()
            assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])

    def test_it_predicts_and_is_exported_again(self, exported, tmp_path, shapes_root):
        folder = exported("LightRA", "adapter")
        picture = next(Path(shapes_root, "shapes").rglob("*.png"))
        assert run_train("--predict", picture, "--model-dir", folder, "--device", "cpu") == 0
        again = tmp_path / "again"
        assert run_train("--export", again, "--model-dir", folder, "--export-parts", "adapter") == 0
        first, second = (read_adapter(one / ADAPTER_NAME) for one in (folder, again))
        weights, again_weights = first.pop("state_dict"), second.pop("state_dict")
        assert first == second
        assert weights.keys() == again_weights.keys()
        assert all(torch.equal(value, again_weights[name]) for name, value in weights.items())

    def test_its_header_tells_what_it_is(self, exported):
        path = exported("CoOp", "adapter") / ADAPTER_NAME
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        assert header["format"] == "pt"
        own = json.loads(header["adapter"])
        assert own["version"] == 1
        assert own["epoch"] == 1
        meta = own["meta"]
        assert (meta["method"], meta["backbone"], meta["num_classes"]) == ("CoOp", "shapes", 20)
        assert len(meta["classnames"]) == 20
        assert meta["config"]["TRAINER"]["CoOp"]["N_CTX"] == meta["recipe"]["TRAINER.CoOp.N_CTX"]

    def test_of_another_method_it_is_refused(self, exported, make_config):
        folder = exported("CoOp", "adapter")
        trainer = build_trainer(make_config("RAda/base2novel"))
        with pytest.raises(ValueError, match="was trained with method 'CoOp'"):
            trainer.load_model(folder)

    def test_damaged_and_newer_files_are_refused(self, tmp_path):
        path = tmp_path / ADAPTER_NAME
        write_adapter(path, {"a": torch.ones(2, 3).T}, 3, {"method": "X"})
        found = load_checkpoint(path)
        assert (found["epoch"], found["meta"]) == (3, {"method": "X"})
        assert torch.equal(found["state_dict"]["a"], torch.ones(3, 2))
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(ValueError, match="not a readable checkpoint"):
            load_checkpoint(path)
        write_adapter(path, {"a": torch.full((1,), torch.nan)}, 3, {})
        with pytest.raises(ValueError, match="'a' in it has infinite or NaN values"):
            load_checkpoint(path)

    def test_of_a_later_version_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr("dassl.utils.adapter_file._VERSION", 2)
        write_adapter(tmp_path / ADAPTER_NAME, {"a": torch.ones(1)}, 1, {})
        monkeypatch.undo()
        with pytest.raises(ValueError, match="it has version 2, this project reads up to 1"):
            load_checkpoint(tmp_path / ADAPTER_NAME)

    def test_of_another_program_has_tensors_alone(self, tmp_path):
        from safetensors.torch import save_file

        save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
        assert read_adapter(tmp_path / "x.safetensors").keys() == {"state_dict"}


def test_other_classes_by_name(trained, tmp_path):
    """A method that is not bound to the classes of training is exported for any others."""
    names = tmp_path / "names.txt"
    names.write_text("solid blue square\nsolid purple cross\ndotted green star\n")
    words = ("--model-dir", trained("LightRA"), "--classnames", names, "--export-parts", "pt2")
    assert run_train("--export", tmp_path / "other", *words) == 0
    run = torch.export.load(tmp_path / "other/model.pt2").module()
    assert run(torch.zeros(1, 3, 48, 48))[0].shape == (1, 3)


def test_zero_shot_needs_no_run(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("red circle\nblue square\n")
    words = ("--backbone", "shapes", "--classnames", names, "--export-parts", "pt2")
    assert run_train("--export", tmp_path / "zero", *words) == 0
    assert json.loads((tmp_path / "zero/export.json").read_text())["trainer"] == "ZeroshotCLIP"


class TestRefusals:
    def test_no_run_no_weights(self, tmp_path):
        folder = tmp_path / "new"
        said = run_train("--export", folder, "--model-dir", tmp_path / "nothing")
        assert said == f"error: --model-dir: no directory {tmp_path / 'nothing'}"
        (tmp_path / "empty").mkdir()
        said = run_train("--export", folder, "--model-dir", tmp_path / "empty")
        assert "has neither a complete result.json nor weights" in said
        (tmp_path / "names.txt").write_text("red circle\nblue square\n")
        words = ("--trainer", "RAda", "--backbone", "shapes", "--classnames")
        said = run_train("--export", folder, *words, tmp_path / "names.txt")
        assert "--export of RAda needs --model-dir, the folder of a finished run" in said
        assert not folder.exists()

    def test_a_checkpoint_that_is_gone(self, trained, tmp_path):
        said = run_train("--export", tmp_path / "new", "--model-dir", trained("RAda"),
                      "--load-epoch", 9)  # fmt: skip
        assert "No checkpoint at" in said
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_holds_something(self, trained, tmp_path):
        (tmp_path / "full").mkdir()
        (tmp_path / "full/mine.txt").touch()
        said = run_train("--export", tmp_path / "full", "--model-dir", trained("RAda"))
        assert "is there and not empty; name a new folder, or remove it first" in said
        assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]

    def test_missing_packages(self, trained, tmp_path, monkeypatch):
        monkeypatch.setattr(parts, "find_spec", lambda name: None if "onnx" in name else 1)
        said = run_train("--export", tmp_path / "new", "--model-dir", trained("RAda"))
        assert "pip install onnx onnxscript onnxruntime" in said
        words = ("--model-dir", trained("RAda"), "--export-parts", "adapter", "pt2")
        assert run_train("--export", tmp_path / "new", *words) == 0
        files = {path.name for path in (tmp_path / "new").iterdir()}
        assert {"model.pt2", ADAPTER_NAME, "README.md"} <= files
        assert not files & {"model.onnx", "clip_weights.pt", "run.py"}

    @pytest.mark.parametrize("broken", ["onnx", "pt2"])
    def test_nothing_is_left_of_what_does_not_agree(self, broken, trained, tmp_path, monkeypatch):
        reader = getattr(parts, f"{broken}_run")

        def wrong(path):
            run = reader(path)
            return lambda images: (run(images)[0] + 0.01, run(images)[1])

        monkeypatch.setattr(parts, f"{broken}_run", wrong)
        said = run_train("--export", tmp_path / "new", "--model-dir", trained("RAda"),
                      "--export-parts", broken)  # fmt: skip
        assert f"model.{broken} does not agree with the trained run: logits are off by" in said
        assert list(tmp_path.iterdir()) == []

    def test_nothing_is_left_of_an_interrupted_one(self, trained, tmp_path, monkeypatch):
        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(export_module, "_write_graphs", interrupted)
        assert run_train("--export", tmp_path / "new", "--model-dir", trained("RAda")) == 130
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "name", [n for n in OURS if TRAINER_REGISTRY.get(n).recipe_type.no_graph]
    )
    def test_test_time_training_says_why(self, name, tmp_path):
        said = run_train("--export", tmp_path / "new", "--trainer", name, "--backbone", "shapes")
        assert f"{name} cannot be exported: each test image trains the model by steps" in said

    def test_a_trainer_made_for_dassl_says_why(self, tmp_path, monkeypatch):
        monkeypatch.setitem(TRAINER_REGISTRY._objects, "Plain", type("Plain", (TrainerX,), {}))
        said = run_train("--export", tmp_path / "new", "--trainer", "Plain", "--backbone", "shapes")
        assert "Plain was made for Dassl's engine" in said

    @pytest.mark.parametrize(
        ("words", "part"),
        [
            (("--predict", "x.png"), "--export"),
            (("--eval-only",), "--eval-only"),
            (("--device", "cuda"), "--device cuda does nothing beside --export"),
            (("--top-k", "3"), "--top-k 3 does nothing beside --export"),
            (("--feature-cache",), "--feature-cache does nothing beside --export"),
        ],
    )
    def test_flags_that_would_do_nothing(self, words, part, tmp_path):
        assert part in run_train("--export", tmp_path / "new", *words)
        assert not (tmp_path / "new").exists()

    def test_parts_without_an_export(self):
        said = run_train("--export-parts", "onnx", "--config-file", "x.yaml")
        assert "--export-parts onnx does nothing in a training run" in said


def test_every_part_has_a_flag_s_word():
    assert tuple(parts.FILES) == EXPORT_PARTS  # the parser does not wait for PyTorch to import


def test_a_difference_is_noticed():
    batches = check_images(8, 8)
    assert [len(images) for images in batches] == [1, 2, 4]

    def run(images, shift=0.0):
        mean = images.flatten(1)[:, :5]
        return mean + shift, mean

    found = disagreement(run, run, batches, "x")
    assert found == {"logits": 0.0, "features": 0.0}
    with pytest.raises(ValueError, match="x does not agree with the trained run: logits"):
        disagreement(run, lambda images: run(images, 1e-2), batches, "x")
    with pytest.raises(ValueError, match="logits are off by nan"):
        disagreement(run, lambda images: run(images, torch.nan), batches, "x")
    with pytest.raises(ValueError, match=r"shape \(1, 4\) for 1 images"):
        disagreement(run, lambda images: tuple(x[:, :4] for x in run(images)), batches, "x")
    assert allowed(torch.tensor([0.5])) == TOLERANCE
    assert allowed(torch.tensor([30.0, -40.0])) == pytest.approx(40 * TOLERANCE)
