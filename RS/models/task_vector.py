"""Task arithmetic: the model that is saved lies on the other side of the original from the one that is trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from verl.models.fsdp import local_shard


class TaskVector:
    """What training has added to a module since this was made, to be taken from it instead (arXiv 2212.04089).

    theta_original - alpha (theta_trained - theta_original), on the shards of this rank. Of a pair of adapters, whose
    product starts at zero, B alone is turned round.

    Args:
        alpha: how far to go; 0 gives the original.
    """

    def __init__(self, module: torch.nn.Module, alpha: float) -> None:
        self.alpha = alpha
        trained = {name: local_shard(p) for name, p in module.named_parameters() if p.requires_grad}
        names = [name for name in trained if ".lora_A." not in name and ".lora_embedding_A." not in name]
        self.weights = [trained[name].detach() for name in names]
        self.original = [weight.clone() for weight in self.weights]

    @contextmanager
    @torch.no_grad()
    def subtracted(self) -> Iterator[None]:
        """The module with the task vector subtracted; afterwards it is as it was trained."""
        trained = [weight.clone() for weight in self.weights]
        for weight, original in zip(self.weights, self.original, strict=True):
            weight.copy_(original.lerp(weight, -self.alpha))
        try:
            yield
        finally:
            for weight, before in zip(self.weights, trained, strict=True):
                weight.copy_(before)
