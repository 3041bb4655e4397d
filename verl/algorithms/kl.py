"""KL to the reference policy: per-token estimates, KL in the reward, and the controllers of its coefficient.

Shape suffixes as in losses.py. KL in the loss is `compute_kl` summed by `losses.masked_aggregate`. When a controller is
updated is the trainer's business.
"""

from typing import Literal

import torch
from torch.utils.checkpoint import checkpoint

KLPenalty = Literal["kl", "abs", "mse", "low_var_kl", "full", "kl+", "low_var_kl+"]

MAX_LOG_RATIO = 20.0  # exp(20) is 5e8: far outside any clip range, far inside float32


def compute_kl(log_probs: torch.Tensor, ref_log_probs: torch.Tensor, kl_penalty: KLPenalty) -> torch.Tensor:
    """Per-token estimate of KL(policy || reference) from samples of the policy; same shape as the inputs, float32.

    kl: log p - log q, unbiased, may be negative. abs: its absolute value. mse: half its square. low_var_kl:
    q/p - 1 - log(q/p), never negative (joschu.net/blog/kl-approx.html), clamped to 10 as in EasyR1. full: the exact
    KL; inputs are then log-probabilities of the whole vocabulary (..., V) and the result is (...).

    In a loss, mse's gradient, (log p - log q) times that of log p, is the KL's in expectation. kl's is that of log p
    alone, whose expectation is 0, and low_var_kl's is that of KL(reference || policy). kl+ and low_var_kl+ have the
    value of the estimate before the plus, and mse's gradient.
    """
    if kl_penalty in ("kl+", "low_var_kl+"):
        gradient = compute_kl(log_probs, ref_log_probs, "mse")
        return compute_kl(log_probs, ref_log_probs, kl_penalty[:-1]).detach() + (gradient - gradient.detach())
    log_ratio = log_probs.float() - ref_log_probs.float()
    if kl_penalty == "kl":
        return log_ratio
    if kl_penalty == "abs":
        return log_ratio.abs()
    if kl_penalty == "mse":
        return 0.5 * log_ratio.square()
    if kl_penalty == "low_var_kl":
        inverse = (-log_ratio).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        return (inverse.exp() - 1 - inverse).clamp(max=10.0)
    if kl_penalty == "full":
        return (log_probs.float().exp() * log_ratio).sum(-1)
    raise ValueError(f"unknown kl_penalty {kl_penalty!r}")


def exact_kl(logits_NV: torch.Tensor, ref_logits_NV: torch.Tensor, elements: int = 2**24) -> torch.Tensor:
    """(N,) KL(policy || reference) over the whole vocabulary, float32.

    No more than `elements` numbers of either side are in float32 at a time; the backward pass works them out again.
    """
    rows = max(1, elements // logits_NV.shape[-1])

    def part(logits: torch.Tensor, ref_logits: torch.Tensor) -> torch.Tensor:
        return compute_kl(logits.float().log_softmax(-1), ref_logits.float().log_softmax(-1), "full")

    pairs = zip(logits_NV.split(rows), ref_logits_NV.split(rows), strict=True)
    return torch.cat([checkpoint(part, *pair, use_reentrant=False) for pair in pairs])


def apply_kl_penalty(
    scores_BT: torch.Tensor, kl_BT: torch.Tensor, mask_BT: torch.Tensor, kl_coef: float
) -> tuple[torch.Tensor, float]:
    """KL in the reward: (scores - kl_coef * KL at every masked token (B, T), mean over sequences of their mean KL).

    The second is what an adaptive controller is updated with, as in EasyR1.
    """
    kl_BT = kl_BT.masked_fill(mask_BT == 0, 0.0)
    tokens_B = mask_BT.sum(-1)
    mean_kl = (kl_BT.sum(-1) / tokens_B.clamp(min=1)).sum() / (tokens_B > 0).sum().clamp(min=1)
    return scores_BT - kl_coef * kl_BT, mean_kl.item()


class FixedKLController:
    """A constant coefficient, `kl_coef`. Its state is empty: on resume the configuration decides."""

    def __init__(self, init_kl_coef: float) -> None:
        self.kl_coef = init_kl_coef

    def update(self, current_kl: float, n_steps: int) -> None:
        """Nothing; there so that the trainer need not ask which controller it has."""

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Nothing to load."""


class AdaptiveKLController:
    """Steers `kl_coef` so that the measured KL approaches a target (Ziegler et al., arXiv 1909.08593, section 2.2)."""

    def __init__(self, init_kl_coef: float, target_kl: float, horizon: float) -> None:
        if target_kl <= 0 or horizon <= 0:
            raise ValueError(f"target_kl={target_kl} and horizon={horizon} must both be positive")
        self.kl_coef = init_kl_coef
        self.target_kl = target_kl
        self.horizon = horizon

    def update(self, current_kl: float, n_steps: int) -> None:
        """Multiply by 1 + clip(current_kl / target - 1, -0.2, 0.2) * n_steps / horizon; n_steps counts samples.

        More samples than the horizon count as one horizon, which keeps the coefficient positive.
        """
        error = min(max(current_kl / self.target_kl - 1.0, -0.2), 0.2)
        self.kl_coef *= 1.0 + error * min(n_steps / self.horizon, 1.0)

    def state_dict(self) -> dict[str, float]:
        return {"kl_coef": self.kl_coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over a saved coefficient; a run that had a fixed one saved none, and the configured start remains."""
        self.kl_coef = state.get("kl_coef", self.kl_coef)
