"""Arithmetic in another type than weights are kept in, for a rank that has a module to itself on a CPU.

What FSDP's mixed precision does, without gathering, splitting and reducing what nobody shares, which takes a CPU longer
than the arithmetic of hundreds of tokens: a pass runs on copies in the type of the arithmetic, and a copy's gradient is
added to that of the weight as soon as it is whole.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch


class Casting:
    """The copies that stand in the places of a module's weights while it runs.

    Args:
        dtype: of the arithmetic.
    """

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype) -> None:
        self.dtype, self.inside, self.of_a_pass = dtype, False, ExitStack()
        module.register_forward_pre_hook(self._before_a_pass)
        module.register_forward_hook(self._behind_a_pass, always_call=True)

    @contextmanager
    def entered(self, module: torch.nn.Module) -> Iterator[None]:
        """Passes and their backward passes in here share their copies; one outside has its own, until it ends."""
        if self.inside:
            yield
            return
        places = [
            (part, name, weight)
            for part in module.modules()
            for name, weight in part._parameters.items()
            if weight is not None and weight.is_floating_point() and weight.dtype != self.dtype
        ]
        copies = {weight: _copy(weight, self.dtype) for _, _, weight in places}  # one of a weight that two parts share
        for part, name, weight in places:
            part._parameters[name] = copies[weight]
        self.inside = True
        try:
            yield
        finally:
            for part, name, weight in places:
                part._parameters[name] = weight
            self.inside = False

    def _before_a_pass(self, module: torch.nn.Module, _: Any) -> None:
        self.of_a_pass.enter_context(self.entered(module))

    def _behind_a_pass(self, *_: Any) -> None:
        self.of_a_pass.close()


def _copy(weight: torch.nn.Parameter, dtype: torch.dtype) -> torch.nn.Parameter:
    copy = torch.nn.Parameter(weight.detach().to(dtype), requires_grad=weight.requires_grad)

    def hand_over(copy: torch.nn.Parameter) -> None:
        if weight.grad is None:
            weight.grad = copy.grad.to(weight.dtype)
        else:
            weight.grad.add_(copy.grad)
        copy.grad = None

    if weight.requires_grad:
        copy.register_post_accumulate_grad_hook(hand_over)
    return copy


_CASTINGS: WeakKeyDictionary[torch.nn.Module, Casting] = WeakKeyDictionary()


def cast_in_passes(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Let passes of ``module`` compute in ``dtype``."""
    _CASTINGS[module] = Casting(module, dtype)


def casting_of(module: torch.nn.Module) -> Casting | None:
    """What ``cast_in_passes`` gave the module."""
    return _CASTINGS.get(module)
