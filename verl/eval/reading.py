"""Reads the rows of a benchmark's files: every row is looked at before an engine starts.

A text may be given as a number (``"answer": 1947``), an answer as a list of accepted ones. What a part could not
measure, such as an empty text, is a DataError that names file, row and column. Leaves out which file has which columns
(the suites) and rows to train on (``verl.utils.dataset``).
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl.utils.errors import DataError

from .results import Row


def read_rows(
    path: Path, texts: Sequence[str], *, answers: Sequence[str] = (), others: Sequence[str] = ()
) -> list[Row]:
    """The objects of a JSON list.

    Args:
        texts: columns that must hold a text; numbers are written out.
        answers: columns that may hold several: a text, or a list of at least one.
        others: columns that must be there.

    Raises:
        DataError: naming the file, the row, and the column that is missing or holds no text.
    """
    rows = read_list(path)
    return [_read_row(row, f"{path}: row {number}", texts, answers, others) for number, row in enumerate(rows)]


def read_list(path: Path) -> list[Any]:
    """The entries of a JSON list that holds at least one.

    Raises:
        DataError: naming the file that is missing, no JSON, or no such list.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: must hold a list of at least one row")
    return rows


def _read_row(row: Any, where: str, texts: Sequence[str], answers: Sequence[str], others: Sequence[str]) -> Row:
    missing = [key for key in (*texts, *answers, *others) if not isinstance(row, dict) or key not in row]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}")
    read = {key: as_text(row[key], where, key) for key in texts}
    return {**row, **read, **{key: as_answers(row[key], where, key) for key in answers}}


def as_text(value: Any, where: str, key: str) -> str:
    """A text, or a number as one.

    Raises:
        DataError: it is neither, or consists of blanks and periods, which no metric can be taken over.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    text = str(value) if number else value
    if not isinstance(text, str):
        raise DataError(f"{where}: {key}={value!r} must be a text")
    if not text.strip(". \t\r\n"):
        raise DataError(f"{where}: {key}={value!r} is an empty text; fill it in, or remove the row")
    return text


def as_answers(value: Any, where: str, key: str) -> str | list[str]:
    """One accepted answer, or a list of several; a list of one is that one."""
    if not isinstance(value, list):
        return as_text(value, where, key)
    if not value:
        raise DataError(f"{where} accepts no answer; fill in {key}, or remove the row")
    read = [as_text(one, where, key) for one in value]
    return read if len(read) > 1 else read[0]
