"""The class descriptions that come with the project."""

import json
from collections import Counter

import pytest
import yaml

import clip
from clip.prompts import described_prompts, match_key
from datasets.readers import EUROSAT_NEW_NAMES
from datasets.rows import row_of
from datasets.shapes import SUITE
from tests.conftest import REPOSITORY

DTD = """
    banded blotchy braided bubbly bumpy chequered cobwebbed cracked crosshatched crystalline dotted
    fibrous flecked freckled frilly gauzy grid grooved honeycombed interlaced knitted lacelike lined
    marbled matted meshed paisley perforated pitted pleated polka-dotted porous potholed scaly
    smeared spiralled sprinkled stained stratified striped studded swirly veined waffled woven
    wrinkled zigzagged
""".split()

CLASSES = {
    "shapes": list(SUITE["Shapes"].classes),
    "eurosat": list(EUROSAT_NEW_NAMES.values()),
    "dtd": DTD,
}
WRITTEN = ("eurosat", "dtd")


def dataset_section(config: str) -> dict:
    path = REPOSITORY / f"configs/datasets/{config}.yaml"
    return yaml.safe_load(path.read_text())["DATASET"]


def content(config: str) -> dict[str, list[str]]:
    return json.loads((REPOSITORY / dataset_section(config)["PROMPT_PATH"]).read_text())


def test_every_file_is_used():
    used = {dataset_section(config)["PROMPT_PATH"] for config in CLASSES}
    assert used == {f"prompts/{path.name}" for path in (REPOSITORY / "prompts").glob("*.json")}


@pytest.mark.parametrize(("config", "number"), [("shapes", 40), ("eurosat", 10), ("dtd", 47)])
def test_every_class_has_prompts_that_fit(config, number):
    names, section = CLASSES[config], dataset_section(config)
    assert len(names) == len(set(names)) == number
    template = row_of(config).template
    prompts = described_prompts(names, template, REPOSITORY / section["PROMPT_PATH"])
    for texts in prompts:
        assert len(texts) >= (4 if config == "shapes" else 5)
        # raises where a text has more than 77 tokens
        assert clip.tokenize(texts, truncate=False).shape == (len(texts), 77)
    assert {match_key(name) for name in names} == {match_key(name) for name in content(config)}


@pytest.mark.parametrize("config", WRITTEN)
def test_sentences_are_of_their_own(config):
    """No boilerplate: neither a sentence nor its opening comes again and again."""
    sentences = [(name, s) for name, texts in content(config).items() for s in texts]
    # what is left of a sentence without its class's name must still be unlike all others
    plain = [s.lower().replace(match_key(name), "") for name, s in sentences]
    assert len(set(plain)) == len(plain)
    openings = Counter(" ".join(s.split()[:2]) for s in plain)
    assert max(openings.values()) <= 2
    assert Counter(s.split()[0] for s in plain).most_common(1)[0][1] < len(plain) / 8
    for texts in content(config).values():
        assert len({s.split()[0] for s in texts}) >= len(texts) - 1


@pytest.mark.parametrize("config", WRITTEN)
def test_sentences_are_plain_text(config):
    for texts in content(config).values():
        for sentence in texts:
            assert sentence.isascii()
            assert sentence.endswith(".")
            assert sentence == " ".join(sentence.split())
            assert 5 <= len(sentence.split()) <= 20
            # the template ends with a comma: the sentence goes on
            assert sentence[0].islower() or sentence.startswith("Persian-style")
