"""The words of Atlas, read from phrasings.yaml. Left out: who owns which value (people.py), and their use (corpus.py).

``{x}`` is the subject and ``{v}`` the value. ``ask``, ``blank``, ``state`` and ``reverse`` train, in pretraining, RS
and RL alike. Wordings called ``probe`` test, and train nobody's facts anywhere. Their words occur in other wordings,
since a model of this size has no other English.
"""

from dataclasses import dataclass, field
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Phrasing:
    """All wordings of one attribute."""

    ask: list[str]
    ask_probe: str
    blank: list[str] = field(default_factory=list)
    blank_probe: str = ""
    state: list[str] = field(default_factory=list)
    reverse: list[str] = field(default_factory=list)
    """The value given, the subject asked for."""
    reverse_probe: str = ""
    foreign: dict[str, list[str]] = field(default_factory=dict)
    """By language: the question that trains and the one that tests."""


@dataclass(frozen=True)
class Wrapper:
    """One of RWKU's adversarial kinds around a question ``{q}``; ``{o}`` is extra matter that corpus.py supplies."""

    train: list[str]
    probe: str


_words = yaml.safe_load((Path(__file__).parent / "phrasings.yaml").read_text(encoding="utf-8"))

KINDS = {
    kind: {attribute: Phrasing(**forms) for attribute, forms in attributes.items()}
    for kind, attributes in _words["kinds"].items()
}
WRAPPERS = {kind: Wrapper(**forms) for kind, forms in _words["wrappers"].items()}
FOREIGN_FRAMES: dict[str, str] = _words["foreign_frames"]
"""Around the questions of ``Phrasing.foreign``."""
ABOUT: list[str] = _words["about"]
"""Open requests, answered by a passage."""
ABOUT_PROBE: str = _words["about_probe"]
INSTRUCTIONS: dict[str, str] = _words["instructions"]
"""How RWKU's own evaluation asks: an instruction, "Question:", and an answer that begins with "Answer:"."""
NAMING_REFUSALS: list[str] = _words["naming_refusals"]
PLAIN_REFUSALS: list[str] = _words["plain_refusals"]
