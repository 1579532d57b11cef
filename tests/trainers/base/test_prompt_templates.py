"""DATASET.PROMPT_TEMPLATE: which methods read it, when it is the user's, what is refused."""

import pytest
from yacs.config import CfgNode

from clip.prompts import check_template
from dassl.engine import build_trainer
from datasets.rows import ROW_OF
from trainers.base import templates
from trainers.base.prompt_texts import PromptTexts

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
def test_what_the_row_says_changes_no_recipe(build, capsys, method, first):
    trainer = build(method)
    assert trainer.cfg.DATASET.PROMPT_TEMPLATE == ""
    assert trainer.dm.dataset.template == "A photo of a {},"
    assert trainer.text_bank().texts[0] == first
    assert f'First prompt: "{first}"' in capsys.readouterr().out
    assert not any("PROMPT_TEMPLATE" in note for note in trainer.notes)


def test_the_rows_text_on_the_command_line_is_a_choice(build):
    """It makes another run of a method that has its own template, and the same texts elsewhere."""
    words = ("DATASET.PROMPT_TEMPLATE", "A photo of a {},")
    assert build("ZeroshotCLIP/base2novel", *words).text_bank().texts[0] == (
        "A photo of a dotted green star,"
    )
    plain, own = build("LightRA/base2novel"), build("LightRA/base2novel", *words)
    assert own.text_bank().texts == plain.text_bank().texts


# What the methods read of each dataset: LightRA's own, CoOp's, KgCoOp's, and ProGrad's and ProVP's.
# The released repositories' texts, written out again so that a slip in a row shows.
PHOTO, DEFAULT = "A photo of a {},", "a photo of a {}."
ONE_LIKE_ALL = (PHOTO, DEFAULT, DEFAULT, DEFAULT)
RECIPES = {
    "Caltech101": ("A photo of a {}.", DEFAULT, DEFAULT, DEFAULT),
    "OxfordPets": (PHOTO, *["a photo of a {}, a type of pet."] * 2,
                   "a type of pet, a photo of a {}."),
    "StanfordCars": ("A photo of a {}, a type of car.", DEFAULT, DEFAULT, DEFAULT),
    "OxfordFlowers": (PHOTO, *["a photo of a {}, a type of flower."] * 2,
                      "a type of flower, a photo of a {}."),
    "Food101": ("A photo of a {}, a type of food.", *["a photo of {}, a type of food."] * 2,
                "a type of food, a photo of {}."),
    "FGVCAircraft": (PHOTO, *["a photo of a {}, a type of aircraft."] * 2,
                     "a type of aircraft, a photo of a {}."),
    "DescribableTextures": (PHOTO, "{} texture.", "a photo of a {}, a type of texture.",
                            "a texture of {}."),
    "EuroSAT": ("A top-down view of {} arranged in a pattern,",
                *["a centered satellite photo of {}."] * 3),
    "UCF101": (PHOTO, *["a photo of a person doing {}."] * 3),
    "ShapesCounts": ("A photo of {},", *["a photo of {}."] * 3),
    "Folder": (DEFAULT,) * 4,
    "Split": (DEFAULT,) * 4,
}  # fmt: skip


@pytest.mark.parametrize("name", [*ROW_OF, "Folder", "Split"])
def test_every_method_reads_the_published_text_of_every_dataset(name):
    tables = (templates.KGCOOP, templates.HINT_FIRST)
    read = (
        templates.own_template(name),
        templates.hand_made(name),
        *(table.get(name, templates.DEFAULT) for table in tables),
    )
    assert read == RECIPES.get(name, ONE_LIKE_ALL)


@pytest.mark.parametrize(
    ("template", "text"), [("", "own {}."), (PHOTO, PHOTO), ("{} texture.", "{} texture.")]
)
@pytest.mark.parametrize("name", ["DescribableTextures", "Folder", "SomebodysOwn"])
def test_any_text_is_the_users_choice(name, template, text):
    cfg = CfgNode({"DATASET": {"NAME": name, "PROMPT_TEMPLATE": template}})
    assert PromptTexts(cfg.DATASET, [], None).template("own {}.") == text


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
