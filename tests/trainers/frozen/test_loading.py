"""Heads of frozen features from checkpoints: for the classes of training, some, or others."""

import pytest
import torch
from torch.nn import functional as F

import clip
from tests.trainers.frozen.runs import SMALL  # noqa: F401 - the fixture `build` reads it
from tests.trainers.plain import check_released, tokens_of, write_released

METHOD = "GDA"
NEW = ("DATASET.SUBSAMPLE_CLASSES", "new")


@pytest.fixture
def trained(build):
    """A finished run of TipAdapter; its numbers are chosen on 20 images."""
    trainer = build(method="TipAdapter/few_shot", output="tip")
    trainer.train()
    return trainer


def test_what_was_chosen_is_loaded(build, trained):
    other = build(method="TipAdapter/few_shot", output="other")
    other.load_model(trained.output_dir)
    assert other.recipe.numbers() == trained.recipe.numbers()
    image = torch.randn(2, 3, 48, 48)
    assert torch.equal(other.model.eval()(image), trained.model.eval()(image))


def test_classes_that_were_not_trained_are_zero_shot(build, trained):
    new = build(*NEW, method="TipAdapter/few_shot", output="new")
    new.load_model(trained.output_dir)
    assert any("20 of 20 classes were not trained: zero-shot text" in n for n in new.notes)
    zero_shot = build(*NEW, method="ZeroshotCLIP/few_shot", output="zero")
    image = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(new.model.eval()(image), zero_shot.model.eval()(image))


def test_gda_has_a_rule_for_new_classes_of_base_to_novel(build):
    base = build()
    base.train()
    new = build(*NEW, output="new")
    new.load_model(base.output_dir)
    assert any("GDA's own rule" in note for note in new.notes)
    zero_shot = build(*NEW, method="ZeroshotCLIP/few_shot", output="zero")
    image = torch.randn(2, 3, 48, 48)
    assert not torch.allclose(new.model.eval()(image), zero_shot.model.eval()(image), atol=1e-3)


@pytest.mark.parametrize("method", ["GDA", "TipAdapter", "TaskRes", "LPPlusPlus", "LinearProbe"])
def test_some_of_the_trained_classes_are_found_by_name(build, method):
    """Training on all 40 classes serves the base half, with the columns of its classes."""
    whole = build("DATASET.SUBSAMPLE_CLASSES", "all", method=f"{method}/few_shot", output="all")
    whole.train()
    half = build(*NEW, method=f"{method}/few_shot", output="half")
    half.load_model(whole.output_dir)
    image = torch.randn(2, 3, 48, 48)
    logits = whole.model.eval()(image)[:, 20:]
    torch.testing.assert_close(half.model.eval()(image), logits)


@pytest.mark.parametrize(("method", "trained_keys"), [("TipAdapter", False), ("TipAdapterF", True)])
def test_released_caches_load(build, tmp_path, method, trained_keys):
    trainer = build(method=f"{method}/few_shot")
    keys = F.normalize(torch.randn(60, 128), dim=-1)
    label = torch.arange(20).repeat(3)
    folder = tmp_path / "caches"
    folder.mkdir()
    torch.save(keys.T.half(), folder / "keys_1shots.pt")
    torch.save(F.one_hot(label, 20).half(), folder / "values_1shots.pt")
    if trained_keys:
        torch.save(2 * keys.half(), folder / "best_F_1shots.pt")
    trainer.load_model(str(folder))
    head = trainer.model.head
    expected = 2 * keys.half().float() if trained_keys else keys.half().float()
    assert torch.equal(head.keys.data, expected)
    assert torch.equal(head.label, label)
    trainer.test()


def test_a_released_cache_of_another_backbone_is_refused(build, tmp_path):
    torch.save(torch.zeros(1024, 20), tmp_path / "keys_1shots.pt")
    torch.save(torch.eye(20), tmp_path / "values_1shots.pt")
    with pytest.raises(ValueError, match=r"head.keys.*\(20, 1024\), the model needs \(20, 128\)"):
        build(method="TipAdapter/few_shot").load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("method", "name"), [("TaskRes", "prompt_learner"), ("CLAP", "adapter"), ("ZSLP", "adapter")]
)
def test_released_checkpoints_load_and_evaluate(build, tmp_path, method, name):
    source = build(method=f"{method}/few_shot", output="source")
    loaded = build(method=f"{method}/few_shot", output="loaded")
    base = clip.load("shapes").model.encode_text(tokens_of(source)).detach()
    residual = torch.randn(20, 128)
    if method == "TaskRes":
        state = {"base_text_features": base, "text_feature_residuals": residual}
        source.model.head.residual.data = residual
    else:
        state = {"base_text_features": base, "prototypes": base + residual}
        source.model.head.residual.data = (base + residual) - base
    folder = write_released(tmp_path / "released", name, state, 5)
    check_released(source, loaded, folder, epoch=5)


@pytest.fixture
def enhanced(tmp_path):
    """A file in the release's form, of the bundled model's size, and its projection (W, D)."""
    projection = clip.load("shapes").model.text_projection.detach() + 0.1 * torch.randn(128, 128)
    path = tmp_path / "strong_base" / "model.pth.tar"
    path.parent.mkdir()
    torch.save({"state_dict": {"weight": projection.T.contiguous()}, "epoch": 50}, path)
    return path, projection


def test_task_res_starts_from_an_enhanced_base(build, enhanced):
    path, projection = enhanced
    options = ("TRAINER.TaskRes.ENHANCED_BASE", str(path))
    trainer = build(*options, method="TaskRes/few_shot", output="enhanced")
    plain = build(method="TaskRes/few_shot", output="plain")
    model = clip.load("shapes").model
    model.text_projection.data = projection
    expected = model.encode_text(tokens_of(trainer)).detach()
    torch.testing.assert_close(trainer.model.class_weights(), expected)
    assert not torch.allclose(plain.model.class_weights(), expected, atol=1e-2)
    trainer.train()
    # What was trained on it is not tested without it.
    with pytest.raises(ValueError, match=r"ENHANCED_BASE"):
        plain.load_model(trainer.output_dir)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {"weight": torch.zeros(512, 512)}}, "width 512 from a tower of 512; .*128"),
        ({"state_dict": {"proj": torch.zeros(128, 128)}}, "no state_dict with 'weight'"),
        ([torch.zeros(128, 128)], "no state_dict with 'weight'"),
    ],
)
def test_an_enhanced_base_that_does_not_fit_is_refused(build, tmp_path, content, said):
    torch.save(content, tmp_path / "base.pth.tar")
    with pytest.raises(ValueError, match=f"TRAINER.TaskRes.ENHANCED_BASE .*{said}"):
        build(
            *("TRAINER.TaskRes.ENHANCED_BASE", str(tmp_path / "base.pth.tar")),
            method="TaskRes/few_shot",
        )


def test_an_enhanced_base_that_is_not_there_is_named(build):
    with pytest.raises(FileNotFoundError, match=r"TRAINER.TaskRes.ENHANCED_BASE no/file is no"):
        build("TRAINER.TaskRes.ENHANCED_BASE", "no/file", method="TaskRes/few_shot")
