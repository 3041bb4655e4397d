"""Writes a ``Table`` as Markdown, CSV or LaTeX. Pure: text out."""

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import groupby

from .layouts import Column
from .tables import Cell, Line, Table

MISSING = "–"
ARROWS = {"lower": " ↓", "higher": " ↑", "zero": " → 0", "": ""}
LATEX_ARROWS = {"lower": r" $\downarrow$", "higher": r" $\uparrow$", "zero": r" $\to 0$", "": ""}
LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "→": r"$\to$",
}


def to_markdown(table: Table) -> str:
    """The table over all targets, its notes, and where there are several targets a table for each."""
    header = ["Method", *(f"{column.group} {column.label}{ARROWS[column.better]}" for column in table.columns)]
    body = [[_name(line), *_row(table.columns, line.cells)] for line in table.lines]
    blocks = [markdown_grid(header, body), "\n".join(f"- {note}" for note in table.notes)]
    if len(table.targets()) > 1:
        for target in table.targets():
            columns = [c for c in table.columns if any(c.key in line.per_target[target] for line in table.ours())]
            labels = ["Method", *(f"{c.group} {c.label}{ARROWS[c.better]}" for c in columns)]
            rows = [[line.name, *_row(columns, _as_cells(line, target))] for line in table.ours()]
            blocks.append(f"### {target}\n\n{markdown_grid(labels, rows)}")
    return "\n\n".join(blocks) + "\n"


def to_csv(table: Table) -> str:
    """One line a (method, target) and, for methods of ours, their mean and standard deviation over targets.

    Numbers are not rounded; a number that was not measured is empty.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    keys = [column.key for column in table.columns]
    writer.writerow(["source", "method", "target", *keys])
    for line in table.lines:
        for target, values in _csv_rows(line):
            writer.writerow([line.source, line.name, target, *(values.get(key, "") for key in keys)])
    return out.getvalue()


def _csv_rows(line: Line) -> Iterator[tuple[str, dict[str, float]]]:
    for target, values in line.per_target.items():
        yield target, dict(values)
    yield "mean", {key: cell.mean for key, cell in line.cells.items()}
    if len(line.per_target) > 1:
        yield "std", {key: cell.deviation for key, cell in line.cells.items() if cell.deviation is not None}


def to_latex(table: Table) -> str:
    """A booktabs tabular with grouped headers, published rows above a rule, notes as comments."""
    groups = [(name, len(list(members))) for name, members in groupby(table.columns, key=lambda column: column.group)]
    grouped = " & ".join(["", *(f"\\multicolumn{{{count}}}{{c}}{{{_latex(name)}}}" for name, count in groups)])
    labels = ["Method", *(_latex(column.label) + LATEX_ARROWS[column.better] for column in table.columns)]
    lines = [f"% {note}" for note in table.notes]
    lines += [f"\\begin{{tabular}}{{l{'c' * len(table.columns)}}}", r"\toprule", grouped + r" \\", _rules(groups)]
    lines += [" & ".join(labels) + r" \\", r"\midrule"]
    for number, (_, members) in enumerate(groupby(table.lines, key=lambda line: line.source)):
        lines += [r"\midrule"] * (number > 0)
        lines += [" & ".join(map(_latex, [_name(line), *_row(table.columns, line.cells)])) + r" \\" for line in members]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _rules(groups: Sequence[tuple[str, int]]) -> str:
    rules, start = [], 2
    for _, count in groups:
        rules.append(f"\\cmidrule(lr){{{start}-{start + count - 1}}}")
        start += count
    return " ".join(rules)


def _name(line: Line) -> str:
    return f"{line.name} (published)" if line.source == "published" else line.name


def _row(columns: Sequence[Column], cells: dict[str, Cell]) -> list[str]:
    return [_number(cells.get(column.key), column.digits) for column in columns]


def _number(cell: Cell | None, digits: int) -> str:
    if cell is None:
        return MISSING
    mean = f"{cell.mean:.{digits}f}"
    return mean if cell.deviation is None else f"{mean} ± {cell.deviation:.{digits}f}"


def _as_cells(line: Line, target: str) -> dict[str, Cell]:
    return {key: Cell(value) for key, value in line.per_target[target].items()}


def markdown_grid(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (header, *body)]
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (escaped[0], rule, *escaped[1:]))


def _latex(text: str) -> str:
    return "".join(LATEX_SPECIAL.get(character, character) for character in text)
