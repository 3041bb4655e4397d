"""Which examples a step takes, which of them a rank computes, and how they become tensors.

All ranks know all examples, so a batch's weight is counted without communication. Nothing here depends on the model.
"""

from collections.abc import Iterator

import torch

from RS.utils.data import Example

Sequence = tuple[list[int], list[int]]
"""token ids of a prompt and of its response"""


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The numbers 0..count-1 in this epoch's order, in batches; the last one may be smaller."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def endless(count: int, seed: int) -> Iterator[int]:
    """The numbers 0..count-1 over and over, in a new order each time."""
    epoch = 0
    while True:
        yield from (index for batch in epoch_batches(count, count, seed, epoch) for index in batch)
        epoch += 1


def my_micro_batches(indices: list[int], examples: list[Example], rank: int, world: int, size: int) -> list[list[int]]:
    """This rank's share of a batch in micro-batches, as many on every rank; empty where it has fewer examples.

    Examples of like length come together, so that little is padded.
    """
    by_length = sorted(indices, key=lambda index: (-len(examples[index].prompt) - len(examples[index].response), index))
    mine = by_length[rank::world]
    rounds = -(-len(by_length[::world]) // size)
    return [mine[number * size : (number + 1) * size] for number in range(rounds)]


def collate(sequences: list[Sequence], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Prompts padded on the left, responses on the right: the layout that ``verl.models.forward`` reads.

    Returns:
        ``input_ids``, ``attention_mask``, ``position_ids`` (b, S + T) int64; ``responses`` (b, T) int64;
        ``response_mask`` (b, T) bool.
    """
    prompt_width = max(len(prompt) for prompt, _ in sequences)
    response_width = max(len(response) for _, response in sequences)
    input_ids = torch.full((len(sequences), prompt_width + response_width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, (prompt, response) in enumerate(sequences):
        span = slice(prompt_width - len(prompt), prompt_width + len(response))
        input_ids[row, span] = torch.tensor(prompt + response)
        attention_mask[row, span] = 1
    batch = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0),
        "responses": input_ids[:, prompt_width:],
        "response_mask": attention_mask[:, prompt_width:].bool(),
    }
    return {key: value.to(device) for key, value in batch.items()}
