"""A folder that is made once: whole or not at all, and anew when what it is made by has changed."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from verl.utils.atomic import write_text

logger = logging.getLogger(__name__)


def made_once(folder: Path, key: str, make: Callable[[Path], None]) -> Path:
    """The finished ``folder``, whose DONE holds ``key``; made if it is not there or has another key.

    Args:
        key: a hash of all that the folder is made by.
        make: makes a folder of the name it is given, which takes this one when it is full and goes if ``make`` raises.
    """
    done = folder / "DONE"
    if done.is_file() and done.read_text(encoding="utf-8").strip() == key:
        logger.info("%s is there, made by this code", folder)
        return folder
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        make(beside)
        write_text(beside / "DONE", key + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    logger.info("wrote %s", folder)
    return folder
