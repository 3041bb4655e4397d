"""Optimisers and learning-rate schedules, by the names that EasyR1's configuration gives them."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch.optim.adamw import adamw
from torch.optim.lr_scheduler import LambdaLR

from ..config.worker import OptimConfig
from ..utils.errors import ConfigError
from .fsdp import local_shard

BF16_BETA = 0.9
"""largest decay rate of a moment that bf16 can hold: a step changes an average by (1 - beta) of its distance to the
gradient, which bf16 rounds away below 2^-9 of the average. At 0.9 it rests within 2 %, at 0.999 it never moves"""
CHUNK = {"cpu": 2**20, "cuda": 2**24}
"""weights updated at once: what keeps all cores, or a GPU, busy and costs little memory: 20 bytes for each"""


def moment_dtype(beta: float) -> torch.dtype:
    """The type in which BF16AdamW keeps the moment that decays with ``beta``."""
    return torch.bfloat16 if beta <= BF16_BETA else torch.float32


class BF16AdamW(torch.optim.Optimizer):
    """AdamW on bf16 weights that loses no update: each weight's lower 16 bits are kept beside it.

    Weight and ``remainder`` together are an fp32 master weight, whose upper 16 bits, rounded, are the bf16 weight. So
    the update is AdamW's in fp32 (torch's fused kernel, a chunk at a time) in 10 bytes a weight with its state, and not
    in 12. Moments are kept in bf16 where that holds them (``moment_dtype``), in fp32 elsewhere.
    """

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        """Raises ConfigError for parameters of another type."""
        params = list(params)
        if other := {param.dtype for param in params} - {torch.bfloat16}:
            raise ConfigError(
                f"optim.strategy=adamw_bf16: trains bf16 weights, and these are {other.pop()}; "
                "set fsdp.torch_dtype=bf16, or strategy=adamw"
            )
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state in its own types: torch's would cast every moment to bf16, the weights' type."""
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, param in zip(saved, params, strict=True):
            if number in state_dict["state"]:
                empty = self._empty(param, state_dict["param_groups"][0]["betas"])
                for name, value in state_dict["state"][number].items():
                    like = empty.get(name, value)
                    self.state[param][name] = value.to(like.device, like.dtype)

    def _empty(self, param: torch.Tensor, betas: Sequence[float]) -> dict[str, torch.Tensor]:
        """A parameter's state before its first step, sharded as it is."""
        types = {"exp_avg": moment_dtype(betas[0]), "exp_avg_sq": moment_dtype(betas[1]), "remainder": torch.int16}
        return {name: torch.zeros_like(param, dtype=dtype) for name, dtype in types.items()}

    def _update(self, param: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if not state:
            state.update(step=torch.tensor(0.0), **self._empty(param, group["betas"]))
        tensors = [param, param.grad, state["exp_avg"], state["exp_avg_sq"], state["remainder"]]
        flat = [local_shard(tensor).view(-1) for tensor in tensors]  # element by element, so a shard needs no other
        size = CHUNK.get(flat[0].device.type, CHUNK["cuda"])
        for parts in zip(*(tensor.split(size) for tensor in flat), strict=True):
            # The kernel counts up the step itself.
            _update_chunk(*parts, torch.full((), state["step"].item(), device=parts[0].device), group)
        state["step"] += 1


def _update_chunk(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    remainder: torch.Tensor,
    step: torch.Tensor,
    group: dict[str, Any],
) -> None:
    """One AdamW step on flat tensors of the same length, in place."""
    master = weight.float()
    master.view(torch.int32).add_(remainder)
    first, second = exp_avg.float(), exp_avg_sq.float()
    adamw(
        [master],
        [gradient.float()],
        [first],
        [second],
        [],
        [step],
        fused=True,
        amsgrad=False,
        maximize=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
    )
    weight.copy_(master)
    # A tie that was rounded down leaves 2^15, one more than fits: the master weight loses its last bit.
    lower = master.view(torch.int32).sub_(weight.float().view(torch.int32))
    remainder.copy_(lower.clamp_(max=2**15 - 1))
    for kept, new in ((exp_avg, first), (exp_avg_sq, second)):
        if kept.dtype != new.dtype:  # else the kernel worked in place
            kept.copy_(new)


def build_optimizer(module: torch.nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser of a module's trainable parameters."""
    params = [param for param in module.parameters() if param.requires_grad]
    options = {"lr": config.lr, "betas": (config.betas[0], config.betas[1]), "weight_decay": config.weight_decay}
    if config.strategy == "adamw_bf16":
        return BF16AdamW(params, **options)
    return torch.optim.AdamW(params, fused=True, **options)


def build_scheduler(optimizer: torch.optim.Optimizer, config: OptimConfig, training_steps: int) -> LambdaLR:
    """Linear warm-up, then constant, or a cosine that ends at ``min_lr_ratio`` after ``training_steps``.

    Counts training steps, as EasyR1 does, however many optimiser steps each has.
    """
    warmup = config.warmup_steps(training_steps)
    floor = config.min_lr_ratio or 0.0

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        if config.lr_scheduler_type == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, training_steps - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)
