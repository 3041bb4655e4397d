"""Rewards that count forget terms: PURGE's (arXiv 2601.20568), and the two that grade it (arXiv 2607.27968).

A forget prompt is paid for a response that mentions nothing of a list of terms, whatever else the response is: empty
and dodging ones too, from which the KL and fluency must keep the policy. ``purge`` is PURGE's penalty, all or nothing.
``purge_exponential`` and ``purge_pagerank`` pay less with every mention; under the second, terms that more of the rows
lead to weigh more. The papers train on forget prompts alone. A boundary prompt is paid as by RULE's
``forget_two_stage``, so that the same rows serve; leave these rows out to train as the papers do.

The papers' terms are entities that a large model lists, and their graph is one of embeddings. Here both come from the
training rows: terms are the targets and the gold answers of forget rows, two of them are joined as often as a row has
both, and PageRank starts from the targets. How the second paper turns ranks into a penalty is not described where we
could read; a softmax of them, which it finds best, weighs each mention here.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp
from pathlib import Path
from typing import Any, Literal

import numpy as np

from verl.rows.files import Row
from verl.rows.sources import read_rows
from verl.rows.values import SPLIT_OF_TAG, as_text, is_number, is_tagged, rule_problem
from verl.utils.errors import DataError
from verl.verdict import final_answer, verdict_of
from verl.verdict.answers import contains_answer, normalize, rouge_l

REWARD_NAME = "forget_terms"
REWARD_TYPE = "batch"

Preset = Literal["purge", "purge_exponential", "purge_pagerank"]
DAMPING, STEPS = 0.85, 100
THRESHOLD = 0.3
"""recall of the answer that a boundary prompt is paid for"""


@dataclass(frozen=True)
class Terms:
    """What must not be mentioned, and how much a mention of each weighs under ``purge_pagerank``: 1 in the mean."""

    words: list[str]
    weights: list[float] | None
    """None where the file is a list, which joins no terms"""


def ground_truth_problem(ground_truth: Any) -> str | None:
    """Why a row's ground truth is none of RULE's two forms; the trainer asks before a run starts."""
    return rule_problem(ground_truth)


def argument_problem(terms: str, preset: Preset = "purge", decay: float = 0.5) -> str | None:
    """Why these keyword arguments cannot be used; the trainer asks before a run starts."""
    if not is_number(decay) or decay <= 0:
        return f"decay={decay}: must be a number greater than 0; 0.5 is the paper's"
    if not isinstance(terms, str):
        return f"terms={terms}: must be the path of a file"
    try:
        found = read_terms(terms)
    except (DataError, OSError, ValueError) as error:
        return f"terms={terms}: {error}"
    if preset == "purge_pagerank" and found.weights is None:
        return f"terms={terms}: is a list of terms, and purge_pagerank needs rows, which join them; give training rows"
    return None


def compute_score(
    reward_inputs: list[dict[str, Any]], terms: str, preset: Preset = "purge", decay: float = 0.5
) -> list[dict[str, float]]:
    """Score a batch.

    Args:
        reward_inputs: dicts with ``response``, ``ground_truth`` and, where they have one, ``prompt``.
        terms: a JSON list of terms, or training rows, of which the forget rows' targets and gold answers (column
            ``answer``) are the terms.
        preset: forget prompts earn, with m mentions and their weights w (1 in the mean), 1 if m is 0, else 0 (purge);
            exp(-m / decay); or exp(-sum of w over the mentions / decay).

    Returns:
        for every input ``overall`` and its parts: ``mentions`` (of forget terms), ``refusal``, ``mixed``,
        ``deflection``, ``empty`` and ``degenerate`` (1 if that is the verdict) and ``recall`` of a boundary prompt's
        answer. Only what follows a thought is judged.

    Raises:
        DataError: a ground truth has another form than RULE's two.
    """
    forbidden = read_terms(terms)
    return [_score(item, forbidden, preset, decay) for item in reward_inputs]


def _score(item: dict[str, Any], forbidden: Terms, preset: Preset, decay: float) -> dict[str, float]:
    truth, response, prompt = item["ground_truth"], final_answer(item["response"]), item.get("prompt", "")
    if problem := rule_problem(truth):
        raise DataError(f"ground_truth{problem}; set data.answer_key to the column that holds them")
    counts = mentions(response, forbidden.words)
    asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    if SPLIT_OF_TAG[truth[0]] == "forget":
        gold, recall = _texts(item.get("answer")), 0.0
        verdict = verdict_of(response, prompt=asked, answers=gold, subject=as_text(truth[2]))
        overall = _penalised(counts, forbidden.weights, preset, decay)
    else:
        gold = _texts(truth[1:])
        verdict = verdict_of(response, prompt=asked, answers=gold)
        recall = max(rouge_l(response, answer).recall for answer in gold)
        overall = (0.5 + 0.5 * (recall > THRESHOLD)) * (verdict == "answer")
    kinds = {kind: verdict == kind for kind in ("refusal", "mixed", "deflection", "empty", "degenerate")}
    parts = {"overall": overall, "mentions": sum(counts), **kinds, "recall": recall}
    return {name: float(value) for name, value in parts.items()}


def _penalised(counts: Sequence[int], weights: Sequence[float] | None, preset: Preset, decay: float) -> float:
    if preset == "purge":
        return float(not any(counts))
    if preset == "purge_exponential":
        return exp(-sum(counts) / decay)
    return exp(-sum(weight * count for weight, count in zip(weights, counts, strict=True)) / decay)


def mentions(text: str, terms: Sequence[str]) -> list[int]:
    """How often each term is mentioned: its words side by side, whatever their case and accents; once where a number,
    a date or a script without spaces is written in another way."""
    said, found = normalize(text), []
    for term in terms:
        count = len(re.findall(rf"(?<!\S){re.escape(normalize(term))}(?!\S)", said))
        varied = not term.isascii() or any(map(str.isdigit, term))
        found.append(count or int(varied and contains_answer(text, term)))
    return found


@lru_cache(maxsize=4)
def read_terms(path: str) -> Terms:
    """The terms of a file, each once.

    Raises:
        DataError: it holds none.
        OSError, ValueError: it cannot be read, or is no JSON.
    """
    if path.endswith(".json") and Path(path).is_file():
        listed = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(listed, list) and listed and all(isinstance(term, str) and term.strip() for term in listed):
            return Terms(_once(listed), None)
    forget = [row for row in read_rows(path) if _target(row)]
    targets = _once([_target(row) for row in forget])
    words = _once([*targets, *(answer for row in forget for answer in _texts(row.get("answer")))])
    if not words:
        raise DataError('has no forget row (["<reject>", refusal, target]); give the training rows, or a list of terms')
    return Terms(words, _weights(forget, words, len(targets)))


def _weights(rows: Sequence[Row], words: list[str], targets: int) -> list[float]:
    """Softmax of PageRank, times the number of terms; the first ``targets`` of them are where it starts."""
    joint = np.zeros((len(words), len(words)))
    for row in rows:
        prompt = row.get("prompt", "")
        asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        text = ". ".join([asked, _target(row), *_texts(row.get("answer"))])
        inside = np.flatnonzero(mentions(text, words))
        joint[np.ix_(inside, inside)] += 1
    np.fill_diagonal(joint, 0)
    ranks = np.exp(pagerank(joint, np.arange(len(words)) < targets))
    return (len(words) * ranks / ranks.sum()).tolist()


def pagerank(joint: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(n,) personalised PageRank (Page et al., 1999) of an undirected graph with (n, n) weights.

    Args:
        starts: (n,) true where a walk begins, and begins anew behind a term that is joined to none.
    """
    start, degrees = starts / starts.sum(), joint.sum(axis=0)
    walk = joint / np.where(degrees > 0, degrees, 1)
    rank = start
    for _ in range(STEPS):
        rank = DAMPING * (walk @ rank + start * rank[degrees == 0].sum()) + (1 - DAMPING) * start
    return rank


def _target(row: Row) -> str:
    """Whom a forget row is about: its ``subject``, else what its ground truth names. Empty of any other row."""
    solution = next((value for value in row.values() if is_tagged(value)), None)
    if solution is None or rule_problem(solution) or SPLIT_OF_TAG[solution[0]] != "forget":
        return ""
    return as_text(row.get("subject") or solution[2])


def _once(terms: Sequence[str]) -> list[str]:
    """Terms with a letter or a digit that differ in more than case and accents, in order."""
    found: dict[str, str] = {}
    for term in terms:
        found.setdefault(normalize(term), term)
    return [term for said, term in found.items() if said]


def _texts(answers: Any) -> list[str]:
    """Gold answers as texts: none, one or several, of which numbers count as their digits."""
    several = answers if isinstance(answers, list | tuple) else [answers]
    return [as_text(one) for one in several if is_number(one) or isinstance(one, str) and one.strip()]
