"""Optimiser steps over the mini-batches of a training step, each cut into micro-batches; shared by actor and critic.

Losses come as sums and are divided by the mini-batch's weight over ALL ranks, so neither micro-batches nor ranks change
the gradient. A step whose loss or gradient is not finite is skipped and counted.
"""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import LambdaLR

from ..config.worker import BatchConfig
from ..models.fsdp import clip_grad_norm, held
from ..protocol import DataProto
from .batching import MetricSums, micro_batches

logger = logging.getLogger(__name__)

LossFunction = Callable[[DataProto], tuple[torch.Tensor, dict[str, Any]]]
"""micro-batch to (sums of each part of the loss, or its one sum, {metric: (sum, weight)})"""


class Stepper:
    """Owns a trained module, its optimiser and its schedule.

    Args:
        max_tokens: real tokens of a micro-batch, or None to count samples instead.
    """

    def __init__(
        self,
        config: BatchConfig,
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LambdaLR,
        *,
        max_tokens: int | None,
    ) -> None:
        self.config, self.module, self.optimizer, self.scheduler = config, module, optimizer, scheduler
        self.max_tokens = max_tokens
        self.parameters = [param for param in module.parameters() if param.requires_grad]
        self.skipped = 0

    def step(self, mini_batch: DataProto, loss_function: LossFunction, weight: torch.Tensor, sums: MetricSums) -> None:
        """Accumulate gradients over ``mini_batch`` (this rank's share) and update the weights.

        Args:
            weight: what the loss of this rank's share weighs, or each of its parts, on the module's device; summed over
                ranks here. A part that weighs nothing adds nothing.
        """
        dist.all_reduce(weight)
        weight = weight.clamp(min=1)
        size = self.config.micro_batch_size_per_device_for_update
        finite = torch.ones((), dtype=torch.bool, device=weight.device)  # read once, behind the last micro-batch
        shared = self.config.shares_prompts
        micros = micro_batches(mini_batch, max_samples=size, max_tokens=self.max_tokens, share_prompts=shared)[0]
        for micro in held(self.module, self.config.fsdp, micros):
            loss_sum, metrics = loss_function(micro)
            # FSDP averages gradients over ranks; the mean we want is over samples, so undo its division.
            loss = (loss_sum * dist.get_world_size() / weight).sum()
            finite &= torch.isfinite(loss.detach())
            loss.backward()
            sums.add(metrics)
        grad_norm = clip_grad_norm(self.parameters, self.config.max_grad_norm)
        if self._agree(finite) and math.isfinite(grad_norm):
            self.optimizer.step()
        else:
            self.skipped += 1
            logger.error("optimiser step skipped: loss or gradient norm (%s) is not finite", grad_norm)
        self.optimizer.zero_grad()
        sums.add({"grad_norm": (torch.as_tensor(grad_norm), 1.0)})

    def _agree(self, finite: torch.Tensor) -> bool:
        """True if the losses were finite on every rank; ``finite`` says whether this rank's were."""
        flag = finite.float()
        dist.all_reduce(flag, dist.ReduceOp.MIN)
        return bool(flag)

    def finish(self, sums: MetricSums) -> dict[str, float]:
        """End the training step, in which the learning rate was one. Returns its metrics, the same on every rank."""
        [rate, *_] = self.scheduler.get_last_lr()
        self.scheduler.step()
        return {**sums.means(), "lr": rate, "skipped_steps": float(self.skipped)}
