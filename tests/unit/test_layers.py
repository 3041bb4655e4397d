"""The plan of the house, docs/architecture.md's table of rooms, against what the files import."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

TOPS = ("verl", "RS")


def allowed() -> dict[str, set[str]]:
    """Room to the rooms it may import from: the rows ``| `room` | `room`, ... | what lives there |``."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \| .* \|$", text.partition("### Rooms")[2], re.M)
    return {room: set(re.findall(r"`([\w.]+)`", below)) for room, below in rows}


@cache
def modules() -> dict[str, Path]:
    found = {}
    for top in TOPS:
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str) -> str:
    """``models`` of ``verl.models.build``, ``RS`` of ``RS.trainer``."""
    top, _, rest = module.partition(".")
    return rest.partition(".")[0] or top if top == "verl" else top


def imported(path: Path, package: str) -> Iterator[str]:
    """Our modules that a file imports anywhere in it, in functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in modules():
                name = name.rpartition(".")[0]
            if name:
                yield name


@cache
def arrows() -> dict[str, set[str]]:
    """Module to the modules that it imports."""
    return {
        module: set(imported(path, module if path.name == "__init__.py" else module.rpartition(".")[0])) - {module}
        for module, path in modules().items()
    }


def test_no_arrow_runs_up():
    rooms = allowed()
    assert rooms.keys() >= {room(module) for module in modules() if "." in module}
    up = [
        f"{module} imports {other}"
        for module, others in arrows().items()
        for other in others
        if "." in module and room(other) != room(module) and room(other) not in rooms[room(module)]
    ]
    assert not up, "\n".join(up)


def test_the_table_itself_has_no_circle():
    rooms = allowed()
    while bottom := {name for name, below in rooms.items() if not below & rooms.keys()}:
        rooms = {name: below for name, below in rooms.items() if name not in bottom}
    assert not rooms


def test_no_two_files_import_each_other():
    left = dict(arrows())
    while ends := {module for module, others in left.items() if not others & left.keys()}:
        left = {module: others for module, others in left.items() if module not in ends}
    assert not left, f"in or above a circle: {', '.join(sorted(left))}"


def test_every_file_is_used():
    """By another file, by a script, or from the command line."""
    outside = [
        path for folder in ("scripts", "data", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ]
    used = {name for others in arrows().values() for name in others}
    used |= {name for path in outside for name in imported(path, "")}
    run = {module for module, path in modules().items() if '__name__ == "__main__"' in path.read_text(encoding="utf-8")}
    assert (
        not modules().keys() - used - run - {module for module, path in modules().items() if path.name == "__init__.py"}
    )


@pytest.mark.parametrize("folder", sorted({str(path.parent.relative_to(ROOT)) for path in modules().values()}))
def test_every_folder_says_what_lives_there(folder):
    text = (ROOT / folder / "__init__.py").read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))


def test_utils_stay_small():
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "verl" / "utils").rglob("*.py"))
    assert lines < 1500


def test_a_file_and_a_function_can_be_looked_over():
    long = []
    for path in (path for folder in (*TOPS, "data", "examples", "scripts") for path in (ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        long += [str(path)] if text.count("\n") >= 450 else []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines, most = node.end_lineno - node.lineno + 1, 90 if node.name == "fit" else 60
                long += [f"{path}: {node.name}"] if lines >= most else []
    assert not long
