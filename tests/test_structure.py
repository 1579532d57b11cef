"""The rules that keep the tree easy to find one's way in: layers, no import circles, sizes."""

import ast
import os
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Lower packages know nothing of higher ones; clip and dassl know nothing of each other's insides.
LAYERS = {"dassl": 1, "clip": 2, "datasets": 2, "trainers": 3, "scripts": 4, "train": 5}
FILES_A_FOLDER, LINES_A_FILE, LINES_A_FUNCTION = 30, 350, 60


def sources() -> list[Path]:
    found = [ROOT / "train.py"]
    for package in LAYERS:
        found += sorted((ROOT / package).rglob("*.py"))
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(nodes: list[ast.stmt], modules: set[str]) -> set[str]:
    """Modules of the project that statements import, as ``from package import module`` too."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & modules or {node.module}
    return found & modules


def test_no_package_imports_a_higher_one():
    paths = sources()
    modules = {module_name(path) for path in paths}
    wrong = []
    for path in paths:
        here = module_name(path).partition(".")[0]
        for target in imported(list(ast.walk(tree(path))), modules):
            there = target.partition(".")[0]
            if LAYERS[there] > LAYERS[here]:
                wrong.append(f"{path.relative_to(ROOT)} imports {target}")
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    """While they are loaded; what a function imports when it is called is free."""
    paths = {module_name(path): path for path in sources()}
    after = {name: imported(tree(path).body, set(paths)) for name, path in paths.items()}
    # What nothing left imports, or what imports nothing left, is in no circle.
    while free := [n for n, targets in after.items() if not targets & after.keys() - {n}]:
        for name in free:
            del after[name]
    assert not after, {name: sorted(targets & after.keys()) for name, targets in after.items()}


@pytest.mark.parametrize("path", sorted((ROOT / "trainers").glob("*.py")), ids=lambda p: p.stem)
def test_the_list_of_trainers_is_the_list_of_methods(path):
    if path.stem in {"__init__", "losses"}:
        return
    decorators = [
        ast.unparse(decorator)
        for node in tree(path).body
        if isinstance(node, ast.ClassDef)
        for decorator in node.decorator_list
    ]
    assert "TRAINER_REGISTRY.register()" in decorators


def test_sizes():
    folders = Counter(path.parent for path in [*sources(), *(ROOT / "tests").rglob("*.py")])
    big = [f"{path}: {n} files" for path, n in folders.items() if n > FILES_A_FOLDER]
    for path in sources():
        where = os.fspath(path.relative_to(ROOT))
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LINES_A_FILE:
            big.append(f"{where}: {lines} lines")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > LINES_A_FUNCTION:
                    big.append(f"{where}: {node.name} has {lines} lines")
    assert not big
