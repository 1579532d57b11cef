"""docs/installing.md: the package, the container, the three cells; without a network."""

import fnmatch
import os
import re
import shlex
import shutil
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


def offline(folder: Path) -> dict[str, str]:
    """Variables for commands in a folder: no network, but the packages of this environment."""
    kept = ("HOME", "LANG", "TMPDIR")
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "PATH": os.pathsep.join([str(folder / "bin"), os.defpath]),
        "PYTHONPATH": os.pathsep.join(packages),
        "PIP_NO_INDEX": "1",
        "OMP_NUM_THREADS": "1",
    }


def bash(command: str, folder: Path, environment: dict[str, str]) -> str:
    """Run a command; return what it printed."""
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, command + done.stdout + done.stderr
    return done.stdout


def copy_tracked(target: Path) -> Path:
    """Copy the project as a fresh clone has it, with what is not committed yet."""
    for name in tracked():
        if (REPOSITORY / name).is_file():  # else it was just removed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target / name)
    return target


def test_the_image_is_built_by_its_commands(tmp_path):
    """What the Dockerfile does as the user without rights, in a folder in place of the image."""
    home = tmp_path / "home"
    environment = offline(home)
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "python3").symlink_to(Path(sys.executable).resolve())
    context, project = copy_tracked(tmp_path / "context"), home / "project"
    project.mkdir()
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^ *#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line]
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu2[2-9]\.04", dict(steps)["FROM"])
    first = [word for word, _ in steps].index("USER")
    for word, rest in steps[:first]:
        if word == "RUN":  # needs a network, and rights: only read
            subprocess.run(["bash", "-n", "-c", rest], check=True)
    done = []
    for word, rest in steps[first:]:
        rest = rest.replace("/home/vlmadapt", str(home))
        if word == "ENV":
            pairs = (pair.partition("=") for pair in shlex.split(rest))
            places = {name: value.replace("$PATH", environment["PATH"]) for name, _, value in pairs}
            environment |= places
        elif word == "COPY":
            _, source, target = rest.split()
            if source == ".":
                shutil.copytree(context, project / target, dirs_exist_ok=True)
            else:
                (project / target).mkdir(exist_ok=True)
                shutil.copy2(context / source, project / target)
        elif word == "RUN":
            done.append(bash(rest, project, environment))
    assert environment["PATH"].startswith(f"{home}/venv/bin:")
    assert [output.strip() for output in done] == [f"{home}/venv/bin/python"]
    # Nothing is installed again when the image runs.
    assert bash("bash scripts/setup.sh 2>&1", project, environment) == done[0]
    dry_run = "python scripts/run.py --protocol base2novel --datasets shapes --dry-run"
    assert "configs/datasets/shapes.yaml" in bash(dry_run, project, environment)


def colab_cells() -> list[list[str]]:
    cells = re.findall(r"^```\n(.*?)^```", GUIDE.split("## In Colab")[1], re.M | re.S)
    return [cell.splitlines() for cell in cells]


@pytest.mark.skipif("RUN_SLOW" not in os.environ, reason="minutes; RUN_SLOW=1 pytest runs it")
def test_the_cells_print_the_table_of_the_readme(tmp_path):
    """The three cells as they stand, in an empty folder; a copy in place of the repository."""
    origin = copy_tracked(tmp_path / "origin")
    environment = offline(tmp_path / "usr")
    author = "-c user.name=test -c user.email=test@localhost"
    command = f"git init -q && git add -A && git {author} commit -qm all"
    bash(command, origin, environment)
    # In place of /usr, where only python3 is sure to be.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "usr"], check=True)
    (tmp_path / "usr" / "bin" / "python").unlink()
    place, printed = tmp_path / "content", []
    place.mkdir()
    for line in (line for cell in colab_cells() for line in cell):
        line = line.replace("REPOSITORY", str(origin)).replace("/usr", str(tmp_path / "usr"))
        if line.startswith("%cd "):
            place /= line.removeprefix("%cd ")
        elif line.startswith("%env "):
            name, _, value = line.removeprefix("%env ").partition("=")
            environment[name] = value
        else:
            assert line.startswith("!")
            printed.append(bash(line.removeprefix("!"), place, environment))
    rows = table_rows((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert len(rows) == 2
    *_, demo, table = printed
    assert table_rows(table) == rows
    for row in rows:  # the second cell prints the same as text
        assert re.search(" +".join(map(re.escape, row)), demo)


def table_rows(text: str) -> list[list[str]]:
    """The cells of each row about Shapes in a table whose first column is the dataset."""
    rows = re.findall(r"^\| shapes +\|(.*)\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in rows]


def test_the_cells_are_commands_of_the_project():
    install, demo, table = colab_cells()
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
