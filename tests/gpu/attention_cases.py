"""Packed attention against plain attention in fp32, sample by sample: outputs and gradients, on any device.

On CUDA half precision goes through the variable-length kernel; on the CPU everything goes through padded rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from verl.models import attention
from verl.models.attention import Packing, Scoring, SharedPacking, packed_attention

LENGTHS = (5, 64, 17, 1, 130)
SHARED = (5, 64, 17), (1, 130, 20, 3), (0, 2, 2, 0)
"""lengths of prompts and of responses, and each response's prompt; nothing goes on behind the second"""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""of |packed - plain| / |plain|. Rounding to bf16 alone gives up to 6e-3, a window that is off by one 0.2."""


@dataclass(frozen=True)
class Case:
    name: str
    heads: int = 4
    key_value_heads: int = 4
    width: int = 64
    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    dtype: torch.dtype = torch.bfloat16


CASES = [
    Case("plain"),
    Case("grouped", key_value_heads=2),
    Case("one key-value head, width 128", key_value_heads=1, width=128),
    Case("window", window=16),
    Case("window of two", window=2),
    Case("scale", scale=0.3),
    Case("softcap", softcap=1.5),
    Case("all of them", key_value_heads=2, width=128, scale=0.2, window=20, softcap=2.0),
    Case("width 256", key_value_heads=2, width=256),
    Case("width 20, which kernels refuse", width=20),
    Case("fp32", key_value_heads=2, scale=0.2, window=20, dtype=torch.float32),
]


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, case: Case) -> torch.Tensor:
    """(L, heads, D) of one sample's (heads, L, D) of queries, the last of its keys; from the definition."""
    k, v = (states.repeat_interleave(case.heads // case.key_value_heads, dim=0) for states in (k, v))
    scores = q @ k.transpose(1, 2) * (case.width**-0.5 if case.scale is None else case.scale)
    if case.softcap is not None:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    before = scores.shape[2] - scores.shape[1]
    seen = torch.ones_like(scores[0], dtype=torch.bool).tril(before)
    if case.window is not None:
        seen &= ~seen.tril(before - case.window)
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(0, 1)


def shared_packing(device: str) -> SharedPacking:
    prompts, responses, owner = (torch.tensor(numbers, device=device) for numbers in SHARED)
    return SharedPacking(Packing.of(prompts), Packing.of(responses), owner)


def plain_row(states: Sequence[torch.Tensor], case: Case, packing: Packing | SharedPacking) -> torch.Tensor:
    """(T, heads, D) of a row's (1, heads, T, D), sequence by sequence."""
    if isinstance(packing, Packing):
        samples = zip(*(tensor[0].split(packing.lengths.tolist(), dim=1) for tensor in states), strict=True)
        return torch.cat([plain_attention(*sample, case) for sample in samples])
    lengths, (of_prompts, _, owners) = [*SHARED[0], *SHARED[1]], SHARED
    parts = list(zip(*(tensor[0].split(lengths, dim=1) for tensor in states), strict=True))
    prompts, responses = parts[: len(of_prompts)], parts[len(of_prompts) :]
    rows = [plain_attention(*prompt, case) for prompt in prompts]
    for (q, k, v), owner in zip(responses, owners, strict=True):
        keys, values = (torch.cat(pair, dim=1) for pair in zip(prompts[owner][1:], (k, v), strict=True))
        rows.append(plain_attention(q, keys, values, case))
    return torch.cat(rows)


def errors(case: Case, device: str, *, shared: bool = False) -> dict[str, float]:
    """Relative error of the output and of the gradients to queries, keys and values."""
    generator = torch.Generator().manual_seed(0)
    packing = shared_packing(device) if shared else Packing.of(torch.tensor(LENGTHS, device=device))

    def draw(heads: int) -> torch.Tensor:
        values = torch.randn(1, heads, packing.tokens, case.width, generator=generator)
        return values.to(device, case.dtype).requires_grad_()

    states = [draw(case.heads), draw(case.key_value_heads), draw(case.key_value_heads)]
    weights = torch.randn(packing.tokens, case.heads, case.width, generator=generator).to(device)
    settings = {"scaling": case.scale, "sliding_window": case.window, "softcap": case.softcap}
    packed = packed_attention(None, *states, packing=packing, **settings)[0][0]
    exact = [tensor.detach().float().requires_grad_() for tensor in states]
    plain = plain_row(exact, case, packing)

    def all_of(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        gradients = torch.autograd.grad((output.float() * weights).sum(), inputs)
        return [tensor.detach().float() for tensor in (output, *gradients)]

    names, pairs = ("output", "queries", "keys", "values"), (all_of(packed, states), all_of(plain, exact))
    return {name: float((got - right).norm() / right.norm()) for name, got, right in zip(names, *pairs, strict=True)}


def path(case: Case, device: str) -> str:
    """Which code computes a case: the name of a kernel, or padded rows."""
    probe = torch.empty(1, 1, 1, case.width, device=device, dtype=case.dtype)
    fits = attention._kernel_fits(probe, probe, Scoring(softcap=case.softcap))
    return attention.varlen_kernel()[0].__name__ if fits else "padded rows"
