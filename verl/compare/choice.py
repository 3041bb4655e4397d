"""The number that tries are chosen by, the choice, and who dominates whom. Pure.

The number is the harmonic mean of two shares of the original model's recall on validation rows: what is gone on forget
rows, and what is left on boundary rows. The untouched model has 0, and so has one that knows nothing any more; 1 is
perfect. Recall is ROUGE-L recall of the gold answer, or of the original model's own response where a row has none, and
counts whatever the response is: a refusal, a wrong answer, an evasion and gibberish have all told nothing. That is what
the table's columns count, so no method is tuned for anything but what it is compared by; how it got there, by refusing
or by breaking, the verdicts beside say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import harmonic_mean
from typing import Any

from verl.eval.validation import recall
from verl.utils.errors import DataError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Score:
    """A try on validation rows; shares of the original model's recall, 0 to 1."""

    number: float
    """What chooses: higher is better."""
    gone: float
    """Of what the original told on forget rows."""
    kept: float
    """Of what it told on boundary rows."""


def score_try(rows: Sequence[Row], original: Sequence[Row]) -> Score:
    """The score of a try from its validation rows and those of the original model (``eval.validation.scored``).

    Raises:
        DataError: the original model tells nothing of one side, so that there is nothing to lose or to keep.
    """
    shares = {}
    for split in ("forget", "boundary"):
        told = [
            (_recall(row, before), _recall(before, before))
            for row, before in zip(rows, original, strict=True)
            if row["split"] == split and (row["answer"] is not None or before["verdict"] == "answer")
        ]
        whole = sum(before for _, before in told)
        if not whole:
            raise DataError(f"validation: the original model answers no {split} row, so that tries cannot be compared")
        shares[split] = min(1.0, sum(now for now, _ in told) / whole)
    gone, kept = 1 - shares["forget"], shares["boundary"]
    return Score(harmonic_mean([gone, kept]), gone, kept)


def _recall(row: Row, before: Row) -> float:
    return row["rouge_l_recall"] if row["answer"] is not None else recall(row["response"], before["response"])


def choose(scores: Sequence[Score | None]) -> int | None:
    """Place of the best try; among equals the one that keeps more, then the first. None where none has a score."""
    having = [place for place, score in enumerate(scores) if score is not None]
    return max(having, key=lambda place: (scores[place].number, scores[place].kept, -place), default=None)


Point = tuple[float, float]
"""(what is told of the target: lower is better, what is told of its neighbors: higher is better)"""


def dominators(name: str, points: Mapping[str, Point], rivals: Sequence[str]) -> list[str]:
    """The rivals that are as good as ``name`` on both numbers and better on one; unmeasured ones dominate nothing."""
    if name not in points:
        return []
    low, high = points[name]
    found = []
    for rival in rivals:
        told, kept = points.get(rival, (float("inf"), 0.0))
        if rival != name and told <= low and kept >= high and (told, kept) != (low, high):
            found.append(rival)
    return found
