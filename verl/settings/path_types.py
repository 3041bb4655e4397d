"""Types of settings that are paths. ``~`` at their start is the home folder, in a file as on the command line.

The function in each type makes the value that the configuration holds from the text that was given; it raises TypeError
where no file could have that name.
"""

import os
import re
from pathlib import Path
from typing import Annotated

LONGEST_NAME, LONGEST_PATH = 255, 4095
"""bytes of a file's name and of a path, on Linux"""


def home(text: str) -> str:
    """A path, or a hub id, which stays as it is."""
    if not text:
        raise TypeError("must not be empty; give a path")
    return _nameable(_expanded(text))


def homes(text: str) -> str:
    """Paths with commas between them, each perhaps with ``@split`` behind it."""
    expanded = re.sub(r"(^|,)(\s*)(~[^/,@]*)", lambda found: found[1] + found[2] + _expanded(found[3]), text)
    for path in expanded.split(","):
        _nameable(path)
    return expanded


def home_of_template(text: str) -> str:
    """A path if it ends in ``.jinja``, else the template itself."""
    if not text:
        raise TypeError("must not be empty; give a template, or a path ending in .jinja")
    return home(text) if text.endswith(".jinja") else text


def same_place(one: str | None, other: str | None) -> bool:
    """Whether two paths, however they are spelt, are of one file or folder."""
    return None not in (one, other) and Path(one).resolve() == Path(other).resolve()


def folder_problem(folder: Path) -> str | None:
    """Why nothing could be written into a folder that may not be there yet, and the fix; None if it could."""
    try:
        _nameable(str(folder))
    except TypeError as error:
        return str(error)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        return f"{there} is a file; give a folder"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} may not be written to; give another folder"


def _expanded(text: str) -> str:
    first, slash, rest = text.partition("/")
    try:
        return f"{Path(first).expanduser()}{slash}{rest}" if first.startswith("~") else text
    except RuntimeError:  # no such user: a name that begins with ~
        return text


def _nameable(path: str) -> str:
    if "\0" in path:
        raise TypeError("must be a path, which holds no NUL character")
    if len(os.fsencode(path)) > LONGEST_PATH or any(len(os.fsencode(name)) > LONGEST_NAME for name in path.split("/")):
        raise TypeError(f"must be a path, of at most {LONGEST_PATH} bytes and {LONGEST_NAME} for each name in it")
    return path


PathText = Annotated[str, home]
Sources = Annotated[str, homes]
TemplateText = Annotated[str, home_of_template]
