"""What a comparison leaves: tries.json, the table as Markdown, CSV and LaTeX, its Pareto plot, and the notes that say
who dominates whom. All of it is worked out from what the tries left on disk.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from verl.eval import pareto, render, tables
from verl.eval.results import read_results
from verl.utils.atomic import write_json, write_text
from verl.utils.provenance import git_revision

from . import page
from .choice import Point, dominators
from .config import ORIGINAL, CompareConfig
from .jobs import Job
from .plan import is_original, is_part, selected, shown
from .stages import Outcome, Unit, attack_record, measured_folder

logger = logging.getLogger(__name__)

PAPER = Path(__file__).resolve().parents[2] / "data" / "paper" / "rule_rwku_table1.csv"
CHOICE = (
    "Every method had {tries} tries on each target and seed, the combinations of its grid; chosen is the one with the "
    "highest harmonic mean of what is gone on forget and what is left on boundary VALIDATION rows, as shares of the "
    "original model's recall. No probe takes part. All tries are in tries.md and tries.json."
)
BACK = ("relearn", "few_shot", "system_prompt", "refusal_prefix", "int8", "int4")
"""Kinds of attacks that have a column of their own."""
DOMINANCE = {
    "(forget, neighbor)": ("forget_all", "retain_all"),
    "(most that comes back, neighbor)": ("back_most", "retain_all"),
}


def title(config: CompareConfig, name: str) -> str:
    """What the table calls a row."""
    return config.rows[name].name or name


# ---- tries --------------------------------------------------------------------------------------------------------
def write_tries(config: CompareConfig, outcome: Outcome) -> None:
    """tries.json and tries.md: the grid, every try with its score or its failure, and the choice."""
    rows = {name: [] for name in selected(config)}
    for unit, jobs in outcome.jobs.items():
        rows[unit[0]].append(unit_record(outcome, unit, jobs))
    record = {
        name: {"grid": config.rows[name].grid, "settings": config.rows[name].settings, "units": units}
        for name, units in rows.items()
        if units
    }
    write_json(Path(config.out) / "tries.json", {"git_revision": git_revision(), "tries": config.tries, "rows": record})
    write_text(Path(config.out) / "tries.md", _tries_table(config, record))


def unit_record(outcome: Outcome, unit: Unit, jobs: Sequence[Job]) -> dict[str, Any]:
    """A choice: its tries in the order of the grid, and the number of the one that was chosen."""
    chosen = outcome.chosen.get(unit)
    tries = []
    for job in jobs:
        score = outcome.scores.get(job.one)
        facts = {"score": score.number, "gone": score.gone, "kept": score.kept} if score else {}
        failed = {"failed": outcome.failed[job.one]} if job.one in outcome.failed else {}
        tries.append({"number": job.one.number, "settings": job.settings, **facts, **failed, **job.cost()})
    return {"target": unit[1], "seed": unit[2], "tries": tries, "chosen": chosen.one.number if chosen else None}


def _tries_table(config: CompareConfig, record: Mapping[str, Any]) -> str:
    body = []
    for name, row in record.items():
        for unit in row["units"]:
            for one in unit["tries"]:
                numbers = [
                    f"{100 * one[key]:.1f}" if key in one else render.MISSING for key in ("score", "gone", "kept")
                ]
                mark = "chosen" if one["number"] == unit["chosen"] else one.get("failed", "")
                place = f"{unit['target']}, seed {unit['seed']}"
                seconds = f"{one['seconds']:.0f}" if "seconds" in one else render.MISSING
                body.append([title(config, name), place, shown(one["settings"]), *numbers, seconds, mark])
    header = ["Method", "Target", "Settings", "Score", "Gone", "Kept", "s", ""]
    return f"# Tries\n\n{CHOICE.format(tries=config.tries)}\n\n{render.markdown_grid(header, body)}\n"


# ---- the table ----------------------------------------------------------------------------------------------------
def write(config: CompareConfig, targets: Mapping[str, Path], outcome: Outcome) -> int:
    """Write the table of the rows that are whole; returns 1 if others are not, which it lists."""
    write_tries(config, outcome)
    failed = failures(config, outcome)
    whole = [name for name in selected(config) if name not in failed and not is_part(config, name)]
    out = Path(config.out)
    if whole:
        table = comparison(config, list(targets), outcome, whole)
        points = pareto.table_points(table)
        texts = [f"# Comparison\n\n{render.to_markdown(table)}", intervals(table), failed_list(config, failed)]
        write_text(out / "table.md", "\n".join(filter(None, texts)))
        write_text(out / "table.csv", render.to_csv(table))
        write_text(out / "table.tex", render.to_latex(table))
        if points:
            pareto.plot(points, out / "pareto.png", title="Comparison: forgetting against retention")
        titles = {name: title(config, name) for name in whole}
        page.write_report(config, list(targets), outcome, table, titles, {title(config, n): failed[n] for n in failed})
        logger.info("\n%s", render.to_markdown(table))
    times = ", ".join(f"{part} {seconds:.0f}" for part, seconds in outcome.seconds.items())
    logger.info("seconds of this call: %s", times)
    for name, reason in failed.items():
        logger.error("FAILED: %s: %s", title(config, name), reason)
    logger.info("written to %s", out)
    return int(bool(failed))


def failures(config: CompareConfig, outcome: Outcome) -> dict[str, str]:
    """Row to why it is not in the table: one of its targets or seeds has no model, or no measurements."""
    return {unit[0]: f"{unit[1]}, seed {unit[2]}: {reason}" for unit, reason in reversed(outcome.broken.items())}


def failed_list(config: CompareConfig, failed: Mapping[str, str]) -> str:
    return "".join(f"- FAILED: {title(config, name)}: {reason}\n" for name, reason in failed.items())


def comparison(config: CompareConfig, targets: list[str], outcome: Outcome, names: list[str]) -> tables.Table:
    """The table of these rows over all targets and seeds."""
    rows, more = {}, {}
    for name in names:
        jobs = {
            place: outcome.chosen[(name, target, config.seeds[0] if config.rows[name].stage == "none" else seed)]
            for place, target, seed in places(config, targets)
        }
        rows[title(config, name)] = {place: document(config, job) for place, job in jobs.items()}
        more[title(config, name)] = {place: extras(config, outcome, job) for place, job in jobs.items()}
    published = [line for line in tables.read_published(PAPER) if tables.same_model(line.model, config.model)]
    table = tables.build_table("comparison", rows, published=published, more=more)
    points = {label: points_of(table, keys) for label, keys in DOMINANCE.items()}
    notes = [CHOICE.format(tries=config.tries), *dominance_notes(config, names, points)]
    notes += [
        f"Attacks on {name} failed; the logs are {config.log}/attacks-*.log." for name in unattacked(config, more)
    ]
    return replace(table, notes=(*table.notes, *notes))


def places(config: CompareConfig, targets: Sequence[str]) -> list[tuple[str, str, int]]:
    """(what the table calls it, target, seed) of everything that a row is a mean of."""
    several = len(config.seeds) > 1
    return [
        (f"{target}, seed {seed}" if several else target, target, seed) for target in targets for seed in config.seeds
    ]


def document(config: CompareConfig, job: Job) -> dict[str, Any]:
    """results.json of a chosen try. A system prompt that is the method is no difference in decoding."""
    found = read_results(measured_folder(config, job))
    for entry in found["parts"].values():
        if "system_prompt" in job.asked and "system_prompt" in entry["decoding"]:
            entry["decoding"]["system_prompt"] = None
    return found


def extras(config: CompareConfig, outcome: Outcome, job: Job) -> dict[str, float]:
    """What no results.json holds: what comes back, and what the training took, with that of what it starts from."""
    numbers = {}
    if found := attack_record(config, job):
        numbers["back_most"] = found["most_recovered"]["recall"]
        for kind in BACK:
            if kind in found["strongest"]:
                numbers[f"back_{kind}"] = found["conditions"][found["strongest"][kind]]["untold"]["recall"]
    costs = [one.cost() for one in chain(config, outcome, job)]
    for key, put_together in (("seconds", sum), ("peak_gib", max)):
        if values := [cost[key] for cost in costs if key in cost]:
            numbers[key] = put_together(values)
    return numbers


def chain(config: CompareConfig, outcome: Outcome, job: Job) -> list[Job]:
    """The job and those that made the model it starts from."""
    jobs = [job]
    while (start := config.rows[jobs[-1].one.row].start) != ORIGINAL:
        jobs.append(outcome.chosen[(start, job.one.target, job.one.seed)])
    return jobs


def unattacked(config: CompareConfig, more: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """What the table calls the rows that should have been attacked and were not, or not everywhere."""
    wanted = more if config.attacks is not None else {}
    return [name for name in wanted if any("back_most" not in numbers for numbers in more[name].values())]


def points_of(table: tables.Table, keys: tuple[str, str]) -> dict[str, Point]:
    low, high = keys
    having = [line for line in table.ours() if low in line.cells and high in line.cells]
    return {line.name: (line.cells[low].mean, line.cells[high].mean) for line in having}


def dominance_notes(
    config: CompareConfig, names: Sequence[str], points: Mapping[str, Mapping[str, Point]]
) -> list[str]:
    """For each row of ours and pair of numbers, the tuned baselines that are as good on both and better on one."""
    baselines = [
        title(config, name)
        for name in names
        if config.rows[name].kind == "baseline" and not is_original(config.rows[name])
    ]
    notes = []
    for label, at in points.items():
        for name in (title(config, name) for name in names if config.rows[name].kind == "ours"):
            if name not in at:
                continue
            better = [f"{rival} ({_point(at[rival])})" for rival in dominators(name, at, baselines)]
            words = f"DOMINATED by {', '.join(better)}" if better else "dominated by no tuned baseline"
            notes.append(f"On {label} {name} ({_point(at[name])}) is {words}.")
    return notes


def _point(point: Point) -> str:
    return f"{point[0]:.1f}, {point[1]:.1f}"


def intervals(table: tables.Table) -> str:
    """The 95 % intervals of the three numbers that methods are compared by."""
    keys = ("forget_all", "retain_all", "utility")
    columns = [column for column in table.columns if column.key in keys]
    body = [[line.name, *(_interval(line.cells.get(column.key)) for column in columns)] for line in table.ours()]
    header = ["95 % intervals over probes", *(f"{column.group} {column.label}" for column in columns)]
    return f"\n{render.markdown_grid(header, body)}\n"


def _interval(cell: tables.Cell | None) -> str:
    if cell is None or cell.low is None or cell.high is None:
        return render.MISSING
    return f"{cell.mean:.1f} ({cell.low:.1f} to {cell.high:.1f})"
