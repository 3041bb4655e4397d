"""Optimisers and schedules against hand-computed values and torch's own."""

import pytest
import torch

from verl.utils.optim import build_optimizer, build_scheduler
from verl.workers.config import OptimConfig


def learning_rates(steps: int, **settings) -> list[float]:
    """The rate of every step of a run of ``steps``."""
    config = OptimConfig(lr=1.0, **settings)
    optimizer = build_optimizer(torch.nn.Linear(1, 1), config)
    scheduler = build_scheduler(optimizer, config, steps)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 1, 1, 1, 1, 1]),
        ({"lr_warmup_steps": 2}, [0, 0.5, 1, 1, 1, 1]),
        ({"lr_warmup_ratio": 0.5}, [0, 1 / 3, 2 / 3, 1, 1, 1]),
        ({"lr_warmup_ratio": 0.5, "lr_warmup_steps": 1}, [0, 1, 1, 1, 1, 1]),
        ({"lr_scheduler_type": "cosine", "lr_warmup_steps": 2}, [0, 0.5, 1, 0.8535534, 0.5, 0.1464466]),
        (
            {"lr_scheduler_type": "cosine", "min_lr_ratio": 0.5, "lr_warmup_steps": 2},
            [0, 0.5, 1, 0.9267767, 0.75, 0.5732233],
        ),
    ],
)
def test_schedules(settings, expected):
    assert learning_rates(6, **settings) == pytest.approx(expected, abs=1e-6)


def trained(strategy: str, dtype: torch.dtype, lr: float, steps: int) -> torch.Tensor:
    """Weights of ones after ``steps`` towards zero, with betas and decay other than the defaults."""
    module = torch.nn.Linear(64, 1, bias=False).to(dtype)
    torch.nn.init.ones_(module.weight)
    config = OptimConfig(lr=lr, betas=[0.8, 0.9], weight_decay=0.1, strategy=strategy)
    optimizer = build_optimizer(module, config)
    for step in range(steps):
        module.weight.grad = (module.weight.detach() * (1 + step % 3)).to(dtype)
        optimizer.step()
    return module.weight.detach().float()


def test_adamw_takes_the_betas_and_the_decay():
    weight = torch.nn.Parameter(torch.ones(1, 64))
    reference = torch.optim.AdamW([weight], lr=1e-2, betas=(0.8, 0.9), weight_decay=0.1)
    for step in range(20):
        weight.grad = weight.detach() * (1 + step % 3)
        reference.step()
    assert torch.allclose(trained("adamw", torch.float32, 1e-2, 20), weight.detach(), atol=1e-6)


def test_adamw_bf16_follows_adamw_and_keeps_steps_below_its_precision():
    assert torch.allclose(
        trained("adamw_bf16", torch.bfloat16, 1e-2, 20), trained("adamw", torch.float32, 1e-2, 20), atol=1e-2
    )
    # From 1 the next smaller bf16 number is 4e-3 away: plain bf16 never leaves 1 with steps of 1e-5.
    small = trained("adamw_bf16", torch.bfloat16, 1e-5, 1000)
    assert torch.allclose(small, trained("adamw", torch.float32, 1e-5, 1000), atol=4e-3)
    assert (small < 1).all()
    assert (trained("adamw", torch.bfloat16, 1e-5, 1000) == 1).all()
