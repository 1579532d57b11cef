"""Where a method's prompts come from: DATASET.PROMPT_SOURCE."""

import json

import pytest
import torch

from clip.prompts import ensemble_prompts, template_prompts
from dassl.engine import build_trainer

SMALL = (
    *("DATASET.NUM_SHOTS", "1", "DATASET.SUBSAMPLE_CLASSES", "base"),
    *("DATASET.PROMPT_SOURCE", "auto"),  # shapes_forms.yaml has another
)
TEMPLATE = "A photo of a {},"


@pytest.fixture
def build(make_config):
    def make(*options, method="LightRA", dataset="shapes_forms"):
        return build_trainer(make_config(f"{method}/base2novel", *SMALL, *options, dataset=dataset))

    return make


def texts_of(trainer, prompts):
    """The tokens that a bank of these prompts would hold."""
    return trainer.model.backbone.tokenize([text for texts in prompts for text in texts])


def test_without_descriptions_the_ensemble_serves_and_the_log_says_so(build, capsys):
    trainer = build()
    log = capsys.readouterr().out
    assert "No class descriptions: DATASET.PROMPT_PATH names no file" in log
    assert "Prompts: open_clip's 7 templates and 'A photo of a {},'" in log
    names = trainer.dm.dataset.classnames
    assert trainer.model.bank.counts.tolist() == [8] * len(names)
    expected = texts_of(trainer, ensemble_prompts(names, 7, [TEMPLATE]))
    assert torch.equal(trainer.model.bank.tokens, expected)


def test_the_ensemble_trains_one_prompt_per_class_and_step(build, whole_shapes):
    # One epoch changes so little that only all test pictures tell.
    trainer = build("OPTIM.MAX_EPOCH", "1", "DATASET.ROOT", whole_shapes)
    before = trainer.test()
    trainer.train()
    assert trainer.test() != before
    index = trainer.model.bank.sample(torch.Generator().manual_seed(0))
    assert index.shape == (len(trainer.dm.dataset.classnames),)


def test_eighty_templates(build):
    trainer = build("DATASET.PROMPT_ENSEMBLE", "80", "DATASET.PROMPT_SOURCE", "ensemble")
    assert set(trainer.model.bank.counts.tolist()) == {81}


def test_the_template_alone(build, capsys):
    trainer = build("DATASET.PROMPT_SOURCE", "template", dataset="shapes")
    assert f"Prompts: {TEMPLATE!r}" in capsys.readouterr().out
    names = trainer.dm.dataset.classnames
    expected = texts_of(trainer, template_prompts(names, TEMPLATE))
    assert torch.equal(trainer.model.bank.tokens, expected)


@pytest.mark.parametrize("source", ["auto", "json"])
def test_descriptions_are_taken_where_a_file_is_named(build, capsys, source):
    trainer = build("DATASET.PROMPT_SOURCE", source, dataset="shapes")
    log = capsys.readouterr().out
    assert f"{TEMPLATE!r} before each description of prompts/Shapes.json" in log
    assert "No class descriptions" not in log
    assert trainer.model.bank.counts.tolist() == [4] * 20


def test_a_file_that_is_there_but_not_named_is_pointed_out(build, capsys):
    build("DATASET.PROMPT_PATH", "", dataset="shapes")
    log = capsys.readouterr().out
    assert "prompts/Shapes.json is there, but DATASET.PROMPT_PATH does not name it" in log


def test_ensemble_in_spite_of_a_file(build):
    trainer = build("DATASET.PROMPT_SOURCE", "ensemble", dataset="shapes")
    assert trainer.model.bank.counts.tolist() == [8] * 20


@pytest.mark.parametrize("method", ["RAda", "ZeroshotCLIP"])
def test_methods_of_one_template_keep_it(build, method, capsys):
    bank = build(method=method).model.bank
    assert set(bank.counts.tolist()) == {1}
    assert "Prompts:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("DATASET.PROMPT_SOURCE", "jsn"), r"DATASET\.PROMPT_SOURCE .*'jsn'.*'json'"),
        (("DATASET.PROMPT_SOURCE", "json"), r"'json', but DATASET\.PROMPT_PATH is empty"),
        (("DATASET.PROMPT_ENSEMBLE", "8"), r"DATASET\.PROMPT_ENSEMBLE must be one of 7, 80, got 8"),
    ],
)
def test_values_that_cannot_be(build, options, said):
    with pytest.raises(ValueError, match=said):
        build(*options)


def test_a_file_that_lacks_classes_is_an_error_not_an_ensemble(build, tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"circle": ["round."]}))
    with pytest.raises(ValueError, match="3 of 4 classes"):
        build("DATASET.PROMPT_PATH", str(path))
