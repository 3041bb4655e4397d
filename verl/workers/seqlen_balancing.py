"""Cutting a batch by tokens: equal work for every rank, and micro-batches within a token budget.

Left out: what a micro-batch is used for (workers), and packing the sequences of one without padding.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
import torch.distributed as dist

from ..models.prompts import same_prompts
from ..protocol import DataProto


def get_seqlen_balanced_partitions(seqlen_list: Sequence[int], k_partitions: int, equal_size: bool) -> list[list[int]]:
    """Distribute items over k partitions so that the sums of their lengths are as even as possible.

    The largest differencing method (Karmarkar and Karp, 1982): keep partial solutions, and while there is more than
    one, merge the two with the widest spread, heavy partitions with light ones. `equal_size` also gives every
    partition the same number of items. Returns k lists of item numbers, each sorted, none empty. Deterministic.
    Raises ValueError for fewer items than partitions, or where equal_size does not divide.
    """
    count = len(seqlen_list)
    if not 1 <= k_partitions <= count:
        raise ValueError(f"cannot make {k_partitions} partitions of {count} items")
    if equal_size and count % k_partitions:
        raise ValueError(f"{count} items do not divide into {k_partitions} partitions of equal size")
    by_length = sorted(range(count), key=lambda item: (seqlen_list[item], item))
    step = k_partitions if equal_size else 1  # one item for each partition in every block keeps the sizes equal
    heap = []
    for start in range(0, count, step):
        sets = [(int(seqlen_list[item]), [item]) for item in by_length[start : start + step]]
        _push(heap, sets + [(0, [])] * (k_partitions - len(sets)), tie=start)
    while len(heap) > 1:
        (_, tie, heavy), (_, _, light) = heapq.heappop(heap), heapq.heappop(heap)
        _push(heap, [(a[0] + b[0], a[1] + b[1]) for a, b in zip(heavy, reversed(light), strict=True)], tie)
    return [sorted(items) for _, items in heap[0][2]]


def _push(heap: list, sets: list[tuple[int, list[int]]], tie: int) -> None:
    """Add a partial solution, heaviest set first, to the heap whose top has the widest spread."""
    sets.sort(key=lambda entry: (entry[0], len(entry[1])), reverse=True)
    heapq.heappush(heap, (sets[-1][0] - sets[0][0], tie, sets))


@dataclass(frozen=True)
class Tokens:
    """What the rows of a batch cost: each its response, and rows of one prompt that prompt once between them.

    A row may bring a gold answer, which is computed beside it as one more sample of its prompt.
    """

    prompt_of: list[int]
    """the number of each row's prompt"""
    prompts: list[int]
    """tokens of each row's prompt"""
    responses: list[int]
    """tokens of each row's response"""
    golds: list[int] = field(default_factory=list)
    """tokens of each row's gold answer, 0 where it has none; empty where no row has one"""

    @classmethod
    def of(cls, data: DataProto, *, share_prompts: bool) -> "Tokens":
        """Of a batch with ``attention_mask`` (B, L), ``gold`` (B, T) under a retain loss and, for this and to share
        prompts, ``input_ids`` and ``response_mask``."""
        lengths = data.batch["attention_mask"].sum(-1)
        gold = data.batch.get("gold", None)
        golds = lengths.new_zeros(0) if gold is None else (gold >= 0).sum(-1)
        if not share_prompts:
            if gold is not None:
                golds = (golds + lengths - data.batch["response_mask"].sum(-1)) * (golds > 0)
            return cls(list(range(len(data))), [0] * len(data), lengths.tolist(), golds.tolist())
        responses = data.batch["response_mask"].sum(-1)
        prompts = lengths - responses
        return cls(same_prompts(data.batch).tolist(), prompts.tolist(), responses.tolist(), golds.tolist())

    def __call__(self, rows: Sequence[int] | None = None) -> int:
        """Tokens of these rows, or of all."""
        rows = range(len(self.responses)) if rows is None else rows
        prompts = {self.prompt_of[row]: self.prompts[row] for row in rows}
        return sum(prompts.values()) + self.behind(rows)

    def behind(self, rows: Sequence[int]) -> int:
        """Tokens behind the prompts of these rows."""
        return sum(self.responses[row] for row in rows) + (sum(self.golds[row] for row in rows) if self.golds else 0)

    def computed(self) -> int:
        """Tokens that a packed pass over all rows computes: of a response all but the last (``models.forward``)."""
        return self() - sum(tokens > 1 for tokens in (*self.responses, *self.golds))

    def pairs(self) -> int:
        """Pairs of these tokens that attention joins, without a discount for causality."""
        prompts = dict(zip(self.prompt_of, self.prompts, strict=True))
        rows = [*zip(self.prompts, self.responses, strict=True), *zip(self.prompts, self.golds, strict=False)]
        behind = [(prompt, tokens - (tokens > 1)) for prompt, tokens in rows]
        return sum(own**2 for own in prompts.values()) + sum((p + r) ** 2 - p**2 for p, r in behind)

    def together(self) -> list[list[int]]:
        """All rows, those of one prompt side by side, in the order in which their first ones come."""
        groups: dict[int, list[int]] = {}
        for row, prompt in enumerate(self.prompt_of):
            groups.setdefault(prompt, []).append(row)
        return list(groups.values())


@dataclass(frozen=True)
class _Budget:
    """What a micro-batch may hold: ``limit`` tokens, of which ``most_responses`` are responses'."""

    tokens: Tokens
    limit: int
    most_responses: int

    def holds(self, rows: Sequence[int]) -> bool:
        return self.tokens.behind(rows) <= self.most_responses and self.tokens(rows) <= self.limit

    def units(self) -> list[list[int]]:
        """Rows that stay together: all of one prompt or, where these are too many, parts of about equal size."""
        return [part for rows in self.tokens.together() for part in self._parts(rows)]

    def _parts(self, rows: list[int]) -> list[list[int]]:
        for count in range(1, len(rows)):
            size = -(-len(rows) // count)
            parts = [rows[start : start + size] for start in range(0, len(rows), size)]
            if all(map(self.holds, parts)):
                return parts
        return [[row] for row in rows]

    def partitions(self, units: list[list[int]], count: int) -> list[list[int]]:
        """``count`` balanced ones of units, as rows."""
        parts = get_seqlen_balanced_partitions([self.tokens(rows) for rows in units], count, equal_size=False)
        return [sorted(row for unit in part for row in units[unit]) for part in parts]

    def fewest(self, units: list[list[int]]) -> list[list[int]]:
        """As few balanced partitions as the budget allows."""
        for count in range(max(1, -(-self.tokens() // self.limit)), len(units)):
            if all(map(self.holds, partitions := self.partitions(units, count))):
                return partitions
        return units

    def exactly(self, partitions: list[list[int]], units: list[list[int]], count: int) -> list[list[int]]:
        """``count`` partitions, given fewer. Balancing anew may overshoot; halving cannot."""
        if count <= len(units) and all(map(self.holds, balanced := self.partitions(units, count))):
            return balanced
        partitions = list(partitions)
        while len(partitions) < count:
            partitions.sort(key=len)
            rows = partitions.pop()
            partitions += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
        return partitions


def prepare_dynamic_batch(
    data: DataProto, max_token_len: int, group: dist.ProcessGroup | None = None, *, share_prompts: bool = False
) -> tuple[list[DataProto], list[list[int]]]:
    """Cut a batch into micro-batches of at most `max_token_len` real tokens, of about equal size, largest work first.

    With `share_prompts` a prompt counts once a micro-batch, its rows stay together as far as the budget allows, and
    responses fill no more of the budget than they would if all rows had full length: logits are kept for them alone.

    Where torch.distributed runs, the ranks of `group` (default: all) agree on the number of micro-batches, because
    each one is a collective operation under FSDP; every rank then has to call this, with as many rows as the others.
    A row whose gold answer does not fit beside it makes a micro-batch by itself, beyond the limit.
    Returns (micro-batches, the rows of each); `restore_dynamic_batch` puts their results back in order. Raises
    ValueError for a sequence that is longer than `max_token_len`.
    """
    lengths = data.batch["attention_mask"].sum(-1).tolist()
    if max(lengths) > max_token_len:
        raise ValueError(f"a sequence of {max(lengths)} tokens does not fit into max_token_len={max_token_len}")
    most_responses = max_token_len
    if share_prompts:
        most_responses = max_token_len * data.batch["response_mask"].shape[1] // data.batch["attention_mask"].shape[1]
    budget = _Budget(Tokens.of(data, share_prompts=share_prompts), max_token_len, most_responses)
    units = budget.units()
    partitions = budget.fewest(units)
    wanted = _largest_over_ranks(len(partitions), group)
    if wanted > len(lengths):
        raise ValueError(f"another rank needs {wanted} micro-batches, this one has only {len(lengths)} rows")
    if wanted > len(partitions):
        partitions = budget.exactly(partitions, units, wanted)
    # Attention grows with the square of the length: the part that needs most memory comes first and fails early.
    partitions.sort(key=lambda rows: (-sum(lengths[row] ** 2 for row in rows), rows))
    return [data[rows] for rows in partitions], partitions


def _largest_over_ranks(count: int, group: dist.ProcessGroup | None) -> int:
    if not dist.is_initialized():
        return count
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    largest = torch.tensor(count, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    return int(largest)


def restore_dynamic_batch(data: torch.Tensor, batch_idx_list: list[list[int]]) -> torch.Tensor:
    """Undo the reordering: `data` is the concatenated results of the micro-batches, rows in their order."""
    order = torch.tensor(list(chain.from_iterable(batch_idx_list)), device=data.device)
    return data[order.argsort()]


def balance_dataproto(
    data: DataProto, world_size: int, mini_batch_size: int | None = None, *, share_prompts: bool = False
) -> dict[str, float]:
    """Reorder a batch in place so that `chunk(world_size)` gives every rank as many tokens as possible alike.

    Every rank keeps the same number of samples. `mini_batch_size` is the number of SAMPLES of an optimiser step over
    all ranks (default: the whole batch): when each rank cuts its chunk into parts of mini_batch_size / world_size
    rows, part i of all ranks together holds exactly the samples i * mini_batch_size onwards of the given batch, so
    that training does not depend on the number of ranks. With `share_prompts` a prompt counts once, and its rows come
    to one rank, or to several in parts of equal size where there are more ranks than prompts. Returns the tokens of the
    lightest and heaviest rank, before and after. Raises ValueError where the sizes do not divide.
    """
    size = mini_batch_size or len(data)
    if len(data) % size or size % world_size:
        raise ValueError(f"{len(data)} rows do not divide into mini-batches of {size} over {world_size} ranks")
    tokens = Tokens.of(data, share_prompts=share_prompts)
    shares: list[list[int]] = [[] for _ in range(world_size)]
    totals = [0] * world_size
    for start in range(0, len(data), size):
        units = _units_of_equal_size(tokens, range(start, start + size), size // world_size)
        parts = get_seqlen_balanced_partitions([tokens(rows) for rows in units], world_size, equal_size=True)
        rows_of = [sorted(row for unit in part for row in units[unit]) for part in parts]
        # The lightest part of this mini-batch goes to the rank that has had most so far.
        ranks = sorted(range(world_size), key=lambda rank: (-totals[rank], rank))
        for rank, rows in zip(ranks, sorted(rows_of, key=tokens), strict=True):
            shares[rank] += rows
            totals[rank] += tokens(rows)
    per_rank = len(data) // world_size
    before = [tokens(range(rank * per_rank, (rank + 1) * per_rank)) for rank in range(world_size)]
    data.reorder(torch.tensor(list(chain.from_iterable(shares))))
    return {
        "tokens_min": min(before),
        "tokens_max": max(before),
        "balanced_tokens_min": min(totals),
        "balanced_tokens_max": max(totals),
    }


def _units_of_equal_size(tokens: Tokens, span: range, rows_of_a_rank: int) -> list[list[int]]:
    """These rows in the largest units, of one prompt each, that share out evenly over the ranks."""
    groups = [[row for row in rows if row in span] for rows in tokens.together()]
    size = math.gcd(rows_of_a_rank, *map(len, groups))
    return [rows[start : start + size] for rows in groups for start in range(0, len(rows), size)]
