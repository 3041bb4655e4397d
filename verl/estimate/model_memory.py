"""Bytes of one sharded model on one rank: weights, gradients, optimiser, gathered layers, activations.

Put together by ``estimate``.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..models.optim import moment_dtype
from .flops import ModelShape
from .hardware import Hardware

if TYPE_CHECKING:
    from ..config.worker import BatchConfig, Dtype, FSDPConfig, LoraConfig, OffloadConfig

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Role:
    """One sharded model on one rank. Everything is in bytes unless it says otherwise."""

    shape: ModelShape
    ranks: int
    """ranks that share one copy of the weights"""
    parameters: int
    trained: int
    """parameters that have gradients"""
    adapters: int
    """those of LoRA, kept in fp32"""
    keep: int
    compute: int
    reduce: int
    moments: int
    """of a trained parameter: what the optimiser keeps"""
    scratch: int
    """of a parameter that is being updated, at most ``optim.CHUNK`` of them at once"""
    deferred: bool
    """whole gradients are added up over a mini-batch"""
    full_shard: bool
    checkpointing: bool
    weights_away: bool
    """weights lie in CPU memory while another phase runs"""
    optimizer_away: bool
    on_host: bool
    """weights, gradients and optimiser state always lie in CPU memory"""
    unsharded: bool = False
    """one rank has the module whole (``fsdp.shard``)"""
    cast: int = 0
    """its parameters of which a pass has copies in the type of the arithmetic (``models.casting``)"""
    borrowed: bool = False
    """the weights are the actor's"""

    @property
    def whole(self) -> int:
        """All weights, on whatever rank."""
        return (self.parameters - self.adapters) * self.keep + self.adapters * BYTES["fp32"]

    @property
    def weights(self) -> int:
        return 0 if self.on_host or self.borrowed else self.whole // self.ranks

    @property
    def gradients(self) -> int:
        return 0 if self.on_host else self.trained * (BYTES["fp32"] if self.adapters else self.keep) // self.ranks

    @property
    def optimizer(self) -> int:
        return 0 if self.on_host else self.trained * self.moments // self.ranks

    @property
    def whole_gradients(self) -> int:
        """Gradients that wait on every rank for the last micro-batch."""
        return self.trained * self.reduce if self.deferred else 0

    @property
    def largest_slice(self) -> int:
        """A rank's part of the largest tensor, which loading and updates pass through."""
        return self.shape.vocab * self.shape.hidden * self.keep // self.ranks

    @property
    def layer(self) -> int:
        return self.shape.layer_parameters * self.compute

    @property
    def outer(self) -> int:
        """Embedding and head."""
        return self.shape.outer_parameters * self.compute

    @property
    def end(self) -> int:
        """One of them; where they share a weight it is one unit, which stays gathered for a whole pass."""
        return self.outer if self.shape.tied else self.outer // 2

    @property
    def flat(self) -> int:
        """Buffers that FSDP2 gathers a layer into before it copies it out; the next layer's is on its way."""
        return 2 * self.layer if self.ranks > 1 else 0

    @property
    def gathered(self) -> int:
        """Gathered weights during a forward pass."""
        if self.unsharded:
            return self.cast * self.compute
        if not self.full_shard:
            return self.outer + self.shape.layers * self.layer
        if self.shape.tied:
            return self.outer + self.layer + self.flat
        return max(self.layer + self.flat, self.end * (2 if self.ranks > 1 else 1))

    @property
    def gathered_layer(self) -> int:
        """The same in a layer's backward pass, when head and embedding are not there."""
        return self.gathered if self.shape.tied or not self.full_shard or self.unsharded else self.layer + self.flat

    @property
    def left_gathered(self) -> int:
        """What a pass without gradients leaves behind where FSDP does not shard again after it."""
        return 0 if self.full_shard or self.unsharded else self.shape.layers * self.layer + self.outer


def role_of(
    shape: ModelShape,
    fsdp: "FSDPConfig",
    offload: "OffloadConfig",
    world: int,
    *,
    batch: "BatchConfig | None",
    lora: "LoraConfig | None" = None,
    hardware: Hardware,
    heads: int = 1,
) -> Role:
    """A model's role from its settings; ``batch`` is None for a reference, which is not trained."""
    optim = batch.optim if batch is not None and batch.optim.strategy == "adamw_bf16" else None
    compute = bytes_of(fsdp.mp_param_dtype)
    adapters = shape.lora_parameters(lora.rank) if lora and lora.rank else 0
    kept = fsdp.torch_dtype or ("bf16" if optim else "fp32" if batch and not adapters else fsdp.mp_param_dtype)
    trained_in = "fp32" if adapters else kept
    parameters = shape.parameters + adapters - (0 if heads else shape.vocab * shape.hidden * (not shape.tied))
    gpu = hardware.memory is not None
    cast = parameters if bytes_of(kept) != compute else adapters if bytes_of(trained_in) != compute else 0
    summed = batch is None or bytes_of(trained_in) == BYTES[fsdp.mp_reduce_dtype]
    unsharded = world == 1 and summed and not (gpu and (cast or fsdp.enable_cpu_offload))
    return Role(
        shape=shape,
        ranks=world if fsdp.fsdp_size == -1 else fsdp.fsdp_size,
        parameters=parameters,
        trained=0 if batch is None else adapters or parameters,
        adapters=adapters,
        keep=bytes_of(kept),
        compute=compute,
        reduce=BYTES[fsdp.mp_reduce_dtype],
        # Both moments in the weights' type, or BF16AdamW's, and the weights' lower halves.
        moments=2 + sum(moment_dtype(beta).itemsize for beta in optim.betas) if optim else 2 * bytes_of(trained_in),
        scratch=5 * 4 if optim else 0,
        deferred=fsdp.defer_gradient_reduction,
        full_shard=fsdp.enable_full_shard,
        checkpointing=batch is not None and batch.model.enable_gradient_checkpointing,
        weights_away=gpu and offload.offload_params,
        optimizer_away=gpu and offload.offload_optimizer,
        on_host=gpu and fsdp.enable_cpu_offload,
        unsharded=unsharded,
        cast=cast,
    )


def bytes_of(dtype: "Dtype") -> int:
    """Bytes of a number."""
    if dtype == "auto":
        from ..models.build import resolve_dtype

        return resolve_dtype(dtype).itemsize
    return BYTES[dtype]


# ---- activations --------------------------------------------------------------------------------------------------
def layer_activations(shape: ModelShape, c: int, *, on_gpu: bool) -> int:
    """Bytes of a token that one layer keeps for its backward pass.

    Both norms keep their input (in fp32), the normalised value and their output; attention its query, key and value
    (on the CPU repeated for every head), its output and, on the CPU, a copy of that without padding; the MLP gate, up,
    the activation and their product.
    """
    norms = 2 * shape.hidden * (4 + 2 * c)
    wide = 2 * shape.query + 2 * shape.key_value if on_gpu else 5 * shape.query
    return norms + wide * c + 4 * shape.heads + 4 * shape.intermediate * c


def saved_activations(role: Role, tokens: int, *, on_gpu: bool) -> int:
    """What a forward pass keeps: every layer's activations or, with checkpointing, every layer's input."""
    layers, c = role.shape.layers, role.compute
    if role.checkpointing:
        return tokens * layers * role.shape.hidden * c
    return tokens * layers * layer_activations(role.shape, c, on_gpu=on_gpu)


def working_activations(role: Role, tokens: int, *, on_gpu: bool) -> int:
    """What the layer in the backward pass needs besides: gradients and, with checkpointing, its own activations."""
    shape, c = role.shape, role.compute
    gradients = tokens * c * (3 * shape.intermediate + 2 * shape.hidden)
    again = tokens * layer_activations(shape, c, on_gpu=on_gpu) if role.checkpointing else 0
    return gradients + again


def forward_activations(shape: ModelShape, tokens: int, c: int) -> int:
    """A forward pass without gradients: the residual stream, and the widest moment of a layer."""
    return tokens * (shape.hidden * (4 + 2 * c) + max(3 * shape.intermediate, 5 * shape.query) * c)
