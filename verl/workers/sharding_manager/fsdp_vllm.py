"""Puts the actor's current weights into vLLM before each rollout, and proves that they arrived.

The proof is a fingerprint: both sides score the same fixed tokens, teacher-forced. If the engine were still on older
weights, or had not taken a tensor, its log-probabilities would differ, and the run ends rather than train on samples of
another policy.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ...utils.fsdp import full_tensors
from ..rollout.vllm_rollout import VLLMRollout

FINGERPRINT_TOKENS = 32
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
"""largest mean |difference| of log-probabilities (nats) that arithmetic alone explains, by the coarser side's type"""


class StaleWeightsError(RuntimeError):
    """The engine's weights are not the actor's."""


class DivergedError(RuntimeError):
    """The actor's weights are no numbers any more."""


class FSDPVLLMShardingManager:
    """Owns the hand-over between one actor module and one engine.

    Args:
        score: the actor's log-probabilities of a token sequence, (len - 1,); a collective over the actor's ranks.
        dtype: the coarser of the actor's and the engine's arithmetic.
        vocab_size: bounds the fingerprint's tokens.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        rollout: VLLMRollout,
        *,
        score: Callable[[list[int]], torch.Tensor],
        dtype: torch.dtype,
        vocab_size: int,
    ) -> None:
        self.module, self.rollout, self.score = module, rollout, score
        self.base_is_there = False
        self.tolerance = TOLERANCE[dtype]
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, vocab_size, (FINGERPRINT_TOKENS,), generator=generator).tolist()

    @contextmanager
    def engine(self) -> Iterator[VLLMRollout]:
        """The engine with the actor's weights in it; asleep again afterwards."""
        expected = self.score(self.tokens)
        if not torch.isfinite(expected).all():
            raise DivergedError(
                "the actor's log-probabilities are not finite any more, its weights grew too large; lower "
                "worker.actor.optim.lr, and go on from an earlier checkpoint"
            )
        self.rollout.wake_up("weights")
        self._load()
        self.rollout.wake_up("kv_cache")
        self.verify(expected)
        try:
            yield self.rollout
        finally:
            self.rollout.sleep()

    def _load(self) -> None:
        """All weights or, where the engine takes adapters, the frozen ones once and the adapters every time."""
        if not self.rollout.takes_adapters:
            self.rollout.load_weights(exported_tensors(self.module))
            return
        if not self.base_is_there:
            self.rollout.load_weights(base_tensors(self.module))
            self.base_is_there = True
        self.rollout.load_adapter(self.module.peft_config["default"], adapter_tensors(self.module))

    def verify(self, expected: torch.Tensor) -> None:
        """Raise StaleWeightsError unless the engine scores the fingerprint as the actor did."""
        difference = (self.rollout.teacher_forced_log_probs(self.tokens) - expected).abs().mean().item()
        if not difference <= self.tolerance:
            raise StaleWeightsError(
                f"after the weight sync vLLM's log-probabilities of the fingerprint differ from the actor's by "
                f"{difference:.3g} nats on average (allowed: {self.tolerance}); the engine does not hold the actor's "
                "weights"
            )


@torch.no_grad()
def exported_tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """(Hugging Face name, whole tensor) of every weight, LoRA adapters merged. A collective over the module's ranks."""
    scales = {name: part.scaling["default"] for name, part in module.named_modules() if hasattr(part, "lora_A")}
    parts: dict[str, torch.Tensor] = {}  # of the adapted layer that comes next: base_layer.weight, lora_A, lora_B
    for name, tensor in full_tensors(module):
        owner, _, rest = _adapted(name, scales)
        if rest.startswith(("base_layer.weight", "lora_A", "lora_B")):
            parts[rest.split(".")[0]] = tensor
        else:
            yield _plain(name), tensor
        if len(parts) == 3:
            change = scales[owner] * (parts["lora_B"].float() @ parts["lora_A"].float())
            yield _plain(f"{owner}.weight"), parts["base_layer"] + change.to(parts["base_layer"].dtype)
            parts.clear()


@torch.no_grad()
def base_tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """(Hugging Face name, whole tensor) of every weight under LoRA, without the adapters. A collective."""
    for name, tensor in full_tensors(module):
        if ".lora_" not in name:
            yield _plain(name), tensor


@torch.no_grad()
def adapter_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """PEFT's name, as in its files, to whole tensor of every adapter, on the CPU. A collective."""
    return {name.replace(".default.", "."): tensor.cpu() for name, tensor in full_tensors(module, ".lora_")}


def _adapted(name: str, scales: dict[str, float]) -> tuple[str, str, str]:
    """(module, ".", the rest of the name) if a weight belongs to a module with adapters."""
    for marker in (".base_layer.", ".lora_A.", ".lora_B."):
        owner, _, rest = name.partition(marker)
        if rest and owner in scales:
            return owner, ".", marker.strip(".") + "." + rest
    return "", "", ""


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")
