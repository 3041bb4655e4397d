"""Membership inference: how familiar the forget passages (FM) and the retain passages (RM) look to the model.

Four scores per text, all oriented so that higher means less familiar, all times 100, the scale of RWKU's table (its
LOSS of 226.7 is a mean loss of 2.267 nats a token). Texts are raw, behind BOS where the tokenizer has one, without a
chat template, as RWKU does. Leaves out AUCs between the two sets: RWKU reports levels.
"""

import zlib
from pathlib import Path

import numpy as np

from ..likelihood import LikelihoodModel, TokenStatistics, encode_texts, token_statistics
from ..muse.metrics import min_k_loss
from ..reading import read_rows
from ..results import Part, Row, Scores

FILES = {"fm": "forget_mia.json", "rm": "retain_mia.json"}
K = 0.2
SCALE = 100.0
METHODS = ("loss", "zlib", "min_k", "min_k_pp")


def mia_part() -> Part:
    """FM and RM by LOSS, Zlib, Min-K% and Min-K%++."""
    decoding = {"k": K, "text": "raw, behind BOS"}
    return Part("mia", "likelihood", tuple(FILES.values()), decoding, run, score, load, texts=load)


def load(data: Path) -> list[Row]:
    return [{**row, "side": side} for side, name in FILES.items() for row in read_rows(data / name, ["text"])]


def run(data: Path, scorer: LikelihoodModel) -> list[Row]:
    rows = load(data)
    kept = [scorer.fit(ids, keep="first") for ids in encode_texts(scorer.tokenizer, rows)]
    statistics = token_statistics(scorer.model, kept, token_budget=scorer.token_budget, desc="mia")
    return [
        {**row, "tokens": len(values.log_probs), **membership_scores(values, row["text"])}
        for row, values in zip(rows, statistics, strict=True)
    ]


def membership_scores(statistics: TokenStatistics, text: str) -> dict[str, float]:
    """The four scores of one text.

    LOSS: mean negative log-likelihood per token, nats. Zlib: LOSS over the bytes of the zlib-compressed UTF-8 text
    (RWKU's form of Carlini et al. 2021). Min-K%: mean negative log-likelihood of the 20 % least likely tokens
    (arXiv 2310.16789). Min-K%++: the same over log-probs standardised by the mean and standard deviation of the
    model's own distribution at each position (arXiv 2404.02936).
    """
    log_probs = statistics.log_probs
    loss = -log_probs.mean()
    # A distribution of one certain token has no spread, and its log-prob is its mean: the standardised value is 0.
    deviation = np.sqrt(np.maximum(statistics.variance, np.finfo(np.float32).tiny))
    standardised = (log_probs - statistics.mean) / deviation
    return {
        "loss": float(loss),
        "zlib": float(loss / len(zlib.compress(text.encode("utf-8")))),
        "min_k": min_k_loss(log_probs, K),
        "min_k_pp": min_k_loss(standardised, K),
    }


def score(rows: list[Row]) -> Scores:
    """``fm_loss`` .. ``rm_min_k_pp``: means over texts, times 100."""
    return Scores(
        {
            f"{side}_{method}": [SCALE * row[method] for row in rows if row["side"] == side]
            for side in FILES
            for method in METHODS
        }
    )
