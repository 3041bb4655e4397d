"""Attention over packed sequences: no padding anywhere but inside one kernel.

A micro-batch is one row of T tokens, its sequences end to end. On CUDA, flash-attn's or torch's variable-length kernel
takes that as it is. Elsewhere the queries, keys and values (only these) are laid out as right-padded rows, where plain
causal attention already keeps a real token from seeing padding, so no mask is built.

transformers models reach this through ``attn_implementation="packed"`` and the forward argument ``packing``.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .ulysses import SequenceParallel

PACKED = "packed"


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


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: Packing,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence of a packed row, in the signature that transformers calls.

    Args:
        query: (1, heads, T, D); key and value: (1, key-value heads, T, D). Under sequence parallelism a rank has T / U
            tokens of them, and of the result.

    Returns:
        (1, T, heads, D), and None for the attention weights.
    """
    if softcap is not None:
        raise NotImplementedError("this model caps its attention scores; set worker.actor.padding_free=false for it")
    window = sliding_window if sliding_window is not None and sliding_window < packing.max_length else None
    parallel, output = packing.parallel, None
    if parallel is not None:
        key, value = (kv.repeat_interleave(parallel.repeats(kv.shape[1]), dim=1) for kv in (key, value))
        query, key, value = (parallel.heads_of_mine(states) for states in (query, key, value))
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        output = _varlen_kernel(query, key, value, packing, scaling, window)
    if output is None:
        output = _padded_rows(query, key, value, packing, scaling, window)
    if parallel is not None:
        output = parallel.mine_of_heads(output)
    return output.unsqueeze(0), None


def _varlen_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor | None:
    """flash-attn's variable-length kernel, or torch's; None where neither can be used. Returns (T, heads, D)."""
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    lengths = (packing.cu_seqlens, packing.cu_seqlens, packing.max_length, packing.max_length)
    sides = (-1, 0) if window is None else (window - 1, 0)
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        flash_attn_varlen_func = None
    if flash_attn_varlen_func is not None:
        return flash_attn_varlen_func(q, k, v, *lengths, softmax_scale=scaling, causal=True, window_size=sides)
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    default_scale = scaling is None or abs(scaling - q.shape[-1] ** -0.5) < 1e-9
    if window is not None or not default_scale:
        return None
    groups = q.shape[1] // k.shape[1]
    k, v = (tensor.repeat_interleave(groups, dim=1) for tensor in (k, v))
    # torch 2.11 knows window_size, earlier releases is_causal; both mean the same here.
    try:
        return varlen_attn(q, k, v, *lengths, window_size=sides)
    except TypeError:
        return varlen_attn(q, k, v, *lengths, is_causal=True)


def _padded_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """SDPA over right-padded rows. Returns (T, heads, D)."""
    groups = query.shape[1] // key.shape[1]
    q, k, v = (_unpack(tensor[0], packing) for tensor in (query, key, value))
    if groups > 1:
        k, v = (tensor.repeat_interleave(groups, dim=1) for tensor in (k, v))
    mask = None
    if window is not None:
        place = torch.arange(packing.max_length, device=q.device)
        distance = place[:, None] - place[None, :]
        mask = (distance >= 0) & (distance < window)
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling)
    return output.transpose(1, 2)[packing.rows, packing.columns]


def _unpack(tensor: torch.Tensor, packing: Packing) -> torch.Tensor:
    """(heads, T, D) to right-padded (N, heads, L, D), zeros in the padding."""
    heads, _, width = tensor.shape
    rows = tensor.new_zeros(packing.num_sequences, packing.max_length, heads, width)
    return rows.index_put((packing.rows, packing.columns), tensor.transpose(0, 1)).transpose(1, 2)


ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_attention)
