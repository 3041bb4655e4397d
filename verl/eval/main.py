"""The evaluator's command line: ``python3 -m verl.eval.main model=DIR suite=rwku data=FOLDER out=DIR [key=value]``.

Every row of a table comes through here, with one decoding. Parts that are finished are not measured again; parts that
generate share one vLLM engine, parts that need likelihoods share one Hugging Face model, and the two are never in
memory together. Leaves out tables (``scripts/make_table.py``) and the demo's report (``verl.eval.report``).
"""

import json
import logging
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from verl.utils import provenance
from verl.utils.atomic import write_json, write_text
from verl.utils.cli import TIMED, run_cli
from verl.utils.config import to_dict
from verl.utils.errors import ConfigError, DataError, bullet_list

from . import results
from .config import EvalConfig
from .engines import Engines
from .generation import resolve_dtype
from .selection import selection

logger = logging.getLogger(__name__)


def evaluate(config: EvalConfig, engines: Engines | None = None) -> dict[str, Any]:
    """Measure what is not measured yet and return the content of ``OUT/results.json``.

    Args:
        engines: shared by several evaluations, so that checkpoints of one architecture need one engine only.

    Raises:
        ConfigError: for settings that do not fit the suite.
        DataError: for missing or malformed data or model files, or an ``out`` folder that holds another model's or
            decoding's parts.
    """
    out, data = Path(config.out), Path(config.data)
    parts = select_parts(config)
    folder, identities = inspect(config, parts)
    # Everything that can be wrong with the folders is found before an engine starts.
    pending = [part for part in parts if not _is_finished(out, identities[part.name])]
    document = _document(config, results.model_identity(folder), out)
    if pending:
        (out / "DONE").unlink(missing_ok=True)
    with nullcontext(engines) if engines else Engines() as opened:
        for part in sorted(pending, key=lambda part: part.engine):  # generation first; the order is kept within a kind
            _measure(part, opened.get(part.engine, str(folder), config), data, out, identities[part.name])
    for part in parts:
        document["parts"][part.name] = _entry(part, out, identities[part.name], config)
    write_json(out / "results.json", document)
    write_text(out / "DONE", "")
    return document


def select_parts(config: EvalConfig) -> list[results.Part]:
    """The suite's parts that the config asks for.

    Raises:
        ConfigError: for a part that the suite does not have, or that cannot be measured as configured.
    """
    if config.suite == "muse":
        from . import muse as suite
    else:
        from . import rwku as suite

    known = {part.name: part for part in suite.parts(config)}
    wanted = list(known) if config.parts is None else config.parts
    problems = [
        f"parts: {config.suite} has no part {name}; it has {', '.join(known)}" for name in wanted if name not in known
    ]
    chosen = [part for name, part in known.items() if name in wanted]
    by_likelihood = [part.name for part in chosen if part.engine == "likelihood"]
    if config.quantization and by_likelihood:
        problems.append(
            f"quantization={config.quantization}: cannot be applied to {', '.join(by_likelihood)}, which need "
            "likelihoods; name the other parts in parts=[...]"
        )
    if problems:
        raise ConfigError(bullet_list("the evaluation cannot start:", problems))
    return chosen


def resolve_model(model: str) -> Path:
    """The local folder of a checkpoint; a hub id is downloaded or found in the cache.

    Raises:
        DataError: if there is neither.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, ignore_patterns=["*.pth", "*.gguf", "original/*"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(f"model={model}: is neither a folder nor a hub id that can be had ({error})") from error


def _engine(config: EvalConfig) -> dict[str, Any]:
    """What of the engines' settings can change a row. Splitting over GPUs and batch sizes are not among them."""
    return {
        "dtype": resolve_dtype(config.dtype),
        "quantization": config.quantization,
        "max_model_len": config.max_model_len,
    }


def inspect(config: EvalConfig, parts: list[results.Part]) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The model's folder and every part's identity.

    Raises:
        DataError: listing everything that is wrong with the model and the data.
    """
    data, problems, folder, identities = Path(config.data), [], Path(config.model), {}
    try:
        folder = resolve_model(config.model)
        problems += _model_problems(folder, parts, config.max_model_len)
    except DataError as error:
        problems.append(str(error))
    if not data.is_dir():
        problems.append(f"data={data}: there is no such folder")
        parts = []
    model = {} if problems else results.model_identity(folder)
    for part in parts:
        try:
            identities[part.name] = results.part_identity(part, model=model, engine=_engine(config), data=data)
            part.check(data)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError(bullet_list("the evaluation cannot start:", problems))
    return folder, identities


def _model_problems(folder: Path, parts: list[results.Part], max_model_len: int | None) -> list[str]:
    files = {path.name for path in folder.iterdir()}
    needed = {
        "config.json": "config.json" in files,
        "tokenizer": not files.isdisjoint({"tokenizer_config.json", "tokenizer.json", "tokenizer.model"}),
        " or ".join(results.WEIGHT_SUFFIXES): any(name.endswith(results.WEIGHT_SUFFIXES) for name in files),
    }
    if missing := [name for name, found in needed.items() if not found]:
        return [f"model={folder}: has no {', no '.join(missing)}; give a Hugging Face folder"]
    limit = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
    positions = min(filter(None, (limit, max_model_len)), default=None)
    if long := [part.name for part in parts if positions and part.decoding.get("max_new_tokens", 0) >= positions]:
        return [
            f"model={folder}: its {positions} positions have no room for the answers of {', '.join(long)}; leave these "
            "out of parts=[...], or raise max_model_len where the model allows it"
        ]
    return []


def _is_finished(out: Path, identity: dict[str, Any]) -> bool:
    path = results.part_path(out, identity["part"])
    if not path.is_file():
        return False
    results.read_part(path, identity)
    logger.info("part %s is finished: %s", identity["part"], path)
    return True


def _measure(part: results.Part, engine: Any, data: Path, out: Path, identity: dict[str, Any]) -> None:
    started, truncated = time.monotonic(), engine.truncated
    rows = part.run(data, engine)
    seconds = round(time.monotonic() - started, 1)
    results.write_part(out, identity, rows, seconds=seconds, truncated=engine.truncated - truncated)
    logger.info("part %s: %d examples in %.1f s", part.name, len(rows), seconds)


def _entry(part: results.Part, out: Path, identity: dict[str, Any], config: EvalConfig) -> dict[str, Any]:
    header, rows = results.read_part(results.part_path(out, part.name))
    return {
        "decoding": identity["decoding"],
        "data": identity["data"],
        "fingerprint": header["fingerprint"],
        "examples": len(rows),
        "truncated": header["truncated"],
        "seconds": header["seconds"],
        "metrics": results.summarise(part.score(rows), resamples=config.bootstrap_samples, seed=config.seed),
    }


def _document(config: EvalConfig, model: dict[str, str], out: Path) -> dict[str, Any]:
    """results.json without this run's parts; parts of earlier runs over the same model stay.

    Raises:
        DataError: if the folder holds results of another model or suite.
    """
    document: dict[str, Any] = {
        "format": results.FORMAT,
        "suite": config.suite,
        "model": {"path": config.model, **model},
        "selection": selection(config.model),
        "engine": _engine(config),
        "data": {"path": config.data},
        "config": to_dict(config),
        "git_revision": provenance.git_revision(),
        "versions": results.package_versions(),
        "device": _device(),
        "seed": config.seed,
        "parts": {},
    }
    if (out / "results.json").is_file():
        before = results.read_results(out)
        if _subject(before) != _subject(document):
            raise DataError(
                f"out={out}: holds results of {_subject(before)}, and this run measures {_subject(document)}; "
                "give another out= folder"
            )
        document["parts"] = before["parts"]
    return document


def _subject(document: dict[str, Any]) -> dict[str, Any]:
    """What all parts of one results.json have in common; folders may have moved since."""
    model = {key: value for key, value in document["model"].items() if key != "path"}
    data = Path(document["data"]["path"]).name
    return {"suite": document["suite"], "model": model, "engine": document["engine"], "data": data}


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def measure(config: EvalConfig) -> None:
    """Evaluate, and log the numbers."""
    document = evaluate(config)
    for name, entry in document["parts"].items():
        shown = "  ".join(
            f"{metric} {value['value']:.1f}" for metric, value in entry["metrics"].items() if "/" not in metric
        )
        logger.info("%-10s %s", name, shown)
    logger.info("written to %s", Path(config.out) / "results.json")


def main(argv: list[str]) -> int:
    return run_cli(EvalConfig, measure, argv, TIMED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
