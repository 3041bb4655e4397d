"""The words in which RWKU's parts ask: ours (``prompts.yaml``), or those of a file that the user gives.

Left out: MUSE's prompts, which are the benchmark's own, and probes asked plainly.
"""

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import yaml

from verl.rows.files import read_text
from verl.utils.errors import ConfigError, bullet_list

OURS = Path(__file__).parent / "prompts.yaml"


class Prompts:
    """Templates by key; ``texts`` is what identifies them in a part's decoding."""

    def __init__(self, texts: dict[str, str]):
        self.texts = texts

    def fill(self, key: str, row: Mapping[str, Any], **more: Any) -> str:
        """The template of a key with a row's columns filled in; what stands in a column is not read as a template."""
        return Template(self.texts[key]).substitute({"subject": "", **row, **more})

    def only(self, *keys: str) -> dict[str, str]:
        """The templates that a part uses, for its decoding."""
        return {key: self.texts[key] for key in keys}


def read_prompts(path: str | None = None) -> Prompts:
    """Our templates, those that ``path`` names replaced.

    Raises:
        ConfigError: the file is missing, or a template is unknown, is no text, or has other columns than ours.
    """
    ours = yaml.safe_load(OURS.read_text(encoding="utf-8"))
    if path is None:
        return Prompts(ours)
    if not Path(path).is_file():
        raise ConfigError(f"prompts={path}: there is no such file; copy verl/eval/{OURS.name} and edit the copy")
    try:
        given = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ConfigError(f"prompts={path}: is not valid YAML: {error}") from error
    if not isinstance(given, dict) or not given:
        raise ConfigError(f"prompts={path}: must map {', '.join(ours)} to texts")
    if problems := [problem for key, text in given.items() for problem in _problems(key, text, ours)]:
        raise ConfigError(bullet_list(f"prompts={path}:", problems))
    return Prompts({**ours, **given})


def _problems(key: str, text: Any, ours: dict[str, str]) -> list[str]:
    if key not in ours:
        return [f"{key}: unknown; the keys are {', '.join(ours)}"]
    if not isinstance(text, str) or not Template(text).is_valid():
        return [f"{key}: must be a text in which $ names a column and $$ is a dollar sign"]
    has, needs = (set(Template(one).get_identifiers()) for one in (text, ours[key]))
    if unknown := has - needs - {"subject"}:
        return [f"{key}: has no ${', $'.join(sorted(unknown))}; it has {_columns(needs)}"]
    # Worked examples may be written into the template; the question itself may not be left out.
    if missing := needs - has - {"task", "examples", "cot"}:
        return [f"{key}: never shows {_columns(missing)}; put it in"]
    return []


def _columns(names: set[str]) -> str:
    return ", ".join(f"${name}" for name in sorted(names)) or "no columns"
