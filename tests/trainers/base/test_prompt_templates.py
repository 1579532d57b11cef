"""DATASET.PROMPT_TEMPLATE: which methods read it, when it is the user's, what is refused."""

from __future__ import annotations

import pytest
from yacs.config import CfgNode

from clip.prompts import check_template
from dassl.engine import build_trainer
from trainers.base.templates import chosen_template

SMALL = ("DATASET.NUM_SHOTS", "1", "DATASET.SUBSAMPLE_CLASSES", "base")
CHOSEN = ("DATASET.PROMPT_TEMPLATE", "a blurred {} on paper.")
FIRST = "a blurred dotted green star on paper."


@pytest.fixture
def build(make_config):
    def make(method, *options, **how):
        return build_trainer(make_config(method, *SMALL, *options, **how))

    return make


@pytest.mark.parametrize(
    "method",
    [
        *("ZeroshotCLIP/base2novel", "CLIPAdapter/base2novel", "ProVP/base2novel"),
        *("RAda/base2novel", "RAdaAdapter/base2novel", "VPT/base2novel", "MMA/base2novel"),
        *("RAdaTTT/ttt", "LP/fft", "RAdaFFT/fft"),
    ],
)
def test_methods_of_one_prompt_take_it(build, capsys, method):
    trainer = build(method, *CHOSEN)
    assert trainer.text_bank().texts[0] == FIRST
    assert f'First prompt: "{FIRST}" (20 classes, 20 texts)' in capsys.readouterr().out
    assert not any("PROMPT_TEMPLATE" in note for note in trainer.notes)


@pytest.mark.parametrize(
    ("method", "number"), [("ZeroshotCLIP2/base2novel", 8), ("FLYP/fft", 81), ("LightRA/fft", 8)]
)
def test_it_joins_ensembles(build, method, number):
    options = ("DATASET.PROMPT_PATH", "", "TRAINER.LightRA.N_CTX_TEXT", "1")
    method = method.replace("LightRA/fft", "LightRA/base2novel")
    bank = build(method, *options, *CHOSEN).model.bank
    assert set(bank.counts.tolist()) == {number}
    assert bank.texts[number - 1] == FIRST


def test_a_fine_tuned_classifier_starts_from_it_too(build):
    plain, own = build("LP/fft"), build("LP/fft", *CHOSEN)
    assert len(own.ensemble(["cat"], 80)[0]) == len(plain.ensemble(["cat"], 80)[0]) + 1
    assert not plain.model.class_weights().equal(own.model.class_weights())


@pytest.mark.parametrize("method", ["KgCoOp", "ProGrad"])
def test_teachers_take_it(build, method):
    teacher = build(f"{method}/base2novel", *CHOSEN).model.teacher_bank
    assert teacher.texts[0] == FIRST


def test_prograd_starts_from_its_words(build):
    context = build("ProGrad/base2novel", *CHOSEN).model.backbone.text_prompts
    assert context.template == " ".join(["X"] * 14 + ["a", "blurred", "{}."])


@pytest.mark.parametrize(
    ("method", "first"),
    [
        ("CoOp", "a photo of a dotted green star."),
        ("DePT", " ".join(["X"] * 16) + " dotted green star."),
        ("MaPLe", "a photo of a dotted green star."),
        ("PromptSRC", "a photo of a dotted green star."),
    ],
)
def test_learned_words_stay_and_a_note_says_so(build, capsys, method, first):
    trainer = build(f"{method}/base2novel", *CHOSEN)
    assert f'First prompt: "{first}"' in capsys.readouterr().out
    (note,) = (note for note in trainer.notes if "PROMPT_TEMPLATE" in note)
    assert f"{CHOSEN[1]!r} has no effect: {method}" in note
    assert first in note


@pytest.mark.parametrize(
    ("method", "option", "first"),
    [
        ("ZeroshotCLIP", "TRAINER.ZeroshotCLIP.TEMPLATE", "one dotted green star."),
        ("RAda", "TRAINER.RADA.CTX_INIT", "one dotted green star."),
    ],
)
def test_a_key_of_the_method_wins_and_a_note_says_so(build, method, option, first):
    value = "one {}." if option.endswith("TEMPLATE") else "one"
    trainer = build(f"{method}/base2novel", *CHOSEN, option, value)
    assert trainer.text_bank().texts[0] == first
    assert any("PROMPT_TEMPLATE" in note and "no effect" in note for note in trainer.notes)


@pytest.mark.parametrize(
    ("method", "first"),
    [
        ("ZeroshotCLIP/base2novel", "a photo of a dotted green star."),
        ("CLIPAdapter/base2novel", "a photo of a dotted green star."),
        ("RAda/base2novel", "a photo of a dotted green star."),
        ("LP/fft", "a bad photo of a dotted green star."),
    ],
)
def test_what_the_yaml_ships_changes_no_recipe(build, capsys, method, first):
    trainer = build(method)
    assert trainer.cfg.DATASET.PROMPT_TEMPLATE == "A photo of a {},"
    assert trainer.text_bank().texts[0] == first
    assert f'First prompt: "{first}"' in capsys.readouterr().out
    assert not any("PROMPT_TEMPLATE" in note for note in trainer.notes)


def test_the_yaml_text_on_the_command_line_is_a_choice(build):
    """It makes another run of a method that has its own template, and the same texts elsewhere."""
    words = ("DATASET.PROMPT_TEMPLATE", "A photo of a {},")
    assert build("ZeroshotCLIP/base2novel", *words).text_bank().texts[0] == (
        "A photo of a dotted green star,"
    )
    plain, own = build("LightRA/base2novel"), build("LightRA/base2novel", *words)
    assert own.text_bank().texts == plain.text_bank().texts


@pytest.mark.parametrize(
    ("name", "template", "chosen"),
    [
        ("DescribableTextures", "A photo of a {},", ""),
        ("DescribableTextures", "A photo of a {}.", "A photo of a {}."),
        ("EuroSAT", "A photo of a {},", "A photo of a {},"),
        ("Folder", "A photo of a {},", "A photo of a {},"),
        ("Split", "", ""),
        ("SomebodysOwn", "{}", "{}"),
    ],
)
def test_whose_template_it_is(name, template, chosen):
    assert chosen_template(CfgNode({"NAME": name, "PROMPT_TEMPLATE": template})) == chosen


@pytest.mark.parametrize(
    "template", ["a photo", "{} and {}", "{0}", "{name}", "a {:s}.", "a {}, {", "a } {}", " "]
)
def test_other_templates_are_refused_when_the_config_is_read(make_config, template):
    with pytest.raises(ValueError, match=r"^DATASET\.PROMPT_TEMPLATE needs \{\}") as error:
        make_config("ZeroshotCLIP/base2novel", "DATASET.PROMPT_TEMPLATE", template)
    assert repr(template) in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"^TRAINER\.ZeroshotCLIP\.TEMPLATE needs \{\}"):
        build_trainer(
            make_config("ZeroshotCLIP/base2novel", "TRAINER.ZeroshotCLIP.TEMPLATE", template)
        )


def test_a_template_without_words_will_do():
    check_template("{}")
