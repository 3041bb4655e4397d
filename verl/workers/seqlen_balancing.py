"""Cutting a batch by tokens: equal work for every rank, and micro-batches within a token budget.

Left out: what a micro-batch is used for (workers), and packing the sequences of one without padding.
"""

import heapq
from collections.abc import Sequence
from itertools import chain

import torch
import torch.distributed as dist

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


def prepare_dynamic_batch(
    data: DataProto, max_token_len: int, group: dist.ProcessGroup | None = None
) -> tuple[list[DataProto], list[list[int]]]:
    """Cut a batch into micro-batches of at most `max_token_len` real tokens, of about equal size, largest work first.

    Where torch.distributed runs, the ranks of `group` (default: all) agree on the number of micro-batches, because
    each one is a collective operation under FSDP; every rank then has to call this, with as many rows as the others.
    Returns (micro-batches, the rows of each); `restore_dynamic_batch` puts their results back in order. Raises
    ValueError for a sequence that is longer than `max_token_len`.
    """
    lengths = data.batch["attention_mask"].sum(-1).tolist()
    if max(lengths) > max_token_len:
        raise ValueError(f"a sequence of {max(lengths)} tokens does not fit into max_token_len={max_token_len}")
    partitions = _partitions_within(lengths, max_token_len, -(-sum(lengths) // max_token_len))
    wanted = _largest_over_ranks(len(partitions), group)
    if wanted > len(lengths):
        raise ValueError(f"another rank needs {wanted} micro-batches, this one has only {len(lengths)} rows")
    if wanted > len(partitions):
        partitions = _exactly(partitions, lengths, max_token_len, wanted)
    # Attention grows with the square of the length: the part that needs most memory comes first and fails early.
    partitions.sort(key=lambda rows: (-sum(lengths[row] ** 2 for row in rows), rows))
    return [data[rows] for rows in partitions], partitions


def _partitions_within(lengths: list[int], limit: int, count: int) -> list[list[int]]:
    """The fewest balanced partitions, `count` or more, that all stay within the limit."""
    for k in range(max(count, 1), len(lengths)):
        partitions = get_seqlen_balanced_partitions(lengths, k, equal_size=False)
        if _fits(partitions, lengths, limit):
            return partitions
    return [[row] for row in range(len(lengths))]


def _exactly(partitions: list[list[int]], lengths: list[int], limit: int, count: int) -> list[list[int]]:
    """`count` partitions within the limit, given fewer that are. Balancing anew may overshoot; halving cannot."""
    balanced = get_seqlen_balanced_partitions(lengths, count, equal_size=False)
    if _fits(balanced, lengths, limit):
        return balanced
    partitions = list(partitions)
    while len(partitions) < count:
        partitions.sort(key=len)
        rows = partitions.pop()
        partitions += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return partitions


def _fits(partitions: list[list[int]], lengths: list[int], limit: int) -> bool:
    return all(sum(lengths[row] for row in rows) <= limit for rows in partitions)


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


def balance_dataproto(data: DataProto, world_size: int, mini_batch_size: int | None = None) -> dict[str, float]:
    """Reorder a batch in place so that `chunk(world_size)` gives every rank as many tokens as possible alike.

    Every rank keeps the same number of samples. `mini_batch_size` is the number of SAMPLES of an optimiser step over
    all ranks (default: the whole batch): when each rank cuts its chunk into parts of mini_batch_size / world_size
    rows, part i of all ranks together holds exactly the samples i * mini_batch_size onwards of the given batch, so
    that training does not depend on the number of ranks. Returns the tokens of the lightest and heaviest rank, before
    and after. Raises ValueError where the sizes do not divide.
    """
    size = mini_batch_size or len(data)
    if len(data) % size or size % world_size:
        raise ValueError(f"{len(data)} rows do not divide into mini-batches of {size} over {world_size} ranks")
    lengths = data.batch["attention_mask"].sum(-1).tolist()
    shares: list[list[int]] = [[] for _ in range(world_size)]
    totals = [0] * world_size
    for start in range(0, len(data), size):
        parts = get_seqlen_balanced_partitions(lengths[start : start + size], world_size, equal_size=True)
        tokens = [sum(lengths[start + row] for row in part) for part in parts]
        # The lightest part of this mini-batch goes to the rank that has had most so far.
        ranks = sorted(range(world_size), key=lambda rank: (-totals[rank], rank))
        for rank, part in zip(ranks, sorted(range(world_size), key=tokens.__getitem__), strict=True):
            shares[rank] += [start + row for row in parts[part]]
            totals[rank] += tokens[part]
    per_rank = len(data) // world_size
    before = [sum(lengths[rank * per_rank : (rank + 1) * per_rank]) for rank in range(world_size)]
    data.reorder(torch.tensor(list(chain.from_iterable(shares))))
    return {
        "tokens_min": min(before),
        "tokens_max": max(before),
        "balanced_tokens_min": min(totals),
        "balanced_tokens_max": max(totals),
    }
