"""How many samples a micro-batch has where the configuration says ``auto``: found from the model and the device.

A loss is a sum over micro-batches, so nothing but time and memory depends on it. The same configuration on the same
device gives the same numbers, and a run that goes on adds up in the same order: nothing here is timed.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ..utils.memory import GIB
from .estimate import estimate
from .flops import ModelShape
from .hardware import Hardware
from .model_memory import bytes_of, role_of, saved_activations

if TYPE_CHECKING:
    from ..config.run import PPOConfig
    from ..config.worker import BatchConfig

UPDATE, EXPERIENCE = "micro_batch_size_per_device_for_update", "micro_batch_size_per_device_for_experience"
UNKNOWN = {UPDATE: 4, EXPERIENCE: 16}
"""EasyR1's, for models without a memory model, and for attention over padded rows, which may hold all its scores"""
PHASES = {
    ("actor", UPDATE): {"update actor"},
    ("actor", EXPERIENCE): {"log-probs", "reference"},
    ("critic", UPDATE): {"update critic"},
    ("critic", EXPERIENCE): {"values"},
}
"""phases of a step that run in micro-batches of this size"""
GPU_SHARE = 0.75
"""of a GPU's memory; the rest is for what the model leaves out: CUDA's context, NCCL, fragmentation, its own errors"""
CPU_TOKENS = 4096
"""that a CPU's micro-batch computes, a prompt once for its samples. A pass over the weights costs as much as the
arithmetic of fifty tokens in fp32 and of several hundred in bf16, so that more tokens gain little: measured in
docs/performance.md"""
CPU_ACTIVATIONS = GIB
"""what they may take in any case; beyond it, no more than weights, gradients and moments do"""


def is_open(config: "PPOConfig") -> bool:
    """Whether a size is left to us."""
    return "auto" in sizes(config)


def with_micro_batches(config: "PPOConfig", shapes: Mapping[str, ModelShape] | None, memory: int | None) -> "PPOConfig":
    """``config`` with numbers for ``auto``.

    Args:
        shapes: of ``actor``, and of ``ref`` and ``critic`` where they differ from it; None where a model has no size
            estimate.
        memory: bytes of a rank's GPU; None on a CPU.
    """
    for role, size in PHASES:
        settings: BatchConfig = getattr(config.worker, role)
        if getattr(settings, size) != "auto":
            continue
        share = samples_of_share(config, settings, size)
        if shapes is None or (memory is not None and not settings.padding_free):
            found = UNKNOWN[size]
        elif memory is None:
            found = _cpu_samples(config, role, shapes)
        else:
            found = _largest_that_fits(config, role, size, shapes, memory)
        config = _with(config, role, size, max(1, min(found, share)))
    return config


def samples_of_share(config: "PPOConfig", settings: "BatchConfig", size: str) -> int:
    """Samples that a rank has in a mini-batch, or in a whole batch where nothing is updated."""
    prompts = settings.global_batch_size if size == UPDATE else config.data.rollout_batch_size
    return prompts * config.worker.rollout.n // config.data_parallel_size


def sizes(config: "PPOConfig") -> list:
    """Numbers, or ``auto`` where none was found yet, in the order of PHASES."""
    return [getattr(getattr(config.worker, role), size) for role, size in PHASES]


def with_sizes(config: "PPOConfig", found: list[int]) -> "PPOConfig":
    """``config`` with these numbers, in the order of PHASES."""
    for (role, size), samples in zip(PHASES, found, strict=True):
        config = _with(config, role, size, samples)
    return config


def _with(config: "PPOConfig", role: str, size: str, samples: int) -> "PPOConfig":
    settings = replace(getattr(config.worker, role), **{size: samples})
    return replace(config, worker=replace(config.worker, **{role: settings}))


def _cpu_samples(config: "PPOConfig", role: str, shapes: Mapping[str, ModelShape]) -> int:
    """Samples of a micro-batch of either kind: a pass without gradients needs less memory, and no other size."""
    settings: BatchConfig = getattr(config.worker, role)
    shape, data = shapes.get(role, shapes["actor"]), config.data
    cpu = Hardware("", None, 1.0, 1.0, 1.0)
    trained = role_of(shape, settings.fsdp, settings.offload, 1, batch=settings, lora=settings.model.lora, hardware=cpu)
    sharing = config.worker.rollout.n if settings.shares_prompts else 1
    tokens = data.max_prompt_length / sharing + data.max_response_length
    # Responses have logits and their gradients.
    logits = 2 * shape.vocab * bytes_of(settings.fsdp.mp_param_dtype) * data.max_response_length
    a_sample = saved_activations(trained, 1, on_gpu=False) * tokens + logits
    room = max(CPU_ACTIVATIONS, trained.weights + trained.gradients + trained.optimizer)
    return int(min(CPU_TOKENS / tokens, room / a_sample))


def _largest_that_fits(config: "PPOConfig", role: str, size: str, shapes: Mapping[str, ModelShape], memory: int) -> int:
    """The largest power of two whose phases fit, within a rank's share; 1 if none does."""
    hardware, share = Hardware("", memory, 1.0, 1.0, 1.0), samples_of_share(config, getattr(config.worker, role), size)
    others = with_sizes(config, [1 if one == "auto" else one for one in sizes(config)])
    samples = 1
    while 2 * samples <= share and _fits(_with(others, role, size, 2 * samples), PHASES[role, size], shapes, hardware):
        samples *= 2
    return samples


def _fits(config: "PPOConfig", phases: set[str], shapes: Mapping[str, ModelShape], hardware: Hardware) -> bool:
    """Whether phases fit however long the prompts are: long ones fill a share, short ones a budget with responses."""
    room = GPU_SHARE * hardware.memory
    for prompt in {1, config.data.max_prompt_length}:
        predicted = estimate(config, shapes, hardware, prompt)
        if any(predicted.total(phase) > room for phase in phases & predicted.phases.keys()):
            return False
    return True


def lines_of(config: "PPOConfig") -> list[str]:
    """What ``with_micro_batches`` found, for the dry run."""
    roles = ["actor", "critic"] if config.use_critic else ["actor"]
    length = config.data.max_prompt_length + config.data.max_response_length
    found = []
    for role in roles:
        settings: BatchConfig = getattr(config.worker, role)
        update, experience = getattr(settings, UPDATE), getattr(settings, EXPERIENCE)
        tokens = f", {update * length} and {experience * length} tokens" if settings.dynamic_batching else ""
        found.append(f"{f'micro-batches, {role}':<23}{update} samples (update) and {experience} (experience){tokens}")
    return found
