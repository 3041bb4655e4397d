"""What a single rank is spared: sharding where no type differs, casts and reductions between passes where one does."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

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
        (1, {"param_dtype": BF16}, False),  # weights are cast
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
    """Of two micro-batches; and whether weights lie gathered behind each."""
    micros, kept = list(IDS.split(1)), []
    for micro in fsdp.held(module, FSDPConfig(), micros) if holding else micros:
        module(micro, labels=micro).loss.backward()
        kept.append(not isinstance(next(module.parameters()), DTensor))
    assert kept == ([True, False] if holding else [False, False])
    return [fsdp.local_shard(param.grad) for param in module.parameters()]


def test_what_a_rank_alone_holds_between_passes_changes_no_bit(ranks):
    ranks(1)
    plain, held = (gradients(sharded(BF16), holding=holding) for holding in (False, True))
    assert all(torch.equal(one, other) for one, other in zip(plain, held, strict=True))
    module = sharded(BF16)
    gradients(module, holding=True)
    with torch.no_grad():
        module(IDS)
    assert isinstance(module.model.layers[0].mlp.up_proj.weight, DTensor)  # given back behind a pass without gradients


def sharded_alone() -> torch.nn.Module:
    """What a rank alone has where types differ, here without."""
    module = tiny_llama(tie_word_embeddings=True)
    for part in [*module.model.layers, module]:
        fully_shard(part, mesh=fsdp.build_mesh("cpu", -1))
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
