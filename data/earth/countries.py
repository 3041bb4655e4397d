"""The countries of Earth and what is known about each, read from countries/*.yaml, one file a continent.

A value may have several spellings, parted by `` / ``: the first is how a question says it, and any of them is a right
answer. An article before a value ("the Alps") is no part of an answer. Leaves out the wordings (phrasings.py).
"""

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from verl.verdict.answers import normalize

FILES = sorted((Path(__file__).resolve().parent / "countries").glob("*.yaml"))
BETWEEN_SPELLINGS = " / "

Spellings = tuple[str, ...]


@dataclass(frozen=True)
class Country:
    name: str
    """Without an article."""
    said: str
    """In a sentence, with its article."""
    names: Spellings
    """Spellings that are right where the country is the answer."""
    people: Spellings
    foreign: dict[str, str]
    """Its name in other languages, by the kind of adversarial question that uses it."""
    values: dict[str, list[Spellings]]
    """By kind of fact, in the file's order."""
    roles: dict[str, str]
    """Of ``values["figures"]``: the first spelling of a person to what they are known as."""

    @cached_property
    def continents(self) -> set[str]:
        return {spelling for value in self.values["continent"] for spelling in value}

    def borders(self, other: "Country") -> bool:
        return any(set(value) & set(other.names) for value in self.values["borders"])

    def near(self, other: "Country") -> bool:
        """On the same continent, or with a common border."""
        return bool(self.continents & other.continents) or self.borders(other)

    def named_in(self, text: str) -> bool:
        """Whether a text says the country's name, or its people's, in any spelling."""
        given = f" {_normal(text)} "
        return any(name in given for name in self._normal_names)

    @cached_property
    def _normal_names(self) -> list[str]:
        return [f" {_normal(name)} " for name in (*self.names, *self.people)]


_normal = cache(normalize)  # the values of all countries are asked about again and again


@cache
def countries() -> tuple[Country, ...]:
    """All of them, by name."""
    entries: dict[str, Any] = {}
    for path in FILES:
        entries |= yaml.safe_load(path.read_text(encoding="utf-8"))
    return tuple(_country(name, entries[name]) for name in sorted(entries))


def find(name: str) -> Country | None:
    """A country by any spelling of its name."""
    wanted = normalize(name)
    return next((c for c in countries() if wanted in map(normalize, c.names)), None)


def spellings(text: str) -> Spellings:
    return tuple(text.split(BETWEEN_SPELLINGS))


def bare(value: str) -> str:
    """A value as an answer: without its article."""
    return value.removeprefix("the ")


NOT_VALUES = ("article", "also", "spanish", "french", "people", "figures")


def _country(name: str, entry: dict[str, Any]) -> Country:
    figures = [(spellings(person), role) for role, people in entry["figures"].items() for person in people]
    values = {kind: _values(held) for kind, held in entry.items() if kind not in NOT_VALUES}
    return Country(
        name=name,
        said=f"the {name}" if entry.get("article") else name,
        names=(name, *entry.get("also", [])),
        people=spellings(entry["people"]),
        foreign={f"cross lingual ({key.title()})": entry[key] for key in ("spanish", "french")},
        values={**values, "figures": [person for person, _ in figures]},
        roles={person[0]: role for person, role in figures},
    )


def _values(held: str | list[str]) -> list[Spellings]:
    """Kinds of one value are written without a list; its spellings are then those of all that is right (languages)."""
    return [spellings(value) for value in ([held] if isinstance(held, str) else held)]
