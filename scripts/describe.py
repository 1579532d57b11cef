#!/usr/bin/env python3
"""Write class descriptions, prompts/<Dataset>.json, with a language model.

python scripts/describe.py --dataset dtd --base-url http://localhost:8000/v1 --model NAME --dry-run
python scripts/describe.py --classnames birds.txt --output prompts/birds.json --local DIRECTORY

The endpoint is any that speaks OpenAI's chat protocol, as vLLM, Ollama and ``transformers serve``
do; its key is read from an environment variable. The file is written after every class and its
sentences are kept, so that the same command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clip.prompts import fill, match_key
from dassl.config.paths import file_flag, path_flag
from dassl.data.datasets import build_dataset
from dassl.errors import INTERRUPTED, plain_main
from dassl.names import nearest
from dassl.utils.logger import escape_unprintable
from datasets.classnames import by_wnid, in_label_order, read_name_list
from datasets.rows import ROWS
from scripts.data_tools.check import read_config
from scripts.describing.classes import DescriptionFile, describe, dry_run
from scripts.describing.endpoint import ChatEndpoint, proxy_passwords, read_key
from scripts.describing.local import LocalModel
from scripts.describing.text import Model, ModelError, Task
from scripts.flags import refuse_flags
from scripts.jobs.protocols import REPO
from scripts.remote.scrub import say


def names_to_describe(path: Path) -> list[str]:
    """Return class names from a file, as ``datasets.classnames`` reads it, in any order."""
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
    """Return a dataset's class names, template, and title for the file of descriptions.

    ``word`` is the stem of a file in configs/datasets, a dataset's name, or a config file's path.
    """
    configs = {path.stem: path for path in sorted((REPO / "configs/datasets").glob("*.yaml"))}
    known = {row.name: row.config for row in ROWS}
    path = configs.get(known.get(word, word)) or Path(word)
    if not path.is_file():
        raise ValueError(
            f"--dataset: {word!r} is neither a file nor one of {', '.join(configs)}."
            f"{nearest(word, [*configs, *known])}"
        )
    cfg = read_config(path)
    cfg.DATASET.ROOT = root
    dataset = build_dataset(cfg)
    # Folder and Split are readers of many datasets, each of which has its own config file.
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
    what.add_argument("--template", help="text before each sentence; by default the dataset's own")
    what.add_argument("--about", default="", help='what the images show: "satellite images"')
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
    """Refuse flags that have no effect next to the others, with a ``ValueError``."""
    parser = build_parser()
    if args.classnames:
        refuse_flags(parser, argv, ("--root",), "beside --classnames, which is read as named")
    if args.local:
        refuse_flags(parser, argv, _ENDPOINT, "beside --local, which asks no endpoint")
    elif args.base_url:
        refuse_flags(parser, argv, _LOCAL, "beside --base-url; it is for --local")


def read_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; exit with a message if it is wrong."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest:
        # Only flags are named, not their values: one may be the key.
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
    """Return what the model is asked for, and the file to write."""
    if args.classnames:
        names, template = names_to_describe(args.classnames), "A photo of a {},"
        if args.output is None:
            raise ValueError("--classnames needs --output, the file to write")
    else:
        names, template, title = read_dataset(args.dataset, args.root)
        args.output = args.output or REPO / "prompts" / f"{title}.json"
    template = args.template or template
    fill(template, "")  # refuses one without a place for the name
    # Two classes of ImageNet share a name, and so their descriptions.
    unique: dict[str, str] = {}
    for name in names:
        unique.setdefault(match_key(name), name)
    if not unique:
        raise ValueError(f"--classnames: {args.classnames} holds no name")
    return Task(tuple(unique.values()), template, args.sentences, args.about), args.output


def build_model(args: argparse.Namespace) -> Model:
    """Return the model that the flags name."""
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
    """Follow the flags; return 0 if every class has its sentences, else 1."""
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
