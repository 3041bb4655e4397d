"""Optimisers and learning-rate schedules, by the names that EasyR1's configuration gives them."""

import math
from collections.abc import Callable, Iterable

import torch
from torch.optim.lr_scheduler import LambdaLR

from ..workers.config import OptimConfig


class BF16AdamW(torch.optim.Optimizer):
    """AdamW whose weights and moments stay in bf16, with Kahan summation so that small updates are not rounded away.

    Six bytes of optimiser state and compensation a weight instead of eight plus an fp32 master copy. The compensation
    follows Kahan's scheme as torch.distributed's AnyPrecisionAdamW paper describes it (arXiv 2010.06192, section 4).
    """

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, group)

    def _update(self, param: torch.nn.Parameter, group: dict) -> None:
        state = self.state[param]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in ("exp_avg", "exp_avg_sq", "compensation"):
                state[name] = torch.zeros_like(param, dtype=torch.bfloat16)
        state["step"] += 1
        (beta1, beta2), step, grad = group["betas"], state["step"].item(), param.grad.float()
        state["exp_avg"].lerp_(grad.to(torch.bfloat16), 1 - beta1)
        state["exp_avg_sq"].copy_(state["exp_avg_sq"].float().mul_(beta2).addcmul_(grad, grad, value=1 - beta2))
        denominator = (state["exp_avg_sq"].float() / (1 - beta2**step)).sqrt_().add_(group["eps"])
        change = state["exp_avg"].float() / (1 - beta1**step) / denominator + group["weight_decay"] * param.float()
        wanted = state["compensation"].float() - group["lr"] * change
        before = param.float()
        param.copy_(before + wanted)
        state["compensation"].copy_(wanted - (param.float() - before))


def build_optimizer(module: torch.nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser of a module's trainable parameters."""
    params = [param for param in module.parameters() if param.requires_grad]
    options = {"lr": config.lr, "betas": (config.betas[0], config.betas[1]), "weight_decay": config.weight_decay}
    if config.strategy == "adamw_bf16":
        return BF16AdamW(params, **options)
    return torch.optim.AdamW(params, fused=True, **options)


def build_scheduler(optimizer: torch.optim.Optimizer, config: OptimConfig, training_steps: int) -> LambdaLR:
    """Linear warm-up, then constant, or a cosine that ends at ``min_lr_ratio`` after ``training_steps``."""
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
