"""Tables and the Pareto plot from results.json files, beside the figures that the papers print.

    python3 scripts/make_table.py kind=rule out=results/tables/rule \
        rows.Original='results/rwku/*/base' rows.RS='results/rwku/*/rs' rows.ReBO='results/rwku/*/rebo'

Writes OUT/table.md, table.csv, table.tex, report.html, pareto.png and tradeoff.png. A row takes folders of results,
files or patterns, one per target; the target's name is that of the data folder it was measured on. Rows in a YAML file
(config=FILE) keep their order, as they do on the command line. In the trade-off figure, rows named METHOD@anything are
points of one method. Left out: running evaluations (``python3 -m verl.eval.main``).
"""

import csv
import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from verl.eval import pareto, render, tables
from verl.eval.page import Dot, Page, write_page
from verl.eval.results import counting, read_results
from verl.settings.cli import run_cli
from verl.settings.path_types import PathText
from verl.utils.atomic import write_text
from verl.utils.errors import DataError

logger = logging.getLogger("make_table")

ROOT = Path(__file__).resolve().parents[1]
TITLES = {
    "rule": "RULE's main table",
    "rwku": "RWKU's table",
    "muse": "MUSE's table",
    "ablation": "Ablations of RULE",
}
PAPERS = {
    "rule": ("rule_rwku_table1.csv",),
    "rwku": ("rwku_llama3_8b_instruct.csv",),
    "muse": ("muse_llama2_7b.csv", "open_unlearning_muse.csv"),
}
AREAS = "rule_tradeoff_area.csv"


@dataclass(frozen=True)
class TableConfig:
    """What to print."""

    kind: Literal["rule", "rwku", "muse", "ablation"]
    """rule: RULE's main table. rwku: RWKU's. muse: MUSE's. ablation: RULE's measures, with differences to a row."""
    rows: dict[str, list[PathText]]
    """Method to its results: folders, results.json files or patterns such as results/rwku/*/rebo, one per target."""
    out: PathText
    """Folder to write into."""
    published: list[str] | None = None
    """Methods of the papers to print, by the names in their files. null: all of them, where the rows were measured on
    the papers' benchmark; none for Atlas and for ablations. Rows of another model than ours stand under a heading."""
    corpus: Literal["news", "books"] | None = None
    """With kind=muse: the corpus whose published rows are printed; without it there are none."""
    reference: str | None = None
    """With kind=ablation: the row that the others are compared to; null is the first."""
    paper: PathText = str(ROOT / "data" / "paper")
    """Folder of the published figures."""

    def problems(self) -> list[str]:
        found = []
        if not self.rows:
            found.append("rows: is empty; give for example rows.ReBO='results/rwku/*/rebo'")
        if self.reference is not None and self.kind != "ablation":
            found.append(f"reference={self.reference}: is for kind=ablation only; leave it out")
        if self.reference is not None and self.reference not in self.rows:
            found.append(f"reference={self.reference}: is none of the rows {', '.join(self.rows)}")
        if self.published and self.kind == "muse" and self.corpus is None:
            found.append("published: needs corpus=news or corpus=books, since MUSE prints both")
        if self.corpus is not None and (self.kind != "muse" or self.published == []):
            found.append(
                f"corpus={self.corpus}: chooses published rows of kind=muse, and none are printed; leave it out"
            )
        if self.published is not None and self.kind == "ablation":
            found.append("published: no paper prints a table of kind=ablation; leave it out")
        if self.paper != TableConfig.paper and (self.kind == "ablation" or self.published == []):
            found.append(f"paper={self.paper}: no published rows are printed; leave it out")
        return found


def make_table(config: TableConfig) -> tables.Table:
    """Build the table and write it.

    Raises:
        DataError: a pattern matches nothing, or the rows cannot share a table.
    """
    rows = {name: read_row(name, patterns) for name, patterns in config.rows.items()}
    reference = (config.reference or next(iter(config.rows))) if config.kind == "ablation" else None
    table = tables.build_table(
        config.kind,
        rows,
        published=_published(config, rows),
        reference=reference,
    )
    points, areas = pareto.table_points(table), pareto.tradeoffs(table)
    table = replace(table, notes=(*table.notes, *_areas(points), *_tradeoffs(config, table, areas)))
    out, title = Path(config.out), TITLES[config.kind]
    picture = "\n![Pareto plot](pareto.png)\n![Trade-off](tradeoff.png)\n" if points else ""
    write_text(out / "table.md", f"# {title}\n\n{render.to_markdown(table)}{picture}")
    write_text(out / "table.csv", render.to_csv(table))
    write_text(out / "table.tex", render.to_latex(table))
    dots = [Dot(name, "", *point, source=source) for source, named in points.items() for name, point in named.items()]
    write_page(Page(title, table=table, dots=dots), out / "report.html")
    if points:
        models = dict.fromkeys(line.model for line in table.lines if line.source == "published")
        labels = {"published": f"published, {', '.join(models)}"} if models else {}
        pareto.plot(points, out / "pareto.png", title=f"{title}: forgetting against retention", labels=labels)
        pareto.plot_tradeoffs(areas, out / "tradeoff.png", title=f"{title}: trade-off at retention floors")
    return table


def read_row(name: str, patterns: list[str]) -> dict[str, dict[str, Any]]:
    """Target to results.json content, sorted by target the way people count (2 before 10)."""
    documents: dict[str, dict[str, Any]] = {}
    for pattern in patterns:
        base = Path(Path(pattern).anchor or ".")
        paths = sorted(base.glob(str(Path(pattern).relative_to(base))))
        if not paths:
            raise DataError(f"rows.{name}={pattern}: matches no file or folder; run verl.eval.main first")
        for path in paths:
            document = read_results(path)
            target = Path(document["data"]["path"]).name
            if target in documents:
                raise DataError(f"rows.{name}: {path} is a second result for target {target}; name each target once")
            documents[target] = document
    return dict(sorted(documents.items(), key=lambda item: counting(item[0])))


def _published(config: TableConfig, rows: dict[str, dict[str, dict[str, Any]]]) -> list[tables.Line]:
    suites = {document["suite"] for documents in rows.values() for document in documents.values()}
    comparable = config.kind != "ablation" and "atlas" not in suites
    if config.kind == "muse" and config.corpus is None:
        comparable = False
    if not (config.published if config.published is not None else comparable) or config.kind == "ablation":
        return []
    paths = [Path(config.paper) / name for name in PAPERS[config.kind]]
    lines = [line for path in paths for line in tables.read_published(path, corpus=config.corpus)]
    if config.published is None:
        return lines
    named = {line.name: line for line in lines}
    if unknown := set(config.published) - named.keys():
        files = " and ".join(path.name for path in paths)
        raise DataError(f"published: {files} has no {', '.join(sorted(unknown))}; it has {', '.join(named)}")
    return [named[name] for name in config.published]


def _areas(points: dict[str, dict[str, pareto.Point]]) -> list[str]:
    return [
        f"Pareto area ({source}): {pareto.area(named):.1f} % of the forget-retain plane; "
        f"front: {', '.join(pareto.front(named))}."
        for source, named in points.items()
    ]


def _tradeoffs(config: TableConfig, table: tables.Table, areas: dict[str, list[float]]) -> list[str]:
    """Our areas, and those of RULE's figure where its rows are printed."""
    if not areas:
        return []
    floors = ", ".join(map(str, pareto.FLOORS[1:]))
    words = "; ".join(f"{name} {' '.join(f'{value:.3f}' for value in values)}" for name, values in areas.items())
    notes = [f"Trade-off area without a retention floor and at {floors}: {words}."]
    printed_areas = Path(config.paper) / AREAS
    if config.kind == "rule" and printed_areas.is_file() and any(line.source == "published" for line in table.lines):
        with printed_areas.open(encoding="utf-8", newline="") as file:
            printed = [f"{row['method']} {row['area']}" for row in csv.DictReader(file) if row["floor"] == "none"]
        notes.append(
            f"RULE's trade-off figure, without a floor: {', '.join(printed)}. Its points are not published, so these "
            "areas compare with each other only."
        )
    return notes


def report(config: TableConfig) -> None:
    """Make the table's files, and log the table."""
    logger.info("%s", render.to_markdown(make_table(config)))
    logger.info("written to %s", config.out)


def main(argv: list[str]) -> int:
    return run_cli(TableConfig, report, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
