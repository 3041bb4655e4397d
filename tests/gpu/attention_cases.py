"""Packed attention against plain attention in fp32, sample by sample: outputs and gradients, on any device.

On CUDA half precision goes through the variable-length kernel; on the CPU everything goes through padded rows.
"""

from dataclasses import dataclass

import torch

from verl.models import attention
from verl.models.attention import Packing, Scoring, packed_attention

LENGTHS = (5, 64, 17, 1, 130)
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
    """(L, heads, D) of one sample's (heads, L, D), from the definition."""
    k, v = (states.repeat_interleave(case.heads // case.key_value_heads, dim=0) for states in (k, v))
    scores = q @ k.transpose(1, 2) * (case.width**-0.5 if case.scale is None else case.scale)
    if case.softcap is not None:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    seen = torch.ones_like(scores[0], dtype=torch.bool).tril()
    if case.window is not None:
        seen &= ~seen.tril(-case.window)
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(0, 1)


def errors(case: Case, device: str) -> dict[str, float]:
    """Relative error of the output and of the gradients to queries, keys and values."""
    generator = torch.Generator().manual_seed(0)

    def draw(heads: int) -> torch.Tensor:
        values = torch.randn(1, heads, sum(LENGTHS), case.width, generator=generator)
        return values.to(device, case.dtype).requires_grad_()

    states = [draw(case.heads), draw(case.key_value_heads), draw(case.key_value_heads)]
    weights = torch.randn(sum(LENGTHS), case.heads, case.width, generator=generator).to(device)
    settings = {"scaling": case.scale, "sliding_window": case.window, "softcap": case.softcap}
    packing = Packing.of(torch.tensor(LENGTHS, device=device))
    packed = packed_attention(None, *states, packing=packing, **settings)[0][0]
    exact = [tensor.detach().float().requires_grad_() for tensor in states]
    samples = zip(*(tensor[0].split(LENGTHS, dim=1) for tensor in exact), strict=True)
    plain = torch.cat([plain_attention(q, k, v, case) for q, k, v in samples])

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
