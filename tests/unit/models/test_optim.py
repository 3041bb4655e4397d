"""Optimisers and schedules against hand-computed values and torch's own."""

import copy

import pytest
import torch

from verl.config.worker import OptimConfig
from verl.models.optim import CHUNK, BF16AdamW, _update_chunk, build_optimizer, build_scheduler
from verl.utils.errors import ConfigError


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


def stepped(optimizer_of, dtype: torch.dtype, gradients: list[float], start: float = 1.0, **settings) -> list[float]:
    """A weight after each step; every gradient is the same for all 64 of them."""
    weight = torch.nn.Parameter(torch.full((64,), start, dtype=dtype))
    optimizer, seen = optimizer_of([weight], **settings), []
    for gradient in gradients:
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        low = optimizer.state[weight].get("remainder")
        whole = weight.detach().float()
        seen.append((whole if low is None else (whole.view(torch.int32) + low).view(torch.float32))[0].item())
    return seen


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.99, 0.95), (0.5, 0.5)])
def test_adamw_bf16_takes_adams_steps_after_the_gradient_fell(betas):
    # Numbers that bf16 has, so that the two differ in the optimiser only.
    gradients = [1.0] * 300 + [2.0**-7] * 300
    settings = {"lr": 2.0**-10, "betas": betas, "weight_decay": 0.0}
    ours = torch.tensor(stepped(BF16AdamW, torch.bfloat16, gradients, **settings), dtype=torch.float64).diff()
    adams = torch.tensor(stepped(torch.optim.AdamW, torch.float32, gradients, **settings), dtype=torch.float64).diff()
    assert adams[-1].abs() > 1e-5
    assert torch.allclose(ours[50:], adams[50:], rtol=0.05, atol=1e-6)


def test_adamw_bf16_moves_weights_of_one_at_the_default_rate():
    # Norms start at 1, where bf16 numbers lie 4e-3 and more apart, and fp32 numbers 6e-8 to 12e-8.
    settings = {"lr": 1e-6, "betas": (0.9, 0.999), "weight_decay": 0.0}
    ours = stepped(BF16AdamW, torch.bfloat16, [0.5] * 700, **settings)
    assert ours[-1] == pytest.approx(stepped(torch.optim.AdamW, torch.float32, [0.5] * 700, **settings)[-1], abs=1e-6)
    assert ours[-1] == pytest.approx(1 - 7e-4, abs=2e-5)


def test_a_master_weight_between_two_bf16_numbers_is_kept():
    # Adam without memory and eps=255 steps by 1/256, to halfway between 1 and the next bf16 number; 1 is the even one.
    weight, remainder = torch.ones(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.int16)
    group = {"betas": (0.0, 0.0), "lr": 1.0, "weight_decay": 0.0, "eps": 255.0}
    _update_chunk(weight, -torch.ones(1), torch.zeros(1), torch.zeros(1), remainder, torch.zeros(()), group)
    assert weight.item() == 1
    assert (weight.float().view(torch.int32) + remainder).view(torch.float32).item() == pytest.approx(
        1 + 2**-8, abs=2e-7
    )


def test_the_state_of_adamw_bf16_comes_back_in_its_own_types():
    weight = torch.nn.Parameter(torch.randn(8).bfloat16())
    first = BF16AdamW([weight], lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0)
    for _ in range(3):
        weight.grad = torch.randn(8).bfloat16()
        first.step()
    second = BF16AdamW([weight], lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    types = {"step": torch.float32, "exp_avg": torch.bfloat16, "exp_avg_sq": torch.float32, "remainder": torch.int16}
    assert {name: value.dtype for name, value in second.state[weight].items()} == types
    assert all(torch.equal(value, first.state[weight][name]) for name, value in second.state[weight].items())


def test_adamw_bf16_refuses_weights_of_another_type():
    with pytest.raises(ConfigError, match=r"adamw_bf16.*torch\.float32.*set fsdp\.torch_dtype=bf16"):
        BF16AdamW([torch.nn.Parameter(torch.ones(2))], lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0)


def test_chunks_change_nothing(monkeypatch):
    found = []
    for size in (7, 1000):
        monkeypatch.setitem(CHUNK, "cpu", size)
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(5, 9).bfloat16())
        optimizer = BF16AdamW([weight], lr=1e-2, betas=(0.9, 0.999), weight_decay=0.1)
        for _ in range(4):
            weight.grad = torch.randn(5, 9).bfloat16()
            optimizer.step()
        found.append(weight.detach().clone())
    assert torch.equal(*found)
