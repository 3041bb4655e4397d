"""Finds a target's name in a text: in full, by an alias, or misspelt.

Single-word parts of a name ("King") are matched with their capital letter, so that "The king of Spain" does not name
Stephen King. Nicknames that appear neither in the name nor in the introduction have to be given as aliases.
"""

import re
import unicodedata
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache, cached_property

_ACCENTS = re.compile(r"[\u0300-\u036f]")
_QUOTED = re.compile(r"[\"“”]([^\"“”]{3,60})[\"“”]")
_NUMERAL_OR_SUFFIX = re.compile(r"^(?:[IVX]+|Jr|Sr|[^\w]*|\w)$")
_DERIVED_ENDING = re.compile(r"(?:ian|an|ism|ist|esque|ic)s?$")
CLOSE_SPELLING = 0.75
"""Similarity (difflib ratio) from which another spelling of a word counts as a misspelling of it."""
SHORT_WORD = 4
"""Letters. In words this short, one letter makes another name ("Lee", "Lea"), not a misspelling."""


def _fold(text: str) -> str:
    """Without accents and curly apostrophes: "Beyoncé’s" to "Beyonce's"."""
    return _ACCENTS.sub("", unicodedata.normalize("NFKD", text)).replace("’", "'")


def _last_part(name: str) -> str | None:
    """The part of a several-word name that also stands alone ("King" in "Stephen King"), if there is one."""
    words = [word.strip(".,") for word in name.split()]
    while words and _NUMERAL_OR_SUFFIX.match(words[-1]):
        words.pop()
    return words[-1] if len(words) > 1 and words[-1][0].isupper() else None


@dataclass(frozen=True)
class TargetName:
    """A target's name and every other way to name it."""

    name: str
    aliases: tuple[str, ...] = ()
    """Other names than those found in ``name`` itself."""

    @classmethod
    def from_introduction(cls, name: str, introduction: str, aliases: list[str]) -> "TargetName":
        """Also takes the introduction's words in double quotes for aliases: renowned as the "King of Horror"."""
        return cls(name, tuple(dict.fromkeys([*aliases, *_QUOTED.findall(introduction)])))

    @cached_property
    def all_names(self) -> tuple[str, ...]:
        """The name, its comma-separated parts, the last word of each, and the aliases."""
        parts = [part.strip() for part in self.name.split(",")]
        last = [word for part in parts if (word := _last_part(part))]
        return tuple(dict.fromkeys([self.name, *filter(None, parts), *last, *self.aliases]))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        options = []
        for name in self.all_names:
            spelled = r"[\s-]+".join(re.escape(word) for word in _fold(name).split())
            # A single word needs its capital, unless the word is the whole name.
            options.append(spelled if " " not in name and name != self.name else f"(?i:{spelled})")
        return re.compile(r"(?<!\w)(?:" + "|".join(options) + r")(?!\w)")

    def named_in(self, text: str) -> bool:
        return bool(self._pattern.search(_fold(text)))

    def misspelt_in(self, text: str) -> str | None:
        """The first run of words in ``text`` that is nearly, but not quite, the full name."""
        name = _plain_words(self.name)
        words = _plain_words(text)
        windows = (words[start : start + len(name)] for start in range(len(words) - len(name) + 1))
        return next((" ".join(w) for w in windows if w != name and all(map(_close, name, w))), None)


def _plain_words(text: str) -> list[str]:
    without_possessive = re.sub(r"'s?\b", " ", _fold(text).casefold())
    return [word for word in re.findall(r"\w+", without_possessive) if word.strip("_")]


@cache  # the words of a target's rows come again and again
def _close(word: str, other: str) -> bool:
    """Whether ``other`` is ``word`` or a misspelling of it: Steven of Stephen, but neither Hawking nor Ring of King."""
    if word == other:
        return True
    if len(word) <= SHORT_WORD or abs(len(word) - len(other)) > 2 or _DERIVED_ENDING.search(other):
        return False
    return SequenceMatcher(None, word, other).ratio() >= CLOSE_SPELLING
