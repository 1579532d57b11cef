"""The prompt that scripts/describe.py sends to a language model, and the check of the answer."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import open_clip

from clip.prompts import fill, match_key, readable
from clip.tokens import count_tokens
from scripts.remote.scrub import plain

Messages = list[dict[str, str]]

CONTEXT_LENGTH = 77  # tokens of CLIP's text encoder, start and end included
FEWEST_WORDS = 3
MOST_OTHERS = 20  # other classes that a request names
MOST_CHARACTERS = 20_000  # of an answer; the rest is ignored

SYSTEM = (
    "You write short visual descriptions of image classes, by which a vision-language model can "
    "tell them apart. You describe only what can be seen in the picture."
)
_THINKING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"```\w*\n(.*?)(?:```|\Z)", re.DOTALL)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_BULLET = re.compile(r"^\s*(?:[-*\u2022]|\(?\d{1,3}[.):])\s+")
_MARKUP = re.compile(r"[\[\]{}<>|\\]|https?://|\*\*|`")
_REFUSAL = re.compile(
    r"\bI(?:'m| am) (?:sorry|unable|not able)|\bI (?:can't|cannot|can not|won't)|\bas an AI\b"
    r"|\blanguage model\b|\bI apologi[sz]e\b|\bunable to (?:comply|assist|help|fulfil)",
    re.IGNORECASE,
)
_PREAMBLE = re.compile(
    r"^(?:sure|certainly|of course|okay|ok|absolutely|great)\b\s*[,!.:]"
    r"|^(?:here (?:are|is)|below (?:are|is)|the following)\b|^i hope\b|^let me know\b|^note:",
    re.IGNORECASE,
)
_TYPOGRAPHIC = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})


class ModelError(Exception):
    """A model cannot be used; the message says what the user can change."""


class Model(Protocol):
    """Answers a conversation, and counts the requests."""

    requests: int

    def __call__(self, messages: Messages) -> str:
        """Return the answer; empty if the model gave none."""


@dataclass(frozen=True)
class Task:
    """What the model is asked for."""

    classnames: tuple[str, ...]  # all classes, each once
    template: str  # prompt template, with ``{}``, that precedes each sentence
    count: int  # sentences per class
    about: str = ""  # what the images show, in the user's words; may be empty

    def messages(
        self, name: str, known: Sequence[str] = (), complaints: Sequence[str] = ()
    ) -> Messages:
        """Return the request for the sentences that a class still lacks.

        ``known`` are those it has, ``complaints`` what was wrong with the last answer.
        """
        wanted = self.count - len(known)
        subject = [
            f'The class is "{readable(name)}".',
            f"The pictures: {self.about}." if self.about else "",
            _told_apart(name, self.classnames),
            f'Each sentence continues the caption "{fill(self.template, name)}"',
        ]
        order = [
            f"Write {wanted} different sentences about what the class looks like: colours, shapes, "
            "parts, surface, surroundings, size. Each names other visible details, begins with "
            "other words, has 6 to 20 words and stands alone. No introduction, no sentence that "
            "would fit another class as well.",
            _bulleted("There are already:", known),
            _bulleted("Your last answer could not be used:", complaints),
            f"Answer with a JSON list of {wanted} strings and nothing else.",
        ]
        user = "\n\n".join("\n".join(filter(None, lines)) for lines in (subject, order))
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]


def _told_apart(name: str, classnames: Sequence[str]) -> str:
    others = [readable(other) for other in classnames if other != name]
    if len(others) > MOST_OTHERS:
        # Classes with similar names are usually the ones most easily confused.
        others = difflib.get_close_matches(readable(name), others, MOST_OTHERS, 0.0)
    return f"It has to be told from: {', '.join(others)}." if others else ""


def _bulleted(head: str, items: Sequence[str]) -> str:
    return "\n".join([head, *(f"- {item}" for item in items)]) if items else ""


def parse(answer: str) -> list[str]:
    """Return the sentences in an answer: a JSON list, even a truncated one, or one per line.

    The answer may have thoughts, code fences, bullets or numbers.
    """
    text = _THINKING.sub("", answer[:MOST_CHARACTERS]).strip()
    fenced = _FENCE.search(text)
    text = fenced[1].strip() if fenced else text
    found = _json_strings(text)
    if found is None:
        # Some models write JSON with curly quotation marks. Valid JSON may contain these too, so
        # they are replaced only after parsing has failed.
        text = text.translate(_TYPOGRAPHIC)
        found = _json_strings(text)
    if found is None and text.startswith(("[", "{")):
        found = [json_text(match[1]) for match in _QUOTED.finditer(text)]
    return [s for s in map(clean, text.splitlines() if found is None else found) if s]


def _json_strings(text: str) -> list[str] | None:
    """Return the first list of strings among the JSON values in a text; None if there is none."""
    for match in itertools.islice(re.finditer(r"[\[{]", text), 20):
        try:
            value, _ = json.JSONDecoder().raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        found = _strings(value)
        if found:
            return found
    return None


def _strings(value: Any) -> list[str]:
    """Return the strings of a list, of an object that holds a list, or of a list of objects."""
    if isinstance(value, dict):
        inner = [_strings(v) for v in value.values() if isinstance(v, list)]
        return next((found for found in inner if found), [])
    if not isinstance(value, list):
        return []
    if value and all(isinstance(v, dict) for v in value):
        value = [text for v in value for text in v.values()]
    return list(value) if all(isinstance(v, str) for v in value) else []


def json_text(escaped: str) -> str:
    """Decode the inside of a JSON string; what is not valid JSON is returned as it is."""
    try:
        return str(json.loads(f'"{escaped}"'))
    except ValueError:
        return escaped


def clean(line: str) -> str:
    """Remove bullet, number, quotation marks and doubled spaces; end with a full stop.

    Escape sequences and other invisible characters are removed too, as people read the file.
    """
    text = _BULLET.sub("", plain(line).translate(_TYPOGRAPHIC)).replace("**", "")
    text = " ".join(text.split()).strip("\"' ,")
    if text and text[-1].isalnum():
        text += "."
    return text


def sentence_key(sentence: str, name: str) -> str:
    """Return the words of a sentence without the class name; equal keys mean equal sentences."""
    words = re.findall(r"\w+", match_key(sentence))
    return " ".join(words).replace(" ".join(re.findall(r"\w+", match_key(name))), "{}")


def keys_of(descriptions: Iterable[tuple[str, Sequence[str]]]) -> set[str]:
    """Return the keys of all sentences of all classes."""
    return {sentence_key(s, name) for name, sentences in descriptions for s in sentences}


def problem(sentence: str, name: str, template: str, taken: set[str]) -> str:
    """Say why a cleaned sentence cannot be used; empty if it can.

    ``taken`` has the :func:`sentence_key` of all sentences of all classes so far.
    """
    if _REFUSAL.search(sentence):
        return "it refuses"
    if _PREAMBLE.search(sentence) or sentence.endswith((":", "?")):
        return "it is no description"
    if _MARKUP.search(sentence):
        return "it has markup"
    words = len(sentence.split())
    if words < FEWEST_WORDS:
        return f"it has {words} words, fewer than {FEWEST_WORDS}"
    prompt = f"{fill(template, name)} {sentence}"
    tokens = count_tokens(open_clip.tokenizer._tokenizer, prompt)
    if tokens > CONTEXT_LENGTH:
        return f"with its template it has {tokens} tokens, more than {CONTEXT_LENGTH}"
    if sentence_key(sentence, name) in taken:
        return "it is there already, of this class or another"
    return ""


def accept(
    answer: str, name: str, template: str, taken: set[str], most: int
) -> tuple[list[str], list[str]]:
    """Split an answer into at most ``most`` usable sentences and complaints about the others.

    The keys of the usable ones are added to ``taken``.
    """
    good: list[str] = []
    complaints: list[str] = []
    for sentence in parse(answer):
        if len(good) == most:
            break
        trouble = problem(sentence, name, template, taken)
        if trouble:
            complaints.append(f'"{sentence[:80]}": {trouble}')
        else:
            good.append(sentence)
            taken.add(sentence_key(sentence, name))
    if len(good) < most and not complaints:
        complaints.append(f"it holds {len(good)} sentences, not {most}")
    return good, complaints
