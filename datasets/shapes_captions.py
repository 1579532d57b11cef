"""Words for rendered shapes: class names, captions for pre-training, descriptions of a class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets.shapes_render import COLOURS, FORMS, TEXTURES, Objects

FORM_WORDS = {
    "circle": ("a round outline without corners", "it is perfectly round"),
    "square": ("four equal sides and right angles", "it has four corners"),
    "triangle": ("three straight sides", "it has three corners"),
    "star": ("five points around its middle", "it has five pointed arms"),
    "cross": ("two bars that cross in the middle", "it looks like a plus sign"),
    "ring": ("a hole in its middle", "it looks like a wheel with an empty centre"),
    "heart": ("two round lobes above a point", "it looks like a valentine"),
    "moon": ("a thin curved crescent", "it looks like a bent sickle"),
}
TEXTURE_WORDS = {
    "solid": ("one plain tone without a pattern", "its surface is evenly filled"),
    "striped": ("parallel stripes", "its surface is covered with straight bands"),
    "dotted": ("small round dots", "its surface is covered with spots"),
    "checkered": ("alternating squares like a chess board", "its surface looks like a chess board"),
    "ringed": ("circles inside circles", "its surface shows rings like a target"),
    "hatched": ("thin crossing lines", "its surface is covered with a grid of lines"),
}
_NUMBERS = ("one", "two", "three", "four")


def class_name(texture: str, colour: str, form: str) -> str:
    """The name of a class of the main suite, such as "striped red triangle"."""
    return f"{texture} {colour} {form}"


def plural(noun: str) -> str:
    """English plural of a form's name."""
    return noun + ("es" if noun.endswith("s") else "s")


def describe(texture: str, colour: str, form: str) -> list[str]:
    """Sentences that say what a class looks like, in words of its parts."""
    (form_a, form_b), (texture_a, texture_b) = FORM_WORDS[form], TEXTURE_WORDS[texture]
    return [
        f"a {colour} shape with {form_a} and {texture_a}.",
        f"{form_b}, its colour is {colour} and {texture_b}.",
        f"its main colour is {colour}, it shows {texture_a} and it has {form_a}.",
        f"{texture_b}, {form_b} and it is {colour}.",
    ]


def caption(objects: Objects, i: int, templates: Sequence[str], rng: np.random.Generator) -> str:
    """One of the many captions that fit image ``i``: a whole name, parts of it, or a description.

    ``templates`` are sentences with ``{}`` for the name.
    """
    texture, colour = list(TEXTURES)[objects.texture[i]], list(COLOURS)[objects.colour[i]]
    form, count = list(FORMS)[objects.form[i]], int(objects.count[i])
    # Mostly whole names, since these are the classes; parts and descriptions teach the words alone.
    kind = rng.random()
    noun = form if count == 1 else plural(form)
    shape = "shape" if count == 1 else "shapes"
    if kind < 0.72:
        name = f"{texture} {colour} {noun}"
    else:
        parts = [f"{colour} {noun}", f"{texture} {noun}", f"{colour} {shape}", f"{texture} {shape}"]
        name = str(rng.choice([*parts, f"{texture} {colour} {shape}", noun, shape]))
    if count > 1 or (name == shape and rng.random() < 0.8):
        name = f"{_NUMBERS[count - 1]} {name}"
    sentence = str(rng.choice(templates)).format(name)
    if count == 1 and kind < 0.25:
        sentence += " " + str(rng.choice(describe(texture, colour, form)))
    return sentence
