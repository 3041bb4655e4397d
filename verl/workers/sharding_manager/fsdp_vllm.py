"""Puts the actor's current weights into vLLM before it samples, and proves that they arrived.

Three proofs, each for what the others miss. The engine says which of its parameters were loaded: none may be left out.
Weights that it keeps as they came are compared by digests, to the last bit. And both sides score one fixed text,
teacher-forced, which shows what was loaded into the wrong place; there arithmetic in bf16 hides small differences, so
its bound is wide (`worker.rollout.sync_tolerance`). Where a proof fails the run ends, rather than train on samples of
another policy.
"""

from collections.abc import Callable, Iterable, Iterator

import torch

from ...models.export import adapter_tensors, base_tensors, exported_tensors
from ..rollout.vllm_rollout import VLLMRollout, digest

FINGERPRINT_TOKENS = 32
ROUNDING = {torch.float32: 1.5e-4, torch.bfloat16: 0.03, torch.float16: 7e-3}
"""largest mean |difference| of log-probabilities that arithmetic alone explains, by the coarser side's type, as a share
of their mean size: errors of rounding grow with logits, and a trained model is far from a random text's tokens"""
TF32_ROUNDING = 1.5e-3
"""the same of fp32 on a GPU, where vLLM's attention multiplies in TF32"""


class StaleWeightsError(RuntimeError):
    """The engine's weights are not the actor's."""


class DivergedError(RuntimeError):
    """The actor's weights are no numbers any more."""


def rounding(dtype: torch.dtype, *, on_gpu: bool) -> float:
    """See ``ROUNDING``."""
    return TF32_ROUNDING if on_gpu and dtype == torch.float32 else ROUNDING[dtype]


class FSDPVLLMShardingManager:
    """Owns the hand-over between one actor module and one engine.

    ``syncs`` counts hand-overs, ``synced_bytes`` what they gathered on this rank.

    Args:
        score: the actor's log-probabilities of a token sequence, (len - 1,); a collective over the actor's ranks.
        dtype: type of the engine's weights.
        rounding: see ``ROUNDING``.
        tolerance: largest mean |difference| of log-probabilities (nats) between actor and engine, instead.
        vocab_size, max_model_len: bounds of the fixed text's tokens, and of their number.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        rollout: VLLMRollout,
        *,
        score: Callable[[list[int]], torch.Tensor],
        dtype: torch.dtype,
        rounding: float,
        tolerance: float | None,
        vocab_size: int,
        max_model_len: int,
    ) -> None:
        self.module, self.rollout, self.score = module, rollout, score
        self.dtype, self.rounding, self.tolerance = dtype, rounding, tolerance
        self.syncs = self.synced_bytes = 0
        generator = torch.Generator().manual_seed(0)
        length = min(FINGERPRINT_TOKENS, max_model_len - 1)  # the engine samples one token behind it
        self.tokens = torch.randint(0, vocab_size, (length,), generator=generator).tolist()

    def open(self, loaded: Callable[[], None] = lambda: None) -> VLLMRollout:
        """The engine awake, with the actor's weights in it.

        Args:
            loaded: called when the engine has the weights and has not yet taken memory for its KV cache.
        """
        expected = self.score(self.tokens)
        if not torch.isfinite(expected).all():
            raise DivergedError(
                "the actor's log-probabilities are not finite any more, its weights grew too large; lower "
                "worker.actor.optim.lr, and go on from an earlier checkpoint"
            )
        self.rollout.wake_up("weights")
        self._load()
        self.syncs += 1
        loaded()
        self.rollout.wake_up("kv_cache")
        self.verify(expected)
        return self.rollout

    def close(self) -> None:
        """Put the engine to sleep."""
        self.rollout.sleep()

    def _load(self) -> None:
        """All weights or, where the engine takes adapters, the frozen ones if they are gone, and the adapters.

        An engine that slept gets the frozen ones from the actor again: from GPU to GPU they are there sooner than from
        the memory of the host, which would have to hold them.
        """
        if not self.rollout.takes_adapters:
            self._load_weights(exported_tensors(self.module, self.dtype))
            return
        if not self.rollout.has_weights:
            self._load_weights(base_tensors(self.module, self.dtype))
        adapters = adapter_tensors(self.module, self.dtype)
        self.synced_bytes += sum(tensor.nbytes for tensor in adapters.values())
        self.rollout.load_adapter(self.module.peft_config["default"], adapters)

    def _load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        sent = {}

        def noted() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in named_tensors:
                self.synced_bytes += tensor.nbytes
                if name in self.rollout.kept:
                    sent[name] = digest(tensor)
                yield name, tensor

        if missing := self.rollout.load_weights(noted()):
            raise StaleWeightsError(
                f"the weight sync left {len(missing)} of vLLM's parameters as they were: {', '.join(missing[:5])}; the "
                "engine names this model's weights otherwise than transformers does"
            )
        if other := self.rollout.different(sent):
            raise StaleWeightsError(
                f"after the weight sync {len(other)} of vLLM's tensors are not what it was sent: {', '.join(other[:5])}"
            )

    def verify(self, expected: torch.Tensor) -> None:
        """Raise StaleWeightsError unless the engine scores the fixed text as the actor did."""
        difference = (self.rollout.teacher_forced_log_probs(self.tokens) - expected).abs().mean().item()
        tolerance = self.tolerance or self.rounding * expected.abs().mean().item()
        if not difference <= tolerance:
            raise StaleWeightsError(
                f"after the weight sync vLLM's log-probabilities of a fixed text differ from the actor's by "
                f"{difference:.3g} nats on average (worker.rollout.sync_tolerance: {tolerance:.3g}); the engine does "
                "not hold the actor's weights"
            )
