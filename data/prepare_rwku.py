"""Turns RWKU, from wherever it lies, into one folder per target that training and evaluation read.

    python3 data/prepare_rwku.py source=PATH_OR_HUB_ID [targets=[1,5]] [training=FOLDER] [key=value ...]

``source`` is a Hugging Face dataset id (jinzhuoran/RWKU), a copy of its ``All/`` files, a folder of target folders
(``1_Stephen_King``, ...), or one target folder. Probes are copied byte for byte and never used for validation; the
validation split is cut out of the RL training rows, by fact, and forget rows get their gold answer where the source
holds it (``data/common/answers.py``). What every file holds stands in ``data/README.md``. Left
out: files for other models (``*_phi.json``) and RULE's ``rl_rejection_eval_target.json``, which consists of probes.
"""

import logging
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from data.common.answers import gold_answers
from data.common.checks import RowChecker, spoilt
from data.common.files import FileSpec, OutputFolder, Row, checksum_problems, dump_rows, schema_problems
from data.common.naming import TargetName
from data.common.probes import (
    PROBE_FIELDS,
    QUESTION_FILES,
    ProbeIndex,
    answers_problem,
    choice_problem,
    level_problem,
    mc1_problem,
    texts_of,
)
from data.common.sources import Target, find_targets
from data.common.splits import division, rebalanced, split_validation, tag_of
from verl.rows.sources import parse_rows, read_file
from verl.rows.values import rule_problem
from verl.settings.cli import run_cli
from verl.settings.path_types import PathText
from verl.settings.reader import to_dict
from verl.utils.errors import DataError, bullet_list
from verl.utils.provenance import git_revision
from verl.verdict.answers import normalize

logger = logging.getLogger(__name__)

RS_FILE = "reject_target.json"
RL_FILE = "rl_rejection_with_fb_neighbor_target.json"
VAL_FILE = "rl_rejection_with_fb_neighbor_target_val.json"
LINKS_FILE = "reject_with_fb_neighbor_target.json"
ABLATION_FILE = "rl_rejection_with_fb_target.json"

_PROBE = {"query": str, "answer": str, "level": str, "type": str, "subject": str}
_TEXT = {"text": str, "subject": str}
_RL = {"prompt": str, "solution": list}
FILES: dict[str, FileSpec] = {
    "intro.json": FileSpec("probe", {"target": str, "intro": str}, rows=1),
    **{f"forget_level{level}.json": FileSpec("probe", _PROBE, problem=level_problem(level)) for level in (1, 2, 3)},
    **{f"neighbor_level{level}.json": FileSpec("probe", _PROBE, problem=level_problem(level)) for level in (1, 2)},
    "forget_mia.json": FileSpec("probe", _TEXT),
    "retain_mia.json": FileSpec("probe", _TEXT),
    "retain_mmlu.json": FileSpec(
        "probe",
        {"task": str, "question": str, "choices": list, "answer": int, "examples": list},
        rows=171,
        problem=choice_problem,
    ),
    "retain_bbh.json": FileSpec(
        "probe",
        {"task": str, "question": str, "answer": str, "cot": str},
        rows=81,
        may_be_empty=frozenset(["cot"]),
    ),
    "truthful.json": FileSpec("probe", {"question": str, "mc1_targets": dict}, rows=50, problem=mc1_problem),
    "triviaqa.json": FileSpec("probe", {"question": str, "answers": list}, rows=100, problem=answers_problem),
    "fluency.json": FileSpec("probe", {"instruction": str}, rows=50),
    "passage.json": FileSpec("corpus", _TEXT, required=False),
    "positive.json": FileSpec("corpus", _TEXT, required=False),
    "negative.json": FileSpec("corpus", _TEXT, required=False),
    "pair.json": FileSpec("corpus", {"prompt": str, "response": list, "subject": str}, required=False),
    "reject.json": FileSpec("corpus", {"instruction": str, "output": str}, required=False),
    RS_FILE: FileSpec("train", {"instruction": str, "output": str}, required=False, rows=300),
    RL_FILE: FileSpec("train", _RL, required=False, rows=1200),
    LINKS_FILE: FileSpec("train", {"instruction": str, "FB_instruction": str}, required=False, rows=300),
    ABLATION_FILE: FileSpec("train", _RL, required=False),
    VAL_FILE: FileSpec("validation", _RL, required=False),
    "retain_atlas.json": FileSpec("probe", {"query": str, "answer": str}, required=False),
}
"""Every file of a target folder. Those of role train come from the RULE release, or from synthesize_boundary.py."""

PUBLISHED_TOTALS = {"forget_level1.json": 3268, "forget_level2.json": 2879, "forget_level3.json": 6984}
"""Probes of all 200 targets together (RWKU, arXiv 2406.10890)."""
NUM_TARGETS = 200
LEFT_OUT = {"rl_rejection_eval_target.json": "consists of the probes, which validation must not see"}


@dataclass(frozen=True)
class PrepareConfig:
    """What to prepare, and how much of the training rows goes to validation."""

    source: PathText
    """Folder, or dataset id on the Hugging Face hub."""
    out: PathText = "data/RWKU"
    """Target folders are written to OUT/Target/."""
    targets: list[str] | None = None
    """Numbers, names or folder names; null takes every target of the source."""
    training: PathText | None = None
    """Folder of target folders with the training files, where the source has none (the hub's has none)."""
    val_fraction: float = 0.1
    """Share of the RL rows that goes to validation, and out of every training file. 0 copies the files as published."""
    clean: bool = False
    """Drop RS and RL rows that fail a check (duplicates, overlap with probes, ...), and as many more of the other side
    as keep forget and boundary rows balanced as they were. The manifest counts flawed rows in any case."""
    seed: int = 0
    """Of the validation split."""
    overwrite: bool = False
    """Replace files that are there with other content."""

    def problems(self) -> list[str]:
        if not 0 <= self.val_fraction < 1:
            return [f"val_fraction={self.val_fraction}: must be at least 0 and below 1; 0.1 is usual"]
        return []


@dataclass
class Checked:
    """One target with its rows and whatever was found in them."""

    target: Target
    rows: dict[str, list[Row]]
    problems: list[str]
    warnings: list[str]


def prepare(config: PrepareConfig) -> list[Path]:
    """Prepare every wanted target and return their folders.

    All targets are checked before the first is written, one in memory at a time.

    Raises:
        DataError: something is missing, malformed, or would be overwritten; every such thing is named, and nothing is
            written.
    """
    targets, provenance = find_targets(config.source, config.targets, config.training, FILES)
    problems: list[str] = []
    totals: Counter[str] = Counter()
    for target in tqdm(targets, desc="check", unit="target"):
        checked = _check(target)
        problems += checked.problems
        totals.update({name: len(rows) for name, rows in checked.rows.items()})
        if not checked.problems and not config.overwrite:
            problems += _plan(checked, config)[0].conflicts()
    if problems:
        raise DataError(bullet_list(f"{config.source}: {len(problems)} problem(s), so nothing was written:", problems))
    folders = []
    for target in tqdm(targets, desc="write", unit="target"):
        checked = _check(target)
        folder, training = _plan(checked, config)
        folder.write(_manifest(checked, config, provenance, training))
        folders.append(folder.path)
        for warning in checked.warnings:
            logger.warning("%s: %s", target.folder, warning)
    for warning in _total_warnings(totals, len(targets)):
        logger.warning("%s", warning)
    logger.info("%d target(s) in %s", len(folders), Path(config.out) / "Target")
    return folders


def _check(target: Target) -> Checked:
    result = Checked(target, {}, checksum_problems(target.path, target.files), [])
    for name, spec in FILES.items():
        path = target.path / name
        if name not in target.files:
            if spec.required:
                result.problems.append(f"{path}: is missing; the hub has it as Target/{target.folder}/{name}")
            continue
        rows = parse_rows(target.read(name), path)
        result.rows[name] = rows
        result.problems += schema_problems(rows, spec, path) or _subject_problems(rows, spec, target)
        if spec.rows is not None and len(rows) != spec.rows:
            result.warnings.append(f"{name}: {len(rows)} rows, {spec.rows} in the published file")
    if not result.problems:
        result.problems += _spoilt(result)
    missing = [name for name in (RS_FILE, RL_FILE) if name not in target.files]
    if missing:
        result.warnings.append(
            f"no {' and no '.join(missing)} in the source: give training=FOLDER (the RULE release's target folders), "
            f"or write them with data/synthesize_boundary.py"
        )
    return result


def _subject_problems(rows: list[Row], spec: FileSpec, target: Target) -> list[str]:
    """Probes about another target, which would be scored as if they were about this one."""
    subjects = (row.get("subject") for row in rows if spec.role == "probe")
    named = Counter(subject for subject in subjects if isinstance(subject, str))
    return [
        f"{target.path}: {count} probes are about {other!r}, not {target.name!r}; fetch the files again"
        for other, count in named.items()
        if other != target.name
    ]


def _spoilt(checked: Checked) -> list[str]:
    """Training files most rows of which are about somebody else, misspell the target, or do not refuse."""
    problems = []
    for name in (RS_FILE, RL_FILE):
        checker = RowChecker(TargetName(checked.target.name), ProbeIndex())
        reasons = [checker.refusal_row(*texts) for texts in _refusals(checked.rows.get(name, []))]
        problems += spoilt(reasons, f"{checked.target.path / name}")
    return problems


def _refusals(rows: list[Row]) -> list[tuple[str, ...]]:
    """Prompt, refusal and, in RL rows, target of every row that is to be refused."""
    if rows and "solution" in rows[0]:
        return [(row["prompt"], *row["solution"][1:3]) for row in rows if tag_of(row) == "<reject>"]
    return [(row["instruction"], row["output"]) for row in rows]


def _manifest(checked: Checked, config: PrepareConfig, provenance: dict, training: dict) -> dict:
    target = checked.target
    return {
        "benchmark": "RWKU",
        "target": {"number": target.number, "name": target.name},
        "source": provenance,
        "settings": to_dict(config),
        "code": git_revision(),
        "training": training,
        "missing": [name for name in (RS_FILE, RL_FILE) if name not in checked.rows],
        "left_out": {name: LEFT_OUT.get(name, "not used by RULE") for name in target.left_out},
        "warnings": checked.warnings,
    }


def _total_warnings(totals: Counter[str], num_targets: int) -> list[str]:
    if num_targets != NUM_TARGETS:
        return []
    return [
        f"{name}: {totals[name]} rows over {NUM_TARGETS} targets, {expected} in the published set"
        for name, expected in PUBLISHED_TOTALS.items()
        if totals[name] != expected
    ]


def _plan(checked: Checked, config: PrepareConfig) -> tuple[OutputFolder, dict]:
    """The files to write, and what the manifest says about the training rows."""
    folder = OutputFolder(Path(config.out) / "Target" / checked.target.folder)
    report: dict = {}
    divided: dict[str, list[Row]] = {}
    held_out: set[str] = set()
    if RL_FILE in checked.rows:
        divided, held_out, report = _divide(checked, config)
    gold = _gold_answers(checked, config)
    origins: Counter[str] = Counter()
    for name, rows in {**checked.rows, **divided}.items():
        role = FILES[name].role
        left = rows
        if role == "train" and name not in divided:
            left = [row for row in rows if held_out.isdisjoint(map(normalize, _prompts(row)))]
        if name == RS_FILE:
            left, report["rs"] = _checked_rs(checked, left, config)
        if "solution" in FILES[name].keys:
            left, counted = _with_answers(left, gold)
            origins.update(counted if name in (RL_FILE, VAL_FILE) else {})
        same = left == checked.rows.get(name)
        folder.add(name, checked.target.read(name) if same else dump_rows(left), role, len(left), unchanged=same)
    if RL_FILE in checked.rows:
        report["answers"] = {"forget": origins.total() - origins["solution"], "boundary": origins.pop("solution", 0)}
        report["answers"]["forget_from"] = dict(origins)
    return folder, report


def _checked_rs(checked: Checked, rows: list[Row], config: PrepareConfig) -> tuple[list[Row], dict]:
    """The RS rows to write, without flawed ones where that is asked for, and the counts for the manifest."""
    checker = RowChecker(TargetName(checked.target.name), ProbeIndex())
    reasons = [checker.refusal_row(*texts) for texts in _refusals(rows)]
    flawed = [reason is not None and reason != "target_not_named" for reason in reasons]
    left = [row for row, flaw in zip(rows, flawed, strict=True) if not (flaw and config.clean)]
    flaws = Counter(reason for reason, flaw in zip(reasons, flawed, strict=True) if flaw)
    return left, {"rows": len(rows), "flaws": dict(flaws), "dropped": len(rows) - len(left)}


def _gold_answers(checked: Checked, config: PrepareConfig) -> dict[str, tuple[str, str | list[str]]]:
    """Where the source holds the gold answer of a forget prompt: how it was found, and the answer."""
    links = checked.rows.get(LINKS_FILE, [])
    if not links:
        return {}
    replies: dict[str, list[str]] = {}
    for place in filter(None, (config.source, config.training)):
        replies |= _model_replies(place)
    asked = {normalize(row["instruction"]) for row in links}
    names = TargetName(checked.target.name).all_names
    known = " ".join([*names, *(row["intro"] for row in checked.rows["intro.json"])])
    return gold_answers(links, {question: replies[question] for question in asked & replies.keys()}, known)


@cache
def _model_replies(place: str) -> dict[str, list[str]]:
    """Normalised question to what the original model replied, over all target folders of a source."""
    root = Path(place) / "Target" if (Path(place) / "Target").is_dir() else Path(place)
    rows = [row for path in sorted(root.glob(f"*_*/{ABLATION_FILE}")) for row in read_file(path)]
    return {
        normalize(row["prompt"]): row["solution"][1:]
        for row in rows
        if isinstance(row.get("prompt"), str) and not rule_problem(row.get("solution")) and tag_of(row) == "<normal>"
    }


def _with_answers(rows: list[Row], gold: dict[str, tuple[str, str | list[str]]]) -> tuple[list[Row], Counter[str]]:
    """RL rows with their gold answers, and how many were found where.

    A forget row gets a column ``answer`` unless it has one; a boundary row's answer is its solution.
    """
    answered, origins = [], Counter()
    for row in rows:
        origin, answer = gold.get(normalize(row["prompt"]), ("", None))
        if tag_of(row) == "<normal>":
            origin = "solution"
        elif row.get("answer"):
            origin = "row"
        elif answer is not None:
            row = {**row, "answer": answer}
        origins.update([origin] if origin else [])
        answered.append(row)
    return answered, origins


def _prompts(row: Row) -> list[str]:
    """Every prompt a training row holds."""
    neighbors = [row[key] for key in ("neighbor_question", "FB_neighbor_question") if isinstance(row.get(key), dict)]
    own = [row.get(key) for key in ("prompt", "instruction", "FB_instruction")]
    return [text for text in (*own, *(neighbor.get("question") for neighbor in neighbors)) if isinstance(text, str)]


def _divide(checked: Checked, config: PrepareConfig) -> tuple[dict[str, list[Row]], set[str], dict]:
    """The RL files whose rows are not the source's, the prompts to hold out, and the counts for the manifest.

    Flawed rows are held out with their group even where they are dropped: the other training files have them too.
    """
    rows = checked.rows[RL_FILE]
    flaws = _flaws(checked)
    dropped = flaws if config.clean else {}
    published = checked.rows.get(VAL_FILE, [])
    train, held_out = list(range(len(rows))), []
    if config.val_fraction > 0 and not published:
        probes = _probe_index(checked, QUESTION_FILES)
        # Divided before rows are dropped: the order of the published rows says which were written from one fact.
        train, held_out = split_validation(
            rows,
            fraction=config.val_fraction,
            seed=config.seed,
            linked_prompts=[_prompts(row) for row in checked.rows.get(LINKS_FILE, [])],
            keep=[number for number, row in enumerate(rows) if probes.overlap(row["prompt"])],
        )
    sides = [[number for number in side if number not in dropped] for side in (train, held_out)]
    if dropped:
        sides = [rebalanced(rows, side, left, config.seed) for side, left in zip((train, held_out), sides, strict=True)]
    training, validation = ([rows[number] for number in side] for side in sides)
    divided = {RL_FILE: training} if len(training) < len(rows) else {}
    if validation:
        divided[VAL_FILE] = validation
    return (
        divided,
        {normalize(rows[number]["prompt"]) for number in held_out},
        {
            "rows": len(rows),
            "flaws": dict(Counter(flaws.values())),
            "dropped": len(dropped),
            "dropped_for_balance": len(train) + len(held_out) - len(dropped) - sum(map(len, sides)),
            "train": len(training),
            "validation": len(validation or published),
            "split": division(training, validation or published),
        },
    )


def _flaws(checked: Checked) -> dict[int, str]:
    """Row number to reason, for the RL rows that fail a check."""
    checker = RowChecker(TargetName(checked.target.name), _probe_index(checked, PROBE_FIELDS))
    reasons = [checker.published_row(row) for row in checked.rows[RL_FILE]]
    return {number: reason for number, reason in enumerate(reasons) if reason}


def _probe_index(checked: Checked, names: Iterable[str]) -> ProbeIndex:
    there = [name for name in names if f"{name}.json" in checked.rows]
    return ProbeIndex(text for name in there for text in texts_of(name, checked.rows[f"{name}.json"]))


if __name__ == "__main__":
    sys.exit(run_cli(PrepareConfig, prepare, sys.argv[1:]))
