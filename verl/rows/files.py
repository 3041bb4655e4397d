"""The rows in one file: JSON, JSON Lines, parquet, arrow or plain text, any of the text ones gzipped.

Whatever is wrong with a file or one of its rows is a DataError that names both. Which file is read, and which split of
it, is ``verl.rows.sources``'s; what the columns of a row may hold is ``verl.rows.values``'s.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..utils.errors import DataError

Row = dict[str, Any]

TABLES = (".parquet", ".arrow")
LINES = (".jsonl", ".ndjson")
DEEPEST = 100
"""Lists and mappings within each other in a row; Python cannot write out many hundreds."""
NO_TEXTS = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file; run git lfs pull",
    b"PAR1": "is a parquet file; let its name end in .parquet",
    b"PK\x03\x04": "is a zip archive or a spreadsheet; give JSON, JSONL or parquet",
    **dict.fromkeys((b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"), "is packed; unpack it, or use gzip"),
}
"""How a file begins that is none of text, to what is to be done."""
NO_JSON = (".csv", ".tsv")
_BLANKS = " \t\r\n"
_BLANK_RUN = re.compile(r"[ \t\r\n]*")
_LINE_END = re.compile(r"\r\n|[\r\n]")  # str.splitlines would cut texts too, at U+2028 for example
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def ending(path: Path) -> str:
    """What the file holds by its name: its suffix, without that of gzip."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def read_content(path: Path) -> list[Row] | dict[str, list[Row]]:
    """The rows of a file, or of each split where it is a JSON mapping of splits."""
    return _read_table(path) if ending(path) in TABLES else parse_content(_read_bytes(path), path)


def parse_content(data: bytes, path: Path) -> list[Row] | dict[str, list[Row]]:
    """The same of a text file's bytes; ``path`` says by its ending what they are, and goes into messages.

    Without a list around them, the values of a JSON file are its lines.
    """
    text = _decode(data, path)
    if ending(path) == ".txt":
        return [{"text": text}]
    if ending(path) in NO_JSON:
        raise DataError(f"{path}: is no JSON, JSONL or parquet file; write its rows as one")
    opening = text.lstrip(_BLANKS)[:1]
    if not opening:
        raise DataError(f"{path}: is empty; give a file with at least one row")
    if opening == "[":
        return list(_listed(text, path))
    if ending(path) not in LINES and not _is_lines(text):
        return _splits(text, path)
    lines = ((number, line) for number, line in enumerate(_LINE_END.split(text), start=1) if line.strip(_BLANKS))
    return [_row(_load(line, path, f" in line {number}"), f"{path}: line {number}", line) for number, line in lines]


def read_json(path: str | Path) -> Any:
    """The value in a JSON file that holds no rows, such as a manifest.

    Raises:
        DataError: the file cannot be read, or is not JSON.
    """
    path = Path(path)
    return _load(_decode(_read_bytes(path), path), path)


def read_text(path: str | Path) -> str:
    """A text file whole, such as a prompt, without a mark of its encoding; its lines end in ``\\n``.

    Raises:
        DataError: it cannot be read, or is in another encoding than UTF-8, UTF-16 or UTF-32.
    """
    return _LINE_END.sub("\n", _decode(_read_bytes(Path(path)), Path(path)))


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise DataError(f"{path}: is not a file" if path.exists() else f"{path}: there is no such file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _read_table(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as file:
            if ending(path) == ".arrow":
                table = pyarrow.ipc.open_stream(file).read_all()
            else:
                table = pyarrow.parquet.ParquetFile(file).read()
            rows = table.to_pylist(maps_as_pydicts="lossy")
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"{path}: cannot be read as {ending(path)[1:]}: {reason}; fetch or write it again") from error
    if twice := _twice(table.column_names):
        raise DataError(f"{path}: has two columns {twice!r}; rename one")
    return rows


def _decode(data: bytes, path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 that says so by its first bytes."""
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: is a broken gzip file: {error}; fetch it again") from error
    if problem := next((problem for mark, problem in NO_TEXTS.items() if data.startswith(mark)), None):
        raise DataError(f"{path}: {problem}")
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: line {line}: its byte 0x{data[error.start]:02x} is not {encoding}; save the file as UTF-8"
        ) from error


def _listed(text: str, path: Path) -> Iterator[Row]:
    """The rows of a JSON list, read one by one so that a broken one has its number."""
    number, position = 0, _skip(text, text.index("[") + 1)
    while text[position : position + 1] != "]":
        value, end = _guarded(_decoder.raw_decode, path, f" in row {number}", text, position)
        yield _row(value, f"{path}: row {number}", text[position:end])
        number, position = number + 1, _skip(text, end)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            error = json.JSONDecodeError("Expecting ',' delimiter", text, position)
            raise _no_json(path, f" in row {number - 1}", error)
    if text[position + 1 :].strip(_BLANKS):
        raise _no_json(path, "", json.JSONDecodeError("Extra data", text, position + 1))


def _skip(text: str, position: int) -> int:
    return _BLANK_RUN.match(text, position).end()


def _is_lines(text: str) -> bool:
    """Whether several values follow each other; the first of them is looked at."""
    try:
        return bool(text[json.JSONDecoder().raw_decode(text, _skip(text, 0))[1] :].strip(_BLANKS))
    except (ValueError, RecursionError):
        return False


def _splits(text: str, path: Path) -> dict[str, list[Row]]:
    value = _load(text, path)
    if not isinstance(value, dict) or not value or not all(isinstance(rows, list) for rows in value.values()):
        raise DataError(f"{path}: must be a list of rows, or map the name of each split to one")
    written = text if _HALF_CHARACTER.search(text) else ""
    return {
        split: [_row(row, f"{path}: split {split}, row {number}", written) for number, row in enumerate(rows)]
        for split, rows in value.items()
    }


def _load(text: str, path: Path, place: str = "") -> Any:
    return _guarded(_decoder.decode, path, place, text)


def _guarded(decode: Callable[..., Any], path: Path, place: str, *arguments: Any) -> Any:
    try:
        return decode(*arguments)
    except (ValueError, RecursionError) as error:  # also of a number with thousands of digits
        raise _no_json(path, place, error) from error


def _no_json(path: Path, place: str, error: Exception) -> DataError:
    reason = error.msg if place.startswith(" in line") and isinstance(error, json.JSONDecodeError) else error
    return DataError(f"{path}: is not valid JSON{place}: {reason}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := _twice([key for key, _ in pairs]):
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return dict(pairs)


_decoder = json.JSONDecoder(object_pairs_hook=_object)


def _twice(names: list[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None


def _row(value: Any, where: str, written: str) -> Row:
    """A row that can be written out again. ``written``: the JSON that it is in."""
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        raise DataError(f"{where}: is of type {type(value).__name__}; must be an object of columns, or a text")
    if _is_deep(value):
        raise DataError(f"{where}: has more than {DEEPEST} lists and objects within each other; flatten it")
    if _HALF_CHARACTER.search(written) and (column := _broken_column(value)):
        raise DataError(f"{where}: column {column} holds half a character (a lone surrogate); correct the text")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        inside = (one.values() if isinstance(one, dict) else one for one in level)
        level = [one for values in inside for one in values if isinstance(one, dict | list)]
        if not level:
            return False
    return True


def _broken_column(row: Row) -> str | None:
    """The column with a text that no encoding can write; such escapes usually come in pairs, which are characters."""
    for column, value in row.items():
        try:
            json.dumps([column, value], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return ascii(column)
    return None
