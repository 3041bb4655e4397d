"""Cuts a rank's share of a batch into micro-batches, and adds up metrics across micro-batches and ranks."""

from collections import defaultdict
from collections.abc import Callable

import torch
import torch.distributed as dist

from ..config.worker import BatchConfig
from ..protocol import DataProto
from .seqlen_balancing import prepare_dynamic_batch

Number = torch.Tensor | float


def micro_batches(
    data: DataProto, *, max_samples: int, max_tokens: int | None, share_prompts: bool
) -> tuple[list[DataProto], list]:
    """The micro-batches and the index of each's rows; as many on every rank, since FSDP's collectives must pair up.

    Args:
        max_samples: rows of a micro-batch, where ``max_tokens`` is None.
        max_tokens: real tokens of a micro-batch.
        share_prompts: a prompt counts once a micro-batch.
    """
    if max_tokens is not None:
        return prepare_dynamic_batch(data, max_tokens, share_prompts=share_prompts)
    rows = [slice(start, start + max_samples) for start in range(0, len(data), max_samples)]
    return [data[part] for part in rows], rows


def by_micro_batch(
    data: DataProto, settings: BatchConfig, max_tokens: int | None, function: Callable[[DataProto], torch.Tensor]
) -> torch.Tensor:
    """(B, T) on the CPU, put together from a function's (b, T) of each micro-batch; a pass without gradients."""
    parts = micro_batches(
        data,
        max_samples=settings.micro_batch_size_per_device_for_experience,
        max_tokens=max_tokens,
        share_prompts=settings.shares_prompts,
    )
    mask_BT = data.batch["response_mask"]
    values_BT = torch.zeros(mask_BT.shape, device=mask_BT.device)
    for micro, rows in zip(*parts, strict=True):
        values_BT[rows] = function(micro)
    return values_BT.cpu()


class MetricSums:
    """Metrics kept as (sum, weight), so that a mean depends neither on micro-batches nor on ranks.

    They stay on the device: reading one there would make the host wait for the micro-batch that it belongs to.

    Args:
        device: where the module works.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sums: dict[str, list[torch.Tensor]] = defaultdict(list)

    def add(self, metrics: dict[str, tuple[Number, Number]]) -> None:
        for name, (total, weight) in metrics.items():
            self._sums[name].append(torch.stack([self._on_device(total), self._on_device(weight)]))

    def _on_device(self, value: Number) -> torch.Tensor:
        """() in fp64. A number from the host is filled in by the device, since a copy would wait."""
        if isinstance(value, torch.Tensor) and value.device.type == self.device.type:
            return value.detach().double()
        return torch.full((), float(value), dtype=torch.float64, device=self.device)

    def means(self) -> dict[str, float]:
        """The mean of each metric over all ranks. A collective: every rank must have added the same names."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        table = torch.stack([torch.stack(self._sums[name]).sum(0) for name in names])
        dist.all_reduce(table)
        return {
            name: total / weight if weight else 0.0 for name, (total, weight) in zip(names, table.tolist(), strict=True)
        }
