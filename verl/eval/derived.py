"""Model folders that are made from another one (rounded, relearned), built once and whole or absent."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from verl.rows.files import read_json
from verl.utils.atomic import write_json
from verl.utils.errors import DataError

from .results import model_identity

MARKER = "derived_from.json"


def derived_folder(source: str | Path, out: str | Path, recipe: dict[str, Any], build: Callable[[Path], None]) -> Path:
    """Have ``build`` fill a folder beside ``out``, then rename it; an ``out`` of the same recipe is kept as it is.

    Args:
        source: model folder that the new one is made from; its content counts, not its place.
        recipe: everything that shapes the result, JSON values only.

    Raises:
        DataError: ``out`` exists and was made from something else, or by something else.
    """
    out = Path(out)
    identity = {"source": model_identity(Path(source)), **recipe}
    if out.exists():
        marker = out / MARKER
        if not marker.is_file() or read_json(marker) != identity:
            raise DataError(f"{out}: holds another model than {identity}; remove it or choose another folder")
        return out
    beside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        build(beside)
        write_json(beside / MARKER, identity)
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return out
