"""Ask a language model for descriptions, class by class, and keep them in a file."""

from __future__ import annotations

import json
import math
from pathlib import Path

from clip.prompts import load_descriptions, match_key
from dassl.utils.files import atomic_write
from scripts.describing.text import Model, ModelError, Task, accept, keys_of
from scripts.remote.scrub import say

FRUITLESS = 5  # after that many classes in a row without a usable sentence the model is given up


class DescriptionFile:
    """The JSON file of descriptions, which is written after every class."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, list[str]] = load_descriptions(path) if path.exists() else {}
        self._spellings: dict[str, list[str]] = {}
        for name in self.content:
            self._spellings.setdefault(match_key(name), []).append(name)

    def sentences(self, name: str) -> list[str]:
        """Sentences of a class; "Blue_Jay" and "blue jay" are the same class."""
        spellings = self._spellings.get(match_key(name), [])
        return [s.strip() for spelling in spellings for s in self.content[spelling] if s.strip()]

    def put(self, name: str, sentences: list[str]) -> None:
        """Set a class's sentences under the spelling that the file has, and write the file."""
        first, *others = self._spellings.setdefault(match_key(name), [name])
        self.content[first] = sentences
        for other in others:  # further spellings: their sentences are merged into the first's
            del self.content[other]
        del self._spellings[match_key(name)][1:]
        with atomic_write(self.path) as file:
            file.write(json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")


def describe(task: Task, file: DescriptionFile, model: Model, attempts: int) -> list[str]:
    """Ask for the sentences that each class lacks, and write the file class by class.

    At most ``attempts`` requests per class, as an answer may be unusable; a ModelError after
    ``FRUITLESS`` classes in a row. Returns a line for every class that still lacks sentences.
    """
    todo = [name for name in task.classnames if len(file.sentences(name)) < task.count]
    # Over all classes: a sentence that fits two classes tells neither apart.
    taken = keys_of(file.content.items())
    short: list[str] = []
    fruitless = 0
    for number, name in enumerate(todo, 1):
        known = file.sentences(name)
        sentences, complaints = describe_class(task, name, known, taken, model, attempts)
        if len(sentences) > len(known):  # saved at once, so that an interruption loses one class
            file.put(name, sentences)
            fruitless = 0
        else:
            fruitless += 1
        line = f"{name}: {len(sentences)} of {task.count} sentences"
        say(f"[{number}/{len(todo)}] {line}")
        if len(sentences) < task.count:
            short.append(f"{line}; last answer: {'; '.join(complaints[:3])}")
        if fruitless == FRUITLESS:
            raise ModelError(
                f"{FRUITLESS} classes in a row without one usable sentence. The last, {short[-1]}"
            )
    return short


def describe_class(
    task: Task, name: str, known: list[str], taken: set[str], model: Model, attempts: int
) -> tuple[list[str], list[str]]:
    """Ask for one class until it has its sentences, at most ``attempts`` times.

    Returns all its sentences, the known ones first, and complaints about the last answer.
    """
    sentences, complaints = list(known), list[str]()
    for _ in range(attempts):
        answer = model(task.messages(name, sentences, complaints))
        missing = task.count - len(sentences)
        good, complaints = accept(answer, name, task.template, taken, missing)
        sentences += good
        if len(sentences) >= task.count:
            break
    return sentences, complaints


def dry_run(task: Task, file: DescriptionFile, attempts: int, per_minute: float) -> str:
    """Say what would be asked, and how often."""
    todo = [name for name in task.classnames if len(file.sentences(name)) < task.count]
    done = len(task.classnames) - len(todo)
    lines = [
        f"{file.path}: {done} of {len(task.classnames)} classes have {task.count} sentences",
        f"{len(todo)} requests, one per class; {len(todo) * attempts} at most, if every answer "
        f"has to be asked for again. At {per_minute:g} a minute that takes "
        f"{math.ceil(len(todo) / per_minute)} min or more.",
    ]
    if todo:
        for message in task.messages(todo[0], file.sentences(todo[0])):
            lines += ["", f"--- {message['role']}", message["content"]]
    return "\n".join(lines)
