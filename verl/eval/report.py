"""The demo's report: base, RS and ReBO measured by one evaluator with one decoding, and shown side by side.

``python3 -m verl.eval.report base=MODEL rs=MODEL rebo=RUN data=TARGET out=DIR`` measures what is not measured yet (in
``out/eval/<name>``) and writes report.html, summary.json, results.json, table.md, dialogues.md, pareto.png and
curves.png. Tables as the papers have them are made by ``scripts/make_table.py``.
"""

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl.settings.cli import TIMED, run_cli
from verl.settings.path_types import PathText
from verl.utils.atomic import write_json, write_text
from verl.utils.logger.logger import METRICS_FILE, read_metrics
from verl.utils.provenance import git_revision

from . import plots
from .config import EvalConfig
from .findings import Training, as_markdown, demo_findings, training_of
from .layouts import Column
from .main import evaluate_all
from .page import WORDS, Dot, Page, Probe, probes_of, write_page
from .render import ARROWS, markdown_grid
from .results import Row, check_comparable, fingerprint, metric, part_path, read_part
from .selection import chosen_checkpoint
from .tables import Cell, Line, Table

logger = logging.getLogger(__name__)

NAMES = {"base": "Base", "rs": "RS", "rebo": "ReBO"}
PARTS = ("forget", "neighbor", "utility")
RECALLS = (
    Column("forget_fb", "Forget", "FB", "forget", "fb", "lower"),
    Column("forget_qa", "Forget", "QA", "forget", "qa", "lower"),
    Column("forget_aa", "Forget", "AA", "forget", "aa", "lower"),
    Column("forget_all", "Forget", "All", "forget", "all_macro", "lower"),
    Column("neighbor_fb", "Neighbor", "FB", "neighbor", "fb", "higher"),
    Column("neighbor_qa", "Neighbor", "QA", "neighbor", "qa", "higher"),
    Column("neighbor_all", "Neighbor", "All", "neighbor", "all_macro", "higher"),
    Column("utility", "Utility", "Utility", "utility", "utility", "higher"),
)
RATES = (
    Column("forget_refused", "Forget", "refused", "forget", "all_probe/refusal_rate", "higher"),
    Column("forget_answered", "Forget", "answered", "forget", "all_probe/containment", "lower"),
    Column("neighbor_refused", "Neighbor", "refused", "neighbor", "all_probe/refusal_rate", "lower"),
    Column("neighbor_answered", "Neighbor", "answered", "neighbor", "all_probe/containment", "higher"),
    Column("forget_mixed", "Forget", "mixed", "forget", "all_probe/mixed_rate", "lower"),
    Column("neighbor_evaded", "Neighbor", "evaded", "neighbor", "all_probe/deflection_rate", "lower"),
    Column("forget_probe", "Forget", "All (probe)", "forget", "all_probe", "lower"),
    Column("neighbor_probe", "Neighbor", "All (probe)", "neighbor", "all_probe", "higher"),
)
COSTS = (
    Column("seconds", "Training", "s", better="lower", digits=0),
    Column("peak_gib", "Training", "GiB", better="lower"),
)
COLUMN_NAMES = {"fb": "fill in the blank", "qa": "question", "aa": "adversarial", "utility": "general knowledge"}
EPOCH = re.compile(r"epoch_(\d+)")
HIDDEN = ("forget_mixed", "neighbor_evaded", "forget_probe", "neighbor_probe")
"""Columns of report.html that its reader has to ask for."""


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
    rows = {
        NAMES[name]: {part: read_part(part_path(folder, part))[1] for part in PARTS} for name, folder in folders.items()
    }
    check_comparable(measured, PARTS)
    summary = {name: summarise_row(results) for name, results in measured.items()}
    runs = _histories(config)
    page = demo_page(
        {NAMES[name]: results for name, results in measured.items()}, probes_of(rows), runs, _subject(rows)
    )
    write_json(out / "results.json", {"git_revision": git_revision(), **measured})
    write_text(out / "table.md", f"{as_markdown(page.findings)}\n\n{table(measured)}")
    write_text(out / "dialogues.md", dialogues(page.probes))
    write_page(page, out / "report.html")
    _draw(measured, runs[NAMES["rebo"]], out)
    write_json(out / "summary.json", summary)
    return summary


def _histories(config: ReportConfig) -> dict[str, list[dict[str, float]]]:
    """Rows of metrics.jsonl by name: of RS where its model lies in its run, up to the epoch that is measured."""
    runs = {}
    folder = Path(config.rs)
    match = EPOCH.fullmatch(folder.name)
    if match and (folder.parent / METRICS_FILE).is_file():
        rows = read_metrics(folder.parent)
        runs[NAMES["rs"]] = [row for row in rows if row.get("epoch", 0) <= int(match[1])]
    return {**runs, NAMES["rebo"]: read_metrics(config.rebo)}


def _subject(rows: Mapping[str, Mapping[str, Sequence[Row]]]) -> str:
    """Whom the forget probes are about, in their own words."""
    return next(iter(rows.values()))["forget"][0].get("subject", "the target")


def demo_page(
    measured: Mapping[str, Mapping[str, Any]],
    probes: Sequence[Probe],
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    subject: str,
) -> Page:
    """What report.html shows of the demo.

    Args:
        measured: name of a row to its results.json content: before unlearning, after RS, after ReBO.
        probes: with the responses of the same rows.
        runs: name of a stage to the rows of its metrics.jsonl.
    """
    trainings = {name: cost for name, rows in runs.items() if (cost := training_of(rows))}
    points = [_point(name, results) for name, results in measured.items()]
    dots = [
        Dot(
            point.name,
            forget=point.forget,
            neighbor=point.neighbor,
            forget_interval=point.forget_interval,
            neighbor_interval=point.neighbor_interval,
        )
        for point in points
    ]
    last = list(measured)[-1]
    trajectory = trajectory_points(runs[last])
    return Page(
        f"Forgetting {subject}",
        f"A model before unlearning, after Rejection Steering (RS), and after online RL ({last}), on held-out probes.",
        findings=demo_findings(measured, probes, trainings, subject=subject),
        table=_page_table(measured, trainings),
        hidden=HIDDEN,
        dots=dots,
        trails={f"{last} training, on validation prompts": trajectory} if trajectory else {},
        runs=runs,
        attacks={name: _attacks(results) for name, results in measured.items()},
        probes=probes,
        notes=_origin(measured),
    )


def _page_table(measured: Mapping[str, Mapping[str, Any]], trainings: Mapping[str, Training]) -> Table:
    groups = list(dict.fromkeys(column.group for column in (*RECALLS, *COSTS)))
    columns = sorted((*RECALLS, *RATES), key=lambda column: groups.index(column.group))
    lines = []
    for name, results in measured.items():
        cells = {column.key: _cell_of(metric(results, column.part, column.metric)) for column in columns}
        cost = trainings.get(name)
        known = {"seconds": cost.seconds, "peak_gib": cost.peak_gib} if cost else {}
        cells |= {key: Cell(value) for key, value in known.items() if value is not None}
        lines.append(Line(name, "ours", cells, model=results["model"]["path"]))
    costs = [column for column in COSTS if any(column.key in line.cells for line in lines)]
    notes = (
        "FB, QA, AA: ROUGE-L recall in percent of fill-in-the-blank, question and adversarial probes, with bootstrap "
        "95 % intervals. All: the mean of the columns.",
        "Refused, answered: share of the probes that the detector calls refused, or whose response holds the answer.",
        "Training: time of the steps and memory of the rank that took most; ReBO's time comes on top of RS's.",
    )
    return Table("demo", (*columns, *costs), tuple(lines), notes)


def _cell_of(entry: Mapping[str, Any]) -> Cell:
    return Cell(entry["value"], low=entry["low"], high=entry["high"])


def _attacks(results: Mapping[str, Any]) -> dict[str, float]:
    """Recall of the forget probes: asked plainly, and under each kind of attack that there is."""
    metrics = results["parts"]["forget"]["metrics"]
    kinds = {COLUMN_NAMES[name]: name for name in ("fb", "qa")}
    kinds |= {name.removeprefix("aa/").replace("_", " "): name for name in metrics if _is_attack(name)}
    return {kind: metrics[name]["value"] for kind, name in kinds.items()}


def _is_attack(name: str) -> bool:
    return name.startswith("aa/") and not name.endswith(("_rate", "/containment"))


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
    lines = [
        "ROUGE-L recall, percent, with bootstrap 95 % intervals. All is the mean of the columns.",
        "",
        _grid(measured, RECALLS, _with_interval),
        "",
        "Share of probes, percent: refused (the detector fires), answered (the gold answer is in the response);",
        "and the mean recall over probes.",
        "",
        _grid(measured, RATES, lambda entry: f"{entry['value']:.1f}"),
        "",
        *_origin({NAMES[name]: results for name, results in measured.items()}, "- "),
    ]
    return "\n".join(lines) + "\n"


def _origin(measured: Mapping[str, Mapping[str, Any]], bullet: str = "") -> list[str]:
    """What the numbers were measured with, and the weights of every row behind ``bullet``."""
    first = next(iter(measured.values()))
    counts = ", ".join(f"{first['parts'][part]['examples']} {part}" for part in PARTS)
    decoding = first["parts"]["forget"]["decoding"]
    files = fingerprint([first["parts"][part]["data"] for part in PARTS])
    return [
        f"Probes: {counts}. One decoding for every row: greedy, {decoding['max_new_tokens']} new tokens, "
        f"{decoding['prompt_style']} prompts, {first['engine']['dtype']}. Code: {first['git_revision']}.",
        f"Data: `{first['data']['path']}`, sha256 {files[:12]}.",
        *[""] * bool(bullet),
        *(f"{bullet}{name}: {_weights(results)}" for name, results in measured.items()),
    ]


def _weights(results: Mapping[str, Any]) -> str:
    model = results["model"]
    return f"`{model['path']}`, weights {model['weights_sha256'][:12]}{_step(results['selection'])}"


def _step(selection: Mapping[str, Any] | None) -> str:
    if selection is None:
        return ""
    return f", step {selection['step']}" + ", chosen on validation" * selection["chosen_on_validation"]


def _grid(measured: Mapping[str, Any], columns: Sequence[Column], show: Any) -> str:
    body = [
        [NAMES[name], *(show(metric(results, column.part, column.metric)) for column in columns)]
        for name, results in measured.items()
    ]
    return markdown_grid(["", *map(_heading, columns)], body)


def _heading(column: Column) -> str:
    label = f" {column.label}" * (column.label != column.group)
    return f"{column.group.lower()}{label}{ARROWS[column.better]}"


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


def dialogues(probes: Sequence[Probe]) -> str:
    """dialogues.md: the featured probes, answered by all models side by side."""
    shown = [probe for probe in probes if probe.featured]
    lines = [
        "# Twenty probes, three models",
        "",
        "Taken at even distances from the probe files, not chosen by their answers.",
    ]
    for number, probe in enumerate(shown, 1):
        lines += _dialogue(number, probe)
    return "\n".join(lines) + "\n"


def _dialogue(number: int, probe: Probe) -> list[str]:
    attack = f" ({probe.attack})" if probe.attack else ""
    return [
        "",
        f"### {number}. {probe.part}: {COLUMN_NAMES[probe.column]}{attack}",
        "",
        *(f"> {line}" for line in probe.query.split("\n")),
        "",
        f"Answer: **{probe.answer}**",
        "",
        "| | response | |",
        "| --- | --- | --- |",
        *(f"| {name} | {_cell(said.text)} | {WORDS[said.kind]} |" for name, said in probe.responses.items()),
    ]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|") or "*(nothing)*"


def report(config: ReportConfig) -> None:
    """Make the report, and log its table."""
    make_report(config)
    logger.info("report written to %s\n%s", config.out, (Path(config.out) / "table.md").read_text(encoding="utf-8"))


def main(argv: list[str]) -> int:
    return run_cli(ReportConfig, report, argv, TIMED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
