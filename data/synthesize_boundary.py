"""Writes a target's RS and RL training files with a language model, from the target's name and introduction alone.

    python3 data/synthesize_boundary.py target="Stephen King" intro="Stephen King is ..." out=FOLDER \\
        endpoint.base_url=http://127.0.0.1:8000/v1 endpoint.model=NAME        # or local.model=PATH_OR_HUB_ID

The model writes forget questions, a cloze of each, a neighbor question with its answer and a cloze of that; refusals
come from ``data/refusals.json``. Every row is checked (``data/common/checks.py``), and ``synthesis_report.json`` counts
what was dropped and why, and what the rows cost in tokens. Answers are kept in ``synthesis_answers.jsonl``: a run that
was killed goes on where it stopped. The prompts in ``data/prompts`` are there to be edited.
"""

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from data.common.checks import RowChecker
from data.common.files import OutputFolder, dump_rows
from data.common.naming import TargetName
from data.common.probes import PROBE_FIELDS, ProbeIndex
from data.common.refusals import BANK, deal_refusals, load_refusals
from data.prepare_rwku import RL_FILE, RS_FILE, VAL_FILE
from data.synthesis.assemble import build_rows, divide, token_share
from data.synthesis.chat import Chat, LocalChat
from data.synthesis.prompts import PROMPTS, Prompts
from data.synthesis.stages import Fact, Synthesis, ask_aliases
from verl.eval.endpoint import ChatEndpoint
from verl.rows.sources import read_file
from verl.settings.cli import run_cli
from verl.settings.path_types import PathText
from verl.settings.reader import to_dict
from verl.utils.atomic import write_json
from verl.utils.chat import check_system_prompt
from verl.utils.errors import ConfigError, DataError
from verl.utils.provenance import git_revision
from verl.utils.tokenizer import get_tokenizer
from verl.verdict.answers import count_words

logger = logging.getLogger(__name__)

REPORT = "synthesis_report.json"
ANSWERS = "synthesis_answers.jsonl"
CORPORA = {"forget": ("positive.json", "raw/forget.json"), "retain": ("raw/retain1.json",)}
"""Where a prepared folder holds the full corpora."""


@dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible endpoint."""

    base_url: str | None = None
    """Up to and including the version, for example http://127.0.0.1:8000/v1."""
    model: str | None = None
    """Name of the model as the endpoint knows it."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; unset is fine where the endpoint wants none."""
    timeout_s: float = 120.0
    max_retries: int = 5
    concurrency: int = 8
    """Requests under way at once."""


@dataclass(frozen=True)
class LocalConfig:
    """A local model through vLLM."""

    model: PathText | None = None
    """Folder or hub id of a chat model."""
    dtype: str = "auto"
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.85
    quantization: str | None = None


@dataclass(frozen=True)
class SynthesisConfig:
    """Whom to write about, with which model, and how much."""

    out: PathText
    """Folder for the files; a target folder of prepare_rwku.py or prepare_muse.py, or a new one."""
    target: str | None = None
    """Name of the target, spelled as it should be; null reads it from OUT/intro.json."""
    intro: str | None = None
    """A sentence or two that say who or what the target is; null reads it from OUT/intro.json."""
    aliases: list[str] | None = None
    """Other names of the target; null asks the model, [] means that there are none."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    probes: PathText | None = None
    """Folder of probes that no row may overlap with; null takes OUT where it holds probes."""
    forget_corpus: PathText | None = None
    """Full forget corpus for the token share; null takes OUT/positive.json (RWKU) or OUT/raw/forget.json (MUSE)."""
    retain_corpus: PathText | None = None
    """Full retain corpus for the boundary rows' share; null takes OUT/raw/retain1.json, which only MUSE has."""
    tokenizer: PathText | None = None
    """Tokenizer that counts tokens; null takes the local model's, or counts words."""
    prompts: PathText = str(PROMPTS)
    refusals: PathText = str(BANK)
    num_questions: int = 300
    """Forget questions wanted; each brings up to four RL rows."""
    questions_per_request: int = 10
    rounds: int = 6
    """How often to ask for the questions that are still wanted."""
    temperature: float = 0.8
    """Of the writing; the check of the answers is greedy."""
    max_tokens: int = 1024
    """Longest reply."""
    val_fraction: float = 0.1
    """Share of the RL rows that goes to validation; 0 makes none."""
    seed: int = 0
    """Of the refusals and of the validation split."""
    overwrite: bool = False
    """Replace training files that are there."""

    def problems(self) -> list[str]:
        found = []
        if (self.endpoint.base_url is None) == (self.local.model is None):
            found.append("endpoint.base_url=... or local.model=...: give exactly one of them")
        if (self.endpoint.base_url is None) != (self.endpoint.model is None):
            found.append("endpoint.base_url and endpoint.model: go together; give both")
        if not 0 <= self.val_fraction < 1:
            found.append(f"val_fraction={self.val_fraction}: must be at least 0 and below 1; 0.1 is usual")
        for name in ("num_questions", "questions_per_request", "rounds", "max_tokens"):
            if getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)}: must be at least 1")
        return found


def synthesize(config: SynthesisConfig) -> Path:
    """Write RS, RL and validation rows and the report; returns the folder.

    Raises:
        ConfigError: a name, prompt, bank or corpus is missing, or the endpoint cannot be used.
        DataError: files would be overwritten, too many requests got no answer, or no row passed the checks. What was
            answered is kept for the next run.
    """
    out = Path(config.out)
    there = [str(out / name) for name in (RS_FILE, RL_FILE, VAL_FILE) if (out / name).is_file()]
    if there and not config.overwrite:
        raise DataError(f"{', '.join(there)}: would be overwritten; say overwrite=true to replace them")
    corpora, refusals = _corpora(config, out), load_refusals(config.refusals)
    run, facts = _run(config, out)
    dealt = deal_refusals(refusals, len(facts), run.target, config.seed)
    rows = build_rows(facts, dealt, run.target, run.introduction)
    rs_rows, rl_rows, validation = divide(*rows, config.val_fraction, config.seed)
    folder = OutputFolder(out, record=REPORT)
    folder.add(RS_FILE, dump_rows(rs_rows), "train", len(rs_rows), unchanged=False)
    folder.add(RL_FILE, dump_rows(rl_rows), "train", len(rl_rows), unchanged=False)
    if validation:
        folder.add(VAL_FILE, dump_rows(validation), "validation", len(validation), unchanged=False)
    else:
        (out / VAL_FILE).unlink(missing_ok=True)  # it was cut out of the rows that are replaced
    if not (out / "intro.json").is_file():
        introduction = [{"target": run.target, "intro": run.introduction}]
        folder.add("intro.json", dump_rows(introduction), "probe", 1, unchanged=False)
    count, unit = _counter(config)
    shares = {"unit": unit, **token_share(rs_rows, rl_rows, corpora, count)}
    balance = Counter(row["solution"][0] for row in rl_rows)
    folder.write(_report(config, run) | {"complete": True, "rl_balance": dict(balance), "token_share": shares})
    logger.info("%s\ntraining rows: %s; token share in %%: %s", run.tally.summary(), dict(balance), shares["percent"])
    if balance["<normal>"] < balance["<reject>"] / 2:
        logger.warning("fewer than half as many boundary rows as forget rows: training will over-refuse")
    return out


def _run(config: SynthesisConfig, out: Path) -> tuple[Synthesis, list[Fact]]:
    """The finished stages; where they fail, the report says how far they came."""
    target, introduction = _introduction(config, out)
    prompts, probes = Prompts.load(config.prompts), _probes(config, out)
    if config.local.model is not None:
        check_system_prompt(get_tokenizer(config.local.model), prompts.system, f"prompts={config.prompts}: system.txt")
    writer, examiner, close = connect(config, out / ANSWERS)
    try:
        aliases = config.aliases
        if aliases is None:
            aliases = ask_aliases(writer, prompts, target, introduction)
        name = TargetName.from_introduction(target, introduction, aliases)
        logger.info("names of the target: %s; %d probes", ", ".join(name.all_names), probes.size)
        run = Synthesis(introduction, writer, examiner, prompts, RowChecker(name, probes))
        try:
            return run, run.facts(config.num_questions, config.questions_per_request, config.rounds)
        except DataError:
            write_json(out / REPORT, _report(config, run) | {"complete": False})
            raise
    finally:
        close()


def connect(config: SynthesisConfig, answers: Path) -> tuple[Chat, Chat, Callable[[], None]]:
    """The writing model (sampled), the same model as examiner (greedy), and what to call when done."""
    if config.endpoint.base_url is not None and config.endpoint.model is not None:
        shared = {
            "api_key": os.environ.get(config.endpoint.api_key_env),
            "cache": answers,
            "max_tokens": config.max_tokens,
            "timeout_s": config.endpoint.timeout_s,
            "max_retries": config.endpoint.max_retries,
            "concurrency": config.endpoint.concurrency,
        }
        address = (config.endpoint.base_url, config.endpoint.model)
        writer = ChatEndpoint(*address, temperature=config.temperature, **shared)
        return writer, ChatEndpoint(*address, temperature=0.0, **shared), lambda: None
    engine = _Engine(config.local)
    shared = {"cache": answers, "max_tokens": config.max_tokens}
    writer = LocalChat(engine.settings.model, engine.get, temperature=config.temperature, **shared)
    return writer, LocalChat(engine.settings.model, engine.get, temperature=0.0, **shared), engine.close


class _Engine:
    """A vLLM engine that starts when it is first needed and serves writer and examiner alike."""

    def __init__(self, settings: LocalConfig):
        self.settings = settings
        self._generator: Any = None

    def get(self) -> Any:
        if self._generator is None:
            from verl.eval.generation import VLLMGenerator

            self._generator = VLLMGenerator(**to_dict(self.settings))
        return self._generator

    def close(self) -> None:
        if self._generator is not None:
            self._generator.close()


def _introduction(config: SynthesisConfig, out: Path) -> tuple[str, str]:
    """Name and introduction; RWKU's introductions open with "Please forget ...", which the model need not read."""
    target, introduction = config.target, config.intro
    if (target is None or introduction is None) and (out / "intro.json").is_file():
        path = out / "intro.json"
        row = next(iter(read_file(path)), {})
        name, intro = row.get("target"), row.get("intro")
        if not isinstance(name, str) or not isinstance(intro, str):
            raise DataError(f"{path}: its row must have the texts target and intro; it has {', '.join(row)}")
        target = target or name
        introduction = introduction or intro.removeprefix(f"Please forget {name}.").strip()
    if not target or not introduction:
        raise ConfigError(f"target={target!r} intro={introduction!r}: give both, or an intro.json in out={out}")
    return target, introduction


def _probes(config: SynthesisConfig, out: Path) -> ProbeIndex:
    if config.probes is not None:
        return ProbeIndex.from_folder(config.probes)
    if any((out / f"{name}.json").is_file() for name in PROBE_FIELDS):
        return ProbeIndex.from_folder(out)
    logger.warning("no probes in %s and probes= not given: overlap with probes cannot be checked", out)
    return ProbeIndex()


def _corpora(config: SynthesisConfig, out: Path) -> dict[str, str | None]:
    """The corpus of either side: the one given, else one that lies in the folder, else None."""
    given = {"forget": config.forget_corpus, "retain": config.retain_corpus}
    missing = [f"{side}_corpus={path}" for side, path in given.items() if path is not None and not Path(path).is_file()]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: there is no such file; give a file whose rows have a text")
    there = {
        side: next((str(out / name) for name in names if (out / name).is_file()), None)
        for side, names in CORPORA.items()
    }
    return {side: given[side] or there[side] for side in given}


def _counter(config: SynthesisConfig) -> tuple[Callable[[str], int], str]:
    """A function that counts tokens, and what it counts."""
    name = config.tokenizer or config.local.model
    if name is None:
        return count_words, "words and punctuation marks"
    tokenizer = get_tokenizer(name)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False)), f"tokens of {name}"


def _report(config: SynthesisConfig, run: Synthesis) -> dict[str, Any]:
    chats = (run.writer, run.examiner)
    return {
        "target": run.target,
        "names": run.checker.target.all_names,
        "model": run.writer.model,
        "settings": to_dict(config),
        "code": git_revision(),
        "requests": dict(sum((Counter(asdict(chat.stats)) for chat in chats), Counter())),
        "probes": run.checker.probes.size,
        "kept": dict(run.tally.kept),
        "dropped": {stage: dict(reasons) for stage, reasons in run.tally.dropped.items()},
        "first_dropped": run.tally.examples,
    }


if __name__ == "__main__":
    sys.exit(run_cli(SynthesisConfig, synthesize, sys.argv[1:]))
