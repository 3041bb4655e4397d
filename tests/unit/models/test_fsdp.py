"""What a single rank is spared: sharding, since it can cast by itself."""

import gc
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from tests.conftest import tiny_llama
from verl.config.worker import FSDPConfig, OptimConfig
from verl.models import fsdp
from verl.models.checkpointing import load_training_state, save_training_state
from verl.models.optim import build_optimizer, build_scheduler

FP32, BF16 = torch.float32, torch.bfloat16
IDS = torch.arange(12).view(2, 6)


@pytest.fixture
def ranks():
    """Starts a process group whose collectives do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def start(count: int) -> None:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)

    yield start
    dist.destroy_process_group()


def sharded(param_dtype: torch.dtype, *, kept: torch.dtype = FP32, trained: bool = True, **settings) -> torch.nn.Module:
    module = tiny_llama(tie_word_embeddings=True).to(kept).requires_grad_(trained)
    fsdp.shard(module, FSDPConfig(**settings), fsdp.build_mesh("cpu", -1), param_dtype)
    return module


@pytest.mark.parametrize(
    ("count", "settings", "whole"),
    [
        (1, {"param_dtype": FP32}, True),
        (2, {"param_dtype": FP32}, False),
        (1, {"param_dtype": BF16}, True),  # weights are cast without FSDP
        (1, {"param_dtype": BF16, "kept": BF16}, False),  # gradients are, where they are reduced
        (1, {"param_dtype": BF16, "kept": BF16, "trained": False}, True),  # a reference has none
        (1, {"param_dtype": FP32, "mp_reduce_dtype": "bf16"}, False),
        (1, {"param_dtype": FP32, "enable_cpu_offload": True}, True),  # which does nothing on the CPU
    ],
)
def test_a_rank_alone_keeps_its_module_whole_where_no_type_differs(ranks, count, settings, whole):
    ranks(count)
    assert isinstance(sharded(**settings), FSDPModule) != whole


def gradients(module: torch.nn.Module, *, holding: bool) -> list[torch.Tensor]:
    """Of two micro-batches, with gradient checkpointing, whose second forward pass is within the backward pass."""
    module.train()
    module.gradient_checkpointing_enable({"use_reentrant": False})
    for micro in fsdp.held(module, FSDPConfig(), IDS.split(1)) if holding else IDS.split(1):
        module(micro, labels=micro).loss.backward()
    return [fsdp.local_shard(param.grad) for param in module.parameters()]


def test_a_rank_alone_casts_as_fsdp_does(ranks):
    ranks(1)
    alone, reference = sharded(BF16), sharded_alone(BF16)
    with torch.no_grad():
        logits, expected = (module(IDS).logits for module in (alone, reference))
    assert logits.dtype == BF16 and torch.equal(logits, expected)
    cast, by_fsdp = gradients(alone, holding=True), gradients(reference, holding=False)
    assert {one.dtype for one in cast} == {FP32}
    assert all(torch.equal(one, other) for one, other in zip(cast, by_fsdp, strict=True))


def test_weights_are_back_in_their_places_behind_a_pass_and_behind_one_that_fails(ranks):
    ranks(1)
    module = sharded(BF16)
    before = list(module.parameters())
    module(IDS, labels=IDS).loss.backward()
    assert {weight.grad.dtype for weight in before} == {FP32}
    with pytest.raises(IndexError):
        module(IDS + 10**6)
    with pytest.raises(ValueError, match="a loss"):
        for _ in fsdp.held(module, FSDPConfig(), [IDS]):
            raise ValueError("a loss")
    gc.collect()
    assert all(one is other for one, other in zip(module.parameters(), before, strict=True))
    assert module.lm_head.weight is module.model.embed_tokens.weight


def sharded_alone(param_dtype: torch.dtype = FP32) -> torch.nn.Module:
    """What a rank alone would have from FSDP."""
    module, cast = tiny_llama(tie_word_embeddings=True), MixedPrecisionPolicy(param_dtype, FP32)
    for part in [*module.model.layers, module]:
        fully_shard(part, mesh=fsdp.build_mesh("cpu", -1), mp_policy=cast)
    return module


def test_a_whole_module_has_the_gradients_of_a_sharded_one(ranks):
    ranks(1)
    alone, reference = sharded(FP32), sharded_alone()
    for micro in fsdp.held(alone, FSDPConfig(defer_gradient_reduction=True), IDS.split(1)):
        alone(micro, labels=micro).loss.backward()
    for micro in IDS.split(1):
        reference(micro, labels=micro).loss.backward()
    for one, other in zip(alone.parameters(), reference.parameters(), strict=True):
        assert torch.equal(one.grad, fsdp.local_shard(other.grad))


def trained(module: torch.nn.Module) -> SimpleNamespace:
    settings = OptimConfig(lr=1e-2)
    optimizer = build_optimizer(module, settings)
    scheduler = build_scheduler(optimizer, settings, 10)
    return SimpleNamespace(module=module, optimizer=optimizer, scheduler=scheduler, skipped=0)


def step(stepper: SimpleNamespace) -> list[torch.Tensor]:
    """The weights after an optimiser step."""
    stepper.module(IDS, labels=IDS).loss.backward()
    stepper.optimizer.step()
    stepper.optimizer.zero_grad()
    return [fsdp.local_shard(param).detach() for param in stepper.module.parameters()]


@pytest.mark.parametrize("saves_whole", [True, False])
def test_a_run_goes_on_bit_for_bit_from_shards_and_from_a_whole_module(ranks, tmp_path, saves_whole):
    ranks(1)
    modules = sharded(FP32), sharded_alone()
    saving, loading = (trained(module) for module in (modules if saves_whole else modules[::-1]))
    step(saving)
    save_training_state(saving, tmp_path)
    load_training_state(loading, tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(step(saving), step(loading), strict=True))


@pytest.mark.parametrize(("max_norm", "expected"), [(1.0, [0.6, -0.8]), (5.0, [3.0, -4.0]), (6.0, [3.0, -4.0])])
def test_gradients_are_scaled_down_to_their_limit_and_never_up(max_norm, expected):
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, -4.0])
    assert fsdp.clip_grad_norm([parameter], max_norm) == 5.0
    torch.testing.assert_close(parameter.grad, torch.tensor(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_left_alone(bad):
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, bad])
    fsdp.clip_grad_norm([parameter], 1.0)
    assert parameter.grad[0] == 3
