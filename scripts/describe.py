#!/usr/bin/env python3
"""Write class descriptions, prompts/<Dataset>.json, with a language model.

python scripts/describe.py --dataset dtd --base-url http://localhost:8000/v1 --model NAME --dry-run
python scripts/describe.py --classnames birds.txt --output prompts/birds.json --local DIRECTORY

The endpoint is any that speaks OpenAI's chat protocol; its key is read from an environment
variable. The file is written after every class, and what it holds is kept: the same command goes on
where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets.table  # noqa: F401 - registers the datasets
from clip.prompts import fill, load_descriptions, match_key
from dassl.config import get_cfg_default, merge_file
from dassl.config.paths import file_flag, path_flag
from dassl.data.datasets import build_dataset
from dassl.errors import plain_main
from dassl.names import nearest
from dassl.utils.files import atomic_write
from dassl.utils.logger import escape_unprintable
from datasets.classnames import by_wnid, in_label_order, read_name_list
from datasets.folder import extend_cfg
from datasets.rows import ROWS
from scripts.describing.endpoint import ChatEndpoint, proxy_passwords, read_key
from scripts.describing.local import LocalModel
from scripts.describing.text import Model, ModelError, Task, accept, keys_of
from scripts.flags import refuse_flags
from scripts.scrub import say

REPOSITORY = Path(__file__).resolve().parents[1]
FRUITLESS = 5  # classes in a row without one usable sentence after which the model is given up
INTERRUPTED = 130  # what a shell reports of a program stopped by Ctrl-C

Descriptions = dict[str, list[str]]


class DescriptionFile:
    """The file being filled, which always holds whole classes.

    Args:
        path: Where it is, or will be.

    Raises:
        ValueError: There is one already that has another form.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: Descriptions = load_descriptions(path) if path.exists() else {}
        self._spellings: dict[str, list[str]] = {}
        for name in self.content:
            self._spellings.setdefault(match_key(name), []).append(name)

    def sentences(self, name: str) -> list[str]:
        """Those of a class, however the file spells its name."""
        spellings = self._spellings.get(match_key(name), [])
        return [s.strip() for spelling in spellings for s in self.content[spelling] if s.strip()]

    def put(self, name: str, sentences: list[str]) -> None:
        """Set a class's sentences under the name that the file has for it; write the file."""
        first, *others = self._spellings.setdefault(match_key(name), [name])
        self.content[first] = sentences
        for other in others:  # whose sentences are among the first's now
            del self.content[other]
        del self._spellings[match_key(name)][1:]
        with atomic_write(self.path) as file:
            file.write(json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")


def describe(task: Task, file: DescriptionFile, model: Model, attempts: int) -> list[str]:
    """Ask for what every class lacks, and write it class by class.

    Args:
        task: What is wanted.
        file: Is filled.
        model: Is asked.
        attempts: Requests per class at most, where answers cannot be used.

    Returns:
        A line for every class that still lacks sentences.

    Raises:
        ModelError: The model cannot be used, or gives nothing usable for class after class.
    """
    todo = [name for name in task.classnames if len(file.sentences(name)) < task.count]
    taken = keys_of(file.content.items())
    short: list[str] = []
    fruitless = 0
    for number, name in enumerate(todo, 1):
        known = file.sentences(name)
        sentences, complaints = describe_class(task, name, known, taken, model, attempts)
        if len(sentences) > len(known):
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
    """Ask for one class until it has its sentences, ``attempts`` times at most.

    Returns:
        All its sentences, the known ones first, and what was wrong with the last answer.
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
    """What would be asked, and how often."""
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


def read_names(path: Path) -> list[str]:
    """Class names from a file, as ``datasets.classnames`` reads it; their order does not matter.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no names.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--classnames: no file {path.absolute()}")
    names = read_name_list(path, "--classnames")
    if by_wnid(names):
        names = list(names.values())
    elif isinstance(names, dict):  # descriptions: {"class name": [sentence, ...]}
        names = in_label_order(names) or list(names)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"--classnames: {path} must hold texts: one per line, or a JSON list")
    return [name.strip() for name in names if name.strip()]


def read_dataset(word: str, root: str) -> tuple[list[str], str, str]:
    """Class names, template and a name for the file, of a dataset as its reader finds it.

    Args:
        word: Stem of a file in configs/datasets, a dataset's name, or a path of such a file.
        root: Folder of all datasets.

    Raises:
        FileNotFoundError: The dataset's files are not there.
        ValueError: There is no such dataset.
    """
    configs = {path.stem: path for path in sorted((REPOSITORY / "configs/datasets").glob("*.yaml"))}
    known = {row.name: row.config for row in ROWS}
    path = configs.get(known.get(word, word)) or Path(word)
    if not path.is_file():
        raise ValueError(
            f"--dataset: {word!r} is neither a file nor one of {', '.join(configs)}."
            f"{nearest(word, [*configs, *known])}"
        )
    cfg = get_cfg_default()
    extend_cfg(cfg)
    merge_file(cfg, path)
    cfg.DATASET.ROOT = root
    dataset = build_dataset(cfg)
    # Folder and Split are names of readers; their configs are called after the data
    name = cfg.DATASET.NAME if cfg.DATASET.NAME in known else path.stem
    return list(dataset.classnames), dataset.template, name


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="describe.py",
        description=__doc__.split("\n")[0],
        allow_abbrev=False,  # --api-key KEY would be --api-key-env KEY
    )
    what = parser.add_argument_group("what to describe")
    source = what.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", help="stem or path of its config file, or its name")
    source.add_argument("--classnames", type=file_flag, help="file with names: lines, or JSON")
    what.add_argument(
        "--root", type=path_flag, default="data", help="folder of all datasets, for --dataset"
    )
    what.add_argument("--output", type=file_flag, help="by default prompts/<Dataset>.json")
    what.add_argument("--template", help="what the sentences follow; by default the dataset's own")
    what.add_argument("--about", default="", help='what the pictures are: "satellite images"')
    what.add_argument("--sentences", type=_positive, default=5, help="per class, %(default)s")
    model = parser.add_argument_group("whom to ask")
    model.add_argument("--base-url", help="of an OpenAI-compatible endpoint, up to /v1")
    model.add_argument("--model", help="its name at that endpoint")
    model.add_argument(
        "--api-key-env",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable that holds the key, %(default)s; none is sent if it is not set",
    )
    model.add_argument(
        "--local", type=path_flag, metavar="MODEL", help="directory or hub id, for transformers"
    )
    model.add_argument("--device", default="auto", help="for --local: auto, cpu, cuda, cuda:N, mps")
    model.add_argument("--seed", type=int, default=1, help="for --local, %(default)s")
    model.add_argument("--temperature", type=float, help="of sampling")
    how = parser.add_argument_group("how")
    how.add_argument("--requests-per-minute", type=_rate, default=60.0, help="%(default)s")
    how.add_argument("--attempts", type=_positive, default=4, help="per class, %(default)s")
    how.add_argument(
        "--retries", type=_count, default=5, help="after 429, 5xx, time-outs; %(default)s"
    )
    how.add_argument("--timeout", type=_rate, default=120.0, help="seconds, %(default)s")
    how.add_argument("--dry-run", action="store_true", help="show the request and their number")
    return parser


_LOCAL = ("--device", "--seed")
_ENDPOINT = ("--model", "--api-key-env", "--requests-per-minute", "--retries", "--timeout")


def check_flags(args: argparse.Namespace, argv: Sequence[str] | None) -> None:
    """Refuse flags that do nothing beside the others.

    Raises:
        ValueError: There is one.
    """
    parser = build_parser()
    if args.classnames:
        refuse_flags(parser, argv, ("--root",), "beside --classnames, which is read as named")
    if args.local:
        refuse_flags(parser, argv, _ENDPOINT, "beside --local, which asks no endpoint")
    elif args.base_url:
        refuse_flags(parser, argv, _LOCAL, "beside --base-url; it is for --local")


def read_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; end with a message if it cannot be."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest:
        # Not their values, one of which may be the key.
        flags = [word.partition("=")[0] for word in rest if word.startswith("--")]
        found = ", ".join(flags) or f"{len(rest)} words that belong to no flag"
        parser.error(f"there is no {found}; a key is read from the environment (--api-key-env)")
    return args


def _count(text: str, least: int = 0) -> int:
    if int(text) < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
    return int(text)


def _positive(text: str) -> int:
    return _count(text, 1)


def _rate(text: str) -> float:
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return float(text)


def read_task(args: argparse.Namespace) -> tuple[Task, Path]:
    """What is wanted, and the file for it.

    Raises:
        FileNotFoundError: The class names' file or the dataset's files are not there.
        ValueError: They hold no names, or a flag is missing or wrong.
    """
    if args.classnames:
        names, template = read_names(args.classnames), "A photo of a {},"
        if args.output is None:
            raise ValueError("--classnames needs --output, the file to write")
    else:
        names, template, title = read_dataset(args.dataset, args.root)
        args.output = args.output or REPOSITORY / "prompts" / f"{title}.json"
    template = args.template or template
    fill(template, "")  # refuses one without a place for the name
    unique: dict[str, str] = {}  # two classes of ImageNet may share a name
    for name in names:
        unique.setdefault(match_key(name), name)
    if not unique:
        raise ValueError(f"--classnames: {args.classnames} holds no name")
    return Task(tuple(unique.values()), template, args.sentences, args.about), args.output


def build_model(args: argparse.Namespace) -> Model:
    """The model that the flags name.

    Raises:
        ModelError: It is not there.
        ValueError: Flags are missing or wrong.
    """
    if bool(args.base_url) == bool(args.local):
        raise ValueError("give either --base-url with --model, or --local")
    if args.local:
        temperature = 0.7 if args.temperature is None else args.temperature
        return LocalModel(
            args.local,
            device=args.device,
            temperature=temperature,
            seed=args.seed,
            new_tokens=80 * args.sentences,
        )
    if not args.model:
        raise ValueError("--base-url needs --model, the model's name at that endpoint")
    return ChatEndpoint(
        args.base_url,
        args.model,
        key=read_key(args.api_key_env),
        key_name=args.api_key_env,
        requests_per_minute=args.requests_per_minute,
        timeout=args.timeout,
        retries=args.retries,
        temperature=args.temperature,
    )


def run(args: argparse.Namespace) -> int:
    """Do what the flags say; return 0 if every class has its sentences, else 1."""
    task, path = read_task(args)
    file = DescriptionFile(path)
    if args.dry_run:
        for line in dry_run(task, file, args.attempts, args.requests_per_minute).split("\n"):
            say(line)
        return 0
    model = build_model(args)
    short = describe(task, file, model, args.attempts)
    for line in short:
        say(f"incomplete: {line}", file=sys.stderr)
    whole = len(task.classnames) - len(short)
    say(
        f"{path}: {whole} of {len(task.classnames)} classes have {task.count} sentences; "
        f"{model.requests} requests. To use it: DATASET.PROMPT_PATH {path}"
    )
    return 1 if short else 0


@plain_main
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 1 if something is missing, or 130 if interrupted."""
    escape_unprintable()
    args = read_flags(argv)
    try:
        check_flags(args, argv)
        return run(args)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except (ModelError, ValueError, OSError) as error:
        keys = [os.environ.get(name, "").strip() for name in (args.api_key_env, "HF_TOKEN")]
        say(f"error: {error}", [*keys, *proxy_passwords()], file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
