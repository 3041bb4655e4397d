"""Turns MUSE's News or Books corpus into the folder that training and evaluation read.

    python3 data/prepare_muse.py source=PATH_OR_HUB_ID corpus=news|books [key=value ...]

``source`` is a Hugging Face dataset id (muse-bench/MUSE-News, muse-bench/MUSE-Books), a copy of it, or a folder with
``knowmem/``, ``verbmem/``, ``privleak/`` and ``raw/`` in JSON, JSONL, text or parquet. JSON probes are copied byte for
byte, the others become JSON rows. MUSE publishes no prompts to train a refusal on. They are taken from ready RS and RL
files, else from the RULE release's rows (``data/common/release.py``), both of the source or of ``training=``; else they
are cut out of ``raw/forget`` and ``raw/retain1`` as passages to continue, none of which overlaps with a probe. The
manifest says which, and what was left out. Left out in any case: MUSE's ``scal``, ``sust`` and ``train`` parts.
"""

import hashlib
import logging
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from data.common.checks import RowChecker, spoilt
from data.common.files import MANIFEST, FileSpec, OutputFolder, Row, checksum_problems, dump_rows, schema_problems
from data.common.naming import TargetName
from data.common.probes import PROBE_FIELDS, ProbeIndex, texts_of
from data.common.refusals import BANK, deal_refusals, load_refusals
from data.common.release import CONTINUATION, NEIGHBOR_ROWS, RS_ROWS, read_release
from data.common.sources import download
from data.common.splits import division, split_validation, tag_of
from data.prepare_rwku import RL_FILE, RS_FILE, VAL_FILE
from verl.rows.sources import is_hub_id, read_file
from verl.settings.cli import run_cli
from verl.settings.path_types import PathText
from verl.settings.reader import to_dict
from verl.utils.errors import DataError, bullet_list
from verl.utils.provenance import git_revision

logger = logging.getLogger(__name__)

_QA = {"question": str, "answer": str}
_TEXT = {"text": str}
PARTS: dict[str, FileSpec] = {
    "knowmem/forget_qa": FileSpec("probe", _QA, rows=100),
    "knowmem/forget_qa_icl": FileSpec("probe", _QA, rows=10),
    "knowmem/retain_qa": FileSpec("probe", _QA, rows=100),
    "knowmem/retain_qa_icl": FileSpec("probe", _QA, rows=10),
    "verbmem/forget": FileSpec("probe", {"prompt": str, "gt": str}, rows=100),
    "privleak/forget": FileSpec("probe", _TEXT, rows=100),
    "privleak/retain": FileSpec("probe", _TEXT, rows=100),
    "privleak/holdout": FileSpec("probe", _TEXT, rows=100),
    "raw/forget": FileSpec("corpus", _TEXT),
    "raw/retain1": FileSpec("corpus", _TEXT),
    "raw/retain2": FileSpec("corpus", _TEXT, required=False),
    "raw/holdout": FileSpec("corpus", _TEXT, required=False),
}
"""Split of MUSE and what its rows hold; written as <split>.json."""

RAW_ROWS = {
    "news": {"raw/forget": 889, "raw/retain1": 1777, "raw/retain2": 1778, "raw/holdout": 3043},
    "books": {"raw/forget": 4, "raw/retain1": 12, "raw/retain2": 13, "raw/holdout": 3},
}
"""Documents of the published corpora (dataset cards of muse-bench/MUSE-News and MUSE-Books)."""
TRAINING = {
    RS_FILE: FileSpec("train", {"instruction": str, "output": str}, required=False),
    RL_FILE: FileSpec("train", {"prompt": str, "solution": list}, required=False),
    VAL_FILE: FileSpec("validation", {"prompt": str, "solution": list}, required=False),
}
SUBJECTS = {"news": "these news articles", "books": "the Harry Potter books"}
RELEASE_SUBJECTS = SUBJECTS | {"books": "Harry Potter"}
"""What the refusals of the RULE release call the corpus."""
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class PrepareConfig:
    """What to prepare, and what the training prompts look like where they have to be made."""

    source: PathText
    """Folder, or dataset id on the Hugging Face hub."""
    corpus: Literal["news", "books"]
    """Which corpus the source is; the output goes to OUT/<corpus>/."""
    out: PathText = "data/MUSE"
    training: PathText | None = None
    """Folder with the RULE release's rows (its data/MUSE/books), where the source has none (the hub's has none)."""
    subject: str | None = None
    """What refusals call the corpus; null takes "these news articles" or "the Harry Potter books" ("Harry Potter" over
    the RULE release's rows, whose refusals say so)."""
    num_passages: int = 300
    """Passages to continue, on the forget and on the retain side each."""
    prompt_words: int = 60
    """Length of a passage's opening, which is the prompt."""
    answer_words: int = 30
    """Length of its continuation, which is the answer on the retain side."""
    refusals: PathText = str(BANK)
    """The refusal bank."""
    val_fraction: float = 0.1
    """Share of the RL rows that goes to validation; 0 makes none."""
    seed: int = 0
    """Of the choice of passages, of the refusals and of the validation split."""
    overwrite: bool = False
    """Replace files that are there with other content."""

    def problems(self) -> list[str]:
        found = [] if 0 <= self.val_fraction < 1 else [f"val_fraction={self.val_fraction}: must be in [0, 1); try 0.1"]
        counts = {name: getattr(self, name) for name in ("num_passages", "prompt_words", "answer_words")}
        return found + [f"{name}={value}: must be at least 1" for name, value in counts.items() if value < 1]


def prepare(config: PrepareConfig) -> Path:
    """Prepare one corpus and return its folder.

    Raises:
        DataError: something is missing, malformed, or would be overwritten; every such thing is named, and nothing is
            written.
    """
    source, provenance = Path(config.source), {"from": config.source, "layout": "folder"}
    if not source.is_dir():
        if not is_hub_id(config.source):
            raise DataError(f"source={source}: is neither a folder nor a hub id like muse-bench/MUSE-News; correct it")
        source = download(config.source, sorted({f"{part.split('/')[0]}/*" for part in PARTS}))
        provenance = {"from": config.source, "layout": "hub", "revision": source.name}
    folder = OutputFolder(Path(config.out) / config.corpus)
    rows, problems, warnings = _collect(source, config, folder)
    if problems:
        raise DataError(bullet_list(f"{config.source}: {len(problems)} problem(s), so nothing was written:", problems))
    training = _add_training(source, folder, rows, config)
    left_out = _left_out(source, rows, training["files"])
    if not config.overwrite and (conflicts := folder.conflicts()):
        raise DataError(bullet_list(f"{folder.path}: {len(conflicts)} conflict(s), nothing was written:", conflicts))
    for warning in warnings:
        logger.warning("%s: %s", config.corpus, warning)
    manifest = {"benchmark": "MUSE", "corpus": config.corpus, "source": provenance, "settings": to_dict(config)}
    manifest |= {"code": git_revision(), "training": training, "left_out": left_out, "warnings": warnings}
    folder.write(manifest)
    logger.info("wrote %s: %d files, training rows %s", folder.path, len(folder.files), training)
    return folder.path


def _aliases(part: str) -> list[str]:
    """The part's name, then MUSE's earlier one: retain2_qa for retain_qa, retain2 for retain."""
    older = part.replace("/retain", "/retain2") if re.match(r"(?:knowmem|privleak)/retain", part) else None
    return [part, older] if older else [part]


def _find(source: Path, part: str) -> list[Path]:
    """The file or the parquet shards of a part; empty where there is none."""
    for name in _aliases(part):
        for ending in (".json", ".jsonl", ".parquet", ".txt"):
            if (source / f"{name}{ending}").is_file():
                return [source / f"{name}{ending}"]
        if shards := sorted(source.glob(f"{name}-[0-9]*.parquet")):
            return shards
    return []


def _collect(source: Path, config: PrepareConfig, folder: OutputFolder) -> tuple[dict[str, list[Row]], list, list]:
    """Add every part to the folder; its rows, the problems and the warnings."""
    rows: dict[str, list[Row]] = {}
    problems, warnings = checksum_problems(source, [f"{p}.json" for p in PARTS if (source / f"{p}.json").is_file()]), []
    for part, spec in PARTS.items():
        paths = _find(source, part)
        if not paths:
            if spec.required:
                tried = " or ".join(f"{name}.{{json,jsonl,parquet,txt}}" for name in _aliases(part))
                problems.append(f"{source}: lacks {tried}; the hub has it as {part}")
            continue
        rows[part] = [row for path in paths for row in read_file(path)]
        problems += schema_problems(rows[part], spec, paths[0])
        expected = spec.rows or RAW_ROWS[config.corpus].get(part)
        if expected is not None and len(rows[part]) != expected:
            warnings.append(f"{part}: {len(rows[part])} rows, {expected} in the published set")
        unchanged = paths[0].suffix == ".json"
        data = paths[0].read_bytes() if unchanged else dump_rows(rows[part])
        folder.add(f"{part}.json", data, spec.role, len(rows[part]), unchanged)
    return rows, problems, warnings


@dataclass
class _Training:
    """RS and RL rows, where they come from, and what is known of them."""

    origin: str
    """``source`` (ready files), ``release`` (the RULE release's rows) or ``raw`` (passages of the corpora)."""
    rs_rows: list[Row]
    rl_rows: list[Row]
    val_rows: list[Row] = field(default_factory=list)
    links: list[list[str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    """Files that were read."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Rows of them by reason."""


def _add_training(source: Path, folder: OutputFolder, rows: dict[str, list[Row]], config: PrepareConfig) -> dict:
    """Add the RS, RL and validation files; what the manifest says of them."""
    probes = ProbeIndex(text for part in PARTS if part in PROBE_FIELDS for text in texts_of(part, rows[part]))
    made = (
        _ready_rows(source) or _release_rows(source, rows, probes, config) or _continuation_rows(rows, probes, config)
    )
    subject = next((row["solution"][2] for row in made.rl_rows if tag_of(row) == "<reject>"), "")
    checker = RowChecker(TargetName(subject), probes)
    flaws = Counter(filter(None, map(checker.published_row, made.rl_rows)))
    if config.val_fraction > 0 and not made.val_rows:
        train, held_out = split_validation(
            made.rl_rows,
            fraction=config.val_fraction,
            seed=config.seed,
            linked_prompts=made.links,
            keep=[number for number, row in enumerate(made.rl_rows) if probes.overlap(row["prompt"])],
        )
        made.val_rows, made.rl_rows = ([made.rl_rows[number] for number in side] for side in (held_out, train))
        prompts = {row["prompt"] for row in made.val_rows}
        made.rs_rows = [row for row in made.rs_rows if row["instruction"] not in prompts]
    for name, left in ((RS_FILE, made.rs_rows), (RL_FILE, made.rl_rows), (VAL_FILE, made.val_rows)):
        if left:
            folder.add(name, dump_rows(left), TRAINING[name].role, len(left), unchanged=False)
    both = made.rl_rows + made.val_rows
    return {
        "from": made.origin,
        "files": made.files,
        "left_out": made.left_out,
        "flaws": dict(flaws),
        "rs": len(made.rs_rows),
        "rl": len(made.rl_rows),
        "validation": len(made.val_rows),
        "split": division(made.rl_rows, made.val_rows),
        "answers": {
            "forget": sum(tag_of(row) == "<reject>" and "answer" in row for row in both),
            "boundary": sum(tag_of(row) == "<normal>" for row in both),
        },
    }


def _ready_rows(source: Path) -> _Training | None:
    """RS and RL files that need no mapping, where the source has both.

    Raises:
        DataError: they are malformed, or most of their refusals are none.
    """
    own = {name: source / name for name in TRAINING if (source / name).is_file()}
    if RS_FILE not in own or RL_FILE not in own:
        return None
    given = {name: read_file(path) for name, path in own.items()}
    problems = [line for name, path in own.items() for line in schema_problems(given[name], TRAINING[name], path)]
    if not problems:
        problems = _spoilt(own[RS_FILE], given[RS_FILE], given[RL_FILE])
    if problems:
        raise DataError(bullet_list("the source's training files:", problems))
    return _Training("source", given[RS_FILE], given[RL_FILE], given.get(VAL_FILE, []), files=list(own))


def _release_rows(
    source: Path, rows: dict[str, list[Row]], probes: ProbeIndex, config: PrepareConfig
) -> _Training | None:
    """The RULE release's rows, mapped, where the source or ``training=`` has them.

    Where their neighbors are missing, passages of ``raw/retain1`` are the boundary rows.

    Raises:
        DataError: ``training=`` holds none, or most of the refusals are none or misspell their subject.
    """
    folder = Path(config.training) if config.training else source
    subject = config.subject or RELEASE_SUBJECTS[config.corpus]
    release = read_release(folder, subject, rows["raw/forget"])
    if release is None:
        if config.training:
            raise DataError(
                f"training={folder}: holds neither {RS_ROWS} nor {NEIGHBOR_ROWS}; give the folder that does"
            )
        return None
    if problems := _spoilt(folder / release.files[0], release.rs_rows, release.rl_rows):
        raise DataError(bullet_list("the rows of the RULE release:", problems))
    if not release.links:
        passages = _passages("raw/retain1", rows["raw/retain1"], probes, config, len(release.rl_rows))
        release.rl_rows += [_boundary_row(prompt, answer) for prompt, answer in passages]
    return _Training(
        "release",
        release.rs_rows,
        release.rl_rows,
        links=release.links,
        files=release.files,
        left_out=dict(release.left_out),
    )


def _spoilt(path: Path, rs_rows: list[Row], rl_rows: list[Row]) -> list[str]:
    """Whether most refusals are none, or misspell what they refuse to speak of. Prompts of MUSE do not name it."""
    subject = next((row["solution"][2] for row in rl_rows if tag_of(row) == "<reject>"), "")
    checker = RowChecker(TargetName(subject), ProbeIndex())
    return spoilt([checker.refusal_row(subject, row["output"]) for row in rs_rows], str(path))


def _left_out(source: Path, rows: dict[str, list[Row]], used: list[str]) -> dict[str, str]:
    """Data files of the source that nothing was read from."""
    read = {path for part in rows for path in _find(source, part)} | {source / name for name in used}
    there = [
        path
        for folder in ("", *sorted({part.split("/")[0] for part in PARTS}))
        for path in (source / folder).glob("*.*")
    ]
    reasons = {
        **dict.fromkeys((RS_FILE, RL_FILE, VAL_FILE), f"needs both {RS_FILE} and {RL_FILE}"),
        **dict.fromkeys((RS_ROWS, NEIGHBOR_ROWS), "other training rows were taken"),
    }
    return {
        str(path.relative_to(source)): reasons.get(path.name, "not used by RULE")
        for path in sorted(there)
        if path.is_file() and path.suffix in (".json", ".jsonl", ".parquet", ".txt") and path not in read
        if path.name != MANIFEST
    }


def _continuation_rows(rows: dict[str, list[Row]], probes: ProbeIndex, config: PrepareConfig) -> _Training:
    """RS rows and RL rows (a forget passage and a retain passage in turn) out of the raw corpora."""
    subject = config.subject or SUBJECTS[config.corpus]
    forget = _passages("raw/forget", rows["raw/forget"], probes, config, config.num_passages)
    retain = _passages("raw/retain1", rows["raw/retain1"], probes, config, config.num_passages)
    count = min(len(forget), len(retain))
    if count < config.num_passages:
        logger.warning("num_passages=%d: only %d of each side are free of probes", config.num_passages, count)
    refusals = deal_refusals(load_refusals(config.refusals), count, subject, config.seed)
    made = _Training("raw", [], [])
    for (prompt, gold), (retain_prompt, answer), refusal in zip(forget, retain, refusals, strict=False):
        more = {"mode": "completion", "answer": " ".join(gold.split()[:CONTINUATION])}
        made.rs_rows.append(
            {"instruction": prompt, "input": "", "output": refusal, "subject": subject, "intro": "", **more}
        )
        made.rl_rows.append({"prompt": prompt, "solution": ["<reject>", refusal, subject], "subject": subject, **more})
        made.rl_rows.append(_boundary_row(retain_prompt, answer))
    return made


def _boundary_row(prompt: str, answer: str) -> Row:
    return {"prompt": prompt, "solution": ["<normal>", answer], "subject": "retain", "mode": "completion"}


def _passages(
    part: str, rows: list[Row], probes: ProbeIndex, config: PrepareConfig, count: int
) -> list[tuple[str, str]]:
    """Opening and continuation of up to ``count`` passages that overlap with no probe, spread over the corpus by hash.

    Raises:
        DataError: there is not one.
    """
    windows: list[tuple[str, str]] = []
    for row in rows:
        spans = [match.span() for match in _WORD.finditer(row["text"])]
        length = config.prompt_words + config.answer_words
        for first in range(0, len(spans) - length + 1, length):
            cut, end = first + config.prompt_words, first + length
            prompt = row["text"][spans[first][0] : spans[cut - 1][1]]
            windows.append((prompt, row["text"][spans[cut][0] : spans[end - 1][1]]))
    ranked = sorted(windows, key=lambda window: hashlib.sha256(f"{config.seed}\n{window[0]}".encode()).hexdigest())
    free: list[tuple[str, str]] = []
    for window in ranked:
        if len(free) == count:
            break
        if probes.overlap(" ".join(window)) is None:
            free.append(window)
    if not free:
        raise DataError(
            f"{part}: none of its {len(windows)} passages of {config.prompt_words}+{config.answer_words} words is free "
            "of probes; lower prompt_words and answer_words, or put RS and RL files of your own into the source"
        )
    return free


if __name__ == "__main__":
    sys.exit(run_cli(PrepareConfig, prepare, sys.argv[1:]))
