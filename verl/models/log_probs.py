"""Log-probabilities of labels under logits of a large vocabulary, in fp32 and without fp32 copies of the logits.

Shapes: n tokens, V vocabulary, r rows at a time.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch

ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
"""numbers of the logits that are worked on at once: what stays in a CPU's cache, and what keeps a GPU busy"""


def log_probs_and_entropy(
    logits_nV: torch.Tensor, labels_n: torch.Tensor, *, compiled: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(n,) log-probability of each label, and (n,) entropy in nats, which carries no gradient; both in fp32.

    The backward pass works the softmax out again, so the logits are all that is kept.

    Args:
        compiled: fuse the arithmetic with torch.compile.
    """
    return _LogProbs.apply(logits_nV, labels_n, compiled)


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_nV: torch.Tensor, labels_n: torch.Tensor, compiled: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs_n, entropy_n, lse_n = (
            torch.empty(len(labels_n), dtype=torch.float32, device=logits_nV.device) for _ in range(3)
        )
        run = _compiled(_rows_forward) if compiled else _rows_forward
        for rows in _rows(logits_nV):
            log_probs_n[rows], entropy_n[rows], lse_n[rows] = run(logits_nV[rows], labels_n[rows])
        ctx.save_for_backward(logits_nV, labels_n, lse_n)
        ctx.compiled = compiled
        ctx.mark_non_differentiable(entropy_n)
        return log_probs_n, entropy_n

    @staticmethod
    def backward(ctx: Any, gradient_n: torch.Tensor, _: Any) -> tuple[torch.Tensor, None, None]:
        logits_nV, labels_n, lse_n = ctx.saved_tensors
        gradient_nV = torch.empty_like(logits_nV)
        run = _compiled(_rows_backward) if ctx.compiled else _rows_backward
        for rows in _rows(logits_nV):
            gradient_nV[rows] = run(logits_nV[rows], labels_n[rows], lse_n[rows], gradient_n[rows])
        return gradient_nV, None, None


def _rows_forward(logits_rV: torch.Tensor, labels_r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log p(label), H = - sum_v p_v log p_v, and the logarithm of the sum of exp(logits)."""
    logits_rV = logits_rV.float()
    highest_r = logits_rV.amax(-1)
    below_rV = logits_rV - highest_r[:, None]
    exp_rV = below_rV.exp()
    sum_r = exp_rV.sum(-1)
    lse_r = sum_r.log() + highest_r
    # p = exp / sum and log p = below - log sum, so both sums need one exponential alone.
    entropy_r = sum_r.log() - exp_rV.mul_(below_rV).sum(-1) / sum_r
    return logits_rV.gather(-1, labels_r[:, None]).squeeze(-1) - lse_r, entropy_r, lse_r


def _rows_backward(
    logits_rV: torch.Tensor, labels_r: torch.Tensor, lse_r: torch.Tensor, gradient_r: torch.Tensor
) -> torch.Tensor:
    """d log p(label) / d z_v = [v is the label] - p_v."""
    gradient_rV = (logits_rV.float() - lse_r[:, None]).exp_().mul_(-gradient_r[:, None])
    return gradient_rV.scatter_add_(-1, labels_r[:, None], gradient_r[:, None])


def _rows(logits_nV: torch.Tensor) -> Iterator[slice]:
    tokens, vocabulary = logits_nV.shape
    step = max(1, ELEMENTS.get(logits_nV.device.type, ELEMENTS["cuda"]) // vocabulary)
    return (slice(start, start + step) for start in range(0, tokens, step))


@cache
def _compiled(plain: Callable) -> Callable:
    return torch.compile(plain, dynamic=True)
