"""Which samples of a batch have the same prompt. What is made of that is ``forward``'s, and the batching's."""

import torch
from tensordict import TensorDict


def same_prompts(batch: TensorDict) -> torch.Tensor:
    """(b,) int64: the number of each sample's prompt among the prompts that differ."""
    width = batch["attention_mask"].shape[1] - batch["response_mask"].shape[1]
    prompts = batch["input_ids"][:, :width].masked_fill(batch["attention_mask"][:, :width] == 0, -1)
    return torch.unique(prompts, dim=0, return_inverse=True)[1]
