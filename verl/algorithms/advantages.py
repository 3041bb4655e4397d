"""Rewards become advantages: one function an estimator, and what they share. Pure functions of tensors.

Shape suffixes: B samples of the batch, T response tokens (padded right). `mask_BT` is 1 for response tokens to train
on; inputs have no influence elsewhere, and results are 0 there.
"""

from collections.abc import Hashable, Sequence
from typing import Literal

import torch

AdvantageName = Literal["gae", "grpo", "grpo_passk", "reinforce_plus_plus", "rloo", "remax"]


def masked_whiten(values_BT: torch.Tensor, mask_BT: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Shift and scale to mean 0 and (unbiased) variance 1 over the masked tokens of the whole batch; 0 elsewhere."""
    chosen = values_BT[mask_BT != 0].double()
    whitened_BT = torch.zeros_like(values_BT)
    if chosen.numel() > 1:
        scale = torch.rsqrt(chosen.var() + eps)
        whitened_BT[mask_BT != 0] = ((chosen - chosen.mean()) * scale).to(values_BT.dtype)
    return whitened_BT


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
