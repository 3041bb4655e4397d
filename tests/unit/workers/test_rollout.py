"""The rollout without an engine: which scheduler is taken, and what tells weights apart."""

import sys
from types import SimpleNamespace

import pytest
import torch

from verl.workers.rollout import vllm_rollout
from verl.workers.sharding_manager.fsdp_vllm import default_tolerance


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
    assert [default_tolerance(torch.float32, on_gpu=on_gpu) for on_gpu in (False, True)] == [1e-3, 1e-2]
    assert {default_tolerance(torch.bfloat16, on_gpu=on_gpu) for on_gpu in (False, True)} == {0.15}
