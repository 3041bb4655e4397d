"""Policy and value losses, and the weights that correct for the engine's own log-probabilities. Pure functions.

Nothing is logged and nothing is averaged over a batch that the function cannot see: every loss and every metric is a
SUM together with the weight to divide it by. The caller adds both up over micro-batches and ranks and divides once, so
a result does not depend on how a mini-batch was cut. What is left out: where the inputs come from (workers), KL (kl.py)
and replay (replay.py).

Shape suffixes: B samples of the micro-batch, T response tokens (padded right), V vocabulary. `mask_BT` is 1 for
response tokens to train on; inputs have no influence elsewhere, and results are 0 there.
"""

import math
from typing import Literal

import torch

from .kl import MAX_LOG_RATIO

LossType = Literal["default", "gspo", "gspo_token", "cispo", "sapo"]


LossAvgMode = Literal["token", "seq", "constant"]


Metrics = dict[str, tuple[torch.Tensor, torch.Tensor]]  # name -> (sum, weight)


def masked_aggregate(
    values_BT: torch.Tensor, mask_BT: torch.Tensor, mode: LossAvgMode, constant_length: int | None = None
) -> torch.Tensor:
    """Sum of per-token values whose division by the summed `loss_weight` of all parts is the batch's mean. Scalar.

    token: sum over tokens. seq: sum over sequences of the sequence's mean over its tokens. constant: sum over tokens
    divided by `constant_length`, the longest response allowed (Dr. GRPO, arXiv 2503.20783). Raises ValueError for
    mode "constant" without `constant_length`.
    """
    kept_BT = values_BT.masked_fill(mask_BT == 0, 0.0)
    if mode == "token":
        return kept_BT.sum()
    if mode == "seq":
        return (kept_BT.sum(-1) / mask_BT.sum(-1).clamp(min=1)).sum()
    if mode == "constant":
        if not constant_length:
            raise ValueError("loss_avg_mode 'constant' needs constant_length, the longest response in tokens")
        return kept_BT.sum() / constant_length
    raise ValueError(f"unknown loss_avg_mode {mode!r}")


def loss_weight(mask_BT: torch.Tensor, mode: LossAvgMode) -> torch.Tensor:
    """What a sum of `masked_aggregate` weighs: its tokens, or (seq, constant) its sequences with any token. Scalar.

    Rows without a token, for example rows that only fill up a batch, weigh nothing and so change no mean.
    """
    if mode == "token":
        return mask_BT.sum().float()
    return (mask_BT.sum(-1) > 0).sum().float()


def _importance_ratio(log_ratio_BT: torch.Tensor, mask_BT: torch.Tensor, loss_type: LossType) -> torch.Tensor:
    """(B, T): the token's own ratio, or (GSPO) the geometric mean over its sequence."""
    if loss_type in ("gspo", "gspo_token"):
        sequence_B1 = log_ratio_BT.sum(-1, keepdim=True) / mask_BT.sum(-1, keepdim=True).clamp(min=1)
        if loss_type == "gspo_token":  # value of the sequence ratio, gradient of the token's own log-probability
            log_ratio_BT = sequence_B1.detach() + log_ratio_BT - log_ratio_BT.detach()
        else:
            log_ratio_BT = sequence_B1.expand_as(log_ratio_BT)
    return log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def policy_loss(
    log_probs_BT: torch.Tensor,
    old_log_probs_BT: torch.Tensor,
    advantages_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    loss_type: LossType = "default",
    clip_ratio_low: float = 0.2,
    clip_ratio_high: float = 0.3,
    clip_ratio_dual: float = 3.0,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
    loss_avg_mode: LossAvgMode = "token",
    constant_length: int | None = None,
    weights_BT: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Metrics]:
    """Sum of the policy loss over this part of a mini-batch, and metrics as (sum, weight) pairs.

    Divide the total over all parts by their total `loss_weight(mask_BT, loss_avg_mode)`. With r the probability ratio
    to the old policy, A the advantage and sg a stopped gradient, a token's loss is

    - default: max(-A r, -A clip(r, 1-low, 1+high)), and for A < 0 at most -A dual (PPO, arXiv 1707.06347; a higher
      upper bound, DAPO, arXiv 2503.14476; dual clip, arXiv 1912.09729);
    - gspo, gspo_token: the same without dual, and with the geometric mean of the sequence's ratios for r (arXiv
      2507.18071);
    - cispo: -A sg(clip(r, 1-low, 1+high)) log p (arXiv 2506.13585, whose clip has no lower bound: low = 1);
    - sapo: -A (4/tau) sigmoid(tau (r - 1)), tau by the sign of A (arXiv 2511.20347).

    `weights_BT` multiplies each token's loss (`rollout_weights`) and carries no gradient. Metrics: ppo_kl (mean of old
    minus new log-probability), ratio_mean, and for losses that clip pg_clipfrac_low, _high and (PPO) _dual, the share
    of tokens whose gradient that bound took away.
    """
    mask_BT = mask_BT != 0
    log_probs_BT = log_probs_BT.float()
    # Masked before the exponential: a padded position may hold anything, and 0 * inf would poison the gradient.
    log_ratio_BT = (log_probs_BT - old_log_probs_BT.float()).masked_fill(~mask_BT, 0.0)
    ratio_BT = _importance_ratio(log_ratio_BT, mask_BT, loss_type)
    metrics_BT = {"ppo_kl": -log_ratio_BT, "ratio_mean": ratio_BT}
    bounds = (1.0 - clip_ratio_low, 1.0 + clip_ratio_high)
    if loss_type in ("default", "gspo", "gspo_token"):
        dual = clip_ratio_dual if loss_type == "default" else None
        losses_BT, clipped = _clipped_surrogate(ratio_BT, advantages_BT, bounds, dual)
        metrics_BT |= clipped
    elif loss_type == "cispo":
        losses_BT = -advantages_BT * ratio_BT.clamp(*bounds).detach() * log_probs_BT
        metrics_BT |= {"pg_clipfrac_low": ratio_BT < bounds[0], "pg_clipfrac_high": ratio_BT > bounds[1]}
    elif loss_type == "sapo":
        tau_BT = torch.where(advantages_BT < 0, tau_negative, tau_positive)
        losses_BT = -advantages_BT * torch.sigmoid(tau_BT * (ratio_BT - 1.0)) * 4.0 / tau_BT
    else:
        raise ValueError(f"unknown loss_type {loss_type!r}")
    if weights_BT is not None:
        losses_BT = losses_BT * weights_BT.detach()
    loss = masked_aggregate(losses_BT, mask_BT, loss_avg_mode, constant_length)
    return loss, {name: _token_mean(value_BT, mask_BT) for name, value_BT in metrics_BT.items()}


def _clipped_surrogate(
    ratio_BT: torch.Tensor, advantages_BT: torch.Tensor, bounds: tuple[float, float], dual: float | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """PPO's loss of each token, and where each of its bounds acts (low and dual, if any: A < 0, high: A > 0)."""
    negative_BT = advantages_BT < 0
    losses_BT = torch.maximum(-advantages_BT * ratio_BT, -advantages_BT * ratio_BT.clamp(*bounds))
    clipped = {
        "pg_clipfrac_low": (ratio_BT < bounds[0]) & negative_BT,
        "pg_clipfrac_high": (ratio_BT > bounds[1]) & (advantages_BT > 0),
    }
    if dual is not None:
        losses_BT = torch.where(negative_BT, losses_BT.minimum(-advantages_BT * dual), losses_BT)
        clipped["pg_clipfrac_dual"] = (ratio_BT > dual) & negative_BT
    return losses_BT, clipped


def _token_mean(values_BT: torch.Tensor, mask_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return masked_aggregate(values_BT.detach().float(), mask_BT, "token"), loss_weight(mask_BT, "token")


def value_loss(
    values_BT: torch.Tensor,
    returns_BT: torch.Tensor,
    old_values_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    clip_value: float,
    *,
    loss_avg_mode: LossAvgMode = "token",
    constant_length: int | None = None,
) -> tuple[torch.Tensor, Metrics]:
    """Sum of the critic's loss, 0.5 max((v - R)^2, (clip(v, old +- clip_value) - R)^2), and (sum, weight) metrics.

    PPO's clipped value loss; divide as for `policy_loss`. Metrics: vf_clipfrac (the clip took a token's gradient),
    vpred_mean.
    """
    values_BT = values_BT.float()
    near_BT = values_BT.clamp(old_values_BT - clip_value, old_values_BT + clip_value)
    free_BT, bound_BT = (values_BT - returns_BT).square(), (near_BT - returns_BT).square()
    loss = 0.5 * masked_aggregate(torch.maximum(free_BT, bound_BT), mask_BT, loss_avg_mode, constant_length)
    return loss, {
        "vf_clipfrac": _token_mean(free_BT < bound_BT, mask_BT),
        "vpred_mean": _token_mean(values_BT, mask_BT),
    }


@torch.no_grad()
def rollout_weights(
    old_log_probs_BT: torch.Tensor,
    rollout_log_probs_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    mode: Literal["token", "sequence_mask"],
    cap: float,
) -> torch.Tensor:
    """Importance weights (B, T) for samples that another policy drew: the engine's copy, or (replay) an older actor.

    token: min(p/q, cap), truncated importance sampling (fengyao.notion.site/off-policy-rl). sequence_mask: 1 for
    sequences whose geometric-mean ratio lies in [1/cap, cap], 0 for all tokens of the others. 0 outside the mask.
    """
    log_ratio_BT = (old_log_probs_BT.float() - rollout_log_probs_BT.float()).masked_fill(mask_BT == 0, 0.0)
    live_BT = (mask_BT != 0).float()
    if mode == "token":
        return log_ratio_BT.clamp(max=math.log(cap)).exp() * live_BT
    if mode == "sequence_mask":
        mean_B1 = log_ratio_BT.sum(-1, keepdim=True) / live_BT.sum(-1, keepdim=True).clamp(min=1)
        return (mean_B1.abs() <= math.log(cap)).float() * live_BT
    raise ValueError(f"unknown rollout importance sampling mode {mode!r}")


@torch.no_grad()
def rollout_mismatch(
    old_log_probs_BT: torch.Tensor, rollout_log_probs_BT: torch.Tensor, mask_BT: torch.Tensor
) -> dict[str, float]:
    """How far the engine's log-probabilities q are from the trainer's p, on the engine's samples.

    mean_abs_diff and max_abs_diff of log p - log q over tokens; kl, the mean of p/q - 1 - log(p/q) (estimates
    KL(q || p), never negative); ess, the effective share of the samples, (sum w)^2 / (B sum w^2) with w the ratio of
    whole sequences, 1 where the two agree.
    """
    live_BT = mask_BT != 0
    log_ratio_BT = (old_log_probs_BT.double() - rollout_log_probs_BT.double()).masked_fill(~live_BT, 0.0)
    token_log_ratio = log_ratio_BT[live_BT]
    if token_log_ratio.numel() == 0:
        return {"mean_abs_diff": 0.0, "max_abs_diff": 0.0, "kl": 0.0, "ess": 1.0}
    clamped = token_log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    sequences_B = log_ratio_BT[live_BT.any(-1)].sum(-1)
    weights_B = (sequences_B - sequences_B.max()).exp()  # the largest becomes 1; ess does not change with scale
    return {
        "mean_abs_diff": token_log_ratio.abs().mean().item(),
        "max_abs_diff": token_log_ratio.abs().max().item(),
        "kl": (clamped.exp() - 1 - clamped).mean().item(),
        "ess": (weights_B.sum().square() / (len(weights_B) * weights_B.square().sum())).item(),
    }
