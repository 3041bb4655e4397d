"""Reads rows of any kind, to train on, to ask or to prepare, from files, folders and the hub: the one reader there is.

A source is written ``NAME`` or ``NAME@SPLIT``. A split means the same wherever it lies: it is a key of a JSON mapping,
the files of a folder that is laid out as on the hub, or a split of a hub data set; a file of rows is the split that its
name says. Where none is named, a file of rows is read whatever it is, and of everything else ``train``. How a file is
read is ``verl.rows.files``'s; what the columns of a row may hold is ``verl.rows.values``'s.
"""

import logging
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import yaml

from ..utils.errors import DataError
from .files import LINES, NO_JSON, TABLES, Row, ending, parse_content, read_content

logger = logging.getLogger(__name__)

TRAIN = "train"
SHOWN = 5
"""Files named in a warning."""
MOST_FILES = 10_000
"""In a folder that is searched for rows; a home folder or a whole disk is a mistake."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SPLIT_NAME = re.compile(r"\w+(?:\.\w+)*")
ENDINGS = (".json", *LINES, *TABLES)
"""Of the files that a folder is read for; a text file may be gzipped and then ends in .gz."""
KEYWORDS = {
    TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split to the words that name it in a file's or folder's name, by the hub's rules."""
NO_ROWS = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "manifest.json"}
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}")


class Rows(list[Row]):
    """Rows in order, which know where they stand."""

    def __init__(self, parts: Iterable[tuple[str, list[Row]]]) -> None:
        """``parts``: the names of files or hub data sets, and the rows of each."""
        parts = list(parts)
        super().__init__(row for _, rows in parts for row in rows)
        self.names = [name for name, _ in parts]
        self.starts = list(accumulate((len(rows) for _, rows in parts), initial=0))

    def where(self, number: int) -> str:
        """The file of a row and its number there; both numbers count from 0."""
        part = bisect_right(self.starts, number) - 1
        return f"{self.names[part]}, row {number - self.starts[part]}"


@dataclass(frozen=True)
class Source:
    """What a name means."""

    name: str
    """as it was written"""
    place: str
    """path or hub id"""
    split: str | None = None

    @property
    def path(self) -> Path:
        return _at_home(self.place)


def read_rows(sources: str | Sequence[str]) -> Rows:
    """All rows of the given files, folders or hub ids, in order.

    Raises:
        DataError: a source or its split does not exist, cannot be read, or holds no rows.
    """
    found = find_sources(sources)
    if not found:
        raise DataError(f"{sources!r}: names nothing; give a JSON, JSONL or parquet file, a folder, or a hub id")
    return Rows(part for source in found for part in _read_source(source))


def read_file(path: str | Path, split: str | None = None) -> list[Row]:
    """The rows of one file; a bare text in it is the row ``{"text": ...}``.

    Raises:
        DataError: it cannot be read or has no such split, or a row is neither an object nor a text.
    """
    return _rows_of(read_content(Path(path)), split, Path(path))


def parse_rows(data: bytes, path: Path) -> list[Row]:
    """As ``read_file``, of bytes that are there; ``path`` says by its ending what they are."""
    return _rows_of(parse_content(data, path), None, path)


def find_sources(sources: str | Sequence[str]) -> list[Source]:
    """What names mean. One that exists is that path, whatever is in it; else a comma parts two names, and what follows
    the last @ is a split."""
    found = []
    for words in [sources] if isinstance(sources, str) else sources:
        pieces = words.split(",")
        while pieces:
            longest = (count for count in range(len(pieces), 1, -1) if _is_there(",".join(pieces[:count])))
            count = next(longest, 1)
            if name := ",".join(pieces[:count]).strip():
                found.append(_source(name))
            pieces = pieces[count:]
    return found


@cache  # rows are read to be checked and read again to be used
def warn_once(message: str) -> None:
    logger.warning("%s", message)


def is_hub_id(name: str) -> bool:
    return HUB_ID.fullmatch(name) is not None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except OSError:  # longer than a path can be
        return False


def _at_home(name: str) -> Path:
    path = Path(name)
    return path.expanduser() if name.startswith("~/") and not _exists(path) else path


def _source(name: str) -> Source:
    place, at, split = name.rpartition("@")
    return Source(name, place, split) if at and not _exists(_at_home(name)) else Source(name, name)


def _is_there(name: str) -> bool:
    source = _source(name.strip())
    return _exists(source.path) and (source.split is None or SPLIT_NAME.fullmatch(source.split) is not None)


def _read_source(source: Source) -> list[tuple[str, list[Row]]]:
    path, name = source.path, source.name
    if source.split is not None and not SPLIT_NAME.fullmatch(source.split):
        raise DataError(f"{name}: there is no such file, and {source.split!r} is no name of a split; correct it")
    if not _exists(path):
        if not is_hub_id(source.place) or ending(path) in (*ENDINGS, *NO_JSON, ".txt"):
            raise DataError(f"{name}: there is no such file; give a JSON, JSONL or parquet file, a folder, or a hub id")
        parts = [(name, _read_hub(source.place, source.split or TRAIN))]
    elif path.is_dir():
        parts = _read_folder(path, source.split)
    else:
        parts = [(str(path), read_file(path, source.split))]
    if not any(rows for _, rows in parts):
        raise DataError(f"{name}: holds no rows; give a file with at least one")
    return parts


def _rows_of(content: list[Row] | dict[str, list[Row]], split: str | None, path: Path) -> list[Row]:
    if isinstance(content, list):
        if split is None:
            return content
        content = {_split_in(path.name) or TRAIN: content}
    return _chosen(content, split, path)


def _chosen(splits: Mapping[str, Any], split: str | None, where: Path) -> Any:
    if (split or TRAIN) not in splits:
        known = ", ".join(splits)
        raise DataError(f"{where}: has no split {split or TRAIN}; it has {known}: write {where}@{next(iter(splits))}")
    return splits[split or TRAIN]


def _read_folder(folder: Path, split: str | None) -> list[tuple[str, list[Row]]]:
    """The files of a split, in order. A JSON file in it may map splits to rows itself."""
    parts: dict[str, list[tuple[Path, list[Row] | None]]] = {}
    for usual, paths in _layout(folder).items():
        for path in paths:
            # Lines and tables are read once it is known that they are wanted.
            content = read_content(path) if ending(path) == ".json" else None
            for name, rows in (content if isinstance(content, dict) else {usual: content}).items():
                parts.setdefault(name, []).append((path, rows))
    if not parts:
        raise DataError(f"{folder}: holds no JSON, JSONL or parquet file; give a folder that does")
    wanted = _chosen(parts, split, folder)
    return [(str(path), read_file(path) if rows is None else rows) for path, rows in wanted]


def _layout(folder: Path) -> dict[str, list[Path]]:
    """The files of each split: by the configuration in a README, else by the first of the hub's rules that holds for
    any file (shards, names of folders, names of files), else all are ``train``: those on top, or where there are none,
    those below."""
    try:
        entries = list(islice(folder.rglob("*"), MOST_FILES + 1))
        files = [path.relative_to(folder) for path in sorted(entries) if path.is_file()]
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be searched for rows ({error}); name the file, or a folder of rows alone"
        ) from error
    if len(entries) > MOST_FILES:
        raise DataError(f"{folder}: holds more than {MOST_FILES} files; name the file, or a folder of rows alone")
    hidden = re.compile(r"(^|/)(\.|__)")
    there = [
        path
        for path in files
        if ending(path) in ENDINGS and path.name not in NO_ROWS and not hidden.search(path.as_posix())
    ]
    named = _configured(folder, there)
    if named is None:
        rules = (_shard_of, lambda path: _split_in(*path.parent.parts), lambda path: _split_in(path.name))
        splits = ([rule(path) for path in there] for rule in rules)
        top = [TRAIN if len(path.parts) == 1 else None for path in there]
        named = next(filter(any, (*splits, top)), [TRAIN] * len(there))
    found: dict[str | None, list[Path]] = {}
    for path, split in zip(there, named, strict=True):
        found.setdefault(split, []).append(folder / path)
    if unnamed := found.pop(None, None):
        names = ", ".join(str(path.relative_to(folder)) for path in unnamed[:SHOWN])
        warn_once(f"{folder}: {len(unnamed)} file(s) of no split are not read: {names}")
    return found


def _shard_of(path: Path) -> str | None:
    match = _SHARD.match(path.as_posix())
    return match[1] if match else None


def _split_in(*names: str) -> str | None:
    """The split that a word in one of the names says."""
    words = {word for name in names for word in re.split(r"[-._ 0-9]", name)}
    return next((split for split, keywords in KEYWORDS.items() if not words.isdisjoint(keywords)), None)


def _configured(folder: Path, there: list[Path]) -> list[str | None] | None:
    """The split of each file by the ``configs`` on top of the folder's README; None without them."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    header = re.match(r"---[ \t]*\n(.*?)\n---", text, re.DOTALL)
    try:
        known = yaml.safe_load(header[1]) if header else None
    except yaml.YAMLError as error:
        raise DataError(f"{readme}: its header is not valid YAML: {error}") from error
    configs = known.get("configs") if isinstance(known, dict) else None
    configs = [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []
    if not configs:
        return None
    usual = [config for config in configs if config.get("config_name") == "default" or config.get("default")] or configs
    if len(usual) > 1 or "data_files" not in usual[0]:
        names = ", ".join(str(config.get("config_name")) for config in usual)
        raise DataError(f"{readme}: its configs ({names}) are not one with data_files; give the files of one by name")
    given = usual[0]["data_files"]
    entries = [
        (entry.get("split", TRAIN), entry.get("path")) if isinstance(entry, dict) else (TRAIN, entry)
        for entry in (given if isinstance(given, list) else [given])
    ]
    patterns = [(split, one) for split, held in entries for one in (held if isinstance(held, list) else [held])]
    return [next((str(split) for split, pattern in patterns if _matches(path, pattern)), None) for path in there]


def _matches(path: Path, pattern: Any) -> bool:
    """Whether a path is what a pattern names, or lies in it."""
    return any(fnmatch(path.as_posix(), one) for one in (str(pattern), f"{str(pattern).rstrip('/')}/*"))


def _read_hub(name: str, split: str) -> list[Row]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return load_dataset(name, split=split).to_list()
    except (DatasetsError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"{name}@{split}: is neither a file here nor a split of a hub data set: {reason}") from error
