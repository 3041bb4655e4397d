"""One HTML file to look at: what was found, the table, the Pareto plot, curves, attacks and dialogues.

``Page`` is all that the file shows, whoever fills it: the demo (``report``) or a comparison. A section without data is
left out. The file needs nothing else: style, script (``html/``) and data are inside, and a policy in its head forbids
it the network. Texts reach the page as JSON and are set as text, so no answer of a model becomes markup. Leaves out
measuring, and the words of the findings (``findings``).
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Literal

from verl.utils.atomic import write_text
from verl.utils.errors import DataError
from verl.verdict.answers import answer_list

from . import plots
from .probes import attack_kind
from .render import ARROWS, ranks
from .results import Row
from .tables import Line, Table

SOURCES = Path(__file__).parent / "html"
SCRIPTS = ("base.js", "table.js", "charts.js", "dialogues.js", "page.js")
PANELS = (
    *plots.PANELS,
    plots.Panel(
        "Loss",
        "of each step",
        (
            plots.Curve("loss", "all rows", plots.OVERALL),
            plots.Curve("forget_loss", "forget", plots.FORGET),
            plots.Curve("retain_loss", "retain", plots.BOUNDARY),
            plots.Curve("actor/pg_loss", "policy", plots.PALETTE[4]),
        ),
    ),
)
POINTS = 240
"""Most points of a curve; more cannot be told apart on a screen."""
BUDGET = 3_500_000
"""Most characters of dialogues; beyond it, fewer probes are shown, at even distances."""
WORDS = {
    "refusal": "refuses",
    "mixed": "refuses and tells",
    "deflection": "evades",
    "empty": "says nothing",
    "degenerate": "is no language",
    "right": "answers",
    "wrong": "wrong",
}
"""What a response is, in the words of reports: its verdict, and of answers whether they hold the gold answer."""
FEATURED = {("forget", "fb"): 4, ("forget", "qa"): 4, ("forget", "aa"): 5, ("neighbor", "fb"): 2}
FEATURED |= {("neighbor", "qa"): 3, ("utility", "utility"): 2}
"""(part, column) to the number of probes that are shown first; twenty in all."""


@dataclass(frozen=True)
class Finding:
    """What a reader wants to know first, in a sentence or two and one figure."""

    title: str
    """"Forgotten", "Kept", "How it answers now", "Cost"."""
    figure: str
    """The number that stands for it, with its unit: "95 %". Empty where there is none."""
    text: str
    """Plain sentences with numbers. A line break begins a new paragraph."""


@dataclass(frozen=True)
class Dot:
    """One try of a method in the Pareto plot, in percent. One without forget or neighbor is listed, not drawn."""

    method: str
    settings: str = ""
    """What tells this try from the method's others: "lr=1e-5 epochs=3"."""
    forget: float | None = None
    neighbor: float | None = None
    recovered: float | None = None
    """The most that an attack brought back."""
    chosen: bool = True
    """Whether the table shows this try; the others are grey."""
    score: float | None = None
    """What the choice went by."""
    measured_on: Literal["probes", "validation"] = "probes"
    """Dots on validation rows are hollow: they compare with each other only."""
    source: Literal["ours", "published"] = "ours"
    forget_interval: tuple[float, float] | None = None
    neighbor_interval: tuple[float, float] | None = None
    more: Mapping[str, str] = field(default_factory=dict)
    """Further lines of the hover text: name to value."""


@dataclass(frozen=True)
class Response:
    text: str
    kind: str
    """A key of ``WORDS``."""


@dataclass(frozen=True)
class Probe:
    """One question, and what every method says to it."""

    part: str
    """forget, neighbor, utility."""
    column: str
    """fb, qa, aa, utility."""
    query: str
    answer: str
    responses: Mapping[str, Response]
    """Method to its response."""
    attack: str = ""
    """With column aa: the kind of attack."""
    target: str = ""
    """Needed where the page has several."""
    featured: bool = False
    """Whether it is shown before anything is chosen."""


@dataclass(frozen=True)
class Page:
    """Everything that the file shows. Each field but the title may be left empty: its section is then absent."""

    title: str
    lead: str = ""
    """A sentence below the title: model, data, date."""
    findings: Sequence[Finding] = ()
    table: Table | None = None
    """Its lines in their order; published ones stand apart. Its notes are printed below it."""
    hidden: Collection[str] = ()
    """Keys of the table's columns that are hidden at first."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Rows without numbers, to the message of their failure."""
    dots: Sequence[Dot] = ()
    trails: Mapping[str, Sequence[tuple[int, float, float]]] = field(default_factory=dict)
    """Lines in the Pareto plot: a label to (step, forget, neighbor), measured on validation prompts during training."""
    runs: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """A run's name to the rows of its metrics.jsonl, RS or ReBO."""
    attacks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Method to condition to the recall of forgotten answers under it, percent."""
    probes: Sequence[Probe] = ()
    beside: Sequence[str] = ()
    """Methods whose responses are shown at first; empty: the first three."""
    notes: Sequence[str] = ()
    """Where the page came from: command, revision, machine."""


def probes_of(rows: Mapping[str, Mapping[str, Sequence[Row]]], target: str = "") -> list[Probe]:
    """The probes of one target, with every method's responses.

    Args:
        rows: method to part to the rows of its part file (``results.read_part``).

    Raises:
        DataError: two methods were asked different probes.
    """
    first = next(iter(rows.values()))
    for name, parts in rows.items():
        for part in parts.keys() & first.keys():
            if [row["query"] for row in parts[part]] != [row["query"] for row in first[part]]:
                raise DataError(
                    f"{name}: its part {part} asks other probes than {next(iter(rows))}; measure both alike"
                )
    probes = [
        _probe(part, target, {name: parts[part][index] for name, parts in rows.items() if part in parts})
        for part, asked in first.items()
        for index in range(len(asked))
    ]
    return featured(probes)


def _probe(part: str, target: str, answers: Mapping[str, Row]) -> Probe:
    asked = next(iter(answers.values()))
    attack = attack_kind(asked["type"]).replace("_", " ") if asked["column"] == "aa" else ""
    responses = {name: Response(row["response"].strip(), kind_of(row)) for name, row in answers.items()}
    gold = " or ".join(answer_list(asked["answer"]))
    return Probe(part, asked["column"], asked["query"], gold, responses, attack, target)


def kind_of(row: Row) -> str:
    """The key of ``WORDS`` for a row of a part file."""
    if row["verdict"] != "answer":
        return row["verdict"]
    return "right" if row["containment"] else "wrong"


def featured(probes: Sequence[Probe]) -> list[Probe]:
    """The same, twenty of them marked to be shown first: of each kind some, at even distances, whatever the answers."""
    marked = set()
    for (part, column), count in FEATURED.items():
        places = [i for i, probe in enumerate(probes) if (probe.part, probe.column) == (part, column)]
        marked |= {places[i] for i in spread(len(places), count)}
    return [replace(probe, featured=i in marked) for i, probe in enumerate(probes)]


def spread(size: int, count: int) -> list[int]:
    """``count`` indices at even distances in range(size); all of them where there are not so many."""
    if count >= size:
        return list(range(size))
    return [(2 * i + 1) * size // (2 * count) for i in range(count)]


def write_page(page: Page, path: str | Path) -> None:
    """Write the page as one HTML file."""
    script = "\n".join((SOURCES / name).read_text(encoding="utf-8") for name in SCRIPTS)
    template = Template((SOURCES / "page.html").read_text(encoding="utf-8"))
    style = (SOURCES / "page.css").read_text(encoding="utf-8")
    text = template.substitute(title=escape(page.title), style=style, script=script, data=_in_script(document(page)))
    write_text(path, text.encode("utf-8", "replace").decode())


def _in_script(value: Any) -> str:
    """JSON in which nothing ends or opens an element."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def document(page: Page) -> dict[str, Any]:
    """What the page's script reads, JSON values only; numbers that are not finite are null."""
    return {
        "title": page.title,
        "lead": page.lead,
        "findings": [vars(finding) for finding in page.findings],
        "table": _table(page.table, page.hidden) if page.table else None,
        "failed": dict(page.failed),
        "dots": [_dot(dot) for dot in page.dots],
        "trails": [{"label": label, "points": list(points)} for label, points in page.trails.items()],
        "runs": [run for name, rows in page.runs.items() if (run := _run(name, rows))["panels"]],
        "attacks": _attacks(page.attacks),
        "dialogues": _dialogues(page.probes, page.beside) if page.probes else None,
        "notes": list(page.notes),
    }


def _table(table: Table, hidden: Collection[str]) -> dict[str, Any]:
    columns = [
        {
            "key": column.key,
            "group": column.group,
            "label": column.label,
            "arrow": ARROWS[column.better].strip(),
            "better": column.better,
            "digits": column.digits,
            "from": f"{column.part}.{column.metric}" if column.part else "",
            "hidden": column.key in hidden,
        }
        for column in table.columns
    ]
    groups = []
    for heading, lines in table.groups():
        places = ranks(table, table.columns, [line.cells for line in lines])
        groups.append({"heading": heading, "lines": [_line(line, i, places) for i, line in enumerate(lines)]})
    return {"columns": columns, "groups": groups, "notes": list(table.notes), "compares": table.compares}


def _line(line: Line, row: int, places: Mapping[tuple[int, str], str]) -> dict[str, Any]:
    cells = {
        key: {name: _finite(value) for name, value in vars(cell).items()} | {"rank": places.get((row, key), "")}
        for key, cell in line.cells.items()
    }
    return {"name": line.name, "source": line.source, "citation": line.citation, "model": line.model, "cells": cells}


def _dot(dot: Dot) -> dict[str, Any]:
    numbers = ("forget", "neighbor", "recovered", "score")
    return {**vars(dot), "more": dict(dot.more)} | {name: _finite(getattr(dot, name)) for name in numbers}


def _run(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    panels = []
    for panel in PANELS:
        curves: list[dict[str, Any]] = []
        for curve in panel.curves:
            points = _points(curve, rows)
            if points and all(points != other["points"] for other in curves):  # one of two that lie on each other
                color = plots.PALETTE.index(curve.color)
                curves.append({"label": curve.label, "color": color, "dotted": curve.dotted, "points": points})
        if curves:
            panels.append({"title": panel.title, "unit": panel.unit, "limits": panel.limits, "curves": curves})
    return {"name": name, "panels": panels}


def _points(curve: plots.Curve, rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """(step, value) of a metric; a step that a resumed run logged again counts as it was logged last."""
    logged = {row["step"]: _finite(row.get(curve.key)) for row in rows if row.get(curve.key) is not None}
    points = sorted((step, float(f"{curve.scale * value:.5g}")) for step, value in logged.items() if value is not None)
    return [points[i] for i in spread(len(points), POINTS)]


def _attacks(attacks: Mapping[str, Mapping[str, float]]) -> dict[str, Any] | None:
    conditions = list(dict.fromkeys(name for values in attacks.values() for name in values))
    rows = [
        {"name": method, "values": [_finite(values.get(name)) for name in conditions]}
        for method, values in attacks.items()
    ]
    return {"conditions": conditions, "rows": rows} if conditions else None


def _dialogues(probes: Sequence[Probe], beside: Sequence[str]) -> dict[str, Any]:
    """Probes and responses, every text once; the shares count all probes, also those that there is no room for."""
    methods = list(dict.fromkeys(name for probe in probes for name in probe.responses))
    kept = list(probes)
    while (size := len(_in_script(encoded := _encoded(kept, methods)))) > BUDGET:
        rest = [i for i, probe in enumerate(kept) if not probe.featured]
        if not rest:
            break
        chosen = {rest[i] for i in spread(len(rest), int(0.95 * len(rest) * BUDGET / size))}
        kept = [probe for i, probe in enumerate(kept) if probe.featured or i in chosen]
    parts = dict.fromkeys(probe.part for probe in probes)
    shares = {part: _shares([probe for probe in probes if probe.part == part], methods) for part in parts}
    shown = list(beside or methods[:3])
    return {"methods": methods, "beside": shown, "words": WORDS, "total": len(probes), "shares": shares, **encoded}


def _encoded(probes: Sequence[Probe], methods: Sequence[str]) -> dict[str, Any]:
    places: dict[str, int] = {}
    rows = []
    for probe in probes:
        answers = [probe.responses.get(name) for name in methods]
        rows.append(
            {
                **{name: getattr(probe, name) for name in ("part", "column", "attack", "target", "query", "answer")},
                "featured": probe.featured,
                "texts": [None if one is None else places.setdefault(one.text, len(places)) for one in answers],
                "kinds": [None if one is None else one.kind for one in answers],
            }
        )
    return {"texts": list(places), "probes": rows}


def _shares(probes: Sequence[Probe], methods: Iterable[str]) -> dict[str, dict[str, int]]:
    """Method to kind of response to the number of probes that got it."""
    return {
        name: dict(Counter(probe.responses[name].kind for probe in probes if name in probe.responses))
        for name in methods
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
