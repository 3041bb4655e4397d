"""``python3 -m verl.compare.main config=examples/table.yaml model=... data=... targets=[...] log=... out=...``.

Makes every row of a table: checks all of it, trains the tries of a row, scores them on validation rows, chooses, and
goes on with the rows that start from it; then measures and attacks what was chosen, and writes the table. Called again
it does what is missing. ``run_table.sh`` gives it a world. Exit codes: 0, all rows are there; 1, some failed; 2,
nothing was started, since something is wrong.
"""

import logging
import os
import sys
import time
from pathlib import Path

from verl.eval.config import EvalConfig
from verl.eval.main import select_parts
from verl.eval.robustness import RobustnessConfig
from verl.eval.validation import load_rows
from verl.settings.cli import TIMED
from verl.settings.reader import load, word_problems
from verl.utils.environment import cores
from verl.utils.errors import ConfigError, DataError, bullet_list
from verl.utils.orphans import watch

from . import output, stages
from .config import CompareConfig
from .jobs import ALTERNATES, FORGET_ONLY, Job, file_names, find_targets, job_of, job_problems, listed, needs
from .plan import Try, grid_problems, is_original, selected, shown, tries_of, waves

logger = logging.getLogger(__name__)


def compare(config: CompareConfig) -> int:
    """Make all rows; returns the exit code.

    Raises:
        ConfigError, DataError: before anything is started, listing everything that is wrong.
    """
    targets = find_targets(config)
    found = check(config, targets)
    if found:
        raise ConfigError(bullet_list(f"{len(found)} problem(s) in the table:", found))
    if config.dry_run:
        sys.stdout.write("\n".join(plan_lines(config, targets)) + "\n")
        return 0
    watch()
    outcome, started, at_a_time = stages.Outcome(), time.monotonic(), parallel(config)
    stages.make_files(config, targets)
    for wave in waves(config):
        jobs = jobs_of(config, wave, targets, outcome)
        for stage in ("rs", "rebo"):
            stages.train(config, [job for job in jobs if job.stage == stage], at_a_time, outcome)
        stages.score(config, jobs, outcome)
        stages.settle(config, jobs, outcome)
        output.write_tries(config, outcome)
    stages.measure(config, outcome)
    stages.attack(config, outcome, at_a_time)
    outcome.timed("all", started)
    return output.write(config, targets, outcome)


def parallel(config: CompareConfig) -> int:
    """Tries at a time: with one core a rank on a CPU; one on GPUs."""
    if config.parallel is not None:
        return config.parallel
    from torch import cuda

    return 1 if cuda.is_available() else max(1, cores() // config.ranks)


def jobs_of(config: CompareConfig, rows: list[str], targets: dict[str, Path], outcome: stages.Outcome) -> list[Job]:
    """The tries of rows as jobs; units whose start failed are noted as broken, and have none."""
    jobs = []
    for name in rows:
        for one in tries_of(config, name, list(targets)):
            start = stages.start_of(config, one, outcome)
            if start is None:
                outcome.broken[one.unit] = f"starts from {config.rows[name].start}, which failed"
                continue
            jobs.append(job_of(config, one, targets[one.target], start))
    return jobs


def check(config: CompareConfig, targets: dict[str, Path]) -> list[str]:
    """Everything that can be known to be wrong before a process is started, a line each."""
    found = grid_problems(config)
    names = selected(config)
    if not any(is_original(config.rows[name]) for name in names):
        found.append("rows: none is the model before unlearning; add one with stage: none and nothing else")
    titles = [config.rows[name].name or name for name in names]
    found += [f"rows: {title} is the name of two rows; rename one" for title in set(titles) if titles.count(title) > 1]
    if config.attacks is not None:
        found += [f"attacks: {line}" for line in word_problems(RobustnessConfig, [f"config={config.attacks}"])]
    for number, folder in enumerate(targets.values()):
        found += _data_problems(config, folder)
        for name in names if not found else []:
            tries = [one for one in tries_of(config, name, [folder.name]) if one.seed == config.seeds[0]]
            for one in tries if number == 0 else tries[:1]:
                found += [
                    f"rows.{name}, {shown(dict(one.point)) or 'no grid'}: {line}"
                    for line in _problems(config, one, folder)
                ]
    return list(dict.fromkeys(found))


def _problems(config: CompareConfig, one: Try, folder: Path) -> list[str]:
    try:
        made = (name for name in (FORGET_ONLY, ALTERNATES) if needs(config, one.row, name))
        there = all(Path(file_names(config, folder)[name]).is_file() for name in made)
        return job_problems(job_of(config, one, folder, config.model), files_are_there=there)
    except (ConfigError, DataError) as error:
        return listed(error)


def _data_problems(config: CompareConfig, folder: Path) -> list[str]:
    try:
        words = [f"parts=[{','.join(config.parts)}]"] if config.parts else []
        suite = load(EvalConfig, ["model=.", f"suite={config.suite}", f"data={folder}", "out=.", *words])
        missing = [
            str(folder / name) for part in select_parts(suite) for name in part.files if not (folder / name).is_file()
        ]
        if missing:
            return [f"data={config.data}: {', '.join(dict.fromkeys(missing))}: no such file; prepare the target's data"]
        load_rows(folder)
    except (ConfigError, DataError) as error:
        return [str(error)]
    return []


def plan_lines(config: CompareConfig, targets: dict[str, Path]) -> list[str]:
    """What would be done: rows, tries, and minutes where ``minutes`` says what a try takes."""
    names, lines, counts = selected(config), [], dict.fromkeys(("rs", "rebo", "score", "measure", "attack"), 0)
    for name in names:
        row, tries = config.rows[name], list(tries_of(config, name, list(targets)))
        points = " | ".join(dict.fromkeys(shown(dict(one.point)) for one in tries))
        lines.append(f"{name:<16} {row.stage:<5} {len(tries):>4} tries  {points}")
        if row.stage != "none":
            counts[row.stage] += len(tries)
        units = len({one.unit for one in tries})
        counts["score"] += len(tries)
        counts["measure"] += units
        counts["attack"] += units * (config.attacks is not None)
    beside = dict.fromkeys(("rs", "rebo", "attack"), parallel(config))
    known = {part: config.minutes.get(part) for part in counts}
    took = {part: counts[part] * known[part] / beside.get(part, 1) for part in counts if known[part] is not None}
    parts = ", ".join(
        f"{part} {counts[part]}" + (f" ({took[part]:.0f} min)" if part in took else "") for part in counts
    )
    total = (
        f"about {sum(took.values()):.0f} minutes" if len(took) == len(counts) else "minutes: not known for this world"
    )
    head = (
        f"{len(names)} rows, {len(targets)} target(s), {len(config.seeds)} seed(s), {config.tries} tries of each method"
    )
    return [head, *lines, f"{parts}: {total}"]


def main(argv: list[str]) -> int:
    """Run the command line."""
    logging.basicConfig(level=logging.INFO, format=TIMED)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return compare(load(CompareConfig, argv))
    except (ConfigError, DataError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
