"""Reads a configuration: dataclass defaults, then YAML files, then ``key.sub=value`` words, checked as a whole.

A configuration is a tree of frozen dataclasses. What is written stays text until the type of its field is known: a text
gets what was typed, to the character. ``${section.key}`` stands for the value of that key, whoever gave it; any other
``$`` is text. Every problem found (unknown keys, wrong types, bad choices, and what the dataclasses' own ``problems()``
methods report) ends up in one ConfigError.
"""

import dataclasses
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from ..utils.errors import ConfigError, bullet_list, closest
from .path_types import homes
from .yaml_text import NULLS, SWITCHES, Plain, Word, number, read, untyped

HELP = {"--help", "-h"}
REFERENCE = re.compile(r"\$\{([^${}]+)\}")
LARGEST = 2**63 - 1
"""of whole numbers: what seeds, sizes and counts are kept in"""
REQUIRED = ": is required; give"
SHOWN = 200
"""characters of a value that a message shows"""
Config = TypeVar("Config")
Migration = Callable[[dict[str, Any]], None]
Check = Callable[[Any], list[str]]


def load(cls: type[Config], argv: list[str], migrate: Migration | None = None, checks: Sequence[Check] = ()) -> Config:
    """The configuration that ``argv`` describes, as an instance of the dataclass ``cls``.

    Args:
        argv: words such as ``config=a.yaml,b.yaml`` (files, merged left to right) and ``data.seed=3`` (merged last).
        migrate: called with each layer (a plain dict) before they are merged, to move keys that changed their name; it
            may raise ConfigError.
        checks: what else may be wrong with the whole: functions of the configuration that list problems.

    Raises:
        ConfigError: listing every problem, a line each.
        SystemExit: 0, after --help has printed every key.
    """
    if HELP.intersection(argv):
        from .describe import help_text

        sys.stdout.write(help_text(cls))
        raise SystemExit(0)
    problems: list[str] = []
    merged = _read(cls, argv, migrate or (lambda layer: None), problems)
    config = _build(cls, _resolved(cls, merged, problems), "", problems)
    if config is not None:
        # A value of the wrong type has become the default, which the user did not give: no word about it.
        wrong = {problem.partition("=")[0] for problem in problems}
        found = [*_own_problems(config, ""), *(one for check in checks for one in check(config))]
        problems += [one for one in found if one.partition("=")[0] not in wrong]
    if problems:
        raise ConfigError(bullet_list(f"{len(problems)} problem(s) in the configuration:", problems))
    return config


def word_problems(cls: type, argv: list[str], migrate: Migration | None = None) -> list[str]:
    """What is wrong with the keys and types that are given; nothing that is missing, and ``problems()`` do not run."""
    problems: list[str] = []
    merged = _read(cls, argv, migrate or (lambda layer: None), problems)
    _build(cls, _resolved(cls, merged, problems), "", problems)
    return [problem for problem in problems if REQUIRED not in problem]


def to_dict(config: Any) -> Any:
    """Plain dicts and lists, for YAML and JSON."""
    return dataclasses.asdict(config)


def to_yaml(config: Any) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def _read(cls: type, argv: list[str], migrate: Migration, problems: list[str]) -> dict[str, Any]:
    """What files and words say, merged; scalars are still text."""
    layers: list[dict[str, Any]] = []
    words: dict[str, Any] = {}
    for word in argv:
        key, equals, value = word.partition("=")
        if any("\ud800" <= character <= "\udfff" for character in word):  # bytes that are no UTF-8
            problems.append(f"{word!r}: is not UTF-8; write it in UTF-8")
        elif not equals:
            problems.append(f"{word}: is not key=value; write for example data.seed=1 or config=examples/config.yaml")
        elif key == "config":
            layers += _read_files(value, problems)
        else:
            keys = _keys(cls, key)
            _put(words, keys, _meant(_hint_at(cls, keys), Word(value), key, problems))
    merged: dict[str, Any] = {}
    for layer in [*layers, words]:
        try:
            migrate(layer)
        except ConfigError as error:
            problems.append(str(error))
        _merge(merged, layer)
    return merged


def _meant(hint: Any, word: Word, key: str, problems: list[str]) -> Any:
    """What a word adds to the words before it: a mapping where its key is one, else its text."""
    if hint is Any:
        return word.structure()
    if not (dataclasses.is_dataclass(hint) or get_origin(hint) is dict):
        return word
    try:
        return read(word)
    except ValueError as error:
        problems.append(f"{key}={_shown(str(word))}: is not valid YAML: {error}")
        return {}


def _keys(cls: type, dotted: str) -> list[str]:
    """The keys of the sections and mappings on the way; a mapping of no mappings may have dots in its keys."""
    keys = dotted.split(".")
    for depth in range(1, len(keys)):
        hint = _hint_at(cls, keys[:depth])
        held = get_args(hint)[1] if get_origin(hint) is dict else Any
        if held is not Any and get_origin(held) is not dict and not dataclasses.is_dataclass(held):
            return [*keys[:depth], ".".join(keys[depth:])]
    return keys


def _hint_at(cls: type, keys: list[str]) -> Any:
    """The type of a key of the configuration; None if it has no such key."""
    hint: Any = cls
    for key in keys:
        if dataclasses.is_dataclass(hint):
            hint = typing.get_type_hints(hint, include_extras=True).get(key)
        elif get_origin(hint) is dict:
            hint = get_args(hint)[1]
        elif hint is not Any:
            return None
    return hint


def _put(layer: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        if not isinstance(layer.get(key), dict):
            layer[key] = {}
        layer = layer[key]
    _merge(layer, {keys[-1]: value})


def _merge(lower: dict[str, Any], upper: dict[str, Any]) -> None:
    for key, value in upper.items():
        if isinstance(value, dict):
            below = lower.get(key)
            lower[key] = dict(below) if isinstance(below, dict) else {}
            _merge(lower[key], value)
        elif not (value == "" and isinstance(lower.get(key), dict)):  # a section with nothing in it says nothing
            lower[key] = value


def _read_files(paths: str, problems: list[str]) -> Iterator[dict[str, Any]]:
    """The mapping in each of the files with commas between them; a file that has a comma in its name is that file."""
    try:
        given = homes(paths)
        for path in [given] if Path(given).is_file() else given.split(","):
            layer = read(Path(path).read_bytes())
            if layer is None or isinstance(layer, dict):
                yield layer or {}
            else:
                problems.append(f"config={path}: must hold a mapping of sections, not {_shown(layer)}")
    except (FileNotFoundError, IsADirectoryError):
        problems.append(f"config={path}: there is no such file; give the path of a YAML file")
    except OSError as error:
        problems.append(f"config={path}: cannot be read: {error.strerror}")
    except ValueError as error:
        problems.append(f"config={path}: is not valid YAML: {error}")
    except TypeError as error:
        problems.append(f"config={_shown(paths)}: {error}")


# ---- references ---------------------------------------------------------------------------------------------------
def _resolved(cls: type, merged: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """``merged`` with the values that its references name."""
    try:
        return _without_references(cls, merged, merged, ())
    except ConfigError as error:
        problems.append(str(error))
        return {}


def _without_references(cls: type, merged: dict[str, Any], value: Any, within: tuple[str, ...]) -> Any:
    """``value`` without references; ``within``: the keys whose values it is part of by reference."""
    if isinstance(value, dict):
        return {key: _without_references(cls, merged, item, within) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_references(cls, merged, item, within) for item in value]
    if not isinstance(value, str) or "${" not in value:
        return value

    def found(match: re.Match[str]) -> Any:
        key = match[1].strip()
        if key in within:
            raise ConfigError(f"{match[0]}: refers to itself by way of {', '.join(within)}; give {key} a value")
        if _hint_at(cls, key.split(".")) is None:
            return _unknown(cls, match)
        return _without_references(cls, merged, _value_at(cls, merged, key), (*within, key))

    def as_text(match: re.Match[str]) -> str:
        inner = found(match)
        if inner is None or isinstance(inner, dict | list):
            raise ConfigError(f"{match[0]}: has no text that could stand within {_shown(str(value))}; write the text")
        return str(inner)

    if whole := REFERENCE.fullmatch(value.strip()):
        return found(whole)
    return type(value)(REFERENCE.sub(as_text, value))


def _unknown(cls: type, match: re.Match[str]) -> Plain:
    """A ``${...}`` that names no key is text, unless it looks like a misspelt key or one of OmegaConf's functions."""
    section, dot, _ = match[1].strip().partition(".")
    if dot and (section == "oc" or dataclasses.is_dataclass(_hint_at(cls, [section]))):
        raise ConfigError(f"{match[0]}: names no key of the configuration; --help lists them")
    return Plain(match[0])


def _value_at(cls: type, merged: dict[str, Any], key: str) -> Any:
    """What is given for a key, else its default; of a section without any, the section's defaults."""
    value: Any = merged
    hint: Any = cls
    for name in key.split("."):
        value = value.get(name, dataclasses.MISSING) if isinstance(value, dict) else dataclasses.MISSING
        if value is dataclasses.MISSING and dataclasses.is_dataclass(hint):
            field = next(one for one in dataclasses.fields(hint) if one.name == name)
            value = {} if dataclasses.is_dataclass(_hint_at(hint, [name])) else _default(field)
        hint = _hint_at(hint, [name])
    if value is dataclasses.MISSING:
        raise ConfigError(f"${{{key}}}: {key} has no value; give {key}=VALUE")
    return value


# ---- types --------------------------------------------------------------------------------------------------------
def _build(cls: type, raw: Any, path: str, problems: list[str]) -> Any:
    """An instance of dataclass ``cls``, or None where a required key is missing; bad values become the default."""
    if raw == "":
        raw = {}
    if not isinstance(raw, dict):
        problems.append(f"{path}={_shown(raw)}: must be a section with keys, not a single value")
        raw = {}
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls, include_extras=True)
    for key in raw:
        if key not in fields:
            near = closest(key, fields)
            fix = f"did you mean {_join(path, near)}?" if near else f"known keys: {', '.join(fields)}"
            problems.append(f"{_join(path, key)}={_shown(raw[key])}: unknown key; {fix}")
    values = {name: _value(hints[name], field, raw, _join(path, name), problems) for name, field in fields.items()}
    if any(value is dataclasses.MISSING or value is None and _is_section(hints[n]) for n, value in values.items()):
        return None
    return cls(**values)


def _value(hint: Any, field: dataclasses.Field, raw: dict[str, Any], key: str, problems: list[str]) -> Any:
    """What a field of a section gets: what ``raw`` gives it, or its default; MISSING where it needs a value."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, raw.get(field.name, {}), key, problems)
    default = _default(field)
    if field.name not in raw:
        if default is dataclasses.MISSING:
            problems.append(f"{key}{REQUIRED} {key}=VALUE")
        return default
    given, section = raw[field.name], _section_of(hint)
    if section and isinstance(given, dict):
        return {one: _build(section, inner, _join(key, one), problems) for one, inner in given.items()}
    return _checked(hint, given, key, default, problems)


def _shown(value: Any) -> str:
    """A value in a message, its middle left out where it is long."""
    text = repr(untyped(value))
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"


def _is_section(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint)


def _section_of(hint: Any) -> type | None:
    """The dataclass of the sections that a mapping holds; None for any other type."""
    held = get_args(hint)[1] if get_origin(hint) is dict else None
    return held if dataclasses.is_dataclass(held) else None


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _checked(hint: Any, value: Any, key: str, default: Any, problems: list[str]) -> Any:
    try:
        return _coerce(hint, value)
    except TypeError as error:
        problems.append(f"{key}={_shown(value)}: {error}")
        return default


def _coerce(hint: Any, value: Any) -> Any:
    """``value`` as the type ``hint``, without guessing: "3" becomes 3, 3 becomes 3.0, 3.5 never becomes 3."""
    origin = get_origin(hint)
    if hint is Any:
        return untyped(value)
    if origin is Annotated:
        inner, change = get_args(hint)
        return change(_coerce(inner, value))
    if origin in (Union, types.UnionType):
        return _coerce_union(get_args(hint), value)
    if origin is Literal:
        return _coerce_choice(get_args(hint), value)
    if origin is list:
        value = value.structure() if isinstance(value, Word) else value
        items = value if isinstance(value, list) else [value]
        return [_coerce(get_args(hint)[0], item) for item in items]
    if origin is dict:
        return _coerce_mapping(get_args(hint)[1], value)
    if hint is str:
        return _coerce_text(value)
    return _coerce_scalar(hint, value)


def _coerce_mapping(hint: Any, value: Any) -> dict[str, Any]:
    value = value.structure() if isinstance(value, Word) else value
    if not isinstance(value, dict):
        raise TypeError("must be a mapping, for example {key: value}")
    return {key: _coerce(hint, item) for key, item in value.items()}


def _coerce_union(options: tuple, value: Any) -> Any:
    """The first option that fits. A word for a text is null if it says ``null``, or if it is empty and must not be."""
    is_text = any(str in (option, *get_args(option)[:1]) for option in options if get_origin(option) is not list)
    nulls = {"null"} if is_text and isinstance(value, Word) else NULLS
    if type(None) in options and (value is None or isinstance(value, Plain) and value in nulls):
        return None
    if isinstance(value, Word) and isinstance(inner := value.structure(), list):
        value = inner if any(get_origin(option) is list for option in options) else value
    reasons = []
    for option in options:
        if option is not type(None):
            try:
                return _coerce(option, value)
            except TypeError as error:
                reasons.append(str(error))
    if type(None) in options and isinstance(value, Word) and not value:
        return None
    raise TypeError(" or ".join(dict.fromkeys(reasons)))


def _coerce_choice(choices: tuple, value: Any) -> Any:
    for choice in choices:
        if choice == (str(value) if isinstance(value, str) else value) or choice == untyped(value):
            return choice
    near = closest(untyped(value), choices)
    hint = f" (did you mean {near}?)" if near else ""
    kind = "one of " if len(choices) > 1 else ""
    raise TypeError(f"must be {kind}{', '.join(map(str, choices))}{hint}")


def _coerce_text(value: Any) -> str:
    if isinstance(value, Plain) and not isinstance(value, Word) and value and value in NULLS:
        raise TypeError("must be text (in quotes, if this is the text)")
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise TypeError("must be text")


def _coerce_scalar(hint: type, value: Any) -> Any:
    if hint is bool and (isinstance(value, bool) or isinstance(value, Plain) and value in SWITCHES):
        return SWITCHES[value] if isinstance(value, Plain) else value
    if hint in (int, float) and not isinstance(value, bool):
        found = number(value) if isinstance(value, str) else value
        if isinstance(found, int | float) and (hint is float or found == int(found) and abs(found) <= LARGEST):
            return hint(found)
    names = {
        bool: "true or false",
        int: "a whole number in decimal digits, such as 16 or 1e3, within 64 bits",
        float: "a finite number in decimal digits, such as 0.1 or 1e-3",
    }
    raise TypeError(f"must be {names.get(hint, hint)}")


def _own_problems(config: Any, path: str) -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _own_problems(value, _join(path, field.name))
        for name, one in value.items() if isinstance(value, dict) else ():
            if dataclasses.is_dataclass(one):
                yield from _own_problems(one, _join(_join(path, field.name), name))
    for problem in getattr(config, "problems", list)():
        yield _join(path, problem)


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
