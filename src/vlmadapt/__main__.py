"""``vlmadapt PROGRAM ...``: the programs of the clone, from any folder."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from vlmadapt import folder, use

__all__ = ["main"]

# In the clone: python train.py, and python scripts/<name>.py for the others.
SCRIPTS = (
    *("run", "report", "paper", "real_check", "data", "features", "describe", "visualize"),
    "wise_ft",
)
USAGE = f"""usage: vlmadapt PROGRAM ...

PROGRAM is train, for train.py, or one of scripts/: {", ".join(SCRIPTS)}.
`vlmadapt PROGRAM --help` shows its flags. `vlmadapt where` prints the folder of configs/."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a program of the project as if it was started from the clone; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    name, *arguments = words
    if name == "where":
        print(folder())
        return 0
    if name != "train" and name not in SCRIPTS:
        print(f"vlmadapt: no program {name!r}\n{USAGE}", file=sys.stderr)
        return 2
    root = use()
    path = root / "train.py" if name == "train" else root / "scripts" / f"{name}.py"
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")  # raises SystemExit with the program's status
    return 0


if __name__ == "__main__":
    sys.exit(main())
