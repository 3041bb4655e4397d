"""Attention over short padded rows by plain products, for half precision on a CPU.

SDPA's backward pass there takes two to eight times as long over rows of up to a hundred keys, and as long over three
hundred (docs/performance.md). Shapes: N rows, L queries, K keys, D features of a head.
"""

from typing import Any

import torch

MOST_KEYS = 256


def rows_are_short(keys: torch.Tensor) -> bool:
    """Whether products are the faster attention over these keys, (N, key-value heads, K, D)."""
    return keys.device.type == "cpu" and keys.dtype in (torch.float16, torch.bfloat16) and keys.shape[2] <= MOST_KEYS


def attend_short_rows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float | None
) -> torch.Tensor:
    """Attention (N, heads, L, D). Heads that share keys and values become more queries of one head.

    Args:
        mask: (L, K) or (N, 1, L, K), true where a key is seen; None for causal attention of rows over themselves.
        scale: factor of the products; None for D ** -0.5.
    """
    heads, length = k.shape[1], q.shape[2]
    if mask is None:
        mask = torch.ones(length, k.shape[2], dtype=torch.bool, device=q.device).tril()
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    folded = q.unflatten(1, (heads, -1)).flatten(2, 3)
    rows = _ShortRows.apply(folded, k.contiguous(), v.contiguous(), ~mask, scale)
    return rows.unflatten(2, (-1, length)).flatten(1, 2)


class _ShortRows(torch.autograd.Function):
    """(N, heads, G x L, D) of queries, G to a key-value head; weights in fp32, worked out again for the gradients."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, unseen: torch.Tensor, scale: float
    ) -> torch.Tensor:
        output = _weights(q, k, unseen, scale).to(q.dtype) @ v
        ctx.save_for_backward(q, k, v, unseen, output)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, unseen, output = ctx.saved_tensors
        weights = _weights(q, k, unseen, ctx.scale)
        of_v = weights.to(q.dtype).transpose(2, 3) @ gradient
        # d softmax: w * (dw - sum w dw), where that sum is the gradient times the output.
        whole = (gradient.float() * output).sum(-1, keepdim=True)
        of_scores = weights.mul_((gradient @ v.transpose(2, 3)).sub(whole)).mul_(ctx.scale).to(q.dtype)
        return of_scores @ k, of_scores.transpose(2, 3) @ q, of_v, None, None


def _weights(q: torch.Tensor, k: torch.Tensor, unseen: torch.Tensor, scale: float) -> torch.Tensor:
    """(N, heads, G x L, K) in fp32."""
    scores = (q @ k.transpose(2, 3)).float().mul_(scale)
    scores.unflatten(2, (-1, unseen.shape[-2])).masked_fill_(unseen.unsqueeze(-3), -torch.inf)
    return scores.softmax(dim=-1)
