"""Full fine-tuning in two stages, on other data sets, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.dassl.torch_files import SPOILED, spoil
from tests.trainers.finetuning.runs import HALF, batch
from trainers.finetuning.stages import FirstStageError


def test_second_stage_starts_from_the_first(train_fft, build_fft, monkeypatch):
    first = train_fft("RAdaFFT", *HALF, output="first")
    second = build_fft("RAdaFT", *HALF, "FIRST_STAGE.DIR", first, output="second")
    stage = build_fft("RAdaFFT", *HALF, output="again")
    stage.load_model(first)
    image, _ = batch()
    expected = stage.model.eval()(image)
    seen = []
    monkeypatch.setattr(second, "run_epoch", lambda: seen.append(second.model.eval()(image)))
    monkeypatch.setattr(second, "after_train", lambda: None)
    second.train()
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-4)


def test_snapshot_of_an_epoch(train_fft, build_fft):
    options = ("OPTIM.MAX_EPOCH", "2", "TRAIN.CHECKPOINT_FREQ", "1", "DATASET.NUM_SHOTS", "2")
    first = train_fft("RAdaFFT", *options, output="first")
    states = [
        build_fft("RAdaFT", "FIRST_STAGE.DIR", first, "FIRST_STAGE.EPOCH", epoch).first_stage()
        for epoch in ("1", "2", "0")
    ]
    key = "head.layers.0.out.weight"
    assert not torch.equal(states[0][key], states[1][key])
    assert torch.equal(states[1][key], states[2][key])


def test_second_stage_needs_a_first_one(build_fft, train_fft):
    with pytest.raises(FirstStageError, match=r"FIRST_STAGE.DIR is empty.*RAdaFFT/fft_5epochs"):
        build_fft("RAdaFT").train()
    with pytest.raises(FirstStageError, match=r"nowhere' holds no weights .* run of LP"):
        build_fft("LPFT", "FIRST_STAGE.DIR", "nowhere", output="a").train()
    lp = train_fft("LP", output="lp")
    with pytest.raises(FirstStageError, match="no weights of a finished run of RAdaFFT"):
        build_fft("RAdaFT", "FIRST_STAGE.DIR", lp, output="b").train()
    trainer = build_fft("LPFT", "FIRST_STAGE.DIR", lp, "FIRST_STAGE.EPOCH", "7", output="c")
    with pytest.raises(FirstStageError, match=r"model.pth.tar-7.*FIRST_STAGE.EPOCH"):
        trainer.train()


def test_first_stage_of_other_classes_is_refused(train_fft, build_fft):
    half = train_fft("LP", *HALF, output="half")
    with pytest.raises(FirstStageError, match=r"over 20 classes.*this run has 40"):
        build_fft("LPFT", "FIRST_STAGE.DIR", half).train()
    new = ("DATASET.SUBSAMPLE_CLASSES", "new", "FIRST_STAGE.DIR", half)
    with pytest.raises(FirstStageError, match=r"class 0 is '.*' there and '.*' here"):
        build_fft("LPFT", *new, output="new").train()


def test_first_stage_of_another_backbone_is_refused(train_fft, build_fft):
    lp = train_fft("LP", output="lp")
    (file,) = Path(lp, "LP").glob("model.pth.tar-1")
    content = torch.load(file, weights_only=True)
    for change, said in (
        ({"backbone": "ViT-B/16"}, r"backbone 'ViT-B/16', this run has 'shapes'"),
        ({"backbone_sha256": "0" * 64}, r"the file of the backbone 'shapes' is another one"),
    ):
        torch.save({**content, "meta": {**content["meta"], **change}}, file)
        with pytest.raises(FirstStageError, match=said):
            build_fft("LPFT", "FIRST_STAGE.DIR", lp).train()


def test_spoiled_first_stages_are_refused(train_fft, build_fft):
    lp = train_fft("LP", output="lp")
    (file,) = Path(lp, "LP").glob("model.pth.tar-1")
    whole = file.read_bytes()
    for how, said in SPOILED.items():
        file.write_bytes(whole)
        spoil(file, how)
        with pytest.raises(FirstStageError, match=f'"{file}" .*{said}'):
            build_fft("LPFT", "FIRST_STAGE.DIR", lp).train()
        with pytest.raises(ValueError, match=f'"{file}" .*{said}'):
            build_fft("LP").load_model(lp)


def test_first_stage_with_another_mask_is_refused(train_fft, build_fft):
    first = train_fft("RAdaFFT", "TRAINER.RAdaFFT.SOFTMAX", "row", output="first")
    with pytest.raises(FirstStageError, match=r"SOFTMAX row, this run has joint"):
        build_fft("RAdaFT", "FIRST_STAGE.DIR", first).train()
    layers = train_fft("RAdaFFT", "TRAINER.RAdaFFT.MASK_LAYERS", "2", output="layers")
    with pytest.raises(FirstStageError, match=r"unknown head.layers.1"):
        build_fft("RAdaFT", "FIRST_STAGE.DIR", layers, output="b").train()


def test_half_precision_weights_cannot_be_fine_tuned(build_fft):
    with pytest.raises(ValueError, match="TRAINER.FT.PREC is fp16"):
        build_fft("FT", "TRAINER.FT.PREC", "fp16")
    with pytest.raises(ValueError, match="TRAINER.FLYP.PREC is fp16"):
        build_fft("FLYP", "TRAINER.FLYP.PREC", "fp16")
    assert build_fft("LP", "TRAINER.LP.PREC", "fp16").precision == "fp32"


@pytest.mark.parametrize("method", ["LP", "RAdaFFT"])
def test_classes_of_a_target_are_columns_of_the_classifier(train_fft, build_fft, method):
    whole = build_fft(method, output="whole")
    directory = train_fft(method, output="run")
    whole.load_model(directory)
    half = build_fft(method, "DATASET.SUBSAMPLE_CLASSES", "new", output="half", dataset="shapes_v2")
    half.load_model(directory)
    image, _ = batch()
    known = whole.dm.dataset.classnames
    columns = [known.index(name) for name in half.dm.dataset.classnames]
    assert half.model.columns == columns == list(range(20, 40))
    expected = whole.model.eval()(image)[:, columns]
    torch.testing.assert_close(half.model.eval()(image), expected)
    half.test()
    result = json.loads(Path(half.output_dir, "result.json").read_text())
    assert result["num_classes"] == 20


def test_target_with_unknown_classes_is_refused(train_fft, build_fft):
    directory = train_fft("LP", *HALF, output="run")
    with pytest.raises(ValueError, match=r"20 of the 40 classes of Shapes are none of the 20"):
        build_fft("LP", output="all").load_model(directory)
    with pytest.raises(ValueError, match=r"classes of ShapesColours are none"):
        build_fft("LP", output="colours", dataset="shapes_colours").load_model(directory)


class TestImageNet:
    """A classifier over 1000 (here 40) classes on shifts that have some, in their order."""

    def test_masked(self, train_fft, build_fft):
        directory = train_fft("LP", output="run")
        target = build_fft("LP", "DATASET.SUBSAMPLE_CLASSES", "new", output="new")
        dataset = target.dm.dataset
        whole = build_fft("LP", output="whole")
        whole.load_model(directory)
        dataset.imagenet_names = list(whole.dm.dataset.classnames)
        dataset.imagenet_labels = [[label, label - 20] for label in range(20, 40)]
        target.load_model(directory)
        image, _ = batch()
        logits = whole.model.eval()(image)
        expected = torch.maximum(logits[:, 20:], logits[:, :20])
        assert target.model.columns is None
        target.model.eval()
        torch.testing.assert_close(target.model_inference(image), expected)


@pytest.mark.parametrize("method", ["LP", "RAdaFFT", "CLIPAdapterFFT"])
def test_frozen_encoders_can_use_cached_features(train_fft, tmp_path, method):
    cache = ("FEATURE_CACHE.DIR", str(tmp_path / "cache"), "FEATURE_CACHE.ENABLED")
    plain_run = train_fft(method, *cache, "False", output="plain")
    cached = train_fft(method, *cache, "True", output="cached")
    states = [
        torch.load(Path(run, method, "model.pth.tar-1"), weights_only=True)["state_dict"]
        for run in (plain_run, cached)
    ]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6)
