"""docs/installing.md: the package, the container, the three cells; without a network."""

import fnmatch
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SOURCE = REPOSITORY / "src"
GUIDE = (REPOSITORY / "docs" / "installing.md").read_text(encoding="utf-8")


def tracked() -> list[str]:
    git = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if git.returncode:
        pytest.skip("not a clone")
    return git.stdout.split("\n")[:-1]


@pytest.fixture
def python(tmp_path):
    """Run code where others' packages clip and datasets are installed; return status and output."""
    for name in ("clip", "datasets"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"OWNER = 'others {name}'\n")

    def run(*words):
        # -I: no current folder and no variables; the paths are those of an environment's packages.
        setup = f"import sys; sys.path[:0] = [{str(SOURCE)!r}, {str(tmp_path)!r}]; "
        words = [words[0], setup + words[1], *words[2:]]
        done = subprocess.run(
            [sys.executable, "-I", *words],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout.strip(), done.stderr.strip()

    return run


def test_the_package_takes_no_name_of_others(python):
    code = "import vlmadapt, clip, datasets; print(clip.OWNER, '+', datasets.OWNER)"
    assert python("-c", code) == (0, "others clip + others datasets", "")


def test_a_process_that_asks_gets_the_projects_parts(python):
    code = "import vlmadapt; vlmadapt.use(); import datasets, dassl; print(datasets.__file__)"
    assert python("-c", code) == (0, str(REPOSITORY / "datasets" / "__init__.py"), "")
    status, _, error = python("-c", "import datasets, vlmadapt; vlmadapt.use()")
    assert status == 1
    assert "ImportError: vlmadapt.use(): this process has imported another datasets (" in error


def test_the_command_runs_the_programs(python):
    code = "from vlmadapt.__main__ import main; sys.exit(main(sys.argv[1:]))"
    assert python("-c", code, "where") == (0, str(REPOSITORY), "")
    status, output, _ = python("-c", code, "train", "--help")
    assert status == 0
    assert "--dataset-config-file" in output
    status, _, error = python("-c", code, "rum")
    assert status == 2
    assert "no program 'rum'" in error
    words = ["--protocol", "base2novel", "--datasets", "nowhere"]
    status, _, error = python("-c", code, "run", *words)
    assert status == 2
    assert "nowhere" in error


def test_the_package_has_every_file_that_a_run_needs():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["vlmadapt.project"]
    # In these patterns ** stands for no folder, too.
    patterns = [*patterns, *(pattern.replace("**/", "") for pattern in patterns)]
    needed = re.compile(r"(clip|dassl|datasets|trainers|configs|prompts|scripts)/|train\.py$")
    absent = [
        path
        for path in tracked()
        if needed.match(path)
        and not path.endswith(".sh")  # for the clone
        and not any(fnmatch.fnmatch(path, pattern) for pattern in patterns)
    ]
    assert absent == []


def test_the_image_is_made_of_what_is_there():
    lines = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    copied = re.findall(r"^COPY --chown=\S+ (\S+) \S+$", lines, re.MULTILINE)
    assert copied == ["requirements.txt", "scripts/setup.sh", "."]
    for name in copied:
        assert (REPOSITORY / name).exists()
    assert "&& bash scripts/setup.sh\n" in lines  # as everywhere
    assert 'CMD ["bash", "scripts/demo.sh"]' in lines
    assert "bash scripts/demo.sh" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    user = lines.index("\nUSER vlmadapt\n")
    assert user < lines.index("\nCOPY ")  # nothing of ours runs as root
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").split()
    assert not [path for path in tracked() if Path(path).parts[0] in ignored]


def test_the_cells_are_commands_of_the_project():
    cells = re.findall(r"^```\n(.*?)^```", GUIDE.split("## In Colab")[1], re.M | re.S)
    install, demo, table = (cell.splitlines() for cell in cells)
    assert install[1:3] == ["%cd project", "%env VIRTUAL_ENV=/usr"]
    assert install[3] == "!bash scripts/setup.sh"
    assert demo == ["!bash scripts/demo.sh"]
    program, script, *words = shlex.split(table[0].removeprefix("!"))
    assert program == "python3"
    assert (REPOSITORY / script).is_file()
    from scripts.report import build_parser

    assert build_parser().parse_args(words).protocol == "base2novel"
    shown = (REPOSITORY / "scripts" / "demo.sh").read_text(encoding="utf-8")
    assert "--protocol base2novel --datasets shapes" in shown
