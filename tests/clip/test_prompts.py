import json

import pytest

from clip.prompts import (
    described_prompts,
    ensemble_prompts,
    fill,
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
