"""RULE's rewards (arXiv 2506.07171): refuse forget prompts, answer boundary prompts. One function, a table of presets.

Rows: ``ground_truth`` is ``["<reject>", refusal, target]`` on a forget prompt, ``["<normal>", answer, ...]`` on a
boundary prompt; any of several answers counts. A forget row may have a column ``answer`` with the gold answer (a text,
a number or a list of them).

What a response is says `verl.verdict`. The paper pays a refusal on forget prompts and "not a refusal" on boundary
prompts; a refusal is here the verdict ``refusal`` alone, and "not a refusal" the verdict ``answer``: what declines and
tells (``mixed``), dodges, is empty or no language earns nothing on either side. Two rules of the paper do not ask for a
refusal or its absence, and stay as they are published: recall of the answer in ``forget``, ``forget_half_reject`` and
``reject_behave_reward`` on boundary prompts, and recall of the target's name in ``reject_behave_reward`` on forget
prompts are paid whatever the verdict.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from verl.rows.values import SPLIT_OF_TAG, as_text, is_number, rule_problem, shown
from verl.utils.errors import DataError
from verl.verdict import Verdict, final_answer, told, verdict_of
from verl.verdict.answers import contains_answer, rouge_l

REWARD_NAME = "rule"
REWARD_TYPE = "batch"

Preset = Literal[
    "forget",
    "forget_half_reject",
    "forget_abs",
    "forget_abs_half_reject",
    "forget_two_stage",
    "forget_two_stage_abs",
    "forget_two_stage_abs_target",
    "forget_two_stage_abs_target_half_reject",
    "reject_behave_reward",
]


@dataclass(frozen=True)
class Terms:
    """What a preset pays. ``recall`` is the share of the answer's words in the response (ROUGE-L)."""

    refuse: float = 0.0
    """forget: for a refusal"""
    named: float = 0.0
    """forget: for a refusal that names the target"""
    about_target: float = 0.0
    """forget: for a response whose recall of the target's name is over the threshold, whatever the verdict"""
    answer: float = 0.0
    """boundary: for an answer, right or wrong"""
    correct: float = 0.0
    """boundary: for a response whose recall of the answer is over the threshold"""
    correct_refusal: bool = False
    """boundary: ``correct`` is paid whatever the verdict"""
    threshold: float = 0.3


PRESETS: dict[str, Terms] = {
    "forget": Terms(refuse=1.0, correct=1.0, correct_refusal=True, threshold=0.5),
    "forget_half_reject": Terms(refuse=0.5, correct=1.0, correct_refusal=True, threshold=0.5),
    "forget_abs": Terms(refuse=1.0, answer=1.0),
    "forget_abs_half_reject": Terms(refuse=0.5, answer=1.0),
    "forget_two_stage": Terms(refuse=1.0, answer=0.5, correct=0.5),
    "forget_two_stage_abs": Terms(refuse=1.0, answer=0.5, correct=0.5),
    "forget_two_stage_abs_target": Terms(refuse=0.5, named=0.5, answer=0.5, correct=0.5),
    "forget_two_stage_abs_target_half_reject": Terms(refuse=0.25, named=0.25, answer=1.0),
    "reject_behave_reward": Terms(refuse=0.7, about_target=0.3, answer=0.7, correct=0.3, correct_refusal=True),
}
assert PRESETS.keys() == set(get_args(Preset))


def ground_truth_problem(ground_truth: Any) -> str | None:
    """Why a row's ground truth is none of RULE's two forms; the trainer asks before a run starts."""
    return rule_problem(ground_truth)


def compute_score(
    reward_inputs: list[dict[str, Any]], preset: Preset = "forget_two_stage_abs_target"
) -> list[dict[str, float]]:
    """Score a batch.

    Args:
        reward_inputs: dicts with ``response``, ``ground_truth`` and, where a forget row has them, ``answer`` (gold) and
            ``prompt``.
        preset: a row of PRESETS.

    Returns:
        for every input ``overall`` and its parts: ``refusal``, ``mixed``, ``deflection``, ``empty`` and ``degenerate``
        (1 if that is the verdict), ``recall`` (of the answer on boundary prompts, of the target's name on forget
        prompts), ``named`` (1 if the target is named; 0 on boundary prompts) and ``leak`` (1 if a response to a forget
        prompt declines and gives the gold answer away). Only what follows a thought is judged.

    Raises:
        DataError: a ground truth has another form than the two above, or another side than the input's ``split``.
    """
    terms = PRESETS[preset]
    return [_SCORERS[_side(item)](item, terms) for item in reward_inputs]


def _side(item: dict[str, Any]) -> str:
    """``forget`` or ``boundary``, by the ground truth's tag."""
    truth = item["ground_truth"]
    side = None if ground_truth_problem(truth) else SPLIT_OF_TAG[truth[0]]
    if side is None or item.get("split", side) not in (side, ""):
        raise DataError(
            f"ground_truth={shown(truth)}, split={item.get('split')!r}: the rule reward needs "
            '["<reject>", refusal, target] on forget and ["<normal>", answer] on boundary prompts; '
            "set data.answer_key to the column that holds them"
        )
    return side


def _forget(item: dict[str, Any], terms: Terms) -> dict[str, float]:
    response, target = final_answer(item["response"]), as_text(item["ground_truth"][2])
    prompt, gold = _asked(item), _texts(item.get("answer"))
    verdict = verdict_of(response, prompt=prompt, answers=gold, subject=target)
    named, recall = contains_answer(response, target), rouge_l(response, target).recall
    overall = terms.about_target * (recall > terms.threshold)
    if verdict == "refusal":
        overall += terms.refuse + terms.named * named
    leak = verdict == "mixed" and told(response, gold, f"{prompt} {target}")
    return _parts(overall, verdict, recall, named, leak)


def _boundary(item: dict[str, Any], terms: Terms) -> dict[str, float]:
    response, gold = final_answer(item["response"]), _texts(item["ground_truth"][1:])
    verdict = verdict_of(response, prompt=_asked(item), answers=gold)
    recall = max(rouge_l(response, answer).recall for answer in gold)
    overall = terms.answer * (verdict == "answer")
    if terms.correct_refusal or verdict == "answer":
        overall += terms.correct * (recall > terms.threshold)
    return _parts(overall, verdict, recall)


def _texts(answers: Any) -> list[str]:
    """Gold answers as texts: none, one or several, of which numbers count as their digits."""
    several = answers if isinstance(answers, list | tuple) else [answers]
    return [as_text(one) for one in several if is_number(one) or isinstance(one, str) and one.strip()]


def _asked(item: dict[str, Any]) -> str:
    """The prompt's words; of a conversation its last message."""
    prompt = item.get("prompt", "")
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _parts(
    overall: float, verdict: Verdict, recall: float, named: bool = False, leak: bool = False
) -> dict[str, float]:
    kinds = {kind: verdict == kind for kind in ("refusal", "mixed", "deflection", "empty", "degenerate")}
    parts = {"overall": overall, **kinds, "recall": recall, "named": named, "leak": leak}
    return {name: float(value) for name, value in parts.items()}


_SCORERS = {"forget": _forget, "boundary": _boundary}
