"""What RULE does with FSDP2: shard a module, move it off the device, clip its gradients."""

import math
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.weak import WeakIdKeyDictionary

from ..config.worker import FSDPConfig
from .casting import cast_in_passes, casting_of

Micro = TypeVar("Micro")
REDUCE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def build_mesh(device_type: str, fsdp_size: int) -> DeviceMesh:
    """All ranks in one shard group, or replicated groups of ``fsdp_size`` ranks (HSDP)."""
    world_size = dist.get_world_size()
    if fsdp_size in (-1, world_size):
        return init_device_mesh(device_type, (world_size,), mesh_dim_names=("shard",))
    shape = (world_size // fsdp_size, fsdp_size)
    return init_device_mesh(device_type, shape, mesh_dim_names=("replicate", "shard"))


def shard(module: torch.nn.Module, config: FSDPConfig, mesh: DeviceMesh, param_dtype: torch.dtype) -> None:
    """Shard every transformer layer, embedding and head, then what is left, in place.

    A single rank that adds up gradients in the type of their weights has nothing to gather or reduce: its module stays
    whole, which spares it half a dozen copies of all weights a micro-batch. What it computes in another type it casts
    itself on a CPU; on a GPU, where copies take no time and memory is short, FSDP does that layer by layer.
    """
    on_cpu = mesh.device_type == "cpu"
    alike = all(param.dtype == param_dtype for param in module.parameters())
    summed = {param.dtype for param in module.parameters() if param.requires_grad} <= {
        REDUCE_DTYPES[config.mp_reduce_dtype]
    }
    if mesh.size() == 1 and summed and (on_cpu or (alike and not config.enable_cpu_offload)):
        if not alike:
            cast_in_passes(module, param_dtype)
        return
    options: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": config.enable_full_shard,
        "mp_policy": MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=REDUCE_DTYPES[config.mp_reduce_dtype]),
    }
    if config.enable_cpu_offload and not on_cpu:
        options["offload_policy"] = CPUOffloadPolicy()
    layers = set(getattr(module, "_no_split_modules", None) or ())
    for part in [*(part for part in module.modules() if type(part).__name__ in layers), *_ends(module)]:
        fully_shard(part, **options)
    fully_shard(module, **options)


def _ends(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Embedding and head, each needed at one end of a pass only; none where they share a weight."""
    model = module.get_base_model() if hasattr(module, "get_base_model") else module  # inside LoRA
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None:
        return [embedding]
    return [] if getattr(model, "all_tied_weights_keys", None) else [embedding, head]


def materialize(module: torch.nn.Module, buffers: dict[str, torch.Tensor], mesh: DeviceMesh, *, on_host: bool) -> None:
    """Give a module that was sharded over ``mesh`` on the meta device its memory. The shards' content is undefined.

    Args:
        buffers: the real buffers, which the meta device would have lost; they go where the arithmetic is.
        on_host: the shards lie in CPU memory although the arithmetic does not (``enable_cpu_offload``); FSDP pins them.
    """
    device = _device_of(mesh)
    module.to_empty(device="cpu" if on_host else device)
    module.tie_weights()  # to_empty made two parameters of tied ones
    for name, buffer in buffers.items():
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner)._buffers[leaf] = buffer.to(device)


def compute_device(module: torch.nn.Module) -> torch.device:
    """Where a module's arithmetic is; its shards may lie in CPU memory meanwhile."""
    parameter = next(module.parameters())
    if not isinstance(parameter, DTensor):
        return parameter.device
    return _device_of(parameter.device_mesh)


def _device_of(mesh: DeviceMesh) -> torch.device:
    """Where a mesh's arithmetic is on this rank."""
    kind = mesh.device_type
    return torch.device("cuda", torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a parameter, gradient or moment: the tensor itself, where ``to_local`` gives a view of it."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def hold_gradients(module: FSDPModule, config: FSDPConfig, *, last: bool) -> None:
    """Let the next backward pass add up whole gradients on every rank, and only the last of a mini-batch reduce them.

    Where a forward pass leaves the weights gathered (``enable_full_shard=false``), they stay so until then, too.
    """
    module.set_requires_gradient_sync(last)
    module.set_reshard_after_backward(last or config.enable_full_shard)


def held(module: torch.nn.Module, config: FSDPConfig, micros: Sequence[Micro]) -> Iterator[Micro]:
    """The micro-batches of a mini-batch, with what their passes share held between them: whole gradients by
    ``defer_gradient_reduction``, and the copies that a rank alone computes with."""
    casting = casting_of(module)
    with nullcontext() if casting is None else casting.entered(module):
        for number, micro in enumerate(micros, 1):
            if isinstance(module, FSDPModule) and config.defer_gradient_reduction:
                hold_gradients(module, config, last=number == len(micros))
            yield micro


def clip_grad_norm(parameters: list[torch.nn.Parameter], max_norm: float) -> float:
    """Scale gradients down to ``max_norm``; returns the norm before. A non-finite norm leaves the gradients alone."""
    norm = torch.linalg.vector_norm(torch.stack([_norm(p.grad) for p in parameters if p.grad is not None]))
    total = norm.full_tensor() if isinstance(norm, DTensor) else norm
    value = total.item()
    if math.isfinite(value) and value + 1e-6 > max_norm:  # below, every gradient would be read and multiplied by 1
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total.float(), foreach=True)
    return value


def _norm(gradient: torch.Tensor) -> torch.Tensor:
    """() in fp64. In fp32 sums over millions of numbers differ by 1e-4 with the way they are sharded; rows are short
    enough for it, and a whole gradient would be copied to become fp64."""
    if gradient.dim() > 1:
        gradient = torch.linalg.vector_norm(gradient, dim=-1, dtype=torch.float32)
    return torch.linalg.vector_norm(gradient, dtype=torch.float64)


_ON_HOST: MutableMapping[torch.Tensor, tuple[torch.Tensor, int]] = WeakIdKeyDictionary()
"""of a parameter or moment that was moved off the GPU before: its place in pinned memory, and bytes of its storage"""


def offload_module(module: torch.nn.Module) -> None:
    """Move the shards of an idle module from the GPU to CPU memory. Its buffers, which are small, stay."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()  # what a pass left gathered
    _offload(module.parameters())


def load_module(module: torch.nn.Module) -> None:
    """Bring back what ``offload_module`` moved away."""
    _bring_back(module.parameters())


def offload_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Move an optimiser's moments from the GPU to CPU memory."""
    _offload(_moments(optimizer))


def load_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Bring back what ``offload_optimizer`` moved away."""
    _bring_back(_moments(optimizer))


def _moments(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor) and value.dim() > 0)


@torch.no_grad()
def _offload(tensors: Iterable[torch.Tensor]) -> None:
    """Copy tensors to pinned memory and free their storage on the GPU; the tensors stay what they are, but empty.

    So FSDP's views, tied weights and the optimiser's references hold. Each tensor keeps its place in pinned memory:
    pinning costs more than copying. What is on the CPU already (``enable_cpu_offload``) has nothing to move.
    """
    freed = []
    for tensor in tensors:
        here = local_shard(tensor)
        size = here.untyped_storage().nbytes()
        if here.device.type == "cpu" or not size:
            continue
        place, _ = _ON_HOST.get(tensor, (None, 0))
        if place is None:
            place = torch.empty(here.shape, dtype=here.dtype, pin_memory=True)
        _ON_HOST[tensor] = place, size
        place.copy_(here, non_blocking=True)
        freed.append(here)
    if freed:
        torch.cuda.synchronize()
        for here in freed:
            here.untyped_storage().resize_(0)


@torch.no_grad()
def _bring_back(tensors: Iterable[torch.Tensor]) -> None:
    """Queue the copies back; what is computed next on this stream, and FSDP's streams behind it, come after them."""
    for tensor in tensors:
        here = local_shard(tensor)
        if tensor in _ON_HOST and not here.untyped_storage().nbytes():
            place, size = _ON_HOST[tensor]
            here.untyped_storage().resize_(size)
            here.copy_(place, non_blocking=True)
