"""Every weight of a sharded module as a whole tensor under its Hugging Face name: for the engine, and for folders.

Shards are cast before they are gathered, and gathered a layer at a time: one collective moves what a layer has, in the
type that its reader wants. LoRA adapters are merged shard by shard in fp32, so that a small update is rounded once.
"""

import math
import re
from collections.abc import Iterable, Iterator
from itertools import groupby

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import DTensor, Replicate

from .fsdp import compute_device, local_shard
from .loading import plain_name

Named = Iterator[tuple[str, torch.Tensor]]

_LAYER = re.compile(r".*?\.\d+\.")


@torch.no_grad()
def exported_tensors(module: torch.nn.Module, dtype: torch.dtype) -> Named:
    """(name, whole tensor) of every weight, LoRA adapters merged, tied weights once. A collective over all ranks.

    Args:
        dtype: what weights are cast to.
    """
    yield from _gathered(_weights(module, merged=True), dtype, compute_device(module))


@torch.no_grad()
def base_tensors(module: torch.nn.Module, dtype: torch.dtype) -> Named:
    """The same without what the adapters have learned."""
    yield from _gathered(_weights(module, merged=False), dtype, compute_device(module))


@torch.no_grad()
def adapter_tensors(module: torch.nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """PEFT's name, as in its files, to whole tensor of every adapter, on the CPU. A collective.

    Args:
        dtype: what they are cast to.
    """
    adapters = {name: tensor for name, tensor in module.state_dict().items() if ".lora_" in name}
    whole = _gathered(adapters.items(), dtype, compute_device(module))
    return {name.replace(".default", ""): tensor.cpu() for name, tensor in whole}


def _weights(module: torch.nn.Module, *, merged: bool) -> Named:
    """(name, shard) of every weight but the adapters."""
    state = module.state_dict()
    adapted = {name: part for name, part in module.named_modules() if hasattr(part, "lora_A")}
    whole = module.get_base_model() if adapted else module
    tied = set(getattr(whole, "all_tied_weights_keys", None) or ())
    for name, tensor in state.items():
        owner, _, rest = name.partition(".base_layer.")
        plain = plain_name(name)
        if ".lora_" in name or plain in tied:
            continue
        if merged and owner in adapted and rest == "weight":
            tensor = tensor.float() + _change(adapted[owner], owner, state, tensor)
        yield plain, tensor


def _change(layer: torch.nn.Module, name: str, state: dict[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    """What the adapters of ``layer`` add to its ``weight``, in fp32, sharded as that is: scale x B A.

    peft keeps A as (r, in) and B as (out, r); the weights of embeddings and of GPT-2's Conv1D are transposed.
    """
    embeds = "default" in layer.lora_embedding_A
    pattern = "{}.lora_embedding_{}.default" if embeds else "{}.lora_{}.default.weight"
    a, b = (state[pattern.format(name, letter)].float() for letter in "AB")
    left, right = (a.T, b.T) if embeds or getattr(layer, "fan_in_fan_out", False) else (b, a)
    if isinstance(weight, DTensor):
        left = left.redistribute(placements=weight.placements)
        right = right.redistribute(placements=[Replicate()] * weight.device_mesh.ndim)
    return layer.scaling["default"] * (left @ right)


def _gathered(weights: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype, device: torch.device) -> Named:
    for (_, sharded), layer in groupby(weights, key=_bundle):
        names, tensors = zip(*layer, strict=True)
        shards = [local_shard(part).to(dtype).to(device, non_blocking=True) for part in tensors]
        yield from zip(names, _gather(tensors, shards) if sharded else shards, strict=True)


def _bundle(named: tuple[str, torch.Tensor]) -> tuple[str, bool]:
    """What is gathered together: a layer's shards; of what lies outside the layers each by itself."""
    name, tensor = named
    layer = _LAYER.match(name)
    return layer[0] if layer else name, isinstance(tensor, DTensor)


def _gather(tensors: tuple[DTensor, ...], shards: list[torch.Tensor]) -> list[torch.Tensor]:
    """Whole tensors by one collective, from ``shards`` that were cut along their first dimension.

    As with torch's chunks, all ranks but the last have ceil(rows / ranks) rows; what the last ones lack is padded.
    """
    mesh = tensors[0].device_mesh
    ranks, group = mesh.size(mesh.ndim - 1), mesh.get_group(mesh.ndim - 1)
    if ranks == 1:
        return shards
    sizes = [-(-tensor.shape[0] // ranks) * math.prod(tensor.shape[1:]) for tensor in tensors]
    pieces = [F.pad(shard.reshape(-1), (0, size - shard.numel())) for shard, size in zip(shards, sizes, strict=True)]
    mine = torch.cat(pieces)
    everyone = mine.new_empty(ranks * len(mine))
    dist.all_gather_into_tensor(everyone, mine, group=group)
    return [
        part.reshape(-1)[: tensor.numel()].view(tensor.shape)
        for part, tensor in zip(everyone.view(ranks, -1).split(sizes, dim=1), tensors, strict=True)
    ]
