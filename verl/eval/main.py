"""The evaluator's command line: ``python3 -m verl.eval.main model=DIR suite=rwku data=FOLDER out=DIR [key=value]``.

Every row of a table comes through here, with one decoding. Parts that are finished are not measured again; parts that
generate share one vLLM engine, also over several targets and models, parts that need likelihoods share one Hugging Face
model, and the two are never in memory together. Leaves out tables (``scripts/make_table.py``) and the demo's report
(``verl.eval.report``).
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from verl.models.model_config import read_decoder_settings
from verl.settings.cli import TIMED, run_cli
from verl.settings.reader import to_dict
from verl.utils import provenance
from verl.utils.atomic import write_json, write_text
from verl.utils.chat import check_system_prompt, check_template_kwargs
from verl.utils.errors import ConfigError, DataError, bullet_list
from verl.utils.tokenizer import get_tokenizer

from . import results
from .config import EvalCommand, EvalConfig
from .engines import Engines
from .generation import resolve_dtype
from .origin import base_model, data_source, training_record
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
    return evaluate_all([config], engines)[0]


def evaluate_all(configs: list[EvalConfig], engines: Engines | None = None) -> list[dict[str, Any]]:
    """As ``evaluate``, for several targets and models: all of them generate before the first needs likelihoods."""
    # Everything that can be wrong with any of them is found before an engine starts.
    plans = _plans(configs)
    with nullcontext(engines) if engines else Engines() as opened:
        for kind in ("generation", "likelihood"):
            for plan in plans:
                if parts := [part for part in plan.pending if part.engine == kind]:
                    _measure(parts, opened.get(kind, str(plan.folder), plan.config), plan)
    return [_finish(plan) for plan in plans]


def targets(config: EvalConfig) -> list[EvalConfig]:
    """One evaluation per target: ``data`` itself, or every folder in it that has a file of the parts to measure."""
    data, files = Path(config.data), {name for part in select_parts(config) for name in part.files}

    def is_target(folder: Path) -> bool:
        return any((folder / name).is_file() for name in files)

    if not data.is_dir() or is_target(data):
        return [config]
    found = sorted(filter(is_target, data.iterdir()), key=lambda folder: results.counting(folder.name))
    each = [replace(config, data=str(folder), out=str(Path(config.out) / folder.name)) for folder in found]
    return each or [config]


@dataclass(frozen=True)
class _Plan:
    """An evaluation that can start."""

    config: EvalConfig
    parts: list[results.Part]
    folder: Path
    """Of the model."""
    identities: dict[str, dict[str, Any]]
    pending: list[results.Part]
    document: dict[str, Any]

    @property
    def out(self) -> Path:
        return Path(self.config.out)


def _plans(configs: list[EvalConfig]) -> list[_Plan]:
    plans, problems = [], []
    for config in configs:
        parts = select_parts(config)
        try:
            folder, identities = inspect(config, parts)
            pending = [part for part in parts if not _is_finished(Path(config.out), identities[part.name])]
            document = _document(config, results.model_identity(folder), Path(config.out))
            plans.append(_Plan(config, parts, folder, identities, pending, document))
        except ConfigError as error:
            raise ConfigError(f"model={config.model}: {error}") from error
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(dict.fromkeys(problems)))
    return plans


def _finish(plan: _Plan) -> dict[str, Any]:
    for part in plan.parts:
        plan.document["parts"][part.name] = _entry(part, plan)
    write_json(plan.out / "results.json", plan.document)
    write_text(plan.out / "DONE", "")
    return plan.document


def select_parts(config: EvalConfig) -> list[results.Part]:
    """The suite's parts that the config asks for.

    Raises:
        ConfigError: for a part that the suite does not have, or that cannot be measured as configured.
    """
    if config.suite == "muse":
        from . import muse as suite
    elif config.suite == "validation":
        from . import validation as suite
    else:
        from . import rwku as suite

    known = {part.name: part for part in suite.parts(config)}
    wanted = [name for name, part in known.items() if not part.on_request] if config.parts is None else config.parts
    problems = [
        f"parts: {config.suite} has no part {name}; it has {', '.join(known)}" for name in wanted if name not in known
    ]
    if "naturalness" in wanted and "naturalness" not in known and config.suite in ("rwku", "atlas"):
        problems = ["parts: naturalness needs a judge; give judge.base_url=http://HOST:PORT/v1 and judge.model=NAME"]
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
        ConfigError: for a template argument that the model's chat template does not read.
        DataError: listing everything that is wrong with the model and the data.
    """
    data, problems, folder, identities = Path(config.data), [], Path(config.model), {}
    tokenizer = cache(lambda: get_tokenizer(str(folder), trust_remote_code=config.trust_remote_code))
    try:
        folder = resolve_model(config.model)
        problems += _model_problems(folder, parts, config.max_model_len)
    except DataError as error:
        problems.append(str(error))
    if not data.is_dir():
        problems.append(f"data={data}: there is no such folder")
        parts = []
    if not problems and (config.chat_template_kwargs or config.system_prompt):
        check_template_kwargs(tokenizer(), config.chat_template_kwargs, "chat_template_kwargs")
        if any(one.decoding.get("system_prompt") and one.decoding.get("prompt_style") != "raw" for one in parts):
            check_system_prompt(tokenizer(), config.system_prompt, "system_prompt", config.chat_template_kwargs)
    model = {} if problems else results.model_identity(folder)
    for part in parts:
        try:
            identities[part.name] = results.part_identity(part, model=model, engine=_engine(config), data=data)
            part.check(data)
            if part.texts is not None and not problems:
                from .likelihood import encode_texts

                encode_texts(tokenizer(), part.texts(data))
        except DataError as error:
            problems.append(str(error) if str(error).startswith("part ") else f"part {part.name}: {error}")
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
    limit = read_decoder_settings(folder / "config.json").get("max_position_embeddings")
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


def _measure(parts: list[results.Part], engine: Any, plan: _Plan) -> None:
    """Measure these parts, all of one kind of engine, and write each as soon as it is there."""
    (plan.out / "DONE").unlink(missing_ok=True)
    started, truncated = time.monotonic(), engine.truncated
    for part, rows in _answered(parts, engine, plan) if parts[0].engine == "generation" else _read(parts, engine, plan):
        with _named(part, plan):
            results.check_finite(rows)
        seconds = round(time.monotonic() - started, 1)  # what is answered at once counts for the part that ends first
        extra = {"seconds": seconds, "truncated": engine.truncated - truncated}
        results.write_part(plan.out, plan.identities[part.name], rows, **extra)
        logger.info("part %s: %d examples in %.1f s", part.name, len(rows), seconds)
        started, truncated = time.monotonic(), engine.truncated


def _read(parts: list[results.Part], engine: Any, plan: _Plan) -> Iterator[tuple[results.Part, list[results.Row]]]:
    """The rows of parts that need likelihoods, one part after the other."""
    for part in parts:
        with _named(part, plan):
            rows = part.run(Path(plan.config.data), engine)
        yield part, rows


def _answered(parts: list[results.Part], engine: Any, plan: _Plan) -> Iterator[tuple[results.Part, list[results.Row]]]:
    """The rows of parts that ask, whose prompts all go to the engine at once, in the order in which they end."""
    interviews, requests = [], []
    for part in parts:
        with _named(part, plan):
            interviews.append(part.run(Path(plan.config.data), engine))
            requests.append(next(interviews[-1]))
    for number, answers in engine.answer(requests):
        with _named(parts[number], plan):
            rows = results.concluded(interviews[number], answers)
        yield parts[number], rows


def _entry(part: results.Part, plan: _Plan) -> dict[str, Any]:
    header, rows = results.read_part(results.part_path(plan.out, part.name))
    with _named(part, plan):
        metrics = results.summarise(part.score(rows), resamples=plan.config.bootstrap_samples, seed=plan.config.seed)
    return {
        "decoding": plan.identities[part.name]["decoding"],
        "data": plan.identities[part.name]["data"],
        "fingerprint": header["fingerprint"],
        "examples": len(rows),
        "truncated": header["truncated"],
        "seconds": header["seconds"],
        "metrics": metrics,
    }


@contextmanager
def _named(part: results.Part, plan: _Plan) -> Iterator[None]:
    """Says of which part and model a DataError speaks."""
    try:
        yield
    except DataError as error:
        config = plan.config
        raise DataError(f"part {part.name} of model={config.model}, data={config.data}: {error}") from error


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
        "base_model": base_model(config.model),
        "training": training_record(config.model, Path(config.data)),
        "data": {"path": config.data, "source": data_source(Path(config.data))},
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


def measure(command: EvalCommand) -> None:
    """Evaluate, and log the numbers."""
    of_each = {config.out: targets(config) for config in command.each()}
    for out, found in of_each.items():
        if len(found) > 1:
            (Path(out) / "DONE").unlink(missing_ok=True)
    each = [one for found in of_each.values() for one in found]
    for one, document in zip(each, evaluate_all(each), strict=True):
        if len(each) > 1:
            logger.info("%s, %s", one.model, Path(one.data).name)
        for name, entry in document["parts"].items():
            shown = "  ".join(
                f"{metric} {value['value']:.1f}" for metric, value in entry["metrics"].items() if "/" not in metric
            )
            logger.info("%-10s %s", name, shown)
        logger.info("written to %s", Path(one.out) / "results.json")
    for out in of_each:
        write_text(Path(out) / "DONE", "")


def main(argv: list[str]) -> int:
    return run_cli(EvalCommand, measure, argv, TIMED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
