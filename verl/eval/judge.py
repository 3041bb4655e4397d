"""Naturalness as RULE's table reports it: readability, helpfulness and truthfulness of replies, graded by a model.

The judge sits behind an OpenAI-compatible endpoint and grades one quality a request, from 1 to 5; a grade g counts
100 * (g - 1) / 4 percent. Its prompts are files (``examples/judge_prompt``) that one may edit. A reply of the judge
that holds no grade is counted as malformed and left out of the mean: it is never a zero. The paper does not print its
prompts, so grades compare between rows of one judge and one set of prompts (both are in the provenance), not with the
published figures. Left out: running a judge model (serve it with ``vllm serve``).
"""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template

from verl.eval.endpoint import ChatEndpoint
from verl.rows.files import read_text
from verl.settings.path_types import PathText
from verl.utils.errors import ConfigError, DataError

from .results import Row, Scores

CRITERIA = ("readability", "helpfulness", "truthfulness")
PLACEHOLDERS = {"question": "query", "response": "response", "answer": "answer", "target": "subject"}
"""Name in a prompt file to key of a row."""
BEST_GRADE = 5


@dataclass(frozen=True)
class JudgeConfig:
    """Section ``judge``."""

    base_url: str | None = None
    """Endpoint up to the version, for example http://localhost:8000/v1. None: naturalness is not measured."""
    model: str | None = None
    """Name of the judge as the endpoint knows it."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; an unset variable sends no key."""
    prompts: PathText = "examples/judge_prompt"
    """Folder of system.txt, readability.txt, helpfulness.txt and truthfulness.txt."""
    max_new_tokens: int = 128
    """Length of the replies that are judged: longer than the probes' 30 tokens, which cut a polite refusal short."""
    max_judge_tokens: int = 256
    """Length of a judge's answer."""
    concurrency: int = 8
    """Requests under way at once."""
    timeout_s: float = 60.0
    """Seconds one request may stay silent."""
    max_retries: int = 5
    """Further tries after a failed request."""

    def problems(self) -> list[str]:
        if self.base_url is None:
            without = {**asdict(self), "base_url": None} == asdict(JudgeConfig())
            return [] if without else ["base_url=None: without it the other settings of judge do nothing; give it"]
        found = []
        if not self.base_url.startswith(("http://", "https://")):
            found.append(f"base_url={self.base_url!r}: must start with http:// or https://; give http://HOST:PORT/v1")
        if not self.model:
            found.append("model=None: is required with judge.base_url; give the name the endpoint serves")
        found += [f"prompts: {problem}" for problem in _prompt_problems(Path(self.prompts))]
        return found


@dataclass(frozen=True)
class JudgePrompts:
    """The judge's instructions; ``sha256`` identifies them in provenance."""

    system: str
    templates: dict[str, Template]
    sha256: str


def read_prompts(folder: str | Path) -> JudgePrompts:
    """Read the prompt files of a folder.

    Raises:
        DataError: a file is missing, uses an unknown placeholder, or does not show the reply to the judge.
    """
    folder = Path(folder)
    if problems := _prompt_problems(folder):
        raise DataError("; ".join(problems))
    texts = {name: read_text(folder / f"{name}.txt") for name in ("system", *CRITERIA)}
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
    return JudgePrompts(texts["system"].strip(), {name: Template(texts[name]) for name in CRITERIA}, digest)


def _prompt_problems(folder: Path) -> list[str]:
    problems = []
    for name in ("system", *CRITERIA):
        path = folder / f"{name}.txt"
        if not path.is_file():
            problems.append(f"{path}: there is no such file; copy examples/judge_prompt and edit the copy")
            continue
        if name == "system":
            continue
        template = Template(read_text(path))
        if not template.is_valid():
            problems.append(f"{path}: has a $ that names nothing; write $$ for a dollar sign")
        elif unknown := set(template.get_identifiers()) - PLACEHOLDERS.keys():
            problems.append(f"{path}: unknown ${', $'.join(sorted(unknown))}; known: {', '.join(sorted(PLACEHOLDERS))}")
        elif "response" not in template.get_identifiers():
            problems.append(f"{path}: never shows $response to the judge; put it in")
    return problems


def connect(config: JudgeConfig, cache: str | Path) -> ChatEndpoint:
    """The judge's endpoint; its answers are kept in the JSONL file ``cache``."""
    if config.base_url is None or config.model is None:
        raise ConfigError("judge.base_url and judge.model are required to measure naturalness")
    return ChatEndpoint(
        config.base_url,
        config.model,
        api_key=os.environ.get(config.api_key_env),
        cache=cache,
        concurrency=config.concurrency,
        timeout_s=config.timeout_s,
        max_retries=config.max_retries,
        max_tokens=config.max_judge_tokens,
    )


def check_answers(endpoint: ChatEndpoint) -> None:
    """Ask the judge something small, so that a wrong address, key or name shows before the model is asked anything.

    Raises:
        ConfigError: the endpoint refuses the key, the model or the path, or cannot be reached.
        DataError: it gives no answer.
    """
    question = [{"role": "user", "content": "Answer with the word: ready"}]
    if endpoint.ask_all([question], desc="is the judge there") == [None]:
        raise DataError(f"{endpoint.url}: the judge {endpoint.model} gives no answer")


def parse_grade(text: str) -> int | None:
    """The grade in a judge's answer: ``"score"`` of the last JSON object in it, 1 to 5; None where there is none.

    A number in the judge's prose is not taken for a grade.
    """
    for candidate in reversed(re.findall(r"\{[^{}]*\}", text)):
        try:
            score = json.loads(candidate).get("score")
        except ValueError:
            continue
        if isinstance(score, int | float) and not isinstance(score, bool) and score in range(1, BEST_GRADE + 1):
            return int(score)
        return None
    return None


def grade(rows: list[Row], endpoint: ChatEndpoint, prompts: JudgePrompts) -> list[Row]:
    """Grade replies.

    Args:
        rows: ``query``, ``answer`` (the knowledge asked for), ``subject`` and ``response`` of each reply.

    Returns:
        The rows, each with a percentage a quality (None where the judge gave no grade) and, as ``<quality>_judge``,
        the judge's words (None where the endpoint refused the request).

    Raises:
        ConfigError: the endpoint refuses the key, the model or the path.
        DataError: requests went unanswered, or a quality has not a single grade.
    """
    conversations = [_conversation(prompts, name, row) for name in CRITERIA for row in rows]
    answers = endpoint.ask_all(conversations, desc=f"judge {endpoint.model}")
    if endpoint.stats.failed:
        raise DataError(
            f"{endpoint.url}: {endpoint.stats.failed} of {len(answers)} requests got no answer in spite of retries; "
            "run again to ask these alone, the others are kept"
        )
    graded = [dict(row) for row in rows]
    for position, name in enumerate(CRITERIA):
        for row, text in zip(graded, answers[position * len(rows) :], strict=False):
            row[name], row[f"{name}_judge"] = None if text is None else _percent(text), text
        if all(row[name] is None for row in graded):
            raise DataError(f"judge {endpoint.model}: not one {name} grade among its answers, such as {answers[0]!r}")
    return graded


def score(rows: list[Row]) -> Scores:
    """Percent per quality over the replies that have a grade, ``all`` their mean, and what could not be counted.

    ``malformed`` counts judge's answers without a grade, ``refused`` requests that the endpoint would not answer, both
    over replies times qualities.
    """
    columns = {name: [row[name] for row in rows if row[name] is not None] for name in CRITERIA}
    cells = [(row[name], row[f"{name}_judge"]) for row in rows for name in CRITERIA]
    malformed = sum(grade is None and words is not None for grade, words in cells)
    refused = sum(words is None for _, words in cells)
    return Scores(columns, {"all": CRITERIA}, {"malformed": float(malformed), "refused": float(refused)})


def _percent(text: str) -> float | None:
    mark = parse_grade(text)
    return None if mark is None else 100 * (mark - 1) / (BEST_GRADE - 1)


def _conversation(prompts: JudgePrompts, criterion: str, row: Row) -> list[dict[str, str]]:
    words = {name: str(row.get(key, "")) for name, key in PLACEHOLDERS.items()}
    return [
        {"role": "system", "content": prompts.system},
        {"role": "user", "content": prompts.templates[criterion].substitute(words)},
    ]
