"""Fills a sharded module with the weights of a Hugging Face checkpoint, so that no process holds the whole model.

Every rank reads the rows of its own shards out of the safetensors files. That needs tensors which go by the module's
own names. Where transformers renames, splits or joins tensors as it loads them, and where the files are of another
kind, one rank reads the model as transformers does and hands it to the others.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor

from ..utils.errors import DataError
from .fsdp import local_shard

HEAD = re.compile(r"(^|\.)score\.")
"""names of a value head, which no checkpoint of a language model has"""


class WeightFiles:
    """The tensors of a folder's or hub repository's safetensors files. Files are opened once, and mapped, not read.

    Raises:
        DataError: a file is none, or is not whole.
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        """``files``: the file of each tensor."""
        opened = {file: _open(file) for file in sorted(set(files.values()))}
        self._handles = {name: opened[file] for name, file in files.items()}

    @classmethod
    def find(cls, path: str) -> "WeightFiles | None":
        """None where the model has no safetensors files, or not all of them are here."""
        single, index = _cached(path, "model.safetensors"), _cached(path, "model.safetensors.index.json")
        if single is not None:
            with _open(single) as file:
                return cls(dict.fromkeys(file.keys(), single))
        if index is None:
            return None
        names = _weight_map(index)
        files = {file: _cached(path, file) for file in sorted(set(names.values()))}
        return None if None in files.values() else cls({name: files[file] for name, file in names.items()})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(handle.get_slice(name).get_shape()) for name, handle in self._handles.items()}

    def dtypes(self) -> list[torch.dtype]:
        return [handle.get_slice(name)[:0].dtype for name, handle in self._handles.items()]

    def read(self, name: str, rows: slice) -> torch.Tensor:
        """Rows of a tensor, in the type of the file."""
        return self._handles[name].get_slice(name)[rows]


def _weight_map(index: str | Path) -> dict[str, str]:
    """Tensor to file, by the index of a model in several files."""
    return json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]


def _open(file: str) -> Any:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise DataError(
            f"{file}: is no whole safetensors file ({error}); copy it again (git lfs pull, where it came by git)"
        ) from error


def check_weights(path: str, *, must_be_here: bool) -> None:
    """Raise DataError for the weights of a folder that are torn or not all there; hub ids are not looked at.

    Args:
        must_be_here: this machine reads them.
    """
    if not Path(path).is_dir() or WeightFiles.find(path) is not None or not must_be_here:
        return
    index = next(iter(sorted(Path(path).glob("*.index.json"))), None)
    if index is not None:
        if missing := sorted(name for name in {*_weight_map(index).values()} if not (Path(path) / name).is_file()):
            raise DataError(f"model {path}: {index.name} lists {', '.join(missing[:3])}, not there; copy it again")
    elif not any(Path(path).glob("*.safetensors")) and not any(Path(path).glob("*.bin")):
        raise DataError(f"model {path}: has no weights (model.safetensors, or pytorch_model.bin); copy them there")


def _cached(path: str, file: str) -> str | None:
    from transformers.utils import cached_file

    return cached_file(
        path,
        file,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def stored_dtype(path: str, config: Any) -> torch.dtype:
    """The type that a model's weights are stored in: what its configuration says, else rank 0's files. A collective."""
    named = config.dtype or config.get_text_config().dtype
    if named is not None:
        return named
    found = [_dtype_of_files(path) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, 0, device=torch.device("cpu"))
    return found[0]


def _dtype_of_files(path: str) -> torch.dtype:
    """Of the first weight that is no integer, in safetensors or in torch's files; fp32 where neither are here."""
    files = WeightFiles.find(path)
    dtypes = files.dtypes() if files is not None else []
    index, single = _cached(path, "pytorch_model.bin.index.json"), _cached(path, "pytorch_model.bin")
    if files is None and index is not None:
        single = _cached(path, min(_weight_map(index).values()))
    if files is None and single is not None:
        tensors = torch.load(single, map_location="meta", weights_only=True)
        dtypes = [tensor.dtype for tensor in tensors.values()]
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)


def plain_name(name: str) -> str:
    """The name that a parameter has without the adapters around it."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def same_names(module: torch.nn.Module, files: WeightFiles) -> bool:
    """True if the files hold exactly what the module (unsharded, without adapters) is made of, under the same names.

    A value head may be missing, and a language model's head be there instead; a tied weight lies there once.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    if module.is_custom_code():  # may load in any way
        return False
    if any(isinstance(part, WeightConverter) for part in get_model_conversion_mapping(module)):
        return False
    tied = getattr(module, "all_tied_weights_keys", None) or {}
    wanted = {
        name: tuple(tensor.shape)
        for name, tensor in module.state_dict().items()
        if name not in tied and not HEAD.search(name)
    }
    found = files.shapes()
    if hasattr(module, "score"):
        found = {name: shape for name, shape in found.items() if name != "lm_head.weight" and not HEAD.search(name)}
    return wanted == found


def all_agree(yes: bool) -> bool:
    """True if it holds on every rank. A collective."""
    flag = torch.tensor(float(yes))
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag)


def whole_model(auto_class: Any, path: str, options: Mapping[str, Any]) -> torch.nn.Module:
    """The model as transformers loads it, on the CPU.

    Raises:
        DataError: tensors that are not in the checkpoint, or have another shape there.
    """
    module, report = auto_class.from_pretrained(path, **options, output_loading_info=True, ignore_mismatched_sizes=True)
    missing = sorted(name for name in report["missing_keys"] if not HEAD.search(name))
    shapes = [f"{name} {tuple(there)} for {tuple(here)}" for name, there, here in report["mismatched_keys"]]
    shapes = [text for text in shapes if not HEAD.search(text.split()[0])]
    if missing or shapes:
        found = "; ".join([f"has no {', '.join(missing[:5])}"] * bool(missing) + shapes[:5])
        more = max(0, len(missing) - 5) + max(0, len(shapes) - 5)
        raise DataError(
            f"model.model_path={path}: the checkpoint {found}{f' and {more} more' if more else ''}; its config.json "
            "(with override_config) describes another model than its weights"
        )
    return module


@torch.no_grad()
def fill(module: torch.nn.Module, files: WeightFiles | None, source: Mapping[str, torch.Tensor] | None) -> None:
    """Fill every shard of a module, and the buffers that checkpoints keep. A collective.

    Args:
        files: what holds the parameters under their plain names; None: everything comes from ``source``.
        source: by the module's own names, whole tensors that ``files`` lacks; None on every rank but 0, which
            broadcasts them then.
    """
    broadcast = not all_agree(source is not None)
    in_files = {name for name in (files.shapes() if files is not None else ()) if not HEAD.search(name)}
    buffers = dict(module.named_buffers())
    kept = {name: buffers[name] for name in module.state_dict() if name in buffers}
    for name, tensor in {**dict(module.named_parameters()), **kept}.items():
        here = local_shard(tensor)
        rows = _rows(tensor, here)
        if plain_name(name) in in_files:
            if here.numel():
                here.copy_(files.read(plain_name(name), rows))
            continue
        whole = source[name].to(here.dtype) if source is not None else torch.empty(tensor.shape, dtype=here.dtype)
        if broadcast:
            # On the device of the mesh, whose links are the fastest, wherever the shards themselves are.
            whole = whole.to(tensor.device_mesh.device_type if isinstance(tensor, DTensor) else here.device)
            whole = whole.contiguous()
            dist.broadcast(whole, 0)
        here.copy_(whole[rows])


def _rows(tensor: torch.Tensor, here: torch.Tensor) -> slice:
    """The rows of a whole tensor that this rank keeps: FSDP cuts the first dimension like ``torch.chunk``."""
    if not isinstance(tensor, DTensor):
        return slice(None)
    mesh = tensor.device_mesh  # its last dimension shards, one before it replicates
    start = mesh.get_local_rank(mesh.ndim - 1) * -(-tensor.shape[0] // mesh.size(mesh.ndim - 1))
    return slice(start, start + here.shape[0])
