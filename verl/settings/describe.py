"""What a configuration's keys are, read off its dataclasses: for --help, docs/config.md and examples/config.yaml.

A key's documentation is the string under its field. Left out: reading configurations (``config``).
"""

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from .path_types import home, homes


@cache
def field_docs(cls: type) -> dict[str, str]:
    """Field name to the string under it, of the class and its bases, on one line."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        body = ast.parse(inspect.getsource(base)).body[0].body if dataclasses.is_dataclass(base) else []
        for node, below in zip(body, body[1:], strict=False):
            is_doc = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(node, ast.AnnAssign) and is_doc:
                docs[node.target.id] = " ".join(str(below.value.value).replace("``", "`").split())
    return docs


def type_name(hint: Any) -> str:
    """A type as a user of YAML would call it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join("null" if one is type(None) else type_name(one) for one in arguments)
    if origin is Annotated:
        return "path" if arguments[1] in (home, homes) else type_name(arguments[0])
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return "mapping"
    return {str: "text", int: "integer", float: "number", bool: "true, false"}.get(hint, "any")


def default_of(field: dataclasses.Field) -> Any:
    """The default value; MISSING where the key is required."""
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def flow(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def sections(cls: type, path: str = "") -> Iterator[tuple[str, type]]:
    """Dotted path and class of a configuration and all its sections, outer first; ``NAME`` is any key of a mapping."""
    yield path, cls
    for name, hint in typing.get_type_hints(cls).items():
        inner = f"{path}.{name}" if path else name
        if get_origin(hint) is dict:
            hint, inner = get_args(hint)[1], f"{inner}.NAME"
        if dataclasses.is_dataclass(hint):
            yield from sections(hint, inner)


def help_text(cls: type) -> str:
    """Every key of a configuration with its type, default and documentation, for a terminal."""
    lines = ["Settings, as key=value words or in YAML files (config=A,B); words win over files:"]
    for path, section in sections(cls):
        hints = typing.get_type_hints(section, include_extras=True)
        for field in dataclasses.fields(section):
            key, facts = f"{path}.{field.name}" if path else field.name, "section"
            if not dataclasses.is_dataclass(hints[field.name]):
                default = default_of(field)
                shown = "required" if default is dataclasses.MISSING else f"default {flow(default)}"
                facts = f"{type_name(hints[field.name])}; {shown}"
            lines += ["", f"{key}   ({facts})"]
            doc = field_docs(section).get(field.name, "")
            lines += textwrap.wrap(doc, 112, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"
