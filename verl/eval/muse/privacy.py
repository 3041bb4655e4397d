"""PrivLeak: can an onlooker tell from likelihoods that the forget texts were in the training data?

The attack is Min-K% on raw text behind BOS; forget texts are set against holdout texts of the same kind, and the AUC
against that of a model retrained without the forget set, given or measured here. Texts longer than the model's
positions are cut. The AUC against the retain split, which the training has seen, is reported too (``auc_retain``).
Left out: MUSE's other attacks.
"""

from pathlib import Path
from typing import Any

from verl.utils.errors import DataError
from verl.utils.tokenizer import get_tokenizer

from ..config import EvalConfig
from ..likelihood import LikelihoodModel, encode_texts, load_model, token_log_probs
from ..reading import read_rows
from ..results import Part, Row, Scores, model_identity
from .metrics import forget_holdout_auc, min_k_loss, priv_leak

SPLITS = ("forget", "retain", "holdout")
FILES = tuple(f"privleak/{split}.json" for split in SPLITS)


def privleak_part(config: EvalConfig) -> Part:
    """AUC of Min-K% between forget and holdout texts, and PrivLeak where the retrained model's AUC is known."""
    muse = config.muse

    def read(data: Path) -> list[Row]:
        files = zip(SPLITS, FILES, strict=True)
        rows = [(split, row) for split, name in files for row in read_rows(data / name, ["text"])]
        return [{"split": split, "text": row["text"]} for split, row in rows]

    def run(data: Path, scorer: LikelihoodModel) -> list[Row]:
        rows = read(data)
        losses = {"loss": min_k_losses(scorer, rows, muse.min_k, "privleak")}
        if muse.retrain_model is not None:
            losses["retrain_loss"] = min_k_losses(_load(muse.retrain_model, config), rows, muse.min_k, "retrained")
        return [{**row, **{key: values[i] for key, values in losses.items()}} for i, row in enumerate(rows)]

    def score(rows: list[Row]) -> Scores:
        return Scores(columns={}, single=_numbers(rows, muse.auc_retrain))

    decoding: dict[str, Any] = {"min_k": muse.min_k, "text": "raw, behind BOS", "auc_retrain": muse.auc_retrain}
    if muse.retrain_model is not None:
        decoding["retrain_model"] = model_identity(Path(muse.retrain_model))
    return Part("privleak", "likelihood", FILES, decoding, run, score, read, texts=read)


def min_k_losses(scorer: LikelihoodModel, rows: list[Row], k: float, desc: str) -> list[float]:
    """Min-K% loss (nats a token) of each row's text under the model."""
    sequences = [scorer.fit(ids, keep="first") for ids in encode_texts(scorer.tokenizer, rows)]
    log_probs = token_log_probs(scorer.model, sequences, token_budget=scorer.token_budget, desc=desc)
    return [min_k_loss(values, k) for values in log_probs]


def _load(model: str, config: EvalConfig) -> LikelihoodModel:
    loaded = load_model(model, dtype=config.dtype, trust_remote_code=config.trust_remote_code)
    tokenizer = get_tokenizer(model, trust_remote_code=config.trust_remote_code)
    return LikelihoodModel(loaded, tokenizer, config.token_budget)


def _numbers(rows: list[Row], auc_retrain: float | None) -> dict[str, float]:
    """AUCs in 0..1 and PrivLeak in percent; a number whose reference is unknown is left out."""

    def against(split: str, key: str) -> float:
        forget, other = ([row[key] for row in rows if row["split"] == name] for name in ("forget", split))
        return forget_holdout_auc(forget, other)

    numbers = {"auc": against("holdout", "loss"), "auc_retain": against("retain", "loss")}
    if "retrain_loss" in rows[0]:
        auc_retrain = against("holdout", "retrain_loss")
    if auc_retrain is not None:
        if not auc_retrain > 0:
            raise DataError("the retrained model's AUC is 0: it knows every forget text better than every holdout text")
        numbers |= {"auc_retrain": auc_retrain, "privleak": priv_leak(numbers["auc"], auc_retrain)}
    return numbers
