"""MUSE's formulas as pure functions: ROUGE-L, Min-K%, AUC and PrivLeak.

ROUGE-L here equals the ``rouge-score`` package without a stemmer, which is what MUSE's own evaluation uses; RWKU's
ROUGE is another one (``verl.verdict.answers.rouge_l``: other tokens, other longest common subsequence), and the two
must not be mixed. Tests hold the equality with ``rouge-score``, which is not needed here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Overlap:
    """ROUGE-L of one pair of texts, each 0 to 1."""

    recall: float
    precision: float
    f1: float


def rouge_l(prediction: str, reference: str) -> Overlap:
    """ROUGE-L over lower-cased runs of a-z and 0-9, without a stemmer; zeros where either text has no such run."""
    predicted, expected = _tokens(prediction), _tokens(reference)
    if not predicted or not expected:
        return Overlap(0.0, 0.0, 0.0)
    common = _common_subsequence_length(expected, predicted)
    precision, recall = common / len(predicted), common / len(expected)
    f1 = 2 * precision * recall / (precision + recall) if common else 0.0
    return Overlap(recall, precision, f1)


def _tokens(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _common_subsequence_length(first: Sequence[str], second: Sequence[str]) -> int:
    above = [0] * (len(second) + 1)
    for token in first:
        row = [0]
        for column, other in enumerate(second):
            row.append(above[column] + 1 if token == other else max(above[column + 1], row[-1]))
        above = row
    return above[-1]


def min_k_loss(log_probs: np.ndarray, k: float) -> float:
    """Minus the mean log-prob (nats) of the ``k`` share of tokens that the model finds least likely (arXiv 2310.16789).

    The share is rounded down, as MUSE does, and holds at least one token. Higher means: more likely unseen.
    """
    count = max(1, int(len(log_probs) * k))
    return float(-np.sort(log_probs)[:count].mean())


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """P(a positive's score > a negative's), a tie counting half: the area under the ROC curve, by ranks."""
    scores = np.concatenate([np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)])
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank = last - (counts - 1) / 2  # ranks from 1; tied scores share their mean
    wins = mean_rank[inverse][: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
    return float(wins / (len(positive) * len(negative)))


def forget_holdout_auc(forget_losses: Sequence[float], holdout_losses: Sequence[float]) -> float:
    """MUSE's AUC: how often a forget text looks less familiar (higher Min-K% loss) than a holdout text.

    Near 0 while the model remembers the forget set, near 1 where it was pushed away from it, about one half where it
    never saw it. This orientation, the one MUSE's code and its table have, makes PrivLeak negative for
    under-unlearning and positive for over-unlearning.
    """
    return auc(forget_losses, holdout_losses)


def priv_leak(auc_unlearned: float, auc_retrained: float) -> float:
    """(AUC_unlearn - AUC_retrain) / AUC_retrain in percent; 0 is best (arXiv 2407.06460, section 3.3).

    Raises:
        ValueError: the retrained model's AUC is not in (0, 1].
    """
    if not 0 < auc_retrained <= 1:
        raise ValueError(f"the retrained model's AUC must be in (0, 1], not {auc_retrained}")
    return 100 * (auc_unlearned - auc_retrained) / auc_retrained
