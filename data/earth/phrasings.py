"""The words of Earth, read from phrasings.yaml. Left out: which country has which value (countries.py), and their use
(rows.py).

``{x}`` is the country, ``{v}`` the value, ``{r}`` what a person is known as, ``{q}`` a whole question. Every wording
has one use: rows of training, rows of validation, or probes.
"""

from pathlib import Path
from typing import Any, Literal

import yaml

Use = Literal["train", "validation", "probe"]
Wordings = dict[Use, list[str]]

_words: dict[str, Any] = yaml.safe_load(
    (Path(__file__).resolve().parent / "phrasings.yaml").read_text(encoding="utf-8")
)

FORWARD: dict[str, dict[str, Any]] = _words["forward"]
"""The country given, the value asked for: kind of fact to ``ask`` and ``blank`` (wordings), and to ``state``, a
statement, where there is one."""
BACKWARD: dict[str, dict[str, Wordings]] = _words["backward"]
"""The value given, the country asked for: kind to ``ask`` and ``blank``."""
FRAMES: Wordings = _words["frames"]
WRAPPERS: dict[str, Wordings] = _words["wrappers"]
SYNONYMS: Wordings = _words["synonyms"]
"""Instead of the country's name; ``{c}`` is its capital and ``{p}`` its people."""
FOREIGN: dict[str, dict[str, Wordings]] = _words["foreign"]
"""RWKU's name of a kind of question to kind of fact to wordings."""
ASKED_ROLES: list[str] = _words["asked_roles"]
SHARED: frozenset[str] = frozenset(_words["shared"])


def say(form: str, **blanks: str) -> str:
    """A form with its blanks filled and its first letter in upper case."""
    text = form.format(**blanks)
    return text[0].upper() + text[1:]
