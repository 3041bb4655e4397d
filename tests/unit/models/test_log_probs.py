"""Chunked log-probabilities and entropies against torch's own, and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from verl.models import log_probs
from verl.models.log_probs import log_probs_and_entropy


@pytest.mark.parametrize("elements", [1, 40, 10_000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_values_and_gradients_are_those_of_cross_entropy(monkeypatch, elements, dtype, tolerance):
    monkeypatch.setitem(log_probs.ELEMENTS, "cpu", elements)
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(17, 11, generator=generator)).to(dtype)
    labels, weights = torch.randint(11, (17,), generator=generator), torch.randn(17, generator=generator)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    values, entropy = log_probs_and_entropy(ours, labels)
    expected = -F.cross_entropy(theirs.float(), labels, reduction="none")
    (values * weights).sum().backward()
    (expected * weights).sum().backward()
    assert values.dtype == entropy.dtype == torch.float32 and ours.grad.dtype == dtype
    assert torch.allclose(values, expected, atol=1e-5)
    assert torch.allclose(ours.grad, theirs.grad, atol=tolerance)
    assert not entropy.requires_grad


def test_entropy_by_hand():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, -1e9, -1e9, -1e9], [math.log(3), 0.0, -1e9, -1e9]])
    expected = [math.log(4), 0.0, -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))]
    _, entropy = log_probs_and_entropy(logits, torch.zeros(3, dtype=torch.int64))
    assert entropy.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_rank_without_response_tokens_still_has_a_gradient_of_no_rows():
    logits = torch.zeros(0, 5, requires_grad=True)
    values, entropy = log_probs_and_entropy(logits, torch.zeros(0, dtype=torch.int64))
    values.sum().backward()
    assert values.shape == entropy.shape == (0,) and logits.grad.shape == (0, 5)
