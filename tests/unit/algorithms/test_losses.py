"""Policy losses, the value loss and the engine mismatch: hand-computed cases and invariances."""

import math

import pytest
import torch

from verl.algorithms.losses import Metrics, loss_weight, policy_loss, rollout_mismatch, rollout_weights, value_loss

LOG2 = math.log(2.0)


def right_padded(lengths: list[int], width: int) -> torch.Tensor:
    return (torch.arange(width) < torch.tensor(lengths).unsqueeze(-1)).long()


def random_mask(generator: torch.Generator, rows: int, width: int) -> torch.Tensor:
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    return (torch.arange(width) < lengths.unsqueeze(-1)).long()


# ---- policy loss ----------------------------------------------------------------------------------------------------
def ratios(values: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(log_probs, old_log_probs) with these probability ratios; log_probs are a leaf for gradients."""
    old = torch.full((len(values), len(values[0])), -1.5)
    return (old + torch.tensor(values).log()).requires_grad_(), old


def metric(metrics: Metrics, name: str) -> float:
    total, weight = metrics[name]
    return (total / weight).item()


def test_ppo_clip_by_hand():
    log_probs, old = ratios([[1.0, 1.1, 1.5, 0.5], [1.0, 1.5, 0.5, 6.0]])
    advantages = torch.tensor([[2.0] * 4, [-2.0] * 4])
    mask = torch.ones(2, 4)
    loss, metrics = policy_loss(
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
        loss, _ = policy_loss(log_probs, old, advantages, mask, loss_avg_mode=mode, constant_length=10)
        assert loss.item() == pytest.approx(expected), mode


def test_gspo_uses_the_geometric_mean_of_the_sequence():
    log_probs, old = ratios([[2.0, 0.5, 4.0], [1.5, 123.0, 123.0]])
    mask = right_padded([3, 1], 3)
    advantages = torch.tensor([[1.0] * 3, [-1.0] * 3])
    loose = {"clip_ratio_low": 0.9, "clip_ratio_high": 9.0, "clip_ratio_dual": 10.0, "loss_avg_mode": "seq"}
    loss, metrics = policy_loss(log_probs, old, advantages, mask, loss_type="gspo", **loose)
    s = 4.0 ** (1 / 3)
    assert loss.item() == pytest.approx(-s + 1.5, abs=1e-5)
    assert metric(metrics, "ratio_mean") == pytest.approx((3 * s + 1.5) / 4, abs=1e-5)
    (gspo_gradient,) = torch.autograd.grad(loss, log_probs)
    # d(-s)/d log p_t = -s / 3 for every token of the sequence
    assert torch.allclose(gspo_gradient, torch.tensor([[-s / 3] * 3, [1.5, 0, 0]]), atol=1e-5)
    token_loss, _ = policy_loss(log_probs, old, advantages, mask, loss_type="gspo_token", **loose)
    (token_gradient,) = torch.autograd.grad(token_loss, log_probs)
    assert token_loss.item() == pytest.approx(loss.item(), abs=1e-6)
    assert torch.allclose(token_gradient, gspo_gradient, atol=1e-6), (
        "equal for advantages that are equal over a sequence"
    )

    varied = torch.tensor([[3.0, 0.0, 0.0], [0.0] * 3])  # gspo_token exists for advantages that differ by token
    token_loss, _ = policy_loss(log_probs, old, varied, mask, loss_type="gspo_token", **loose)
    (token_gradient,) = torch.autograd.grad(token_loss, log_probs)
    assert torch.allclose(token_gradient[0], torch.tensor([-3 * s / 3, 0.0, 0.0]), atol=1e-5)


@pytest.mark.parametrize("loss_type", ["gspo", "gspo_token"])
def test_gspo_has_no_dual_clip(loss_type):
    log_probs, old = ratios([[6.0, 6.0]])
    for dual in (2.0, 3.0):
        loss, metrics = policy_loss(
            log_probs, old, -torch.ones(1, 2), torch.ones(1, 2), loss_type=loss_type, clip_ratio_dual=dual
        )
        assert loss.item() == pytest.approx(2 * 6.0, abs=1e-4)
        assert "pg_clipfrac_dual" not in metrics
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert torch.allclose(gradient, torch.full((1, 2), 6.0), atol=1e-4)


def test_gspo_clips_whole_sequences():
    log_probs, old = ratios([[2.0, 2.0], [1.0, 1.0]])
    loss, metrics = policy_loss(
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
    loss, metrics = policy_loss(
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
    loss, _ = policy_loss(
        log_probs, old, advantages, torch.ones(1, 3), loss_type="sapo", tau_positive=1.0, tau_negative=2.0
    )

    def gate(tau: float, ratio: float) -> float:
        return 4 / tau / (1 + math.exp(-tau * (ratio - 1)))

    assert loss.item() == pytest.approx(-gate(1, 1) - gate(1, 1.5) + gate(2, 1.5), abs=1e-5)
    loss.backward()
    assert log_probs.grad[0, 0].item() == pytest.approx(-1.0, abs=1e-5), "on-policy it is the plain policy gradient"


def test_unknown_loss_type():
    with pytest.raises(ValueError, match="'ppo'"):
        policy_loss(*ratios([[1.0]]), torch.ones(1, 1), torch.ones(1, 1), loss_type="ppo")


@pytest.mark.parametrize("loss_type", ["default", "gspo", "gspo_token", "cispo", "sapo"])
def test_on_policy_gradient_is_the_policy_gradient(loss_type):
    """With new = old every loss has the gradient -A of each token's log-probability (GSPO: averaged over the row)."""
    log_probs, old = ratios([[1.0, 1.0, 1.0]])
    advantages = torch.tensor([[0.7, 0.7, 0.7]])
    loss, _ = policy_loss(log_probs, old, advantages, torch.ones(1, 3), loss_type=loss_type)
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
        loss, metrics = policy_loss(log_probs, old, advantages, mask, loss_type=loss_type)
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
            loss, metrics = policy_loss(
                log_probs[part], old[part], advantages[part], mask[part],
                loss_type=loss_type, loss_avg_mode=mode, constant_length=width, weights_BT=weights[part],
            )  # fmt: skip
            loss.backward()
            total, weight = total + loss.item(), weight + loss_weight(mask[part], mode).item()
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
    loss, _ = policy_loss(log_probs, old, torch.ones(1, 2), torch.ones(1, 2), weights_BT=weights)
    assert loss.item() == pytest.approx(-2.5)
    loss.backward()
    assert torch.allclose(log_probs.grad, -weights.detach())
    assert weights.grad is None


# ---- value loss, entropy --------------------------------------------------------------------------------------------
def test_value_loss_by_hand():
    values = torch.tensor([[1.0, 3.0, 0.0]], requires_grad=True)
    old_values = torch.tensor([[1.0, 1.0, 0.0]])
    returns = torch.tensor([[2.0, 3.0, 9.0]])
    loss, metrics = value_loss(values, returns, old_values, right_padded([2], 3), clip_value=0.5)
    # token 0: (1-2)^2 = 1. token 1: free (3-3)^2 = 0, clipped to 1.5: 2.25, the larger counts.
    assert loss.item() == pytest.approx(0.5 * (1.0 + 2.25))
    assert metric(metrics, "vf_clipfrac") == 0.5
    assert metric(metrics, "vpred_mean") == 2.0
    loss.backward()
    assert torch.allclose(values.grad, torch.tensor([[-1.0, 0.0, 0.0]]))
    seq, _ = value_loss(values, returns, old_values, right_padded([2], 3), 0.5, loss_avg_mode="seq")
    assert seq.item() == pytest.approx(0.5 * (1.0 + 2.25) / 2)


# ---- rollout against trainer ----------------------------------------------------------------------------------------
def test_rollout_weights_by_hand():
    old = torch.tensor([[LOG2, -LOG2, 3.0], [LOG2, 0.0, float("nan")]])
    rollout = torch.zeros(2, 3)
    mask = right_padded([3, 2], 3)
    token = rollout_weights(old, rollout, mask, "token", cap=4.0)
    assert torch.allclose(token, torch.tensor([[2.0, 0.5, 4.0], [2.0, 1.0, 0.0]]))
    # geometric means: exp(3/3) = 2.72 and sqrt(2) = 1.41
    keep = rollout_weights(old, rollout, mask, "sequence_mask", cap=2.0)
    assert keep.tolist() == [[0, 0, 0], [1, 1, 0]]
    low = rollout_weights(-old, rollout, mask, "sequence_mask", cap=2.0)
    assert low.tolist() == keep.tolist(), "a sequence may stray either way"
    with pytest.raises(ValueError, match="'geo'"):
        rollout_weights(old, rollout, mask, "geo", 2.0)


def test_mismatch_by_hand():
    old = torch.tensor([[0.1, -0.3], [0.2, 50.0]])
    report = rollout_mismatch(old, torch.zeros(2, 2), right_padded([2, 1], 2))
    assert report["mean_abs_diff"] == pytest.approx(0.2, abs=1e-6)
    assert report["max_abs_diff"] == pytest.approx(0.3, abs=1e-6)
    assert report["kl"] == pytest.approx(sum(math.exp(d) - 1 - d for d in (0.1, -0.3, 0.2)) / 3, abs=1e-6)
    w = [math.exp(-0.2), math.exp(0.2)]
    assert report["ess"] == pytest.approx(sum(w) ** 2 / (2 * sum(x * x for x in w)), abs=1e-6)


def test_mismatch_of_equal_and_of_empty_batches():
    same = -torch.rand(3, 4)
    expected = {"mean_abs_diff": 0.0, "max_abs_diff": 0.0, "kl": 0.0, "ess": 1.0}
    assert rollout_mismatch(same, same, torch.ones(3, 4)) == pytest.approx(expected)
    assert rollout_mismatch(same, same + 1, torch.zeros(3, 4)) == expected
    far = rollout_mismatch(same.new_full((2, 1), 1e4), torch.tensor([[0.0], [1e4]]), torch.ones(2, 1))
    assert far["ess"] == pytest.approx(0.5), "one sample out of two carries everything; no overflow"
    assert math.isfinite(far["kl"])
