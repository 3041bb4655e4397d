"""The checks a training row must pass. Each returns the reason to drop the row, a key of `REASONS`, or None.

What cannot be checked without a source of truth is whether a forget answer is right; a neighbor answer is at least
asked a second time (see ``data/synthesis/stages.py``).
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from verl.verdict import verdict_of
from verl.verdict.answers import contains_answer, normalize, rouge_l

from .naming import TargetName
from .probes import ProbeIndex, words
from .splits import content_words

REASONS = {
    "no_answer": "the model or endpoint gave no answer",
    "malformed": "the answer is not the JSON that was asked for",
    "not_a_question": "does not end in a question mark, or is several lines",
    "too_long": "more than 60 words, or an answer of more than 30",
    "answer_unusable": "the answer is empty, a refusal, 'unknown', or itself has a blank",
    "answer_in_question": "the question contains its answer",
    "target_not_named": "a forget prompt that does not name the target",
    "target_misspelt": "the target's name is nearly there, but misspelt",
    "other_target": "a forget row whose solution names another target",
    "not_a_refusal": "a forget row whose refusal is none to the reward",
    "names_target": "a neighbor row that names the target or an alias",
    "subject_not_named": "a neighbor question that does not name its own subject",
    "cloze_no_blank": "a cloze without a blank",
    "cloze_many_blanks": "a cloze with more than one blank",
    "cloze_contains_answer": "a cloze with its answer filled in",
    "duplicate": "the same prompt, or the same but for word order and small words, came before",
    "probe_exact": "equals a probe after normalisation",
    "probe_ngram": "shares a run of words with a probe",
    "answer_not_confirmed": "asked again without context, the model answers differently",
}

LONGEST_PROMPT = 60
LONGEST_ANSWER = 30
SHORTEST_CLOZE = 4
BLANK = "___"
_BLANK_RUN = re.compile(r"_{2,}(?:[ \t]+_{2,})*")
_NOT_KNOWN = frozenset(["unknown", "n a", "none", "not applicable", "not known", "not specified", "various"])


def tidy(text: str) -> str:
    """Without outer space, and every run of underscores three long."""
    return _BLANK_RUN.sub(BLANK, text.strip())


def answer_problem(answer: str) -> str | None:
    unknown = normalize(answer) in _NOT_KNOWN or verdict_of(answer) == "refusal"
    if not normalize(answer) or unknown or _BLANK_RUN.search(answer):
        return "answer_unusable"
    return "too_long" if len(answer.split()) > LONGEST_ANSWER else None


@cache  # a hundred refusals serve a thousand rows
def _refuses(text: str) -> bool:
    return verdict_of(text) == "refusal"


def answers_agree(first: str, second: str) -> bool:
    """Whether two answers to one question say the same: one holds the other, or they share half of the first's words.

    Two answers with numbers agree only if they have a number in common: 12 June 1929 and June 12, 1929, not 1997 and
    1998.
    """
    numbers = [set(re.findall(r"\d+", normalize(answer))) for answer in (first, second)]
    if all(numbers) and numbers[0].isdisjoint(numbers[1]):
        return False
    if contains_answer(first, second) or contains_answer(second, first):
        return True
    return rouge_l(normalize(second), normalize(first)).recall >= 0.5


def question_problem(question: str, answer: str) -> str | None:
    if "\n" in question.strip() or not question.strip().rstrip("\"'”’)").endswith("?") or _BLANK_RUN.search(question):
        return "not_a_question"
    if len(question.split()) > LONGEST_PROMPT:
        return "too_long"
    return "answer_in_question" if contains_answer(question, answer) else None


def cloze_problem(cloze: str, answer: str) -> str | None:
    blanks = len(_BLANK_RUN.findall(cloze))
    if blanks == 0 or "\n" in cloze.strip() or len(words(cloze)) < SHORTEST_CLOZE:
        return "cloze_no_blank"
    if blanks > 1:
        return "cloze_many_blanks"
    if len(cloze.split()) > LONGEST_PROMPT:
        return "too_long"
    return "cloze_contains_answer" if contains_answer(cloze, answer) else None


@dataclass
class RowChecker:
    """Checks prompts of one target one after the other, and remembers those that passed."""

    target: TargetName
    probes: ProbeIndex
    _seen: set[tuple[bool, frozenset[str]]] = field(default_factory=set)

    def forget_question(self, question: str, answer: str) -> str | None:
        problem = answer_problem(answer) or question_problem(question, answer) or self._forget_name_problem(question)
        return problem or self._new(question)

    def forget_cloze(self, cloze: str, answer: str) -> str | None:
        return cloze_problem(cloze, answer) or self._forget_name_problem(cloze) or self._new(cloze)

    def neighbor_question(self, subject: str, question: str, answer: str) -> str | None:
        problem = answer_problem(answer) or question_problem(question, answer)
        problem = problem or self._neighbor_name_problem(" / ".join([subject, question, answer]))
        if problem is None and not content_words(subject) & content_words(question):
            problem = "subject_not_named"
        return problem or self._new(question)

    def neighbor_cloze(self, cloze: str, answer: str) -> str | None:
        return cloze_problem(cloze, answer) or self._neighbor_name_problem(cloze) or self._new(cloze)

    def published_row(self, row: dict[str, Any]) -> str | None:
        """The checks that a row of the published RL file can be given: it has no answer on the forget side."""
        prompt = row["prompt"]
        if len(_BLANK_RUN.findall(prompt)) > 1:
            return "cloze_many_blanks"
        if row["solution"][0] == "<reject>":
            problem = self.refusal_row(prompt, *row["solution"][1:3])
            return self._new(prompt) if problem in (None, "target_not_named") else problem
        answer = row["solution"][1]
        if self.target.named_in(prompt) or self.target.named_in(answer):
            return "names_target"
        if answer_problem(answer) == "answer_unusable":
            return "answer_unusable"
        if contains_answer(prompt, answer):
            return "cloze_contains_answer" if _BLANK_RUN.search(prompt) else "answer_in_question"
        return self._new(prompt)

    def refusal_row(self, prompt: str, refusal: str, target: str | None = None) -> str | None:
        """The checks of a published prompt with its refusal, an RS row or the forget side of the RL rows.

        Published prompts often name the target by half ("Rockefeller's wealth") or not at all; ``target_not_named``,
        which comes last, is a flaw only where most rows have it.
        """
        if any(self.target.misspelt_in(text) for text in (prompt, refusal, target or "")):
            return "target_misspelt"
        if target is not None and not self.target.named_in(target):
            return "other_target"
        if not _refuses(refusal):
            return "not_a_refusal"
        return None if self.target.named_in(prompt) else "target_not_named"

    def _forget_name_problem(self, prompt: str) -> str | None:
        if self.target.misspelt_in(prompt):
            return "target_misspelt"
        return None if self.target.named_in(prompt) else "target_not_named"

    def _neighbor_name_problem(self, text: str) -> str | None:
        if self.target.named_in(text):
            return "names_target"
        return "target_misspelt" if self.target.misspelt_in(text) else None

    def _new(self, prompt: str) -> str | None:
        # A cloze and its question have the same content words and are not duplicates.
        key = (bool(_BLANK_RUN.search(prompt)), content_words(prompt))
        if key in self._seen:
            return "duplicate"
        if overlap := self.probes.overlap(prompt):
            return overlap
        self._seen.add(key)
        return None


def spoilt(reasons: Iterable[str | None], source: str) -> list[str]:
    """The reason that most rows of one file fail for, as a problem that no preparation can mend; empty where none is.

    Args:
        reasons: of every row, None where it is fine.
    """
    counts = Counter(reasons)
    worst = [(reason, count) for reason, count in counts.items() if reason and 2 * count > counts.total()]
    return [
        f"{source}: {count} of {counts.total()} rows: {reason} ({REASONS[reason]}); correct them, or the target's name"
        for reason, count in worst
    ]
