"""What is done with tries: train them, score them, choose, measure and attack the chosen. Steps skip what is there.

Many are trained, scored or measured by one process, since starting one takes longer than a small model's training. If
it ends before all are done, each of the others gets a process of its own, so that no try takes the rest with it.
"""

import json
import logging
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl.eval.results import part_path, read_part
from verl.rows.files import read_json
from verl.utils.atomic import write_json, write_text
from verl.utils.errors import DataError

from .choice import Score, choose, score_try
from .config import ORIGINAL, CompareConfig
from .jobs import ALTERNATES, FORGET_ONLY, Job, file_names, needs, rs_program, training_command, write_forget_rows
from .plan import Try, as_words, is_original, is_part, selected
from .processes import Command, last_words, run_all

logger = logging.getLogger(__name__)

Unit = tuple[str, str, int]
"""(row, target, seed)"""


@dataclass
class Outcome:
    """What is known of all tries so far."""

    jobs: dict[Unit, list[Job]] = field(default_factory=dict)
    scores: dict[Try, Score] = field(default_factory=dict)
    failed: dict[Try, str] = field(default_factory=dict)
    chosen: dict[Unit, Job] = field(default_factory=dict)
    broken: dict[Unit, str] = field(default_factory=dict)
    """Why a unit has no model, or none that could be measured."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By part of the work."""

    def timed(self, part: str, started: float) -> None:
        self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - started


def make_files(config: CompareConfig, targets: dict[str, Path]) -> None:
    """The files that rows need and no target has. One that cannot be made is missed by the tries that read it."""
    for folder in targets.values():
        names = file_names(config, folder)
        wanted = {name for name in (FORGET_ONLY, ALTERNATES) for row in selected(config) if needs(config, row, name)}
        if FORGET_ONLY in wanted and not Path(names[FORGET_ONLY]).is_file():
            write_forget_rows(names)
        if ALTERNATES in wanted and not Path(names[ALTERNATES]).is_file():
            words = [f"model={config.model}", f"data={names['rl']}", f"out={names[ALTERNATES]}"]
            log = Path(names[ALTERNATES]).with_suffix(".log")
            command = ["python3", "data/alternate_answers.py", *words]
            run_all([Command(command, f"other answers on {folder.name}", log)], 1)


def train(config: CompareConfig, jobs: Sequence[Job], at_a_time: int, outcome: Outcome) -> None:
    """Train the tries that have no model and were not scored before."""
    started = time.monotonic()
    pending = [job for job in jobs if job.stage != "none" and job.model is None and not is_done(job.scored)]
    steering = [job for job in pending if job.stage == "rs"]
    _train_rs(config, steering, at_a_time)
    rest = [job for job in pending if job.model is None and not (job.run / "FAILED").is_file()]
    for job in rest:
        shutil.rmtree(job.run / "checkpoints", ignore_errors=True)
    run_all([_training(job, config.ranks) for job in rest], at_a_time)
    for job in pending:
        if job.model is None:
            reason = job.run / "FAILED"
            outcome.failed[job.one] = reason.read_text().strip() if reason.is_file() else last_words(_log_of(job))
    if pending:
        outcome.timed(f"train {pending[0].stage}", started)


def _train_rs(config: CompareConfig, jobs: Sequence[Job], at_a_time: int) -> None:
    """Many tries in a process; those of one row are spread over processes, since they take equally long."""
    commands = []
    for number in range(min(at_a_time, len(jobs))):
        share = jobs[number::at_a_time]
        lines = [shlex.join([*job.words, f"output_dir={job.run}"]) for job in share]
        file = Path(config.log) / f"rs_tries_{number + 1}.txt"
        write_text(file, "\n".join(lines) + "\n")
        words = [*rs_program(config.ranks), f"tries={file}"]
        commands.append(Command(words, f"RS, {len(share)} tries", file.with_suffix(".log")))
    run_all(commands, at_a_time)


def _training(job: Job, ranks: int) -> Command:
    one = job.one
    return Command(
        training_command(job, ranks), f"{one.row} {one.number} on {one.target}, seed {one.seed}", _log_of(job)
    )


def _log_of(job: Job) -> Path:
    return job.run.with_name(f"{job.run.name}.log")


def score(config: CompareConfig, jobs: Sequence[Job], outcome: Outcome) -> None:
    """Ask every trained model the validation rows, and give it its score."""
    started = time.monotonic()
    having = [job for job in jobs if job.one not in outcome.failed and not is_part(config, job.one.row)]
    evaluate(config, {job.scored: evaluation(config, job, "validation", job.scored) for job in having}, "validation")
    known = [*having, *(job for tries in outcome.jobs.values() for job in tries)]
    originals = {job.one.target: job for job in known if is_original(config.rows[job.one.row])}
    for job in having:
        if not is_done(job.scored):
            outcome.failed[job.one] = last_words(_evaluation_log(config, job.scored))
            continue
        try:
            base = _validation_rows(originals[job.one.target].scored)
            outcome.scores[job.one] = score_try(_validation_rows(job.scored), base)
        except DataError as error:
            outcome.failed[job.one] = str(error)
    outcome.timed("validate", started)


def _validation_rows(folder: Path) -> list[dict[str, Any]]:
    return read_part(part_path(folder, "validation"))[1]


def settle(config: CompareConfig, jobs: Sequence[Job], outcome: Outcome) -> None:
    """Choose a try for every unit of these jobs, and remove the models of the others."""
    units: dict[Unit, list[Job]] = {}
    for job in jobs:
        units.setdefault(job.one.unit, []).append(job)
    outcome.jobs |= units
    for unit, tries in units.items():
        part = is_part(config, unit[0]) and tries[0].one not in outcome.failed
        place = 0 if part else choose([outcome.scores.get(job.one) for job in tries])
        if place is None:
            outcome.broken[unit] = "; ".join(dict.fromkeys(outcome.failed[job.one] for job in tries))
            continue
        outcome.chosen[unit] = tries[place]
        if tries[place].model is None and not is_done(measured_folder(config, tries[place])):
            outcome.broken[unit] = f"the model of its best try is gone; remove {tries[place].scored} to train it again"
        for job in tries:
            if job is not tries[place] and not config.keep_models and job.stage != "none":
                job.forget_model()


def start_of(config: CompareConfig, one: Try, outcome: Outcome) -> str | None:
    """The model that a try starts from; None where the row that makes it failed."""
    start = config.rows[one.row].start
    if start == ORIGINAL:
        return config.model
    chosen = outcome.chosen.get((start, one.target, one.seed))
    return str(chosen.model) if chosen and chosen.model else None


# ---- measuring ----------------------------------------------------------------------------------------------------
def is_done(folder: Path) -> bool:
    return (folder / "DONE").is_file()


def evaluation(
    config: CompareConfig, job: Job, suite: str, out: Path, parts: list[str] | None = None
) -> dict[str, Any]:
    """Settings of the evaluator for a job's model."""
    target = str(Path(config.data) / job.one.target)
    given = {"model": str(job.model), "suite": suite, "data": target, "out": str(out), **job.asked}
    of_probes = ("prompt_style", "prompts", "judge")
    idle = of_probes if suite == "validation" else ()
    general = {key: value for key, value in config.evaluation.items() if key.partition(".")[0] not in idle}
    return {**general, **given, **({"parts": parts} if parts else {})}


def evaluate(config: CompareConfig, wanted: dict[Path, dict[str, Any]], name: str) -> None:
    """Measure what is not measured yet: all of it in one process, and what that leaves one by one."""
    pending = [folder for folder in wanted if not is_done(folder)]
    if pending:
        _evaluate_group(config, [wanted[folder] for folder in pending], name)
    left = [folder for folder in pending if not is_done(folder)]
    for folder in left if len(pending) > 1 else []:
        _evaluate_group(config, [wanted[folder]], name)


def _evaluate_group(config: CompareConfig, settings: list[dict[str, Any]], name: str) -> None:
    log = _evaluation_log(config, Path(settings[0]["out"])) if len(settings) == 1 else Path(config.log) / f"{name}.log"
    file = Path(config.log) / f"{name}.json"
    write_json(file, settings)
    run_all([Command(["python3", "-m", "verl.compare.measure", str(file)], f"{name} of {len(settings)}", log)], 1)


def _evaluation_log(config: CompareConfig, out: Path) -> Path:
    return Path(config.log) / "evaluation" / (str(out.relative_to(config.out)).replace("/", "-") + ".log")


def results_folder(config: CompareConfig, unit: Unit) -> Path:
    row, target, seed = unit
    return Path(config.out) / "rows" / row / target / f"seed{seed}"


def measure(config: CompareConfig, outcome: Outcome) -> None:
    """The benchmark's parts of every chosen try."""
    started = time.monotonic()
    rows = {unit: job for unit, job in outcome.chosen.items() if not is_part(config, unit[0])}
    folders = {unit: measured_folder(config, job) for unit, job in rows.items()}
    wanted = {
        folders[unit]: evaluation(config, job, config.suite, folders[unit], config.parts)
        for unit, job in rows.items()
        if job.model is not None
    }
    evaluate(config, wanted, "evaluation")
    for unit, folder in folders.items():
        if not is_done(folder) and unit not in outcome.broken:
            outcome.broken[unit] = f"its evaluation failed: {last_words(_evaluation_log(config, folder))}"
    outcome.timed("evaluate", started)


def measured_folder(config: CompareConfig, job: Job) -> Path:
    """Of the chosen try: another choice is measured elsewhere."""
    return results_folder(config, job.one.unit) / job.run.name


def attack(config: CompareConfig, outcome: Outcome, at_a_time: int) -> None:
    """Attack every chosen model. Those of a target that are asked alike share processes; what these leave does not."""
    if config.attacks is None:
        return
    started, groups = time.monotonic(), {}
    for unit, job in outcome.chosen.items():
        folder = attacks_folder(config, job)
        if unit not in outcome.broken and not is_part(config, unit[0]) and not is_done(folder):
            groups.setdefault((job.one.target, json.dumps(job.asked)), []).append(job)
    shares = [group[number::at_a_time] for group in groups.values() for number in range(min(at_a_time, len(group)))]
    run_all([_attacks_on(config, share, number) for number, share in enumerate(shares, 1)], at_a_time)
    left = [job for share in shares for job in share if len(share) > 1 and not is_done(attacks_folder(config, job))]
    run_all([_attacks_on(config, [job], number) for number, job in enumerate(left, len(shares) + 1)], at_a_time)
    if groups:
        outcome.timed("attack", started)


def attacks_folder(config: CompareConfig, job: Job) -> Path:
    return measured_folder(config, job) / "attacks"


def attack_record(config: CompareConfig, job: Job) -> dict[str, Any] | None:
    """robustness.json of a chosen try; None where it was not attacked."""
    folder = attacks_folder(config, job)
    return read_json(folder / "robustness.json") if is_done(folder) else None


def _attacks_on(config: CompareConfig, jobs: Sequence[Job], number: int) -> Command:
    target = Path(config.data) / jobs[0].one.target
    many = {"model": [str(job.model) for job in jobs], "out": [str(attacks_folder(config, job)) for job in jobs]}
    words = as_words({"config": config.attacks, "suite": config.suite, "data": str(target), **many, **jobs[0].asked})
    log = Path(config.log) / f"attacks-{number}.log"
    return Command(["python3", "-m", "verl.eval.robustness", *words], f"attacks on {len(jobs)} model(s)", log)
