"""Aggregation, advantages and KL against hand-computed cases and slow, obvious references."""

import math

import pytest
import torch

from verl.algorithms.advantages import (
    compute_advantages,
    compute_gae_advantage_return,
    compute_grpo_outcome_advantage,
    compute_grpo_passk_outcome_advantage,
    compute_reinforce_plus_plus_outcome_advantage,
    compute_remax_outcome_advantage,
    compute_rloo_outcome_advantage,
    masked_whiten,
    normalize_rewards_by_split,
)
from verl.algorithms.kl import AdaptiveKLController, FixedKLController, apply_kl_penalty, compute_kl, exact_kl
from verl.algorithms.losses import loss_weight, masked_aggregate

LOG2 = math.log(2.0)


def rewards_at_end(scores: list[float], mask: torch.Tensor) -> torch.Tensor:
    rewards = torch.zeros(mask.shape)
    rewards[torch.arange(len(scores)), mask.sum(-1) - 1] = torch.tensor(scores)
    return rewards


def right_padded(lengths: list[int], width: int) -> torch.Tensor:
    return (torch.arange(width) < torch.tensor(lengths).unsqueeze(-1)).long()


def random_mask(generator: torch.Generator, rows: int, width: int) -> torch.Tensor:
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    return (torch.arange(width) < lengths.unsqueeze(-1)).long()


# ---- aggregation ----------------------------------------------------------------------------------------------------
VALUES = torch.tensor([[1.0, 2.0, 3.0], [10.0, float("nan"), float("inf")], [7.0, 7.0, 7.0]])
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])


def test_aggregation_by_hand():
    assert masked_aggregate(VALUES, MASK, "token") == 16.0
    assert loss_weight(MASK, "token") == 4.0
    assert masked_aggregate(VALUES, MASK, "seq") == 2.0 + 10.0
    assert masked_aggregate(VALUES, MASK, "constant", constant_length=8) == 2.0
    assert loss_weight(MASK, "seq") == loss_weight(MASK, "constant") == 2.0, "rows without tokens weigh nothing"
    with pytest.raises(ValueError, match="constant_length"):
        masked_aggregate(VALUES, MASK, "constant")
    with pytest.raises(ValueError, match="'mean'"):
        masked_aggregate(VALUES, MASK, "mean")


def test_whitening():
    values = torch.tensor([[1.0, 3.0, 99.0], [5.0, 99.0, 99.0]])
    mask = right_padded([2, 1], 3)
    # mean 3, unbiased variance ((-2)^2 + 0 + 2^2) / 2 = 4
    assert torch.allclose(masked_whiten(values, mask), torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), atol=1e-6)
    assert masked_whiten(torch.full((1, 4), 0.7), torch.ones(1, 4)).abs().max() < 1e-6, "no rounding blown up"
    assert masked_whiten(torch.tensor([[5.0]]), torch.tensor([[1]])).item() == 0.0


# ---- advantages -----------------------------------------------------------------------------------------------------
UIDS = ["a", "b", "a", "b", "a"]  # interleaved on purpose: groups are found by uid, never by position
SCORES = [1.0, 0.0, 0.0, 1.0, 0.5]
GROUP_MASK = right_padded([3, 1, 2, 3, 1], 3)


def test_grpo_by_hand():
    advantages, returns = compute_grpo_outcome_advantage(rewards_at_end(SCORES, GROUP_MASK), GROUP_MASK, UIDS)
    # group a: 1, 0, 0.5: mean 0.5, unbiased std 0.5. group b: 0, 1: mean 0.5, unbiased std 1/sqrt(2).
    expected = torch.tensor([1.0, -math.sqrt(0.5), -1.0, math.sqrt(0.5), 0.0])
    assert torch.allclose(advantages, expected.unsqueeze(-1) * GROUP_MASK, atol=1e-5)
    assert torch.equal(advantages, returns)


def test_dr_grpo_leaves_the_deviation_out():
    rewards = rewards_at_end(SCORES, GROUP_MASK)
    advantages, _ = compute_grpo_outcome_advantage(rewards, GROUP_MASK, UIDS, normalize_std=False)
    expected = torch.tensor([0.5, -0.5, -0.5, 0.5, 0.0])
    assert torch.allclose(advantages, expected.unsqueeze(-1) * GROUP_MASK)


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "grpo_passk"])
def test_group_estimators_do_not_depend_on_the_order_of_rows(estimator):
    generator = torch.Generator().manual_seed(0)
    uids = [f"u{i // 4}" for i in range(24)]
    mask = random_mask(generator, 24, 6)
    rewards = torch.rand(24, 6, generator=generator) * mask
    order = torch.randperm(24, generator=generator)
    straight, _ = compute_advantages(estimator, rewards, mask, uids=uids)
    shuffled, _ = compute_advantages(estimator, rewards[order], mask[order], uids=[uids[i] for i in order.tolist()])
    assert torch.allclose(straight[order], shuffled, atol=1e-6)
    assert straight.abs().max() > 0.1


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "grpo_passk"])
@pytest.mark.parametrize("score", [0.1, 0.97, 1e3])
def test_a_group_of_equal_rewards_teaches_nothing(estimator, score):
    mask = torch.ones(7, 2)
    advantages, _ = compute_advantages(estimator, rewards_at_end([score] * 7, mask.long()), mask, uids=["a"] * 7)
    assert advantages.abs().max() < 1e-6, "with float32 means 0.97 gives 0.1, from rounding alone"


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "grpo_passk"])
def test_a_group_of_one_is_refused_by_name(estimator):
    with pytest.raises(ValueError, match="'lonely' has only one; set rollout.n >= 2"):
        compute_advantages(estimator, torch.zeros(3, 2), torch.ones(3, 2), uids=["a", "lonely", "a"])
    with pytest.raises(ValueError, match="2 uids for 3 rows"):
        compute_advantages(estimator, torch.zeros(3, 2), torch.ones(3, 2), uids=["a", "a"])


def test_passk_rewards_only_the_best():
    mask = torch.ones(6, 1)
    scores = torch.tensor([0.2, 1.0, 0.6, 0.5, 0.5, 0.0]).unsqueeze(-1)
    advantages, _ = compute_grpo_passk_outcome_advantage(scores, mask, list("aaabbb"))
    std = torch.tensor([0.2, 1.0, 0.6]).std().item()
    assert torch.allclose(advantages.squeeze(-1), torch.tensor([0, 0.4 / std, 0, 0, 0, 0]), atol=1e-5)


def test_rloo_by_hand():
    advantages, _ = compute_rloo_outcome_advantage(rewards_at_end(SCORES, GROUP_MASK), GROUP_MASK, UIDS)
    expected = torch.tensor([1.0 - 0.25, 0.0 - 1.0, 0.0 - 0.75, 1.0 - 0.0, 0.5 - 0.5])
    assert torch.allclose(advantages, expected.unsqueeze(-1) * GROUP_MASK)


@pytest.mark.parametrize("rows", [2, 3])  # 3 rows of 3 tokens: where broadcasting along the wrong axis goes unnoticed
def test_remax_subtracts_each_rows_own_baseline(rows):
    mask = right_padded([3, 2, 3][:rows], 3)
    rewards = rewards_at_end([1.0, 0.5, 0.0][:rows], mask)
    baselines = torch.tensor([0.0, 1.0, 0.25][:rows])
    advantages, returns = compute_remax_outcome_advantage(rewards, baselines, mask)
    expected = torch.tensor([[1.0, 1.0, 1.0], [-0.5, -0.5, 0.0], [-0.25, -0.25, -0.25]])
    assert torch.allclose(advantages, expected[:rows])
    assert torch.allclose(returns, torch.tensor([[1.0, 1.0, 1.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])[:rows])
    with pytest.raises(ValueError, match="one for each of the rows"):
        compute_remax_outcome_advantage(rewards, baselines.unsqueeze(-1), mask)


def test_reinforce_plus_plus_by_hand():
    mask = right_padded([3, 1], 3)
    rewards = torch.tensor([[0.5, 0.0, 1.0], [2.0, 9.0, 9.0]])  # what lies in the padding does not count
    advantages, returns = compute_reinforce_plus_plus_outcome_advantage(rewards, mask, gamma=0.5)
    assert torch.allclose(returns, torch.tensor([[0.75, 0.5, 1.0], [2.0, 0.0, 0.0]]))
    chosen = torch.tensor([0.75, 0.5, 1.0, 2.0])
    white = (chosen - chosen.mean()) / chosen.std()
    assert torch.allclose(advantages, torch.tensor([white[:3].tolist(), [white[3].item(), 0, 0]]), atol=1e-6)


def slow_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The definition: sum over l of (gamma lam)^l delta_{t+l}, on the tokens of one response alone."""
    values = [*values, 0.0]
    deltas = [r + gamma * values[t + 1] - values[t] for t, r in enumerate(rewards)]
    return [sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]


def test_gae_by_hand():
    mask = right_padded([2, 1], 2)
    rewards = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    values = torch.tensor([[0.5, 0.25], [0.5, 77.0]])  # the value in the padding must not leak into row 1
    _, returns = compute_gae_advantage_return(rewards, values, mask, gamma=1.0, lam=0.5)
    # row 0: delta_1 = 1 - 0.25 = 0.75, delta_0 = 0.25 - 0.5 = -0.25; A_1 = 0.75, A_0 = -0.25 + 0.5 * 0.75 = 0.125
    assert torch.allclose(returns, torch.tensor([[0.625, 1.0], [1.0, 0.0]]))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.95), (1.0, 0.0)])
def test_gae_follows_each_rows_own_mask(gamma, lam):
    generator = torch.Generator().manual_seed(1)
    mask = random_mask(generator, 6, 8)
    mask[0] = torch.tensor([1, 1, 0, 0, 1, 1, 0, 0])  # a tool's output in the middle is skipped as well
    rewards = torch.randn(6, 8, generator=generator)
    values = torch.randn(6, 8, generator=generator)
    advantages, returns = compute_gae_advantage_return(rewards, values, mask, gamma, lam)
    raw = torch.zeros(6, 8)
    for row in range(6):
        live = mask[row] == 1
        raw[row, live] = torch.tensor(slow_gae(rewards[row, live].tolist(), values[row, live].tolist(), gamma, lam))
    assert torch.allclose(returns, (raw + values) * mask, atol=1e-5)
    assert torch.allclose(advantages, masked_whiten(raw, mask), atol=1e-5)
    assert abs(advantages[mask == 1].mean().item()) < 1e-5
    assert abs(advantages[mask == 1].std().item() - 1) < 1e-4


def test_dispatcher_knows_its_names_and_inputs():
    rewards, mask = rewards_at_end(SCORES, GROUP_MASK), GROUP_MASK
    values = torch.zeros(5, 3)
    pairs = {
        "gae": (compute_gae_advantage_return(rewards, values, mask, 0.9, 0.8), {"values_BT": values}),
        "reinforce_plus_plus": (compute_reinforce_plus_plus_outcome_advantage(rewards, mask, 0.9), {}),
        "remax": (
            compute_remax_outcome_advantage(rewards, torch.ones(5), mask),
            {"baselines_B": torch.ones(5)},
        ),
        "grpo": (
            compute_grpo_outcome_advantage(rewards, mask, UIDS, normalize_std=False),
            {"uids": UIDS, "normalize_std": False},
        ),
        "grpo_passk": (compute_grpo_passk_outcome_advantage(rewards, mask, UIDS), {"uids": UIDS}),
        "rloo": (compute_rloo_outcome_advantage(rewards, mask, UIDS), {"uids": UIDS}),
    }
    for name, (expected, inputs) in pairs.items():
        result = compute_advantages(name, rewards, mask, gamma=0.9, lam=0.8, **inputs)
        assert torch.equal(result[0], expected[0]), name
        assert torch.equal(result[1], expected[1]), name
    for name, missing in (("gae", "values_BT"), ("remax", "baselines_B"), ("grpo", "uids"), ("rloo", "uids")):
        with pytest.raises(ValueError, match=f"{name} needs {missing}"):
            compute_advantages(name, rewards, mask)
    with pytest.raises(ValueError, match="'ppo'"):
        compute_advantages("ppo", rewards, mask)


def test_splits_are_normalised_each_on_its_own():
    scores = torch.tensor([1.0, 0.5, 0.0, 0.9, 0.7])
    splits = ["forget", "boundary", "forget", "boundary", "boundary"]
    normalized = normalize_rewards_by_split(scores, splits)
    for split in ("forget", "boundary"):
        chosen = normalized[[i for i, name in enumerate(splits) if name == split]]
        assert abs(chosen.mean().item()) < 1e-6
        assert abs(chosen.std(correction=0).item() - 1) < 1e-4
    assert normalized.tolist()[:3:2] == pytest.approx([1.0, -1.0], abs=1e-4)
    assert normalize_rewards_by_split(torch.tensor([0.3, 5.0]), ["forget", "boundary"]).tolist() == [0.0, 0.0]


# ---- KL -------------------------------------------------------------------------------------------------------------
def test_kl_estimates_by_hand():
    log_p, log_q = torch.tensor([0.0, -1.0]), torch.tensor([-LOG2, 0.0])  # log p - log q = log 2 and -1
    for name, expected in {
        "kl": [LOG2, -1.0],
        "abs": [LOG2, 1.0],
        "mse": [LOG2**2 / 2, 0.5],
        "low_var_kl": [0.5 - 1 + LOG2, math.e - 2],
    }.items():
        assert compute_kl(log_p, log_q, name).tolist() == pytest.approx(expected, abs=1e-6), name
    assert compute_kl(torch.tensor([-50.0]), torch.tensor([0.0]), "low_var_kl").item() == 10.0
    with pytest.raises(ValueError, match="'k9'"):
        compute_kl(log_p, log_q, "k9")


def test_a_plus_keeps_the_value_and_takes_the_gradient_of_the_square():
    generator = torch.Generator().manual_seed(0)
    log_p, log_q = (-4 * torch.rand(3, 5, generator=generator) for _ in range(2))
    log_p[0, 0] = log_q[0, 0] + 40  # where low_var_kl is clamped and has no gradient
    for plain in ("kl", "low_var_kl"):
        leaf = log_p.clone().requires_grad_()
        estimate = compute_kl(leaf, log_q, f"{plain}+")
        assert torch.equal(estimate, compute_kl(log_p, log_q, plain)), "bit for bit"
        (gradient,) = torch.autograd.grad(estimate.sum(), leaf)
        assert torch.allclose(gradient, log_p - log_q)
    with pytest.raises(ValueError, match="'abs\\+'"):
        compute_kl(log_p, log_q, "abs+")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("kl+", "forward"), ("low_var_kl+", "forward"), ("mse", "forward"), ("kl", "none"), ("low_var_kl", "reverse")],
)
def test_the_gradient_of_a_kl_loss_in_expectation_by_enumeration(name, expected):
    """Over all words a of a small vocabulary: the sum of p(a) times the gradient of the estimate at a.

    By autograd: the gradients of KL(policy || reference) and of KL(reference || policy).
    """
    generator = torch.Generator().manual_seed(1)
    logits, log_q = torch.randn(6, generator=generator), torch.randn(6, generator=generator).log_softmax(-1)

    def gradient_of(function) -> torch.Tensor:
        leaf = logits.clone().requires_grad_()
        return torch.autograd.grad(function(leaf.log_softmax(-1)), leaf)[0]

    p = logits.softmax(-1)
    found = gradient_of(lambda log_p: (p * compute_kl(log_p, log_q, name)).sum())
    wanted = {
        "forward": gradient_of(lambda log_p: (log_p.exp() * (log_p - log_q)).sum()),
        "reverse": gradient_of(lambda log_p: (log_q.exp() * (log_q - log_p)).sum()),
        "none": torch.zeros(6),
    }
    assert torch.allclose(found, wanted[expected], atol=1e-6)
    assert wanted["forward"].norm() > 0.1 and not torch.allclose(wanted["forward"], wanted["reverse"], atol=0.05)


def test_full_kl_is_exact_and_sampled_estimates_converge_to_it():
    generator = torch.Generator().manual_seed(0)
    log_p = (0.5 * torch.randn(1, 1, 5, generator=generator)).log_softmax(-1)
    log_q = (0.5 * torch.randn(1, 1, 5, generator=generator)).log_softmax(-1)
    exact = compute_kl(log_p, log_q, "full")
    assert exact.shape == (1, 1)
    expected = sum(
        math.exp(p) * (p - q) for p, q in zip(log_p.flatten().tolist(), log_q.flatten().tolist(), strict=True)
    )
    assert exact.item() == pytest.approx(expected, abs=1e-6)
    weights = log_p.flatten().exp()
    for name in ("kl", "low_var_kl"):
        mean = (weights * compute_kl(log_p.flatten(), log_q.flatten(), name)).sum().item()
        assert mean == pytest.approx(expected, abs=1e-5), f"{name} is an unbiased estimate"


def test_exact_kl_has_the_gradient_of_the_kl_and_none_for_the_reference():
    generator = torch.Generator().manual_seed(0)
    logits, ref = (torch.randn(5, 7, generator=generator) for _ in range(2))
    logits.requires_grad_()
    kl = exact_kl(logits, ref, elements=14)
    kl.sum().backward()
    p, q = logits.detach().softmax(-1), ref.softmax(-1)
    assert torch.allclose(kl, (p * (p / q).log()).sum(-1), atol=1e-6)
    by_hand = p * ((p / q).log() - kl.detach()[:, None])  # d KL / d z_i = p_i (log p_i - log q_i - KL)
    assert torch.allclose(logits.grad, by_hand, atol=1e-6)


def test_kl_in_the_reward():
    mask = right_padded([2, 1], 2)
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    log_p = torch.tensor([[-1.0, -1.0], [-1.0, float("nan")]])
    log_q = torch.tensor([[-1.5, -2.5], [-1.0, 0.0]])
    rewards, mean_kl = apply_kl_penalty(scores, compute_kl(log_p, log_q, "kl"), mask, kl_coef=0.1)
    assert torch.allclose(rewards, torch.tensor([[-0.05, 0.85], [1.0, 0.0]]))
    assert mean_kl == pytest.approx((1.0 + 0.0) / 2), "mean over sequences of the mean over tokens"


def test_adaptive_controller_moves_towards_its_target():
    controller = AdaptiveKLController(init_kl_coef=0.1, target_kl=0.5, horizon=1000)
    controller.update(current_kl=0.55, n_steps=100)  # error 0.1
    assert controller.kl_coef == pytest.approx(0.1 * 1.01)
    controller.update(current_kl=50.0, n_steps=100)  # clipped to 0.2
    assert controller.kl_coef == pytest.approx(0.1 * 1.01 * 1.02)
    controller.update(current_kl=0.0, n_steps=100)  # clipped to -0.2
    assert controller.kl_coef == pytest.approx(0.1 * 1.01 * 1.02 * 0.98)
    controller.update(current_kl=0.0, n_steps=10**6)
    assert controller.kl_coef > 0

    other = AdaptiveKLController(init_kl_coef=9.0, target_kl=0.5, horizon=1000)
    other.load_state_dict(controller.state_dict())
    assert other.kl_coef == controller.kl_coef
    with pytest.raises(ValueError, match="positive"):
        AdaptiveKLController(0.1, target_kl=0.0, horizon=10)


def test_fixed_controller_stays_and_follows_the_configuration():
    controller = FixedKLController(0.1)
    controller.update(current_kl=50.0, n_steps=100)
    assert controller.kl_coef == 0.1
    adaptive = AdaptiveKLController(0.3, target_kl=1.0, horizon=10)
    adaptive.load_state_dict(controller.state_dict())
    assert adaptive.kl_coef == 0.3
    controller.load_state_dict(adaptive.state_dict())
    assert controller.kl_coef == 0.1
