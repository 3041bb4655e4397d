"""Sequence parallelism after DeepSpeed-Ulysses (arXiv 2309.14509): U neighbouring ranks share one packed row of tokens.

Each rank runs the model on T / U of the row's tokens. Attention needs whole sequences, so around it the ranks trade
tokens for heads: there each has all T tokens of 1 / U of the heads. Everything else works token by token. Which ranks
hold the weights is FSDP's business and does not change.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F


@dataclass(frozen=True)
class SequenceParallel:
    """The ranks that share a row, and which of them this one is. T tokens, a multiple of U; t = T / U."""

    group: Any
    size: int
    """U"""
    rank: int

    @classmethod
    def of(cls, size: int) -> "SequenceParallel | None":
        """The group of this rank among groups of ``size`` neighbouring ranks; None where a rank works alone."""
        if size == 1:
            return None
        group, _ = dist.new_subgroups(size)
        return cls(group, size, dist.get_rank(group))

    def missing(self, tokens: int) -> int:
        """Tokens that a row lacks to divide over the ranks."""
        return -tokens % self.size

    def mine(self, row: torch.Tensor) -> torch.Tensor:
        """This rank's (t, ...) of (T, ...)."""
        return row.chunk(self.size)[self.rank]

    def heads_of_mine(self, states: torch.Tensor) -> torch.Tensor:
        """(1, H, t, D), all heads of this rank's tokens, to (1, H / U, T, D), all tokens of this rank's heads."""
        _, heads, tokens, width = states.shape
        parts = _Trade.apply(states.reshape(self.size, heads // self.size, tokens, width), self.group)
        return parts.transpose(0, 1).reshape(1, heads // self.size, self.size * tokens, width)

    def mine_of_heads(self, states: torch.Tensor) -> torch.Tensor:
        """(T, H / U, D), all tokens of this rank's heads, to (t, H, D), all heads of this rank's tokens."""
        tokens, heads, width = states.shape
        parts = _Trade.apply(states.reshape(self.size, tokens // self.size, heads, width), self.group)
        return parts.transpose(0, 1).reshape(tokens // self.size, self.size * heads, width)

    def repeats(self, key_value_heads: int) -> int:
        """How often each key-value head has to be there, so that they divide over the ranks as the query heads do."""
        return 1 if key_value_heads % self.size == 0 else self.size // key_value_heads

    def whole(self, mine: torch.Tensor) -> torch.Tensor:
        """(T,) from every rank's (t,). All ranks of the group must go on to compute the same loss from it."""
        return _Whole.apply(mine, self)


class _Trade(torch.autograd.Function):
    """Part j of this rank, (U, ...), becomes part i of rank j. Its transpose is itself, and so is its gradient."""

    @staticmethod
    def forward(ctx: Any, parts: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        received = torch.empty_like(parts, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, parts.contiguous(), group=group)
        return received

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _Trade.apply(gradient, ctx.group), None


class _Whole(torch.autograd.Function):
    """Gathers; the gradient is the sum over the ranks' losses, which are all the same, so nothing is sent back."""

    @staticmethod
    def forward(ctx: Any, mine: torch.Tensor, parallel: SequenceParallel) -> torch.Tensor:
        ctx.parallel = parallel
        row = mine.new_empty(parallel.size * len(mine))
        dist.all_gather_into_tensor(row, mine.contiguous(), group=parallel.group)
        return row

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.parallel.mine(gradient) * ctx.parallel.size, None


@dataclass(frozen=True)
class SharedRow:
    """Where the N wanted tokens of a packed row lie, seen from one of the ranks that share it. A token may be wanted
    more than once, and they may come in any order."""

    parallel: SequenceParallel
    places: torch.Tensor
    """(N,) int64: where each lies in the row"""
    tokens: int
    """T"""

    @cached_property
    def _owner(self) -> torch.Tensor:
        """(N,) int64: the rank that has each."""
        return self.places // (self.tokens // self.parallel.size)

    @cached_property  # it waits for the device
    def here(self) -> torch.Tensor:
        """(n,) int64, ascending: which of the N are this rank's."""
        return (self._owner == self.parallel.rank).nonzero().squeeze(1)

    @property
    def places_here(self) -> torch.Tensor:
        """(n,) int64: where this rank's lie among its own t tokens."""
        return self.places[self.here] - self.parallel.rank * (self.tokens // self.parallel.size)

    def whole(self, values: torch.Tensor) -> torch.Tensor:
        """(N,) from every rank's (n,) of its own."""
        has = F.one_hot(self._owner, self.parallel.size)
        most = int(has.sum(dim=0).max())
        mine = F.pad(values, (0, most - len(values)))
        number = (has.cumsum(dim=0) - 1).gather(1, self._owner[:, None]).squeeze(1)  # of each among its rank's
        return self.parallel.whole(mine)[self._owner * most + number]


def head_problem(size: int, settings: Mapping[str, Any]) -> str | None:
    """Why ``size`` ranks cannot share the attention of a model with this config.json, or None."""
    heads = settings.get("num_attention_heads")
    key_value_heads = settings.get("num_key_value_heads") or heads

    def fits(size: int) -> bool:
        return heads % size == 0 and (key_value_heads % size == 0 or size % key_value_heads == 0)

    if size <= 1 or heads is None or fits(size):
        return None
    return (
        f"worker.actor.ulysses_size={size}: cannot share the model's {heads} heads ({key_value_heads} of keys and "
        f"values); for example {next(u for u in range(min(size - 1, heads), 0, -1) if fits(u))}"
    )
