"""What RULE does with FSDP2: shard a module, fill it, gather it, move it off the device, clip its gradients."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ..workers.config import FSDPConfig

REDUCE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def build_mesh(device_type: str, fsdp_size: int) -> DeviceMesh:
    """All ranks in one shard group, or replicated groups of ``fsdp_size`` ranks (HSDP)."""
    world_size = dist.get_world_size()
    if fsdp_size in (-1, world_size):
        return init_device_mesh(device_type, (world_size,), mesh_dim_names=("shard",))
    shape = (world_size // fsdp_size, fsdp_size)
    return init_device_mesh(device_type, shape, mesh_dim_names=("replicate", "shard"))


def shard(module: torch.nn.Module, config: FSDPConfig, mesh: DeviceMesh, param_dtype: torch.dtype) -> None:
    """Shard every transformer layer, embedding and head, then what is left, in place."""
    options: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": config.enable_full_shard,
        "mp_policy": MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=REDUCE_DTYPES[config.mp_reduce_dtype]),
    }
    if config.enable_cpu_offload and mesh.device_type != "cpu":
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
    return [] if model.config.get_text_config().tie_word_embeddings else [embedding, head]


def load_full_state(
    module: torch.nn.Module,
    state: dict[str, torch.Tensor] | None,
    buffers: dict[str, torch.Tensor],
    *,
    from_rank0: bool,
) -> None:
    """Fill a module that was sharded on the meta device.

    Args:
        state: all weights, on every rank or (``from_rank0``) on rank 0 only.
        buffers: the real buffers, which the meta device would have lost.
    """
    offloaded = any(isinstance(p, DTensor) and p.device_mesh.device_type == "cuda" for p in module.parameters())
    device = torch.device("cuda", torch.cuda.current_device()) if offloaded else torch.device("cpu")
    module.to_empty(device=device)
    module.tie_weights()  # to_empty made two parameters of tied ones
    for name, buffer in buffers.items():
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner)._buffers[leaf] = buffer.to(device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=from_rank0)
    set_model_state_dict(module, state or {}, options=options)


def full_tensors(module: torch.nn.Module, part: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(name, whole tensor) of every weight, gathered one at a time. A collective: every rank must run it to the end.

    Args:
        part: what the names must hold.
    """
    for name, tensor in module.state_dict().items():
        if part in name:
            yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def clip_grad_norm(parameters: list[torch.nn.Parameter], max_norm: float) -> float:
    """Scale gradients down to ``max_norm``; returns the norm before. A non-finite norm leaves the gradients alone."""
    # Summed in fp64: fp32 sums over millions of elements differ by 1e-4 with the way they are sharded.
    norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float64) for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    total = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if torch.isfinite(total):
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total.float(), foreach=True)
    return total.item()


def move_module(module: torch.nn.Module, device: str | torch.device) -> None:
    """Move the shards of a module that lies idle, or is about to be used."""
    module.to(device)


def move_optimizer(optimizer: torch.optim.Optimizer, device: str | torch.device) -> None:
    """Move an optimiser's moments."""
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim() > 0:
                state[key] = value.to(device, non_blocking=True)
