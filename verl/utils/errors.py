"""The two errors a user can cause. Command lines catch them at the top, print the message and exit with code 2."""

import difflib
from collections.abc import Iterable
from typing import Any


class ConfigError(ValueError):
    """A setting is wrong. The message names every offending key, its value, the rule and the fix."""


class DataError(ValueError):
    """A file or a row is wrong. The message names the file, the row, the rule and the fix."""


def closest(word: Any, known: Iterable[Any]) -> str | None:
    """The known word that is most like a misspelt one, if any is."""
    return next(iter(difflib.get_close_matches(str(word), map(str, known), n=1)), None)


def bullet_list(title: str, problems: list[str]) -> str:
    """Join problems into one message: the title, then a line a problem."""
    return "\n".join([title, *(f"  - {problem}" for problem in problems)])
