"""Tables as values: results.json documents in, a ``Table`` of numbers out. Pure: ``render`` writes, ``pareto`` draws.

A row is a method, measured on one target or several; its cells are the mean over targets with the standard deviation
over targets. Documents that were decoded differently, or measured on different data for the same target, are refused.
Left out: significance tests between rows (results.json has every interval, parts/*.jsonl every example).
"""

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from verl.utils.errors import DataError

from .layouts import DEFINITIONS, LAYOUTS, PAPERS, SUITES, TOKEN_SHARES, Column, Kind
from .results import check_comparable, fingerprint

Results = Mapping[str, Any]
LABELS = ("method", "corpus", "source")
"""Columns of a published CSV that hold no figures."""


@dataclass(frozen=True)
class Cell:
    """A mean over targets; ``deviation`` is the sample standard deviation over them, None for fewer than two.

    ``low`` and ``high`` bound a 95 % interval, where one is known.
    """

    mean: float
    deviation: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """One method. ``cells`` and ``per_target`` are keyed by column; a number that was not measured is absent."""

    name: str
    source: Literal["ours", "published"]
    cells: Mapping[str, Cell]
    per_target: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    citation: str = ""
    """Where a published line is printed."""
    model: str = ""
    """The model before unlearning, as far as it is known."""


@dataclass(frozen=True)
class Table:
    """What is printed: only columns in which some line has a number."""

    kind: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    compares: bool = True
    """Whether lines are rivals, so that the best of a column is marked."""

    def groups(self) -> list[tuple[str, list[Line]]]:
        """The lines that stand beside each other, ours first; published ones of other models under a heading."""
        beside: list[Line] = []
        others: dict[str, list[Line]] = {}
        models = {line.model for line in self.ours()}
        for line in self.lines:
            if line.source == "ours" or all(same_model(line.model, model) for model in models):
                beside.append(line)
            else:
                others.setdefault(f"Published for {line.model}, not the model of our rows", []).append(line)
        return [("", beside), *others.items()]

    def ours(self) -> list[Line]:
        return [line for line in self.lines if line.source == "ours"]

    def targets(self) -> list[str]:
        return list(self.ours()[0].per_target) if self.ours() else []


def build_table(
    kind: Kind,
    rows: Mapping[str, Mapping[str, Results]],
    *,
    published: Sequence[Line] = (),
    reference: str | None = None,
    more: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
) -> Table:
    """The table of a kind.

    Args:
        rows: method to target to results.json content, in the order to print.
        published: lines of ``read_published``, printed first.
        reference: with ``ablation``, the method the others are compared to.
        more: numbers that no results.json holds: method to target to column to value.

    Raises:
        DataError: rows over different targets, of another suite than the table's, decoded differently, measured on
            different data, or with a number that is not finite.
    """
    if not rows or not all(rows.values()):
        raise DataError("a table needs at least one row with at least one results.json")
    layout = LAYOUTS[kind]
    _check_suites(kind, rows)
    _check_targets(rows)
    _check_one_decoding(rows, {column.part for column in layout if column.part})
    lines = [_line(name, layout, documents, (more or {}).get(name, {})) for name, documents in rows.items()]
    if kind == "comparison":
        lines = [with_intervals(line, layout, rows[line.name]) for line in lines]
    if reference is not None:
        layout, lines = _with_differences(layout, lines, reference)
    lines = [*published, *lines]
    shown = tuple(column for column in layout if any(column.key in line.cells for line in lines))
    return Table(kind, shown, tuple(lines), _notes(kind, rows, published, reference))


def same_model(one: str, other: str) -> bool:
    """Whether two names, hub ids or folders, mean the same model: all that counts is the last part."""
    names = [Path(name).name.casefold().removeprefix("meta-") for name in (one, other)]
    return bool(names[0]) and names[0] == names[1]


def _model_of(documents: Mapping[str, Results]) -> str:
    """The models that a row comes from; empty where no results.json says."""
    return ", ".join(dict.fromkeys(document.get("base_model") or "" for document in documents.values()))


def _check_suites(kind: Kind, rows: Mapping[str, Mapping[str, Results]]) -> None:
    for name, documents in rows.items():
        for target, document in documents.items():
            if document["suite"] not in SUITES[kind]:
                raise DataError(
                    f"kind={kind}: {name} on {target} was measured with suite={document['suite']}; this table shows "
                    f"{' and '.join(SUITES[kind])}"
                )


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
    name: str,
    layout: Sequence[Column],
    documents: Mapping[str, Results],
    more: Mapping[str, Mapping[str, float]],
) -> Line:
    per_target = {
        target: {**_values(layout, document), **more.get(target, {})} for target, document in documents.items()
    }
    for target, values in per_target.items():
        if broken := [key for key, value in values.items() if not math.isfinite(value)]:
            raise DataError(f"{name} on {target}: {', '.join(broken)} is not finite; measure the row again")
    for column in layout:
        having = [target for target, values in per_target.items() if column.key in values]
        if column.part and having and len(having) < len(per_target):
            raise DataError(
                f"{name}: {column.part}.{column.metric} is measured on {', '.join(having)} only; "
                f"run the part {column.part} for the other targets"
            )
    return Line(name, "ours", _cells(per_target), per_target, model=_model_of(documents))


def with_intervals(line: Line, layout: Sequence[Column], documents: Mapping[str, Results]) -> Line:
    """The line with an interval in every cell whose numbers have one."""
    cells = dict(line.cells)
    for column in layout:
        if column.key in cells and (bounds := _interval(column, list(documents.values()))):
            cells[column.key] = replace(cells[column.key], low=bounds[0], high=bounds[1])
    return replace(line, cells=cells)


def _interval(column: Column, documents: Sequence[Results]) -> tuple[float, float] | None:
    """The 95 % interval of the mean over documents: their bootstrap intervals, put together as independent ones."""
    if not column.part:
        return None
    entries = [document["parts"][column.part]["metrics"][column.metric] for document in documents]
    if any(entry["low"] is None for entry in entries):
        return None
    mean = statistics.fmean(entry["value"] for entry in entries)
    down, up = (math.hypot(*(entry[side] - entry["value"] for entry in entries)) for side in ("low", "high"))
    return mean - down / len(entries), mean + up / len(entries)


def _values(layout: Sequence[Column], document: Results) -> dict[str, float]:
    metrics = {part: entry["metrics"] for part, entry in document["parts"].items()}
    values = {c.key: metrics[c.part][c.metric]["value"] for c in layout if c.metric in metrics.get(c.part, {})}
    shares = (document.get("training") or {}).get("percent", {})
    known = {key: shares.get(side) for key, side in TOKEN_SHARES.items() if key in {column.key for column in layout}}
    return values | {key: share for key, share in known.items() if share is not None}


def _cells(per_target: Mapping[str, Mapping[str, float]]) -> dict[str, Cell]:
    keys = dict.fromkeys(key for values in per_target.values() for key in values)
    shared = [key for key in keys if all(key in values for values in per_target.values())]
    columns = {key: [values[key] for values in per_target.values()] for key in shared}
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
        out.append(replace(line, cells=_cells(per_target), per_target=per_target))
    return (*layout, *extra), out


def read_published(path: str | Path, *, names: Sequence[str] | None = None, corpus: str | None = None) -> list[Line]:
    """Lines of a published CSV (``data/paper``): a ``method`` and a ``source`` column, and our column keys.

    RWKU's "All" weights probes, so in its file ``*_all`` fills All (probe); elsewhere it is the macro mean.

    Args:
        names: methods to keep, in this order; None keeps all.
        corpus: keeps the rows of this corpus where the file has such a column.

    Raises:
        DataError: the file is missing or cannot be read, or lacks a column or a method of ``names``.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; give published=[] to print no published rows")
    model = PAPERS.get(path.name, "an unknown model").format(corpus=(corpus or "").title())
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets put a mark in front
            rows = [row for row in csv.DictReader(file) if corpus is None or row.get("corpus", corpus) == corpus]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV in UTF-8: {error}") from error
    weighted_by_probe = path.name.startswith("rwku_")
    lines = {}
    for number, row in enumerate(rows):
        try:
            cells = {key: Cell(float(value)) for key, value in row.items() if key not in LABELS and value}
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: row {number}: holds what is no number: {error}") from error
        if missing := [key for key in ("method", "source") if not row.get(key)]:
            raise DataError(f"{path}: row {number}: has no {' and no '.join(missing)}; it has {', '.join(row)}")
        if weighted_by_probe:
            cells = {f"{key}_probe" if key.endswith("_all") else key: cell for key, cell in cells.items()}
        lines[row["method"]] = Line(row["method"], "published", cells, citation=row["source"], model=model)
    if unknown := set(names or ()) - lines.keys():
        raise DataError(f"published: {path.name} has no {', '.join(sorted(unknown))}; it has {', '.join(lines)}")
    return list(lines.values()) if names is None else [lines[name] for name in names]


def _notes(
    kind: Kind, rows: Mapping[str, Mapping[str, Results]], published: Sequence[Line], reference: str | None
) -> tuple[str, ...]:
    targets = list(next(iter(rows.values())))
    spread = f"mean ± standard deviation over {len(targets)} targets" if len(targets) > 1 else f"target {targets[0]}"
    notes = [DEFINITIONS[kind], f"Ours: {spread}, one evaluator and one decoding for every row."]
    notes += origin_notes(rows)
    if reference is not None:
        notes.append(f"Differences are to {reference}.")
    if published:
        papers = ", ".join(dict.fromkeys(line.citation for line in published))
        models = ", ".join(dict.fromkeys(line.model for line in published))
        notes.append(
            f"Published rows are figures printed by {papers} for {models}, with their own settings "
            "(data/paper/README.md); they were not measured by us and are not comparable digit by digit."
        )
    if kind != "comparison":  # whose choice is the comparison's own
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


def origin_notes(rows: Mapping[str, Mapping[str, Results]]) -> list[str]:
    """The model before unlearning, and the data: folder, source and the hash of the files that were measured."""
    named: dict[str, list[str]] = {}
    for name, documents in rows.items():
        named.setdefault(_model_of(documents) or "not recorded", []).append(name)
    words = [f"{model} ({', '.join(names)})" * (len(named) > 1) or model for model, names in named.items()]
    documents = next(iter(rows.values()))
    return [f"Model: {'; '.join(words)}.", f"Data: {'; '.join(map(_data_words, documents.values()))}."]


def _data_words(document: Results) -> str:
    source = document["data"].get("source") or {}
    origin = f", from {source['from']}" if "from" in source else ""
    revision = f" at {source['revision']}" if "revision" in source else ""
    files = fingerprint({part: entry["data"] for part, entry in document["parts"].items()})
    return f"{document['data']['path']}{origin}{revision}, sha256 {files[:12]}"


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
