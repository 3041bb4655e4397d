"""The rollout without an engine: which scheduler is taken, and what tells weights apart."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from verl.workers.rollout import vllm_rollout
from verl.workers.sharding_manager.fsdp_vllm import FSDPVLLMShardingManager, StaleWeightsError, rounding


@pytest.mark.parametrize("version", ["0.31.4", "0.33.0", "0.320.1"])
def test_another_vllm_than_the_group_scheduler_extends_schedules_by_itself(version, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__=version))
    assert vllm_rollout._scheduler() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("shape", [(3, 8), (3, 5), (7,), (2, 3, 4)])
def test_a_digest_changes_with_any_number_and_not_with_where_they_lie(shape, dtype):
    tensor = torch.arange(1, 1 + torch.Size(shape).numel()).reshape(shape).to(dtype)
    plain = vllm_rollout.digest(tensor)
    apart = torch.zeros(tensor.numel() + 1, dtype=dtype)[1:].reshape(shape).copy_(tensor)  # at an odd place
    turned = tensor.transpose(0, -1).contiguous().transpose(0, -1)  # in another order
    assert plain.dtype == torch.int64 and plain == vllm_rollout.digest(apart) == vllm_rollout.digest(turned)
    for place in range(tensor.numel()):
        changed = tensor.clone()
        changed.view(-1)[place] += 1
        assert vllm_rollout.digest(changed) != plain
    if len(shape) > 1:  # changes of two rows that sum to nothing
        changed = tensor.clone()
        changed[0], changed[1] = tensor[1], tensor[0]
        assert vllm_rollout.digest(changed) != plain


def test_what_arithmetic_explains_of_fp32_is_wider_on_gpus_alone():
    assert [rounding(torch.float32, on_gpu=on_gpu) for on_gpu in (False, True)] == [1.5e-4, 1.5e-3]
    assert {rounding(torch.bfloat16, on_gpu=on_gpu) for on_gpu in (False, True)} == {0.03}


@pytest.mark.parametrize(
    ("size", "off", "tolerance", "holds"),
    [(14.0, 0.4, None, True), (14.0, 0.44, None, False), (5.0, 0.2, None, False), (14.0, 0.2, 0.1, False)],
)
def test_rounding_may_be_larger_where_log_probabilities_are(size, off, tolerance, holds):
    engine = SimpleNamespace(teacher_forced_log_probs=lambda tokens: torch.full((len(tokens) - 1,), -size - off))
    manager = FSDPVLLMShardingManager(
        torch.nn.Identity(),
        engine,
        score=lambda tokens: torch.full((len(tokens) - 1,), -size),
        dtype=torch.bfloat16,
        rounding=rounding(torch.bfloat16, on_gpu=True),
        tolerance=tolerance,
        vocab_size=10,
        max_model_len=8,
    )
    with nullcontext() if holds else pytest.raises(StaleWeightsError, match=f"actor's by {off}"):
        manager.verify(manager.score(manager.tokens))
