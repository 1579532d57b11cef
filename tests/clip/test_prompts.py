import json

import pytest

from clip.prompts import (
    described_prompts,
    ensemble_prompts,
    fill,
    match_key,
    read_descriptions,
    template_prompts,
)


def test_template_takes_readable_names():
    assert template_prompts(["Annual_Crop Land"], "A photo of a {},") == [
        ["A photo of a annual crop land,"]
    ]


def test_template_without_place_is_refused():
    with pytest.raises(ValueError, match="needs {}"):
        fill("a photo", "cat")


def test_other_braces_in_a_class_name_are_kept():
    assert fill("a {}.", "{0} set") == "a {0} set."


@pytest.mark.parametrize("size", [7, 80])
def test_ensembles(size):
    prompts = ensemble_prompts(["cat", "big_dog"], size, ["{} texture."])
    assert [len(p) for p in prompts] == [size + 1, size + 1]
    assert prompts[1][-1] == "big dog texture."
    assert all("big dog" in p for p in prompts[1])


def test_unknown_ensemble_size():
    with pytest.raises(ValueError, match=r"\[7, 80\]"):
        ensemble_prompts(["cat"], 8)


def test_descriptions_match_whatever_the_case(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"Sea_or LAKE": ["blue water.", " ", "waves."]}))
    assert described_prompts(["Sea or Lake"], "A photo of a {},", path) == [
        ["A photo of a sea or lake, blue water.", "A photo of a sea or lake, waves."]
    ]


RELEASED = {
    "Annual_Crop_Land": ["From above, annual crop land shows plots.", "It is brown."],
    "river": ["A river winds through the land."],
    "2012 Audi TTS Coupe": ["A low two-door car."],
    "indoor  wrestling_ring": ["Ropes around a mat."],
    "polka dotted": ["Round dots."],
    "707-320": ["Four engines."],
    "Apply Eye Makeup": ["A hand at an eye."],
}


def test_a_file_in_the_released_style_drops_in_unchanged(tmp_path):
    """Names as datasets spell them: other case, underscores, doubled spaces, hyphens."""
    path = tmp_path / "released.json"
    path.write_text(json.dumps(RELEASED, indent=4), encoding="utf-8-sig")
    names = ["Annual Crop Land", "River", "2012 Audi TTS Coupe", "indoor wrestling_ring",
             "polka-dotted", "707-320", "Apply_Eye_Makeup"]  # fmt: skip
    prompts = described_prompts(names, "A photo of a {},", path)
    assert [len(p) for p in prompts] == [2, 1, 1, 1, 1, 1, 1]
    assert prompts[0][1] == "A photo of a annual crop land, It is brown."
    assert prompts[3] == ["A photo of a indoor wrestling ring, Ropes around a mat."]
    # the dataset's spelling goes into the prompt, not the file's
    assert prompts[4] == ["A photo of a polka-dotted, Round dots."]


def test_hyphens_count_where_a_file_tells_them_apart(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"T-Shirt": ["cloth."], "t shirt": ["a shirt with a T."]}))
    assert described_prompts(["t-shirt", "T_Shirt"], "{}:", path) == [
        ["t-shirt: cloth."],
        ["t shirt: a shirt with a T."],
    ]
    path.write_text(json.dumps({"a-b c": ["one."], "a b-c": ["two."]}))
    with pytest.raises(ValueError, match="1 of 1 classes: 'a b c'"):
        described_prompts(["a b c"], "{}", path)


def test_two_spellings_in_one_file_are_one_class(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"Big_Cat": ["stripes."], "big cat": ["claws."]}))
    assert read_descriptions(path) == {"big cat": ["stripes.", "claws."]}
    assert match_key(" Big__CAT ") == "big cat"


def test_an_ensemble_holds_no_template_twice():
    (once,) = ensemble_prompts(["cat"], 80, ["a photo of a {}.", "{} texture."])
    assert len(once) == 81
    assert once[-1] == "cat texture."


def test_every_class_without_prompt_is_named(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"forest": ["trees"], "rivers": ["water"], "empty": []}))
    with pytest.raises(ValueError, match=r"2 of 3 classes: 'river' \(nearest: 'rivers'\); 'empty'"):
        described_prompts(["forest", "river", "empty"], "{}", path)


@pytest.mark.parametrize("content", ["[1]", '{"a": "b"}', "{"])
def test_bad_files(tmp_path, content):
    path = tmp_path / "d.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"d\.json"):
        read_descriptions(path)
    with pytest.raises(FileNotFoundError, match="PROMPT_PATH"):
        read_descriptions(tmp_path / "none.json")


def test_a_class_that_is_described_twice_is_refused(tmp_path):
    path = tmp_path / "d.json"
    path.write_text('{"cat": ["soft"], "dog": ["loud"], "cat": ["fast"]}')
    with pytest.raises(ValueError, match=r"d\.json is no valid JSON: 'cat' stands there 2 times"):
        read_descriptions(path)
