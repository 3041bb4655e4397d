"""The frame of the command lines in ``data/``: configuration in, one message and exit code 2 where the user erred."""

import logging
from collections.abc import Callable
from typing import Any

from verl.utils.config import load
from verl.utils.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


def run_cli(config_class: type, run: Callable[[Any], Any], argv: list[str]) -> int:
    """Exit code of ``run`` on the configuration that ``argv`` describes; messages go to stderr."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run(load(config_class, argv))
    except (ConfigError, DataError) as error:
        logger.error("%s", error)
        return 2
    return 0
