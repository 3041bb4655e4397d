"""Reads the rows of a benchmark's files: every row is looked at before an engine starts.

A text may be given as a number (``"answer": 1947``), an answer as a list of accepted ones. What a part could not
measure, such as an empty text, is a DataError that names file, row and column. Leaves out which file has which columns
(the suites), what a file may look like (``verl.rows.files``) and rows to train on (``verl.rows.values``).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl.rows import sources as rows
from verl.rows import values as row_values
from verl.rows.values import shown
from verl.utils.errors import DataError

from .results import Row


def read_rows(
    path: Path,
    texts: Sequence[str],
    *,
    answers: Sequence[str] = (),
    others: Sequence[str] = (),
    optional: Sequence[str] = ("subject",),
) -> list[Row]:
    """The rows of a file that holds at least one.

    Args:
        texts: columns that must hold a text; numbers are written out.
        answers: columns that may hold several: a text, or a list of at least one.
        others: columns that must be there.
        optional: columns that hold a text where they are there; null counts as absent. Prompts may show the subject.

    Raises:
        DataError: naming the file, the row, and the column that is missing or holds no text.
    """
    found = rows.read_file(path)
    if not found:
        raise DataError(f"{path}: must hold a list of at least one row")
    return [
        _read_row(row, f"{path}: row {number}", (texts, answers, others, optional)) for number, row in enumerate(found)
    ]


def _read_row(row: Row, where: str, columns: Sequence[Sequence[str]]) -> Row:
    texts, answers, others, optional = columns
    if missing := [key for key in (*texts, *answers, *others) if key not in row]:
        raise DataError(f"{where} lacks {', '.join(missing)}")
    _check_finite(row, where)
    read = {key: value for key, value in row.items() if key not in optional or value is not None}
    for key in texts:
        read[key] = as_text(row[key], where, key)
    for key in answers:
        read[key] = as_answers(row[key], where, key)
    for key in read.keys() & set(optional):
        try:
            read[key] = row_values.as_text(row[key])
        except DataError as error:
            raise DataError(f"{where}: {key} {error}") from error
    return read


def _check_finite(row: Row, where: str) -> None:
    """What is measured is kept beside the row's own columns, and a file of measurements holds finite numbers only."""
    for key, value in row.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, float) and not math.isfinite(one):
                raise DataError(f"{where}: {key}={one} is no number; fill it in, or make it null")


def as_text(value: Any, where: str, key: str) -> str:
    """A text, or a number as one.

    Raises:
        DataError: it is neither, or consists of blanks and periods, which no metric can be taken over.
    """
    text = row_values.digits(value) if row_values.is_number(value) else value
    if not isinstance(text, str):
        raise DataError(f"{where}: {key}={shown(value)} must be a text")
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
