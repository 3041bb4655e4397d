"""The frame of command lines: configuration in, one message and exit code 2 where the user erred."""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..utils.errors import ConfigError, DataError
from .reader import HELP, load

TIMED = "%(asctime)s %(levelname)s %(message)s"


def show_help(argv: Sequence[str], text: str | None) -> None:
    """--help of a command without a configuration: print its module docstring and leave with exit code 0."""
    if HELP.intersection(argv):
        sys.stdout.write(f"{text}\n")
        raise SystemExit(0)


def run_cli(config_class: type, run: Callable[[Any], Any], argv: list[str], log_format: str = "%(message)s") -> int:
    """Exit code of ``run`` on the configuration that ``argv`` describes: 0, or 2 for what the user can mend."""
    logging.basicConfig(level=logging.INFO, format=log_format)
    try:
        run(load(config_class, argv))
    except (ConfigError, DataError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0
