"""Environment variables that the project reads or sets. One that is empty counts as not set."""

import os

from .errors import ConfigError


def variable(name: str) -> str | None:
    """The value; None where there is none."""
    return os.environ.get(name, "").strip() or None


def whole_variable(name: str, default: int) -> int:
    """The whole number in a variable.

    Raises:
        ConfigError: it is none, or less than 0.
    """
    text = variable(name) or str(default)
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{name}={text}: must be a whole number; unset this environment variable, or set {default}")
    return int(text)


def set_defaults(**values: str) -> None:
    """Set the variables that the user has not set."""
    for name, value in values.items():
        if variable(name) is None:
            os.environ[name] = value


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
