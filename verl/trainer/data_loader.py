"""Hands out prompts in an order that depends on the seed and the epoch only, and can go on from where a run stopped."""

import logging
from typing import Any

import torch

from ..protocol import DataProto
from .dataset import RLHFDataset, collate_fn

logger = logging.getLogger(__name__)


class PromptLoader:
    """An endless stream of prompts, epoch after epoch.

    An epoch's last prompts that do not fill a draw are left out, as EasyR1 does.
    """

    def __init__(self, dataset: RLHFDataset, *, shuffle: bool, seed: int) -> None:
        self.dataset, self.shuffle, self.seed = dataset, shuffle, seed
        self.epoch, self.position = 0, 0

    def next(self, count: int) -> DataProto:
        """The next ``count`` prompts, each with its own ``uid`` (epoch and row)."""
        if count > len(self.dataset):
            raise ValueError(f"asked for {count} prompts, the dataset has {len(self.dataset)}")
        if self.position + count > len(self.dataset):
            self.epoch, self.position = self.epoch + 1, 0
        chosen = self._order()[self.position : self.position + count]
        self.position += count
        return prompt_batch([self.dataset[i] for i in chosen], f"train-{self.epoch}")

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(len(self.dataset)))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(len(self.dataset), generator=generator).tolist()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "prompts": len(self.dataset), "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if (state["prompts"], state["seed"]) != (len(self.dataset), self.seed):
            logger.warning("the training data or data.seed changed since the checkpoint; prompts will not line up.")
        self.epoch, self.position = state["epoch"], state["position"]


def prompt_batch(items: list[dict[str, Any]], name: str) -> DataProto:
    """Dataset items as a batch of P prompts; ``uid`` is ``<name>-<row>``."""
    columns = collate_fn(items)
    columns["uid"] = [f"{name}-{item['row']}" for item in items]
    tensors = {key: value for key, value in columns.items() if isinstance(value, torch.Tensor)}
    return DataProto.from_dict(tensors, {key: value for key, value in columns.items() if key not in tensors})
