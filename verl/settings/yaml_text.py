"""YAML whose unquoted scalars stay text, since only the type of a setting says what ``2025_01_15`` or ``off`` means.

``Plain`` is such a scalar of a file, ``Word`` what stands behind the ``=`` of a ``key=value`` word, ``str`` text in
quotes. Numbers are those that people write: ``0x10``, ``1_000``, ``007`` and ``1:30``, which YAML 1.1 would read as 16,
1000, 7 and 90, are none. Left out: which type a setting has (``config``).
"""

import math
import re
from itertools import accumulate
from typing import Any

import yaml

CLOSING = {"[": "]", "{": "}", "'": "'", '"': '"'}
DEEPEST = 64
"""brackets within brackets; the parser's time grows with the square of their number"""
NULLS = {"", "~", "null", "Null", "NULL"}
_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
SWITCHES = {form(word): value for word, value in _SWITCHES.items() for form in (str.lower, str.title, str.upper)}
_WHOLE = re.compile(r"[-+]?(?:0|[1-9]\d{0,18})", re.ASCII)
_NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)


class Plain(str):
    """An unquoted scalar as it was written. Messages show it as what it is without a type."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(untyped(self))


class Word(Plain):
    """The value of a word of the command line, to its last character."""

    __slots__ = ()

    def structure(self) -> Any:
        """The list or mapping that it writes in YAML's flow form, the text in quotes around all of it, or itself."""
        text = self.strip()
        if len(text) < 2 or CLOSING.get(text[0]) != text[-1]:
            return self
        try:
            return read(text)
        except ValueError:
            return self


def read(text: str | bytes) -> Any:
    """The document: dicts and lists of ``Plain`` and ``str``; None if there is nothing in it.

    Raises:
        ValueError: it is not YAML, has a key twice, a tag, or refers to itself; the message is one line.
    """
    letters = text if isinstance(text, str) else text.decode("utf-8", "replace")
    if max(accumulate((letter in "[{") - (letter in "]}") for letter in letters), default=0) > DEEPEST:
        raise ValueError(f"more than {DEEPEST} brackets are open at once")
    try:
        return yaml.load(text, Loader=_Reader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def number(text: str) -> int | float | None:
    """The finite number that a text is, in decimal digits; None if it is none."""
    text = text.strip()
    if _WHOLE.fullmatch(text):
        return int(text)
    value = float(text) if _NUMBER.fullmatch(text) else math.inf
    return value if math.isfinite(value) else None


def untyped(value: Any) -> Any:
    """Plain Python values, where no type says what unquoted scalars are: null, a switch, a number, or text."""
    if isinstance(value, dict):
        return {key: untyped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [untyped(item) for item in value]
    if isinstance(value, Word) and (inner := value.structure()) is not value:
        return untyped(inner)
    if not isinstance(value, Plain):
        return value
    if value in NULLS:
        return None
    if value in SWITCHES:
        return SWITCHES[value]
    return str(value) if (found := number(value)) is None else found


class _Reader(yaml.SafeLoader):
    """Of YAML's implicit types only the merge key ``<<`` is left, and no tags."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}

    def scalar(self, node: yaml.ScalarNode) -> str:
        return Plain(node.value) if node.style is None else node.value

    def sequence(self, node: yaml.SequenceNode) -> list[Any]:
        return self.construct_sequence(node, deep=True)

    def mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is there twice", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return {str(key): value for key, value in self.construct_mapping(node, deep=True).items()}


_Reader.yaml_constructors = {
    "tag:yaml.org,2002:str": _Reader.scalar,
    "tag:yaml.org,2002:seq": _Reader.sequence,
    "tag:yaml.org,2002:map": _Reader.mapping,
    None: yaml.SafeLoader.construct_undefined,
}
