"""Writes a ``Table`` as Markdown, CSV or LaTeX. Pure: text out."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Literal

from .layouts import Column
from .tables import Cell, Line, Table

MISSING = "–"
MARKS = "Bold: the best of its column; underlined: the second-best of three or more."
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
    """The table over all targets, published rows of other models, notes, and with several targets a table for each."""
    blocks = []
    for heading, lines in table.groups():
        grid = _grid(table, {_name(line): line.cells for line in lines})
        blocks.append(f"**{heading}**\n\n{grid}" if heading else grid)
    blocks.append("\n".join(f"- {note}" for note in [*table.notes, *[MARKS] * table.compares]))
    if len(table.targets()) > 1:
        for target in table.targets():
            cells = {line.name: _as_cells(line, target) for line in table.ours()}
            blocks.append(f"### {target}\n\n{_grid(table, cells)}")
    return "\n\n".join(blocks) + "\n"


def _grid(table: Table, rows: Mapping[str, Mapping[str, Cell]]) -> str:
    columns = [column for column in table.columns if any(column.key in cells for cells in rows.values())]
    header = ["Method", *(f"{column.group} {column.label}{ARROWS[column.better]}" for column in columns)]
    styles = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
    places = ranks(table, columns, list(rows.values()))
    body = [
        [name, *(styles[places.get((i, c.key), "")].format(_number(cells.get(c.key), c.digits)) for c in columns)]
        for i, (name, cells) in enumerate(rows.items())
    ]
    return markdown_grid(header, body)


def ranks(
    table: Table, columns: Sequence[Column], rows: Sequence[Mapping[str, Cell]]
) -> dict[tuple[int, str], Literal["best", "second"]]:
    """(row, column) of the best and, among three or more rows, second-best numbers; what prints alike ranks alike."""
    keys = {"lower": lambda value: value, "higher": lambda value: -value, "zero": abs}
    places: dict[tuple[int, str], Literal["best", "second"]] = {}
    for column in columns if table.compares else ():
        rank = keys.get(column.better)
        having = {
            i: round(cells[column.key].mean, column.digits) for i, cells in enumerate(rows) if column.key in cells
        }
        if rank is None or len(having) < 2:
            continue
        order = sorted({rank(value) for value in having.values()})
        for i, value in having.items():
            if rank(value) == order[0]:
                places[i, column.key] = "best"
            elif rank(value) == order[1] and len(having) > 2:
                places[i, column.key] = "second"
    return places


def to_csv(table: Table) -> str:
    """One line a (method, target) and, for methods of ours, their mean and standard deviation over targets.

    Numbers are not rounded; a number that was not measured is empty.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    keys = [column.key for column in table.columns]
    writer.writerow(["source", "model", "method", "target", *keys])
    for line in table.lines:
        for target, values in _csv_rows(line):
            writer.writerow([line.source, line.model, line.name, target, *(values.get(key, "") for key in keys)])
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
    for heading, group in table.groups():
        if heading:
            lines += [
                r"\midrule",
                f"\\multicolumn{{{len(table.columns) + 1}}}{{l}}{{\\emph{{{_latex(heading)}}}}} \\\\",
            ]
        places = ranks(table, table.columns, [line.cells for line in group])
        for i, line in enumerate(group):
            ruled = i > 0 and line.source != group[i - 1].source
            lines += [r"\midrule"] * ruled + [" & ".join(_latex_row(table, line, i, places)) + r" \\"]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _rules(groups: Sequence[tuple[str, int]]) -> str:
    rules, start = [], 2
    for _, count in groups:
        rules.append(f"\\cmidrule(lr){{{start}-{start + count - 1}}}")
        start += count
    return " ".join(rules)


def _name(line: Line) -> str:
    return f"{line.name} (published)" if line.source == "published" else line.name


def _latex_row(table: Table, line: Line, row: int, places: Mapping[tuple[int, str], str]) -> list[str]:
    styles = {"best": "\\textbf{{{}}}", "second": "\\underline{{{}}}", "": "{}"}
    numbers = {column.key: _latex(_number(line.cells.get(column.key), column.digits)) for column in table.columns}
    return [_latex(_name(line)), *(styles[places.get((row, key), "")].format(text) for key, text in numbers.items())]


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
