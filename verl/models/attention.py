"""Attention over packed sequences: no padding anywhere but inside one kernel, and no prompt computed twice.

A micro-batch is one row of T tokens, its sequences end to end. Samples of one prompt share it: all prompts come first,
then all responses, and a response sees its prompt and itself. On CUDA, flash-attn's or torch's variable-length kernel
takes that in one call. Elsewhere the queries, keys and values (only these) are laid out as right-padded rows, where
plain causal attention already keeps a real token from seeing padding; only behind a shared prompt a mask is needed.

transformers models reach this through ``attn_implementation="packed"`` and the forward argument ``packing``. Which
models may is ``verl.models.packable``'s.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..utils.errors import ConfigError
from .short_rows import attend_short_rows, rows_are_short
from .ulysses import SequenceParallel

PACKED = "packed"
PAD_INSTEAD = "set worker.actor.padding_free=false (for a critic worker.critic.padding_free, in RS padding_free)"
"""What to do with a model that cannot be packed."""


@dataclass(frozen=True)
class Packing:
    """Where the sequences of a packed row lie. N sequences, T tokens in all, the longest of L tokens."""

    lengths: torch.Tensor
    """(N,) int64"""
    max_length: int
    """L"""
    rows: torch.Tensor
    """(T,) int64: the sequence of each token"""
    columns: torch.Tensor
    """(T,) int64: the place of each token in its sequence"""
    parallel: SequenceParallel | None = None
    """the ranks that share the row"""

    @classmethod
    def of(cls, lengths: torch.Tensor, parallel: SequenceParallel | None = None) -> "Packing":
        """The packing of sequences with these lengths, (N,) int64."""
        ends = lengths.cumsum(0)
        rows = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        columns = torch.arange(len(rows), device=lengths.device) - (ends - lengths)[rows]
        return cls(lengths, int(lengths.max()), rows, columns, parallel)

    @property
    def tokens(self) -> int:
        return len(self.rows)

    @property
    def position_ids(self) -> torch.Tensor:
        """(T,) int64"""
        return self.columns

    @cached_property
    def starts(self) -> torch.Tensor:
        """(N,) int64: where each sequence begins in the row"""
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def cells(self) -> torch.Tensor:
        """(T,) int64: the cell of each token in right-padded rows, which have N x L cells"""
        return self.rows * self.max_length + self.columns

    @cached_property
    def tokens_of_cells(self) -> torch.Tensor:
        """(N x L,) int64: the token in each cell. Padding repeats a sequence's last token, so that no NaN of another
        sequence gets there."""
        place = torch.arange(self.max_length, device=self.lengths.device)
        return (self.starts[:, None] + torch.minimum(place, self.lengths[:, None] - 1)).flatten()

    @cached_property
    def padding(self) -> torch.Tensor:
        """(N, L) bool"""
        return torch.arange(self.max_length, device=self.lengths.device) >= self.lengths[:, None]

    @cached_property
    def kernel_lengths(self) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """What a variable-length kernel is told: where queries and keys of each sequence begin, and the longest."""
        starts = _starts(self.lengths)
        return starts, starts, self.max_length, self.max_length


@dataclass(frozen=True)
class SharedPacking:
    """A packed row of P prompts and, behind all of them, N responses, each of which goes on behind one prompt."""

    prompts: Packing
    responses: Packing
    prompt_of: torch.Tensor
    """(N,) int64"""
    parallel: SequenceParallel | None = None
    """the ranks that share the row"""

    @property
    def tokens(self) -> int:
        return self.prompts.tokens + self.responses.tokens

    @cached_property
    def prompt_lengths(self) -> torch.Tensor:
        """(N,) int64: of the prompt before each response"""
        return self.prompts.lengths[self.prompt_of]

    @property
    def max_length(self) -> int:
        """a bound of the tokens that one token sees"""
        return self.prompts.max_length + self.responses.max_length

    @property
    def position_ids(self) -> torch.Tensor:
        """(T,) int64: responses go on behind their prompts."""
        responses = self.responses
        return torch.cat([self.prompts.columns, self.prompt_lengths[responses.rows] + responses.columns])

    @cached_property
    def visible(self) -> torch.Tensor:
        """(N, L of the responses, L of the prompts + L of the responses) int64: how far before a response's token a
        cell lies that holds its padded prompt and itself; negative where it must not be seen."""
        prompt, response = (
            torch.arange(part.max_length, device=self.prompt_of.device) for part in (self.prompts, self.responses)
        )
        length = self.prompt_lengths[:, None, None]
        in_prompt = torch.where(prompt < length, length + response[:, None] - prompt, -1)
        in_response = (response[:, None] - response).expand(len(length), -1, -1)
        return torch.cat([in_prompt, in_response], dim=2)

    @cached_property
    def kernel_lengths(self) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """As ``Packing.kernel_lengths``; a response's keys are its prompt's and its own."""
        prompts, responses = self.prompts, self.responses
        queries = torch.cat([prompts.lengths, responses.lengths])
        keys = torch.cat([prompts.lengths, self.whole.lengths])
        longest = max(prompts.max_length, responses.max_length)
        return _starts(queries), _starts(keys), longest, max(prompts.max_length, self.whole.max_length)

    @cached_property
    def whole(self) -> Packing:
        """each response behind a copy of its prompt"""
        return Packing.of(self.prompt_lengths + self.responses.lengths)

    @cached_property
    def keys(self) -> torch.Tensor:
        """(K,) int64: the tokens whose keys the kernel gets, all prompts and then ``whole``"""
        whole = self.whole
        before = self.prompt_lengths[whole.rows]
        in_prompt = self.prompts.starts[self.prompt_of][whole.rows] + whole.columns
        in_response = self.prompts.tokens + self.responses.starts[whole.rows] + whole.columns - before
        behind = torch.where(whole.columns < before, in_prompt, in_response)
        return torch.cat([torch.arange(self.prompts.tokens, device=behind.device), behind])

    @cached_property
    def places(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Where in ``keys`` the copies of the prompts' tokens lie, (C, tokens of the prompts) for the C copies of the
        prompt that has most, and True where there is none; and where those of the responses do."""
        prompts, responses, starts = self.prompts, self.responses, self.prompts.tokens + self.whole.starts
        counts = torch.bincount(self.prompt_of, minlength=len(prompts.lengths))
        owners, order = self.prompt_of.sort(stable=True)
        number = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[owners]
        behind = order.new_full((int(counts.max()), len(counts)), -1)
        behind[number, owners] = order
        behind = behind[:, prompts.rows]
        absent = behind < 0
        copies = (starts[behind] + prompts.columns).masked_fill(absent, 0)
        return copies, absent, (starts + self.prompt_lengths)[responses.rows] + responses.columns


def _starts(lengths: torch.Tensor) -> torch.Tensor:
    """(N + 1,) int32: start of each sequence, then the sum."""
    return F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


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
    packing: Packing | SharedPacking | None = None,
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
    states = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    if _kernel_fits(query, value, scoring):
        output = _kernel_rows(*states, packing, scoring)
    elif isinstance(packing, SharedPacking):
        output = _shared_rows(*states, packing, scoring)
    else:
        output = _own_rows(*states, packing, scoring)
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
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packing: Packing | SharedPacking, scoring: Scoring
) -> torch.Tensor:
    """The variable-length kernel over the row, (T, heads, D). Queries are the last of their keys."""
    kernel, takes = varlen_kernel()
    if isinstance(packing, SharedPacking):
        k, v = (_Copied.apply(tensor, packing) for tensor in (k, v))
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
    return kernel(
        q, k, v, *packing.kernel_lengths, **{name: value for name, value in settings.items() if name in takes}
    )


def _own_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packing: Packing, scoring: Scoring) -> torch.Tensor:
    """Plain attention over right-padded rows, (T, heads, D)."""
    q, k, v = (_Padded.apply(tensor, packing) for tensor in (q, k, v))
    distance = None
    if scoring.window is not None or scoring.softcap is not None:
        place = torch.arange(packing.max_length, device=q.device)
        distance = place[:, None] - place
    return _Unpadded.apply(_attend(q, k, v, distance, scoring), packing)


def _shared_rows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packing: SharedPacking, scoring: Scoring
) -> torch.Tensor:
    """Plain attention of prompts over themselves, and of responses over their prompts and themselves, (T, heads, D)."""
    prompts, responses = packing.prompts, packing.responses
    parts = [tensor.split([prompts.tokens, responses.tokens]) for tensor in (q, k, v)]
    of_prompts = _own_rows(*(prompt for prompt, _ in parts), prompts, scoring)
    k, v = (
        torch.cat(
            [_Padded.apply(prompt, prompts).index_select(0, packing.prompt_of), _Padded.apply(response, responses)],
            dim=1,
        )
        for prompt, response in parts[1:]
    )
    rows = _attend(_Padded.apply(parts[0][1], responses), k, v, packing.visible, scoring)
    return torch.cat([of_prompts, _Unpadded.apply(rows, responses)])


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, distance: torch.Tensor | None, scoring: Scoring
) -> torch.Tensor:
    """Attention over padded rows: (N, L, heads, D) of queries, (N, K, key-value heads, D) of keys and values.

    Args:
        distance: (L, K) or (N, L, K): how far before a query a key lies, negative where it is not seen; None for plain
            causal attention of rows over themselves.
    """
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    mask = None
    if distance is not None:
        mask = distance >= 0 if scoring.window is None else (distance >= 0) & (distance < scoring.window)
        mask = mask.unsqueeze(1) if mask.dim() == 3 else mask  # alike for all heads
    if rows_are_short(k) and scoring.softcap is None and not scoring.dropout:
        return attend_short_rows(q, k, v, mask, scoring.scale).transpose(1, 2)
    if (groups := q.shape[1] // k.shape[1]) > 1:
        k, v = (tensor.repeat_interleave(groups, dim=1) for tensor in (k, v))
    if scoring.softcap is not None:
        output = _capped_attention(q, k, v, mask, scoring)
    else:
        output = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scoring.scale, dropout_p=scoring.dropout
        )
    return output.transpose(1, 2)


def _capped_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scoring: Scoring
) -> torch.Tensor:
    """Attention with a cap on its scores, which SDPA has not. Holds all scores, N x heads x L x L."""
    scale = q.shape[-1] ** -0.5 if scoring.scale is None else scoring.scale
    scores = scoring.softcap * torch.tanh(q @ k.transpose(2, 3) * scale / scoring.softcap)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    return F.dropout(weights, scoring.dropout) @ v


class _Padded(torch.autograd.Function):
    """(T, heads, D) to right-padded rows (N, L, heads, D). Padding gets no gradient, so both ways only gather, where
    autograd would add up cell by cell."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, packing: Packing) -> torch.Tensor:
        ctx.packing = packing
        return _gather(tokens, packing.tokens_of_cells).unflatten(0, packing.padding.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _gather(gradient.flatten(0, 1), ctx.packing.cells), None


class _Unpadded(torch.autograd.Function):
    """The way back: right-padded rows (N, L, heads, D) to (T, heads, D)."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, packing: Packing) -> torch.Tensor:
        ctx.packing = packing
        return _gather(rows.flatten(0, 1), packing.cells)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        padding = ctx.packing.padding
        rows = _gather(gradient, ctx.packing.tokens_of_cells).unflatten(0, padding.shape)
        return rows.masked_fill_(padding[:, :, None, None], 0), None


class _Copied(torch.autograd.Function):
    """(T, heads, D) to (K, heads, D), prompts once more before each of their responses. The copies' gradients are
    gathered and added up in fp32: autograd would add number by number and in any order, which is slow in bf16."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, packing: SharedPacking) -> torch.Tensor:
        ctx.packing = packing
        return tokens.index_select(0, packing.keys)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        places, absent, of_responses = ctx.packing.places
        copies = gradient.index_select(0, places.flatten()).unflatten(0, places.shape)
        of_copies = copies.masked_fill_(absent[:, :, None, None], 0).sum(0, dtype=torch.float32)
        of_prompts = (gradient[: len(of_copies)] + of_copies).to(gradient.dtype)
        return torch.cat([of_prompts, gradient.index_select(0, of_responses)]), None


def _gather(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``tensor[index]``, which on the CPU would copy number by number; index_select copies rows, ten times as fast."""
    return tensor.flatten(1).index_select(0, index).unflatten(1, tensor.shape[1:])


ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_attention)
