"""Attention over packed sequences: no padding anywhere but inside one kernel.

A micro-batch is one row of T tokens, its sequences end to end. On CUDA, flash-attn's or torch's variable-length kernel
takes that as it is. Elsewhere the queries, keys and values (only these) are laid out as right-padded rows, where plain
causal attention already keeps a real token from seeing padding, so no mask is built.

transformers models reach this through ``attn_implementation="packed"`` and the forward argument ``packing``. Which
models may is ``verl.models.packable``'s.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..utils.errors import ConfigError
from .ulysses import SequenceParallel

PACKED = "packed"
PAD_INSTEAD = "set worker.actor.padding_free=false (for a critic worker.critic.padding_free, in RS padding_free)"
"""What to do with a model that cannot be packed."""


@dataclass(frozen=True)
class Packing:
    """Where the sequences of a packed row lie. N sequences, T tokens in all, the longest of L tokens."""

    cu_seqlens: torch.Tensor
    """(N + 1,) int32: start of each sequence, then T"""
    max_length: int
    """L"""
    rows: torch.Tensor
    """(T,) int64: the sequence of each token"""
    columns: torch.Tensor
    """(T,) int64: the place of each token in its sequence, which is also its position id"""
    parallel: SequenceParallel | None = None
    """the ranks that share the row"""

    @classmethod
    def of(cls, lengths: torch.Tensor, parallel: SequenceParallel | None = None) -> "Packing":
        """The packing of sequences with these lengths, (N,) int64."""
        ends = lengths.cumsum(0)
        rows = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        columns = torch.arange(int(ends[-1]), device=lengths.device) - (ends - lengths)[rows]
        return cls(F.pad(ends, (1, 0)).to(torch.int32), int(lengths.max()), rows, columns, parallel)

    @property
    def num_sequences(self) -> int:
        return len(self.cu_seqlens) - 1


@dataclass(frozen=True)
class Scoring:
    """How attention scores are made and what becomes of them."""

    scale: float | None = None
    """factor of the products; None for D ** -0.5"""
    window: int | None = None
    """how many tokens, itself included, a token sees"""
    softcap: float | None = None
    """scores s become softcap * tanh(s / softcap) (Gemma 2, arXiv 2408.00118)"""
    dropout: float = 0.0


def plain_implementation(config: PretrainedConfig) -> str | None:
    """The ``attn_implementation`` for unpacked rows: transformers' choice, but SDPA drops a cap on the scores."""
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def packed_attention(
    module: torch.nn.Module | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    position_ids: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence of a packed row, in the signature that transformers calls.

    Args:
        query: (1, heads, T, D); key and value: (1, key-value heads, T, D). Under sequence parallelism a rank has T / U
            tokens of them, and of the result.
        position_ids: not needed, queries and keys are rotated already.
        others: what else the model hands to its attention; only what is None or False can be left out.

    Returns:
        (1, T, heads, D), and None for the attention weights.

    Raises:
        ConfigError: the model wants attention of another kind.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    asked = sorted(name for name, given in others.items() if given is not None and given is not False)
    asked += ["attention_mask"] * (attention_mask is not None) + ["is_causal=False"] * (not causal)
    if asked or packing is None:
        what = f"depends on {', '.join(asked)}" if asked else "is not told where the sequences lie"
        raise ConfigError(f"padding_free=true: the attention of {type(module).__name__} {what}; {PAD_INSTEAD}")
    parallel = packing.parallel
    if parallel is not None:
        key, value = (kv.repeat_interleave(parallel.repeats(kv.shape[1]), dim=1) for kv in (key, value))
        query, key, value = (parallel.heads_of_mine(states) for states in (query, key, value))
    window = sliding_window if sliding_window is not None and sliding_window < packing.max_length else None
    scoring = Scoring(scaling, window, softcap, dropout)
    compute = _kernel_rows if _kernel_fits(query, value, scoring) else _padded_rows
    output = compute(query, key, value, packing, scoring)
    if parallel is not None:
        output = parallel.mine_of_heads(output)
    return output.unsqueeze(0), None


@functools.cache
def varlen_kernel() -> tuple[Callable[..., torch.Tensor], frozenset[str]] | None:
    """flash-attn's variable-length kernel, else torch's, and the names of its arguments; None below Ampere."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        return None
    try:
        from flash_attn import flash_attn_varlen_func as kernel
    except ImportError:
        from torch.nn.attention.varlen import varlen_attn as kernel
    return kernel, frozenset(inspect.signature(kernel).parameters)


def _kernel_fits(query: torch.Tensor, value: torch.Tensor, scoring: Scoring) -> bool:
    """Whether there is a kernel for these tensors and scores."""
    width = query.shape[-1]
    shaped = width == value.shape[-1] and width % 8 == 0 and width <= 256
    if not (query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and shaped) or scoring.dropout:
        return False
    kernel = varlen_kernel()
    return kernel is not None and (scoring.softcap is None or "softcap" in kernel[1])


def _kernel_rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, scoring: Scoring
) -> torch.Tensor:
    """The variable-length kernel over the row as it is. Returns (T, heads, D)."""
    kernel, takes = varlen_kernel()
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if not takes & {"causal", "enable_gqa"}:  # torch 2.11; flash-attn shares key-value heads unasked
        k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
    settings = {
        "causal": True,
        "softmax_scale": scoring.scale,
        "softcap": scoring.softcap or 0.0,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "scale": scoring.scale,
        "enable_gqa": True,
        "window_size": (-1 if scoring.window is None else scoring.window - 1, 0),
    }
    lengths = (packing.cu_seqlens, packing.cu_seqlens, packing.max_length, packing.max_length)
    return kernel(q, k, v, *lengths, **{name: value for name, value in settings.items() if name in takes})


def _padded_rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, scoring: Scoring
) -> torch.Tensor:
    """Plain attention over right-padded rows. Returns (T, heads, D)."""
    groups = query.shape[1] // key.shape[1]
    q, k, v = (_unpack(tensor[0], packing) for tensor in (query, key, value))
    if groups > 1:
        k, v = (tensor.repeat_interleave(groups, dim=1) for tensor in (k, v))
    mask = None
    if scoring.window is not None or scoring.softcap is not None:
        place = torch.arange(packing.max_length, device=q.device)
        distance = place[:, None] - place[None, :]
        mask = (distance >= 0) & (distance < (scoring.window or packing.max_length))
    if scoring.softcap is not None:
        output = _capped_attention(q, k, v, mask, scoring)
    else:
        output = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scoring.scale, dropout_p=scoring.dropout
        )
    return output.transpose(1, 2)[packing.rows, packing.columns]


def _capped_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scoring: Scoring
) -> torch.Tensor:
    """Attention with a cap on its scores, which SDPA has not. Holds all scores, N x heads x L x L."""
    scale = q.shape[-1] ** -0.5 if scoring.scale is None else scoring.scale
    scores = scoring.softcap * torch.tanh(q @ k.transpose(2, 3) * scale / scoring.softcap)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    return F.dropout(weights, scoring.dropout) @ v


def _unpack(tensor: torch.Tensor, packing: Packing) -> torch.Tensor:
    """(heads, T, D) to right-padded (N, heads, L, D), zeros in the padding."""
    heads, _, width = tensor.shape
    rows = tensor.new_zeros(packing.num_sequences, packing.max_length, heads, width)
    return rows.index_put((packing.rows, packing.columns), tensor.transpose(0, 1)).transpose(1, 2)


ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_attention)
