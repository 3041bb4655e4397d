"""Checks the schema of rows that ``verl.rows.sources`` read, and writes folders that carry a manifest.

The caller asks for conflicts, files that are there with other content, before it writes. The manifest is written last,
so a folder with a manifest is whole.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from verl.rows.files import Row, read_json
from verl.rows.values import shown
from verl.utils.atomic import write_json

Role = Literal["probe", "train", "validation", "corpus"]
MANIFEST = "manifest.json"
SHOWN = 3
"""Bad rows named per file."""


@dataclass(frozen=True)
class FileSpec:
    """One file of a benchmark: what it is for, and what its rows must hold."""

    role: Role
    keys: dict[str, type | tuple[type, ...]]
    """Required keys and their types; other keys are let through."""
    required: bool = True
    rows: int | None = None
    """Rows in the published file, where they are the same for every target."""
    problem: Callable[[Row], str | None] | None = None
    """What else a row must fulfil, once its keys are there; returns what is wrong with it."""
    may_be_empty: frozenset[str] = frozenset()
    """Keys whose text may be blank. Of a corpus any may."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def dump_rows(rows: list[Row]) -> bytes:
    """JSON as RWKU writes it (four spaces, ASCII escapes), so that its own files come out byte for byte."""
    return json.dumps(rows, indent=4).encode()


def schema_problems(rows: list[Row], spec: FileSpec, path: str | Path) -> list[str]:
    """What is wrong with the rows of one file, one line a problem, the first few rows by number."""
    if not rows:
        return [f"{path}: is empty; fetch the file again"]
    problems = []
    for number, row in enumerate(rows):
        reasons = [_key_problem(row, key, kind) or _blank_problem(row, key, spec) for key, kind in spec.keys.items()]
        if "solution" in spec.keys and not any(reasons):
            reasons.append(solution_problem(row["solution"]))
        if spec.problem is not None and not any(reasons):
            reasons.append(spec.problem(row))
        problems += [f"{path}: row {number}: {reason}" for reason in reasons if reason]
    more = len(problems) - SHOWN
    return problems[:SHOWN] + ([f"{path}: and {more} more problems of this kind"] if more > 0 else [])


def _key_problem(row: Row, key: str, kind: type | tuple[type, ...]) -> str | None:
    if key not in row:
        return f"has no key {key!r} (its keys: {', '.join(row)})"
    if not isinstance(row[key], kind) or (isinstance(row[key], bool) and kind is not bool):
        names = kind.__name__ if isinstance(kind, type) else " or ".join(each.__name__ for each in kind)
        return f"{key}={shown(row[key])} must be {names}"
    return None


def _blank_problem(row: Row, key: str, spec: FileSpec) -> str | None:
    blank = isinstance(row[key], str) and not row[key].strip()
    if not blank or spec.role == "corpus" or key in spec.may_be_empty:
        return None
    return f"{key}={row[key]!r} is empty; fill it in or leave the row out"


def solution_problem(solution: list[Any]) -> str | None:
    """Why a ``solution`` is neither ["<reject>", refusal, target] nor ["<normal>", answer, more answers...]."""
    if not all(isinstance(part, str) and part.strip() for part in solution):
        return f"solution={shown(solution)} must hold texts only, none of them empty"
    if solution[:1] == ["<reject>"] and len(solution) == 3:
        return None
    if solution[:1] == ["<normal>"] and len(solution) >= 2:
        return None
    return f'solution={shown(solution)} must be ["<reject>", refusal, target] or ["<normal>", answer]'


@dataclass
class OutputFile:
    """A file about to be written. ``unchanged`` says that its bytes are the source's."""

    name: str
    data: bytes
    role: Role
    rows: int
    unchanged: bool = True


@dataclass
class OutputFolder:
    """Files of one folder and the record that describes them."""

    path: Path
    record: str = MANIFEST
    """Name of the JSON file that lists them; each of the programs that write into a folder has one of its own."""
    files: list[OutputFile] = field(default_factory=list)

    def add(self, name: str, data: bytes, role: Role, rows: int, unchanged: bool = True) -> None:
        self.files.append(OutputFile(name, data, role, rows, unchanged))

    def conflicts(self) -> list[str]:
        """Files that are there with other content than they would be given, or that would have to go."""
        there = [file for file in self.files if (self.path / file.name).is_file()]
        differing = [file.name for file in there if sha256((self.path / file.name).read_bytes()) != sha256(file.data)]
        return [
            *(
                f"{self.path / name}: is there with other content; say overwrite=true to replace it"
                for name in differing
            ),
            *(f"{self.path / name}: would be removed; say overwrite=true to do so" for name in self._stale()),
        ]

    def _stale(self) -> list[str]:
        """Files that an earlier preparation wrote and this one does not: beside the new ones they would mislead."""
        names = {file.name for file in self.files}
        return [
            name for name in _recorded(self.path / self.record) if name not in names and (self.path / name).is_file()
        ]

    def write(self, manifest: dict[str, Any]) -> None:
        """Write every file, then the record: ``manifest`` with each file's role, rows and SHA-256 added."""
        for name in self._stale():
            (self.path / name).unlink()
        for file in self.files:
            target = self.path / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{target.name}.tmp")
            beside.write_bytes(file.data)
            beside.replace(target)
        entries = {
            file.name: {"role": file.role, "rows": file.rows, "sha256": sha256(file.data), "unchanged": file.unchanged}
            for file in self.files
        }
        write_json(self.path / self.record, {**manifest, "files": entries})


def _recorded(record: Path) -> dict[str, dict[str, Any]]:
    """The files that a record lists, if it is there."""
    held = read_json(record) if record.is_file() else None
    return held.get("files", {}) if isinstance(held, dict) else {}


def checksum_problems(folder: Path, names: Iterable[str]) -> list[str]:
    """Files of ``names`` that differ from what the folder's own manifest says, where it has one."""
    recorded = _recorded(folder / MANIFEST)
    return [
        f"{folder / name}: its SHA-256 is not the one in {MANIFEST}; fetch or prepare the folder again"
        for name in names
        if name in recorded and sha256((folder / name).read_bytes()) != recorded[name]["sha256"]
    ]
