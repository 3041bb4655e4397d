"""The algorithms as pure functions of tensors: advantages, policy and value losses, rollout correction, KL (in kl.py).

Nothing is logged and nothing is averaged over a batch that the function cannot see: every loss and every metric is a
SUM together with the weight to divide it by. The caller adds both up over micro-batches and ranks and divides once, so
a result does not depend on how a mini-batch was cut. What is left out: where the inputs come from (workers), when a KL
controller is updated (ray_trainer), replay (replay.py).

Shape suffixes: B samples of the batch (or of a micro-batch, in losses), T response tokens (padded right), V vocabulary.
`mask_BT` is 1 for response tokens to train on; inputs have no influence elsewhere, and results are 0 there.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Literal

import torch

from .kl import MAX_LOG_RATIO
from .kl import AdaptiveKLController as AdaptiveKLController
from .kl import FixedKLController as FixedKLController
from .kl import KLPenalty as KLPenalty
from .kl import apply_kl_penalty as apply_kl_penalty
from .kl import compute_kl as compute_kl
from .kl import exact_kl as exact_kl

AdvantageName = Literal["gae", "grpo", "grpo_passk", "reinforce_plus_plus", "rloo", "remax"]
LossType = Literal["default", "gspo", "gspo_token", "cispo", "sapo"]
LossAvgMode = Literal["token", "seq", "constant"]
Metrics = dict[str, tuple[torch.Tensor, torch.Tensor]]  # name -> (sum, weight)


# ---- aggregation ----------------------------------------------------------------------------------------------------
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


def masked_whiten(values_BT: torch.Tensor, mask_BT: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Shift and scale to mean 0 and (unbiased) variance 1 over the masked tokens of the whole batch; 0 elsewhere."""
    chosen = values_BT[mask_BT != 0].double()
    whitened_BT = torch.zeros_like(values_BT)
    if chosen.numel() > 1:
        scale = torch.rsqrt(chosen.var() + eps)
        whitened_BT[mask_BT != 0] = ((chosen - chosen.mean()) * scale).to(values_BT.dtype)
    return whitened_BT


# ---- advantages -----------------------------------------------------------------------------------------------------
def _outcome_scores(rewards_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """(B,) in float64: in float32, eight equal rewards of 0.97 get advantages of 0.1 from rounding alone."""
    return rewards_BT.masked_fill(mask_BT == 0, 0.0).double().sum(-1)


def _spread(scores_B: torch.Tensor, mask_BT: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    advantages_BT = (scores_B.unsqueeze(-1) * (mask_BT != 0)).to(like.dtype)
    return advantages_BT, advantages_BT


def _groups(uids: Sequence[Hashable], rows: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Number the groups by uid: (group of each row (B,), size of each group). Refuses groups of one."""
    if len(uids) != rows:
        raise ValueError(f"{len(uids)} uids for {rows} rows")
    numbers: dict[Hashable, int] = {}
    group_B = torch.tensor([numbers.setdefault(uid, len(numbers)) for uid in uids], dtype=torch.long)
    sizes = torch.bincount(group_B, minlength=len(numbers))
    alone = [uid for uid, number in numbers.items() if sizes[number] < 2]
    if alone:
        raise ValueError(f"{name} compares samples of one prompt, but {alone[0]!r} has only one; set rollout.n >= 2")
    return group_B, sizes


def _group_mean_std(scores_B: torch.Tensor, group_B: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Mean and unbiased standard deviation of each row's group, both (B,)."""
    zeros = scores_B.new_zeros(len(sizes))
    mean_B = (zeros.index_add(0, group_B, scores_B) / sizes)[group_B]
    squares = zeros.index_add(0, group_B, (scores_B - mean_B).square())
    return mean_B, (squares / (sizes - 1)).sqrt()[group_B]


def compute_grpo_outcome_advantage(
    rewards_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    uids: Sequence[Hashable],
    *,
    normalize_std: bool = True,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    """GRPO (arXiv 2402.03300): reward minus the group's mean, over the group's standard deviation plus eps.

    The deviation is the unbiased one (n-1), as in EasyR1 and TRL. `normalize_std=False` leaves the division out, which
    is Dr. GRPO's advantage (arXiv 2503.20783). Returns (advantages, returns), both (B, T) and the same tensor. Raises
    ValueError for a group of one.
    """
    scores_B = _outcome_scores(rewards_BT, mask_BT)
    mean_B, std_B = _group_mean_std(scores_B, *_groups(uids, len(scores_B), "grpo"))
    centred_B = scores_B - mean_B
    return _spread(centred_B / (std_B + eps) if normalize_std else centred_B, mask_BT, rewards_BT)


def compute_grpo_passk_outcome_advantage(
    rewards_BT: torch.Tensor, mask_BT: torch.Tensor, uids: Sequence[Hashable], *, eps: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor]:
    """GRPO for pass@k (arXiv 2503.19595): only a group's best sample has an advantage, its lead over the second best.

    The lead is divided by the group's unbiased standard deviation plus eps; all other samples get 0, and so does
    everybody where the best is tied. Returns and raises as GRPO does.
    """
    scores_B = _outcome_scores(rewards_BT, mask_BT)
    group_B, sizes = _groups(uids, len(scores_B), "grpo_passk")
    _, std_B = _group_mean_std(scores_B, group_B, sizes)
    advantages_B = torch.zeros_like(scores_B)
    for group in range(len(sizes)):
        rows = (group_B == group).nonzero().squeeze(-1)
        best, second = scores_B[rows].topk(2).values
        winner = rows[scores_B[rows].argmax()]
        advantages_B[winner] = (best - second) / (std_B[winner] + eps)
    return _spread(advantages_B, mask_BT, rewards_BT)


def compute_rloo_outcome_advantage(
    rewards_BT: torch.Tensor, mask_BT: torch.Tensor, uids: Sequence[Hashable]
) -> tuple[torch.Tensor, torch.Tensor]:
    """RLOO (arXiv 2402.14740): reward minus the mean reward of the group's other samples. Returns as GRPO does."""
    scores_B = _outcome_scores(rewards_BT, mask_BT)
    group_B, sizes = _groups(uids, len(scores_B), "rloo")
    mean_B, _ = _group_mean_std(scores_B, group_B, sizes)
    n_B = sizes[group_B]
    return _spread((scores_B - mean_B) * n_B / (n_B - 1), mask_BT, rewards_BT)


def compute_remax_outcome_advantage(
    rewards_BT: torch.Tensor, baselines_B: torch.Tensor, mask_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """ReMax (arXiv 2310.10505): reward minus the reward of the greedy response to the same prompt, one per ROW.

    Returns (advantages, returns), both (B, T); returns are the rewards to go.
    """
    if baselines_B.shape != rewards_BT.shape[:1]:
        raise ValueError(f"baselines have shape {tuple(baselines_B.shape)}, expected one for each of the rows")
    advantages_BT, _ = _spread(_outcome_scores(rewards_BT, mask_BT) - baselines_B, mask_BT, rewards_BT)
    return advantages_BT, _discounted(rewards_BT, mask_BT, gamma=1.0)


def _discounted(rewards_BT: torch.Tensor, mask_BT: torch.Tensor, gamma: float) -> torch.Tensor:
    """Rewards to go over masked tokens; unmasked ones neither count as a step nor carry a value."""
    live_BT = mask_BT != 0
    returns_BT = torch.zeros_like(rewards_BT)
    running_B = rewards_BT.new_zeros(len(rewards_BT))
    for t in reversed(range(rewards_BT.shape[1])):
        running_B = torch.where(live_BT[:, t], rewards_BT[:, t] + gamma * running_B, running_B)
        returns_BT[:, t] = running_B * live_BT[:, t]
    return returns_BT


def compute_reinforce_plus_plus_outcome_advantage(
    rewards_BT: torch.Tensor, mask_BT: torch.Tensor, gamma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """REINFORCE++ (arXiv 2501.03262): discounted rewards to go, whitened over all tokens of the batch.

    Returns (advantages, returns), both (B, T); returns are not whitened.
    """
    returns_BT = _discounted(rewards_BT, mask_BT, gamma)
    return masked_whiten(returns_BT, mask_BT), returns_BT


def compute_gae_advantage_return(
    rewards_BT: torch.Tensor, values_BT: torch.Tensor, mask_BT: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """GAE (arXiv 1506.02438), each row by its own mask: a token outside it is skipped as if it were not there.

    The value after a row's last masked token is 0. Returns (advantages, returns), both (B, T): returns are advantages
    plus values before whitening, advantages are whitened over all tokens of the batch.
    """
    live_BT = mask_BT != 0
    advantages_BT = torch.zeros_like(values_BT)
    running_B = values_BT.new_zeros(len(values_BT))
    next_value_B = values_BT.new_zeros(len(values_BT))
    for t in reversed(range(values_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        running_B = torch.where(live_BT[:, t], delta_B + gamma * lam * running_B, running_B)
        next_value_B = torch.where(live_BT[:, t], values_BT[:, t], next_value_B)
        advantages_BT[:, t] = running_B
    returns_BT = (advantages_BT + values_BT).masked_fill(~live_BT, 0.0)
    return masked_whiten(advantages_BT, mask_BT), returns_BT


@torch.no_grad()
def compute_advantages(
    name: AdvantageName,
    rewards_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    uids: Sequence[Hashable] | None = None,
    values_BT: torch.Tensor | None = None,
    baselines_B: torch.Tensor | None = None,
    gamma: float = 1.0,
    lam: float = 1.0,
    normalize_std: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages, returns), both (B, T), by the estimator's name in `algorithm.adv_estimator`.

    Raises ValueError for an unknown name, and where the input that an estimator needs is missing.
    """
    needed = {"gae": values_BT, "remax": baselines_B, "grpo": uids, "grpo_passk": uids, "rloo": uids}
    if name in needed and needed[name] is None:
        raise ValueError(
            f"{name} needs {'values_BT' if name == 'gae' else 'baselines_B' if name == 'remax' else 'uids'}"
        )
    match name:
        case "gae":
            return compute_gae_advantage_return(rewards_BT, values_BT, mask_BT, gamma, lam)
        case "grpo":
            return compute_grpo_outcome_advantage(rewards_BT, mask_BT, uids, normalize_std=normalize_std)
        case "grpo_passk":
            return compute_grpo_passk_outcome_advantage(rewards_BT, mask_BT, uids)
        case "reinforce_plus_plus":
            return compute_reinforce_plus_plus_outcome_advantage(rewards_BT, mask_BT, gamma)
        case "rloo":
            return compute_rloo_outcome_advantage(rewards_BT, mask_BT, uids)
        case "remax":
            return compute_remax_outcome_advantage(rewards_BT, baselines_B, mask_BT)
    raise ValueError(f"unknown advantage estimator {name!r}")


def normalize_rewards_by_split(scores_B: torch.Tensor, splits: Sequence[str], eps: float = 1e-6) -> torch.Tensor:
    """Bring each split's scores to mean 0 and standard deviation 1 (population), so that neither side outweighs the
    other when they meet in one batch. Returns (B,). A split whose scores are all equal becomes 0.

    GRPO with division by the group's deviation undoes any such rescaling, because a group lies within one split; the
    other estimators feel it.
    """
    normalized_B = torch.zeros_like(scores_B)
    for split in set(splits):
        rows = torch.tensor([row for row, name in enumerate(splits) if name == split])
        scores = scores_B[rows].double()
        normalized = (scores - scores.mean()) / (scores.std(correction=0) + eps)
        normalized_B[rows] = normalized.to(scores_B.dtype)
    return normalized_B


# ---- losses ---------------------------------------------------------------------------------------------------------
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


# ---- rollout against trainer ----------------------------------------------------------------------------------------
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
