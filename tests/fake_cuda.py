"""A CUDA device for tests without a GPU: torch's fake tensors, and a look at every operation on them.

Fake tensors have device, shape and type but no numbers. Left out: data-dependent shapes (boolean indexing), which need
numbers; and gradients, at which a CPU build of torch aborts for want of CUDA's streams.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
COPIES = {"_to_copy", "copy_"}
READS = {"_local_scalar_dense"}


class Watch(TorchDispatchMode):
    """Refuses an operation over two devices, as a kernel would even where fake tensors let it pass (0 dimensions).

    ``waits`` counts what makes the host wait for the device: numbers read from it, and copies to the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        if name in READS and devices == {"cuda"}:
            self.waits[name] += 1
            return 1.0 if tensors[0].dtype.is_floating_point else True  # finite, and it holds
        result = function(*args, **(kwargs or {}))
        if name in COPIES:
            if "cuda" in devices and isinstance(result, torch.Tensor) and result.device.type == "cpu":
                self.waits[name] += 1
        elif len(devices) > 1:
            raise RuntimeError(f"{name}: tensors on {sorted(devices)}")
        return result


class Operators(TorchFunctionMode):
    """``tensor[index]`` and ``~tensor`` by other functions: a CPU build refuses them on CUDA, even of fake tensors."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.__getitem__:
            return _part(*args)
        if function is torch.Tensor.__invert__:
            return torch.bitwise_not(*args)
        if function is torch.Tensor.__setitem__:
            tensor, index, value = args
            if isinstance(index, torch.Tensor):
                return tensor.index_put_((index,), torch.as_tensor(value))
            return _part(tensor, index).copy_(torch.as_tensor(value))
        return function(*args, **(kwargs or {}))


def _part(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    """``tensor[index]`` for whole numbers, slices, and tensors of row numbers."""
    place = 0
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, int):
            tensor = tensor.select(place, part)
            continue
        if isinstance(part, slice):
            start, stop, step = part.indices(tensor.shape[place])
            tensor = torch.ops.aten.slice.Tensor(tensor, place, start, stop, step)
        else:
            tensor = torch.ops.aten.index.Tensor(tensor, [None] * place + [torch.as_tensor(part)])
        place += 1
    return tensor


@contextmanager
def fake_cuda() -> Iterator[Watch]:
    """Everything inside is made of fake tensors, without gradients; yields what watches them."""
    with FakeTensorMode(), torch.no_grad(), Operators(), Watch() as watch:
        yield watch
