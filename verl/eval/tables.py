"""Tables as values: results.json documents in, a ``Table`` of numbers out. Pure: ``render`` writes, ``pareto`` draws.

A row is a method, measured on one target or several; its cells are the mean over targets with the standard deviation
over targets. Documents that were decoded differently, or measured on different data for the same target, are refused.
Left out: significance tests between rows (results.json has every interval, parts/*.jsonl every example).
"""

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from verl.utils.errors import DataError

from .layouts import DEFINITIONS, LAYOUTS, Column, Kind
from .results import check_comparable

Results = Mapping[str, Any]
LABELS = ("method", "corpus", "source")
"""Columns of a published CSV that hold no figures."""


@dataclass(frozen=True)
class Cell:
    """A mean over targets; ``deviation`` is the sample standard deviation over them, None for fewer than two."""

    mean: float
    deviation: float | None = None


@dataclass(frozen=True)
class Line:
    """One method. ``cells`` and ``per_target`` are keyed by column; a number that was not measured is absent."""

    name: str
    source: Literal["ours", "published"]
    cells: Mapping[str, Cell]
    per_target: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    citation: str = ""
    """Where a published line is printed."""


@dataclass(frozen=True)
class Table:
    """What is printed: only columns in which some line has a number."""

    kind: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    def ours(self) -> list[Line]:
        return [line for line in self.lines if line.source == "ours"]

    def targets(self) -> list[str]:
        return list(self.ours()[0].per_target) if self.ours() else []


def build_table(
    kind: Kind,
    rows: Mapping[str, Mapping[str, Results]],
    *,
    published: Sequence[Line] = (),
    token_shares: Mapping[str, Sequence[float]] | None = None,
    reference: str | None = None,
) -> Table:
    """The table of a kind.

    Args:
        rows: method to target to results.json content, in the order to print.
        published: lines of ``read_published``, printed first.
        token_shares: method to (forget, boundary) percent of the full corpora's tokens, where known.
        reference: with ``ablation``, the method the others are compared to.

    Raises:
        DataError: rows over different targets, decoded differently, or measured on different data.
    """
    if not rows or not all(rows.values()):
        raise DataError("a table needs at least one row with at least one results.json")
    layout = LAYOUTS[kind]
    _check_targets(rows)
    _check_one_decoding(rows, {column.part for column in layout if column.part})
    lines = [_line(name, layout, documents, (token_shares or {}).get(name)) for name, documents in rows.items()]
    if reference is not None:
        layout, lines = _with_differences(layout, lines, reference)
    lines = [*published, *lines]
    shown = tuple(column for column in layout if any(column.key in line.cells for line in lines))
    return Table(kind, shown, tuple(lines), _notes(kind, rows, published, reference))


def _check_targets(rows: Mapping[str, Mapping[str, Results]]) -> None:
    first, *others = rows
    for name in others:
        if differing := set(rows[first]) ^ set(rows[name]):
            raise DataError(
                f"{first} and {name} do not cover the same targets ({', '.join(sorted(differing))} only on one side); "
                "evaluate the missing ones or leave them out of both rows"
            )


def _check_one_decoding(rows: Mapping[str, Mapping[str, Results]], parts: set[str]) -> None:
    """Same data for each target, and one decoding and arithmetic over all rows and targets, part by part."""
    for target in next(iter(rows.values())):
        for part in sorted(parts):
            holders = {name: docs[target] for name, docs in rows.items() if part in docs[target]["parts"]}
            if len(holders) > 1:
                check_comparable(holders, [part])
    settings: dict[str, tuple[str, Any]] = {}
    for name, documents in rows.items():
        for target, document in documents.items():
            facts = {"engine": {key: document["engine"][key] for key in ("dtype", "max_model_len")}}
            facts |= {part: document["parts"][part]["decoding"] for part in parts if part in document["parts"]}
            for what, value in facts.items():
                where, before = settings.setdefault(what, (f"{name} on {target}", value))
                if value != before:
                    raise DataError(
                        f"{where} and {name} on {target} cannot share a table: {what} was measured with {before} there "
                        f"and {value} here; measure all rows with the same settings"
                    )


def _line(
    name: str, layout: Sequence[Column], documents: Mapping[str, Results], shares: Sequence[float] | None
) -> Line:
    per_target = {target: _values(layout, document) for target, document in documents.items()}
    for column in layout:
        having = [target for target, values in per_target.items() if column.key in values]
        if having and len(having) < len(per_target):
            raise DataError(
                f"{name}: {column.part}.{column.metric} is measured on {', '.join(having)} only; "
                f"run the part {column.part} for the other targets"
            )
    cells = _cells(per_target)
    if shares is not None:
        if len(shares) != 2:
            raise DataError(f"token_shares.{name}={list(shares)}: must be two percentages, [forget, boundary]")
        cells |= {"forget_tokens_pct": Cell(shares[0]), "boundary_tokens_pct": Cell(shares[1])}
    return Line(name, "ours", cells, per_target)


def _values(layout: Sequence[Column], document: Results) -> dict[str, float]:
    metrics = {part: entry["metrics"] for part, entry in document["parts"].items()}
    return {c.key: metrics[c.part][c.metric]["value"] for c in layout if c.metric in metrics.get(c.part, {})}


def _cells(per_target: Mapping[str, Mapping[str, float]]) -> dict[str, Cell]:
    keys = dict.fromkeys(key for values in per_target.values() for key in values)
    columns = {key: [values[key] for values in per_target.values()] for key in keys}
    return {
        key: Cell(statistics.fmean(column), statistics.stdev(column) if len(column) > 1 else None)
        for key, column in columns.items()
    }


def _with_differences(
    layout: Sequence[Column], lines: Sequence[Line], reference: str
) -> tuple[tuple[Column, ...], list[Line]]:
    """Every macro "All" and the utility once more, as the difference to ``reference`` on the same target."""
    base = next((line for line in lines if line.name == reference), None)
    if base is None:
        raise DataError(f"reference={reference}: is none of the rows {', '.join(line.name for line in lines)}")
    compared = [column for column in layout if column.metric in ("all_macro", "utility")]
    extra = tuple(Column(f"{c.key}_difference", f"vs {reference}", f"{c.group} {c.label}", better="") for c in compared)
    out = []
    for line in lines:
        per_target = {
            target: {
                **values,
                **{
                    f"{c.key}_difference": values[c.key] - base.per_target[target][c.key]
                    for c in compared
                    if c.key in values and c.key in base.per_target[target]
                },
            }
            for target, values in line.per_target.items()
        }
        out.append(Line(line.name, line.source, {**line.cells, **_cells(per_target)}, per_target))
    return (*layout, *extra), out


def read_published(path: str | Path, *, names: Sequence[str] | None = None, corpus: str | None = None) -> list[Line]:
    """Lines of a published CSV (``data/paper``): a ``method`` and a ``source`` column, and our column keys.

    RWKU's "All" weights probes, so in its file ``*_all`` fills All (probe); elsewhere it is the macro mean.

    Args:
        names: methods to keep, in this order; None keeps all.
        corpus: keeps the rows of this corpus where the file has such a column.

    Raises:
        DataError: the file is missing or lacks a method of ``names``.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; give published=[] to print no published rows")
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if corpus is None or row.get("corpus", corpus) == corpus]
    weighted_by_probe = path.name.startswith("rwku_")
    lines = {}
    for row in rows:
        cells = {key: Cell(float(value)) for key, value in row.items() if key not in LABELS and value}
        if weighted_by_probe:
            cells = {f"{key}_probe" if key.endswith("_all") else key: cell for key, cell in cells.items()}
        lines[row["method"]] = Line(row["method"], "published", cells, citation=row["source"])
    if unknown := set(names or ()) - lines.keys():
        raise DataError(f"published: {path.name} has no {', '.join(sorted(unknown))}; it has {', '.join(lines)}")
    return list(lines.values()) if names is None else [lines[name] for name in names]


def _notes(
    kind: Kind, rows: Mapping[str, Mapping[str, Results]], published: Sequence[Line], reference: str | None
) -> tuple[str, ...]:
    targets = list(next(iter(rows.values())))
    spread = f"mean ± standard deviation over {len(targets)} targets" if len(targets) > 1 else f"target {targets[0]}"
    notes = [DEFINITIONS[kind], f"Ours: {spread}, one evaluator and one decoding for every row."]
    if reference is not None:
        notes.append(f"Differences are to {reference}.")
    if published:
        papers = ", ".join(dict.fromkeys(line.citation for line in published))
        notes.append(
            f"Published rows are figures printed by {papers}, with its own models and settings (data/paper/README.md); "
            "they were not measured by us and are not comparable digit by digit."
        )
    notes += [_step_note(name, documents) for name, documents in rows.items()]
    judges = {
        f"{entry['decoding']['judge']} (prompts {entry['decoding']['judge_prompts_sha256'][:12]})"
        for documents in rows.values()
        for document in documents.values()
        for part, entry in document["parts"].items()
        if part == "naturalness"
    }
    if kind == "rule" and judges:
        notes.append(f"Naturalness was judged by {', '.join(sorted(judges))}.")
    return tuple(notes)


def _step_note(name: str, documents: Mapping[str, Results]) -> str:
    """Which step a row shows, and whether it was validation that chose it."""
    words = {target: _step_words(document.get("selection")) for target, document in documents.items()}
    if len(set(words.values())) == 1:
        return f"{name}: {next(iter(words.values()))}."
    return f"{name}: " + "; ".join(f"{target}: {text}" for target, text in words.items()) + "."


def _step_words(choice: Mapping[str, Any] | None) -> str:
    if choice is None:
        return "no training step of ReBO, so nothing was chosen"
    if choice["best_step"] is None:
        return f"step {choice['step']}; no validation was run"
    if choice["chosen_on_validation"]:
        return f"step {choice['step']}, chosen on the validation split"
    return f"step {choice['step']}, NOT the one that validation chose (step {choice['best_step']})"
