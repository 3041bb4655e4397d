"""Turns MUSE's News or Books corpus into the folder that training and evaluation read.

    python3 data/prepare_muse.py source=PATH_OR_HUB_ID corpus=news|books [key=value ...]

``source`` is a Hugging Face dataset id (muse-bench/MUSE-News, muse-bench/MUSE-Books), a copy of it, or a folder with
``knowmem/``, ``verbmem/``, ``privleak/`` and ``raw/`` in JSON, JSONL, text or parquet. JSON probes are copied byte for
byte, the others become JSON rows. MUSE publishes no prompts to train a refusal on: where the source has no RULE files
either, they are cut out of ``raw/forget`` and ``raw/retain1`` as passages to continue, none of which overlaps with a
probe. Left out: MUSE's ``scal``, ``sust`` and ``train`` parts.
"""

import hashlib
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from data.common.files import FileSpec, OutputFolder, Row, checksum_problems, dump_rows, read_rows, schema_problems
from data.common.probes import PROBE_FIELDS, ProbeIndex, texts_of
from data.common.refusals import BANK, deal_refusals, load_refusals
from data.common.sources import download, is_hub_id
from data.common.splits import split_validation
from data.prepare_rwku import RL_FILE, RS_FILE, VAL_FILE
from verl.utils.cli import run_cli
from verl.utils.config import to_dict
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
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class PrepareConfig:
    """What to prepare, and what the training prompts look like where they have to be made."""

    source: str
    """Folder, or dataset id on the Hugging Face hub."""
    corpus: Literal["news", "books"]
    """Which corpus the source is; the output goes to OUT/<corpus>/."""
    out: str = "data/MUSE"
    subject: str | None = None
    """What refusals call the corpus; null takes "these news articles" or "the Harry Potter books"."""
    num_passages: int = 300
    """Passages to continue, on the forget and on the retain side each."""
    prompt_words: int = 60
    """Length of a passage's opening, which is the prompt."""
    answer_words: int = 30
    """Length of its continuation, which is the answer on the retain side."""
    refusals: str = str(BANK)
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
    if not config.overwrite and (conflicts := folder.conflicts()):
        raise DataError(bullet_list(f"{folder.path}: {len(conflicts)} conflict(s), nothing was written:", conflicts))
    for warning in warnings:
        logger.warning("%s: %s", config.corpus, warning)
    manifest = {"benchmark": "MUSE", "corpus": config.corpus, "source": provenance, "settings": to_dict(config)}
    folder.write(manifest | {"code": git_revision(), "training": training, "warnings": warnings})
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
        rows[part] = [row for path in paths for row in read_rows(path)]
        problems += schema_problems(rows[part], spec, paths[0])
        expected = spec.rows or RAW_ROWS[config.corpus].get(part)
        if expected is not None and len(rows[part]) != expected:
            warnings.append(f"{part}: {len(rows[part])} rows, {expected} in the published set")
        unchanged = paths[0].suffix == ".json"
        data = paths[0].read_bytes() if unchanged else dump_rows(rows[part])
        folder.add(f"{part}.json", data, spec.role, len(rows[part]), unchanged)
    return rows, problems, warnings


def _add_training(source: Path, folder: OutputFolder, rows: dict[str, list[Row]], config: PrepareConfig) -> dict:
    """Add the RS, RL and validation files: the source's own where it has both, else made from the raw corpora."""
    own = {name: source / name for name in TRAINING if (source / name).is_file()}
    if RS_FILE in own and RL_FILE in own:
        given = {name: read_rows(path) for name, path in own.items()}
        problems = [line for name, path in own.items() for line in schema_problems(given[name], TRAINING[name], path)]
        if problems:
            raise DataError(bullet_list("the source's training files:", problems))
        rs_rows, rl_rows, val_rows, origin = given[RS_FILE], given[RL_FILE], given.get(VAL_FILE, []), "source"
    else:
        rs_rows, rl_rows = _continuation_rows(rows, config)
        val_rows, origin = [], "raw"
    if config.val_fraction > 0 and not val_rows:
        train, held_out = split_validation(rl_rows, fraction=config.val_fraction, seed=config.seed)
        val_rows, rl_rows = [rl_rows[number] for number in held_out], [rl_rows[number] for number in train]
        prompts = {row["prompt"] for row in val_rows}
        rs_rows = [row for row in rs_rows if row["instruction"] not in prompts]
    for name, made in ((RS_FILE, rs_rows), (RL_FILE, rl_rows), (VAL_FILE, val_rows)):
        if made:
            folder.add(name, dump_rows(made), TRAINING[name].role, len(made), unchanged=False)
    return {"from": origin, "rs": len(rs_rows), "rl": len(rl_rows), "validation": len(val_rows)}


def _continuation_rows(rows: dict[str, list[Row]], config: PrepareConfig) -> tuple[list[Row], list[Row]]:
    """RS rows and RL rows (a forget passage and a retain passage in turn) out of the raw corpora."""
    subject = config.subject or SUBJECTS[config.corpus]
    probes = ProbeIndex(text for part in PARTS if part in PROBE_FIELDS for text in texts_of(part, rows[part]))
    forget = _passages("raw/forget", rows["raw/forget"], probes, config)
    retain = _passages("raw/retain1", rows["raw/retain1"], probes, config)
    count = min(len(forget), len(retain))
    if count < config.num_passages:
        logger.warning("num_passages=%d: only %d of each side are free of probes", config.num_passages, count)
    refusals = deal_refusals(load_refusals(config.refusals), count, subject, config.seed)
    rs_rows, rl_rows = [], []
    for (prompt, _), (retain_prompt, answer), refusal in zip(forget, retain, refusals, strict=False):
        rs_rows.append({"instruction": prompt, "input": "", "output": refusal, "subject": subject, "intro": ""})
        rl_rows.append({"prompt": prompt, "solution": ["<reject>", refusal, subject], "subject": subject})
        rl_rows.append({"prompt": retain_prompt, "solution": ["<normal>", answer], "subject": "retain"})
    return rs_rows, rl_rows


def _passages(part: str, rows: list[Row], probes: ProbeIndex, config: PrepareConfig) -> list[tuple[str, str]]:
    """Opening and continuation of passages that overlap with no probe, spread over the corpus by hash.

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
        if len(free) == config.num_passages:
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
