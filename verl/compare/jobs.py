"""A try as a command: the words that train it, where its model and its measurements lie, and what is wrong with them.

Folders of tries end with a hash of their settings, so that what was trained with other ones is never taken for them.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from RS.checks import read_config as read_rs
from RS.config import RSConfig
from verl.config.run import PPOConfig, migrate
from verl.eval.config import EvalConfig
from verl.eval.findings import training_of
from verl.eval.results import counting, fingerprint
from verl.eval.selection import chosen_checkpoint
from verl.eval.validation import FILE as VALIDATION
from verl.rows.sources import read_file
from verl.rows.values import split_of
from verl.settings.path_types import homes
from verl.settings.reader import load, to_dict, word_problems
from verl.utils.atomic import write_json
from verl.utils.errors import ConfigError, DataError
from verl.utils.logger import read_metrics

from .config import CompareConfig
from .plan import Try, as_words, filled, worked_out

RL_ROWS = "rl_rejection_with_fb_neighbor_target.json"
FILES = {
    "refusals": "reject_target.json",
    "forget": RL_ROWS,
    "pairs": RL_ROWS,
    "rl": RL_ROWS,
    "validation": VALIDATION,
}
"""What ``$NAME`` means where ``files`` says nothing else: questions with refusals; what is to be forgotten; refusals
beside answers; the rows of both sides; those that tries are chosen by."""
FORGET_ONLY, ALTERNATES = "rl_forget", "alternates"
"""``$NAME`` of files that are made where a row needs them: the forget rows of ``rl`` alone, for the ablation without
boundary rows; and ``rl`` with other plausible answers of the original model, for AltPO."""


@dataclass(frozen=True)
class Job:
    """A try and its places."""

    one: Try
    stage: str
    settings: dict[str, Any]
    """The try's point with factors worked out."""
    words: list[str]
    """Of its stage's command, but for the folder that it writes."""
    run: Path
    """Folder of its training."""
    scored: Path
    """Folder of its validation."""
    original: str
    asked: dict[str, Any] = field(default_factory=dict)
    """Settings of the evaluator that are the method: a system prompt."""

    @property
    def model(self) -> Path | None:
        """The model that the training left; None where there is none, or none any more."""
        if self.stage == "none":
            return Path(self.original)
        if not (self.run / "DONE").is_file():
            return None
        if self.stage == "rebo":
            folder = chosen_checkpoint(self.run)
            return folder if folder.is_dir() else None
        epochs = [path for path in self.run.glob("epoch_*") if (path / "config.json").is_file()]
        return max(epochs, key=lambda path: int(path.name.rpartition("_")[2]), default=None)

    def cost(self) -> dict[str, float]:
        """Seconds of the optimiser's steps and, where the run says it, the most memory of a rank in GiB."""
        if self.stage == "none" or not (self.run / "metrics.jsonl").is_file():
            return {}
        took = training_of(read_metrics(self.run))
        found = {"seconds": took.seconds, "peak_gib": took.peak_gib} if took else {}
        return {name: value for name, value in found.items() if value is not None}

    def forget_model(self) -> None:
        """Remove the weights, and with them DONE; metrics and settings stay."""
        (self.run / "DONE").unlink(missing_ok=True)
        for path in (self.run / "checkpoints", *self.run.glob("epoch_*")):
            shutil.rmtree(path, ignore_errors=True)


def find_targets(config: CompareConfig) -> dict[str, Path]:
    """Name to folder of the targets.

    Raises:
        ConfigError: naming those that are not there.
    """
    data = Path(config.data)
    there = sorted((path for path in data.glob("*") if path.is_dir()), key=lambda path: counting(path.name))
    found, missing = {}, []
    for wanted in config.targets:
        match = next((path for path in there if wanted in (path.name, path.name.partition("_")[0])), None)
        match = match or next((path for path in there if path.name.partition("_")[2] == wanted), None)
        if match:
            found[match.name] = match
        else:
            missing.append(wanted)
    if missing:
        raise ConfigError(
            f"targets={missing}: {data} has no such folder; it has {', '.join(p.name for p in there[:8])}"
        )
    return found


def file_names(config: CompareConfig, target: Path) -> dict[str, str]:
    """What ``$NAME`` stands for on a target."""
    files = {name: str(target / file) for name, file in (FILES | config.files).items()}
    subject = target.name.partition("_")[2].replace("_", " ") or target.name
    names = {"model": config.model, "subject": subject, **files}
    return names | {made: str(Path(config.log) / target.name / f"{made}.json") for made in (FORGET_ONLY, ALTERNATES)}


def needs(config: CompareConfig, row: str, name: str) -> bool:
    """Whether a row's settings name ``$name``."""
    given = config.rows[row]
    values = [*given.settings.values(), *(value for values in given.grid.values() for value in values)]
    return f"${name}" in values


def write_forget_rows(names: dict[str, str]) -> None:
    """Write the file of the ablation without boundary rows."""
    rows = read_file(names["rl"])
    write_json(names[FORGET_ONLY], [row for row in rows if split_of(row, "solution") == "forget"])


def job_of(config: CompareConfig, one: Try, target: Path, start: str) -> Job:
    """The job of a try that starts from the model ``start``.

    Raises:
        ConfigError: listing what is wrong with its settings.
    """
    row = config.rows[one.row]
    names = file_names(config, target) | {"start": start}
    files = ",".join(
        filter(None, [row.config, config.rebo_config] if row.stage == "rebo" else [config.rs_config, row.config])
    )
    fixed = {"rs": _rs, "rebo": _rebo, "none": lambda *_: {}}[row.stage](config, one, names, start) | filled(
        row.settings, names
    )
    before = [f"config={files}"] * bool(files) + as_words(fixed)
    base = {"rs": _rs_base, "rebo": _rebo_base, "none": lambda words: {}}[row.stage](before)
    point = filled(worked_out(dict(one.point), base, f"rows.{one.row}.grid"), names)
    words = [*before, *as_words(point)]
    content = [yaml.safe_load(Path(file).read_text(encoding="utf-8")) for file in homes(files).split(",") if file]
    place = one.place.with_name(f"{one.number}-{fingerprint([words, content])[:8]}")
    scored = Path(config.out) / "validation" / place
    asked = {**filled(row.settings, names), **point} if row.stage == "none" else {}
    return Job(one, row.stage, point, words, Path(config.log) / place, scored, config.model, asked)


def _rs(config: CompareConfig, one: Try, names: dict[str, str], start: str) -> dict[str, Any]:
    return {"model": start, "data": names["refusals"], "seed": one.seed}


def _rebo(config: CompareConfig, one: Try, names: dict[str, str], start: str) -> dict[str, Any]:
    """Only the last step is kept: a step is no try, and baselines have no such choice."""
    return {
        "worker.actor.model.model_path": start,
        "data.train_files": names["rl"],
        "data.val_files": None,
        "data.seed": one.seed,
        "worker.rollout.seed": one.seed,
        "trainer.n_gpus_per_node": config.ranks,
        "trainer.val_freq": -1,
        "trainer.save_freq": -1,
        "trainer.save_model_only": True,
        "trainer.find_last_checkpoint": False,
    }


def _rs_base(words: list[str]) -> dict[str, Any]:
    return to_dict(load(RSConfig, [*words, "output_dir=."]))


def _rebo_base(words: list[str]) -> dict[str, Any]:
    return to_dict(load(PPOConfig, words, migrate))


def training_command(job: Job, ranks: int) -> list[str]:
    """What trains one try."""
    if job.stage == "rebo":
        return ["python3", "-m", "verl.trainer.main", *job.words, f"trainer.run_dir={job.run}"]
    return [*rs_program(ranks), *job.words, f"output_dir={job.run}"]


def rs_program(ranks: int) -> list[str]:
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return ["python3", *(several if ranks > 1 else []), "RS/train.py"]


def listed(error: ConfigError | DataError) -> list[str]:
    """The problems that a message lists, or all of it."""
    return [line.strip(" -") for line in str(error).splitlines() if line.startswith(" ")] or [str(error)]


def job_problems(job: Job, *, files_are_there: bool = True) -> list[str]:
    """What the try's own command would refuse, a line each; keys and types alone where files are still to be made."""
    from verl.trainer.preflight import read_config as read_rebo

    if not files_are_there:
        return word_problems(*((RSConfig, job.words) if job.stage == "rs" else (PPOConfig, job.words, migrate)))
    try:
        if job.stage == "rs":
            read_rs([*job.words, f"output_dir={job.run}"])
        elif job.stage == "rebo":
            read_rebo([*job.words, f"trainer.run_dir={job.run}", "trainer.dry_run=true"])
        else:
            load(EvalConfig, ["model=.", "suite=validation", "data=.", "out=.", *as_words(job.asked)])
    except (ConfigError, DataError) as error:
        return listed(error)
    return []
