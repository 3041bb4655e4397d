"""report.html of a comparison: what its table, tries, runs and answers say, as one page (``verl.eval.page``).

The dialogues are of the first seed, and of the chosen tries; curves are of the chosen runs of the first target.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from verl.eval.layouts import LAYOUTS
from verl.eval.page import Dot, Finding, Page, featured, probes_of, write_page
from verl.eval.results import part_path, read_part
from verl.eval.tables import Line, Table
from verl.utils.logger import read_metrics

from .config import CompareConfig
from .jobs import Job
from .plan import is_original, shown
from .stages import Outcome, attack_record, measured_folder

SHOWN = (
    *("forget_all", "forget_refusal", "forget_degenerate", "retain_all", "retain_refusal", "utility"),
    *("back_most", "back_relearn", "back_system_prompt", "answers_es", "seconds"),
)
"""Columns that are seen at first."""
KINDS = {"plain": "Not attacked"} | {
    column.key.removeprefix("back_"): column.label for column in LAYOUTS["comparison"] if column.key.startswith("back_")
}
"""Kind of attack to its name in the heat map."""
PARTS = ("forget", "neighbor", "utility")


def write_report(
    config: CompareConfig,
    targets: Sequence[str],
    outcome: Outcome,
    table: Table,
    names: Mapping[str, str],
    failed: Mapping[str, str],
) -> None:
    """Write ``report.html``.

    Args:
        names: row to what the table calls it, of the rows that are whole.
        failed: what the table calls a row to why it is not there.
    """
    chosen = {
        (name, target): next(
            job
            for unit, job in outcome.chosen.items()
            if unit[:2] == (name, target)  # the first seed
        )
        for name in names
        for target in targets
    }
    many = f"{len(targets)} target(s), {len(config.seeds)} seed(s), {config.tries} tries of every method"
    page = Page(
        title="Unlearning methods compared",
        lead=f"Model {config.model}; {many}, chosen by one number on validation rows.",
        findings=findings(table, _of_kind(config, names, "ours"), _of_kind(config, names, "baseline")),
        table=table,
        hidden=tuple(column.key for column in table.columns if column.key not in SHOWN),
        failed=dict(failed),
        dots=dots(outcome, table, names),
        runs={names[name]: runs for name in names if (runs := _metrics(chosen[name, targets[0]]))},
        attacks={
            title: found for name, title in names.items() if (found := _attacks(config, chosen[name, targets[0]]))
        },
        probes=_probes(config, targets, chosen, names),
        beside=beside(config, names),
        notes=(f"Tries and grids: tries.md; how the figures are made: docs/results.md. Logs: {config.log}.",),
    )
    write_page(page, Path(config.out) / "report.html")


def findings(table: Table, ours: Sequence[str], baselines: Sequence[str]) -> list[Finding]:
    """What a reader wants first of the first of our rows: forgotten, kept, what comes back, cost, beside baselines."""
    lines = {line.name: line for line in table.ours()}
    first = next((lines[name] for name in ours if name in lines), None)
    if first is None:
        return []
    rivals = [lines[name] for name in baselines if name in lines]
    wanted = (
        ("Forgotten", "forget_all", "{name} still tells {mine:.1f} % of what is asked about the target; {others}."),
        ("Kept", "retain_all", "{name} tells {mine:.1f} % of what is asked about its neighbors; {others}."),
        ("What comes back", "back_most", "{mine:.1f} % under the strongest attack on {name}; {others}."),
        ("Cost", "seconds", "{mine:.0f} s of training for {name}; {others}."),
    )
    found = []
    for title, key, text in wanted:
        if key in first.cells:
            mine, unit = first.cells[key].mean, "s" if key == "seconds" else "%"
            words = text.format(name=first.name, mine=mine, others=_others(rivals, key))
            found.append(Finding(title, f"{mine:.0f} {unit}", words))
    return found


def _others(rivals: Sequence[Line], key: str) -> str:
    """The range of the baselines."""
    numbers = {line.name: line.cells[key].mean for line in rivals if key in line.cells}
    if not numbers:
        return "no baseline has this number"
    low, high = min(numbers, key=numbers.get), max(numbers, key=numbers.get)
    return f"the baselines from {numbers[low]:.1f} ({low}) to {numbers[high]:.1f} ({high})"


def _of_kind(config: CompareConfig, names: Mapping[str, str], kind: str) -> list[str]:
    return [name for row, name in names.items() if config.rows[row].kind == kind and not is_original(config.rows[row])]


def beside(config: CompareConfig, names: Mapping[str, str]) -> list[str]:
    """Whose answers are seen at first: the original's, our first row's, and those of the row that it starts from."""
    ours = next((name for name in names if config.rows[name].kind == "ours"), None)
    if ours is None:
        return []
    wanted = (next(name for name in names if is_original(config.rows[name])), config.rows[ours].start, ours)
    return [names[name] for name in wanted if name in names]


def dots(outcome: Outcome, table: Table, names: Mapping[str, str]) -> list[Dot]:
    """The chosen at their means over targets and seeds, on probes; every try at its mean on validation rows."""
    found = []
    for line in table.ours():
        mean = {key: cell.mean for key, cell in line.cells.items()}
        where = {"forget": mean.get("forget_all"), "neighbor": mean.get("retain_all")}
        bounds = {"forget_interval": _bounds(line, "forget_all"), "neighbor_interval": _bounds(line, "retain_all")}
        more = {"seconds": f"{mean['seconds']:.0f}"} if "seconds" in mean else {}
        found.append(Dot(line.name, **where, **bounds, recovered=mean.get("back_most"), more=more))
    tries: dict[tuple[str, str], list[Any]] = {}
    for unit, jobs in outcome.jobs.items():
        for job in jobs if unit[0] in names else []:
            if job.one in outcome.scores:
                tries.setdefault((unit[0], shown(job.settings)), []).append(outcome.scores[job.one])
    for (name, settings), scores in tries.items():
        gone, kept, number = (
            100 * fmean(getattr(score, key) for score in scores) for key in ("gone", "kept", "number")
        )
        found.append(Dot(names[name], settings, 100 - gone, kept, chosen=False, score=number, measured_on="validation"))
    return found


def _bounds(line: Line, key: str) -> tuple[float, float] | None:
    cell = line.cells.get(key)
    return (cell.low, cell.high) if cell and cell.low is not None and cell.high is not None else None


def _metrics(job: Job) -> list[dict[str, float]]:
    return read_metrics(job.run) if job.stage != "none" and (job.run / "metrics.jsonl").is_file() else []


def _attacks(config: CompareConfig, job: Job) -> dict[str, float]:
    if (found := attack_record(config, job)) is None:
        return {}
    strongest = {"plain": "plain", **found["strongest"]}  # budgets differ between methods, kinds do not
    conditions = {label: found["conditions"][strongest[kind]] for kind, label in KINDS.items() if kind in strongest}
    return {label: condition["untold"]["recall"] for label, condition in conditions.items() if condition["untold"]}


def _probes(
    config: CompareConfig, targets: Sequence[str], chosen: Mapping[tuple[str, str], Job], names: Mapping[str, str]
) -> list[Any]:
    probes = []
    for target in targets:
        folders = {title: measured_folder(config, chosen[name, target]) for name, title in names.items()}
        shared = [part for part in PARTS if all(part_path(folder, part).is_file() for folder in folders.values())]
        rows = {
            title: {part: read_part(part_path(folder, part))[1] for part in shared} for title, folder in folders.items()
        }
        probes += probes_of(rows, target=target)
    return featured(probes)
