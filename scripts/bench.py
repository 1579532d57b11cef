"""Measures time, memory and operations; each command has a --help of its own.

    python scripts/bench.py released         # a step of every method against its release's way
    python scripts/bench.py efficiency       # speed, memory, operations of all methods
    python scripts/bench.py baselines        # a step of the methods compared with
    python scripts/bench.py features         # an epoch from pictures and on cached features
    python scripts/bench.py frozen           # training of heads on frozen features
    python scripts/bench.py loading          # pictures a second
    python scripts/bench.py ttt              # test-time training, images side by side
    python scripts/bench.py gpu              # on a GPU: steps, memory, how busy it is
    python scripts/bench.py exports          # how far exported files are from the trained runs

Without download: models have random weights, in ViT-B/16's shape if no other is asked for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.errors import plain_main
from scripts.benchmarks import (
    baselines,
    efficiency,
    exports,
    features,
    frozen,
    gpu,
    loading,
    released,
    ttt,
)

COMMANDS: dict[str, Any] = {
    "released": released,
    "efficiency": efficiency,
    "baselines": baselines,
    "features": features,
    "frozen": frozen,
    "loading": loading,
    "ttt": ttt,
    "gpu": gpu,
    "exports": exports,
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's name; its flags are its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    return parser


@plain_main
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names with the others."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = build_parser().parse_args(words[:1])
    return COMMANDS[args.command].main(words[1:])


if __name__ == "__main__":
    sys.exit(main())
