"""What is read out of a language model's answer, and what is refused."""

import json

import pytest

from scripts.describing.text import Task, accept, clean, keys_of, parse, problem, sentence_key

TWO = ["Broad wings are spread.", "A red beak points down."]
TEMPLATE = "A photo of a {},"


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(TWO),
        json.dumps(TWO, indent=2),
        json.dumps({"sentences": TWO}),
        json.dumps({"class": "wren", "sentences": TWO, "more": ["x"]}),
        json.dumps([{"sentence": text} for text in TWO]),
        f"```json\n{json.dumps(TWO)}\n```",
        f"```\n{json.dumps(TWO)}\n```\nI hope this helps!",
        f"Here are [2] sentences:\n\n{json.dumps(TWO)}\n\nLet me know.",
        f'<think>Maybe ["no", "not this"]?</think>\n{json.dumps(TWO)}',
        f'["{TWO[0]}", "{TWO[1]}", "An unfinished senten',
        f'["{TWO[0]}", "{TWO[1]}",]',
        f"[\u201c{TWO[0]}\u201d, \u201c{TWO[1]}\u201d]",
        "\n".join(f"{i}. {text}" for i, text in enumerate(TWO, 1)),
        "\n".join(f"({i}) {text}" for i, text in enumerate(TWO, 1)),
        "\n\n".join(f"- **{text}**" for text in TWO),
        "\n".join(f'* "{text}"' for text in TWO),
        f"  {TWO[0][:-1]}  \n {TWO[1].replace(' ', '  ')}",
    ],
)
def test_every_form_of_an_answer(answer):
    assert parse(answer) == TWO


@pytest.mark.parametrize("answer", ["", "  \n ", "<think>no end", "[]", '""', "```\n```"])
def test_nothing_in_it(answer):
    assert [text for text in parse(answer) if len(text) > 3] == []


def test_quotation_marks_of_print_inside_json_stay_text():
    assert parse('["A \u201cdouble\u201d line runs along.", "It\u2019s pale."]') == [
        'A "double" line runs along.',
        "It's pale.",
    ]


def test_a_deeply_nested_or_endless_answer_does_no_harm():
    assert parse("[" * 100_000) == []
    assert len(parse("a few words\n" * 100_000)) < 2000


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("1) blue wings", "blue wings."),
        ("2012 cars are round.", "2012 cars are round."),
        ("- 'grey  legs',", "grey legs."),
        ("soft!", "soft!"),
        ("", ""),
    ],
)
def test_clean(line, sentence):
    assert clean(line) == sentence


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("Blue wings and a white belly.", ""),
        ("I'm sorry, that is not possible.", "refuses"),
        ("As an AI model it has no eyes.", "refuses"),
        ("I cannot describe this class.", "refuses"),
        ("The request is one I am unable to fulfil.", "refuses"),
        ("Sure, five sentences follow.", "no description"),
        ("Here are five sentences.", "no description"),
        ("Certainly! They come now.", "no description"),
        ("The sentences are these:", "no description"),
        ("Shall there be more of it?", "no description"),
        ("Surely rounded wings spread out.", ""),
        ("Wings {} of colour.", "markup"),
        ("See https://x.example for wings.", "markup"),
        ("A <b>bold</b> line.", "markup"),
        ("Two words.", "2 words"),
        ("wing " * 75 + "tip.", "tokens, more than 77"),
        ("broad WINGS, are spread", "already"),
    ],
)
def test_problems(sentence, said):
    taken = keys_of([("wren", TWO)])
    found = problem(sentence, "wren", TEMPLATE, taken)
    assert found == "" if not said else said in found


def test_tokens_are_counted_with_the_template():
    def text(words: int) -> str:
        return " ".join(["wing"] * words) + "."

    fits = max(n for n in range(60, 77) if not problem(text(n), "wren", TEMPLATE, set()))
    assert "78 tokens, more than 77" in problem(text(fits + 1), "wren", TEMPLATE, set())
    longer = problem(text(fits), "wren", "A photo of a {}, a type of bird.", set())
    assert "more than 77" in longer


def test_the_name_makes_no_difference_between_two_sentences():
    assert sentence_key("A Sea_or lake, seen!", "Sea or Lake") == "a {} seen"
    assert sentence_key("A wren, seen.", "wren") == sentence_key("A  JAY seen", "jay")
    assert sentence_key("A wren sits.", "wren") != sentence_key("A wren flies.", "wren")


def test_accept_sorts_and_stops_at_what_is_wanted():
    taken: set[str] = set()
    answer = json.dumps(["One.", TWO[0], TWO[0], TWO[1], "A third good sentence."])
    good, complaints = accept(answer, "wren", TEMPLATE, taken, 2)
    assert good == TWO
    assert complaints == [
        '"One.": it has 1 words, fewer than 3',
        f'"{TWO[0]}": it is there already, of this class or another',
    ]
    assert taken == keys_of([("wren", TWO)])
    assert accept("", "jay", TEMPLATE, taken, 2) == ([], ["it holds 0 sentences, not 2"])
    good, complaints = accept(json.dumps(["A jay is blue."]), "jay", TEMPLATE, taken, 2)
    assert (len(good), complaints) == (1, ["it holds 1 sentences, not 2"])


def test_request_names_the_classes_most_alike():
    names = tuple(f"{word} {i}" for word in ("zebra", "bird", "fish") for i in range(30))
    user = Task(names, TEMPLATE, 5).messages("bird 7")[1]["content"]
    (line,) = [line for line in user.splitlines() if line.startswith("It has to be told from: ")]
    others = line.removeprefix("It has to be told from: ").rstrip(".").split(", ")
    assert len(others) == 20
    assert all(name.startswith("bird") for name in others)
    assert "bird 7" not in others
    alone = Task(("wren",), TEMPLATE, 1).messages("wren")[1]["content"]
    assert "told from" not in alone
    assert "The pictures" not in alone
