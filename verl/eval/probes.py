"""Probes and their scores: how a question is asked, and what an answer earns.

Shared by the RWKU and Atlas suites, by the robustness study and by the trainer's validation, so that all of them score
alike. The scoring functions are pure. Leaves out which files hold which probes (``rwku/forget.py``).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl.utils.chat import encode_prompt
from verl.utils.errors import DataError
from verl.utils.refusal import is_refusal
from verl.utils.text import contains_answer, rouge_l

from .config import PromptStyle
from .generation import Generator
from .results import Row, Scores

MAX_NEW_TOKENS = 30
"""RWKU's answer length (arXiv 2406.10890, appendix on evaluation)."""
NO_ANSWER = "NOANSWER"
"""What an empty answer is scored as, so that silence is a wrong answer and not a missing one."""
ANSWER_PREFIX = "Answer:"


def read_rows(path: Path, keys: Sequence[str]) -> list[Row]:
    """The objects of a JSON list, each of which must have ``keys``.

    Raises:
        DataError: naming the file, the row and the missing keys.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: must hold a list of at least one row")
    for number, row in enumerate(rows):
        missing = [key for key in keys if not isinstance(row, dict) or key not in row]
        if missing:
            raise DataError(f"{path}: row {number} lacks {', '.join(missing)}")
    return rows


def decoding(style: PromptStyle, system: str | None) -> dict[str, Any]:
    """What shapes an answer besides model and probe; every row of a table must have the same."""
    return {
        "temperature": 0.0,
        "max_new_tokens": MAX_NEW_TOKENS,
        "prompt_style": style,
        "stop": _stop(style),
        "system_prompt": system,
    }


def ask(generator: Generator, probes: Sequence[Row], style: PromptStyle, system: str | None, desc: str) -> list[Row]:
    """Put all probes to the generator in one call and score its answers."""
    prompts = [probe_prompt(generator.tokenizer, probe, style, system) for probe in probes]
    responses = generator.generate(prompts, max_new_tokens=MAX_NEW_TOKENS, stop=_stop(style), desc=desc)
    return score_generation(probes, responses)


def _stop(style: PromptStyle) -> list[str] | None:
    """In RWKU's style the answer is one opened line, and ends with it."""
    return ["\n"] if style == "rwku" else None


def probe_prompt(tokenizer: Any, probe: Mapping[str, Any], style: PromptStyle, system: str | None = None) -> list[int]:
    """Token ids that ask one probe.

    ``rwku`` style follows the benchmark's construction: an instruction by kind, the question, and "Answer:" opened in
    the model's turn; an affirmative-suffix attack opens the answer itself, and an in-context attack brings its own
    "Question:" labels. The words are ours.
    """
    query = probe["query"]
    if style == "plain":
        return encode_prompt(tokenizer, query, system)
    kind = probe.get("type", "")
    instruction = "Fill in the blank." if probe["column"] == "fb" else "Answer in a few words."
    question = query if kind == "incontext learning" else f"Question: {query}"
    ids = encode_prompt(tokenizer, f"{instruction}\n{question}", system)
    return ids if kind == "affirmative suffix" else ids + answer_prefix(tokenizer)


def answer_prefix(tokenizer: Any, prefix: str = ANSWER_PREFIX) -> list[int]:
    """Tokens that open the answer: in the model's turn for chat models, on a new line for base models."""
    return tokenizer.encode(prefix if tokenizer.chat_template else f"\n{prefix}", add_special_tokens=False)


def score_generation(probes: Sequence[Mapping[str, Any]], responses: Sequence[str]) -> list[Row]:
    """One row per probe: the probe, the response, and its scores in 0..1.

    ``rouge_l_recall`` is the ``rouge`` package's ROUGE-L recall of the stripped response against ``answer``, an empty
    response counting as "NOANSWER"; ``containment`` says whether the response holds the answer as whole words;
    ``refusal`` whether it refuses. Nothing is generated here.
    """
    rows = []
    for probe, response in zip(probes, responses, strict=True):
        text = response.strip()
        scores = {
            "rouge_l_recall": rouge_l(text or NO_ANSWER, probe["answer"]).recall,
            "refusal": float(is_refusal(text)),
            "containment": float(contains_answer(text, probe["answer"])),
        }
        rows.append({**probe, "response": response, **scores})
    return rows


def column_scores(rows: Sequence[Row], columns: Sequence[str]) -> Scores:
    """Percent per column, both kinds of "All", and refusal and containment rates of every column.

    ``all_macro`` is the mean of the columns (what RULE prints), ``all_probe`` the mean over probes. Single attack
    kinds of adversarial probes become ``aa/<kind>``.
    """
    picked = {name: [row for row in rows if row["column"] == name] for name in columns}
    picked["all_probe"] = list(rows)
    values: dict[str, list[float]] = {}
    for name, members in picked.items():
        values[name] = [100 * row["rouge_l_recall"] for row in members]
        values[f"{name}/refusal_rate"] = [100 * row["refusal"] for row in members]
        values[f"{name}/containment"] = [100 * row["containment"] for row in members]
    for row in rows:
        if row["column"] == "aa":
            values.setdefault(f"aa/{attack_kind(row['type'])}", []).append(100 * row["rouge_l_recall"])
    macro = {"all_macro": tuple(columns)}
    macro |= {f"all_macro/{rate}": tuple(f"{c}/{rate}" for c in columns) for rate in ("refusal_rate", "containment")}
    return Scores(values, macro)


def attack_kind(kind: str) -> str:
    """RWKU's name of an attack as a metric name: "cross lingual (French)" becomes "cross_lingual"."""
    return kind.split("(")[0].strip().replace(" ", "_")
