"""Where everything lies on a GPU machine, on one without: fake CUDA tensors, and a process group that sends nothing.

Fake tensors have a device and a shape but no content, and their operations refuse to mix devices (numbers of no
dimension on the CPU excepted, so devices are compared here). What torch's CPU build lacks is stood in for: CUDA
streams, a guard for CUDA devices, and pinned memory, which no fake tensor has. Autograd's engine asks for streams in
C++, so nothing runs backward here; gradients are put where FSDP puts them.
"""

import contextlib
import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

import verl.models.build
from verl.config.worker import FSDPConfig, LoraConfig, ModelConfig, OptimConfig
from verl.models import fsdp
from verl.models.build import build_model
from verl.models.loading import WeightFiles
from verl.models.log_probs import log_probs_and_entropy
from verl.models.optim import build_optimizer

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
RANKS = 2


class Stream:
    """A CUDA stream, or event, that orders nothing."""

    def __init__(self, *_, **__) -> None: ...

    def __getattr__(self, name):
        return lambda *_, **__: self


@pytest.fixture
def pinned(monkeypatch):
    """Storages that were pinned."""
    found, empty = set(), torch.empty

    def pin(tensor):
        copy = tensor.clone()
        found.add(copy.untyped_storage()._cdata)
        return copy

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: tensor.untyped_storage()._cdata in found)
    monkeypatch.setattr(
        torch,
        "empty",
        lambda *size, pin_memory=False, **how: pin(empty(*size, **how)) if pin_memory else empty(*size, **how),
    )
    return found


@pytest.fixture
def guard():
    """A guard for CUDA devices: where torch was built without, the one of the meta device, which does nothing."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    cuda, meta = 1, 14  # DeviceType
    guards = (ctypes.c_void_p * (meta + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[cuda]
    guards[cuda] = before or guards[meta]
    yield
    guards[cuda] = before


@pytest.fixture
def cuda(monkeypatch, pinned, guard):
    """A machine with two ranks and fake GPUs: the mode to be entered, and the calls of ``synchronize``."""
    waits, read = [], WeightFiles.read
    stand_ins = {
        "current_device": lambda: 0,
        "Stream": Stream,
        "Event": Stream,
        "current_stream": lambda *_: Stream(),
        "stream": lambda _: contextlib.nullcontext(),
        "synchronize": lambda *_: waits.append(1),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(WeightFiles, "read", unset_fake_temporarily()(read))
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    yield SimpleNamespace(mode=FakeTensorMode(allow_non_fake_inputs=True), waits=waits)
    dist.destroy_process_group()


def built(cuda, monkeypatch, path, **settings) -> torch.nn.Module:
    """A model as the worker builds it. Fake from where FSDP begins: a fake tensor on the meta device is none."""
    model, trainable = settings.pop("model", {}), settings.pop("trainable", True)
    real = fsdp.shard

    def shard(*args):
        stack.enter_context(cuda.mode)
        real(*args)

    monkeypatch.setattr(verl.models.build, "shard", shard)
    monkeypatch.setattr(verl.models.build, "_source", unset_fake_temporarily()(verl.models.build._source))
    with contextlib.ExitStack() as stack:
        return build_model(
            ModelConfig(model_path=str(path), **model),
            FSDPConfig(**settings),
            fsdp.build_mesh("cuda", settings.get("fsdp_size", -1)),
            trainable=trainable,
            padding_free=False,
        )


def shards_of(tensors) -> list[torch.Tensor]:
    return [fsdp.local_shard(tensor) for tensor in tensors]


def devices(tensors) -> set[torch.device]:
    """Of tensors and of the shards in them, which a wrapper may belie."""
    tensors = list(tensors)
    return {tensor.device for tensor in [*tensors, *shards_of(tensors)]}


def give_gradients(module) -> None:
    for param in module.parameters():
        if param.requires_grad:
            param.grad = torch.zeros_like(param)


SETTINGS = {
    "plain": {},
    "CPU offload": {"enable_cpu_offload": True},
    "CPU offload, bf16": {"enable_cpu_offload": True, "torch_dtype": "bf16"},
    "CPU offload, replicated": {"enable_cpu_offload": True, "fsdp_size": 1},
    "replicated": {"fsdp_size": 1},
    "weights stay gathered": {"enable_full_shard": False},
    "LoRA": {"model": {"lora": LoraConfig(rank=4)}},
    "LoRA, CPU offload": {"enable_cpu_offload": True, "model": {"lora": LoraConfig(rank=4)}},
    "reference, CPU offload": {"enable_cpu_offload": True, "trainable": False},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_model_is_built_loaded_and_run_where_its_settings_say(cuda, pinned, monkeypatch, tiny_model, settings):
    settings = dict(settings)
    module = built(cuda, monkeypatch, tiny_model, **settings)
    home = CPU if settings.get("enable_cpu_offload") else GPU
    with cuda.mode, torch.no_grad():
        assert devices(module.parameters()) == {home}
        assert devices(module.buffers()) == {GPU}
        logits = module(input_ids=torch.zeros(1, 16, dtype=torch.int64, device="cuda"), use_cache=False).logits
        assert (logits.device, logits.dtype) == (GPU, torch.bfloat16)
        fsdp.offload_module(module)  # which has nothing to move where everything is on the CPU
        assert devices(module.parameters()) == {home}
        fsdp.load_module(module)
        shards = [shard for shard in shards_of(module.parameters()) if shard.numel()]
        assert home == GPU or all(shard.is_pinned() for shard in shards)


@pytest.mark.parametrize("strategy", ["adamw", "adamw_bf16"])
@pytest.mark.parametrize("offload", [False, True])
def test_the_optimiser_works_where_the_shards_are(cuda, monkeypatch, tiny_model, strategy, offload):
    dtype = "bf16" if strategy == "adamw_bf16" else "fp32"
    module = built(cuda, monkeypatch, tiny_model, enable_cpu_offload=offload, torch_dtype=dtype)
    home = CPU if offload else GPU
    with cuda.mode, torch.no_grad():
        optimizer = build_optimizer(module, OptimConfig(strategy=strategy))
        give_gradients(module)
        params = list(module.parameters())
        norms = [torch.linalg.vector_norm(param.grad, dtype=torch.float64) for param in params]
        assert devices(norms) == {home}
        torch.nn.utils.clip_grads_with_norm_(params, 1.0, norms[0].full_tensor().float(), foreach=True)
        optimizer.step()
        moments = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
        assert len(moments) == len(params) * (3 if strategy == "adamw_bf16" else 2)
        assert devices(moments) == {home}
        optimizer.zero_grad()
        assert all(param.grad is None for param in params)


def test_moves_keep_tensors_views_and_pinned_memory(cuda, pinned, monkeypatch, tiny_model):
    module = built(cuda, monkeypatch, tiny_model)  # its embedding and head are one
    with cuda.mode, torch.no_grad():
        optimizer = build_optimizer(module, OptimConfig())
        give_gradients(module)
        optimizer.step()
        optimizer.zero_grad()
        params = list(module.parameters())
        tensors = [*params, *(value for state in optimizer.state.values() for value in state.values() if value.dim())]
        sizes = [shard.untyped_storage().nbytes() for shard in shards_of(tensors)]
        for _ in range(3):
            fsdp.offload_module(module)
            fsdp.offload_optimizer(optimizer)
            assert all(shard.untyped_storage().nbytes() == 0 for shard in shards_of(tensors))
            fsdp.load_module(module)
            fsdp.load_optimizer(optimizer)
            assert [shard.untyped_storage().nbytes() for shard in shards_of(tensors)] == sizes
        assert len(pinned) == len(tensors)  # one place for each, taken once
        assert len(cuda.waits) == 2 * 3  # once a move
        assert all(one is other for one, other in zip(params, module.parameters(), strict=True))
        assert module.lm_head.weight is module.model.embed_tokens.weight
        assert devices(tensors) == {GPU}


def test_log_probs_and_their_gradient_stay_on_the_gpu(cuda):
    with cuda.mode, torch.no_grad():
        logits, labels = torch.zeros(7, 11, device="cuda"), torch.zeros(7, dtype=torch.int64, device="cuda")
        log_probs, entropy = log_probs_and_entropy(logits, labels)
        assert devices([log_probs, entropy]) == {GPU}
        from verl.models.log_probs import _LogProbs

        context = SimpleNamespace(saved_tensors=(logits, labels, log_probs), compiled=False)
        assert devices([_LogProbs.backward(context, log_probs, None)[0]]) == {GPU}
