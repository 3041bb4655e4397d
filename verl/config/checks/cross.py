"""What can only be judged across the sections of a configuration: batches against ranks, the rollout against the data.

Needs no file; what does is in ``verl.trainer.preflight``.
"""

from typing import TYPE_CHECKING

from ..worker import ADAPTER_RANKS, MOST_REPLAYED, LoraConfig

if TYPE_CHECKING:
    from ..run import PPOConfig


EXAMPLES = 10_000


def cross_problems(config: "PPOConfig") -> list[str]:
    """Every problem, a line each: key, value, rule and fix."""
    return [*_batch_problems(config), *_rollout_problems(config), *_model_problems(config)]


def _batch_problems(config: "PPOConfig") -> list[str]:
    found = []
    if problems := _sharing_problems(config):
        return problems
    prompts, n, ranks = config.data.rollout_batch_size, config.worker.rollout.n, config.data_parallel_size
    for role in ("actor", "critic") if config.use_critic else ("actor",):
        mini = getattr(config.worker, role).global_batch_size
        if mini > 0 and prompts % mini:
            found.append(
                f"worker.{role}.global_batch_size={mini}: must divide data.rollout_batch_size={prompts}; "
                f"for example {_largest_divisor(prompts, mini)}"
            )
        if ranks > 0 and mini * n % ranks:
            found.append(
                f"worker.{role}.global_batch_size={mini}: times worker.rollout.n={n} must divide over "
                f"{ranks} ranks; {_batch_that_divides(prompts, n, ranks)}"
            )
    return found + _replay_problems(config)


def _sharing_problems(config: "PPOConfig") -> list[str]:
    """Of the ranks that share samples, without which the shares of a batch cannot be counted."""
    size, ranks, found = config.worker.actor.ulysses_size, config.trainer.world_size, []
    if size < 1 or ranks % size:
        found.append(
            f"worker.actor.ulysses_size={size}: must divide the {ranks} ranks (trainer.nnodes x "
            f"trainer.n_gpus_per_node); for example {_largest_divisor(ranks, max(1, size))}"
        )
    if config.use_critic and config.worker.critic.ulysses_size != size:
        found.append(
            f"worker.critic.ulysses_size={config.worker.critic.ulysses_size}: actor and critic get the same shares "
            f"of a batch; set {size}"
        )
    return found


def _replay_problems(config: "PPOConfig") -> list[str]:
    ratio, prompts = config.algorithm.replay.ratio, config.data.rollout_batch_size
    mini, world = config.worker.actor.global_batch_size, config.data_parallel_size
    if not 0 < ratio <= MOST_REPLAYED or min(prompts, mini, world) < 1:
        return []
    groups = round(ratio * prompts)
    if config.use_critic or config.algorithm.adv_estimator == "remax":
        return [f"algorithm.replay.ratio={ratio}: {config.algorithm.adv_estimator} cannot replay stored advantages"]
    even = prompts % mini == 0 and groups % (prompts // mini) == 0
    if groups and even and groups // (prompts // mini) * config.worker.rollout.n % world == 0:
        return []
    return [
        f"algorithm.replay.ratio={ratio}: gives {groups} groups for {prompts} prompts, which must be at least 1 "
        f"and divide over the mini-batches and the {world} ranks; for example 1.0"
    ]


def _rollout_problems(config: "PPOConfig") -> list[str]:
    found, rollout, ranks = [], config.worker.rollout, config.trainer.world_size
    if rollout.tensor_parallel_size > 0 and ranks % rollout.tensor_parallel_size:
        found.append(
            f"worker.rollout.tensor_parallel_size={rollout.tensor_parallel_size}: must divide the {ranks} ranks "
            f"(trainer.nnodes x trainer.n_gpus_per_node); for example {_largest_divisor(ranks, 2)}"
        )
    if config.algorithm.adv_estimator in ("grpo", "grpo_passk", "rloo") and rollout.n < 2:
        found.append(f"worker.rollout.n={rollout.n}: {config.algorithm.adv_estimator} compares samples; set at least 2")
    if rollout.noise_rollout and not config.data.extra_prompt:
        found.append(
            f"worker.rollout.noise_rollout={rollout.noise_rollout}: needs data.extra_prompt, the text that these "
            "samples see; give it or set 0"
        )
    if config.algorithm.rollout_is != "off" and (rollout.top_p < 1 or rollout.top_k != -1):
        found.append(
            f"algorithm.rollout_is={config.algorithm.rollout_is}: top_p={rollout.top_p}, top_k={rollout.top_k} "
            "renormalise the engine's log-probabilities; set top_p=1 and top_k=-1, or rollout_is=off"
        )
    need = config.data.max_prompt_length + config.data.max_response_length
    if rollout.max_model_len is not None and rollout.max_model_len < need:
        found.append(
            f"worker.rollout.max_model_len={rollout.max_model_len}: must hold max_prompt_length + "
            f"max_response_length = {need}; set {need} or null"
        )
    if rollout.enable_chunked_prefill is False and rollout.max_num_batched_tokens < need:
        found.append(
            f"worker.rollout.max_num_batched_tokens={rollout.max_num_batched_tokens}: must hold one sequence of "
            f"{need} tokens; raise it or set worker.rollout.enable_chunked_prefill=true"
        )
    return found


def _model_problems(config: "PPOConfig") -> list[str]:
    found, model = [], config.worker.actor.model
    if not model.model_path:
        found.append("worker.actor.model.model_path: is required; give a Hugging Face folder or hub id")
    if config.use_critic and not (config.worker.critic.model.model_path or model.model_path):
        found.append("worker.critic.model.model_path: is required for adv_estimator=gae")
    if config.worker.rollout.lora_weights == "adapter" and model.lora.rank > 0:
        found += _adapter_problems(model.lora)
    for role in ("actor", "critic", "ref"):
        size, ranks = getattr(config.worker, role).fsdp.fsdp_size, config.trainer.world_size
        if size != -1 and (size < 1 or ranks % size):
            found.append(f"worker.{role}.fsdp.fsdp_size={size}: must divide the {ranks} ranks, or be -1 for all")
    if config.trainer.val_only and not config.data.val_files:
        found.append("trainer.val_only=true: there is nothing to validate; give data.val_files")
    return found


def _adapter_problems(lora: LoraConfig) -> list[str]:
    """Adapters that the engine cannot take by themselves."""
    found = []
    if lora.rank > ADAPTER_RANKS[-1]:
        found.append(
            f"worker.rollout.lora_weights=adapter: vLLM takes ranks up to {ADAPTER_RANKS[-1]}, and "
            f"worker.actor.model.lora.rank={lora.rank}; set merged"
        )
    if any(end in str(lora.target_modules) for end in ("embed", "lm_head", "wte")):
        found.append(
            f"worker.rollout.lora_weights=adapter: vLLM takes adapters of the layers only, and "
            f"worker.actor.model.lora.target_modules={lora.target_modules} names the embedding or the head; set merged"
        )
    return found


def _largest_divisor(number: int, at_most: int) -> int:
    """Of those up to EXAMPLES, which is enough for an example."""
    return next((d for d in range(min(at_most, number, EXAMPLES), 0, -1) if number % d == 0), 1)


def _batch_that_divides(prompts: int, n: int, ranks: int) -> str:
    """A mini-batch that divides the prompts and, times n, the ranks, in words: all prompts, if any does."""
    if prompts * n % ranks == 0:
        return f"for example {prompts}"
    return f"none does with data.rollout_batch_size={prompts}; for example make it {ranks * max(1, prompts // ranks)}"
