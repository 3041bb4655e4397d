"""The demo's report: base, RS and ReBO measured by one evaluator with one decoding, and shown side by side.

``python3 -m verl.eval.report base=MODEL rs=MODEL rebo=RUN data=TARGET out=DIR`` measures what is not measured yet (in
``out/eval/<name>``) and writes summary.json, results.json, table.md, dialogues.md, pareto.png and curves.png. Tables as
the papers have them are made by ``scripts/make_table.py``.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl.settings.cli import TIMED, run_cli
from verl.settings.path_types import PathText
from verl.utils.atomic import write_json, write_text
from verl.utils.logger.logger import read_metrics
from verl.utils.provenance import git_revision
from verl.verdict.answers import answer_list

from . import plots
from .config import EvalConfig
from .main import evaluate_all
from .render import markdown_grid
from .results import Row, check_comparable, fingerprint, metric, part_path, read_part
from .selection import chosen_checkpoint

logger = logging.getLogger(__name__)

NAMES = {"base": "Base", "rs": "RS", "rebo": "ReBO"}
PARTS = ("forget", "neighbor", "utility")
DIALOGUES = {("forget", "fb"): 4, ("forget", "qa"): 4, ("forget", "aa"): 5, ("neighbor", "fb"): 2}
DIALOGUES |= {("neighbor", "qa"): 3, ("utility", "utility"): 2}
"""(part, column) to the number of probes shown; twenty in all."""
VERDICT_WORDS = {
    "refusal": "refuses",
    "mixed": "refuses and tells",
    "deflection": "evades",
    "empty": "says nothing",
    "degenerate": "is no language",
}
COLUMN_NAMES = {"fb": "fill in the blank", "qa": "question", "aa": "adversarial", "utility": "general knowledge"}


@dataclass(frozen=True)
class ReportConfig:
    """Three checkpoints of one architecture, the target that they are measured on, and where the report goes."""

    base: PathText
    """Model before unlearning: a Hugging Face folder or hub id."""
    rs: PathText
    """Rejection Steering model, likewise."""
    rebo: PathText
    """Folder of a ReBO run: its best checkpoint by validation is measured, and its metrics.jsonl is drawn."""
    data: PathText
    """Folder of the target."""
    out: PathText
    """Folder of the report."""
    measured: PathText | None = None
    """Folder for what is measured of each checkpoint; null: ``<out>/eval``."""


def make_report(config: ReportConfig) -> dict[str, Any]:
    """Measure the three checkpoints, write all files of the report, and return the content of summary.json.

    Raises:
        ConfigError, DataError: a checkpoint, the run or the target's data cannot be used.
    """
    out, run = Path(config.out), Path(config.rebo)
    models = {"base": config.base, "rs": config.rs, "rebo": str(chosen_checkpoint(run))}
    folders = {name: Path(config.measured or out / "eval") / name for name in models}
    configs = [EvalConfig(model, "atlas", config.data, str(folders[name])) for name, model in models.items()]
    measured = dict(zip(models, evaluate_all(configs), strict=True))
    rows = {name: {part: read_part(part_path(folder, part))[1] for part in PARTS} for name, folder in folders.items()}
    check_comparable(measured, PARTS)
    summary = {name: summarise_row(results) for name, results in measured.items()}
    write_json(out / "results.json", {"git_revision": git_revision(), **measured})
    write_text(out / "table.md", table(measured))
    write_text(out / "dialogues.md", dialogues(rows))
    _draw(measured, read_metrics(run), out)
    write_json(out / "summary.json", summary)
    return summary


def _draw(measured: Mapping[str, Any], history: Sequence[Mapping[str, Any]], out: Path) -> None:
    plots.pareto(
        [_point(NAMES[name], results) for name, results in measured.items()],
        out / "pareto.png",
        title="Forgetting the target, keeping its neighbors",
        trajectory=trajectory_points(history),
    )
    missing = plots.curves(history, out / "curves.png", title="ReBO training")
    if missing:
        logger.warning("the run has no %s: these curves are left out of curves.png", ", ".join(missing))


def summarise_row(results: Mapping[str, Any]) -> dict[str, Any]:
    """One checkpoint's entry of summary.json, percent. ``all`` is the mean of the columns, rates are over probes."""

    def values(part: str, columns: Sequence[str]) -> dict[str, float]:
        shown = {column: column for column in columns}
        shown |= {"all": "all_macro"} | {rate: f"all_probe/{rate}" for rate in ("refusal_rate", "containment")}
        return {key: metric(results, part, name)["value"] for key, name in shown.items()}

    return {
        "forget": values("forget", ("fb", "qa", "aa")),
        "neighbor": values("neighbor", ("fb", "qa")),
        "utility": metric(results, "utility", "utility")["value"],
    }


def table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """table.md: recall by column with 95 % intervals, rates, and what the numbers were measured with."""
    columns = {
        "forget FB ↓": ("forget", "fb"),
        "forget QA ↓": ("forget", "qa"),
        "forget AA ↓": ("forget", "aa"),
        "forget All ↓": ("forget", "all_macro"),
        "neighbor FB ↑": ("neighbor", "fb"),
        "neighbor QA ↑": ("neighbor", "qa"),
        "neighbor All ↑": ("neighbor", "all_macro"),
        "utility ↑": ("utility", "utility"),
    }
    rates = {
        "forget refused ↑": ("forget", "all_probe/refusal_rate"),
        "forget answered ↓": ("forget", "all_probe/containment"),
        "neighbor refused ↓": ("neighbor", "all_probe/refusal_rate"),
        "neighbor answered ↑": ("neighbor", "all_probe/containment"),
        "forget mixed ↓": ("forget", "all_probe/mixed_rate"),
        "neighbor evaded ↓": ("neighbor", "all_probe/deflection_rate"),
        "forget All (probe) ↓": ("forget", "all_probe"),
        "neighbor All (probe) ↑": ("neighbor", "all_probe"),
    }
    first = next(iter(measured.values()))
    counts = ", ".join(f"{first['parts'][part]['examples']} {part}" for part in PARTS)
    decoding = first["parts"]["forget"]["decoding"]
    files = fingerprint([first["parts"][part]["data"] for part in PARTS])
    lines = [
        "ROUGE-L recall, percent, with bootstrap 95 % intervals. All is the mean of the columns.",
        "",
        _grid(measured, columns, _with_interval),
        "",
        "Share of probes, percent: refused (the detector fires), answered (the gold answer is in the response);",
        "and the mean recall over probes.",
        "",
        _grid(measured, rates, lambda entry: f"{entry['value']:.1f}"),
        "",
        f"Probes: {counts}. One decoding for every row: greedy, {decoding['max_new_tokens']} new tokens, "
        f"{decoding['prompt_style']} prompts, {first['engine']['dtype']}. Code: {first['git_revision']}.",
        f"Data: `{first['data']['path']}`, sha256 {files[:12]}.",
        "",
        *(
            f"- {NAMES[n]}: `{r['model']['path']}`, weights {r['model']['weights_sha256'][:12]}{_step(r['selection'])}"
            for n, r in measured.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _step(selection: Mapping[str, Any] | None) -> str:
    if selection is None:
        return ""
    return f", step {selection['step']}" + ", chosen on validation" * selection["chosen_on_validation"]


def _grid(measured: Mapping[str, Any], columns: Mapping[str, tuple[str, str]], show: Any) -> str:
    body = [
        [NAMES[name], *(show(metric(results, *column)) for column in columns.values())]
        for name, results in measured.items()
    ]
    return markdown_grid(["", *columns], body)


def _with_interval(entry: Mapping[str, Any]) -> str:
    return f"{entry['value']:.1f} ({entry['low']:.0f}–{entry['high']:.0f})"


def _point(name: str, results: Mapping[str, Any]) -> plots.Point:
    forget, neighbor = metric(results, "forget", "all_macro"), metric(results, "neighbor", "all_macro")
    intervals = ((entry["low"], entry["high"]) for entry in (forget, neighbor))
    return plots.Point(name, forget["value"], neighbor["value"], *intervals)


def trajectory_points(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, float, float]]:
    """(step, forget, neighbor) in percent of a trainer's validation rows: the share of forget prompts that are not
    refused, and the recall of the answers to boundary prompts."""
    forget, boundary = "val/reward/forget/refusal", "val/reward/boundary/recall"
    return [
        (row["step"], 100 * (1 - row[forget]), 100 * row[boundary]) for row in rows if forget in row and boundary in row
    ]


def dialogues(rows: Mapping[str, Mapping[str, list[Row]]]) -> str:
    """dialogues.md: twenty probes, spread evenly over each kind's file order, answered by all three models."""
    lines = [
        "# Twenty probes, three models",
        "",
        "Taken at even distances from the probe files, not chosen by their answers.",
    ]
    number = 0
    for (part, column), count in DIALOGUES.items():
        asked = {name: [row for row in parts[part] if row["column"] == column] for name, parts in rows.items()}
        for index in spread(len(asked["base"]), count):
            number += 1
            lines += _dialogue(number, part, {name: probes[index] for name, probes in asked.items()})
    return "\n".join(lines) + "\n"


def spread(size: int, count: int) -> list[int]:
    """``count`` indices at even distances in range(size); all of them where there are not so many."""
    if count >= size:
        return list(range(size))
    return [(2 * i + 1) * size // (2 * count) for i in range(count)]


def _dialogue(number: int, part: str, answers: Mapping[str, Row]) -> list[str]:
    probe = answers["base"]
    kind = COLUMN_NAMES[probe["column"]]
    attack = f" ({probe['type']})" if probe["column"] == "aa" else ""
    return [
        "",
        f"### {number}. {part}: {kind}{attack}",
        "",
        *(f"> {line}" for line in probe["query"].split("\n")),
        "",
        f"Answer: **{' or '.join(answer_list(probe['answer']))}**",
        "",
        "| | response | |",
        "| --- | --- | --- |",
        *(f"| {NAMES[name]} | {_cell(row['response'])} | {_verdict(row)} |" for name, row in answers.items()),
    ]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|") or "*(nothing)*"


def _verdict(row: Row) -> str:
    if row["verdict"] == "answer":
        return "answers" if row["containment"] else "wrong"
    return VERDICT_WORDS[row["verdict"]]


def report(config: ReportConfig) -> None:
    """Make the report, and log its table."""
    make_report(config)
    logger.info("report written to %s\n%s", config.out, (Path(config.out) / "table.md").read_text(encoding="utf-8"))


def main(argv: list[str]) -> int:
    return run_cli(ReportConfig, report, argv, TIMED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
