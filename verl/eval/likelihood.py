"""Exact log-likelihoods from batched forward passes of a Hugging Face model.

What sequences begin with alike is computed once (``shared_prefixes``), and logits only where they are read; values
depend on neither. Leaves out generation, and anything that needs gradients.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from verl.models.model_config import max_positions
from verl.utils.errors import DataError

from .generation import DEFAULT_MAX_MODEL_LEN, fit_left, resolve_dtype
from .shared_prefixes import Places, passes

logger = logging.getLogger(__name__)

MAX_LOGITS = 2**28
"""Logits held at once: 1 GiB in fp32. With a vocabulary of 128k these are 2,048 tokens of which logits are wanted."""
READ_AT_ONCE = 2**22
"""Of them, those that are turned into fp32 and read at once."""
Reader = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(fp32 logits (r, V), labels (r)) to (r, numbers)"""


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
    model: Any,
    sequences: Sequence[list[int]],
    counts: Sequence[int] | None = None,
    *,
    token_budget: int = 16384,
    desc: str,
) -> list[np.ndarray]:
    """log p(x_t | x_<t) in nats of the last tokens of every sequence, in the order given.

    Args:
        sequences: token ids of each text, BOS included where the model expects one; none may be empty.
        counts: how many tokens of each sequence are wanted, at most; None: t = 1..L-1.
        token_budget: padded tokens a batch at most; a longer sequence is a batch of its own.

    Raises:
        DataError: if a sequence is empty or longer than the model's positions, or a value is not finite.
    """
    spans = _last(sequences, counts or [len(sequence) for sequence in sequences])
    found = _read(model, sequences, spans, _log_prob, token_budget, desc)
    return [values[:, 0] for values in found]


def _last(sequences: Sequence[list[int]], counts: Sequence[int]) -> list[range]:
    """The positions that predict the last tokens of every sequence, ``counts`` of them at most."""
    return [
        range(max(0, len(sequence) - 1 - count), len(sequence) - 1)
        for sequence, count in zip(sequences, counts, strict=True)
    ]


def _log_prob(logits_rV: torch.Tensor, labels_r: torch.Tensor) -> torch.Tensor:
    chosen_r1 = logits_rV.gather(-1, labels_r[:, None])
    return chosen_r1 - logits_rV.logsumexp(-1, keepdim=True)


def greedy_hits(
    model: Any, sequences: Sequence[list[int]], counts: Sequence[int], *, token_budget: int = 16384, desc: str
) -> list[np.ndarray]:
    """Whether x_t is the likeliest token behind x_<t, for the last tokens of every sequence; bool, in order.

    Args:
        counts: as for ``token_log_probs``.

    Raises:
        DataError: as ``token_log_probs``.
    """
    found = _read(model, sequences, _last(sequences, counts), _is_greedy, token_budget, desc)
    return [values[:, 0] == 1 for values in found]


def _is_greedy(logits_rV: torch.Tensor, labels_r: torch.Tensor) -> torch.Tensor:
    hits_r1 = (logits_rV.argmax(-1) == labels_r)[:, None].float()
    # The largest of logits that are not finite is no prediction; _read refuses it.
    return torch.where(logits_rV.amax(-1, keepdim=True).isfinite(), hits_r1, torch.nan)


def token_statistics(
    model: Any, sequences: Sequence[list[int]], *, token_budget: int = 16384, desc: str
) -> list[TokenStatistics]:
    """As ``token_log_probs``, with the mean and the variance of the whole distribution at each token (Min-K%++)."""
    spans = [range(len(sequence) - 1) for sequence in sequences]
    return [TokenStatistics(*values.T) for values in _read(model, sequences, spans, _statistics, token_budget, desc)]


def _statistics(logits_rV: torch.Tensor, labels_r: torch.Tensor) -> torch.Tensor:
    log_probs = torch.log_softmax(logits_rV, dim=-1)
    probs = log_probs.exp()
    # 0 * -inf: a token of probability zero adds nothing to either moment.
    mean = (probs * log_probs).nan_to_num(nan=0.0).sum(-1)
    variance = (probs * (log_probs - mean[..., None]).square()).nan_to_num(nan=0.0).sum(-1)
    chosen = log_probs.gather(-1, labels_r[:, None]).squeeze(-1)
    return torch.stack([chosen, mean, variance], dim=-1)


def next_token_log_probs(
    model: Any, sequences: Sequence[list[int]], candidates: Sequence[int], *, token_budget: int = 16384, desc: str
) -> np.ndarray:
    """log p(candidate | whole sequence) in nats, of shape (len(sequences), len(candidates)).

    Raises:
        DataError: as ``token_log_probs``.
    """
    picked = list(candidates)

    def read(logits_rV: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(logits_rV, dim=-1)[:, picked]

    spans = [range(len(sequence) - 1, len(sequence)) for sequence in sequences]
    found = _read(model, sequences, spans, read, token_budget, desc)
    return np.reshape(found, (len(sequences), len(picked)))


def _read(
    model: Any, sequences: Sequence[list[int]], spans: Sequence[range], read: Reader, token_budget: int, desc: str
) -> list[np.ndarray]:
    """What ``read`` makes of the logits at each sequence's positions: arrays of shape (len(span), numbers)."""
    longest = max(map(len, sequences), default=0)
    limit = max_positions(model.config) or longest
    if longest > limit or any(not sequence for sequence in sequences):
        raise DataError(f"{desc}: sequences must have 1 to {limit} tokens; shorten the longest, which has {longest}")
    ends = np.cumsum([len(span) for span in spans], dtype=int)
    out: dict[int, np.ndarray] = {}
    with torch.inference_mode(), tqdm(total=sum(map(len, spans)), desc=desc, unit="token") as bar:
        for logits_BkV, places in passes(model, sequences, spans, token_budget=token_budget, most_logits=MAX_LOGITS):
            values = _in_steps(logits_BkV, places, read)
            if len(broken := np.flatnonzero(~np.isfinite(values).all(axis=1))):
                # A model that diverged gives NaN everywhere, and the likeliest of NaN would be the first choice.
                index = int(np.searchsorted(ends, places.number[broken[0]], side="right"))
                raise DataError(
                    f"{desc}: the model's log-probabilities of sequence {index} are not finite; its weights diverged, "
                    "or dtype= cannot hold its activations"
                )
            out.update(zip(places.number, values, strict=True))
            bar.update(len(places.number))
    flat = np.array([out[number] for number in range(len(out))])
    return np.split(flat, ends[:-1]) if len(ends) else []


def _in_steps(logits_BkV: torch.Tensor, places: Places, read: Reader) -> np.ndarray:
    """What ``read`` makes of the places of a pass, of shape (n, numbers), without an fp32 copy of all logits."""
    step = max(1, READ_AT_ONCE // logits_BkV.shape[-1])
    parts = [slice(first, first + step) for first in range(0, len(places.number), step)]
    read_parts = [
        read(logits_BkV[places.row[part], places.column[part]].float(), places.label[part]).cpu().numpy()
        for part in parts
    ]
    return np.concatenate(read_parts or [np.zeros((0, 1))]).astype(np.float64)


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
