"""The frame of command lines: configuration in, one message and exit code 2 where the user erred."""

import logging
import sys
from collections.abc import Callable
from typing import Any

from .config import load
from .errors import ConfigError, DataError

TIMED = "%(asctime)s %(levelname)s %(message)s"


def run_cli(config_class: type, run: Callable[[Any], Any], argv: list[str], log_format: str = "%(message)s") -> int:
    """Exit code of ``run`` on the configuration that ``argv`` describes: 0, or 2 for what the user can mend."""
    logging.basicConfig(level=logging.INFO, format=log_format)
    try:
        run(load(config_class, argv))
    except (ConfigError, DataError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0
