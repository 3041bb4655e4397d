"""Seconds of a step's phases: operations and bytes, divided by what the hardware can do times a stated efficiency.

Left out: the driver, the reward function, validation and checkpoints. Responses count at full length, so a run whose
responses end early is faster.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ..config.worker import MAX_SEQUENCES
from .flops import forward_flops
from .hardware import Hardware
from .model_memory import Role

EFFICIENCY = {"training": 0.4, "prefill": 0.4, "decode bandwidth": 0.6, "link": 0.6}
"""share of the peak that a phase reaches"""
NETWORK = 50e9
"""bytes a second and GPU between machines: one 400 Gbit/s adapter for each"""
ENGINE_STEP_S = 5e-3
"""what an engine step costs beside the model: scheduling and sampling"""


@dataclass(frozen=True)
class Work:
    """What a step has to do, over all ranks."""

    samples: int
    prompts: int
    golds: int
    """gold answers beside the samples of an update"""
    reference_on_golds: bool
    """the reference computes them, too"""
    prompt_tokens: int
    response_tokens: int
    world: int
    ranks_per_node: int
    engines: int
    engine_bytes: int
    """the engine's weights on one rank"""
    sync_bytes: int
    """what a rank gathers for the engine"""
    kv_bytes_per_token: int
    """on one rank"""
    shares_prompts: bool
    """a pass over the batch computes each prompt once"""

    def computed(self, phase: str) -> tuple[int, int]:
        """Tokens of a pass over the batch, and pairs of tokens in one sequence."""
        samples = self.samples + (self.golds if phase == "update actor" else 0)
        length = self.prompt_tokens + self.response_tokens
        again = samples - self.prompts if self.shares_prompts else 0
        tokens, pairs = samples * length, samples * length**2
        return tokens - again * self.prompt_tokens, pairs - again * self.prompt_tokens**2


def role_name(phase: str) -> str:
    """The role that works in a phase."""
    return {"reference": "ref", "values": "critic", "update critic": "critic"}.get(phase, "actor")


def phase_seconds(
    phases: list[str],
    roles: Mapping[str, Role],
    work: Work,
    micro_batches: Mapping[str, int],
    mini_batches: int,
    epochs: int,
    hardware: Hardware,
) -> dict[str, float]:
    """Seconds of each of ``phases`` and of the weight sync.

    Args:
        micro_batches: micro-batches of a rank's whole share, by phase.
    """
    # The ranks of a CPU machine share its cores.
    rank_flops = hardware.flops if hardware.memory else hardware.flops / work.ranks_per_node
    seconds = {"sync": _link_seconds(roles["actor"], work, hardware, work.sync_bytes)}
    for phase in phases:
        if phase == "load":
            continue
        if phase == "rollout":
            seconds[phase] = _rollout(roles["actor"], work, hardware, rank_flops)
            continue
        role = roles[role_name(phase)]
        flops = forward_flops(role.shape, *work.computed(phase))
        updates = phase.startswith("update")
        flops *= (4 if role.checkpointing else 3) * epochs if updates else 1
        if phase == "update actor" and work.reference_on_golds:
            length = work.prompt_tokens + work.response_tokens
            flops += epochs * forward_flops(roles["ref"].shape, work.golds * length, work.golds * length**2)
        compute = flops / work.world / rank_flops / EFFICIENCY["training"]
        link = _link_seconds(role, work, hardware, _moved(role, micro_batches[phase], mini_batches, updates=updates))
        link *= 0 if role.unsharded else epochs if updates else 1
        seconds[phase] = max(compute, link)  # FSDP moves the next layer while this one computes
    return seconds


def _moved(role: Role, micro_batches: int, mini_batches: int, *, updates: bool) -> int:
    """Bytes that a pass over a batch gathers and reduces: weights for every micro-batch (an update's backward pass
    gathers them again), gradients for every micro-batch or mini-batch."""
    once = mini_batches if updates and role.deferred else micro_batches
    if not updates:
        return role.parameters * role.compute * micro_batches
    gathers = 2 * micro_batches if role.full_shard else once
    return role.parameters * role.compute * gathers + role.trained * role.reduce * once


def _link_seconds(role: Role, work: Work, hardware: Hardware, size: int) -> float:
    """Time to gather ``size`` bytes over the ranks that share the weights; their slowest connection decides."""
    if role.ranks == 1:
        return size / hardware.bandwidth / EFFICIENCY["link"]
    speed = hardware.link if role.ranks <= work.ranks_per_node else min(hardware.link, NETWORK)
    return size * (role.ranks - 1) / role.ranks / speed / EFFICIENCY["link"]


def _rollout(actor: Role, work: Work, hardware: Hardware, rank_flops: float) -> float:
    """Prefill of every prompt once (its samples share the prefix), then one engine step for each response token."""
    tensor_parallel = work.world // work.engines
    speed = rank_flops * tensor_parallel
    prompt_flops = forward_flops(actor.shape, work.prompt_tokens, work.prompt_tokens**2)
    prefill = prompt_flops * work.prompts / work.engines / speed / EFFICIENCY["prefill"]
    samples = -(-work.samples // work.engines)
    at_once = min(samples, MAX_SEQUENCES)
    context = work.prompt_tokens + work.response_tokens / 2
    read = work.engine_bytes + at_once * context * work.kv_bytes_per_token
    token = forward_flops(actor.shape, 1, 0) + 4 * actor.shape.layers * actor.shape.query * context
    step = max(
        read / hardware.bandwidth / EFFICIENCY["decode bandwidth"], at_once * token / speed / EFFICIENCY["prefill"]
    )
    return prefill + -(-samples // at_once) * work.response_tokens * (step + ENGINE_STEP_S)
