"""Which examples a step takes, which of them a rank computes, and how they become tensors.

All ranks know all examples, so a batch's weight is counted without communication. Nothing here depends on the model.
"""

import math
import os.path
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from RS.utils.data import Example

Sequence = tuple[list[int], list[int]]
"""token ids of a prompt and of its response"""
AUTO_TOKENS = {"cpu": 1024, "cuda": 4096}
"""real tokens of a micro-batch under ``micro_batch_size=auto``. A CPU's products are at their fastest from 256 on, and
what a micro-batch costs besides is a few percent at 1,024; 4,096 are eight of RWKU's longest examples"""
SEED_STRIDE = 1_000_003
"""how far the seeds of random numbers lie apart from one ``seed`` to the next; epochs and steps count between"""
SHORTEST_OPENING = 8
"""tokens that prompts must begin with in common before it is worth computing them once"""


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The numbers 0..count-1 in this epoch's order, in batches; the last one may be smaller."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * SEED_STRIDE + epoch)).tolist()
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def endless(count: int, seed: int) -> Iterator[int]:
    """The numbers 0..count-1 over and over, in a new order each time."""
    epoch = 0
    while True:
        yield from (index for batch in epoch_batches(count, count, seed, epoch) for index in batch)
        epoch += 1


@dataclass(frozen=True)
class Budget:
    """What a micro-batch holds at most; an example that is larger is one by itself."""

    examples: float = math.inf
    tokens: float = math.inf

    @classmethod
    def of(cls, micro_batch_size: int | Literal["auto"], device: torch.device) -> "Budget":
        """What the setting of that name means on this device."""
        if micro_batch_size == "auto":
            return cls(tokens=AUTO_TOKENS.get(device.type, AUTO_TOKENS["cuda"]))
        return cls(examples=micro_batch_size)

    def fill(self, groups: list[list[int]], examples: list[Example]) -> list[list[int]]:
        """The groups' numbers in parts within the budget; a group is parted only where it alone is over it."""
        parts: list[list[int]] = []
        filled = 0
        for group in groups:
            for piece in [group] if self._holds(len(group), _tokens(group, examples)) else [[index] for index in group]:
                tokens = _tokens(piece, examples)
                if parts and self._holds(len(parts[-1]) + len(piece), filled + tokens):
                    parts[-1] += piece
                    filled += tokens
                else:
                    parts.append([*piece])
                    filled = tokens
        return parts

    def _holds(self, count: int, tokens: int) -> bool:
        return count <= self.examples and tokens <= self.tokens


def my_micro_batches(
    indices: list[int], examples: list[Example], rank: int, world: int, budget: Budget
) -> list[list[int]]:
    """This rank's share of a batch in micro-batches, as many on every rank; empty where it needs fewer.

    Ranks get as many tokens as possible alike. Examples of one prompt come together, which lets the model compute it
    once, and so do those of like length, so that little is padded.
    """
    shares = [budget.fill(groups, examples) for groups in _shares(indices, examples, world)]
    mine = shares[rank]
    return mine + [[] for _ in range(max(map(len, shares)) - len(mine))]


def _shares(indices: list[int], examples: list[Example], world: int) -> list[list[list[int]]]:
    """The groups of each rank: the heaviest first, each to the rank that has least so far (Graham's rule, 1969)."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index in sorted(indices, key=lambda index: (-_tokens([index], examples), index)):
        by_prompt.setdefault(tuple(examples[index].prompt), []).append(index)
    even = Budget(tokens=_tokens(indices, examples) / world)  # a prompt of half the batch may be two ranks' work
    groups = [part for group in by_prompt.values() for part in even.fill([group], examples)]
    shares: list[list[list[int]]] = [[] for _ in range(world)]
    loads = [0] * world
    for group in sorted(groups, key=lambda group: -_tokens(group, examples)):
        lightest = loads.index(min(loads))
        shares[lightest].append(group)
        loads[lightest] += _tokens(group, examples)
    return shares


def _tokens(indices: list[int], examples: list[Example]) -> int:
    """Tokens of these examples, the prompt of a pair counted once."""
    found = (examples[index] for index in indices)
    return sum(len(example.prompt) + len(example.response) + len(example.rejected or ()) for example in found)


def collate(sequences: list[Sequence], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Prompts padded on the left, responses on the right: the layout that ``verl.models.forward`` reads.

    It computes a prompt once that several rows have. Where prompts differ but begin alike (a chat template's system
    message), that beginning stands as the prompt and the rest with the response, if this makes more tokens common.

    Returns:
        ``input_ids``, ``attention_mask`` (b, S + T) int64; ``responses`` (b, T) int64; ``response_mask`` (b, T) bool,
        true where a token is the response's.
    """
    cut = _opening([prompt for prompt, _ in sequences])
    heads = [prompt[:cut] for prompt, _ in sequences]
    tails = [prompt[len(head) :] + response for head, (prompt, response) in zip(heads, sequences, strict=True)]
    left, right = max(map(len, heads)), max(map(len, tails))
    ids, seen, answers = [], [], []
    for head, tail, (_, response) in zip(heads, tails, sequences, strict=True):
        before, behind = left - len(head), right - len(tail)
        ids.append([pad_id] * before + head + tail + [pad_id] * behind)
        seen.append([0] * before + [1] * (len(head) + len(tail)) + [0] * behind)
        answers.append([False] * (len(tail) - len(response)) + [True] * len(response) + [False] * behind)
    input_ids = torch.tensor(ids, device=device)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.tensor(seen, device=device),
        "responses": input_ids[:, left:],
        "response_mask": torch.tensor(answers, device=device),
    }


def _opening(prompts: list[list[int]]) -> int | None:
    """How many tokens of each prompt stand as the prompt; None: all."""
    common = len(os.path.commonprefix(prompts))
    distinct = {tuple(prompt) for prompt in prompts}
    by_prompt = sum(map(len, prompts)) - sum(map(len, distinct))
    return common if common >= SHORTEST_OPENING and common * (len(prompts) - 1) > by_prompt else None
