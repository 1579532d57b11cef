"""HPT's structures: reading files, and where related phrases stand in a text."""

import json

import pytest

import clip
from clip.adapters.hpt_structures import Structure, read_structures, related_positions
from clip.prompts import find_description
from datasets.shapes import CLASSES
from datasets.shapes_captions import FORM_WORDS, TEXTURE_WORDS, class_name
from tests.conftest import REPOSITORY

CAT = {
    "Entities": ["cat", "ears", 3, " "],
    "Attributes": ["soft", None],
    "Entity-to-Entity Relationships": [
        {"entity1": "cat", "relationship": "has", "entity2": "ears"},
        {"entity1": "cat"},
        ["cat"],
    ],
    "Entity-to-Attribute Relationships": [{"entity": "cat", "attribute": "soft"}, "cat soft"],
    "Remark": "none",
}
OURS = {
    "entities": ["cat", "ears"],
    "attributes": ["soft"],
    "entity_pairs": [["cat", "ears"]],
    "attribute_pairs": [["cat", "soft"]],
}
EXPECTED = Structure(("cat", "ears"), ("soft",), (("cat", "ears"),), (("cat", "soft"),))


@pytest.mark.parametrize("spelling", [CAT, OURS])
def test_both_spellings_are_read_and_what_is_malformed_left_out(tmp_path, spelling):
    path = tmp_path / "some.json"
    path.write_text(json.dumps({"Tabby_Cat": [spelling, {}]}))
    found = read_structures(path)
    assert found == {"tabby cat": [EXPECTED, Structure()]}
    assert find_description(found, "tabby_CAT")[0] == EXPECTED


def test_the_text_is_name_entities_attributes():
    assert EXPECTED.text("Tabby_Cat") == "tabby cat. cat, ears. soft."
    assert Structure(attributes=("soft", "warm")).text("cat") == "cat. soft, warm."


@pytest.mark.parametrize("content", ["[1]", '{"cat": {"entities": []}}', '{"cat": ["a cat"]}'])
def test_other_forms_are_refused(tmp_path, content):
    path = tmp_path / "some.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="must have the form"):
        read_structures(path)


def test_unreadable_files_are_refused(tmp_path):
    (tmp_path / "some.json").write_text("{")
    with pytest.raises(ValueError, match="no valid JSON"):
        read_structures(tmp_path / "some.json")
    (tmp_path / "some.json").write_text('{"cat": [], "cat": [{"entities": ["ears"]}]}')
    with pytest.raises(ValueError, match="'cat' stands there 2 times"):
        read_structures(tmp_path / "some.json")
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        read_structures(tmp_path / "gone.json")


def test_phrases_are_tied_where_they_stand_first():
    text = [9, 5, 6, 7, 5, 6, 8, 0]
    found = related_positions(text, [([5, 6], [8])])
    assert sorted(found) == [(1, 6), (2, 6), (6, 1), (6, 2)]
    twice = related_positions(text, [([5, 6], [8]), ([6], [8])])
    assert sorted(twice) == sorted([*found, (2, 6), (6, 2)])
    assert related_positions(text, [([5, 7], [8]), ([8], []), ([0, 0], [9])]) == []


def describe_in_parts(texture: str, colour: str, form: str) -> list[tuple[str, dict[str, list]]]:
    """Five sentences about a class, each with its structure: what the bundled files hold."""
    (outline, form_says), (pattern, texture_says) = FORM_WORDS[form], TEXTURE_WORDS[texture]

    def parts(things: list[str], inner: list[list[str]], outer: list[list[str]]) -> dict:
        return {
            "entities": things,
            "attributes": [colour, texture],
            "entity_pairs": inner,
            "attribute_pairs": outer,
        }

    whole = [[form, colour], [form, texture]]
    return [
        (
            f"a {texture} {colour} {form} with {outline} and {pattern}.",
            parts([form, outline, pattern], [[form, outline], [form, pattern]], whole),
        ),
        (
            f"a {colour} {form}: {form_says} and {texture_says}.",
            parts([form, "surface"], [[form, "surface"]], [[form, colour], ["surface", texture]]),
        ),
        (
            f"a shape in {colour} with {pattern} that is a {form}.",
            parts(["shape", pattern], [["shape", pattern]], [["shape", colour]]),
        ),
        (
            f"its surface is {texture}, its colour is {colour} and it is a {form}.",
            parts(
                [form, "surface", "colour"],
                [[form, "surface"], [form, "colour"]],
                [["surface", texture], ["colour", colour]],
            ),
        ),
        (
            f"one {form} with {outline}, its main colour is {colour} and it shows {pattern}.",
            parts([form, outline, pattern], [[form, outline], [form, pattern]], whole),
        ),
    ]


def test_the_suites_files_are_made_of_its_words_and_every_text_has_ties():
    made = {class_name(*parts): describe_in_parts(*parts) for parts in CLASSES}
    for kind, place in (("descriptions", 0), ("structures", 1)):
        content = json.loads((REPOSITORY / f"prompts/hpt/{kind}/Shapes.json").read_text())
        assert content == {name: [one[place] for one in five] for name, five in made.items()}
    for name, ones in read_structures(REPOSITORY / "prompts/hpt/structures/Shapes.json").items():
        assert len(ones) == 5
        for one in ones:
            text = one.text(name)
            assert one.entity_pairs
            assert one.attribute_pairs
            assert all(word in text for pairs in (one.entity_pairs, one.attribute_pairs)
                       for pair in pairs for word in pair)  # fmt: skip
            assert clip.tokenize([f"X X X X X X X {text}"], truncate=False).shape == (1, 77)
