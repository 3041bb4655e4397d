"""Exact log-likelihoods from batched forward passes of a Hugging Face model.

Sequences are sorted by length and padded on the right; under a causal mask no real token sees the padding, so a value
does not depend on the batch. Leaves out generation, and anything that needs gradients.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from verl.models.model_config import max_positions
from verl.utils.errors import DataError

from .generation import DEFAULT_MAX_MODEL_LEN, fit_left, resolve_dtype

logger = logging.getLogger(__name__)

MAX_LOGITS = 2**28
"""Logits held at once: 1 GiB in fp32. With a vocabulary of 128k this is 2,048 tokens a batch."""


@dataclass(frozen=True)
class TokenStatistics:
    """Per token t = 1..L-1 of one sequence, all in nats; every array has length L-1."""

    log_probs: np.ndarray
    """log p(x_t | x_<t)."""
    mean: np.ndarray
    """The mean of log p(. | x_<t) under p(. | x_<t): minus the entropy."""
    variance: np.ndarray
    """The variance of log p(. | x_<t) under p(. | x_<t)."""


def load_model(model: str, *, dtype: str = "auto", trust_remote_code: bool = False) -> Any:
    """A causal language model for evaluation, on the GPU if there is one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from verl.models.attention import plain_implementation

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=resolve_dtype(dtype),
        trust_remote_code=trust_remote_code,
        attn_implementation=plain_implementation(config),
    )
    return loaded.to(device).eval()


def encode_raw(tokenizer: Any, text: str) -> list[int]:
    """The text behind BOS where the tokenizer has one: what a base model expects."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return bos + tokenizer.encode(text, add_special_tokens=False)


def encode_texts(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Token ids of each row's ``text``, ``encode_raw``.

    Raises:
        DataError: naming the first text of which no token is predicted.
    """
    encoded = [encode_raw(tokenizer, row["text"]) for row in rows]
    for number, (row, ids) in enumerate(zip(rows, encoded, strict=True)):
        if len(ids) < 2:
            raise DataError(
                f"row {number}: text={row['text']!r} has fewer than two tokens, BOS included, so nothing in it is "
                "predicted; remove it"
            )
    return encoded


def token_log_probs(
    model: Any, sequences: Sequence[list[int]], *, token_budget: int = 16384, desc: str
) -> list[np.ndarray]:
    """log p(x_t | x_<t) in nats for t = 1..L-1 of every sequence, in the order given.

    Args:
        sequences: token ids of each text, BOS included where the model expects one; none may be empty.
        token_budget: padded tokens a batch at most; a longer sequence is a batch of its own.

    Raises:
        DataError: if a sequence is empty or longer than the model's positions, or a value is not finite.
    """
    out: list[np.ndarray] = [np.zeros(0)] * len(sequences)
    for indices, ids_BL, logits_BLV in _batches(model, sequences, token_budget, desc):
        chosen = _log_softmax(logits_BLV[:, :-1]).gather(-1, ids_BL[:, 1:, None]).squeeze(-1)
        _scatter(out, chosen, indices, sequences, desc)
    return out


def token_statistics(
    model: Any, sequences: Sequence[list[int]], *, token_budget: int = 16384, desc: str
) -> list[TokenStatistics]:
    """As ``token_log_probs``, with the mean and the variance of the whole distribution at each token (Min-K%++)."""
    fields: list[list[np.ndarray]] = [[np.zeros(0)] * len(sequences) for _ in range(3)]
    for indices, ids_BL, logits_BLV in _batches(model, sequences, token_budget, desc):
        log_probs = _log_softmax(logits_BLV[:, :-1])
        probs = log_probs.exp()
        # 0 * -inf: a token of probability zero adds nothing to either moment.
        mean = (probs * log_probs).nan_to_num(nan=0.0).sum(-1)
        variance = (probs * (log_probs - mean[..., None]).square()).nan_to_num(nan=0.0).sum(-1)
        chosen = log_probs.gather(-1, ids_BL[:, 1:, None]).squeeze(-1)
        for field, values in zip(fields, (chosen, mean, variance), strict=True):
            _scatter(field, values, indices, sequences, desc)
    return [TokenStatistics(*values) for values in zip(*fields, strict=True)]


def next_token_log_probs(
    model: Any, sequences: Sequence[list[int]], candidates: Sequence[int], *, token_budget: int = 16384, desc: str
) -> np.ndarray:
    """log p(candidate | whole sequence) in nats, of shape (len(sequences), len(candidates)).

    Raises:
        DataError: as ``token_log_probs``.
    """
    out = np.zeros((len(sequences), len(candidates)))
    for indices, _, logits_BLV in _batches(model, sequences, token_budget, desc):
        last = torch.tensor([len(sequences[index]) - 1 for index in indices], device=logits_BLV.device)
        logits_BV = logits_BLV[torch.arange(len(indices), device=last.device), last]
        for index, row in zip(indices, _log_softmax(logits_BV)[:, list(candidates)].cpu().numpy(), strict=True):
            out[index] = _finite(row, index, desc)
    return out


def _finite(log_probs: np.ndarray, index: int, desc: str) -> np.ndarray:
    """A model that diverged gives NaN everywhere, and the likeliest of NaN would be the first choice."""
    if not np.isfinite(log_probs).all():
        raise DataError(
            f"{desc}: the model's log-probabilities of sequence {index} are not finite; its weights diverged, or "
            "dtype= cannot hold its activations"
        )
    return log_probs


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits.float(), dim=-1)


def _scatter(
    out: list[np.ndarray], values_BT: torch.Tensor, indices: list[int], sequences: Sequence[list[int]], desc: str
) -> None:
    for row, index in zip(values_BT.cpu().numpy(), indices, strict=True):
        out[index] = _finite(row[: len(sequences[index]) - 1].astype(np.float64), index, desc)


def _batches(
    model: Any, sequences: Sequence[list[int]], token_budget: int, desc: str
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Indices (B), padded ids (B, L) and logits (B, L, V) batch by batch, the longest first to fail early on memory."""
    longest = max(map(len, sequences), default=0)
    limit = max_positions(model.config) or longest
    if longest > limit or any(not sequence for sequence in sequences):
        raise DataError(f"{desc}: sequences must have 1 to {limit} tokens; shorten the longest, which has {longest}")
    budget = min(token_budget, MAX_LOGITS // model.config.get_text_config().vocab_size)
    with torch.inference_mode(), tqdm(total=len(sequences), desc=desc) as bar:
        for indices in length_batches([len(sequence) for sequence in sequences], budget):
            width = len(sequences[indices[0]])
            padded = [sequences[index] + [0] * (width - len(sequences[index])) for index in indices]
            mask = [[1] * len(sequences[index]) + [0] * (width - len(sequences[index])) for index in indices]
            ids_BL = torch.tensor(padded, device=model.device)
            mask_BL = torch.tensor(mask, device=model.device)
            yield indices, ids_BL, model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).logits
            bar.update(len(indices))


def length_batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices grouped by falling length, so that (longest of the group) * (its size) stays within the budget."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > token_budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class LikelihoodModel:
    """What a part with ``engine="likelihood"`` is handed.

    ``truncated`` counts the sequences that lost tokens to ``fit``, so that a report can say so.
    """

    def __init__(self, model: Any, tokenizer: Any, token_budget: int = 16384):
        self.model = model
        self.tokenizer = tokenizer
        self.token_budget = token_budget
        self.max_model_len: int = max_positions(model.config) or DEFAULT_MAX_MODEL_LEN
        self.truncated = 0

    def fit(self, ids: list[int], keep: Literal["first", "last"] = "last") -> list[int]:
        """``ids`` cut to the model's positions: a prompt keeps its last tokens (and BOS), a text its first."""
        if len(ids) > self.max_model_len:
            if not self.truncated:
                logger.warning("sequences of more than %d tokens are cut (%s tokens kept)", self.max_model_len, keep)
            self.truncated += 1
        if keep == "first":
            return ids[: self.max_model_len]
        return fit_left(ids, self.max_model_len, self.tokenizer.bos_token_id)

    def close(self) -> None:
        """Give the model's memory back."""
        self.model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
