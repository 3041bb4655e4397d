"""Reads a configuration: dataclass defaults, then YAML files, then ``key.sub=value`` words, checked as a whole.

A configuration is a tree of frozen dataclasses. Every problem found (unknown keys, wrong types, bad choices, and what
the dataclasses' own ``problems()`` methods report) ends up in one ConfigError. YAML, dotted words and ``${...}``
references are OmegaConf's; the types are checked here, because OmegaConf stops at the first problem.
"""

import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import ConfigError, bullet_list, closest

HELP = {"--help", "-h"}
Config = TypeVar("Config")
Migration = Callable[[dict[str, Any]], None]


def load(cls: type[Config], argv: list[str], migrate: Migration | None = None) -> Config:
    """The configuration that ``argv`` describes, as an instance of the dataclass ``cls``.

    Args:
        argv: words such as ``config=a.yaml,b.yaml`` (files, merged left to right) and ``data.seed=3`` (merged last).
        migrate: called with each layer (a plain dict) before they are merged, to move keys that changed their name; it
            may raise ConfigError.

    Raises:
        ConfigError: listing every problem, a line each.
        SystemExit: 0, after --help has printed every key.
    """
    if HELP.intersection(argv):
        from .describe import help_text

        sys.stdout.write(help_text(cls))
        raise SystemExit(0)
    problems: list[str] = []
    merged = _read(argv, migrate or (lambda layer: None), problems)
    config = _build(cls, merged, "", problems)
    if config is not None:
        problems.extend(_own_problems(config, ""))
    if problems:
        raise ConfigError(bullet_list(f"{len(problems)} problem(s) in the configuration:", problems))
    return config


def to_dict(config: Any) -> Any:
    """Plain dicts and lists, for YAML and JSON."""
    return dataclasses.asdict(config)


def to_yaml(config: Any) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def _read(argv: list[str], migrate: Migration, problems: list[str]) -> dict[str, Any]:
    words: list[str] = []
    layers: list[Any] = []
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals:
            problems.append(f"{word}: is not key=value; write for example data.seed=1 or config=examples/config.yaml")
        elif key == "config":
            layers += [layer for path in value.split(",") if (layer := _read_file(path, problems)) is not None]
        else:
            words.append(word)
    try:
        plain = [OmegaConf.to_container(layer) for layer in [*layers, OmegaConf.from_dotlist(words)]]
        for layer in plain:
            migrate(layer)
        return OmegaConf.to_container(OmegaConf.merge(*plain), resolve=True)
    except ConfigError as error:
        problems.append(str(error))
        return {}
    except (OmegaConfBaseException, yaml.YAMLError, TypeError, AttributeError) as error:
        problems.append(f"the configuration cannot be merged: {error}")
        return {}


def _read_file(path: str, problems: list[str]) -> Any:
    if not Path(path).is_file():
        problems.append(f"config={path}: there is no such file; give the path of a YAML file")
        return None
    try:
        layer = OmegaConf.load(path)
    except yaml.YAMLError as error:
        problems.append(f"config={path}: is not valid YAML: {error}")
        return None
    if not OmegaConf.is_dict(layer):
        problems.append(f"config={path}: must hold a mapping of sections, not a list")
        return None
    return layer


def _build(cls: type, raw: Any, path: str, problems: list[str]) -> Any:
    """An instance of dataclass ``cls``, or None where a required key is missing; bad values become the default."""
    if not isinstance(raw, dict):
        problems.append(f"{path}={raw!r}: must be a section with keys, not a single value")
        raw = {}
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in raw.keys() - fields.keys():
        near = closest(key, fields)
        fix = f"did you mean {_join(path, near)}?" if near else f"known keys: {', '.join(fields)}"
        problems.append(f"{_join(path, key)}={raw[key]!r}: unknown key; {fix}")
    values = {}
    for name, field in fields.items():
        key = _join(path, name)
        if dataclasses.is_dataclass(hints[name]):
            values[name] = _build(hints[name], raw.get(name, {}), key, problems)
        elif name in raw:
            values[name] = _checked(hints[name], raw[name], key, _default(field), problems)
        elif (default := _default(field)) is not dataclasses.MISSING:
            values[name] = default
        else:
            problems.append(f"{key}: is required; give {key}=VALUE")
            values[name] = dataclasses.MISSING
    if any(value is dataclasses.MISSING or value is None and _is_section(hints[n]) for n, value in values.items()):
        return None
    return cls(**values)


def _is_section(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint)


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _checked(hint: Any, value: Any, key: str, default: Any, problems: list[str]) -> Any:
    try:
        return _coerce(hint, value)
    except TypeError as error:
        problems.append(f"{key}={value!r}: {error}")
        return default


def _coerce(hint: Any, value: Any) -> Any:
    """``value`` as the type ``hint``, without guessing: "3" becomes 3, 3 becomes 3.0, 3.5 never becomes 3."""
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(hint, value)
    if origin is Literal:
        return _coerce_choice(get_args(hint), value)
    if origin is list:
        items = value if isinstance(value, list) else [value]
        return [_coerce(get_args(hint)[0], item) for item in items]
    if origin is dict:
        if not isinstance(value, dict):
            raise TypeError("must be a mapping, for example {key: value}")
        return {str(key): _coerce(get_args(hint)[1], item) for key, item in value.items()}
    return _coerce_scalar(hint, value)


def _coerce_union(hint: Any, value: Any) -> Any:
    if value is None and type(None) in get_args(hint):
        return None
    reasons = []
    for option in get_args(hint):
        if option is not type(None):
            try:
                return _coerce(option, value)
            except TypeError as error:
                reasons.append(str(error))
    raise TypeError(" or ".join(dict.fromkeys(reasons)))


def _coerce_choice(choices: tuple, value: Any) -> Any:
    if value in choices:
        return value
    near = closest(value, choices)
    hint = f" (did you mean {near}?)" if near else ""
    raise TypeError(f"must be one of {', '.join(map(str, choices))}{hint}")


def _coerce_scalar(hint: type, value: Any) -> Any:
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and value is None:  # ``key=`` on the command line, or nothing behind the colon in YAML
        return ""
    if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if hint in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = None
        if number is not None and (hint is float or number.is_integer()):
            return hint(number)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    raise TypeError(f"must be {names.get(hint, hint)}")


def _own_problems(config: Any, path: str) -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _own_problems(value, _join(path, field.name))
    for problem in getattr(config, "problems", list)():
        yield _join(path, problem)


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
