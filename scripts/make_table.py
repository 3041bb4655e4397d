"""Tables and the Pareto plot from results.json files, beside the figures that the papers print.

    python3 scripts/make_table.py kind=rule out=results/tables/rule \
        rows.Original='results/rwku/*/base' rows.RS='results/rwku/*/rs' rows.ReBO='results/rwku/*/rebo'

Writes OUT/table.md, table.csv, table.tex and pareto.png. A row takes folders of results, files or patterns, one per
target; the target's name is that of the data folder it was measured on. Rows in a YAML file (config=FILE) keep their
order, as they do on the command line. Left out: running evaluations (``python3 -m verl.eval.main``).
"""

import logging
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from verl.eval import pareto, render, tables
from verl.eval.results import read_results
from verl.utils.atomic import write_text
from verl.utils.cli import run_cli
from verl.utils.errors import DataError

logger = logging.getLogger("make_table")

ROOT = Path(__file__).resolve().parents[1]
TITLES = {
    "rule": "RULE's main table",
    "rwku": "RWKU's table",
    "muse": "MUSE's table",
    "ablation": "Ablations of RULE",
}
PAPERS = {"rule": "rule_rwku_table1.csv", "rwku": "rwku_llama3_8b_instruct.csv", "muse": "muse_llama2_7b.csv"}


@dataclass(frozen=True)
class TableConfig:
    """What to print."""

    kind: Literal["rule", "rwku", "muse", "ablation"]
    """rule: RULE's main table. rwku: RWKU's. muse: MUSE's. ablation: RULE's measures, with differences to a row."""
    rows: dict[str, list[str]]
    """Method to its results: folders, results.json files or patterns such as results/rwku/*/rebo, one per target."""
    out: str
    """Folder to write into."""
    published: list[str] | None = None
    """Methods of the paper to print, by the names in its file. null: all of them, where the rows were measured on the
    paper's benchmark; none for Atlas and for ablations."""
    corpus: Literal["news", "books"] | None = None
    """MUSE's corpus; without it no published rows can be chosen."""
    reference: str | None = None
    """With kind=ablation: the row that the others are compared to; null is the first."""
    token_shares: dict[str, list[float]] = field(default_factory=dict)
    """Method to [forget, boundary] percent of the full corpora's tokens (data/synthesize_boundary.py reports them)."""
    paper: str = str(ROOT / "data" / "paper")
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
        if unknown := self.token_shares.keys() - self.rows.keys():
            found.append(f"token_shares: {', '.join(sorted(unknown))} is none of the rows {', '.join(self.rows)}")
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
        token_shares=config.token_shares,
        reference=reference,
    )
    points = pareto.table_points(table)
    table = replace(table, notes=(*table.notes, *_areas(points)))
    out, title = Path(config.out), TITLES[config.kind]
    picture = "\n![Pareto plot](pareto.png)\n" if points else ""
    write_text(out / "table.md", f"# {title}\n\n{render.to_markdown(table)}{picture}")
    write_text(out / "table.csv", render.to_csv(table))
    write_text(out / "table.tex", render.to_latex(table))
    if points:
        pareto.plot(points, out / "pareto.png", title=f"{title}: forgetting against retention")
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
    return dict(sorted(documents.items(), key=lambda item: _counting(item[0])))


def _counting(name: str) -> tuple[int, str]:
    number = name.split("_")[0]
    return (int(number), name) if number.isdigit() else (sys.maxsize, name)


def _published(config: TableConfig, rows: dict[str, dict[str, dict[str, Any]]]) -> list[tables.Line]:
    suites = {document["suite"] for documents in rows.values() for document in documents.values()}
    comparable = config.kind != "ablation" and "atlas" not in suites
    if config.kind == "muse" and config.corpus is None:
        comparable = False
    if not (config.published if config.published is not None else comparable) or config.kind == "ablation":
        return []
    path = Path(config.paper) / PAPERS[config.kind]
    return tables.read_published(path, names=config.published, corpus=config.corpus if config.kind == "muse" else None)


def _areas(points: dict[str, dict[str, pareto.Point]]) -> list[str]:
    return [
        f"Pareto area ({source}): {pareto.area(named):.1f} % of the forget-retain plane; "
        f"front: {', '.join(pareto.front(named))}."
        for source, named in points.items()
    ]


def report(config: TableConfig) -> None:
    """Make the table's files, and log the table."""
    logger.info("%s", render.to_markdown(make_table(config)))
    logger.info("written to %s", config.out)


def main(argv: list[str]) -> int:
    return run_cli(TableConfig, report, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
