"""Where a checkpoint and its data come from: the model that training started with, the rows that it saw, the source.

Runs are followed by the config.yaml that they leave: a ReBO checkpoint to its RS model, and that one to the original.
Recorded in results.json, so that a table can name models and print token shares that were measured.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from verl.rows.files import read_json
from verl.rows.sources import find_sources, read_file, read_rows
from verl.rows.values import SPLIT_OF_TAG, is_number, is_tagged
from verl.utils.errors import DataError
from verl.utils.provenance import file_sha256
from verl.verdict.answers import count_words

logger = logging.getLogger(__name__)

CHECKPOINT = re.compile(r"global_step_\d+|epoch_\d+")
PROMPT_KEYS = {"prompt", "instruction", "text", "messages"}
CORPORA = {"forget": ("positive.json", "raw/forget.json"), "boundary": ("raw/retain1.json",)}
"""Side to the files of a data folder that hold its whole corpus (RWKU, MUSE), which gradient methods train on."""


def base_model(model: str) -> str:
    """The model that training started from; ``model`` itself where no run is known to have made it."""
    *_, (_, start) = [("", model), *_runs(model)]
    return start


def _runs(model: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The configurations of the runs that made a checkpoint, the last first, each with the model it started from."""
    seen = set()
    while model not in seen:
        seen.add(model)
        config = _run_config(Path(model))
        start = (config or {}).get("model") or _dig(config, "worker", "actor", "model", "model_path")
        if not start:
            return
        yield config, start
        model = start


def _run_config(checkpoint: Path) -> dict[str, Any] | None:
    """config.yaml of the run whose ``epoch_k`` or ``checkpoints/global_step_N`` a checkpoint is."""
    for folder in (checkpoint, *checkpoint.parents):
        if CHECKPOINT.fullmatch(folder.name):
            for run in (folder.parent, folder.parent.parent):
                if (run / "config.yaml").is_file():
                    return yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
            return None
    return None


def _dig(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def data_source(data: Path) -> dict[str, Any] | None:
    """What a data folder's manifest says of its source (hub id and revision, or a folder); None without a manifest."""
    manifest = data / "manifest.json"
    held = read_json(manifest) if manifest.is_file() else None
    return held.get("source") if isinstance(held, dict) else None


def training_record(model: str, data: Path) -> dict[str, Any] | None:
    """The rows that the last run of a checkpoint trained on, and their share of the full corpora.

    RULE's table (arXiv 2506.07171) prints such shares. A row counts with its prompt and its answer. Words and
    punctuation marks are counted, whatever the model's tokenizer, so that rows of several models compare.

    Returns:
        ``files`` (path to SHA-256), ``tokens`` and ``percent`` by side (forget, boundary; the percentage is None where
        the data folder has no corpus of that side). None where the run or its files are not here any more.
    """
    run = next(_runs(model), None)
    sources = _sources(run[0]) if run else {}
    names = {name for given in sources.values() for name in given}
    if not sources or not all(source.path.exists() for source in find_sources(sorted(names))):
        return None
    tokens, response = dict.fromkeys(CORPORA, 0), run[0].get("response_key")
    try:
        rows = {sides: read_rows(given) for sides, given in sources.items()}
    except DataError as error:
        logger.warning("what %s was trained on cannot be read any more: %s", model, error)
        return None
    for sides, read in rows.items():
        for row in read:
            if PROMPT_KEYS.isdisjoint(row):  # the run named other columns: nothing is known of their sides either
                return None
            side = _side(row, sides[0])
            tokens[side] += _length(row, response) if side in sides else 0
    percent = {side: _percent(tokens[side], [data / name for name in CORPORA[side]]) for side in CORPORA}
    return {"files": _hashes(names), "tokens": tokens, "percent": percent}


def _sources(run: dict[str, Any]) -> dict[tuple[str, ...], list[str]]:
    """The sides that a run takes from its files: RL trains on both at once, RS has a file for each."""
    given = {("forget", "boundary"): _dig(run, "data", "train_files")}
    if not isinstance(run.get("data"), dict):
        given = {("forget",): run.get("data"), ("boundary",): run.get("retain_data")}
    return {sides: [names] if isinstance(names, str) else names for sides, names in given.items() if names}


def _side(row: dict[str, Any], usual: str) -> str:
    """RL rows say themselves which side they are of."""
    solution = row.get("solution")
    return SPLIT_OF_TAG.get(solution[0], usual) if is_tagged(solution) else usual


def _length(row: dict[str, Any], response_key: str | None = None) -> int:
    """Words and punctuation marks of a row's prompt and of what is learned as its answer."""
    if "messages" in row:
        return _words(row["messages"])
    answer = row.get("solution", row.get("output", row.get("response")))
    if isinstance(answer, list):  # behind a tag, of several, or of a pair
        answer = answer[1:2] if is_tagged(answer) else answer[:1]
    answer = row.get(response_key, answer) if response_key else answer
    prompt = row.get("prompt", row.get("instruction", row.get("text")))
    return _words([prompt, answer, *(row.get(key) for key in ("input", "system", "history") if "instruction" in row)])


def _words(value: Any) -> int:
    """Of the texts and numbers in a column, which may be a conversation."""
    if isinstance(value, list):
        return sum(map(_words, value))
    if isinstance(value, dict):
        return _words(value.get("content", value.get("text")))
    return count_words(str(value)) if isinstance(value, str) or is_number(value) else 0


def _percent(tokens: int, corpora: list[Path]) -> float | None:
    whole = sum(_length(row) for path in corpora if path.is_file() for row in read_file(path))
    return 0.0 if not tokens else 100 * tokens / whole if whole else None


def _hashes(names: set[str]) -> dict[str, str]:
    files = {str(source.path) for source in find_sources(sorted(names)) if source.path.is_file()}
    return {file: file_sha256(file) for file in sorted(files)}
