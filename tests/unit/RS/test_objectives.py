"""Objectives of Rejection Steering against values worked out by hand, and their sums under splitting."""

import math

import pytest
import torch

from RS import objectives

# Two sequences: log-probabilities -1, -2, -3 (length 3) and -0.5 (length 1, two columns of padding).
LOG_PROBS = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, 0.0, 0.0]])
LENGTHS = [3, 1]


def softplus(x: float) -> float:
    """-log sigmoid(-x)"""
    return math.log1p(math.exp(x))


def test_rejection_and_gradient_ascent_are_opposite_and_weigh_tokens():
    assert objectives.rejection(LOG_PROBS).item() == pytest.approx(6.5)
    assert objectives.gradient_ascent(LOG_PROBS).item() == pytest.approx(-6.5)
    assert objectives.weight("rejection", LENGTHS) == objectives.weight("ga", LENGTHS) == 4


def test_preference_objectives_weigh_examples():
    assert [objectives.weight(name, LENGTHS) for name in ("npo", "simnpo", "dpo")] == [2, 2, 2]


def test_npo():
    """Log ratios are -6 - (-4) = -2 and -0.5 - (-0.5) = 0, so with beta 0.5 the sum is 4 (f(-1) + f(0))."""
    value = objectives.npo(LOG_PROBS, torch.tensor([-4.0, -0.5]), beta=0.5)
    assert value.item() == pytest.approx(4 * (softplus(-1.0) + math.log(2)), rel=1e-6)


def test_npo_pulls_like_gradient_ascent_at_the_reference_and_fades_below_it():
    """The derivative by a sequence's log-likelihood is 2 sigmoid(beta * log ratio): 1 at the reference, then less."""
    log_probs = LOG_PROBS.clone().requires_grad_()
    objectives.npo(log_probs, torch.tensor([-6.0, 39.5]), beta=0.1).backward()
    assert log_probs.grad[0, 0].item() == pytest.approx(1.0)
    assert log_probs.grad[1, 0].item() == pytest.approx(2 / (1 + math.exp(4.0)), rel=1e-5)


def test_simnpo():
    """Mean log-likelihoods are -2 and -0.5; beta 2, gamma 0.5: f(-4 + 0.5) + f(-1 + 0.5)."""
    value = objectives.simnpo(LOG_PROBS, torch.tensor(LENGTHS), beta=2.0, gamma=0.5)
    assert value.item() == pytest.approx(softplus(-3.5) + softplus(-0.5), rel=1e-6)


def test_dpo():
    """Chosen gains -6 + 7 = 1 and 0, rejected -2 + 1 = -1 and 0; beta 0.5: f(-1) + f(0)."""
    rejected = torch.tensor([[-2.0, 0.0], [-0.5, 0.0]])
    reference = torch.tensor([-7.0, -0.5]), torch.tensor([-1.0, -0.5])
    value = objectives.dpo(LOG_PROBS, rejected, *reference, beta=0.5)
    assert value.item() == pytest.approx(softplus(-1.0) + math.log(2), rel=1e-6)


def test_kl_is_taken_from_the_reference():
    """Reference (3/4, 1/4), model (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2); the second token agrees."""
    reference = torch.tensor([[math.log(3.0), 0.0], [5.0, 5.0]])
    value = objectives.kl_to_reference(torch.zeros(2, 2), reference)
    assert value.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda rows: objectives.rejection(LOG_PROBS[rows]),
        lambda rows: objectives.npo(LOG_PROBS[rows], torch.tensor([-4.0, 1.0])[rows], beta=0.3),
        lambda rows: objectives.simnpo(LOG_PROBS[rows], torch.tensor(LENGTHS)[rows], beta=2.5, gamma=0.1),
    ],
)
def test_the_sum_over_parts_is_the_sum_over_the_whole(loss):
    assert (loss([0]) + loss([1])).item() == pytest.approx(loss([0, 1]).item(), rel=1e-6)
