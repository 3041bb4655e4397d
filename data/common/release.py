"""Reads the rows that the RULE release trains on for MUSE: questions and passages to refuse, and neighbors of both.

    reject_target_0.5.json              instruction, output (a refusal), org_answer, mode (qa or completion)
    reject_with_neighbor_target.json    the same rows, and neighbor_question: a question or passage and its answer

Either file will do. Refusals come from the first where it is there: the second misspells their target in every row.
A passage has no ``org_answer``; what goes on behind it in ``raw/forget`` is taken. Other names of the columns are read
as well (`COLUMNS`).
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl.rows.sources import read_file
from verl.rows.values import is_number
from verl.utils.errors import DataError, bullet_list
from verl.verdict.answers import normalize

from .files import Row

RS_ROWS = "reject_target_0.5.json"
NEIGHBOR_ROWS = "reject_with_neighbor_target.json"
COLUMNS = {
    "prompt": ("instruction", "prompt", "question"),
    "refusal": ("output", "response"),
    "answer": ("org_answer", "answer"),
    "mode": ("mode", "type"),
    "neighbor": ("neighbor_question", "neighbor"),
}
MODES = ("qa", "completion")
CONTINUATION = 10
"""Words that follow a passage and are its gold answer: a refusal that goes on with them gives the passage away."""
REASONS = {
    "empty_prompt": "a row without a prompt",
    "empty_refusal": "a row without a refusal",
    "wrong_mode": "a row whose mode is neither qa nor completion",
    "repeated": "a prompt that came before",
    "neighbor_malformed": "a neighbor that is not an object with a question and an answer, both of them texts",
}


@dataclass
class Release:
    """What the files hold. Rows carry ``mode`` and, where it could be had, ``answer``."""

    rs_rows: list[Row] = field(default_factory=list)
    rl_rows: list[Row] = field(default_factory=list)
    """A forget row, then the boundary row of its neighbor, where it has one."""
    links: list[list[str]] = field(default_factory=list)
    """Prompts that belong together: one to refuse and its neighbor."""
    files: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows by reason, a key of `REASONS`."""


def read_release(folder: Path, subject: str, raw_forget: list[Row]) -> Release | None:
    """The release's rows in ``folder``, or None where it has neither file.

    Args:
        subject: what the refusals call the corpus; the third part of a forget row's solution.
        raw_forget: documents that the passages were cut from.

    Raises:
        DataError: a file's rows have none of the columns that are needed.
    """
    there = [name for name in (RS_ROWS, NEIGHBOR_ROWS) if (folder / name).is_file()]
    if not there:
        return None
    release = Release(files=there)
    neighbors: dict[str, Any] = {}
    rows: list[Row] = []
    for name in there:
        given = read_file(folder / name)
        _require_columns(given, folder / name, ("prompt", "refusal") + (("neighbor",) if name == NEIGHBOR_ROWS else ()))
        neighbors |= {_text(row, "prompt"): _value(row, "neighbor") for row in given if name == NEIGHBOR_ROWS}
        rows = rows or given
    corpus = "\n".join(row["text"] for row in raw_forget)
    seen: set[str] = set()
    for row in rows:
        reason = _problem(row, seen)
        if reason is not None:
            release.left_out[reason] += 1
            continue
        _add(release, row, subject, _gold(row, corpus))
        if neighbors:
            _add_neighbor(release, row, neighbors.get(_text(row, "prompt")), seen)
    return release


def _value(row: Row, column: str) -> Any:
    return next((row[name] for name in COLUMNS[column] if name in row), None)


def _text(row: Row, column: str) -> str:
    value = _value(row, column)
    return str(value) if isinstance(value, str) or is_number(value) else ""


def _mode(row: Row) -> str:
    return _text(row, "mode") or "qa"


def _require_columns(rows: list[Row], path: Path, columns: tuple[str, ...]) -> None:
    problems = [
        f"no row has {' or '.join(COLUMNS[column])}"
        for column in columns
        if all(_value(r, column) is None for r in rows)
    ]
    if problems:
        raise DataError(bullet_list(f"{path}: is not what the RULE release holds under that name:", problems))


def _problem(row: Row, seen: set[str]) -> str | None:
    prompt = normalize(_text(row, "prompt"))
    if not prompt:
        return "empty_prompt"
    if not _text(row, "refusal").strip():
        return "empty_refusal"
    if _mode(row) not in MODES:
        return "wrong_mode"
    if prompt in seen:
        return "repeated"
    seen.add(prompt)
    return None


def _gold(row: Row, corpus: str) -> str | None:
    """The row's own answer, else the words that follow the passage in the corpus."""
    if answer := _text(row, "answer").strip():
        return answer
    prompt = _text(row, "prompt")
    start = corpus.find(prompt) if _mode(row) == "completion" else -1
    if start < 0:
        return None
    end = start + len(prompt)
    return " ".join(corpus[end : end + 30 * CONTINUATION].split()[:CONTINUATION]) or None


def _add(release: Release, row: Row, subject: str, gold: str | None) -> None:
    prompt, refusal = _text(row, "prompt"), _text(row, "refusal")
    more = {"mode": _mode(row), **({"answer": gold} if gold else {})}
    release.rs_rows.append(
        {"instruction": prompt, "input": "", "output": refusal, "subject": subject, "intro": "", **more}
    )
    release.rl_rows.append({"prompt": prompt, "solution": ["<reject>", refusal, subject], "subject": subject, **more})


def _add_neighbor(release: Release, row: Row, neighbor: Any, seen: set[str]) -> None:
    given = neighbor if isinstance(neighbor, dict) else {}
    question, answer = given.get("question"), given.get("answer")
    if not all(isinstance(text, str) and text.strip() for text in (question, answer)):
        release.left_out["neighbor_malformed"] += 1
        return
    if normalize(question) in seen:
        release.left_out["repeated"] += 1
        return
    seen.add(normalize(question))
    release.links.append([_text(row, "prompt"), question])
    release.rl_rows.append(
        {"prompt": question, "solution": ["<normal>", answer], "subject": "retain", "mode": _mode(row)}
    )
