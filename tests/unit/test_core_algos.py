"""Advantages, KL, losses and rollout weights against hand-computed cases and slow, obvious references."""

import math

import pytest
import torch

from verl.trainer import core_algos as ca

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
    assert ca.masked_aggregate(VALUES, MASK, "token") == 16.0
    assert ca.loss_weight(MASK, "token") == 4.0
    assert ca.masked_aggregate(VALUES, MASK, "seq") == 2.0 + 10.0
    assert ca.masked_aggregate(VALUES, MASK, "constant", constant_length=8) == 2.0
    assert ca.loss_weight(MASK, "seq") == ca.loss_weight(MASK, "constant") == 2.0, "rows without tokens weigh nothing"
    with pytest.raises(ValueError, match="constant_length"):
        ca.masked_aggregate(VALUES, MASK, "constant")
    with pytest.raises(ValueError, match="'mean'"):
        ca.masked_aggregate(VALUES, MASK, "mean")


def test_whitening():
    values = torch.tensor([[1.0, 3.0, 99.0], [5.0, 99.0, 99.0]])
    mask = right_padded([2, 1], 3)
    # mean 3, unbiased variance ((-2)^2 + 0 + 2^2) / 2 = 4
    assert torch.allclose(ca.masked_whiten(values, mask), torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), atol=1e-6)
    assert ca.masked_whiten(torch.full((1, 4), 0.7), torch.ones(1, 4)).abs().max() < 1e-6, "no rounding blown up"
    assert ca.masked_whiten(torch.tensor([[5.0]]), torch.tensor([[1]])).item() == 0.0


# ---- advantages -----------------------------------------------------------------------------------------------------
UIDS = ["a", "b", "a", "b", "a"]  # interleaved on purpose: groups are found by uid, never by position
SCORES = [1.0, 0.0, 0.0, 1.0, 0.5]
GROUP_MASK = right_padded([3, 1, 2, 3, 1], 3)


def test_grpo_by_hand():
    advantages, returns = ca.compute_grpo_outcome_advantage(rewards_at_end(SCORES, GROUP_MASK), GROUP_MASK, UIDS)
    # group a: 1, 0, 0.5: mean 0.5, unbiased std 0.5. group b: 0, 1: mean 0.5, unbiased std 1/sqrt(2).
    expected = torch.tensor([1.0, -math.sqrt(0.5), -1.0, math.sqrt(0.5), 0.0])
    assert torch.allclose(advantages, expected.unsqueeze(-1) * GROUP_MASK, atol=1e-5)
    assert torch.equal(advantages, returns)


def test_dr_grpo_leaves_the_deviation_out():
    rewards = rewards_at_end(SCORES, GROUP_MASK)
    advantages, _ = ca.compute_grpo_outcome_advantage(rewards, GROUP_MASK, UIDS, normalize_std=False)
    expected = torch.tensor([0.5, -0.5, -0.5, 0.5, 0.0])
    assert torch.allclose(advantages, expected.unsqueeze(-1) * GROUP_MASK)


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "grpo_passk"])
def test_group_estimators_do_not_depend_on_the_order_of_rows(estimator):
    generator = torch.Generator().manual_seed(0)
    uids = [f"u{i // 4}" for i in range(24)]
    mask = random_mask(generator, 24, 6)
    rewards = torch.rand(24, 6, generator=generator) * mask
    order = torch.randperm(24, generator=generator)
    straight, _ = ca.compute_advantages(estimator, rewards, mask, uids=uids)
    shuffled, _ = ca.compute_advantages(estimator, rewards[order], mask[order], uids=[uids[i] for i in order.tolist()])
    assert torch.allclose(straight[order], shuffled, atol=1e-6)
    assert straight.abs().max() > 0.1


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "grpo_passk"])
@pytest.mark.parametrize("score", [0.1, 0.97, 1e3])
def test_a_group_of_equal_rewards_teaches_nothing(estimator, score):
    mask = torch.ones(7, 2)
    advantages, _ = ca.compute_advantages(estimator, rewards_at_end([score] * 7, mask.long()), mask, uids=["a"] * 7)
    assert advantages.abs().max() < 1e-6, "with float32 means 0.97 gives 0.1, from rounding alone"


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "grpo_passk"])
def test_a_group_of_one_is_refused_by_name(estimator):
    with pytest.raises(ValueError, match="'lonely' has only one; set rollout.n >= 2"):
        ca.compute_advantages(estimator, torch.zeros(3, 2), torch.ones(3, 2), uids=["a", "lonely", "a"])
    with pytest.raises(ValueError, match="2 uids for 3 rows"):
        ca.compute_advantages(estimator, torch.zeros(3, 2), torch.ones(3, 2), uids=["a", "a"])


def test_passk_rewards_only_the_best():
    mask = torch.ones(6, 1)
    scores = torch.tensor([0.2, 1.0, 0.6, 0.5, 0.5, 0.0]).unsqueeze(-1)
    advantages, _ = ca.compute_grpo_passk_outcome_advantage(scores, mask, list("aaabbb"))
    std = torch.tensor([0.2, 1.0, 0.6]).std().item()
    assert torch.allclose(advantages.squeeze(-1), torch.tensor([0, 0.4 / std, 0, 0, 0, 0]), atol=1e-5)


def test_rloo_by_hand():
    advantages, _ = ca.compute_rloo_outcome_advantage(rewards_at_end(SCORES, GROUP_MASK), GROUP_MASK, UIDS)
    expected = torch.tensor([1.0 - 0.25, 0.0 - 1.0, 0.0 - 0.75, 1.0 - 0.0, 0.5 - 0.5])
    assert torch.allclose(advantages, expected.unsqueeze(-1) * GROUP_MASK)


@pytest.mark.parametrize("rows", [2, 3])  # 3 rows of 3 tokens: where broadcasting along the wrong axis goes unnoticed
def test_remax_subtracts_each_rows_own_baseline(rows):
    mask = right_padded([3, 2, 3][:rows], 3)
    rewards = rewards_at_end([1.0, 0.5, 0.0][:rows], mask)
    baselines = torch.tensor([0.0, 1.0, 0.25][:rows])
    advantages, returns = ca.compute_remax_outcome_advantage(rewards, baselines, mask)
    expected = torch.tensor([[1.0, 1.0, 1.0], [-0.5, -0.5, 0.0], [-0.25, -0.25, -0.25]])
    assert torch.allclose(advantages, expected[:rows])
    assert torch.allclose(returns, torch.tensor([[1.0, 1.0, 1.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])[:rows])
    with pytest.raises(ValueError, match="one for each of the rows"):
        ca.compute_remax_outcome_advantage(rewards, baselines.unsqueeze(-1), mask)


def test_reinforce_plus_plus_by_hand():
    mask = right_padded([3, 1], 3)
    rewards = torch.tensor([[0.5, 0.0, 1.0], [2.0, 9.0, 9.0]])  # what lies in the padding does not count
    advantages, returns = ca.compute_reinforce_plus_plus_outcome_advantage(rewards, mask, gamma=0.5)
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
    _, returns = ca.compute_gae_advantage_return(rewards, values, mask, gamma=1.0, lam=0.5)
    # row 0: delta_1 = 1 - 0.25 = 0.75, delta_0 = 0.25 - 0.5 = -0.25; A_1 = 0.75, A_0 = -0.25 + 0.5 * 0.75 = 0.125
    assert torch.allclose(returns, torch.tensor([[0.625, 1.0], [1.0, 0.0]]))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.95), (1.0, 0.0)])
def test_gae_follows_each_rows_own_mask(gamma, lam):
    generator = torch.Generator().manual_seed(1)
    mask = random_mask(generator, 6, 8)
    mask[0] = torch.tensor([1, 1, 0, 0, 1, 1, 0, 0])  # a tool's output in the middle is skipped as well
    rewards = torch.randn(6, 8, generator=generator)
    values = torch.randn(6, 8, generator=generator)
    advantages, returns = ca.compute_gae_advantage_return(rewards, values, mask, gamma, lam)
    raw = torch.zeros(6, 8)
    for row in range(6):
        live = mask[row] == 1
        raw[row, live] = torch.tensor(slow_gae(rewards[row, live].tolist(), values[row, live].tolist(), gamma, lam))
    assert torch.allclose(returns, (raw + values) * mask, atol=1e-5)
    assert torch.allclose(advantages, ca.masked_whiten(raw, mask), atol=1e-5)
    assert abs(advantages[mask == 1].mean().item()) < 1e-5
    assert abs(advantages[mask == 1].std().item() - 1) < 1e-4


def test_dispatcher_knows_its_names_and_inputs():
    rewards, mask = rewards_at_end(SCORES, GROUP_MASK), GROUP_MASK
    values = torch.zeros(5, 3)
    pairs = {
        "gae": (ca.compute_gae_advantage_return(rewards, values, mask, 0.9, 0.8), {"values_BT": values}),
        "reinforce_plus_plus": (ca.compute_reinforce_plus_plus_outcome_advantage(rewards, mask, 0.9), {}),
        "remax": (
            ca.compute_remax_outcome_advantage(rewards, torch.ones(5), mask),
            {"baselines_B": torch.ones(5)},
        ),
        "grpo": (
            ca.compute_grpo_outcome_advantage(rewards, mask, UIDS, normalize_std=False),
            {"uids": UIDS, "normalize_std": False},
        ),
        "grpo_passk": (ca.compute_grpo_passk_outcome_advantage(rewards, mask, UIDS), {"uids": UIDS}),
        "rloo": (ca.compute_rloo_outcome_advantage(rewards, mask, UIDS), {"uids": UIDS}),
    }
    for name, (expected, inputs) in pairs.items():
        result = ca.compute_advantages(name, rewards, mask, gamma=0.9, lam=0.8, **inputs)
        assert torch.equal(result[0], expected[0]), name
        assert torch.equal(result[1], expected[1]), name
    for name, missing in (("gae", "values_BT"), ("remax", "baselines_B"), ("grpo", "uids"), ("rloo", "uids")):
        with pytest.raises(ValueError, match=f"{name} needs {missing}"):
            ca.compute_advantages(name, rewards, mask)
    with pytest.raises(ValueError, match="'ppo'"):
        ca.compute_advantages("ppo", rewards, mask)


def test_splits_are_normalised_each_on_its_own():
    scores = torch.tensor([1.0, 0.5, 0.0, 0.9, 0.7])
    splits = ["forget", "boundary", "forget", "boundary", "boundary"]
    normalized = ca.normalize_rewards_by_split(scores, splits)
    for split in ("forget", "boundary"):
        chosen = normalized[[i for i, name in enumerate(splits) if name == split]]
        assert abs(chosen.mean().item()) < 1e-6
        assert abs(chosen.std(correction=0).item() - 1) < 1e-4
    assert normalized.tolist()[:3:2] == pytest.approx([1.0, -1.0], abs=1e-4)
    assert ca.normalize_rewards_by_split(torch.tensor([0.3, 5.0]), ["forget", "boundary"]).tolist() == [0.0, 0.0]


# ---- KL -------------------------------------------------------------------------------------------------------------
def test_kl_estimates_by_hand():
    log_p, log_q = torch.tensor([0.0, -1.0]), torch.tensor([-LOG2, 0.0])  # log p - log q = log 2 and -1
    for name, expected in {
        "kl": [LOG2, -1.0],
        "abs": [LOG2, 1.0],
        "mse": [LOG2**2 / 2, 0.5],
        "low_var_kl": [0.5 - 1 + LOG2, math.e - 2],
    }.items():
        assert ca.compute_kl(log_p, log_q, name).tolist() == pytest.approx(expected, abs=1e-6), name
    assert ca.compute_kl(torch.tensor([-50.0]), torch.tensor([0.0]), "low_var_kl").item() == 10.0
    with pytest.raises(ValueError, match="'k9'"):
        ca.compute_kl(log_p, log_q, "k9")


def test_full_kl_is_exact_and_sampled_estimates_converge_to_it():
    generator = torch.Generator().manual_seed(0)
    log_p = (0.5 * torch.randn(1, 1, 5, generator=generator)).log_softmax(-1)
    log_q = (0.5 * torch.randn(1, 1, 5, generator=generator)).log_softmax(-1)
    exact = ca.compute_kl(log_p, log_q, "full")
    assert exact.shape == (1, 1)
    expected = sum(
        math.exp(p) * (p - q) for p, q in zip(log_p.flatten().tolist(), log_q.flatten().tolist(), strict=True)
    )
    assert exact.item() == pytest.approx(expected, abs=1e-6)
    weights = log_p.flatten().exp()
    for name in ("kl", "low_var_kl"):
        mean = (weights * ca.compute_kl(log_p.flatten(), log_q.flatten(), name)).sum().item()
        assert mean == pytest.approx(expected, abs=1e-5), f"{name} is an unbiased estimate"
    with pytest.raises(ValueError, match=r"\(B, T, V\)"):
        ca.compute_kl(torch.zeros(2, 3), torch.zeros(2, 3), "full")


def test_kl_in_the_reward():
    mask = right_padded([2, 1], 2)
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    log_p = torch.tensor([[-1.0, -1.0], [-1.0, float("nan")]])
    log_q = torch.tensor([[-1.5, -2.5], [-1.0, 0.0]])
    rewards, mean_kl = ca.apply_kl_penalty(scores, log_p, log_q, mask, kl_coef=0.1, kl_penalty="kl")
    assert torch.allclose(rewards, torch.tensor([[-0.05, 0.85], [1.0, 0.0]]))
    assert mean_kl == pytest.approx((1.0 + 0.0) / 2), "mean over sequences of the mean over tokens"


def test_adaptive_controller_moves_towards_its_target():
    controller = ca.AdaptiveKLController(init_kl_coef=0.1, target_kl=0.5, horizon=1000)
    controller.update(current_kl=0.55, n_steps=100)  # error 0.1
    assert controller.kl_coef == pytest.approx(0.1 * 1.01)
    controller.update(current_kl=50.0, n_steps=100)  # clipped to 0.2
    assert controller.kl_coef == pytest.approx(0.1 * 1.01 * 1.02)
    controller.update(current_kl=0.0, n_steps=100)  # clipped to -0.2
    assert controller.kl_coef == pytest.approx(0.1 * 1.01 * 1.02 * 0.98)
    controller.update(current_kl=0.0, n_steps=10**6)
    assert controller.kl_coef > 0

    other = ca.AdaptiveKLController(init_kl_coef=9.0, target_kl=0.5, horizon=1000)
    other.load_state_dict(controller.state_dict())
    assert other.kl_coef == controller.kl_coef
    with pytest.raises(ValueError, match="positive"):
        ca.AdaptiveKLController(0.1, target_kl=0.0, horizon=10)


def test_fixed_controller_stays_and_follows_the_configuration():
    controller = ca.FixedKLController(0.1)
    controller.update(current_kl=50.0, n_steps=100)
    assert controller.kl_coef == 0.1
    adaptive = ca.AdaptiveKLController(0.3, target_kl=1.0, horizon=10)
    adaptive.load_state_dict(controller.state_dict())
    assert adaptive.kl_coef == 0.3
    controller.load_state_dict(adaptive.state_dict())
    assert controller.kl_coef == 0.1


# ---- policy loss ----------------------------------------------------------------------------------------------------
def ratios(values: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(log_probs, old_log_probs) with these probability ratios; log_probs are a leaf for gradients."""
    old = torch.full((len(values), len(values[0])), -1.5)
    return (old + torch.tensor(values).log()).requires_grad_(), old


def metric(metrics: ca.Metrics, name: str) -> float:
    total, weight = metrics[name]
    return (total / weight).item()


def test_ppo_clip_by_hand():
    log_probs, old = ratios([[1.0, 1.1, 1.5, 0.5], [1.0, 1.5, 0.5, 6.0]])
    advantages = torch.tensor([[2.0] * 4, [-2.0] * 4])
    mask = torch.ones(2, 4)
    loss, metrics = ca.policy_loss(
        log_probs, old, advantages, mask, clip_ratio_low=0.2, clip_ratio_high=0.3, clip_ratio_dual=3.0
    )
    # A > 0: -min(r, 1.3) * 2. A < 0: 2 * min(max(r, 0.8), 3).
    expected = [-2.0, -2.2, -2.6, -1.0, 2.0, 3.0, 1.6, 6.0]
    assert loss.item() == pytest.approx(sum(expected), abs=1e-5)
    assert metric(metrics, "pg_clipfrac_high") == pytest.approx(1 / 8)
    assert metric(metrics, "pg_clipfrac_low") == pytest.approx(1 / 8)
    assert metric(metrics, "pg_clipfrac_dual") == pytest.approx(1 / 8)
    assert metric(metrics, "ratio_mean") == pytest.approx((1 + 1.1 + 1.5 + 0.5 + 1 + 1.5 + 0.5 + 6) / 8)
    logs = [math.log(r) for r in (1.0, 1.1, 1.5, 0.5, 1.0, 1.5, 0.5, 6.0)]
    assert metric(metrics, "ppo_kl") == pytest.approx(-sum(logs) / 8)
    loss.backward()
    # d(-A r)/d log p = -A r where no bound acts, 0 where one does
    gradient = torch.tensor([[-2.0, -2.2, 0.0, -1.0], [2.0, 3.0, 0.0, 0.0]])
    assert torch.allclose(log_probs.grad, gradient, atol=1e-5)


def test_averaging_modes_by_hand():
    log_probs, old = ratios([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    advantages = torch.tensor([[1.0, 1.0, 1.0], [-4.0, -4.0, -4.0]])
    mask = right_padded([3, 1], 3)
    for mode, expected in {"token": -3 + 4.0, "seq": -1 + 4.0, "constant": (-3 + 4.0) / 10}.items():
        loss, _ = ca.policy_loss(log_probs, old, advantages, mask, loss_avg_mode=mode, constant_length=10)
        assert loss.item() == pytest.approx(expected), mode


def test_gspo_uses_the_geometric_mean_of_the_sequence():
    log_probs, old = ratios([[2.0, 0.5, 4.0], [1.5, 123.0, 123.0]])
    mask = right_padded([3, 1], 3)
    advantages = torch.tensor([[1.0] * 3, [-1.0] * 3])
    loose = {"clip_ratio_low": 0.9, "clip_ratio_high": 9.0, "clip_ratio_dual": 10.0, "loss_avg_mode": "seq"}
    loss, metrics = ca.policy_loss(log_probs, old, advantages, mask, loss_type="gspo", **loose)
    s = 4.0 ** (1 / 3)
    assert loss.item() == pytest.approx(-s + 1.5, abs=1e-5)
    assert metric(metrics, "ratio_mean") == pytest.approx((3 * s + 1.5) / 4, abs=1e-5)
    (gspo_gradient,) = torch.autograd.grad(loss, log_probs)
    # d(-s)/d log p_t = -s / 3 for every token of the sequence
    assert torch.allclose(gspo_gradient, torch.tensor([[-s / 3] * 3, [1.5, 0, 0]]), atol=1e-5)
    token_loss, _ = ca.policy_loss(log_probs, old, advantages, mask, loss_type="gspo_token", **loose)
    (token_gradient,) = torch.autograd.grad(token_loss, log_probs)
    assert token_loss.item() == pytest.approx(loss.item(), abs=1e-6)
    assert torch.allclose(token_gradient, gspo_gradient, atol=1e-6), (
        "equal for advantages that are equal over a sequence"
    )

    varied = torch.tensor([[3.0, 0.0, 0.0], [0.0] * 3])  # gspo_token exists for advantages that differ by token
    token_loss, _ = ca.policy_loss(log_probs, old, varied, mask, loss_type="gspo_token", **loose)
    (token_gradient,) = torch.autograd.grad(token_loss, log_probs)
    assert torch.allclose(token_gradient[0], torch.tensor([-3 * s / 3, 0.0, 0.0]), atol=1e-5)


def test_gspo_clips_whole_sequences():
    log_probs, old = ratios([[2.0, 2.0], [1.0, 1.0]])
    loss, metrics = ca.policy_loss(
        log_probs, old, torch.ones(2, 2), torch.ones(2, 2), loss_type="gspo", clip_ratio_high=0.3
    )
    assert loss.item() == pytest.approx(-2 * 1.3 - 2 * 1.0, abs=1e-5)
    assert metric(metrics, "pg_clipfrac_high") == 0.5
    loss.backward()
    assert log_probs.grad[0].abs().max() == 0
    assert log_probs.grad[1].abs().min() > 0


def test_cispo_keeps_the_gradient_of_clipped_tokens():
    log_probs, old = ratios([[1.0, 2.0, 0.5]])
    advantages = torch.tensor([[1.0, 1.0, -2.0]])
    loss, metrics = ca.policy_loss(
        log_probs, old, advantages, torch.ones(1, 3), loss_type="cispo", clip_ratio_low=0.2, clip_ratio_high=0.3
    )
    log_p = log_probs.detach()[0].tolist()
    assert loss.item() == pytest.approx(-log_p[0] - 1.3 * log_p[1] + 2 * 0.8 * log_p[2], abs=1e-5)
    loss.backward()
    assert torch.allclose(log_probs.grad, torch.tensor([[-1.0, -1.3, 1.6]]), atol=1e-5)
    assert metric(metrics, "pg_clipfrac_high") == pytest.approx(1 / 3)
    assert metric(metrics, "pg_clipfrac_low") == pytest.approx(1 / 3)
    assert "pg_clipfrac_dual" not in metrics


def test_sapo_by_hand():
    log_probs, old = ratios([[1.0, 1.5, 1.5]])
    advantages = torch.tensor([[1.0, 1.0, -1.0]])
    loss, _ = ca.policy_loss(
        log_probs, old, advantages, torch.ones(1, 3), loss_type="sapo", tau_positive=1.0, tau_negative=2.0
    )

    def gate(tau: float, ratio: float) -> float:
        return 4 / tau / (1 + math.exp(-tau * (ratio - 1)))

    assert loss.item() == pytest.approx(-gate(1, 1) - gate(1, 1.5) + gate(2, 1.5), abs=1e-5)
    loss.backward()
    assert log_probs.grad[0, 0].item() == pytest.approx(-1.0, abs=1e-5), "on-policy it is the plain policy gradient"


def test_unknown_loss_type():
    with pytest.raises(ValueError, match="'ppo'"):
        ca.policy_loss(*ratios([[1.0]]), torch.ones(1, 1), torch.ones(1, 1), loss_type="ppo")


@pytest.mark.parametrize("loss_type", ["default", "gspo", "gspo_token", "cispo", "sapo"])
def test_on_policy_gradient_is_the_policy_gradient(loss_type):
    """With new = old every loss has the gradient -A of each token's log-probability (GSPO: averaged over the row)."""
    log_probs, old = ratios([[1.0, 1.0, 1.0]])
    advantages = torch.tensor([[0.7, 0.7, 0.7]])
    loss, _ = ca.policy_loss(log_probs, old, advantages, torch.ones(1, 3), loss_type=loss_type)
    loss.backward()
    assert torch.allclose(log_probs.grad, -advantages, atol=1e-6)


@pytest.mark.parametrize("loss_type", ["default", "gspo", "gspo_token", "cispo", "sapo"])
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -float("inf"), 1e4])
def test_padding_changes_neither_loss_nor_gradient(loss_type, junk):
    generator = torch.Generator().manual_seed(3)
    mask = right_padded([4, 2], 4)
    old = -torch.rand(2, 4, generator=generator)
    new = old + 0.3 * torch.randn(2, 4, generator=generator)
    advantages = torch.randn(2, 1, generator=generator).expand(2, 4)
    results = []
    for filler in (0.0, junk):
        log_probs = new.masked_fill(mask == 0, filler).requires_grad_()
        loss, metrics = ca.policy_loss(log_probs, old, advantages, mask, loss_type=loss_type)
        loss.backward()
        results.append((loss.item(), log_probs.grad.clone(), {name: metric(metrics, name) for name in metrics}))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]


@pytest.mark.parametrize("mode", ["token", "seq", "constant"])
@pytest.mark.parametrize("loss_type", ["default", "gspo", "gspo_token", "cispo", "sapo"])
def test_loss_does_not_depend_on_how_a_mini_batch_is_cut(loss_type, mode):
    """Sum over parts of sum_i(loss of part) / sum over parts of weight is the same for any cut, gradients included.

    `seq` averaging is where others go wrong: the mean of per-micro-batch means weighs sequences by the luck of their
    neighbours.
    """
    generator = torch.Generator().manual_seed(4)
    rows, width = 12, 7
    mask = random_mask(generator, rows, width)
    mask[5] = 0  # a row that only fills up the batch
    old = -torch.rand(rows, width, generator=generator)
    new = old + 0.4 * torch.randn(rows, width, generator=generator)
    advantages = torch.randn(rows, width, generator=generator)
    weights = torch.rand(rows, width, generator=generator)

    def mean_loss(cut: list[list[int]]):
        log_probs = new.clone().requires_grad_()
        total, weight, sums = 0.0, 0.0, {}
        for part in cut:
            loss, metrics = ca.policy_loss(
                log_probs[part], old[part], advantages[part], mask[part],
                loss_type=loss_type, loss_avg_mode=mode, constant_length=width, weights_BT=weights[part],
            )  # fmt: skip
            loss.backward()
            total, weight = total + loss.item(), weight + ca.loss_weight(mask[part], mode).item()
            for name, (value, count) in metrics.items():
                old_value, old_count = sums.get(name, (0.0, 0.0))
                sums[name] = (old_value + value.item(), old_count + count.item())
        return total / weight, log_probs.grad / weight, {name: value / count for name, (value, count) in sums.items()}

    whole = mean_loss([list(range(rows))])
    assert whole[0] != 0
    for _ in range(5):
        order = torch.randperm(rows, generator=generator).tolist()
        cuts = sorted(torch.randperm(rows - 1, generator=generator)[:3].add(1).tolist())
        cut = [order[a:b] for a, b in zip([0, *cuts], [*cuts, rows], strict=True)]
        part = mean_loss(cut)
        assert part[0] == pytest.approx(whole[0], rel=1e-5, abs=1e-6)
        assert torch.allclose(part[1], whole[1], rtol=1e-5, atol=1e-7)
        assert part[2] == pytest.approx(whole[2], rel=1e-5)


def test_weights_scale_losses_without_a_gradient():
    log_probs, old = ratios([[1.0, 1.0]])
    weights = torch.tensor([[0.5, 2.0]], requires_grad=True)
    loss, _ = ca.policy_loss(log_probs, old, torch.ones(1, 2), torch.ones(1, 2), weights_BT=weights)
    assert loss.item() == pytest.approx(-2.5)
    loss.backward()
    assert torch.allclose(log_probs.grad, -weights.detach())
    assert weights.grad is None


# ---- value loss, entropy --------------------------------------------------------------------------------------------
def test_value_loss_by_hand():
    values = torch.tensor([[1.0, 3.0, 0.0]], requires_grad=True)
    old_values = torch.tensor([[1.0, 1.0, 0.0]])
    returns = torch.tensor([[2.0, 3.0, 9.0]])
    loss, metrics = ca.value_loss(values, returns, old_values, right_padded([2], 3), clip_value=0.5)
    # token 0: (1-2)^2 = 1. token 1: free (3-3)^2 = 0, clipped to 1.5: 2.25, the larger counts.
    assert loss.item() == pytest.approx(0.5 * (1.0 + 2.25))
    assert metric(metrics, "vf_clipfrac") == 0.5
    assert metric(metrics, "vpred_mean") == 2.0
    loss.backward()
    assert torch.allclose(values.grad, torch.tensor([[-1.0, 0.0, 0.0]]))
    seq, _ = ca.value_loss(values, returns, old_values, right_padded([2], 3), 0.5, loss_avg_mode="seq")
    assert seq.item() == pytest.approx(0.5 * (1.0 + 2.25) / 2)


def test_entropy():
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.0, -1e9, -1e9, -1e9], [math.log(3), 0.0, -1e9, -1e9]]])
    expected = [math.log(4), 0.0, -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))]
    assert ca.entropy_from_logits(logits)[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert ca.entropy_from_logits(logits.bfloat16()).dtype == torch.float32


# ---- rollout against trainer ----------------------------------------------------------------------------------------
def test_rollout_weights_by_hand():
    old = torch.tensor([[LOG2, -LOG2, 3.0], [LOG2, 0.0, float("nan")]])
    rollout = torch.zeros(2, 3)
    mask = right_padded([3, 2], 3)
    token = ca.rollout_weights(old, rollout, mask, "token", cap=4.0)
    assert torch.allclose(token, torch.tensor([[2.0, 0.5, 4.0], [2.0, 1.0, 0.0]]))
    # geometric means: exp(3/3) = 2.72 and sqrt(2) = 1.41
    keep = ca.rollout_weights(old, rollout, mask, "sequence_mask", cap=2.0)
    assert keep.tolist() == [[0, 0, 0], [1, 1, 0]]
    low = ca.rollout_weights(-old, rollout, mask, "sequence_mask", cap=2.0)
    assert low.tolist() == keep.tolist(), "a sequence may stray either way"
    with pytest.raises(ValueError, match="'geo'"):
        ca.rollout_weights(old, rollout, mask, "geo", 2.0)


def test_mismatch_by_hand():
    old = torch.tensor([[0.1, -0.3], [0.2, 50.0]])
    report = ca.rollout_mismatch(old, torch.zeros(2, 2), right_padded([2, 1], 2))
    assert report["mean_abs_diff"] == pytest.approx(0.2, abs=1e-6)
    assert report["max_abs_diff"] == pytest.approx(0.3, abs=1e-6)
    assert report["kl"] == pytest.approx(sum(math.exp(d) - 1 - d for d in (0.1, -0.3, 0.2)) / 3, abs=1e-6)
    w = [math.exp(-0.2), math.exp(0.2)]
    assert report["ess"] == pytest.approx(sum(w) ** 2 / (2 * sum(x * x for x in w)), abs=1e-6)


def test_mismatch_of_equal_and_of_empty_batches():
    same = -torch.rand(3, 4)
    expected = {"mean_abs_diff": 0.0, "max_abs_diff": 0.0, "kl": 0.0, "ess": 1.0}
    assert ca.rollout_mismatch(same, same, torch.ones(3, 4)) == pytest.approx(expected)
    assert ca.rollout_mismatch(same, same + 1, torch.zeros(3, 4)) == expected
    far = ca.rollout_mismatch(same.new_full((2, 1), 1e4), torch.tensor([[0.0], [1e4]]), torch.ones(2, 1))
    assert far["ess"] == pytest.approx(0.5), "one sample out of two carries everything; no overflow"
    assert math.isfinite(far["kl"])
